//! Cuts the bytes of a connection into calls as a process would make them, and into the records of two rings as the
//! kernel half would emit them, with what can go wrong on the way.

use nexent_observer_core::{
    event::{ConnId, Direction, MonoNs, Record, RecordFlags, RecordKind, Stamp},
    timing::Outcome,
};

use crate::{
    rng::Rng,
    traffic::{Script, What, script},
};

/// One record, owned.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) conn: ConnId,
    pub(crate) pid: u32,
    pub(crate) at: Stamp,
    pub(crate) kind: RowKind,
}

#[derive(Debug, Clone)]
pub(crate) enum RowKind {
    Data {
        dir: Direction,
        offset: u64,
        turn: u32,
        payload: Vec<u8>,
        len: u64,
        flags: RecordFlags,
    },
    Close {
        read_end: u64,
        write_end: u64,
        flags: RecordFlags,
    },
    /// The socket has what was written by calls that returned until then.
    Sent(MonoNs),
    /// The process is gone; told by another way than the rings.
    Exit,
}

impl Row {
    pub(crate) fn record(&self) -> Option<Record<'_>> {
        let kind = match &self.kind {
            RowKind::Data { dir, offset, turn, payload, len, flags } => {
                RecordKind::Data { dir: *dir, offset: *offset, turn: *turn, payload, len: *len, flags: *flags }
            }
            RowKind::Close { read_end, write_end, flags } => {
                RecordKind::Close { read_end: *read_end, write_end: *write_end, flags: *flags }
            }
            RowKind::Sent(until) => RecordKind::Sent { until: *until },
            RowKind::Exit => return None,
        };
        Some(Record { conn: self.conn, pid: self.pid, tid: self.pid + 1, at: self.at, kind })
    }

    /// Through which ring it comes: reads, closes; or writes.
    pub(crate) fn is_write(&self) -> bool {
        matches!(self.kind, RowKind::Data { dir: Direction::Write, .. } | RowKind::Sent(_))
    }
}

/// What an exchange really was.
#[derive(Debug, Clone)]
pub(crate) struct Truth {
    pub(crate) script: Script,
    pub(crate) outcome: Outcome,
    pub(crate) error_type: Option<String>,
    pub(crate) request_start: MonoNs,
    pub(crate) request_written: MonoNs,
    /// When the socket had it: at once, later, or nobody knows.
    pub(crate) request_sent: Option<MonoNs>,
    pub(crate) first_byte: Option<MonoNs>,
    pub(crate) head_known: bool,
    pub(crate) first_chunk: Option<MonoNs>,
    pub(crate) first_token: Option<MonoNs>,
    pub(crate) last_token: Option<MonoNs>,
    pub(crate) end: MonoNs,
    /// Time and tokens of the output chunks.
    pub(crate) chunks: Vec<(MonoNs, Option<u32>)>,
    pub(crate) output: Option<u64>,
    pub(crate) text: String,
}

/// One connection: what happened and what came through.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) rows: Vec<Row>,
    pub(crate) truths: Vec<Truth>,
    /// Anything of it was lost or left out, or it was joined midway.
    pub(crate) damaged: bool,
    /// Middles of large request bodies were left out on purpose.
    pub(crate) capped: bool,
}

/// What may go wrong, in percent of connections (and there of a few records each).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) loss: usize,
    pub(crate) join: usize,
}

struct Call {
    dir: Direction,
    at: Stamp,
    range: std::ops::Range<usize>,
    turn: u32,
    /// The middle of a request body.
    may_cap: bool,
    /// When the socket had what was written.
    sent: Option<MonoNs>,
}

/// How a connection's writes get to its socket.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Inside,
    After,
    Unknown,
}

