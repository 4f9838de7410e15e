//! One HTTP exchange read as an LLM call.

use smallvec::SmallVec;

use super::{
    Call, LlmEvent, LlmEventKind, NotLlm, ResponseFacts,
    api::{APIS, Api, Decoder, ErrorEvidence, Frame, JsonBody, Out, Piece, StreamFlag},
    body::{Last, ResponseBody},
    detect::{self, BodyKind, Detected, Path, Routed},
    members::Members,
    request::RequestBody,
    response_head,
};
use crate::{
    conn::GapCause,
    event::Stamp,
    http::{AbortCause, Head, HttpEvent, HttpEventKind, RequestHead, ResponseHead, Side},
    stats::{DropReason, Stats},
};

/// Events of a stream on an unknown path that are looked at before it is given up.
const TRIES: u8 = 4;

/// Whether an exchange is an LLM call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Not known yet: the path is unknown, or the request was not seen; the bodies decide. Nothing was given out so far.
    Undecided,
    /// It is one. `Start` (or `Joined`, where the request head was not seen) was given out.
    Llm,
    /// It is none. `NotLlm` was given out, and nothing else will be.
    NotLlm,
}

/// Reads one HTTP exchange: [`HttpEvent`]s in, [`LlmEvent`]s out.
///
/// The first event given out is `Start`, `Joined` or `NotLlm`. While the verdict is open, what is known is held back and
/// given out at once, each event with its own stamp, when it falls. Memory is bounded by [`crate::limits`].
#[derive(Debug)]
pub struct LlmExchange {
    call: Conversation,
    response: ResponseBody,
    /// Stamp of the latest response bytes.
    last_bytes: Stamp,
}

/// All but the framing of the response.
#[derive(Debug)]
struct Conversation {
    verdict: Verdict,
    api: Option<&'static Api>,
    decoder: Option<Box<dyn Decoder>>,
    request: Option<Box<RequestBody>>,
    /// `Request` was given out, or is held back.
    request_told: bool,
    /// The request head was seen.
    head_seen: bool,
    /// It accepts answers as clients of the Model Context Protocol do.
    accepts_like_mcp: bool,
    /// The API that the path belongs to, and what the path says. Proven or not.
    routed: Option<Box<Routed>>,
    held: Option<Box<Held>>,
    /// Digest of the request body, once it was seen to its end.
    request_digest: Option<u64>,
    status: Option<u16>,
    /// What the response head says about an error.
    error_kind: Option<Box<str>>,
    errored: bool,
    tries: u8,
}

/// What is known while the verdict is open.
#[derive(Debug, Default)]
struct Held {
    start: Option<(Stamp, Stamp, Call)>,
    /// When the request body was as complete as it was going to be, and whether that is complete.
    request: Option<(Stamp, bool)>,
    request_end: Option<Stamp>,
    response: Option<(Stamp, Stamp, ResponseFacts)>,
    gaps: SmallVec<[(Stamp, Option<u64>, GapCause); 1]>,
}

/// Most gaps that are held back; more are not told apart.
const HELD_GAPS: usize = 8;

/// Where events and counts go.
struct Sinks<'a> {
    stats: &'a mut Stats,
    sink: &'a mut dyn FnMut(LlmEvent<'_>),
}

impl Sinks<'_> {
    fn emit(&mut self, at: Stamp, kind: LlmEventKind<'_>) {
        (self.sink)(LlmEvent { at, kind });
    }
}

impl Default for LlmExchange {
    fn default() -> Self {
        Self::new()
    }
}

