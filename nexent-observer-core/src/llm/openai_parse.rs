//! The JSON of OpenAI-compatible chat completions, one event or one whole answer, parsed in full.
//!
//! Sources: OpenAI API reference (chat completion object, chat completion chunk object) and what servers of that shape
//! add: Azure, vLLM, SGLang, llama.cpp, DeepSeek, Mistral, Groq, xAI, Moonshot, OpenRouter.

use std::borrow::Cow;

use serde::de::{MapAccess, SeqAccess};

use super::{
    Usage,
    api::ErrorEvidence,
    error_value::{Code, ErrorValue},
    lenient::{self, Count, Items, Odd, Take, Text, object},
};

/// Most choices, tool calls of a choice and content parts that are looked at (the API allows 128 choices).
const ITEMS: usize = 128;

object! {
    /// A chunk, a whole answer, or an error body. Writer streams legacy completions as objects of one `value`.
    Completion {
        id: Text<'de> = "id",
        model: Text<'de> = "model",
        object: Text<'de> = "object",
        choices: Items<Choice<'de>, ITEMS> = "choices",
        usage: Option<Box<RawUsage<'de>>> = "usage",
        error: ErrorValue<'de> = "error",
        code: Code<'de> = "code",
        kind: Text<'de> = "type",
        x_groq: Option<Box<Groq<'de>>> = "x_groq",
        timings: Option<Box<Timings<'de>>> = "timings",
        value: Text<'de> = "value",
    }
}

object! {
    /// One candidate; `text` is that of a legacy completion.
    Choice {
        index: Count = "index",
        delta: Option<Box<Message<'de>>> = "delta",
        message: Option<Box<Message<'de>>> = "message",
        text: Text<'de> = "text",
        finish_reason: Text<'de> = "finish_reason",
        usage: Option<Box<RawUsage<'de>>> = "usage",
    }
}

object! {
    /// `delta` or `message`.
    Message {
        content: Content<'de> = "content",
        refusal: Text<'de> = "refusal",
        reasoning_content: Text<'de> = "reasoning_content",
        reasoning: Text<'de> = "reasoning",
        tool_calls: Items<ToolCall<'de>, ITEMS> = "tool_calls",
        function_call: Option<Box<Function<'de>>> = "function_call",
        audio: Option<Box<Audio<'de>>> = "audio",
    }
}

object! {
    /// One tool call or a piece of it.
    ToolCall {
        function: Option<Box<Function<'de>>> = "function",
        custom: Option<Box<Function<'de>>> = "custom",
    }
}

object! {
    /// What a tool call calls; `input` is the argument text of a custom tool.
    Function { name: Text<'de> = "name", arguments: Text<'de> = "arguments" | "input", }
}

object! {
    /// Generated audio.
    Audio { data: Text<'de> = "data", transcript: Text<'de> = "transcript", }
}

object! {
    /// A part of `content` (Mistral): text, or thinking made of parts.
    Part { text: Text<'de> = "text", thinking: Thinking<'de> = "thinking", }
}

object! {
    /// A part of `thinking`.
    ThinkingPart { text: Text<'de> = "text", }
}

object! {
    /// `usage` as sent.
    RawUsage {
        prompt: Count = "prompt_tokens" | "input_tokens",
        completion: Count = "completion_tokens" | "output_tokens",
        total: Count = "total_tokens",
        prompt_details: Option<Box<PromptDetails<'de>>> = "prompt_tokens_details" | "input_tokens_details",
        completion_details: Option<Box<CompletionDetails<'de>>> = "completion_tokens_details" | "output_tokens_details",
        cache_hit: Count = "prompt_cache_hit_tokens",
        cached: Count = "cached_tokens",
    }
}

object! {
    /// Details of input tokens.
    PromptDetails { cached: Count = "cached_tokens", }
}

object! {
    /// Details of output tokens.
    CompletionDetails { reasoning: Count = "reasoning_tokens", }
}

object! {
    /// Groq's own member.
    Groq { usage: Option<Box<RawUsage<'de>>> = "usage", error: ErrorValue<'de> = "error", }
}

object! {
    /// llama.cpp's own numbers: tokens evaluated now, taken from its cache, generated.
    Timings { prompt: Count = "prompt_n", cache: Count = "cache_n", predicted: Count = "predicted_n", }
}

/// A string, or an array of parts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Content<'de> {
    pub(super) text: Text<'de>,
    pub(super) parts: Items<Part<'de>, ITEMS>,
}

impl<'de> Take<'de> for Content<'de> {
    fn take_str(&mut self, text: Cow<'de, str>) -> Odd {
        self.text.take_str(text)
    }
    fn take_seq<A: SeqAccess<'de>>(&mut self, seq: A) -> Result<Odd, A::Error> {
        self.parts.take_seq(seq)
    }
}

