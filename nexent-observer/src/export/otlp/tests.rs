//! Tests against receivers that are slow, refusing, dead, and back again.

use std::{
    collections::HashMap,
    io::Read,
    net::SocketAddr,
    sync::{
        Mutex as StdMutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, response::IntoResponse, routing::post};
use opentelemetry_proto::tonic::collector::{
    metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
};
use prost::Message;
use tokio::net::TcpListener;
use tonic::{Request as GrpcRequest, Response as GrpcResponse, Status, codec::CompressionEncoding};

use super::*;
use crate::{export::fixture, telemetry::Register};

/// How a receiver behaves; may be changed while it runs.
#[derive(Debug, Default)]
struct Behaviour {
    /// HTTP status to answer with (gRPC: UNAVAILABLE) instead of taking the data; 0: take it.
    refuse: AtomicUsize,
    /// Milliseconds before the answer.
    delay_ms: AtomicU64,
    /// Spans refused of each request.
    partial: AtomicUsize,
}

/// What a receiver got.
#[derive(Debug, Default)]
struct Got {
    behaviour: Behaviour,
    attempts: AtomicUsize,
    spans: AtomicUsize,
    traces: StdMutex<Vec<ExportTraceServiceRequest>>,
    metrics: StdMutex<Vec<ExportMetricsServiceRequest>>,
    headers: StdMutex<Vec<(String, String)>>,
}

impl Got {
    /// Waits as told; says with what status to refuse.
    async fn attempt(&self) -> Option<u16> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(self.behaviour.delay_ms.load(Ordering::SeqCst))).await;
        Some(self.behaviour.refuse.load(Ordering::SeqCst) as u16).filter(|status| *status != 0)
    }

    fn take_traces(&self, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse {
        let spans = request.resource_spans.iter().flat_map(|r| &r.scope_spans).map(|s| s.spans.len());
        self.spans.fetch_add(spans.sum(), Ordering::SeqCst);
        self.traces.lock().unwrap().push(request);
        let rejected = self.behaviour.partial.load(Ordering::SeqCst) as i64;
        let partial = ExportTracePartialSuccess { rejected_spans: rejected, error_message: "no room".into() };
        ExportTraceServiceResponse { partial_success: (rejected > 0).then_some(partial) }
    }
}

async fn http(State(got): State<Arc<Got>>, headers: HeaderMap, uri: axum::http::Uri, body: Bytes) -> impl IntoResponse {
    let refuse = got.attempt().await;
    *got.headers.lock().unwrap() =
        headers.iter().map(|(k, v)| (k.to_string(), v.to_str().unwrap_or_default().to_owned())).collect();
    if let Some(status) = refuse {
        let status = axum::http::StatusCode::from_u16(status).unwrap();
        return (status, [("retry-after", "0")]).into_response();
    }
    let body = if headers.get("content-encoding").is_some_and(|v| v == "gzip") {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
        plain
    } else {
        body.to_vec()
    };
    let json = headers.get("content-type").is_some_and(|v| v == "application/json");
    if json && uri.path() == "/v1/traces" {
        let answer = got.take_traces(serde_json::from_slice(&body).unwrap());
        serde_json::to_vec(&answer).unwrap().into_response()
    } else if json {
        got.metrics.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
        b"{}".into_response()
    } else if uri.path() == "/v1/traces" {
        let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        got.take_traces(request).encode_to_vec().into_response()
    } else {
        got.metrics.lock().unwrap().push(ExportMetricsServiceRequest::decode(body.as_slice()).unwrap());
        ExportMetricsServiceResponse::default().encode_to_vec().into_response()
    }
}

struct GrpcReceiver(Arc<Got>);

#[tonic::async_trait]
impl TraceService for GrpcReceiver {
    async fn export(
        &self,
        request: GrpcRequest<ExportTraceServiceRequest>,
    ) -> Result<GrpcResponse<ExportTraceServiceResponse>, Status> {
        let key = request.metadata().get("x-key").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        self.0.headers.lock().unwrap().push(("x-key".into(), key));
        match self.0.attempt().await {
            Some(400) => Err(Status::invalid_argument("no")),
            Some(_) => Err(Status::unavailable("later")),
            None => Ok(GrpcResponse::new(self.0.take_traces(request.into_inner()))),
        }
    }
}

