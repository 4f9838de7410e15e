//! Joins stages 3 to 7. The only module that knows them all, but for the recordings behind it.
//!
//! [`Pipeline`] is driven from outside, without I/O (the manner of `quinn-proto`): records go in, outputs come out, and
//! time is what the records and the caller say it is. The caller's loop is:
//!
//! 1. drain the ring of reads and closes, then the ring of writes, each record into [`Pipeline::handle_event`], and take
//!    [`Pipeline::poll_output`] until it is empty;
//! 2. after **both** rings, [`Pipeline::handle_timeout`] if [`Pipeline::poll_timeout`] is due.

mod beside;
mod connection;
mod replay;
mod sockets;
mod tap;

pub use replay::Replay;
pub use tap::{Counted, SocketTold, Tap, Tapped};

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    chain::{Chain, Inbound, ToolCall},
    conn::{CloseCause, Table},
    event::{Address, ConnId, Direction, MonoNs, Record, RecordKind, Said, Stamp, ThreadEvent},
    limits::{CALL_WAITS_NS, CALLS_WAITING, CALLS_WAITING_BYTES, Limits, OUTPUTS},
    stats::{DropReason, Stats},
    timing::{ActiveStream, Exchange, ExchangeId, Options, Retries, Rule, Served},
};

use connection::Connection;

/// What the core gives out.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// An LLM call ended.
    Exchange(Box<Exchange>),
    /// A request that the process served, and that was no LLM call, ended.
    Inbound(Box<Inbound>),
    /// A call of the Model Context Protocol that the process made ended.
    Tool(Box<ToolCall>),
    /// What goes on in this turn of this HTTP/1 connection is no LLM call: the kernel half may stop copying until the
    /// process writes again. At most once per connection and turn, and only when the response head was read: from then on
    /// the next write begins a new turn, so no request can come under a verdict that it knows nothing of.
    NotLlm {
        /// Connection.
        conn: ConnId,
        /// Turn.
        turn: u32,
    },
}

/// The whole core.
#[derive(Debug)]
pub struct Pipeline {
    table: Table<Connection>,
    shared: Shared,
    /// Connections with a verdict that waits for the end of the drain.
    verdicts: Vec<ConnId>,
    /// Connections of which something waits for a record of the other ring, each once. Few, and not for long.
    held: Vec<ConnId>,
    /// Connections that were closed last: a record that comes after its connection's close begins no new one.
    closed: VecDeque<ConnId>,
    /// Threads of which a hook said to what their next write belongs.
    said: HashMap<u32, Option<Arc<Said>>>,
}

/// Threads that may stand between a hook's word and their write. The write follows at once, so a thread that stays here never wrote.
const SAID: usize = 4096;

/// Closed connections that are remembered: more than close within the time that one ring can be behind the other.
const CLOSED: usize = 1024;

/// What every connection writes to. Each stage has its own counters, because one feeds the next from inside its call.
#[derive(Debug)]
struct Shared {
    conn: Stats,
    http: Stats,
    calls: SharedCalls,
}

/// The part of it that concerns single exchanges.
#[derive(Debug)]
struct SharedCalls {
    limits: Limits,
    options: Options,
    retries: Retries,
    llm: Stats,
    timing: Stats,
    chain: Chain,
    /// What waits for both rings to be drained, to be joined to what caused it; with the thread that read its end.
    parked: Vec<(Parked, Option<u32>)>,
    /// What waits until a request is over, in the order in which it began to; with the thread, and when it has waited long enough.
    waiting: VecDeque<(Parked, Option<u32>, MonoNs)>,
    /// Bytes of heap that these hold.
    waiting_bytes: usize,
    /// The observer ends: nothing waits.
    stopped: bool,
    outputs: VecDeque<Output>,
    tap: Option<Box<dyn Tap>>,
    /// For a tap: what was counted in the event of a WebSocket.
    counted: Vec<Counted>,
    /// What a tap was shown is given back: digests and counts are those of then.
    replays: bool,
}

/// A call that the process made, and that is over.
#[derive(Debug)]
enum Parked {
    Exchange(Box<Exchange>),
    Tool(Box<ToolCall>),
}

impl Pipeline {
    /// A pipeline that has seen nothing.
    #[must_use]
    pub fn new(limits: Limits, options: Options) -> Self {
        Self {
            table: Table::new(&limits),
            shared: Shared { conn: Stats::default(), http: Stats::default(), calls: SharedCalls::new(limits, options) },
            verdicts: Vec::new(),
            held: Vec::new(),
            closed: VecDeque::new(),
            said: HashMap::new(),
        }
    }

