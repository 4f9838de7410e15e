//! Amazon Bedrock (`POST /model/{model}/converse[-stream]`, `/invoke[-with-response-stream]`).
//!
//! Source: Amazon Bedrock API reference, "Converse", "ConverseStream", "InvokeModel", and "Inference request parameters and
//! response fields". Streams are AWS event streams. Converse has one shape for all models; Invoke carries the vendor's own
//! JSON, in base64 in each event, and tells its counts once more in the last one.

use super::{
    LlmEventKind, Payload, Usage, anthropic,
    api::{Api, Decoder, ErrorEvidence, Frame, JsonBody, Member, Out, RequestDraft, Route, StreamFlag},
    base64, embeddings, envelope,
    lenient::{self, Anything, Count, Items, Json, Text, object},
    openai_chat,
};
use crate::stats::DropReason;

/// The row of Converse.
pub(super) static CONVERSE: Api = Api {
    operation: "chat",
    fallback_provider: "aws.bedrock",
    routes: &[
        Route::sure("/model/*/converse-stream").with(StreamFlag::Path(true)),
        Route::sure("/model/*/converse").with(StreamFlag::Path(false)),
    ],
    json: JsonBody::Whole,
    request,
    request_shape: |_| false,
    recognise: |_, _| false,
    decoder: || Box::<Converse>::default(),
};

/// The row of Invoke.
pub(super) static INVOKE: Api = Api {
    operation: "chat",
    fallback_provider: "aws.bedrock",
    routes: &[
        Route::sure("/model/*/invoke-with-response-stream").with(StreamFlag::Path(true)),
        Route::sure("/model/*/invoke").with(StreamFlag::Path(false)),
    ],
    json: JsonBody::Whole,
    request,
    request_shape: |_| false,
    recognise: |_, _| false,
    decoder: || Box::<Invoke>::default(),
};

/// The row of embedding models, which are invoked like the others.
pub(super) static EMBED: Api = Api {
    operation: "embeddings",
    fallback_provider: "aws.bedrock",
    routes: &[Route::sure("/model/*/invoke").with(StreamFlag::Path(false)).of_models("embed")],
    json: JsonBody::Members,
    request: |_, _| {},
    request_shape: |_| false,
    recognise: |_, _| false,
    decoder: embeddings::decoder,
};

/// Most content blocks and results that are looked at.
const ITEMS: usize = 128;

object! {
    /// A whole answer of Converse.
    Answer {
        output: Option<Box<Output<'de>>> = "output",
        stop_reason: Text<'de> = "stopReason",
        usage: Option<Box<RawUsage<'de>>> = "usage",
    }
}