#[tonic::async_trait]
impl MetricsService for GrpcReceiver {
    async fn export(
        &self,
        request: GrpcRequest<ExportMetricsServiceRequest>,
    ) -> Result<GrpcResponse<ExportMetricsServiceResponse>, Status> {
        self.0.metrics.lock().unwrap().push(request.into_inner());
        Ok(GrpcResponse::new(ExportMetricsServiceResponse::default()))
    }
}

/// A receiver that can be killed and started again on the same port.
struct Receiver {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Receiver {
    async fn start(protocol: Protocol, addr: Option<SocketAddr>, got: &Arc<Got>) -> Self {
        let listener = TcpListener::bind(addr.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap())).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let got = Arc::clone(got);
        let task = tokio::spawn(async move {
            match protocol {
                Protocol::Http | Protocol::HttpJson => {
                    let router =
                        Router::new().route("/v1/traces", post(http)).route("/v1/metrics", post(http)).with_state(got);
                    axum::serve(listener, router).await.unwrap();
                }
                Protocol::Grpc => {
                    let gzip = CompressionEncoding::Gzip;
                    let traces = TraceServiceServer::new(GrpcReceiver(Arc::clone(&got))).accept_compressed(gzip);
                    let metrics = MetricsServiceServer::new(GrpcReceiver(got)).accept_compressed(gzip);
                    let server = tonic::transport::Server::builder().add_service(traces).add_service(metrics);
                    let incoming = tonic::transport::server::TcpIncoming::from(listener);
                    server.serve_with_incoming(incoming).await.unwrap();
                }
            }
        });
        Self { addr, task }
    }

    async fn kill(self) -> SocketAddr {
        let Self { addr, task } = self;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        addr
    }
}

