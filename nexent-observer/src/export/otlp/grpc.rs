//! OTLP/gRPC (OTLP specification, "OTLP/gRPC").

use std::time::Duration;

use opentelemetry_proto::tonic::collector::{
    metrics::v1::metrics_service_client::MetricsServiceClient, trace::v1::trace_service_client::TraceServiceClient,
};
use prost::Message;
use tonic::{
    Code, Status,
    codec::CompressionEncoding,
    metadata::MetadataMap,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{
    config::Target,
    transport::{Accepted, Failure, OtlpError, Request, USER_AGENT, read_pem},
};

/// Type of the detail that says how long to wait (google.rpc.RetryInfo).
const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

#[derive(Debug)]
pub(super) struct Grpc {
    channel: Channel,
    headers: MetadataMap,
    gzip: bool,
    timeout: Duration,
}

impl Grpc {
    pub(super) fn new(target: &Target) -> Result<Self, OtlpError> {
        let setup = |error: tonic::transport::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            OtlpError::Setup(format!("{error}: {cause}"))
        };
        let mut endpoint = Endpoint::from_shared(target.url.to_string())
            .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
            .map_err(setup)?
            .connect_timeout(target.timeout);
        if target.url.scheme() == "https" {
            let mut tls = match &target.certificate {
                Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read_pem(path)?)),
                None => ClientTlsConfig::new().with_native_roots(),
            };
            if let (Some(certificate), Some(key)) = (&target.client_certificate, &target.client_key) {
                tls = tls.identity(Identity::from_pem(read_pem(certificate)?, read_pem(key)?));
            }
            endpoint = endpoint.tls_config(tls).map_err(setup)?;
        }
        let headers = MetadataMap::from_headers(target.headers.iter().cloned().collect());
        Ok(Self { channel: endpoint.connect_lazy(), headers, gzip: target.gzip, timeout: target.timeout })
    }

    pub(super) async fn send(&self, request: Request) -> Result<Accepted, Failure> {
        let gzip = CompressionEncoding::Gzip;
        let answer = match request {
            Request::Spans(request) => {
                let mut client = TraceServiceClient::new(self.channel.clone()).accept_compressed(gzip);
                client = if self.gzip { client.send_compressed(gzip) } else { client };
                client.export(self.with_metadata(request)).await.map(|answer| answer.into_inner().into())
            }
            Request::Metrics(request) => {
                let mut client = MetricsServiceClient::new(self.channel.clone()).accept_compressed(gzip);
                client = if self.gzip { client.send_compressed(gzip) } else { client };
                client.export(self.with_metadata(request)).await.map(|answer| answer.into_inner().into())
            }
        };
        answer.map_err(|status| failure(&status))
    }

    fn with_metadata<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        request.set_timeout(self.timeout);
        request
    }
}

/// Retryable codes by the OTLP specification; RESOURCE_EXHAUSTED only when the receiver says that it will recover.
fn failure(status: &Status) -> Failure {
    let after = retry_delay(status.details());
    let retry = match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::ResourceExhausted => after.is_some(),
        // tonic says so when the connection broke in the middle of a call.
        Code::Unknown => std::error::Error::source(status).is_some(),
        _ => false,
    };
    Failure { retry, after: after.filter(|_| retry), text: format!("gRPC {:?}: {}", status.code(), status.message()) }
}

/// The part of google.rpc.Status that carries details.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<ProtoDuration>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ProtoDuration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

fn retry_delay(details: &[u8]) -> Option<Duration> {
    let status = RpcStatus::decode(details).ok()?;
    let info = status.details.iter().find(|any| any.type_url == RETRY_INFO)?;
    let ProtoDuration { seconds, nanos } = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay?;
    let nanos = u64::try_from(nanos).ok()?;
    Some(Duration::from_secs(u64::try_from(seconds).ok()?).saturating_add(Duration::from_nanos(nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(seconds: i64, nanos: i32) -> Vec<u8> {
        let info = RetryInfo { retry_delay: Some(ProtoDuration { seconds, nanos }) };
        let any = Any { type_url: RETRY_INFO.into(), value: info.encode_to_vec() };
        RpcStatus { details: vec![any] }.encode_to_vec()
    }

    #[test]
    fn codes_are_retried_as_the_specification_says() {
        let retried = |code| failure(&Status::new(code, "")).retry;
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Aborted, Code::DataLoss, Code::Cancelled] {
            assert!(retried(code), "{code:?}");
        }
        for code in [Code::InvalidArgument, Code::Unauthenticated, Code::Unimplemented, Code::ResourceExhausted] {
            assert!(!retried(code), "{code:?}");
        }
        let full = Status::with_details(Code::ResourceExhausted, "", details(2, 500_000_000).into());
        assert_eq!(failure(&full).after, Some(Duration::from_millis(2500)));
        assert!(failure(&full).retry);
    }

    #[test]
    fn broken_details_give_no_delay() {
        assert_eq!(retry_delay(b""), None);
        assert_eq!(retry_delay(&[0xff; 40]), None);
        assert_eq!(retry_delay(&details(-1, 0)), None);
    }
}
