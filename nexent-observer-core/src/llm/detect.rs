//! What the request head tells: which API is called, and of whom; and what a body is by its content type.

use std::borrow::Cow;

use super::{
    Call, NotLlm,
    api::{APIS, Api, Proof, Route, StreamFlag},
    name,
};
use crate::http::{Headers, RequestHead};

/// What a request head says about its being an LLM call.
#[derive(Debug)]
pub(super) enum Detected {
    /// A call of an API.
    Call(Routed),
    /// It may be one: the bodies decide. The path is that of an API, if one is named.
    Maybe(Option<Routed>),
    /// It is none.
    No(NotLlm),
}

/// What a path that is known says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    /// Where it is said whether a stream is asked for.
    pub(super) stream: StreamFlag,
    /// The model it names.
    pub(super) model: Option<Box<str>>,
}

/// The API that a path belongs to.
#[derive(Debug)]
pub(super) struct Routed {
    pub(super) api: &'static Api,
    pub(super) path: Path,
}

/// Reads a request head.
pub(super) fn request(head: &RequestHead<'_>) -> Detected {
    if head.method != "POST" {
        return Detected::No(NotLlm::Request);
    }
    let path = path_only(head.path).trim_end_matches('/');
    let routed = route(path);
    let proven = |proof| proves(proof, head) || head.host.and_then(provider_of_host).is_some();
    let maybe = match routed {
        Some((mut routed, proof)) if proven(proof) => {
            if let StreamFlag::Header(name) = routed.path.stream {
                routed.path.stream = StreamFlag::Path(head.headers.get(name).is_some_and(|value| value != "disable"));
            }
            return Detected::Call(routed);
        }
        Some((routed, _)) => Some(routed),
        None => None,
    };
    if MCP_HEADERS.iter().any(|name| head.headers.get(name).is_some()) {
        return Detected::No(NotLlm::Mcp);
    }
    match head.headers.get("content-type") {
        Some(kind) if !is_json(kind) => Detected::No(NotLlm::Request),
        _ => Detected::Maybe(maybe),
    }
}

/// Fields that only clients of the Model Context Protocol send (its specification, "Transports").
const MCP_HEADERS: [&str; 3] = ["mcp-protocol-version", "mcp-session-id", "mcp-method"];

/// Whether a request that turns out to be JSON-RPC is one of the Model Context Protocol: its clients must accept both
/// kinds of answers. The first request of a session has no field of its own.
pub(super) fn accepts_like_mcp(head: &RequestHead<'_>) -> bool {
    let accept = head.headers.get("accept").unwrap_or_default();
    accept.contains("application/json") && accept.contains("text/event-stream")
}

/// The call as its request head describes it; no credentials, no query.
pub(super) fn call(head: &RequestHead<'_>, operation: &'static str) -> Call {
    let host = head.host.map(|h| h.rsplit_once('@').map_or(h, |(_, host)| host));
    let clean = |text: &str| name::clean(text).into_owned();
    Call {
        provider: host.and_then(provider_of_host),
        operation,
        method: clean(head.method),
        host: host.map(clean),
        path: clean(path_only(head.path)),
        traceparent: head.headers.get("traceparent").map(clean),
        retry_count: head.headers.get("x-stainless-retry-count").and_then(|v| v.parse().ok()),
    }
}

/// What a `content-type` promises about a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum BodyKind {
    /// `text/event-stream`.
    Sse,
    /// `application/x-ndjson` and its other names.
    Lines,
    /// `application/vnd.amazon.eventstream`.
    AwsEvents,
    /// `application/json`, `application/problem+json`, ...
    Json,
    /// Something else.
    Other,
    /// It is missing or says nothing (`application/octet-stream`, `text/plain`).
    #[default]
    Unsaid,
}

