//! What causes a call: records of a process that serves and calls, joined by the whole pipeline.

mod threads;

use std::{collections::HashMap, mem, sync::Arc};

use nexent_observer_core::{
    chain::{Ended, Inbound},
    event::{Address, ConnId, Direction, Found, MonoNs, Peer, Record, RecordFlags, RecordKind, Role, Said, Stamp},
    limits::{Limits, TOOL_BODY_BYTES},
    pipeline::{Output, Pipeline},
    timing::{CausedBy, Exchange, Options, Rule},
};

const PID: u32 = 7;
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const ANSWER: &str = "{\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}]}";

struct Play {
    pipeline: Pipeline,
    now: u64,
    /// Read and write offsets, and the turn, by connection.
    conns: HashMap<u64, ([u64; 2], u32, bool)>,
    out: Vec<Output>,
}

impl Play {
    fn new() -> Self {
        let pipeline = Pipeline::new(Limits::default(), Options::default());
        Self { pipeline, now: 1_000_000, conns: HashMap::new(), out: Vec::new() }
    }

    fn at(&mut self, conn: u64, tid: u32, dir: Direction, bytes: &str, at: u64) {
        let (offsets, turn, read_last) = self.conns.entry(conn).or_insert(([0, 0], 0, true));
        let write = dir == Direction::Write;
        *turn += u32::from(write && *read_last);
        *read_last = !write;
        let slot = &mut offsets[usize::from(write)];
        let offset = *slot;
        *slot += bytes.len() as u64;
        let flags = RecordFlags { from_start: true, ..RecordFlags::default() };
        let (payload, len, turn) = (bytes.as_bytes(), bytes.len() as u64, *turn);
        let kind = RecordKind::Data { dir, offset, turn, payload, len, flags };
        let at = Stamp { entry: MonoNs(at - 1000), ret: MonoNs(at) };
        self.pipeline.handle_event(&Record { conn: ConnId(conn), pid: PID, tid, at, kind });
        self.out.extend(std::iter::from_fn(|| self.pipeline.poll_output()));
    }

    fn read(&mut self, conn: u64, tid: u32, bytes: &str) {
        self.now += 1_000_000;
        self.at(conn, tid, Direction::Read, bytes, self.now);
    }

    fn write(&mut self, conn: u64, tid: u32, bytes: &str) {
        self.now += 1_000_000;
        self.at(conn, tid, Direction::Write, bytes, self.now);
    }

    /// A request comes in.
    fn asked(&mut self, conn: u64, tid: u32, path: &str) {
        self.read(conn, tid, &format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
    }

    /// One with a JSON body comes in.
    fn posted(&mut self, conn: u64, tid: u32, path: &str, body: &str) {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.read(conn, tid, &head);
        self.read(conn, tid, body);
    }

    /// It is answered.
    fn answered(&mut self, conn: u64, tid: u32) {
        self.write(conn, tid, OK);
    }

    fn call_text(prompt: &str, field: &str) -> String {
        let body = format!("{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"}}]}}");
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\n{field}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn call_answer() -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{ANSWER}", ANSWER.len())
    }

    /// A call is made and answered; what it was joined to.
    fn call(&mut self, conn: u64, tid: u32, prompt: &str) -> Option<(Rule, Option<String>)> {
        self.drained();
        self.write(conn, tid, &Self::call_text(prompt, ""));
        self.read(conn, tid, &Self::call_answer());
        self.joined()
    }

    /// Both rings are drained.
    fn drained(&mut self) {
        if self.pipeline.poll_timeout().is_some_and(|due| due.0 <= self.now) {
            self.pipeline.handle_timeout(MonoNs(self.now));
        }
        self.out.extend(std::iter::from_fn(|| self.pipeline.poll_output()));
    }

    fn exchange(&mut self) -> Exchange {
        self.drained();
        match mem::take(&mut self.out).into_iter().rev().find(|output| matches!(output, Output::Exchange(_))) {
            Some(Output::Exchange(exchange)) => *exchange,
            other => panic!("no call ended: {other:?}"),
        }
    }

    fn joined(&mut self) -> Option<(Rule, Option<String>)> {
        let CausedBy { rule, served } = self.exchange().cause?;
        Some((rule, served.and_then(|served| served.endpoint.as_deref().map(str::to_owned))))
    }

    fn inbound(&mut self) -> Inbound {
        self.drained();
        match self.out.pop() {
            Some(Output::Inbound(inbound)) => *inbound,
            other => panic!("no request ended: {other:?}"),
        }
    }
}

fn by(rule: Rule, endpoint: &str) -> Option<(Rule, Option<String>)> {
    Some((rule, Some(endpoint.to_owned())))
}

