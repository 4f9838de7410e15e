//! Stage 2: drains the two rings, decodes records, and counts what is none.

use std::mem;

use aya::maps::{MapData, RingBuf};
use nexent_observer_common::record::{Malformed, RecordHeader, flag, kind};
use nexent_observer_core::event::{ConnId, Direction, MonoNs, Record, RecordFlags, RecordKind, Stamp};

use crate::probe::kernel::Rings;

/// What comes out of the rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingEvent<'a> {
    /// Bytes of a connection, or its end.
    Record(Record<'a>),
    /// A process was born, changed or ended.
    Process(ProcessEvent),
}

/// Something happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessEvent {
    /// When.
    pub at: MonoNs,
    /// Process.
    pub pid: u32,
    /// What.
    pub kind: ProcessEventKind,
}

/// What happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEventKind {
    /// It forked.
    Fork {
        /// The child's pid.
        child: u32,
    },
    /// It runs another program.
    Exec,
    /// Its leader thread ended.
    Exit,
}

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

/// Decodes one entry of a ring.
///
/// # Errors
/// [`Malformed`].
pub fn decode(entry: &[u8]) -> Result<RingEvent<'_>, Malformed> {
    let (header, payload) = RecordHeader::parse(entry)?;
    let RecordHeader { entry_ns, return_ns, conn, offset, tgid, tid, orig_len, kind, flags, turn, .. } = header;
    let at = Stamp { entry: MonoNs(entry_ns), ret: MonoNs(return_ns) };
    let process = |kind| RingEvent::Process(ProcessEvent { at: at.ret, pid: tgid, kind });
    let record = |kind| RingEvent::Record(Record { conn: ConnId(conn), pid: tgid, tid, at, kind });
    let has = |bit| flags & bit != 0;
    let flags = RecordFlags {
        from_start: has(flag::FROM_START),
        capped: has(flag::CAPPED),
        fault: has(flag::FAULT),
        after_skip: has(flag::AFTER_SKIP),
        after_unknown_loss: has(flag::AFTER_UNKNOWN_LOSS),
    };
    let data = |dir| record(RecordKind::Data { dir, offset, turn, payload, len: u64::from(orig_len), flags });
    Ok(match kind {
        kind::READ => data(Direction::Read),
        kind::WRITE => data(Direction::Write),
        kind::CLOSE => {
            let write_end = payload.first_chunk::<8>().ok_or(Malformed::ShortPayload)?;
            record(RecordKind::Close { read_end: offset, write_end: u64::from_ne_bytes(*write_end), flags })
        }
        kind::FORK => process(ProcessEventKind::Fork { child: offset as u32 }),
        kind::EXEC => process(ProcessEventKind::Exec),
        kind::EXIT => process(ProcessEventKind::Exit),
        _ => return Err(Malformed::UnknownKind),
    })
}
