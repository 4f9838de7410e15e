//! Plain HTTP: the system calls that move bytes on sockets. Their tracepoints are attached only while a target needs them, because
//! every system call of the host pays for that (docs/overhead.md).
//!
//! At entry it is not known whether a descriptor is a socket; `socket.rs` says so between entry and exit.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_probe_read_user},
    macros::tracepoint,
    programs::TracePointContext,
};
use nexent_observer_common::{
    counters::Counter,
    piece::Window,
    record::{RecordHeader, kind},
    state::{SockCall, call_shape, socket_key},
};

use crate::{
    conn, emit, inflight,
    maps::{CONNS, SYSCALLS, TARGETS, count},
    socket,
};

/// Positions in the context of these tracepoints: registers, number, then the arguments or the result, a word each
/// (`perf_call_bpf_enter` and `perf_call_bpf_exit` in kernel/trace/trace_syscalls.c).
const FIRST: usize = 2;

#[inline(always)]
fn word(ctx: &TracePointContext, at: usize) -> u64 {
    use aya_ebpf::EbpfContext;
    // SAFETY: the context of these tracepoints has this many words; the verifier checks it.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().cast::<u64>().add(at)) }
}

/// Whether the sockets of this process are looked at.
#[inline(always)]
pub fn is_plain_target(tgid: u32) -> bool {
    // SAFETY: only a word is read; a racing removal reads a stale word at worst.
    match unsafe { TARGETS.get(&tgid) } {
        Some(target) => target.plain != 0,
        None => false,
    }
}

/// Entry of `read`, `write`, `recvfrom`, `sendto`: (descriptor, buffer, length).
#[tracepoint]
pub fn plain_enter_flat(ctx: TracePointContext) -> u32 {
    let _ = enter(&ctx, call_shape::FLAT);
    0
}

/// Entry of `readv`, `writev`: (descriptor, vectors, number).
#[tracepoint]
pub fn plain_enter_vector(ctx: TracePointContext) -> u32 {
    let _ = enter(&ctx, call_shape::VECTOR);
    0
}

/// Entry of `recvmsg`, `sendmsg`: (descriptor, message).
#[tracepoint]
pub fn plain_enter_message(ctx: TracePointContext) -> u32 {
    let _ = enter(&ctx, call_shape::MESSAGE);
    0
}

#[inline(always)]
fn enter(ctx: &TracePointContext, shape: u32) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    if !is_plain_target((pid_tgid >> 32) as u32) {
        return None;
    }
    let second = word(ctx, FIRST + 1);
    let third = if shape == call_shape::MESSAGE { 0 } else { word(ctx, FIRST + 2) };
    let call = SockCall { entry_ns: inflight::now(), at: second, count: third, shape, ..SockCall::default() };
    if SYSCALLS.insert(&pid_tgid, &call, 0).is_err() {
        count(Counter::InflightFull);
    }
    Some(())
}

/// Exit of a call that reads.
#[tracepoint]
pub fn plain_exit_read(ctx: TracePointContext) -> u32 {
    let _ = leave(&ctx, read);
    0
}

/// Exit of a call that writes.
#[tracepoint]
pub fn plain_exit_write(ctx: TracePointContext) -> u32 {
    let _ = leave(&ctx, write);
    0
}

#[inline(always)]
fn leave(
    ctx: &TracePointContext,
    emit: impl FnOnce(&mut RecordHeader, *mut SockCall, u64) -> Option<()>,
) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let call = SYSCALLS.get_ptr_mut(&pid_tgid)?;
    // SAFETY: the verifier checked the value; only this thread uses this key.
    let (cookie, entry_ns) = unsafe { ((*call).cookie, (*call).entry_ns) };
    let bytes = word(ctx, FIRST) as i64;
    if cookie != 0 && bytes > 0 {
        let mut header = RecordHeader {
            entry_ns,
            return_ns: inflight::now(),
            tgid: (pid_tgid >> 32) as u32,
            tid: pid_tgid as u32,
            ..RecordHeader::default()
        };
        let _ = emit(&mut header, call, bytes as u64);
    }
    let _ = SYSCALLS.remove(&pid_tgid);
    Some(())
}

#[inline(always)]
fn read(header: &mut RecordHeader, call: *mut SockCall, bytes: u64) -> Option<()> {
    header.kind = kind::READ;
    // SAFETY: the call's own value in the map.
    let (cookie, flags) = unsafe { ((*call).cookie, (*call).flags) };
    let conn = CONNS.get_ptr_mut(&conn::key(header.tgid, socket_key(cookie)))?;
    // SAFETY: the verifier checked the value. Two threads that read one socket at once take turns in the kernel, and a count that
    // they lose to each other becomes a contradiction that the core counts.
    let conn = unsafe { &mut *conn };
    conn::moved_in(conn, header, bytes)?;
    if flags & socket::MSG_TRUNC != 0 {
        return None; // taken from the socket, but not put anywhere: the next record shows the gap
    }
    first_buffer(call, bytes)?;
    emit::gathered::<emit::ToReads>(header, call, bytes, Window::ALL);
    Some(())
}

#[inline(always)]
fn write(header: &mut RecordHeader, call: *mut SockCall, bytes: u64) -> Option<()> {
    header.kind = kind::WRITE;
    // SAFETY: the call's own value in the map.
    let cookie = unsafe { (*call).cookie };
    let conn = CONNS.get_ptr_mut(&conn::key(header.tgid, socket_key(cookie)))?;
    // SAFETY: as for reads.
    let conn = unsafe { &mut *conn };
    let window = conn::moved_out(conn, header, bytes)?;
    first_buffer(call, bytes)?;
    emit::gathered::<emit::ToWrites>(header, call, bytes, window);
    Some(())
}

/// Finds the first buffer of a call that moved `bytes`. What is behind it stands in `at` and `count` then.
#[inline(always)]
pub fn first_buffer(call: *mut SockCall, bytes: u64) -> Option<()> {
    // SAFETY: the call's own value in the map.
    let (shape, at) = unsafe { ((*call).shape, (*call).at) };
    if shape == call_shape::FLAT {
        // SAFETY: as above.
        unsafe {
            (*call).base = at;
            (*call).left = bytes;
            (*call).count = 0;
        }
        return Some(());
    }
    if shape == call_shape::MESSAGE {
        // `msg_iov` and `msg_iovlen` behind the name and its length (struct user_msghdr, include/linux/socket.h).
        let mut vectors = [0u64; 2];
        let from = at.wrapping_add(16) as *const core::ffi::c_void;
        // SAFETY: the helper checks the user address and writes 16 bytes to a local.
        if unsafe { bpf_probe_read_user((&raw mut vectors).cast(), 16, from) } != 0 {
            count(Counter::UserFault);
            return None;
        }
        // SAFETY: as above.
        unsafe {
            (*call).at = vectors[0];
            (*call).count = vectors[1];
        }
    }
    // SAFETY: as above. An array of vectors from here on, whatever it was.
    unsafe { (*call).shape = call_shape::VECTOR };
    emit::next_vector(call)
}
