//! Empty programs: the floor that `cargo xtask bench` measures the real ones against. Never loaded by the observer.

use aya_ebpf::{
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};

/// Entry.
#[uprobe]
pub fn empty_enter(_ctx: ProbeContext) -> u32 {
    0
}

/// Return.
#[uretprobe]
pub fn empty_return(_ctx: RetProbeContext) -> u32 {
    0
}
