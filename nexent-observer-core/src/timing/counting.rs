//! Counts the tokens of what one exchange generates, as it comes, with a tokenizer that the process brings.
//!
//! The core knows no tokenizer and keeps no text: a lane (one kind of payload of one choice) holds only the end of what
//! came, up to where more text could still change its tokens. Everything before that is counted once and forgotten, so that
//! the sum is what the tokenizer gives for the whole text.

use std::{collections::VecDeque, fmt::Debug, sync::Arc};

use smallvec::SmallVec;

use crate::{
    limits::{TOKENIZED_BYTES, TOKENIZER_LANES, TOKENIZER_PENDING_BYTES},
    llm::Payload,
};

/// A tokenizer of one model family.
pub trait Tokenizer: Debug + Send + Sync {
    /// Length in bytes of the longest beginning of `text`, ending at `from` or later, whose tokens together with those of the
    /// rest are those of `text`, whatever else follows; 0 when there is none. Only positions from `from` on need to be looked
    /// at, and the character before it. Always the position of a character.
    fn settled(&self, text: &str, from: usize) -> usize;

    /// Number of tokens of `text`; `begins` says that nothing came before it. `None` while the tokenizer is not ready, and
    /// when it fails.
    fn count(&self, text: &str, begins: bool) -> Option<u64>;
}

/// Knows which tokenizer a model has.
pub trait Tokenizers: Debug + Send + Sync {
    /// The tokenizer of a model, by the name under which it was asked for or answers.
    fn of_model(&self, model: &str) -> Option<Arc<dyn Tokenizer>>;
}

/// What was counted of one call while one event was fed, as a recording keeps it in place of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The call, by its number on the connection ([`super::ExchangeId::no`]).
    pub no: u32,
    /// Tokens that are counted so far; `None`: there will be no count.
    pub tokens: Option<u64>,
    /// What became known for each output chunk that ended, and for the text that did, in their order.
    pub told: Vec<Option<u32>>,
}

/// The count of one exchange.
#[derive(Debug, Clone)]
pub(super) struct Counting {
    /// `None`: what was counted is known from a recording.
    tokenizer: Option<Arc<dyn Tokenizer>>,
    /// In a replay: what is told next.
    recorded: VecDeque<Option<u32>>,
    /// What was told since it was taken, where it is noted. `None` inside: that there is a count was taken, and no more came.
    noted: Option<Option<Vec<Option<u32>>>>,
    lanes: SmallVec<[Lane; 1]>,
    /// Tokens of what is counted.
    settled: u64,
    /// What [`Self::told`] gave out.
    told: u64,
    /// Text so far, in bytes.
    bytes: usize,
    /// Too much text, or the tokenizer failed: there is no count.
    given_up: bool,
    /// The last output chunk whose tokens are told by the tokenizer, before it enters the timeline: at the end of the text its last
    /// word may turn out to be several tokens.
    pub(super) last: Option<LastChunk>,
}

/// An output chunk that waits for the end of its text.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastChunk {
    pub(super) gap: u64,
    pub(super) after_hole: bool,
    /// It shares the first time.
    pub(super) first: bool,
    pub(super) tokens: Option<u32>,
}

#[derive(Debug, Clone)]
struct Lane {
    choice: u32,
    payload: Payload,
    /// What came and is not counted yet.
    pending: String,
    /// Nothing of the lane was counted yet.
    begins: bool,
    /// The tokenizer was not ready when text could have been counted.
    waits: bool,
}

impl Counting {
    /// With `notes`, [`Self::take_counts`] gives what is told.
    pub(super) fn new(tokenizer: Arc<dyn Tokenizer>, notes: bool) -> Self {
        Self { tokenizer: Some(tokenizer), noted: notes.then(|| Some(Vec::new())), ..Self::recorded() }
    }

