//! Plain HTTP: which processes need it, and its tracepoints, which are attached only while one does.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    programs::{BtfTracePoint, ProgramError, TracePoint, tp_btf::BtfTracePointLink, trace_point::TracePointLink},
};

use super::{
    btf::{BtfError, Members},
    kernel::KernelError,
    process::Process,
};

/// How long a process that is watched since its birth is given to load a TLS library before its sockets are looked at.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// When the sockets of a target are looked at for plain HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainHttp {
    /// When it has no TLS library that can be hooked, or listens on a TCP port: then it is a server of plain HTTP, or talks to
    /// one. A client with TLS is spared, and so is the host.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl PlainHttp {
    /// Whether a process needs it. One that has only begun is given `patience` to load a TLS library.
    #[must_use]
    pub fn wanted(self, process: Process, has_tls: bool, patience: Duration, listeners: &mut Listeners) -> bool {
        match self {
            Self::Auto if has_tls => listeners.listens(process.pid),
            Self::Auto => process.age() >= patience,
            Self::On => true,
            Self::Off => false,
        }
    }
}

/// The tracepoints, while they are attached.
#[derive(Debug)]
pub struct PlainLinks {
    calls: Vec<TracePointLink>,
    sockets: Vec<BtfTracePointLink>,
}

impl PlainLinks {
    /// Number of attachments.
    #[must_use]
    pub fn count(&self) -> usize {
        self.calls.len() + self.sockets.len()
    }
}

/// Programs of the tracepoints of sockets. `sock_send_length` and `sock_recv_length` exist since Linux 6.3.
const SOCKETS: [(&str, &str); 4] = [
    ("plain_destroyed", "tcp_destroy_sock"),
    ("plain_state", "inet_sock_set_state"),
    ("plain_received", "sock_recv_length"),
    ("plain_sent", "sock_send_length"),
];

/// What tells when a sending call began: since Linux 6.16 this.
const SENDING: (&str, &str) = ("plain_sending", "tcp_sendmsg_locked");

/// Before, the entries of the calls themselves, for which every system call of the host pays.
const ENTRIES: (&str, [&str; 4]) =
    ("plain_enter_write", ["sys_enter_write", "sys_enter_writev", "sys_enter_sendto", "sys_enter_sendmsg"]);

