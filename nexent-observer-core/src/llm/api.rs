//! The table of known APIs. A new API is one file with a [`Decoder`] and an [`Api`] row, and its name in [`APIS`].

use super::{ErrorFacts, LlmEvent, LlmEventKind, RequestFacts, name, openai_chat};
use crate::{
    event::Stamp,
    stats::{DropReason, Stats},
};

/// Every known API, in the order in which they are tried.
pub(super) static APIS: &[&Api] = &[&openai_chat::API];

/// What stage 5 must know of one API.
#[derive(Debug)]
pub(super) struct Api {
    /// `gen_ai.operation.name`.
    pub(super) operation: &'static str,
    /// Provider where neither the host nor the response head tells it.
    pub(super) fallback_provider: &'static str,
    /// Ends of the path, on segment borders, of a POST that is a call of this API.
    pub(super) paths: &'static [&'static str],
    /// The model as the path names it, for bodies that do not.
    pub(super) path_model: fn(&str) -> Option<&str>,
    /// Takes one member of the request body over.
    pub(super) request: fn(&mut RequestDraft, Member<'_>),
    /// Whether a request body on an unknown path may be meant for this API.
    pub(super) request_shape: fn(&[Shape]) -> bool,
    /// Whether this JSON text, a whole answer or one event of a stream, can only be of this API.
    pub(super) recognise: fn(&str) -> bool,
    /// A decoder for one response.
    pub(super) decoder: fn() -> Box<dyn Decoder>,
}

/// Turns one response body into LLM events.
pub(super) trait Decoder: std::fmt::Debug + Send {
    /// One event of a stream.
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>);
    /// The whole body of an answer that is not streamed; also of an error.
    fn body(&mut self, body: &[u8], out: &mut Out<'_>);
}

/// One event as its framing cut it out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    /// Event name; empty when the framing has none.
    pub(super) name: &'a [u8],
    /// Payload. Not empty.
    pub(super) data: &'a [u8],
    /// False: a part may be missing (end of the stream, or just after a gap), so what does not parse is no defect.
    pub(super) whole: bool,
}

/// What a framing could not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Defects {
    /// Events over [`crate::limits::EVENT_BYTES`] that were skipped.
    pub(super) event_too_long: u64,
    /// Bodies over [`crate::limits::BODY_BYTES`].
    pub(super) body_too_long: u64,
}

impl std::ops::AddAssign for Defects {
    fn add_assign(&mut self, other: Self) {
        self.event_too_long += other.event_too_long;
        self.body_too_long += other.body_too_long;
    }
}

/// One member of the request body, at its top level or one below.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Member<'a> {
    /// Key of the object that holds it; `None` at the top level.
    pub(super) parent: Option<&'a str>,
    /// Its key.
    pub(super) key: &'a str,
    /// Its value.
    pub(super) value: Value<'a>,
}

/// Value of a [`Member`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// A string, unescaped; a long one is cut.
    Str(&'a str),
    /// A number as written.
    Num(&'a str),
    /// `true` or `false`.
    Bool(bool),
    /// `null`.
    Null,
    /// An object begins.
    Object,
    /// An array begins.
    Array,
}

impl Value<'_> {
    /// A number as a count; whole floats are taken too (`100.0`).
    pub(super) fn count(self) -> Option<u64> {
        let Self::Num(text) = self else { return None };
        text.parse().ok().or_else(|| {
            let float = self.float()?;
            (float.fract() == 0.0 && (0.0..9e15).contains(&float)).then_some(float as u64)
        })
    }

    /// A finite number.
    pub(super) fn float(self) -> Option<f64> {
        let Self::Num(text) = self else { return None };
        // Rust would also take "inf" and "nan", which are no JSON.
        let json = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
        text.parse().ok().filter(|f: &f64| json && f.is_finite())
    }
}

/// Top-level members that tell which API a request body is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// `model` is a string.
    Model,
    /// `messages` is an array.
    Messages,
}