    /// One that is told what was counted.
    pub(super) fn recorded() -> Self {
        Self {
            tokenizer: None,
            recorded: VecDeque::new(),
            noted: None,
            lanes: SmallVec::new(),
            settled: 0,
            told: 0,
            bytes: 0,
            given_up: false,
            last: None,
        }
    }

    /// What is told while the next event is fed.
    pub(super) fn counted_then(&mut self, counted: Counted) {
        if self.tokenizer.is_none() {
            self.recorded = counted.told.into();
            self.settled = counted.tokens.unwrap_or(0);
            self.given_up = counted.tokens.is_none();
        }
    }

    /// What was told since the last call, for [`Self::counted_then`]; its number is not set.
    pub(super) fn take_counts(&mut self) -> Option<Counted> {
        let told = self.noted.as_mut()?.take()?;
        Some(Counted { no: 0, tokens: (!self.given_up).then_some(self.settled), told })
    }

    /// Takes a piece of what is generated. Of media there is no count, so there is none of an answer that has some.
    pub(super) fn text(&mut self, payload: Payload, choice: u32, text: &str) {
        if self.given_up || self.tokenizer.is_none() {
            return;
        }
        self.bytes = self.bytes.saturating_add(text.len());
        if self.bytes > TOKENIZED_BYTES || payload == Payload::Audio {
            return self.give_up();
        }
        if payload == Payload::ToolName {
            // The next call: its arguments are a text of their own.
            self.end_lanes(|lane| {
                lane.choice == choice && matches!(lane.payload, Payload::ToolName | Payload::ToolArguments)
            });
        }
        let known = self.lanes.iter().position(|lane| lane.choice == choice && lane.payload == payload);
        let at = known.unwrap_or_else(|| {
            if self.lanes.len() >= TOKENIZER_LANES {
                self.end_lanes(|_| true);
                self.lanes.clear();
            }
            self.lanes.push(Lane { choice, payload, pending: String::new(), begins: true, waits: false });
            self.lanes.len() - 1
        });
        let Self { tokenizer: Some(tokenizer), lanes, settled, .. } = self else { return };
        let counted = lanes.get_mut(at).and_then(|lane| lane.push(text, &**tokenizer));
        match counted {
            Some(tokens) => *settled = settled.saturating_add(tokens),
            None => self.give_up(),
        }
    }

    /// Tokens that came since the last call, as far as is known: a text whose tokens are not settled has one at least. Their
    /// sum is [`Self::finish`] once the exchange is over.
    pub(super) fn told(&mut self) -> Option<u32> {
        let told = match self.recorded.pop_front() {
            Some(told) => told,
            None => self.tell(),
        };
        if let Some(noted) = &mut self.noted {
            noted.get_or_insert_default().push(told);
        }
        told
    }

    fn tell(&mut self) -> Option<u32> {
        if self.given_up {
            return None;
        }
        if self.tokenizer.is_none() {
            return Some(0);
        }
        let open = self.lanes.iter().filter(|lane| !lane.pending.is_empty()).count() as u64;
        let now = self.settled.saturating_add(open);
        let new = now.saturating_sub(std::mem::replace(&mut self.told, now));
        u32::try_from(new).ok()
    }

    /// The text has a hole here, or ends: what is pending is counted as it stands.
    pub(super) fn end_text(&mut self) {
        self.end_lanes(|_| true);
    }

    /// Number of tokens; `None` when they could not be counted. Call it after [`Self::end_text`].
    pub(super) fn finish(&self) -> Option<u64> {
        (!self.given_up && self.settled > 0).then_some(self.settled)
    }

    fn end_lanes(&mut self, which: impl Fn(&Lane) -> bool) {
        let Self { tokenizer: Some(tokenizer), lanes, settled, .. } = self else { return };
        let mut counted = Some(0u64);
        for lane in lanes.iter_mut().filter(|lane| which(lane)) {
            let tokens = lane.count_all(&**tokenizer);
            counted = counted.zip(tokens).map(|(sum, tokens)| sum.saturating_add(tokens));
            lane.begins = true;
        }
        match counted {
            Some(tokens) => *settled = settled.saturating_add(tokens),
            None => self.give_up(),
        }
    }

