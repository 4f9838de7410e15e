//! Spans that hooks begin and end, and what becomes of each: a span of its own, or the name of one whose times the probes know.
//!
//! An inbound request that a hook names (`server`) and the request that was seen on its connection are one span; so are a call that a
//! hook names (`llm`) and the only exchange that was made in it. Such a span is exported when both halves are over. A span without
//! a parent is put below the request that its thread is serving, and its trace with it.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use nexent_observer_core::{
    chain::Inbound,
    event::{Address, MonoNs, Said},
    pipeline::Pipeline,
    timing::Served,
};

use super::message::{self, Kind, Message, Work};
use crate::{
    export::{
        ids::{SpanId, SpanIds, TraceId},
        otlp::Finished,
        work::{Attribute, Event, Named},
    },
    ring::Announcement,
};

/// Most spans that are open, or wait for their other half; over it the oldest goes as it is.
pub const OPEN: usize = 8192;
/// Most bytes that these hold, as [`weight`] counts them; over it the oldest goes as it is. A span that nobody ends is open as long as its process
/// lives.
pub const OPEN_BYTES: usize = 32 << 20;
/// Most attributes, and most events, of one span.
pub const OF_ONE_SPAN: usize = 64;
/// Most traces that were put below a request and are remembered.
pub const TRACES: usize = 8192;
/// How long a span that is over waits for its other half, ns.
const PATIENCE_NS: u64 = 10_000_000_000;
/// Drains of the rings that a span which has ended waits for its calls: what was read before its end may be told after it.
const SETTLING_DRAINS: u8 = 2;

/// What is ready to be exported.
#[derive(Debug)]
pub enum Done {
    /// A span of a hook.
    Span(Box<HookSpan>),
    /// A call, named by a hook or not.
    Call(Box<Finished>),
    /// A served request, named by a hook or not.
    Inbound(Box<Inbound>, SpanIds, Option<Named>),
}

/// A span that only a hook knows of.
#[derive(Debug, Clone, PartialEq)]
pub struct HookSpan {
    /// Process.
    pub pid: u32,
    /// Thread that began it.
    pub tid: u32,
    /// Its identity.
    pub ids: SpanIds,
    /// It serves a request.
    pub server: bool,
    /// When it began.
    pub start: MonoNs,
    /// When it ended.
    pub end: MonoNs,
    /// What the hook said.
    pub named: Named,
}

type Key = (u32, u64);

/// The spans that are open, or wait.
#[derive(Debug, Default)]
pub struct Spans {
    open: HashMap<Key, Open>,
    /// What they weigh.
    bytes: usize,
    /// In the order in which they began; those that are gone are passed over.
    order: VecDeque<Key>,
    /// The spans that serve each peer, in the order in which they began.
    by_peer: HashMap<(u32, SocketAddr), Vec<u64>>,
    /// Requests below which traces of hooks were put.
    traces: HashMap<(u32, u128), SpanIds>,
    traces_order: VecDeque<(u32, u128)>,
    /// Spans without a parent whose request was not known when they began.
    unresolved: Vec<Key>,
    /// Spans that have ended, and how many more drains they wait.
    ending: Vec<(Key, u8)>,
    /// Spans that became one with their call, and their parents: below these go calls that come after all.
    merged: HashMap<Key, Option<SpanId>>,
    merged_order: VecDeque<Key>,
    done: VecDeque<Done>,
}

#[derive(Debug)]
struct Open {
    tid: u32,
    trace: u128,
    parent: Option<u64>,
    work: Work,
    peer: Option<SocketAddr>,
    start: MonoNs,
    end: Option<MonoNs>,
    named: Named,
    /// Spans that began in it.
    children: bool,
    /// Calls that were made in it and are over.
    calls: Vec<Finished>,
    inbound: Option<Box<Inbound>>,
    /// What it weighs.
    bytes: usize,
}

/// What a span, a call or an event takes besides its texts, bytes: more than it does.
const OF_ONE: usize = 512;
/// What a call that is over takes.
const OF_CALL: usize = 4096;
/// What an attribute takes besides its texts.
const OF_ATTRIBUTE: usize = 96;

/// What attributes take in memory, bytes.
fn weight(attributes: &[(String, Attribute)]) -> usize {
    let text = |value: &Attribute| if let Attribute::Text(text) = value { text.len() } else { 0 };
    attributes.iter().map(|(key, value)| OF_ATTRIBUTE + key.len() + text(value)).sum()
}

