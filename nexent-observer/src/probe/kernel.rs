//! Loads the kernel half and speaks with its maps.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::OwnedFd,
    sync::Arc,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap as BpfMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::{
        BtfTracePoint, ProgramError, UProbe,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
};
use nexent_observer_common::{
    cookie::{Cookie, Scope},
    counters::Counter,
    state::{
        Call, CallKey, Conn, ConnKey, FileKey, Flow, SockCall, Socket, Target, Unseen, conn_flag, flow_slot,
        socket_key, socket_state, sockets, verdict_slot, verdict_value,
    },
};

use super::{
    btf,
    lease::HookedFile,
    opener::own_path,
    phases,
    plain::{self, PlainLinks},
    plan::{Hook, Program},
    process::FileId,
};

/// The kernel half, built by `cargo xtask build` or taken from the repository (see nexent-observer-ebpf/prebuilt/README.md).
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NEXENT_OBSERVER_BPF_OBJECT"));

/// An update of what is in a map already, and of nothing else (include/uapi/linux/bpf.h).
const BPF_EXIST: u64 = 2;

/// Why the kernel half cannot run here. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not enough rights.
    #[error(
        "missing capability {missing}: attaching probes needs CAP_SYS_ADMIN (and CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, which \
         it includes); run as root, with `docker run --privileged`, or with `capabilities: add: [SYS_ADMIN, SYS_PTRACE, DAC_READ_SEARCH]`"
    )]
    Capability {
        /// First capability that is missing.
        missing: &'static str,
    },
    /// A file was written to.
    #[error("{path} was written over a moment ago, or cannot be read: nothing is hooked where something else may stand", path = path.display())]
    Rewritten {
        /// Which.
        path: std::path::PathBuf,
    },
    /// No BTF.
    #[error(
        "the kernel shows no type information at {path} ({source}): a kernel with CONFIG_DEBUG_INFO_BTF=y is needed (5.15 or \
         later of any large distribution), and /sys has to be mounted in a container",
        path = btf::KERNEL_BTF
    )]
    NoBtf {
        /// What reading it gave.
        source: io::Error,
    },
    /// BTF without what is needed.
    #[error("the kernel's type information cannot be used: {0}")]
    Btf(#[from] btf::BtfError),
    /// The kernel's type information could not be parsed by aya.
    #[error("the kernel's type information cannot be used: {0}")]
    BtfParse(#[from] aya::BtfError),
    /// The object was refused.
    #[error("the kernel refused the probes: {0}")]
    Load(#[from] aya::EbpfError),
    /// A program was refused or could not be attached.
    #[error("the kernel refused the probe {program}: {}", with_causes(source.as_ref()))]
    Program {
        /// Which.
        program: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// No tracepoints of system calls.
    #[error(
        "the kernel's tracepoints cannot be seen ({source}): plain HTTP needs tracefs, mounted at /sys/kernel/tracing or \
         mountable (CAP_SYS_ADMIN)"
    )]
    NoTracefs {
        /// Why.
        source: io::Error,
    },
    /// A map is missing or of another kind: the object and this program are of different versions.
    #[error("the kernel half does not fit this program (map {0}): build both together with `cargo xtask build`")]
    Map(&'static str),
    /// An operation on a map failed.
    #[error("a map of the kernel half cannot be used: {0}")]
    MapUse(#[from] MapError),
}

/// Settings of the kernel half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelOptions {
    /// Size of the ring of reads, bytes; a power of two and a multiple of the page size.
    pub read_ring_bytes: u32,
    /// Size of the ring of writes, bytes; likewise.
    pub write_ring_bytes: u32,
    /// Bytes of a turn kept at its head.
    pub write_head_bytes: u64,
    /// Bytes kept at the tail of each written call.
    pub write_tail_bytes: u64,
    /// Report every exec of the host, to find processes by executable.
    pub report_all_execs: bool,
    /// Find the sockets of connections, and what they tell of their phases.
    pub phases: bool,
}

/// A value that crosses to a map byte by byte.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: these types are repr(C) without padding (asserted in nexent-observer-common) and valid for any bits.
unsafe impl aya::Pod for Plain<Target> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<CallKey> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Call> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<ConnKey> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Conn> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<SockCall> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Socket> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Flow> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<FileKey> {}
// SAFETY: as above.
unsafe impl aya::Pod for Plain<Unseen> {}

/// When the hooks of an implementation are attached: reads before writes, so that no request is seen without its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// Reads.
    First,
    /// Births and deaths of connections.
    Second,
    /// Writes.
    Last,
}

/// What a hook runs: programs of the kernel half, in the order in which they are attached. The return side comes first, so that
/// no entry is kept whose return cannot be seen.
struct Row {
    program: Program,
    turn: Turn,
    names: &'static [&'static str],
}

