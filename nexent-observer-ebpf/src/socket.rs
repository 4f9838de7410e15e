//! Sockets of targets with plain HTTP: which call is on which socket, what it carries, its addresses, its end. From BTF tracepoints
//! (include/trace/events/sock.h), which fire inside the system call with the socket in hand.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_socket_cookie, bpf_probe_read_kernel, bpf_probe_read_user},
    },
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use nexent_observer_common::{
    counters::Counter,
    piece::Window,
    plain::{Look, look},
    record::{AF_INET, AF_INET6, AF_UNIX, PEER_BYTES, Peer, RecordHeader, flag, found, kind},
    state::{SockCall, Socket, conn_flag, socket_key, socket_state, sockets},
};

use crate::{
    aead, conn,
    emit::{self, Fact},
    flow, inflight,
    maps::{self, CONNS, SOCKETS, add, count},
    syscalls,
};

/// `struct sock` of the kernel.
pub type Sock = *mut core::ffi::c_void;

/// Flags of receiving calls (include/linux/socket.h).
const MSG_OOB: u32 = 1;
const MSG_PEEK: u32 = 2;
const MSG_TRUNC: u32 = 0x20;
const MSG_ERRQUEUE: u32 = 0x2000;
/// Flags of calls that take nothing from the stream.
pub const NOT_TAKEN: u32 = MSG_PEEK | MSG_OOB | MSG_ERRQUEUE;

const SOCK_STREAM: u16 = 1;

/// Reads a value at an offset of a kernel structure; its default when it cannot be read.
#[inline(always)]
pub fn field<T: Copy + Default>(sock: Sock, offset: u64) -> T {
    let mut value = T::default();
    // SAFETY: the helper checks the address and writes as many bytes as the local has.
    let result = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            sock.cast::<u8>().wrapping_add(offset as usize).cast(),
        )
    };
    if result == 0 { value } else { T::default() }
}

/// `sock_send_length(sk, ret, flags)`: a sending call has handed over `ret` bytes.
#[btf_tracepoint(function = "sock_send_length")]
#[inline(always)]
pub fn plain_sent(ctx: BtfTracePointContext) -> i32 {
    let _ = touched(ctx.arg(0), ctx.arg(1), 0, kind::WRITE);
    0
}

/// `sock_recv_length(sk, ret, flags)`: a receiving call has put `ret` bytes into the process's memory.
#[btf_tracepoint(function = "sock_recv_length")]
#[inline(always)]
pub fn plain_received(ctx: BtfTracePointContext) -> i32 {
    let _ = touched(ctx.arg(0), ctx.arg(1), ctx.arg(2), kind::READ);
    0
}

#[inline(always)]
fn touched(sock: Sock, bytes: i32, flags: u32, direction: u16) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let wanted = syscalls::wanted_of((pid_tgid >> 32) as u32);
    if wanted == 0 {
        return None;
    }
    if bytes > 0 && flags & NOT_TAKEN == 0 {
        if wanted & sockets::JOIN != 0 {
            let _ = aead::socket_used(sock, bytes as u64, direction, pid_tgid);
        }
        if wanted & sockets::PLAIN != 0 {
            let _ = moved(sock, bytes as u64, flags, direction, pid_tgid);
        }
    }
    syscalls::done(pid_tgid);
    Some(())
}

