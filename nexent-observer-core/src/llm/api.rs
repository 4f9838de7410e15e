//! The table of known APIs. A new API is one file with a [`Decoder`] and an [`Api`] row, and its name in [`APIS`].

use std::borrow::Cow;

use super::{
    ErrorFacts, LlmEvent, LlmEventKind, Payload, RequestFacts, Usage, anthropic, bedrock, cohere, dashscope,
    embeddings, gemini, lenient::Odd, members::Members, name, native, ollama, openai_chat, openai_responses, sglang,
};
use crate::{
    event::Stamp,
    stats::{DropReason, Stats},
};

/// Every known API, in the order in which they are tried.
pub(super) static APIS: &[&Api] = &[
    &openai_chat::API,
    &openai_chat::LEGACY,
    &openai_responses::API,
    &anthropic::API,
    &gemini::API,
    &gemini::EMBED,
    &bedrock::CONVERSE,
    &bedrock::EMBED,
    &bedrock::INVOKE,
    &dashscope::API,
    &cohere::CHAT,
    &cohere::EMBED,
    &ollama::CHAT,
    &ollama::GENERATE,
    &ollama::EMBED,
    &native::TGI,
    &native::LLAMA_CPP,
    &sglang::API,
    &embeddings::API,
];

/// What stage 5 must know of one API.
#[derive(Debug)]
pub(super) struct Api {
    /// `gen_ai.operation.name`.
    pub(super) operation: &'static str,
    /// Provider where neither the host nor the response head tells it.
    pub(super) fallback_provider: &'static str,
    /// Paths of a POST that is a call of this API, the most telling first.
    pub(super) routes: &'static [Route],
    /// What a JSON body of its answers is.
    pub(super) json: JsonBody,
    /// Takes one member of the request body over.
    pub(super) request: fn(&mut RequestDraft, Member<'_>),
    /// Whether a request body on an unknown path may be meant for this API.
    pub(super) request_shape: fn(&Members) -> bool,
    /// Whether a JSON text, a whole answer or one event of a stream, can only be of this API: its members, and itself.
    pub(super) recognise: fn(&Members, &str) -> bool,
    /// A decoder for one response.
    pub(super) decoder: fn() -> Box<dyn Decoder>,
}

/// A path of an API.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    /// End of the path, on a segment border. One `*` stands for the model (not empty, no `/`).
    pub(super) path: &'static str,
    /// What proves that a request on this path is a call of the API.
    pub(super) proof: Proof,
    /// Where it is said whether a stream is asked for.
    pub(super) stream: StreamFlag,
    /// A part that the name of the model must have.
    pub(super) model_part: &'static str,
}

/// What proves that a request on a path of an API is a call of it. A host of a known provider always does; without any
/// proof the bodies decide, as on an unknown path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// The path: nothing else is called like that.
    Path,
    /// The port in `Host`.
    Port(&'static str),
    /// A header field that only clients of this API send.
    Header(&'static str),
    /// Nothing in the head: other services have such paths too.
    Bodies,
}

/// Where a request says whether it asks for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamFlag {
    /// In its body; one that says nothing is left alone.
    Body,
    /// In its body; one that says nothing asks for a stream.
    BodyElseStream,
    /// This header field is present.
    Header(&'static str),
    /// The path decides.
    Path(bool),
}

impl Route {
    /// A path that proves itself, whose requests say in their body whether they ask for a stream.
    pub(super) const fn sure(path: &'static str) -> Self {
        Self { path, proof: Proof::Path, stream: StreamFlag::Body, model_part: "" }
    }

    /// A path that other services have too.
    pub(super) const fn unsure(path: &'static str, proof: Proof) -> Self {
        Self { path, proof, stream: StreamFlag::Body, model_part: "" }
    }

    /// The same, with another place for the wish for a stream.
    pub(super) const fn with(self, stream: StreamFlag) -> Self {
        Self { stream, ..self }
    }

    /// The same, for models with this in their name only.
    pub(super) const fn of_models(self, model_part: &'static str) -> Self {
        Self { model_part, ..self }
    }
}

/// What a JSON body of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum JsonBody {
    /// One value that is read whole.
    #[default]
    Whole,
    /// One object of any size: only its members and those one level below are read, as they come by.
    Members,
    /// An array is a stream whose events are its elements; anything else is one value that is read whole.
    Array,
}