const fn row(program: Program, turn: Turn, names: &'static [&'static str]) -> Row {
    Row { program, turn, names }
}

const PROGRAMS: &[Row] = &[
    row(Program::Read, Turn::First, &["tls_read_return", "tls_read_enter"]),
    row(Program::Write, Turn::Last, &["tls_write_return", "tls_write_enter"]),
    row(Program::New, Turn::Second, &["tls_new_return"]),
    row(Program::Free, Turn::Second, &["tls_free_enter"]),
    row(Program::Clear, Turn::Second, &["tls_clear_enter"]),
    row(Program::GnuTlsInit, Turn::Second, &["gnutls_init_return", "gnutls_init_enter"]),
    row(Program::GnuTlsUncork, Turn::Last, &["gnutls_uncork_return", "gnutls_uncork_enter"]),
    row(Program::GnuTlsWrite, Turn::Last, &["gnutls_write_return", "gnutls_write_enter"]),
    row(Program::GoReadReturn, Turn::First, &["go_read_return"]),
    row(Program::GoReadEnter, Turn::First, &["go_read_enter"]),
    row(Program::GoBegin, Turn::Second, &["go_begin_enter"]),
    row(Program::GoClose, Turn::Second, &["go_close_enter"]),
    row(Program::GoWriteReturn, Turn::Last, &["go_write_return"]),
    row(Program::GoWriteEnter, Turn::Last, &["go_write_enter"]),
    row(Program::AeadOpen, Turn::First, &["aead_open_return", "aead_open_enter"]),
    row(Program::AeadSeal, Turn::Last, &["aead_seal_enter"]),
    row(Program::AeadSealScatter, Turn::Last, &["aead_seal_scatter_enter"]),
    row(Program::Announce, Turn::First, &["hook_announce_enter"]),
];

impl Program {
    /// When it is attached.
    #[must_use]
    pub fn turn(self) -> Turn {
        PROGRAMS.iter().find(|row| row.program == self).map_or(Turn::Second, |row| row.turn)
    }

    /// Whether a return probe goes with it. Go has none: its returns are probed as places of their own.
    #[must_use]
    pub fn has_return_probe(self) -> bool {
        self.names().iter().any(|name| name.ends_with("_return") && !name.starts_with("go_"))
    }

    fn names(self) -> &'static [&'static str] {
        PROGRAMS.iter().find(|row| row.program == self).map_or(&[], |row| row.names)
    }
}

/// What the sockets of a process are looked at for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sockets {
    /// Plain HTTP.
    pub plain: bool,
    /// Which socket the records of a TLS key travel on (rustls).
    pub join: bool,
}

impl Sockets {
    const fn bits(self) -> u32 {
        (if self.plain { sockets::PLAIN } else { 0 }) | (if self.join { sockets::JOIN } else { 0 })
    }

    /// Whether they are looked at at all.
    #[must_use]
    pub const fn any(self) -> bool {
        self.plain || self.join
    }
}

/// The two rings, for the stage that drains them.
pub struct Rings {
    /// Reads, closes and process events.
    pub reads: RingBuf<MapData>,
    /// Writes.
    pub writes: RingBuf<MapData>,
    /// Marks that the kernel half set when it woke us; cleared after each drain.
    pub woken: Woken,
}

