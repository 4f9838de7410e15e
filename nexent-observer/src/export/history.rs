//! What the page and the terminal show of the past: the last exchanges with capped timelines, and counts by second.
//! In memory only, bounded, and without any text of prompt or answer.

use std::{
    collections::VecDeque,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nexent_observer_core::{
    event::{MonoNs, Role},
    timing::{Cause, Exchange, Outcome},
};
use serde::Serialize;

use super::{Observed, breakdown::Breakdown, clock::Offset, ids::SpanIds, live, policy::Slow, view};

/// Exchanges that are kept; the oldest goes first.
pub const EXCHANGES: usize = 500;
/// Chunks kept of one timeline: its beginning.
pub const CHUNKS: usize = 2000;
/// Stalls kept of one exchange.
pub const STALLS: usize = 32;
/// Seconds that are kept: 15 minutes.
pub const SECONDS: usize = 900;
/// Characters kept of a name.
pub const NAME_CHARS: usize = 256;

/// A finished exchange as the API gives it. Unknown is null; times are in seconds, and within the exchange they count from
/// `origin`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Number in the order of the ends, from 1; begins again with the observer.
    pub seq: u64,
    /// Connection and exchange on it, as in the JSON lines.
    pub id: String,
    /// What times within the exchange count from: `request_start`, or `first_chunk` where that was not seen.
    pub origin: &'static str,
    /// Request start on the wall clock, ms since the Unix epoch.
    pub start_unix_ms: Option<u64>,
    /// End, likewise.
    pub end_unix_ms: Option<u64>,
    /// Observed service.
    pub service: String,
    /// Observed process.
    pub pid: u32,
    /// `client` or `server`.
    pub role: &'static str,
    /// Inbound endpoint that caused the call.
    pub endpoint: Option<String>,
    /// Provider.
    pub provider: Option<&'static str>,
    /// Model asked for, else that which answered.
    pub model: Option<String>,
    /// Model that answered.
    pub response_model: Option<String>,
    /// Operation.
    pub operation: &'static str,
    /// Whether it was a stream.
    pub stream: bool,
    /// Host of the request.
    pub host: Option<String>,
    /// Path of the request, without its query.
    pub path: Option<String>,
    /// The other end of the connection.
    pub peer: Option<String>,
    /// Status of the response.
    pub http_status: Option<u16>,
    /// `completed`, `error`, `client_abort`, `server_abort` or `incomplete`.
    pub outcome: &'static str,
    /// What kind of error.
    pub error_type: Option<String>,
    /// As the provider names them.
    pub finish_reasons: Vec<String>,
    /// As the client says it.
    pub retry_count: Option<u32>,
    /// Time to first token.
    pub ttft_s: Option<f64>,
    /// Whole duration.
    pub duration_s: Option<f64>,
    /// Decode rate, tokens/s.
    pub decode_tokens_per_s: Option<f64>,
    /// End-to-end rate, tokens/s.
    pub end_to_end_tokens_per_s: Option<f64>,
    /// Token counts.
    pub tokens: Tokens,
    /// Output chunks in all that were kept by the observer.
    pub chunks: usize,
    /// From and to of each stall; at most [`STALLS`].
    pub stalls: Vec<(f64, f64)>,
    /// Why, for each of `stalls`: `late_arrival` or `late_read`; null where the socket was not watched.
    pub stall_causes: Vec<Option<&'static str>>,
    /// Likewise for the wait for the first token.
    pub first_token_cause: Option<&'static str>,
    /// Reads of data that had lain in the socket for over 5 ms; null where the socket was not watched.
    pub late_reads: Option<u32>,
    /// The longest time that data lay there.
    pub read_delay_max_s: Option<f64>,
    /// Segments that were sent twice.
    pub retransmits: Option<u32>,
    /// The wait for the first token was a stall too.
    pub stalled_before_first_token: bool,
    /// Why it is slow: `duration`, `token_rate`.
    pub slow: Vec<&'static str>,
    /// Where the time went.
    pub phases: Breakdown,
    /// When what happened, for a drawing.
    pub marks: Marks,
    /// Bytes of the response that were lost; null when some were but not how many.
    pub bytes_lost: Option<u64>,
    /// Trace of its span.
    pub trace_id: String,
    /// Its span.
    pub span_id: String,
    #[serde(skip)]
    timeline: Box<[Packed]>,
    /// Later chunks were left out of `timeline`.
    pub timeline_truncated: bool,
}

/// Times of an exchange in seconds since its origin.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Marks {
    /// Request sent.
    pub request_sent_s: Option<f64>,
    /// First byte of the response head.
    pub first_byte_s: Option<f64>,
    /// First token.
    pub first_token_s: Option<f64>,
    /// Last token.
    pub last_token_s: Option<f64>,
    /// End.
    pub end_s: Option<f64>,
}