impl Spans {
    /// Takes in what a hook said of a span.
    pub fn hear(&mut self, announcement: &Announcement<'_>, message: &Message<'_>, pipeline: &Pipeline) {
        let (pid, at) = (announcement.pid, announcement.at);
        let Some(id) = message.s else { return };
        let key = (pid, id);
        if message.k == Kind::Begin {
            self.begin(key, announcement, message, pipeline);
            return;
        }
        let Some(open) = self.open.get_mut(&key) else { return };
        let name = message.n.as_deref().map(message::name).unwrap_or_default();
        let before = open.bytes;
        match message.k {
            Kind::Set => {
                if !name.is_empty() {
                    name.clone_into(&mut open.named.name);
                }
                let had = weight(&open.named.attributes);
                add(&mut open.named.attributes, &message.a);
                open.bytes = open.bytes + weight(&open.named.attributes) - had;
            }
            Kind::Event if open.named.events.len() < OF_ONE_SPAN => {
                let mut attributes = Vec::new();
                add(&mut attributes, &message.a);
                open.bytes += OF_ONE + weight(&attributes);
                open.named.events.push(Event { at, name: name.to_owned(), attributes });
            }
            Kind::End => {
                open.end = Some(at);
                open.named.error = message.e.as_deref().map(message::name).map(str::to_owned);
                self.ending.push((key, SETTLING_DRAINS));
            }
            Kind::Begin | Kind::Event | Kind::Write => {}
        }
        self.bytes = self.bytes + open.bytes - before;
        self.make_room(at);
    }

    /// Lets the oldest go while they take too much.
    fn make_room(&mut self, now: MonoNs) {
        while self.bytes > OPEN_BYTES
            && let Some(oldest) = self.order.pop_front()
        {
            self.finish(oldest, now);
        }
    }

