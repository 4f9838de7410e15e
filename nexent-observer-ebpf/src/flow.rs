//! Phases of a connection, from its TCP socket: connect, TLS handshake, when written bytes were with the socket, how long data lay in
//! it unread, what was sent again. From BTF tracepoints (include/trace/events/sock.h, tcp.h), for sockets of targets only.
//!
//! Which socket a TLS object uses is never looked up in the process's memory. A thread that is inside a TLS write and sends does it
//! for that write; where TLS only fills a buffer (asyncio, Node), the thread's next send is taken if, and only if, what it sends begins
//! with a TLS record that fits the write. The read side tells nothing: an event loop receives from several sockets before it decrypts.
//! A goroutine takes the place of the thread in Go, for it may change its thread inside a write.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_socket_cookie, bpf_probe_read_user},
    },
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use nexent_observer_common::{
    counters::Counter,
    record::{AF_INET, AF_INET6, LATE_NS, RecordHeader, flag, found, kind},
    state::{CallKey, Conn, ConnKey, Flow, MORE_THAN_A_HANDSHAKE, Unseen, Writer, flow_slot, flow_state, writer_state},
    tls::{Header, RECORD_HEADER, least_on_wire},
};

use crate::{
    conn::{self, NO_EXIST},
    emit::{self, Fact},
    inflight::now,
    maps::{self, CONNS, FLOW_SLOTS, FLOWS, TARGETS, UNSEEN, WRITERS, count},
    socket::{self, Seen, Sock},
    syscalls,
};

/// Values of new entries. Statics, because the stack has no room for them.
#[unsafe(no_mangle)]
static NO_WRITER: Writer =
    Writer { tls: 0, conn: 0, begun_ns: 0, until_ns: 0, first: 0, need: 0, cookie: 0, sent: 0, state: 0 };
#[unsafe(no_mangle)]
static NO_FLOW: Flow = Flow {
    conn: 0,
    tls: 0,
    tgid: 0,
    state: 0,
    sock: 0,
    connect_from: 0,
    connect_ns: 0,
    hello_ns: 0,
    handshake_ns: 0,
    unread_ns: 0,
    sent: 0,
    need: 0,
    until_ns: 0,
    unclaimed: 0,
    retransmits: 0,
    zero: 0,
};
#[unsafe(no_mangle)]
static NOTHING_UNSEEN: Unseen = Unseen { bytes: 0, ended: 0 };

/// `CONNECT ` as a word in memory order: a proxy is asked for a tunnel, and TLS comes through it.
const CONNECT: u64 = u64::from_le_bytes(*b"CONNECT ");

/// Records at the head of a send that are looked through for the one that begins a write: the end of a handshake may go first.
const RECORDS_BEFORE: u32 = 4;

/// Whether phases are looked at in this process.
#[inline(always)]
fn wanted(tgid: u32) -> bool {
    // SAFETY: only presence matters.
    maps::phases() != 0 && unsafe { TARGETS.get(&tgid) }.is_some()
}

/// Who writes: the thread.
#[inline(always)]
pub fn thread(pid_tgid: u64) -> CallKey {
    CallKey { pid_tgid, sp: 0 }
}

/// Who writes: the goroutine. Nothing of it is a thread's key: no address of a goroutine is 0.
#[inline(always)]
pub fn goroutine(pid_tgid: u64, g: u64) -> CallKey {
    CallKey { pid_tgid: pid_tgid & 0xffff_ffff_0000_0000, sp: g }
}

/// A TLS write begins. Only where the connection's socket is not known is anything to be done.
#[inline(always)]
pub fn write_begins(tls: u64, tgid: u32, writer: &CallKey) {
    if maps::phases() == 0 {
        return;
    }
    if let Some(conn) = CONNS.get_ptr(&conn::key(tgid, tls)) {
        // SAFETY: the verifier checked the value.
        if unsafe { (*conn).socket } != 0 {
            return;
        }
    }
    let mut state = writer_state::INSIDE;
    if let Some(before) = WRITERS.get_ptr_mut(writer) {
        // SAFETY: the verifier checked the value; only this thread uses this key.
        let before = unsafe { &mut *before };
        if before.tls != tls {
            state |= writer_state::CROWDED;
        } else if before.state & writer_state::PENDING != 0 {
            before.state |= writer_state::INSIDE;
            return;
        }
    }
    let _ = WRITERS.insert(writer, &NO_WRITER, 0);
    let Some(begun) = WRITERS.get_ptr_mut(writer) else { return };
    // SAFETY: as above.
    let begun = unsafe { &mut *begun };
    (begun.tls, begun.begun_ns, begun.state) = (tls, now(), state);
}