/// A string, or an array of text parts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Thinking<'de> {
    pub(super) text: Text<'de>,
    pub(super) parts: Items<ThinkingPart<'de>, ITEMS>,
}

impl<'de> Take<'de> for Thinking<'de> {
    fn take_str(&mut self, text: Cow<'de, str>) -> Odd {
        self.text.take_str(text)
    }
    fn take_seq<A: SeqAccess<'de>>(&mut self, seq: A) -> Result<Odd, A::Error> {
        self.parts.take_seq(seq)
    }
}

/// A JSON text that must be an object.
#[derive(Debug, Clone, Default, PartialEq)]
struct Document<'de>(Option<Box<Completion<'de>>>);

impl<'de> Take<'de> for Document<'de> {
    fn take_map<A: MapAccess<'de>>(&mut self, map: A) -> Result<Odd, A::Error> {
        self.0.take_map(map)
    }
    fn take_seq<A: SeqAccess<'de>>(&mut self, seq: A) -> Result<Odd, A::Error> {
        // Some gateways put an error object into an array of one.
        let mut items = Items::<Completion<'de>, 1>::default();
        let odd = items.take_seq(seq)?;
        self.0 = items.items.pop().filter(|c| c.error != ErrorValue::default()).map(Box::new);
        Ok(odd)
    }
}

impl<'de> Completion<'de> {
    /// Parses an event or a body; `None` when it is no JSON object. With it, how many of its members were of a wrong type.
    pub(super) fn parse(json: &'de str) -> Option<(Box<Self>, Odd)> {
        let (document, odd) = lenient::parse::<Document<'de>>(json).ok()?;
        Some((document.0?, odd))
    }

    /// Whether this can only be a chat completion or a chunk of one.
    pub(super) fn is_chat(&self) -> bool {
        let named = self.object.0.as_deref().is_some_and(|o| o.starts_with("chat.completion"));
        let shaped = || self.choices.items.iter().any(|c| c.delta.is_some() || c.message.is_some());
        self.choices.present && (named || shaped())
    }

    /// Whether this can only be a legacy completion or a chunk of one.
    pub(super) fn is_text(&self) -> bool {
        let named = self.object.0.as_deref() == Some("text_completion");
        self.choices.present && (named || self.choices.items.iter().any(|c| c.text.0.is_some()))
    }

    /// What it says about an error, if it is one. `failed`: the HTTP status or the event's name says that it is.
    pub(super) fn error(&self, failed: bool) -> Option<ErrorEvidence<'_>> {
        let inner = self.error.evidence().or_else(|| self.x_groq.as_ref()?.error.evidence());
        // vLLM's old shape has its members at the top, as have DashScope's and FastAPI's error bodies.
        let flat = failed || self.object.0.as_deref() == Some("error");
        let top = || ErrorEvidence {
            code: self.code.text.non_empty(),
            code_number: self.code.number.0,
            kind: self.kind.non_empty().filter(|kind| *kind != "error"),
        };
        inner.or_else(|| flat.then(top))
    }

    /// Token counts, normalised.
    pub(super) fn usage(&self) -> Usage {
        let mut usage = self.timings.as_ref().map_or_else(Usage::default, |t| t.normalised());
        let raw = self.choices.items.iter().filter_map(|c| c.usage.as_ref());
        let groq = self.x_groq.as_ref().and_then(|x| x.usage.as_ref());
        for raw in raw.chain(groq).chain(self.usage.as_ref()) {
            usage.merge(raw.normalised());
        }
        usage
    }
}

impl RawUsage<'_> {
    /// Token counts, normalised.
    pub(super) fn normalised(&self) -> Usage {
        let reasoning = self.completion_details.as_ref().and_then(|d| d.reasoning.0);
        let output = match (self.prompt.0, self.completion.0, reasoning, self.total.0) {
            // xAI counts reasoning beside the completion; its total gives it away.
            (Some(prompt), Some(completion), Some(reasoning), Some(total))
                if reasoning > 0
                    && prompt.checked_add(completion).and_then(|sum| sum.checked_add(reasoning)) == Some(total) =>
            {
                completion.checked_add(reasoning)
            }
            (_, completion, _, _) => completion,
        };
        let details = self.prompt_details.as_ref().and_then(|d| d.cached.0);
        Usage { input: self.prompt.0, output, cached_input: details.or(self.cache_hit.0).or(self.cached.0), reasoning }
    }
}

impl Timings<'_> {
    fn normalised(&self) -> Usage {
        // Without `cache_n` (older servers) the cached part of the input is not known: then neither is its sum.
        let input = self.cache.0.zip(self.prompt.0).and_then(|(cache, prompt)| cache.checked_add(prompt));
        Usage { input, output: self.predicted.0, cached_input: self.cache.0, reasoning: None }
    }
}
