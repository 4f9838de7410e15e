//! The project's own probes in a textbook configuration: what `cargo xtask bench --only others` measures beside the real ones.
//!
//! As tutorials and bcc's `sslsniff` do it: the exported `SSL_read` and `SSL_write` at their first instruction, the buffer's address kept by
//! thread from entry to return, the whole buffer (up to 8 KiB, `sslsniff`'s default) copied through a per-CPU scratch, a perf buffer, and
//! a wake-up for each event.
#![no_std]
#![no_main]

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated::bpf_probe_read_user},
    macros::{map, uprobe, uretprobe},
    maps::{HashMap, PerCpuArray, PerfEventByteArray},
    programs::{ProbeContext, RetProbeContext},
};

/// Bytes of one call that are copied.
const MAX: usize = 8192;
/// Bytes before them.
const HEADER: usize = 24;

/// What user space gets; of `bytes` only what was copied.
#[repr(C)]
struct Event {
    time_ns: u64,
    /// tgid and tid.
    task: u64,
    /// Bytes that the call moved.
    length: u32,
    /// 0: a read, 1: a write.
    kind: u32,
    bytes: [u8; MAX],
}

#[map]
static BUFFERS: HashMap<u64, u64> = HashMap::with_max_entries(10_240, 0);
#[map]
static SCRATCH: PerCpuArray<Event> = PerCpuArray::with_max_entries(1, 0);
#[map]
static EVENTS: PerfEventByteArray = PerfEventByteArray::new(0);

#[inline(always)]
fn enter(ctx: &ProbeContext) {
    if let Some(buffer) = ctx.arg::<u64>(1) {
        // A full table loses the call, as it does elsewhere.
        let _full = BUFFERS.insert(bpf_get_current_pid_tgid(), buffer, 0);
    }
}

#[inline(always)]
fn leave(ctx: &RetProbeContext, kind: u32) {
    let task = bpf_get_current_pid_tgid();
    // SAFETY: nobody else writes an entry of this thread.
    let Some(buffer) = (unsafe { BUFFERS.get(task) }).copied() else { return };
    let _gone = BUFFERS.remove(task);
    let length = ctx.ret::<i32>();
    if length <= 0 {
        return;
    }
    let Some(event) = SCRATCH.get_ptr_mut(0) else { return };
    // Masked, because the verifier has to see the bound; a call of 8 KiB and more fills all but the last byte.
    let copied = core::hint::black_box((length as u32).min(MAX as u32 - 1)) & (MAX as u32 - 1);
    // SAFETY: the scratch is this CPU's, and a program does not leave it.
    unsafe {
        (*event).time_ns = bpf_ktime_get_ns();
        (*event).task = task;
        (*event).length = length as u32;
        (*event).kind = kind;
        if bpf_probe_read_user((&raw mut (*event).bytes).cast(), copied, buffer as *const _) == 0 {
            let bytes = core::slice::from_raw_parts(event.cast::<u8>(), HEADER + copied as usize);
            EVENTS.output(ctx, bytes, 0);
        }
    }
}

/// Entry of `SSL_read(ssl, buffer, length)`.
#[uprobe]
pub fn read_enter(ctx: ProbeContext) -> u32 {
    enter(&ctx);
    0
}

/// Its return.
#[uretprobe]
pub fn read_return(ctx: RetProbeContext) -> u32 {
    leave(&ctx, 0);
    0
}

/// Entry of `SSL_write(ssl, buffer, length)`.
#[uprobe]
pub fn write_enter(ctx: ProbeContext) -> u32 {
    enter(&ctx);
    0
}

/// Its return.
#[uretprobe]
pub fn write_return(ctx: RetProbeContext) -> u32 {
    leave(&ctx, 1);
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// `bpf_probe_read_user` and other GPL-only helpers ask for a compatible licence string (kernel/bpf/core.c).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
