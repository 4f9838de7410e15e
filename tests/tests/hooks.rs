//! In-process hooks through real probes: every call bears the name of the endpoint that made it, and none bears a wrong one. Needs
//! root, eBPF and `cargo xtask build`.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use xtask::{
    clients::Driver,
    golang::{self, Toolchain},
    observer::Observer,
    probe_point::{self, Language},
    process::Guarded,
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

/// An empty directory for the logs of a test.
fn scratch(name: &str) -> PathBuf {
    let dir = sh::target_dir(&sh::root().unwrap()).join("hooks").join(name);
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// An observer that is attached to this process.
fn observed(pid: u32, dir: &Path) -> Observer {
    let targets: Vec<String> = ["--pid", &pid.to_string(), "--plain-http", "on"].map(str::to_owned).into();
    let binary = sh::target_dir(&sh::root().unwrap()).join("release/nexent-observer");
    let mut observer = Observer::start(&binary, &targets, dir, truth::free_address().unwrap(), None).unwrap();
    observer.attached(1, Duration::from_secs(30)).unwrap();
    observer
}

fn python_service(_: &LlmServer) -> Command {
    let mut command = Command::new(python::hooks().unwrap());
    command.arg(sh::fixture("hooks/endpoints.py").unwrap()).env("ENABLE_TELEMETRY", "true");
    command
}

fn node_service(server: &LlmServer) -> Command {
    let mut command = Command::new("node");
    command
        .arg(sh::fixture("hooks/endpoints.mjs").unwrap())
        .env("NEXENT_OBSERVER_ADDON", probe_point::node_addon().unwrap())
        .env("NEXENT_OBSERVER_HOOKS", sh::root().unwrap().join("sdk/examples/node/hooks.mjs"))
        .env("NODE_EXTRA_CA_CERTS", &server.certificate.cert);
    command
}

/// Runs the service against a server of `kind`, and compares the endpoint of every call.
fn every_call_is_named(name: &str, kind: Kind, service: fn(&LlmServer) -> Command) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = scratch(name);
    let server = LlmServer::start(kind, &dir, 1).unwrap();
    let mut client = Driver::launch(service(&server), name, &server, &dir, &[]).unwrap();
    let mut observer = observed(client.pids[0], &dir);
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
    every_call_is_named("tls", Kind::Simulated, python_service);
}

#[test]
fn tasks_and_threads_that_call_over_plain_http_are_told_apart() {
    every_call_is_named("plain", Kind::Plain, python_service);
}

#[test]
fn asynchronous_contexts_of_node_are_told_apart() {
    every_call_is_named("node", Kind::Simulated, node_service);
}

/// The number of announcements that were, or were not, understood.
fn announcements(observer: &Observer, understood: bool) -> f64 {
    let name = format!("nexent_observer_announcements_total{{understood=\"{understood}\"}} ");
    let metrics = observer.metrics().unwrap();
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    value.unwrap_or_else(|| panic!("{name} is not in\n{metrics}")).parse().unwrap()
}

fn the_header_speaks(name: &str, language: Language) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = scratch(name);
    let mut speaker = Guarded::talking(name, &mut Command::new(probe_point::speaker(language).unwrap())).unwrap();
    let soon = Duration::from_secs(30);
    assert_eq!(speaker.event("ready", soon).unwrap()["listening"], 0, "nobody is there yet");
    let mut observer = observed(speaker.pid(), &dir);
    speaker.say("go").unwrap();
    assert_eq!(speaker.event("said", soon).unwrap()["listening"], 1);
    let until = Instant::now() + soon;
    while announcements(&observer, true) + announcements(&observer, false) < 4.0 && Instant::now() < until {
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((announcements(&observer, true), announcements(&observer, false)), (3.0, 1.0));
    observer.stop().unwrap();
    speaker.say("go").unwrap();
    assert_eq!(speaker.event("said", soon).unwrap()["listening"], 0, "the observer is gone");
    speaker.close_stdin();
    assert!(speaker.wait(soon).unwrap().success());
}

#[test]
fn a_program_in_c_speaks_through_the_header() {
    the_header_speaks("c", Language::C);
}

#[test]
fn a_program_in_cpp_speaks_through_the_header() {
    the_header_speaks("cpp", Language::Cpp);
}

/// It ends by itself, too soon for a probe to come in between, so only what it does without one is seen here.
#[test]
fn the_example_in_go_builds_with_both_toolchains_and_gets_its_answer() {
    let dir = scratch("go");
    let server = LlmServer::start(Kind::Simulated, &dir, 1).unwrap();
    for toolchain in [Toolchain::Debian, Toolchain::Current] {
        let mut command = Command::new(golang::example(toolchain).unwrap());
        command.arg(format!("{}/chat/completions", server.base_url)).env("SSL_CERT_FILE", &server.certificate.cert);
        let output = command.output().unwrap();
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && errors.is_empty(), "{toolchain:?}: {errors}");
        assert!(said.contains("data: [DONE]"), "{toolchain:?}: {said}");
    }
}