/// The wake-up marks.
pub struct Woken(Array<MapData, u32>);

impl Woken {
    /// Allows the kernel half to wake us again. Costs two system calls, so it is done only after a wake-up.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn clear(&mut self) -> Result<(), MapError> {
        self.0.set(0, 0, 0)?;
        self.0.set(1, 0, 0)
    }

    /// Allows an exec to wake us again. Done at a tick, so that many execs are no more wake-ups than ticks.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn clear_exec(&mut self) -> Result<(), MapError> {
        self.0.set(2, 0, 0)
    }
}

/// One probe at one place. Detached when dropped, which takes the kernel up to 250 ms: drop it off the loop.
#[derive(Debug)]
pub struct Attached {
    offset: u64,
    #[expect(dead_code, reason = "held for its Drop")]
    link: UProbeLink,
    /// Let go of after the link.
    file: Arc<HookedFile>,
}

impl Attached {
    /// Where it sits, as an offset in the file, bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The file that it is on.
    #[must_use]
    pub fn file(&self) -> &Arc<HookedFile> {
        &self.file
    }
}

/// Where probes are put: the very file that was looked into, whatever a path leads to meanwhile.
#[derive(Debug)]
pub struct Place {
    /// The file that the process has mapped.
    pub file: Arc<HookedFile>,
    /// The one that is leased for them, which is the same file where both are of one file system.
    pub held: Arc<HookedFile>,
}

/// Cookie of a probe that counts for nobody: no process has this scope.
const FOR_NOBODY: u64 = 0xff;

/// The loaded kernel half.
pub struct KernelHalf {
    ebpf: Ebpf,
    targets: BpfMap<MapData, u32, Plain<Target>>,
    executables: BpfMap<MapData, Plain<FileKey>, Plain<Target>>,
    inflight: BpfMap<MapData, Plain<CallKey>, Plain<Call>>,
    conns: BpfMap<MapData, Plain<ConnKey>, Plain<Conn>>,
    syscalls: BpfMap<MapData, u64, Plain<SockCall>>,
    sockets: BpfMap<MapData, u64, Plain<Socket>>,
    flows: BpfMap<MapData, u64, Plain<Flow>>,
    unseen: BpfMap<MapData, u32, Plain<Unseen>>,
    flow_slots: Array<MapData, u64>,
    verdicts: Array<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
}

