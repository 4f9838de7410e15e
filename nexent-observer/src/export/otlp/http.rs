//! OTLP/HTTP with protobuf bodies (OTLP specification, "OTLP/HTTP").

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

use super::{
    config::Target,
    transport::{Accepted, Failure, OtlpError, Request, USER_AGENT, read_pem},
};

/// Longest answer that is read, in bytes: an answer is a few numbers and a sentence.
const ANSWER_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Http {
    client: Client,
    url: Url,
    gzip: bool,
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
        Ok(Self { client: client.build().map_err(setup)?, url: target.url.clone(), gzip: target.gzip })
    }

    pub(super) async fn send(&self, request: &Request) -> Result<Accepted, Failure> {
        let body = match request {
            Request::Spans(request) => request.encode_to_vec(),
            Request::Metrics(request) => request.encode_to_vec(),
        };
        let mut post = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/x-protobuf");
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
