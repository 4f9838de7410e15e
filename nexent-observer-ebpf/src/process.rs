//! Births and deaths of processes, from the scheduler's BTF tracepoints (include/trace/events/sched.h).

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_probe_read_kernel},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use nexent_observer_common::{
    counters::Counter,
    record::{RecordHeader, kind},
};

use crate::{
    emit,
    inflight::now,
    maps::{TARGETS, count, report_all_execs, task_tgid_offset},
};

/// `sched_process_fork(parent, child)`: in a filtered scope the child is observed from its first instruction.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn process_fork(ctx: BtfTracePointContext) -> i32 {
    let _ = fork(&ctx);
    0
}

#[inline(always)]
fn fork(ctx: &BtfTracePointContext) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    // SAFETY: copied out at once.
    let target = unsafe { *TARGETS.get(&tgid)? };
    let child: u64 = ctx.arg(1);
    let mut child_tgid = 0u32;
    // SAFETY: the helper checks the address.
    let result = unsafe {
        bpf_probe_read_kernel(
            (&raw mut child_tgid).cast(),
            4,
            child.wrapping_add(task_tgid_offset()) as *const core::ffi::c_void,
        )
    };
    if result != 0 || child_tgid == tgid || child_tgid == 0 {
        return None; // a new thread, or unreadable
    }
    if target.follow_forks != 0 {
        let _ = TARGETS.insert(&child_tgid, &target, 0);
    }
    note(kind::FORK, pid_tgid, u64::from(child_tgid));
    Some(())
}

/// `sched_process_exec`: the current process runs another program now.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_exec(_ctx: BtfTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    // SAFETY: only presence matters.
    if report_all_execs() != 0 || unsafe { TARGETS.get(&tgid) }.is_some() {
        note(kind::EXEC, pid_tgid, 0);
    }
    0
}

/// `sched_process_exit` of a leader thread: user space looks whether the whole process is gone, for its leader may exit before
/// its other threads.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(_ctx: BtfTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    // SAFETY: only presence matters.
    if pid_tgid as u32 == tgid && unsafe { TARGETS.get(&tgid) }.is_some() {
        note(kind::EXIT, pid_tgid, 0);
    }
    0
}

#[inline(always)]
fn note(kind: u16, pid_tgid: u64, offset: u64) {
    let at = now();
    let header = RecordHeader {
        entry_ns: at,
        return_ns: at,
        conn: 0,
        offset,
        tgid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        len: 0,
        orig_len: 0,
        kind,
        flags: 0,
        turn: 0,
    };
    if !emit::note(&header, None) {
        count(Counter::ProcessLost);
    }
}
