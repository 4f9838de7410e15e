//! OpenAI's encodings, by tiktoken-rs, which has their vocabularies built in.
//!
//! Reading a vocabulary takes a fifth of a second and tens of MB, so it is done when the first model wants it, on a thread of its own:
//! the core lets text wait for it.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use nexent_observer_core::timing::Tokenizer;
use tiktoken_rs::{
    CoreBPE,
    tokenizer::{Tokenizer as Name, get_tokenizer},
};

use super::{borders, guarded};
use crate::privileges;

/// Models with the same encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// GPT-4o and later, the reasoning models, gpt-oss.
    O200k,
    /// GPT-4 and GPT-3.5.
    Cl100k,
}

/// The family of a model; gateways put the name of the provider before it (`openai/gpt-4o`).
pub(super) fn family(model: &str) -> Option<Family> {
    let name = model.rsplit('/').next().unwrap_or(model);
    match get_tokenizer(name)? {
        // Harmony only adds special tokens, which no text has.
        Name::O200kBase | Name::O200kHarmony => Some(Family::O200k),
        Name::Cl100kBase => Some(Family::Cl100k),
        Name::P50kBase | Name::R50kBase | Name::P50kEdit | Name::Gpt2 => None,
    }
}

/// One encoding, ready or not.
#[derive(Debug)]
pub(super) struct Encoding {
    name: &'static str,
    make: fn() -> Option<CoreBPE>,
    asked_for: AtomicBool,
    ready: OnceLock<Ready>,
}

struct Ready {
    bpe: CoreBPE,
    /// Hashes of the tokens that are a whole simple word.
    words: HashSet<u64, BuildHasherDefault<Itself>>,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("words", &self.words.len()).finish_non_exhaustive()
    }
}

impl Encoding {
    pub(super) fn o200k() -> Self {
        Self::new("o200k_base", || tiktoken_rs::o200k_base().ok())
    }

    pub(super) fn cl100k() -> Self {
        Self::new("cl100k_base", || tiktoken_rs::cl100k_base().ok())
    }

    fn new(name: &'static str, make: fn() -> Option<CoreBPE>) -> Self {
        Self { name, make, asked_for: AtomicBool::new(false), ready: OnceLock::new() }
    }

    /// Begins to make it ready, once.
    pub(super) fn prepare(this: &Arc<Self>) {
        if this.asked_for.swap(true, Ordering::Relaxed) {
            return;
        }
        let encoding = Arc::clone(this);
        let started = thread::Builder::new().name("tokenizer".into()).spawn(move || {
            privileges::shed();
            if !encoding.make_ready() {
                tracing::warn!("The encoding {} cannot be used; tokens are counted as chunks.", encoding.name);
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "No thread for the encoding {}; tokens are counted as chunks.", this.name);
        }
    }

    /// Makes it ready here and now.
    pub(super) fn make_ready(&self) -> bool {
        if self.ready.get().is_none()
            && let Some(bpe) = (self.make)()
        {
            let words = words_of(&bpe);
            // Should another thread have been faster, its own is as good.
            self.ready.get_or_init(|| Ready { bpe, words });
        }
        self.ready.get().is_some()
    }
}

impl Tokenizer for Encoding {
    fn settled(&self, text: &str, from: usize) -> usize {
        borders::last(text, from, borders::at_words)
    }

    fn count(&self, text: &str, _begins: bool) -> Option<u64> {
        let Ready { bpe, words } = self.ready.get()?;
        // Most chunks are a word that is one token: no need to look for pieces in it.
        if is_simple_word(text.as_bytes()) && words.contains(&hash(text.as_bytes())) {
            return Some(1);
        }
        guarded(|| u64::try_from(bpe.count_ordinary(text)).ok())
    }
}

/// Longest word that is looked up as a whole, in bytes.
const WORD_BYTES: usize = 24;

/// Whether this is a word that the regular expression of every encoding leaves in one piece: ASCII letters in small type, the
/// first one perhaps not, perhaps with a space before them.
fn is_simple_word(text: &[u8]) -> bool {
    let word = text.strip_prefix(b" ").unwrap_or(text);
    match word {
        [first, rest @ ..] => {
            text.len() <= WORD_BYTES && first.is_ascii_alphabetic() && rest.iter().all(u8::is_ascii_lowercase)
        }
        [] => false,
    }
}

/// The simple words of a vocabulary, which has no gaps but for the special tokens at its end.
fn words_of(bpe: &CoreBPE) -> HashSet<u64, BuildHasherDefault<Itself>> {
    let tokens = (0..RANKS_MAX).map_while(|rank| bpe.decode_bytes(&[rank]).ok());
    tokens.filter(|token| is_simple_word(token)).map(|token| hash(&token)).collect()
}

/// Over the highest rank of any encoding.
const RANKS_MAX: u32 = 1 << 20;

/// FNV-1a. Two words of one hash are as unlikely as 2^-64 for each pair, and cost a count that is off by one.
fn hash(text: &[u8]) -> u64 {
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// A hash is its own hash.
#[derive(Debug, Default)]
struct Itself(u64);

impl Hasher for Itself {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = hash(bytes);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}