#[inline(always)]
fn moved(sock: Sock, bytes: u64, flags: u32, direction: u16, pid_tgid: u64) -> Option<()> {
    let tgid = (pid_tgid >> 32) as u32;
    // SAFETY: the tracepoint's own argument, which the verifier knows as a socket.
    let cookie = unsafe { bpf_get_socket_cookie(sock) };
    let now = inflight::now();
    let socket = of(cookie, tgid, now, sock)?;
    // SAFETY: the verifier checked the value; two threads on one socket write the same bits.
    let socket = unsafe { &mut *socket };
    socket.used_ns = now;
    if socket.state & socket_state::ENCRYPTED != 0 {
        return None;
    }
    let Some(call) = syscalls::current(pid_tgid, now) else {
        unseen(socket, cookie, bytes, direction);
        return None;
    };
    // Through the map, so that the compiler forgets that it was a 32-bit argument of the tracepoint: it would hand that on as a
    // length, of which the verifier knows no bound.
    // SAFETY: the verifier checked the value; only this thread uses it.
    let bytes = unsafe {
        core::ptr::write_volatile(&raw mut (*call).moved, bytes);
        core::ptr::read_volatile(&raw const (*call).moved)
    };
    syscalls::first_buffer(call, bytes)?;
    if socket.state & socket_state::HTTP == 0 || socket.state & socket_state::TUNNEL != 0 {
        judge(socket, call, cookie, bytes)?;
    }
    if socket.state & (socket_state::HTTP | socket_state::TOLD) == socket_state::HTTP {
        socket.state |= socket_state::TOLD;
        if let Some(conn) = CONNS.get_ptr_mut(&conn::key(tgid, socket_key(cookie))) {
            // SAFETY: the verifier checked the value.
            let conn = unsafe { &mut *conn };
            let known = flow::join_known(sock, cookie, &conn::key(tgid, socket_key(cookie)), conn, found::ITSELF);
            let seen = Seen { connect_ns: socket.connect_ns, ..known };
            tell_peer(sock, conn.id, tgid, pid_tgid as u32, &seen);
        }
    }
    let mut header = RecordHeader {
        // SAFETY: the verifier checked the value; only this thread uses it.
        entry_ns: unsafe { (*call).entry_ns },
        return_ns: now,
        tgid,
        tid: pid_tgid as u32,
        kind: direction,
        ..RecordHeader::default()
    };
    let conn = CONNS.get_ptr_mut(&conn::key(tgid, socket_key(cookie)))?;
    // SAFETY: the verifier checked the value. Two threads that use one socket in one direction at once take turns in the kernel, and
    // a count that they lose to each other becomes a contradiction that the core counts.
    let conn = unsafe { &mut *conn };
    if direction == kind::READ {
        conn::moved_in(conn, &mut header, bytes)?;
        if flags & MSG_TRUNC != 0 {
            return None; // taken from the socket, but not put anywhere: the next record shows the gap
        }
        emit::gathered::<emit::ToReads>(&header, call, bytes, Window::ALL);
    } else {
        let window = conn::moved_out(conn, &mut header, bytes)?;
        header.flags |= flag::SENT;
        emit::gathered::<emit::ToWrites>(&header, call, bytes, window);
    }
    Some(())
}

/// What is known of a socket; a socket met for the first time is made known.
#[inline(always)]
pub fn of(cookie: u64, tgid: u32, now: u64, sock: Sock) -> Option<*mut Socket> {
    if let Some(known) = SOCKETS.get_ptr_mut(&cookie) {
        // SAFETY: the verifier checked the value.
        if unsafe { (*known).tgid } == tgid {
            return Some(known);
        }
        // Another process uses it now (a fork): what this one does on it is a connection of its own.
    }
    let family: u16 = field(sock, maps::sock_family_offset());
    let stream = field::<u16>(sock, maps::sock_type_offset()) == SOCK_STREAM;
    let state = match family {
        AF_UNIX if stream => socket_state::UNIX,
        AF_INET | AF_INET6 if stream => socket_state::TCP,
        _ => socket_state::ENCRYPTED, // datagrams: never looked at
    };
    let socket = Socket { tgid, state, used_ns: now, ..Socket::default() };
    if SOCKETS.insert(&cookie, &socket, 0).is_err() {
        count(Counter::SocketsFull);
    }
    SOCKETS.get_ptr_mut(&cookie)
}

/// Bytes moved by a way that shows no buffer: a gap of known size.
#[inline(always)]
fn unseen(socket: &mut Socket, cookie: u64, bytes: u64, direction: u16) {
    if socket.state & socket_state::HTTP == 0 {
        socket.state |= socket_state::USED;
        return;
    }
    count(Counter::PlainUnseen);
    if let Some(conn) = CONNS.get_ptr_mut(&conn::key(socket.tgid, socket_key(cookie))) {
        // SAFETY: the verifier checked the value.
        let conn = unsafe { &mut *conn };
        let mut header = RecordHeader::default();
        if direction == kind::READ {
            let _ = conn::moved_in(conn, &mut header, bytes);
        } else {
            let _ = conn::moved_out(conn, &mut header, bytes);
        }
    }
}

