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

    /// The rings, for their file descriptors.
    #[must_use]
    pub fn rings(&self) -> &Rings {
        &self.rings
    }
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
