//! Peers that send what no peer should: counted, bounded, and the next exchange is right.

use std::{fs, process::Command, time::Duration};

use serde_json::{Value, json};
use xtask::{process::Guarded, server::Certificate, sh};

use crate::harness::{Observer, Place, SOON};

/// A client that sends and reads raw bytes.
pub(crate) struct RawClient {
    pub(crate) process: Guarded,
}

impl RawClient {
    pub(crate) fn pid(&self) -> String {
        self.process.pid().to_string()
    }

    /// One command; its answer.
    pub(crate) fn ask(&mut self, command: &Value) -> Value {
        use std::io::Write;
        let stdin = self.process.stdin().expect("a client that listens");
        writeln!(stdin, "{command}").and_then(|()| stdin.flush()).unwrap();
        self.process.event("asked", Duration::from_secs(60)).unwrap()
    }
}

/// The hostile server and a client of it.
pub(crate) fn peers(place: &Place) -> (Guarded, RawClient) {
    let Certificate { cert, key } = Certificate::make(&place.dir).unwrap();
    let errors = |name: &str| fs::File::create(place.dir.join(name)).unwrap();
    let mut command = Command::new("python3");
    command.arg(sh::fixture("hostile/server.py").unwrap()).arg("--cert").arg(&cert).arg("--key").arg(&key);
    let server = Guarded::talking("hostile server", command.stderr(errors("server.stderr"))).unwrap();
    let port = server.event("listening", SOON).unwrap()["port"].to_string();
    let mut command = Command::new(&place.python);
    command.arg(sh::fixture("hostile/client.py").unwrap()).args(["--port", &port]).arg("--cafile").arg(&cert);
    let process = Guarded::talking("raw client", command.stderr(errors("client.stderr"))).unwrap();
    process.event("ready", SOON).unwrap();
    (server, RawClient { process })
}

/// The exchange is the server's normal one.
pub(crate) fn assert_good(exchange: &Value) {
    assert_eq!(exchange["outcome"], "completed", "{exchange}");
    assert_eq!(exchange["output_text"], "one two three", "{exchange}");
    assert_eq!(exchange["usage"]["output"], 3, "{exchange}");
    assert_eq!(exchange["usage"]["input"], 5, "{exchange}");
    assert_eq!(exchange["chunks"].as_array().map(Vec::len), Some(3), "{exchange}");
    assert_eq!(exchange["bytes_lost"], 0, "{exchange}");
    assert!(exchange["ttft_s"].as_f64().is_some_and(|s| s > 0.0 && s < 5.0), "{exchange}");
}

/// Highest resident memory of a process so far, MiB.
fn peak_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// What is to be counted after a case; empty: it only has to do no harm.
const CASES: &[(&str, &str)] = &[
    ("no-http", "not_http"),
    ("bad-status-line", ""),
    ("nul-in-header", "head_invalid"),
    ("chunk-size-no-number", "chunk_invalid"),
    ("chunk-size-overflow", "chunk_invalid"),
    ("chunk-size-endless", "chunk_invalid"),
    ("chunk-too-short", "chunk_invalid"),
    ("invalid-utf8", "utf8_invalid"),
    ("invalid-json", "json_invalid"),
    ("deep-json", "json_invalid"),
    ("wrong-types", ""),
    ("endless-event", "event_too_long"),
    ("huge-header", "head_too_long"),
];

fn drops(observer: &Observer) -> f64 {
    observer.metrics().sum("nexent_observer_drops_total", &[])
}

/// A normal completion after a case, on whatever connection there is.
fn next_is_right(client: &mut RawClient, observer: &Observer, good: &mut usize, after: &str) {
    assert_eq!(client.ask(&json!({"do": "ask", "case": "good"}))["open"], true, "after {after}");
    *good += 1;
    let found = crate::harness::until(&format!("the exchange after {after}"), || {
        let all = crate::harness::lines(&observer.jsonl);
        let good_ones: Vec<Value> =
            all.into_iter().filter(|exchange| exchange["output_text"] == "one two three").collect();
        (good_ones.len() == *good).then_some(good_ones)
    });
    assert_good(&found[*good - 1]);
}

