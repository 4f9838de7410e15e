//! The chain from the inbound request to the LLM call, through real probes: backends as people write them serve many requests at a time, and
//! each call must be joined to the request that made it, or to none. Which request made which call is told by the LLM server's own log, by a
//! marker that the backend puts into each call. Needs root, eBPF and `cargo xtask build`.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

mod inbound;
mod threads;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use serde_json::Value;
use xtask::{
    observer::Observer,
    process::Guarded,
    python,
    server::{Kind, LlmServer},
    sh,
    stack::traces::Receiver,
    truth,
};

/// Side by side they would take each other's interpreter away.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// Made once.
static PYTHON: OnceLock<PathBuf> = OnceLock::new();

/// One run of a backend.
#[derive(Clone, Copy)]
struct Run<'a> {
    name: &'a str,
    shape: &'a str,
    flags: &'a [&'a str],
    observer: &'a [&'a str],
    requests: usize,
    concurrency: usize,
    /// How it is asked; `None`: by HTTP/1.1 without TLS, a thread for each connection.
    front: Option<Front>,
}

/// A backend that answers with streams of events is asked like this.
#[derive(Clone, Copy)]
struct Front {
    http: u32,
    tls: bool,
}

/// What was seen of it.
struct Seen {
    /// JSON lines of the calls that the backend made, each with the marker of the request that made it.
    calls: Vec<(String, Value)>,
    spans: Vec<Value>,
    metrics: String,
    requests: usize,
    /// What the clients of a [`Front`] saw of each request.
    clients: Vec<Value>,
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

impl Run<'_> {
    fn seen(&self) -> Seen {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let python = PYTHON.get_or_init(|| python::chain().unwrap());
        let target = sh::target_dir(&sh::root().unwrap());
        let dir = target.join("chain").join(self.name);
        drop(fs::remove_dir_all(&dir));
        fs::create_dir_all(&dir).unwrap();
        let server = LlmServer::start(Kind::Simulated, &dir, 1).unwrap();
        let mut command = Command::new(python);
        command.arg(sh::fixture("chain/backend.py").unwrap()).args(["--shape", self.shape]).args(self.flags);
        command.args(["--base-url", &server.base_url]).env("SSL_CERT_FILE", &server.certificate.cert);
        command.env("ENABLE_TELEMETRY", "true").stderr(fs::File::create(dir.join("backend.stderr")).unwrap());
        if self.front.is_some_and(|front| front.tls) {
            command.arg("--cert").arg(&server.certificate.cert).arg("--key").arg(&server.certificate.key);
        }
        let backend = Guarded::talking("the backend", &mut command).unwrap();
        let ready = backend.event("ready", Duration::from_secs(60)).unwrap();
        let (collector, otlp) = Receiver::collector(&dir).unwrap();
        let mut targets = vec!["--pid".to_owned(), ready["pid"].to_string(), "--otlp".to_owned(), otlp];
        targets.extend(self.observer.iter().map(|flag| (*flag).to_owned()));
        let binary = target.join("release/nexent-observer");
        let mut observer = Observer::start(&binary, &targets, &dir, truth::free_address().unwrap(), None).unwrap();
        observer.attached(1, Duration::from_secs(30)).unwrap();
        let log = dir.join("clients.jsonl");
        let mut load = match self.front {
            None => {
                let mut load = Command::new("python3");
                load.arg(sh::fixture("chain/load.py").unwrap());
                load
            }
            Some(Front { http, tls }) => {
                let mut load = Command::new(python);
                load.arg(sh::fixture("chain/load_async.py").unwrap()).args(["--http", &http.to_string()]);
                load.env("SSL_CERT_FILE", &server.certificate.cert).arg("--log").arg(&log);
                if !tls {
                    load.arg("--plain");
                }
                load
            }
        };
        load.args(["--port", &ready["port"].to_string()]);
        load.args(["--requests", &self.requests.to_string(), "--concurrency", &self.concurrency.to_string()]);
        let load = Guarded::talking("the load", &mut load).unwrap();
        let done = load.event("done", Duration::from_secs(180)).unwrap();
        assert_eq!(done["failed"].as_array().map(Vec::len), Some(0), "{done}");
        thread::sleep(Duration::from_millis(1500));
        let metrics = observer.metrics().unwrap();
        observer.stop().unwrap();
        drop(backend);
        let markers: HashMap<String, String> = lines(&server.log)
            .iter()
            .filter_map(|line| Some((line["id"].as_str()?.to_owned(), line["marker"].as_str()?.to_owned())))
            .collect();
        let calls: Vec<(String, Value)> = lines(&observer.jsonl)
            .into_iter()
            .filter_map(|line| Some((markers.get(line["request_id"].as_str()?)?.clone(), line)))
            .collect();
        assert_eq!(calls.len(), markers.len(), "{}: every call is seen, and once", self.name);
        let spans: PathBuf = collector.spans_from(&dir, markers.len() + self.requests).unwrap();
        let spans = lines(&spans).into_iter().filter(|line| line["t"] == "span").collect();
        let clients = self.front.map(|_| lines(&log)).unwrap_or_default();
        Seen { calls, spans, metrics, requests: self.requests, clients }
    }
}

