//! Go's `crypto/tls`: `(*Conn).Read` and `(*Conn).Write` at their stack check and at each `RET`, `(*Conn).Close`, and the two handshakes
//! by which a connection begins. Where each probe sits is decided in user space (probe/go).
//!
//! A return probe would write into a stack that Go moves, so there is none. A call is known by its goroutine and by how deep in
//! the goroutine's stack its frame lies: both outlive a move of the stack and a change of the thread. Arguments are where Go's
//! register ABI puts them (src/cmd/compile/abi-internal.md, since Go 1.17).
//!
//! One goroutine writes a connection and another reads it. The answer may be read before the write that asked for it returns, so a turn
//! begins where the write does.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_attach_cookie, bpf_probe_read_user},
    },
    macros::uprobe,
    programs::ProbeContext,
};
use nexent_observer_common::{
    cookie,
    counters::Counter,
    state::{Call, CallKey, conn_flag},
};

use crate::{
    conn, flow,
    inflight::{self, Returned},
    maps::{INFLIGHT, count},
    openssl::{begin, begun_write_returned, read_returned, with_target},
};

/// A register of Go's ABI. Volatile reads, for the reason given in inflight.rs.
macro_rules! register {
    ($name:ident, $x86:ident, $arm:expr) => {
        #[inline(always)]
        fn $name(regs: *mut pt_regs) -> u64 {
            // SAFETY: the context of a uprobe is a pt_regs.
            #[cfg(bpf_target_arch = "x86_64")]
            unsafe {
                core::ptr::read_volatile(&raw const (*regs).$x86)
            }
            // SAFETY: the context of a uprobe is a user_pt_regs.
            #[cfg(bpf_target_arch = "aarch64")]
            unsafe {
                core::ptr::read_volatile(&raw const (*regs).regs[$arm])
            }
        }
    };
}
register!(receiver, rax, 0);
register!(slice_start, rbx, 1);
register!(slice_len, rcx, 2);
register!(result, rax, 0);
register!(goroutine, r14, 28);

/// Where a goroutine's stack lies: the first two words of `runtime.g` (src/runtime/runtime2.go, `stack.lo` and `stack.hi`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Stack {
    lo: u64,
    hi: u64,
}

#[inline(always)]
fn stack_of(g: u64) -> Option<Stack> {
    let mut stack = Stack { lo: 0, hi: 0 };
    // SAFETY: the helper checks the user address and writes 16 bytes to a local.
    let read = unsafe { bpf_probe_read_user((&raw mut stack).cast(), 16, g as *const core::ffi::c_void) };
    (read == 0).then_some(stack)
}

/// Key of a call: the frame, by its distance from the top of its goroutine's stack.
#[inline(always)]
fn key_of(pid_tgid: u64, g: u64, stack: &Stack, sp: u64) -> CallKey {
    CallKey { pid_tgid: (pid_tgid & 0xffff_ffff_0000_0000) | (stack.hi.wrapping_sub(sp) & 0xffff_ffff), sp: g }
}

/// What `Call::length_at` says of a Go call: the buffer is an address, or a distance from the top of the stack.
const ON_HEAP: u64 = 0;
const ON_STACK: u64 = 1;

#[inline(always)]
fn enter(ctx: &ProbeContext) -> Option<()> {
    // SAFETY: the context is the one of this program.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.regs.cast()) };
    let pid_tgid = bpf_get_current_pid_tgid();
    if !inflight::is_target((pid_tgid >> 32) as u32, cookie) {
        return None;
    }
    let g = goroutine(ctx.regs);
    let Some(stack) = stack_of(g) else {
        count(Counter::UserFault);
        return None;
    };
    let (start, len) = (slice_start(ctx.regs), slice_len(ctx.regs));
    let (buf, place) =
        if start >= stack.lo && start < stack.hi { (stack.hi.wrapping_sub(start), ON_STACK) } else { (start, ON_HEAP) };
    let call =
        Call { tls: receiver(ctx.regs), buf, length_at: place, entry_ns: inflight::now(), cookie, moved: len, cut: 0 };
    // A function that grows its stack begins again from its first instruction: the same frame is entered twice.
    if INFLIGHT.insert(&key_of(pid_tgid, g, &stack, inflight::stack_pointer(ctx.regs)), &call, 0).is_err() {
        count(Counter::InflightFull);
        return None;
    }
    Some(())
}

