//! Byte-exact reassembly of one connection by the offsets that the kernel half counts.

use super::{
    CloseCause, GapCause, StreamEvent,
    held::{Held, HeldClose, HeldRead},
};
use crate::{
    event::{Direction, MonoNs, Record, RecordFlags, RecordKind, Stamp},
    stats::{DropReason, Stats},
};

/// Rebuilds the two byte streams of one connection from its records.
///
/// A record at the expected offset flows through without a copy. Known bytes and the lengths of gaps of a direction add
/// up to its final offset, however records are cut, lost or repeated.
///
/// Reads of a turn whose writes may not all have come yet are held, as is a close that came before the last write: between
/// the two rings a read overtakes the writes that it answers. [`Self::handle_timeout`] lets them go, and is to be called
/// after a drain of *both* rings, reads first: then all writes of the turn are in, since every one of them was made before
/// its first read. The first write of the turn is not enough (a request may be written in several, and may straddle two
/// drains), a write of a later turn is. So of each answer the reads of its first drain are copied once, and no others.
#[derive(Debug, Default)]
pub struct Reassembly {
    /// Next expected offset of each direction; `None` until its first record.
    read: Option<u64>,
    write: Option<u64>,
    /// Newest turn that began as far as is known: by its write, or because waiting for that write was given up.
    turn: u32,
    /// Newest turn of which all writes came: its reads pass.
    settled: u32,
    started: bool,
    from_start: bool,
    closed: bool,
    held: Option<Box<Held>>,
    /// What is known of calls that were seen twice, of each direction.
    reads: Calls,
    writes: Calls,
}

/// Calls of one direction. One that was under way all the time while its own thread made another one, and moved the same bytes, was around
/// that one: both were hooked, and the kernel half counted the bytes of both. The bytes have to be the same, because a goroutine waits for
/// another one inside a hooked call, on the same thread.
#[derive(Debug, Default)]
struct Calls {
    /// The last call that counted.
    last: Option<Call>,
    /// Stamp of the last call that was around one.
    around: Option<Stamp>,
    /// Bytes that were counted twice so far.
    twice: u64,
}

/// A call, by its first record.
#[derive(Debug)]
struct Call {
    tid: u32,
    at: Stamp,
    len: u64,
    /// The beginning of its payload.
    head: [u8; HEAD],
}

/// Bytes by which two calls are compared.
const HEAD: usize = 32;

impl Calls {
    /// Whether a record of `len` bytes is of a call around one that counted.
    fn repeat(&mut self, tid: u32, at: Stamp, len: u64, payload: &[u8]) -> bool {
        let mut head = [0; HEAD];
        head.iter_mut().zip(payload).for_each(|(mine, byte)| *mine = *byte);
        let around = self.around == Some(at)
            || self.last.as_ref().is_some_and(|last| {
                let inside = last.at.entry > at.entry && last.at.ret <= at.ret;
                inside && !payload.is_empty() && (last.tid, last.len, last.head) == (tid, len, head)
            });
        if around {
            self.around = Some(at);
            self.twice = self.twice.saturating_add(len);
        } else if self.last.as_ref().is_none_or(|last| last.at != at) {
            self.last = Some(Call { tid, at, len, head });
        }
        around
    }

    /// An offset as the kernel half counts, with what it counted twice.
    fn counted(&self, offset: u64) -> u64 {
        offset.saturating_add(self.twice)
    }

    /// An offset of the kernel half without what was counted twice before it.
    fn offset(&self, counted: u64) -> u64 {
        counted.saturating_sub(self.twice)
    }
}

/// A data record on its way through.
#[derive(Clone, Copy)]
struct Piece<'a> {
    dir: Direction,
    at: Stamp,
    offset: u64,
    len: u64,
    flags: RecordFlags,
    payload: &'a [u8],
}

impl Reassembly {
    /// A connection of which nothing was seen yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the connection was seen from its first byte on. Known after the first record; `false` before.
    #[must_use]
    pub fn is_from_start(&self) -> bool {
        self.from_start
    }

