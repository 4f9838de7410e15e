//! Keys and values of the kernel half's maps.

/// Key of a call in flight: the thread, and the stack pointer at entry, so that nested calls of one thread do not mix.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallKey {
    /// `bpf_get_current_pid_tgid`.
    pub pid_tgid: u64,
    /// Stack pointer at entry.
    pub sp: u64,
}

/// What is kept of a call between its entry and its return.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Address of the TLS object.
    pub tls: u64,
    /// Address of the caller's buffer.
    pub buf: u64,
    /// Address where the length will stand; unused when it is returned.
    pub length_at: u64,
    /// Time of entry, ns.
    pub entry_ns: u64,
    /// The entry's attach cookie.
    pub cookie: u64,
    /// While a long call is cut into records at its return: bytes moved, and bytes cut so far. Kept here because the
    /// verifier does not follow values through map memory: on the stack, every size of every piece would be a state.
    pub moved: u64,
    /// See `moved`.
    pub cut: u64,
}

/// Key of a connection: a TLS object or a socket of a process.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnKey {
    /// Address of the TLS object, or [`socket_key`].
    pub tls: u64,
    /// Process.
    pub tgid: u32,
    /// Always 0.
    pub zero: u32,
}

/// State of a connection.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conn {
    /// Number of the connection, from 1; never reused.
    pub id: u64,
    /// Bytes read since first sight.
    pub read_offset: u64,
    /// Bytes written since first sight.
    pub write_offset: u64,
    /// Bytes written in this turn.
    pub turn_written: u64,
    /// Turn: grows at each write that follows a read; 0 until the first write.
    pub turn: u32,
    /// [`conn_flag`] bits.
    pub flags: u32,
    /// Cookie of the socket that carries it; 0: not known.
    pub socket: u64,
}

/// Bits of [`Conn::flags`].
pub mod conn_flag {
    /// Seen being made.
    pub const FROM_START: u32 = 1;
    /// The last call that moved bytes was a read.
    pub const READ_LAST: u32 = 1 << 1;
    /// Reads were skipped since the last read record.
    pub const READ_SKIPPED: u32 = 1 << 2;
    /// Writes were skipped since the last write record.
    pub const WRITE_SKIPPED: u32 = 1 << 3;
    /// A read of unknown size was lost since the last read record.
    pub const READ_UNKNOWN: u32 = 1 << 4;
    /// A write of unknown size was lost since the last write record.
    pub const WRITE_UNKNOWN: u32 = 1 << 5;
}

/// A process that is observed. Its presence in the table arms its probes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Target {
    /// The scope whose probes count for it (`cookie::Scope`).
    pub scope: u32,
    /// Whether a forked child is observed from its first instruction (only with a filtered attachment).
    pub follow_forks: u32,
    /// What its sockets are looked at for: [`sockets`] bits.
    pub sockets: u32,
    /// Always 0.
    pub zero: u32,
}

/// Bits of [`Target::sockets`].
pub mod sockets {
    /// Plain HTTP.
    pub const PLAIN: u32 = 1;
    /// Which socket the records of an AEAD key travel on.
    pub const JOIN: u32 = 1 << 1;
}

/// A key of TLS records: one direction of a connection of rustls, or a part of it between two changes of keys.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct AeadKey {
    /// Address of the `EVP_AEAD_CTX`.
    pub ctx: u64,
    /// The part of the nonces that does not change from record to record, and is random for each key: addresses are used again.
    pub iv: u64,
    /// Process.
    pub tgid: u32,
    /// 1: the process seals with it; 0: it opens.
    pub seals: u32,
}

/// What is known of such a key.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Aead {
    /// Cookie of the socket; 0: not known yet.
    pub cookie: u64,
    /// [`ConnKey::tls`] of the connection that its records were given to; 0: none yet.
    pub conn: u64,
}

/// What a thread that uses AEAD keys did last.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread {
    /// Room for the call under way: [`Call::moved`] and [`Call::cut`].
    pub call: Call,
    /// Cookie of the socket from which it received last; 0: none.
    pub received: u64,
    /// Where the bytes then came to lie: the first address, and the one behind the last.
    pub from: u64,
    /// See `from`.
    pub to: u64,
    /// Cookie of the socket whose sending key it changed last, and when, ns.
    pub rekeyed: u64,
    /// See `rekeyed`.
    pub rekeyed_ns: u64,
}

