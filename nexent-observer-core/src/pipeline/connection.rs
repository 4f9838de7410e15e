//! One connection through all stages.

mod tapping;

use std::{collections::VecDeque, sync::Arc};

use smallvec::SmallVec;

use super::{
    Output, Parked, Shared, SharedCalls,
    beside::{Beside, Of},
    sockets::{Origin, Sockets},
    tap::{Counted, SocketTold, Tap, Tapped},
};
use crate::{
    conn::{CloseCause, Reassembly, StreamEvent},
    event::{ConnId, Direction, MonoNs, Peer, Record, RecordKind, Role, Said, Stamp},
    http::{AbortCause, ExchangeNo, Head, HttpConnection, HttpEvent, HttpEventKind, Protocol, Side, StartSeen},
    limits::{OPEN_EXCHANGES, RETRANSMITS},
    llm::{self, LlmEvent, LlmEventKind, LlmExchange, SocketState, Verdict},
    stats::DropReason,
    timing::{ActiveStream, ExchangeId, Progress, Timing},
};

#[derive(Debug)]
pub(super) struct Connection {
    reassembly: Reassembly,
    http: HttpConnection,
    /// A data record came: it said whether the connection was seen from its start.
    begun: bool,
    calls: Calls,
    /// It is on the pipeline's list of those that wait.
    listed: bool,
    /// Turn for which a verdict was given or waits to be.
    verdict: Option<u32>,
    /// It is on the pipeline's list of those whose verdict waits.
    verdict_listed: bool,
}

/// What the first stage is told.
#[derive(Clone, Copy)]
enum Step<'a> {
    Record(&'a Record<'a>),
    Timeout(MonoNs),
    Close(MonoNs, CloseCause),
}

/// Exchanges of the connection.
#[derive(Debug)]
pub(super) struct Calls {
    id: ConnId,
    pid: u32,
    /// Thread of the latest write, and of the latest read.
    writer: Option<u32>,
    reader: Option<u32>,
    /// Direction of the bytes that are being looked at.
    dir: Direction,
    /// What the process is: the first message of an exchange says it by its direction.
    role: Option<Role>,
    peer: Option<Peer>,
    /// Its socket is watched since then.
    watched_since: Option<MonoNs>,
    /// Latest retransmits. A request is known when its write returns, and they happen before.
    sent_again: VecDeque<MonoNs>,
    /// Turn of the latest write.
    turn: u32,
    /// In the order of their numbers.
    open: SmallVec<[Open; 1]>,
    /// Number after the highest seen: what is below and not open is over.
    next: u32,
    /// The latest exchange, if it turned out to be no LLM call.
    not_llm: Option<NotLlm>,
    sockets: Sockets,
    beside: Beside,
    /// What a hook said of the requests that begin here.
    said: Option<Arc<Said>>,
    /// Requests that began since a hook spoke last, in the write of which it spoke.
    named: Named,
    /// Stamp of that write, once it came.
    named_write: Option<Stamp>,
    /// What a tap was told of the connection itself; `None`: nothing.
    tapped: Option<About>,
    /// In a replay: what a tokenizer counted in the event that comes next.
    counted: Vec<Counted>,
}

/// How many requests began in the write of which a hook spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Named {
    /// That write is over.
    #[default]
    Later,
    /// None yet.
    None,
    /// One.
    One,
    /// Several: which of them was meant is not known.
    Several,
}

/// What is known of a connection and goes for every call on it, on a WebSocket too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct About {
    role: Role,
    peer: Option<Peer>,
    /// Thread of the latest read.
    reader: Option<u32>,
    /// The socket is watched since then.
    pub(super) watched_since: Option<MonoNs>,
}

impl About {
    /// Whether the process makes the calls.
    pub(super) fn is_client(self) -> bool {
        self.role == Role::Client
    }