/// Looks at the first bytes of a call on a socket that is not known to carry HTTP. `None`: they are not to be copied.
#[inline(always)]
fn judge(socket: &mut Socket, call: *mut SockCall, cookie: u64, bytes: u64) -> Option<()> {
    let known = socket.state & socket_state::HTTP != 0;
    let first_seen = socket.state & socket_state::USED == 0;
    socket.state |= socket_state::USED;
    // SAFETY: the call's own value in the map.
    let (base, left) = unsafe { ((*call).base, (*call).left) };
    let mut first = 0u64;
    // SAFETY: the helper checks the user address and writes 8 bytes to a local. What lies behind a short call is not looked at.
    let read = unsafe { bpf_probe_read_user((&raw mut first).cast(), 8, base as *const core::ffi::c_void) };
    let n = if left < bytes { left } else { bytes };
    let seen = if read == 0 { look(first, n) } else { Look::Other };
    if known {
        // In a tunnel: TLS is left alone from its first record on; before that it is the answer to CONNECT.
        if seen != Look::Encrypted {
            return Some(());
        }
        socket.state = (socket.state & !socket_state::HTTP) | socket_state::ENCRYPTED;
        let pid = u64::from(socket.tgid);
        let _ = conn::retire(&conn::key(socket.tgid, socket_key(cookie)), (pid << 32) | pid);
        return None;
    }
    let flags = match seen {
        Look::Encrypted => {
            socket.state |= socket_state::ENCRYPTED;
            return None;
        }
        Look::Other => {
            add(Counter::PlainOtherBytes, bytes);
            return None;
        }
        // A request is the first thing on a connection, or follows an answer that was read: nothing of an exchange is missing.
        Look::Request | Look::Tunnel if first_seen => conn_flag::FROM_START,
        Look::Request | Look::Tunnel | Look::Response => 0,
    };
    if seen == Look::Tunnel {
        socket.state |= socket_state::TUNNEL;
    }
    socket.state |= socket_state::HTTP;
    conn::make(&conn::key(socket.tgid, socket_key(cookie)), flags);
    Some(())
}

/// Reads a member of a kernel structure into a record; zeros when it cannot be read.
#[inline(always)]
fn copy<T: Copy + Default>(sock: Sock, offset: u64, to: *mut T) {
    // SAFETY: the helper checks the address and writes as many bytes as the target has; it writes zeros when it fails.
    let _ = unsafe {
        bpf_probe_read_kernel(to.cast(), size_of::<T>() as u32, sock.cast::<u8>().wrapping_add(offset as usize).cast())
    };
}

/// Reports the addresses of a connection, and what else `seen` has to say of its socket.
#[inline(always)]
pub fn tell_peer(sock: Sock, conn: u64, tgid: u32, tid: u32, seen: &Seen) {
    let now = inflight::now();
    let fact = Fact { kind: kind::PEER, conn, tgid, tid, from_ns: now, until_ns: now, offset: 0 };
    emit::fact::<emit::ToReads, _>(fact, PeerOf { sock, seen });
}

/// A peer, read from its socket straight into the ring.
struct PeerOf<'a> {
    sock: Sock,
    seen: &'a Seen,
}

impl emit::Payload for PeerOf<'_> {
    const LEN: u32 = PEER_BYTES as u32;

    #[inline(always)]
    fn write(self, peer: *mut Peer) {
        let family: u16 = field(self.sock, maps::sock_family_offset());
        // SAFETY (all of this): a peer in the ring, every field of which is written.
        unsafe {
            (&raw mut (*peer).local).cast::<[u64; 2]>().write([0; 2]);
            (&raw mut (*peer).remote).cast::<[u64; 2]>().write([0; 2]);
            if family == AF_INET {
                copy(self.sock, maps::sock_saddr_offset(), (&raw mut (*peer).local).cast::<u32>());
                copy(self.sock, maps::sock_daddr_offset(), (&raw mut (*peer).remote).cast::<u32>());
            } else if family == AF_INET6 && maps::sock_v6_daddr_offset() != 0 {
                copy(self.sock, maps::sock_v6_saddr_offset(), &raw mut (*peer).local);
                copy(self.sock, maps::sock_v6_daddr_offset(), &raw mut (*peer).remote);
            }
            let ports = family != AF_UNIX;
            let (local, remote) = if ports {
                (field(self.sock, maps::sock_num_offset()), u16::from_be(field(self.sock, maps::sock_dport_offset())))
            } else {
                (0, 0)
            };
            (&raw mut (*peer).local_port).write(local);
            (&raw mut (*peer).remote_port).write(remote);
            (&raw mut (*peer).family).write(family);
            (&raw mut (*peer).found).write(self.seen.found);
            (&raw mut (*peer).connect_ns).write(self.seen.connect_ns);
            (&raw mut (*peer).tls_ns).write(self.seen.tls_ns);
            (&raw mut (*peer).retransmits).write(self.seen.retransmits);
            (&raw mut (*peer).zero).write(0);
        }
    }
}