    /// Shows from now on what stage 4 gives to stage 5 to `tap`. Costs nothing while there is none.
    pub fn set_tap(&mut self, tap: Box<dyn Tap>) {
        self.shared.calls.tap = Some(tap);
    }

    /// Joins calls to what caused them by their content, too (docs/tracing.md). Off unless asked for.
    pub fn join_by_content(&mut self) {
        self.shared.calls.chain.compare_content();
    }

    /// The request that thread `tid` of a process is serving now, and how that is known.
    #[must_use]
    pub fn serving(&self, pid: u32, tid: u32) -> Option<(Rule, Arc<Served>)> {
        self.shared.calls.chain.serving(pid, tid)
    }

    /// The request that a process is serving to this peer now, if it is one.
    #[must_use]
    pub fn serving_peer(&self, pid: u32, peer: Address) -> Option<Arc<Served>> {
        self.shared.calls.chain.serving_peer(pid, peer)
    }

    /// Takes in one record.
    pub fn handle_event(&mut self, record: &Record<'_>) {
        let Self { table, shared, verdicts, held, closed, said } = self;
        let (id, now) = (record.conn, record.at.ret);
        let connection = match table.touch(id, now) {
            Some(connection) => connection,
            // A close may overtake all writes of a short connection. Otherwise it was let go before.
            None if matches!(record.kind, RecordKind::Close { write_end: 0, .. }) || closed.contains(&id) => {
                shared.conn.records += 1;
                shared.conn.count(DropReason::RecordInvalid);
                return;
            }
            // What the socket of a connection tells that was let go of, or of which no byte was seen.
            None if matches!(
                record.kind,
                RecordKind::Sent { .. } | RecordKind::Late { .. } | RecordKind::Retransmit
            ) =>
            {
                shared.conn.records += 1;
                return;
            }
            None => {
                let new = Connection::new(id, record.pid);
                if let Some((_, mut gone)) = table.insert(id, record.pid, now, new, &mut shared.conn) {
                    gone.close(now, CloseCause::Evicted, shared);
                }
                let Some(connection) = table.get_mut(id) else { return };
                connection
            }
        };
        if let RecordKind::Data { dir: Direction::Write, .. } = record.kind
            && !said.is_empty()
            && let Some(said) = said.remove(&record.tid)
        {
            connection.said(said);
        }
        connection.feed(record, shared);
        if connection.is_closed() {
            table.remove(id);
            remember(closed, id);
            return;
        }
        if connection.waits_anew() {
            held.push(id);
        }
        if let RecordKind::Data { dir: Direction::Read, turn, .. } = record.kind
            && connection.verdict_due(turn)
        {
            verdicts.push(id);
        }
    }

    /// An in-process hook of thread `tid` said to which span the write belongs that the thread makes next; `None`: to none. Call it in
    /// the order of the ring of writes.
    pub fn handle_said(&mut self, tid: u32, said: Option<Arc<Said>>) {
        if self.said.len() >= SAID && !self.said.contains_key(&tid) {
            self.said.clear();
        }
        self.said.insert(tid, said);
    }

    /// Something happened to a thread. Call it in the order of the ring.
    pub fn handle_thread(&mut self, event: &ThreadEvent) {
        self.shared.calls.chain.thread(event);
    }

    /// The process is gone: its connections end at `at`. Call it after the drain in which the last records of the
    /// process came.
    pub fn process_exit(&mut self, pid: u32, at: MonoNs) {
        for (_, mut connection) in self.table.remove_pid(pid) {
            connection.close(at, CloseCause::ProcessExit, &mut self.shared);
        }
        self.shared.calls.process_exit(pid);
    }

    /// The observer ends: nothing is waited for any more.
    pub fn stop(&mut self) {
        let calls = &mut self.shared.calls;
        calls.stopped = true;
        calls.join_parked(None);
        calls.join_those(|_, _| true);
    }

    /// Processes with a finished call that waits for the end of a request: they have called an LLM, though it was not told yet.
    pub fn waiting(&self) -> impl Iterator<Item = u32> {
        self.shared.calls.waiting.iter().filter_map(|(call, ..)| match call {
            Parked::Exchange(exchange) => Some(exchange.pid),
            Parked::Tool(_) => None,
        })
    }

    /// The observer detached from a process that lives on.
    pub fn detach(&mut self, pid: u32, at: MonoNs) {
        for (_, mut connection) in self.table.remove_pid(pid) {
            connection.close(at, CloseCause::Evicted, &mut self.shared);
        }
        self.shared.calls.process_exit(pid);
    }

