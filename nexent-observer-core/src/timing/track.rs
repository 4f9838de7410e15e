//! Follows one exchange from its first event to its last.

use std::sync::Arc;

use crate::{
    event::{MonoNs, Role, Stamp},
    limits::{FINISH_REASONS, Limits, NAME_BYTES, STALLS},
    llm::{Call, LlmEvent, LlmEventKind, Payload, RequestFacts, ResponseFacts, Usage},
    stats::Stats,
};

use super::{
    Exchange, ExchangeId, Outcome, Timeline, TokenSource, Tokenizers,
    counting::{Counted, Counting},
    outcome::{Ending, Seen, decide},
    phases::{Cause, Phases},
    rates::{self, Decode, stall_threshold},
    tokens::{Chunk, Output, Reported, Tokens},
};

/// What a user may choose about the exchanges.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Keep the generated text. Off unless asked for.
    pub capture_content: bool,
    /// Who counts the tokens of the generated text; `None`: nobody.
    pub tokenizers: Option<Arc<dyn Tokenizers>>,
}

/// What an event meant for the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// More is to come.
    Open,
    /// It is over: take the [`Exchange`] with [`Timing::finish`]. Further events are ignored.
    Finished,
    /// It was no LLM call: let go of it.
    NotLlm,
}

/// One exchange being followed. Small, because thousands are open at once: everything rare is behind a pointer.
#[derive(Debug, Clone)]
pub struct Timing {
    id: ExchangeId,
    pid: u32,
    tid: Option<u32>,
    timeline_cap: u32,
    call: Call,
    request: RequestFacts,
    response: ResponseFacts,
    response_model: Option<Box<str>>,
    response_id: Option<Box<str>>,
    error_type: Option<Box<str>>,
    finish_reasons: Vec<(u32, Box<str>)>,

    request_start: Option<MonoNs>,
    request_written: Option<MonoNs>,
    request_sent: Option<MonoNs>,
    /// The socket tells what it sees since then.
    watched_since: Option<MonoNs>,
    phases: Option<Box<Phases>>,
    first_byte: Option<MonoNs>,
    first_chunk: Option<MonoNs>,
    /// Time of the last data event of any kind.
    last_event: Option<MonoNs>,
    end: Option<(MonoNs, Ending)>,

    tokenizers: Option<Arc<dyn Tokenizers>>,
    /// Counts are noted as they are told.
    notes_counts: bool,
    /// In a replay: what was counted then, until there is output.
    counted_then: Option<Box<Counting>>,
    tokens: Tokens,
    timeline: Timeline,
    usage: Usage,
    holes: Holes,
    content: Option<Box<Content>>,
}

/// Bytes of the response that are not known.
#[derive(Debug, Clone, Copy, Default)]
struct Holes {
    bytes: u64,
    unknown_size: bool,
    /// Any hole, or joined after the beginning.
    any: bool,
    before_first_token: bool,
    since_last_token: bool,
    /// The id changed after a hole: the end of the answer, the next request and the head of its answer were in it.
    other_answer: bool,
}

#[derive(Debug, Clone, Default)]
struct Content {
    text: String,
    cap: usize,
    full: bool,
}

impl Timing {
    /// An exchange of which nothing is known yet.
    #[must_use]
    pub fn new(id: ExchangeId, pid: u32, tid: Option<u32>, options: &Options, limits: &Limits) -> Self {
        let content =
            options.capture_content.then(|| Box::new(Content { cap: limits.content_bytes, ..Content::default() }));
        Self {
            id,
            pid,
            tid,
            timeline_cap: u32::try_from(limits.timeline_bytes).unwrap_or(u32::MAX),
            call: Call::default(),
            request: RequestFacts::default(),
            response: ResponseFacts::default(),
            response_model: None,
            response_id: None,
            error_type: None,
            finish_reasons: Vec::new(),
            request_start: None,
            request_written: None,
            request_sent: None,
            watched_since: None,
            phases: None,
            first_byte: None,
            first_chunk: None,
            last_event: None,
            end: None,
            tokenizers: options.tokenizers.clone(),
            notes_counts: false,
            counted_then: None,
            tokens: Tokens::new(),
            timeline: Timeline::default(),
            usage: Usage::default(),
            holes: Holes::default(),
            content,
        }
    }