    fn give_up(&mut self) {
        self.given_up = true;
        self.lanes = SmallVec::new();
    }
}

impl Lane {
    /// Tokens that are settled by this text; `None` when they cannot be counted.
    fn push(&mut self, text: &str, tokenizer: &dyn Tokenizer) -> Option<u64> {
        let (mut sum, mut rest) = (0u64, text);
        while !rest.is_empty() {
            let room = TOKENIZER_PENDING_BYTES.saturating_sub(self.pending.len()).max(4); // the longest character
            let (piece, after) = rest.split_at(rest.floor_char_boundary(room));
            rest = after;
            let from = if self.waits { 0 } else { self.pending.len() };
            self.pending.push_str(piece);
            let cut = tokenizer.settled(&self.pending, from);
            // A text without any border: counted in pieces of the cap, which may cost a token each.
            let full = self.pending.len() >= TOKENIZER_PENDING_BYTES;
            let cut = if cut == 0 && full { self.pending.len() } else { cut };
            let Some(settled) = self.pending.get(..cut).filter(|text| !text.is_empty()) else { continue };
            match tokenizer.count(settled, self.begins) {
                Some(tokens) => {
                    sum = sum.saturating_add(tokens);
                    self.pending.drain(..cut);
                    self.begins = false;
                    self.waits = false;
                }
                None if full => return None,
                None => self.waits = true,
            }
        }
        Some(sum)
    }

