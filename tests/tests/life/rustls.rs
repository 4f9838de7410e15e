//! rustls: what its clients do rarely, programs that come and go, and the stack that cannot be observed.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nexent_observer::probe::{hookpoint::Cost, library::plan_of_path, plan::Family};
use serde_json::{Value, json};
use xtask::{
    process::Guarded,
    rust::{self, Tls},
    server::LlmServer,
};

use crate::harness::{Observer, Place, SOON, lines, until};

/// A program that says when it is ready, with the observer attached to it.
struct Records {
    process: Guarded,
    observer: Observer,
}

impl Records {
    fn start(place: &Place) -> Self {
        let process = Guarded::talking("records", &mut Command::new(rust::records().unwrap())).unwrap();
        process.event("ready", SOON).unwrap();
        let mut observer = place.observe("observer", &["--pid", &process.pid().to_string()]);
        observer.attached(process.pid());
        Self { process, observer }
    }

    fn make(&mut self, what: &str) -> Value {
        writeln!(self.process.stdin().unwrap(), "{what}").unwrap();
        self.process.event("made", SOON).unwrap()
    }
}

/// An exchange of `records.rs` is whole: its answer ends with its own model.
fn assert_whole(exchange: &Value) {
    let model = exchange["model"].as_str().unwrap();
    assert_eq!(exchange["output_text"], format!("one two {model}"), "{exchange}");
    assert_eq!(exchange["outcome"], "completed", "{exchange}");
    assert_eq!(exchange["bytes_lost"], 0, "{exchange}");
    assert_eq!(exchange["chunks"].as_array().map(Vec::len), Some(3), "{exchange}");
    assert!(exchange["ttft_s"].as_f64().is_some_and(|s| s > 0.0), "{exchange}");
}

fn models(exchanges: &[Value]) -> Vec<&str> {
    exchanges.iter().map(|exchange| exchange["model"].as_str().unwrap()).collect()
}

#[test]
fn a_change_of_keys_goes_on_with_the_same_connection() {
    let mut records = Records::start(&Place::new("rustls-rekeyed"));
    records.make("rekeyed");
    let exchanges = records.observer.exchanges(4);
    assert_eq!(models(&exchanges), ["rekeyed-0", "rekeyed-1", "rekeyed-2", "rekeyed-3"]);
    exchanges.iter().for_each(assert_whole);
    let metrics = records.observer.metrics();
    assert_eq!(metrics.sum("nexent_observer_aead_unjoined_total", &[]), 0.0);
    assert_eq!(metrics.sum("nexent_observer_aead_rejoined_total", &[]), 0.0);
}

#[test]
fn padding_and_tickets_are_no_data() {
    let mut records = Records::start(&Place::new("rustls-padded"));
    records.make("padded");
    let exchanges = records.observer.exchanges(5);
    assert_eq!(models(&exchanges), ["padded-1", "padded-7", "padded-8", "padded-300", "padded-9000"]);
    exchanges.iter().for_each(assert_whole);
}

#[test]
fn connections_that_take_turns_in_one_thread_are_never_mixed() {
    let mut records = Records::start(&Place::new("rustls-turns"));
    records.make("turns");
    records.observer.exchanges(8);
    let exchanges = records.observer.finish();
    let slow = (1..4).map(|number| format!("turns-slow-{number}"));
    let mut wanted: Vec<String> = (0..4).map(|number| format!("turns-quick-{number}")).chain(slow).collect();
    wanted.push("turns-late".to_owned());
    wanted.sort_unstable();
    let mut known = models(&exchanges);
    known.sort_unstable();
    assert_eq!(known, wanted);
    exchanges.iter().for_each(assert_whole);
}

#[test]
fn sealing_that_is_not_tls_is_not_looked_at() {
    let mut records = Records::start(&Place::new("rustls-other"));
    records.make("other");
    records.make("rekeyed");
    records.observer.exchanges(4);
    assert_eq!(records.observer.finish().len(), 4);
}

#[test]
fn without_symbols_the_same_functions_are_found() {
    let offsets = |tls| {
        let path = rust::fetcher(tls).unwrap();
        let plan = plan_of_path(&path, None).unwrap().unwrap();
        let found = plan.implementations.iter().find(|found| found.family == Family::Rustls).unwrap();
        assert!(found.hooks.iter().all(|hook| hook.cost == Cost::Emulated), "about 9 us a record: {found:?}");
        found.hooks.iter().map(|hook| (format!("{:?}", hook.program), hook.offset)).collect::<Vec<_>>()
    };
    let (named, stripped) = (offsets(Tls::AwsLc), offsets(Tls::AwsLcStripped));
    assert_eq!(named.len(), 3);
    assert_eq!(named, stripped);
}

