//! Births and deaths of processes, from the scheduler's BTF tracepoints (include/trace/events/sched.h).

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_probe_read_kernel},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use nexent_observer_common::{
    counters::Counter,
    record::{RecordHeader, kind},
    state::FileKey,
};

use crate::{
    emit,
    inflight::now,
    maps::{
        EXECUTABLES, TARGETS, binprm_file_offset, count, file_inode_offset, inode_ino_offset, inode_sb_offset,
        report_all_execs, sb_dev_offset, task_pid_offset, task_tgid_offset,
    },
};

/// `sched_process_fork(parent, child)`: in a filtered scope the child is observed from its first instruction. Also fires for a new thread, before
/// it runs.
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
    let child_tgid: u32 = kernel_field(child, task_tgid_offset())?;
    if child_tgid == 0 {
        return None; // unreadable
    }
    if child_tgid == tgid {
        let tid: u32 = kernel_field(child, task_pid_offset())?;
        note(kind::THREAD_START, pid_tgid, u64::from(tid));
        return Some(());
    }
    if target.follow_forks != 0 {
        let _ = TARGETS.insert(&child_tgid, &target, 0);
    }
    note(kind::FORK, pid_tgid, u64::from(child_tgid));
    Some(())
}

/// `sched_process_exec(task, old_pid, binprm)`: the current process runs another program now.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_exec(ctx: BtfTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if report_all_execs() != 0 {
        let _ = arm_by_executable(ctx.arg(2), tgid);
    }
    // SAFETY: only presence matters.
    if report_all_execs() != 0 || unsafe { TARGETS.get(&tgid) }.is_some() {
        note(kind::EXEC, pid_tgid, 0);
    }
    0
}

/// Observes a process of a watched executable from its first instruction: user space comes milliseconds later, when a short-lived
/// client has sent its request.
#[inline(always)]
fn arm_by_executable(binprm: u64, tgid: u32) -> Option<()> {
    let file: u64 = kernel_field(binprm, binprm_file_offset())?;
    let inode: u64 = kernel_field(file, file_inode_offset())?;
    let super_block: u64 = kernel_field(inode, inode_sb_offset())?;
    let device: u32 = kernel_field(super_block, sb_dev_offset())?;
    let key = FileKey { inode: kernel_field(inode, inode_ino_offset())?, device: u64::from(device) };
    // SAFETY: copied out at once.
    let target = unsafe { *EXECUTABLES.get(&key)? };
    let _ = TARGETS.insert(&tgid, &target, 0);
    Some(())
}

/// Reads a member of a kernel structure.
#[inline(always)]
fn kernel_field<T: Default>(base: u64, offset: u64) -> Option<T> {
    let mut value = T::default();
    // SAFETY: the helper checks the address and writes as many bytes as the local has.
    let result = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            base.wrapping_add(offset) as *const core::ffi::c_void,
        )
    };
    (result == 0).then_some(value)
}

/// `sched_process_exit`. Of a leader thread: user space looks whether the whole process is gone, for its leader may exit before
/// its other threads.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(_ctx: BtfTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    // SAFETY: only presence matters.
    if unsafe { TARGETS.get(&tgid) }.is_some() {
        note(if pid_tgid as u32 == tgid { kind::EXIT } else { kind::THREAD_END }, pid_tgid, 0);
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
