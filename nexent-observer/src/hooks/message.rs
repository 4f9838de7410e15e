//! What an in-process hook says: one JSON object (docs/hooks.md). The process is hostile like any input.

use std::borrow::Cow;

use serde::Deserialize;

/// Longest name that is kept, in characters; the rest is cut.
pub const MAX_NAME: usize = 200;

/// One announcement.
#[derive(Debug, Clone, Deserialize)]
pub struct Message<'a> {
    /// Version of the words; 1.
    pub v: u32,
    /// What kind.
    pub k: Kind,
    /// Span.
    #[serde(default, deserialize_with = "span_id")]
    pub s: Option<u64>,
    /// Trace.
    #[serde(default, deserialize_with = "trace_id")]
    pub t: Option<u128>,
    /// Parent span.
    #[serde(default, deserialize_with = "span_id")]
    pub p: Option<u64>,
    /// Name.
    #[serde(default, borrow)]
    pub n: Option<Cow<'a, str>>,
    /// What the span is.
    #[serde(default)]
    pub o: Work,
    /// Model.
    #[serde(default, borrow)]
    pub m: Option<Cow<'a, str>>,
    /// Peer of an inbound request.
    #[serde(default, borrow)]
    pub peer: Option<Cow<'a, str>>,
    /// Attributes.
    #[serde(default)]
    pub a: serde_json::Map<String, serde_json::Value>,
    /// Type of an error.
    #[serde(default, borrow)]
    pub e: Option<Cow<'a, str>>,
}

/// Kind of an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A span begins.
    Begin,
    /// A span gets attributes, or another name.
    Set,
    /// Something happened in a span.
    Event,
    /// A span ends.
    End,
    /// The next write of this thread belongs to a span, or to none.
    Write,
}

/// What a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// An inbound request.
    Server,
    /// An endpoint of the service.
    Endpoint,
    /// A call that follows.
    Llm,
    /// Something else.
    #[default]
    #[serde(other)]
    Other,
}

/// Reads one announcement. `None`: it is no JSON object of this version.
#[must_use]
pub fn parse(text: &[u8]) -> Option<Message<'_>> {
    serde_json::from_slice::<Message<'_>>(text).ok().filter(|message| message.v == 1)
}

/// A name, cut to its limit.
#[must_use]
pub fn name(text: &str) -> &str {
    text.char_indices().nth(MAX_NAME).map_or(text, |(end, _)| text.get(..end).unwrap_or(text))
}

/// 16 hexadecimal digits, not all zero; anything else is no id.
fn span_id<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = Option::<Cow<'de, str>>::deserialize(from)?;
    Ok(text.filter(|text| text.len() == 16).and_then(|text| u64::from_str_radix(&text, 16).ok()).filter(|id| *id != 0))
}

/// 32 hexadecimal digits, not all zero.
fn trace_id<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<u128>, D::Error> {
    let text = Option::<Cow<'de, str>>::deserialize(from)?;
    Ok(text.filter(|text| text.len() == 32).and_then(|text| u128::from_str_radix(&text, 16).ok()).filter(|id| *id != 0))
}