    /// Gives out a call that is over; `digest` is that of its request body.
    pub(super) fn finish(self, timing: Timing, said: Option<Arc<Said>>, digest: Option<u64>, shared: &mut SharedCalls) {
        let Self { role, peer, reader, .. } = self;
        shared.timing.exchanges_open -= 1;
        let mut exchange = timing.finish(&mut shared.timing);
        let client = role == Role::Client;
        (exchange.role, exchange.peer) = (role, peer);
        exchange.socket = peer.and_then(|peer| peer.socket);
        // Later calls on the connection had no connect.
        let made_for = peer.filter(|_| client && exchange.id.no == 0);
        exchange.connect_ns = made_for.and_then(|peer| peer.connect_ns);
        exchange.tls_ns = made_for.and_then(|peer| peer.tls_ns);
        exchange.retransmits =
            exchange.retransmits.map(|n| n.saturating_add(made_for.map_or(0, |peer| peer.retransmits)));
        if !client {
            // The request was read, and the answer goes out when the process writes it.
            exchange.request_sent = exchange.request_written;
            exchange.first_token_cause = None;
            exchange.stall_causes.fill(None);
        }
        exchange.said = said.filter(|_| client);
        shared.retries.link(&mut exchange, digest);
        let exchange = Box::new(exchange);
        if client {
            shared.give_out_joined(Parked::Exchange(exchange), reader);
        } else {
            shared.give_out(Output::Exchange(exchange));
        }
    }
}

/// Gives a call what a tokenizer counted of it when it was recorded.
pub(super) fn take_counted(counted: &mut Vec<Counted>, timing: &mut Timing) {
    if let Some(at) = counted.iter().position(|counted| counted.no == timing.id().no) {
        timing.counted_then(counted.swap_remove(at));
    }
}

#[derive(Debug, Clone, Copy)]
struct NotLlm {
    no: ExchangeNo,
    /// Turn in which that was known.
    turn: u32,
    /// Its response head was seen. A verdict before that would leave out the head, and with it where the message ends.
    answered: bool,
}

#[derive(Debug)]
struct Open {
    no: ExchangeNo,
    /// Its request head was seen: only then can it be known not to be an LLM call.
    asked: bool,
    /// What a hook said of it.
    said: Option<Arc<Said>>,
    /// It began in the write of which the hook spoke, and that write is not over.
    named_now: bool,
    /// A tap knows of it.
    tapped: bool,
    /// In a replay: what stands for the digest of its request body.
    digest: Option<u64>,
    both: Box<(LlmExchange, Timing)>,
}

impl Connection {
    pub(super) fn new(id: ConnId, pid: u32) -> Self {
        Self {
            reassembly: Reassembly::new(),
            http: HttpConnection::new(StartSeen::No),
            begun: false,
            calls: Calls::new(id, pid),
            listed: false,
            verdict: None,
            verdict_listed: false,
        }
    }

    pub(super) fn feed(&mut self, record: &Record<'_>, shared: &mut Shared) {
        if let RecordKind::Data { dir, turn, flags, .. } = record.kind {
            if !std::mem::replace(&mut self.begun, true) && flags.from_start {
                self.http = HttpConnection::new(StartSeen::Yes);
            }
            match dir {
                Direction::Write => {
                    self.calls.begin_write(record.at);
                    self.calls.writer = Some(record.tid);
                    self.calls.turn = self.calls.turn.max(turn);
                }
                Direction::Read => self.calls.reader = Some(record.tid),
            }
        }
        self.run(Step::Record(record), shared);
        self.calls.socket_tells(record, &mut shared.calls);
    }

    /// A hook spoke of the write that comes next.
    pub(super) fn said(&mut self, said: Option<Arc<Said>>) {
        self.calls.said = said;
        self.calls.named = Named::None;
        self.calls.named_write = None;
    }

    /// Returns whether something still waits.
    pub(super) fn handle_timeout(&mut self, now: MonoNs, shared: &mut Shared) -> bool {
        self.run(Step::Timeout(now), shared);
        self.listed = self.reassembly.poll_timeout().is_some();
        self.listed
    }