/// One output chunk: seconds since the origin, tokens where known, whether it came with the read of the chunk before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tick(pub f64, pub Option<u32>, pub bool);

/// A [`Tick`] as it is kept: 8 bytes, or the history of long streams would take 24 MB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packed {
    /// Since the origin; a chunk more than 71 minutes after it stands at the end of them.
    us: u32,
    /// One more than the tokens, where they are known.
    tokens: Option<NonZeroU32>,
}

/// Token counts and who counted the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// Input.
    pub input: Option<u64>,
    /// Output: N of docs/metrics.md.
    pub output: Option<u64>,
    /// Input that was cached.
    pub cached_input: Option<u64>,
    /// Reasoning.
    pub reasoning: Option<u64>,
    /// Source of `output`: `usage`, `tokenizer`, `chunks`.
    pub source: Option<&'static str>,
}

/// What one second brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Second {
    /// Which, in s since the Unix epoch.
    pub unix_s: u64,
    /// Output chunks of all streams.
    pub chunks: u64,
    /// Streams open at its end.
    pub open: u64,
    /// Exchanges that ended.
    pub ended: u64,
    /// Of them, those that failed.
    pub errors: u64,
    /// Of them, those that stalled.
    pub stalled: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct History(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: VecDeque<Arc<Entry>>,
    last_seq: u64,
    seconds: VecDeque<Second>,
    /// Exchanges that ended since the last second was closed.
    now: Second,
    /// Chunks since the start, when the last second was closed.
    chunks_before: Option<u64>,
}

impl History {
    /// Keeps a finished exchange.
    pub fn add(&self, observed: &Observed, slow: Slow, ids: &SpanIds, offset: Offset) {
        let mut entry = Entry::new(observed, slow, ids, offset);
        let mut inner = self.lock();
        inner.last_seq += 1;
        entry.seq = inner.last_seq;
        inner.now.ended += 1;
        inner.now.errors += u64::from(entry.is_failed());
        inner.now.stalled += u64::from(entry.is_stalled());
        let gone = if inner.entries.len() >= EXCHANGES { inner.entries.pop_front() } else { None };
        inner.entries.push_back(Arc::new(entry));
        drop(inner);
        drop(gone);
    }

    /// Closes a second. `chunks` is the number of output chunks since the start of the observer.
    pub fn second(&self, unix_s: u64, chunks: u64, open: u64) {
        let mut inner = self.lock();
        if inner.seconds.back().is_some_and(|last| unix_s <= last.unix_s) {
            return; // called early, or the wall clock was set back: the next one takes it over
        }
        let before = inner.chunks_before.replace(chunks).unwrap_or(chunks);
        let second = Second { unix_s, chunks: chunks.saturating_sub(before), open, ..std::mem::take(&mut inner.now) };
        if inner.seconds.len() >= SECONDS {
            inner.seconds.pop_front();
        }
        inner.seconds.push_back(second);
    }

    /// The newest exchanges with a number below `before`, the newest first.
    #[must_use]
    pub fn newest(&self, before: u64, limit: usize) -> Vec<Arc<Entry>> {
        self.lock().entries.iter().rev().filter(|entry| entry.seq < before).take(limit).cloned().collect()
    }

    /// Exchanges with a number over `seq`, the newest first.
    #[must_use]
    pub fn since(&self, seq: u64) -> Vec<Arc<Entry>> {
        self.lock().entries.iter().rev().take_while(|entry| entry.seq > seq).cloned().collect()
    }

    /// One exchange.
    #[must_use]
    pub fn get(&self, seq: u64) -> Option<Arc<Entry>> {
        self.lock().entries.iter().rev().find(|entry| entry.seq == seq).cloned()
    }