    /// Takes in one event.
    pub fn feed(&mut self, event: &LlmEvent<'_>) -> Progress {
        if self.end.is_some() {
            return Progress::Finished;
        }
        let at = event.at;
        match &event.kind {
            LlmEventKind::Start { first, call } => {
                self.request_start = Some(first.entry);
                self.call = call.clone();
            }
            LlmEventKind::Request(facts) => self.request = facts.clone(),
            LlmEventKind::RequestEnd => self.request_written = Some(at.ret),
            LlmEventKind::Response { first, facts } => {
                self.first_byte = (!self.holes.any).then_some(first.ret);
                self.response = facts.clone();
            }
            LlmEventKind::Chunk => self.chunk(at),
            LlmEventKind::Delta { payload, choice, text } => self.delta(at, *payload, *choice, text),
            LlmEventKind::Identity { model, id } => {
                let other = self.response_id.as_deref().zip(*id).is_some_and(|(known, id)| known != cut(id));
                self.holes.other_answer |= self.holes.any && other;
                if !self.holes.other_answer {
                    keep(&mut self.response_model, *model);
                    keep(&mut self.response_id, *id);
                }
            }
            LlmEventKind::Usage(usage) => self.usage(*usage),
            LlmEventKind::Finish { choice, reason } => {
                self.last_event = Some(at.ret);
                self.finish_reason(*choice, reason);
            }
            LlmEventKind::Error(facts) => keep(&mut self.error_type, Some(&facts.error_type)),
            LlmEventKind::Done => return self.over(at.ret, Ending::Done),
            LlmEventKind::End => return self.over(at.ret, Ending::End),
            LlmEventKind::Abort(cause) => return self.over(at.ret, Ending::Abort(*cause)),
            LlmEventKind::Gap { len, cause } => {
                if cause.is_loss() {
                    self.holes.bytes = self.holes.bytes.saturating_add(len.unwrap_or(0));
                    self.holes.unknown_size |= len.is_none();
                }
                self.hole();
            }
            LlmEventKind::Joined => self.hole(),
            LlmEventKind::NotLlm(_) => return Progress::NotLlm,
        }
        Progress::Open
    }

    /// The socket of the connection is watched since then.
    pub fn watched(&mut self, since: MonoNs) {
        self.watched_since.get_or_insert(since);
    }

    /// At `at` the socket had everything that was written by calls that returned until `until`. Returns whether that was news.
    pub fn sent(&mut self, until: MonoNs, at: MonoNs) -> bool {
        let news = self.request_sent.is_none() && self.request_written.is_some_and(|written| written <= until);
        if news {
            self.request_sent = Some(at);
        }
        news
    }

    /// Which exchange it is.
    #[must_use]
    pub fn id(&self) -> ExchangeId {
        self.id
    }

    /// From now on [`Self::take_counts`] gives what is counted.
    pub fn note_counts(&mut self) {
        self.notes_counts = true;
    }

    /// What a tokenizer counted since the last call; `None`: it told nothing. For a recording.
    pub fn take_counts(&mut self) -> Option<Counted> {
        let counted = self.tokens.counting.as_mut()?.take_counts()?;
        Some(Counted { no: self.id.no, ..counted })
    }

    /// What a tokenizer counted when the event that comes next was recorded; none may be given for the text itself.
    pub fn counted_then(&mut self, counted: Counted) {
        let slot = match &mut self.tokens.counting {
            Some(counting) => counting,
            None => self.counted_then.get_or_insert_with(|| Box::new(Counting::recorded())),
        };
        slot.counted_then(counted);
    }

    /// What was read at `read` lay in the socket since `arrived`.
    pub fn late(&mut self, arrived: MonoNs, read: MonoNs) {
        let (start, has_token) = (self.request_start, self.tokens.first.is_some());
        self.phases.get_or_insert_default().late(start, arrived, read, has_token);
    }

