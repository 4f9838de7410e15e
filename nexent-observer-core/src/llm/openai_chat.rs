//! OpenAI chat completions and everything of that shape (`POST .../chat/completions`).
//!
//! Source: OpenAI API reference, "Create chat completion" and "The chat completion chunk object"; what other servers do
//! differently is named where it matters.

use std::borrow::Cow;

use super::{
    LlmEventKind, Payload, RequestFacts,
    api::{Api, Decoder, Frame, Member, Out, RequestDraft, Shape, Value},
    json_str, name,
    openai_fast::{self, Field, Raw, Template},
    openai_parse::{Choice, Completion, Content, Function, Message, Part},
};
use crate::stats::DropReason;

/// The row of this API.
pub(super) static API: Api = Api {
    operation: "chat",
    fallback_provider: "openai_compatible",
    paths: &["/chat/completions"],
    path_model: azure_deployment,
    request,
    request_shape: |shape| shape.contains(&Shape::Model) && shape.contains(&Shape::Messages),
    recognise: |json| Completion::parse(json).is_some_and(|c| c.is_chat()),
    decoder: || Box::<Chat>::default(),
};

/// `/openai/deployments/{deployment}/chat/completions`: on Azure the deployment is what is asked for.
fn azure_deployment(path: &str) -> Option<&str> {
    let (_, rest) = path.split_once("/deployments/")?;
    rest.split('/').next().filter(|name| !name.is_empty())
}

fn request(draft: &mut RequestDraft, member: Member<'_>) {
    let RequestDraft { facts, max_tokens_fixed } = draft;
    let RequestFacts { model, stream, max_tokens, temperature, top_p, choices, truncated: _ } = facts;
    if member.parent.is_some() {
        return;
    }
    let value = member.value;
    match member.key {
        "model" => {
            *model = match value {
                Value::Str(text) if !text.is_empty() => Some(name::clean(text).into_owned()),
                _ => None,
            }
        }
        "stream" => *stream = if let Value::Bool(yes) = value { Some(yes) } else { None },
        "max_completion_tokens" => {
            if let Some(count) = value.count() {
                (*max_tokens, *max_tokens_fixed) = (Some(count), true);
            }
        }
        // The older name of the same bound.
        "max_tokens" if !*max_tokens_fixed => *max_tokens = value.count(),
        "temperature" => *temperature = value.float(),
        "top_p" => *top_p = value.float(),
        "n" => *choices = value.count().and_then(|n| n.try_into().ok()),
        _ => {}
    }
}

/// Decoder of one response.
#[derive(Debug, Default)]
struct Chat {
    model: String,
    id: String,
    /// A delta was seen, so a whole `message` in the stream repeats it (Perplexity).
    streamed: bool,
    done: bool,
    scratch: String,
    template: Template,
}

impl Decoder for Chat {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        // Clients stop reading at the end marker; what comes after it was never delivered.
        if self.done || frame.name == b"ping" {
            return;
        }
        if frame.name != b"error"
            && let Some((field, choice, text)) = self.template.text(frame.data)
        {
            out.emit(LlmEventKind::Chunk);
            let payload = match field {
                Field::Content => Payload::Text,
                Field::Refusal => Payload::Refusal,
                Field::Reasoning => Payload::Reasoning,
                Field::Arguments => Payload::ToolArguments,
            };
            let any = self.raw_delta(payload, choice, text, out);
            self.note_output(any, out);
            return;
        }
        if frame.data.trim_ascii() == b"[DONE]" {
            self.done = true;
            out.emit(LlmEventKind::Done);
            return;
        }
        let json = text(frame.data, out);
        if frame.name != b"error"
            && let Some(chunk) = openai_fast::chunk(&json, &mut self.template)
        {
            self.fast(&chunk, out);
            return;
        }
        match Completion::parse(&json) {
            Some(completion) => self.full(&completion, frame.name == b"error", out),
            None if frame.name == b"error" => {
                out.emit(LlmEventKind::Chunk);
                out.error(super::api::ErrorEvidence::default());
            }
            None if frame.whole => out.count(DropReason::JsonInvalid),
            None => {}
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        let failed = out.status.is_some_and(|s| s >= 400);
        let json = text(body, out);
        match Completion::parse(&json) {
            Some(completion) => self.full(&completion, failed, out),
            // The body of an error may be anything: a proxy's page, a line of text, nothing.
            None if failed => {}
            None => out.count(DropReason::JsonInvalid),
        }
    }
}

impl Chat {
    fn fast(&mut self, chunk: &openai_fast::Chunk<'_>, out: &mut Out<'_>) {
        let openai_fast::Chunk { id, model, choice, content, refusal, reasoning_content, reasoning, arguments, finish } =
            *chunk;
        out.emit(LlmEventKind::Chunk);
        self.identity(id, model, out);
        let filled = |raw: Option<Raw<'_>>| raw.is_some_and(|r| !r.text.is_empty());
        let thought = if filled(reasoning_content) { reasoning_content } else { reasoning };
        let texts = [
            (Payload::Reasoning, thought),
            (Payload::Text, content),
            (Payload::Refusal, refusal),
            (Payload::ToolArguments, arguments),
        ];
        let mut any = false;
        for (payload, raw) in texts {
            any |= raw.is_some_and(|raw| self.raw_delta(payload, choice, raw, out));
        }
        self.note_output(any, out);
        finish_of(choice, finish, out);
    }

