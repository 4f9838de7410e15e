//! In-process hooks through real probes: every call bears the name of the endpoint that made it, and none bears a wrong one. Needs
//! root, eBPF and `cargo xtask build`.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde_json::Value;
use xtask::{
    clients::Driver,
    observer::Observer,
    python,
    server::{Kind, LlmServer},
    sh, truth,
};

/// Side by side they would take each other's interpreter away.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// JSON lines by request id.
fn by_request(path: &Path) -> HashMap<String, Value> {
    let lines = fs::read_to_string(path).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| Some((line["request_id"].as_str()?.to_owned(), line))).collect()
}

/// Runs the service against a server of `kind`, and compares the endpoint of every call.
fn every_call_is_named(name: &str, kind: Kind) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let python = python::hooks().unwrap();
    let target = sh::target_dir(&sh::root().unwrap());
    let dir = target.join("hooks").join(name);
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir).unwrap();
    let server = LlmServer::start(kind, &dir, 1).unwrap();
    let mut command = Command::new(python);
    command.arg(sh::fixture("hooks/endpoints.py").unwrap()).env("ENABLE_TELEMETRY", "true");
    let mut client = Driver::launch(command, name, &server, &dir, &[]).unwrap();
    let targets: Vec<String> = ["--pid", &client.pids[0].to_string(), "--plain-http", "on"].map(str::to_owned).into();
    let binary = target.join("release/nexent-observer");
    let mut observer = Observer::start(&binary, &targets, &dir, truth::free_address().unwrap(), None).unwrap();
    observer.attached(1, Duration::from_secs(30)).unwrap();
    client.go().unwrap();
    let calls = client.done(Duration::from_secs(120)).unwrap();
    thread::sleep(Duration::from_millis(500));
    observer.stop().unwrap();
    let (made, seen) = (by_request(&client.log), by_request(&observer.jsonl));
    assert_eq!((made.len() as u64, seen.len()), (calls, made.len()));
    for (id, call) in &made {
        let line = seen.get(id).unwrap_or_else(|| panic!("{id} was not seen"));
        assert_eq!(line["endpoint"], call["endpoint"], "{id}");
        let rule = if call["endpoint"].is_null() { Value::Null } else { "hook".into() };
        assert_eq!(line["parent_rule"], rule, "{id}");
    }
    // One trace for each endpoint that ran: its calls share it, and no other's do.
    let mut traces: HashMap<&str, &str> = HashMap::new();
    for line in seen.values().filter(|line| !line["endpoint"].is_null()) {
        let (endpoint, trace) = (line["endpoint"].as_str().unwrap(), line["trace_id"].as_str().unwrap());
        assert_eq!(*traces.entry(endpoint).or_insert(trace), trace, "{endpoint}");
    }
    let distinct: std::collections::HashSet<_> = traces.values().collect();
    assert_eq!(distinct.len(), traces.len());
}

#[test]
fn tasks_and_threads_that_call_over_tls_are_told_apart() {
    every_call_is_named("tls", Kind::Simulated);
}

#[test]
fn tasks_and_threads_that_call_over_plain_http_are_told_apart() {
    every_call_is_named("plain", Kind::Plain);
}
