//! OpenAI Responses (`POST .../responses`), whole and streamed.
//!
//! Source: OpenAI API reference, "Create a model response", "The response object" and "Streaming events". The stream has
//! no end marker of its own kind: `response.completed`, `.incomplete` or `.failed` is its last event and brings the
//! usage. Reasoning without a summary is never streamed, so the first token may come late.

use super::{
    LlmEventKind, Payload,
    api::{Api, Decoder, ErrorEvidence, Frame, Identity, JsonBody, Member, Out, Proof, RequestDraft, Route},
    envelope,
    error_value::{Code, ErrorValue},
    lenient::{Items, Text, object},
    openai_parse::RawUsage,
};

/// The row of this API.
pub(super) static API: Api = Api {
    operation: "chat",
    fallback_provider: "openai_compatible",
    routes: &[
        Route::sure("/deployments/*/responses"),
        Route::sure("/v1/responses"),
        Route::sure("/openai/responses"),
        Route::unsure("/responses", Proof::Bodies),
    ],
    json: JsonBody::Whole,
    request,
    request_shape: |members| members.text("model").is_some() && members.has("input"),
    recognise: |members, _| {
        let event = members.text("type").is_some_and(|kind| kind.starts_with("response."));
        event && (members.has("sequence_number") || members.is_object("response"))
            || members.text("object") == Some("response") && members.is_array("output")
    },
    decoder: || Box::<Responses>::default(),
};

/// Most items of an answer, and parts of an item, that are looked at.
const ITEMS: usize = 128;

object! {
    /// One event of a stream.
    Event {
        kind: Text<'de> = "type",
        delta: Text<'de> = "delta",
        image: Text<'de> = "partial_image_b64",
        item: Option<Box<Item<'de>>> = "item",
        response: Option<Box<Response<'de>>> = "response",
        error: ErrorValue<'de> = "error",
        code: Code<'de> = "code",
    }
}

object! {
    /// The response object: a whole answer, the member `response` of some events, an error body.
    Response {
        id: Text<'de> = "id",
        model: Text<'de> = "model",
        status: Text<'de> = "status",
        output: Items<Item<'de>, ITEMS> = "output",
        usage: Option<Box<RawUsage<'de>>> = "usage",
        incomplete: Option<Box<Incomplete<'de>>> = "incomplete_details",
        error: ErrorValue<'de> = "error",
        code: Code<'de> = "code",
        kind: Text<'de> = "type",
    }
}

object! {
    /// Why an answer is incomplete.
    Incomplete { reason: Text<'de> = "reason", }
}

object! {
    /// One item of the output: a message, reasoning, a call.
    Item {
        name: Text<'de> = "name",
        arguments: Text<'de> = "arguments" | "input",
        content: Items<Part<'de>, ITEMS> = "content",
        summary: Items<Part<'de>, ITEMS> = "summary",
    }
}

object! {
    /// A part of a message or of reasoning.
    Part { kind: Text<'de> = "type", text: Text<'de> = "text", refusal: Text<'de> = "refusal", }
}

pub(super) fn request(draft: &mut RequestDraft, member: Member<'_>) {
    match (member.parent, member.key) {
        (None, "max_output_tokens") => draft.max_tokens(member.value),
        // The word has no meaning here.
        (None, "max_tokens") => {}
        (None, key) => draft.usual(key, member.value),
        _ => {}
    }
}

/// Decoder of one response.
#[derive(Debug, Default)]
struct Responses {
    identity: Identity,
    done: bool,
}

impl Decoder for Responses {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        if self.done {
            return;
        }
        if frame.data.trim_ascii() == b"[DONE]" {
            self.finish(out);
            return;
        }
        let json = out.frame_text(&frame);
        if let Some(event) = envelope::event::<Event<'_>>(&json, &frame, out) {
            self.event(&event, frame.error, out);
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        let json = out.text(body);
        let Some(response) = envelope::body::<Response<'_>>(&json, out) else { return };
        out.emit(LlmEventKind::Chunk);
        self.tell(&response, out);
        let mut any = false;
        for item in &response.output.items {
            item.deltas(&mut |payload, text| any |= out.delta(payload, 0, text));
        }
        out.count_output(any);
        self.tell_end(&response, out);
        if out.failed() {
            out.error(ErrorEvidence {
                code: response.code.text.non_empty(),
                code_number: response.code.number.0,
                kind: response.kind.non_empty().filter(|kind| *kind != "error"),
            });
        }
    }
}

impl Responses {
    fn event(&mut self, event: &Event<'_>, failed: bool, out: &mut Out<'_>) {
        let kind = event.kind.non_empty().unwrap_or_default();
        out.emit(LlmEventKind::Chunk);
        if let Some(response) = &event.response {
            self.tell(response, out);
        }
        let delta = event.delta.non_empty().unwrap_or_default();
        // `partial_image_b64` is a picture so far, of a tool that makes pictures.
        let any = match payload_of(kind) {
            Some(payload) => out.delta(payload, 0, delta),
            None if kind == "response.output_item.added" => {
                let name = event.item.as_ref().and_then(|item| item.name.non_empty());
                out.delta(Payload::ToolName, 0, name.unwrap_or_default())
            }
            None => out.delta(Payload::Audio, 0, event.image.non_empty().unwrap_or_default()),
        };
        out.count_output(any);
        match kind {
            "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled" => {
                if let Some(response) = &event.response {
                    self.tell_end(response, out);
                }
                if kind == "response.failed" {
                    out.error(ErrorEvidence::default());
                }
                self.finish(out);
            }
            // Flat as the SDK's types say, or nested as recorded.
            _ if kind == "error" || failed || event.error != ErrorValue::default() => {
                out.error(event.error.evidence().unwrap_or_else(|| ErrorEvidence {
                    code: event.code.text.non_empty(),
                    code_number: event.code.number.0,
                    kind: None,
                }));
            }
            _ => {}
        }
    }

