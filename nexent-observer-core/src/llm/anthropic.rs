//! Anthropic messages (`POST /v1/messages`, Vertex `:rawPredict`), whole and streamed.
//!
//! Source: Anthropic API reference, "Messages" and "Streaming Messages". `message_stop` is the end marker. Usage comes in
//! parts, and each part overrides what it repeats: the last non-null value of each field counts, nothing is added up over
//! events. `input_tokens` leaves the cache out, so all input is the sum of three fields.

use super::{
    LlmEventKind, Payload, Usage,
    api::{
        Api, Decoder, ErrorEvidence, Frame, Identity, JsonBody, Member, Out, Proof, RequestDraft, Route, StreamFlag,
    },
    envelope,
    error_value::ErrorValue,
    lenient::{Count, Items, Json, Text, object},
};

/// The row of this API.
pub(super) static API: Api = Api {
    operation: "chat",
    fallback_provider: "anthropic",
    routes: &[
        Route::sure("/publishers/anthropic/models/*:streamRawPredict").with(StreamFlag::Path(true)),
        Route::sure("/publishers/anthropic/models/*:rawPredict"),
        Route::sure("/anthropic/v1/messages"),
        // WhatsApp and others have such paths too.
        Route::unsure("/v1/messages", Proof::Header("anthropic-version")),
    ],
    json: JsonBody::Whole,
    request,
    request_shape: |members| {
        members.is_array("messages") && (members.text("model").is_some() || members.text("anthropic_version").is_some())
    },
    recognise: |members, _| match members.text("type") {
        Some("message_start") => members.is_object("message"),
        Some("content_block_start" | "content_block_delta" | "content_block_stop") => members.has("index"),
        Some("message_delta") => members.is_object("usage"),
        // In a stream of OpenAI's, such an event has a number.
        Some("error") => {
            members.has_below("error", "type") && !members.has_below("error", "code") && !members.has("sequence_number")
        }
        Some("message") => members.is_array("content") && members.is_object("usage"),
        _ => false,
    },
    decoder: || Box::<Messages>::default(),
};

/// Most blocks of a whole answer that are looked at.
const BLOCKS: usize = 128;

object! {
    /// One event of a stream.
    Event {
        kind: Text<'de> = "type",
        message: Option<Box<Message<'de>>> = "message",
        block: Option<Box<Block<'de>>> = "content_block",
        delta: Option<Box<Block<'de>>> = "delta",
        usage: Option<Box<RawUsage<'de>>> = "usage",
        error: ErrorValue<'de> = "error",
    }
}

object! {
    /// A whole answer, the message that a stream begins with, or an error body.
    Message {
        id: Text<'de> = "id",
        model: Text<'de> = "model",
        content: Items<Block<'de>, BLOCKS> = "content",
        stop_reason: Text<'de> = "stop_reason",
        usage: Option<Box<RawUsage<'de>>> = "usage",
        error: ErrorValue<'de> = "error",
    }
}

object! {
    /// A content block, a piece of one, or the `delta` of `message_delta`. `data` is that of redacted thinking. In a stream,
    /// the `input` with which a tool call begins is a placeholder.
    Block {
        kind: Text<'de> = "type",
        text: Text<'de> = "text",
        thinking: Text<'de> = "thinking",
        data: Text<'de> = "data",
        name: Text<'de> = "name",
        input: Json<'de> = "input",
        partial_json: Text<'de> = "partial_json",
        stop_reason: Text<'de> = "stop_reason",
    }
}

object! {
    /// `usage` as sent.
    RawUsage {
        input: Count = "input_tokens",
        cache_read: Count = "cache_read_input_tokens",
        cache_creation: Count = "cache_creation_input_tokens",
        output: Count = "output_tokens",
        details: Option<Box<OutputDetails<'de>>> = "output_tokens_details",
    }
}

object! {
    /// Details of output tokens.
    OutputDetails { thinking: Count = "thinking_tokens", }
}

fn request(draft: &mut RequestDraft, member: Member<'_>) {
    if member.parent.is_none() {
        draft.usual(member.key, member.value);
    }
}

