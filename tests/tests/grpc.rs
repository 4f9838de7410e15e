//! gRPC's Python wheel, whose BoringSSL has no symbols: its TLS is found and hooked on both sides, nothing is invented, and both sides
//! get the very same bytes with and without an observer. Needs root, eBPF and `cargo xtask build`.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use serde_json::Value;
use xtask::{
    observer::{Observer, sum},
    process::Guarded,
    python,
    server::Certificate,
    sh,
    truth::free_address,
};

/// Longest that anything takes.
const LONGEST: Duration = Duration::from_secs(60);

/// A process of `calls.py`, and what it says first.
fn start(dir: &Path, name: &str, event: &str, arguments: &[&str]) -> (Guarded, Value) {
    let errors = fs::File::create(dir.join(format!("{name}.stderr"))).unwrap();
    let mut command = Command::new(python::grpc().unwrap());
    command.arg(sh::fixture("grpc/calls.py").unwrap()).args(arguments).stderr(errors);
    let process = Guarded::talking(name, &mut command).unwrap();
    let said = process.event(event, LONGEST).unwrap();
    (process, said)
}

/// Lets a client make its calls; what it says of them.
fn made(client: &mut Guarded) -> Value {
    client.say("go").unwrap();
    let said = client.event("done", LONGEST).unwrap();
    assert!(client.wait(LONGEST).unwrap().success());
    said
}

fn emptied(name: &str) -> (PathBuf, PathBuf) {
    let target = sh::target_dir(&sh::root().unwrap());
    let dir = target.join(name);
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir).unwrap();
    let binary = target.join("release/nexent-observer");
    assert!(binary.exists(), "{} is missing: cargo xtask build", binary.display());
    (dir, binary)
}

#[test]
fn grpc_is_hooked_on_both_sides_and_nothing_of_it_is_taken_for_a_language_model() {
    let (dir, binary) = emptied("grpc");
    let certificate = Certificate::make(&dir).unwrap();
    let (cert, key) = (certificate.cert.to_str().unwrap(), certificate.key.to_str().unwrap());
    let (server, listening) = start(&dir, "server", "listening", &["serve", cert, key]);
    let port = listening["port"].to_string();
    let (mut alone, _) = start(&dir, "alone", "ready", &["call", cert, &port]);
    let wanted = made(&mut alone);
    assert_eq!((&wanted["calls"], &wanted["wrong"]), (&80.into(), &0.into()));

    let (mut client, _) = start(&dir, "client", "ready", &["call", cert, &port]);
    let targets: Vec<String> =
        [server.pid(), client.pid()].iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]).collect();
    let mut observer = Observer::start(&binary, &targets, &dir, free_address().unwrap(), None).unwrap();
    observer.attached(2, LONGEST).unwrap();
    for pid in [server.pid(), client.pid()] {
        let hooks = observer.hooks(pid.into());
        let found = hooks.iter().any(|line| line.contains("cygrpc") && line.contains("tls=BoringSSL without symbols"));
        assert!(found, "{hooks:?}");
    }
    assert_eq!(made(&mut client), wanted, "observed, it gets something else");

    thread::sleep(Duration::from_secs(1));
    let metrics = observer.metrics().unwrap();
    fs::write(dir.join("metrics.txt"), &metrics).unwrap();
    let of = |name: &str| sum(&metrics, name, &[]);
    // Both ends of each call.
    assert_eq!(of("nexent_observer_http_exchanges_total"), 160.0, "each call is an exchange of HTTP/2");
    assert_eq!(of("nexent_observer_llm_exchanges_total"), 0.0);
    assert_eq!(of("nexent_observer_lost_records_total"), 0.0);
    observer.stop().unwrap();
    assert_eq!(fs::read_to_string(&observer.jsonl).unwrap_or_default(), "", "no call of a language model");

    // The server has outlived the observer, and is as it was.
    let (mut again, _) = start(&dir, "again", "ready", &["call", cert, &port]);
    assert_eq!(made(&mut again), wanted);
}
