//! Keys and values of the kernel half's maps.

/// Key of a call in flight: the thread, and the stack pointer at entry, so that nested calls of one thread do not mix.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallKey {
    /// `bpf_get_current_pid_tgid`.
    pub pid_tgid: u64,
    /// Stack pointer at entry.
    pub sp: u64,
}

/// What is kept of a call between its entry and its return.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Address of the TLS object.
    pub tls: u64,
    /// Address of the caller's buffer.
    pub buf: u64,
    /// Address where the length will stand; unused when it is returned.
    pub length_at: u64,
    /// Time of entry, ns.
    pub entry_ns: u64,
    /// The entry's attach cookie.
    pub cookie: u64,
    /// While a long call is cut into records at its return: bytes moved, and bytes cut so far. Kept here because the
    /// verifier does not follow values through map memory: on the stack, every size of every piece would be a state.
    pub moved: u64,
    /// See `moved`.
    pub cut: u64,
}

/// Key of a connection: a TLS object of a process.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnKey {
    /// Address of the TLS object.
    pub tls: u64,
    /// Process.
    pub tgid: u32,
    /// Always 0.
    pub zero: u32,
}

/// State of a connection.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conn {
    /// Number of the connection, from 1; never reused.
    pub id: u64,
    /// Bytes read since first sight.
    pub read_offset: u64,
    /// Bytes written since first sight.
    pub write_offset: u64,
    /// Bytes written in this turn.
    pub turn_written: u64,
    /// Turn: grows at each write that follows a read; 0 until the first write.
    pub turn: u32,
    /// [`conn_flag`] bits.
    pub flags: u32,
}

/// Bits of [`Conn::flags`].
pub mod conn_flag {
    /// Seen being made.
    pub const FROM_START: u32 = 1;
    /// The last call that moved bytes was a read.
    pub const READ_LAST: u32 = 1 << 1;
    /// Reads were skipped since the last read record.
    pub const READ_SKIPPED: u32 = 1 << 2;
    /// Writes were skipped since the last write record.
    pub const WRITE_SKIPPED: u32 = 1 << 3;
    /// A read of unknown size was lost since the last read record.
    pub const READ_UNKNOWN: u32 = 1 << 4;
    /// A write of unknown size was lost since the last write record.
    pub const WRITE_UNKNOWN: u32 = 1 << 5;
}

/// A process that is observed. Its presence in the table arms its probes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Target {
    /// The scope whose probes count for it (`cookie::Scope`).
    pub scope: u32,
    /// Whether a forked child is observed from its first instruction (only with a filtered attachment).
    pub follow_forks: u32,
}

/// Slots of the verdict table; a power of two.
pub const VERDICT_SLOTS: u32 = 65_536;

/// Slot of a connection in the verdict table.
#[must_use]
#[inline(always)]
pub const fn verdict_slot(conn: u64) -> u32 {
    (conn as u32) & (VERDICT_SLOTS - 1)
}

/// Value of a slot that says: this turn of this connection is no LLM call. One aligned word, so that user space can set it
/// while the kernel half reads it. 0 never occurs for a real connection and turn, and says nothing.
#[must_use]
#[inline(always)]
pub const fn verdict_value(conn: u64, turn: u32) -> u64 {
    (conn << 16) | ((turn as u64) & 0xffff)
}

const _: () = assert!(size_of::<CallKey>() == 16);
const _: () = assert!(size_of::<Call>() == 56);
const _: () = assert!(size_of::<ConnKey>() == 16);
const _: () = assert!(size_of::<Conn>() == 40);
const _: () = assert!(size_of::<Target>() == 8);
const _: () = assert!(VERDICT_SLOTS.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_holds_for_one_turn_of_one_connection() {
        let value = verdict_value(70_000, 3);
        assert_ne!(value, 0);
        assert_ne!(value, verdict_value(70_000, 4));
        assert_ne!(value, verdict_value(70_000 + u64::from(VERDICT_SLOTS), 3), "same slot, other connection");
        assert_eq!(verdict_slot(70_000), verdict_slot(70_000 + u64::from(VERDICT_SLOTS)));
    }
}