    /// This host sent segments of the connection again, so many; `None`: nobody knows how many.
    pub fn retransmitted(&mut self, times: Option<u32>) {
        self.phases.get_or_insert_default().retransmitted(times);
    }

    fn chunk(&mut self, at: Stamp) {
        self.tokens.close_chunk(&mut self.timeline, self.timeline_cap);
        let at = at.ret.max(self.tokens.last);
        self.tokens.events = self.tokens.events.saturating_add(1);
        if self.first_chunk.is_none() && !self.holes.any {
            self.first_chunk = Some(at);
        }
        self.last_event = Some(at);
        self.tokens.chunk = Some(Chunk { at, output: None, usage: None });
    }

    fn delta(&mut self, at: Stamp, payload: Payload, choice: u32, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.tokens.chunk.is_none() {
            self.chunk(at); // every delta belongs to an event
        }
        self.tokens.reasoning_seen |= payload == Payload::Reasoning;
        self.tokens.choices |= choice_bit(choice);
        if let (Payload::Text, 0, Some(content)) = (payload, choice, &mut self.content) {
            content.push(text);
        }
        self.count_text(payload, choice, text);
        let Some(chunk) = &mut self.tokens.chunk else { return };
        if chunk.output.is_some() {
            return;
        }
        let at = chunk.at;
        let after_hole = std::mem::take(&mut self.holes.since_last_token);
        let gap = match self.tokens.first {
            Some(_) => at.since(self.tokens.last),
            None => 0,
        };
        chunk.output = Some(Output { gap, after_hole });
        self.tokens.output(at, gap, after_hole, &mut self.timeline);
    }

    /// Gives text to the tokenizer of the model, as the answer names it, else as the request did: an alias tells less.
    fn count_text(&mut self, payload: Payload, choice: u32, text: &str) {
        if let Some(tokenizers) = self.tokenizers.take() {
            let names = [self.response_model.as_deref(), self.request.model.as_deref()];
            let known = names.into_iter().flatten().find_map(|model| tokenizers.of_model(model));
            let begin = |tokenizer| Box::new(Counting::new(tokenizer, self.notes_counts));
            self.tokens.counting = known.map(begin);
        }
        if self.tokens.counting.is_none() {
            self.tokens.counting = self.counted_then.take();
        }
        if let Some(counting) = &mut self.tokens.counting {
            counting.text(payload, choice, text);
        }
    }

    fn usage(&mut self, usage: Usage) {
        self.usage.merge(usage);
        if usage.output.is_none() {
            return;
        }
        self.tokens.usage_stale = false;
        let reported =
            Reported { output: self.usage.output.unwrap_or(0), reasoning: self.usage.reasoning.unwrap_or(0) };
        match &mut self.tokens.chunk {
            Some(chunk) => chunk.usage = Some(reported),
            None => self.tokens.reported = Some(reported),
        }
    }

    fn finish_reason(&mut self, choice: u32, reason: &str) {
        self.tokens.finished |= choice_bit(choice);
        let reason = cut(reason);
        match self.finish_reasons.binary_search_by_key(&choice, |(c, _)| *c) {
            Ok(i) => {
                if let Some(known) = self.finish_reasons.get_mut(i).filter(|(_, known)| **known != *reason) {
                    known.1 = reason.into();
                }
            }
            Err(i) if self.finish_reasons.len() < FINISH_REASONS => {
                if self.finish_reasons.is_empty() {
                    self.finish_reasons.reserve_exact(1);
                }
                self.finish_reasons.insert(i, (choice, reason.into()));
            }
            Err(_) => {}
        }
    }

    /// From here to the next event, anything may have been said.
    fn hole(&mut self) {
        self.tokens.end_text(&mut self.timeline, self.timeline_cap);
        self.tokens.reported = None;
        self.tokens.usage_stale = true;
        if self.tokens.events == 0 {
            // A message head is told before the gaps of its message, also those that came before it.
            self.first_byte = None;
        }
        self.holes.any = true;
        self.holes.before_first_token |= self.tokens.first.is_none();
        self.holes.since_last_token = true;
        if let Some(content) = &mut self.content {
            content.push("\u{fffd}");
        }
    }

