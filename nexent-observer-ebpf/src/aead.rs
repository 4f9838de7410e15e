//! rustls with aws-lc, at the functions that seal and open records: `EVP_AEAD_CTX_seal`, `EVP_AEAD_CTX_seal_scatter` (TLS 1.2) and
//! `EVP_AEAD_CTX_open`. Where each probe sits is decided in user space (probe/aws_lc).
//!
//! Such a call knows a key, not a connection, and the two directions have keys of their own. What joins them is the socket: rustls opens
//! a record in the very memory into which the same thread received it, and sends it from the very memory into which it sealed it. So `socket.rs` tells here what each thread of such a process does on its sockets. A key is known by its address and by the part of its nonces that
//! never changes, for addresses are used again; once its socket is known it is never asked again. A new key on a socket that has
//! one is believed only after the old one carried a `KeyUpdate`.
//!
//! Only records of TLS count: the additional data is their header, and says their length. Of these, only application data goes on.

use aya_ebpf::{
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_socket_cookie, bpf_probe_read_user},
    },
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use nexent_observer_common::{
    counters::Counter,
    plain::{Look, look},
    record::{found, kind},
    state::{Aead, AeadKey, Call, CallKey, Socket, Thread, aead_conn_key, conn_flag, socket_state},
};

use crate::{
    conn, emit, flow,
    inflight::{self, Returned},
    maps::{AEADS, CONNS, INFLIGHT, SEALED, SOCKETS, THREADS, count},
    openssl::header_of,
    socket::{self, Sock},
    syscalls,
};

/// Content types (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Messages of the handshake that go under the keys of application data (RFC 8446 section 4): with them, and with data, a key may be
/// joined to its socket. The keys of the handshake itself are others, and are never joined.
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// Bytes that a tag adds to a record: all suites of TLS that aws-lc has.
const TAG: u64 = 16;
const NONCE: u64 = 12;
/// Bytes of a record's header.
const HEADER: u64 = 5;
/// Bytes of the nonce that a record of TLS 1.2 carries with AES-GCM (RFC 5288 section 3).
const EXPLICIT_NONCE: u64 = 8;

/// Longest from the sealing of a `KeyUpdate` to that of the first record under the new key, ns, when a thread does both at once. What
/// it takes for the new key then is checked when the record is sent.
const REKEY_NS: u64 = 100_000_000;

/// What a call of these functions was given, as far as it matters.
#[derive(Clone, Copy)]
struct Given {
    ctx: u64,
    out: u64,
    /// Where the length of what was opened will stand.
    out_len: u64,
    nonce: u64,
    nonce_len: u64,
    input: u64,
    input_len: u64,
    ad: u64,
    ad_len: u64,
}

/// Bit of `Call::cut` beside the content type: the record lies where this thread received last.
const RECEIVED_HERE: u64 = 1 << 8;

/// A TLS record by its additional data.
#[derive(Clone, Copy)]
struct Head {
    /// Its content type; 0: it stands inside (TLS 1.3).
    content: u8,
    iv: u64,
}

#[inline(always)]
fn read_user<T: Copy>(at: u64, mut into: T) -> Option<T> {
    // SAFETY: the helper checks the user address and writes as many bytes as the local has; any bits are valid in what is read here.
    let result =
        unsafe { bpf_probe_read_user((&raw mut into).cast(), size_of::<T>() as u32, at as *const core::ffi::c_void) };
    (result == 0).then_some(into)
}

/// Arguments of `EVP_AEAD_CTX_seal` and `EVP_AEAD_CTX_open`: `(ctx, out, out_len, max_out_len, nonce, nonce_len, in, in_len, ad, ad_len)`.
#[inline(always)]
fn given(ctx: &ProbeContext) -> Option<Given> {
    let regs = ctx.regs;
    #[cfg(bpf_target_arch = "x86_64")]
    let [input, input_len, ad, ad_len] = read_user(inflight::stack_pointer(regs).wrapping_add(8), [0u64; 4])?;
    #[cfg(bpf_target_arch = "aarch64")]
    let [input, input_len, ad, ad_len] = {
        let [ad, ad_len] = read_user(inflight::stack_pointer(regs), [0u64; 2])?;
        [inflight::seventh_argument(regs), inflight::eighth_argument(regs), ad, ad_len]
    };
    Some(Given {
        ctx: ctx.arg(0)?,
        out: ctx.arg(1)?,
        out_len: ctx.arg(2)?,
        nonce: inflight::fifth_argument(regs),
        nonce_len: inflight::sixth_argument(regs),
        input,
        input_len,
        ad,
        ad_len,
    })
}

