//! Connections: numbers at first sight, byte offsets of each direction, the end.

use nexent_observer_common::{
    counters::Counter,
    state::{Conn, ConnKey, conn_flag, verdict_slot, verdict_value},
};

use crate::maps::{CONNS, NEXT_CONN, VERDICTS, count};

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
    let id = unsafe { fetch_add_one(next) } + 1;
    let conn = Conn { id, read_offset: 0, write_offset: 0, turn_written: 0, turn: 0, flags };
    if CONNS.insert(key, &conn, NO_EXIST).is_err() && CONNS.get_ptr_mut(key).is_none() {
        count(Counter::ConnectionsFull);
    }
}

/// Adds one to a word of a map, atomically over all CPUs, and gives the value before. In assembly, because Rust declares
/// no atomic read-modify-write for the BPF target; the instruction is `BPF_ATOMIC | BPF_FETCH` (kernel 5.12).
///
/// # Safety
/// `word` must point to an aligned word of a map.
#[inline(always)]
unsafe fn fetch_add_one(word: *mut u64) -> u64 {
    let mut value = 1u64;
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