    fn over(&mut self, at: MonoNs, ending: Ending) -> Progress {
        self.tokens.end_text(&mut self.timeline, self.timeline_cap);
        self.end = Some((at, ending));
        Progress::Finished
    }

    /// Whether the answer is known to be a stream.
    fn streamed(&self) -> bool {
        self.response.stream || self.tokens.events > 1
    }

    /// What is known so far, for live gauges and tables.
    #[must_use]
    pub fn active(&self) -> ActiveStream<'_> {
        let streamed = self.streamed();
        ActiveStream {
            id: self.id,
            pid: self.pid,
            call: &self.call,
            response: &self.response,
            request_model: self.request.model.as_deref(),
            response_model: self.response_model.as_deref(),
            streamed,
            request_start: self.request_start,
            first_byte: self.first_byte,
            first_token: self.tokens.first.filter(|_| streamed && !self.holes.before_first_token),
            last_token: self.tokens.first.filter(|_| streamed).map(|_| self.tokens.last),
            chunks: if streamed { self.tokens.chunks } else { 0 },
            timeline: &self.timeline,
        }
    }

    /// The finished exchange. Before [`Progress::Finished`] it is one whose end was never seen: incomplete.
    #[must_use]
    pub fn finish(mut self, stats: &mut Stats) -> Exchange {
        self.tokens.end_text(&mut self.timeline, self.timeline_cap);
        if self.holes.other_answer {
            self.holes.since_last_token = true;
            self.tokens.usage_stale = true;
        }
        stats.llm_exchanges += 1;
        let streamed = self.streamed();
        let (outcome, abort_type) = self.outcome(streamed);
        let error_type = match outcome {
            Outcome::Error | Outcome::Incomplete => self.reported_error(),
            Outcome::ServerAbort => abort_type.map(str::to_owned),
            Outcome::Completed | Outcome::ClientAbort => None,
        };
        let end = self.end.map(|(at, ending)| {
            let at = match (ending, self.last_event) {
                // The answer was over with its last event; when the connection was let go says nothing about it.
                (Ending::Abort(_), Some(last)) if outcome == Outcome::Completed => last,
                _ => at,
            };
            at.max(self.tokens.last)
        });
        let (output_tokens, usage_source) = self.count(streamed);
        let (first_token, last_token) = self.token_times(streamed);
        let timeline = if streamed { std::mem::take(&mut self.timeline) } else { Timeline::default() };
        let threshold = stall_threshold(rates::median_gap(&timeline));
        let stalls = self.stalls(streamed, end, threshold);
        let phases = self.phases.take().unwrap_or_default();
        let watched = self.watched_since;
        let cause =
            |&(from, to): &(MonoNs, MonoNs)| phases.cause(from, to).filter(|_| watched.is_some_and(|at| at <= from));
        let usage = Usage {
            output: self.usage.output.filter(|_| !self.tokens.usage_stale),
            reasoning: self.usage.reasoning.filter(|_| !self.tokens.usage_stale),
            ..self.usage
        };
        Exchange {
            id: self.id,
            pid: self.pid,
            role: Role::Client,
            peer: None,
            tid: self.tid,
            said: None,
            cause: None,
            outcome,
            error_type,
            request_start: self.request_start,
            socket: None,
            connect_ns: None,
            tls_ns: None,
            request_written: self.request_written,
            request_sent: self.request_sent,
            first_byte: self.first_byte,
            streamed,
            first_chunk: self.first_chunk.filter(|_| streamed),
            first_token,
            last_token,
            end,
            stall_causes: stalls.iter().map(cause).collect(),
            stalls,
            first_token_cause: self.first_token_cause(&phases, first_token),
            read_delay: watched.map(|_| phases.delay()),
            retransmits: watched.and_then(|_| phases.retransmits()),
            stalled_before_first_token: self.stalled_before_first_token(streamed, end, threshold),
            usage,
            usage_source,
            output_tokens,
            counted_tokens: self.counted(),
            token_count_ratio: self.token_count_ratio(),
            retry_of: None,
            retry_count: self.call.retry_count,
            decode_rate: self.decode_rate(first_token, last_token, output_tokens, usage_source),
            end_to_end_rate: self.end_to_end_rate(if streamed { last_token } else { end }, output_tokens, usage_source),
            bytes_lost: (!self.holes.unknown_size).then_some(self.holes.bytes),
            output_text: self.content.map(|c| c.text),
            chunks: timeline,
            call: self.call,
            request: self.request,
            response: self.response,
            response_model: self.response_model.map(String::from),
            response_id: self.response_id.map(String::from),
            finish_reasons: self.finish_reasons.into_iter().map(|(_, reason)| reason.into()).collect(),
        }
    }

    fn outcome(&self, streamed: bool) -> (Outcome, Option<&'static str>) {
        let Some((_, ending)) = self.end else { return (Outcome::Incomplete, None) };
        let t = &self.tokens;
        let seen = Seen {
            hole: self.holes.any,
            error: self.error_type.is_some() || self.refused().is_some(),
            streamed,
            finish: !self.finish_reasons.is_empty(),
            all_finished: t.finished != 0 && t.choices & !t.finished == 0,
        };
        decide(ending, seen)
    }

    /// HTTP status of a refusal.
    fn refused(&self) -> Option<u16> {
        self.response.status.filter(|&status| status >= 400)
    }

    fn reported_error(&self) -> Option<String> {
        let said = self.error_type.as_deref().map(str::to_owned);
        said.or_else(|| self.refused().map(|status| status.to_string()))
    }

    /// N and where it comes from.
    fn count(&self, streamed: bool) -> (Option<u64>, TokenSource) {
        match self.usage.output.filter(|_| !self.tokens.usage_stale) {
            Some(n) => (Some(n), TokenSource::Usage),
            None if self.counted().is_some() => (self.counted(), TokenSource::Tokenizer),
            None if streamed => {
                let n = u64::from(self.tokens.chunks);
                ((n > 0).then_some(n), TokenSource::Chunks)
            }
            None => (None, TokenSource::Usage),
        }
    }

    fn counted(&self) -> Option<u64> {
        self.tokens.counting.as_ref()?.finish()
    }

    /// What the tokenizer counted over what the provider counted of the text that was shown.
    fn token_count_ratio(&self) -> Option<f64> {
        let finished = self.end.is_some_and(|(_, ending)| !matches!(ending, Ending::Abort(_)));
        if !finished || self.holes.any || self.tokens.usage_stale {
            return None;
        }
        let hidden = if self.tokens.reasoning_seen { 0 } else { self.usage.reasoning.unwrap_or(0) };
        let shown = self.usage.output?.checked_sub(hidden).filter(|&n| n > 0)?;
        Some(self.counted()? as f64 / shown as f64)
    }

    fn token_times(&self, streamed: bool) -> (Option<MonoNs>, Option<MonoNs>) {
        let Some(first) = self.tokens.first.filter(|_| streamed) else { return (None, None) };
        let first = (!self.holes.before_first_token).then_some(first);
        let last = (!self.holes.since_last_token).then_some(self.tokens.last);
        (first, last)
    }

    fn decode_rate(
        &self,
        first: Option<MonoNs>,
        last: Option<MonoNs>,
        tokens: Option<u64>,
        source: TokenSource,
    ) -> Option<f64> {
        if self.holes.any {
            return None; // how many chunks share a time is not known
        }
        let t = &self.tokens;
        let from_usage = source == TokenSource::Usage;
        let unseen = if from_usage && !t.reasoning_seen { self.usage.reasoning.unwrap_or(0) } else { 0 };
        rates::decode_rate(&Decode {
            first: first?,
            last: last?,
            tokens: tokens?.saturating_sub(unseen),
            first_tokens: match source {
                TokenSource::Usage => t.first_tokens,
                TokenSource::Tokenizer => Some(t.first_counted),
                TokenSource::Chunks => None,
            },
            chunks: u64::from(t.chunks),
            first_chunks: u64::from(t.first_chunks),
        })
    }

    fn end_to_end_rate(&self, last: Option<MonoNs>, tokens: Option<u64>, source: TokenSource) -> Option<f64> {
        // Nor is it known whose answer this is when the beginning of it was lost.
        if self.holes.before_first_token || self.holes.any && source != TokenSource::Usage {
            return None;
        }
        rates::end_to_end_rate(tokens?, self.request_start?, last?)
    }

    fn stalls(&mut self, streamed: bool, end: Option<MonoNs>, threshold: u64) -> Vec<(MonoNs, MonoNs)> {
        if !streamed || self.tokens.first.is_none() {
            return Vec::new();
        }
        let mut stalls = std::mem::take(&mut self.tokens.silences);
        // A stream that went silent and was given up: the silence at its end is the stall that hurt.
        if let (Some((_, Ending::Abort(_))), Some(end), false) = (self.end, end, self.holes.since_last_token)
            && stalls.len() < STALLS
        {
            stalls.push((self.tokens.last, end));
        }
        stalls.retain(|(from, to)| to.since(*from) > threshold);
        stalls
    }

    /// Only where the socket was watched before anything of the answer was taken from it.
    fn first_token_cause(&self, phases: &Phases, first_token: Option<MonoNs>) -> Option<Cause> {
        let (from, to) = (self.request_start?, first_token?);
        if to <= from || self.watched_since? > self.first_byte? {
            return None;
        }
        phases.cause(from, to)
    }

    fn stalled_before_first_token(&self, streamed: bool, end: Option<MonoNs>, threshold: u64) -> bool {
        let stream = streamed || self.request.stream == Some(true) && self.tokens.events == 0;
        let until = self.tokens.first.or(end);
        match (self.request_start, until) {
            (Some(start), Some(until)) if stream && !self.holes.before_first_token => until.since(start) > threshold,
            _ => false,
        }
    }
}