/// Arguments of `EVP_AEAD_CTX_seal_scatter`: `(ctx, out, out_tag, out_tag_len, max_out_tag_len, nonce, nonce_len, in, in_len, extra_in,
/// extra_in_len, ad, ad_len)`.
#[inline(always)]
fn given_scatter(ctx: &ProbeContext) -> Option<Given> {
    let regs = ctx.regs;
    #[cfg(bpf_target_arch = "x86_64")]
    let [nonce_len, input, input_len, _, extra, ad, ad_len] =
        read_user(inflight::stack_pointer(regs).wrapping_add(8), [0u64; 7])?;
    #[cfg(bpf_target_arch = "aarch64")]
    let [nonce_len, input, input_len, extra, ad, ad_len] = {
        let [input_len, _, extra, ad, ad_len] = read_user(inflight::stack_pointer(regs), [0u64; 5])?;
        [inflight::seventh_argument(regs), inflight::eighth_argument(regs), input_len, extra, ad, ad_len]
    };
    if extra != 0 {
        return None; // not as rustls calls it
    }
    Some(Given {
        ctx: ctx.arg(0)?,
        out: ctx.arg(1)?,
        out_len: 0,
        nonce: inflight::sixth_argument(regs),
        nonce_len,
        input,
        input_len,
        ad,
        ad_len,
    })
}

/// Whether it is a TLS record, and which. The length in its header must be that of the call.
#[inline(always)]
fn head(given: &Given, seals: bool) -> Option<Head> {
    if given.nonce_len != NONCE {
        return None;
    }
    let (content, length, iv) = if given.ad_len == 5 {
        // TLS 1.3 (RFC 8446 section 5.2): opaque type, legacy version, length with the tag.
        let [opaque, major, minor, high, low] = read_user(given.ad, [0u8; 5])?;
        if opaque != APPLICATION_DATA || major != 3 || minor != 3 {
            return None;
        }
        let length = (u64::from(high) << 8) | u64::from(low);
        // The number of the record changes the last eight bytes of the nonce: its first four never, the next four after 2^32 records.
        (0, length, read_user(given.nonce, 0u64)?)
    } else if given.ad_len == 13 {
        // TLS 1.2 (RFC 5246 section 6.2.3.3): number, type, version, length without the tag.
        let [content, major, minor, high, low] = read_user(given.ad.wrapping_add(8), [0u8; 5])?;
        if major != 3 || minor != 3 {
            return None;
        }
        let length = (u64::from(high) << 8) | u64::from(low);
        (content, length.wrapping_add(TAG), u64::from(read_user(given.nonce, 0u32)?))
    } else {
        return None;
    };
    let whole = if seals { given.input_len.wrapping_add(TAG) } else { given.input_len };
    (length == whole).then_some(Head { content, iv })
}

/// `EVP_AEAD_CTX_seal`: the plaintext is there now, and may be gone when it returns.
#[uprobe]
pub fn aead_seal_enter(ctx: ProbeContext) -> u32 {
    let _ = of_target(&ctx).and_then(|pid_tgid| seal(given(&ctx)?, pid_tgid));
    0
}

/// `EVP_AEAD_CTX_seal_scatter`: the same.
#[uprobe]
pub fn aead_seal_scatter_enter(ctx: ProbeContext) -> u32 {
    let _ = of_target(&ctx).and_then(|pid_tgid| seal(given_scatter(&ctx)?, pid_tgid));
    0
}

/// `EVP_AEAD_CTX_open` begins.
#[uprobe]
pub fn aead_open_enter(ctx: ProbeContext) -> u32 {
    let _ = of_target(&ctx).and_then(|pid_tgid| keep(&ctx, given(&ctx)?, pid_tgid));
    0
}