/// A file, as the kernel's own structures name it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FileKey {
    /// `i_ino`.
    pub inode: u64,
    /// `s_dev` of its file system: major number above 20 bits of minor number.
    pub device: u64,
}

/// A system call on a file descriptor between its entry and its exit, by thread (`bpf_get_current_pid_tgid`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SockCall {
    /// Time of entry, ns.
    pub entry_ns: u64,
    /// Cookie of the socket; 0: it was none, or none was met yet.
    pub cookie: u64,
    /// Address of the buffer, of the `iovec`s or of the `msghdr`, by `shape`.
    pub at: u64,
    /// Number of `iovec`s.
    pub count: u64,
    /// [`call_shape`].
    pub shape: u32,
    /// Flags of the receiving call (`MSG_PEEK` and others).
    pub flags: u32,
    /// While the call is cut into records at its exit: bytes moved and bytes cut so far (see [`Call::moved`]).
    pub moved: u64,
    /// See `moved`.
    pub cut: u64,
    /// The current `iovec`: what is left of it.
    pub base: u64,
    /// Bytes left of the current `iovec`.
    pub left: u64,
}

/// Values of [`SockCall::shape`].
pub mod call_shape {
    /// A buffer and its length.
    pub const FLAT: u32 = 0;
    /// An array of `iovec`.
    pub const VECTOR: u32 = 1;
    /// A `msghdr`.
    pub const MESSAGE: u32 = 2;
}

/// What is known of a socket, by its cookie (never reused while the kernel runs).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Socket {
    /// Process that uses it.
    pub tgid: u32,
    /// [`socket_state`] bits.
    pub state: u32,
    /// When `connect` began, ns; 0: not seen.
    pub connect_from: u64,
    /// How long `connect` took, ns; 0: not seen.
    pub connect_ns: u64,
    /// When it was last used, ns.
    pub used_ns: u64,
    /// [`ConnKey::tls`] of the connection of rustls on it; 0: none.
    pub conn: u64,
}

/// A TCP socket of a target as far as the phases of its connection go, by its cookie.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow {
    /// Number of the connection that it carries; 0: not known (yet).
    pub conn: u64,
    /// The connection's [`ConnKey::tls`].
    pub tls: u64,
    /// Process.
    pub tgid: u32,
    /// [`flow_state`] bits.
    pub state: u32,
    /// Address of the kernel's `struct sock`; to be believed only while it has this flow's cookie.
    pub sock: u64,
    /// When `connect` began, ns; 0: not seen. So with the next ones.
    pub connect_from: u64,
    /// How long `connect` took, ns.
    pub connect_ns: u64,
    /// When the ClientHello was sent, ns.
    pub hello_ns: u64,
    /// When the latest part of the handshake passed, ns.
    pub handshake_ns: u64,
    /// Arrival of the oldest data that the process has not read, ns; 0: there is none.
    pub unread_ns: u64,
    /// Bytes that the socket took since all that was written was known to be with it.
    pub sent: u64,
    /// Fewest bytes that carry what was written since then; 0: nothing waits.
    pub need: u64,
    /// Return of the latest write that waits, ns.
    pub until_ns: u64,
    /// Segments sent again.
    pub retransmits: u32,
    /// Always 0.
    pub zero: u32,
}

/// Bits of [`Flow::state`].
pub mod flow_state {
    /// Its bytes are sent while a TLS write is under way, not after it.
    pub const INSIDE: u32 = 1;
    /// Something was sent that may be of the handshake or not: its end is not known.
    pub const BLURRED: u32 = 1 << 1;
}

/// What a thread (or goroutine) wrote to a TLS connection whose socket is not known.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Writer {
    /// The TLS object.
    pub tls: u64,
    /// Number of its connection, from the return of the write on.
    pub conn: u64,
    /// Entry of the first write, ns.
    pub begun_ns: u64,
    /// Return of the last write, ns.
    pub until_ns: u64,
    /// Bytes of the first write.
    pub first: u64,
    /// Fewest bytes that carry all writes.
    pub need: u64,
    /// Socket that took bytes while the write was under way; 0: none.
    pub cookie: u64,
    /// Bytes that it took.
    pub sent: u64,
    /// [`writer_state`] bits.
    pub state: u64,
}

