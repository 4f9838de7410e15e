//! SGLang's own API (`POST /generate`), whole and streamed.
//!
//! Source: SGLang documentation, "SGLang Native APIs" and "Sampling Parameters". Each event of a stream brings the whole text
//! so far, unless the server was started to bring pieces; the last one has a finish reason. Its path is TGI's too: the
//! answers tell them apart.

use super::{
    LlmEventKind, Payload, Usage,
    api::{Api, Decoder, Frame, Identity, JsonBody, Member, Out, Proof, RequestDraft, Route},
    cumulative::Cumulative,
    envelope,
    error_value::ErrorValue,
    lenient::{Count, Text, object},
};

/// The row of this API.
pub(super) static API: Api = Api {
    operation: "text_completion",
    fallback_provider: "sglang",
    routes: &[Route::unsure("/generate", Proof::Bodies)],
    json: JsonBody::Whole,
    request,
    request_shape: |members| members.has("sampling_params") && (members.has("text") || members.has("input_ids")),
    recognise: |members, _| members.text("text").is_some() && members.has_below("meta_info", "prompt_tokens"),
    decoder: || Box::<SgLang>::default(),
};

object! {
    /// One event of a stream, a whole answer, or an error.
    Event {
        text: Text<'de> = "text",
        meta: Option<Box<Meta<'de>>> = "meta_info",
        error: ErrorValue<'de> = "error",
    }
}

object! {
    /// What is known of the answer so far.
    Meta {
        id: Text<'de> = "id",
        reason: Option<Box<Reason<'de>>> = "finish_reason",
        prompt: Count = "prompt_tokens",
        completion: Count = "completion_tokens",
        cached: Count = "cached_tokens",
    }
}

object! {
    /// Why it ended.
    Reason { kind: Text<'de> = "type", }
}

fn request(draft: &mut RequestDraft, member: Member<'_>) {
    match (member.parent, member.key) {
        (Some("sampling_params"), "max_new_tokens") => draft.max_tokens(member.value),
        (Some("sampling_params"), "n") => draft.facts.choices = member.value.count().and_then(|n| n.try_into().ok()),
        (Some("sampling_params"), "temperature" | "top_p") => draft.usual(member.key, member.value),
        (None, "stream") => draft.usual(member.key, member.value),
        _ => {}
    }
}

/// Decoder of one response.
#[derive(Debug, Default)]
struct SgLang {
    identity: Identity,
    texts: Cumulative,
    done: bool,
}

impl Decoder for SgLang {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        if self.done {
            return;
        }
        if frame.data.trim_ascii() == b"[DONE]" {
            self.done = true;
            out.emit(LlmEventKind::Done);
            return;
        }
        let json = out.frame_text(&frame);
        if let Some(event) = envelope::event::<Event<'_>>(&json, &frame, out) {
            self.event(&event, out);
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        let json = out.text(body);
        if let Some(event) = envelope::body::<Event<'_>>(&json, out) {
            self.event(&event, out);
        }
    }
}

impl SgLang {
    fn event(&mut self, event: &Event<'_>, out: &mut Out<'_>) {
        out.emit(LlmEventKind::Chunk);
        let new = self.texts.new_part(0, event.text.non_empty().unwrap_or_default());
        let any = out.delta(Payload::Text, 0, new);
        out.count_output(any);
        if let Some(meta) = &event.meta {
            self.identity.tell(meta.id.non_empty(), None, out);
            out.finish(0, meta.reason.as_ref().and_then(|reason| reason.kind.non_empty()));
            let usage =
                Usage { input: meta.prompt.0, output: meta.completion.0, cached_input: meta.cached.0, reasoning: None };
            out.usage(usage);
        }
        if event.error != ErrorValue::default() {
            out.error(event.error.evidence().unwrap_or_default());
        }
    }
}