pub(crate) fn connection(rng: &mut Rng, no: usize, faults: Faults) -> Wire {
    let id = ConnId(no as u64 + 1);
    let pid = 1000 + no as u32;
    let mut now = rng.range(1_000_000, 2_000_000_000) as u64;
    let count = rng.range(1, 7);
    let (lossy, joined) = (rng.percent(faults.loss), rng.percent(faults.join));
    let damaged = lossy || joined;
    let scripts: Vec<Script> = (0..count).map(|i| script(rng, no, i, i + 1 == count)).collect();

    let socket = *rng.pick(&[Way::Inside, Way::After, Way::Unknown]);
    let (mut written, mut read) = (Vec::new(), Vec::new());
    let mut calls = Vec::new();
    let (mut turn, mut reading) = (0, true);
    let mut truths: Vec<Truth> = Vec::new();
    let mut next = 0;
    while next < scripts.len() {
        // Pipelined now and then: several requests go out before the first answer is read. Not where bytes get lost:
        // stage 4 then pairs by time, which is right unless requests are pipelined, and no LLM client does that.
        let batch = if !damaged && rng.percent(10) { rng.range(1, 4) } else { 1 };
        let batch = &scripts[next..(next + batch).min(scripts.len())];
        next += batch.len();
        for s in batch {
            let begin = calls.len();
            let at = written.len();
            for range in cuts(rng, s.request.len(), 4) {
                turn += u32::from(std::mem::take(&mut reading));
                let entry = now + rng.range(1_000, 200_000) as u64;
                now = entry + rng.range(500, 50_000) as u64;
                let stamp = Stamp { entry: MonoNs(entry), ret: MonoNs(now) };
                if socket == Way::After {
                    now += rng.range(1_000, 5_000_000) as u64;
                }
                let sent = (socket != Way::Unknown).then_some(MonoNs(now));
                let may_cap = range.start > s.head + 100 && range.end < s.request.len();
                let range = at + range.start..at + range.end;
                calls.push(Call { dir: Direction::Write, at: stamp, range, turn, may_cap, sent });
            }
            written.extend_from_slice(&s.request);
            let last = calls.last().unwrap_or(&calls[begin]);
            truths.push(blank(s, calls[begin].at.entry, last.at.ret, last.sent));
        }
        let first = truths.len() - batch.len();
        let start = read.len();
        let mut begins = Vec::new();
        for s in batch {
            begins.push(read.len());
            read.extend_from_slice(&s.response[..s.over_at()]);
        }
        let most = *rng.pick(&[2, 20, 200]);
        let mut reads: Vec<(usize, MonoNs)> = Vec::new();
        for range in cuts(rng, read.len() - start, most) {
            let entry = now + rng.range(1_000, 30_000_000) as u64;
            now = entry + rng.range(500, 50_000) as u64;
            let stamp = Stamp { entry: MonoNs(entry), ret: MonoNs(now) };
            let range = start + range.start..start + range.end;
            reads.push((range.end, stamp.ret));
            calls.push(Call { dir: Direction::Read, at: stamp, range, turn, may_cap: false, sent: None });
            reading = true;
        }
        for (truth, begin) in truths[first..].iter_mut().zip(begins) {
            let when = |offset: usize| reads[reads.partition_point(|(end, _)| *end < begin + offset)].1;
            fill(truth, when);
        }
    }
    let closed = now + rng.range(1_000, 5_000_000) as u64;
    for truth in &mut truths {
        if truth.end == MonoNs(0) {
            truth.end = MonoNs(closed);
        }
    }

    let capped = rng.percent(20);
    let join = if joined { rng.range(1, calls.len() + 1) } else { 0 };
    let mut wire = Wire { rows: Vec::new(), truths, damaged: join > 0, capped };
    let mut origin = [None; 2];
    let mut unknown = [false; 2];
    let turn_before = calls.get(join).map_or(0, |c| c.turn - u32::from(c.dir == Direction::Write));
    for call in calls.iter().skip(join) {
        let bytes = if call.dir == Direction::Write { &written } else { &read };
        let way = usize::from(call.dir == Direction::Write);
        let origin = origin[way].get_or_insert(call.range.start as u64);
        let len = call.range.len() as u64;
        let mut payload = bytes[call.range.clone()].to_vec();
        let sent = call.sent == Some(call.at.ret);
        let mut flags = RecordFlags { from_start: join == 0, sent, ..RecordFlags::default() };
        if lossy && rng.percent(6) {
            wire.damaged = true;
            match rng.range(0, 4) {
                0 => continue,
                1 => payload.clear(),
                2 => payload.truncate(rng.range(0, payload.len())),
                _ => {
                    // The entry of the call could not be kept: its bytes are in no offset.
                    unknown[way] = true;
                    *origin += len;
                    continue;
                }
            }
            flags.fault = rng.percent(50);
        } else if capped && call.may_cap {
            payload.clear();
            flags.capped = true;
        }
        flags.after_unknown_loss = std::mem::take(&mut unknown[way]);
        let offset = call.range.start as u64 - *origin;
        let kind = RowKind::Data { dir: call.dir, offset, turn: call.turn - turn_before, payload, len, flags };
        wire.rows.push(Row { conn: id, pid, at: call.at, kind });
        if let Some(at) = call.sent.filter(|_| !sent) {
            wire.rows.push(Row { conn: id, pid, at: Stamp { entry: at, ret: at }, kind: RowKind::Sent(call.at.ret) });
        }
    }
    let at = Stamp { entry: MonoNs(closed), ret: MonoNs(closed) };
    // Without the final offsets of a close a loss at the very end shows nowhere: no lossy connection ends like that here.
    let kind = if !lossy && rng.percent(20) {
        RowKind::Exit
    } else {
        let end = |all: usize, origin: Option<u64>| origin.map_or(0, |o| all as u64 - o);
        let flags = RecordFlags { after_unknown_loss: unknown[0] || unknown[1], ..RecordFlags::default() };
        RowKind::Close { read_end: end(read.len(), origin[0]), write_end: end(written.len(), origin[1]), flags }
    };
    wire.rows.push(Row { conn: id, pid, at, kind });
    wire
}

