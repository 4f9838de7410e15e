//! LLM calls on a WebSocket. One socket carries many: each response is a call of its own, from the message that asked for it
//! to its last event. Rows of [`SOCKETS`] say which paths have such an API and how its events are read.
//!
//! A call starts with the client's message that asked for it (`response.create`). Where none did, because the server
//! decides when the speaker has finished (voice activity detection), it starts when `input_audio_buffer.speech_stopped` was
//! read, and where that did not come, with `input_audio_buffer.committed`: from then on the listener waits. A response that
//! nothing is known to have asked for is one joined late.
//!
//! Audio that is sent and leads to no response leaves nothing behind.

use super::{
    Call, ErrorFacts, LlmEvent, LlmEventKind, RequestFacts, ResponseFacts,
    api::{Decoder, Frame, Member, Out, RequestDraft, Value},
    detect,
    json_scan::Scanner,
    openai_realtime, response_head,
};
use crate::{
    conn::{CloseCause, GapCause},
    event::Stamp,
    http::{AbortCause, Head, HttpEvent, HttpEventKind, Message, MessageKind, RequestHead, Side},
    limits,
    stats::{DropReason, Stats},
};

/// Every known API on WebSockets.
static SOCKETS: &[&SocketApi] = &[&openai_realtime::REALTIME, &openai_realtime::RESPONSES];

/// Bytes of a message that are looked at before it is known to be of interest: the type stands at its beginning.
const OUTLINE_BYTES: usize = 256;
/// Longest id kept, in bytes.
const ID_BYTES: usize = 128;

/// What stage 5 must know of one API that is spoken on WebSockets, in the events of OpenAI: JSON objects with a `type`,
/// of which `response.create` asks and `response.*` answer.
#[derive(Debug)]
pub(super) struct SocketApi {
    /// `gen_ai.operation.name`.
    pub(super) operation: &'static str,
    /// Provider where the host does not tell it.
    pub(super) fallback_provider: &'static str,
    /// Last segment of the path.
    pub(super) path: &'static str,
    /// Takes one member of the message that asks.
    pub(super) request: fn(&mut RequestDraft, Member<'_>),
    /// An `error` while a response is under way is about that response.
    pub(super) errors_end_responses: bool,
    /// A decoder for the events of one response.
    pub(super) decoder: fn() -> Box<dyn Decoder>,
}

/// What became of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum SocketState {
    /// More may come.
    Open,
    /// It is over; all its calls were ended.
    Over,
    /// It never was one: the server refused.
    Refused,
}

/// Reads one WebSocket: the [`HttpEvent`]s of its exchange in, [`LlmEvent`]s of its calls out, each with the call's number.
#[derive(Debug)]
pub struct LlmSocket {
    api: &'static SocketApi,
    call: Call,
    facts: ResponseFacts,
    /// The model that the path asked for, and the one that the server named.
    asked_model: Option<String>,
    session_model: Option<String>,
    /// In the order in which they began.
    calls: Vec<Open>,
    next: u32,
    /// When the server last took in what was said, and whether that was the end of speech.
    heard: Option<(Stamp, bool)>,
}

/// One call.
#[derive(Debug)]
struct Open {
    no: u32,
    /// `event_id` of the message that asked.
    event: Option<Box<str>>,
    /// Id of the response, and of its stream, as far as they were told.
    response: Option<Box<str>>,
    stream: Option<Box<str>>,
    answered: bool,
    errored: bool,
    decoder: Box<dyn Decoder>,
}

/// What the outside of a message says.
#[derive(Debug, Default)]
struct Outline {
    kind: String,
    event: Option<Box<str>>,
    response: Option<Box<str>>,
    /// `response_id` stands in the event itself.
    by_id: bool,
    stream: Option<Box<str>>,
    model: Option<String>,
    /// Of an error: the event that it is about.
    about: Option<Box<str>>,
}