/// [`RequestFacts`] in the making.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestDraft {
    /// The facts.
    pub(super) facts: RequestFacts,
    /// `max_tokens` came from a member that outranks its older name.
    pub(super) max_tokens_fixed: bool,
}

/// Where a decoder puts its events.
pub(super) struct Out<'a> {
    /// Stamp of all events.
    pub(super) at: Stamp,
    /// HTTP status, where known.
    pub(super) status: Option<u16>,
    /// An error was reported for this exchange.
    pub(super) errored: &'a mut bool,
    pub(super) stats: &'a mut Stats,
    pub(super) sink: &'a mut dyn FnMut(LlmEvent<'_>),
}

impl Out<'_> {
    pub(super) fn emit(&mut self, kind: LlmEventKind<'_>) {
        (self.sink)(LlmEvent { at: self.at, kind });
    }

    pub(super) fn count(&mut self, reason: DropReason) {
        self.stats.count(reason);
    }

    /// Reports an error, the first one of an exchange only: later ones (`[DONE]` loops, a second copy) are echoes.
    pub(super) fn error(&mut self, evidence: ErrorEvidence<'_>) {
        if !std::mem::replace(self.errored, true) {
            self.emit(LlmEventKind::Error(ErrorFacts { error_type: evidence.error_type(self.status) }));
        }
    }
}

/// What a body says about an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ErrorEvidence<'a> {
    /// `code` as text.
    pub(super) code: Option<&'a str>,
    /// `code` as a number: some servers repeat the HTTP status there.
    pub(super) code_number: Option<u64>,
    /// `type`.
    pub(super) kind: Option<&'a str>,
}

impl ErrorEvidence<'_> {
    /// Code if it is an identifier, else type, else the HTTP status, else `_OTHER` (OpenTelemetry's `error.type`).
    fn error_type(self, status: Option<u16>) -> String {
        if let Some(code) = self.code.filter(|c| name::is_identifier(c)) {
            return code.to_owned();
        }
        // A type is a name by contract, but gateways put sentences there: those would be a label value each.
        if let Some(kind) = self.kind.filter(|k| name::is_identifier(k)) {
            return kind.to_owned();
        }
        let in_body = || self.code_number.or_else(|| self.code?.parse().ok()).filter(|n| (400..600).contains(n));
        match status {
            Some(status @ 400..) => status.to_string(),
            _ => in_body().map_or_else(|| "_OTHER".to_owned(), |n| n.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_type_is_code_then_type_then_status() {
        let t = |code: Option<&str>, kind: Option<&str>, number, status| {
            ErrorEvidence { code, code_number: number, kind }.error_type(status)
        };
        assert_eq!(t(Some("model_not_found"), Some("invalid_request_error"), None, Some(404)), "model_not_found");
        assert_eq!(t(Some("429"), Some("rate_limit"), None, Some(429)), "rate_limit");
        assert_eq!(t(Some("not a code"), None, None, Some(500)), "500");
        assert_eq!(t(None, Some("Something went wrong, sorry"), None, Some(503)), "503");
        assert_eq!(t(None, None, Some(502), Some(200)), "502");
        assert_eq!(t(Some("429"), None, None, Some(200)), "429");
        assert_eq!(t(None, None, Some(7), Some(200)), "_OTHER");
        assert_eq!(t(None, None, None, None), "_OTHER");
    }

    #[test]
    fn numbers_are_json_numbers() {
        assert_eq!(Value::Num("128").count(), Some(128));
        assert_eq!(Value::Num("1e3").count(), Some(1000));
        assert_eq!(Value::Num("1.5").count(), None);
        assert_eq!(Value::Num("-1").count(), None);
        assert_eq!(Value::Num("inf").float(), None);
        assert_eq!(Value::Num("nan").float(), None);
        assert_eq!(Value::Num("1e999").float(), None);
        assert_eq!(Value::Str("1").float(), None);
        assert_eq!(Value::Num("-0.5").float(), Some(-0.5));
    }
}