    /// See [`Reassembly::lost_close`].
    pub(super) fn lost_close(&self) -> RecordKind<'static> {
        self.reassembly.lost_close()
    }

    pub(super) fn close(&mut self, at: MonoNs, cause: CloseCause, shared: &mut Shared) {
        self.run(Step::Close(at, cause), shared);
    }

    /// Runs one step of the first stage and what follows from it in the others.
    fn run(&mut self, step: Step<'_>, shared: &mut Shared) {
        let Self { reassembly, http, calls, .. } = self;
        let Shared { conn, http: http_stats, calls: shared_calls } = shared;
        let mut sink = |event: StreamEvent<'_>| {
            if let StreamEvent::Data { dir, .. } | StreamEvent::Gap { dir, .. } = event {
                calls.dir = dir;
            }
            http.feed(&event, http_stats, &mut |event: HttpEvent<'_>| calls.http_event(&event, shared_calls));
        };
        match step {
            Step::Record(record) => reassembly.feed(record, conn, &mut sink),
            Step::Timeout(now) => reassembly.handle_timeout(now, conn, &mut sink),
            Step::Close(at, cause) => reassembly.close(at, cause, conn, &mut sink),
        }
        if reassembly.is_closed() {
            calls.tap_over(shared_calls);
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.reassembly.is_closed()
    }

    /// Whether it began to wait for a record of the other ring; true once until that is over.
    pub(super) fn waits_anew(&mut self) -> bool {
        self.poll_timeout().is_some() && !std::mem::replace(&mut self.listed, true)
    }

    pub(super) fn poll_timeout(&self) -> Option<MonoNs> {
        self.reassembly.poll_timeout()
    }

    /// Whether a read in `turn` makes a verdict due; true once until it is taken, and once per turn.
    pub(super) fn verdict_due(&mut self, turn: u32) -> bool {
        let due = self.verdict != Some(turn) && self.judged(turn);
        if due {
            self.verdict = Some(turn);
        }
        due && !std::mem::replace(&mut self.verdict_listed, true)
    }

    /// The verdict that was due, if it still stands at the end of the drain.
    pub(super) fn take_verdict(&mut self) -> Option<u32> {
        self.verdict_listed = false;
        self.verdict.filter(|&turn| self.judged(turn))
    }

    /// Whether `turn` is the latest, and nothing in it is or may be an LLM call.
    fn judged(&self, turn: u32) -> bool {
        let calls = &self.calls;
        if turn != calls.turn || !calls.open.is_empty() || !calls.sockets.is_empty() || calls.beside.has_tools() {
            return false;
        }
        match self.http.protocol() {
            Protocol::Opaque => true,
            // A server reads the next request, of which nothing is known yet, in the same turn.
            Protocol::Http1 if self.calls.role == Some(Role::Server) => false,
            Protocol::Http1 => self.calls.not_llm.is_some_and(|it| it.turn == turn && it.answered),
            Protocol::Http2 | Protocol::Undecided => false,
        }
    }

    pub(super) fn active(&self) -> impl Iterator<Item = ActiveStream<'_>> {
        self.calls.active()
    }
}

impl Calls {
    pub(super) fn new(id: ConnId, pid: u32) -> Self {
        Self {
            id,
            pid,
            writer: None,
            reader: None,
            dir: Direction::Read,
            role: None,
            peer: None,
            watched_since: None,
            sent_again: VecDeque::new(),
            turn: 0,
            open: SmallVec::new(),
            next: 0,
            not_llm: None,
            said: None,
            named: Named::Later,
            named_write: None,
            sockets: Sockets::default(),
            beside: Beside::default(),
            tapped: None,
            counted: Vec::new(),
        }
    }

