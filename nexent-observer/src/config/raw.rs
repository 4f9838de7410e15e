//! The first stage of configuration: what each source says, as text, before any of it is understood.

use std::collections::BTreeMap;

use super::{Origin, keys::Key};

/// Values of one key in one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    /// As written; exactly one unless the key is a list.
    pub values: Vec<String>,
    /// Where they stand.
    pub origin: Origin,
}

/// What one source (flags, environment, file) says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layer(BTreeMap<&'static str, Raw>);

impl Layer {
    /// Sets a key, in the place of what it was.
    pub fn insert(&mut self, key: &Key, raw: Raw) {
        self.0.insert(key.name, raw);
    }

    /// What this source says of `key`.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Raw> {
        self.0.get(key.name)
    }
}

/// All sources, the strongest first: flags, environment, file.
#[derive(Debug, Clone, Default)]
pub struct RawConfig(pub [Layer; 3]);

impl RawConfig {
    /// The strongest source's word on `key`, and the rank of that source (0 is the strongest). A list is taken whole
    /// from one source, never joined.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<(usize, &Raw)> {
        self.0.iter().enumerate().find_map(|(rank, layer)| Some((rank, layer.get(key)?)))
    }
}