fn config(addr: SocketAddr, protocol: Protocol, more: &[(&str, &str)]) -> OtlpConfig {
    let name = match protocol {
        Protocol::Http => "http/protobuf",
        Protocol::HttpJson => "http/json",
        Protocol::Grpc => "grpc",
    };
    let mut env: HashMap<String, String> = HashMap::from([
        ("OTEL_EXPORTER_OTLP_PROTOCOL".to_owned(), name.to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY".to_owned(), "10".to_owned()),
    ]);
    env.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    let loaded = load(&env, Some(&format!("http://{addr}")));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let mut config = loaded.config.unwrap();
    config.backoff_first = Duration::from_millis(20);
    config.backoff_max = Duration::from_millis(100);
    config
}

fn start(config: &OtlpConfig) -> (Otlp, Channel, Channel) {
    let health = Health::new(&Register::default()).unwrap();
    let otlp = Otlp::start(config, &health).unwrap();
    (otlp, health.channel(Exporter::Otlp, Signal::Spans), health.channel(Exporter::Otlp, Signal::Metrics))
}

fn send(otlp: &Otlp, n: usize) {
    for _ in 0..n {
        let observed = fixture::observed(fixture::completed());
        otlp.measure(&observed);
        let ids = SpanIds::of_call(&observed.exchange.call);
        let named = None;
        otlp.span(Item::Call(Box::new(Finished {
            observed,
            ids,
            retry_of: None,
            kept: Kept::default(),
            offset: clock::Offset(0),
            named,
        })));
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn spans_and_metrics_arrive_over_every_protocol_compressed_and_with_headers() {
    for protocol in [Protocol::Http, Protocol::HttpJson, Protocol::Grpc] {
        let got = Arc::<Got>::default();
        let receiver = Receiver::start(protocol, None, &got).await;
        let more = [("OTEL_EXPORTER_OTLP_HEADERS", "x-key=s3cret"), ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")];
        let (otlp, spans, metrics) = start(&config(receiver.addr, protocol, &more));
        send(&otlp, 1300);
        until("all spans", || got.spans.load(Ordering::SeqCst) == 1300).await;
        assert!(got.headers.lock().unwrap().contains(&("x-key".into(), "s3cret".into())), "{protocol:?}");
        otlp.shutdown(5 * SECOND).await;
        assert_eq!(spans.exported.get(), 1300);
        assert_eq!((spans.depth.get(), spans.failures.get()), (0, 0));
        // Batches hold at most 512.
        assert!(got.traces.lock().unwrap().len() >= 3);
        // The interval of a minute never came: the last metrics go out at shutdown.
        let exports = got.metrics.lock().unwrap().len();
        assert_eq!((exports, metrics.exported.get()), (1, 6), "{protocol:?}");
        receiver.kill().await;
    }
}

#[tokio::test]
async fn a_dead_receiver_costs_a_bounded_queue_and_counters_and_data_arrives_when_it_is_back() {
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let got = Arc::<Got>::default();
        let addr = Receiver::start(protocol, None, &got).await.kill().await;
        let more = [("OTEL_BSP_MAX_QUEUE_SIZE", "100"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "50")];
        let (otlp, spans, _) = start(&config(addr, protocol, &more));
        let began = std::time::Instant::now();
        send(&otlp, 1000);
        assert!(began.elapsed() < SECOND, "the loop never waits");
        until("failures", || spans.failures.get() > 2).await;
        send(&otlp, 1000);
        let dropped = spans.dropped_so_far(DropCause::QueueFull);
        assert!(spans.depth.get() <= 150, "{}", spans.depth.get());
        assert_eq!(dropped + spans.depth.get() as u64, 2000);
        let receiver = Receiver::start(protocol, Some(addr), &got).await;
        until("recovery", || spans.depth.get() == 0).await;
        assert_eq!(got.spans.load(Ordering::SeqCst) as u64, 2000 - dropped);
        assert_eq!(spans.exported.get() + dropped, 2000);
        otlp.shutdown(SECOND).await;
        receiver.kill().await;
    }
}

#[tokio::test]
async fn a_refusal_that_passes_is_retried_and_one_that_does_not_is_not() {
    for protocol in [Protocol::Http, Protocol::Grpc] {
        for (status, retried) in [(429, true), (502, true), (503, true), (504, true), (400, false)] {
            if protocol == Protocol::Grpc && ![503, 400].contains(&status) {
                continue;
            }
            let got = Arc::<Got>::default();
            got.behaviour.refuse.store(status, Ordering::SeqCst);
            let receiver = Receiver::start(protocol, None, &got).await;
            let (otlp, spans, _) = start(&config(receiver.addr, protocol, &[]));
            send(&otlp, 5);
            if retried {
                until("retries", || got.attempts.load(Ordering::SeqCst) > 2).await;
                got.behaviour.refuse.store(0, Ordering::SeqCst);
                until("delivery", || spans.exported.get() == 5).await;
            } else {
                until("drop", || spans.dropped_so_far(DropCause::Rejected) == 5).await;
                assert_eq!(got.attempts.load(Ordering::SeqCst), 1);
            }
            otlp.shutdown(SECOND).await;
            receiver.kill().await;
        }
    }
}

#[tokio::test]
async fn a_receiver_too_slow_for_the_timeout_is_given_up_after_the_export_timeout() {
    let got = Arc::<Got>::default();
    got.behaviour.delay_ms.store(60_000, Ordering::SeqCst);
    let receiver = Receiver::start(Protocol::Http, None, &got).await;
    let more = [("OTEL_EXPORTER_OTLP_TIMEOUT", "50"), ("OTEL_BSP_EXPORT_TIMEOUT", "400")];
    let (otlp, spans, _) = start(&config(receiver.addr, Protocol::Http, &more));
    send(&otlp, 3);
    until("timeout", || spans.dropped_so_far(DropCause::Timeout) == 3).await;
    assert!(spans.failures.get() >= 2, "it was tried again");
    assert_eq!(spans.depth.get(), 0);
    otlp.shutdown(SECOND).await;
    receiver.kill().await;
}

#[tokio::test]
async fn a_part_that_is_refused_for_good_is_counted_and_not_sent_again() {
    let got = Arc::<Got>::default();
    got.behaviour.partial.store(2, Ordering::SeqCst);
    let receiver = Receiver::start(Protocol::Http, None, &got).await;
    let (otlp, spans, _) = start(&config(receiver.addr, Protocol::Http, &[]));
    send(&otlp, 5);
    until("delivery", || spans.exported.get() == 3).await;
    assert_eq!(spans.dropped_so_far(DropCause::Rejected), 2);
    otlp.shutdown(SECOND).await;
    assert_eq!(got.attempts.load(Ordering::SeqCst), 2, "spans once, metrics once");
    receiver.kill().await;
}

#[tokio::test]
async fn shutdown_flushes_within_its_deadline_and_counts_what_is_left() {
    let got = Arc::<Got>::default();
    let receiver = Receiver::start(Protocol::Http, None, &got).await;
    let late = [("OTEL_BSP_SCHEDULE_DELAY", "600000")];
    let (otlp, spans, _) = start(&config(receiver.addr, Protocol::Http, &late));
    send(&otlp, 10);
    otlp.shutdown(5 * SECOND).await;
    assert_eq!(spans.exported.get(), 10, "a long delay does not hold the flush up");

    let addr = receiver.kill().await;
    let (otlp, spans, metrics) = start(&config(addr, Protocol::Http, &late));
    send(&otlp, 10);
    let began = std::time::Instant::now();
    otlp.shutdown(SECOND / 2).await;
    assert!(began.elapsed() < 3 * SECOND);
    assert_eq!(spans.dropped_so_far(DropCause::Shutdown), 10);
    assert_eq!(metrics.dropped_so_far(DropCause::Shutdown), 6);
}

#[tokio::test]
async fn metrics_go_out_at_the_interval_and_delta_loses_nothing_when_an_export_fails() {
    let got = Arc::<Got>::default();
    got.behaviour.refuse.store(400, Ordering::SeqCst);
    let receiver = Receiver::start(Protocol::Http, None, &got).await;
    let more = [
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "30"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
    ];
    let (otlp, _, metrics) = start(&config(receiver.addr, Protocol::Http, &more));
    send(&otlp, 2);
    until("a failed export", || metrics.dropped_so_far(DropCause::Rejected) > 0).await;
    send(&otlp, 1);
    got.behaviour.refuse.store(0, Ordering::SeqCst);
    until("an export", || metrics.exported.get() >= 6).await;
    otlp.shutdown(SECOND).await;
    let mut durations = 0;
    for metric in got.metrics.lock().unwrap().iter().flat_map(|r| &r.resource_metrics).flat_map(|r| &r.scope_metrics) {
        for metric in metric.metrics.iter().filter(|m| m.name == "gen_ai.client.operation.duration") {
            let Some(opentelemetry_proto::tonic::metrics::v1::metric::Data::Histogram(h)) = &metric.data else {
                panic!()
            };
            assert_eq!(h.aggregation_temporality, 1, "delta");
            durations += h.data_points.iter().map(|p| p.count).sum::<u64>();
        }
    }
    assert_eq!(durations, 3);
    receiver.kill().await;
}

#[tokio::test]
async fn huge_exchanges_are_bounded_by_bytes_not_only_by_number() {
    let got = Arc::<Got>::default();
    let addr = Receiver::start(Protocol::Http, None, &got).await.kill().await;
    let (otlp, spans, _) = start(&config(addr, Protocol::Http, &[]));
    for _ in 0..100 {
        let mut observed = fixture::observed(fixture::completed());
        observed.exchange.output_text = Some("x".repeat(1 << 20));
        let ids = SpanIds::of_call(&observed.exchange.call);
        let named = None;
        otlp.span(Item::Call(Box::new(Finished {
            observed,
            ids,
            retry_of: None,
            kept: Kept::default(),
            offset: clock::Offset(0),
            named,
        })));
    }
    assert!(spans.depth.get() < 32, "{}", spans.depth.get());
    assert!(spans.dropped_so_far(DropCause::QueueFull) > 68);
    otlp.shutdown(SECOND / 10).await;
}

#[tokio::test]
async fn an_unreadable_certificate_is_a_clear_error() {
    let health = Health::new(&Register::default()).unwrap();
    for protocol in ["grpc", "http/protobuf"] {
        let env = HashMap::from([
            ("OTEL_EXPORTER_OTLP_PROTOCOL".to_owned(), protocol.to_owned()),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE".to_owned(), "/nonexistent/ca.pem".to_owned()),
        ]);
        let config = load(&env, Some("https://127.0.0.1:9")).config.unwrap();
        let text = Otlp::start(&config, &health).unwrap_err().to_string();
        assert!(text.contains("/nonexistent/ca.pem") && text.contains("OTEL_EXPORTER_OTLP_CERTIFICATE"), "{text}");
    }
}

#[path = "tls_tests.rs"]
mod tls;