    /// Takes what a record says of the socket, after the bytes in it have been through.
    fn socket_tells(&mut self, record: &Record<'_>, shared: &mut SharedCalls) {
        let at = record.at.ret;
        let told = match record.kind {
            RecordKind::Peer(peer) => {
                self.peer = Some(peer);
                if peer.socket.is_some() {
                    self.watched(at);
                }
                return;
            }
            RecordKind::Data { dir: Direction::Write, flags, .. } if flags.sent => SocketTold::Sent { until: at, at },
            RecordKind::Sent { until } => SocketTold::Sent { until, at },
            RecordKind::Late { arrived } => SocketTold::Late { arrived, at },
            RecordKind::Retransmit => SocketTold::Retransmit { at },
            RecordKind::Data { .. } | RecordKind::Close { .. } => return,
        };
        if self.socket_told(told) {
            self.tap_socket_told(told, shared);
        }
    }

    /// The socket is watched since then.
    fn watched(&mut self, since: MonoNs) {
        self.watched_since = Some(since);
        self.timings(|timing| timing.watched(since));
    }

    /// Takes what the socket told; returns whether it means anything to a call, this one or a later one.
    fn socket_told(&mut self, told: SocketTold) -> bool {
        let mut counts = false;
        match told {
            SocketTold::Sent { until, at } => self.timings(|timing| counts |= timing.sent(until, at)),
            SocketTold::Late { arrived, at } => self.timings(|timing| {
                counts = true;
                timing.late(arrived, at);
            }),
            SocketTold::Retransmit { at } => {
                counts = true;
                if self.sent_again.len() >= RETRANSMITS {
                    self.sent_again.pop_front();
                }
                self.sent_again.push_back(at);
                self.timings(|timing| timing.retransmitted(Some(1)));
            }
        }
        counts
    }

    /// Number of retransmits since then, those that were told already.
    fn sent_again_since(&self, from: MonoNs) -> Option<u32> {
        let count = self.sent_again.iter().rev().take_while(|at| **at >= from).count();
        (count < RETRANSMITS).then_some(count as u32)
    }

    /// Every open call.
    fn timings(&mut self, mut tell: impl FnMut(&mut Timing)) {
        for open in &mut self.open {
            tell(&mut open.both.1);
        }
        self.sockets.timings(tell);
    }

    fn http_event(&mut self, event: &HttpEvent<'_>, shared: &mut SharedCalls) {
        if self.role.is_none() {
            self.role = Some(match (self.dir, event.side) {
                (Direction::Write, Side::Request) | (Direction::Read, Side::Response) => Role::Client,
                (Direction::Read, Side::Request) | (Direction::Write, Side::Response) => Role::Server,
            });
        }
        let turned = if self.role == Some(Role::Server) { as_server(*event) } else { *event };
        let of = self.of();
        self.beside.begin(&turned, of, shared);
        self.http_event_of(&turned, shared);
        self.beside.feed(&turned, of, shared);
    }

    fn of(&self) -> Of {
        let &Self { id: conn, pid, peer, reader, writer, .. } = self;
        Of { conn, pid, role: self.role.unwrap_or(Role::Client), peer, reader, writer }
    }

    /// An event as the later stages see it.
    pub(super) fn http_event_of(&mut self, event: &HttpEvent<'_>, shared: &mut SharedCalls) {
        if self.socket_event(event, shared) {
            return;
        }
        let Some(at) = self.find(event, shared) else {
            if let Some(it) = &mut self.not_llm {
                it.answered |= it.no == event.exchange && event.side == Side::Response;
            }
            return;
        };
        let Some(open) = self.open.get_mut(at) else { return };
        if event.side == Side::Request && self.role != Some(Role::Server) {
            let id = ExchangeId { conn: self.id, no: event.exchange.0 };
            match event.kind {
                HttpEventKind::Body(bytes) => shared.chain.call_body(self.pid, id, bytes),
                HttpEventKind::Gap { .. } => shared.chain.call_gap(self.pid, id),
                _ => {}
            }
        }
        let (llm, timing) = &mut *open.both;
        let (mut progress, mut tool) = (Progress::Open, false);
        take_counted(&mut self.counted, timing);
        llm.feed(event, &mut shared.llm, &mut |event| {
            tool |= event.kind == LlmEventKind::NotLlm(llm::NotLlm::Mcp);
            if progress == Progress::Open {
                progress = timing.feed(&event);
            }
        });
        if shared.tap.is_some() {
            self.tap_event(at, event, progress, shared);
        }
        match progress {
            Progress::Open => {}
            Progress::Finished => self.finish(at, shared),
            Progress::NotLlm => {
                let Open { asked, no, said, .. } = self.open.remove(at);
                let id = ExchangeId { conn: self.id, no: no.0 };
                self.beside.is_not_llm(id, self.pid, tool, said, &mut shared.chain);
                shared.timing.exchanges_open -= 1;
                // A later exchange on this connection may be one: the verdict is about the latest.
                if asked && event.exchange.0.checked_add(1) == Some(self.next) {
                    let answered = event.side == Side::Response;
                    self.not_llm = Some(NotLlm { no: event.exchange, turn: self.turn, answered });
                }
            }
        }
    }

