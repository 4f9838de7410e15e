//! The file: what is written is read, however it is cut, and what is no file is refused without asking for memory.

use nexent_observer_core::{
    event::Role,
    http::{ExchangeNo, Head, HttpEvent, HttpEventKind, Side},
};
use nexent_observer_core::{
    event::{
        Address, ConnId, Direction, Found, MonoNs, Peer, Record, RecordFlags, RecordKind, Stamp, ThreadEvent,
        ThreadEventKind,
    },
    limits::{REDACT_BYTES, REDACT_EVENTS, TAPE_BLOCK_BYTES, TAPE_ENTRY_BYTES},
    pipeline::{Counted, SocketTold, Tapped},
    tape::{
        Redactor, Secret,
        entry::{self, Entry},
        frame::{self, Block, Broken, Kind, Unpacker},
    },
};
use proptest::prelude::*;

fn entries() -> Vec<Vec<u8>> {
    (0..300_u64)
        .map(|n| {
            let mut out = Vec::new();
            let kind = RecordKind::Data {
                dir: if n % 2 == 0 { Direction::Read } else { Direction::Write },
                offset: n * 1000,
                turn: n as u32,
                payload: &vec![n as u8; (n * 7) as usize],
                len: n * 9,
                flags: RecordFlags { from_start: true, capped: n % 3 == 0, ..RecordFlags::default() },
            };
            let at = Stamp { entry: MonoNs(n), ret: MonoNs(n + 5) };
            entry::record(&mut out, &Record { conn: ConnId(n), pid: 7, tid: 8, at, kind });
            out
        })
        .collect()
}

#[test]
fn what_happened_to_a_thread_is_read_as_it_was_written_and_not_when_it_is_cut() {
    for kind in [ThreadEventKind::Started { child: 70_000 }, ThreadEventKind::Ended] {
        let event = ThreadEvent { at: MonoNs(u64::MAX), pid: 7, tid: 300, kind };
        let mut out = Vec::new();
        entry::thread(&mut out, &event);
        assert_eq!(entry::read(&out, |entry| entry == Entry::Thread(event)), Ok(true));
        for cut in 1..out.len() {
            assert!(entry::read(&out[..cut], |_| ()).is_err(), "{cut}");
        }
        out.push(0);
        assert!(entry::read(&out, |_| ()).is_err());
    }
}

/// A file of blocks of ten entries each.
fn file() -> Vec<u8> {
    let mut out = frame::beginning(Kind::Content);
    for part in entries().chunks(10) {
        let mut block = Block::default();
        assert!(part.iter().all(|entry| block.push(entry)));
        out.extend(block.pack().unwrap());
    }
    out.extend(frame::end());
    out
}

/// The entries of a file, and how reading it ended.
fn read(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool, Option<Broken>) {
    let mut unpacker = Unpacker::default();
    let mut found = Vec::new();
    let mut pieces = bytes.chunks(piece);
    loop {
        match unpacker.next_block() {
            Ok(Some(block)) => found.extend(frame::entries(&block).map(|entry| entry.unwrap().to_vec())),
            Ok(None) => match pieces.next() {
                Some(piece) => unpacker.push(piece),
                None => return (found, unpacker.has_ended(), None),
            },
            Err(broken) => {
                assert_eq!(unpacker.next_block(), Err(broken), "and it stays so");
                return (found, false, Some(broken));
            }
        }
    }
}

#[test]
fn what_is_written_is_read_in_pieces_of_any_size() {
    let file = file();
    for piece in [1, 7, 4096, file.len()] {
        assert_eq!(read(&file, piece), (entries(), true, None));
    }
}

#[test]
fn a_file_that_was_cut_anywhere_gives_whole_blocks_up_to_there_and_says_so() {
    let (file, all) = (file(), entries());
    for end in 0..file.len() {
        let (found, ended, broken) = read(&file[..end], 1 << 20);
        assert_eq!((ended, broken), (false, None), "{end}");
        assert!(found.len() % 10 == 0 && all.starts_with(&found));
    }
}