impl Seen {
    /// Calls by what was said of them: rightly joined, unknown; a call that is joined to another request fails.
    fn judge(&self, endpoint: impl Fn(&str) -> String) -> (usize, usize) {
        let mut rules: BTreeMap<String, usize> = BTreeMap::new();
        let (mut right, mut unknown) = (0, 0);
        for (marker, line) in &self.calls {
            *rules.entry(line["parent_rule"].to_string()).or_default() += 1;
            match line["endpoint"].as_str() {
                Some(said) => {
                    assert_eq!(said, endpoint(marker), "a wrong request: {line}");
                    assert!(line["parent_span_id"].is_string() && line["parent_rule"].is_string(), "{line}");
                    right += 1;
                }
                None => {
                    assert!(line["parent_rule"].is_null() && line["parent_span_id"].is_null(), "{line}");
                    unknown += 1;
                }
            }
        }
        let calls = self.calls.len();
        sh::say(&format!("{calls} calls, {right} rightly joined, {unknown} unknown, none wrong; by rule {rules:?}"));
        (right, unknown)
    }

    fn span(&self, id: &Value) -> &Value {
        self.spans.iter().find(|span| span["span_id"] == *id).unwrap_or_else(|| panic!("no span {id}"))
    }

    /// Names and kinds of the spans from one to the root of its trace.
    fn way_up<'a>(&'a self, span: &'a Value) -> Vec<&'a Value> {
        let mut way = vec![span];
        while let Some(last) = way.last()
            && !last["parent_span_id"].is_null()
        {
            let parent = self.span(&last["parent_span_id"]);
            assert_eq!(parent["trace_id"], span["trace_id"]);
            assert!(parent["start_unix_ns"].as_u64() <= last["start_unix_ns"].as_u64(), "{parent} {last}");
            way.push(parent);
        }
        way
    }

    /// One inbound span for each request; the tree of each call is checked by `check`: the call's marker and its spans up to the root.
    fn trees(&self, check: impl Fn(&str, &[&Value])) {
        let servers: Vec<&Value> = self.spans.iter().filter(|span| span["kind"] == "SERVER").collect();
        assert_eq!(servers.len(), self.requests, "one span for each request");
        let traces: HashSet<&Value> = servers.iter().map(|span| &span["trace_id"]).collect();
        assert_eq!(traces.len(), self.requests, "a trace for each request");
        assert!(!servers.iter().any(|span| span.to_string().contains("secret")), "no query");
        for (marker, line) in self.calls.iter().filter(|(_, line)| !line["parent_rule"].is_null()) {
            let id = &line["request_id"];
            let of_call = |span: &&Value| span["attributes"]["nexent.provider.request_id"] == *id;
            let found: Vec<&Value> = self.spans.iter().filter(of_call).collect();
            let [span] = found.as_slice() else { panic!("{} spans of {id}", found.len()) };
            assert_eq!(span["trace_id"], line["trace_id"]);
            check(marker, &self.way_up(span));
        }
        sh::say(&format!("{} spans in {} trees", self.spans.len(), traces.len()));
    }
}

fn by_route(marker: &str) -> String {
    format!("POST /work/{marker}")
}

fn below_its_request(marker: &str, way: &[&Value]) {
    let [call, request] = way else { panic!("{way:?}") };
    assert_eq!((call["kind"].as_str(), request["kind"].as_str()), (Some("CLIENT"), Some("SERVER")));
    assert_eq!(request["name"], by_route(marker));
    assert_eq!(request["attributes"]["http.response.status_code"], 200);
}