/// Random ranges that cover `len` bytes: at most `most` of them, none when `len` is 0.
fn cuts(rng: &mut Rng, len: usize, most: usize) -> Vec<std::ops::Range<usize>> {
    if len == 0 {
        return Vec::new();
    }
    let mut at: Vec<usize> = (1..rng.range(1, most + 1)).map(|_| rng.range(0, len)).filter(|&i| i > 0).collect();
    at.push(0);
    at.push(len);
    at.sort_unstable();
    at.dedup();
    at.windows(2).map(|w| w[0]..w[1]).collect()
}

fn blank(script: &Script, entry: MonoNs, request_written: MonoNs, request_sent: Option<MonoNs>) -> Truth {
    Truth {
        script: script.clone(),
        outcome: Outcome::Completed,
        error_type: None,
        request_start: entry,
        request_written,
        request_sent,
        first_byte: None,
        head_known: false,
        first_chunk: None,
        first_token: None,
        last_token: None,
        end: MonoNs(0),
        chunks: Vec::new(),
        output: None,
        text: String::new(),
    }
}

/// Fills in what follows from when each byte of the response was read.
fn fill(truth: &mut Truth, when: impl Fn(usize) -> MonoNs) {
    let script = truth.script.clone();
    let over = script.over_at();
    truth.head_known = script.response_head() <= over;
    truth.first_byte = truth.head_known.then(|| when(1));
    truth.outcome = script.outcome(truth.head_known);
    // `[DONE]`, which ends an exchange, may be followed by the end of the message in a later read.
    let mut over_at = None;
    let mut last_event = None;
    let mut before = Some(0);
    for mark in script.known() {
        let at = when(mark.offset);
        match &mark.what {
            What::Event { text, output, counted } => {
                last_event = Some(at);
                truth.first_chunk = truth.first_chunk.or(Some(at));
                if *output {
                    let tokens = before.zip(*counted).map(|(b, c): (u64, u64)| (c - b) as u32);
                    truth.chunks.push((at, tokens));
                    truth.text.push_str(text);
                    truth.first_token = truth.first_token.or(Some(at));
                    truth.last_token = Some(at);
                    truth.output = *counted;
                    before = *counted;
                } else if counted.is_some() {
                    truth.output = *counted;
                }
            }
            What::Finish => {}
            What::Done | What::End => over_at = over_at.or(Some(at)),
        }
    }
    truth.end = match over_at {
        Some(at) => at,
        None if truth.outcome == Outcome::Completed => last_event.unwrap_or_default(),
        None => MonoNs(0), // the close, not known yet
    };
    truth.error_type = match truth.outcome {
        Outcome::Error if over == script.response.len() => script.error_type.clone(),
        Outcome::Error => Some(script.status.to_string()),
        Outcome::ServerAbort => Some("stream_truncated".to_owned()),
        _ => None,
    };
    if !script.stream {
        truth.first_chunk = None;
        truth.first_token = None;
        truth.last_token = None;
        truth.chunks.clear();
    }
}