/// `EVP_AEAD_CTX_open` returns: the plaintext is there.
#[uretprobe]
pub fn aead_open_return(ctx: RetProbeContext) -> u32 {
    let _ = inflight::leave(&ctx, 0, |returned| opened(returned));
    0
}

#[inline(always)]
fn of_target(ctx: &ProbeContext) -> Option<u64> {
    let pid_tgid = bpf_get_current_pid_tgid();
    inflight::is_target((pid_tgid >> 32) as u32, inflight::attach_cookie(ctx.regs.cast())).then_some(pid_tgid)
}

#[inline(always)]
fn keep(ctx: &ProbeContext, given: Given, pid_tgid: u64) -> Option<()> {
    let head = head(&given, false)?;
    // The end of the record came last, whatever went before.
    let end = given.input.wrapping_add(given.input_len);
    // SAFETY: the verifier checked the value; only this thread uses this key.
    let here = THREADS.get_ptr(&pid_tgid).is_some_and(|thread| unsafe { end > (*thread).from && end <= (*thread).to });
    let call = Call {
        tls: given.ctx,
        buf: given.out,
        length_at: given.out_len,
        entry_ns: inflight::now(),
        cookie: inflight::attach_cookie(ctx.regs.cast()),
        moved: head.iv,
        cut: u64::from(head.content) | if here { RECEIVED_HERE } else { 0 },
    };
    let key = CallKey { pid_tgid, sp: inflight::stack_pointer(ctx.regs) };
    // A call of this frame that never returned is over: nothing in these functions unwinds.
    if INFLIGHT.insert(&key, &call, 0).is_err() {
        count(Counter::InflightFull);
    }
    Some(())
}

/// What the current thread did last; made now if it is not known.
#[inline(always)]
fn thread_of(pid_tgid: u64) -> Option<*mut Thread> {
    if let Some(thread) = THREADS.get_ptr_mut(&pid_tgid) {
        return Some(thread);
    }
    let call = Call { tls: 0, buf: 0, length_at: 0, entry_ns: 0, cookie: 0, moved: 0, cut: 0 };
    let thread = Thread { call, received: 0, from: 0, to: 0, rekeyed: 0, rekeyed_ns: 0 };
    let _ = THREADS.insert(&pid_tgid, &thread, 0);
    THREADS.get_ptr_mut(&pid_tgid)
}

/// The socket of a cookie, if this process still uses it.
#[inline(always)]
fn socket_of<'a>(cookie: u64, tgid: u32) -> Option<&'a mut Socket> {
    let socket = SOCKETS.get_ptr_mut(&cookie)?;
    // SAFETY: the verifier checked the value; what two threads write at once are the same bits.
    let socket = unsafe { &mut *socket };
    (socket.tgid == tgid).then_some(socket)
}

/// Content type of a record with `n` bytes at `at`, and the bytes of its content. In TLS 1.3 the type is the last byte that is not 0.
/// `scratch` is a word of map memory: through it, the verifier forgets how many bytes of padding were passed over.
#[inline(always)]
fn content(head: Head, at: u64, n: u64, scratch: *mut u64) -> Option<(u8, u64)> {
    if head.content != 0 {
        return Some((head.content, n));
    }
    let inner = read_user(at.wrapping_add(n).wrapping_sub(1), 0u8)?;
    if inner != 0 {
        return Some((inner, n.wrapping_sub(1)));
    }
    // Padding, which hardly anybody sends: up to 16 KB, looked through in steps of eight bytes.
    // SAFETY: a word of map memory that only this call uses.
    unsafe { core::ptr::write_volatile(scratch, n) };
    for _ in 0..2048u32 {
        // SAFETY: as above.
        let left = unsafe { core::ptr::read_volatile(scratch) };
        if left < 8 {
            break;
        }
        if read_user(at.wrapping_add(left).wrapping_sub(8), 0u64)? != 0 {
            break;
        }
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(scratch, left.wrapping_sub(8)) };
    }
    for _ in 0..8u32 {
        // SAFETY: as above.
        let left = unsafe { core::ptr::read_volatile(scratch) };
        if left == 0 {
            return None;
        }
        let inner = read_user(at.wrapping_add(left).wrapping_sub(1), 0u8)?;
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(scratch, left.wrapping_sub(1)) };
        if inner != 0 {
            return Some((inner, left.wrapping_sub(1)));
        }
    }
    None
}