/// What was seen of a socket before its connection was known.
#[derive(Clone, Copy)]
pub struct Seen {
    /// How it was found (`record::found`).
    pub found: u16,
    /// Duration of `connect`, ns; 0: not seen. So with the next one.
    pub connect_ns: u64,
    /// Duration of the TLS handshake, ns.
    pub tls_ns: u64,
    /// Segments sent again.
    pub retransmits: u32,
}

/// States of TCP (include/net/tcp_states.h).
pub const ESTABLISHED: i32 = 1;
pub const SYN_SENT: i32 = 2;
const FIN_WAIT1: i32 = 4;
const CLOSE: i32 = 7;
const LAST_ACK: i32 = 9;
const CLOSING: i32 = 11;

/// Both directions are shut (include/net/sock.h): as `close` leaves it, before it changes the state.
const SHUTDOWN_MASK: u8 = 3;

/// `inet_sock_set_state(sk, oldstate, newstate)`.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn plain_state(ctx: BtfTracePointContext) -> i32 {
    let _ = state_changed(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

#[inline(always)]
fn state_changed(sock: Sock, from: i32, to: i32) -> Option<()> {
    match to {
        // In the thread that connects.
        SYN_SENT => {
            let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
            if syscalls::wanted_of(tgid) != 0 {
                let now = inflight::now();
                let state = socket_state::TCP;
                let socket = Socket { tgid, state, connect_from: now, used_ns: now, ..Socket::default() };
                // SAFETY: the tracepoint's own argument.
                let _ = SOCKETS.insert(&unsafe { bpf_get_socket_cookie(sock) }, &socket, 0);
            }
        }
        // From here on in any thread, or in none.
        ESTABLISHED if from == SYN_SENT => {
            // SAFETY: as above.
            let socket = SOCKETS.get_ptr_mut(&unsafe { bpf_get_socket_cookie(sock) })?;
            // SAFETY: the verifier checked the value.
            unsafe { (*socket).connect_ns = inflight::now().wrapping_sub((*socket).connect_from) };
        }
        // A process that only shut its sending side still reads; `close` has shut both before it comes here.
        FIN_WAIT1 | CLOSE | LAST_ACK | CLOSING => {
            if field::<u8>(sock, maps::sock_shutdown_offset()) == SHUTDOWN_MASK {
                ended(sock);
            }
        }
        _ => {}
    }
    Some(())
}

/// `tcp_destroy_sock(sk)`: the last that is heard of a socket, also of one that the peer had reset before it was closed.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn plain_destroyed(ctx: BtfTracePointContext) -> i32 {
    ended(ctx.arg(0));
    0
}

#[inline(always)]
fn ended(sock: Sock) {
    // SAFETY: the tracepoint's own argument.
    let cookie = unsafe { bpf_get_socket_cookie(sock) };
    let Some(socket) = SOCKETS.get_ptr(&cookie) else { return };
    // SAFETY: the verifier checked the value.
    let (tgid, state, joined) = unsafe { ((*socket).tgid, (*socket).state, (*socket).conn) };
    let _ = SOCKETS.remove(&cookie);
    if joined != 0 {
        let pid = u64::from(tgid);
        let _ = conn::retire(&conn::key(tgid, joined), (pid << 32) | pid);
    }
    if state & socket_state::HTTP != 0 {
        let pid = u64::from(tgid);
        let _ = conn::retire(&conn::key(tgid, socket_key(cookie)), (pid << 32) | pid);
    }
}