impl LlmExchange {
    /// An exchange of which nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            call: Conversation {
                verdict: Verdict::Undecided,
                api: None,
                decoder: None,
                request: None,
                request_told: false,
                head_seen: false,
                accepts_like_mcp: false,
                routed: None,
                held: None,
                request_digest: None,
                status: None,
                error_kind: None,
                errored: false,
                tries: 0,
            },
            response: ResponseBody::new(BodyKind::Unsaid, JsonBody::Whole),
            last_bytes: Stamp::default(),
        }
    }

    /// Whether this exchange is an LLM call, as far as is known.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.call.verdict
    }

    /// Digest of the whole request body as the API reads it (decoded), by which the same request is known again; `None` where it
    /// was not seen. Of what the kernel half left uncopied only the size is in it. It must not leave the core.
    #[must_use]
    pub fn request_digest(&self) -> Option<u64> {
        self.call.request_digest
    }

    /// Takes the next event of this exchange; what follows from it goes to `sink`, defects are counted in `stats`.
    pub fn feed(&mut self, ev: &HttpEvent<'_>, stats: &mut Stats, sink: &mut impl FnMut(LlmEvent<'_>)) {
        if self.call.verdict == Verdict::NotLlm {
            return;
        }
        let mut to = Sinks { stats, sink };
        match ev.side {
            Side::Request => self.call.request_event(ev, &mut to),
            Side::Response => self.response_event(ev, &mut to),
        }
        if let HttpEventKind::Abort(cause) = ev.kind {
            self.call.abort(ev.at, cause, &mut to);
        }
        if self.call.verdict == Verdict::NotLlm {
            // Give the memory back: the connection may live on for long.
            self.response = ResponseBody::new(BodyKind::Other, JsonBody::Whole);
        }
    }

    fn response_event(&mut self, ev: &HttpEvent<'_>, to: &mut Sinks<'_>) {
        let Self { call, response, last_bytes } = self;
        match ev.kind {
            HttpEventKind::Head { first, head } => {
                call.tell_request(ev.at, false, to);
                match head {
                    Head::Response(head) => {
                        let json = call.json_body();
                        *response = ResponseBody::new(BodyKind::of(&head.headers), json);
                        call.response_head(ev.at, first, &head, to);
                    }
                    Head::Unseen => *response = ResponseBody::midstream(),
                    // No response has one; the stage before does not send it.
                    Head::Request(_) => {}
                }
            }
            HttpEventKind::Body(bytes) => {
                *last_bytes = ev.at;
                let defects = response.feed(bytes, |piece| call.piece(piece, ev.at, to));
                for _ in 0..defects.event_too_long {
                    to.stats.count(DropReason::EventTooLong);
                }
                for _ in 0..defects.body_too_long {
                    to.stats.count(DropReason::BodyTooLong);
                }
                for _ in 0..defects.frame_invalid {
                    to.stats.count(DropReason::FrameInvalid);
                }
            }
            HttpEventKind::Gap { len, cause } => {
                response.gap();
                call.gap(ev.at, len, cause, to);
            }
            HttpEventKind::End => {
                response.finish(|last| call.last(last, *last_bytes, to));
                call.body_end(*last_bytes, to);
                call.response_end(ev.at, to);
            }
            HttpEventKind::Abort(_) | HttpEventKind::Message(_) => {}
        }
    }
}

impl Conversation {
    fn request_event(&mut self, ev: &HttpEvent<'_>, to: &mut Sinks<'_>) {
        match ev.kind {
            HttpEventKind::Head { first, head: Head::Request(head) } => self.request_head(ev.at, first, &head, to),
            // Its body may still tell something (HTTP/2 joined in mid-connection).
            HttpEventKind::Head { .. } => self.request = Some(Box::new(RequestBody::new(None))),
            HttpEventKind::Body(bytes) => {
                let Some(request) = &mut self.request else { return };
                request.feed(bytes);
                if self.verdict != Verdict::Undecided {
                    return;
                }
                let why = if self.accepts_like_mcp && request.is_json_rpc() {
                    Some(NotLlm::Mcp)
                } else {
                    request.is_hopeless().then_some(NotLlm::Request)
                };
                if let Some(why) = why.filter(|_| self.start_is_held()) {
                    self.reject(ev.at, why, to);
                }
            }
            HttpEventKind::Gap { len, cause } => {
                if let Some(request) = &mut self.request {
                    request.gap(len, cause);
                }
            }
            HttpEventKind::End => {
                if let Some(request) = &mut self.request {
                    request.end();
                    self.request_digest = request.digest();
                }
                self.tell_request(ev.at, true, to);
                match self.verdict {
                    Verdict::Llm => to.emit(ev.at, LlmEventKind::RequestEnd),
                    Verdict::Undecided => self.held().request_end = Some(ev.at),
                    Verdict::NotLlm => {}
                }
            }
            HttpEventKind::Abort(_) | HttpEventKind::Message(_) => {}
        }
    }