/// Numbers the connection that begins with this record, if it has no number yet. A request is the first thing on a connection, or
/// follows an answer that was read: nothing of an exchange is missing.
#[inline(always)]
fn begin(key: &nexent_observer_common::state::ConnKey, at: u64, n: u64) {
    let first = read_user(at, 0u64).unwrap_or(0);
    if CONNS.get_ptr(key).is_some() {
        return;
    }
    let flags = if matches!(look(first, n), Look::Request) { conn_flag::FROM_START } else { 0 };
    conn::make(key, flags);
}

#[inline(always)]
fn seal(given: Given, pid_tgid: u64) -> Option<()> {
    let head = head(&given, true)?;
    let tgid = (pid_tgid >> 32) as u32;
    let now = inflight::now();
    let thread = thread_of(pid_tgid)?;
    // SAFETY: the verifier checked the value; only this thread uses this key.
    let (thread, scratch) = unsafe { (&mut *thread, &raw mut (*thread).call.moved) };
    let (inner, n) = content(head, given.input, given.input_len, scratch)?;
    let key = AeadKey { ctx: given.ctx, iv: head.iv, tgid, seals: 1 };
    // SAFETY: copied out at once.
    let mut known = AEADS.get_ptr(&key).map_or(Aead::default(), |aead| unsafe { *aead });
    if inner == HANDSHAKE {
        let message = read_user(given.input, 0u8)?;
        if message == KEY_UPDATE && known.cookie != 0 {
            if let Some(socket) = socket_of(known.cookie, tgid) {
                socket.state &= !socket_state::SEALS;
                (thread.rekeyed, thread.rekeyed_ns) = (known.cookie, now);
            }
        }
        if message == NEW_SESSION_TICKET && known.cookie == 0 {
            let _ = AEADS.insert(&key, &known, 0);
            let _ = SEALED.insert(&conn::key(tgid, given.out), &key, 0);
        }
        return None;
    }
    if inner != APPLICATION_DATA || n == 0 {
        return None;
    }
    let before = known;
    let mut on = None;
    if known.cookie != 0 {
        on = socket_of(known.cookie, tgid);
    } else if thread.rekeyed != 0 && now.wrapping_sub(thread.rekeyed_ns) < REKEY_NS {
        // The first record under a new key, sealed by the thread that just said so under the old one.
        if let Some(socket) = socket_of(thread.rekeyed, tgid) {
            if socket.state & socket_state::SEALS == 0 {
                known.cookie = thread.rekeyed;
                on = Some(socket);
                let _ = SEALED.insert(&conn::key(tgid, given.out), &key, 0);
            }
        }
        thread.rekeyed = 0;
    }
    match on {
        Some(socket) => {
            if socket.conn == 0 {
                socket.conn = aead_conn_key(key.ctx, key.iv);
            }
            known.conn = socket.conn;
        }
        None => {
            // Not sent yet, or a socket that has ended.
            if known.cookie != 0 || known.conn == 0 {
                known = Aead { cookie: 0, conn: aead_conn_key(key.ctx, key.iv) };
            }
            let _ = SEALED.insert(&conn::key(tgid, given.out), &key, 0);
        }
    }
    if known != before {
        let _ = AEADS.insert(&key, &known, 0);
    }
    let conn_key = conn::key(tgid, known.conn);
    begin(&conn_key, given.input, n);
    let call = Call { tls: known.conn, buf: given.input, length_at: 0, entry_ns: now, cookie: 0, moved: 0, cut: 0 };
    let returned = Returned { call, kept: &raw mut thread.call, bytes: n, pid_tgid, return_ns: now };
    let mut header = header_of(&returned, kind::WRITE);
    // SAFETY: the verifier checked the value; rustls has its connections behind a lock.
    let conn = unsafe { &mut *CONNS.get_ptr_mut(&conn_key)? };
    let window = conn::moved_out(conn, &mut header, n)?;
    emit::call::<emit::ToWrites>(&header, &returned, window);
    Some(())
}

