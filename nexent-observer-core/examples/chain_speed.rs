//! What joining calls to the requests that caused them costs the core: `cargo run --release --example chain_speed`.
//!
//! Requests with a JSON body of 2 KB, 32 at a time, each on a thread of its own, which makes two calls whose prompts hold that body's text, streamed in 20 chunks.
//! The same bytes in four ways: the calls are another process's, so that nothing is to be joined; joined by threads; with the content rule; made by
//! threads that are started for each call. The ways take turns; the median counts. Prints one JSON line.
#![expect(clippy::print_stdout, reason = "the line is what this program is for")]

use std::hint::black_box;

use nexent_observer_core::{
    event::{ConnId, Direction, MonoNs, Record, RecordFlags, RecordKind, Stamp, ThreadEvent, ThreadEventKind},
    limits::Limits,
    pipeline::{Output, Pipeline},
    timing::{Options, Rule},
};

const SERVER: u32 = 1;
const OTHER: u32 = 2;
const AT_A_TIME: u64 = 32;
const CALLS: u64 = 2;
const CHUNKS: usize = 20;
/// Between two records.
const GAP_NS: u64 = 50_000;
/// Between two drains of the rings.
const DRAIN_NS: u64 = 50_000_000;
const TURNS: usize = 9;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Apart,
    Joined,
    Content,
    Threads,
}

const WAYS: [(Way, &str); 4] =
    [(Way::Apart, "apart"), (Way::Joined, "joined"), (Way::Content, "content"), (Way::Threads, "threads")];

struct Play {
    pipeline: Pipeline,
    now: u64,
    drained: u64,
    requests: u64,
    calls: u64,
    joined: [u64; 3],
}

impl Play {
    fn data(&mut self, conn: u64, pid: u32, tid: u32, dir: Direction, offset: usize, payload: &[u8]) {
        self.tick();
        let turn = u32::from(dir == Direction::Write);
        let len = payload.len() as u64;
        let flags = RecordFlags { from_start: true, ..RecordFlags::default() };
        let kind = RecordKind::Data { dir, offset: offset as u64, turn, payload, len, flags };
        let at = Stamp { entry: MonoNs(self.now - 1000), ret: MonoNs(self.now) };
        self.pipeline.handle_event(black_box(&Record { conn: ConnId(conn), pid, tid, at, kind }));
        self.take();
    }

    fn thread(&mut self, tid: u32, kind: ThreadEventKind) {
        self.tick();
        self.pipeline.handle_thread(&ThreadEvent { at: MonoNs(self.now), pid: SERVER, tid, kind });
    }

    fn close(&mut self, conn: u64, pid: u32, read_end: usize, write_end: usize) {
        self.tick();
        let at = Stamp { entry: MonoNs(self.now), ret: MonoNs(self.now) };
        let flags = RecordFlags { from_start: true, ..RecordFlags::default() };
        let kind = RecordKind::Close { read_end: read_end as u64, write_end: write_end as u64, flags };
        self.pipeline.handle_event(&Record { conn: ConnId(conn), pid, tid: 1, at, kind });
        self.take();
    }

    fn tick(&mut self) {
        self.now += GAP_NS;
        if self.now - self.drained >= DRAIN_NS {
            self.drained = self.now;
            if self.pipeline.poll_timeout().is_some_and(|due| due.0 <= self.now) {
                self.pipeline.handle_timeout(MonoNs(self.now));
            }
            self.take();
        }
    }

