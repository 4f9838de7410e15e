//! Ollama's own API (`POST /api/chat`, `/api/generate`, `/api/embed`): newline-delimited JSON, or one value.
//!
//! Source: Ollama API reference (`docs/api.md` of its repository). A request that does not say `stream` asks for one. The
//! last line says `done` and brings the counts. Its paths are common names, so only its port proves them.

use super::{
    LlmEventKind, Payload, Usage,
    api::{Api, Decoder, Frame, Identity, JsonBody, Member, Out, Proof, RequestDraft, Route, StreamFlag},
    embeddings, envelope,
    error_value::ErrorValue,
    lenient::{Count, Flag, Items, Json, Text, object},
};

/// The port it listens on unless told otherwise.
const PORT: Proof = Proof::Port("11434");

/// The row of chats.
pub(super) static CHAT: Api = Api {
    operation: "chat",
    fallback_provider: "ollama",
    routes: &[Route::unsure("/api/chat", PORT).with(StreamFlag::BodyElseStream)],
    json: JsonBody::Whole,
    request,
    request_shape: |members| members.text("model").is_some() && members.is_array("messages"),
    recognise: |members, _| members.text("created_at").is_some() && members.has("done") && members.is_object("message"),
    decoder: || Box::<Ollama>::default(),
};

/// The row of plain generation.
pub(super) static GENERATE: Api = Api {
    operation: "text_completion",
    fallback_provider: "ollama",
    routes: &[Route::unsure("/api/generate", PORT).with(StreamFlag::BodyElseStream)],
    json: JsonBody::Whole,
    request,
    request_shape: |members| members.text("model").is_some() && members.has("prompt"),
    recognise: |members, _| {
        members.text("created_at").is_some() && members.has("done") && members.text("response").is_some()
    },
    decoder: || Box::<Ollama>::default(),
};

/// The row of embeddings.
pub(super) static EMBED: Api = Api {
    operation: "embeddings",
    fallback_provider: "ollama",
    routes: &[Route::unsure("/api/embed", PORT), Route::unsure("/api/embeddings", PORT)],
    json: JsonBody::Members,
    request: embeddings::request,
    request_shape: |members| members.text("model").is_some() && members.has("input"),
    recognise: |members, _| members.is_array("embeddings") && members.has("total_duration"),
    decoder: embeddings::decoder,
};

/// Most tool calls of a line that are looked at.
const CALLS: usize = 128;

object! {
    /// One line, a whole answer, or an error.
    Line {
        model: Text<'de> = "model",
        message: Option<Box<Message<'de>>> = "message",
        response: Text<'de> = "response",
        thinking: Text<'de> = "thinking",
        done: Flag = "done",
        done_reason: Text<'de> = "done_reason",
        input: Count = "prompt_eval_count",
        output: Count = "eval_count",
        error: ErrorValue<'de> = "error",
    }
}

object! {
    /// A piece of the answer of a chat.
    Message {
        content: Text<'de> = "content",
        thinking: Text<'de> = "thinking",
        tool_calls: Items<ToolCall<'de>, CALLS> = "tool_calls",
    }
}

object! {
    /// A tool call; they come whole.
    ToolCall { function: Option<Box<Function<'de>>> = "function", }
}

object! {
    /// What it calls.
    Function { name: Text<'de> = "name", arguments: Json<'de> = "arguments", }
}

fn request(draft: &mut RequestDraft, member: Member<'_>) {
    match (member.parent, member.key) {
        (None, "model" | "stream") => draft.usual(member.key, member.value),
        (Some("options"), "temperature" | "top_p") => draft.usual(member.key, member.value),
        (Some("options"), "num_predict") => draft.max_tokens(member.value),
        _ => {}
    }
}

/// Decoder of one response.
#[derive(Debug, Default)]
struct Ollama {
    identity: Identity,
    done: bool,
}

impl Decoder for Ollama {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        if self.done {
            return;
        }
        let json = out.frame_text(&frame);
        let Some(line) = envelope::event::<Line<'_>>(&json, &frame, out) else { return };
        self.line(&line, out);
        if line.done.0 {
            self.done = true;
            out.emit(LlmEventKind::Done);
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        let json = out.text(body);
        if let Some(line) = envelope::body::<Line<'_>>(&json, out) {
            self.line(&line, out);
        }
    }
}

impl Ollama {
    fn line(&mut self, line: &Line<'_>, out: &mut Out<'_>) {
        out.emit(LlmEventKind::Chunk);
        self.identity.tell(None, line.model.non_empty(), out);
        let mut any = false;
        let mut tell = |payload, text: &Text<'_>| any |= out.delta(payload, 0, text.non_empty().unwrap_or_default());
        tell(Payload::Reasoning, &line.thinking);
        tell(Payload::Text, &line.response);
        if let Some(message) = &line.message {
            tell(Payload::Reasoning, &message.thinking);
            tell(Payload::Text, &message.content);
            for called in message.tool_calls.items.iter().filter_map(|call| call.function.as_ref()) {
                tell(Payload::ToolName, &called.name);
                tell(Payload::ToolArguments, &called.arguments.0);
            }
        }
        out.count_output(any);
        if line.done.0 {
            out.finish(0, line.done_reason.non_empty());
        }
        out.usage(Usage { input: line.input.0, output: line.output.0, ..Usage::default() });
        if line.error != ErrorValue::default() {
            out.error(line.error.evidence().unwrap_or_default());
        }
    }
}
