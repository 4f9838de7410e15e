//! Stage 6: LLM events of one exchange in, its token timeline and numbers out.
//!
//! Feed a [`Timing`] until it says [`Progress::Finished`], then take its [`Exchange`]. The definitions are those of
//! DESIGN section 3; where it leaves a choice, the choice stands at the field that it decides.
//!
//! Stamps of one direction can step back a little when several threads read in turn. A time of the token timeline
//! never does: a chunk stamped before the chunk in front of it takes that chunk's time (and is coalesced with it).

mod cause;
mod counting;
mod outcome;
mod phases;
mod rates;
mod retries;
mod timeline;
mod tokens;
mod track;

#[cfg(test)]
mod tests;

pub use cause::{CausedBy, Rule, Served};
pub use counting::{Counted, Tokenizer, Tokenizers};
pub use phases::{Cause, ReadDelay};
pub use rates::{RATE_SPAN_MIN_NS, STALL_MEDIANS, STALL_MIN_NS, stall_threshold};
pub use retries::Retries;
pub use timeline::{Chunks, Cursor, Gaps, Timeline, TimelineChunk};
pub use track::{ActiveStream, Options, Progress, Timing};

use std::sync::Arc;

use crate::{
    event::{ConnId, Found, MonoNs, Peer, Role, Said},
    llm::{Call, RequestFacts, ResponseFacts, Usage},
};