object! {
    /// Its `output`.
    Output { message: Option<Box<Message<'de>>> = "message", }
}

object! {
    /// Its message.
    Message { content: Items<Block<'de>, ITEMS> = "content", }
}

object! {
    /// The payload of one event of ConverseStream.
    Event {
        delta: Option<Box<Block<'de>>> = "delta",
        start: Option<Box<Block<'de>>> = "start",
        stop_reason: Text<'de> = "stopReason",
        usage: Option<Box<RawUsage<'de>>> = "usage",
    }
}

object! {
    /// A content block or a piece of one.
    Block {
        text: Text<'de> = "text",
        tool: Option<Box<Tool<'de>>> = "toolUse",
        reasoning: Option<Box<Reasoning<'de>>> = "reasoningContent",
    }
}

object! {
    /// A tool call or a piece of one.
    Tool { name: Text<'de> = "name", input: Json<'de> = "input", }
}

object! {
    /// Reasoning: a piece of it, or whole. A signature alone is none.
    Reasoning {
        text: Text<'de> = "text",
        redacted: Text<'de> = "redactedContent",
        whole: Option<Box<ReasoningText<'de>>> = "reasoningText",
    }
}

object! {
    /// The text of whole reasoning.
    ReasoningText { text: Text<'de> = "text", }
}

object! {
    /// `usage` as sent; the cache is not part of the input.
    RawUsage {
        input: Count = "inputTokens" | "inputTokenCount",
        output: Count = "outputTokens" | "outputTokenCount",
        cache_read: Count = "cacheReadInputTokens" | "cacheReadInputTokenCount",
        cache_write: Count = "cacheWriteInputTokens" | "cacheWriteInputTokenCount",
    }
}

object! {
    /// The payload of an event of InvokeModelWithResponseStream.
    Wrapped { bytes: Text<'de> = "bytes", }
}

object! {
    /// What models other than Anthropic's say when invoked: Titan, Nova, Llama, Mistral.
    Native {
        kind: Text<'de> = "type",
        choices: Items<Anything, 1> = "choices",
        output_text: Text<'de> = "outputText" | "generation",
        results: Items<NativeResult<'de>, ITEMS> = "results" | "outputs",
        reason: Text<'de> = "completionReason" | "stop_reason",
        input: Count = "inputTextTokenCount" | "prompt_token_count",
        output_tokens: Count = "totalOutputTextTokenCount" | "generation_token_count",
        delta: Option<Box<Event<'de>>> = "contentBlockDelta",
        start: Option<Box<Event<'de>>> = "contentBlockStart",
        stop: Option<Box<Event<'de>>> = "messageStop",
        metadata: Option<Box<Event<'de>>> = "metadata",
        output: Option<Box<Output<'de>>> = "output",
        stop_reason: Text<'de> = "stopReason",
        usage: Option<Box<RawUsage<'de>>> = "usage",
        metrics: Option<Box<RawUsage<'de>>> = "amazon-bedrock-invocationMetrics",
    }
}

object! {
    /// One result of Titan or Mistral.
    NativeResult {
        text: Text<'de> = "outputText" | "text",
        reason: Text<'de> = "completionReason" | "stop_reason",
        tokens: Count = "tokenCount",
    }
}

fn request(draft: &mut RequestDraft, member: Member<'_>) {
    let inner = matches!(member.parent, Some("inferenceConfig" | "textGenerationConfig"));
    match member.key {
        "maxTokens" | "max_new_tokens" | "maxTokenCount" if inner => draft.max_tokens(member.value),
        "topP" if inner => draft.usual("top_p", member.value),
        "temperature" | "top_p" if inner => draft.usual(member.key, member.value),
        "max_gen_len" | "max_tokens" if member.parent.is_none() => draft.max_tokens(member.value),
        "temperature" | "top_p" if member.parent.is_none() => draft.usual(member.key, member.value),
        _ => {}
    }
}

/// Decoder of one response of Converse.
#[derive(Debug, Default)]
struct Converse {
    done: bool,
}

impl Decoder for Converse {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        if self.done {
            return;
        }
        if frame.error {
            exception(frame, out);
            return;
        }
        let json = out.frame_text(&frame);
        let Some(event) = envelope::event::<Event<'_>>(&json, &frame, out) else { return };
        out.emit(LlmEventKind::Chunk);
        event.tell(out);
        if frame.name == b"metadata" {
            self.done = true;
            out.emit(LlmEventKind::Done);
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        let json = out.text(body);
        if let Some(answer) = envelope::body::<Answer<'_>>(&json, out) {
            out.emit(LlmEventKind::Chunk);
            whole(answer.output.as_deref(), &answer.stop_reason, answer.usage.as_deref(), out);
        }
    }
}

/// Decoder of one response of Invoke: the vendor's own, once the first event or the body tells it.
#[derive(Debug, Default)]
struct Invoke {
    vendor: Option<Box<dyn Decoder>>,
    scratch: Vec<u8>,
}

impl Decoder for Invoke {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        if frame.error {
            exception(frame, out);
            return;
        }
        let json = out.frame_text(&frame);
        let wrapped = lenient::parse::<Option<Box<Wrapped<'_>>>>(&json).ok().and_then(|(wrapped, _)| wrapped);
        let Some(bytes) = wrapped.as_ref().and_then(|wrapped| wrapped.bytes.non_empty()) else {
            return out.count(DropReason::JsonInvalid);
        };
        self.scratch.clear();
        base64::decode_into(bytes, &mut self.scratch);
        let Self { vendor, scratch } = self;
        match vendor {
            Some(vendor) => vendor.frame(Frame { data: scratch, ..frame }, out),
            None => *vendor = first(scratch, out, |vendor, out| vendor.frame(Frame { data: scratch, ..frame }, out)),
        }
        if self.scratch.capacity() > 64 * 1024 {
            self.scratch = Vec::new();
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        first(body, out, |vendor, out| vendor.body(body, out));
    }
}

/// Reads the first JSON of an answer: by the decoder of its vendor, which is given back, or here.
fn first(
    json: &[u8],
    out: &mut Out<'_>,
    with: impl FnOnce(&mut dyn Decoder, &mut Out<'_>),
) -> Option<Box<dyn Decoder>> {
    let text = out.text(json);
    let native = envelope::body::<Native<'_>>(&text, out)?;
    let mut vendor = if native.kind.non_empty().is_some() {
        (anthropic::API.decoder)()
    } else if native.choices.present {
        (openai_chat::API.decoder)()
    } else {
        out.emit(LlmEventKind::Chunk);
        native.tell(out);
        return None;
    };
    with(&mut *vendor, out);
    Some(vendor)
}

fn exception(frame: Frame<'_>, out: &mut Out<'_>) {
    out.emit(LlmEventKind::Chunk);
    out.error(ErrorEvidence { kind: std::str::from_utf8(frame.name).ok(), ..ErrorEvidence::default() });
}

fn whole(output: Option<&Output<'_>>, reason: &Text<'_>, usage: Option<&RawUsage<'_>>, out: &mut Out<'_>) {
    let mut any = false;
    for block in output.and_then(|output| output.message.as_ref()).iter().flat_map(|message| &message.content.items) {
        any |= block.tell(out);
    }
    out.count_output(any);
    out.finish(0, reason.non_empty());
    if let Some(usage) = usage {
        out.usage(usage.normalised());
    }
}

impl Event<'_> {
    fn tell(&self, out: &mut Out<'_>) {
        let mut any = false;
        for block in [&self.start, &self.delta].into_iter().flatten() {
            any |= block.tell(out);
        }
        out.count_output(any);
        out.finish(0, self.stop_reason.non_empty());
        if let Some(usage) = &self.usage {
            out.usage(usage.normalised());
        }
    }
}

impl Block<'_> {
    /// Reports what was generated; true when something was.
    fn tell(&self, out: &mut Out<'_>) -> bool {
        let mut any = false;
        let mut tell = |payload, text: &Text<'_>| any |= out.delta(payload, 0, text.non_empty().unwrap_or_default());
        if let Some(reasoning) = &self.reasoning {
            tell(Payload::Reasoning, &reasoning.text);
            tell(Payload::Reasoning, &reasoning.redacted);
            if let Some(whole) = &reasoning.whole {
                tell(Payload::Reasoning, &whole.text);
            }
        }
        tell(Payload::Text, &self.text);
        if let Some(tool) = &self.tool {
            tell(Payload::ToolName, &tool.name);
            tell(Payload::ToolArguments, &tool.input.0);
        }
        any
    }
}

impl Native<'_> {
    fn tell(&self, out: &mut Out<'_>) {
        let mut any = out.delta(Payload::Text, 0, self.output_text.non_empty().unwrap_or_default());
        for (choice, result) in (0..).zip(&self.results.items) {
            any |= out.delta(Payload::Text, choice, result.text.non_empty().unwrap_or_default());
        }
        out.count_output(any);
        out.finish(0, self.reason.non_empty());
        for (choice, result) in (0..).zip(&self.results.items) {
            out.finish(choice, result.reason.non_empty());
        }
        for event in [&self.start, &self.delta, &self.stop, &self.metadata].into_iter().flatten() {
            event.tell(out);
        }
        whole(self.output.as_deref(), &self.stop_reason, self.usage.as_deref(), out);
        let of_results = self.results.items.iter().filter_map(|result| result.tokens.0).reduce(u64::saturating_add);
        out.usage(Usage { input: self.input.0, output: self.output_tokens.0.or(of_results), ..Usage::default() });
        if let Some(metrics) = &self.metrics {
            out.usage(metrics.normalised());
        }
    }
}

impl RawUsage<'_> {
    fn normalised(&self) -> Usage {
        let cache = self.cache_read.0.unwrap_or(0).checked_add(self.cache_write.0.unwrap_or(0));
        Usage {
            input: self.input.0.zip(cache).and_then(|(input, cache)| input.checked_add(cache)),
            output: self.output.0,
            cached_input: self.cache_read.0,
            reasoning: None,
        }
    }
}