    fn begin(&mut self, key: Key, announcement: &Announcement<'_>, message: &Message<'_>, pipeline: &Pipeline) {
        let (Some(trace), at) = (message.t, announcement.at) else { return };
        if self.open.contains_key(&key) {
            return;
        }
        while self.order.len() >= OPEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.finish(oldest, at);
        }
        let peer = message.peer.as_deref().and_then(peer_of).filter(|_| message.o == Work::Server);
        if let Some(peer) = peer {
            self.by_peer.entry((key.0, peer)).or_default().push(key.1);
        }
        let mut named = Named::default();
        message.n.as_deref().map(message::name).unwrap_or_default().clone_into(&mut named.name);
        add(&mut named.attributes, &message.a);
        if let Some(model) = message.m.as_deref() {
            let model = Attribute::Text(message::name(model).to_owned());
            named.attributes.push(("gen_ai.request.model".to_owned(), model));
        }
        if let Some(parent) = message.p.and_then(|parent| self.open.get_mut(&(key.0, parent))) {
            parent.children = true;
        }
        let bytes = OF_ONE + weight(&named.attributes);
        let open = Open {
            tid: announcement.tid,
            trace,
            parent: message.p,
            work: message.o,
            peer,
            start: at,
            end: None,
            named,
            children: false,
            calls: Vec::new(),
            inbound: None,
            bytes,
        };
        self.open.insert(key, open);
        self.bytes += bytes;
        self.order.push_back(key);
        self.make_room(at);
        if message.p.is_none() && !self.resolve(key, pipeline) && self.unresolved.len() < OPEN {
            self.unresolved.push(key);
        }
    }

    /// Looks for the request to which a span without a parent belongs; whether there is nothing more to look for.
    fn resolve(&mut self, key: Key, pipeline: &Pipeline) -> bool {
        let Some(open) = self.open.get(&key) else { return true };
        let served = match open.peer {
            Some(peer) => pipeline.serving_peer(key.0, Address::Inet(peer)),
            None => pipeline.serving(key.0, open.tid).map(|(_, served)| served),
        };
        let Some(served) = served.filter(|served| served.start <= open.start) else { return false };
        let (trace, own) = (open.trace, SpanIds::of_served(&served));
        // A request that came without a trace takes that of the hook that names it.
        if open.peer.is_none() || served.traceparent.is_some() {
            let below = if open.peer.is_none() { self.served(key.0, &served) } else { own };
            self.remember(key.0, trace, below);
        }
        true
    }

    fn remember(&mut self, pid: u32, trace: u128, below: SpanIds) {
        if self.traces_order.len() >= TRACES
            && let Some(oldest) = self.traces_order.pop_front()
        {
            self.traces.remove(&oldest);
        }
        if self.traces.insert((pid, trace), below).is_none() {
            self.traces_order.push_back((pid, trace));
        }
    }

    /// The trace in which a process's trace is exported.
    fn trace(&self, pid: u32, trace: u128) -> TraceId {
        self.traces.get(&(pid, trace)).map_or_else(|| TraceId(trace.to_be_bytes()), |below| below.trace)
    }

    /// What a hook said of a call, in the trace in which it is exported.
    #[must_use]
    pub fn said(&self, pid: u32, said: Arc<Said>) -> Arc<Said> {
        match self.traces.get(&(pid, said.trace_id)) {
            Some(below) => Arc::new(Said { trace_id: u128::from_be_bytes(below.trace.0), ..Said::clone(&said) }),
            None => said,
        }
    }

    /// The span of a hook that names a served request.
    fn naming(&self, pid: u32, served: &Served) -> Option<(Key, &Open)> {
        let Address::Inet(peer) = served.peer?.remote else { return None };
        // The first that began after the request was read: earlier and later requests of the connection have spans of their own.
        self.by_peer.get(&(pid, peer))?.iter().find_map(|span| {
            let key = (pid, *span);
            self.open.get(&key).filter(|open| open.start >= served.start).map(|open| (key, open))
        })
    }

    /// Identity of the span of a served request.
    #[must_use]
    pub fn served(&self, pid: u32, served: &Served) -> SpanIds {
        let own = SpanIds::of_served(served);
        match self.naming(pid, served) {
            Some(((_, span), open)) => {
                SpanIds { trace: self.trace(pid, open.trace), span: SpanId(span.to_be_bytes()), parent: own.parent }
            }
            None => own,
        }
    }

    /// The name that a hook gave a served request.
    #[must_use]
    pub fn served_name(&self, pid: u32, served: &Served) -> Option<Arc<str>> {
        let (_, open) = self.naming(pid, served)?;
        (!open.named.name.is_empty()).then(|| open.named.name.as_str().into())
    }

    /// A call is over: it waits if a hook's span that names it has not ended.
    pub fn call(&mut self, mut finished: Box<Finished>) {
        let exchange = &finished.observed.exchange;
        let key = exchange.said.as_ref().map(|said| (exchange.pid, said.span_id));
        if let Some(parent) = key.and_then(|key| self.merged.get(&key)) {
            finished.ids.parent = *parent;
        }
        let llm = |open: &&mut Open| open.work == Work::Llm && open.calls.len() < OF_ONE_SPAN;
        let Some((key, open)) = key.and_then(|key| Some((key, self.open.get_mut(&key).filter(llm)?))) else {
            self.done.push_back(Done::Call(finished));
            return;
        };
        open.calls.push(*finished);
        open.bytes += OF_CALL;
        self.bytes += OF_CALL;
        if open.end.is_some() {
            self.ending.push((key, SETTLING_DRAINS));
        }
    }

    /// A served request is over: it waits if the hook's span that names it has not ended.
    pub fn inbound(&mut self, inbound: Box<Inbound>) {
        let naming = self.naming(inbound.pid, &inbound.served).filter(|(_, open)| open.start <= inbound.end);
        let Some((key, end)) = naming.map(|(key, open)| (key, open.end)) else {
            let ids = SpanIds::of_served(&inbound.served);
            self.done.push_back(Done::Inbound(inbound, ids, None));
            return;
        };
        if let Some(open) = self.open.get_mut(&key) {
            open.inbound = Some(inbound);
        }
        if let Some(end) = end {
            self.finish(key, end);
        }
    }

    /// A span is over, or nothing more is waited for: gives out what it comes to.
    fn finish(&mut self, key @ (pid, id): Key, now: MonoNs) {
        let Some(open) = self.open.get(&key) else { return };
        let trace = self.trace(pid, open.trace);
        let below = self.traces.get(&(pid, open.trace)).map(|below| below.span);
        let parent =
            open.parent.map(|parent| SpanId(parent.to_be_bytes())).or_else(|| below.filter(|_| open.peer.is_none()));
        let served = open.inbound.as_ref().map(|inbound| SpanIds {
            trace,
            span: SpanId(id.to_be_bytes()),
            parent: SpanIds::of_served(&inbound.served).parent,
        });
        let Some(Open { tid, work, peer, start, end, named, children, mut calls, inbound, bytes, .. }) =
            self.open.remove(&key)
        else {
            return;
        };
        self.bytes -= bytes;
        if let Some(peer) = peer
            && let Some(spans) = self.by_peer.get_mut(&(pid, peer))
        {
            spans.retain(|span| *span != id);
            if spans.is_empty() {
                self.by_peer.remove(&(pid, peer));
            }
        }
        if let (Some(inbound), Some(ids)) = (inbound, served) {
            self.done.push_back(Done::Inbound(inbound, ids, Some(named)));
            return;
        }
        if let ([_], Work::Llm, false) = (calls.as_slice(), work, children)
            && let Some(mut call) = calls.pop()
        {
            call.ids = SpanIds { trace, span: call.ids.span, parent };
            call.named = Some(Box::new(named));
            self.done.push_back(Done::Call(Box::new(call)));
            if self.merged_order.len() >= TRACES
                && let Some(oldest) = self.merged_order.pop_front()
            {
                self.merged.remove(&oldest);
            }
            self.merged.insert(key, parent);
            self.merged_order.push_back(key);
            return;
        }
        let ids = SpanIds { trace, span: SpanId(id.to_be_bytes()), parent };
        let end = end.unwrap_or(now).max(start);
        let span = HookSpan { pid, tid, ids, server: work == Work::Server, start, end, named };
        self.done.push_back(Done::Span(Box::new(span)));
        self.done.extend(calls.into_iter().map(|call| Done::Call(Box::new(call))));
    }

    /// Both rings are drained.
    pub fn drained(&mut self, pipeline: &Pipeline) {
        for key in std::mem::take(&mut self.unresolved) {
            self.resolve(key, pipeline);
        }
    }

    /// What both rings held was told: spans that have ended are over, unless they wait for their other half.
    pub fn settle(&mut self) {
        for (key, drains) in std::mem::take(&mut self.ending) {
            if drains > 0 {
                self.ending.push((key, drains - 1));
                continue;
            }
            let Some(open) = self.open.get(&key) else { continue };
            let alone = match open.work {
                Work::Llm => open.calls.is_empty() && !open.children,
                Work::Server => open.inbound.is_none() && open.peer.is_some(),
                Work::Endpoint | Work::Other => false,
            };
            if let Some(end) = open.end.filter(|_| !alone) {
                self.finish(key, end);
            }
        }
    }

    /// Lets go of what has waited long enough for its other half.
    pub fn keep_house(&mut self, now: MonoNs) {
        let waited = |open: &Open| open.end.is_some_and(|end| now.since(end) > PATIENCE_NS);
        let over: Vec<Key> = self.open.iter().filter(|(_, open)| waited(open)).map(|(key, _)| *key).collect();
        over.into_iter().for_each(|key| self.finish(key, now));
        self.order.retain(|key| self.open.contains_key(key));
    }

    /// The process is gone: what was open in it ends now.
    pub fn process_exit(&mut self, pid: u32, now: MonoNs) {
        let of_it: Vec<Key> = self.order.iter().copied().filter(|key| key.0 == pid).collect();
        of_it.into_iter().for_each(|key| self.finish(key, now));
    }

    /// The observer ends: nothing more is waited for.
    pub fn stop(&mut self, now: MonoNs) {
        std::mem::take(&mut self.order).into_iter().for_each(|key| self.finish(key, now));
    }

    /// What is ready.
    pub fn poll(&mut self) -> Option<Done> {
        self.done.pop_front()
    }
}

/// Adds attributes; a key that is there gets the new value.
fn add(attributes: &mut Vec<(String, Attribute)>, said: &serde_json::Map<String, serde_json::Value>) {
    for (key, value) in said {
        let value = match value {
            serde_json::Value::Bool(b) => Attribute::Bool(*b),
            serde_json::Value::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => Attribute::Int(n),
                (None, Some(x)) => Attribute::Float(x),
                (None, None) => continue,
            },
            serde_json::Value::String(text) => Attribute::Text(text.clone()),
            _ => continue,
        };
        let key = message::name(key);
        if let Some((_, known)) = attributes.iter_mut().find(|(known, _)| known == key) {
            *known = value;
        } else if attributes.len() < OF_ONE_SPAN && !key.is_empty() {
            attributes.push((key.to_owned(), value));
        }
    }
}

/// `10.0.0.7:41234`; an IPv6 address may stand without brackets, as it does in ASGI.
fn peer_of(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let address: IpAddr = address.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    Some(SocketAddr::new(address.to_canonical(), port.parse().ok()?))
}

#[cfg(test)]
#[path = "spans_tests.rs"]
mod tests;