/// Turns one response body into LLM events.
pub(super) trait Decoder: std::fmt::Debug + Send {
    /// One event of a stream.
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>);
    /// The whole body of an answer that is not streamed; also of an error.
    fn body(&mut self, body: &[u8], out: &mut Out<'_>);
    /// What was asked for is known, as far as it is going to be. Not called where the request was not seen.
    fn asked(&mut self, _draft: &RequestDraft) {}
    /// One member of a body that is [`JsonBody::Members`].
    fn member(&mut self, _member: Member<'_>) {}
    /// The response is complete.
    fn end(&mut self, _out: &mut Out<'_>) {}
}

/// One event as its framing cut it out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    /// Event name; empty when the framing has none.
    pub(super) name: &'a [u8],
    /// The framing itself says that this event is an error.
    pub(super) error: bool,
    /// Payload. Not empty.
    pub(super) data: &'a [u8],
    /// False: a part may be missing (end of the stream, or just after a gap), so what does not parse is no defect.
    pub(super) whole: bool,
}

/// What a framing finds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Piece<'a> {
    /// One event of a stream.
    Frame(Frame<'a>),
    /// One member of a whole body.
    Member(Member<'a>),
}

/// What a framing could not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Defects {
    /// Events over [`crate::limits::EVENT_BYTES`] that were skipped.
    pub(super) event_too_long: u64,
    /// Bodies over [`crate::limits::BODY_BYTES`].
    pub(super) body_too_long: u64,
    /// Frames whose checksum or length is wrong.
    pub(super) frame_invalid: u64,
}

impl std::ops::AddAssign for Defects {
    fn add_assign(&mut self, other: Self) {
        self.event_too_long += other.event_too_long;
        self.body_too_long += other.body_too_long;
        self.frame_invalid += other.frame_invalid;
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

/// [`RequestFacts`] in the making.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestDraft {
    /// The facts.
    pub(super) facts: RequestFacts,
    /// `max_tokens` came from a member that outranks its older name.
    pub(super) max_tokens_fixed: bool,
    /// Whether each event is to bring only what is new, where the API leaves that to the request.
    pub(super) incremental: Option<bool>,
}

impl RequestDraft {
    /// Takes a member that most APIs have under the same name: `model`, `stream`, `temperature`, `top_p`, `max_tokens`.
    pub(super) fn usual(&mut self, key: &str, value: Value<'_>) {
        let facts = &mut self.facts;
        match key {
            "model" => {
                facts.model = match value {
                    Value::Str(text) if !text.is_empty() => Some(name::clean(text).into_owned()),
                    _ => None,
                }
            }
            "stream" => facts.stream = if let Value::Bool(yes) = value { Some(yes) } else { None },
            "temperature" => facts.temperature = value.float(),
            "top_p" => facts.top_p = value.float(),
            "max_tokens" if !self.max_tokens_fixed => facts.max_tokens = value.count(),
            _ => {}
        }
    }

    /// Takes the bound on output tokens under the name that outranks `max_tokens`.
    pub(super) fn max_tokens(&mut self, value: Value<'_>) {
        if let Some(count) = value.count() {
            (self.facts.max_tokens, self.max_tokens_fixed) = (Some(count), true);
        }
    }
}

/// Most members of a wrong type that are counted of one event or body.
const ODD_COUNTED: Odd = 16;

/// Where a decoder puts its events.
pub(super) struct Out<'a> {
    /// Stamp of all events.
    pub(super) at: Stamp,
    /// HTTP status, where known.
    pub(super) status: Option<u16>,
    /// What the response head says about an error.
    pub(super) error_kind: Option<&'a str>,
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

    /// Counts the members of an event or body that were of another type than the API gives them. The body of an error may be
    /// anything.
    pub(super) fn odd(&mut self, odd: Odd) {
        let odd = if self.failed() { 0 } else { odd.min(ODD_COUNTED) };
        for _ in 0..odd {
            self.count(DropReason::JsonType);
        }
    }

    /// The HTTP status says that the exchange failed.
    pub(super) fn failed(&self) -> bool {
        self.status.is_some_and(|s| s >= 400)
    }

    /// The text of an event or body; what is no UTF-8 is counted and replaced, for the rest of it still counts.
    pub(super) fn text<'b>(&mut self, bytes: &'b [u8]) -> Cow<'b, str> {
        // The strict check first: it is many times faster than the lossy one.
        if let Ok(text) = std::str::from_utf8(bytes) {
            return Cow::Borrowed(text);
        }
        self.count(DropReason::Utf8Invalid);
        String::from_utf8_lossy(bytes)
    }

    /// The text of an event. One that is cut off may end inside of a character: that is no defect.
    pub(super) fn frame_text<'b>(&mut self, frame: &Frame<'b>) -> Cow<'b, str> {
        if frame.whole { self.text(frame.data) } else { String::from_utf8_lossy(frame.data) }
    }

    /// Reports a piece of what was generated unless it is empty; true when it was reported.
    pub(super) fn delta(&mut self, payload: Payload, choice: u32, text: &str) -> bool {
        if !text.is_empty() {
            self.emit(LlmEventKind::Delta { payload, choice, text });
        }
        !text.is_empty()
    }

    /// Counts the current event as an output chunk if it is one.
    pub(super) fn count_output(&mut self, is_output: bool) {
        self.stats.chunks += u64::from(is_output);
    }

    /// Reports a finish reason unless there is none.
    pub(super) fn finish(&mut self, choice: u32, reason: Option<&str>) {
        if let Some(reason) = reason.filter(|r| !r.is_empty()) {
            self.emit(LlmEventKind::Finish { choice, reason: &name::clean(reason) });
        }
    }

    /// Reports token counts unless there are none.
    pub(super) fn usage(&mut self, usage: Usage) {
        if usage != Usage::default() {
            self.emit(LlmEventKind::Usage(usage));
        }
    }

    /// Reports an error, the first one of an exchange only: later ones (`[DONE]` loops, a second copy) are echoes.
    pub(super) fn error(&mut self, evidence: ErrorEvidence<'_>) {
        if !std::mem::replace(self.errored, true) {
            let kind = evidence.kind.or(self.error_kind);
            let error_type = ErrorEvidence { kind, ..evidence }.error_type(self.status);
            self.emit(LlmEventKind::Error(ErrorFacts { error_type }));
        }
    }
}

/// Model and id as the response named them last.
#[derive(Debug, Default)]
pub(super) struct Identity {
    model: String,
    id: String,
}

impl Identity {
    /// Reports what is new; true when something was. Azure's first event has both empty: those are no values.
    pub(super) fn tell(&mut self, id: Option<&str>, model: Option<&str>, out: &mut Out<'_>) -> bool {
        let id = changed(&mut self.id, id);
        let model = changed(&mut self.model, model);
        if id || model {
            out.emit(LlmEventKind::Identity {
                model: model.then_some(self.model.as_str()),
                id: id.then_some(self.id.as_str()),
            });
        }
        id || model
    }
}

fn changed(kept: &mut String, seen: Option<&str>) -> bool {
    let Some(seen) = seen.filter(|s| !s.is_empty() && *s != kept.as_str()) else { return false };
    let seen = name::clean(seen);
    if seen.is_empty() || *seen == **kept {
        return false;
    }
    kept.clear();
    kept.push_str(&seen);
    true
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