/// One finished LLM call. Times are [`MonoNs`]; what was not seen is `None`, never zero and never guessed.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// Connection and exchange on it: unique while the observer runs.
    pub id: ExchangeId,
    /// Process (tgid in the initial pid namespace).
    pub pid: u32,
    /// Whether the process made the call or served it. Of a call that it serves `request_start` and `request_sent` are the
    /// returns of the reads that carried the request, and every time of the response is the entry of the write that carries it.
    pub role: Role,
    /// The two ends of the connection, where they were seen.
    pub peer: Option<Peer>,
    /// What an in-process hook said of the call, when it is one that the process made.
    pub said: Option<Arc<Said>>,
    /// What caused the call, when it is one that the process made and that is known.
    pub cause: Option<CausedBy>,
    /// Thread that wrote the request head (read it, for a call that the process serves).
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
    /// Value for `error.type`: what the provider said, else the HTTP status; `stream_reset`, `goaway` or
    /// `stream_truncated` for an abort by the server. Also set on an incomplete exchange that the provider is known to
    /// have refused; `None` otherwise.
    pub error_type: Option<String>,
    /// Finish reasons in the order of the choices, as the provider names them. At most
    /// [`crate::limits::FINISH_REASONS`].
    pub finish_reasons: Vec<String>,

    /// How the socket of the connection was found. `None`: nothing of what it could tell is known but, perhaps, `peer` and
    /// `connect_ns`.
    pub socket: Option<Found>,
    /// Duration of the TCP connect in ns, of the exchange that the connection was made for. `None`: not seen.
    pub connect_ns: Option<u64>,
    /// Duration of the TLS handshake in ns ([`Peer::tls_ns`]); likewise.
    pub tls_ns: Option<u64>,
    /// Entry of the successful write that carries the first byte of the request head.
    pub request_start: Option<MonoNs>,
    /// Return of the write that carries the last byte of the body; `None` when the end of the request was not seen
    /// before the end of the exchange. Where TLS only fills a buffer (asyncio, Node) that is encryption, not the wire.
    pub request_written: Option<MonoNs>,
    /// When the last byte of the body was with the socket: `request_written` where the write itself sent it, else the return of
    /// the send that did. `None` where the socket did not confirm it.
    pub request_sent: Option<MonoNs>,
    /// Return of the read that carries the first byte of the response head. Unknown when bytes were lost
    /// before the first event of the body: then the head may be that of another response.
    pub first_byte: Option<MonoNs>,
    /// Whether the answer was a stream: its content type says so, or it came in several events. Only a stream has a
    /// first chunk, tokens with times, a timeline, stalls and a decode rate; a whole body has none of them (its only
    /// time is `end`), or its duration would pass for a TTFT.
    pub streamed: bool,
    /// First data event of the stream, of any kind. Unknown when bytes of the response were lost before it.
    pub first_chunk: Option<MonoNs>,
    /// First event that carries generated payload. Unknown when bytes of the response were lost before it: the first
    /// token may be among them.
    pub first_token: Option<MonoNs>,
    /// Last event that carries generated payload. Unknown when bytes of the response were lost after it.
    pub last_token: Option<MonoNs>,
    /// Last byte of the exchange that belongs to it (end marker, message end, or the abort).
    pub end: Option<MonoNs>,
    /// The failed call of the same process that this one repeats, byte for byte; see [`Retries`].
    pub retry_of: Option<ExchangeId>,
    /// Which repetition this is, from 1: as its client says (`x-stainless-retry-count`), else as was seen. 0: a client says that it
    /// is none. `None`: nothing says that it is one.
    pub retry_count: Option<u32>,

    /// Output chunks in the order of arrival.
    pub chunks: Timeline,
    /// Stalls after the first token, from and to: silences longer than [`stall_threshold`] with the median gap of the
    /// finished stream (of its kept beginning when the timeline is truncated), the silence before an abort included.
    /// A silence with a loss in it is not told. At most [`crate::limits::STALLS`].
    pub stalls: Vec<(MonoNs, MonoNs)>,
    /// Why, for each of `stalls`. `None`: the arrivals at the socket were not seen. Always `None` for a call that the process serves.
    pub stall_causes: Vec<Option<Cause>>,
    /// Why the first token took as long as it did; likewise, and `None` where one of both ends of the wait is unknown.
    pub first_token_cause: Option<Cause>,
    /// How long data lay in the socket unread while the exchange was open; `None`: not seen.
    pub read_delay: Option<ReadDelay>,
    /// Segments that this host sent again while the exchange was open (for the exchange that the connection was made for,
    /// since it was made); `None`: not seen. What the other side sent again does not show.
    pub retransmits: Option<u32>,
    /// The wait for the first token (for the end, when none came) from the request start was itself longer than the
    /// threshold. The same threshold on purpose: to a reader of the stream it is the same silence; it is told apart
    /// because a long prompt explains it. False for an answer that is not a stream and where the wait is unknown.
    pub stalled_before_first_token: bool,

    /// Token counts as the provider reported them. `output` and `reasoning` are `None` when more was generated after
    /// the last report (Anthropic's first event reports 1): the provider never said what the whole came to.
    pub usage: Usage,
    /// Source of `output_tokens`.
    pub usage_source: TokenSource,
    /// Number N of output tokens used for rates, by `usage_source`. `None` for an answer that is not a stream and
    /// without usage: one body is not one token. A lower bound when it counts chunks and bytes were lost.
    pub output_tokens: Option<u64>,
    /// Tokens that a tokenizer counted in the generated text, whoever `output_tokens` comes from. A lower bound when bytes were
    /// lost. `None`: no tokenizer is known for the model, or there was more than [`crate::limits::TOKENIZED_BYTES`].
    pub counted_tokens: Option<u64>,
    /// `counted_tokens` over the provider's count of the same text (its output tokens, without reasoning that was not shown).
    /// `None` unless both counted all of it.
    pub token_count_ratio: Option<f64>,
    /// Decode rate, tokens/s; see DESIGN section 3. With counts per chunk (continuous usage) the tokens that share the
    /// first time are counted, so with those of a tokenizer, else they are their share of the chunks. Unknown when bytes of the response were lost.
    pub decode_rate: Option<f64>,
    /// End-to-end rate, tokens/s: N over the time from the request start to the last output chunk (to the end, for an
    /// answer that is not a stream). With a loss it is known only from usage, and only when the
    /// loss came after the first token.
    pub end_to_end_rate: Option<f64>,

    /// Bytes of the response that were lost; `None` when some were but not how many.
    pub bytes_lost: Option<u64>,
    /// Generated text, only when content was asked for: answer text of choice 0 (other choices would interleave), at
    /// most `limits::Limits::content_bytes`, U+FFFD where bytes were lost.
    pub output_text: Option<String>,
}

impl Exchange {
    /// Time to first token in ns: first token - request start.
    #[must_use]
    pub fn ttft_ns(&self) -> Option<u64> {
        between(self.request_start, self.first_token)
    }

    /// Time to first chunk in ns (OTel `time_to_first_chunk`): first data event of any kind - request start.
    #[must_use]
    pub fn time_to_first_chunk_ns(&self) -> Option<u64> {
        between(self.request_start, self.first_chunk)
    }

    /// Duration of the whole operation in ns: end - request start.
    #[must_use]
    pub fn duration_ns(&self) -> Option<u64> {
        between(self.request_start, self.end)
    }

    /// Inter-chunk latency samples in ns, one per read that carried output after the first; see [`Timeline::gaps`].
    #[must_use]
    pub fn inter_chunk_latencies_ns(&self) -> Gaps<'_> {
        self.chunks.gaps()
    }
}

/// `None` also when the stamps contradict each other: a negative time is unknown, not zero.
fn between(from: Option<MonoNs>, to: Option<MonoNs>) -> Option<u64> {
    to?.0.checked_sub(from?.0)
}

/// Identity of an exchange: connection and number on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId {
    /// Connection.
    pub conn: ConnId,
    /// Exchange on it, from 0; from 2^31 on, a call on one of its WebSockets.
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
