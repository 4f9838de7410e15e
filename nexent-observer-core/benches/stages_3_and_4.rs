//! What reassembly and HTTP/1.1 cost per read of a streamed answer: `cargo bench -p nexent-observer-core`.
//!
//! 295-byte events in chunks, cut every 200 bytes, as in the budgets of ARCHITECTURE.md. Prints nanoseconds per read and the
//! memory of a connection at rest.
#![expect(clippy::print_stdout, reason = "a program that prints its result")]

use std::{hint::black_box, mem::size_of, time::Instant};

use nexent_observer_core::{
    conn::Reassembly,
    event::{ConnId, Direction, MonoNs, Record, RecordFlags, RecordKind, Stamp},
    http::{HttpConnection, HttpEventKind, StartSeen},
    stats::Stats,
};

const READ_BYTES: usize = 200;
const EVENTS: usize = 20_000;
const ROUNDS: usize = 20;

fn record(at: u64, dir: Direction, offset: u64, payload: &[u8]) -> Record<'_> {
    let flags = RecordFlags { from_start: true, ..RecordFlags::default() };
    let kind = RecordKind::Data { dir, offset, turn: 1, payload, len: payload.len() as u64, flags };
    Record { conn: ConnId(1), pid: 1, tid: 1, at: Stamp { entry: MonoNs(at), ret: MonoNs(at) }, kind }
}

fn main() {
    let event = format!("data: {{\"x\":\"{}\"}}\n\n", "y".repeat(295 - 16));
    let mut answer =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..EVENTS {
        answer.extend(format!("{:x}\r\n{event}\r\n", event.len()).bytes());
    }
    answer.extend(b"0\r\n\r\n");
    let request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}";
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let (mut conn, mut http, mut stats) =
            (Reassembly::new(), HttpConnection::new(StartSeen::Yes), Stats::default());
        let (mut body, mut ends) = (0, 0);
        let mut take = |record: &Record<'_>| {
            // Two counters, since stage 4 runs inside the sink of stage 3.
            let mut http_stats = Stats::default();
            conn.feed(record, &mut stats, &mut |ev| {
                http.feed(&ev, &mut http_stats, &mut |ev| match ev.kind {
                    HttpEventKind::Body(bytes) => body += black_box(bytes).len(),
                    HttpEventKind::End => ends += 1,
                    _ => {}
                });
            });
        };
        take(&record(1, Direction::Write, 0, request));
        let begun = Instant::now();
        let mut offset = 0;
        for piece in answer.chunks(READ_BYTES) {
            take(&record(2 + offset, Direction::Read, offset, piece));
            offset += piece.len() as u64;
        }
        let reads = answer.len().div_ceil(READ_BYTES);
        best = best.min(begun.elapsed().as_nanos() as f64 / reads as f64);
        assert_eq!((body, ends), (EVENTS * event.len() + 2, 2));
    }
    println!("{best:.1} ns per read of {READ_BYTES} bytes (best of {ROUNDS} rounds)");
    let sizes = (size_of::<Reassembly>(), size_of::<HttpConnection>());
    println!("{} + {} bytes inline per connection (reassembly, HTTP)", sizes.0, sizes.1);
}
