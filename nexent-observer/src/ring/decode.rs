//! Decodes the entries of the rings.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nexent_observer_common::record::{self, AF_INET, AF_INET6, AF_UNIX, Malformed, RecordHeader, flag, found, kind};
use nexent_observer_core::event::{
    Address, ConnId, Direction, Found, MonoNs, Peer, Record, RecordFlags, RecordKind, Stamp, ThreadEvent,
    ThreadEventKind,
};

/// What comes out of the rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingEvent<'a> {
    /// Bytes of a connection, or its end.
    Record(Record<'a>),
    /// A process was born, changed or ended.
    Process(ProcessEvent),
    /// A thread of a process started another one, or ended.
    Thread(ThreadEvent),
    /// An in-process hook said something.
    Announcement(Announcement<'a>),
}

/// What an in-process hook said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement<'a> {
    /// When.
    pub at: MonoNs,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// What; nothing when it was too long or could not be read.
    pub text: &'a [u8],
}

/// Something happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessEvent {
    /// When.
    pub at: MonoNs,
    /// Process.
    pub pid: u32,
    /// What.
    pub kind: ProcessEventKind,
}

/// What happened to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessEventKind {
    /// It forked.
    Fork {
        /// The child's pid.
        child: u32,
    },
    /// It runs another program.
    Exec,
    /// Its leader thread ended.
    Exit,
}

/// Decodes one entry of a ring.
///
/// # Errors
/// [`Malformed`].
pub fn decode(entry: &[u8]) -> Result<RingEvent<'_>, Malformed> {
    let (header, payload) = RecordHeader::parse(entry)?;
    let RecordHeader { entry_ns, return_ns, conn, offset, tgid, tid, orig_len, kind, flags, turn, .. } = header;
    let at = Stamp { entry: MonoNs(entry_ns), ret: MonoNs(return_ns) };
    let process = |kind| RingEvent::Process(ProcessEvent { at: at.ret, pid: tgid, kind });
    let record = |kind| RingEvent::Record(Record { conn: ConnId(conn), pid: tgid, tid, at, kind });
    let thread = |kind| RingEvent::Thread(ThreadEvent { at: at.ret, pid: tgid, tid, kind });
    let has = |bit| flags & bit != 0;
    let flags = RecordFlags {
        from_start: has(flag::FROM_START),
        capped: has(flag::CAPPED),
        fault: has(flag::FAULT),
        after_skip: has(flag::AFTER_SKIP),
        after_unknown_loss: has(flag::AFTER_UNKNOWN_LOSS),
        sent: has(flag::SENT),
    };
    let data = |dir| record(RecordKind::Data { dir, offset, turn, payload, len: u64::from(orig_len), flags });
    Ok(match kind {
        kind::READ => data(Direction::Read),
        kind::WRITE => data(Direction::Write),
        kind::CLOSE => {
            let write_end = payload.first_chunk::<8>().ok_or(Malformed::ShortPayload)?;
            record(RecordKind::Close { read_end: offset, write_end: u64::from_ne_bytes(*write_end), flags })
        }
        kind::PEER => {
            let peer = record::Peer::parse(payload).ok_or(Malformed::ShortPayload)?;
            record(RecordKind::Peer(peer_of(&peer).ok_or(Malformed::UnknownKind)?))
        }
        kind::ANNOUNCEMENT => {
            let text = if payload.len() == orig_len as usize { payload } else { &[] };
            RingEvent::Announcement(Announcement { at: at.ret, pid: tgid, tid, text })
        }
        kind::SENT => record(RecordKind::Sent { until: MonoNs(offset) }),
        kind::LATE => record(RecordKind::Late { arrived: at.entry }),
        kind::RETRANSMIT => record(RecordKind::Retransmit),
        kind::FORK => process(ProcessEventKind::Fork { child: offset as u32 }),
        kind::EXEC => process(ProcessEventKind::Exec),
        kind::EXIT => process(ProcessEventKind::Exit),
        kind::THREAD_START => thread(ThreadEventKind::Started { child: offset as u32 }),
        kind::THREAD_END => thread(ThreadEventKind::Ended),
        _ => return Err(Malformed::UnknownKind),
    })
}

/// The ends of a connection; `None` for a family that the kernel half never reports.
fn peer_of(peer: &record::Peer) -> Option<Peer> {
    let record::Peer { local, remote, local_port, remote_port, family, found, connect_ns, tls_ns, retransmits, .. } =
        *peer;
    let address = |bytes: [u8; 16], port| {
        Some(match family {
            AF_INET => {
                let [a, b, c, d, ..] = bytes;
                Address::Inet(SocketAddr::new([a, b, c, d].into(), port))
            }
            // An IPv4 peer of an IPv6 socket is the same peer.
            AF_INET6 => Address::Inet(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(), port)),
            AF_UNIX => Address::Unix,
            _ => return None,
        })
    };
    Some(Peer {
        local: address(local, local_port)?,
        remote: address(remote, remote_port)?,
        connect_ns: (connect_ns != 0).then_some(connect_ns),
        tls_ns: (tls_ns != 0).then_some(tls_ns),
        socket: match found {
            found::ITSELF => Some(Found::Itself),
            found::INSIDE_WRITE => Some(Found::InsideWrite),
            found::NEXT_SEND => Some(Found::NextSend),
            _ => None,
        },
        retransmits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(family: u16, remote: [u8; 16]) -> record::Peer {
        record::Peer { family, remote, local_port: 40_000, remote_port: 443, connect_ns: 7, ..record::Peer::default() }
    }

    #[test]
    fn every_family_has_its_address() {
        let v4 = [10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let v6 = Ipv6Addr::LOCALHOST.octets();
        let mapped = std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
        for (family, bytes, text) in
            [(AF_INET, v4, "10.0.0.1:443"), (AF_INET6, v6, "[::1]:443"), (AF_INET6, mapped, "10.0.0.1:443")]
        {
            let peer = peer_of(&raw(family, bytes)).unwrap();
            assert_eq!(peer.remote, Address::Inet(text.parse().unwrap()));
            assert_eq!(peer.connect_ns, Some(7));
        }
        assert_eq!(peer_of(&raw(AF_UNIX, v4)).unwrap().remote, Address::Unix);
        assert_eq!(peer_of(&raw(99, v4)), None);
    }
}