#[inline(always)]
fn opened(returned: &Returned) -> Option<()> {
    let tgid = (returned.pid_tgid >> 32) as u32;
    let head = Head { content: returned.call.cut as u8, iv: returned.call.moved };
    let at = returned.call.buf;
    // SAFETY: the call's own value in the map of calls in flight; only this thread touches it, and it is removed after this.
    let scratch = unsafe { &raw mut (*returned.kept).moved };
    let (inner, n) = content(head, at, returned.bytes, scratch)?;
    let message = if inner == HANDSHAKE { read_user(at, 0u8)? } else { 0 };
    if inner != APPLICATION_DATA && message != NEW_SESSION_TICKET && message != KEY_UPDATE {
        return None;
    }
    let key = AeadKey { ctx: returned.call.tls, iv: head.iv, tgid, seals: 0 };
    // SAFETY: copied out at once.
    let mut known = AEADS.get_ptr(&key).map_or(Aead::default(), |aead| unsafe { *aead });
    let before = known;
    let mut on = None;
    if known.cookie != 0 {
        on = socket_of(known.cookie, tgid);
    }
    if on.is_none() && returned.call.cut & RECEIVED_HERE != 0 {
        // SAFETY: only this thread uses this key.
        let received = THREADS.get_ptr(&returned.pid_tgid).map_or(0, |thread| unsafe { (*thread).received });
        if let Some(socket) = socket_of(received, tgid) {
            if socket.state & socket_state::OPENS == 0 {
                socket.state |= socket_state::OPENS;
                known.cookie = received;
                on = Some(socket);
            }
        }
    }
    let Some(socket) = on else {
        if inner == APPLICATION_DATA {
            count(Counter::AeadUnjoined);
        }
        return None;
    };
    if message == KEY_UPDATE {
        socket.state &= !socket_state::OPENS;
    }
    if inner == APPLICATION_DATA && n != 0 && socket.conn == 0 {
        socket.conn = aead_conn_key(key.ctx, key.iv);
    }
    known.conn = socket.conn;
    if known != before {
        let _ = AEADS.insert(&key, &known, 0);
    }
    if inner != APPLICATION_DATA || n == 0 {
        return None;
    }
    let conn_key = conn::key(tgid, known.conn);
    begin(&conn_key, at, n);
    let mut header = header_of(returned, kind::READ);
    // SAFETY: as for sealing.
    let conn = unsafe { &mut *CONNS.get_ptr_mut(&conn_key)? };
    conn::moved_in(conn, &mut header, n)?;
    let returned = Returned { bytes: n, ..*returned };
    emit::call::<emit::ToReads>(&header, &returned, nexent_observer_common::piece::Window::ALL);
    Some(())
}

/// First buffer of the call on a socket that the thread is in: its address and its length, at most `bytes`.
#[inline(always)]
fn buffer(pid_tgid: u64, bytes: u64) -> Option<(u64, u64)> {
    let call = syscalls::current(pid_tgid, 0)?;
    syscalls::first_buffer(call, bytes)?;
    // SAFETY: the call's own value in the map; only this thread uses it.
    let (base, left) = unsafe { ((*call).base, (*call).left) };
    Some((base, if left < bytes { left } else { bytes }))
}