    /// Exchanges that ended since the start of the observer, those that are not kept any more included.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.lock().last_seq
    }

    /// The seconds after `unix_s`, the oldest first.
    #[must_use]
    pub fn seconds_since(&self, unix_s: u64) -> Vec<Second> {
        let inner = self.lock();
        let newer = inner.seconds.iter().rev().take_while(|second| second.unix_s > unix_s).count();
        inner.seconds.iter().skip(inner.seconds.len() - newer).copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn new(observed: &Observed, slow: Slow, ids: &SpanIds, offset: Offset) -> Self {
        let Observed { exchange, service, endpoint, .. } = observed;
        let first_chunk = exchange.chunks.iter().next().map(|chunk| chunk.at);
        let (origin, zero) = match exchange.request_start {
            Some(start) => ("request_start", Some(start)),
            None => ("first_chunk", first_chunk),
        };
        let seconds = |at: MonoNs| zero.map_or(0.0, |zero| at.since(zero) as f64 / 1e9);
        let mark = |at: Option<MonoNs>| Some(at?.0.checked_sub(zero?.0)? as f64 / 1e9);
        let unix_ms = |at| offset.unix_ns(at) / 1_000_000;
        let packed = |at: MonoNs, tokens: Option<u32>| Packed {
            us: zero.map_or(0, |zero| u32::try_from(at.since(zero) / 1000).unwrap_or(u32::MAX)),
            tokens: tokens.and_then(|tokens| NonZeroU32::new(tokens.saturating_add(1))),
        };
        let timeline: Box<[_]> = exchange.chunks.iter().take(CHUNKS).map(|c| packed(c.at, c.tokens)).collect();
        let path = exchange.call.path.split('?').next().unwrap_or_default();
        Self {
            seq: 0,
            id: live::name(exchange.id),
            origin,
            start_unix_ms: exchange.request_start.map(unix_ms),
            end_unix_ms: exchange.end.map(unix_ms),
            service: short(&service.name),
            pid: exchange.pid,
            role: match exchange.role {
                Role::Client => "client",
                Role::Server => "server",
            },
            endpoint: endpoint.as_deref().map(short),
            provider: view::provider(exchange),
            model: view::model(exchange).map(short),
            response_model: exchange.response_model.as_deref().map(short),
            operation: view::operation(exchange),
            stream: view::is_stream(exchange),
            host: exchange.call.host.as_deref().map(short),
            path: Some(path).filter(|path| !path.is_empty()).map(short),
            peer: view::peer(exchange),
            http_status: exchange.response.status,
            outcome: exchange.outcome.as_str(),
            error_type: view::error_type(exchange).map(short),
            finish_reasons: exchange.finish_reasons.iter().map(|reason| short(reason)).collect(),
            retry_count: exchange.retry_count,
            ttft_s: view::ttft(exchange),
            duration_s: view::duration(exchange),
            decode_tokens_per_s: exchange.decode_rate,
            end_to_end_tokens_per_s: exchange.end_to_end_rate,
            tokens: Tokens::of(exchange),
            chunks: exchange.chunks.len(),
            stalls: exchange.stalls.iter().take(STALLS).map(|(from, to)| (seconds(*from), seconds(*to))).collect(),
            stall_causes: exchange.stall_causes.iter().take(STALLS).map(|cause| cause.map(Cause::as_str)).collect(),
            first_token_cause: exchange.first_token_cause.map(Cause::as_str),
            late_reads: exchange.read_delay.map(|delay| delay.reads),
            read_delay_max_s: exchange.read_delay.and_then(|it| (it.reads > 0).then_some(it.max_ns as f64 / 1e9)),
            retransmits: exchange.retransmits,
            stalled_before_first_token: exchange.stalled_before_first_token,
            slow: Slow::REASONS.into_iter().zip(slow.flags()).filter_map(|(r, holds)| holds.then_some(r)).collect(),
            phases: Breakdown::of(exchange),
            marks: Marks {
                request_sent_s: mark(exchange.request_sent),
                first_byte_s: mark(exchange.first_byte),
                first_token_s: mark(exchange.first_token),
                last_token_s: mark(exchange.last_token),
                end_s: mark(exchange.end),
            },
            bytes_lost: exchange.bytes_lost,
            trace_id: ids.trace.to_string(),
            span_id: ids.span.to_string(),
            timeline_truncated: exchange.chunks.truncated() || exchange.chunks.len() > timeline.len(),
            timeline,
        }
    }

    /// Times of the chunks, to the microsecond; not part of the list. The first [`CHUNKS`].
    #[must_use]
    pub fn timeline(&self) -> Vec<Tick> {
        let mut before = None;
        let tick = |packed: &Packed| {
            let coalesced = before.replace(packed.us) == Some(packed.us);
            Tick(f64::from(packed.us) / 1e6, packed.tokens.map(|tokens| tokens.get() - 1), coalesced)
        };
        self.timeline.iter().map(tick).collect()
    }

    /// Whether the call failed.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.outcome == Outcome::Error.as_str() || self.outcome == Outcome::ServerAbort.as_str()
    }

    /// Whether the stream stalled, before its first token or after.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.stalled_before_first_token || !self.stalls.is_empty()
    }
}

impl Tokens {
    fn of(exchange: &Exchange) -> Self {
        Self {
            input: exchange.usage.input,
            output: exchange.output_tokens,
            cached_input: exchange.usage.cached_input,
            reasoning: exchange.usage.reasoning,
            source: exchange.output_tokens.map(|_| exchange.usage_source.as_str()),
        }
    }
}

