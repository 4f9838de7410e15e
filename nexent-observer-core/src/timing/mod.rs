//! Stage 6: LLM events of one exchange in, its token timeline and numbers out.

use crate::{
    event::{ConnId, MonoNs},
    llm::{Call, RequestFacts, ResponseFacts, Usage},
};

/// One finished LLM call. Times are [`MonoNs`]; what was not seen is `None`, never zero and never guessed.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// Connection and exchange on it: unique while the observer runs.
    pub id: ExchangeId,
    /// Process (tgid in the initial pid namespace).
    pub pid: u32,
    /// Thread that wrote the request head.
    pub tid: Option<u32>,
    /// API call.
    pub call: Call,
    /// What the request body said.
    pub request: RequestFacts,
    /// What the response head said.
    pub response: ResponseFacts,
    /// `model` of the response body.
    pub response_model: Option<String>,
    /// `id` of the response body.
    pub response_id: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Value for `error.type`; `None` unless the outcome is an error or an abort by the server.
    pub error_type: Option<String>,
    /// Finish reasons by choice, as the provider names them.
    pub finish_reasons: Vec<String>,

    /// Entry of the successful write that carries the first byte of the request head.
    pub request_start: Option<MonoNs>,
    /// Return of the write that carries the last byte of the body.
    pub request_sent: Option<MonoNs>,
    /// Time of the response head.
    pub first_byte: Option<MonoNs>,
    /// First data event of the stream, of any kind.
    pub first_chunk: Option<MonoNs>,
    /// First event that carries generated payload.
    pub first_token: Option<MonoNs>,
    /// Last event that carries generated payload.
    pub last_token: Option<MonoNs>,
    /// Last byte of the exchange that belongs to it (end marker, message end, or the abort).
    pub end: Option<MonoNs>,

    /// Output chunks in the order of arrival.
    pub chunks: Timeline,
    /// Stalls after the first token: from and to.
    pub stalls: Vec<(MonoNs, MonoNs)>,
    /// The wait for the first token was itself a stall.
    pub stalled_before_first_token: bool,

    /// Token counts and where they come from.
    pub usage: Usage,
    /// Source of `usage.output` as used for rates.
    pub usage_source: TokenSource,
    /// Number N of output tokens used for rates, by `usage_source`.
    pub output_tokens: Option<u64>,
    /// Decode rate, tokens/s; see DESIGN section 3.
    pub decode_rate: Option<f64>,
    /// End-to-end rate, tokens/s.
    pub end_to_end_rate: Option<f64>,

    /// Bytes of this exchange that were lost; `None` when some were but not how many.
    pub bytes_lost: Option<u64>,
    /// Generated text (answer text only), only when content was asked for.
    pub output_text: Option<String>,
}

/// Identity of an exchange: connection and number on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId {
    /// Connection.
    pub conn: ConnId,
    /// Exchange on it, from 0.
    pub no: u32,
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered to its end.
    Completed,
    /// The provider reported an error (HTTP status or in the stream).
    Error,
    /// The observed process gave up on it.
    ClientAbort,
    /// The peer ended it before its end.
    ServerAbort,
    /// Bytes were lost or it was joined mid-stream: kept out of latency histograms.
    Incomplete,
}

impl Outcome {
    /// Label value: `completed`, `error`, `client_abort`, `server_abort`, `incomplete`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Error => "error",
            Self::ClientAbort => "client_abort",
            Self::ServerAbort => "server_abort",
            Self::Incomplete => "incomplete",
        }
    }
}

/// Where a token count comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenSource {
    /// The provider reported it.
    Usage,
    /// A tokenizer counted the text.
    Tokenizer,
    /// Number of output chunks: a lower bound.
    Chunks,
}

impl TokenSource {
    /// Label value: `usage`, `tokenizer`, `chunks`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Tokenizer => "tokenizer",
            Self::Chunks => "chunks",
        }
    }
}

/// Times of the output chunks, packed; capped at `limits::Limits::timeline_bytes`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timeline {
    packed: Vec<u8>,
    truncated: bool,
}

/// One output chunk as the timeline tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineChunk {
    /// When the read that completed it returned.
    pub at: MonoNs,
    /// Tokens in it where known (continuous usage), else `None`.
    pub tokens: Option<u32>,
    /// Decoded from the same read as the chunk before it: shares its time.
    pub coalesced: bool,
}
