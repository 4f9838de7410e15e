//! Reads that overtook the write they answer, and a close that overtook the last write.
//!
//! The kernel half has one ring for reads and closes and one for writes, drained one after the other. A read of turn T
//! may therefore come in before the write that began turn T, although it happened after it.

use std::collections::VecDeque;

use crate::{
    event::{MonoNs, RecordFlags, Stamp},
    limits,
};

/// One read that waits.
#[derive(Debug)]
pub(super) struct HeldRead {
    pub(super) at: Stamp,
    pub(super) turn: u32,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) flags: RecordFlags,
    pub(super) payload: Box<[u8]>,
}

impl HeldRead {
    fn cost(&self) -> usize {
        size_of::<Self>() + self.payload.len()
    }

    fn deadline(&self) -> MonoNs {
        MonoNs(self.at.ret.0.saturating_add(limits::HOLD_NS))
    }
}

/// A close that waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldClose {
    pub(super) at: Stamp,
    pub(super) read_end: u64,
    pub(super) write_end: u64,
    pub(super) flags: RecordFlags,
}

/// What waits on one connection, in the order of arrival; the close is last.
#[derive(Debug, Default)]
pub(super) struct Held {
    reads: VecDeque<HeldRead>,
    cost: usize,
    pub(super) close: Option<HeldClose>,
}

impl Held {
    /// Whether one more read of `payload` bytes would go over the cap.
    pub(super) fn is_full_for(&self, payload: usize) -> bool {
        self.cost.saturating_add(size_of::<HeldRead>()).saturating_add(payload) > limits::HOLD_BYTES
    }

    pub(super) fn push(&mut self, read: HeldRead) {
        self.cost += read.cost();
        self.reads.push_back(read);
    }

    /// Takes the first read if its turn satisfies `ready`.
    pub(super) fn pop_if(&mut self, ready: impl Fn(u32) -> bool) -> Option<HeldRead> {
        if !ready(self.reads.front()?.turn) {
            return None;
        }
        let read = self.reads.pop_front()?;
        self.cost -= read.cost();
        Some(read)
    }

    /// Turn of the first read that waits.
    pub(super) fn first_turn(&self) -> Option<u32> {
        self.reads.front().map(|r| r.turn)
    }

    pub(super) fn has_reads(&self) -> bool {
        !self.reads.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.close.is_none()
    }

    /// When waiting for the first thing ends.
    pub(super) fn deadline(&self) -> Option<MonoNs> {
        match (self.reads.front(), self.close) {
            (Some(read), _) => Some(read.deadline()),
            (None, Some(close)) => Some(MonoNs(close.at.ret.0.saturating_add(limits::HOLD_NS))),
            (None, None) => None,
        }
    }
}
