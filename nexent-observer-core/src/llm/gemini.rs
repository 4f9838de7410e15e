//! Gemini, on Google AI and on Vertex (`POST .../models/{model}:generateContent` and `:streamGenerateContent`).
//!
//! Source: Gemini API reference, "Generating content", and Vertex AI REST reference, `models.generateContent`. Whether an
//! answer is a stream is in the verb; with `alt=sse` it comes as server-sent events, else as one JSON array, written
//! element by element. Each event is a whole `GenerateContentResponse`. There is no end marker: a finish reason, then the
//! end of the message.

use super::{
    LlmEventKind, Payload, Usage,
    api::{Api, Decoder, Frame, Identity, JsonBody, Member, Out, RequestDraft, Route, StreamFlag},
    embeddings, envelope,
    error_value::ErrorValue,
    lenient::{Count, Flag, Items, Json, Text, object},
};

/// The row of generated content.
pub(super) static API: Api = Api {
    operation: "generate_content",
    fallback_provider: "gcp.gen_ai",
    routes: &[
        Route::sure("/*:streamGenerateContent").with(StreamFlag::Path(true)),
        Route::sure("/*:generateContent").with(StreamFlag::Path(false)),
    ],
    json: JsonBody::Array,
    request,
    request_shape: |members| members.is_array("contents"),
    recognise: |members, _| {
        members.is_array("candidates") && (members.is_object("usageMetadata") || members.has("modelVersion"))
    },
    decoder: || Box::<Gemini>::default(),
};

/// The row of embeddings. Their answers name no tokens.
pub(super) static EMBED: Api = Api {
    operation: "embeddings",
    fallback_provider: "gcp.gen_ai",
    routes: &[Route::sure("/*:embedContent"), Route::sure("/*:batchEmbedContents")],
    json: JsonBody::Members,
    request: |_, _| {},
    request_shape: |_| false,
    recognise: |_, _| false,
    decoder: embeddings::decoder,
};

/// Most candidates, and parts of one, that are looked at.
const ITEMS: usize = 128;

object! {
    /// One event of a stream, a whole answer, or an error body.
    Response {
        candidates: Items<Candidate<'de>, ITEMS> = "candidates",
        usage: Option<Box<UsageMetadata<'de>>> = "usageMetadata",
        model: Text<'de> = "modelVersion",
        id: Text<'de> = "responseId",
        feedback: Option<Box<Feedback<'de>>> = "promptFeedback",
        error: ErrorValue<'de> = "error",
    }
}

object! {
    /// One candidate.
    Candidate {
        index: Count = "index",
        content: Option<Box<Content<'de>>> = "content",
        finish_reason: Text<'de> = "finishReason",
    }
}

