//! What enters the core: one record of the kernel half, decoded, and the words all stages share.

use core::net::SocketAddr;
use std::sync::Arc;

/// Nanoseconds of `CLOCK_MONOTONIC` as the kernel half read them (`bpf_ktime_get_ns`). The only clock in the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MonoNs(pub u64);

impl MonoNs {
    /// Nanoseconds from `earlier` to `self`; 0 when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Seconds from `earlier` to `self`; 0.0 when `earlier` is later.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> f64 {
        self.since(earlier) as f64 / 1e9
    }
}

/// When the hooked call that moved some bytes was entered and when it returned.
///
/// Bytes that were **written** exist from `entry` on; bytes that were **read** exist from `ret` on. Bytes decoded from
/// one call share its stamp: times inside a call are never interpolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Stamp {
    /// Entry of the call.
    pub entry: MonoNs,
    /// Return of the call.
    pub ret: MonoNs,
}

/// A connection as numbered by the kernel half. Never reused while the observer runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Direction of bytes as the observed process sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The process read them.
    Read,
    /// The process wrote them.
    Write,
}

/// What the observed process is on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// It writes requests and reads responses.
    Client,
    /// It reads requests and writes responses.
    Server,
}

impl Role {
    /// Label value: `client`, `server`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// What an in-process hook said of the requests that begin on a connection from now on (docs/hooks.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Trace that the process chose.
    pub trace_id: u128,
    /// Span in which the requests are made.
    pub span_id: u64,
    /// Endpoint of the service for which they are made.
    pub endpoint: Option<Arc<str>>,
}

/// Something happened to a thread of an observed process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadEvent {
    /// When.
    pub at: MonoNs,
    /// Process (tgid in the initial pid namespace).
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// What.
    pub kind: ThreadEventKind,
}

/// What happened to a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadEventKind {
    /// It started another thread of its process, which has not run yet.
    Started {
        /// The new thread.
        child: u32,
    },
    /// It ended.
    Ended,
}

/// One record of the kernel half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Connection.
    pub conn: ConnId,
    /// Process (tgid in the initial pid namespace).
    pub pid: u32,
    /// Thread that made the call.
    pub tid: u32,
    /// Stamps of the call.
    pub at: Stamp,
    /// What happened.
    pub kind: RecordKind<'a>,
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind<'a> {
    /// Bytes moved.
    Data {
        /// Which way.
        dir: Direction,
        /// Offset of the first byte in its direction, counted by the kernel half from its first sight of the connection.
        offset: u64,
        /// Number of this connection's turn: grows by one at each write that follows a read. A read belongs to the turn
        /// of the last write before it, so a read whose turn is not known yet overtook a write between the two rings.
        turn: u32,
        /// The bytes that were copied; may be fewer than `len`, even none.
        payload: &'a [u8],
        /// Bytes of the stream that this record stands for; the part beyond `payload` is a gap.
        len: u64,
        /// Why `payload` is shorter than `len`, and what happened before this record.
        flags: RecordFlags,
    },
    /// The addresses of the connection, and what else its socket told until then; once.
    Peer(Peer),
    /// The socket has everything that was written to the connection by calls that returned until `until`.
    Sent {
        /// Return of the latest of these calls.
        until: MonoNs,
    },
    /// Data lay in the socket unread until the record's stamp: what is read next was read late.
    Late {
        /// Arrival of that data.
        arrived: MonoNs,
    },
    /// This host sent a segment of the connection again.
    Retransmit,
    /// The connection ended (freed, cleared or its number was retired).
    Close {
        /// Final offset of the read direction, in bytes: shows a loss at the very end.
        read_end: u64,
        /// Final offset of the write direction, in bytes.
        write_end: u64,
        /// What happened between the last data record and the end, in either direction: only `after_skip` and
        /// `after_unknown_loss` count here.
        flags: RecordFlags,
    },
}

/// The two ends of a connection, and how long it took to make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    /// This side.
    pub local: Address,
    /// The other side.
    pub remote: Address,
    /// Time of `connect`: from the first SYN to the connection, ns. `None` when it was not seen, or this side accepted.
    pub connect_ns: Option<u64>,
    /// Time of the TLS handshake: from the send of the ClientHello to the last of its flights that this side sent or received,
    /// ns. `None` when it was not seen whole, there was none, or this side accepted.
    pub tls_ns: Option<u64>,
    /// How the socket was found; `None`: nothing but its addresses is known.
    pub socket: Option<Found>,
    /// Segments that this host had sent again until then.
    pub retransmits: u32,
}

/// How the socket of a connection was found: the source of everything that it tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Found {
    /// The connection is the socket (no TLS).
    Itself,
    /// It took bytes while a TLS write of the connection was under way.
    InsideWrite,
    /// It was the thread's next one to send after a TLS write of the connection, and sent a record that fits the write.
    NextSend,
}

impl Found {
    /// Value in exports: `itself`, `inside_write`, `next_send`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Itself => "itself",
            Self::InsideWrite => "inside_write",
            Self::NextSend => "next_send",
        }
    }
}

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Address {
    /// TCP. An IPv4 address that the socket holds as `::ffff:a.b.c.d` is given as IPv4.
    Inet(SocketAddr),
    /// A Unix socket; its path is not known.
    Unix,
}

/// Properties of a data record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordFlags {
    /// The kernel half saw the connection being made: offset 0 is its first byte. Otherwise it was joined mid-life.
    pub from_start: bool,
    /// The missing payload was left out on purpose (cap on written bytes).
    pub capped: bool,
    /// The missing payload could not be read from the process's memory.
    pub fault: bool,
    /// Bytes between the previous record of this direction and this one were left out because of a verdict.
    pub after_skip: bool,
    /// An unknown number of bytes was lost before this record (the entry of a call could not be kept).
    pub after_unknown_loss: bool,
    /// Written: the socket had all of it when the call returned.
    pub sent: bool,
}