impl Content {
    fn push(&mut self, text: &str) {
        if self.full {
            return;
        }
        let room = self.cap.saturating_sub(self.text.len());
        self.full = text.len() > room;
        self.text.push_str(&text[..text.floor_char_boundary(room)]);
    }
}

/// What is known of an exchange that is still open. The silence of a stream is now - `last_token` (or
/// - `request_start` before the first).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActiveStream<'a> {
    /// Which one.
    pub id: ExchangeId,
    /// Process.
    pub pid: u32,
    /// API call.
    pub call: &'a Call,
    /// Model asked for.
    pub request_model: Option<&'a str>,
    /// Model that answers.
    pub response_model: Option<&'a str>,
    /// What the response head said; empty before it.
    pub response: &'a ResponseFacts,
    /// The answer is known to be a stream.
    pub streamed: bool,
    /// As in [`Exchange`].
    pub request_start: Option<MonoNs>,
    /// As in [`Exchange`].
    pub first_byte: Option<MonoNs>,
    /// As in [`Exchange`].
    pub first_token: Option<MonoNs>,
    /// Time of the last output chunk seen so far.
    pub last_token: Option<MonoNs>,
    /// Output chunks seen so far.
    pub chunks: u32,
    /// Their times. The last one is not in it yet: more may come with it. Also filled while the answer is not yet known to be
    /// a stream.
    pub timeline: &'a Timeline,
}

/// Bit of a choice; choices from 64 on are not told apart, so they never make an answer look unfinished.
fn choice_bit(choice: u32) -> u64 {
    1u64.checked_shl(choice).unwrap_or(0)
}

/// Keeps a name without allocating when it did not change.
fn keep(slot: &mut Option<Box<str>>, new: Option<&str>) {
    if let Some(new) = new.map(cut)
        && slot.as_deref() != Some(new)
    {
        *slot = Some(new.into());
    }
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_BYTES)]
}
