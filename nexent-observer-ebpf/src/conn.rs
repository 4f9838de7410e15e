//! Connections: numbers at first sight, byte offsets of each direction, the end.

use nexent_observer_common::{
    counters::Counter,
    piece::Window,
    record::{RecordHeader, flag, kind},
    state::{Conn, ConnKey, conn_flag, verdict_slot, verdict_value},
};

use crate::{
    emit, flow, inflight,
    maps::{CONNS, NEXT_CONN, VERDICTS, add, count, write_head_cap, write_tail_cap},
};

/// `BPF_NOEXIST` of `bpf_map_update_elem` (include/uapi/linux/bpf.h).
pub const NO_EXIST: u64 = 1;

/// Key of a TLS object.
#[inline(always)]
pub fn key(tgid: u32, tls: u64) -> ConnKey {
    ConnKey { tls, tgid, zero: 0 }
}

/// The connection of a TLS object, numbered now if it was not known. `None`: the table is full (counted).
#[inline(always)]
pub fn of(key: &ConnKey) -> Option<*mut Conn> {
    if let Some(conn) = CONNS.get_ptr_mut(key) {
        return Some(conn);
    }
    make(key, 0);
    CONNS.get_ptr_mut(key)
}

/// Numbers a connection. One that has a number already keeps it.
#[inline(always)]
pub fn make(key: &ConnKey, flags: u32) {
    let Some(next) = NEXT_CONN.get_ptr_mut(0) else { return };
    // SAFETY: the slot is an aligned u64 of a map; all access to it is atomic.
    let id = unsafe { fetch_add(next, 1) } + 1;
    let conn = Conn { id, read_offset: 0, write_offset: 0, turn_written: 0, turn: 0, flags, socket: 0 };
    if CONNS.insert(key, &conn, NO_EXIST).is_err() && CONNS.get_ptr_mut(key).is_none() {
        count(Counter::ConnectionsFull);
    }
}

/// Adds to a word of a map, atomically over all CPUs, and gives the value before. In assembly, because Rust declares
/// no atomic read-modify-write for the BPF target; the instruction is `BPF_ATOMIC | BPF_FETCH` (kernel 5.12).
///
/// # Safety
/// `word` must point to an aligned word of a map.
#[inline(always)]
pub unsafe fn fetch_add(word: *mut u64, change: u64) -> u64 {
    let mut value = change;
    // SAFETY: by contract.
    unsafe {
        core::arch::asm!(
            "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
        );
    }
    value
}

/// Notes that a call of unknown size was lost on a connection that is known.
#[inline(always)]
pub fn lost_call(key: &ConnKey, flag: u32) {
    if let Some(conn) = CONNS.get_ptr_mut(key) {
        // SAFETY: the verifier checked the value; TLS objects are not used by two threads at once.
        unsafe { (*conn).flags |= flag };
    }
}

/// Whether user space said that the current turn is no LLM call.
#[inline(always)]
pub fn is_muted(conn: &Conn) -> bool {
    match VERDICTS.get(verdict_slot(conn.id)) {
        Some(value) => *value == verdict_value(conn.id, conn.turn),
        None => false,
    }
}

/// Begins a new turn if this write follows a read (or is the first).
#[inline(always)]
pub fn begin_write(conn: &mut Conn) {
    if conn.turn == 0 || conn.flags & conn_flag::READ_LAST != 0 {
        conn.turn = conn.turn.wrapping_add(1);
        conn.turn_written = 0;
        conn.flags &= !conn_flag::READ_LAST;
    }
}

/// Takes into account that `bytes` were read, and fills in what the record says of the connection. `None`: nothing is to be
/// copied, because user space said so.
#[inline(always)]
pub fn moved_in(conn: &mut Conn, header: &mut RecordHeader, bytes: u64) -> Option<()> {
    header.offset = conn.read_offset;
    conn.read_offset = conn.read_offset.wrapping_add(bytes);
    conn.flags |= conn_flag::READ_LAST;
    if is_muted(conn) {
        conn.flags |= conn_flag::READ_SKIPPED;
        add(Counter::SkippedBytes, bytes);
        return None;
    }
    header.conn = conn.id;
    header.turn = conn.turn;
    header.flags = history(conn.flags, conn_flag::READ_SKIPPED, conn_flag::READ_UNKNOWN);
    conn.flags &= !(conn_flag::READ_SKIPPED | conn_flag::READ_UNKNOWN);
    Some(())
}

/// The same of bytes that were written, and which of them are to be copied.
#[inline(always)]
pub fn moved_out(conn: &mut Conn, header: &mut RecordHeader, bytes: u64) -> Option<Window> {
    begin_write(conn);
    moved_out_of_turn(conn, header, bytes)
}

/// The same where the turn began with the call: there the answer may be read before the call returns, and its turn must be known by then.
#[inline(always)]
pub fn moved_out_of_turn(conn: &mut Conn, header: &mut RecordHeader, bytes: u64) -> Option<Window> {
    header.offset = conn.write_offset;
    let window = Window::of_write(conn.turn_written, write_head_cap(), write_tail_cap());
    conn.write_offset = conn.write_offset.wrapping_add(bytes);
    conn.turn_written = conn.turn_written.wrapping_add(bytes);
    if is_muted(conn) {
        conn.flags |= conn_flag::WRITE_SKIPPED;
        add(Counter::SkippedBytes, bytes);
        return None;
    }
    header.conn = conn.id;
    header.turn = conn.turn;
    header.flags = history(conn.flags, conn_flag::WRITE_SKIPPED, conn_flag::WRITE_UNKNOWN);
    conn.flags &= !(conn_flag::WRITE_SKIPPED | conn_flag::WRITE_UNKNOWN);
    Some(window)
}

/// Record flags from connection flags.
#[inline(always)]
fn history(conn_flags: u32, skipped: u32, unknown: u32) -> u16 {
    let mut flags = 0;
    if conn_flags & conn_flag::FROM_START != 0 {
        flags |= flag::FROM_START;
    }
    if conn_flags & skipped != 0 {
        flags |= flag::AFTER_SKIP;
    }
    if conn_flags & unknown != 0 {
        flags |= flag::AFTER_UNKNOWN_LOSS;
    }
    flags
}

/// Ends a connection and reports its final offsets, so that a loss at its very end shows too.
#[inline(always)]
pub fn retire(key: &ConnKey, pid_tgid: u64) -> Option<()> {
    // SAFETY: copied out at once.
    let conn = unsafe { *CONNS.get(key)? };
    let _ = CONNS.remove(key);
    flow::leave(&conn, pid_tgid);
    if conn.read_offset == 0 && conn.write_offset == 0 {
        return None;
    }
    let now = inflight::now();
    let (skipped, unknown) =
        (conn_flag::READ_SKIPPED | conn_flag::WRITE_SKIPPED, conn_flag::READ_UNKNOWN | conn_flag::WRITE_UNKNOWN);
    let header = RecordHeader {
        entry_ns: now,
        return_ns: now,
        conn: conn.id,
        offset: conn.read_offset,
        tgid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        len: 8,
        orig_len: 8,
        kind: kind::CLOSE,
        flags: history(conn.flags, skipped, unknown),
        turn: conn.turn,
    };
    count(if emit::note(&header, Some(conn.write_offset)) { Counter::ReadRecords } else { Counter::ReadLost });
    Some(())
}