#[inline(always)]
fn leave(ctx: &ProbeContext, unknown_flag: u32, emit: impl FnOnce(&Returned) -> Option<()>) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    // SAFETY: the context is the one of this program.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.regs.cast()) };
    if !inflight::is_target(tgid, cookie) {
        return None;
    }
    let g = goroutine(ctx.regs);
    let stack = stack_of(g)?;
    let key = key_of(pid_tgid, g, &stack, inflight::stack_pointer(ctx.regs));
    let kept = INFLIGHT.get_ptr_mut(&key)?;
    // SAFETY: the verifier checked the value; only this goroutine uses this key.
    let mut call = unsafe { *kept };
    if cookie::scope_of(call.cookie) != cookie::scope_of(cookie) {
        return None;
    }
    let bytes = result(ctx.regs);
    if bytes != 0 && bytes <= call.moved {
        if call.length_at == ON_STACK {
            call.buf = stack.hi.wrapping_sub(call.buf);
        }
        let _ = emit(&Returned { call, kept, bytes, pid_tgid, return_ns: inflight::now() });
    } else if bytes != 0 {
        // More than the slice holds: not the function that it was taken for, or an ABI that is not known.
        count(Counter::UserFault);
        conn::lost_call(&conn::key(tgid, call.tls), unknown_flag);
    }
    let _ = INFLIGHT.remove(&key);
    Some(())
}

/// Stack check of `crypto/tls.(*Conn).Read`.
#[uprobe]
pub fn go_read_enter(ctx: ProbeContext) -> u32 {
    let _ = enter(&ctx);
    0
}

/// A `RET` of `crypto/tls.(*Conn).Read`.
#[uprobe]
pub fn go_read_return(ctx: ProbeContext) -> u32 {
    let _ = leave(&ctx, conn_flag::READ_UNKNOWN, |returned| read_returned(returned));
    0
}

/// Stack check of `crypto/tls.(*Conn).Write`.
#[uprobe]
pub fn go_write_enter(ctx: ProbeContext) -> u32 {
    if enter(&ctx).is_some() {
        let pid_tgid = bpf_get_current_pid_tgid();
        let writer = flow::goroutine(pid_tgid, goroutine(ctx.regs));
        let (tls, tgid) = (receiver(ctx.regs), (pid_tgid >> 32) as u32);
        if let Some(conn) = conn::of(&conn::key(tgid, tls)) {
            // SAFETY: the verifier checked the value; crypto/tls has one write at a time on a connection.
            conn::begin_write(unsafe { &mut *conn });
        }
        flow::write_begins(tls, tgid, &writer);
    }
    0
}

/// A `RET` of `crypto/tls.(*Conn).Write`.
#[uprobe]
pub fn go_write_return(ctx: ProbeContext) -> u32 {
    let writer = flow::goroutine(bpf_get_current_pid_tgid(), goroutine(ctx.regs));
    let _ = leave(&ctx, conn_flag::WRITE_UNKNOWN, |returned| begun_write_returned(returned, &writer));
    flow::write_over(&writer);
    0
}

/// Stack check of `crypto/tls.(*Conn).clientHandshake` or `serverHandshake`: the connection is at its first byte.
#[uprobe]
pub fn go_begin_enter(ctx: ProbeContext) -> u32 {
    let _ = with_target(ctx.regs.cast(), |pid_tgid| begin(receiver(ctx.regs), pid_tgid));
    0
}

/// Stack check of `crypto/tls.(*Conn).Close`: the connection ends.
#[uprobe]
pub fn go_close_enter(ctx: ProbeContext) -> u32 {
    let _ = with_target(ctx.regs.cast(), |pid_tgid| {
        conn::retire(&conn::key((pid_tgid >> 32) as u32, receiver(ctx.regs)), pid_tgid)
    });
    0
}
