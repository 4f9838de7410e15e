//! Stage 7: requests that a process serves and calls that it makes in, what caused which out.
//!
//! [`Chain`] knows the requests that each process is serving now. When a call begins it notes which of them may have caused it
//! ([`Chain::call`]); when the call is over it decides ([`Chain::cause`]). A request that was read before a call was written may be
//! told after it, because it came through the other ring or was held back: it is added to calls that are still fresh, and the
//! caller decides only when both rings are drained ([`Chain::drained`]). Anything that leaves a doubt leaves the call without a
//! parent (docs/tracing.md has the rules).

mod content;
mod route;
mod serving;
mod threads;
mod tool;
mod traceparent;

#[cfg(test)]
mod tests;

pub use content::Prints;
pub use serving::{Ended, Inbound, Serving};
pub use tool::{ToolCall, ToolDraft};
pub use traceparent::parse_traceparent;

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::Arc,
};

use smallvec::SmallVec;

use crate::{
    event::{Address, MonoNs, ThreadEvent, ThreadEventKind},
    limits::{CALLS_OPEN, HOLD_NS, SERVED_OPEN, SERVING_PROCESSES},
    stats::{DropReason, Stats},
    timing::{CausedBy, ExchangeId, Rule, Served},
};

use content::{Blocks, Scan};
use threads::{Drained, Threads, Verdict};

/// The requests that are being served, by process.
#[derive(Debug, Default)]
pub struct Chain {
    processes: HashMap<u32, Process>,
    by_content: bool,
    /// Drains of both rings so far.
    drained: Drained,
    /// Processes with bodies that wait to be compared.
    to_compare: Vec<u32>,
    /// Processes with threads of which something is to be known at the next drains.
    to_settle: Vec<u32>,
    /// More is known of threads than when [`Self::settled`] was asked last.
    settled: bool,
}

/// A request that was read before a call may be told after it for so long, ns (what is held back waits for [`HOLD_NS`]), and for
/// [`FRESH_DRAINS`], however long they take.
const FRESH_NS: u64 = 2 * HOLD_NS;
/// See [`FRESH_NS`].
const FRESH_DRAINS: u64 = 2;

#[derive(Debug, Default)]
struct Process {
    /// In the order in which they were told.
    open: Vec<Request>,
    /// Requests that are being served and did not fit.
    untold: u32,
    /// Its calls that are open.
    calls: HashMap<ExchangeId, Origin>,
    /// Those that began lately, in the order in which they were told: identity, begin, and number of the drain.
    fresh: VecDeque<(ExchangeId, MonoNs, u64)>,
    /// Calls with bytes that wait to be compared.
    to_compare: Vec<ExchangeId>,
    /// Requests that ended since, with their ends: calls that they made may be among those.
    ended: Vec<(Request, MonoNs)>,
    /// When the latest call began.
    latest_call: MonoNs,
    /// A thread serves several requests at a time, or a request is handed from thread to thread: threads prove nothing here.
    shared_threads: bool,
    /// A thread that made a call outlived the request in which it was started: that threads were started proves nothing here.
    pooled_threads: bool,
    threads: Threads,
    blocks: Blocks,
}

#[derive(Debug, Clone)]
struct Request {
    served: Arc<Served>,
    /// Thread that read its head.
    reader: Option<u32>,
    /// It may hold texts that are not known. (Not while its JSON is incomplete: the process cannot use that either.)
    opaque: bool,
}

/// What may have caused a call, as it looked when the call began.
#[derive(Debug)]
struct Origin {
    at: MonoNs,
    tid: Option<u32>,
    trace: Option<u128>,
    by_trace: Found,
    by_thread: Found,
    only: Found,
    /// When its thread was started, if it is one that was started during a request.
    thread_started: Option<MonoNs>,
    scan: Option<Box<Scan>>,
}

/// What the rules say of a call.
#[derive(Debug)]
enum Joined {
    To(Rule, Arc<Served>),
    /// What its thread was started for is known when the request is over.
    Later,
    Unknown,
}

/// What a rule found.
#[derive(Debug, Clone, Default, PartialEq)]
enum Found {
    #[default]
    None,
    One(Arc<Served>),
    Many,
}

impl Found {
    fn add(&mut self, served: &Arc<Served>) {
        *self = match self {
            Self::None => Self::One(Arc::clone(served)),
            Self::One(one) if one.id == served.id => return,
            Self::One(_) | Self::Many => Self::Many,
        }
    }

    fn one(&self) -> Option<Arc<Served>> {
        match self {
            Self::One(served) => Some(Arc::clone(served)),
            Self::None | Self::Many => None,
        }
    }
}

impl Chain {
    /// Compares texts of bodies from now on. Off unless asked for.
    pub fn compare_content(&mut self) {
        self.by_content = true;
    }