fn short(text: &str) -> Box<str> {
    let end = (0..=text.len().min(ID_BYTES)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text.get(..end).unwrap_or_default().into()
}

impl Outline {
    /// Of a message; its `kind` only, when that is none that `wanted` takes.
    fn of(message: &[u8], wanted: impl Fn(&str) -> bool, mut on_member: impl FnMut(Member<'_>)) -> Self {
        let mut outline = Self::default();
        let mut scanner = Scanner::new();
        let (start, rest) = message.split_at(message.len().min(OUTLINE_BYTES));
        scanner.feed(start, &mut |member| {
            outline.take(member);
            on_member(member);
        });
        if outline.kind.is_empty() || wanted(&outline.kind) {
            scanner.feed(rest, &mut |member| {
                outline.take(member);
                on_member(member);
            });
        }
        outline
    }

    fn take(&mut self, member: Member<'_>) {
        let Value::Str(text) = member.value else { return };
        if text.is_empty() {
            return;
        }
        match (member.parent, member.key) {
            (None, "type") => self.kind = text.into(),
            (None, "event_id") => self.event = Some(short(text)),
            (None, "response_id") => (self.response, self.by_id) = (Some(short(text)), true),
            (Some("response"), "id") if !self.by_id => self.response = Some(short(text)),
            (None, "stream_id") => self.stream = Some(short(text)),
            (Some("session"), "model") => self.model = Some(super::name::clean(text).into_owned()),
            (Some("error"), "event_id") => self.about = Some(short(text)),
            _ => {}
        }
    }
}

/// Events that end a response.
fn is_last(kind: &str) -> bool {
    matches!(
        kind,
        "response.done" | "response.completed" | "response.failed" | "response.incomplete" | "response.cancelled"
    )
}

/// Where a socket's events and counts go.
struct Sinks<'a> {
    stats: &'a mut Stats,
    sink: &'a mut dyn FnMut(u32, LlmEvent<'_>),
}

impl Sinks<'_> {
    fn emit(&mut self, no: u32, at: Stamp, kind: LlmEventKind<'_>) {
        (self.sink)(no, LlmEvent { at, kind });
    }
}