#[test]
fn rustls_with_ring_is_refused_with_the_reason() {
    let place = Place::new("rustls-ring");
    let server = place.server();
    let fetcher = Fetcher::start(&place, &rust::fetcher(Tls::Ring).unwrap(), &server);
    let log = place.dir.join("observer.stderr");
    let status = Command::new(crate::harness::binary())
        .args(["run", "--pid", &fetcher.process.pid().to_string(), "--plain-http", "off", "--listen", "127.0.0.1:0"])
        .stderr(fs::File::create(&log).unwrap())
        .stdin(Stdio::null())
        .status()
        .unwrap();
    let said = fs::read_to_string(&log).unwrap();
    assert!(!status.success(), "{said}");
    assert!(said.contains("rustls without aws-lc, so with ring most likely"), "{said}");
}

/// A client that makes the requests it is told (`clients/rust/src/main.rs`).
struct Fetcher {
    process: Guarded,
    url: String,
    dir: std::path::PathBuf,
    made: u64,
}

impl Fetcher {
    fn start(place: &Place, program: &Path, server: &LlmServer) -> Self {
        let errors = fs::File::create(place.dir.join("fetcher.stderr")).unwrap();
        let mut command = Command::new(program);
        command.env("SSL_CERT_FILE", &server.certificate.cert).stderr(errors);
        let process = Guarded::talking("fetcher", &mut command).unwrap();
        let url = format!("{}/chat/completions", server.base_url);
        Self { process, url, dir: place.dir.clone(), made: 0 }
    }

    /// Begins a request; its number.
    fn begin(&mut self) -> u64 {
        let number = self.made;
        self.made += 1;
        let body = json!({
            "model": "sim-no-done", "stream": true, "messages": [{"role": "user", "content": "Go on."}],
            "metadata": {"scenario": "no-done", "seed": number.to_string()},
        });
        let task = json!({
            "id": number, "url": self.url, "headers": {"content-type": "application/json"}, "body": body.to_string(),
            "out": self.dir.join(format!("answer-{number}")),
        });
        writeln!(self.process.stdin().unwrap(), "{task}").unwrap();
        number
    }

    /// Waits for the next answer that ends: its number.
    fn came(&self) -> u64 {
        let said = self.process.event("came", SOON).unwrap();
        assert_eq!(said["status"], 200, "{said}");
        said["id"].as_u64().unwrap()
    }

    /// The text of an answer.
    fn text(&self, number: u64) -> String {
        let answer = fs::read_to_string(self.dir.join(format!("answer-{number}"))).unwrap();
        let data = answer.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
        data.filter_map(|data| {
            let event: Value = serde_json::from_str(data).unwrap();
            Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned())
        })
        .collect()
    }
}

#[test]
fn attaching_again_and_again_never_disturbs_a_busy_client() {
    let place = Place::new("rustls-cycles");
    let server = place.server();
    let program = place.dir.join("fetcher");
    fs::copy(rust::fetcher(Tls::AwsLcStripped).unwrap(), &program).unwrap();
    let mut fetcher = Fetcher::start(&place, &program, &server);
    let pid = fetcher.process.pid();
    let target = pid.to_string();
    // Four streams at any time, in as many threads as there are; some of the observers are killed.
    for _ in 0..4 {
        fetcher.begin();
    }
    let (mut done, mut seen) = (Vec::new(), Vec::new());
    for cycle in 0..10 {
        let name = format!("cycle-{cycle}");
        let mut observer = place.observe(&name, &["--pid", &target]);
        observer.attached(pid);
        for _ in 0..8 {
            done.push(fetcher.came());
            fetcher.begin();
        }
        if cycle % 3 == 2 {
            observer.end(libc::SIGKILL);
        } else {
            seen.extend(observer.finish());
        }
    }
    for _ in 0..4 {
        done.push(fetcher.came());
    }
    fetcher.process.close_stdin();
    assert!(fetcher.process.wait(SOON).unwrap().success());
    let served = until("all are in the server's log", || {
        let served: Vec<Value> = lines(&server.log).into_iter().filter(|line| line["id"].is_string()).collect();
        (served.len() >= done.len()).then_some(served)
    });
    let mut sent: Vec<&str> = served.iter().map(|line| line["text"].as_str().unwrap()).collect();
    let mut got: Vec<String> = done.iter().map(|number| fetcher.text(*number)).collect();
    sent.sort_unstable();
    got.sort_unstable();
    assert_eq!(sent, got, "the client got something else than the server sent");
    // What an observer saw whole is what was sent, also on connections that it joined in their middle.
    let whole: Vec<&Value> = seen.iter().filter(|exchange| exchange["outcome"] == "completed").collect();
    assert!(whole.len() >= 14, "{} of {}", whole.len(), seen.len());
    for exchange in whole {
        let id = &exchange["request_id"];
        if let Some(line) = served.iter().find(|line| line["id"] == *id) {
            if exchange["bytes_lost"] == 0 {
                assert_eq!(exchange["output_text"], line["text"], "{exchange}");
            }
        } else {
            assert!(id.is_null(), "{exchange}");
        }
    }
}