/// Names come from the wire: of most the core has capped the length already, of all this does.
fn short(name: &str) -> String {
    name.chars().take(NAME_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixture;

    fn add(history: &History, exchange: Exchange) {
        let ids = SpanIds::of_exchange(&exchange, None);
        history.add(&fixture::observed(exchange), Slow::default(), &ids, Offset(5_000_000_000));
    }

    #[test]
    fn the_last_exchanges_are_kept_and_found_by_their_number() {
        let history = History::default();
        for _ in 0..EXCHANGES + 10 {
            add(&history, fixture::completed());
        }
        let all = history.newest(u64::MAX, usize::MAX);
        assert_eq!((all.len(), all[0].seq, all[EXCHANGES - 1].seq), (EXCHANGES, EXCHANGES as u64 + 10, 11));
        assert!(history.get(10).is_none() && history.get(11).is_some());
        assert_eq!(history.since(EXCHANGES as u64 + 8).iter().map(|e| e.seq).collect::<Vec<_>>(), [510, 509]);
        assert_eq!(history.newest(13, 9).iter().map(|e| e.seq).collect::<Vec<_>>(), [12, 11]);
        assert_eq!(history.ended(), 510);
    }

    #[test]
    fn a_timeline_counts_from_the_request_start_and_is_capped() {
        let history = History::default();
        add(&history, fixture::completed());
        let mut long = fixture::completed();
        long.chunks = fixture::timeline((0..CHUNKS as u64 + 1).map(|n| (MonoNs(fixture::START + n * 1_000_000), None)));
        add(&history, long);
        add(&history, fixture::joined());
        let entry = history.get(1).unwrap();
        assert_eq!(entry.timeline().iter().map(|tick| tick.0).collect::<Vec<_>>(), [0.25, 0.27, 0.27, 0.3, 0.35]);
        assert_eq!(entry.start_unix_ms, Some((fixture::START + 5_000_000_000) / 1_000_000));
        assert!(entry.timeline()[2].2 && !entry.timeline_truncated);
        let long = history.get(2).unwrap();
        assert_eq!((long.timeline.len(), long.chunks, long.timeline_truncated), (CHUNKS, CHUNKS + 1, true));
        let joined = history.get(3).unwrap();
        assert_eq!((joined.origin, joined.start_unix_ms, joined.ttft_s), ("first_chunk", None, None));
        assert_eq!(joined.timeline()[0].0, 0.0);
        let mut counted = fixture::completed();
        counted.chunks = fixture::timeline([(MonoNs(fixture::START), Some(3)), (MonoNs(u64::MAX / 8), Some(7))]);
        add(&history, counted);
        let ticks = history.get(4).unwrap().timeline();
        assert_eq!(ticks, [Tick(0.0, Some(3), false), Tick(4_294.967_295, Some(7), false)]);
    }

    #[test]
    fn each_stall_that_is_kept_has_its_cause_and_unknown_is_null() {
        let history = History::default();
        let mut exchange = fixture::completed();
        exchange.stalls = vec![(MonoNs(fixture::START), MonoNs(fixture::START + 1)); STALLS + 8];
        exchange.stall_causes = vec![Some(Cause::LateRead); STALLS + 8];
        exchange.stall_causes[1] = None;
        add(&history, exchange);
        let entry = history.get(1).unwrap();
        assert_eq!((entry.stalls.len(), entry.stall_causes.len()), (STALLS, STALLS));
        assert_eq!(entry.stall_causes[..3], [Some("late_read"), None, Some("late_read")]);
        assert_eq!(entry.first_token_cause, Some("late_arrival"));
        add(&history, fixture::joined());
        assert_eq!(history.get(2).unwrap().first_token_cause, None);
    }

    #[test]
    fn names_are_capped_and_neither_text_nor_query_is_kept() {
        let history = History::default();
        let mut exchange = fixture::completed();
        exchange.output_text = Some("secret answer".into());
        exchange.call.path = "/v1/chat/completions?key=secret".into();
        exchange.request.model = Some("m".repeat(10_000));
        exchange.error_type = Some("é".repeat(10_000));
        add(&history, exchange);
        let json = serde_json::to_string(&*history.get(1).unwrap()).unwrap();
        assert!(!json.contains("secret"), "{json}");
        assert!(json.len() < 3000 && json.contains(&"m".repeat(NAME_CHARS)), "{}", json.len());
    }

    #[test]
    fn seconds_hold_what_came_since_the_one_before_and_are_capped() {
        let history = History::default();
        history.second(100, 1000, 1);
        add(&history, fixture::completed());
        add(&history, fixture::failed());
        history.second(100, 1020, 1);
        history.second(101, 1030, 2);
        let seconds = history.seconds_since(0);
        assert_eq!(seconds[0], Second { unix_s: 100, open: 1, ..Second::default() });
        assert_eq!(seconds[1], Second { unix_s: 101, chunks: 30, open: 2, ended: 2, errors: 1, stalled: 0 });
        for s in 102..102 + SECONDS as u64 {
            history.second(s, 1030, 0);
        }
        assert_eq!(history.seconds_since(0).len(), SECONDS);
        assert_eq!(history.seconds_since(1000).len(), 1);
    }
}