/// A TLS write is over. One that failed leaves nothing behind.
#[inline(always)]
pub fn write_over(writer: &CallKey) {
    if let Some(known) = WRITERS.get_ptr(writer) {
        // SAFETY: the verifier checked the value.
        if unsafe { (*known).state } & writer_state::INSIDE != 0 {
            let _ = WRITERS.remove(writer);
        }
    }
}

/// A TLS write has moved `bytes`; says in `header` whether the socket has all of them.
#[inline(always)]
pub fn wrote(conn: &mut Conn, key: &ConnKey, writer: &CallKey, header: &mut RecordHeader, bytes: u64) {
    if maps::phases() == 0 {
        return;
    }
    if conn.socket != 0 {
        let Some(flow) = FLOWS.get_ptr_mut(&conn.socket) else { return };
        // SAFETY: the verifier checked the value. Sends of one TLS connection follow its writes, on whatever thread.
        let flow = unsafe { &mut *flow };
        if flow.conn != conn.id {
            return;
        }
        if flow.need == 0 && flow.state & flow_state::INSIDE == 0 {
            flow.sent = 0; // what was sent without a write: answers to pings of TLS itself
        }
        flow.need = flow.need.wrapping_add(least_on_wire(bytes));
        flow.until_ns = header.return_ns;
        if flow.sent >= flow.need {
            header.flags |= flag::SENT;
            (flow.sent, flow.need) = (0, 0);
        }
        return;
    }
    let Some(known) = WRITERS.get_ptr_mut(writer) else { return };
    // SAFETY: the verifier checked the value; only this thread uses this key.
    let known = unsafe { &mut *known };
    if known.tls != key.tls || known.state & writer_state::INSIDE == 0 {
        return;
    }
    let least = least_on_wire(bytes);
    if known.cookie != 0 {
        let Writer { cookie, sent, begun_ns, .. } = *known;
        let usable = known.state & writer_state::PENDING == 0 && sent >= least;
        let _ = WRITERS.remove(writer);
        if usable && join(cookie, conn, key, found::INSIDE_WRITE, begun_ns, header.tid) {
            header.flags |= flag::SENT;
        }
        return;
    }
    if known.state & writer_state::CROWDED != 0 {
        let _ = WRITERS.remove(writer);
        return;
    }
    if known.state & writer_state::PENDING == 0 {
        known.first = bytes;
    }
    known.conn = conn.id;
    known.need = known.need.wrapping_add(least);
    known.until_ns = header.return_ns;
    known.state = writer_state::PENDING;
}

/// Bytes of a write that nobody asks for (a verdict): what the socket took says nothing of the next one.
#[inline(always)]
pub fn wrote_unheard(conn: &Conn) {
    if let Some(flow) = FLOWS.get_ptr_mut(&conn.socket) {
        // SAFETY: the verifier checked the value.
        unsafe { ((*flow).sent, (*flow).need) = (0, 0) };
    }
}

/// A connection is known to be on this socket: tells its addresses and what was seen before. `false`: the socket is not known, or
/// carries another connection.
#[inline(always)]
fn join(cookie: u64, conn: &mut Conn, key: &ConnKey, how: u16, begun_ns: u64, tid: u32) -> bool {
    let Some(flow) = FLOWS.get_ptr_mut(&cookie) else { return false };
    // SAFETY: the verifier checked the value.
    let flow = unsafe { &mut *flow };
    if flow.conn != 0 || flow.tgid != key.tgid {
        return false;
    }
    let sock = flow.sock as Sock;
    if socket::field::<u64>(sock, maps::sock_cookie_offset()) != cookie {
        return false; // the kernel's structure serves another socket by now
    }
    (flow.conn, flow.tls, conn.socket) = (conn.id, key.tls, cookie);
    if how == found::INSIDE_WRITE {
        flow.state |= flow_state::INSIDE;
    }
    let (hello, end) = (flow.hello_ns, flow.handshake_ns);
    let whole = hello != 0 && end > hello && end <= begun_ns && flow.state & flow_state::BLURRED == 0;
    let seen = Seen {
        found: how,
        connect_ns: flow.connect_ns,
        tls_ns: if whole { end.wrapping_sub(hello) } else { 0 },
        retransmits: flow.retransmits,
    };
    socket::tell_peer(sock, conn.id, key.tgid, tid, &seen);
    true
}

