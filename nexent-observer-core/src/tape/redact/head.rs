//! Redaction of heads: what later stages read of them stays where its value can be no secret; nothing else is told at all.

use super::{Secret, text::FILLER, words};
use crate::{
    http::{Headers, RequestHead, ResponseHead},
    llm::{RATE_LIMIT, REQUEST_ID},
};

/// Header fields of a head that was redacted.
pub(super) type Fields = Vec<(String, Vec<u8>)>;

/// A redacted head of a request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) host: Option<String>,
    pub(super) fields: Fields,
    /// A later text of the answer may repeat an earlier one.
    pub(super) cumulative: bool,
}

/// Methods that stay.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
/// Content types that later stages know.
const TYPES: [&str; 10] = [
    "text/event-stream",
    "application/json",
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/stream+json",
    "application/vnd.amazon.eventstream",
    "application/octet-stream",
    "text/plain",
    "application/problem+json",
];
/// Fields whose presence alone says something.
const PRESENT: [&str; 7] = [
    "mcp-protocol-version",
    "mcp-session-id",
    "mcp-method",
    "anthropic-version",
    "x-groq-region",
    "x-ms-deployment-name",
    "azureml-model-session",
];
/// Fields with a number.
const NUMBERS: [&str; 14] = [
    "x-stainless-retry-count",
    "openai-processing-ms",
    "x-amzn-bedrock-invocation-latency",
    "x-total-time",
    "x-litellm-response-duration-ms",
    "x-kong-upstream-latency",
    "x-envoy-upstream-service-time",
    "x-prompt-tokens",
    "x-generated-tokens",
    "x-amzn-bedrock-input-token-count",
    "x-amzn-bedrock-output-token-count",
    "x-amzn-bedrock-cache-read-input-token-count",
    "x-amzn-bedrock-cache-write-input-token-count",
    "content-length",
];
/// Words of such names that the APIs use, besides those of [`words`].
const LIMIT_WORDS: [&str; 20] = [
    "x",
    "ratelimit",
    "anthropic",
    "retry",
    "after",
    "should",
    "trial",
    "endpoint",
    "call",
    "limit",
    "remaining",
    "reset",
    "requests",
    "tokens",
    "ms",
    "day",
    "minute",
    "used",
    "req",
    "policy",
];

pub(super) fn request(head: &RequestHead<'_>, secret: Secret) -> Request {
    let known = METHODS.contains(&head.method) || head.method.is_empty();
    Request {
        method: if known { head.method.to_owned() } else { "X".repeat(head.method.len().min(16)) },
        path: path(head.path),
        host: head.host.map(host),
        fields: fields(&head.headers, secret),
        cumulative: head.path.contains("/services/aigc/")
            || head.path.split('?').next().is_some_and(|path| path.ends_with("/generate")),
    }
}

pub(super) fn response(head: &ResponseHead<'_>, secret: Secret) -> Fields {
    fields(&head.headers, secret)
}

fn fields(headers: &Headers<'_>, secret: Secret) -> Fields {
    let field = |(name, value): &(&str, &[u8])| {
        let name = name.to_ascii_lowercase();
        let value = std::str::from_utf8(value).ok()?.trim();
        let value = field(&name, value, secret)?;
        Some((name, value))
    };
    headers.0.iter().filter_map(field).collect()
}

/// What stays of a field's value; `None`: the field does not stay.
fn field(name: &str, value: &str, secret: Secret) -> Option<Vec<u8>> {
    let kept = |keep: bool| keep.then(|| value.as_bytes().to_vec());
    let number = |value: &str| value.len() <= 24 && value.parse::<f64>().is_ok();
    match name {
        "content-type" => Some(content_type(value).into()),
        "accept" => {
            let known = |kind: &&str| value.contains(*kind);
            Some(
                ["application/json", "text/event-stream"]
                    .into_iter()
                    .filter(known)
                    .collect::<Vec<_>>()
                    .join(", ")
                    .into(),
            )
        }
        "upgrade" | ":protocol" => kept(value.eq_ignore_ascii_case("websocket")),
        "x-dashscope-sse" => Some(if value == "disable" { "disable" } else { "enable" }.into()),
        "traceparent" => kept(is_traceparent(value)),
        "server-timing" => {
            let google = value.split(',').map(str::trim).find(|metric| metric.starts_with("gfet4t7"))?;
            let ms = google.split(';').find_map(|part| part.trim().strip_prefix("dur=")).filter(|ms| number(ms))?;
            Some(format!("gfet4t7; dur={ms}").into())
        }
        "x-amzn-errortype" => {
            let kind = value.split(':').next().unwrap_or_default();
            Some(
                if words::is_identifier(kind.as_bytes()) && !words::is_credential(kind.as_bytes()) {
                    kind
                } else {
                    " "
                }
                .into(),
            )
        }
        _ if REQUEST_ID.contains(&name) => {
            let mut id = Vec::new();
            secret.replace_id(value.as_bytes(), &mut id);
            Some(id)
        }
        _ if PRESENT.contains(&name) => Some(vec![FILLER; value.len()]),
        _ if NUMBERS.contains(&name) => kept(number(value)),
        _ if RATE_LIMIT.iter().any(|prefix| name.starts_with(prefix)) => {
            let named = words::words(name.as_bytes(), |word| {
                LIMIT_WORDS.contains(&word) || words::is_known(word.as_bytes()) || word.parse::<u8>().is_ok()
            });
            kept(named && is_limit(value))
        }
        _ => None,
    }
}

