//! Speed and memory of the whole core from memory: `cargo run --release --example pipeline_speed`.
//!
//! Input of DESIGN section 7: HTTP/1.1 chunked SSE, events of 295 bytes, cut every 200 bytes, 5 % tool calls. Prints one
//! JSON line. `--streams N`: so many at a time. With `--open N --chunks M` it opens N streams of M chunks each, leaves them open and prints what the
//! process grew by (`/proc/self/statm`, Linux only).
#![expect(clippy::print_stdout, reason = "the line is what this program is for")]

use std::{hint::black_box, time::Instant};

use nexent_observer_core::{
    event::{ConnId, Direction, MonoNs, Record, RecordFlags, RecordKind, Stamp},
    limits::Limits,
    pipeline::{Output, Pipeline},
    timing::Options,
};

const EVENT_BYTES: usize = 295;
const CUT_BYTES: usize = 200;
const GAP_NS: u64 = 10_000_000;
/// Records of one drain of the rings.
const DRAIN_RECORDS: u64 = 16;

const REQUEST: &[u8] = b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\nContent-Length: 81\r\n\r\n{\"model\":\"gpt-4o-mini\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\nx-request-id: req_0123456789abcdef\r\n\r\n";

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut open, mut streams, mut chunks, mut seconds) = (0, 1, 500, 3.0);
    while let Some(arg) = args.next() {
        let value = args.next().and_then(|v| v.parse::<f64>().ok());
        match (arg.as_str(), value) {
            ("--open", Some(n)) => open = n as usize,
            ("--streams", Some(n)) => streams = n.max(1.0) as usize,
            ("--chunks", Some(n)) => chunks = n as usize,
            ("--seconds", Some(n)) => seconds = n,
            _ => {
                println!("usage: pipeline_speed [--seconds S] [--streams N] [--chunks M] [--open N]");
                std::process::exit(64);
            }
        }
    }
    if open > 0 { memory(open, chunks) } else { speed(chunks, streams, seconds) }
}

