//! Recordings without content: the same numbers, and no secret.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod files;
mod numbers;
mod secrets;
#[path = "../tape_support/mod.rs"]
mod tape_support;
mod told;

use nexent_observer_core::{
    event::{ConnId, Direction, MonoNs, Record, RecordFlags, RecordKind, Stamp},
    limits::Limits,
    pipeline::{Output, Pipeline},
    timing::Exchange,
};
use tape_support::{Tape, counting};

/// A connection of HTTP/1.1 under test, tapped.
struct Wire {
    pipeline: Pipeline,
    tape: Tape,
    sent: [u64; 2],
    now: u64,
    turn: u32,
    exchanges: Vec<Exchange>,
}

impl Wire {
    fn new() -> Self {
        let (mut pipeline, tape) = (Pipeline::new(Limits::default(), counting("")), Tape::default());
        pipeline.set_tap(tape.tap());
        Self { pipeline, tape, sent: [0; 2], now: 1_000_000_000, turn: 0, exchanges: Vec::new() }
    }

    fn record(&mut self, kind: RecordKind<'_>) {
        self.now += 7_000_000;
        let at = Stamp { entry: MonoNs(self.now - 1000), ret: MonoNs(self.now) };
        self.pipeline.handle_event(&Record { conn: ConnId(1), pid: 7, tid: 8, at, kind });
        if self.pipeline.poll_timeout().is_some_and(|due| due.0 <= self.now) {
            self.pipeline.handle_timeout(MonoNs(self.now));
        }
        while let Some(output) = self.pipeline.poll_output() {
            if let Output::Exchange(exchange) = output {
                self.exchanges.push(*exchange);
            }
        }
    }

    /// Moves bytes, of which `missing` at the end are not seen.
    fn moves(&mut self, dir: Direction, bytes: &[u8], missing: usize) {
        let from_start = true;
        let end = &mut self.sent[usize::from(dir == Direction::Write)];
        let offset = *end;
        *end += bytes.len() as u64;
        self.turn += u32::from(dir == Direction::Write && offset == 0);
        let flags = RecordFlags { from_start, capped: missing > 0, ..RecordFlags::default() };
        let payload = &bytes[..bytes.len() - missing];
        let turn = self.turn;
        self.record(RecordKind::Data { dir, offset, turn, payload, len: bytes.len() as u64, flags });
    }

    fn write(&mut self, bytes: &[u8]) {
        self.moves(Direction::Write, bytes, 0);
    }

    fn read(&mut self, bytes: &[u8]) {
        self.moves(Direction::Read, bytes, 0);
    }

    fn close(&mut self) {
        let [read_end, write_end] = self.sent;
        self.record(RecordKind::Close { read_end, write_end, flags: RecordFlags::default() });
    }
}

/// A POST as it is written.
fn post(path: &str, host: &str, headers: &[(String, String)], body: &[u8]) -> Vec<u8> {
    let mut out = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n");
    for (name, value) in headers {
        out += &format!("{name}: {value}\r\n");
    }
    out += &format!("Content-Length: {}\r\n\r\n", body.len());
    [out.as_bytes(), body].concat()
}

/// A chunk as it is sent.
fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// All bytes of a recording.
fn bytes(tape: &Tape) -> Vec<u8> {
    tape.0.lock().unwrap().concat()
}
