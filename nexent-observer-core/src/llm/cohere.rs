//! Cohere v2 (`POST /v2/chat`, `/v2/embed`), whole and streamed.
//!
//! Source: Cohere API reference, "Chat" and "Chat with streaming". `message-end` is the last event of a stream and brings
//! the usage; `[DONE]` may follow. Of the two counts in it, `billed_units` are reported: `tokens` hold the prompt that
//! Cohere wraps around the messages.

use serde::de::{MapAccess, SeqAccess};

use super::{
    LlmEventKind, Payload, Usage,
    api::{Api, Decoder, ErrorEvidence, Frame, Identity, JsonBody, Member, Out, Proof, RequestDraft, Route},
    embeddings, envelope,
    lenient::{Count, Items, Odd, Take, Text, object},
};

/// The row of chats.
pub(super) static CHAT: Api = Api {
    operation: "chat",
    fallback_provider: "cohere",
    routes: &[Route::unsure("/v2/chat", Proof::Bodies)],
    json: JsonBody::Whole,
    request,
    request_shape: |members| members.text("model").is_some() && members.is_array("messages"),
    recognise: |members, _| match members.text("type") {
        Some("content-start" | "content-delta" | "tool-plan-delta" | "tool-call-start" | "tool-call-delta") => {
            members.is_object("delta")
        }
        _ => {
            members.is_object("message")
                && members.text("finish_reason").is_some()
                && members.has_below("usage", "billed_units")
        }
    },
    decoder: || Box::<Cohere>::default(),
};

/// The row of embeddings.
pub(super) static EMBED: Api = Api {
    operation: "embeddings",
    fallback_provider: "cohere",
    routes: &[Route::unsure("/v2/embed", Proof::Bodies)],
    json: JsonBody::Whole,
    request: embeddings::request,
    request_shape: |members| members.text("model").is_some() && members.text("input_type").is_some(),
    recognise: |members, _| {
        let by_type = members.text("response_type").is_some_and(|kind| kind.starts_with("embeddings_"));
        by_type || members.is_object("embeddings") && members.has_below("meta", "billed_units")
    },
    decoder: || Box::<Cohere>::default(),
};

/// Most content parts and tool calls that are looked at.
const ITEMS: usize = 128;

object! {
    /// One event of a stream.
    Event {
        kind: Text<'de> = "type",
        id: Text<'de> = "id",
        delta: Option<Box<Answer<'de>>> = "delta",
    }
}

object! {
    /// The `delta` of an event, or a whole answer. Embeddings have their usage in `meta`.
    Answer {
        id: Text<'de> = "id",
        message: Option<Box<Message<'de>>> = "message",
        finish_reason: Text<'de> = "finish_reason",
        error: Text<'de> = "error",
        usage: Option<Box<RawUsage<'de>>> = "usage" | "meta",
    }
}

object! {
    /// A message or a piece of one.
    Message {
        content: OneOrMore<Part<'de>> = "content",
        plan: Text<'de> = "tool_plan",
        calls: OneOrMore<ToolCall<'de>> = "tool_calls",
    }
}

object! {
    /// A content part or a piece of one.
    Part { text: Text<'de> = "text", thinking: Text<'de> = "thinking", }
}

object! {
    /// A tool call or a piece of one.
    ToolCall { function: Option<Box<Function<'de>>> = "function", }
}

object! {
    /// What it calls.
    Function { name: Text<'de> = "name", arguments: Text<'de> = "arguments", }
}

object! {
    /// `usage` as sent.
    RawUsage {
        billed: Option<Box<Counts<'de>>> = "billed_units",
        tokens: Option<Box<Counts<'de>>> = "tokens",
        cached: Count = "cached_tokens",
    }
}

object! {
    /// A pair of counts.
    Counts { input: Count = "input_tokens", output: Count = "output_tokens", }
}

/// An object where a whole answer has an array of them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OneOrMore<T>(Items<T, ITEMS>);

impl<T> Default for OneOrMore<T> {
    fn default() -> Self {
        Self(Items::default())
    }
}

impl<'de, T: Take<'de>> Take<'de> for OneOrMore<T> {
    fn take_seq<A: SeqAccess<'de>>(&mut self, seq: A) -> Result<Odd, A::Error> {
        self.0.take_seq(seq)
    }
    fn take_map<A: MapAccess<'de>>(&mut self, map: A) -> Result<Odd, A::Error> {
        let mut item = T::default();
        let odd = item.take_map(map)?;
        self.0.items.push(item);
        Ok(odd)
    }
}

fn request(draft: &mut RequestDraft, member: Member<'_>) {
    match (member.parent, member.key) {
        (None, "p") => draft.usual("top_p", member.value),
        (None, key) => draft.usual(key, member.value),
        _ => {}
    }
}

/// Decoder of one response.
#[derive(Debug, Default)]
struct Cohere {
    identity: Identity,
    done: bool,
}

impl Decoder for Cohere {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        if self.done || frame.data.trim_ascii() == b"[DONE]" {
            return;
        }
        let json = out.frame_text(&frame);
        let Some(event) = envelope::event::<Event<'_>>(&json, &frame, out) else { return };
        out.emit(LlmEventKind::Chunk);
        self.identity.tell(event.id.non_empty(), None, out);
        if let Some(delta) = &event.delta {
            delta.tell(out);
        }
        if frame.error {
            out.error(ErrorEvidence::default());
        }
        if event.kind.0.as_deref() == Some("message-end") {
            self.done = true;
            out.emit(LlmEventKind::Done);
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        let json = out.text(body);
        let Some(answer) = envelope::body::<Answer<'_>>(&json, out) else { return };
        out.emit(LlmEventKind::Chunk);
        if !out.failed() {
            self.identity.tell(answer.id.non_empty(), None, out);
        }
        answer.tell(out);
    }
}

impl Answer<'_> {
    fn tell(&self, out: &mut Out<'_>) {
        let mut any = false;
        let mut tell = |payload, text: &Text<'_>| any |= out.delta(payload, 0, text.non_empty().unwrap_or_default());
        if let Some(message) = &self.message {
            tell(Payload::Reasoning, &message.plan);
            for part in &message.content.0.items {
                tell(Payload::Reasoning, &part.thinking);
                tell(Payload::Text, &part.text);
            }
            for called in message.calls.0.items.iter().filter_map(|call| call.function.as_ref()) {
                tell(Payload::ToolName, &called.name);
                tell(Payload::ToolArguments, &called.arguments);
            }
        }
        out.count_output(any);
        out.finish(0, self.finish_reason.non_empty());
        if let Some(usage) = &self.usage {
            out.usage(usage.normalised());
        }
        match self.finish_reason.non_empty() {
            Some(reason @ ("ERROR" | "TIMEOUT")) => {
                out.error(ErrorEvidence { kind: Some(reason), ..ErrorEvidence::default() });
            }
            _ if self.error.non_empty().is_some() => out.error(ErrorEvidence::default()),
            _ => {}
        }
    }
}

impl RawUsage<'_> {
    fn normalised(&self) -> Usage {
        let count = |of: fn(&Counts<'_>) -> Count| {
            [&self.billed, &self.tokens].into_iter().flatten().find_map(|counts| of(counts).0)
        };
        Usage {
            input: count(|counts| counts.input),
            output: count(|counts| counts.output),
            cached_input: self.cached.0,
            reasoning: None,
        }
    }
}
