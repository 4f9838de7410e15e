//! Tokenizers for the core: OpenAI's encodings, which are built in, and files of Hugging Face tokenizers that the user names.
//!
//! What is counted is never kept: the core hands over each text once, and neither library holds on to it (the cache of words
//! that Hugging Face's has is switched off).

mod borders;
mod file;
mod openai;

#[cfg(test)]
mod tests;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
};

use nexent_observer_core::timing::{Tokenizer, Tokenizers};

pub use file::FileError;

/// A file of a tokenizer, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Names of the models that it is for.
    pub models: Pattern,
    /// The file (`tokenizer.json` of a model on Hugging Face).
    pub path: PathBuf,
}

/// Names of models: one name, or with `*` for any text at the beginning, at the end or at both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// `None` when it is empty or has a `*` elsewhere.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let inside = text.strip_prefix('*').unwrap_or(text);
        let inside = inside.strip_suffix('*').unwrap_or(inside);
        (!text.is_empty() && !inside.contains('*')).then(|| Self(text.to_owned()))
    }

    /// As the user wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a model is one of them. Case does not matter: servers and clients write names differently.
    #[must_use]
    pub fn fits(&self, model: &str) -> bool {
        let (model, text) = (model.to_ascii_lowercase(), self.0.to_ascii_lowercase());
        if text == "*" {
            return true;
        }
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(end), None) => model.ends_with(end),
            (None, Some(start)) => model.starts_with(start),
            (Some(rest), Some(_)) => model.contains(rest.strip_suffix('*').unwrap_or(rest)),
            (None, None) => model == text,
        }
    }
}

/// Every tokenizer there is.
#[derive(Debug)]
pub struct Known {
    files: Vec<(Pattern, Arc<dyn Tokenizer>)>,
    o200k: Arc<openai::Encoding>,
    cl100k: Arc<openai::Encoding>,
    at_once: bool,
}

impl Known {
    /// Reads the files of the user. OpenAI's encodings are made ready when a model wants one.
    ///
    /// # Errors
    /// A file that cannot be read, or is no tokenizer that can be used.
    pub fn load(files: &[ModelFile]) -> Result<Self, FileError> {
        let load = |file: &ModelFile| {
            let tokenizer: Arc<dyn Tokenizer> = Arc::new(file::FileTokenizer::load(&file.path)?);
            Ok((file.models.clone(), tokenizer))
        };
        Ok(Self {
            files: files.iter().map(load).collect::<Result<_, _>>()?,
            o200k: Arc::new(openai::Encoding::o200k()),
            cl100k: Arc::new(openai::Encoding::cl100k()),
            at_once: false,
        })
    }

    /// Makes encodings ready while a model waits for one, so that counts do not depend on how long that takes: for a replay.
    #[must_use]
    pub fn at_once(self) -> Self {
        Self { at_once: true, ..self }
    }

    /// Makes all encodings ready now: for a recording, the replay of which counts again.
    #[must_use]
    pub fn ready(self) -> Self {
        for encoding in [&self.o200k, &self.cl100k] {
            if !encoding.make_ready() {
                tracing::warn!("An encoding cannot be made ready; tokens of its models are counted as chunks.");
            }
        }
        self
    }
}

impl Tokenizers for Known {
    fn of_model(&self, model: &str) -> Option<Arc<dyn Tokenizer>> {
        let named = self.files.iter().find(|(models, _)| models.fits(model));
        if let Some((_, tokenizer)) = named {
            return Some(Arc::clone(tokenizer));
        }
        let encoding = match openai::family(model)? {
            openai::Family::O200k => &self.o200k,
            openai::Family::Cl100k => &self.cl100k,
        };
        if self.at_once {
            encoding.make_ready();
        } else {
            openai::Encoding::prepare(encoding);
        }
        Some(Arc::<openai::Encoding>::clone(encoding))
    }
}

/// A count by a library. Both libraries panic where a regular expression takes too many steps; the caps of the core keep texts
/// too short for that, and should it happen all the same, there is no count.
fn guarded(count: impl FnOnce() -> Option<u64>) -> Option<u64> {
    catch_unwind(AssertUnwindSafe(count)).ok().flatten()
}