    fn request_head(&mut self, at: Stamp, first: Stamp, head: &RequestHead<'_>, to: &mut Sinks<'_>) {
        if self.verdict != Verdict::Undecided {
            return;
        }
        let api = match detect::request(head) {
            Detected::No(why) => return self.reject(at, why, to),
            Detected::Call(routed) => {
                let api = routed.api;
                self.routed = Some(Box::new(routed));
                Some(api)
            }
            Detected::Maybe(routed) => {
                self.routed = routed.map(Box::new);
                None
            }
        };
        let call = detect::call(head, api.map_or("", |a| a.operation));
        self.head_seen = true;
        self.accepts_like_mcp = detect::accepts_like_mcp(head);
        self.request = Some(Box::new(RequestBody::new(api)));
        match api {
            Some(api) => {
                self.verdict = Verdict::Llm;
                self.api = Some(api);
                self.decoder = Some((api.decoder)());
                to.emit(at, LlmEventKind::Start { first, call });
            }
            None => self.held().start = Some((at, first, call)),
        }
    }

    /// The request body is as complete as it is going to be before the response.
    fn tell_request(&mut self, at: Stamp, complete: bool, to: &mut Sinks<'_>) {
        if std::mem::replace(&mut self.request_told, true) {
            return;
        }
        match self.verdict {
            Verdict::Llm => self.emit_request(at, complete, to),
            Verdict::Undecided => self.held().request = Some((at, complete)),
            Verdict::NotLlm => {}
        }
    }

    fn emit_request(&mut self, at: Stamp, complete: bool, to: &mut Sinks<'_>) {
        let (Some(request), Some(api)) = (self.request.take(), self.api) else { return };
        // Without its head a body is the request only if it looks like one.
        if !self.head_seen && !request.looks_like(api) {
            return;
        }
        let draft = request.draft(api);
        if let Some(decoder) = &mut self.decoder {
            decoder.asked(&draft);
        }
        let mut facts = draft.facts;
        facts.truncated |= !complete;
        if let Some(Path { stream, model }) = self.path() {
            facts.model = facts.model.or_else(|| model.as_deref().map(str::to_owned));
            facts.stream = match stream {
                StreamFlag::Path(stream) => Some(*stream),
                // A part that was not kept may have said so.
                StreamFlag::BodyElseStream if !facts.truncated => facts.stream.or(Some(true)),
                StreamFlag::BodyElseStream | StreamFlag::Body | StreamFlag::Header(_) => facts.stream,
            };
        }
        to.emit(at, LlmEventKind::Request(facts));
    }

    fn response_head(&mut self, at: Stamp, first: Stamp, head: &ResponseHead<'_>, to: &mut Sinks<'_>) {
        self.status = head.status;
        self.error_kind = response_head::error_kind(&head.headers).map(Into::into);
        let mut facts = response_head::facts(head, self.api);
        let by_path = self.path().is_some_and(|path| path.stream == StreamFlag::Path(true));
        facts.stream |= by_path && head.status.is_none_or(|s| s < 400);
        match self.verdict {
            Verdict::Llm => {
                to.emit(at, LlmEventKind::Response { first, facts });
                let usage = response_head::usage(&head.headers);
                self.decode(at, to, |_, out| out.usage(usage));
            }
            Verdict::Undecided if self.worth_reading(head) => self.held().response = Some((at, first, facts)),
            Verdict::Undecided => self.reject(at, NotLlm::Answer, to),
            Verdict::NotLlm => {}
        }
    }

    /// Whether the body of an undecided response may show an LLM call. Errors show nothing, so that an unknown path is
    /// judged by its answers only and its error rate is never half seen. On a path of an API that other services have too, what
    /// was asked and the error together show enough. Where the path was not seen at all (HTTP/2 joined in mid-connection),
    /// nothing would ever show a failed call but what was asked.
    fn worth_reading(&self, head: &ResponseHead<'_>) -> bool {
        if head.status.is_some_and(|s| s >= 400) {
            return self.asked_unseen(None).or_else(|| self.asked_by_path()).is_some();
        }
        match BodyKind::of(&head.headers) {
            kind if kind.is_stream() => true,
            BodyKind::Other => false,
            // Every other service answers with JSON: kept only if what was asked looks like an LLM call.
            _ => {
                !self.start_is_held() || self.request.as_ref().is_some_and(|r| APIS.iter().any(|api| r.looks_like(api)))
            }
        }
    }