/// The type as later stages tell types apart.
fn content_type(value: &str) -> &'static str {
    let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match TYPES.iter().find(|known| **known == kind) {
        Some(known) => known,
        None if kind.is_empty() => "",
        None if kind.ends_with("/json") || kind.ends_with("+json") => "application/json",
        None => "application/x-other",
    }
}

/// W3C Trace Context, version 00: hexadecimal digits in their places.
fn is_traceparent(value: &str) -> bool {
    let at_dash = |n: usize| matches!(n, 2 | 35 | 52);
    value.len() == 55
        && value.bytes().enumerate().all(|(n, b)| if at_dash(n) { b == b'-' } else { b.is_ascii_hexdigit() })
}

/// A number, a duration (`6m0s`, `12ms`), a time (RFC 3339, or of HTTP), or a truth value.
fn is_limit(value: &str) -> bool {
    let mut letters = 0;
    let plain = value.bytes().all(|b| {
        letters = if b.is_ascii_alphabetic() { letters + 1 } else { 0 };
        b.is_ascii_digit()
            || letters == 1 && b"smhdTZ".contains(&b)
            || letters == 2 && b == b's'
            || b".:-+".contains(&b)
    });
    let begins = value.starts_with(|c: char| c.is_ascii_digit());
    matches!(value, "true" | "false") || value.len() <= 32 && plain && begins
}

/// The host without what may stand before it.
fn host(host: &str) -> String {
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let plain = host.len() <= 255 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-[]_".contains(&b));
    if plain { host.to_owned() } else { "x".repeat(host.len().min(255)) }
}

/// The path without its query: segments that are words of APIs, and names of models where they stand. Of the query of a WebSocket,
/// which alone names its model, that name.
fn path(path: &str) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let path = path.split('#').next().unwrap_or_default();
    let mut out = String::with_capacity(path.len());
    let mut before = "";
    for (n, segment) in path.split('/').enumerate() {
        if n > 0 {
            out.push('/');
        }
        let (name, verb) =
            segment.rsplit_once(':').filter(|(_, verb)| words::is_known(verb.as_bytes())).unwrap_or((segment, ""));
        let model = matches!(before, "models" | "model" | "deployments" | "engines") || !verb.is_empty();
        let known = segment.is_empty() || words::is_known(segment.as_bytes());
        if known || model && words::is_model(name.as_bytes()) {
            out.push_str(segment);
        } else {
            out.extend(std::iter::repeat_n('x', segment.len()));
        }
        before = segment;
    }
    let named = query.split('&').find_map(|pair| {
        let (key, name) = pair.split_once('=')?;
        (matches!(key, "model" | "deployment") && words::is_model(name.as_bytes())).then_some((key, name))
    });
    if let Some((key, name)) = named.filter(|_| matches!(before, "realtime" | "responses")) {
        out.push('?');
        out.push_str(key);
        out.push('=');
        out.push_str(name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_keep_what_apis_are_made_of_and_the_names_of_models() {
        for (given, kept) in [
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("/v1/chat/completions?key=secret#secret", "/v1/chat/completions"),
            ("/hooks/T0SECRET/v1/messages", "/xxxxx/xxxxxxxx/v1/messages"),
            (
                "/openai/deployments/my-gpt/chat/completions?api-version=1",
                "/openai/deployments/my-gpt/chat/completions",
            ),
            (
                "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
                "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
            ),
            ("/v1/models/sk-live-abc", "/v1/models/xxxxxxxxxxx"),
            ("/v1/realtime?model=gpt-realtime&key=secret", "/v1/realtime?model=gpt-realtime"),
            ("/api/v1/services/aigc/text-generation/generation", "/api/v1/services/aigc/text-generation/generation"),
            ("/model/anthropic.claude-3%3A0/converse-stream", "/model/anthropic.claude-3%3A0/converse-stream"),
        ] {
            assert_eq!(path(given), kept);
        }
    }

    #[test]
    fn only_named_fields_stay_and_only_values_of_their_form() {
        let given: Vec<(&str, &[u8])> = vec![
            ("Authorization", b"Bearer secret"),
            ("Cookie", b"secret"),
            ("X-Api-Key", b"secret"),
            ("Content-Type", b"application/json; secret=secret"),
            ("Accept", b"application/json, text/event-stream, secret/secret"),
            ("x-request-id", b"secret"),
            ("x-ratelimit-remaining-tokens", b"149984"),
            ("x-ratelimit-reset-requests", b"6m0s"),
            ("x-ratelimit-secret", b"1"),
            ("x-ratelimit-limit-requests", b"secret"),
            ("retry-after", b"20"),
            ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            ("traceparent", b"secret"),
            ("openai-processing-ms", b"12.5"),
            ("x-total-time", b"secret"),
            ("server-timing", b"secret;dur=1, gfet4t7; dur=1234"),
            ("x-amzn-errortype", b"ThrottlingException:http://secret/"),
            ("x-groq-region", b"secret"),
        ];
        let fields = fields(&Headers(&given), Secret::new([7; 16]));
        let text: Vec<String> = fields.iter().map(|(n, v)| format!("{n}={}", String::from_utf8_lossy(v))).collect();
        assert!(!text.concat().contains("secret"), "{text:?}");
        for kept in [
            "content-type=application/json",
            "accept=application/json, text/event-stream",
            "x-ratelimit-remaining-tokens=149984",
            "x-ratelimit-reset-requests=6m0s",
            "retry-after=20",
            "traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "openai-processing-ms=12.5",
            "server-timing=gfet4t7; dur=1234",
            "x-amzn-errortype=ThrottlingException",
            "x-groq-region=xxxxxx",
        ] {
            assert!(text.iter().any(|field| field == kept), "{kept}: {text:?}");
        }
        assert_eq!(text.len(), 11, "{text:?}");
    }
}