/// Response body of one stream, `chunks` output chunks, in HTTP chunks of one event each.
fn response(chunks: usize) -> Vec<u8> {
    let mut out = HEAD.to_vec();
    for i in 0..chunks {
        let delta = if i % 20 == 19 {
            r#""tool_calls":[{"index":0,"function":{"arguments":"{\"city\": \"Pa"}}]"#
        } else {
            r#""content":" token""#
        };
        let build = |pad: usize| {
            format!(
                "data: {{\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"gpt-4o-mini-2024-07-18\",\"system_fingerprint\":\"fp_{}\",\"choices\":[{{\"index\":0,\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n",
                "0".repeat(pad)
            )
        };
        let event = build(EVENT_BYTES.saturating_sub(build(0).len()));
        assert_eq!(event.len(), EVENT_BYTES);
        out.extend_from_slice(format!("{:x}\r\n", event.len()).as_bytes());
        out.extend_from_slice(event.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out
}

const TAIL: &[u8] = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

struct Feeder {
    pipeline: Pipeline,
    records: u64,
    exchanges: u64,
    tokens: u64,
}

impl Feeder {
    fn new() -> Self {
        Self { pipeline: Pipeline::new(Limits::default(), Options::default()), records: 0, exchanges: 0, tokens: 0 }
    }

    fn data(&mut self, conn: u64, dir: Direction, turn: u32, offset: usize, ns: u64, payload: &[u8]) {
        let record = Record {
            conn: ConnId(conn),
            pid: 1,
            tid: 1,
            at: Stamp { entry: MonoNs(ns - 1000), ret: MonoNs(ns) },
            kind: RecordKind::Data {
                dir,
                offset: offset as u64,
                turn,
                payload,
                len: payload.len() as u64,
                flags: RecordFlags { from_start: true, ..RecordFlags::default() },
            },
        };
        self.pipeline.handle_event(black_box(&record));
        self.records += 1;
        if self.records.is_multiple_of(DRAIN_RECORDS) && self.pipeline.poll_timeout().is_some_and(|due| due.0 <= ns) {
            self.pipeline.handle_timeout(MonoNs(ns));
        }
        self.take();
    }

    fn take(&mut self) {
        while let Some(output) = self.pipeline.poll_output() {
            if let Output::Exchange(x) = output {
                self.exchanges += 1;
                self.tokens += x.output_tokens.unwrap_or(0);
            }
        }
    }
}

/// Streams `streams` answers at a time, a read of each in turn, as live ones come: what each needs of the caches is gone by its
/// next read when there are many.
fn speed(chunks: usize, streams: usize, seconds: f64) {
    let mut body = response(chunks);
    body.extend_from_slice(TAIL);
    let mut feeder = Feeder::new();
    let (mut rounds, mut reads, mut ns) = (0u64, 0u64, 1_000_000);
    // Keep-alive connections of 100 streams each.
    let (begun, cpu) = (Instant::now(), on_cpu());
    while begun.elapsed().as_secs_f64() < seconds {
        let conns = rounds / 100 * streams as u64 + 1..(rounds / 100 + 1) * streams as u64 + 1;
        let nth = (rounds % 100) as usize;
        let turn = nth as u32 + 1;
        for conn in conns.clone() {
            feeder.data(conn, Direction::Write, turn, nth * REQUEST.len(), ns, REQUEST);
        }
        for (i, cut) in body.chunks(CUT_BYTES).enumerate() {
            for conn in conns.clone() {
                ns += GAP_NS / streams as u64;
                feeder.data(conn, Direction::Read, turn, nth * body.len() + i * CUT_BYTES, ns, cut);
                reads += 1;
            }
        }
        rounds += 1;
    }
    let wall = begun.elapsed().as_secs_f64();
    let took = cpu.zip(on_cpu()).map_or(wall, |(from, to)| to - from);
    feeder.pipeline.handle_timeout(MonoNs(ns));
    feeder.take();
    let stats = feeder.pipeline.stats();
    // A fast wrong answer is worth nothing.
    assert_eq!(feeder.exchanges, rounds * streams as u64, "{stats:?}");
    assert_eq!(stats.chunks, rounds * (streams * chunks) as u64);
    assert_eq!(feeder.tokens, stats.chunks);
    let rate = stats.chunks as f64 / took;
    println!(
        "{{\"bench\":\"pipeline_speed\",\"streams\":{streams},\"chunks_per_s\":{rate:.0},\"ns_per_chunk\":{:.1},\"reads_per_s\":{:.0},\"chunks\":{},\"cpu_s\":{took:.2},\"wall_s\":{wall:.2}}}",
        1e9 / rate,
        reads as f64 / took,
        stats.chunks
    );
}

/// Time that this thread ran, in seconds: on a busy machine the wall clock measures the neighbours. Linux only.
fn on_cpu() -> Option<f64> {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(schedstat.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
}

/// Resident set, in bytes.
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

fn memory(open: usize, chunks: usize) {
    let body = response(chunks);
    let mut feeder = Feeder::new();
    let before = resident();
    let mut ns = 1_000_000;
    for conn in 1..=open as u64 {
        ns += 1000;
        feeder.data(conn, Direction::Write, 1, 0, ns, REQUEST);
    }
    // All streams advance together, as live ones do: what they hold grows interleaved in the heap.
    for (i, cut) in body.chunks(CUT_BYTES).enumerate() {
        for conn in 1..=open as u64 {
            // A read every 20 ms and more on each stream, never at the same time.
            ns += 20_000_000 / open as u64 + conn % 7;
            feeder.data(conn, Direction::Read, 1, i * CUT_BYTES, ns, cut);
        }
    }
    let stats = feeder.pipeline.stats();
    assert_eq!(stats.exchanges_open, open as u64, "{stats:?}");
    assert_eq!(stats.chunks, (open * chunks) as u64);
    assert!(feeder.pipeline.active().all(|s| s.chunks as usize == chunks));
    let grown = before.zip(resident()).map(|(before, after)| after.saturating_sub(before));
    let Some(grown) = grown else {
        println!("{{\"bench\":\"pipeline_memory\",\"error\":\"no /proc/self/statm\"}}");
        return;
    };
    println!(
        "{{\"bench\":\"pipeline_memory\",\"open\":{open},\"chunks_each\":{chunks},\"resident_bytes\":{grown},\"mib\":{:.1},\"bytes_per_stream\":{:.0}}}",
        grown as f64 / 1_048_576.0,
        grown as f64 / open as f64
    );
}