    /// The API whose call a failed request on an unseen path was, by what it asked for and by the error that it got.
    fn asked_unseen(&self, error: Option<&[u8]>) -> Option<&'static Api> {
        let call = self.held.as_ref().and_then(|held| held.start.as_ref()).map(|(_, _, call)| call);
        let request = self.request.as_ref().filter(|_| call.is_none_or(|call| call.path.is_empty()))?;
        let asked = || APIS.iter().copied().filter(|api| request.looks_like(api));
        let shown = error.and_then(recognise).filter(|shown| asked().any(|api| std::ptr::eq(api, *shown)));
        let provider = call.and_then(|call| call.provider);
        shown.or_else(|| asked().find(|api| Some(api.fallback_provider) == provider)).or_else(|| asked().next())
    }

    /// The API that has the path of the request, if what was asked is a call of it too.
    fn asked_by_path(&self) -> Option<&'static Api> {
        let api = self.routed.as_deref().filter(|_| self.start_is_held())?.api;
        self.request.as_ref()?.looks_like(api).then_some(api)
    }

    /// A failed call on an unseen path, or on one that proves nothing: what was asked decides, and what an error looks like.
    fn accept_failed(&mut self, error: Option<&[u8]>, at: Stamp, to: &mut Sinks<'_>) -> bool {
        // Where the head was not seen, the status often was not either.
        let says_so = || error.is_some_and(|body| std::str::from_utf8(body).is_ok_and(|b| Members::of(b).has("error")));
        let failed = self.status.map_or_else(says_so, |s| s >= 400);
        let by_path = || self.asked_by_path().filter(|_| error.is_some_and(is_json_error));
        let Some(api) = self.asked_unseen(error).or_else(by_path).filter(|_| failed) else { return false };
        self.accept(api, at, to);
        true
    }

    fn piece(&mut self, piece: Piece<'_>, at: Stamp, to: &mut Sinks<'_>) {
        match piece {
            Piece::Frame(frame) => self.frame(frame, at, to),
            Piece::Member(member) => {
                if let Some(decoder) = &mut self.decoder {
                    decoder.member(member);
                }
            }
        }
    }

    fn body_end(&mut self, at: Stamp, to: &mut Sinks<'_>) {
        self.decode(at, to, |decoder, out| decoder.end(out));
    }

    fn frame(&mut self, frame: Frame<'_>, at: Stamp, to: &mut Sinks<'_>) {
        if self.verdict == Verdict::Undecided {
            match recognise(frame.data) {
                Some(api) => self.accept(api, at, to),
                None => {
                    self.tries += 1;
                    if self.tries >= TRIES {
                        self.reject(at, NotLlm::Answer, to);
                    }
                }
            }
        }
        self.decode(at, to, |decoder, out| decoder.frame(frame, out));
    }

    fn last(&mut self, last: Last<'_>, at: Stamp, to: &mut Sinks<'_>) {
        match last {
            Last::Frame(frame) => self.frame(frame, at, to),
            Last::Whole(body) => {
                if self.verdict == Verdict::Undecided && !self.accept_failed(Some(body), at, to) {
                    match recognise(body) {
                        Some(api) => self.accept(api, at, to),
                        None => self.reject(at, NotLlm::Answer, to),
                    }
                }
                self.decode(at, to, |decoder, out| decoder.body(body, out));
            }
            Last::TooLong if self.verdict == Verdict::Llm => to.emit(at, LlmEventKind::Chunk),
            Last::TooLong => {}
        }
    }

    fn decode(&mut self, at: Stamp, to: &mut Sinks<'_>, with: impl FnOnce(&mut dyn Decoder, &mut Out<'_>)) {
        let Self { verdict: Verdict::Llm, decoder: Some(decoder), status, error_kind, errored, .. } = self else {
            return;
        };
        let error_kind = error_kind.as_deref();
        with(&mut **decoder, &mut Out { at, status: *status, error_kind, errored, stats: to.stats, sink: to.sink });
    }

    fn gap(&mut self, at: Stamp, len: Option<u64>, cause: GapCause, to: &mut Sinks<'_>) {
        match self.verdict {
            Verdict::Llm => to.emit(at, LlmEventKind::Gap { len, cause }),
            Verdict::Undecided => {
                let gaps = &mut self.held().gaps;
                if gaps.len() < HELD_GAPS {
                    gaps.push((at, len, cause));
                }
            }
            Verdict::NotLlm => {}
        }
    }

    fn response_end(&mut self, at: Stamp, to: &mut Sinks<'_>) {
        if self.verdict == Verdict::Undecided {
            self.accept_failed(None, at, to);
        }
        match self.verdict {
            Verdict::Llm => {
                self.error_by_status(at, to);
                to.emit(at, LlmEventKind::End);
            }
            Verdict::Undecided => self.reject(at, NotLlm::Answer, to),
            Verdict::NotLlm => {}
        }
    }

    fn abort(&mut self, at: Stamp, cause: AbortCause, to: &mut Sinks<'_>) {
        match self.verdict {
            Verdict::Llm => {
                self.tell_request(at, false, to);
                self.error_by_status(at, to);
                to.emit(at, LlmEventKind::Abort(cause));
            }
            Verdict::Undecided => self.reject(at, NotLlm::Answer, to),
            Verdict::NotLlm => {}
        }
    }

    /// A failed exchange whose body said nothing about it.
    fn error_by_status(&mut self, at: Stamp, to: &mut Sinks<'_>) {
        if self.status.is_some_and(|s| s >= 400) {
            self.decode(at, to, |_, out| out.error(ErrorEvidence::default()));
        }
    }

    /// It is a call of `api`: gives out what was held back.
    fn accept(&mut self, api: &'static Api, at: Stamp, to: &mut Sinks<'_>) {
        self.verdict = Verdict::Llm;
        self.api = Some(api);
        self.decoder = Some((api.decoder)());
        let Held { start, request, request_end, response, gaps } = *self.held.take().unwrap_or_default();
        match start {
            Some((at, first, call)) => {
                to.emit(at, LlmEventKind::Start { first, call: Call { operation: api.operation, ..call } });
            }
            None => {
                to.stats.count(DropReason::Joined);
                to.emit(at, LlmEventKind::Joined);
            }
        }
        if let Some((at, complete)) = request {
            self.emit_request(at, complete, to);
        }
        if let Some(at) = request_end {
            to.emit(at, LlmEventKind::RequestEnd);
        }
        if let Some((at, first, mut facts)) = response {
            facts.provider = facts.provider.or(Some(api.fallback_provider));
            to.emit(at, LlmEventKind::Response { first, facts });
        }
        for (at, len, cause) in gaps {
            to.emit(at, LlmEventKind::Gap { len, cause });
        }
    }

    fn reject(&mut self, at: Stamp, why: NotLlm, to: &mut Sinks<'_>) {
        self.verdict = Verdict::NotLlm;
        self.held = None;
        self.request = None;
        to.emit(at, LlmEventKind::NotLlm(why));
    }

    /// What the path says, if it is one of the API that is, or may be, called.
    fn path(&self) -> Option<&Path> {
        let routed = self.routed.as_deref()?;
        self.api.is_none_or(|api| std::ptr::eq(api, routed.api)).then_some(&routed.path)
    }

    /// What a JSON body of the response is.
    fn json_body(&self) -> JsonBody {
        match (self.api, &self.routed) {
            (Some(api), _) => api.json,
            // To be recognised, a whole body must be there whole.
            (None, Some(routed)) if routed.api.json == JsonBody::Array => JsonBody::Array,
            (None, _) => JsonBody::Whole,
        }
    }

    fn held(&mut self) -> &mut Held {
        self.held.get_or_insert_default()
    }

    /// The request head was seen and the verdict is open.
    fn start_is_held(&self) -> bool {
        self.held.as_ref().is_some_and(|h| h.start.is_some())
    }
}

/// Whether a body is an object that says what went wrong, as all APIs do: under `error` or `message`.
fn is_json_error(body: &[u8]) -> bool {
    std::str::from_utf8(body).is_ok_and(|json| {
        let members = Members::of(json);
        members.has("error") || members.text("message").is_some()
    })
}

fn recognise(json: &[u8]) -> Option<&'static Api> {
    let json = std::str::from_utf8(json).ok()?;
    let members = Members::of(json);
    APIS.iter().copied().find(|api| (api.recognise)(&members, json))
}