impl KernelHalf {
    /// Checks rights, loads, and attaches the process tracepoints. Nothing is attached to any process yet.
    ///
    /// # Errors
    /// [`KernelError`]; nothing stays loaded then.
    pub fn load(options: KernelOptions) -> Result<(Self, Rings), KernelError> {
        check_capabilities()?;
        let btf_bytes = fs::read(btf::KERNEL_BTF).map_err(|source| KernelError::NoBtf { source })?;
        let members = btf::Members::parse(&btf_bytes)?;
        let tgid_offset = members.offset("task_struct", "tgid")?;
        let pid_offset = members.offset("task_struct", "pid")?;
        let socket_offsets = plain::Offsets::find(&members)?;
        let exec_offsets = exec_offsets(&members)?;
        let phase_offsets = phases::offsets(&members)?;
        let phases_wanted = u32::from(options.phases);
        let report_all = u32::from(options.report_all_execs);
        let (read_wake, write_wake) = (u64::from(options.read_ring_bytes) / 4, u64::from(options.write_ring_bytes) / 4);
        let mut loader = EbpfLoader::new();
        socket_offsets.set(&mut loader);
        for (name, offset) in exec_offsets.iter().chain(&phase_offsets) {
            loader.override_global(name, offset, true);
        }
        let mut ebpf = loader
            .override_global("WRITE_HEAD_CAP", &options.write_head_bytes, true)
            .override_global("WRITE_TAIL_CAP", &options.write_tail_bytes, true)
            .override_global("READ_WAKE_BYTES", &read_wake, true)
            .override_global("WRITE_WAKE_BYTES", &write_wake, true)
            .override_global("TASK_TGID_OFFSET", &tgid_offset, true)
            .override_global("TASK_PID_OFFSET", &pid_offset, true)
            .override_global("REPORT_ALL_EXECS", &report_all, true)
            .override_global("PHASES", &phases_wanted, true)
            .map_max_entries("READS", options.read_ring_bytes)
            .map_max_entries("WRITES", options.write_ring_bytes)
            .load(OBJECT)?;
        let rings = Rings {
            reads: RingBuf::try_from(take(&mut ebpf, "READS")?)?,
            writes: RingBuf::try_from(take(&mut ebpf, "WRITES")?)?,
            woken: Woken(Array::try_from(take(&mut ebpf, "WOKEN")?)?),
        };
        let mut half = Self {
            targets: BpfMap::try_from(take(&mut ebpf, "TARGETS")?)?,
            executables: BpfMap::try_from(take(&mut ebpf, "EXECUTABLES")?)?,
            inflight: BpfMap::try_from(take(&mut ebpf, "INFLIGHT")?)?,
            conns: BpfMap::try_from(take(&mut ebpf, "CONNS")?)?,
            syscalls: BpfMap::try_from(take(&mut ebpf, "SYSCALLS")?)?,
            sockets: BpfMap::try_from(take(&mut ebpf, "SOCKETS")?)?,
            flows: BpfMap::try_from(take(&mut ebpf, "FLOWS")?)?,
            unseen: BpfMap::try_from(take(&mut ebpf, "UNSEEN")?)?,
            flow_slots: Array::try_from(take(&mut ebpf, "FLOW_SLOTS")?)?,
            verdicts: Array::try_from(take(&mut ebpf, "VERDICTS")?)?,
            counters: PerCpuArray::try_from(take(&mut ebpf, "COUNTERS")?)?,
            ebpf,
        };
        for &name in PROGRAMS.iter().flat_map(|row| row.names) {
            half.uprobe(name)?.load().map_err(refused(name))?;
        }
        let btf = Btf::from_sys_fs()?;
        for (program, event) in [
            ("process_fork", "sched_process_fork"),
            ("process_exec", "sched_process_exec"),
            ("process_exit", "sched_process_exit"),
        ] {
            let tracepoint: &mut BtfTracePoint = half
                .ebpf
                .program_mut(program)
                .and_then(|found| found.try_into().ok())
                .ok_or(KernelError::Map(program))?;
            tracepoint.load(event, &btf).map_err(refused(program))?;
            tracepoint.attach().map_err(refused(program))?;
        }
        Ok((half, rings))
    }

    fn uprobe(&mut self, name: &'static str) -> Result<&mut UProbe, KernelError> {
        self.ebpf.program_mut(name).and_then(|found| found.try_into().ok()).ok_or(KernelError::Map(name))
    }

    /// Attaches the programs of one hook in a file, for one process or for all.
    ///
    /// # Errors
    /// [`KernelError::Program`]; what this call attached is detached again.
    pub fn attach(&mut self, hook: &Hook, place: &Place, pid: Option<u32>) -> Result<Vec<Attached>, KernelError> {
        let programs = hook.program.names();
        let scope = if pid.is_some() { Scope::PerProcess } else { Scope::Filtered };
        let cookie = Cookie { scope, length: hook.length }.encode();
        let reach = match pid.and_then(std::num::NonZeroU32::new) {
            Some(pid) => UProbeScope::OneProcess(pid),
            None => UProbeScope::AllProcesses,
        };
        let mut attached = Vec::with_capacity(programs.len());
        for &name in programs {
            attached.push(self.attach_one(name, hook.offset, cookie, place, reach)?);
        }
        Ok(attached)
    }

    /// Attaches probes that do nothing at these offsets of a file, for one process.
    ///
    /// # Errors
    /// [`KernelError::Program`]; nothing stays attached then.
    pub fn rouse(&mut self, offsets: &HashSet<u64>, place: &Place, pid: u32) -> Result<Vec<Attached>, KernelError> {
        let reach = std::num::NonZeroU32::new(pid).map_or(UProbeScope::CallingProcess, UProbeScope::OneProcess);
        offsets.iter().map(|offset| self.attach_one("tls_free_enter", *offset, FOR_NOBODY, place, reach)).collect()
    }

