//! Target `ring_decode`: any bytes as one entry of a ring, against the layout as a person reads it off `record.rs`.

use nexent_observer_common::record::{AF_INET, AF_INET6, CLASS_BYTES, HEADER_BYTES, Malformed, PEER_BYTES, flag, kind};
use nexent_observer_core::event::{Address, Direction, RecordFlags, RecordKind};

#[cfg(feature = "planted")]
use crate::planted::decode;
#[cfg(not(feature = "planted"))]
use decode::decode;

#[path = "../../nexent-observer/src/ring/decode.rs"]
#[expect(unreachable_pub, reason = "it is public where it lives")]
pub(crate) mod decode;

use decode::{ProcessEventKind, RingEvent};

/// Decodes `entry`: it must be refused for the right reason, or say exactly what its bytes say.
pub fn check(entry: &[u8]) {
    let entry = &entry[..entry.len().min(CLASS_BYTES[4])];
    let got = decode(entry);
    let Some((head, rest)) = entry.split_at_checked(HEADER_BYTES) else {
        return assert_eq!(got, Err(Malformed::ShortHeader));
    };
    let number = |at: usize, size: usize| {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&head[at..at + size]);
        u64::from_le_bytes(bytes)
    };
    let (len, orig_len, kind) = (number(40, 4), number(44, 4), number(48, 2) as u16);
    let known = matches!(kind, 1..=8);
    let event = match got {
        // A family of addresses that is not known is no peer.
        Err(Malformed::UnknownKind) => return assert!(!known || kind == kind::PEER),
        Err(Malformed::BadLength) => return assert!(known && orig_len < len),
        Err(Malformed::ShortPayload) => {
            return assert!(
                orig_len >= len && (rest.len() as u64) < len
                    || kind == kind::CLOSE && len < 8
                    || kind == kind::PEER && len < PEER_BYTES as u64
            );
        }
        Err(Malformed::ShortHeader) => panic!("the header is there"),
        Ok(event) => event,
    };
    assert!(known && orig_len >= len && rest.len() as u64 >= len);
    let record = match event {
        RingEvent::Process(process) => {
            assert_eq!((process.at.0, u64::from(process.pid)), (number(8, 8), number(32, 4)));
            return match process.kind {
                ProcessEventKind::Fork { child } => assert_eq!((kind, child), (kind::FORK, number(24, 8) as u32)),
                ProcessEventKind::Exec => assert_eq!(kind, kind::EXEC),
                ProcessEventKind::Exit => assert_eq!(kind, kind::EXIT),
            };
        }
        RingEvent::Announcement(announcement) => {
            assert_eq!((kind, announcement.at.0), (kind::ANNOUNCEMENT, number(8, 8)));
            assert_eq!((u64::from(announcement.pid), u64::from(announcement.tid)), (number(32, 4), number(36, 4)));
            return assert!(announcement.text.is_empty() || announcement.text == &rest[..len as usize]);
        }
        RingEvent::Record(record) => record,
    };
    assert_eq!((record.at.entry.0, record.at.ret.0, record.conn.0), (number(0, 8), number(8, 8), number(16, 8)));
    assert_eq!((u64::from(record.pid), u64::from(record.tid)), (number(32, 4), number(36, 4)));
    match record.kind {
        RecordKind::Data { dir, offset, turn, payload, len: stands_for, flags } => {
            assert_eq!(kind, if dir == Direction::Read { kind::READ } else { kind::WRITE });
            assert_eq!((offset, u64::from(turn), stands_for), (number(24, 8), number(52, 4), orig_len));
            assert_eq!(payload, &rest[..len as usize]);
            check_flags(flags, number(50, 2) as u16);
        }
        RecordKind::Close { read_end, write_end, flags } => {
            assert_eq!((kind, read_end), (kind::CLOSE, number(24, 8)));
            assert_eq!(write_end.to_ne_bytes(), rest[..8]);
            check_flags(flags, number(50, 2) as u16);
        }
        RecordKind::Peer(peer) => {
            assert_eq!(kind, kind::PEER);
            let family = u16::from_ne_bytes([rest[36], rest[37]]);
            let inet = matches!((peer.local, peer.remote), (Address::Inet(_), Address::Inet(_)));
            assert_eq!(inet, family == AF_INET || family == AF_INET6);
        }
        RecordKind::Sent { until } => assert_eq!((kind, until.0), (kind::SENT, number(24, 8))),
        RecordKind::Late { arrived } => assert_eq!((kind, arrived.0), (kind::LATE, number(0, 8))),
        RecordKind::Retransmit => assert_eq!(kind, kind::RETRANSMIT),
    }
}

fn check_flags(got: RecordFlags, bits: u16) {
    let RecordFlags { from_start, capped, fault, after_skip, after_unknown_loss, sent } = got;
    let named = [
        (from_start, flag::FROM_START),
        (capped, flag::CAPPED),
        (fault, flag::FAULT),
        (after_skip, flag::AFTER_SKIP),
        (after_unknown_loss, flag::AFTER_UNKNOWN_LOSS),
        (sent, flag::SENT),
    ];
    for (is, bit) in named {
        assert_eq!(is, bits & bit != 0);
    }
}