impl BodyKind {
    pub(super) fn of(headers: &Headers<'_>) -> Self {
        let Some(kind) = headers.get("content-type") else { return Self::Unsaid };
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if kind.eq_ignore_ascii_case("text/event-stream") {
            Self::Sse
        } else if NDJSON.iter().any(|k| kind.eq_ignore_ascii_case(k)) {
            Self::Lines
        } else if kind.eq_ignore_ascii_case("application/vnd.amazon.eventstream") {
            Self::AwsEvents
        } else if is_json(kind) {
            Self::Json
        } else if ["", "application/octet-stream", "text/plain"].iter().any(|k| kind.eq_ignore_ascii_case(k)) {
            Self::Unsaid
        } else {
            Self::Other
        }
    }

    /// Whether such a body is a stream of events.
    pub(super) fn is_stream(self) -> bool {
        matches!(self, Self::Sse | Self::Lines | Self::AwsEvents)
    }
}

/// Names of newline-delimited JSON.
const NDJSON: [&str; 4] =
    ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/stream+json"];

fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let ends = |end: &str| {
        kind.len().checked_sub(end.len()).and_then(|at| kind.get(at..)).is_some_and(|e| e.eq_ignore_ascii_case(end))
    };
    ends("/json") || ends("+json")
}

/// The path without query and fragment: queries carry keys.
fn path_only(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or_default()
}

/// The first row that fits, and what would prove it.
fn route(path: &str) -> Option<(Routed, Proof)> {
    let of_api = |api: &'static Api| {
        let fit = |route: &'static Route| {
            let model = matched(path, route.path)?;
            model.unwrap_or_default().contains(route.model_part).then_some((api, route, model))
        };
        api.routes.iter().find_map(fit)
    };
    let (api, route, model) = APIS.iter().copied().find_map(of_api)?;
    let model = model.map(|m| name::clean(&percent_decoded(m)).into_owned()).filter(|m| !m.is_empty());
    let path = Path { stream: route.stream, model: model.map(String::into_boxed_str) };
    Some((Routed { api, path }, route.proof))
}

fn proves(proof: Proof, head: &RequestHead<'_>) -> bool {
    match proof {
        Proof::Path => true,
        Proof::Port(port) => head.host.and_then(|host| host.rsplit_once(':')).is_some_and(|(_, p)| p == port),
        Proof::Header(field) => head.headers.get(field).is_some(),
        Proof::Bodies => false,
    }
}

/// Whether `path` ends with `end`, and what its `*` stands for.
fn matched<'a>(path: &'a str, end: &str) -> Option<Option<&'a str>> {
    let Some((before, after)) = end.split_once('*') else {
        let rest = path.strip_suffix(end)?;
        return (rest.is_empty() || rest.ends_with('/') || end.starts_with('/')).then_some(None);
    };
    let rest = path.strip_suffix(after)?;
    let (_, model) = rest.rsplit_once('/').filter(|(_, model)| !model.is_empty())?;
    rest.get(..rest.len() - model.len())?.ends_with(before).then_some(Some(model))
}

