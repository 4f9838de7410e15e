//! Where the token timeline of one exchange stands: what came in which event, and what the provider counted by then.

use crate::{event::MonoNs, limits::STALLS};

use super::{
    Timeline,
    counting::{Counting, LastChunk},
    rates::STALL_MIN_NS,
};

/// Where the token timeline stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Tokens {
    /// Data events of any kind.
    pub(super) events: u32,
    /// Output chunks.
    pub(super) chunks: u32,
    /// Output chunks that share the first time, and their tokens as long as every one of them is counted.
    pub(super) first_chunks: u32,
    pub(super) first_tokens: Option<u64>,
    /// Likewise, those that a tokenizer counted.
    pub(super) first_counted: u64,
    /// What a tokenizer counts, where there is one. Looked for at the first output.
    pub(super) counting: Option<Box<Counting>>,
    /// Times of the first and last output chunk that were seen.
    pub(super) first: Option<MonoNs>,
    pub(super) last: MonoNs,
    /// An event is being read; it may still get deltas and usage.
    pub(super) chunk: Option<Chunk>,
    /// Usage after the output chunk before, as long as every output chunk reported it (continuous usage).
    pub(super) reported: Option<Reported>,
    /// Silences long enough to be stalls if the median allows it.
    pub(super) silences: Vec<(MonoNs, MonoNs)>,
    /// Choices below 64 that generated something, and those with a finish reason.
    pub(super) choices: u64,
    pub(super) finished: u64,
    pub(super) reasoning_seen: bool,
    /// An output chunk came after the provider's last report of output tokens.
    pub(super) usage_stale: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub(super) at: MonoNs,
    /// Since the output chunk before; set by the first delta.
    pub(super) output: Option<Output>,
    pub(super) usage: Option<Reported>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) gap: u64,
    pub(super) after_hole: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reported {
    pub(super) output: u64,
    pub(super) reasoning: u64,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { first_tokens: Some(0), reported: Some(Reported::default()), ..Self::default() }
    }

    /// Takes down the time of an output chunk.
    pub(super) fn output(&mut self, at: MonoNs, gap: u64, after_hole: bool, timeline: &mut Timeline) {
        match self.first {
            None => {
                self.first = Some(at);
                timeline.begin(at);
            }
            Some(_) if gap > STALL_MIN_NS && !after_hole && self.silences.len() < STALLS => {
                self.silences.push((self.last, at));
            }
            Some(_) => {}
        }
        self.last = at;
        self.chunks = self.chunks.saturating_add(1);
        if self.first == Some(at) {
            self.first_chunks = self.first_chunks.saturating_add(1);
        }
    }

    /// An event was read to its end: what it generated enters the timeline, with its tokens where the provider counts
    /// them as it goes.
    pub(super) fn close_chunk(&mut self, timeline: &mut Timeline, cap: u32) {
        let Some(chunk) = self.chunk.take() else { return };
        let Some(Output { gap, after_hole }) = chunk.output else {
            if chunk.usage.is_some() {
                self.reported = chunk.usage;
            }
            return;
        };
        let tokens = match (self.reported, chunk.usage) {
            (Some(before), Some(now)) => self.tokens_between(before, now),
            _ => None,
        };
        let counted = self.counting.as_mut().and_then(|counting| counting.told());
        self.reported = chunk.usage;
        self.usage_stale = chunk.usage.is_none();
        if self.first == Some(chunk.at) {
            self.first_tokens = self.first_tokens.zip(tokens).map(|(sum, n)| sum.saturating_add(u64::from(n)));
            self.first_counted = self.first_counted.saturating_add(u64::from(counted.unwrap_or(0)));
        }
        self.push_last(timeline, cap);
        let first = self.first == Some(chunk.at);
        match &mut self.counting {
            Some(counting) if tokens.is_none() => {
                counting.last = Some(LastChunk { gap, after_hole, first, tokens: counted });
            }
            _ => timeline.push(gap, tokens, after_hole, cap as usize),
        }
    }

    /// The text has a hole here, or ends: what is known of its chunks enters the timeline.
    pub(super) fn end_text(&mut self, timeline: &mut Timeline, cap: u32) {
        if let Some(counting) = &mut self.counting {
            counting.end_text();
        }
        self.close_chunk(timeline, cap);
        if let Some(counting) = &mut self.counting
            && let (Some(rest), Some(last)) = (counting.told(), &mut counting.last)
        {
            last.tokens = last.tokens.map(|tokens| tokens.saturating_add(rest));
            self.first_counted = self.first_counted.saturating_add(if last.first { rest.into() } else { 0 });
        }
        self.push_last(timeline, cap);
    }

    /// The chunk that waited enters the timeline.
    fn push_last(&mut self, timeline: &mut Timeline, cap: u32) {
        if let Some(LastChunk { gap, after_hole, tokens, .. }) = self.counting.as_mut().and_then(|it| it.last.take()) {
            timeline.push(gap, tokens, after_hole, cap as usize);
        }
    }

    /// Tokens that were streamed between two reports: reasoning counts only if it is shown.
    fn tokens_between(&self, before: Reported, now: Reported) -> Option<u32> {
        let all = now.output.checked_sub(before.output)?;
        let hidden = if self.reasoning_seen { 0 } else { now.reasoning.checked_sub(before.reasoning)? };
        u32::try_from(all.saturating_sub(hidden)).ok()
    }
}
