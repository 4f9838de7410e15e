//! Target `pipeline`: records of several connections of several processes, with losses, against what the pipeline
//! promises: nothing stays open, counts agree, and no connection changes what is said of another.
//!
//! The input is one letter (`d` each record at once, else as two rings that are drained at every tick) and a script: `~c`n
//! goes to connection n (process n/2), `~w`, `~r` switch to bytes that are written, read; `~|` cuts a record; `~g`n loses n bytes,
//! `~p`n leaves n bytes out on purpose, `~b`n goes n bytes back, `~d` repeats the last record, `~f`n sets flags of the next
//! one; `~t` is a tick of 10 ms, `~T` of 200 ms; `~x`n a close that tells n more bytes, `~e` the end of the process, after a drain.

use std::collections::{BTreeMap, HashMap, HashSet};

use nexent_observer_core::{
    event::{ConnId, Direction, MonoNs, Record, RecordFlags, RecordKind, Stamp},
    limits::Limits,
    pipeline::{Output, Pipeline},
    timing::{Exchange, Options, Outcome},
};

#[cfg(feature = "planted")]
use crate::planted::Leaky;
use crate::script::{Op, parse};

/// Connections that a script can go to.
const LANES: u8 = 6;

/// What the pipeline is told, in this order.
#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Record(Record<'a>),
    Exit { pid: u32, at: MonoNs },
    Tick(MonoNs),
}

/// One connection as the script has it.
#[derive(Debug, Clone)]
struct Lane {
    id: u64,
    dir: Direction,
    offsets: [u64; 2],
    turn: u32,
    from_start: bool,
}

impl Lane {
    fn new(id: u64) -> Self {
        Self { id, dir: Direction::Read, offsets: [0; 2], turn: 0, from_start: true }
    }
}

/// Turns a script into steps.
struct Compiler<'a> {
    rings: bool,
    steps: Vec<Step<'a>>,
    reads: Vec<Step<'a>>,
    writes: Vec<Step<'a>>,
    lanes: [Lane; LANES as usize],
    current: u8,
    ids: u64,
    now: u64,
    flags: Option<u8>,
    capped: u64,
    last: Option<Record<'a>>,
    /// Bytes of an offset came twice.
    repeats: bool,
}

fn pid(lane: u8) -> u32 {
    100 + u32::from(lane / 2)
}

impl<'a> Compiler<'a> {
    fn new(rings: bool) -> Self {
        Self {
            rings,
            steps: Vec::new(),
            reads: Vec::new(),
            writes: Vec::new(),
            lanes: std::array::from_fn(|i| Lane::new(i as u64 + 1)),
            current: 0,
            ids: u64::from(LANES),
            now: 1_000_000,
            flags: None,
            capped: 0,
            last: None,
            repeats: false,
        }
    }

    fn push(&mut self, step: Step<'a>) {
        let is_write =
            matches!(step, Step::Record(Record { kind: RecordKind::Data { dir: Direction::Write, .. }, .. }));
        match (self.rings, is_write) {
            (false, _) => self.steps.push(step),
            (true, true) => self.writes.push(step),
            (true, false) => self.reads.push(step),
        }
    }

    fn record(&mut self, kind: RecordKind<'a>) {
        let at = Stamp { entry: MonoNs(self.now - 500), ret: MonoNs(self.now) };
        let conn = ConnId(self.lane().id);
        let pid = pid(self.current);
        let record = Record { conn, pid, tid: pid, at, kind };
        self.last = matches!(kind, RecordKind::Data { .. }).then_some(record);
        self.push(Step::Record(record));
    }

    fn lane(&mut self) -> &mut Lane {
        &mut self.lanes[usize::from(self.current)]
    }

    fn take_flags(&mut self) -> RecordFlags {
        let from_start = self.lane().from_start;
        let bits = self.flags.take().unwrap_or(0);
        let has = |bit: u8| bits & (1 << bit) != 0;
        RecordFlags {
            from_start: from_start != has(4),
            capped: has(1),
            fault: has(2),
            after_skip: has(3),
            after_unknown_loss: has(0),
            sent: has(5),
        }
    }

    fn bytes(&mut self, payload: &'a [u8]) {
        self.now += 1_000;
        let flags = self.take_flags();
        let capped = std::mem::take(&mut self.capped);
        let lane = self.lane();
        let (dir, offset, turn) = (lane.dir, lane.offsets[lane.dir as usize], lane.turn);
        let len = payload.len() as u64 + capped;
        lane.offsets[dir as usize] += len;
        let flags = RecordFlags { capped: flags.capped || capped > 0, ..flags };
        self.record(RecordKind::Data { dir, offset, turn, payload, len, flags });
    }

