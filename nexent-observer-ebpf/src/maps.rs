//! Maps and the globals that user space sets before loading.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use nexent_observer_common::{
    counters::Counter,
    state::{
        Aead, AeadKey, Call, CallKey, Conn, ConnKey, FLOW_SLOT_COUNT, FileKey, Flow, SockCall, Socket, Target, Thread,
        VERDICT_SLOTS, Writer,
    },
};

/// Reads, closes and process events. Apart from the writes, so that large prompts cannot push out tokens.
#[map]
pub static READS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Written payload.
#[map]
pub static WRITES: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// Observed processes by tgid.
#[map]
pub static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(16_384, 0);

/// Executables whose processes are observed from their first instruction, and how.
#[map]
pub static EXECUTABLES: HashMap<FileKey, Target> = HashMap::with_max_entries(1024, 0);

/// Calls between entry and return. Preallocated: an allocation in a probe could fail at the worst moment.
#[map]
pub static INFLIGHT: HashMap<CallKey, Call> = HashMap::with_max_entries(32_768, 0);

/// Connections.
#[map]
pub static CONNS: HashMap<ConnKey, Conn> = HashMap::with_max_entries(65_536, 0);

/// System calls of targets with plain HTTP between entry and exit, by thread. Preallocated, as above.
#[map]
pub static SYSCALLS: HashMap<u64, SockCall> = HashMap::with_max_entries(16_384, 0);

/// Sockets of targets, by cookie. Nothing tells the end of a Unix socket, so what is not used for longest goes when it is full.
#[map]
pub static SOCKETS: LruHashMap<u64, Socket> = LruHashMap::with_max_entries(65_536, 0);

/// Keys of TLS records of rustls. Nothing tells their end, so what is not used for longest goes when it is full.
#[map]
pub static AEADS: LruHashMap<AeadKey, Aead> = LruHashMap::with_max_entries(65_536, 0);

/// Records that were sealed and not sent yet, under a key whose socket is not known: by process and address of what was sealed.
#[map]
pub static SEALED: LruHashMap<ConnKey, AeadKey> = LruHashMap::with_max_entries(8192, 0);

/// Threads that use them, by `bpf_get_current_pid_tgid`.
#[map]
pub static THREADS: LruHashMap<u64, Thread> = LruHashMap::with_max_entries(16_384, 0);

/// TCP sockets of targets, by cookie, for the phases of their connections. The kernel tells the end of each.
#[map]
pub static FLOWS: HashMap<u64, Flow> = HashMap::with_max_entries(65_536, 0);

/// Number of entries of `FLOWS` by `flow_slot`: whether a socket may be known can be told without a search.
#[map]
pub static FLOW_SLOTS: Array<u64> = Array::with_max_entries(FLOW_SLOT_COUNT, 0);

/// TLS writes of threads and goroutines whose socket is not known, `sp` being 0 or the goroutine. Threads end and tell nobody, so what
/// is not used for longest goes when it is full.
#[map]
pub static WRITERS: LruHashMap<CallKey, Writer> = LruHashMap::with_max_entries(16_384, 0);

/// Verdicts of user space, one word a slot (`state::verdict_value`).
#[map]
pub static VERDICTS: Array<u64> = Array::with_max_entries(VERDICT_SLOTS, 0);

/// Last connection number given.
#[map]
pub static NEXT_CONN: Array<u64> = Array::with_max_entries(1, 0);

/// Per ring (0 reads, 1 writes): user space was woken and has not drained since. For an exec (2): since its last tick.
#[map]
pub static WOKEN: Array<u32> = Array::with_max_entries(3, 0);

/// Counters, by `Counter`.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