/// `%XX` resolved (RFC 3986 section 2.1); what is no UTF-8 then is replaced.
pub(super) fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digit = |i: usize| (*after.get(i)? as char).to_digit(16);
        match (*first, digit(0).zip(digit(1))) {
            (b'%', Some((high, low))) => {
                bytes.push((high << 4 | low) as u8);
                rest = after.get(2..).unwrap_or_default();
            }
            (byte, _) => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

pub(super) fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// How a row of [`PROVIDERS`] compares a host.
enum Host {
    Is(&'static str),
    EndsWith(&'static str),
    StartsWith(&'static str),
}

/// Provider by host, first match wins. Names are those of OpenTelemetry's `gen_ai.provider.name` where it has one.
const PROVIDERS: &[(Host, &str)] = &[
    (Host::Is("api.openai.com"), "openai"),
    (Host::EndsWith(".api.openai.com"), "openai"),
    (Host::EndsWith(".openai.azure.com"), "azure.ai.openai"),
    (Host::EndsWith(".openai.azure.us"), "azure.ai.openai"),
    (Host::EndsWith(".openai.azure.cn"), "azure.ai.openai"),
    (Host::EndsWith(".cognitiveservices.azure.com"), "azure.ai.openai"),
    (Host::EndsWith(".services.ai.azure.com"), "azure.ai.inference"),
    (Host::EndsWith(".inference.ai.azure.com"), "azure.ai.inference"),
    (Host::Is("api.anthropic.com"), "anthropic"),
    (Host::Is("generativelanguage.googleapis.com"), "gcp.gemini"),
    (Host::Is("aiplatform.googleapis.com"), "gcp.vertex_ai"),
    (Host::EndsWith("-aiplatform.googleapis.com"), "gcp.vertex_ai"),
    (Host::EndsWith(".rep.googleapis.com"), "gcp.vertex_ai"),
    (Host::Is("claude.googleapis.com"), "gcp.vertex_ai"),
    (Host::StartsWith("bedrock-runtime"), "aws.bedrock"),
    (Host::StartsWith("bedrock-mantle"), "aws.bedrock"),
    (Host::StartsWith("aws-external-anthropic."), "aws.bedrock"),
    (Host::Is("api.cohere.com"), "cohere"),
    (Host::Is("api.cohere.ai"), "cohere"),
    (Host::Is("api.deepseek.com"), "deepseek"),
    (Host::Is("api.groq.com"), "groq"),
    (Host::Is("api.x.ai"), "x_ai"),
    (Host::EndsWith(".api.x.ai"), "x_ai"),
    (Host::Is("api.mistral.ai"), "mistral_ai"),
    (Host::Is("codestral.mistral.ai"), "mistral_ai"),
    (Host::Is("api.perplexity.ai"), "perplexity"),
    (Host::EndsWith(".ml.cloud.ibm.com"), "ibm.watsonx.ai"),
    (Host::Is("openrouter.ai"), "openrouter"),
    (Host::StartsWith("dashscope"), "dashscope"),
    (Host::StartsWith("api.moonshot."), "moonshot_ai"),
    (Host::StartsWith("api.siliconflow."), "siliconflow"),
    (Host::Is("api.together.xyz"), "together_ai"),
    (Host::Is("api.together.ai"), "together_ai"),
    (Host::Is("api.fireworks.ai"), "fireworks_ai"),
    (Host::Is("api.cerebras.ai"), "cerebras"),
    (Host::Is("router.huggingface.co"), "huggingface"),
    (Host::Is("integrate.api.nvidia.com"), "nvidia"),
    (Host::Is("api.writer.com"), "writer"),
    (Host::Is("api.voyageai.com"), "voyage_ai"),
    (Host::Is("open.bigmodel.cn"), "zhipu_ai"),
    (Host::Is("api.z.ai"), "zhipu_ai"),
    (Host::StartsWith("api.minimax"), "minimax"),
    (Host::EndsWith(".volces.com"), "volcengine"),
    (Host::Is("api.hunyuan.cloud.tencent.com"), "tencent_hunyuan"),
    (Host::Is("qianfan.baidubce.com"), "baidu_qianfan"),
];

fn provider_of_host(host: &str) -> Option<&'static str> {
    let host = host.rsplit_once(':').map_or(host, |(name, _port)| name).trim_end_matches('.').to_ascii_lowercase();
    let matches = |rule: &Host| match rule {
        Host::Is(name) => host == *name,
        Host::EndsWith(end) => host.ends_with(end),
        // A public name has a domain behind it; a machine called `dashscope` or `dashscope.local` proves nothing.
        Host::StartsWith(start) => host.starts_with(start) && host.bytes().filter(|&b| b == b'.').count() >= 2,
    };
    PROVIDERS.iter().find(|(rule, _)| matches(rule)).map(|(_, provider)| *provider)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head<'a>(method: &'a str, path: &'a str, headers: &'a [(&'a str, &'a [u8])]) -> RequestHead<'a> {
        RequestHead { method, path, host: Some("h"), headers: Headers(headers) }
    }

    #[test]
    fn paths_are_matched_at_their_end_and_on_segments() {
        for path in [
            "/v1/chat/completions",
            "/chat/completions",
            "/chat/completions/",
            "/openai/deployments/d/chat/completions?api-version=1",
            "/compatible-mode/v1/chat/completions?x=/y",
        ] {
            assert!(matches!(request(&head("POST", path, &[])), Detected::Call(_)), "{path}");
        }
        for path in ["/v1/chat/completions/x", "/v1/xchat/completions", "/x?p=/chat/completions", "/", ""] {
            assert!(matches!(request(&head("POST", path, &[])), Detected::Maybe(_)), "{path}");
        }
    }

    #[test]
    fn a_path_may_name_the_model() {
        let model = |path: &str| match request(&head("POST", path, &[])) {
            Detected::Call(routed) => routed.path.model.map(String::from),
            _ => panic!("{path}"),
        };
        assert_eq!(model("/openai/deployments/my-gpt/chat/completions?api-version=1").as_deref(), Some("my-gpt"));
        assert_eq!(model("/openai/deployments/a%2Fb%3Ac%/chat/completions").as_deref(), Some("a/b:c%"));
        assert_eq!(model("/openai/deployments//chat/completions"), None);
        assert_eq!(model("/v1/chat/completions"), None);
    }

    #[test]
    fn other_methods_and_other_bodies_are_no_calls() {
        for method in ["GET", "HEAD", "OPTIONS", "DELETE", "PUT", "post", ""] {
            assert!(matches!(request(&head(method, "/v1/chat/completions", &[])), Detected::No(_)), "{method}");
        }
        let form: [(&str, &[u8]); 1] = [("content-type", b"multipart/form-data; boundary=x")];
        assert!(matches!(request(&head("POST", "/upload", &form)), Detected::No(_)));
        let json: [(&str, &[u8]); 1] = [("Content-Type", b"application/vnd.x+json; charset=utf-8")];
        assert!(matches!(request(&head("POST", "/ask", &json)), Detected::Maybe(_)));
    }

    #[test]
    fn providers_are_known_by_host_with_and_without_port() {
        for (host, provider) in [
            ("api.openai.com", Some("openai")),
            ("API.OpenAI.com:443", Some("openai")),
            ("res.openai.azure.com", Some("azure.ai.openai")),
            ("api.deepseek.com", Some("deepseek")),
            ("api.groq.com", Some("groq")),
            ("api.x.ai", Some("x_ai")),
            ("openrouter.ai", Some("openrouter")),
            ("api.mistral.ai", Some("mistral_ai")),
            ("dashscope-intl.aliyuncs.com", Some("dashscope")),
            ("api.moonshot.cn", Some("moonshot_ai")),
            ("api.siliconflow.com", Some("siliconflow")),
            ("localhost:8000", None),
            ("[::1]:8000", None),
            ("evil-api.openai.com.example", None),
            ("notopenai.azure.com", None),
            ("dashscope.local", None),
            ("", None),
        ] {
            assert_eq!(provider_of_host(host), provider, "{host}");
        }
    }

    #[test]
    fn a_call_keeps_no_credentials() {
        let headers: [(&str, &[u8]); 4] = [
            ("authorization", b"Bearer sk-secret"),
            ("traceparent", b"00-aa-bb-01"),
            ("x-stainless-retry-count", b"2"),
            ("cookie", b"secret"),
        ];
        let mut h = head("POST", "/v1/chat/completions?key=secret#secret", &headers);
        h.host = Some("user:secret@api.openai.com:443");
        let call = call(&h, "chat");
        assert!(!format!("{call:?}").contains("secret"));
        assert_eq!(call.provider, Some("openai"));
        assert_eq!(call.host.as_deref(), Some("api.openai.com:443"));
        assert_eq!(call.path, "/v1/chat/completions");
        assert_eq!(call.traceparent.as_deref(), Some("00-aa-bb-01"));
        assert_eq!(call.retry_count, Some(2));
    }
}