#[test]
fn damage_anywhere_is_noticed_and_what_comes_before_it_is_right() {
    let (file, all) = (file(), entries());
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 0x10;
        let (found, ended, broken) = read(&damaged, 1 << 20);
        assert!(all.starts_with(&found), "{at}");
        // The reserved byte says nothing; a length that grew waits for bytes that never come.
        assert!(broken.is_some() || !ended || at == 11, "{at}");
    }
}

#[test]
fn what_is_no_recording_is_refused_at_its_first_wrong_byte() {
    assert_eq!(read(b"{\"id\":1}", 1).2, Some(Broken::NoTape));
    assert_eq!(read(b"", 1), (vec![], false, None));
    let mut other = frame::beginning(Kind::Redacted);
    other[8] = 9;
    assert_eq!(read(&other, 1).2, Some(Broken::Version(9)));
    let mut other = frame::beginning(Kind::Redacted);
    other[10] = 9;
    assert_eq!(read(&other, 1).2, Some(Broken::Kind));
}

#[test]
fn a_block_that_claims_to_be_longer_than_any_is_refused_before_its_bytes_come() {
    for lengths in
        [[u32::MAX, 10], [10, u32::MAX], [TAPE_BLOCK_BYTES as u32 + 1, 10], [10, TAPE_BLOCK_BYTES as u32 + 1]]
    {
        let mut file = frame::beginning(Kind::Content);
        file.extend(lengths.map(u32::to_le_bytes).concat());
        file.extend([0; 4]);
        assert!(matches!(read(&file, 1).2, Some(Broken::TooLong(_))), "{lengths:?}");
    }
    // A small block that decompresses to more than it says.
    let bomb = vec![0; TAPE_BLOCK_BYTES];
    let mut packed = Vec::with_capacity(1 << 20);
    zstd_safe::compress(&mut packed, &bomb, 3).unwrap();
    let mut file = frame::beginning(Kind::Content);
    file.extend((packed.len() as u32).to_le_bytes());
    file.extend(1000_u32.to_le_bytes());
    file.extend(crc32fast::hash(&packed).to_le_bytes());
    file.extend(packed);
    assert_eq!(read(&file, 1 << 20).2, Some(Broken::Compression));
}

#[test]
fn an_entry_that_no_block_has_room_for_is_left_out() {
    let mut block = Block::default();
    assert!(!block.push(&vec![0; TAPE_ENTRY_BYTES + 1]));
    assert!(block.is_empty());
    assert!(block.push(&vec![0; TAPE_ENTRY_BYTES]));
    assert!(block.len() < TAPE_BLOCK_BYTES);
}

