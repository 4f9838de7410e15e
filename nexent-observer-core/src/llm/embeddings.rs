//! Embeddings of OpenAI's shape (`POST .../embeddings`): OpenAI, Azure, Mistral, Voyage, vLLM and others.
//!
//! Source: OpenAI API reference, "Create embeddings". An answer holds megabytes of vectors: only its members are read as
//! they come by, nothing else is kept.

use super::{
    LlmEventKind, Usage,
    api::{Api, Decoder, ErrorEvidence, Frame, Identity, JsonBody, Member, Out, Proof, RequestDraft, Route, Value},
    json_scan::Scanner,
};

/// The row of this API.
pub(super) static API: Api = Api {
    operation: "embeddings",
    fallback_provider: "openai_compatible",
    routes: &[
        Route::sure("/deployments/*/embeddings"),
        Route::sure("/v1/embeddings"),
        Route::unsure("/embeddings", Proof::Bodies),
    ],
    json: JsonBody::Members,
    request,
    request_shape: |members| members.text("model").is_some() && members.has("input"),
    recognise: |members, _| {
        members.text("object") == Some("list") && members.is_array("data") && members.has_below("usage", "total_tokens")
    },
    decoder,
};

/// A decoder of an answer whose members tell model and tokens; also for other APIs whose answers hold vectors.
pub(super) fn decoder() -> Box<dyn Decoder> {
    Box::<Embeddings>::default()
}

/// Takes a member of the request body.
pub(super) fn request(draft: &mut RequestDraft, member: Member<'_>) {
    if let (None, "model") = (member.parent, member.key) {
        draft.usual(member.key, member.value);
    }
}

/// Decoder of one response.
#[derive(Debug, Default)]
struct Embeddings {
    seen: Option<Box<Seen>>,
}

/// What the members said.
#[derive(Debug, Default)]
struct Seen {
    id: String,
    model: String,
    input: Option<u64>,
    total: Option<u64>,
    error: Option<ErrorSeen>,
}

#[derive(Debug, Default)]
struct ErrorSeen {
    code: Option<String>,
    code_number: Option<u64>,
    kind: Option<String>,
}

impl Decoder for Embeddings {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        self.body(frame.data, out);
        self.end(out);
    }

    fn body(&mut self, body: &[u8], _out: &mut Out<'_>) {
        Scanner::new().feed(body, &mut |member| self.member(member));
    }

    fn member(&mut self, member: Member<'_>) {
        let seen = self.seen.get_or_insert_default();
        let text = || if let Value::Str(text) = member.value { text } else { "" };
        match (member.parent, member.key) {
            (None, "id") => text().clone_into(&mut seen.id),
            (None, "model") => text().clone_into(&mut seen.model),
            (Some("usage"), "prompt_tokens") | (None, "prompt_eval_count" | "inputTextTokenCount") => {
                seen.input = member.value.count();
            }
            (Some("usage"), "total_tokens") => seen.total = member.value.count(),
            (None, "error") if member.value != Value::Null => {
                let code = Some(text()).filter(|text| !text.is_empty()).map(str::to_owned);
                seen.error = Some(ErrorSeen { code, ..ErrorSeen::default() });
            }
            (Some("error"), key) => {
                let error = seen.error.get_or_insert_default();
                match key {
                    "code" => {
                        error.code_number = member.value.count();
                        error.code = Some(text().to_owned());
                    }
                    "type" | "status" => error.kind = Some(text().to_owned()),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, out: &mut Out<'_>) {
        let Some(seen) = self.seen.take() else { return };
        out.emit(LlmEventKind::Chunk);
        Identity::default().tell(Some(&seen.id), Some(&seen.model), out);
        // Nothing is generated, so all tokens are input (Voyage names only their total).
        out.usage(Usage { input: seen.input.or(seen.total), ..Usage::default() });
        if let Some(ErrorSeen { code, code_number, kind }) = &seen.error {
            out.error(ErrorEvidence { code: code.as_deref(), code_number: *code_number, kind: kind.as_deref() });
        }
    }
}