    /// The connections that were not heard since `before`, each as the record that ends it at `at`: for those of which the kernel half knows
    /// nothing any more, so that the record of their end was lost. What came last on them may be lost, too, and an exchange that is
    /// open there will not be called whole.
    pub fn silent(&self, before: MonoNs, at: MonoNs) -> impl Iterator<Item = Record<'static>> {
        let ended = move |(conn, pid, connection): (ConnId, u32, &Connection)| Record {
            conn,
            pid,
            tid: pid,
            at: Stamp { entry: at, ret: at },
            kind: connection.lost_close(),
        };
        self.table.silent(before).map(ended)
    }

    /// When [`Self::handle_timeout`] has something to do, on the clock of the records; possibly in the past, which
    /// means after the current drain.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<MonoNs> {
        let calls = &self.shared.calls;
        if !self.verdicts.is_empty() || !calls.parked.is_empty() || calls.chain.is_due() {
            return Some(MonoNs(0));
        }
        let waits = calls.waiting.front().map(|(.., until)| *until);
        let held = self.held.iter().filter_map(|&id| self.table.get(id)?.poll_timeout()).min();
        [held, self.table.poll_timeout(), waits, calls.chain.poll_timeout()].into_iter().flatten().min()
    }

    /// Does what was due at `now`. Call it only after a drain of both rings: what waits for a record of the other ring
    /// takes its absence for a loss.
    pub fn handle_timeout(&mut self, now: MonoNs) {
        let Self { table, shared, verdicts, held, closed, .. } = self;
        held.retain(|&id| {
            let Some(connection) = table.get_mut(id) else { return false };
            let waits = connection.handle_timeout(now, shared);
            if connection.is_closed() {
                table.remove(id);
                remember(closed, id);
            }
            waits
        });
        for id in verdicts.drain(..) {
            if let Some(turn) = table.get_mut(id).and_then(Connection::take_verdict) {
                shared.calls.give_out(Output::NotLlm { conn: id, turn });
            }
        }
        while let Some((_, mut connection)) = table.pop_idle(now, &mut shared.conn) {
            connection.close(now, CloseCause::Evicted, shared);
        }
        shared.calls.chain.drained(now);
        shared.calls.join_waiting(now);
        shared.calls.join_parked(Some(now));
    }

    /// The next output.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.shared.calls.outputs.pop_front()
    }

    /// Counters of all stages.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Shared { conn, http, calls } = &self.shared;
        let mut all = conn.clone();
        for stage in [http, &calls.llm, &calls.timing] {
            all.add(stage);
        }
        all.connections_open = self.table.len() as u64;
        all
    }

    /// The LLM calls that are open now, in no order.
    pub fn active(&self) -> impl Iterator<Item = ActiveStream<'_>> {
        self.table.values().flat_map(Connection::active)
    }
}

impl Parked {
    /// What tells its cause without the chain: a hook's word, and its `traceparent`.
    fn told(&self) -> (bool, Option<&str>) {
        match self {
            Self::Exchange(exchange) => (exchange.said.is_some(), exchange.call.traceparent.as_deref()),
            Self::Tool(call) => (call.said.is_some(), call.traceparent.as_deref()),
        }
    }

    /// Bytes of heap that it holds, but for what every one holds.
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Exchange(exchange) => {
                let text = exchange.output_text.as_ref().map_or(0, String::capacity);
                text + exchange.chunks.heap_bytes() + 16 * exchange.stalls.capacity()
            }
            Self::Tool(_) => 0,
        }
    }

    fn id(&self) -> (u32, ExchangeId) {
        match self {
            Self::Exchange(exchange) => (exchange.pid, exchange.id),
            Self::Tool(call) => (call.pid, call.id),
        }
    }
}

fn remember(closed: &mut VecDeque<ConnId>, id: ConnId) {
    if closed.len() >= CLOSED {
        closed.pop_front();
    }
    closed.push_back(id);
}

impl SharedCalls {
    fn new(limits: Limits, options: Options) -> Self {
        Self {
            limits,
            options,
            retries: Retries::default(),
            llm: Stats::default(),
            timing: Stats::default(),
            chain: Chain::default(),
            parked: Vec::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            stopped: false,
            outputs: VecDeque::new(),
            tap: None,
            counted: Vec::new(),
            replays: false,
        }
    }