/// A thread of a process with such keys moved bytes on a socket.
#[inline(always)]
pub fn socket_used(sock: Sock, bytes: u64, direction: u16, pid_tgid: u64) -> Option<()> {
    let tgid = (pid_tgid >> 32) as u32;
    // SAFETY: the tracepoint's own argument, which the verifier knows as a socket.
    let cookie = unsafe { bpf_get_socket_cookie(sock) };
    if direction == kind::READ {
        let socket = socket::of(cookie, tgid, inflight::now(), sock)?;
        // SAFETY: the verifier checked the value; only a word is read.
        if unsafe { (*socket).state } & socket_state::TCP != 0 {
            let thread = thread_of(pid_tgid)?;
            let (from, n) = buffer(pid_tgid, bytes).unwrap_or((0, 0));
            // SAFETY: the verifier checked the value; only this thread uses this key.
            let thread = unsafe { &mut *thread };
            (thread.received, thread.from, thread.to) = (cookie, from, from.wrapping_add(n));
        }
        return Some(());
    }
    let socket = socket::of(cookie, tgid, inflight::now(), sock)?;
    // SAFETY: the verifier checked the value; what two threads write at once are the same bits.
    let socket = unsafe { &mut *socket };
    if socket.state & (socket_state::SEALS | socket_state::TCP) != socket_state::TCP {
        return None; // what it sends was sealed before, under its own key
    }
    // The header lies right before what was sealed; with TLS 1.2 and AES-GCM a part of the nonce is in between.
    let (from, n) = buffer(pid_tgid, bytes)?;
    if !matches!(look(read_user(from, 0u64)?, n), Look::Encrypted) {
        return None;
    }
    let mut record = conn::key(tgid, from.wrapping_add(HEADER));
    if SEALED.get_ptr(&record).is_none() {
        record.tls = record.tls.wrapping_add(EXPLICIT_NONCE);
    }
    // SAFETY: copied out at once.
    let key = unsafe { *SEALED.get_ptr(&record)? };
    let _ = SEALED.remove(&record);
    // SAFETY: copied out at once.
    let mut known = unsafe { *AEADS.get_ptr(&key)? };
    socket.state |= socket_state::SEALS;
    if known.cookie == cookie {
        return None; // as it was taken for
    }
    if known.cookie != 0 {
        // It was taken for the new key of another socket: its first records were given to that one's connection.
        count(Counter::AeadRejoined);
        if let Some(other) = socket_of(known.cookie, tgid) {
            conn::lost_call(&conn::key(tgid, other.conn), conn_flag::WRITE_UNKNOWN);
        }
        known.conn = if socket.conn == 0 { aead_conn_key(key.ctx, key.iv) } else { socket.conn };
        socket.conn = known.conn;
        let mine = conn::key(tgid, known.conn);
        conn::of(&mine)?;
        conn::lost_call(&mine, conn_flag::WRITE_UNKNOWN);
    }
    known.cookie = cookie;
    if known.conn == 0 {
        // A ticket of a server: no data yet.
    } else if socket.conn == 0 {
        socket.conn = known.conn;
    } else if socket.conn != known.conn {
        count(Counter::AeadRejoined);
        let before = conn::key(tgid, socket.conn);
        let fresh = conn::key(tgid, known.conn);
        // SAFETY: only words are read.
        let (id, written) = CONNS.get_ptr(&before).map_or((0, 0), |conn| unsafe { ((*conn).id, (*conn).write_offset) });
        if written == 0 {
            // What was read stays apart: the rest of an answer, or what a server says unasked; or else answers to what was written.
            // SAFETY: as above.
            if id > CONNS.get_ptr(&fresh).map_or(0, |conn| unsafe { (*conn).id }) {
                conn::lost_call(&fresh, conn_flag::READ_UNKNOWN);
            }
            let _ = conn::retire(&before, pid_tgid);
            socket.conn = known.conn;
        } else {
            // Its first bytes under a new key were given to another connection.
            conn::lost_call(&before, conn_flag::WRITE_UNKNOWN);
            let _ = conn::retire(&fresh, pid_tgid);
            known.conn = socket.conn;
        }
    }
    let _ = AEADS.insert(&key, &known, 0);
    if socket.conn != 0 && socket.state & socket_state::TOLD == 0 {
        socket.state |= socket_state::TOLD;
        let key = conn::key(tgid, socket.conn);
        if let Some(conn) = CONNS.get_ptr_mut(&key) {
            // SAFETY: the verifier checked the value.
            let conn = unsafe { &mut *conn };
            let seen = flow::join_known(sock, cookie, &key, conn, found::NEXT_SEND);
            socket::tell_peer(sock, conn.id, tgid, pid_tgid as u32, &seen);
        }
    }
    Some(())
}
