//! Stage 5: HTTP messages in, LLM events out, whatever the API.
//!
//! [`LlmExchange`] reads one HTTP exchange. `detect` tells from the request head which API it is, `request` reads the request
//! body, `body` finds the framing of the response, and that framing (`sse`, `ndjson`, `json_array`, `aws_events`) cuts it into events,
//! which the API's decoder turns into [`LlmEvent`]s. `api` holds the table of known APIs: a new one is one file and one
//! row. [`LlmSocket`] reads a WebSocket, which carries any number of calls.

mod anthropic;
mod api;
mod aws_events;
mod base64;
mod bedrock;
mod body;
mod cohere;
mod cumulative;
mod dashscope;
mod detect;
mod embeddings;
mod envelope;
mod error_value;
mod exchange;
mod finish;
mod gemini;
mod json_array;
mod json_scan;
mod json_str;
mod lenient;
mod members;
mod name;
mod native;
mod ndjson;
mod ollama;
mod openai_chat;
mod openai_fast;
mod openai_parse;
mod openai_realtime;
mod openai_responses;
mod request;
mod response_head;
mod sglang;
mod socket;
mod sse;

pub use exchange::{LlmExchange, Verdict};
pub use finish::well_known_finish_reason;
pub(crate) use response_head::{RATE_LIMIT, REQUEST_ID};
pub use socket::{LlmSocket, SocketState};

use crate::{conn::GapCause, event::Stamp, http::AbortCause};

/// Output of this stage for one exchange. Borrowed from the bytes that carried it; nothing is kept unless timing keeps it.
#[derive(Debug, Clone, PartialEq)]
pub struct LlmEvent<'a> {
    /// Stamp of the call that completed what the event says.
    pub at: Stamp,
    /// Content.
    pub kind: LlmEventKind<'a>,
}

/// Content of an [`LlmEvent`].
#[derive(Debug, Clone, PartialEq)]
pub enum LlmEventKind<'a> {
    /// The request head was seen: the exchange begins. `first` is the stamp of the call with its first byte.
    Start {
        /// Stamp of the first byte of the request head.
        first: Stamp,
        /// What the head says.
        call: Call,
    },
    /// The request body was read to its end (or as far as it was kept); may correct or fill in what `Start` said.
    Request(RequestFacts),
    /// The request is completely written.
    RequestEnd,
    /// The response head arrived. `first` is the stamp of its first byte.
    Response {
        /// Stamp of the first byte of the response head.
        first: Stamp,
        /// What the head says.
        facts: ResponseFacts,
    },
    /// One data event of the stream (any kind: role-only, empty, usage-only too; not comments and pings), or the whole
    /// body of an answer that is not streamed. Sent before the `Delta`s, `Usage`, ... of that event.
    Chunk,
    /// Generated payload of the current chunk. Non-empty.
    Delta {
        /// What was generated.
        payload: Payload,
        /// Choice (candidate) it belongs to, from 0.
        choice: u32,
        /// The text. Base64 for audio and other media.
        text: &'a str,
    },
    /// Facts of the response body: model, id. Each is sent once, or again when it changes.
    Identity {
        /// `model` of the response.
        model: Option<&'a str>,
        /// `id` of the response.
        id: Option<&'a str>,
    },
    /// Token counts as the provider reports them so far, normalised (input with cached, output with reasoning).
    /// Cumulative: the last non-null value of each field counts.
    Usage(Usage),
    /// A choice finished.
    Finish {
        /// Choice, from 0.
        choice: u32,
        /// Reason as the provider names it.
        reason: &'a str,
    },
    /// The provider reported an error, in the body or in the stream.
    Error(ErrorFacts),
    /// The stream's own end marker (`[DONE]`, `message_stop`, ...): nothing generated follows.
    Done,
    /// The response is complete.
    End,
    /// Bytes of the response are not known.
    Gap {
        /// How many bytes of the wire, where known.
        len: Option<u64>,
        /// Why.
        cause: GapCause,
    },
    /// The exchange was joined after its beginning: times before this are not known.
    Joined,
    /// The exchange will not be completed.
    Abort(AbortCause),
    /// It turned out not to be an LLM call after all: forget it.
    NotLlm(NotLlm),
}

/// Why an exchange is no LLM call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotLlm {
    /// Its request cannot be one.
    Request,
    /// It is a call of the Model Context Protocol (streamable HTTP): of a tool, not of a model.
    Mcp,
    /// Its answer is none that is known.
    Answer,
}

/// Which API call this is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Call {
    /// `gen_ai.provider.name`, or a custom value; `None` while unknown.
    pub provider: Option<&'static str>,
    /// `gen_ai.operation.name`: `chat`, `text_completion`, `embeddings`, ...
    pub operation: &'static str,
    /// HTTP method, as sent.
    pub method: String,
    /// `Host` as sent, port included.
    pub host: Option<String>,
    /// Path without its query (queries carry keys).
    pub path: String,
    /// `traceparent` of the request (W3C Trace Context), as sent.
    pub traceparent: Option<String>,
    /// `x-stainless-retry-count`, where sent.
    pub retry_count: Option<u32>,
}

/// What the request body says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RequestFacts {
    /// Model asked for.
    pub model: Option<String>,
    /// Whether a stream was asked for.
    pub stream: Option<bool>,
    /// Upper bound on output tokens asked for.
    pub max_tokens: Option<u64>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Nucleus sampling.
    pub top_p: Option<f64>,
    /// Number of choices asked for.
    pub choices: Option<u32>,
    /// A part of the body was not kept (cap): `None` above may mean "not seen".
    pub truncated: bool,
}

/// What the response head says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ResponseFacts {
    /// HTTP status; `None` where it could not be read.
    pub status: Option<u16>,
    /// Whether the body is a stream by its content type.
    pub stream: bool,
    /// Provider as the response tells it, or the API's family (`openai_compatible`): for calls whose host told nothing.
    pub provider: Option<&'static str>,
    /// The provider's request id.
    pub request_id: Option<String>,
    /// The provider's own processing time, where its headers say it, in milliseconds.
    pub processing_ms: Option<f64>,
    /// Rate-limit headers, name (lower case) and value, as sent. At most `limits::RATE_LIMIT_HEADERS`.
    pub rate_limit: Vec<(String, String)>,
}

/// Kind of generated payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Payload {
    /// Answer text.
    Text,
    /// Reasoning (thinking) text.
    Reasoning,
    /// Refusal text.
    Refusal,
    /// Name of a tool call.
    ToolName,
    /// Piece of a tool call's arguments.
    ToolArguments,
    /// Audio or its transcript; other media too (images).
    Audio,
}

/// Normalised token counts. Absent is not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// All input tokens, cached ones included.
    pub input: Option<u64>,
    /// All output tokens, reasoning included.
    pub output: Option<u64>,
    /// Input tokens read from a cache.
    pub cached_input: Option<u64>,
    /// Output tokens spent on reasoning.
    pub reasoning: Option<u64>,
}

impl Usage {
    /// Takes over every field that `newer` knows.
    pub fn merge(&mut self, newer: Self) {
        let Self { input, output, cached_input, reasoning } = newer;
        self.input = input.or(self.input);
        self.output = output.or(self.output);
        self.cached_input = cached_input.or(self.cached_input);
        self.reasoning = reasoning.or(self.reasoning);
    }
}

/// An error as the provider reports it. Low cardinality by construction: no message text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorFacts {
    /// Value for `error.type`: the body's code if it looks like an identifier, else its type, else the HTTP status.
    pub error_type: String,
}