#[test]
fn after_each_hostile_answer_a_defect_is_counted_and_the_next_exchange_is_right() {
    let place = Place::new("hostile");
    let (_server, mut client) = peers(&place);
    let mut observer = place.observe("observer", &["--pid", &client.pid()]);
    observer.attached(client.process.pid());
    let mut good = 0;
    next_is_right(&mut client, &observer, &mut good, "the beginning");
    assert_eq!(drops(&observer), 0.0);
    for (case, reason) in CASES {
        let label = if reason.is_empty() { String::new() } else { format!("reason=\"{reason}\"") };
        let counted = || observer.metrics().sum("nexent_observer_drops_total", &[&label]);
        let before = counted();
        let answer = client.ask(&json!({"do": "ask", "case": case}));
        assert!(answer["bytes"].as_u64() > Some(0), "{case}: {answer}");
        next_is_right(&mut client, &observer, &mut good, case);
        if !reason.is_empty() {
            observer.until_metric("nexent_observer_drops_total", &[&label], |n| n > before);
        }
        eprintln!(
            "{case}: {} bytes, {reason} +{}, peak {} MiB",
            answer["bytes"],
            counted() - before,
            peak_mib(observer.process.pid())
        );
    }
    assert!(peak_mib(observer.process.pid()) < 150);
    observer.until_metric("nexent_observer_open_exchanges", &[], |n| n == 0.0);
    // The spoilt streams that ended well lack or mend the bad event, and nothing else.
    for exchange in observer.finish().iter().filter(|exchange| exchange["outcome"] == "completed") {
        let text = exchange["output_text"].as_str().unwrap();
        assert!(text.starts_with("one") && (text.ends_with(" two") || text == "one two three"), "{exchange}");
    }
}

#[test]
fn after_hostile_requests_the_next_exchange_is_right() {
    let place = Place::new("hostile-requests");
    let (_server, mut client) = peers(&place);
    // Of a request only its beginning is copied; once less than the longest head, once more.
    let mut cutting = place.observe("cutting", &["--pid", &client.pid()]);
    let mut observer = place.observe("observer", &["--pid", &client.pid(), "--write-head-bytes", "1MiB"]);
    cutting.attached(client.process.pid());
    observer.attached(client.process.pid());
    let mut good = 0;
    client.ask(&json!({"do": "raw", "bytes": 100_000}));
    next_is_right(&mut client, &observer, &mut good, "bytes that are no HTTP");
    observer.until_metric("nexent_observer_drops_total", &["reason=\"not_http\""], |n| n > 0.0);
    let answer = client.ask(&json!({"do": "ask", "case": "good", "long_header": 20 << 20}));
    assert_eq!(answer["open"], true, "the server takes such a request");
    let found = observer.until_metric("nexent_observer_drops_total", &["reason=\"head_too_long\""], |n| n > 0.0);
    client.ask(&json!({"do": "raw", "bytes": 3}));
    client.ask(&json!({"do": "ask", "case": "good"}));
    for (name, observer) in [("cutting", &mut cutting), ("observer", &mut observer)] {
        eprintln!("{name}: peak {} MiB", peak_mib(observer.process.pid()));
        assert!(peak_mib(observer.process.pid()) < 150, "{}", found.0);
        observer.exchanges(3);
        let exchanges = observer.finish();
        assert_eq!(exchanges.len(), 3, "{exchanges:?}");
        assert_good(&exchanges[0]);
        // Where the kernel half left bytes out on purpose, the lines before them are known and the answer is whole; a head that is
        // too long is not read at all. The body lies behind what was left out in both.
        let outcome = if name == "cutting" { "completed" } else { "incomplete" };
        assert_eq!(exchanges[1]["outcome"], outcome, "{name}: {}", exchanges[1]);
        assert_eq!(exchanges[1]["ttft_s"].is_null(), name != "cutting", "{name}: {}", exchanges[1]);
        assert!(exchanges[1]["model"].is_null(), "{name}: {}", exchanges[1]);
        assert_good(&exchanges[2]);
    }
}