    fn tick(&mut self, ns: u64) {
        self.now += ns;
        self.drain();
        self.steps.push(Step::Tick(MonoNs(self.now)));
    }

    fn drain(&mut self) {
        let (mut reads, mut writes) = (std::mem::take(&mut self.reads), std::mem::take(&mut self.writes));
        self.steps.append(&mut reads);
        self.steps.append(&mut writes);
    }

    fn renew(&mut self, lane: u8) {
        self.ids += 1;
        self.lanes[usize::from(lane)] = Lane::new(self.ids);
    }

    fn mark(&mut self, mark: u8, n: u8) {
        let current = self.current;
        match mark {
            b'c' => self.current = n % LANES,
            b'w' => {
                let lane = self.lane();
                if lane.dir == Direction::Read {
                    lane.turn += 1;
                }
                lane.dir = Direction::Write;
            }
            b'r' => self.lane().dir = Direction::Read,
            b'g' | b'b' => {
                self.repeats |= mark == b'b';
                let lane = self.lane();
                let offset = &mut lane.offsets[lane.dir as usize];
                let n = u64::from(n) + 1;
                *offset = if mark == b'g' { *offset + n } else { offset.saturating_sub(n) };
            }
            b'p' => self.capped = u64::from(n) + 1,
            b'f' => self.flags = Some(n),
            b'd' => {
                self.repeats = true;
                if let Some(last) = self.last {
                    self.push(Step::Record(last));
                }
            }
            b't' => self.tick(10_000_000),
            b'T' => self.tick(200_000_000),
            b'x' => {
                self.now += 1_000;
                let flags = self.take_flags();
                let [read, write] = self.lane().offsets;
                self.record(RecordKind::Close { read_end: read + u64::from(n), write_end: write, flags });
                self.renew(current);
            }
            b'e' => {
                self.now += 1_000;
                // It is told after the drain with the last records of the process.
                self.drain();
                self.steps.push(Step::Exit { pid: pid(current), at: MonoNs(self.now) });
                self.last = None;
                // An exit is told after the drain. Connections that this script makes in the same drain under the same pid
                // end with it, and what comes of them later begins another one: no process does that.
                self.repeats = true;
                for lane in (0..LANES).filter(|lane| pid(*lane) == pid(current)) {
                    self.renew(lane);
                }
            }
            _ => {}
        }
    }

    fn finish(mut self) -> Vec<Step<'a>> {
        self.tick(10_000_000);
        for lane in (0..LANES).step_by(2) {
            self.steps.push(Step::Exit { pid: pid(lane), at: MonoNs(self.now) });
        }
        self.tick(1_000_000_000);
        self.steps
    }
}

/// Plays the script.
pub fn check(input: &[u8]) {
    let Some((first, script)) = input.split_first() else { return };
    let mut compiler = Compiler::new(*first != b'd');
    for op in parse(script, b"cgpbfx") {
        match op {
            Op::Bytes(bytes) => compiler.bytes(bytes),
            Op::Mark(mark, n) => compiler.mark(mark, n),
        }
    }
    let repeats = compiler.repeats;
    let steps = compiler.finish();
    let mut together: BTreeMap<u64, Vec<Output>> = BTreeMap::new();
    let outputs = play(&steps);
    let ids = outputs.iter().filter_map(exchange_of).map(|exchange| exchange.id);
    // The kernel half repeats nothing. What it would repeat of a connection that was closed since begins another one.
    let verdicts = outputs.iter().filter(|output| matches!(output, Output::NotLlm { .. }));
    let distinct: HashSet<_> = verdicts.clone().map(|output| format!("{output:?}")).collect();
    assert!(repeats || distinct.len() == verdicts.count(), "a verdict came twice");
    assert!(repeats || ids.clone().collect::<HashSet<_>>().len() == ids.count(), "an exchange came twice");
    for output in outputs {
        together.entry(conn_of(&output)).or_default().push(output);
    }
    let pids: HashMap<u64, u32> = steps.iter().filter_map(record_of).map(|r| (r.conn.0, r.pid)).collect();
    if pids.len() < 2 {
        return;
    }
    for (conn, pid) in pids {
        let own = steps.iter().copied().filter(|step| match step {
            Step::Record(record) => record.conn.0 == conn,
            Step::Exit { pid: of, .. } => *of == pid,
            Step::Tick(_) => true,
        });
        let mut together = together.remove(&conn).unwrap_or_default();
        let mut alone = play(&own.collect::<Vec<_>>());
        together.iter_mut().chain(&mut alone).for_each(forget_others);
        // A call waits for what may have caused it; a served request and a verdict wait for nothing.
        let kind = |output: &Output| match output {
            Output::Exchange(exchange) => (0, exchange.id.no),
            Output::Tool(call) => (0, call.id.no),
            Output::Inbound(_) => (1, 0),
            Output::NotLlm { .. } => (2, 0),
        };
        together.sort_by_key(kind);
        alone.sort_by_key(kind);
        assert_eq!(together, alone, "connection {conn} among others, and alone");
    }
    assert!(together.is_empty(), "outputs of connections that do not exist");
}

