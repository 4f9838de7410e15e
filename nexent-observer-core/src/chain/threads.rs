//! Threads that were started while the thread that started them was serving one request.
//!
//! That alone proves nothing: a pool starts its threads on the threads that hand it work, and lends them to all requests, also while the one
//! in which they were started goes on. What tells such a thread from one that was made for a request is its end: a thread of a request ends
//! before the request is answered, one of a pool lives on. So a call waits until the request is over, and one thread that made a call and
//! lived on is enough for none of the process to be believed any more.

use std::{collections::HashMap, sync::Arc};

use super::{Found, Request};
use crate::{
    event::MonoNs,
    limits::{HOLD_NS, STARTED_THREADS, THREAD_OUTLIVES_NS},
    timing::{ExchangeId, Served},
};

/// Threads of one process that were started during a request.
#[derive(Debug, Default)]
pub(super) struct Threads {
    started: HashMap<u32, Started>,
    /// When the latest one was started.
    latest: MonoNs,
    /// The chain looks after it at each drain.
    pub(super) listed: bool,
}

#[derive(Debug)]
struct Started {
    at: MonoNs,
    /// Number of the drain in which that was told.
    drain: u64,
    parent: u32,
    /// What its parent was serving then.
    by: Found,
    /// It made a call.
    calls: bool,
    ended: Option<MonoNs>,
    over: Option<Over>,
}

/// The end of a request.
#[derive(Debug, Clone, Copy)]
struct Over {
    /// Entry of the write that carries the last byte of its answer.
    at: MonoNs,
    /// It was answered to the end.
    completed: bool,
    /// Number of the drain in which it was told.
    drain: u64,
}

/// The latest drain of both rings: its number, and when it was.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Drained {
    pub(super) number: u64,
    pub(super) at: MonoNs,
}

/// What a thread's start and end say of its calls.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Nothing.
    None,
    /// Something, perhaps, when the request is over.
    Pending,
    /// For this request it was started.
    For(Arc<Served>),
}

impl Threads {
    /// `parent`, which serves `by`, started a thread.
    pub(super) fn start(&mut self, tid: u32, parent: u32, at: MonoNs, drain: u64, by: Found) {
        self.started.remove(&tid);
        if by != Found::Many && self.started.len() < STARTED_THREADS {
            self.latest = self.latest.max(at);
            self.started.insert(tid, Started { at, drain, parent, by, calls: false, ended: None, over: None });
        }
    }

    /// A request is told that may have begun before threads that were told already.
    pub(super) fn note(&mut self, request: &Request) {
        let start = request.served.start;
        if start > self.latest {
            return;
        }
        for thread in self.started.values_mut() {
            if start <= thread.at && request.reader == Some(thread.parent) {
                thread.by.add(&request.served);
            }
        }
    }

    pub(super) fn end(&mut self, tid: u32, at: MonoNs) {
        match self.started.get_mut(&tid) {
            Some(thread) if thread.calls => thread.ended = Some(at),
            // It made no call, and will make none.
            _ => drop(self.started.remove(&tid)),
        }
    }

    /// A request is over.
    pub(super) fn over(&mut self, id: ExchangeId, at: MonoNs, completed: bool, drain: u64) {
        for thread in self.started.values_mut() {
            if matches!(&thread.by, Found::One(served) if served.id == id) {
                thread.over = Some(Over { at, completed, drain });
            }
        }
    }

    /// A thread makes a call; when it was started, if that is known.
    pub(super) fn call(&mut self, tid: u32) -> Option<MonoNs> {
        // The number of one that ended is used again.
        let thread = self.started.get_mut(&tid).filter(|thread| thread.ended.is_none())?;
        thread.calls = true;
        Some(thread.at)
    }

    /// What is known of the calls of a thread that was started at `at`.
    pub(super) fn verdict(&self, tid: u32, at: MonoNs, drained: Drained) -> Verdict {
        let Some(thread) = self.started.get(&tid).filter(|thread| thread.at == at) else { return Verdict::None };
        let Found::One(served) = &thread.by else { return Verdict::None };
        match thread.over {
            None => Verdict::Pending,
            Some(over) if !drained.settles(over.at, over.drain) => Verdict::Pending,
            Some(over) if over.completed && thread.ended.is_some_and(|ended| ended < over.at) => {
                Verdict::For(Arc::clone(served))
            }
            Some(_) => Verdict::None,
        }
    }

    /// Whether something waits for time to pass.
    pub(super) fn waits(&self) -> bool {
        self.started.values().any(|thread| thread.over.is_some() || thread.by == Found::None)
    }

    /// Lets go of what can say nothing more. Whether a thread that made a call has outlived its request; what is left then proves nothing.
    pub(super) fn settle(&mut self, drained: Drained) -> bool {
        let mut outlived = false;
        self.started.retain(|_, thread| match (&thread.by, thread.over) {
            // No request will be told late to which it could belong.
            (Found::None, _) => !drained.settles(thread.at, thread.drain),
            (Found::Many, _) => false,
            (Found::One(_), None) => true,
            (Found::One(_), Some(over)) => {
                let settled = drained.settles(over.at, over.drain);
                let patience = drained.at.since(over.at) <= THREAD_OUTLIVES_NS || !settled;
                outlived |= !patience && thread.calls && thread.ended.is_none();
                patience
            }
        });
        outlived
    }

    /// None of them proves anything.
    pub(super) fn clear(&mut self) {
        self.started.clear();
    }
}

impl Drained {
    /// Whether everything that was before `at` was told, `at` itself having been told in drain `drain`: both rings were drained since, each to
    /// its end, and what is held back was held back long enough.
    fn settles(self, at: MonoNs, drain: u64) -> bool {
        self.number > drain + 1 && self.at.since(at) > 2 * HOLD_NS
    }
}
