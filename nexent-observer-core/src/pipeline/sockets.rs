//! WebSockets of a connection that carry LLM calls: each of their calls is an exchange of its own.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    SharedCalls,
    connection::{About, take_counted},
    tap::Counted,
};
use crate::{
    event::{ConnId, Said},
    http::{ExchangeNo, Head, HttpEvent, HttpEventKind},
    llm::{LlmSocket, SocketState},
    timing::{ActiveStream, ExchangeId, Progress, Timing},
};

/// Calls on sockets are numbered from here on: apart from the exchanges of the connection.
const FIRST_CALL: u32 = 1 << 31;

/// The sockets of one connection.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    open: Vec<Socket>,
    /// Calls so far.
    calls: u32,
}

#[derive(Debug)]
struct Socket {
    no: ExchangeNo,
    llm: Box<LlmSocket>,
    /// The open calls, by the number that the socket gave them.
    calls: SmallVec<[(u32, Call); 1]>,
}

#[derive(Debug)]
struct Call {
    timing: Box<Timing>,
    said: Option<Arc<Said>>,
}

/// Where the calls of a connection come from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) conn: ConnId,
    pub(super) pid: u32,
    /// Thread that asks: of the latest write, or of the latest read where the process serves.
    pub(super) asker: Option<u32>,
    /// What is known of the connection, which goes for each of its calls.
    pub(super) about: About,
    /// What a hook said of the calls that begin now.
    pub(super) said: Option<&'a Arc<Said>>,
}

impl Sockets {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether an exchange is one of the sockets.
    pub(super) fn has(&self, no: ExchangeNo) -> bool {
        self.open.iter().any(|socket| socket.no == no)
    }

    /// Begins a socket if this event asks for one.
    pub(super) fn begin(&mut self, event: &HttpEvent<'_>) -> bool {
        let HttpEventKind::Head { head: Head::Request(head), .. } = &event.kind else { return false };
        let Some(llm) = LlmSocket::asked_by(head) else { return false };
        self.open.push(Socket { no: event.exchange, llm: Box::new(llm), calls: SmallVec::new() });
        true
    }

    /// Takes an event if it is of a socket; what became of that. `counted` is what a replay knows of its tokens.
    pub(super) fn feed(
        &mut self,
        event: &HttpEvent<'_>,
        origin: Origin<'_>,
        counted: &mut Vec<Counted>,
        shared: &mut SharedCalls,
    ) -> Option<SocketState> {
        let taps = shared.tap.is_some();
        let Self { open, calls: numbered } = self;
        let at = open.iter().position(|socket| socket.no == event.exchange)?;
        let Socket { llm, calls, .. } = open.get_mut(at)?;
        let SharedCalls { limits, options, llm: llm_stats, timing: timing_stats, chain, .. } = shared;
        let mut finished: SmallVec<[Call; 1]> = SmallVec::new();
        let state = llm.feed(event, llm_stats, &mut |call, event| {
            let at = calls.iter().position(|(no, _)| *no == call).unwrap_or_else(|| {
                let no = FIRST_CALL | *numbered;
                *numbered = numbered.wrapping_add(1);
                timing_stats.exchanges_open += 1;
                let id = ExchangeId { conn: origin.conn, no };
                let mut timing = Timing::new(id, origin.pid, origin.asker, options, limits);
                if let Some(since) = origin.about.watched_since {
                    timing.watched(since);
                }
                if taps {
                    timing.note_counts();
                }
                if origin.about.is_client() {
                    chain.call(origin.pid, id, origin.asker, event.at.entry, None);
                }
                calls.push((call, Call { timing: Box::new(timing), said: origin.said.cloned() }));
                calls.len() - 1
            });
            let Some((_, Call { timing, .. })) = calls.get_mut(at) else { return };
            take_counted(counted, timing);
            if timing.feed(&event) == Progress::Finished {
                finished.push(calls.remove(at).1);
            }
        });
        if taps {
            let fed = finished.iter_mut().chain(calls.iter_mut().map(|(_, call)| call));
            shared.counted = fed.filter_map(|call| call.timing.take_counts()).collect();
        }
        for Call { timing, said } in finished {
            origin.about.finish(*timing, said, None, shared);
        }
        if state != SocketState::Open {
            open.remove(at);
        }
        Some(state)
    }

    /// Every open call.
    pub(super) fn timings(&mut self, mut tell: impl FnMut(&mut Timing)) {
        for (_, call) in self.open.iter_mut().flat_map(|socket| &mut socket.calls) {
            tell(&mut call.timing);
        }
    }

    pub(super) fn active(&self) -> impl Iterator<Item = ActiveStream<'_>> {
        self.open.iter().flat_map(|socket| socket.calls.iter().map(|(_, call)| call.timing.active()))
    }
}
