//! Stage 2: drains the two rings, decodes records, and counts what is none.

mod decode;

use std::mem;

use aya::maps::{MapData, RingBuf};
use nexent_observer_common::record::RecordHeader;

pub use decode::{Announcement, ProcessEvent, ProcessEventKind, RingEvent, decode};

use crate::probe::kernel::Rings;

/// Entries that were no records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defects {
    /// Entries that could not be decoded.
    pub malformed: u64,
}

/// The consumer of both rings.
pub struct Drain {
    rings: Rings,
    /// Counted defects.
    pub defects: Defects,
}

/// Most records handled in one drain, so that timers and signals get their turn.
const RECORDS_PER_DRAIN: usize = 65_536;

impl Drain {
    /// Takes over the rings.
    #[must_use]
    pub fn new(rings: Rings) -> Self {
        Self { rings, defects: Defects::default() }
    }

    /// Hands on everything that is in the rings, in the order of return times across both: a response is never handed on before
    /// a request that was written before it. Gives the number of records handed on; as many as the bound of one drain when
    /// more may be waiting.
    pub fn run(&mut self, mut sink: impl FnMut(RingEvent<'_>)) -> usize {
        let Rings { reads, writes, .. } = &mut self.rings;
        let mut handled = 0;
        // The ring of reads is looked at first: what it shows was committed after every write that caused it, so that write
        // shows in the other ring by now.
        let (mut read, mut write) = (peek(reads), peek(writes));
        while handled < RECORDS_PER_DRAIN {
            let from_reads = match (read, write) {
                (None, None) => break,
                (Some(read), Some(write)) => read < write,
                (read, _) => read.is_some(),
            };
            let ring = if from_reads { &mut *reads } else { &mut *writes };
            if let Some(entry) = ring.next() {
                fetch_behind(&entry);
                match decode(&entry) {
                    Ok(event) => sink(event),
                    Err(_) => self.defects.malformed += 1,
                }
                handled += 1;
            }
            if from_reads {
                read = peek(reads);
                // A new head of the reads may follow a write that was not there before.
                write = write.or_else(|| peek(writes));
            } else {
                write = peek(writes);
            }
        }
        handled
    }

    /// Allows the kernel half to wake us again.
    pub fn rearm_wakeups(&mut self) {
        if let Err(error) = self.rings.woken.clear() {
            tracing::warn!(%error, "The wake-up marks could not be cleared.");
        }
    }

    /// Allows an exec to wake us again.
    pub fn rearm_execs(&mut self) {
        if let Err(error) = self.rings.woken.clear_exec() {
            tracing::warn!(%error, "The mark of an exec's wake-up could not be cleared.");
        }
    }

    /// The rings, for their file descriptors.
    #[must_use]
    pub fn rings(&self) -> &Rings {
        &self.rings
    }
}

/// Bytes behind a record that are fetched while it is handled: the header of the next one, and the payload that most have.
const FETCHED: usize = 448;

/// Fetches what lies behind an entry into the caches. A ring is memory that another processor wrote once and that nobody has looked at
/// since: waiting for it took a quarter of the time of a drain.
fn fetch_behind(entry: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE: usize = 64;
        let behind = entry.as_ptr_range().end;
        for line in (0..FETCHED).step_by(LINE) {
            // SAFETY: a hint. It reads nothing that the program sees, and an address that is not mapped is no fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(behind.wrapping_add(line).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (entry, FETCHED);
}

/// Return time of the entry at a ring's head, without a look at the rest of it; an entry that is too short for one comes first.
fn peek(ring: &mut RingBuf<MapData>) -> Option<u64> {
    let entry = ring.next()?;
    let time = entry.get(mem::offset_of!(RecordHeader, return_ns)..).and_then(<[u8]>::first_chunk);
    let time = time.map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    // An entry is consumed when it is dropped; forgotten, it stays at the head.
    mem::forget(entry);
    Some(time)
}
