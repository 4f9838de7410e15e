//! A record in one of the two rings: a 56-byte header and, for data, the payload behind it.

/// Size of [`RecordHeader`], in bytes.
pub const HEADER_BYTES: usize = 56;

/// Total sizes of the record classes (header and room for payload), in bytes. A record takes the smallest that fits, so that
/// a 200-byte read does not take 16 KiB of ring (measured: a fixed 16 KiB holds 66 times fewer records). An event of a streamed answer
/// takes 200 to 450 bytes with its framing: the second class is for it, and halves the memory that both sides walk through.
pub const CLASS_BYTES: [usize; 5] = [256, 512, 1024, 4096, 16384];

/// Room for payload in the largest class, in bytes: a longer call is split.
pub const MAX_PIECE: usize = CLASS_BYTES[4] - HEADER_BYTES;

/// Header of every record, as the kernel half writes it. Native byte order: both sides run on one machine.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordHeader {
    /// `bpf_ktime_get_ns` at the entry of the hooked call (CLOCK_MONOTONIC, ns). Of process records: the event's time.
    pub entry_ns: u64,
    /// The same at its return.
    pub return_ns: u64,
    /// Connection number; 0 in process records.
    pub conn: u64,
    /// Data: offset of the first byte in its direction. Close: final offset of the read direction.
    /// Process records: `fork` the child's tgid.
    pub offset: u64,
    /// Process (tgid in the initial pid namespace).
    pub tgid: u32,
    /// Thread (pid in the initial pid namespace).
    pub tid: u32,
    /// Bytes of payload behind this header.
    pub len: u32,
    /// Bytes of the stream that this record stands for, at least `len`.
    pub orig_len: u32,
    /// [`kind`].
    pub kind: u16,
    /// [`flag`] bits.
    pub flags: u16,
    /// Data: turn of the connection.
    pub turn: u32,
}

const _: () = assert!(size_of::<RecordHeader>() == HEADER_BYTES);
const _: () = assert!(align_of::<RecordHeader>() == 8);
const _: () = assert!(HEADER_BYTES < CLASS_BYTES[0]);

/// Values of [`RecordHeader::kind`].
pub mod kind {
    /// The process read bytes.
    pub const READ: u16 = 1;
    /// The process wrote bytes.
    pub const WRITE: u16 = 2;
    /// The connection ended; the payload is the final offset of the write direction (8 bytes, native order).
    pub const CLOSE: u16 = 3;
    /// A watched process forked; `offset` is the child's tgid.
    pub const FORK: u16 = 4;
    /// A process executed a new program.
    pub const EXEC: u16 = 5;
    /// The leader thread of a watched process exited.
    pub const EXIT: u16 = 6;
    /// The addresses of a connection; the payload is a [`super::Peer`], `offset` says nothing.
    pub const PEER: u16 = 7;
    /// An in-process hook said something; the payload is its text, `orig_len` the length it had before it was cut.
    pub const ANNOUNCEMENT: u16 = 8;
    /// The socket took everything that was written to the connection by calls that returned until `offset` (a time, ns); `entry_ns` and
    /// `return_ns` say when.
    pub const SENT: u16 = 9;
    /// Data lay in the socket unread: from `entry_ns`, its arrival, until `return_ns`.
    pub const LATE: u16 = 10;
    /// This host sent a segment of the connection again.
    pub const RETRANSMIT: u16 = 11;
}

/// Data that lies unread in a socket for so long, in ns, is told ([`kind::LATE`]): well over what a busy scheduler takes, so that a
/// stream that is read as it comes costs no record more.
pub const LATE_NS: u64 = 5_000_000;

/// Most bytes of an announcement that are copied.
pub const MAX_ANNOUNCEMENT: usize = 1024;

/// Payload of a record of kind [`kind::PEER`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peer {
    /// Address of this side; of IPv4 the first four bytes. Network byte order.
    pub local: [u8; 16],
    /// Address of the other side, likewise.
    pub remote: [u8; 16],
    /// Port of this side.
    pub local_port: u16,
    /// Port of the other side.
    pub remote_port: u16,
    /// `AF_INET`, `AF_INET6`, `AF_UNIX` (include/linux/socket.h).
    pub family: u16,
    /// How the socket was found: [`found`].
    pub found: u16,
    /// From the beginning of `connect` to the connection, ns; 0 when it was not seen.
    pub connect_ns: u64,
    /// From the ClientHello to the end of the TLS handshake, ns; 0 when it was not seen.
    pub tls_ns: u64,
    /// Segments that this host had sent again until now.
    pub retransmits: u32,
    /// Always 0.
    pub zero: u32,
}

/// Values of [`Peer::found`].
pub mod found {
    /// Nothing but the addresses is known of the socket: its arrivals are not watched.
    pub const ADDRESSES_ONLY: u16 = 0;
    /// The connection is the socket (plain HTTP).
    pub const ITSELF: u16 = 1;
    /// The socket took bytes while a TLS write of this connection was under way on the thread.
    pub const INSIDE_WRITE: u16 = 2;
    /// It took the record of a TLS write of this connection as the thread's next send after it.
    pub const NEXT_SEND: u16 = 3;
}

/// Size of [`Peer`], bytes.
pub const PEER_BYTES: usize = 64;
const _: () = assert!(size_of::<Peer>() == PEER_BYTES);

/// `Peer::family` of IPv4.
pub const AF_INET: u16 = 2;
/// `Peer::family` of IPv6.
pub const AF_INET6: u16 = 10;
/// `Peer::family` of a Unix socket.
pub const AF_UNIX: u16 = 1;