/// Bits of [`Writer::state`].
pub mod writer_state {
    /// A write is under way.
    pub const INSIDE: u64 = 1;
    /// Writes returned and nothing was sent since.
    pub const PENDING: u64 = 1 << 1;
    /// Another connection's bytes wait on the same thread, or a write of another one is around this one: nothing follows from
    /// what is sent next.
    pub const CROWDED: u64 = 1 << 2;
}

/// Bits of [`Socket::state`].
pub mod socket_state {
    /// It carries plain HTTP.
    pub const HTTP: u32 = 1;
    /// It carries TLS: never looked at again.
    pub const ENCRYPTED: u32 = 1 << 1;
    /// Bytes moved before it was known to carry HTTP.
    pub const USED: u32 = 1 << 2;
    /// Its first request asked for a tunnel.
    pub const TUNNEL: u32 = 1 << 3;
    /// It is a Unix socket: nothing tells its end.
    pub const UNIX: u32 = 1 << 4;
    /// Its addresses were reported.
    pub const TOLD: u32 = 1 << 5;
    /// The key with which its records are opened is known.
    pub const OPENS: u32 = 1 << 6;
    /// The key with which its records are sealed is known.
    pub const SEALS: u32 = 1 << 7;
    /// It is a stream over IP.
    pub const TCP: u32 = 1 << 8;
}

/// What [`ConnKey::tls`] is for a socket: user addresses never have the highest bit (both architectures).
#[must_use]
#[inline(always)]
pub const fn socket_key(cookie: u64) -> u64 {
    (1 << 63) | cookie
}

/// What [`ConnKey::tls`] is for a connection of rustls, by the key that was seen first on it: no user address and no socket.
#[must_use]
#[inline(always)]
pub const fn aead_conn_key(ctx: u64, iv: u64) -> u64 {
    (1 << 62) | ((iv ^ ctx.rotate_left(20)) & ((1 << 62) - 1))
}

/// Slots in which known TCP sockets are counted; a power of two. Of a host with a hundred sockets that are known, one foreign socket in 80
/// falls together with one of them, and costs a search.
pub const FLOW_SLOT_COUNT: u32 = 8192;

/// Slot of a socket's cookie.
#[must_use]
#[inline(always)]
pub const fn flow_slot(cookie: u64) -> u32 {
    (cookie as u32) & (FLOW_SLOT_COUNT - 1)
}

/// Slots of the verdict table; a power of two.
pub const VERDICT_SLOTS: u32 = 65_536;

/// Slot of a connection in the verdict table.
#[must_use]
#[inline(always)]
pub const fn verdict_slot(conn: u64) -> u32 {
    (conn as u32) & (VERDICT_SLOTS - 1)
}

/// Value of a slot that says: this turn of this connection is no LLM call. One aligned word, so that user space can set it
/// while the kernel half reads it. 0 never occurs for a real connection and turn, and says nothing.
#[must_use]
#[inline(always)]
pub const fn verdict_value(conn: u64, turn: u32) -> u64 {
    (conn << 16) | ((turn as u64) & 0xffff)
}

const _: () = assert!(size_of::<CallKey>() == 16);
const _: () = assert!(size_of::<Call>() == 56);
const _: () = assert!(size_of::<ConnKey>() == 16);
const _: () = assert!(size_of::<Conn>() == 48);
const _: () = assert!(size_of::<Target>() == 16);
const _: () = assert!(size_of::<FileKey>() == 16);
const _: () = assert!(size_of::<SockCall>() == 72);
const _: () = assert!(size_of::<Socket>() == 40);
const _: () = assert!(size_of::<AeadKey>() == 24);
const _: () = assert!(size_of::<Aead>() == 16);
const _: () = assert!(size_of::<Thread>() == 96);
const _: () = assert!(size_of::<Flow>() == 104);
const _: () = assert!(size_of::<Writer>() == 72);
const _: () = assert!(VERDICT_SLOTS.is_power_of_two() && FLOW_SLOT_COUNT.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_holds_for_one_turn_of_one_connection() {
        let value = verdict_value(70_000, 3);
        assert_ne!(value, 0);
        assert_ne!(value, verdict_value(70_000, 4));
        assert_ne!(value, verdict_value(70_000 + u64::from(VERDICT_SLOTS), 3), "same slot, other connection");
        assert_eq!(verdict_slot(70_000), verdict_slot(70_000 + u64::from(VERDICT_SLOTS)));
    }
}