    /// Takes an event of a WebSocket that carries LLM calls, or may.
    fn socket_event(&mut self, event: &HttpEvent<'_>, shared: &mut SharedCalls) -> bool {
        if self.sockets.begin(event) {
            self.tap_socket(event, shared);
            self.next = event.exchange.0.saturating_add(1);
            self.not_llm = None;
            self.beside.is_llm(ExchangeId { conn: self.id, no: event.exchange.0 });
            return true;
        }
        if self.sockets.is_empty() {
            return false;
        }
        let has = self.sockets.has(event.exchange);
        let (about, asker) = (self.about(), self.asker());
        let origin = Origin { conn: self.id, pid: self.pid, asker, about, said: self.said.as_ref() };
        let state = self.sockets.feed(event, origin, &mut self.counted, shared);
        if shared.tap.is_some() && has {
            self.tap_socket(event, shared);
        }
        if state == Some(SocketState::Refused) {
            self.not_llm = Some(NotLlm { no: event.exchange, turn: self.turn, answered: true });
        }
        state.is_some()
    }

    /// Position of the exchange of `event`, which it may begin; `None` when it is over.
    fn find(&mut self, event: &HttpEvent<'_>, shared: &mut SharedCalls) -> Option<usize> {
        let no = event.exchange;
        match self.open.binary_search_by_key(&no, |open| open.no) {
            Ok(at) => return Some(at),
            Err(_) if no.0 < self.next || matches!(event.kind, HttpEventKind::Abort(_)) => return None,
            Err(_) => {}
        }
        if self.open.len() >= OPEN_EXCHANGES {
            shared.timing.count(DropReason::ExchangesFull);
            self.evict_oldest(event, shared);
        }
        self.next = no.0.saturating_add(1);
        self.not_llm = None;
        shared.timing.exchanges_open += 1;
        let id = ExchangeId { conn: self.id, no: no.0 };
        let mut timing = Timing::new(id, self.pid, self.asker(), &shared.options, &shared.limits);
        if let Some(since) = self.watched_since {
            timing.watched(since);
            timing.retransmitted(self.sent_again_since(event.at.entry));
        }
        if shared.tap.is_some() {
            timing.note_counts();
        }
        let asked = matches!(event.kind, HttpEventKind::Head { head: Head::Request(_), .. });
        if let HttpEventKind::Head { first, head: Head::Request(head) } = &event.kind
            && self.role != Some(Role::Server)
        {
            shared.chain.call(self.pid, id, self.writer, first.entry, head.headers.get("traceparent"));
        }
        let (said, named_now) = self.name_request(&mut shared.tap);
        self.open.push(Open {
            no,
            asked,
            said,
            named_now,
            tapped: false,
            digest: None,
            both: Box::new((LlmExchange::new(), timing)),
        });
        Some(self.open.len() - 1)
    }