    /// Gives out a call together with what caused it: now, if nothing can have, else when both rings are drained. No call
    /// overtakes another until then, so that those of one connection come in their order.
    fn give_out_joined(&mut self, call: Parked, reader: Option<u32>) {
        let (pid, id) = call.id();
        if self.parked.len() >= OUTPUTS {
            self.join_parked(None);
        }
        if !self.stopped && (self.chain.follows(pid, id) || !self.parked.is_empty()) {
            self.parked.push((call, reader));
        } else {
            self.join(call, reader);
        }
    }

    /// Both rings are drained; `now`: some may wait for more.
    fn join_parked(&mut self, now: Option<MonoNs>) {
        for (call, reader) in std::mem::take(&mut self.parked) {
            let bytes = self.waiting_bytes.saturating_add(call.heap_bytes());
            let room = self.waiting.len() < CALLS_WAITING && bytes <= CALLS_WAITING_BYTES;
            match now {
                Some(now) if room && self.waits(&call, reader) => {
                    self.waiting_bytes = bytes;
                    self.waiting.push_back((call, reader, MonoNs(now.0.saturating_add(CALL_WAITS_NS))));
                }
                _ => self.join(call, reader),
            }
        }
    }

    /// Both rings are drained: what has waited long enough, or has nothing more to wait for, is joined.
    fn join_waiting(&mut self, now: MonoNs) {
        let settled = self.chain.settled();
        if settled || self.waiting.front().is_some_and(|(.., until)| *until <= now) {
            self.join_those(|calls, (call, reader, until)| *until <= now || !calls.waits(call, *reader));
        }
    }

    /// Joins what waits and is meant.
    fn join_those(&mut self, meant: impl Fn(&Self, &(Parked, Option<u32>, MonoNs)) -> bool) {
        self.waiting_bytes = 0;
        for one in std::mem::take(&mut self.waiting) {
            if meant(self, &one) {
                self.join(one.0, one.1);
            } else {
                self.waiting_bytes = self.waiting_bytes.saturating_add(one.0.heap_bytes());
                self.waiting.push_back(one);
            }
        }
    }

    fn waits(&self, call: &Parked, reader: Option<u32>) -> bool {
        if self.stopped {
            return false;
        }
        let (pid, id) = call.id();
        let (said, traceparent) = call.told();
        self.chain.waits(pid, id, said, traceparent, reader)
    }

    /// Of this process nothing more comes. Calls of others go on waiting: it may be any process of the host.
    fn process_exit(&mut self, pid: u32) {
        for (call, reader) in std::mem::take(&mut self.parked) {
            if call.id().0 == pid { self.join(call, reader) } else { self.parked.push((call, reader)) }
        }
        if self.waiting.iter().any(|(call, ..)| call.id().0 == pid) {
            self.join_those(|_, (call, ..)| call.id().0 == pid);
        }
        self.chain.process_exit(pid);
    }

    fn join(&mut self, call: Parked, reader: Option<u32>) {
        let (pid, id) = call.id();
        let (said, traceparent) = call.told();
        let cause = self.chain.cause(pid, id, said, traceparent, reader);
        let output = match call {
            Parked::Exchange(mut exchange) => {
                exchange.cause = cause;
                Output::Exchange(exchange)
            }
            Parked::Tool(mut call) => {
                call.cause = cause;
                Output::Tool(call)
            }
        };
        self.give_out(output);
    }

    fn give_out(&mut self, output: Output) {
        if self.outputs.len() >= OUTPUTS {
            self.timing.count(DropReason::OutputsFull);
            self.outputs.pop_front();
        }
        self.outputs.push_back(output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_that_nobody_takes_are_capped_and_the_oldest_go() {
        let mut pipeline = Pipeline::new(Limits::default(), Options::default());
        for n in 0..OUTPUTS as u64 + 5 {
            pipeline.shared.calls.give_out(Output::NotLlm { conn: ConnId(n), turn: 0 });
        }
        assert_eq!(pipeline.stats().drops(DropReason::OutputsFull), 5);
        assert_eq!(pipeline.poll_output(), Some(Output::NotLlm { conn: ConnId(5), turn: 0 }));
        assert_eq!(std::iter::from_fn(|| pipeline.poll_output()).count(), OUTPUTS - 1);
    }

    #[test]
    fn closed_connections_are_remembered_up_to_a_cap() {
        let mut closed = VecDeque::new();
        (0..3 * CLOSED as u64).for_each(|n| remember(&mut closed, ConnId(n)));
        assert_eq!((closed.len(), closed.back()), (CLOSED, Some(&ConnId(3 * CLOSED as u64 - 1))));
    }
}