    fn attach_one(
        &mut self,
        name: &'static str,
        offset: u64,
        cookie: u64,
        place: &Place,
        reach: UProbeScope,
    ) -> Result<Attached, KernelError> {
        let program = self.uprobe(name)?;
        let location = UProbeAttachLocation::AbsoluteOffset(offset);
        let point = UProbeAttachPoint { location, cookie: Some(cookie) };
        let path = own_path(place.file.file());
        let link = program.attach(point, path, reach).and_then(|id| program.take_link(id)).map_err(refused(name))?;
        Ok(Attached { offset, link, file: Arc::clone(&place.held) })
    }

    /// Bytes of the TLS connections of a process were not seen: the next record of each, either way, says so.
    pub fn mark_unseen(&mut self, pid: u32) {
        let of_tls = |key: &Plain<ConnKey>| key.0.tgid == pid && key.0.tls < socket_key(0);
        let known: Vec<_> = self.conns.iter().flatten().filter(|(key, _)| of_tls(key)).collect();
        for (key, before) in known {
            // As it is now: some probes may be there still, and its address may be another connection's by now.
            let Ok(mut conn) = self.conns.get(&key, 0) else { continue };
            if conn.0.id == before.0.id {
                conn.0.flags |= conn_flag::READ_UNKNOWN | conn_flag::WRITE_UNKNOWN;
                drop(self.conns.insert(key, conn, BPF_EXIST));
            }
        }
    }

    /// Attaches the tracepoints of sockets. Every system call of the host pays for them while the result lives.
    ///
    /// # Errors
    /// [`KernelError`]; nothing stays attached then.
    pub fn attach_plain(&mut self) -> Result<PlainLinks, KernelError> {
        plain::attach(&mut self.ebpf)
    }

    /// Attaches the tracepoints of phases. Every call on a socket of the host pays for them while the result lives.
    ///
    /// # Errors
    /// [`KernelError`]; nothing stays attached then.
    pub fn attach_phases(&mut self) -> Result<PlainLinks, KernelError> {
        // Their ends were not seen in the meantime.
        let known: Vec<_> = self.flows.keys().flatten().collect();
        for cookie in known {
            drop(self.flows.remove(&cookie));
            // All of them go, and no program counts while none is attached.
            drop(self.flow_slots.set(flow_slot(cookie), 0, 0));
        }
        phases::attach(&mut self.ebpf)
    }

    /// Processes that moved bytes over TLS that no probe saw, and how many; nothing is known where phases are not looked at.
    #[must_use]
    pub fn unseen(&self) -> Vec<(u32, Unseen)> {
        self.unseen.iter().flatten().map(|(pid, unseen)| (pid, unseen.0)).collect()
    }

    /// Forgets what a process moved unseen.
    pub fn forget_unseen(&mut self, pid: u32) {
        drop(self.unseen.remove(&pid));
    }

    /// Bytes that were seen on the open TLS connections of these processes, of each.
    #[must_use]
    pub fn bytes_on_tls(&self, pids: &[u32]) -> HashMap<u32, u64> {
        let mut found: HashMap<u32, u64> = pids.iter().map(|pid| (*pid, 0)).collect();
        if found.is_empty() {
            return found;
        }
        for (key, conn) in self.conns.iter().flatten().filter(|(key, _)| key.0.tls < socket_key(0)) {
            if let Some(bytes) = found.get_mut(&key.0.tgid) {
                *bytes = bytes.wrapping_add(conn.0.read_offset).wrapping_add(conn.0.write_offset);
            }
        }
        found
    }

