//! The facts that the headers of a response carry. Only headers that are named here are ever kept.

use super::{
    ResponseFacts, Usage,
    api::Api,
    detect::{BodyKind, starts_with_ignore_case},
    name,
};
use crate::{
    http::{Headers, ResponseHead},
    limits::RATE_LIMIT_HEADERS,
};

/// Facts of a response head.
pub(super) fn facts(head: &ResponseHead<'_>, api: Option<&Api>) -> ResponseFacts {
    let headers = &head.headers;
    let clean = |text: &str| name::clean(text).into_owned();
    ResponseFacts {
        status: head.status,
        stream: BodyKind::of(headers).is_stream(),
        provider: provider_of_headers(headers).or_else(|| api.map(|a| a.fallback_provider)),
        request_id: REQUEST_ID.iter().find_map(|n| headers.get(n)).filter(|id| !id.is_empty()).map(clean),
        processing_ms: PROCESSING_MS.iter().find_map(|(name, read)| read(headers.get(name)?)),
        rate_limit: headers
            .0
            .iter()
            .filter(|(n, _)| RATE_LIMIT.iter().any(|prefix| starts_with_ignore_case(n, prefix)))
            .filter_map(|(n, v)| Some((clean(&n.to_ascii_lowercase()), clean(std::str::from_utf8(v).ok()?.trim()))))
            .take(RATE_LIMIT_HEADERS)
            .collect(),
    }
}

/// Token counts that stand in headers, beside or instead of those in the body: Bedrock's InvokeModel (the cache is not part
/// of its input) and TGI.
pub(super) fn usage(headers: &Headers<'_>) -> Usage {
    let count = |name: &str| headers.get(name).and_then(|v| v.parse::<u64>().ok());
    let bedrock = |what: &str| count(&format!("x-amzn-bedrock-{what}-token-count"));
    let Some(input) = bedrock("input") else {
        return Usage { input: count("x-prompt-tokens"), output: count("x-generated-tokens"), ..Usage::default() };
    };
    let cache = [bedrock("cache-read-input"), bedrock("cache-write-input")];
    let all = cache.iter().try_fold(input, |sum, part| sum.checked_add(part.unwrap_or(0)));
    Usage { input: all, output: bedrock("output"), cached_input: cache[0], reasoning: None }
}

/// What a header says about an error, where the body does not: AWS's `x-amzn-errortype`, `Name:http://...`.
pub(super) fn error_kind(headers: &Headers<'_>) -> Option<String> {
    let kind = headers.get("x-amzn-errortype")?;
    Some(kind.split(':').next().unwrap_or_default()).filter(|kind| name::is_identifier(kind)).map(str::to_owned)
}

/// Headers with the provider's request id, best first; those of gateways last.
pub(crate) const REQUEST_ID: [&str; 10] = [
    "x-request-id",
    "apim-request-id",
    "request-id",
    "x-amzn-requestid",
    "mistral-correlation-id",
    "x-debug-trace-id",
    "x-ds-trace-id",
    "x-siliconcloud-trace-id",
    "x-generation-id",
    "x-litellm-call-id",
];

/// Headers with the time that the provider took until it answered, in milliseconds, best first: OpenAI, Bedrock, TGI,
/// LiteLLM, Gemini; then what proxies in front of a provider measured.
const PROCESSING_MS: [(&str, Read); 7] = [
    ("openai-processing-ms", milliseconds),
    ("x-amzn-bedrock-invocation-latency", milliseconds),
    ("x-total-time", milliseconds),
    ("x-litellm-response-duration-ms", milliseconds),
    ("server-timing", server_timing),
    ("x-kong-upstream-latency", milliseconds),
    ("x-envoy-upstream-service-time", milliseconds),
];

/// Reads the milliseconds out of a header.
type Read = fn(&str) -> Option<f64>;

fn milliseconds(value: &str) -> Option<f64> {
    value.parse().ok().filter(|ms: &f64| ms.is_finite() && *ms >= 0.0)
}

/// Google's own metric in `Server-Timing` (W3C): `gfet4t7; dur=1234`.
fn server_timing(value: &str) -> Option<f64> {
    let metric = value.split(',').map(str::trim).find(|metric| metric.starts_with("gfet4t7"))?;
    milliseconds(metric.split(';').find_map(|part| part.trim().strip_prefix("dur="))?)
}

/// Beginnings of the names of headers that tell rate limits.
pub(crate) const RATE_LIMIT: [&str; 6] =
    ["x-ratelimit-", "ratelimit-", "anthropic-ratelimit-", "retry-after", "x-should-retry", "x-trial-endpoint-call-"];

