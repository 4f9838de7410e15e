//! A Hugging Face tokenizer from a file that the user names.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nexent_observer_core::timing::Tokenizer;

use super::{
    borders::{self, Border},
    guarded,
};

/// Longest file, in bytes. The largest vocabularies come to about 30 MB.
const FILE_BYTES: u64 = 256 * 1024 * 1024;

/// Stands before a text that is not the beginning of its own: many tokenizers put a mark for a space there. It is a word of its own for
/// every tokenizer that is cut at spaces.
const BEFORE: &str = "a";

/// Why a file cannot be used. One sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("the tokenizer {} cannot be read: {error}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is no tokenizer.
    #[error("{} is no tokenizer: {reason}; give the tokenizer.json of a model", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What the library says.
        reason: String,
    },
    /// Its tokens go on over spaces.
    #[error("the tokenizer {} cannot count a text piece by piece: its tokens go on over spaces; leave it out", path.display())]
    NotInPieces {
        /// Which.
        path: PathBuf,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct FileTokenizer {
    tokenizer: tokenizers::Tokenizer,
    border: Border,
    /// Tokens of [`BEFORE`].
    before: u64,
}

impl FileTokenizer {
    pub(super) fn load(path: &Path) -> Result<Self, FileError> {
        let invalid = |reason: String| FileError::Invalid { path: path.to_owned(), reason };
        let unreadable = |error| FileError::Unreadable { path: path.to_owned(), error };
        if fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES {
            return Err(invalid(format!("it is longer than {FILE_BYTES} bytes")));
        }
        let bytes = fs::read(path).map_err(unreadable)?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| invalid(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        // What it has read must not stay in memory.
        let mut model = tokenizer.get_model().clone();
        model.resize_cache(0);
        tokenizer.with_model(model);
        let mut this = Self { tokenizer, border: borders::at_words, before: 0 };
        this.before = this.tokens(BEFORE).ok_or_else(|| invalid("it cannot encode a letter".into()))?;
        for border in [borders::at_words as Border, borders::at_spaces] {
            this.border = border;
            if SAMPLES.iter().all(|text| this.in_pieces(text).is_some_and(|sum| Some(sum) == this.tokens(text))) {
                return Ok(this);
            }
        }
        Err(FileError::NotInPieces { path: path.to_owned() })
    }

    fn tokens(&self, text: &str) -> Option<u64> {
        guarded(|| {
            let encoding = self.tokenizer.encode_fast(text, false).ok()?;
            u64::try_from(encoding.get_ids().len()).ok()
        })
    }

    /// The count of a text that is cut at every border.
    fn in_pieces(&self, text: &str) -> Option<u64> {
        let (mut rest, mut sum) = (text, 0);
        loop {
            // From the end, as the last border is what there is to ask for.
            let cut = self.settled(rest, 0);
            let piece = rest.get(cut..)?;
            sum += self.count(piece, cut == 0)?;
            if cut == 0 {
                return Some(sum);
            }
            rest = rest.get(..cut)?;
        }
    }
}

impl Tokenizer for FileTokenizer {
    fn settled(&self, text: &str, from: usize) -> usize {
        borders::last(text, from, self.border)
    }

    fn count(&self, text: &str, begins: bool) -> Option<u64> {
        if begins {
            return self.tokens(text);
        }
        Some(self.tokens(&format!("{BEFORE}{text}"))?.saturating_sub(self.before))
    }
}

/// Texts by which it is seen where a tokenizer can be cut.
const SAMPLES: [&str; 6] = [
    "The quick brown fox, who isn't lazy, jumped over 1234567 dogs' backs.  Twice!\n\nThen it said: \"Good-bye, we'll meet.\"",
    "```python\ndef f(x: int, *args) -> None:\n    return {\"a\": [x, 1.5e3], 'b': x ** 2}  # comment\n```\n\n- item\n\t- item_two\n",
    "{\"city\": \"Paris\", \"units\": [\"celsius\", null, true], \"n\": 42}",
    "今天的天气很好，我们去公园散步吧。你觉得（怎么样）？东京の天気は晴れです、たぶん。안녕하세요, 세계!",
    "Ünïcödé straße, naïve façade; Привет, мир! emoji: 👩‍💻 done.  Café\u{301} — “quoted” … end",
    "https://example.org/a/b?c=d&e=f#g user@example.org 2026-11-28T21:14:45Z $1,234.50 C++ a/b\\c",
];