impl Peer {
    /// Reads the payload of a record.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let bytes = payload.first_chunk::<PEER_BYTES>()?;
        let u16_at = |at: usize| u16::from_ne_bytes(word(bytes, at));
        let u64_at = |at: usize| u64::from_ne_bytes(word(bytes, at));
        let mut peer = Self {
            local_port: u16_at(32),
            remote_port: u16_at(34),
            family: u16_at(36),
            found: u16_at(38),
            connect_ns: u64_at(40),
            tls_ns: u64_at(48),
            retransmits: u32::from_ne_bytes(word(bytes, 56)),
            ..Self::default()
        };
        peer.local.copy_from_slice(&bytes[..16]);
        peer.remote.copy_from_slice(&bytes[16..32]);
        Some(peer)
    }
}

/// Bits of [`RecordHeader::flags`].
pub mod flag {
    /// The connection was seen being made: offset 0 is its first byte.
    pub const FROM_START: u16 = 1;
    /// The payload that is missing was left out on purpose (cap on written bytes).
    pub const CAPPED: u16 = 1 << 1;
    /// The payload that is missing could not be read from the process's memory.
    pub const FAULT: u16 = 1 << 2;
    /// Bytes before this record were left out because of a verdict.
    pub const AFTER_SKIP: u16 = 1 << 3;
    /// An unknown number of bytes before this record was lost.
    pub const AFTER_UNKNOWN_LOSS: u16 = 1 << 4;
    /// Written: the socket had taken all of it when the call returned.
    pub const SENT: u16 = 1 << 5;
}

/// Why bytes in a ring are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Fewer bytes than a header.
    ShortHeader,
    /// `len` claims more payload than there is.
    ShortPayload,
    /// `orig_len` is smaller than `len`.
    BadLength,
    /// A kind that this version does not know.
    UnknownKind,
}

impl RecordHeader {
    /// Splits the bytes of one ring entry into header and payload. Total: any bytes give a result.
    ///
    /// # Errors
    /// [`Malformed`] says what is wrong; nothing else is known of the entry then.
    #[inline] // once for each record, and out of line it is a tenth of what a record costs
    pub fn parse(entry: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let (head, rest) = entry.split_first_chunk::<HEADER_BYTES>().ok_or(Malformed::ShortHeader)?;
        let u64_at = |at: usize| u64::from_ne_bytes(word(head, at));
        let u32_at = |at: usize| u32::from_ne_bytes(word(head, at));
        let u16_at = |at: usize| u16::from_ne_bytes(word(head, at));
        let header = Self {
            entry_ns: u64_at(0),
            return_ns: u64_at(8),
            conn: u64_at(16),
            offset: u64_at(24),
            tgid: u32_at(32),
            tid: u32_at(36),
            len: u32_at(40),
            orig_len: u32_at(44),
            kind: u16_at(48),
            flags: u16_at(50),
            turn: u32_at(52),
        };
        if !(kind::READ..=kind::RETRANSMIT).contains(&header.kind) {
            return Err(Malformed::UnknownKind);
        }
        if header.orig_len < header.len {
            return Err(Malformed::BadLength);
        }
        let payload = rest.get(..header.len as usize).ok_or(Malformed::ShortPayload)?;
        Ok((header, payload))
    }
}

/// The bytes of one field. Taken together and not one by one, so that it is one load however little is optimised.
#[inline(always)]
fn word<const SIZE: usize, const N: usize>(bytes: &[u8; SIZE], at: usize) -> [u8; N] {
    match bytes.get(at..).and_then(<[u8]>::first_chunk) {
        Some(word) => *word,
        None => [0; N], // no field reaches beyond the end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(header: RecordHeader, payload: &[u8], out: &mut [u8]) -> usize {
        let RecordHeader { entry_ns, return_ns, conn, offset, tgid, tid, len, orig_len, kind, flags, turn } = header;
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        for v in [entry_ns, return_ns, conn, offset] {
            put(&v.to_ne_bytes());
        }
        for v in [tgid, tid, len, orig_len] {
            put(&v.to_ne_bytes());
        }
        put(&kind.to_ne_bytes());
        put(&flags.to_ne_bytes());
        put(&turn.to_ne_bytes());
        put(payload);
        at
    }

    fn sample() -> RecordHeader {
        RecordHeader {
            entry_ns: 1,
            return_ns: 2,
            conn: 3,
            offset: 4,
            tgid: 5,
            tid: 6,
            len: 3,
            orig_len: 9,
            kind: kind::READ,
            flags: flag::CAPPED,
            turn: 7,
        }
    }

    #[test]
    fn a_record_survives_the_wire() {
        let mut buf = [0xaa; 256];
        bytes_of(sample(), b"abc", &mut buf);
        assert_eq!(RecordHeader::parse(&buf), Ok((sample(), &b"abc"[..])));
    }

    #[test]
    fn every_malformed_entry_is_named() {
        let mut buf = [0; 256];
        let n = bytes_of(sample(), b"abc", &mut buf);
        assert_eq!(RecordHeader::parse(&buf[..55]), Err(Malformed::ShortHeader));
        assert_eq!(RecordHeader::parse(&buf[..n - 1]), Err(Malformed::ShortPayload));
        bytes_of(RecordHeader { orig_len: 2, ..sample() }, b"abc", &mut buf);
        assert_eq!(RecordHeader::parse(&buf), Err(Malformed::BadLength));
        bytes_of(RecordHeader { kind: 99, ..sample() }, b"abc", &mut buf);
        assert_eq!(RecordHeader::parse(&buf), Err(Malformed::UnknownKind));
        bytes_of(RecordHeader { len: u32::MAX, orig_len: u32::MAX, ..sample() }, b"abc", &mut buf);
        assert_eq!(RecordHeader::parse(&buf), Err(Malformed::ShortPayload));
    }
}