proptest! {
    #[test]
    fn no_bytes_whatsoever_do_harm_to_the_reader_of_entries(bytes: Vec<u8>) {
        // Whatever reads is what it reads as when written again.
        drop(entry::read(&bytes, |entry| format!("{entry:?}")));
        drop(read(&[frame::beginning(Kind::Content).as_slice(), &bytes].concat(), 3));
    }

    #[test]
    fn every_entry_reads_as_what_was_written(
        conn: u64, pid: u32, tid: Option<u32>, no: u32, len: Option<u64>, entry_ns: u64, ret: u64, body in proptest::collection::vec(any::<u8>(), 1..50), server: bool, found in 0_usize..4,
    ) {
        let local = Address::Inet((pid.to_le_bytes(), no as u16).into());
        let remote = if server { Address::Unix } else { Address::Inet((u128::from(conn).to_le_bytes(), 443).into()) };
        let socket = [None, Some(Found::Itself), Some(Found::InsideWrite), Some(Found::NextSend)][found];
        let peer = Peer { local, remote, connect_ns: len, tls_ns: len.map(|n| n ^ 5), socket, retransmits: no };
        let at = Stamp { entry: MonoNs(entry_ns), ret: MonoNs(ret) };
        let (conn, exchange) = (ConnId(conn), ExchangeNo(no));
        let http = |kind| HttpEvent { exchange, side: if server { Side::Request } else { Side::Response }, at, kind };
        let events = [
            http(HttpEventKind::Body(&body)),
            http(HttpEventKind::Gap { len, cause: nexent_observer_core::conn::GapCause::Fault }),
            http(HttpEventKind::Head { first: at, head: Head::Unseen }),
            http(HttpEventKind::End),
        ];
        let counted = [
            Counted { no, tokens: len, told: vec![tid, None, Some(0)] },
            Counted { no: pid, tokens: None, told: vec![] },
        ];
        let role = if server { Role::Server } else { Role::Client };
        let mut all: Vec<Tapped<'_>> = events.iter().map(Tapped::Http).collect();
        all.extend([
            Tapped::Connection { pid, role, peer: None, watched_since: len.map(MonoNs) },
            Tapped::Connection { pid, role, peer: Some(peer), watched_since: None },
            Tapped::Socket(SocketTold::Sent { until: at.ret, at: at.entry }),
            Tapped::Socket(SocketTold::Late { arrived: at.ret, at: at.entry }),
            Tapped::Socket(SocketTold::Retransmit { at: at.ret }),
            Tapped::Asked { exchange, digest: entry_ns },
            Tapped::Counted(&counted),
            Tapped::Counted(&[]),
            Tapped::Begin { exchange, tid, said: None },
            Tapped::Unsaid { exchange },
            Tapped::Dismissed { exchange },
            Tapped::Over,
        ]);
        for tapped in all {
            let bytes = entry::tapped(conn, &tapped);
            let same = entry::read(&bytes, |entry| entry == Entry::Tapped(conn, tapped));
            prop_assert_eq!(same, Ok(true));
        }
        let flags = RecordFlags { from_start: server, sent: !server, ..RecordFlags::default() };
        let kinds = [
            RecordKind::Data { dir: Direction::Write, offset: ret, turn: no, payload: &body, len: entry_ns, flags },
            RecordKind::Close { read_end: ret, write_end: entry_ns, flags },
            RecordKind::Peer(peer),
            RecordKind::Sent { until: at.entry },
            RecordKind::Late { arrived: at.entry },
            RecordKind::Retransmit,
        ];
        for kind in kinds {
            let record = Record { conn, pid, tid: no, at, kind };
            let mut bytes = Vec::new();
            entry::record(&mut bytes, &record);
            let same = entry::read(&bytes, |entry| entry == Entry::Record(record));
            prop_assert_eq!(same, Ok(true));
        }
    }
}

/// One that holds a name which never ends, while events of another exchange come.
fn held(events: usize, bytes: usize) -> (Redactor, usize) {
    let mut redactor = Redactor::new(Secret::new([1; 16]));
    let mut written = 0;
    let mut take = |no, kind| {
        let at = Stamp { entry: MonoNs(1), ret: MonoNs(2) };
        let event = HttpEvent { exchange: ExchangeNo(no), side: Side::Response, at, kind };
        redactor.take(ConnId(1), &Tapped::Http(&event), &mut |_| written += 1);
    };
    take(
        0,
        HttpEventKind::Head {
            first: Stamp::default(),
            head: Head::Response(nexent_observer_core::http::ResponseHead {
                status: Some(200),
                headers: nexent_observer_core::http::Headers(&[]),
            }),
        },
    );
    take(0, HttpEventKind::Body(b"{\"type\":\"response.crea"));
    let body = vec![b' '; bytes];
    (0..events).for_each(|_| take(1, HttpEventKind::Body(&body)));
    (redactor, written)
}

#[test]
fn events_wait_for_a_name_that_does_not_end_only_up_to_a_cap() {
    assert_eq!(held(REDACT_EVENTS - 1, 1).1, 1, "all but the head wait");
    let (redactor, written) = held(REDACT_EVENTS + 1, 1);
    assert!(redactor.forced == 1 && written > REDACT_EVENTS, "{written}");
    let (redactor, written) = held(3, REDACT_BYTES / 2);
    assert!(redactor.forced == 1 && written >= 4, "{written}");
}
