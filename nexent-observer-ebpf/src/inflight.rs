//! Calls between their entry and their return.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_attach_cookie, generated::bpf_ktime_get_ns},
    programs::{ProbeContext, RetProbeContext},
};
use nexent_observer_common::{
    cookie,
    counters::Counter,
    state::{Call, CallKey},
};

use crate::{
    conn,
    maps::{INFLIGHT, TARGETS, count},
};

/// Cookie of the attachment that fired.
#[inline(always)]
pub fn attach_cookie(ctx: *mut core::ffi::c_void) -> u64 {
    // SAFETY: `ctx` is the context that the kernel passed to this program.
    unsafe { bpf_get_attach_cookie(ctx) }
}

/// Time of the kernel, CLOCK_MONOTONIC ns.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments, always allowed.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether the current process is observed through the scope of this attachment.
#[inline(always)]
pub fn is_target(tgid: u32, cookie: u64) -> bool {
    // SAFETY: only a word is read; a racing removal reads a stale word at worst.
    match unsafe { TARGETS.get(&tgid) } {
        Some(target) => u64::from(target.scope) == cookie::scope_of(cookie),
        None => false,
    }
}

#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn stack_pointer(regs: *mut aya_ebpf::bindings::pt_regs) -> u64 {
    // SAFETY: the context of a uprobe is a pt_regs.
    unsafe { (*regs).rsp }
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn stack_pointer(regs: *mut aya_ebpf::bindings::pt_regs) -> u64 {
    // SAFETY: the context of a uprobe is a user_pt_regs.
    unsafe { (*regs).sp }
}

/// The 4th argument and the next. Volatile reads: merged into one read at a computed offset they would be "modified ctx" to
/// the verifier.
macro_rules! argument {
    ($name:ident, $x86:ident, $arm:literal) => {
        #[inline(always)]
        pub fn $name(regs: *mut aya_ebpf::bindings::pt_regs) -> u64 {
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
argument!(fourth_argument, rcx, 3);
argument!(fifth_argument, r8, 4);
argument!(sixth_argument, r9, 5);
#[cfg(bpf_target_arch = "aarch64")]
argument!(seventh_argument, r9, 6);
#[cfg(bpf_target_arch = "aarch64")]
argument!(eighth_argument, r9, 7);

/// Bytes that a return takes from the stack: the return address on x86_64 (measured: 1000 of 1000), nothing on aarch64.
#[cfg(bpf_target_arch = "x86_64")]
pub const RETURN_POPS: u64 = 8;
#[cfg(bpf_target_arch = "aarch64")]
pub const RETURN_POPS: u64 = 0;

/// Keeps a call that begins, if its process is a target of this attachment. `unknown_flag` marks the connection when the
/// call cannot be kept, or when an earlier call of the same frame never returned.
#[inline(always)]
pub fn enter(ctx: &ProbeContext, unknown_flag: u32) -> Option<()> {
    let cookie = attach_cookie(ctx.regs.cast());
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if !is_target(tgid, cookie) {
        return None;
    }
    let tls: u64 = ctx.arg(0)?;
    let buf: u64 = ctx.arg(1)?;
    let (fourth, fifth) = (fourth_argument(ctx.regs), fifth_argument(ctx.regs));
    let length_at = match cookie::length_of(cookie) {
        3 => fourth,
        4 => fifth,
        _ => 0,
    };
    let key = CallKey { pid_tgid, sp: stack_pointer(ctx.regs) };
    let call = Call { tls, buf, length_at, entry_ns: now(), cookie, moved: 0, cut: 0 };
    if INFLIGHT.insert(&key, &call, conn::NO_EXIST).is_err() {
        // Either the frame is known (its return was missed, as by longjmp) or the table is full.
        let known = INFLIGHT.get_ptr(&key).is_some();
        count(if known { Counter::ReturnMissed } else { Counter::InflightFull });
        conn::lost_call(&conn::key(tgid, tls), unknown_flag);
        if known {
            let _ = INFLIGHT.insert(&key, &call, 0);
        }
    }
    Some(())
}

/// A call that returned, and how many bytes it moved (at least 1).
pub struct Returned {
    /// What was kept at entry.
    pub call: Call,
    /// The same in the map, until [`leave`] removes it.
    pub kept: *mut Call,
    /// Bytes moved.
    pub bytes: u64,
    /// Process and thread.
    pub pid_tgid: u64,
    /// Time of the return, ns.
    pub return_ns: u64,
}

/// Hands the call that returns now to `emit`, if it is known to this scope and moved bytes, and forgets it. `unknown_flag` marks
/// the connection when the number of bytes cannot be read.
#[inline(always)]
pub fn leave(ctx: &RetProbeContext, unknown_flag: u32, emit: impl FnOnce(&Returned) -> Option<()>) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let key = CallKey { pid_tgid, sp: stack_pointer(ctx.regs).wrapping_sub(RETURN_POPS) };
    let kept = INFLIGHT.get_ptr_mut(&key)?;
    // SAFETY: the verifier checked the value; only this thread uses this key.
    let call = unsafe { *kept };
    if cookie::scope_of(call.cookie) != cookie::scope_of(attach_cookie(ctx.regs.cast())) {
        return None;
    }
    match moved(ctx.ret(), &call) {
        Some(0) => {}
        Some(bytes) => {
            let _ = emit(&Returned { call, kept, bytes, pid_tgid, return_ns: now() });
        }
        None => {
            count(Counter::UserFault);
            conn::lost_call(&conn::key((pid_tgid >> 32) as u32, call.tls), unknown_flag);
        }
    }
    let _ = INFLIGHT.remove(&key);
    Some(())
}

/// Bytes that a call moved, by its result; 0 when it failed (after which the length pointer is stale). `None` when the
/// length could not be read.
#[inline(always)]
fn moved(result: i32, call: &Call) -> Option<u64> {
    if result <= 0 {
        return Some(0);
    }
    if cookie::length_of(call.cookie) == 0 {
        return Some(result as u64);
    }
    read_user_u64(call.length_at)
}

#[inline(always)]
pub fn read_user_u64(at: u64) -> Option<u64> {
    let mut value = 0u64;
    // SAFETY: the helper checks the user address and writes 8 bytes to a local.
    let result = unsafe {
        aya_ebpf::helpers::generated::bpf_probe_read_user((&raw mut value).cast(), 8, at as *const core::ffi::c_void)
    };
    (result == 0).then_some(value)
}
