//! OpenAI on WebSockets: the Realtime API (`wss .../v1/realtime?model=...`) and the Responses API (`wss .../v1/responses`).
//!
//! Source: OpenAI API reference, "Realtime", client and server events. Each response ends with `response.done`, which brings
//! its status and usage; the names of its deltas changed with the API's general availability (`response.text.delta` became
//! `response.output_text.delta`), and both are read. Over the Responses API come the events of its streams
//! (`openai_responses`), with a `stream_id` where several share the socket.

use super::{
    LlmEventKind, Payload, Usage,
    api::{Decoder, ErrorEvidence, Frame, Identity, Member, Out, RequestDraft},
    error_value::ErrorValue,
    lenient::{self, Count, Text, object},
    openai_responses,
    socket::SocketApi,
};
use crate::stats::DropReason;

/// The Realtime API.
pub(super) static REALTIME: SocketApi = SocketApi {
    operation: "chat",
    fallback_provider: "openai_compatible",
    path: "realtime",
    request,
    errors_end_responses: false,
    decoder: || Box::<Realtime>::default(),
};

/// The Responses API.
pub(super) static RESPONSES: SocketApi = SocketApi {
    operation: "chat",
    fallback_provider: "openai_compatible",
    path: "responses",
    request,
    errors_end_responses: true,
    decoder: openai_responses::API.decoder,
};

/// `response.create`: what is asked for stands under `response` (Realtime) or beside the type (Responses).
fn request(draft: &mut RequestDraft, member: Member<'_>) {
    if matches!(member.parent, None | Some("response")) {
        openai_responses::request(draft, Member { parent: None, ..member });
    }
}

object! {
    /// One server event.
    Event {
        kind: Text<'de> = "type",
        delta: Text<'de> = "delta",
        item: Option<Box<Item<'de>>> = "item",
        response: Option<Box<Response<'de>>> = "response",
        error: ErrorValue<'de> = "error",
    }
}

object! {
    /// An item that is added to the output; only calls of functions have a name.
    Item { name: Text<'de> = "name", }
}

object! {
    /// The response as its first and its last event show it.
    Response {
        id: Text<'de> = "id",
        model: Text<'de> = "model",
        status: Text<'de> = "status",
        details: Option<Box<Details<'de>>> = "status_details",
        usage: Option<Box<Counts<'de>>> = "usage",
    }
}

object! {
    /// Why a response is not complete.
    Details { reason: Text<'de> = "reason", error: ErrorValue<'de> = "error", }
}

object! {
    /// Token counts; those of a modality are parts of the sums.
    Counts {
        input: Count = "input_tokens",
        output: Count = "output_tokens",
        details: Option<Box<InputDetails<'de>>> = "input_token_details",
    }
}

object! {
    /// Details of input tokens.
    InputDetails { cached: Count = "cached_tokens", }
}

/// Decoder of the events of one response.
#[derive(Debug, Default)]
struct Realtime {
    identity: Identity,
}

impl Decoder for Realtime {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        let json = out.frame_text(&frame);
        match lenient::parse::<Option<Box<Event<'_>>>>(&json) {
            Ok((Some(event), odd)) => {
                out.odd(odd);
                self.event(&event, out);
            }
            _ if frame.whole => out.count(DropReason::JsonInvalid),
            _ => {}
        }
    }

    /// Messages are events: there is no body.
    fn body(&mut self, _body: &[u8], _out: &mut Out<'_>) {}
}

impl Realtime {
    fn event(&mut self, event: &Event<'_>, out: &mut Out<'_>) {
        let kind = event.kind.non_empty().unwrap_or_default();
        if kind == "error" {
            return out.error(event.error.evidence().unwrap_or_default());
        }
        out.emit(LlmEventKind::Chunk);
        if let Some(response) = &event.response {
            self.identity.tell(response.id.non_empty(), response.model.non_empty(), out);
        }
        let any = match payload_of(kind) {
            Some(payload) => out.delta(payload, 0, event.delta.non_empty().unwrap_or_default()),
            None if kind == "response.output_item.added" => {
                let name = event.item.as_ref().and_then(|item| item.name.non_empty());
                out.delta(Payload::ToolName, 0, name.unwrap_or_default())
            }
            None => false,
        };
        out.count_output(any);
        if kind == "response.done" {
            if let Some(response) = &event.response {
                tell_end(response, out);
            }
            out.emit(LlmEventKind::Done);
        }
    }
}

/// How the response ended, its usage and its error.
fn tell_end(response: &Response<'_>, out: &mut Out<'_>) {
    let details = response.details.as_deref();
    let reason = details.and_then(|details| details.reason.non_empty());
    let status = response.status.non_empty();
    if status != Some("failed") {
        // `turn_detected` and `client_cancelled` say more than `cancelled`, `max_output_tokens` more than `incomplete`.
        out.finish(0, reason.or(status));
    }
    if let Some(Counts { input, output, details, .. }) = response.usage.as_deref() {
        let cached_input = details.as_ref().and_then(|details| details.cached.0);
        out.usage(Usage { input: input.0, output: output.0, cached_input, reasoning: None });
    }
    if status == Some("failed") {
        let evidence = details.and_then(|details| details.error.evidence());
        out.error(evidence.unwrap_or_else(|| ErrorEvidence { code: reason, ..ErrorEvidence::default() }));
    }
}

/// What the `delta` of an event is.
fn payload_of(kind: &str) -> Option<Payload> {
    Some(match kind.strip_prefix("response.")?.strip_suffix(".delta")? {
        "output_text" | "text" => Payload::Text,
        "output_audio" | "audio" | "output_audio_transcript" | "audio_transcript" | "audio.transcript" => {
            Payload::Audio
        }
        "function_call_arguments" | "mcp_call_arguments" => Payload::ToolArguments,
        _ => return None,
    })
}