/// Which connection is on a socket is known otherwise: it is the socket itself (plain HTTP), or its keys were joined (rustls). What was
/// seen of it before. The end of a handshake is not: nothing tells it from what came after it.
#[inline(always)]
pub fn join_known(sock: Sock, cookie: u64, key: &ConnKey, conn: &mut Conn, how: u16) -> Seen {
    let mut seen = Seen { found: found::ADDRESSES_ONLY, connect_ns: 0, tls_ns: 0, retransmits: 0 };
    if maps::phases() != 0
        && is_tcp(sock)
        && known_or_made(sock, cookie, key.tgid)
        && let Some(flow) = FLOWS.get_ptr_mut(&cookie)
    {
        // SAFETY: the verifier checked the value.
        let flow = unsafe { &mut *flow };
        (flow.conn, flow.tls, conn.socket) = (conn.id, key.tls, cookie);
        flow.state |= flow_state::INSIDE;
        (seen.found, seen.connect_ns, seen.retransmits) = (how, flow.connect_ns, flow.retransmits);
    }
    seen
}

/// The connection ends; its socket may outlive it. Data that was never read is told.
#[inline(always)]
pub fn leave(conn: &Conn, pid_tgid: u64) {
    if conn.socket == 0 {
        return;
    }
    let Some(flow) = FLOWS.get_ptr_mut(&conn.socket) else { return };
    // SAFETY: the verifier checked the value.
    let flow = unsafe { &mut *flow };
    if flow.conn == conn.id {
        late(flow, flow.unread_ns, now(), pid_tgid);
        (flow.conn, flow.state, flow.need, flow.sent) = (0, 0, 0, 0);
        (flow.connect_ns, flow.hello_ns, flow.handshake_ns, flow.retransmits) = (0, 0, 0, 0);
        flow.unclaimed = 0;
    }
}

#[inline(always)]
fn is_tcp(sock: Sock) -> bool {
    const SOCK_STREAM: u16 = 1;
    let family: u16 = socket::field(sock, maps::sock_family_offset());
    (family == AF_INET || family == AF_INET6) && socket::field::<u16>(sock, maps::sock_type_offset()) == SOCK_STREAM
}

#[inline(always)]
fn known_or_made(sock: Sock, cookie: u64, tgid: u32) -> bool {
    FLOWS.get_ptr(&cookie).is_some() || made(sock, cookie, tgid).is_some()
}

/// Whether a socket may be known. The programs run for every send, receive and arrival of the host: most end here, without a search in a
/// map.
#[inline(always)]
fn may_be_known(cookie: u64) -> bool {
    // SAFETY: the verifier checked the slot.
    FLOW_SLOTS.get_ptr(flow_slot(cookie)).is_some_and(|slot| unsafe { core::ptr::read_volatile(slot) != 0 })
}

/// Counts a socket in, or out. Two programs on two processors may do so at once.
#[inline(always)]
fn count_known(cookie: u64, change: u64) {
    if let Some(slot) = FLOW_SLOTS.get_ptr_mut(flow_slot(cookie)) {
        // SAFETY: the verifier checked the slot, an aligned word of a map.
        unsafe { conn::fetch_add(slot, change) };
    }
}

/// Makes a socket known, as a new one.
#[inline(always)]
fn made(sock: Sock, cookie: u64, tgid: u32) -> Option<*mut Flow> {
    let fresh = FLOWS.get_ptr(&cookie).is_none();
    if fresh {
        count_known(cookie, 1); // before it is there: what is known is never overlooked
    }
    if FLOWS.insert(&cookie, &NO_FLOW, 0).is_err() {
        if fresh {
            count_known(cookie, u64::MAX);
        }
        count(Counter::SocketsFull);
        return None;
    }
    let flow = FLOWS.get_ptr_mut(&cookie)?;
    // SAFETY: the verifier checked the value.
    unsafe { ((*flow).tgid, (*flow).sock) = (tgid, sock as u64) };
    Some(flow)
}

