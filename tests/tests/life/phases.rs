//! Phases of a connection and causes of stalls, each beside what the client itself measured: connect, TLS handshake, when the request was
//! with the socket, who was late, what was sent again.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use xtask::{
    golang::{self, Link, Toolchain},
    process::Guarded,
    server::LlmServer,
    sh,
};

use crate::harness::{Observer, Place, SOON, lines, until};

/// How long the relay holds a handshake up.
const HOLD_MS: u64 = 400;
const HOLD_NS: u64 = HOLD_MS * 1_000_000;

/// A network between client and server (`phases/relay.py`).
struct Relay {
    _process: Guarded,
    port: u64,
}

impl Relay {
    fn to(server: &LlmServer, flags: &[&str]) -> Self {
        let mut command = Command::new("python3");
        command.arg(sh::fixture("phases/relay.py").unwrap()).args(["--to", &server.port.to_string()]).args(flags);
        let process = Guarded::talking("relay", &mut command).unwrap();
        let port = process.event("listening", SOON).unwrap()["port"].as_u64().unwrap();
        Self { _process: process, port }
    }

    fn holding(server: &LlmServer) -> Self {
        Self::to(server, &["--hold-ms", &HOLD_MS.to_string()])
    }

    /// By address: `localhost` may be [::1] first, where it does not listen.
    fn base_url(&self) -> String {
        format!("https://127.0.0.1:{}/v1", self.port)
    }
}

/// The SDK, which says what it measured itself (`phases/client.py`).
struct Client(Guarded);

impl Client {
    fn start(place: &Place, server: &LlmServer, flags: &[&str]) -> Self {
        let mut command = Command::new(&place.python);
        command.arg(sh::fixture("phases/client.py").unwrap()).args(flags);
        command.env("PYTHONPATH", sh::fixture("clients").unwrap()).env("SSL_CERT_FILE", &server.certificate.cert);
        command.stderr(fs::File::create(place.dir.join("client.stderr")).unwrap());
        let process = Guarded::talking("client", &mut command).unwrap();
        process.event("ready", SOON).unwrap();
        Self(process)
    }

    fn chat(&mut self, command: &Value) -> Value {
        let stdin = self.0.stdin().unwrap();
        writeln!(stdin, "{command}").and_then(|()| stdin.flush()).unwrap();
        let answer = self.0.event("chat", SOON).unwrap();
        assert!(answer["error"].is_null(), "{answer}");
        answer
    }
}

fn observed(observer: &Observer, request_id: &Value) -> Value {
    until(&format!("{request_id} in {}", observer.jsonl.display()), || {
        lines(&observer.jsonl).into_iter().find(|it| it["request_id"] == *request_id)
    })
}