    fn take(&mut self) {
        while let Some(output) = self.pipeline.poll_output() {
            match output {
                Output::Inbound(_) => self.requests += 1,
                Output::Exchange(exchange) => {
                    self.calls += 1;
                    match exchange.cause.map(|cause| cause.rule) {
                        Some(Rule::Thread) => self.joined[0] += 1,
                        Some(Rule::Content) => self.joined[1] += 1,
                        Some(Rule::StartedThread) => self.joined[2] += 1,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
    }
}

fn main() {
    let rounds: u64 = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(20);
    let mut took: [Vec<f64>; WAYS.len()] = Default::default();
    for _ in 0..TURNS {
        for ((way, _), took) in WAYS.iter().zip(&mut took) {
            took.push(run(*way, rounds));
        }
    }
    let of_way = WAYS.iter().zip(&mut took).map(|((_, name), took)| {
        took.sort_by(f64::total_cmp);
        format!("\"{name}\":{:.1}", took[TURNS / 2])
    });
    println!("{{\"bench\":\"chain_speed\",{}}}", of_way.collect::<Vec<_>>().join(","));
}

/// Microseconds of CPU for a request and its calls.
fn run(way: Way, rounds: u64) -> f64 {
    let mut pipeline = Pipeline::new(Limits::default(), Options::default());
    if way == Way::Content {
        pipeline.join_by_content();
    }
    let mut play = Play { pipeline, now: 1_000_000, drained: 0, requests: 0, calls: 0, joined: [0; 3] };
    let body = answer();
    let from = on_cpu();
    for round in 0..rounds {
        one_round(&mut play, way, round, &body);
    }
    // What waits for a request to be over.
    for _ in 0..10 {
        play.now += DRAIN_NS;
        play.tick();
    }
    play.pipeline.stop();
    play.take();
    let took = on_cpu() - from;
    // A fast wrong answer is worth nothing.
    let requests = rounds * AT_A_TIME;
    assert_eq!((play.requests, play.calls), (requests, requests * CALLS));
    let want = match way {
        Way::Apart => [0; 3],
        // The thread is the stronger rule.
        Way::Joined => [requests * CALLS, 0, 0],
        Way::Content => [0, requests * CALLS, 0],
        Way::Threads => [0, 0, requests * CALLS],
    };
    assert_eq!(play.joined, want, "{way:?}");
    took * 1e6 / requests as f64
}

fn one_round(play: &mut Play, way: Way, round: u64, body: &[u8]) {
    let first = round * AT_A_TIME * (1 + CALLS) + 1;
    let texts: Vec<String> = (0..AT_A_TIME).map(|n| text(round * AT_A_TIME + n)).collect();
    let asked: Vec<String> = texts.iter().map(|text| request("/api/agent/run", "query", text)).collect();
    for (n, asked) in (0..AT_A_TIME).zip(&asked) {
        play.data(first + n, SERVER, 100 + n as u32, Direction::Read, 0, asked.as_bytes());
    }
    for call in 0..CALLS {
        let conn = |n: u64| first + AT_A_TIME * (1 + call) + n;
        let pid = if way == Way::Apart { OTHER } else { SERVER };
        let thread = |n: u64| match way {
            Way::Apart | Way::Joined => 100 + n as u32,
            // Of nobody, so that the content has to tell.
            Way::Content => 7,
            Way::Threads => 1000 + ((round * CALLS + call) * AT_A_TIME + n) as u32,
        };
        let mut calls = Vec::new();
        for (n, text) in (0..AT_A_TIME).zip(&texts) {
            if way == Way::Threads {
                play.thread(100 + n as u32, ThreadEventKind::Started { child: thread(n) });
            }
            let text = request("/v1/chat/completions", "model\":\"m\",\"stream\":true,\"prompt", text);
            play.data(conn(n), pid, thread(n), Direction::Write, 0, text.as_bytes());
            calls.push(text.len());
        }
        for (at, piece) in body.chunks(200).enumerate() {
            for n in 0..AT_A_TIME {
                play.data(conn(n), pid, thread(n), Direction::Read, at * 200, piece);
            }
        }
        for (n, written) in (0..AT_A_TIME).zip(calls) {
            play.close(conn(n), pid, body.len(), written);
            if way == Way::Threads {
                play.thread(thread(n), ThreadEventKind::Ended);
            }
        }
    }
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    for (n, asked) in (0..AT_A_TIME).zip(&asked) {
        play.data(first + n, SERVER, 100 + n as u32, Direction::Write, 0, OK);
        play.close(first + n, SERVER, asked.len(), OK.len());
    }
}

/// 2 KB of which each block that is compared names the request.
fn text(number: u64) -> String {
    (10..110).map(|line| format!("{number:06} asks for {line}; ")).collect()
}

fn request(path: &str, field: &str, text: &str) -> String {
    let body = format!("{{\"{field}\":\"{text}\"}}");
    format!(
        "POST {path} HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn answer() -> Vec<u8> {
    let mut out = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let event = "data: {\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n";
    for event in std::iter::repeat_n(event, CHUNKS).chain(["data: [DONE]\n\n"]) {
        out.extend_from_slice(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes());
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// Time that this thread ran, in seconds; NaN where the system does not tell.
fn on_cpu() -> f64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    schedstat.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).map_or(f64::NAN, |ns| ns / 1e9)
}