/// `sock_send_length(sk, ret, flags)`: the socket has taken `ret` bytes.
#[btf_tracepoint(function = "sock_send_length")]
pub fn flow_sent(ctx: BtfTracePointContext) -> i32 {
    let _ = sent(ctx.arg(0), ctx.arg(1));
    0
}

#[inline(always)]
fn sent(sock: Sock, bytes: i32) -> Option<()> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if bytes <= 0 || !wanted(tgid) {
        return None;
    }
    let bytes = bytes as u64;
    // SAFETY: the tracepoint's own argument, which the verifier knows as a socket.
    let cookie = unsafe { bpf_get_socket_cookie(sock) };
    if let Some(flow) = FLOWS.get_ptr_mut(&cookie) {
        // SAFETY: the verifier checked the value.
        let flow = unsafe { &mut *flow };
        if flow.conn != 0 {
            if flow.tgid == tgid {
                carried(flow, bytes, pid_tgid);
            }
            return None;
        }
    }
    let mut writer = thread(pid_tgid);
    if WRITERS.get_ptr(&writer).is_none() {
        writer = goroutine(pid_tgid, syscalls::goroutine()?);
    }
    let Some(known) = WRITERS.get_ptr_mut(&writer) else { return unclaimed_sent(cookie, bytes) };
    if !is_tcp(sock) {
        return None; // a thread that is woken up, a name service: not the network
    }
    if !known_or_made(sock, cookie, tgid) {
        return None;
    }
    // SAFETY: the verifier checked the value; only this thread uses this key.
    let known = unsafe { &mut *known };
    if known.state & writer_state::INSIDE != 0 {
        if known.cookie == 0 || known.cookie == cookie {
            known.cookie = cookie;
            known.sent = known.sent.wrapping_add(bytes);
        } else {
            known.state |= writer_state::PENDING; // two sockets in one write: neither is it
        }
        return None;
    }
    let taken = next_send(cookie, known, tgid, bytes, pid_tgid);
    let _ = WRITERS.remove(&writer);
    taken
}

/// The first send of a thread after TLS writes.
#[inline(always)]
fn next_send(cookie: u64, waiting: &Writer, tgid: u32, bytes: u64, pid_tgid: u64) -> Option<()> {
    let flow = FLOWS.get_ptr_mut(&cookie)?;
    // SAFETY: the verifier checked the value.
    let flow = unsafe { &mut *flow };
    let key = conn::key(tgid, waiting.tls);
    let begins = write_at(waiting.first, bytes);
    if begins < bytes
        && let Some(conn) = CONNS.get_ptr_mut(&key)
    {
        // SAFETY: the verifier checked the value.
        let conn = unsafe { &mut *conn };
        if conn.id == waiting.conn
            && conn.socket == 0
            && join(cookie, conn, &key, found::NEXT_SEND, waiting.begun_ns, pid_tgid as u32)
        {
            (flow.need, flow.until_ns) = (waiting.need, waiting.until_ns);
            carried(flow, bytes - begins, pid_tgid);
            return Some(());
        }
    }
    flow.state |= flow_state::BLURRED;
    None
}

/// The socket of a connection has taken more bytes: all that was written may be with it now.
#[inline(always)]
fn carried(flow: &mut Flow, bytes: u64, pid_tgid: u64) {
    flow.sent = flow.sent.wrapping_add(bytes);
    if flow.need == 0 || flow.sent < flow.need {
        return;
    }
    (flow.sent, flow.need) = (0, 0);
    let at = now();
    // Behind the writes of which it speaks.
    tell::<emit::ToWrites>(kind::SENT, flow.conn, pid_tgid, at, at, flow.until_ns);
}

#[inline(always)]
fn tell<R: emit::ToRing>(kind: u16, conn: u64, pid_tgid: u64, from_ns: u64, until_ns: u64, offset: u64) {
    let (tgid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
    emit::fact::<R, ()>(Fact { kind, conn, tgid, tid, from_ns, until_ns, offset }, ());
}

/// The first eight bytes at a user address, as a word in memory order.
#[inline(always)]
fn word_at(at: u64) -> u64 {
    let mut word = 0u64;
    // SAFETY: the helper checks the user address and writes 8 bytes to a local. What lies behind a short buffer is compared with
    // what a record looks like, and goes nowhere.
    let read = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, at as *const core::ffi::c_void) };
    if read == 0 { u64::from_le(word) } else { 0 }
}