/// Provider by a response header that only its servers (or its gateways) send. For hosts that say nothing.
const PROVIDER_HEADERS: &[(&str, &str)] = &[
    ("x-groq-region", "groq"),
    ("x-ms-deployment-name", "azure.ai.openai"),
    ("azureml-model-session", "azure.ai.openai"),
    ("x-generation-id", "openrouter"),
    ("mistral-correlation-id", "mistral_ai"),
    ("x-ds-trace-id", "deepseek"),
    ("x-siliconcloud-trace-id", "siliconflow"),
    ("x-amzn-bedrock-input-token-count", "aws.bedrock"),
    ("openai-processing-ms", "openai"),
];

fn provider_of_headers(headers: &Headers<'_>) -> Option<&'static str> {
    PROVIDER_HEADERS.iter().find(|(n, _)| headers.get(n).is_some()).map(|(_, provider)| *provider)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_tell_tokens_times_and_errors() {
        let response = |fields: &[(&str, &[u8])]| facts(&ResponseHead { status: None, headers: Headers(fields) }, None);
        for (name, value, ms) in [
            ("openai-processing-ms", "12.5", Some(12.5)),
            ("x-amzn-bedrock-invocation-latency", "900", Some(900.0)),
            ("Server-Timing", "cache;dur=1, gfet4t7; dur=1234", Some(1234.0)),
            ("server-timing", "db;dur=7", None),
            ("x-envoy-upstream-service-time", "88", Some(88.0)),
            ("x-envoy-upstream-service-time", "-1", None),
            ("x-total-time", "nan", None),
        ] {
            assert_eq!(response(&[(name, value.as_bytes())]).processing_ms, ms, "{name}: {value}");
        }
        for (name, id) in [("x-debug-trace-id", "cohere"), ("x-ds-trace-id", "deepseek"), ("x-generation-id", "gen-1")]
        {
            assert_eq!(response(&[(name, id.as_bytes())]).request_id.as_deref(), Some(id));
        }
        let bedrock: [(&str, &[u8]); 4] = [
            ("x-amzn-bedrock-input-token-count", b"36"),
            ("x-amzn-bedrock-output-token-count", b"58"),
            ("x-amzn-bedrock-cache-read-input-token-count", b"150"),
            ("x-amzn-bedrock-cache-write-input-token-count", b"50"),
        ];
        let read = usage(&Headers(&bedrock));
        assert_eq!(read, Usage { input: Some(236), output: Some(58), cached_input: Some(150), reasoning: None });
        let tgi: [(&str, &[u8]); 2] = [("x-prompt-tokens", b"7"), ("x-generated-tokens", b"x")];
        assert_eq!(usage(&Headers(&tgi)), Usage { input: Some(7), ..Usage::default() });
        assert_eq!(usage(&Headers(&[])), Usage::default());
        for (value, kind) in [
            ("ThrottlingException", Some("ThrottlingException")),
            ("ValidationException:http://internal.amazon.com/x", Some("ValidationException")),
            ("not a name", None),
        ] {
            assert_eq!(error_kind(&Headers(&[("x-amzn-ErrorType", value.as_bytes())])).as_deref(), kind);
        }
    }

    #[test]
    fn response_facts_are_the_named_headers_only_and_capped() {
        let many: Vec<(String, Vec<u8>)> =
            (0..100).map(|i| (format!("X-RateLimit-{i}"), i.to_string().into())).collect();
        let mut headers: Vec<(&str, &[u8])> = vec![
            ("content-type", b"text/event-stream; charset=utf-8"),
            ("x-request-id", b"req_1"),
            ("apim-request-id", b"apim"),
            ("openai-processing-ms", b"12.5"),
            ("Retry-After-Ms", b"7"),
            ("set-cookie", b"secret"),
            ("x-ratelimit-bad", b"\xff"),
        ];
        headers.extend(many.iter().map(|(n, v)| (n.as_str(), v.as_slice())));
        let facts = facts(&ResponseHead { status: Some(200), headers: Headers(&headers) }, None);
        assert!(facts.stream);
        assert_eq!(facts.request_id.as_deref(), Some("req_1"));
        assert_eq!(facts.processing_ms, Some(12.5));
        assert_eq!(facts.provider, Some("openai"));
        assert_eq!(facts.rate_limit.len(), RATE_LIMIT_HEADERS);
        assert_eq!(facts.rate_limit[0], ("retry-after-ms".into(), "7".into()));
        assert_eq!(facts.rate_limit[1], ("x-ratelimit-0".into(), "0".into()));
        assert!(!format!("{facts:?}").contains("secret"));
    }
}
