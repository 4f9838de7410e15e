//! HTTP without TLS: by every call and address family, from both sides, and nothing else of the same process.

use std::{
    fs,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use xtask::{process::Guarded, server::LlmServer, sh};

use crate::harness::{Observer, Place, SOON, assert_right, by_request, until};

/// A client on bare sockets (`plain/raw_client.py`), which loads no TLS library.
struct Raw(Guarded);

impl Raw {
    fn start(place: &Place) -> Self {
        let mut command = Command::new(&place.exe);
        command.arg(sh::fixture("plain/raw_client.py").unwrap());
        command.stderr(fs::File::create(place.dir.join("raw.stderr")).unwrap());
        let process = Guarded::talking("raw", &mut command).unwrap();
        assert_eq!(process.event("ready", SOON).unwrap()["tls"], false);
        Self(process)
    }

    fn ask(&mut self, command: &Value) -> Value {
        use std::io::Write;
        let stdin = self.0.stdin().unwrap();
        writeln!(stdin, "{command}").and_then(|()| stdin.flush()).unwrap();
        self.0.event(command["do"].as_str().unwrap(), SOON).unwrap()
    }

    fn post(&mut self, to: &Value, send: &str, recv: &str) -> Value {
        self.ask(&json!({"do": "post", "to": to, "send": send, "recv": recv}))
    }
}

fn port(server: &LlmServer) -> u16 {
    server.base_url.trim_start_matches("http://127.0.0.1:").trim_end_matches("/v1").parse().unwrap()
}

fn relay(server: &LlmServer, flags: &[&str]) -> (Guarded, Value) {
    let mut command = Command::new("python3");
    command.arg(sh::fixture("plain/relay.py").unwrap()).args(["--to", &port(server).to_string()]).args(flags);
    let process = Guarded::talking("relay", &mut command).unwrap();
    let said = process.event("listening", SOON).unwrap();
    (process, said["port"].clone())
}

/// The exchange that the observer has of what a client got.
fn seen(observer: &Observer, made: &Value, role: &str) -> Value {
    until(&format!("{made} in {}", observer.jsonl.display()), || {
        let all = crate::harness::lines(&observer.jsonl);
        let mut mine = all.into_iter().filter(|it| it["request_id"] == made["request_id"] && it["role"] == role);
        let found = mine.next()?;
        assert!(mine.next().is_none(), "reported twice: {found}");
        Some(found)
    })
}

fn assert_whole(exchange: &Value, made: &Value) {
    assert_eq!(exchange["outcome"], "completed", "{exchange}");
    assert_eq!(exchange["output_text"], made["text"], "{exchange}");
    assert_eq!(exchange["bytes_lost"], 0, "{exchange}");
    assert!(made["text"].as_str().unwrap().len() > 20, "{made}");
    assert!(exchange["request_start_ns"].as_u64() >= made["create_ns"].as_u64(), "{exchange}");
}

#[test]
fn every_call_that_moves_bytes_on_a_socket_is_seen() {
    let place = Place::new("plain-calls");
    let server = place.plain_server();
    let mut raw = Raw::start(&place);
    let pid = raw.0.pid();
    // `auto`: it has no TLS library.
    let mut observer = place.observe("observer", &["--pid", &pid.to_string()]);
    observer.plain(pid);
    let to = json!(["127.0.0.1", port(&server)]);
    for (send, recv) in
        [("send", "recv"), ("sendmsg", "recvmsg"), ("writev", "readv"), ("write", "read"), ("send", "peek")]
    {
        let made = raw.post(&to, send, recv);
        let exchange = seen(&observer, &made, "client");
        assert_whole(&exchange, &made);
        assert_eq!(exchange["peer"], format!("127.0.0.1:{}", port(&server)), "{send} {recv}");
        assert_eq!(exchange["host"], "llm.test");
        assert!(exchange["connect_ns"].as_u64().is_some_and(|ns| ns > 0 && ns < 1_000_000_000), "{exchange}");
    }
    assert_eq!(observer.metrics().sum("nexent_observer_gaps_total", &[]), 0.0);
    // A body that goes out by sendfile shows no buffer: a gap of known size, and the answer is whole all the same.
    let made = raw.post(&to, "sendfile", "recv");
    let exchange = seen(&observer, &made, "client");
    assert_eq!(exchange["output_text"], made["text"], "{exchange}");
    observer.until_metric("nexent_observer_plain_unseen_total", &[], |n| n >= 1.0);
    observer.finish();
}

#[test]
fn ipv6_ipv4_in_ipv6_and_unix_sockets_are_seen() {
    let place = Place::new("plain-families");
    let server = place.plain_server();
    let path = place.dir.join("llm.sock");
    let path = path.to_str().unwrap();
    let (_unix, _) = relay(&server, &["--unix", path]);
    let (_six, six) = relay(&server, &[]);
    let mut raw = Raw::start(&place);
    let pid = raw.0.pid();
    let mut observer = place.observe("observer", &["--pid", &pid.to_string()]);
    observer.plain(pid);
    let targets = [
        (json!(["::1", six]), format!("[::1]:{six}")),
        (json!(["::ffff:127.0.0.1", port(&server)]), format!("127.0.0.1:{}", port(&server))),
        (json!(path), "unix".to_owned()),
    ];
    for (to, peer) in targets {
        let made = raw.post(&to, "send", "recv");
        let exchange = seen(&observer, &made, "client");
        assert_whole(&exchange, &made);
        assert_eq!(exchange["peer"], peer);
    }
    observer.finish();
}

#[test]
fn what_is_no_http_yields_no_record() {
    let place = Place::new("plain-noise");
    let server = place.plain_server();
    let mut raw = Raw::start(&place);
    let pid = raw.0.pid();
    let mut observer = place.observe("observer", &["--pid", &pid.to_string()]);
    observer.plain(pid);
    let moved = raw.ask(&json!({"do": "noise", "messages": 200}))["moved"].as_f64().unwrap();
    let metrics = observer.until_metric("nexent_observer_plain_other_bytes_total", &[], |bytes| bytes >= moved);
    assert_eq!(metrics.sum("nexent_observer_plain_other_bytes_total", &[]), moved, "each byte once for each end");
    assert_eq!(
        metrics.sum("nexent_observer_records_total", &[]),
        0.0,
        "files, pipes and other protocols leave no record"
    );
    let made = raw.post(&json!(["127.0.0.1", port(&server)]), "send", "recv");
    assert_whole(&seen(&observer, &made, "client"), &made);
    assert_eq!(observer.finish().len(), 1);
}

#[test]
fn a_server_is_seen_from_its_own_side() {
    let place = Place::new("plain-server");
    let server = place.plain_server();
    // `auto`: it has a TLS library, and listens.
    let mut observer = place.observe("observer", &["--pid", &server.pid().to_string()]);
    observer.plain(server.pid());
    let mut client = place.client(&server, "client");
    for _ in 0..3 {
        let made = client.chat();
        let exchange = seen(&observer, &made, "server");
        assert_right(&exchange, &made, &server);
        assert_eq!(exchange["pid"], server.pid());
        assert_eq!(exchange["connect_ns"], Value::Null);
        assert!(exchange["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{exchange}");
    }
    let exchanges = observer.finish();
    assert_eq!(exchanges.len(), 3);
}

#[test]
fn a_client_with_tls_is_not_seen_twice() {
    let place = Place::new("plain-and-tls");
    let server = place.server();
    let mut client = place.client(&server, "client");
    let mut observer = place.observe("observer", &["--pid", &client.pid(), "--plain-http", "on"]);
    observer.attached(client.process.pid());
    observer.plain(client.process.pid());
    let made: Vec<_> = (0..3).map(|_| client.chat()).collect();
    let exchanges = observer.finish();
    let found = by_request(&exchanges);
    assert_eq!(exchanges.len(), 3);
    for made in &made {
        assert_right(found[made["request_id"].as_str().unwrap()], made, &server);
    }
}

#[test]
fn node_and_curl_are_seen() {
    let place = Place::new("plain-others");
    let server = place.plain_server();
    let url = format!("{}/chat/completions", server.base_url);
    let body =
        json!({"model": "sim-small", "stream": true, "messages": [], "metadata": {"scenario": "plain"}}).to_string();
    let script = format!(
        "process.stdin.once('data', async () => {{ \
           const r = await fetch({url:?}, {{method: 'POST', body: {body:?}, headers: {{'content-type': 'application/json'}}}}); \
           await r.text(); \
           console.log(JSON.stringify({{event: 'post', id: r.headers.get('x-request-id')}})); \
         }}); console.log(JSON.stringify({{event: 'ready'}}));"
    );
    let mut node = match Guarded::talking("node", Command::new("node").args(["-e", &script])) {
        Ok(node) => node,
        Err(error) => return eprintln!("not tested, node is not installed: {error:#}"),
    };
    node.event("ready", SOON).unwrap();
    let mut observer =
        place.observe("observer", &["--pid", &node.pid().to_string(), "--exe", "/usr/bin/curl", "--plain-http", "on"]);
    observer.plain(node.pid());
    {
        use std::io::Write;
        node.stdin().unwrap().write_all(b"go\n").unwrap();
    }
    let id = node.event("post", SOON).unwrap()["id"].clone();
    let node_exchange = seen(&observer, &json!({"request_id": id}), "client");
    assert_eq!(node_exchange["outcome"], "completed", "{node_exchange}");
    assert_eq!(node_exchange["bytes_lost"], 0);
    for _ in 0..3 {
        let output = Command::new("curl")
            .args(["-sSN", "-D", "-", "-o", "/dev/null", &url, "-H", "content-type: application/json", "-d", &body])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let head = String::from_utf8(output.stdout).unwrap();
        let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap().trim().to_owned();
        let exchange = seen(&observer, &json!({"request_id": id}), "client");
        assert_eq!(exchange["outcome"], "completed", "seen from its first byte: {exchange}");
        assert_eq!(exchange["peer"], format!("127.0.0.1:{}", port(&server)));
    }
    observer.finish();
}

#[test]
fn the_tracepoints_go_with_the_last_process_that_needed_them() {
    let place = Place::new("plain-last");
    let raw = Raw::start(&place);
    let pid = raw.0.pid();
    // The tracepoints of phases stay as long as processes of an executable may come.
    let mut observer = place.observe("observer", &["--exe", place.exe.to_str().unwrap(), "--phases", "false"]);
    observer.plain(pid);
    let probes = |observer: &Observer| observer.metrics().sum("nexent_observer_attached_probes", &[]);
    until("the tracepoints are counted", || (probes(&observer) >= 4.0).then_some(()));
    drop(raw);
    observer.says("No process needs its sockets looked at any more");
    until("no probe is left", || (probes(&observer) == 0.0).then_some(()));
    observer.finish();
}