    fn tell(&mut self, response: &Response<'_>, out: &mut Out<'_>) {
        self.identity.tell(response.id.non_empty(), response.model.non_empty(), out);
    }

    /// How the response ended, its usage and its error.
    fn tell_end(&mut self, response: &Response<'_>, out: &mut Out<'_>) {
        let reason = response.incomplete.as_ref().and_then(|incomplete| incomplete.reason.non_empty());
        match response.status.non_empty() {
            // With `background`, nothing was generated on this connection yet.
            None | Some("failed" | "queued" | "in_progress") => {}
            Some(status) => out.finish(0, Some(reason.unwrap_or(status))),
        }
        if let Some(usage) = &response.usage {
            out.usage(usage.normalised());
        }
        if let Some(evidence) = response.error.evidence() {
            out.error(evidence);
        }
    }

    fn finish(&mut self, out: &mut Out<'_>) {
        self.done = true;
        out.emit(LlmEventKind::Done);
    }
}

impl Item<'_> {
    /// Everything generated in a whole item; texts may be empty.
    fn deltas(&self, on: &mut dyn FnMut(Payload, &str)) {
        for part in &self.summary.items {
            on(Payload::Reasoning, part.text.non_empty().unwrap_or_default());
        }
        for part in &self.content.items {
            let reasoning = part.kind.0.as_deref().is_some_and(|kind| kind.starts_with("reasoning"));
            let payload = if reasoning { Payload::Reasoning } else { Payload::Text };
            on(payload, part.text.non_empty().unwrap_or_default());
            on(Payload::Refusal, part.refusal.non_empty().unwrap_or_default());
        }
        on(Payload::ToolName, self.name.non_empty().unwrap_or_default());
        on(Payload::ToolArguments, self.arguments.non_empty().unwrap_or_default());
    }
}

/// What the `delta` of an event is.
fn payload_of(kind: &str) -> Option<Payload> {
    Some(match kind.strip_prefix("response.")?.strip_suffix(".delta")? {
        "output_text" => Payload::Text,
        "refusal" => Payload::Refusal,
        "reasoning_text" | "reasoning_summary_text" => Payload::Reasoning,
        "function_call_arguments"
        | "custom_tool_call_input"
        | "mcp_call_arguments"
        | "code_interpreter_call_code"
        | "shell_call_command" => Payload::ToolArguments,
        "audio" | "audio.transcript" | "output_audio" | "output_audio_transcript" => Payload::Audio,
        _ => return None,
    })
}