    fn count_all(&mut self, tokenizer: &dyn Tokenizer) -> Option<u64> {
        if self.pending.is_empty() {
            return Some(0);
        }
        let tokens = tokenizer.count(&self.pending, self.begins)?;
        self.pending.clear();
        self.begins = false;
        Some(tokens)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A token is a word with the space before it; letters beyond the eighth of a word make another one.
    #[derive(Debug, Default)]
    struct Words {
        unready: AtomicBool,
    }

    fn words(text: &str) -> u64 {
        text.split(' ').filter(|word| !word.is_empty()).map(|word| word.chars().count().div_ceil(8) as u64).sum()
    }

    impl Tokenizer for Words {
        fn settled(&self, text: &str, from: usize) -> usize {
            text.rfind(' ').filter(|&at| at >= from).unwrap_or(0)
        }

        fn count(&self, text: &str, _begins: bool) -> Option<u64> {
            (!self.unready.load(Ordering::Relaxed)).then(|| words(text))
        }
    }

    fn counting() -> Counting {
        Counting::new(Arc::new(Words::default()), false)
    }

    /// The count, and what was told of each piece.
    fn count(mut counting: Counting, pieces: &[&str]) -> (Option<u64>, Vec<Option<u32>>) {
        let told = pieces.iter().map(|piece| {
            counting.text(Payload::Text, 0, piece);
            counting.told()
        });
        let mut told: Vec<_> = told.collect();
        counting.end_text();
        told.push(counting.told());
        (counting.finish(), told)
    }

    #[test]
    fn wherever_a_text_is_cut_its_count_is_that_of_the_whole_and_the_chunks_add_up_to_it() {
        let text = " one two\u{e9}\u{4e2d} incomprehensibilities  x";
        let cuts: Vec<_> = text.char_indices().map(|(at, _)| at).collect();
        for (i, &a) in cuts.iter().enumerate() {
            for &b in cuts.get(i..).unwrap_or_default() {
                let (sum, told) = count(counting(), &[&text[..a], &text[a..b], &text[b..]]);
                assert_eq!(sum, Some(words(text)), "{a} {b}");
                assert_eq!(told.iter().flatten().map(|n| u64::from(*n)).sum::<u64>(), words(text), "{a} {b}");
            }
        }
    }

    #[test]
    fn a_chunk_that_is_one_word_is_one_token_of_its_own() {
        let (_, told) = count(counting(), &["Hello", " there", " you"]);
        assert_eq!(told, [Some(1), Some(1), Some(1), Some(0)]);
    }

    #[test]
    fn choices_that_take_turns_are_texts_of_their_own() {
        let mut counting = counting();
        for piece in ["in", "comp", "rehens", "ible"] {
            counting.text(Payload::Text, 0, piece);
            counting.text(Payload::Text, 1, piece);
        }
        counting.end_text();
        assert_eq!(counting.finish(), Some(4));
    }

    #[test]
    fn an_answer_with_media_has_no_count() {
        let mut counting = counting();
        counting.text(Payload::Text, 0, "see");
        counting.text(Payload::Audio, 0, "QUJD");
        counting.end_text();
        assert_eq!(counting.finish(), None);
    }

    #[test]
    fn the_arguments_of_each_tool_call_are_a_text_of_their_own() {
        let mut counting = counting();
        for _ in 0..2 {
            counting.text(Payload::ToolName, 0, "f");
            counting.text(Payload::ToolArguments, 0, "{}");
        }
        counting.end_text();
        assert_eq!(counting.finish(), Some(4));
    }

    #[test]
    fn a_text_without_borders_is_held_up_to_the_cap_only() {
        let mut counting = counting();
        for _ in 0..3 * TOKENIZER_PENDING_BYTES / 6 {
            counting.text(Payload::Text, 0, "\u{4e2d}\u{4e2d}");
            assert!(counting.lanes.iter().all(|lane| lane.pending.len() <= TOKENIZER_PENDING_BYTES + 4));
        }
        counting.end_text();
        assert!(counting.finish().is_some());
        let long = "x".repeat(5 * TOKENIZER_PENDING_BYTES);
        assert_eq!(count(Counting::new(Arc::new(Words::default()), false), &[&long]).0, Some(words(&long)));
    }

    #[test]
    fn lanes_are_capped_and_what_the_old_ones_hold_is_counted() {
        let mut counting = counting();
        for choice in 0..5 * TOKENIZER_LANES as u32 {
            counting.text(Payload::Text, choice, "word");
            assert!(counting.lanes.len() <= TOKENIZER_LANES);
        }
        counting.end_text();
        assert_eq!(counting.finish(), Some(5 * TOKENIZER_LANES as u64));
    }

    #[test]
    fn a_text_over_the_cap_has_no_count() {
        let mut counting = counting();
        let piece = " word".repeat(10_000);
        for _ in 0..TOKENIZED_BYTES / piece.len() {
            counting.text(Payload::Text, 0, &piece);
            assert!(!counting.given_up);
        }
        counting.text(Payload::Text, 0, &piece);
        assert!(counting.given_up && counting.lanes.is_empty());
        counting.end_text();
        assert_eq!((counting.finish(), counting.told()), (None, None));
    }

    #[test]
    fn text_waits_for_a_tokenizer_that_is_not_ready_but_not_for_ever() {
        let tokenizer = Arc::new(Words::default());
        let mut counting = Counting::new(tokenizer.clone(), false);
        tokenizer.unready.store(true, Ordering::Relaxed);
        counting.text(Payload::Text, 0, "one two");
        counting.text(Payload::Text, 0, "three");
        tokenizer.unready.store(false, Ordering::Relaxed);
        counting.text(Payload::Text, 0, "four");
        counting.end_text();
        assert_eq!(counting.finish(), Some(3));

        let mut counting = Counting::new(tokenizer.clone(), false);
        tokenizer.unready.store(true, Ordering::Relaxed);
        counting.text(Payload::Text, 0, &" word".repeat(TOKENIZER_PENDING_BYTES));
        assert!(counting.given_up);
        let mut counting = Counting::new(tokenizer, false);
        counting.text(Payload::Text, 0, "one");
        counting.end_text();
        assert_eq!(counting.finish(), None, "it never became ready");
    }
}
