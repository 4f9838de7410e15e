//! OTLP/HTTP with protobuf or JSON bodies (OTLP specification, "OTLP/HTTP").

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use opentelemetry_proto::tonic::collector::{
    metrics::v1::ExportMetricsServiceResponse, trace::v1::ExportTraceServiceResponse,
};
use prost::Message;
use reqwest::{
    Certificate, Client, Identity, Response, Url,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER},
    redirect,
};
use serde_json::Value;

use super::{
    config::{Protocol, Target},
    transport::{Accepted, Failure, OtlpError, Request, USER_AGENT, read_pem},
};

/// Longest answer that is read, in bytes: an answer is a few numbers and a sentence.
const ANSWER_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    url: Url,
    gzip: bool,
    json: bool,
}

impl Http {
    pub(super) fn new(target: &Target) -> Result<Self, OtlpError> {
        ensure_tls_provider();
        let setup = |error: reqwest::Error| OtlpError::Setup(chain(&error));
        let headers: HeaderMap = target.headers.iter().cloned().collect();
        let mut client = Client::builder()
            .user_agent(USER_AGENT)
            .default_headers(headers)
            .timeout(target.timeout)
            // A redirect could carry the credentials of a header to another host.
            .redirect(redirect::Policy::none());
        if let Some(path) = &target.certificate {
            client = client.tls_certs_only(Certificate::from_pem_bundle(&read_pem(path)?).map_err(setup)?);
        }
        if let (Some(certificate), Some(key)) = (&target.client_certificate, &target.client_key) {
            let mut pem = read_pem(certificate)?;
            pem.push(b'\n');
            pem.extend(read_pem(key)?);
            client = client.identity(Identity::from_pem(&pem).map_err(setup)?);
        }
        let json = target.protocol == Protocol::HttpJson;
        Ok(Self { client: client.build().map_err(setup)?, url: target.url.clone(), gzip: target.gzip, json })
    }

    pub(super) async fn send(&self, request: &Request) -> Result<Accepted, Failure> {
        // These types give serde no cause to refuse; should it, the receiver refuses an empty body.
        let body = match (request, self.json) {
            (Request::Spans(request), false) => request.encode_to_vec(),
            (Request::Metrics(request), false) => request.encode_to_vec(),
            (Request::Spans(request), true) => serde_json::to_vec(request).unwrap_or_default(),
            (Request::Metrics(request), true) => serde_json::to_vec(request).unwrap_or_default(),
        };
        let content_type = if self.json { "application/json" } else { "application/x-protobuf" };
        let mut post = self.client.post(self.url.clone()).header(CONTENT_TYPE, content_type);
        post = if self.gzip { post.header(CONTENT_ENCODING, "gzip").body(compress(&body)) } else { post.body(body) };
        // Nothing came back: the receiver is down, slow or far away, which passes.
        let no_answer = |error: reqwest::Error| Failure { retry: true, after: None, text: chain(&error.without_url()) };
        let response = post.send().await.map_err(no_answer)?;
        let status = response.status();
        if !status.is_success() {
            let retry = matches!(status.as_u16(), 429 | 502 | 503 | 504);
            let after = retry_after(response.headers(), SystemTime::now()).filter(|_| retry);
            return Err(Failure { retry, after, text: format!("HTTP status {status}") });
        }
        let answer = read(response).await.map_err(no_answer)?;
        // The data was taken; an answer that does not parse takes nothing back.
        if self.json {
            return Ok(accepted(&answer));
        }
        Ok(match request {
            Request::Spans(_) => ExportTraceServiceResponse::decode(answer.as_slice()).unwrap_or_default().into(),
            Request::Metrics(_) => ExportMetricsServiceResponse::decode(answer.as_slice()).unwrap_or_default().into(),
        })
    }
}

/// reqwest is built without a TLS provider of its own and takes the one of the process; who installs it does not matter.
pub(crate) fn ensure_tls_provider() {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::trace!("a TLS provider was installed before");
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > ANSWER_BYTES {
            break;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// `partialSuccess` of an answer in JSON, where a 64-bit number is a text (ProtoJSON) or a number.
fn accepted(answer: &[u8]) -> Accepted {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let partial = answer.get("partialSuccess");
    let count =
        ["rejectedSpans", "rejectedDataPoints"].into_iter().find_map(|key| partial?.get(key)).and_then(|count| {
            let text = count.as_str().and_then(|text| text.parse().ok());
            count.as_u64().or(text)
        });
    let message = partial.and_then(|partial| partial.get("errorMessage")?.as_str()).unwrap_or_default();
    Accepted { rejected: count.unwrap_or_default(), message: message.to_owned() }
}

fn compress(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    // Writing to a vector does not fail.
    encoder.write_all(body).and_then(|()| encoder.finish()).unwrap_or_default()
}

/// `Retry-After` in seconds or as a date (RFC 9110 section 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).ok(),
    }
}

/// An error with its causes: reqwest's own text stops at "error sending request".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::{
        clock, fixture,
        ids::{SpanId, SpanIds, TraceId},
        otlp::{Finished, Item, OtlpConfig, span},
        policy::Kept,
    };

    #[test]
    fn json_is_written_as_the_specification_wants_it() {
        // OTLP specification, "JSON Protobuf Encoding": ids in hex, 64-bit numbers as text, enums as numbers, lowerCamelCase.
        let finished = Finished {
            observed: fixture::observed(fixture::completed()),
            ids: SpanIds { trace: TraceId([0xab; 16]), span: SpanId([0xcd; 8]), parent: None },
            retry_of: None,
            kept: Kept::default(),
            offset: clock::Offset(1_700_000_000_000_000_000),
            named: None,
        };
        let request = span::request(&[Item::Call(Box::new(finished))], &OtlpConfig::default());
        let json = serde_json::to_value(&request).unwrap();
        let span = &json["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!((&span["traceId"], &span["spanId"]), (&"ab".repeat(16).into(), &"cd".repeat(8).into()));
        assert_eq!(span["kind"], 3);
        assert_eq!(span["startTimeUnixNano"], (1_700_000_000_000_000_000 + fixture::START).to_string());
        let attributes = span["attributes"].as_array().unwrap();
        let status = attributes.iter().find(|a| a["key"] == "http.response.status_code").unwrap();
        assert_eq!(status["value"]["intValue"], "200", "{status}");
    }

    #[test]
    fn a_partial_success_in_json_is_read_and_anything_else_takes_nothing_back() {
        let of = |text: &str| {
            let Accepted { rejected, message } = accepted(text.as_bytes());
            (rejected, message)
        };
        let no_room = |rejected| (rejected, "no room".to_owned());
        assert_eq!(of(r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"no room"}}"#), no_room(3));
        assert_eq!(of(r#"{"partialSuccess":{"rejectedDataPoints":4,"errorMessage":"no room"}}"#), no_room(4));
        for text in ["", "{}", "[]", "null", r#"{"partialSuccess":{"rejectedSpans":-1}}"#, r#"{"partialSuccess":7}"#] {
            assert_eq!(of(text), (0, String::new()), "{text}");
        }
    }

    #[test]
    fn retry_after_in_seconds_and_as_a_date() {
        let now = httpdate::parse_http_date("Tue, 24 Nov 2026 10:00:00 GMT").unwrap();
        let of = |value: &str| {
            let headers = [(RETRY_AFTER, value.parse().unwrap())].into_iter().collect();
            retry_after(&headers, now)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("Tue, 24 Nov 2026 10:01:00 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(of("Tue, 24 Nov 2026 09:00:00 GMT"), None);
        assert_eq!(of("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