/// Offsets of members of the kernel's sockets, by the name of their global.
#[derive(Debug)]
pub struct Offsets([(&'static str, u64); 9]);

impl Offsets {
    /// Finds them. Where the kernel has no IPv6 those of its addresses are 0, which says so.
    ///
    /// # Errors
    /// [`BtfError`].
    pub fn find(btf: &Members<'_>) -> Result<Self, BtfError> {
        let v6 = |member| btf.offset("sock_common", member).unwrap_or(0);
        Ok(Self([
            ("SOCK_FAMILY_OFFSET", btf.offset("sock_common", "skc_family")?),
            ("SOCK_TYPE_OFFSET", btf.offset("sock", "sk_type")?),
            ("SOCK_SHUTDOWN_OFFSET", btf.offset("sock", "sk_shutdown")?),
            ("SOCK_DADDR_OFFSET", btf.offset("sock_common", "skc_daddr")?),
            ("SOCK_SADDR_OFFSET", btf.offset("sock_common", "skc_rcv_saddr")?),
            ("SOCK_V6_DADDR_OFFSET", v6("skc_v6_daddr")),
            ("SOCK_V6_SADDR_OFFSET", v6("skc_v6_rcv_saddr")),
            ("SOCK_DPORT_OFFSET", btf.offset("sock_common", "skc_dport")?),
            ("SOCK_NUM_OFFSET", btf.offset("sock_common", "skc_num")?),
        ]))
    }

    /// Hands them to the kernel half.
    pub fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        for (name, offset) in &self.0 {
            loader.override_global(name, offset, true);
        }
    }
}

/// Attaches the tracepoints.
///
/// # Errors
/// [`KernelError`]; nothing stays attached then.
pub fn attach(ebpf: &mut Ebpf) -> Result<PlainLinks, KernelError> {
    let btf = Btf::from_sys_fs()?;
    let mut links = PlainLinks { calls: Vec::new(), sockets: Vec::new() };
    // First what tells when a call began, so that no call is seen without that.
    match attach_btf(ebpf, SENDING, &btf) {
        Ok(link) => links.sockets.push(link),
        Err(_) => match attach_entries(ebpf) {
            Ok(calls) => links.calls = calls,
            Err(error) => {
                tracing::warn!(%error, "Requests in plain HTTP are stamped when they are sent, not when sending began.");
            }
        },
    }
    for pair in SOCKETS {
        links.sockets.push(attach_btf(ebpf, pair, &btf)?);
    }
    Ok(links)
}

/// Attaches programs to BTF tracepoints, in this order.
///
/// # Errors
/// [`KernelError`]; nothing stays attached then.
pub(super) fn attach_all(ebpf: &mut Ebpf, pairs: &[(&'static str, &str)]) -> Result<PlainLinks, KernelError> {
    let btf = Btf::from_sys_fs()?;
    let sockets = pairs.iter().map(|pair| attach_btf(ebpf, *pair, &btf)).collect::<Result<_, _>>()?;
    Ok(PlainLinks { calls: Vec::new(), sockets })
}

fn attach_btf(
    ebpf: &mut Ebpf,
    (name, event): (&'static str, &str),
    btf: &Btf,
) -> Result<BtfTracePointLink, KernelError> {
    let program: &mut BtfTracePoint =
        ebpf.program_mut(name).and_then(|found| found.try_into().ok()).ok_or(KernelError::Map(name))?;
    let loaded = match program.load(event, btf) {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        loaded => loaded,
    };
    loaded.and_then(|()| program.attach()).and_then(|id| program.take_link(id)).map_err(refused(name))
}

fn attach_entries(ebpf: &mut Ebpf) -> Result<Vec<TracePointLink>, KernelError> {
    let (name, events) = ENTRIES;
    let program: &mut TracePoint =
        ebpf.program_mut(name).and_then(|found| found.try_into().ok()).ok_or(KernelError::Map(name))?;
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
        Err(error) => return Err(refused(name)(error)),
    }
    // The thread may get a view of the file system of its own, which goes with it.
    thread::scope(|scope| {
        let attached = scope.spawn(|| {
            show_tracefs().map_err(|source| KernelError::NoTracefs { source })?;
            let attach =
                |event| program.attach("syscalls", event).and_then(|id| program.take_link(id)).map_err(refused(name));
            events.into_iter().map(attach).collect()
        });
        attached.join().unwrap_or(Err(KernelError::Map(name)))
    })
}

fn refused(program: &'static str) -> impl FnOnce(ProgramError) -> KernelError {
    move |source| KernelError::Program { program, source: Box::new(source) }
}

/// Where tracefs belongs (Documentation/trace/ftrace.rst).
const TRACEFS: &str = "/sys/kernel/tracing";

/// Makes tracefs visible to this thread. Where it is not mounted, as in most containers, it is mounted in a mount namespace of
/// the thread's own: the host sees nothing of it.
fn show_tracefs() -> io::Result<()> {
    let events = Path::new("events/syscalls/sys_enter_read/id");
    if [TRACEFS, "/sys/kernel/debug/tracing"].iter().any(|place| Path::new(place).join(events).exists()) {
        return Ok(());
    }
    let checked = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: no memory is involved; only this thread is concerned.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: constant strings that end in 0, and null where the call wants nothing.
    checked(unsafe { libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()) })?;
    // SAFETY: as above.
    checked(unsafe {
        libc::mount(c"tracefs".as_ptr(), c"/sys/kernel/tracing".as_ptr(), c"tracefs".as_ptr(), 0, std::ptr::null())
    })
}

/// Sockets that listen, by network namespace, for a moment: the tables of a busy host are megabytes long, and the same for all of
/// its processes. The kernel walks through the connections of all namespaces for each: 3 ms for a host without any, so it is asked for
/// one only when there may be news.
#[derive(Debug, Default)]
pub struct Listeners {
    tables: HashMap<PathBuf, (Instant, HashSet<u64>)>,
    /// Processes that did not listen, with the sockets that they had.
    silent: HashMap<u32, Silent>,
}

/// A process that did not listen when it was looked at.
#[derive(Debug)]
struct Silent {
    sockets: Vec<u64>,
    wait: Duration,
    until: Instant,
}

/// How long a table of sockets is good.
const TABLE_IS_FRESH: Duration = Duration::from_secs(2);
/// How soon a process that does not listen is looked at again while it has the same sockets: at first, and at last. A socket mostly
/// listens as soon as it is made; where a server loads a model in between, it has waited longer than this already.
const WAITS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// Processes that are remembered.
const SILENT: usize = 4096;

impl Listeners {
    /// Whether a process has a TCP socket that listens.
    pub fn listens(&mut self, pid: u32) -> bool {
        self.listens_at(pid, Instant::now())
    }

    fn listens_at(&mut self, pid: u32, now: Instant) -> bool {
        let sockets = sockets_of(pid);
        if sockets.is_empty() {
            return false;
        }
        let old = |before: &&Silent| sockets.iter().all(|inode| before.sockets.binary_search(inode).is_ok());
        let before = self.silent.get(&pid).filter(old);
        if before.is_some_and(|before| now < before.until) {
            return false;
        }
        let wait = before.map_or(WAITS.0, |before| (before.wait * 2).min(WAITS.1));
        self.tables.retain(|_, (read, _)| now.saturating_duration_since(*read) < TABLE_IS_FRESH);
        let tables = || ["tcp", "tcp6"].iter().flat_map(|table| listening_inodes(&format!("/proc/{pid}/net/{table}")));
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) else { return false };
        let (_, listening) = self.tables.entry(namespace).or_insert_with(|| (now, tables().collect()));
        if sockets.iter().any(|inode| listening.contains(inode)) {
            self.silent.remove(&pid);
            return true;
        }
        if self.silent.len() >= SILENT {
            self.silent.clear();
        }
        self.silent.insert(pid, Silent { sockets, wait, until: now + wait });
        false
    }
}

/// Inodes of a process's sockets, in order.
fn sockets_of(pid: u32) -> Vec<u64> {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let inode = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path()).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    let mut inodes: Vec<u64> = descriptors.flatten().filter_map(inode).collect();
    inodes.sort_unstable();
    inodes
}

/// Inodes of the sockets in state LISTEN (0A) of a table of sockets (proc_net_tcp in Documentation/networking).
fn listening_inodes(table: &str) -> Vec<u64> {
    let text = fs::read_to_string(table).unwrap_or_default();
    let inode = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let state = fields.nth(3)?;
        (state == "0A").then(|| fields.nth(5)?.parse().ok())?
    };
    text.lines().filter_map(inode).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr, TcpListener},
        os::fd::AsRawFd,
        process::{Child, Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_process_that_listens_is_told_by_its_own_sockets() {
        // Other tests of this process may listen as well: what is looked for is the very socket.
        let inode = |listener: &TcpListener| {
            let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).expect("an open descriptor");
            let name =
                link.to_str().and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
            name.expect("a socket")
        };
        let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let six = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).expect("a free port");
        let talking = std::net::TcpStream::connect(four.local_addr().expect("bound")).expect("it listens");
        assert!(listening_inodes("/proc/self/net/tcp").contains(&inode(&four)));
        assert!(listening_inodes("/proc/self/net/tcp6").contains(&inode(&six)));
        assert!(Listeners::default().listens(std::process::id()));
        let gone = inode(&four);
        drop((four, talking));
        assert!(!listening_inodes("/proc/self/net/tcp").contains(&gone));
    }

    #[test]
    fn the_table_of_all_sockets_is_asked_for_only_when_there_may_be_news() {
        // A process of its own, whose only socket is its input.
        let end = |input: Stdio| Command::new("sleep").arg("600").stdin(input).spawn().expect("sleep");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let talking = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (mut without, mut client) = (end(Stdio::null()), end(Stdio::from(std::os::fd::OwnedFd::from(talking))));
        let mut server = end(Stdio::from(std::os::fd::OwnedFd::from(listener)));
        let began = Instant::now();
        let asked = |child: &Child, after: u64| {
            let mut listeners = Listeners::default();
            let listens: Vec<bool> = (0..=after)
                .map(|second| {
                    listeners.tables.clear();
                    listeners.listens_at(child.id(), began + Duration::from_secs(second))
                        || !listeners.tables.is_empty()
                })
                .collect();
            listens.iter().filter(|asked| **asked).count()
        };
        assert_eq!(asked(&without, 10), 0, "no socket, no question");
        // At 0, 2, 6, 14, 30, 60 and 90 s.
        assert_eq!(asked(&client, 100), 7);
        let mut listeners = Listeners::default();
        assert!(listeners.listens(server.id()) && !listeners.listens(client.id()));
        for child in [&mut without, &mut client, &mut server] {
            child.kill().expect("it runs");
            child.wait().expect("it ends");
        }
    }

    #[test]
    fn a_client_with_tls_is_spared_unless_it_is_asked_for() {
        let me = Process::find(std::process::id()).expect("this process lives");
        let mut fresh = Listeners::default();
        assert!(
            !PlainHttp::Auto.wanted(me, false, Duration::from_hours(1), &mut fresh),
            "it may load a TLS library yet"
        );
        let table = [
            (PlainHttp::Auto, true, false),
            (PlainHttp::Auto, false, true),
            (PlainHttp::On, true, true),
            (PlainHttp::Off, false, false),
        ];
        for (mode, has_tls, wanted) in table {
            // Other tests of this process may listen just now.
            let found = mode.wanted(me, has_tls, Duration::ZERO, &mut Listeners::default());
            assert!(found == wanted || Listeners::default().listens(me.pid), "{mode:?} {has_tls}");
        }
    }
}