    /// Whether texts of bodies are compared.
    #[must_use]
    pub fn compares_content(&self) -> bool {
        self.by_content
    }

    /// Process `pid` begins to serve a request, whose head thread `reader` read; whether it is followed. `opaque`: texts may come
    /// with it in a form that is not read.
    pub fn begin(
        &mut self,
        pid: u32,
        served: Arc<Served>,
        reader: Option<u32>,
        opaque: bool,
        stats: &mut Stats,
    ) -> bool {
        if self.processes.len() >= SERVING_PROCESSES && !self.processes.contains_key(&pid) {
            stats.count(DropReason::ServedFull);
            return false;
        }
        let process = self.processes.entry(pid).or_default();
        if process.open.len() >= SERVED_OPEN {
            process.untold += 1;
            stats.count(DropReason::ServedFull);
            return false;
        }
        let request = Request { served, reader, opaque };
        if request.served.start <= process.latest_call {
            for (id, ..) in &process.fresh {
                if let Some(origin) = process.calls.get_mut(id).filter(|origin| request.served.start <= origin.at) {
                    origin.note(&request);
                }
            }
        }
        process.threads.note(&request);
        process.open.push(request);
        true
    }

    /// The body of a request is complete.
    pub fn body(&mut self, pid: u32, id: ExchangeId, prints: Prints) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(request) = process.open.iter_mut().find(|request| request.served.id == id) else { return };
        let (prints, whole) = prints.finish();
        let kept = process.blocks.add(id, &prints);
        // What was not kept of it may be in a call all the same.
        request.opaque = !whole || kept < prints.len();
    }

    /// Thread `writer` began to answer a request.
    pub fn answered(&mut self, pid: u32, id: ExchangeId, writer: Option<u32>) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let reader = process.open.iter().find(|request| request.served.id == id).map(|request| request.reader);
        if reader.is_some_and(|reader| reader != writer) {
            self.settled |= process.share_threads();
        }
    }

    /// A request is over, `at` that time in that manner. `followed` is what [`Self::begin`] said.
    pub fn end(&mut self, pid: u32, id: ExchangeId, (at, ended): (MonoNs, Ended), followed: bool) {
        let drains = self.drained.number;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if !followed {
            process.untold = process.untold.saturating_sub(1);
            return;
        }
        let Some(index) = process.open.iter().position(|request| request.served.id == id) else { return };
        let over = process.open.remove(index);
        if process.to_compare.is_empty() || process.ended.len() >= SERVED_OPEN {
            process.blocks.remove(id);
        } else {
            process.ended.push((over.clone(), at));
        }
        let beside = |other: &Request| other.reader == over.reader && other.served.start < at;
        if over.reader.is_some() && process.open.iter().any(beside) {
            self.settled |= process.share_threads();
        }
        process.threads.over(id, at, ended == Ended::Completed, drains);
        self.look_after(pid);
    }

    /// Something happened to a thread.
    pub fn thread(&mut self, event: &ThreadEvent) {
        let ThreadEvent { at, pid, tid, kind } = *event;
        let drains = self.drained.number;
        let Some(process) = self.processes.get_mut(&pid) else { return };
        match kind {
            ThreadEventKind::Started { child } if process.believes_starts() && process.untold == 0 => {
                let mut by = Found::None;
                let own = process.open.iter().filter(|request| request.reader == Some(tid));
                own.filter(|request| request.served.start <= at).for_each(|request| by.add(&request.served));
                process.threads.start(child, tid, at, drains, by);
                self.look_after(pid);
            }
            ThreadEventKind::Started { child } => process.threads.start(child, tid, at, drains, Found::Many),
            ThreadEventKind::Ended => process.threads.end(tid, at),
        }
    }

    /// Looks after the threads of a process at the next drains, if there is something to be known of them.
    fn look_after(&mut self, pid: u32) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if !process.threads.listed && process.threads.waits() {
            process.threads.listed = true;
            self.to_settle.push(pid);
        }
    }

    /// The process is gone.
    pub fn process_exit(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }

    /// A call of `pid` begins: thread `tid` wrote the first byte of its head at `at`. Whether it is followed; not, when the process
    /// never served anything.
    pub fn call(&mut self, pid: u32, id: ExchangeId, tid: Option<u32>, at: MonoNs, traceparent: Option<&str>) -> bool {
        let (by_content, drains) = (self.by_content, self.drained.number);
        let Some(process) = self.processes.get_mut(&pid) else { return false };
        if process.calls.len() >= CALLS_OPEN {
            return false;
        }
        process.latest_call = process.latest_call.max(at);
        let untold = if process.untold > 0 { Found::Many } else { Found::None };
        let mut origin = Origin {
            at,
            tid,
            trace: traceparent.and_then(parse_traceparent).map(|(trace, _)| trace),
            by_trace: Found::None,
            by_thread: untold.clone(),
            only: untold,
            thread_started: tid.and_then(|tid| process.threads.call(tid)),
            scan: by_content.then(Box::default),
        };
        process.open.iter().for_each(|request| origin.note(request));
        process.calls.insert(id, origin);
        let stale = |(_, began, drain): &(ExchangeId, MonoNs, u64)| {
            at.since(*began) > FRESH_NS && drains - drain > FRESH_DRAINS
        };
        while process.fresh.front().is_some_and(stale) {
            process.fresh.pop_front();
        }
        if process.fresh.len() >= CALLS_OPEN
            && let Some((oldest, ..)) = process.fresh.pop_front()
            && let Some(oldest) = process.calls.get_mut(&oldest)
        {
            // Nothing that is told late will be added to it.
            (oldest.by_thread, oldest.only) = (Found::Many, Found::Many);
        }
        process.fresh.push_back((id, at, drains));
        true
    }

    /// Bytes of the body of a call. They are compared when both rings are drained.
    pub fn call_body(&mut self, pid: u32, id: ExchangeId, bytes: &[u8]) {
        self.scanned(pid, id, |scan| scan.wait(bytes));
    }

    /// Bytes of the body of a call are missing.
    pub fn call_gap(&mut self, pid: u32, id: ExchangeId) {
        self.scanned(pid, id, Scan::gap);
    }

    fn scanned(&mut self, pid: u32, id: ExchangeId, with: impl FnOnce(&mut Scan)) {
        if !self.by_content {
            return;
        }
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let Some(scan) = process.calls.get_mut(&id).and_then(|origin| origin.scan.as_deref_mut()) else { return };
        if process.to_compare.is_empty() {
            self.to_compare.push(pid);
        }
        if !scan.waits() {
            process.to_compare.push(id);
        }
        with(scan);
    }

    /// A call is none after all.
    pub fn forget(&mut self, pid: u32, id: ExchangeId) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.calls.remove(&id);
        }
    }

    /// Whether a call is followed: then [`Self::cause`] is to be asked when both rings are drained.
    #[must_use]
    pub fn follows(&self, pid: u32, id: ExchangeId) -> bool {
        self.processes.get(&pid).is_some_and(|process| process.calls.contains_key(&id))
    }

    /// Whether [`Self::drained`] has something to do after this drain.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.settled || !self.to_compare.is_empty()
    }

    /// When it has something to do again: at the next drain, for threads of which something is to be known.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<MonoNs> {
        (!self.to_settle.is_empty()).then(|| MonoNs(self.drained.at.0.saturating_add(1)))
    }

    /// Both rings are drained: bodies are compared with those of all requests that came before them.
    pub fn drained(&mut self, now: MonoNs) {
        self.drained = Drained { number: self.drained.number + 1, at: now };
        for pid in mem::take(&mut self.to_settle) {
            let Some(process) = self.processes.get_mut(&pid) else { continue };
            self.settled = true;
            process.threads.listed = false;
            if process.threads.settle(self.drained) {
                process.pooled_threads = true;
                process.threads.clear();
            }
            self.look_after(pid);
        }
        for pid in mem::take(&mut self.to_compare) {
            let Some(process) = self.processes.get_mut(&pid) else { continue };
            let Process { open, untold, calls, to_compare, ended, blocks, .. } = process;
            for id in to_compare.drain(..) {
                let Some(Origin { at, scan: Some(scan), .. }) = calls.get_mut(&id) else { continue };
                scan.compare(blocks);
                let owner = scan.owner();
                let hidden = |request: &&Request| request.opaque && Some(request.served.id) != owner;
                let was_open = ended.iter().filter(|(_, end)| *at < *end).map(|(request, _)| request);
                let mut open = open.iter().chain(was_open);
                let doubt = *untold > 0 || open.clone().any(|request| hidden(&request));
                let found = open.find(|request| Some(request.served.id) == owner && !doubt);
                scan.decide(found.map(|request| Arc::clone(&request.served)));
            }
            ended.drain(..).for_each(|(request, _)| blocks.remove(request.served.id));
        }
    }

    /// What caused a call that is over; it is forgotten. `said`: a hook spoke of it. `traceparent` is what it carries. `reader` is
    /// the thread that read the end of its answer.
    pub fn cause(
        &mut self,
        pid: u32,
        id: ExchangeId,
        said: bool,
        traceparent: Option<&str>,
        reader: Option<u32>,
    ) -> Option<CausedBy> {
        let drained = self.drained;
        let process = self.processes.get_mut(&pid);
        let origin = process.and_then(|process| Some((process.calls.remove(&id)?, process)));
        let joined = match origin.map(|(origin, process)| process.join(&origin, reader, drained)) {
            Some(Joined::To(rule, served)) => Some((rule, served)),
            Some(Joined::Later | Joined::Unknown) | None => None,
        };
        let told = told(said, traceparent);
        match (told, joined) {
            (Some(rule), joined) => Some(CausedBy { rule, served: joined.map(|(_, served)| served) }),
            (None, Some((rule, served))) => Some(CausedBy { rule, served: Some(served) }),
            (None, None) => None,
        }
    }

    /// Whether more will be known of a call that is over when [`Self::settled`] says so. The arguments are those of [`Self::cause`].
    #[must_use]
    pub fn waits(&self, pid: u32, id: ExchangeId, said: bool, traceparent: Option<&str>, reader: Option<u32>) -> bool {
        let Some(process) = self.processes.get(&pid).filter(|_| told(said, traceparent).is_none()) else {
            return false;
        };
        let joined = process.calls.get(&id).map(|origin| process.join(origin, reader, self.drained));
        matches!(joined, Some(Joined::Later))
    }

    /// Whether more is known of calls that wait than when it was asked last.
    pub fn settled(&mut self) -> bool {
        mem::take(&mut self.settled)
    }

    /// The request that thread `tid` of a process is serving now, as far as that can be known now.
    #[must_use]
    pub fn serving(&self, pid: u32, tid: u32) -> Option<(Rule, Arc<Served>)> {
        let process = self.processes.get(&pid).filter(|process| process.untold == 0)?;
        let mut own = process.open.iter().filter(|request| request.reader == Some(tid));
        if let (Some(one), None, false) = (own.next(), own.next(), process.shared_threads) {
            return Some((Rule::Thread, Arc::clone(&one.served)));
        }
        match process.open.as_slice() {
            [only] => Some((Rule::Only, Arc::clone(&only.served))),
            _ => None,
        }
    }

    /// The request that a process is serving to this peer now, if it is one.
    #[must_use]
    pub fn serving_peer(&self, pid: u32, peer: Address) -> Option<Arc<Served>> {
        let of_peer = |request: &&Request| request.served.peer.is_some_and(|ends| ends.remote == peer);
        let found: SmallVec<[&Request; 2]> = self.processes.get(&pid)?.open.iter().filter(of_peer).take(2).collect();
        match found.as_slice() {
            [one] => Some(Arc::clone(&one.served)),
            _ => None,
        }
    }
}

