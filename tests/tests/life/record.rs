//! Recordings of a busy run: what they hold, and that a replay gives the same exchanges.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use xtask::{
    process::Guarded,
    server::{Kind, LlmServer},
};

use crate::harness::{Client, Place, SOON, binary, lines, until};

/// Answers of every form, and every way in which one fails.
const SCENARIOS: [&str; 30] = [
    "plain",
    "head-with-role",
    "head-with-first",
    "head-with-first-token",
    "head-with-all",
    "coalesced",
    "cut",
    "cut-random-chunks",
    "cut-size-line",
    "multibyte",
    "multi-token",
    "tool",
    "tools",
    "reasoning",
    "refusal",
    "usage-always",
    "no-usage",
    "no-done",
    "until-close",
    "comments",
    "crlf",
    "no-space",
    "big-events",
    "fast",
    "empty",
    "stream-error",
    "abort-reset",
    "abort-close",
    "http-429",
    "http-502-html",
];

/// By their id, without what is made anew in every run: ids of spans, where the call itself brings none.
fn by_id(lines: Vec<Value>) -> BTreeMap<String, Value> {
    let lines = lines.into_iter().map(|mut line| {
        for made_up in ["trace_id", "span_id"] {
            assert!(line[made_up].take().is_string());
        }
        (line["id"].as_str().unwrap().to_owned(), line)
    });
    lines.collect()
}

/// What a recording without content leaves out on purpose: text, and ids, which become others of the same length.
fn numbers(lines: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let mut lines = lines.clone();
    for line in lines.values_mut() {
        line.as_object_mut().unwrap().remove("output_text");
        let id = line["request_id"].as_str().map(str::len);
        line["request_id"] = json!(id);
    }
    lines
}

