//! One connection to a receiver, whatever the protocol.

use std::{fs, io, path::Path, path::PathBuf, time::Duration};

use opentelemetry_proto::tonic::collector::{
    metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
    trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
};

use super::{
    config::{Protocol, Target},
    grpc::Grpc,
    http::Http,
};

/// How the observer names itself to a receiver.
pub(super) const USER_AGENT: &str = concat!("OTel-OTLP-Exporter-Rust/", env!("CARGO_PKG_VERSION"), " nexent-observer");

/// Settings that can never work.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// A PEM file cannot be read.
    #[error("cannot read {}: {source}; check OTEL_EXPORTER_OTLP_CERTIFICATE, _CLIENT_CERTIFICATE and _CLIENT_KEY", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The client cannot be made, for the most part because a certificate or key is no valid PEM.
    #[error("cannot set up OTLP export: {0}")]
    Setup(String),
}

/// What the receiver took.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Accepted {
    /// Items that it refused for good.
    pub(super) rejected: u64,
    /// Why.
    pub(super) message: String,
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// Whether another attempt makes sense.
    pub(super) retry: bool,
    /// How long the receiver asks to wait.
    pub(super) after: Option<Duration>,
    /// What happened, without URL credentials or headers.
    pub(super) text: String,
}

/// What is sent.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Spans(ExportTraceServiceRequest),
    Metrics(ExportMetricsServiceRequest),
}

#[derive(Debug)]
pub(super) enum Transport {
    Http(Http),
    Grpc(Box<Grpc>),
}

impl Transport {
    pub(super) fn new(target: &Target) -> Result<Self, OtlpError> {
        Ok(match target.protocol {
            Protocol::Http | Protocol::HttpJson => Self::Http(Http::new(target)?),
            Protocol::Grpc => Self::Grpc(Box::new(Grpc::new(target)?)),
        })
    }

    /// One attempt.
    pub(super) async fn send(&self, request: &Request) -> Result<Accepted, Failure> {
        match self {
            Self::Http(http) => http.send(request).await,
            Self::Grpc(grpc) => grpc.send(request.clone()).await,
        }
    }
}

impl From<ExportTraceServiceResponse> for Accepted {
    fn from(response: ExportTraceServiceResponse) -> Self {
        let partial = response.partial_success.unwrap_or_default();
        Self { rejected: u64::try_from(partial.rejected_spans).unwrap_or(0), message: partial.error_message }
    }
}

impl From<ExportMetricsServiceResponse> for Accepted {
    fn from(response: ExportMetricsServiceResponse) -> Self {
        let partial = response.partial_success.unwrap_or_default();
        Self { rejected: u64::try_from(partial.rejected_data_points).unwrap_or(0), message: partial.error_message }
    }
}

pub(super) fn read_pem(path: &Path) -> Result<Vec<u8>, OtlpError> {
    fs::read(path).map_err(|source| OtlpError::File { path: path.to_owned(), source })
}
