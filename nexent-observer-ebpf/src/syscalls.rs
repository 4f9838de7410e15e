//! Plain HTTP: the system calls that move bytes on sockets. `socket.rs` meets them inside, where the socket is known; which call it is
//! and where its buffers are stands in the registers that the kernel saved at its entry, and stays there until its exit. So nothing
//! has to be attached to system calls themselves, which every call of the host would pay for (docs/overhead.md).
//!
//! Only the time of entry of a sending call is taken before: by `tcp_sendmsg_locked`, which comes first inside it, or, on kernels
//! that have no such tracepoint, at the entry of the four calls.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_user, bpf_task_pt_regs},
    },
    macros::{btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};
use nexent_observer_common::{
    counters::Counter,
    state::{SockCall, call_shape, sockets},
};

use crate::{
    conn::NO_EXIST,
    inflight,
    maps::{SYSCALLS, TARGETS, count},
};

/// Numbers of the calls and offsets in `struct pt_regs`: (arch/x86/entry/syscalls/syscall_64.tbl, arch/x86/include/asm/ptrace.h).
/// The numbers of 32-bit programs are others; of those that move bytes on sockets none is among these.
#[cfg(bpf_target_arch = "x86_64")]
mod abi {
    pub const NUMBER: usize = 120; // orig_ax
    pub const SECOND: usize = 104; // si
    pub const GOROUTINE: usize = 8; // r14
    pub const THIRD: usize = 96; // dx
    pub const FLAT: [u64; 4] = [0, 1, 44, 45]; // read, write, sendto, recvfrom
    pub const VECTOR: [u64; 2] = [19, 20]; // readv, writev
    pub const MESSAGE: [u64; 2] = [46, 47]; // sendmsg, recvmsg
}

/// The same (include/uapi/asm-generic/unistd.h, arch/arm64/include/asm/ptrace.h).
#[cfg(bpf_target_arch = "aarch64")]
mod abi {
    pub const NUMBER: usize = 8 * 8; // x8
    pub const SECOND: usize = 8; // x1
    pub const GOROUTINE: usize = 28 * 8; // x28
    pub const THIRD: usize = 16; // x2
    pub const FLAT: [u64; 4] = [63, 64, 206, 207];
    pub const VECTOR: [u64; 2] = [65, 66];
    pub const MESSAGE: [u64; 2] = [211, 212];
}

/// What the sockets of this process are looked at for: [`sockets`] bits.
#[inline(always)]
pub fn wanted_of(tgid: u32) -> u32 {
    // SAFETY: only a word is read; a racing removal reads a stale word at worst.
    match unsafe { TARGETS.get(&tgid) } {
        Some(target) => target.sockets,
        None => 0,
    }
}

/// `tcp_sendmsg_locked(sk, msg, skb, size_goal)`: a call begins to send, or goes on to.
#[btf_tracepoint(function = "tcp_sendmsg_locked")]
pub fn plain_sending(_ctx: BtfTracePointContext) -> i32 {
    begin_write(NO_EXIST);
    0
}

/// Entry of `write`, `writev`, `sendto`, `sendmsg`.
#[tracepoint]
pub fn plain_enter_write(_ctx: TracePointContext) -> u32 {
    begin_write(0);
    0
}

/// Notes the time at which the current call begins. With `NO_EXIST` the first time counts.
#[inline(always)]
fn begin_write(flags: u64) {
    let pid_tgid = bpf_get_current_pid_tgid();
    if wanted_of((pid_tgid >> 32) as u32) & sockets::PLAIN != 0 {
        let call = SockCall { entry_ns: inflight::now(), ..SockCall::default() };
        // Full or known already: the time of the exit has to do, or the first time does.
        let _ = SYSCALLS.insert(&pid_tgid, &call, flags);
    }
}

/// The call that the current thread is in: its value in the map, with its buffers and its time of entry (`now` where that was not
/// seen). `None`: it is none that shows its buffers (splice, sendfile, io_uring).
#[inline(always)]
pub fn current(pid_tgid: u64, now: u64) -> Option<*mut SockCall> {
    // SAFETY: both helpers are always allowed; the second takes what the first gives.
    let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64;
    let shape = shape_of(register(registers, abi::NUMBER)?)?;
    let entry_ns = match SYSCALLS.get_ptr(&pid_tgid) {
        // SAFETY: the verifier checked the value; only this thread uses this key.
        Some(begun) => unsafe { (*begun).entry_ns },
        None => now,
    };
    let at = register(registers, abi::SECOND)?;
    let third = if shape == call_shape::MESSAGE { 0 } else { register(registers, abi::THIRD)? };
    let call = SockCall { entry_ns, at, count: third, shape, ..SockCall::default() };
    if SYSCALLS.insert(&pid_tgid, &call, 0).is_err() {
        count(Counter::InflightFull);
    }
    SYSCALLS.get_ptr_mut(&pid_tgid)
}

/// Address of the first buffer of the system call that the current thread is in.
#[inline(always)]
pub fn buffer() -> Option<u64> {
    // SAFETY: as in `current`.
    let registers = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64;
    let shape = shape_of(register(registers, abi::NUMBER)?)?;
    let mut at = register(registers, abi::SECOND)?;
    if shape == call_shape::MESSAGE {
        at = user_word(at.wrapping_add(16))?; // `msg_iov`, as in `first_buffer`
    }
    if shape == call_shape::FLAT { Some(at) } else { user_word(at) }
}

#[inline(always)]
fn user_word(at: u64) -> Option<u64> {
    let mut word = 0u64;
    // SAFETY: the helper checks the user address and writes 8 bytes to a local.
    let read = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, at as *const core::ffi::c_void) };
    (read == 0).then_some(word)
}

/// What stands in the register of Go's current goroutine: in Go it is kept through a system call, elsewhere it is anything.
#[inline(always)]
pub fn goroutine() -> Option<u64> {
    // SAFETY: as in `current`.
    register(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64, abi::GOROUTINE)
}

/// Forgets the call of the current thread.
#[inline(always)]
pub fn done(pid_tgid: u64) {
    let _ = SYSCALLS.remove(&pid_tgid);
}

#[inline(always)]
fn shape_of(number: u64) -> Option<u32> {
    if number == abi::FLAT[0] || number == abi::FLAT[1] || number == abi::FLAT[2] || number == abi::FLAT[3] {
        return Some(call_shape::FLAT);
    }
    if number == abi::VECTOR[0] || number == abi::VECTOR[1] {
        return Some(call_shape::VECTOR);
    }
    (number == abi::MESSAGE[0] || number == abi::MESSAGE[1]).then_some(call_shape::MESSAGE)
}

#[inline(always)]
fn register(registers: u64, offset: usize) -> Option<u64> {
    let mut value = 0u64;
    let from = registers.wrapping_add(offset as u64) as *const core::ffi::c_void;
    // SAFETY: the helper checks the address and writes 8 bytes to a local.
    let result = unsafe { bpf_probe_read_kernel((&raw mut value).cast(), 8, from) };
    (result == 0).then_some(value)
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
    crate::emit::next_vector(call)
}