    /// What a hook said of the request that begins. One write may carry the beginnings of several (HTTP/2 tasks that share a
    /// connection): then it spoke of one of them, and nobody knows of which.
    fn name_request(&mut self, tap: &mut Option<Box<dyn Tap>>) -> (Option<Arc<Said>>, bool) {
        match self.named {
            Named::Later => (self.said.clone(), false),
            Named::None => {
                self.named = Named::One;
                (self.said.clone(), true)
            }
            Named::One | Named::Several => {
                self.named = Named::Several;
                for open in self.open.iter_mut().filter(|open| open.named_now) {
                    open.said = None;
                    if let Some(tap) = tap.as_deref_mut().filter(|_| open.tapped) {
                        tap.take(self.id, Tapped::Unsaid { exchange: open.no });
                    }
                }
                (None, true)
            }
        }
    }

    /// A record of a write comes. One call may give several: a hook spoke of them all.
    fn begin_write(&mut self, at: Stamp) {
        if self.named == Named::Later || *self.named_write.get_or_insert(at) == at {
            return;
        }
        self.named = Named::Later;
        for open in &mut self.open {
            open.named_now = false;
        }
    }

    fn evict_oldest(&mut self, event: &HttpEvent<'_>, shared: &mut SharedCalls) {
        let Some(open) = self.open.first_mut() else { return };
        let event = HttpEvent {
            exchange: open.no,
            side: Side::Response,
            at: event.at,
            kind: HttpEventKind::Abort(AbortCause::Evicted),
        };
        let (llm, timing) = &mut *open.both;
        if llm.verdict() != Verdict::Llm {
            if open.tapped
                && let Some(tap) = shared.tap.as_deref_mut()
            {
                tap.take(self.id, Tapped::Http(&event));
            }
            let no = self.open.remove(0).no;
            shared.chain.forget(self.pid, ExchangeId { conn: self.id, no: no.0 });
            shared.timing.exchanges_open -= 1;
            return;
        }
        let abort = LlmEvent { at: event.at, kind: LlmEventKind::Abort(AbortCause::Evicted) };
        let progress = timing.feed(&abort);
        if shared.tap.is_some() {
            self.tap_event(0, &event, progress, shared);
        }
        if progress == Progress::Finished {
            self.finish(0, shared);
        }
    }

    fn finish(&mut self, at: usize, shared: &mut SharedCalls) {
        let Open { no, both, said, digest, .. } = self.open.remove(at);
        self.beside.is_llm(ExchangeId { conn: self.id, no: no.0 });
        let (llm, timing) = *both;
        let digest = if shared.replays { digest } else { llm.request_digest() };
        self.about().finish(timing, said, digest, shared);
    }

    pub(super) fn active(&self) -> impl Iterator<Item = ActiveStream<'_>> {
        let open = self.open.iter().map(|open| &*open.both);
        let exchanges = open.filter(|(llm, _)| llm.verdict() == Verdict::Llm).map(|(_, timing)| timing.active());
        exchanges.chain(self.sockets.active())
    }

    fn about(&self) -> About {
        About {
            role: self.role.unwrap_or(Role::Client),
            peer: self.peer,
            reader: self.reader,
            watched_since: self.watched_since,
        }
    }

    /// Thread that asks.
    fn asker(&self) -> Option<u32> {
        if self.role == Some(Role::Server) { self.reader } else { self.writer }
    }
}

/// An event of a connection that the process serves. What it reads exists for it from the return of the call on, what it writes
/// exists from its entry on ([`Stamp`]): the other way round than for a client, for which the later stages are written.
fn as_server(event: HttpEvent<'_>) -> HttpEvent<'_> {
    let turned = |at: Stamp| match event.side {
        Side::Request => Stamp { entry: at.ret, ret: at.ret },
        Side::Response => Stamp { entry: at.entry, ret: at.entry },
    };
    let kind = match event.kind {
        HttpEventKind::Head { first, head } => HttpEventKind::Head { first: turned(first), head },
        HttpEventKind::Abort(AbortCause::Reset { by_peer, code }) => {
            HttpEventKind::Abort(AbortCause::Reset { by_peer: !by_peer, code })
        }
        kind => kind,
    };
    HttpEvent { at: turned(event.at), kind, ..event }
}