fn record_of<'a>(step: &Step<'a>) -> Option<Record<'a>> {
    if let Step::Record(record) = step { Some(*record) } else { None }
}

fn exchange_of(output: &Output) -> Option<&Exchange> {
    if let Output::Exchange(exchange) = output { Some(exchange) } else { None }
}

/// Takes away what an output says of other connections: the request that caused a call, and the call that it repeats.
fn forget_others(output: &mut Output) {
    match output {
        Output::Exchange(exchange) => {
            exchange.cause = None;
            exchange.retry_of = None;
            exchange.retry_count = None;
        }
        Output::Tool(call) => call.cause = None,
        Output::Inbound(_) | Output::NotLlm { .. } => {}
    }
}

fn conn_of(output: &Output) -> u64 {
    match output {
        Output::Exchange(exchange) => exchange.id.conn.0,
        Output::Inbound(inbound) => inbound.served.id.conn.0,
        Output::Tool(call) => call.id.conn.0,
        Output::NotLlm { conn, .. } => conn.0,
    }
}

fn play(steps: &[Step<'_>]) -> Vec<Output> {
    let mut pipeline = Pipeline::new(Limits::default(), Options { capture_content: true, ..Options::default() });
    let mut outputs = Vec::new();
    let (mut records, mut bytes) = (0, 0);
    #[cfg(feature = "planted")]
    let mut planted = Leaky::default();
    for step in steps {
        match step {
            Step::Record(record) => {
                if let RecordKind::Data { payload, .. } = record.kind {
                    bytes += payload.len() as u64;
                }
                records += 1;
                #[cfg(feature = "planted")]
                let record = &planted.record(record);
                pipeline.handle_event(record);
            }
            Step::Exit { pid, at } => pipeline.process_exit(*pid, *at),
            Step::Tick(now) => {
                if pipeline.poll_timeout().is_some_and(|due| due <= *now) {
                    pipeline.handle_timeout(*now);
                }
                assert!(pipeline.poll_timeout().is_none_or(|due| due > *now), "what was due was done");
            }
        }
        outputs.extend(std::iter::from_fn(|| pipeline.poll_output()));
    }
    let stats = pipeline.stats();
    assert_eq!((stats.connections_open, stats.exchanges_open), (0, 0), "all processes are gone");
    assert_eq!(pipeline.active().count(), 0);
    assert_eq!(stats.records, records);
    assert!(stats.bytes <= bytes);
    let exchanges = || outputs.iter().filter_map(exchange_of);
    assert_eq!(stats.llm_exchanges, exchanges().count() as u64);
    assert!(stats.llm_exchanges <= stats.http_exchanges);
    exchanges().for_each(check_exchange);
    outputs
}

/// What holds of every exchange, whatever was lost.
fn check_exchange(x: &Exchange) {
    let ordered = |times: &[Option<MonoNs>]| {
        let known: Vec<_> = times.iter().flatten().collect();
        known.is_sorted()
    };
    assert!(ordered(&[x.first_chunk, x.first_token, x.last_token]), "{x:#?}");
    let times: Vec<_> = x.chunks.iter().map(|chunk| chunk.at).collect();
    assert!(times.is_sorted(), "{x:#?}");
    for rate in [x.decode_rate, x.end_to_end_rate].into_iter().flatten() {
        assert!(rate.is_finite() && rate >= 0.0, "{x:#?}");
    }
    if !x.streamed {
        let timed = x.first_chunk.or(x.first_token).or(x.last_token);
        assert!(timed.is_none() && x.stalls.is_empty() && x.decode_rate.is_none() && times.is_empty(), "{x:#?}");
    }
    if x.bytes_lost != Some(0) {
        assert_eq!(x.decode_rate, None, "{x:#?}");
        assert_ne!(x.outcome, Outcome::Completed, "{x:#?}");
    }
    assert!(x.stalls.iter().all(|(from, to)| from < to), "{x:#?}");
}