    /// Whether `Close` was given out: nothing follows.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// When [`Self::handle_timeout`] has something to do, on the clock of the records; 0 is after the current drain.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<MonoNs> {
        let held = self.held.as_ref()?;
        match held.first_turn() {
            Some(turn) if turn <= self.turn => Some(MonoNs(0)),
            _ => held.deadline(),
        }
    }

    /// Takes one record of this connection.
    pub fn feed(&mut self, record: &Record<'_>, stats: &mut Stats, sink: &mut impl FnMut(StreamEvent<'_>)) {
        stats.records += 1;
        if self.closed {
            stats.count(DropReason::RecordInvalid);
            return;
        }
        let at = record.at;
        match record.kind {
            RecordKind::Data { dir, offset, turn, payload, len, flags } => {
                stats.bytes += payload.len() as u64;
                if !self.started {
                    self.started = true;
                    self.from_start = flags.from_start;
                }
                let calls = match dir {
                    Direction::Read => &mut self.reads,
                    Direction::Write => &mut self.writes,
                };
                if calls.repeat(record.tid, at, len, payload) {
                    stats.count(DropReason::SeenTwice);
                    return;
                }
                let offset = calls.offset(offset);
                let piece = Piece { dir, at, offset, len, flags, payload };
                match dir {
                    Direction::Read if self.held.is_some() || turn > self.settled => {
                        self.hold(turn, piece, stats, sink);
                    }
                    Direction::Read => self.pass(piece, stats, sink),
                    Direction::Write => self.pass_write(turn, piece, stats, sink),
                }
            }
            // These say nothing of the bytes.
            RecordKind::Peer(_) | RecordKind::Sent { .. } | RecordKind::Late { .. } | RecordKind::Retransmit => {}
            RecordKind::Close { read_end, write_end, flags } => {
                let (read_end, write_end) = (self.reads.offset(read_end), self.writes.offset(write_end));
                let close = HeldClose { at, read_end, write_end, flags };
                if self.held.is_some() || write_end > self.write.unwrap_or(0) {
                    let held = self.held.get_or_insert_default();
                    if held.close.replace(close).is_some() {
                        stats.count(DropReason::RecordInvalid);
                    }
                } else {
                    self.finish(close, stats, sink);
                }
            }
        }
    }

    /// The record that ends the connection where the kernel half's own was lost, and nobody knows what else: with the offsets until which
    /// all is known, and the mark of an unknown loss.
    #[must_use]
    pub fn lost_close(&self) -> RecordKind<'static> {
        let flags = RecordFlags { after_unknown_loss: true, ..RecordFlags::default() };
        let read_end = self.reads.counted(self.read.unwrap_or(0));
        RecordKind::Close { read_end, write_end: self.writes.counted(self.write.unwrap_or(0)), flags }
    }

    /// Both rings are drained at `now`: ends waiting for the rest of a turn that began, and what has waited too long.
    pub fn handle_timeout(&mut self, now: MonoNs, stats: &mut Stats, sink: &mut impl FnMut(StreamEvent<'_>)) {
        if self.held.is_some() {
            let newest = self.turn;
            self.release(|t| t <= newest, stats, sink);
        }
        while let Some(held) = &self.held
            && held.deadline().is_some_and(|deadline| deadline <= now)
        {
            match held.first_turn() {
                Some(turn) => {
                    self.turn = self.turn.max(turn);
                    self.release(|t| t <= turn, stats, sink);
                }
                None => {
                    let Some(close) = self.held.take().and_then(|h| h.close) else { return };
                    self.finish(close, stats, sink);
                }
            }
        }
    }

    /// Ends the connection for a reason that is not in its records. What was held goes out first.
    pub fn close(&mut self, at: MonoNs, cause: CloseCause, stats: &mut Stats, sink: &mut impl FnMut(StreamEvent<'_>)) {
        if self.closed {
            return;
        }
        let held_close = self.held.as_ref().and_then(|h| h.close);
        self.release(|_| true, stats, sink);
        self.held = None;
        match held_close {
            Some(close) if !self.closed => self.finish(close, stats, sink),
            _ if self.closed => {}
            _ => {
                self.closed = true;
                sink(StreamEvent::Close { at, cause });
            }
        }
    }

    fn pass_write(
        &mut self,
        turn: u32,
        mut piece: Piece<'_>,
        stats: &mut Stats,
        sink: &mut impl FnMut(StreamEvent<'_>),
    ) {
        if let Some(held) = &self.held {
            if held.close.is_some_and(|close| piece.offset >= close.write_end) {
                // The close that waits says that nothing was written there.
                stats.count(DropReason::RecordInvalid);
                return;
            }
            // Reads of earlier turns whose writes were all lost: the loss, what it was answered with, then this write.
            if piece.offset.checked_add(piece.len).is_some() {
                self.reveal(piece.dir, piece.at, piece.offset, piece.flags, stats, sink);
                piece.flags.after_unknown_loss = false;
            }
            self.release(|t| t < turn, stats, sink);
            if self.closed {
                stats.count(DropReason::RecordInvalid);
                return;
            }
        }
        self.turn = self.turn.max(turn);
        self.settled = self.settled.max(turn.saturating_sub(1));
        self.pass(piece, stats, sink);
        // A close that waited for this write goes out.
        self.release(|_| false, stats, sink);
    }

    fn hold(&mut self, turn: u32, piece: Piece<'_>, stats: &mut Stats, sink: &mut impl FnMut(StreamEvent<'_>)) {
        let held = self.held.get_or_insert_default();
        if held.close.is_some() {
            // Closes come through the same ring as reads, so nothing was read after one.
            stats.count(DropReason::RecordInvalid);
            return;
        }
        if held.is_full_for(piece.payload.len()) {
            self.release(|_| true, stats, sink);
            self.turn = self.turn.max(turn);
            self.settled = self.settled.max(turn);
            self.pass(piece, stats, sink);
            return;
        }
        let Piece { at, offset, len, flags, payload, .. } = piece;
        held.push(HeldRead { at, turn, offset, len, flags, payload: payload.into() });
    }

    /// Lets held reads go in order as long as `ready` says so of their turn, then the close if it waits for nothing more.
    fn release(&mut self, ready: impl Fn(u32) -> bool, stats: &mut Stats, sink: &mut impl FnMut(StreamEvent<'_>)) {
        let Some(mut held) = self.held.take() else { return };
        while let Some(HeldRead { at, turn, offset, len, flags, payload }) = held.pop_if(&ready) {
            self.settled = self.settled.max(turn);
            self.pass(Piece { dir: Direction::Read, at, offset, len, flags, payload: &payload }, stats, sink);
        }
        match held.close {
            Some(close) if !held.has_reads() && self.write.unwrap_or(0) >= close.write_end => {
                self.finish(close, stats, sink);
            }
            _ if held.is_empty() => {}
            _ => self.held = Some(held),
        }
    }

    /// Gives out one record: what is missing before it, its bytes, what is missing of it.
    fn pass(&mut self, piece: Piece<'_>, stats: &mut Stats, sink: &mut impl FnMut(StreamEvent<'_>)) {
        let Piece { dir, at, offset, len, flags, payload } = piece;
        let Some(end) = offset.checked_add(len) else {
            stats.count(DropReason::RecordInvalid);
            return;
        };
        // More payload than the stream moved on by: the excess belongs to no offset.
        let payload = match usize::try_from(len).ok().and_then(|n| payload.get(..n)) {
            Some(fitting) => {
                if fitting.len() < payload.len() {
                    stats.count(DropReason::RecordInvalid);
                }
                fitting
            }
            None => payload,
        };
        let next = self.reveal(dir, at, offset, flags, stats, sink);
        let known = next - offset;
        if known > 0 {
            stats.count(DropReason::SeenTwice);
            if known >= len {
                return;
            }
        }
        let fresh = usize::try_from(known).ok().and_then(|n| payload.get(n..)).unwrap_or_default();
        if !fresh.is_empty() {
            sink(StreamEvent::Data { dir, at, bytes: fresh });
        }
        let missing = len - known - fresh.len() as u64;
        if missing > 0 {
            let cause = match flags {
                RecordFlags { capped: true, .. } => GapCause::Capped,
                RecordFlags { fault: true, .. } => GapCause::Fault,
                _ => GapCause::Lost,
            };
            gap(dir, at, Some(missing), cause, stats, sink);
        }
        *self.next(dir) = Some(end);
    }

    /// Reports what is missing before `offset`; returns the expected offset, at least `offset`.
    fn reveal(
        &mut self,
        dir: Direction,
        at: Stamp,
        offset: u64,
        flags: RecordFlags,
        stats: &mut Stats,
        sink: &mut impl FnMut(StreamEvent<'_>),
    ) -> u64 {
        // A direction of a connection joined mid-life begins where its first record says.
        let start = if self.from_start { 0 } else { offset };
        let next = self.next(dir).get_or_insert(start);
        if offset < *next {
            return *next;
        }
        let missing = offset - *next;
        *next = offset;
        if flags.after_unknown_loss {
            gap(dir, at, None, GapCause::Lost, stats, sink);
        }
        if missing > 0 {
            let cause = if flags.after_skip { GapCause::Skipped } else { GapCause::Lost };
            gap(dir, at, Some(missing), cause, stats, sink);
        }
        offset
    }

    /// Compares the final offsets with what came, then closes.
    fn finish(&mut self, close: HeldClose, stats: &mut Stats, sink: &mut impl FnMut(StreamEvent<'_>)) {
        let HeldClose { at, read_end, write_end, flags } = close;
        for (dir, end) in [(Direction::Write, write_end), (Direction::Read, read_end)] {
            let begun = self.next(dir).is_some() || self.from_start;
            // The record does not say in which direction; what is read is what must not be called complete.
            let flags = RecordFlags { after_unknown_loss: flags.after_unknown_loss && dir == Direction::Read, ..flags };
            if (begun || flags.after_unknown_loss) && self.reveal(dir, at, end, flags, stats, sink) > end {
                stats.count(DropReason::RecordInvalid);
            }
        }
        self.closed = true;
        sink(StreamEvent::Close { at: at.entry, cause: CloseCause::Freed });
    }

    fn next(&mut self, dir: Direction) -> &mut Option<u64> {
        match dir {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        }
    }
}

fn gap(
    dir: Direction,
    at: Stamp,
    len: Option<u64>,
    cause: GapCause,
    stats: &mut Stats,
    sink: &mut impl FnMut(StreamEvent<'_>),
) {
    if cause.is_loss() {
        stats.gaps += 1;
        stats.bytes_lost = stats.bytes_lost.saturating_add(len.unwrap_or(0));
        stats.count(DropReason::Gap);
    }
    sink(StreamEvent::Gap { dir, at, len, cause });
}