#[test]
fn flask_with_threads_is_joined_rightly_at_any_concurrency_without_hooks() {
    let run =
        Run { name: "flask", shape: "flask", flags: &[], observer: &[], requests: 120, concurrency: 16, front: None };
    let seen = run.seen();
    assert_eq!(seen.judge(by_route), (seen.calls.len(), 0));
    seen.trees(below_its_request);
    let retried = seen.calls.iter().filter(|(_, line)| line["retry_count"] == 1).count();
    assert!(retried > 10, "{retried} retries");
    let tools: Vec<&Value> =
        seen.spans.iter().filter(|span| span["attributes"]["mcp.method.name"] == "tools/call").collect();
    assert_eq!(tools.len(), seen.requests, "a tool is called once for each request");
    for tool in tools {
        let name = tool["name"].as_str().unwrap().strip_prefix("tools/call search_").unwrap();
        below_its_request(name, &seen.way_up(tool));
    }
    assert!(seen.metrics.contains("llm_requests{endpoint=\"POST /work/job_aab\""), "{}", seen.metrics);
}

#[test]
fn an_event_loop_is_never_joined_wrongly_without_hooks() {
    let run =
        Run { name: "loop", shape: "fastapi", flags: &[], observer: &[], requests: 150, concurrency: 50, front: None };
    let seen = run.seen();
    let (right, unknown) = seen.judge(by_route);
    assert_eq!(right + unknown, seen.calls.len());
    seen.trees(below_its_request);
}

#[test]
fn one_request_at_a_time_is_joined_without_hooks() {
    let run =
        Run { name: "one", shape: "fastapi", flags: &[], observer: &[], requests: 40, concurrency: 1, front: None };
    let seen = run.seen();
    let (right, _) = seen.judge(by_route);
    assert!(right * 100 >= seen.calls.len() * 95, "{right} of {}", seen.calls.len());
    seen.trees(below_its_request);
}

#[test]
fn an_event_loop_with_hooks_is_joined_rightly_and_hook_and_probe_are_one_span() {
    let run = Run {
        name: "hooks",
        shape: "fastapi",
        flags: &["--hooks"],
        observer: &[],
        requests: 150,
        concurrency: 50,
        front: None,
    };
    let seen = run.seen();
    assert_eq!(seen.judge(|marker| format!("work.{marker}")), (seen.calls.len(), 0));
    let retried: HashSet<&str> =
        seen.calls.iter().filter(|(_, line)| line["http_status"] == 503).map(|(marker, _)| marker.as_str()).collect();
    assert!(!retried.is_empty());
    seen.trees(|marker, way| {
        let [above @ .., endpoint, request] = way else { panic!("{way:?}") };
        assert_eq!((endpoint["kind"].as_str(), request["kind"].as_str()), (Some("INTERNAL"), Some("SERVER")));
        assert_eq!(endpoint["name"], format!("work.{marker}"));
        assert_eq!(request["name"], "POST /work/{name}", "the hook owns the name");
        assert_eq!(request["attributes"]["http.response.status_code"], 200, "the probe owns what it saw");
        match above {
            [call] => {
                assert_eq!((call["name"].as_str(), call["kind"].as_str()), (Some("answer"), Some("CLIENT")));
                assert!(
                    call["attributes"]["question"].is_number()
                        && call["attributes"]["gen_ai.request.model"].is_string()
                );
                assert!(call["events"].as_array().unwrap().iter().any(|event| event["name"] == "answered"), "{call}");
            }
            // Two exchanges of one call: the SDK tried again.
            [call, named] => {
                assert!(retried.contains(marker));
                assert_eq!((call["kind"].as_str(), named["name"].as_str()), (Some("CLIENT"), Some("answer")));
            }
            _ => panic!("{way:?}"),
        }
    });
}

#[test]
fn a_thread_for_each_run_is_joined_rightly_by_content_and_never_wrongly_without() {
    let run =
        |name, observer| Run { name, shape: "runs", flags: &[], observer, requests: 100, concurrency: 25, front: None };
    let seen = run("runs", &[]).seen();
    let (right, unknown) = seen.judge(by_route);
    assert_eq!(right + unknown, seen.calls.len());
    let seen = run("runs-by-content", &["--join-by-content"]).seen();
    assert_eq!(seen.judge(by_route), (seen.calls.len(), 0));
    seen.trees(below_its_request);
}
