//! GnuTLS: `gnutls_record_send` and its sisters, of which the outermost call counts, `gnutls_record_uncork` and `gnutls_init`. Reads are
//! those of OpenSSL in shape (openssl.rs).
//!
//! `gnutls_record_send` jumps to `gnutls_record_send2` in the same frame, and `gnutls_record_uncork` sends again what earlier calls kept
//! back and counted. So a thread has one write in flight at most, kept with its stack pointer: whatever begins deeper is part of it.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_attach_cookie},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use nexent_observer_common::{
    cookie,
    counters::Counter,
    state::{Call, CallKey},
};

use crate::{
    flow,
    inflight::{self, RETURN_POPS, Returned},
    maps::{INFLIGHT, count},
    openssl::{begin, write_returned},
};

/// In the place of a stack pointer: the write that a thread has in flight.
const WRITING: u64 = 1;

/// Keeps a call that begins: as the write of its thread, if `outermost`, or under its own stack pointer.
#[inline(always)]
fn enter(ctx: &ProbeContext, outermost: bool) -> Option<()> {
    // SAFETY: the context is the one of this program.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.regs.cast()) };
    let pid_tgid = bpf_get_current_pid_tgid();
    if !inflight::is_target((pid_tgid >> 32) as u32, cookie) {
        return None;
    }
    let sp = inflight::stack_pointer(ctx.regs);
    let key = CallKey { pid_tgid, sp: if outermost { WRITING } else { sp } };
    if outermost {
        // SAFETY: only a word is read; only this thread uses this key.
        if let Some(outer) = unsafe { INFLIGHT.get(&key) } {
            // The stack grows down. One that does not lie above was left without a return.
            if sp < outer.length_at {
                return None;
            }
        }
    }
    let (tls, buf): (u64, u64) = (ctx.arg(0)?, ctx.arg(1)?);
    let call = Call { tls, buf, length_at: sp, entry_ns: inflight::now(), cookie, moved: 0, cut: 0 };
    if INFLIGHT.insert(&key, &call, 0).is_err() {
        count(Counter::InflightFull);
    }
    Some(())
}

/// Takes out the call that returns now, if it is known to this scope, and hands it to `then`.
#[inline(always)]
fn leave(ctx: &RetProbeContext, outermost: bool, then: impl FnOnce(u64, Call, *mut Call) -> Option<()>) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let sp = inflight::stack_pointer(ctx.regs).wrapping_sub(RETURN_POPS);
    let key = CallKey { pid_tgid, sp: if outermost { WRITING } else { sp } };
    let kept = INFLIGHT.get_ptr_mut(&key)?;
    // SAFETY: the verifier checked the value; only this thread uses this key.
    let call = unsafe { *kept };
    // SAFETY: the context is the one of this program.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.regs.cast()) };
    if call.length_at != sp || cookie::scope_of(call.cookie) != cookie::scope_of(cookie) {
        return None;
    }
    let _ = then(pid_tgid, call, kept);
    let _ = INFLIGHT.remove(&key);
    Some(())
}

/// Entry of a write.
#[uprobe]
pub fn gnutls_write_enter(ctx: ProbeContext) -> u32 {
    if enter(&ctx, true).is_some()
        && let Some(session) = ctx.arg(0)
    {
        let pid_tgid = bpf_get_current_pid_tgid();
        flow::write_begins(session, (pid_tgid >> 32) as u32, &flow::thread(pid_tgid));
    }
    0
}

/// Return of a write: the number of bytes, or a negative error.
#[uretprobe]
pub fn gnutls_write_return(ctx: RetProbeContext) -> u32 {
    let result: i64 = ctx.ret();
    let _ = leave(&ctx, true, |pid_tgid, call, kept| {
        let writer = flow::thread(pid_tgid);
        if result > 0 {
            let returned = Returned { call, kept, bytes: result as u64, pid_tgid, return_ns: inflight::now() };
            let _ = write_returned(&returned, &writer);
        }
        flow::write_over(&writer);
        Some(())
    });
    0
}

/// Entry of `gnutls_record_uncork`: what it sends was counted when it was kept back.
#[uprobe]
pub fn gnutls_uncork_enter(ctx: ProbeContext) -> u32 {
    let _ = enter(&ctx, true);
    0
}

/// Return of `gnutls_record_uncork`.
#[uretprobe]
pub fn gnutls_uncork_return(ctx: RetProbeContext) -> u32 {
    let _ = leave(&ctx, true, |_, _, _| Some(()));
    0
}

/// Entry of `gnutls_init(&session, flags)`.
#[uprobe]
pub fn gnutls_init_enter(ctx: ProbeContext) -> u32 {
    let _ = enter(&ctx, false);
    0
}

/// Return of `gnutls_init`: the session is at the first byte of its connection.
#[uretprobe]
pub fn gnutls_init_return(ctx: RetProbeContext) -> u32 {
    let result: i32 = ctx.ret();
    let _ = leave(&ctx, false, |pid_tgid, call, _| {
        if result != 0 {
            return None;
        }
        begin(inflight::read_user_u64(call.tls)?, pid_tgid)
    });
    0
}
