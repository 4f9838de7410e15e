//! Own APIs of self-hosted servers: TGI (`POST /generate`, `/generate_stream`) and llama.cpp (`POST /completion`).
//!
//! Sources: the OpenAPI document of Text Generation Inference, and `tools/server/README.md` of llama.cpp. Their paths are
//! common words, so their answers prove them. A special token of TGI is no text.

use super::{
    LlmEventKind, Payload, Usage,
    api::{
        Api, Decoder, ErrorEvidence, Frame, Identity, JsonBody, Member, Out, Proof, RequestDraft, Route, StreamFlag,
    },
    envelope,
    error_value::ErrorValue,
    lenient::{Count, Flag, Text, object},
};

/// The row of TGI.
pub(super) static TGI: Api = Api {
    operation: "text_completion",
    fallback_provider: "tgi",
    routes: &[
        Route::unsure("/generate_stream", Proof::Bodies).with(StreamFlag::Path(true)),
        Route::unsure("/generate", Proof::Bodies).with(StreamFlag::Path(false)),
    ],
    json: JsonBody::Whole,
    request,
    request_shape: |members| members.text("inputs").is_some(),
    recognise: |members, _| {
        members.has_below("token", "text") && members.has_below("token", "special")
            || members.text("generated_text").is_some() && members.has_below("details", "finish_reason")
    },
    decoder: || Box::<Native>::default(),
};

/// The row of llama.cpp.
pub(super) static LLAMA_CPP: Api = Api {
    operation: "text_completion",
    fallback_provider: "llama_cpp",
    routes: &[Route::unsure("/completion", Proof::Bodies)],
    json: JsonBody::Whole,
    request,
    request_shape: |members| members.has("prompt"),
    recognise: |members, _| members.text("content").is_some() && members.has("stop") && members.has("tokens_predicted"),
    decoder: || Box::<Native>::default(),
};

object! {
    /// One event of a stream, a whole answer, or an error, of either server.
    Event {
        token: Option<Box<Token<'de>>> = "token",
        generated: Text<'de> = "generated_text",
        details: Option<Box<Details<'de>>> = "details",
        model: Text<'de> = "model",
        content: Text<'de> = "content",
        stop: Flag = "stop",
        stop_type: Text<'de> = "stop_type",
        predicted: Count = "tokens_predicted",
        evaluated: Count = "tokens_evaluated",
        error: ErrorValue<'de> = "error",
        error_type: Text<'de> = "error_type",
    }
}

object! {
    /// A token of TGI.
    Token { text: Text<'de> = "text", special: Flag = "special", }
}

object! {
    /// How an answer of TGI ended.
    Details {
        finish_reason: Text<'de> = "finish_reason",
        generated: Count = "generated_tokens",
        input: Count = "input_length",
    }
}

fn request(draft: &mut RequestDraft, member: Member<'_>) {
    match (member.parent, member.key) {
        (Some("parameters"), "max_new_tokens") | (None, "n_predict") => draft.max_tokens(member.value),
        (Some("parameters"), "temperature" | "top_p") => draft.usual(member.key, member.value),
        (None, key) => draft.usual(key, member.value),
        _ => {}
    }
}

/// Decoder of one response.
#[derive(Debug, Default)]
struct Native {
    identity: Identity,
    /// Tokens came one by one, so the whole text in the last event repeats them.
    streamed: bool,
    done: bool,
}

impl Decoder for Native {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        if self.done {
            return;
        }
        let json = out.frame_text(&frame);
        let Some(event) = envelope::event::<Event<'_>>(&json, &frame, out) else { return };
        self.event(&event, out);
        if event.stop.0 || event.details.is_some() {
            self.done = true;
            out.emit(LlmEventKind::Done);
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        let json = out.text(body);
        if let Some(event) = envelope::body::<Event<'_>>(&json, out) {
            self.event(&event, out);
        }
    }
}

impl Native {
    fn event(&mut self, event: &Event<'_>, out: &mut Out<'_>) {
        out.emit(LlmEventKind::Chunk);
        self.identity.tell(None, event.model.non_empty(), out);
        let text = match &event.token {
            Some(token) => {
                self.streamed = true;
                if token.special.0 { &Text(None) } else { &token.text }
            }
            None if self.streamed || event.generated.0.is_none() => &event.content,
            None => &event.generated,
        };
        let any = out.delta(Payload::Text, 0, text.non_empty().unwrap_or_default());
        out.count_output(any);
        if let Some(details) = &event.details {
            out.finish(0, details.finish_reason.non_empty());
            out.usage(Usage { input: details.input.0, output: details.generated.0, ..Usage::default() });
        }
        if event.stop.0 {
            out.finish(0, event.stop_type.non_empty());
            out.usage(Usage { input: event.evaluated.0, output: event.predicted.0, ..Usage::default() });
        }
        if event.error != ErrorValue::default() {
            let kind = event.error_type.non_empty();
            let named = ErrorEvidence { kind, ..ErrorEvidence::default() };
            out.error(if kind.is_some() { named } else { event.error.evidence().unwrap_or_default() });
        }
    }
}
