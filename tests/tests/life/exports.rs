//! Receivers that are down, come back, or have no room.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use crate::harness::{Place, assert_right, by_request, until};

type Bodies = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A collector that takes OTLP over HTTP and keeps the bodies, each with its path.
struct Collector {
    bodies: Bodies,
    end: Arc<AtomicBool>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn listen(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let (bodies, end) = (Bodies::default(), Arc::new(AtomicBool::new(false)));
        let (kept, ended) = (Arc::clone(&bodies), Arc::clone(&end));
        let thread = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let kept = Arc::clone(&kept);
                thread::spawn(move || {
                    let mut reader = BufReader::new(stream);
                    while let Some((path, body)) = post(&mut reader) {
                        kept.lock().unwrap().push((path, body));
                        let answer =
                            b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
                        if reader.get_mut().write_all(answer).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self { bodies, end, address, thread: Some(thread) }
    }

    /// Whether a span with this attribute value came.
    fn has(&self, text: &str) -> bool {
        self.got("/v1/traces", text)
    }

    /// Whether this text came at this path: strings stand in protobuf as they are.
    fn got(&self, path: &str, text: &str) -> bool {
        let bodies = self.bodies.lock().unwrap();
        let of_path = bodies.iter().filter(|(at, _)| at == path);
        of_path.into_iter().any(|(_, body)| body.windows(text.len()).any(|window| window == text.as_bytes()))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        drop(std::net::TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// One request; `None` at the end of the connection.
fn post(reader: &mut impl BufRead) -> Option<(String, Vec<u8>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let mut field = String::new();
        reader.read_line(&mut field).ok().filter(|n| *n > 0)?;
        if field == "\r\n" {
            break;
        }
        if let Some(value) = field.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, body))
}

#[test]
fn a_collector_that_is_down_costs_a_bounded_queue_and_when_it_is_back_spans_arrive() {
    let place = Place::new("collector");
    let server = place.server();
    let mut client = place.client(&server, "client");
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let otlp = format!("http://{address}");
    let env = [
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "6"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "1500"),
        ("OTEL_METRICS_EXPORTER", "none"),
    ];
    let mut observer = place.observe_with("observer", &["--pid", &client.pid(), "--otlp", &otlp], &env);
    observer.attached(client.process.pid());
    let of = ["exporter=\"otlp\"", "signal=\"spans\""];
    let mut made = Vec::new();
    for _ in 0..20 {
        made.push(client.chat());
        let depth = observer.metrics().sum("nexent_observer_queue_depth", &of);
        assert!(depth <= 8.0, "six in the queue, two in a batch under way: {depth}");
    }
    observer.until_metric("nexent_observer_export_failures_total", &of, |n| n >= 2.0);
    let metrics = observer.until_metric("nexent_observer_export_dropped_total", &of, |n| n >= 6.0);
    let full = metrics.sum("nexent_observer_export_dropped_total", &[of[0], of[1], "reason=\"queue_full\""]);
    let timeout = metrics.sum("nexent_observer_export_dropped_total", &[of[0], of[1], "reason=\"timeout\""]);
    let failures = metrics.sum("nexent_observer_export_failures_total", &of);
    eprintln!("down: {failures} failed attempts, {full} spans dropped at a full queue, {timeout} after retries");
    assert_eq!(metrics.sum("nexent_observer_exported_total", &of), 0.0);
    assert!(full > 0.0, "{}", metrics.0);
    // The rest of the observer went on.
    observer.exchanges(made.len());
    let collector = Collector::listen(address);
    // The first ones may still meet a full queue.
    until("the span of a call made after the collector was back", || {
        let next = client.chat();
        let id = next["request_id"].as_str().unwrap().to_owned();
        made.push(next);
        // Before a call is told, its span is in no queue.
        observer.exchanges(made.len());
        observer.until_metric("nexent_observer_queue_depth", &of, |n| n == 0.0);
        collector.has(&id).then_some(())
    });
    assert!(collector.has("chat sim-no-done"));
    observer.until_metric("nexent_observer_queue_depth", &of, |n| n == 0.0);
    let exchanges = observer.finish();
    assert_eq!(exchanges.len(), made.len());
    let found = by_request(&exchanges);
    for one in &made {
        assert_right(found[one["request_id"].as_str().unwrap()], one, &server);
    }
}

#[test]
fn a_slow_call_is_kept_and_says_why_and_where_its_time_went_under_the_names_that_were_asked_for() {
    let place = Place::new("slow");
    let server = place.server();
    let mut client = place.client(&server, "client");
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let collector = Collector::listen(address);
    let (jaeger, metrics) = (format!("http://{address}"), format!("http://{address}/v1/metrics"));
    let env = [
        ("JAEGER_ENDPOINT", jaeger.as_str()),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &metrics),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "300"),
        ("OTEL_SEMCONV_STABILITY_OPT_IN", "gen_ai_latest_experimental"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
        ("LLM_SLOW_REQUEST_THRESHOLD_SECONDS", "1.5"),
        ("LLM_SLOW_TOKEN_RATE_THRESHOLD", "20"),
    ];
    let mut observer = place.observe_with("observer", &["--pid", &client.pid()], &env);
    observer.attached(client.process.pid());
    let fast = client.chat();
    client.tell(&serde_json::json!({"do": "chat", "scenario": "no-done", "chunks": 20, "pause_ms": 100}));
    let slow = client.chatted();
    let id = |answer: &serde_json::Value| answer["request_id"].as_str().unwrap().to_owned();
    until("the span of the slow call", || collector.has(&id(&slow)).then_some(()));
    for text in ["nexent.kept.reasons", "duration", "token_rate", "nexent.phase.decode", "nexent.phase.largest"] {
        assert!(collector.has(text), "{text}");
    }
    let sampled_out = observer.until_metric("nexent_observer_sampled_out_spans_total", &[], |n| n == 1.0);
    for (reason, spans) in [("duration", 1.0), ("token_rate", 1.0), ("error", 0.0), ("stall", 0.0)] {
        let label = format!("reason=\"{reason}\"");
        assert_eq!(sampled_out.sum("nexent_observer_kept_spans_total", &[&label]), spans, "{reason}");
    }
    assert_eq!(observer.finish().len(), 2);
    assert!(!collector.has(&id(&fast)), "neither slow nor failed, and nothing is sampled");
    assert!(collector.got("/v1/metrics", "gen_ai.client.inference.duration"));
    assert!(!collector.got("/v1/metrics", "gen_ai.client.operation.duration"));
}

#[test]
fn a_full_disk_is_counted_and_said_once() {
    let place = Place::new("full-disk");
    let server = place.server();
    let mut client = place.client(&server, "client");
    let mut observer = place.observe("observer", &["--pid", &client.pid(), "--jsonl", "/dev/full"]);
    observer.attached(client.process.pid());
    for _ in 0..5 {
        client.chat();
    }
    let of = ["exporter=\"jsonl\"", "signal=\"lines\"", "reason=\"write_error\""];
    let metrics = observer.until_metric("nexent_observer_export_dropped_total", &of, |n| n >= 5.0);
    assert_eq!(metrics.sum("nexent_observer_export_dropped_total", &of), 5.0);
    assert_eq!(metrics.sum("nexent_observer_exported_total", &of[..2]), 0.0);
    assert_eq!(metrics.sum("llm_requests", &[]), 5.0, "the metrics know them all");
    observer.finish();
    let said = observer.said();
    let told: Vec<&str> = said.lines().filter(|line| line.contains("/dev/full") || line.contains("No space")).collect();
    assert_eq!(told.len(), 1, "said once: {said}");
}
