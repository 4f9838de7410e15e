//! OpenAI chat completions, the legacy completions, and everything of their shape.
//!
//! Source: OpenAI API reference, "Create chat completion", "The chat completion chunk object" and "Completions"; what
//! other servers do differently is named where it matters. Both are read by one decoder, because servers mix them: some
//! end a legacy stream with a chat chunk, and Mistral answers to `/fim/completions` with chat messages.

use super::{
    LlmEventKind, Payload,
    api::{Api, Decoder, Frame, Identity, JsonBody, Member, Out, Proof, RequestDraft, Route},
    json_str,
    openai_fast::{self, Field, Raw, Template},
    openai_parse::{Choice, Completion, Content, Function, Message, Part},
};
use crate::stats::DropReason;

/// The row of chat completions.
pub(super) static API: Api = Api {
    operation: "chat",
    fallback_provider: "openai_compatible",
    // Azure names a deployment: there it is the model asked for.
    routes: &[
        Route::sure("/deployments/*/chat/completions"),
        Route::sure("/chat/completions"),
        Route::sure("/agents/completions"),
    ],
    json: JsonBody::Whole,
    request,
    request_shape: |members| members.text("model").is_some() && members.is_array("messages"),
    recognise: |members, json| {
        members.is_array("choices") && Completion::parse(json).is_some_and(|(completion, _)| completion.is_chat())
    },
    decoder: || Box::<Chat>::default(),
};

/// The row of legacy completions.
pub(super) static LEGACY: Api = Api {
    operation: "text_completion",
    fallback_provider: "openai_compatible",
    routes: &[
        Route::sure("/deployments/*/completions"),
        Route::sure("/v1/completions"),
        Route::sure("/fim/completions"),
        Route::unsure("/completions", Proof::Bodies),
    ],
    json: JsonBody::Whole,
    request,
    request_shape: |members| members.text("model").is_some() && members.has("prompt"),
    recognise: |members, json| {
        members.is_array("choices") && Completion::parse(json).is_some_and(|(completion, _)| completion.is_text())
    },
    decoder: || Box::<Chat>::default(),
};

/// Takes a member of the request body of a chat or a legacy completion.
pub(super) fn request(draft: &mut RequestDraft, member: Member<'_>) {
    match (member.parent, member.key) {
        (None, "max_completion_tokens") => draft.max_tokens(member.value),
        (None, "n") => draft.facts.choices = member.value.count().and_then(|n| n.try_into().ok()),
        (None, key) => draft.usual(key, member.value),
        _ => {}
    }
}

/// Decoder of one response.
#[derive(Debug, Default)]
struct Chat {
    identity: Identity,
    /// A delta was seen, so a whole `message` in the stream repeats it (Perplexity).
    streamed: bool,
    done: bool,
    /// It is Writer's stream of `value`s, which has no end marker and no finish reason.
    values: bool,
    scratch: String,
    template: Template,
}

impl Decoder for Chat {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        // Clients stop reading at the end marker; what comes after it was never delivered.
        if self.done || frame.name == b"ping" {
            return;
        }
        if !frame.error
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
        let json = out.frame_text(&frame);
        if !frame.error
            && let Some(chunk) = openai_fast::chunk(&json, &mut self.template)
        {
            self.fast(&chunk, out);
            return;
        }
        match Completion::parse(&json) {
            Some((completion, odd)) => {
                out.odd(odd);
                self.full(&completion, frame.error, out);
            }
            None if frame.error => {
                out.emit(LlmEventKind::Chunk);
                out.error(super::api::ErrorEvidence::default());
            }
            None if frame.whole => out.count(DropReason::JsonInvalid),
            None => {}
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        let failed = out.failed();
        let json = out.text(body);
        match Completion::parse(&json) {
            Some((completion, odd)) => {
                out.odd(odd);
                self.full(&completion, failed, out);
            }
            // The body of an error may be anything: a proxy's page, a line of text, nothing.
            None if failed => {}
            None => out.count(DropReason::JsonInvalid),
        }
    }

    fn end(&mut self, out: &mut Out<'_>) {
        if self.values && !self.done {
            out.emit(LlmEventKind::Done);
        }
    }
}

impl Chat {
    fn fast(&mut self, chunk: &openai_fast::Chunk<'_>, out: &mut Out<'_>) {
        let openai_fast::Chunk {
            id,
            model,
            choice,
            content,
            refusal,
            reasoning_content,
            reasoning,
            arguments,
            text,
            finish,
        } = *chunk;
        out.emit(LlmEventKind::Chunk);
        self.tell_identity(id, model, out);
        let filled = |raw: Option<Raw<'_>>| raw.is_some_and(|r| !r.text.is_empty());
        let thought = if filled(reasoning_content) { reasoning_content } else { reasoning };
        let texts = [
            (Payload::Reasoning, thought),
            (Payload::Text, content),
            (Payload::Refusal, refusal),
            (Payload::ToolArguments, arguments),
            (Payload::Text, text),
        ];
        let mut any = false;
        for (payload, raw) in texts {
            any |= raw.is_some_and(|raw| self.raw_delta(payload, choice, raw, out));
        }
        self.note_output(any, out);
        out.finish(choice, finish);
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
        out.delta(payload, choice, text)
    }

    fn full(&mut self, completion: &Completion<'_>, failed: bool, out: &mut Out<'_>) {
        out.emit(LlmEventKind::Chunk);
        self.tell_identity(completion.id.non_empty(), completion.model.non_empty(), out);
        let mut any = false;
        for (position, choice) in completion.choices.items.iter().enumerate() {
            let number = choice.index.0.and_then(|i| u32::try_from(i).ok()).unwrap_or(position as u32);
            if let Some(message) = self.message_of(choice) {
                deltas(message, &mut |payload, text: &str| any |= out.delta(payload, number, text));
            }
            any |= out.delta(Payload::Text, number, choice.text.non_empty().unwrap_or_default());
        }
        if let Some(value) = completion.value.non_empty()
            && !completion.choices.present
        {
            self.values = true;
            any |= out.delta(Payload::Text, 0, value);
        }
        self.note_output(any, out);
        for (position, choice) in completion.choices.items.iter().enumerate() {
            let number = choice.index.0.and_then(|i| u32::try_from(i).ok()).unwrap_or(position as u32);
            out.finish(number, choice.finish_reason.non_empty());
        }
        out.usage(completion.usage());
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

    fn tell_identity(&mut self, id: Option<&str>, model: Option<&str>, out: &mut Out<'_>) {
        if self.identity.tell(id, model, out) {
            self.template.forget();
        }
    }

    fn note_output(&mut self, any: bool, out: &mut Out<'_>) {
        self.streamed |= any;
        out.count_output(any);
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
