//! In-process hooks: a function that a library for developers calls with a few words about what it is about to do (docs/hooks.md).

use aya_ebpf::{macros::uprobe, programs::ProbeContext};
use nexent_observer_common::record::{MAX_ANNOUNCEMENT, RecordHeader, kind};

use crate::{emit, inflight, openssl::with_target};

/// Entry of `nexent_observer_announce(text, len)`.
#[uprobe]
pub fn hook_announce_enter(ctx: ProbeContext) -> u32 {
    let _ = with_target(ctx.regs.cast(), |pid_tgid| announce(&ctx, pid_tgid));
    0
}

/// Puts the text into the ring of writes: it speaks of the write that the same thread makes next, and order is kept there.
#[inline(always)]
fn announce(ctx: &ProbeContext, pid_tgid: u64) -> Option<()> {
    let (text, len): (u64, u64) = (ctx.arg(0)?, ctx.arg(1)?);
    let now = inflight::now();
    let copied = if len < MAX_ANNOUNCEMENT as u64 { len } else { MAX_ANNOUNCEMENT as u64 };
    let header = RecordHeader {
        entry_ns: now,
        return_ns: now,
        conn: 0,
        offset: 0,
        tgid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        len: 0,
        // Longer than the text when it was cut: user space sees that it is not whole.
        orig_len: if len < u32::MAX as u64 { len as u32 } else { u32::MAX },
        kind: kind::ANNOUNCEMENT,
        flags: 0,
        turn: 0,
    };
    emit::text(&header, text, copied);
    Some(())
}
