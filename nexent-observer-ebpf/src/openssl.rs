//! OpenSSL, LibreSSL and BoringSSL with symbols: `SSL_read`, `SSL_read_ex`, `SSL_write`, `SSL_write_ex` or the inner functions
//! behind them, and `SSL_new`, `SSL_free`, `SSL_clear`. Where each probe sits is decided in user space (probe/hookpoint.rs).

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_attach_cookie},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use nexent_observer_common::{
    counters::Counter,
    piece::Window,
    record::{RecordHeader, flag, kind},
    state::{ConnKey, conn_flag},
};

use crate::{
    conn, emit,
    inflight::{self, Returned},
    maps::{CONNS, add, count, write_head_cap, write_tail_cap},
};

/// Entry of a read.
#[uprobe]
pub fn tls_read_enter(ctx: ProbeContext) -> u32 {
    let _ = inflight::enter(&ctx, conn_flag::READ_UNKNOWN);
    0
}

/// Entry of a write.
#[uprobe]
pub fn tls_write_enter(ctx: ProbeContext) -> u32 {
    let _ = inflight::enter(&ctx, conn_flag::WRITE_UNKNOWN);
    0
}

/// Return of a read.
#[uretprobe]
pub fn tls_read_return(ctx: RetProbeContext) -> u32 {
    let _ = inflight::leave(&ctx, conn_flag::READ_UNKNOWN, read_returned);
    0
}

/// Return of a write.
#[uretprobe]
pub fn tls_write_return(ctx: RetProbeContext) -> u32 {
    let _ = inflight::leave(&ctx, conn_flag::WRITE_UNKNOWN, write_returned);
    0
}

#[inline(always)]
fn header_of(returned: &Returned, kind: u16) -> RecordHeader {
    RecordHeader {
        entry_ns: returned.call.entry_ns,
        return_ns: returned.return_ns,
        conn: 0,
        offset: 0,
        tgid: (returned.pid_tgid >> 32) as u32,
        tid: returned.pid_tgid as u32,
        len: 0,
        orig_len: 0,
        kind,
        flags: 0,
        turn: 0,
    }
}

#[inline(always)]
fn read_returned(returned: &Returned) -> Option<()> {
    let mut header = header_of(returned, kind::READ);
    let key = conn::key(header.tgid, returned.call.tls);
    // SAFETY: the verifier checked the value; TLS objects are not read by two threads at once.
    let conn = unsafe { &mut *conn::of(&key)? };
    header.offset = conn.read_offset;
    conn.read_offset = conn.read_offset.wrapping_add(returned.bytes);
    conn.flags |= conn_flag::READ_LAST;
    if conn::is_muted(conn) {
        conn.flags |= conn_flag::READ_SKIPPED;
        add(Counter::SkippedBytes, returned.bytes);
        return None;
    }
    header.conn = conn.id;
    header.turn = conn.turn;
    header.flags = history(conn.flags, conn_flag::READ_SKIPPED, conn_flag::READ_UNKNOWN);
    conn.flags &= !(conn_flag::READ_SKIPPED | conn_flag::READ_UNKNOWN);
    emit::call::<emit::ToReads>(&header, returned, Window::ALL);
    Some(())
}

#[inline(always)]
fn write_returned(returned: &Returned) -> Option<()> {
    let mut header = header_of(returned, kind::WRITE);
    let key = conn::key(header.tgid, returned.call.tls);
    // SAFETY: as for reads.
    let conn = unsafe { &mut *conn::of(&key)? };
    conn::begin_write(conn);
    header.offset = conn.write_offset;
    let window = Window::of_write(conn.turn_written, write_head_cap(), write_tail_cap());
    conn.write_offset = conn.write_offset.wrapping_add(returned.bytes);
    conn.turn_written = conn.turn_written.wrapping_add(returned.bytes);
    if conn::is_muted(conn) {
        conn.flags |= conn_flag::WRITE_SKIPPED;
        add(Counter::SkippedBytes, returned.bytes);
        return None;
    }
    header.conn = conn.id;
    header.turn = conn.turn;
    header.flags = history(conn.flags, conn_flag::WRITE_SKIPPED, conn_flag::WRITE_UNKNOWN);
    conn.flags &= !(conn_flag::WRITE_SKIPPED | conn_flag::WRITE_UNKNOWN);
    emit::call::<emit::ToWrites>(&header, returned, window);
    Some(())
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

/// `SSL_free` or `SSL_clear`: the connection ends. The argument is the TLS object.
#[uprobe]
pub fn tls_end(ctx: ProbeContext) -> u32 {
    let _ = end(&ctx);
    0
}

#[inline(always)]
fn end(ctx: &ProbeContext) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    // SAFETY: the context is the one of this program.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.regs.cast()) };
    if !inflight::is_target(tgid, cookie) {
        return None;
    }
    retire(&conn::key(tgid, ctx.arg(0)?), pid_tgid)
}

/// `SSL_new` returned: whatever was known of this address is over, and the new connection is known from its first byte.
#[uretprobe]
pub fn tls_new_return(ctx: RetProbeContext) -> u32 {
    let _ = made(&ctx);
    0
}

#[inline(always)]
fn made(ctx: &RetProbeContext) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.regs.cast()) };
    let tls: u64 = ctx.ret();
    if tls == 0 || !inflight::is_target(tgid, cookie) {
        return None;
    }
    let key = conn::key(tgid, tls);
    let _ = retire(&key, pid_tgid);
    conn::make(&key, conn_flag::FROM_START);
    Some(())
}

/// Ends a connection and reports its final offsets, so that a loss at its very end shows too.
#[inline(always)]
fn retire(key: &ConnKey, pid_tgid: u64) -> Option<()> {
    // SAFETY: copied out at once.
    let conn = unsafe { *CONNS.get(key)? };
    let _ = CONNS.remove(key);
    if conn.read_offset == 0 && conn.write_offset == 0 {
        return None;
    }
    let now = inflight::now();
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
        flags: 0,
        turn: conn.turn,
    };
    count(if emit::note(&header, Some(conn.write_offset)) { Counter::ReadRecords } else { Counter::ReadLost });
    Some(())
}