    /// Arms the probes of a process, or moves it to another scope. Its children are observed from their first instruction where
    /// the scope allows it.
    ///
    /// # Errors
    /// [`KernelError::MapUse`] when the table of targets is full.
    pub fn arm(&mut self, pid: u32, scope: Scope, sockets: Sockets) -> Result<(), KernelError> {
        let target = Target { scope: scope as u32, follow_forks: 1, sockets: sockets.bits(), zero: 0 };
        Ok(self.targets.insert(pid, Plain(target), 0)?)
    }

    /// Hears of the forks and the end of a process whose probes do nothing.
    ///
    /// # Errors
    /// [`KernelError::MapUse`] when the table of targets is full.
    pub fn park(&mut self, pid: u32) -> Result<(), KernelError> {
        // No attachment has the scope 0.
        Ok(self.targets.insert(pid, Plain(Target { scope: 0, follow_forks: 1, sockets: 0, zero: 0 }), 0)?)
    }

    /// Disarms the probes of a process of which nothing else is kept: it was armed and never observed, or is gone. Gives whether it
    /// was armed.
    ///
    /// # Errors
    /// [`KernelError::MapUse`].
    pub fn unarm(&mut self, pid: u32) -> Result<bool, KernelError> {
        match self.targets.remove(&pid) {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Arms every process that executes this file from its first instruction, in the filtered scope. Where the file system gives
    /// its files other numbers than `stat` shows (overlayfs, btrfs), it does nothing: then arming by pid has to do.
    ///
    /// # Errors
    /// [`KernelError::MapUse`] when there are too many.
    pub fn arm_executable(&mut self, file: FileId, sockets: Sockets) -> Result<(), KernelError> {
        let device = (u64::from(libc::major(file.device)) << 20) | u64::from(libc::minor(file.device));
        let target = Target { scope: Scope::Filtered as u32, follow_forks: 1, sockets: sockets.bits(), zero: 0 };
        Ok(self.executables.insert(Plain(FileKey { inode: file.inode, device }), Plain(target), 0)?)
    }

    /// Disarms the probes of a process and forgets what the kernel half kept of it; gives the connections that had not ended,
    /// so that a loss at their very end shows.
    ///
    /// # Errors
    /// [`KernelError::MapUse`].
    pub fn disarm(&mut self, pid: u32) -> Result<Vec<Conn>, KernelError> {
        self.unarm(pid)?;
        let calls: Vec<_> = self.inflight.keys().flatten().filter(|key| tgid_of(key.0.pid_tgid) == pid).collect();
        for key in calls {
            drop(self.inflight.remove(&key));
        }
        let calls: Vec<_> = self.syscalls.keys().flatten().filter(|thread| tgid_of(*thread) == pid).collect();
        for thread in calls {
            drop(self.syscalls.remove(&thread));
        }
        self.forget_sockets(|socket| socket.tgid == pid);
        let open: Vec<_> = self.conns.iter().flatten().filter(|(key, _)| key.0.tgid == pid).collect();
        for (key, conn) in &open {
            drop(self.conns.remove(key));
            // The socket lives on if the process does, and may be met again under another number.
            if let Ok(known) = self.flows.get(&conn.0.socket, 0) {
                // Not taken out: the kernel half counts what is in there, and takes it out at the socket's end.
                let fresh = Flow { tgid: known.0.tgid, sock: known.0.sock, ..Flow::default() };
                drop(self.flows.insert(conn.0.socket, Plain(fresh), BPF_EXIST));
            }
        }
        Ok(open.into_iter().map(|(_, conn)| conn.0).collect())
    }

    /// Forgets Unix sockets that were not used since `before` (ns): nothing tells their end.
    pub fn forget_idle_unix(&mut self, before: u64) {
        let gone = self.forget_sockets(|socket| socket.state & socket_state::UNIX != 0 && socket.used_ns < before);
        for (cookie, socket) in gone {
            drop(self.conns.remove(&Plain(ConnKey { tls: socket_key(cookie), tgid: socket.tgid, zero: 0 })));
        }
    }

    fn forget_sockets(&mut self, which: impl Fn(&Socket) -> bool) -> Vec<(u64, Socket)> {
        let gone: Vec<_> =
            self.sockets.iter().flatten().map(|(key, socket)| (key, socket.0)).filter(|(_, it)| which(it)).collect();
        for (cookie, _) in &gone {
            drop(self.sockets.remove(cookie));
        }
        gone
    }

    /// Processes that the kernel half holds as targets.
    #[must_use]
    pub fn armed(&self) -> Vec<u32> {
        self.targets.keys().flatten().collect()
    }

    /// Whether a call of this process that began in this scope has not returned yet.
    #[must_use]
    pub fn has_calls_in_flight(&self, pid: u32, scope: Scope) -> bool {
        self.inflight.iter().flatten().any(|(key, call)| {
            tgid_of(key.0.pid_tgid) == pid && nexent_observer_common::cookie::scope_of(call.0.cookie) == scope as u64
        })
    }

    /// Tells the kernel half that this turn of this connection is no LLM call.
    ///
    /// # Errors
    /// [`KernelError::MapUse`].
    pub fn give_verdict(&mut self, conn: u64, turn: u32) -> Result<(), KernelError> {
        Ok(self.verdicts.set(verdict_slot(conn), verdict_value(conn, turn), 0)?)
    }

    /// Numbers of the connections that the kernel half knows.
    ///
    /// # Errors
    /// [`KernelError::MapUse`]: it cannot be told whether these are all.
    pub fn connections(&self) -> Result<HashSet<u64>, KernelError> {
        Ok(self.conns.iter().map(|entry| entry.map(|(_, conn)| conn.0.id)).collect::<Result<_, _>>()?)
    }

    /// A counter of the kernel half, summed over the CPUs.
    ///
    /// # Errors
    /// [`KernelError::MapUse`].
    pub fn counter(&self, counter: Counter) -> Result<u64, KernelError> {
        let values = self.counters.get(&(counter as u32), 0)?;
        Ok(values.iter().fold(0u64, |sum, value| sum.wrapping_add(*value)))
    }
}

/// Where the kernel keeps the file that a process executes.
fn exec_offsets(btf: &btf::Members<'_>) -> Result<[(&'static str, u64); 5], btf::BtfError> {
    Ok([
        ("BINPRM_FILE_OFFSET", btf.offset("linux_binprm", "file")?),
        ("FILE_INODE_OFFSET", btf.offset("file", "f_inode")?),
        ("INODE_INO_OFFSET", btf.offset("inode", "i_ino")?),
        ("INODE_SB_OFFSET", btf.offset("inode", "i_sb")?),
        ("SB_DEV_OFFSET", btf.offset("super_block", "s_dev")?),
    ])
}

fn tgid_of(pid_tgid: u64) -> u32 {
    (pid_tgid >> 32) as u32
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or(KernelError::Map(name))
}

/// An error with all that caused it: aya's own line names the system call alone.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |said, cause| format!("{said}: {cause}"))
}

fn refused(program: &'static str) -> impl FnOnce(ProgramError) -> KernelError {
    move |source| KernelError::Program { program, source: Box::new(source) }
}

/// Attaching needs CAP_SYS_ADMIN on kernels as of 6.18 (CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE together were refused with
/// EACCES), and reading other processes' maps needs CAP_SYS_PTRACE.
fn check_capabilities() -> Result<(), KernelError> {
    const CAP_SYS_PTRACE: u32 = 19;
    const CAP_SYS_ADMIN: u32 = 21;
    let effective = fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .unwrap_or(u64::MAX);
    for (bit, missing) in [(CAP_SYS_ADMIN, "CAP_SYS_ADMIN"), (CAP_SYS_PTRACE, "CAP_SYS_PTRACE")] {
        if effective & (1 << bit) == 0 {
            return Err(KernelError::Capability { missing });
        }
    }
    Ok(())
}

/// A file descriptor that becomes readable when the kernel half wakes us.
///
/// # Errors
/// The error of `dup`.
pub fn wake_fd(ring: &RingBuf<MapData>) -> io::Result<OwnedFd> {
    use std::os::fd::AsFd;
    ring.as_fd().try_clone_to_owned()
}