/// Decoder of one response.
#[derive(Debug, Default)]
pub(super) struct Messages {
    identity: Identity,
    tokens: Tokens,
    done: bool,
}

/// The last non-null value of each field that bears on the input.
#[derive(Debug, Default)]
struct Tokens {
    input: Option<u64>,
    cache_read: Option<u64>,
    cache_creation: Option<u64>,
}

impl Decoder for Messages {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        if self.done || frame.name == b"ping" {
            return;
        }
        let json = out.frame_text(&frame);
        if let Some(event) = envelope::event::<Event<'_>>(&json, &frame, out) {
            self.event(&event, frame.error, out);
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        let json = out.text(body);
        let Some(message) = envelope::body::<Message<'_>>(&json, out) else { return };
        out.emit(LlmEventKind::Chunk);
        self.identity.tell(message.id.non_empty(), message.model.non_empty(), out);
        let mut any = false;
        for block in &message.content.items {
            any |= block.tell(out);
            any |= out.delta(Payload::ToolArguments, 0, block.input.0.non_empty().unwrap_or_default());
        }
        out.count_output(any);
        out.finish(0, message.stop_reason.non_empty());
        self.usage(message.usage.as_deref(), true, out);
        if let Some(evidence) = message.error.evidence() {
            out.error(evidence);
        }
    }
}

impl Messages {
    fn event(&mut self, event: &Event<'_>, failed: bool, out: &mut Out<'_>) {
        let kind = event.kind.non_empty().unwrap_or_default();
        if kind == "ping" {
            return;
        }
        out.emit(LlmEventKind::Chunk);
        if let Some(message) = &event.message {
            self.identity.tell(message.id.non_empty(), message.model.non_empty(), out);
            // The output tokens of the beginning are provisional.
            self.usage(message.usage.as_deref(), false, out);
        }
        let mut any = false;
        for block in [&event.block, &event.delta].into_iter().flatten() {
            any |= block.tell(out);
            out.finish(0, block.stop_reason.non_empty());
        }
        out.count_output(any);
        self.usage(event.usage.as_deref(), true, out);
        match event.error.evidence() {
            Some(evidence) => out.error(evidence),
            None if failed => out.error(ErrorEvidence::default()),
            None => {}
        }
        if kind == "message_stop" {
            self.done = true;
            out.emit(LlmEventKind::Done);
        }
    }

    fn usage(&mut self, raw: Option<&RawUsage<'_>>, with_output: bool, out: &mut Out<'_>) {
        let Some(raw) = raw else { return };
        let tokens = &mut self.tokens;
        tokens.input = raw.input.0.or(tokens.input);
        tokens.cache_read = raw.cache_read.0.or(tokens.cache_read);
        tokens.cache_creation = raw.cache_creation.0.or(tokens.cache_creation);
        let cache = tokens.cache_read.unwrap_or(0).checked_add(tokens.cache_creation.unwrap_or(0));
        out.usage(Usage {
            input: tokens.input.zip(cache).and_then(|(input, cache)| input.checked_add(cache)),
            output: raw.output.0.filter(|_| with_output),
            cached_input: tokens.cache_read,
            reasoning: raw.details.as_ref().and_then(|details| details.thinking.0),
        });
    }
}

impl Block<'_> {
    /// Reports what was generated; true when something was. A signature is none of it.
    fn tell(&self, out: &mut Out<'_>) -> bool {
        let kind = self.kind.non_empty().unwrap_or_default();
        let tool = if kind.ends_with("tool_use") { &self.name } else { &Text(None) };
        let redacted = if kind == "redacted_thinking" { &self.data } else { &Text(None) };
        let mut any = false;
        for (payload, text) in [
            (Payload::Text, &self.text),
            (Payload::Reasoning, &self.thinking),
            (Payload::Reasoning, redacted),
            (Payload::ToolName, tool),
            (Payload::ToolArguments, &self.partial_json),
        ] {
            any |= out.delta(payload, 0, text.non_empty().unwrap_or_default());
        }
        any
    }
}