#[test]
fn a_served_request_is_told_with_its_route_and_times_and_without_its_query() {
    let mut p = Play::new();
    p.read(1, 10, "POST /users/42/orders?key=secret HTTP/1.1\r\nHost: h:80\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nContent-Length: 6\r\n\r\n");
    let start = p.now;
    p.read(1, 10, "secret");
    p.write(1, 10, "HTTP/1.1 201 Created\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    let first = p.now - 1000;
    p.write(1, 10, "5\r\nhello\r\n");
    assert!(p.out.is_empty(), "{:?}", p.out);
    p.write(1, 10, "0\r\n\r\n");
    let inbound = p.inbound();
    assert!(!format!("{inbound:?}").contains("secret"));
    assert_eq!((inbound.method, inbound.route.as_deref()), (Some("POST"), Some("/users/{id}/orders")));
    assert_eq!(inbound.served.endpoint.as_deref(), Some("POST /users/{id}/orders"));
    assert_eq!((inbound.status, inbound.tid, inbound.ended), (Some(201), Some(10), Ended::Completed));
    assert_eq!((inbound.served.start.0, inbound.first_byte, inbound.end.0), (start, Some(MonoNs(first)), p.now - 1000));
    assert!(inbound.served.traceparent.is_some());
}

#[test]
fn a_peer_that_is_known_only_once_the_answer_begins_is_told_all_the_same() {
    let mut p = Play::new();
    p.asked(1, 10, "/a");
    p.write(1, 10, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
    let address = |port| Address::Inet(([127, 0, 0, 1], port).into());
    let found = Some(Found::NextSend);
    let peer =
        Peer { local: address(443), remote: address(9), connect_ns: None, tls_ns: None, socket: found, retransmits: 0 };
    let at = Stamp { entry: MonoNs(p.now), ret: MonoNs(p.now) };
    p.pipeline.handle_event(&Record { conn: ConnId(1), pid: PID, tid: 10, at, kind: RecordKind::Peer(peer) });
    p.write(1, 10, "k");
    let inbound = p.inbound();
    assert_eq!((inbound.served.peer, inbound.peer), (None, Some(peer)));
}

#[test]
fn a_served_llm_call_is_no_inbound_request_but_calls_are_joined_to_it() {
    let mut p = Play::new();
    p.read(1, 10, &Play::call_text("hello", ""));
    assert_eq!(p.call(2, 11, "hello"), by(Rule::Only, "POST /v1/chat/completions"));
    p.write(1, 10, &Play::call_answer());
    assert_eq!(p.exchange().role, Role::Server);
    assert!(p.out.is_empty());
    assert_eq!(p.call(2, 11, "hello"), None);
}

#[test]
fn a_thread_that_serves_one_request_makes_its_calls_for_it() {
    let mut p = Play::new();
    p.asked(1, 10, "/a");
    p.asked(2, 11, "/b");
    assert_eq!(p.call(3, 10, "x"), by(Rule::Thread, "GET /a"));
    assert_eq!(p.call(4, 11, "x"), by(Rule::Thread, "GET /b"));
    assert_eq!(p.call(5, 12, "x"), None, "which of the two, nobody knows");
    // Connections that are kept alive belong to nobody.
    p.answered(1, 10);
    p.asked(1, 11, "/c");
    assert_eq!(p.call(3, 11, "x"), None, "two requests on one thread");
    p.answered(2, 11);
    assert_eq!(p.call(3, 11, "x"), by(Rule::Only, "GET /c"), "threads prove nothing any more in this process");
    p.answered(1, 11);
    assert_eq!(p.call(3, 11, "x"), None);
}

#[test]
fn a_call_whose_answer_another_thread_reads_is_not_joined_by_its_thread() {
    let mut p = Play::new();
    p.asked(1, 10, "/a");
    p.asked(2, 11, "/b");
    p.write(3, 10, &Play::call_text("x", ""));
    p.read(3, 11, &Play::call_answer());
    assert_eq!(p.joined(), None);
}

#[test]
fn requests_that_wander_between_threads_make_threads_prove_nothing() {
    let mut p = Play::new();
    p.asked(1, 10, "/a");
    p.answered(1, 12);
    p.asked(1, 10, "/a");
    p.asked(2, 11, "/b");
    assert_eq!(p.call(3, 10, "x"), None);
}

#[test]
fn the_only_request_in_flight_is_the_cause_and_of_several_none() {
    let mut p = Play::new();
    assert_eq!(p.call(3, 20, "x"), None);
    p.asked(1, 10, "/only/1");
    assert_eq!(p.call(3, 20, "x"), by(Rule::Only, "GET /only/{id}"));
    p.asked(2, 10, "/other");
    assert_eq!(p.call(3, 20, "x"), None);
    p.answered(2, 10);
    assert_eq!(p.call(3, 20, "x"), by(Rule::Only, "GET /only/{id}"));
    // It counts what was in flight when the call began.
    p.write(3, 20, &Play::call_text("x", ""));
    p.answered(1, 10);
    p.out.clear();
    p.asked(1, 10, "/later");
    p.read(3, 20, &Play::call_answer());
    assert_eq!(p.joined(), by(Rule::Only, "GET /only/{id}"));
}

#[test]
fn a_request_that_is_told_late_counts_all_the_same() {
    let mut p = Play::new();
    p.asked(1, 10, "/a");
    p.write(3, 20, &Play::call_text("x", ""));
    let late = p.now - 2000;
    p.at(2, 11, Direction::Read, "GET /late HTTP/1.1\r\nHost: h\r\n\r\n", late);
    p.answered(2, 11);
    p.out.clear();
    p.read(3, 20, &Play::call_answer());
    assert_eq!(p.joined(), None, "two were in flight");
    // A thread's own request, and the only one, may be late as well.
    p.answered(1, 10);
    p.out.clear();
    p.write(3, 11, &Play::call_text("x", ""));
    p.at(2, 11, Direction::Read, "GET /late HTTP/1.1\r\nHost: h\r\n\r\n", p.now - 2000);
    p.read(3, 11, &Play::call_answer());
    assert_eq!(p.joined(), by(Rule::Thread, "GET /late"));
}

#[test]
fn a_traceparent_leads_to_the_request_of_its_trace() {
    let parent = |trace: char, span: char| {
        format!("traceparent: 00-{}-{}-01\r\n", trace.to_string().repeat(32), span.to_string().repeat(16))
    };
    let mut p = Play::new();
    for (conn, trace) in [(1, 'a'), (2, 'b')] {
        p.read(conn, 10, &format!("GET /{trace} HTTP/1.1\r\nHost: h\r\n{}\r\n", parent(trace, '1')));
    }
    for (trace, want) in [('a', Some("GET /a")), ('b', Some("GET /b")), ('c', None)] {
        p.write(3, 10, &Play::call_text("x", &parent(trace, '2')));
        p.read(3, 10, &Play::call_answer());
        assert_eq!(p.joined(), Some((Rule::Traceparent, want.map(str::to_owned))));
    }
    p.write(3, 10, &Play::call_text("x", "traceparent: nonsense\r\n"));
    p.read(3, 10, &Play::call_answer());
    assert_eq!(p.joined(), None);
}

#[test]
fn a_hook_is_the_strongest_and_the_request_comes_with_it() {
    let mut p = Play::new();
    p.asked(1, 10, "/a");
    p.asked(2, 11, "/b");
    p.pipeline.handle_said(11, Some(Arc::new(Said { trace_id: 1, span_id: 2, endpoint: Some("named".into()) })));
    assert_eq!(p.call(3, 11, "x"), by(Rule::Hook, "GET /b"));
}

const LAKES: &str = "Which of the seven lakes is the deepest one?";
const NOVEL: &str = "Who wrote the longest novel of that century?";

#[test]
fn texts_tell_which_request_a_call_is_for_where_that_is_asked_for() {
    let body = |text: &str| format!("{{\"query\":\"{text}\"}}");
    let mut p = Play::new();
    p.posted(1, 10, "/run/a", &body(LAKES));
    p.posted(2, 10, "/run/b", &body(NOVEL));
    assert_eq!(p.call(3, 21, LAKES), None, "it was not asked for");
    let mut p = Play::new();
    p.pipeline.join_by_content();
    p.posted(1, 10, "/run/a", &body(LAKES));
    p.posted(2, 10, "/run/b", &body(NOVEL));
    assert_eq!(p.call(3, 21, &format!("Task: {LAKES}")), by(Rule::Content, "POST /run/a"));
    assert_eq!(p.call(3, 22, &format!("Task: {NOVEL}")), by(Rule::Content, "POST /run/b"));
    assert_eq!(p.call(3, 22, "Something else that is long enough to be looked at."), None);
    // The same text twice proves nothing.
    p.posted(4, 10, "/run/c", &body(LAKES));
    assert_eq!(p.call(3, 21, LAKES), None);
    p.answered(4, 10);
    p.out.clear();
    assert_eq!(p.call(3, 21, LAKES), by(Rule::Content, "POST /run/a"));
    // Nor does one while a body is there that is not read.
    p.read(4, 10, "POST /form HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(p.call(3, 21, LAKES), None);
    p.answered(4, 10);
    p.out.clear();
    // What has not come in whole cannot be used by the process either.
    p.read(
        4,
        10,
        "POST /late HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{\"a\":",
    );
    assert_eq!(p.call(3, 21, LAKES), by(Rule::Content, "POST /run/a"));
}

#[test]
fn a_request_that_ends_before_the_rings_are_drained_is_found_by_its_text_all_the_same() {
    let text = |what: &str| format!("{{\"query\":\"please tell me all about {what}, and nothing else\"}}");
    let mut p = Play::new();
    p.pipeline.join_by_content();
    for (conn, what) in [(1, "apples"), (2, "pears")] {
        p.posted(conn, 10, &format!("/{what}"), &text(what));
    }
    let call = |p: &mut Play| {
        p.write(3, 20, &Play::call_text("please tell me all about apples, and nothing else", ""));
        p.read(3, 20, &Play::call_answer());
    };
    call(&mut p);
    p.answered(1, 10);
    p.out.clear();
    assert_eq!(p.joined(), by(Rule::Content, "POST /apples"));
    // Work that goes on after the answer is of no open request, also if that was open in this drain.
    p.posted(4, 10, "/plums", &text("plums"));
    p.posted(1, 10, "/apples", &text("apples"));
    p.write(5, 20, &Play::call_text("hello", ""));
    p.answered(1, 10);
    call(&mut p);
    p.out.clear();
    assert_eq!(p.joined(), None);
    // It is forgotten then.
    p.posted(1, 10, "/again", &text("apples"));
    call(&mut p);
    assert_eq!(p.joined(), by(Rule::Content, "POST /again"));
}

#[test]
fn a_thread_and_a_text_that_contradict_each_other_prove_nothing() {
    let body = |text: &str| format!("{{\"query\":\"{text}\"}}");
    let mut p = Play::new();
    p.pipeline.join_by_content();
    p.posted(1, 10, "/run/a", &body(LAKES));
    p.posted(2, 11, "/run/b", &body(NOVEL));
    assert_eq!(p.call(3, 10, LAKES), by(Rule::Thread, "POST /run/a"));
    assert_eq!(p.call(3, 10, NOVEL), None);
}

#[test]
fn calls_of_tools_are_told_with_their_names_and_joined() {
    let tool = |method: &str, rest: &str| {
        let body = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\"{rest}}}");
        format!(
            "POST /mcp HTTP/1.1\r\nHost: tools:1\r\nAccept: application/json, text/event-stream\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let sse = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut p = Play::new();
    p.asked(1, 10, "/a");
    p.asked(2, 11, "/b");
    let long = format!(
        ",\"params\":{{\"name\":\"search\",\"arguments\":{{\"name\":\"secret\",\"x\":\"{}\"}}}}",
        "y".repeat(3 * TOOL_BODY_BYTES)
    );
    for (method, rest, name) in
        [("tools/call", long.as_str(), Some("search")), ("tools/list", ",\"params\":{\"name\":\"x\"}", None)]
    {
        p.write(3, 10, &tool(method, rest));
        p.read(3, 10, sse);
        assert!(p.out.is_empty(), "no verdict, or its end would not be seen: {:?}", p.out);
        p.read(3, 10, "2\r\nab\r\n0\r\n\r\n");
        p.drained();
        let Some(Output::Tool(call)) = p.out.pop() else { panic!("{:?}", p.out) };
        assert!(!format!("{call:?}").contains("secret"));
        assert_eq!((call.method.as_deref(), call.tool.as_deref()), (Some(method), name));
        assert_eq!((call.status, call.ended, call.end.0), (Some(200), Ended::Completed, p.now));
        let cause = call.cause.unwrap();
        assert_eq!((cause.rule, cause.served.unwrap().endpoint.as_deref()), (Rule::Thread, Some("GET /a")));
    }
}

#[test]
fn a_request_that_breaks_off_ends_and_a_process_that_ends_is_forgotten() {
    let mut p = Play::new();
    p.asked(1, 10, "/a");
    p.asked(2, 11, "/b");
    p.write(2, 11, "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n");
    let kind = RecordKind::Close { read_end: 27, write_end: 39, flags: RecordFlags::default() };
    let at = Stamp { entry: MonoNs(p.now), ret: MonoNs(p.now) };
    p.pipeline.handle_event(&Record { conn: ConnId(2), pid: PID, tid: 11, at, kind });
    p.out.extend(std::iter::from_fn(|| p.pipeline.poll_output()));
    let inbound = p.inbound();
    assert_eq!((inbound.status, inbound.ended), (Some(200), Ended::Broken));
    assert_eq!(p.call(3, 20, "x"), by(Rule::Only, "GET /a"));
    p.pipeline.process_exit(PID, MonoNs(p.now));
    assert!(p.pipeline.serving(PID, 10).is_none());
}