/// Offset in the current send, of `bytes`, of the record that begins a write of `first` bytes; `bytes` when there is none.
#[inline(always)]
fn write_at(first: u64, bytes: u64) -> u64 {
    let Some(base) = syscalls::buffer() else { return bytes };
    let mut at = 0u64;
    for _ in 0..RECORDS_BEFORE {
        if at.wrapping_add(RECORD_HEADER) > bytes {
            return bytes;
        }
        let header = Header::of(word_at(base.wrapping_add(at)));
        if header.begins_write(first) {
            return at;
        }
        if !header.is_tls() {
            return bytes;
        }
        at = at.wrapping_add(RECORD_HEADER).wrapping_add(header.length());
    }
    bytes
}

/// A send without a write before it: of a handshake, once that has begun, or of TLS that no probe sees.
#[inline(always)]
fn unclaimed_sent(cookie: u64, bytes: u64) -> Option<()> {
    let flow = FLOWS.get_ptr_mut(&cookie)?;
    // SAFETY: the verifier checked the value.
    let flow = unsafe { &mut *flow };
    if flow.hello_ns != 0 {
        flow.handshake_ns = now();
        flow.unclaimed = flow.unclaimed.wrapping_add(bytes);
        unseen(flow, bytes);
        return Some(());
    }
    let begins = word_at(syscalls::buffer()?);
    if Header::of(begins).is_handshake() {
        flow.hello_ns = now();
    } else if begins != CONNECT {
        flow.state |= flow_state::PRELUDE;
    }
    Some(())
}

/// Bytes moved on a socket with TLS of which no connection is known.
#[inline(always)]
fn unseen(flow: &Flow, bytes: u64) {
    if flow.unclaimed < MORE_THAN_A_HANDSHAKE || flow.state & flow_state::PRELUDE != 0 {
        return;
    }
    if UNSEEN.get_ptr(&flow.tgid).is_none() {
        let _ = UNSEEN.insert(&flow.tgid, &NOTHING_UNSEEN, NO_EXIST);
    }
    if let Some(unseen) = UNSEEN.get_ptr_mut(&flow.tgid) {
        // SAFETY: the verifier checked the value. Two threads may lose a count to each other: it is compared with nothing.
        unsafe { (*unseen).bytes = (*unseen).bytes.wrapping_add(bytes) };
    }
}

/// A connection of TLS has ended of which bytes were seen.
#[inline(always)]
pub fn seen_ended(tgid: u32) {
    if let Some(unseen) = UNSEEN.get_ptr_mut(&tgid) {
        // SAFETY: as above.
        unsafe { (*unseen).ended = (*unseen).ended.wrapping_add(1) };
    }
}