fn replay(tape: &Path, arguments: &[&str]) -> Output {
    Command::new(binary()).arg("replay").arg(tape).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn replayed(tape: &Path, arguments: &[&str]) -> BTreeMap<String, Value> {
    let output = replay(tape, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    by_id(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Starts every scenario at once on a client, and waits for all in its log: on standard output its threads get in each other's way.
fn busy(client: &mut Client, log: &Path) -> usize {
    for (seed, scenario) in SCENARIOS.iter().enumerate() {
        let command =
            json!({"do": "chat", "scenario": scenario, "seed": seed + 1, "background": true, "tag": scenario});
        client.tell(&command);
    }
    client.tell(&json!({"do": "chat", "scenario": "plain", "stream": false}));
    let made = SCENARIOS.len() + 1;
    until("all calls", || (lines(log).len() == made).then_some(made))
}

/// A busy run with a recording: two clients with TLS and one without, and one that dies in the middle of a stream.
fn run(place: &Place, name: &str, arguments: &[&str], env: &[(&str, &str)]) -> BTreeMap<String, Value> {
    let server = place.server();
    // Apart: each server has its own certificate and log.
    let elsewhere = place.dir.join("plain");
    fs::create_dir_all(&elsewhere).unwrap();
    let plain = LlmServer::start(Kind::Plain, &elsewhere, 1).unwrap();
    let mut clients = [place.client(&server, "one"), place.client(&server, "two"), place.client(&plain, "three")];
    let mut mortal = place.client(&server, "four");
    let pids = clients.each_ref().map(Client::pid);
    let last = mortal.pid();
    let mut all: Vec<&str> = pids.iter().chain([&last]).flat_map(|pid| ["--pid", pid.as_str()]).collect();
    all.extend(["--plain-http", "on"]);
    all.extend(arguments);
    let mut observer = place.observe_with(name, &all, env);
    for client in clients.iter().chain([&mortal]) {
        observer.attached(client.process.pid());
    }
    observer.plain(clients[2].process.pid());
    let logs = ["one", "two", "three"].map(|name| place.dir.join(format!("{name}.jsonl")));
    let made: usize = clients.iter_mut().zip(&logs).map(|(client, log)| busy(client, log)).sum();
    mortal.begin_stream(1000, 10);
    mortal.tell(&json!({"do": "exit"}));
    mortal.process.wait(SOON).unwrap();
    // The stream that died too.
    observer.exchanges(made + 1);
    let live = by_id(observer.finish());
    let died = live.values().find(|line| line["pid"].as_u64().is_some_and(|pid| pid.to_string() == last)).unwrap();
    assert_eq!((&died["outcome"], &died["service"]), (&json!("client_abort"), &json!("python")), "{died}");
    eprintln!("{name}: {} exchanges of {} calls", live.len(), made + 1);
    live
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn a_recording_with_content_gives_the_same_exchanges_bit_for_bit() {
    let place = Place::new("record-content");
    let tape = place.dir.join("tape");
    let path = tape.to_str().unwrap();
    let live = run(&place, "observer", &["--record", path, "--with-content"], &[]);
    assert_eq!(fs::metadata(&tape).unwrap().mode() & 0o777, 0o600);
    let said = fs::read_to_string(place.dir.join("observer.stderr")).unwrap();
    assert!(said.contains("keep it to yourself") && said.contains("The recording is complete. "), "{said}");
    let again = replayed(&tape, &["--capture-content"]);
    assert_eq!(again, live);
    assert!(live.values().any(|line| line["output_text"].as_str().is_some_and(|text| text.len() > 100)));
    eprintln!("{} bytes for {} exchanges", size(&tape), live.len());
}

#[test]
fn a_recording_without_content_gives_the_same_numbers_and_has_no_text() {
    let place = Place::new("record-redacted");
    let tape = place.dir.join("tape");
    let live = run(&place, "observer", &["--record", tape.to_str().unwrap()], &[]);
    let again = replayed(&tape, &["--capture-content"]);
    assert_eq!(numbers(&again), numbers(&live));
    // Every outcome there is was compared.
    let outcomes: std::collections::BTreeSet<&str> =
        live.values().map(|line| line["outcome"].as_str().unwrap()).collect();
    assert!(["completed", "error", "client_abort"].iter().all(|it| outcomes.contains(it)), "{outcomes:?}");
    let texts = again.values().filter_map(|line| line["output_text"].as_str());
    assert!(texts.clone().any(|text| !text.is_empty()));
    for text in texts {
        assert!(text.bytes().all(|b| b == b'x'), "{text}");
    }
    eprintln!("{} bytes for {} exchanges", size(&tape), live.len());
    // Whoever gets the file needs no rights to look at it.
    let shared = std::env::temp_dir().join(format!("nexent-observer-tape-{}", std::process::id()));
    let program = shared.with_extension("program");
    fs::copy(&tape, &shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o644)).unwrap();
    fs::copy(binary(), &program).unwrap();
    let output =
        Command::new(&program).arg("replay").arg(&shared).uid(65_534).gid(65_534).current_dir("/").output().unwrap();
    fs::remove_file(&program).unwrap();
    fs::remove_file(&shared).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout.iter().filter(|b| **b == b'\n').count(), live.len());
}

#[test]
fn a_loss_is_in_the_recording_and_in_its_replay() {
    for (name, arguments) in [("content", &["--with-content"][..]), ("redacted", &[])] {
        let place = Place::new(&format!("record-loss-{name}"));
        let tape = place.dir.join("tape");
        let arguments: Vec<&str> = ["--record", tape.to_str().unwrap()].iter().chain(arguments).copied().collect();
        let live = run(&place, "observer", &arguments, &[("NEXENT_OBSERVER_TEST_FAULT", "drop_record:400")]);
        assert!(
            live.values().any(|line| line["outcome"] == "incomplete" && line["bytes_lost"] != 0),
            "nothing was lost"
        );
        assert_eq!(numbers(&replayed(&tape, &["--capture-content"])), numbers(&live));
    }
}

#[test]
fn a_recording_that_was_cut_anywhere_is_read_up_to_there() {
    let place = Place::new("record-cut");
    let server = place.server();
    let mut client = place.client(&server, "client");
    let tape = place.dir.join("tape");
    let (pid, path) = (client.pid(), tape.to_str().unwrap());
    // The command of its own: without a port, and ended by its time.
    let mut command = Command::new(binary());
    command.args(["record", path, "--pid", &pid, "--seconds", "4"]);
    let log = place.dir.join("record.stderr");
    command.stderr(fs::File::create(&log).unwrap());
    let mut recorder = Guarded::spawn("record", &mut command).unwrap();
    until("it is attached", || fs::read_to_string(&log).unwrap().contains("Attached.").then_some(()));
    for _ in 0..3 {
        client.chat();
    }
    assert!(recorder.wait(SOON).unwrap().success());
    let whole = replayed(&tape, &[]);
    assert_eq!(whole.len(), 3);
    let bytes = fs::read(&tape).unwrap();
    let cut = place.dir.join("cut");
    for end in (bytes.len() / 2..bytes.len()).step_by(bytes.len() / 20) {
        fs::write(&cut, &bytes[..end]).unwrap();
        let output = replay(&cut, &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        // Before the end of the first block there is nothing to replay.
        let nothing = said.contains("the recording ends before its first entry");
        assert!(nothing || output.status.success() && said.contains("The recording was cut"), "{end}: {said}");
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["chunks"], whole[line["id"].as_str().unwrap()]["chunks"]);
        }
    }
    let mut damaged = bytes;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&cut, &damaged).unwrap();
    let output = replay(&cut, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("damaged"));
}

#[test]
fn a_recorded_stall_can_be_seen_again_by_any_client() {
    let place = Place::new("record-serve");
    let server = place.server();
    let mut client = place.client(&server, "client");
    let tape = place.dir.join("tape");
    let pid = client.pid();
    let mut observer = place.observe("observer", &["--pid", &pid, "--record", tape.to_str().unwrap()]);
    observer.attached(client.process.pid());
    client.chat();
    client.tell(&json!({"do": "chat", "scenario": "stall"}));
    client.chatted();
    observer.exchanges(2);
    let live = observer.finish();
    let stalled = live.iter().find(|line| line["stalls"] != json!([])).expect("a stall");
    let log = place.dir.join("serve.stderr");
    let mut command = Command::new(binary());
    command.arg("replay").arg(&tape).args(["--serve", "127.0.0.1:0"]).stderr(fs::File::create(&log).unwrap());
    let _server = Guarded::spawn("serve", &mut command).unwrap();
    let address = until("the address that it serves at", || {
        let said = fs::read_to_string(&log).unwrap();
        said.split("is served at http://").nth(1).and_then(|rest| rest.split('/').next()).map(str::to_owned)
    });
    assert!(fs::read_to_string(&log).unwrap().contains(&format!("Exchange {} ", stalled["id"].as_str().unwrap())));
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}").unwrap();
    let (mut bytes, mut silence, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
    let mut buffer = [0; 65_536];
    loop {
        let got = stream.read(&mut buffer).unwrap();
        silence = silence.max(last.elapsed());
        last = Instant::now();
        bytes.extend_from_slice(&buffer[..got]);
        if got == 0 {
            break;
        }
    }
    let took = began.elapsed().as_secs_f64();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("text/event-stream"), "{text}");
    // The SDK stops reading at the end marker, and so what comes after it was never seen.
    assert!(text.contains("data: [DONE]\n\n"), "{text}");
    // A machine under load is late, never early.
    let recorded = stalled["stalls"][0].as_array().unwrap();
    let stall = Duration::from_nanos(recorded[1].as_u64().unwrap() - recorded[0].as_u64().unwrap());
    assert!(silence + Duration::from_millis(50) >= stall, "{silence:?} of {stall:?}");
    assert!(took + 0.05 >= stalled["duration_s"].as_f64().unwrap(), "{took}");
    let events = text.matches("data: {").count();
    assert!(events > stalled["chunks"].as_array().unwrap().len(), "{events}");
}