/// A value that user space sets before loading. Volatile, or the compiler would fold the default in.
macro_rules! global {
    ($(#[$doc:meta])* $name:ident: $ty:ty = $default:expr, $get:ident) => {
        #[unsafe(no_mangle)]
        static $name: $ty = $default;
        $(#[$doc])*
        #[inline(always)]
        pub fn $get() -> $ty {
            // SAFETY: a static of this program, initialised and aligned.
            unsafe { core::ptr::read_volatile(&raw const $name) }
        }
    };
}

global!(
    /// Bytes of a turn kept at its head.
    WRITE_HEAD_CAP: u64 = 32 << 10, write_head_cap
);
global!(
    /// Bytes kept at the tail of each written call.
    WRITE_TAIL_CAP: u64 = 64 << 10, write_tail_cap
);
global!(
    /// Fill of the ring of reads that wakes user space, bytes.
    READ_WAKE_BYTES: u64 = 2 << 20, read_wake_bytes
);
global!(
    /// Fill of the ring of writes that wakes user space, bytes.
    WRITE_WAKE_BYTES: u64 = 2 << 20, write_wake_bytes
);
global!(
    /// Offset of `tgid` in `struct task_struct`, bytes (from the kernel's BTF).
    TASK_TGID_OFFSET: u64 = 0, task_tgid_offset
);
global!(
    /// Offset of `file` in `struct linux_binprm`, bytes; so are the next ones.
    BINPRM_FILE_OFFSET: u64 = 0, binprm_file_offset
);
global!(
    /// Of `f_inode` in `struct file`.
    FILE_INODE_OFFSET: u64 = 0, file_inode_offset
);
global!(
    /// Of `i_ino` in `struct inode`.
    INODE_INO_OFFSET: u64 = 0, inode_ino_offset
);
global!(
    /// Of `i_sb` in `struct inode`.
    INODE_SB_OFFSET: u64 = 0, inode_sb_offset
);
global!(
    /// Of `s_dev` in `struct super_block`.
    SB_DEV_OFFSET: u64 = 0, sb_dev_offset
);
global!(
    /// Whether every exec is reported, or only those of observed processes.
    REPORT_ALL_EXECS: u32 = 0, report_all_execs
);

global!(
    /// Offset of `skc_family` in `struct sock`, bytes; so are the next ones (from the kernel's BTF).
    SOCK_FAMILY_OFFSET: u64 = 0, sock_family_offset
);
global!(
    /// Of `sk_type`.
    SOCK_TYPE_OFFSET: u64 = 0, sock_type_offset
);
global!(
    /// Of `sk_shutdown`.
    SOCK_SHUTDOWN_OFFSET: u64 = 0, sock_shutdown_offset
);
global!(
    /// Of `skc_daddr`, the address of the other side.
    SOCK_DADDR_OFFSET: u64 = 0, sock_daddr_offset
);
global!(
    /// Of `skc_rcv_saddr`, the address of this side.
    SOCK_SADDR_OFFSET: u64 = 0, sock_saddr_offset
);
global!(
    /// Of `skc_v6_daddr`; 0: the kernel has no IPv6.
    SOCK_V6_DADDR_OFFSET: u64 = 0, sock_v6_daddr_offset
);
global!(
    /// Of `skc_v6_rcv_saddr`; 0: the kernel has no IPv6.
    SOCK_V6_SADDR_OFFSET: u64 = 0, sock_v6_saddr_offset
);
global!(
    /// Of `skc_dport`, the port of the other side, network byte order.
    SOCK_DPORT_OFFSET: u64 = 0, sock_dport_offset
);
global!(
    /// Of `skc_num`, the port of this side, host byte order.
    SOCK_NUM_OFFSET: u64 = 0, sock_num_offset
);

global!(
    /// Of `skc_cookie`.
    SOCK_COOKIE_OFFSET: u64 = 0, sock_cookie_offset
);
global!(
    /// Offset of `rcv_nxt` in `struct tcp_sock`, bytes: the next byte that the network is to bring.
    TCP_RCV_NXT_OFFSET: u64 = 0, tcp_rcv_nxt_offset
);
global!(
    /// Of `copied_seq`: the next byte that the process is to take.
    TCP_COPIED_SEQ_OFFSET: u64 = 0, tcp_copied_seq_offset
);
global!(
    /// Whether phases of connections are looked at.
    PHASES: u32 = 0, phases
);

/// Counts one.
#[inline(always)]
pub fn count(counter: Counter) {
    add(counter, 1);
}

/// Counts `n`.
#[inline(always)]
pub fn add(counter: Counter, n: u64) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the verifier checked the slot. A program preempted here by another on the same CPU may lose one count.
        unsafe { *slot = (*slot).wrapping_add(n) };
    }
}