object! {
    /// What a candidate says.
    Content { parts: Items<Part<'de>, ITEMS> = "parts", }
}

object! {
    /// One part of it.
    Part {
        text: Text<'de> = "text",
        thought: Flag = "thought",
        call: Option<Box<Call<'de>>> = "functionCall",
        media: Option<Box<Media<'de>>> = "inlineData",
        code: Option<Box<Code<'de>>> = "executableCode",
    }
}

object! {
    /// A function call; its arguments come whole as an object, or piece by piece.
    Call {
        name: Text<'de> = "name",
        arguments: Json<'de> = "args",
        pieces: Items<Piece<'de>, ITEMS> = "partialArgs",
    }
}

object! {
    /// A piece of an argument.
    Piece { text: Text<'de> = "stringValue", }
}

object! {
    /// Generated media, in base64.
    Media { data: Text<'de> = "data", }
}

object! {
    /// Code that the model runs.
    Code { code: Text<'de> = "code", }
}

object! {
    /// Why a prompt was refused.
    Feedback { block_reason: Text<'de> = "blockReason", }
}

object! {
    /// Token counts so far. `candidatesTokenCount` leaves thoughts out, `promptTokenCount` what tools brought in.
    UsageMetadata {
        prompt: Count = "promptTokenCount",
        tool_prompt: Count = "toolUsePromptTokenCount",
        cached: Count = "cachedContentTokenCount",
        candidates: Count = "candidatesTokenCount",
        thoughts: Count = "thoughtsTokenCount",
    }
}

fn request(draft: &mut RequestDraft, member: Member<'_>) {
    let config = matches!(member.parent, Some("generationConfig" | "generation_config"));
    match member.key {
        "maxOutputTokens" | "max_output_tokens" if config => draft.max_tokens(member.value),
        "temperature" if config => draft.facts.temperature = member.value.float(),
        "topP" | "top_p" if config => draft.facts.top_p = member.value.float(),
        "candidateCount" | "candidate_count" if config => {
            draft.facts.choices = member.value.count().and_then(|n| n.try_into().ok());
        }
        _ => {}
    }
}

/// Decoder of one response.
#[derive(Debug, Default)]
struct Gemini {
    identity: Identity,
}

impl Decoder for Gemini {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        let json = out.frame_text(&frame);
        if let Some(response) = envelope::event::<Response<'_>>(&json, &frame, out) {
            self.response(&response, out);
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        let json = out.text(body);
        if let Some(response) = envelope::body::<Response<'_>>(&json, out) {
            self.response(&response, out);
        }
    }
}

impl Gemini {
    fn response(&mut self, response: &Response<'_>, out: &mut Out<'_>) {
        out.emit(LlmEventKind::Chunk);
        self.identity.tell(response.id.non_empty(), response.model.non_empty(), out);
        let candidates = || {
            let numbered = response.candidates.items.iter().enumerate();
            numbered.map(|(at, c)| (c.index.0.and_then(|i| u32::try_from(i).ok()).unwrap_or(at as u32), c))
        };
        let mut any = false;
        for (number, candidate) in candidates() {
            for part in candidate.content.iter().flat_map(|content| &content.parts.items) {
                part.deltas(&mut |payload, text| any |= out.delta(payload, number, text));
            }
        }
        out.count_output(any);
        for (number, candidate) in candidates() {
            out.finish(number, candidate.finish_reason.non_empty());
        }
        if response.candidates.items.is_empty() {
            out.finish(0, response.feedback.as_ref().and_then(|feedback| feedback.block_reason.non_empty()));
        }
        if let Some(usage) = &response.usage {
            out.usage(usage.normalised());
        }
        if let Some(evidence) = response.error.evidence() {
            out.error(evidence);
        }
    }
}

impl Part<'_> {
    /// Everything generated in it; texts may be empty.
    fn deltas(&self, on: &mut dyn FnMut(Payload, &str)) {
        let payload = if self.thought.0 { Payload::Reasoning } else { Payload::Text };
        on(payload, self.text.non_empty().unwrap_or_default());
        if let Some(call) = &self.call {
            on(Payload::ToolName, call.name.non_empty().unwrap_or_default());
            on(Payload::ToolArguments, call.arguments.0.non_empty().unwrap_or_default());
            for piece in &call.pieces.items {
                on(Payload::ToolArguments, piece.text.non_empty().unwrap_or_default());
            }
        }
        if let Some(media) = &self.media {
            on(Payload::Audio, media.data.non_empty().unwrap_or_default());
        }
        if let Some(code) = &self.code {
            on(Payload::ToolArguments, code.code.non_empty().unwrap_or_default());
        }
    }
}

impl UsageMetadata<'_> {
    fn normalised(&self) -> Usage {
        Usage {
            input: sum(self.prompt.0, self.tool_prompt.0),
            output: sum(self.candidates.0, self.thoughts.0),
            cached_input: self.cached.0,
            reasoning: self.thoughts.0,
        }
    }
}

/// The sum of what is known; `None` when nothing is.
fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => a.checked_add(b),
        (one, other) => one.or(other),
    }
}
