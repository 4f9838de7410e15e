//! OpenSSL, LibreSSL and BoringSSL with symbols: `SSL_read`, `SSL_read_ex`, `SSL_write`, `SSL_write_ex` or the inner functions
//! behind them, and `SSL_new`, `SSL_free`, `SSL_clear`. Where each probe sits is decided in user space (probe/hookpoint.rs).

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_attach_cookie},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use nexent_observer_common::{
    piece::Window,
    record::{RecordHeader, kind},
    state::{CallKey, conn_flag},
};

use crate::{
    conn, emit, flow,
    inflight::{self, Returned},
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
    if inflight::enter(&ctx, conn_flag::WRITE_UNKNOWN).is_some()
        && let Some(tls) = ctx.arg(0)
    {
        let pid_tgid = bpf_get_current_pid_tgid();
        flow::write_begins(tls, (pid_tgid >> 32) as u32, &flow::thread(pid_tgid));
    }
    0
}

/// Return of a read.
#[uretprobe]
pub fn tls_read_return(ctx: RetProbeContext) -> u32 {
    let _ = inflight::leave(&ctx, conn_flag::READ_UNKNOWN, |returned| read_returned(returned));
    0
}

/// Return of a write.
#[uretprobe]
pub fn tls_write_return(ctx: RetProbeContext) -> u32 {
    let writer = flow::thread(bpf_get_current_pid_tgid());
    let _ = inflight::leave(&ctx, conn_flag::WRITE_UNKNOWN, |returned| write_returned(returned, &writer));
    flow::write_over(&writer);
    0
}

#[inline(always)]
pub fn header_of(returned: &Returned, kind: u16) -> RecordHeader {
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

/// What a read that returned leaves. Pass it in a closure: as a function value it is not inlined, and the name of a function that stands by
/// itself differs with the path of the checkout (`xtask build` refuses it).
#[inline(always)]
pub fn read_returned(returned: &Returned) -> Option<()> {
    let mut header = header_of(returned, kind::READ);
    let key = conn::key(header.tgid, returned.call.tls);
    // SAFETY: the verifier checked the value; TLS objects are not read by two threads at once.
    let conn = unsafe { &mut *conn::of(&key)? };
    conn::moved_in(conn, &mut header, returned.bytes)?;
    emit::call::<emit::ToReads>(&header, returned, Window::ALL);
    Some(())
}

/// What a write of this thread or goroutine that returned leaves; as [`read_returned`].
#[inline(always)]
pub fn write_returned(returned: &Returned, writer: &CallKey) -> Option<()> {
    let key = conn::key((returned.pid_tgid >> 32) as u32, returned.call.tls);
    // SAFETY: as for reads.
    conn::begin_write(unsafe { &mut *conn::of(&key)? });
    begun_write_returned(returned, writer)
}

/// The same of a write whose turn began when it was called.
#[inline(always)]
pub fn begun_write_returned(returned: &Returned, writer: &CallKey) -> Option<()> {
    let mut header = header_of(returned, kind::WRITE);
    let key = conn::key(header.tgid, returned.call.tls);
    // SAFETY: as for reads.
    let conn = unsafe { &mut *conn::of(&key)? };
    if conn.turn == 0 {
        // Its handshake was inside this write, or it was closed meanwhile: what was begun is gone.
        conn::begin_write(conn);
    }
    let Some(window) = conn::moved_out_of_turn(conn, &mut header, returned.bytes) else {
        flow::wrote_unheard(conn);
        return None;
    };
    flow::wrote(conn, &key, writer, &mut header, returned.bytes);
    emit::call::<emit::ToWrites>(&header, returned, window);
    Some(())
}

/// `SSL_free`: the connection ends.
#[uprobe]
pub fn tls_free_enter(ctx: ProbeContext) -> u32 {
    let _ = with_target(ctx.regs.cast(), |pid_tgid| {
        conn::retire(&conn::key((pid_tgid >> 32) as u32, ctx.arg(0)?), pid_tgid)
    });
    0
}

/// `SSL_clear`: the object begins anew. The handshake itself calls it first (state_machine in ssl/statem/statem.c), so an object
/// met here is at the first byte of its connection.
#[uprobe]
pub fn tls_clear_enter(ctx: ProbeContext) -> u32 {
    let _ = with_target(ctx.regs.cast(), |pid_tgid| begin(ctx.arg(0)?, pid_tgid));
    0
}

/// `SSL_new` returned: whatever was known of this address is over, and the new connection is known from its first byte.
#[uretprobe]
pub fn tls_new_return(ctx: RetProbeContext) -> u32 {
    let _ = with_target(ctx.regs.cast(), |pid_tgid| begin(ctx.ret(), pid_tgid));
    0
}

/// Runs `then` with the thread's pid and tgid if its process is a target of this attachment.
#[inline(always)]
pub fn with_target(ctx: *mut core::ffi::c_void, then: impl FnOnce(u64) -> Option<()>) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    // SAFETY: the context is the one of this program.
    let cookie = unsafe { bpf_get_attach_cookie(ctx) };
    if inflight::is_target((pid_tgid >> 32) as u32, cookie) { then(pid_tgid) } else { None }
}

/// A TLS object is at the first byte of a connection.
#[inline(always)]
pub fn begin(tls: u64, pid_tgid: u64) -> Option<()> {
    if tls == 0 {
        return None;
    }
    let key = conn::key((pid_tgid >> 32) as u32, tls);
    let _ = conn::retire(&key, pid_tgid);
    conn::make(&key, conn_flag::FROM_START);
    Some(())
}