/// The rule that applies because somebody said so.
fn told(said: bool, traceparent: Option<&str>) -> Option<Rule> {
    if said { Some(Rule::Hook) } else { traceparent.and_then(parse_traceparent).map(|_| Rule::Traceparent) }
}

impl Process {
    /// Threads prove nothing from now on. Whether they did until now.
    fn share_threads(&mut self) -> bool {
        self.threads.clear();
        !mem::replace(&mut self.shared_threads, true)
    }

    fn believes_starts(&self) -> bool {
        !self.shared_threads && !self.pooled_threads
    }

    fn join(&self, origin: &Origin, reader: Option<u32>, drained: Drained) -> Joined {
        let Origin { tid, by_trace, by_thread, only, thread_started, scan, .. } = origin;
        if let Some(served) = by_trace.one() {
            return Joined::To(Rule::Traceparent, served);
        }
        // A thread that waits for the answer of its call serves nothing else meanwhile.
        let alone = tid.is_some() && reader == *tid && !self.shared_threads;
        let own = if alone { by_thread.one() } else { None };
        match (own, scan.as_ref().and_then(|scan| scan.found())) {
            (Some(thread), Some(content)) if thread.id != content.id => return Joined::Unknown,
            (Some(thread), _) => return Joined::To(Rule::Thread, thread),
            (None, Some(content)) => return Joined::To(Rule::Content, content),
            (None, None) => {}
        }
        if let Some(served) = only.one() {
            return Joined::To(Rule::Only, served);
        }
        // A thread that reads requests itself works for those.
        let (Some(tid), Some(started), true) = (*tid, *thread_started, alone && *by_thread == Found::None) else {
            return Joined::Unknown;
        };
        match self.threads.verdict(tid, started, drained) {
            Verdict::For(served) if self.believes_starts() => Joined::To(Rule::StartedThread, served),
            Verdict::Pending => Joined::Later,
            Verdict::For(_) | Verdict::None => Joined::Unknown,
        }
    }
}

impl Origin {
    fn note(&mut self, request: &Request) {
        let served = &request.served;
        self.only.add(served);
        if self.tid.is_some() && request.reader == self.tid {
            self.by_thread.add(served);
        }
        let own = served.traceparent.as_deref().and_then(parse_traceparent).map(|(trace, _)| trace);
        if own.is_some() && own == self.trace {
            self.by_trace.add(served);
        }
    }
}