fn ns(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// Connect and handshake of the connection that a call was made on, within what the client measured around them.
fn assert_made(exchange: &Value, relay: &Relay, connect_ns: u64, tls_ns: u64) {
    assert_eq!(exchange["outcome"], "completed", "{exchange}");
    assert_eq!(exchange["peer"], format!("127.0.0.1:{}", relay.port), "{exchange}");
    let (connect, tls) = (ns(&exchange["connect_ns"]), ns(&exchange["tls_ns"]));
    assert!(connect > 0 && connect <= connect_ns, "connect {connect}, the client says {connect_ns}");
    // The server was silent for so long within the handshake; what the client measures has its own work around it.
    assert!(tls >= HOLD_NS && tls <= tls_ns + 1_000_000, "handshake {tls}, the client says {tls_ns}");
    eprintln!("connect {connect} of {connect_ns} ns, handshake {tls} of {tls_ns} ns, {}", exchange["socket_source"]);
}

/// The request was written, then sent, then answered.
fn assert_sent(exchange: &Value) -> u64 {
    let times =
        ["request_start_ns", "request_written_ns", "request_sent_ns", "first_byte_ns"].map(|key| ns(&exchange[key]));
    assert!(times.is_sorted(), "{exchange}");
    times[2] - times[1]
}

fn phases_of_the_sdk(name: &str, flags: &[&str], source: &str) {
    let place = Place::new(name);
    let server = place.server();
    let relay = Relay::holding(&server);
    let mut client = Client::start(&place, &server, flags);
    let mut observer = place.observe("observer", &["--pid", &client.0.pid().to_string()]);
    observer.attached(client.0.pid());
    for scenario in ["no-done", "slow-first"] {
        let said = client.chat(&json!({"do": "chat", "base_url": relay.base_url(), "scenario": scenario}));
        let made = &said["connections"][0];
        let exchange = observed(&observer, &said["exchange"]["request_id"]);
        assert_made(&exchange, &relay, ns(&made["connect_ns"]), ns(&made["tls_ns"]));
        assert_eq!(exchange["socket_source"], source);
        let after_write = assert_sent(&exchange);
        assert_eq!(after_write == 0, source == "inside_write", "{exchange}");
        assert_eq!(exchange["first_token_cause"], "late_arrival", "{exchange}");
        assert_eq!(exchange["retransmits"], 0, "{exchange}");
    }
    observer.finish();
}

#[test]
fn phases_of_a_client_that_gives_tls_its_socket() {
    phases_of_the_sdk("phases-sync", &[], "inside_write");
}

#[test]
fn phases_of_a_client_that_gives_tls_a_buffer() {
    phases_of_the_sdk("phases-asyncio", &["--asyncio"], "next_send");
}

#[test]
fn phases_of_curl() {
    let place = Place::new("phases-curl");
    let server = place.server();
    let relay = Relay::holding(&server);
    let mut observer = place.observe("observer", &["--exe", "/usr/bin/curl"]);
    let body = json!({"model": "sim-plain", "stream": true, "messages": [], "metadata": {"scenario": "steady"}});
    let (mut seen, mut known, began) = (0, false, std::time::Instant::now());
    while seen < 3 {
        let output = Command::new("curl")
            .args(["-sSN", "-D", "-", "-o", "/dev/null", &format!("{}/chat/completions", relay.base_url())])
            .args(["-H", "content-type: application/json", "-d", &body.to_string()])
            .arg("--cacert")
            .arg(&server.certificate.cert)
            .args(["-w", "{\"connect\": %{time_connect}, \"tls\": %{time_appconnect}}"])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let id =
            said.lines().find_map(|line| line.strip_prefix("x-request-id: ")).expect("an answer").trim().to_owned();
        // The observer gets to know the library by the first one.
        if seen == 0 && !observer.said().contains("Attached.") {
            assert!(began.elapsed() < SOON, "curl's library is not known:\n{}", observer.said());
            continue;
        }
        if !std::mem::replace(&mut known, true) {
            continue; // attached to in its middle
        }
        seen += 1;
        let times: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let seconds = |key: &str| times[key].as_f64().unwrap() * 1e9;
        let exchange = observed(&observer, &json!(id));
        assert_made(&exchange, &relay, seconds("connect") as u64, (seconds("tls") - seconds("connect")) as u64);
        assert_sent(&exchange);
        assert!(exchange["socket_source"].is_string(), "{exchange}");
    }
    observer.finish();
}

#[test]
fn phases_of_a_go_program() {
    let place = Place::new("phases-go");
    let server = place.server();
    let relay = Relay::holding(&server);
    let program = golang::program(Toolchain::Debian, Link::Plain, "phases/go/client.go").unwrap();
    let mut command = Command::new(program);
    command.arg(relay.base_url()).env("SSL_CERT_FILE", &server.certificate.cert);
    let mut client = Guarded::talking("go", &mut command).unwrap();
    client.event("ready", SOON).unwrap();
    let mut observer = place.observe("observer", &["--pid", &client.pid().to_string()]);
    observer.attached(client.pid());
    client.stdin().unwrap().write_all(b"go\n").unwrap();
    let said = client.event("chat", SOON).unwrap();
    let exchange = observed(&observer, &said["request_id"]);
    assert_made(&exchange, &relay, ns(&said["connect_ns"]), ns(&said["tls_ns"]));
    assert_eq!(assert_sent(&exchange), 0, "{exchange}");
    assert_eq!(exchange["socket_source"], "inside_write", "{exchange}");
    drop(observer);
}

#[test]
fn a_request_that_tls_only_buffered_is_sent_when_the_socket_has_it_and_what_went_twice_is_counted() {
    let place = Place::new("phases-bad-network");
    let server = place.server();
    let relay = Relay::to(&server, &["--deaf-ms", "700"]);
    let mut client = Client::start(&place, &server, &["--asyncio"]);
    let mut observer = place.observe("observer", &["--pid", &client.0.pid().to_string()]);
    observer.attached(client.0.pid());
    let command = json!({"do": "chat", "base_url": relay.base_url(), "scenario": "no-done", "prompt_bytes": 12 << 20});
    let said = client.chat(&command);
    let exchange = observed(&observer, &said["exchange"]["request_id"]);
    // The network took nothing for 700 ms, and no socket buffers 12 MB.
    let after_write = assert_sent(&exchange);
    assert!(after_write > 300_000_000, "{exchange}");
    let retransmits = ns(&said["connections"][0]["retransmits"]);
    assert!(retransmits > 0, "{said}");
    assert_eq!(exchange["retransmits"], retransmits, "{exchange}");
    observer.until_metric("llm_retransmits", &[], |n| n == retransmits as f64);
    eprintln!("sent {after_write} ns after it was encrypted, {retransmits} retransmits");
    observer.finish();
}

fn stall_cause(name: &str, flags: &[&str], command: &Value, cause: &str) -> Value {
    let place = Place::new(name);
    let server = place.server();
    let mut client = Client::start(&place, &server, flags);
    let mut observer = place.observe("observer", &["--pid", &client.0.pid().to_string()]);
    observer.attached(client.0.pid());
    let mut command = command.clone();
    command["do"] = json!("chat");
    command["base_url"] = json!(server.base_url);
    let said = client.chat(&command);
    let exchange = observed(&observer, &said["exchange"]["request_id"]);
    assert_eq!(exchange["outcome"], "completed", "{exchange}");
    assert_eq!(exchange["stalls"].as_array().map(Vec::len), Some(1), "{exchange}");
    assert_eq!(exchange["stall_causes"], json!([cause]), "{exchange}");
    observer.until_metric("llm_stream_stall_causes", &[&format!("cause=\"{cause}\"")], |n| n == 1.0);
    observer.finish();
    exchange
}

#[test]
fn a_server_that_pauses_is_a_late_arrival() {
    for (name, flags) in [("phases-pause-sync", &[][..]), ("phases-pause-asyncio", &["--asyncio"])] {
        stall_cause(name, flags, &json!({"scenario": "stall"}), "late_arrival");
    }
}

#[test]
fn a_client_that_does_not_read_is_a_late_read() {
    for (name, flags) in [("phases-block-sync", &[][..]), ("phases-block-asyncio", &["--asyncio"])] {
        let exchange = stall_cause(name, flags, &json!({"scenario": "steady", "block_s": 3}), "late_read");
        let longest = ns(&exchange["read_delay_max_ns"]);
        assert!((2_000_000_000..3_500_000_000).contains(&longest), "{exchange}");
    }
}

#[test]
fn without_phases_nothing_is_claimed() {
    let place = Place::new("phases-off");
    let server = place.server();
    let mut client = place.client(&server, "client");
    let mut observer = place.observe("observer", &["--pid", &client.pid(), "--phases", "false"]);
    observer.attached(client.process.pid());
    let made = client.chat();
    let exchange = observed(&observer, &made["request_id"]);
    assert_eq!(exchange["outcome"], "completed", "{exchange}");
    assert!(exchange["request_written_ns"].is_u64(), "{exchange}");
    for key in [
        "peer",
        "connect_ns",
        "tls_ns",
        "request_sent_ns",
        "first_token_cause",
        "late_reads",
        "retransmits",
        "socket_source",
    ] {
        assert!(exchange[key].is_null(), "{key}: {exchange}");
    }
    observer.finish();
}
