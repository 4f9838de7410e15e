//! Decodes the entries of the rings.

use nexent_observer_common::record::{Malformed, RecordHeader, flag, kind};
use nexent_observer_core::event::{ConnId, Direction, MonoNs, Record, RecordFlags, RecordKind, Stamp};

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