    /// Reports a text unless it is empty.
    fn raw_delta(&mut self, payload: Payload, choice: u32, raw: Raw<'_>, out: &mut Out<'_>) -> bool {
        let text = if raw.escaped {
            self.scratch.clear();
            json_str::unescape_into(raw.text, &mut self.scratch);
            &self.scratch
        } else {
            raw.text
        };
        if text.is_empty() {
            return false;
        }
        out.emit(LlmEventKind::Delta { payload, choice, text });
        true
    }

    fn full(&mut self, completion: &Completion<'_>, failed: bool, out: &mut Out<'_>) {
        out.emit(LlmEventKind::Chunk);
        self.identity(completion.id.non_empty(), completion.model.non_empty(), out);
        let mut any = false;
        for (position, choice) in completion.choices.items.iter().enumerate() {
            let number = choice.index.0.and_then(|i| u32::try_from(i).ok()).unwrap_or(position as u32);
            if let Some(message) = self.message_of(choice) {
                deltas(message, &mut |payload, text: &str| {
                    if !text.is_empty() {
                        any = true;
                        out.emit(LlmEventKind::Delta { payload, choice: number, text });
                    }
                });
            }
        }
        self.note_output(any, out);
        for (position, choice) in completion.choices.items.iter().enumerate() {
            let number = choice.index.0.and_then(|i| u32::try_from(i).ok()).unwrap_or(position as u32);
            finish_of(number, choice.finish_reason.non_empty(), out);
        }
        let usage = completion.usage();
        if usage != super::Usage::default() {
            out.emit(LlmEventKind::Usage(usage));
        }
        if let Some(evidence) = completion.error(failed) {
            out.error(evidence);
        }
    }

    fn message_of<'c, 'de>(&self, choice: &'c Choice<'de>) -> Option<&'c Message<'de>> {
        match (&choice.delta, &choice.message) {
            (Some(delta), _) => Some(delta),
            (None, Some(message)) if !self.streamed => Some(message),
            _ => None,
        }
    }

    fn note_output(&mut self, any: bool, out: &mut Out<'_>) {
        if any {
            self.streamed = true;
            out.stats.chunks += 1;
        }
    }

    /// Reports `id` and `model` when they are new. Azure's first event has both empty: those are no values.
    fn identity(&mut self, id: Option<&str>, model: Option<&str>, out: &mut Out<'_>) {
        let id = changed(&mut self.id, id);
        let model = changed(&mut self.model, model);
        if id || model {
            self.template.forget();
            out.emit(LlmEventKind::Identity {
                model: model.then_some(self.model.as_str()),
                id: id.then_some(self.id.as_str()),
            });
        }
    }
}

/// The text of an event or body; what is no UTF-8 is counted and replaced, for the rest of it still counts.
fn text<'a>(bytes: &'a [u8], out: &mut Out<'_>) -> Cow<'a, str> {
    // The strict check first: it is many times faster than the lossy one.
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    out.count(DropReason::Utf8Invalid);
    String::from_utf8_lossy(bytes)
}

fn changed(kept: &mut String, seen: Option<&str>) -> bool {
    let Some(seen) = seen.filter(|s| !s.is_empty() && *s != kept.as_str()) else { return false };
    let seen = name::clean(seen);
    if seen.is_empty() || *seen == **kept {
        return false;
    }
    kept.clear();
    kept.push_str(&seen);
    true
}

fn finish_of(choice: u32, reason: Option<&str>, out: &mut Out<'_>) {
    if let Some(reason) = reason.filter(|r| !r.is_empty()) {
        out.emit(LlmEventKind::Finish { choice, reason: &name::clean(reason) });
    }
}

/// Everything generated in one `delta` or `message`; texts may be empty.
fn deltas(message: &Message<'_>, on: &mut dyn FnMut(Payload, &str)) {
    // Some servers send the same thought under both names: only one of them counts.
    let thought = message.reasoning_content.non_empty().or_else(|| message.reasoning.non_empty());
    on(Payload::Reasoning, thought.unwrap_or_default());
    content(&message.content, on);
    on(Payload::Refusal, message.refusal.non_empty().unwrap_or_default());
    for call in &message.tool_calls.items {
        for called in [&call.function, &call.custom].into_iter().flatten() {
            function(called, on);
        }
    }
    if let Some(called) = &message.function_call {
        function(called, on);
    }
    if let Some(audio) = &message.audio {
        on(Payload::Audio, audio.transcript.non_empty().unwrap_or_default());
        on(Payload::Audio, audio.data.non_empty().unwrap_or_default());
    }
}

fn content(content: &Content<'_>, on: &mut dyn FnMut(Payload, &str)) {
    on(Payload::Text, content.text.non_empty().unwrap_or_default());
    for Part { text, thinking, .. } in &content.parts.items {
        on(Payload::Reasoning, thinking.text.non_empty().unwrap_or_default());
        for part in &thinking.parts.items {
            on(Payload::Reasoning, part.text.non_empty().unwrap_or_default());
        }
        on(Payload::Text, text.non_empty().unwrap_or_default());
    }
}

fn function(called: &Function<'_>, on: &mut dyn FnMut(Payload, &str)) {
    on(Payload::ToolName, called.name.non_empty().unwrap_or_default());
    on(Payload::ToolArguments, called.arguments.non_empty().unwrap_or_default());
}

#[cfg(test)]
#[path = "openai_chat_tests.rs"]
mod tests;