/// `sock_recv_length(sk, ret, flags)`: the process has taken `ret` bytes from the socket.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn flow_received(ctx: BtfTracePointContext) -> i32 {
    let _ = received(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

#[inline(always)]
fn received(sock: Sock, bytes: i32, flags: u32) -> Option<()> {
    // SAFETY: as in `sent`.
    let cookie = unsafe { bpf_get_socket_cookie(sock) };
    if !may_be_known(cookie) {
        return None;
    }
    let flow = FLOWS.get_ptr_mut(&cookie)?;
    if bytes < 0 || flags & socket::NOT_TAKEN != 0 {
        return None;
    }
    // SAFETY: the verifier checked the value.
    let flow = unsafe { &mut *flow };
    let at = now();
    let since = flow.unread_ns;
    flow.unread_ns = 0;
    // What is left waits for the next call from now on. Looked at after the store: what arrives in between is not overlooked.
    let next: u32 = socket::field(sock, maps::tcp_rcv_nxt_offset());
    let taken: u32 = socket::field(sock, maps::tcp_copied_seq_offset());
    if next != taken && flow.unread_ns == 0 {
        flow.unread_ns = at;
    }
    if flow.conn != 0 {
        late(flow, since, at, bpf_get_current_pid_tgid());
    } else if flow.hello_ns != 0 {
        unseen(flow, bytes as u64);
        // Only what can be nothing else: tickets of TLS 1.3 come after the handshake and look like data.
        if Header::of(word_at(syscalls::buffer()?)).is_handshake() {
            flow.handshake_ns = at;
        }
    }
    Some(())
}

/// Tells that data lay unread for long.
#[inline(always)]
fn late(flow: &Flow, since: u64, at: u64, pid_tgid: u64) {
    if since != 0 && at > since && at - since >= LATE_NS {
        tell::<emit::ToReads>(kind::LATE, flow.conn, pid_tgid, since, at, 0);
    }
}

/// `sk_data_ready(sk)`: data has arrived. In any thread, or in none.
#[btf_tracepoint(function = "sk_data_ready")]
pub fn flow_arrived(ctx: BtfTracePointContext) -> i32 {
    let sock: Sock = ctx.arg(0);
    // SAFETY: as in `sent`.
    let cookie = unsafe { bpf_get_socket_cookie(sock) };
    if may_be_known(cookie)
        && let Some(flow) = FLOWS.get_ptr_mut(&cookie)
    {
        // SAFETY: the verifier checked the value.
        unsafe {
            if (*flow).unread_ns == 0 {
                (*flow).unread_ns = now();
            }
        }
    }
    0
}

/// `tcp_retransmit_skb(sk, skb)`: a segment is sent again.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn flow_retransmitted(ctx: BtfTracePointContext) -> i32 {
    let sock: Sock = ctx.arg(0);
    // SAFETY: as in `sent`.
    let cookie = unsafe { bpf_get_socket_cookie(sock) };
    if may_be_known(cookie)
        && let Some(flow) = FLOWS.get_ptr_mut(&cookie)
    {
        // SAFETY: the verifier checked the value; the kernel holds the socket.
        let flow = unsafe { &mut *flow };
        flow.retransmits = flow.retransmits.wrapping_add(1);
        if flow.conn != 0 {
            let (at, pid) = (now(), u64::from(flow.tgid));
            tell::<emit::ToReads>(kind::RETRANSMIT, flow.conn, (pid << 32) | pid, at, at, 0);
        }
    }
    0
}

/// `inet_sock_set_state(sk, oldstate, newstate)`.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn flow_state_changed(ctx: BtfTracePointContext) -> i32 {
    let _ = state_changed(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

#[inline(always)]
fn state_changed(sock: Sock, from: i32, to: i32) -> Option<()> {
    match to {
        // In the thread that connects.
        socket::SYN_SENT => {
            let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
            if wanted(tgid) {
                // SAFETY: as in `sent`.
                let flow = made(sock, unsafe { bpf_get_socket_cookie(sock) }, tgid)?;
                // SAFETY: the verifier checked the value.
                unsafe { (*flow).connect_from = now() };
            }
        }
        socket::ESTABLISHED if from == socket::SYN_SENT => {
            // SAFETY: as in `sent`.
            let flow = FLOWS.get_ptr_mut(&unsafe { bpf_get_socket_cookie(sock) })?;
            // SAFETY: the verifier checked the value.
            unsafe { (*flow).connect_ns = now().wrapping_sub((*flow).connect_from) };
        }
        _ => {}
    }
    Some(())
}

/// `tcp_destroy_sock(sk)`: the last that is heard of a socket.
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn flow_destroyed(ctx: BtfTracePointContext) -> i32 {
    let sock: Sock = ctx.arg(0);
    // SAFETY: as in `sent`.
    let cookie = unsafe { bpf_get_socket_cookie(sock) };
    if may_be_known(cookie)
        && let Some(flow) = FLOWS.get_ptr_mut(&cookie)
    {
        // SAFETY: the verifier checked the value.
        let flow = unsafe { &mut *flow };
        if flow.conn != 0 {
            let pid = u64::from(flow.tgid);
            late(flow, flow.unread_ns, now(), (pid << 32) | pid);
            if let Some(conn) = CONNS.get_ptr_mut(&conn::key(flow.tgid, flow.tls)) {
                // SAFETY: the verifier checked the value.
                let conn = unsafe { &mut *conn };
                if conn.socket == cookie {
                    conn.socket = 0;
                }
            }
        }
        if FLOWS.remove(&cookie).is_ok() {
            count_known(cookie, u64::MAX);
        }
    }
    0
}