impl LlmSocket {
    /// A socket, if this request asks for one that may carry LLM calls.
    #[must_use]
    pub fn asked_by(head: &RequestHead<'_>) -> Option<Self> {
        let http1 = head.method == "GET"
            && head.headers.get("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
        let http2 = head.method == "CONNECT" && head.headers.get(":protocol") == Some("websocket");
        let (path, query) = head.path.split_once('?').unwrap_or((head.path, ""));
        let segment = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let api = SOCKETS.iter().copied().find(|api| (http1 || http2) && api.path == segment)?;
        let model = query.split('&').find_map(|pair| match pair.split_once('=') {
            Some(("model" | "deployment", value)) if !value.is_empty() => Some(detect::percent_decoded(value)),
            _ => None,
        });
        Some(Self {
            api,
            call: detect::call(head, api.operation),
            facts: ResponseFacts::default(),
            asked_model: model.map(|model| super::name::clean(&model).into_owned()),
            session_model: None,
            calls: Vec::new(),
            next: 0,
            heard: None,
        })
    }

    /// Takes the next event of its exchange; what follows from it goes to `sink` with the number of the call.
    pub fn feed(
        &mut self,
        ev: &HttpEvent<'_>,
        stats: &mut Stats,
        sink: &mut impl FnMut(u32, LlmEvent<'_>),
    ) -> SocketState {
        let mut to = Sinks { stats, sink };
        match ev.kind {
            HttpEventKind::Head { head: Head::Response(head), .. } => {
                let opened = match head.status {
                    Some(101) => self.call.method == "GET",
                    Some(200..=299) => self.call.method == "CONNECT",
                    _ => false,
                };
                if !opened {
                    return SocketState::Refused;
                }
                self.facts = response_head::facts(&head, None);
                self.facts.provider = self.facts.provider.or(Some(self.api.fallback_provider));
                // Of each call: the handshake's status says nothing about it.
                (self.facts.status, self.facts.stream) = (None, true);
            }
            HttpEventKind::Message(message) => self.message(ev.side, ev.at, &message, &mut to),
            HttpEventKind::Gap { len, cause } if ev.side == Side::Response => self.gap(ev.at, len, cause, &mut to),
            HttpEventKind::Abort(cause) => {
                self.end_all(ev.at, &LlmEventKind::Abort(cause), &mut to);
                return SocketState::Over;
            }
            HttpEventKind::End if ev.side == Side::Response => {
                self.end_all(ev.at, &LlmEventKind::End, &mut to);
                return SocketState::Over;
            }
            _ => {}
        }
        SocketState::Open
    }

    fn message(&mut self, side: Side, at: Stamp, message: &Message<'_>, to: &mut Sinks<'_>) {
        match (message.kind, side) {
            (MessageKind::Binary, _) => {}
            // Whoever closes first says who is done with the calls that are open.
            (MessageKind::Close(_), Side::Request) => {
                self.end_all(at, &LlmEventKind::Abort(AbortCause::Closed(CloseCause::Freed)), to);
            }
            (MessageKind::Close(code), Side::Response) => {
                let code = code.map_or_else(|| "closed".into(), |code| format!("closed_{code}"));
                for call in &mut self.calls {
                    if !std::mem::replace(&mut call.errored, true) {
                        let error = ErrorFacts { error_type: format!("websocket_{code}") };
                        to.emit(call.no, at, LlmEventKind::Error(error));
                    }
                }
                self.end_all(at, &LlmEventKind::End, to);
            }
            (MessageKind::Text, Side::Request) => self.client(at, message, to),
            (MessageKind::Text, Side::Response) => self.server(at, message, to),
        }
    }

    /// A message of the client.
    fn client(&mut self, at: Stamp, message: &Message<'_>, to: &mut Sinks<'_>) {
        let mut draft = RequestDraft::default();
        let outline = Outline::of(
            message.bytes,
            |kind| kind == "response.create",
            |member| {
                (self.api.request)(&mut draft, member);
            },
        );
        if outline.kind != "response.create" {
            return;
        }
        let mut facts = draft.facts;
        facts.truncated = message.len > message.bytes.len() as u64;
        let no = self.start(at, message.first, facts, to);
        if let Some(call) = self.calls.iter_mut().find(|call| call.no == no) {
            (call.event, call.stream) = (outline.event, outline.stream);
        }
    }

    /// A call begins with a request that is known.
    fn start(&mut self, at: Stamp, first: Stamp, mut facts: RequestFacts, to: &mut Sinks<'_>) -> u32 {
        let no = self.open(at, to);
        facts.model = facts.model.or_else(|| self.asked_model.clone()).or_else(|| self.session_model.clone());
        facts.stream = Some(true);
        to.emit(no, at, LlmEventKind::Start { first, call: self.call.clone() });
        to.emit(no, at, LlmEventKind::Request(facts));
        to.emit(no, at, LlmEventKind::RequestEnd);
        no
    }

    fn open(&mut self, at: Stamp, to: &mut Sinks<'_>) -> u32 {
        if self.calls.len() >= limits::SOCKET_CALLS {
            to.stats.count(DropReason::ExchangesFull);
            let oldest = self.calls.remove(0);
            to.emit(oldest.no, at, LlmEventKind::Abort(AbortCause::Evicted));
        }
        let no = self.next;
        self.next = self.next.wrapping_add(1);
        self.calls.push(Open {
            no,
            event: None,
            response: None,
            stream: None,
            answered: false,
            errored: false,
            decoder: (self.api.decoder)(),
        });
        no
    }

    /// A message of the server.
    fn server(&mut self, at: Stamp, message: &Message<'_>, to: &mut Sinks<'_>) {
        let wanted = |kind: &str| kind.starts_with("response.") || kind.starts_with("session.") || kind == "error";
        let outline = Outline::of(message.bytes, wanted, |_| {});
        let found = match outline.kind.as_str() {
            "session.created" | "session.updated" => {
                self.session_model = outline.model.or_else(|| self.session_model.take());
                return;
            }
            // The end of speech counts, not the server's note of it that follows.
            "input_audio_buffer.speech_stopped" => {
                self.heard = Some((at, true));
                return;
            }
            "input_audio_buffer.committed" => {
                if self.heard.is_none_or(|(_, stopped)| !stopped) {
                    self.heard = Some((at, false));
                }
                return;
            }
            // Whoever spoke before goes on.
            "input_audio_buffer.speech_started" => {
                self.heard = None;
                return;
            }
            "response.created" => Some(self.answer(at, message, &outline, to)),
            "error" => self.blamed(&outline),
            kind if kind.starts_with("response.") => self.answered_by(&outline),
            _ => return,
        };
        let Some(index) = found else { return };
        let Some(call) = self.calls.get_mut(index) else { return };
        let Open { no, answered, errored, decoder, .. } = call;
        let (mut done, no) = (false, *no);
        let Sinks { stats, sink } = to;
        let mut out = Out {
            at,
            status: None,
            error_kind: None,
            errored,
            stats,
            sink: &mut |event: LlmEvent<'_>| {
                done |= event.kind == LlmEventKind::Done;
                sink(no, event);
            },
        };
        let whole = message.len == message.bytes.len() as u64;
        decoder.frame(Frame { name: b"", error: false, data: message.bytes, whole }, &mut out);
        // An end whose text was cut is an end; so is the refusal of what was asked.
        let over = is_last(&outline.kind) || (outline.kind == "error" && !*answered);
        if over && !done {
            to.emit(no, at, LlmEventKind::End);
        }
        if over || done {
            self.calls.remove(index);
        }
    }

    /// The call that is answered from here on.
    fn answer(&mut self, at: Stamp, message: &Message<'_>, outline: &Outline, to: &mut Sinks<'_>) -> usize {
        let unanswered = |call: &&mut Open| !call.answered;
        let of_stream = |call: &&mut Open| !call.answered && call.stream.is_some() && call.stream == outline.stream;
        let asked = match self.calls.iter_mut().find(of_stream) {
            Some(call) => Some(call.no),
            None => self.calls.iter_mut().find(unanswered).map(|call| call.no),
        };
        let heard = self.heard.take();
        let no = match (asked, heard) {
            (Some(no), _) => no,
            (None, Some((heard, _))) => {
                // Nothing was written: it counts from when the event was there.
                let first = Stamp { entry: heard.ret, ret: heard.ret };
                self.start(heard, first, RequestFacts::default(), to)
            }
            (None, None) => {
                to.stats.count(DropReason::Joined);
                let no = self.open(at, to);
                to.emit(no, at, LlmEventKind::Joined);
                no
            }
        };
        to.emit(no, at, LlmEventKind::Response { first: message.first, facts: self.facts.clone() });
        if let Some(model) = &self.session_model {
            to.emit(no, at, LlmEventKind::Identity { model: Some(model), id: None });
        }
        let index = self.calls.iter().position(|call| call.no == no).unwrap_or_default();
        if let Some(call) = self.calls.get_mut(index) {
            call.answered = true;
            call.response.clone_from(&outline.response);
            call.stream = outline.stream.clone().or_else(|| call.stream.take());
        }
        index
    }

    /// The call that an event of a response belongs to.
    fn answered_by(&self, outline: &Outline) -> Option<usize> {
        let position = |of: &dyn Fn(&Open) -> bool| self.calls.iter().position(|call| call.answered && of(call));
        let by_stream = || position(&|call| outline.stream.is_some() && call.stream == outline.stream);
        let by_response = || position(&|call| outline.response.is_some() && call.response == outline.response);
        by_response().or_else(by_stream).or_else(|| {
            // Most events of the Responses API name no response, and gateways change the ids of those that do.
            let only = outline.stream.is_none() && !outline.by_id;
            only.then(|| self.calls.iter().rposition(|call| call.answered)).flatten()
        })
    }

    /// The call that an error is about; most errors of the Realtime API are about none.
    fn blamed(&self, outline: &Outline) -> Option<usize> {
        let unanswered = |of: &dyn Fn(&Open) -> bool| self.calls.iter().position(|call| !call.answered && of(call));
        match &outline.about {
            Some(event) => unanswered(&|call| call.event.as_ref() == Some(event)),
            None => unanswered(&|call| call.stream.is_none() || call.stream == outline.stream)
                .or_else(|| self.answered_by(outline).filter(|_| self.api.errors_end_responses)),
        }
    }

    fn gap(&mut self, at: Stamp, len: Option<u64>, cause: GapCause, to: &mut Sinks<'_>) {
        for call in &self.calls {
            to.emit(call.no, at, LlmEventKind::Gap { len, cause });
        }
        // It may have held the event that a response will start from.
        self.heard = None;
    }

    fn end_all(&mut self, at: Stamp, with: &LlmEventKind<'_>, to: &mut Sinks<'_>) {
        for call in self.calls.drain(..) {
            to.emit(call.no, at, with.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_kept_up_to_its_cap() {
        assert_eq!(&*short("event_1"), "event_1");
        assert_eq!(short(&"ä".repeat(200)).len(), ID_BYTES);
        assert_eq!(short(&format!("x{}", "ä".repeat(200))).len(), ID_BYTES - 1);
    }
}