#[test]
fn a_program_that_is_soon_through_is_seen_from_its_first_byte_the_first_time_it_runs() {
    let place = Place::new("rustls-soon");
    let server = place.server();
    let program = place.dir.join("fetcher");
    fs::copy(rust::fetcher(Tls::AwsLcStripped).unwrap(), &program).unwrap();
    let mut observer = place.observe("observer", &["--exe", program.to_str().unwrap()]);
    observer.says("It is hooked: its processes are observed from their first instruction.");
    let mut texts = Vec::new();
    for _ in 0..4 {
        // Nothing is waited for: its request is there before it is.
        let mut fetcher = Fetcher::start(&place, &program, &server);
        fetcher.begin();
        let came = fetcher.came();
        fetcher.process.close_stdin();
        assert!(fetcher.process.wait(SOON).unwrap().success());
        texts.push(fetcher.text(came));
    }
    observer.exchanges(texts.len());
    let exchanges = observer.finish();
    let seen: Vec<&str> = exchanges.iter().map(|exchange| exchange["output_text"].as_str().unwrap()).collect();
    assert_eq!(seen, texts);
    for exchange in &exchanges {
        assert_eq!((&exchange["outcome"], &exchange["bytes_lost"]), (&json!("completed"), &json!(0)), "{exchange}");
    }
}

#[test]
fn uv_installs_from_an_index_while_it_is_observed() {
    let place = Place::new("rustls-uv");
    let server = place.server(); // for its certificate
    let uv = place.dir.join("uv");
    fs::copy(rust::program("uv").unwrap(), &uv).unwrap();
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let script = r#"
import http.server, io, ssl, sys, zipfile
name = "tiny-1.0-py3-none-any.whl"
info = "tiny-1.0.dist-info/"
wheel = io.BytesIO()
with zipfile.ZipFile(wheel, "w") as file:
    file.writestr("tiny.py", "there = True\n")
    file.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    file.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    file.writestr(info + "RECORD", f"tiny.py,,\n{info}METADATA,,\n{info}WHEEL,,\n{info}RECORD,,\n")
class Index(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = f'<a href="/{name}">{name}</a>'.encode()
        body, kind = (wheel.getvalue(), "application/octet-stream") if name in self.path else (page, "text/html")
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
    do_HEAD = do_GET
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Index)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
print('{"event": "ready"}', flush=True)
server.serve_forever()
"#;
    let mut command = Command::new("python3");
    command.args(["-c", script, &port.to_string()]);
    command.args([&server.certificate.cert, &server.certificate.key]).stderr(Stdio::null());
    let index = Guarded::talking("index", &mut command).unwrap();
    index.event("ready", SOON).unwrap();
    let install = |number: u32| {
        let target = place.dir.join(format!("installed-{number}"));
        let output = Command::new(&uv)
            .args(["pip", "install", "--no-cache", "--no-config", "--python", "python3", "--index-url"])
            .arg(format!("https://localhost:{port}/simple/"))
            .arg("--target")
            .arg(&target)
            .arg("tiny")
            .env("SSL_CERT_FILE", &server.certificate.cert)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(target.join("tiny.py").exists());
    };
    install(0);
    let mut observer = place.observe("observer", &["--exe", uv.to_str().unwrap()]);
    // The kernel half is in, and uv is searched: from now on every process counts.
    observer.says("It is hooked: its processes are observed from their first instruction.");
    for number in 1..6 {
        install(number);
    }
    let line = observer.says("Attached.");
    assert!(line.contains("tls=rustls"), "{line}");
    thread::sleep(Duration::from_millis(300));
    assert!(observer.finish().is_empty(), "no call of an LLM");
}
