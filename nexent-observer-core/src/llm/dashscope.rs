//! DashScope's own API (`POST /api/v1/services/aigc/{text,multimodal}-generation/generation`).
//!
//! Source: Alibaba Cloud Model Studio, "DashScope API reference" of Qwen. A header asks for a stream. Each event of it
//! brings the whole text so far, unless `incremental_output` asks for pieces; for some models pieces are the default, so
//! where the request says nothing the second event tells. Usage is cumulative.

use std::borrow::Cow;

use serde::de::{MapAccess, SeqAccess};

use super::{
    LlmEventKind, Payload,
    api::{
        Api, Decoder, ErrorEvidence, Frame, Identity, JsonBody, Member, Out, RequestDraft, Route, StreamFlag, Value,
    },
    cumulative::Cumulative,
    envelope,
    error_value::Code,
    lenient::{Items, Odd, Take, Text, object},
    openai_parse::RawUsage,
};

/// The row of this API.
pub(super) static API: Api = Api {
    operation: "chat",
    fallback_provider: "dashscope",
    routes: &[
        Route::sure("/services/aigc/text-generation/generation").with(SSE),
        Route::sure("/services/aigc/multimodal-generation/generation").with(SSE),
    ],
    json: JsonBody::Whole,
    request,
    request_shape: |members| members.text("model").is_some() && members.is_object("input"),
    recognise: |members, _| {
        members.is_object("output") && members.text("request_id").is_some() && members.is_object("usage")
    },
    decoder: || Box::<DashScope>::default(),
};

const SSE: StreamFlag = StreamFlag::Header("x-dashscope-sse");

/// Most choices, tool calls and content parts that are looked at.
const ITEMS: usize = 32;

object! {
    /// One event of a stream, a whole answer, or an error body.
    Event {
        output: Option<Box<Output<'de>>> = "output",
        usage: Option<Box<RawUsage<'de>>> = "usage",
        id: Text<'de> = "request_id",
        code: Code<'de> = "code",
    }
}

object! {
    /// Its output: a text, or choices (`result_format: message`).
    Output {
        text: Text<'de> = "text",
        finish_reason: Text<'de> = "finish_reason",
        choices: Items<Choice<'de>, ITEMS> = "choices",
    }
}

object! {
    /// One choice.
    Choice { message: Option<Box<Message<'de>>> = "message", finish_reason: Text<'de> = "finish_reason", }
}

object! {
    /// What it says.
    Message {
        content: Content<'de> = "content",
        reasoning: Text<'de> = "reasoning_content",
        calls: Items<ToolCall<'de>, ITEMS> = "tool_calls",
    }
}

object! {
    /// A tool call.
    ToolCall { function: Option<Box<Function<'de>>> = "function", }
}

object! {
    /// What it calls.
    Function { name: Text<'de> = "name", arguments: Text<'de> = "arguments", }
}

object! {
    /// A part of the content of a multimodal model.
    Part { text: Text<'de> = "text", }
}

/// A text, or parts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Content<'de> {
    text: Text<'de>,
    parts: Items<Part<'de>, ITEMS>,
}

impl<'de> Take<'de> for Content<'de> {
    fn take_str(&mut self, text: Cow<'de, str>) -> Odd {
        self.text.take_str(text)
    }
    fn take_seq<A: SeqAccess<'de>>(&mut self, seq: A) -> Result<Odd, A::Error> {
        self.parts.take_seq(seq)
    }
    fn take_map<A: MapAccess<'de>>(&mut self, map: A) -> Result<Odd, A::Error> {
        let mut part = Part::default();
        let odd = part.take_map(map)?;
        self.parts.items.push(part);
        Ok(odd)
    }
}

fn request(draft: &mut RequestDraft, member: Member<'_>) {
    match (member.parent, member.key) {
        (None, "model") => draft.usual("model", member.value),
        (Some("parameters"), "incremental_output") => {
            draft.incremental = if let Value::Bool(yes) = member.value { Some(yes) } else { None };
        }
        (Some("parameters"), "n") => draft.facts.choices = member.value.count().and_then(|n| n.try_into().ok()),
        (Some("parameters"), "max_tokens" | "temperature" | "top_p") => draft.usual(member.key, member.value),
        _ => {}
    }
}

/// Decoder of one response.
#[derive(Debug, Default)]
struct DashScope {
    identity: Identity,
    texts: Cumulative,
}

impl Decoder for DashScope {
    fn asked(&mut self, draft: &RequestDraft) {
        self.texts.incremental = draft.incremental;
    }

    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        let json = out.frame_text(&frame);
        if let Some(event) = envelope::event::<Event<'_>>(&json, &frame, out) {
            self.event(&event, frame.error, out);
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        let json = out.text(body);
        if let Some(event) = envelope::body::<Event<'_>>(&json, out) {
            self.event(&event, out.failed(), out);
        }
    }
}

impl DashScope {
    fn event(&mut self, event: &Event<'_>, failed: bool, out: &mut Out<'_>) {
        out.emit(LlmEventKind::Chunk);
        self.identity.tell(event.id.non_empty(), None, out);
        if let Some(output) = &event.output {
            let mut any = false;
            let mut slot = 0;
            let mut tell = |payload, choice, text: &Text<'_>, out: &mut Out<'_>| {
                let new = self.texts.new_part(slot, text.non_empty().unwrap_or_default());
                any |= out.delta(payload, choice, new);
                slot += 1;
            };
            tell(Payload::Text, 0, &output.text, out);
            for (choice, message) in (0..).zip(output.choices.items.iter().map(|choice| &choice.message)) {
                let Some(message) = message else { continue };
                tell(Payload::Reasoning, choice, &message.reasoning, out);
                tell(Payload::Text, choice, &message.content.text, out);
                let part = message.content.parts.items.first().map_or(&Text(None), |part| &part.text);
                tell(Payload::Text, choice, part, out);
                for called in message.calls.items.iter().filter_map(|call| call.function.as_ref()) {
                    tell(Payload::ToolName, choice, &called.name, out);
                    tell(Payload::ToolArguments, choice, &called.arguments, out);
                }
            }
            out.count_output(any);
            out.finish(0, real(&output.finish_reason));
            for (choice, item) in (0..).zip(&output.choices.items) {
                out.finish(choice, real(&item.finish_reason));
            }
        }
        if let Some(usage) = &event.usage {
            out.usage(usage.normalised());
        }
        let code = event.code.text.non_empty();
        if failed || code.is_some() {
            out.error(ErrorEvidence { code, code_number: event.code.number.0, kind: None });
        }
    }
}

/// A finish reason. Until a choice finishes, it is the text "null".
fn real<'a>(reason: &'a Text<'_>) -> Option<&'a str> {
    reason.non_empty().filter(|reason| *reason != "null")
}
