//! What reassembly promises, case by case and for any cut, loss and order.

use proptest::prelude::*;

use super::*;
use crate::{
    event::{ConnId, Direction::*, Record, RecordFlags, RecordKind},
    limits,
    stats::{DropReason, Stats},
};

/// An owned record.
#[derive(Debug, Clone)]
struct Rec {
    at: u64,
    dir: Direction,
    offset: u64,
    turn: u32,
    payload: Vec<u8>,
    len: u64,
    flags: RecordFlags,
}

const START: RecordFlags = RecordFlags {
    from_start: true,
    capped: false,
    fault: false,
    after_skip: false,
    after_unknown_loss: false,
    sent: false,
};

fn rec(at: u64, dir: Direction, offset: u64, turn: u32, payload: &[u8]) -> Rec {
    Rec { at, dir, offset, turn, payload: payload.to_vec(), len: payload.len() as u64, flags: START }
}

#[derive(Debug, Clone, PartialEq)]
enum Out {
    Data(Direction, Vec<u8>),
    Gap(Direction, Option<u64>, GapCause),
    Close(u64, CloseCause),
}

#[derive(Default)]
struct Bench {
    conn: Reassembly,
    stats: Stats,
    out: Vec<Out>,
}

fn own(ev: StreamEvent<'_>) -> Out {
    match ev {
        StreamEvent::Data { dir, bytes, .. } => {
            assert!(!bytes.is_empty());
            Out::Data(dir, bytes.to_vec())
        }
        StreamEvent::Gap { dir, len, cause, .. } => {
            assert_ne!(len, Some(0));
            Out::Gap(dir, len, cause)
        }
        StreamEvent::Close { at, cause } => Out::Close(at.0, cause),
    }
}

impl Bench {
    fn kind(&mut self, at: u64, kind: RecordKind<'_>) {
        let at = Stamp { entry: MonoNs(at), ret: MonoNs(at) };
        let record = Record { conn: ConnId(1), pid: 1, tid: 1, at, kind };
        self.conn.feed(&record, &mut self.stats, &mut |ev| self.out.push(own(ev)));
    }

    fn feed(&mut self, rec: &Rec) -> &mut Self {
        let Rec { at, dir, offset, turn, ref payload, len, flags } = *rec;
        self.kind(at, RecordKind::Data { dir, offset, turn, payload, len, flags });
        self
    }

    fn end(&mut self, at: u64, read_end: u64, write_end: u64) -> &mut Self {
        self.kind(at, RecordKind::Close { read_end, write_end, flags: RecordFlags::default() });
        self
    }

    fn timeout(&mut self, at: u64) -> &mut Self {
        self.conn.handle_timeout(MonoNs(at), &mut self.stats, &mut |ev| self.out.push(own(ev)));
        self
    }

    fn take(&mut self) -> Vec<Out> {
        std::mem::take(&mut self.out)
    }
}

fn data(dir: Direction, bytes: &[u8]) -> Out {
    Out::Data(dir, bytes.to_vec())
}

fn lost(dir: Direction, n: u64) -> Out {
    Out::Gap(dir, Some(n), GapCause::Lost)
}

#[test]
fn records_in_order_flow_through() {
    let mut b = Bench::default();
    b.feed(&rec(1, Write, 0, 1, b"ab")).feed(&rec(2, Read, 0, 1, b"cd")).feed(&rec(3, Read, 2, 1, b"e"));
    b.timeout(4).end(4, 3, 2);
    let freed = Out::Close(4, CloseCause::Freed);
    assert_eq!(b.out, [data(Write, b"ab"), data(Read, b"cd"), data(Read, b"e"), freed]);
    assert_eq!((b.stats.records, b.stats.bytes, b.stats.gaps), (4, 5, 0));
}

#[test]
fn a_duplicate_is_dropped_and_counted() {
    let mut b = Bench::default();
    b.feed(&rec(1, Write, 0, 1, b"abc")).feed(&rec(1, Write, 0, 1, b"abc"));
    assert_eq!(b.out, [data(Write, b"abc")]);
    assert_eq!(b.stats.drops(DropReason::SeenTwice), 1);
}

#[test]
fn of_two_calls_one_inside_the_other_the_inner_one_counts_whatever_was_counted() {
    let mut b = Bench::default();
    let mut call = |entry: u64, ret: u64, tid: u32, dir, offset, payload: &[u8]| {
        let at = Stamp { entry: MonoNs(entry), ret: MonoNs(ret) };
        let kind = RecordKind::Data { dir, offset, turn: 1, payload, len: payload.len() as u64, flags: START };
        b.conn.feed(&Record { conn: ConnId(1), pid: 1, tid, at, kind }, &mut b.stats, &mut |ev| b.out.push(own(ev)));
    };
    // A write in a write, a read of two records in a read; then calls that are inside others and no repeats: other bytes, another
    // thread.
    call(12, 18, 1, Write, 0, b"ask");
    call(10, 20, 1, Write, 3, b"ask");
    call(31, 38, 1, Read, 0, b"ab");
    call(31, 38, 1, Read, 2, b"cd");
    call(30, 40, 1, Read, 4, b"ab");
    call(30, 40, 1, Read, 6, b"cd");
    call(52, 58, 1, Read, 8, b"ef");
    call(50, 60, 1, Read, 10, b"gh");
    call(55, 56, 1, Read, 12, b"ij");
    call(51, 57, 2, Read, 14, b"ij");
    call(70, 80, 1, Read, 16, b"kl");
    b.timeout(90).end(95, 18, 6);
    let all = |bytes: &[u8]| bytes.iter().map(|byte| Some(*byte)).collect::<Vec<_>>();
    assert_eq!(streams(&b.out), [all(b"abcdefghijijkl"), all(b"ask")]);
    assert_eq!(b.out.last(), Some(&Out::Close(95, CloseCause::Freed)));
    assert_eq!((b.stats.drops(DropReason::SeenTwice), b.stats.gaps), (3, 0));
    assert_eq!(b.stats.drops(DropReason::RecordInvalid), 0);
}

#[test]
fn a_contained_record_is_dropped_and_counted() {
    let mut b = Bench::default();
    b.feed(&rec(1, Write, 0, 1, b"abcdef")).feed(&rec(1, Write, 2, 1, b"cd")).feed(&rec(1, Write, 6, 1, b"g"));
    assert_eq!(b.out, [data(Write, b"abcdef"), data(Write, b"g")]);
    assert_eq!(b.stats.drops(DropReason::SeenTwice), 1);
}

#[test]
fn of_an_overlap_only_the_unknown_part_goes_on() {
    let mut b = Bench::default();
    b.feed(&rec(1, Write, 0, 1, b"abcd")).feed(&rec(1, Write, 2, 1, b"cdef"));
    assert_eq!(b.out, [data(Write, b"abcd"), data(Write, b"ef")]);
    assert_eq!(b.stats.drops(DropReason::SeenTwice), 1);
}

#[test]
fn an_offset_ahead_is_a_gap_of_known_size() {
    let mut b = Bench::default();
    b.feed(&rec(1, Write, 0, 1, b"ab")).feed(&rec(1, Write, 7, 1, b"c"));
    assert_eq!(b.out, [data(Write, b"ab"), lost(Write, 5), data(Write, b"c")]);
    assert_eq!((b.stats.gaps, b.stats.bytes_lost, b.stats.drops(DropReason::Gap)), (1, 5, 1));
}

#[test]
fn a_loss_at_the_very_beginning_shows_when_the_start_was_seen() {
    let mut b = Bench::default();
    b.feed(&rec(1, Write, 4, 1, b"x"));
    assert_eq!(b.out, [lost(Write, 4), data(Write, b"x")]);
}

#[test]
fn a_loss_at_the_very_end_shows_at_the_close() {
    let mut b = Bench::default();
    b.feed(&rec(1, Write, 0, 1, b"ab")).feed(&rec(2, Read, 0, 1, b"cd")).end(3, 9, 2).timeout(4);
    assert_eq!(b.take()[2..], [lost(Read, 7), Out::Close(3, CloseCause::Freed)]);
    assert_eq!(b.stats.bytes_lost, 7);
}

#[test]
fn what_a_verdict_left_out_before_the_close_is_no_loss() {
    let mut b = Bench::default();
    b.feed(&rec(1, Write, 0, 1, b"ab"));
    let flags = RecordFlags { after_skip: true, ..START };
    b.kind(3, RecordKind::Close { read_end: 9, write_end: 2, flags });
    let skipped = Out::Gap(Read, Some(9), GapCause::Skipped);
    assert_eq!(b.take()[1..], [skipped, Out::Close(3, CloseCause::Freed)]);
    assert_eq!((b.stats.bytes_lost, b.stats.gaps), (0, 0));
}

#[test]
fn a_close_that_was_lost_ends_with_a_loss_of_unknown_size_in_what_was_read() {
    let unknown = Out::Gap(Read, None, GapCause::Lost);
    let mut b = Bench::default();
    b.feed(&rec(1, Write, 0, 1, b"ab")).feed(&rec(2, Read, 0, 1, b"cd")).timeout(3);
    let close = b.conn.lost_close();
    b.kind(9, close);
    assert_eq!(b.take()[2..], [unknown.clone(), Out::Close(9, CloseCause::Freed)]);
    assert_eq!((b.stats.gaps, b.stats.bytes_lost, b.stats.drops(DropReason::RecordInvalid)), (1, 0, 0));
    // Of one of which bytes were seen twice: the kernel half counts both.
    let mut b = Bench::default();
    for (entry, ret, offset) in [(2, 4, 0), (1, 5, 2)] {
        let at = Stamp { entry: MonoNs(entry), ret: MonoNs(ret) };
        let kind = RecordKind::Data { dir: Read, offset, turn: 0, payload: b"cd", len: 2, flags: START };
        let record = Record { conn: ConnId(1), pid: 1, tid: 1, at, kind };
        b.conn.feed(&record, &mut b.stats, &mut |ev| b.out.push(own(ev)));
    }
    let close = b.timeout(6).conn.lost_close();
    b.kind(9, close);
    assert_eq!(b.take(), [data(Read, b"cd"), unknown.clone(), Out::Close(9, CloseCause::Freed)]);
    assert_eq!((b.stats.drops(DropReason::SeenTwice), b.stats.drops(DropReason::RecordInvalid)), (1, 0));
    // Of one that was joined in its middle, and of which nothing was read.
    let mut b = Bench::default();
    let mut joined = rec(1, Write, 70, 4, b"ab");
    joined.flags.from_start = false;
    let close = b.feed(&joined).conn.lost_close();
    b.kind(9, close);
    assert_eq!(b.take(), [data(Write, b"ab"), unknown, Out::Close(9, CloseCause::Freed)]);
    assert_eq!(b.stats.drops(DropReason::RecordInvalid), 0);
}

#[test]
fn the_missing_middle_of_a_large_write_is_capped_not_lost() {
    let mut b = Bench::default();
    let middle = Rec { len: 1000, flags: RecordFlags { capped: true, ..START }, ..rec(1, Write, 2, 1, b"") };
    b.feed(&rec(1, Write, 0, 1, b"ab")).feed(&middle).feed(&rec(1, Write, 1002, 1, b"z"));
    assert_eq!(b.out, [data(Write, b"ab"), Out::Gap(Write, Some(1000), GapCause::Capped), data(Write, b"z")]);
    assert_eq!(b.stats.bytes_lost, 0);
}

#[test]
fn bytes_that_could_not_be_read_are_a_fault() {
    let mut b = Bench::default();
    b.feed(&Rec { len: 5, flags: RecordFlags { fault: true, ..START }, ..rec(1, Write, 0, 1, b"ab") });
    assert_eq!(b.out, [data(Write, b"ab"), Out::Gap(Write, Some(3), GapCause::Fault)]);
    assert_eq!(b.stats.bytes_lost, 3);
}

#[test]
fn a_payload_shorter_than_its_length_without_a_reason_is_a_loss() {
    let mut b = Bench::default();
    b.feed(&Rec { len: 5, ..rec(1, Write, 0, 1, b"ab") });
    assert_eq!(b.out, [data(Write, b"ab"), lost(Write, 3)]);
}

#[test]
fn bytes_left_out_by_a_verdict_are_skipped_not_lost() {
    let mut b = Bench::default();
    let after = Rec { flags: RecordFlags { after_skip: true, ..START }, ..rec(1, Write, 10, 2, b"x") };
    b.feed(&rec(1, Write, 0, 1, b"ab")).feed(&after);
    assert_eq!(b.out, [data(Write, b"ab"), Out::Gap(Write, Some(8), GapCause::Skipped), data(Write, b"x")]);
    assert_eq!((b.stats.bytes_lost, b.stats.gaps), (0, 0));
}

#[test]
fn a_loss_of_unknown_size_comes_before_the_record_that_tells_of_it() {
    let mut b = Bench::default();
    let after = Rec { flags: RecordFlags { after_unknown_loss: true, ..START }, ..rec(1, Write, 2, 1, b"x") };
    b.feed(&rec(1, Write, 0, 1, b"ab")).feed(&after);
    assert_eq!(b.out, [data(Write, b"ab"), Out::Gap(Write, None, GapCause::Lost), data(Write, b"x")]);
    assert_eq!(b.stats.gaps, 1);
}

#[test]
fn a_connection_joined_mid_life_begins_without_a_gap() {
    let mut b = Bench::default();
    let joined = RecordFlags { from_start: false, ..START };
    b.feed(&Rec { flags: joined, ..rec(1, Read, 77, 0, b"x") })
        .feed(&Rec { flags: joined, ..rec(2, Write, 5, 1, b"y") });
    assert_eq!(b.out, [data(Read, b"x"), data(Write, b"y")]);
    assert!(!b.conn.is_from_start());
}

#[test]
fn a_read_that_overtook_its_write_waits_for_it() {
    let mut b = Bench::default();
    b.feed(&rec(2, Read, 0, 1, b"r1")).feed(&rec(3, Read, 2, 1, b"r2"));
    assert_eq!(b.take(), []);
    assert_eq!(b.conn.poll_timeout(), Some(MonoNs(2 + limits::HOLD_NS)));
    b.feed(&rec(1, Write, 0, 1, b"w1"));
    assert_eq!(b.take(), [data(Write, b"w1")]);
    assert_eq!(b.conn.poll_timeout(), Some(MonoNs(0)), "the rings are to be drained first");
    b.timeout(3);
    assert_eq!(b.take(), [data(Read, b"r1"), data(Read, b"r2")]);
    assert_eq!(b.conn.poll_timeout(), None);
    b.feed(&rec(5, Read, 4, 1, b"r3")).feed(&rec(7, Read, 6, 2, b"r4")).feed(&rec(6, Write, 2, 2, b"w2")).timeout(8);
    assert_eq!(b.take(), [data(Read, b"r3"), data(Write, b"w2"), data(Read, b"r4")]);
}

#[test]
fn a_read_that_overtook_a_request_of_several_writes_waits_for_all_of_them() {
    let mut b = Bench::default();
    b.feed(&rec(3, Read, 0, 1, b"r1")).feed(&rec(1, Write, 0, 1, b"head")).feed(&rec(2, Write, 4, 1, b"body"));
    assert_eq!(b.take(), [data(Write, b"head"), data(Write, b"body")]);
    b.timeout(4);
    assert_eq!(b.take(), [data(Read, b"r1")]);
}

#[test]
fn reads_of_two_turns_wait_each_for_its_own_write() {
    let mut b = Bench::default();
    b.feed(&rec(2, Read, 0, 1, b"r1")).feed(&rec(4, Read, 2, 2, b"r2"));
    b.feed(&rec(1, Write, 0, 1, b"w1"));
    b.feed(&rec(3, Write, 2, 2, b"w2"));
    assert_eq!(b.take(), [data(Write, b"w1"), data(Read, b"r1"), data(Write, b"w2")]);
    b.timeout(5);
    assert_eq!(b.take(), [data(Read, b"r2")]);
}

#[test]
fn a_read_whose_write_was_lost_flows_after_the_deadline_and_the_loss_shows_later() {
    let mut b = Bench::default();
    let late = 2 + limits::HOLD_NS;
    b.feed(&rec(2, Read, 0, 1, b"r1")).timeout(late - 1);
    assert_eq!(b.take(), []);
    b.timeout(late).feed(&rec(late + 1, Read, 2, 1, b"r2"));
    assert_eq!(b.take(), [data(Read, b"r1"), data(Read, b"r2")]);
    b.feed(&rec(late + 2, Write, 9, 2, b"w2"));
    assert_eq!(b.take(), [lost(Write, 9), data(Write, b"w2")]);
}

#[test]
fn a_read_whose_write_was_lost_comes_between_the_loss_and_the_next_turn() {
    let mut b = Bench::default();
    b.feed(&rec(2, Read, 0, 1, b"r1")).feed(&rec(4, Read, 2, 2, b"r2"));
    let after = Rec { flags: RecordFlags { after_unknown_loss: true, ..START }, ..rec(3, Write, 9, 2, b"w2") };
    b.feed(&after).timeout(5);
    let unknown = Out::Gap(Write, None, GapCause::Lost);
    assert_eq!(b.take(), [unknown, lost(Write, 9), data(Read, b"r1"), data(Write, b"w2"), data(Read, b"r2")]);
}

#[test]
fn over_the_cap_held_reads_flow_without_their_write() {
    let mut b = Bench::default();
    let piece = vec![b'x'; 16_000];
    let mut sent = 0;
    while b.out.is_empty() {
        b.feed(&rec(2, Read, sent, 1, &piece));
        sent += 16_000;
        assert!(sent <= 2 * limits::HOLD_BYTES as u64);
    }
    assert_eq!(b.take().len() as u64, sent / 16_000);
    b.feed(&rec(2, Read, sent, 1, b"more"));
    assert_eq!(b.take(), [data(Read, b"more")]);
}

#[test]
fn empty_records_cannot_fill_memory_while_they_wait() {
    let mut b = Bench::default();
    for i in 0..100_000 {
        b.feed(&Rec { len: 1, ..rec(2, Read, i, 1, b"") });
    }
    assert!(b.out.len() > 80_000);
}

#[test]
fn a_close_that_overtook_the_last_write_waits_for_it() {
    let mut b = Bench::default();
    b.end(5, 0, 2);
    assert_eq!(b.take(), []);
    b.feed(&rec(1, Write, 0, 1, b"ab"));
    // The start was not known to be seen before this record.
    assert_eq!(b.take(), [data(Write, b"ab"), Out::Close(5, CloseCause::Freed)]);

    let mut b = Bench::default();
    b.feed(&rec(1, Write, 0, 1, b"ab")).feed(&rec(2, Read, 0, 1, b"r")).timeout(3);
    b.feed(&rec(4, Read, 1, 2, b"s")).end(5, 2, 4);
    b.take();
    b.feed(&rec(3, Write, 2, 2, b"cd")).timeout(6);
    assert_eq!(b.take(), [data(Write, b"cd"), data(Read, b"s"), Out::Close(5, CloseCause::Freed)]);
}

#[test]
fn a_write_beyond_the_end_that_a_waiting_close_tells_is_dropped() {
    let mut b = Bench::default();
    b.feed(&rec(1, Write, 0, 1, b"abc")).end(2, 0, 5).feed(&rec(3, Write, 5, 1, b"more"));
    assert_eq!(b.stats.drops(DropReason::RecordInvalid), 1);
    b.timeout(2 + limits::HOLD_NS);
    assert_eq!(b.out, [data(Write, b"abc"), lost(Write, 2), Out::Close(2, CloseCause::Freed)]);
}

#[test]
fn nothing_comes_after_a_close_that_a_write_lets_go() {
    let mut b = Bench::default();
    b.feed(&rec(1, Write, 0, 1, b"abc")).feed(&rec(2, Read, 0, 1, b"x")).end(3, 1, 3);
    b.feed(&rec(4, Write, 2, 2, b"cde"));
    assert_eq!(b.out, [data(Write, b"abc"), data(Read, b"x"), Out::Close(3, CloseCause::Freed)]);
    assert_eq!(b.stats.drops(DropReason::RecordInvalid), 1);
}

#[test]
fn a_close_does_not_wait_forever_for_a_lost_write() {
    let mut b = Bench::default();
    b.feed(&rec(1, Write, 0, 1, b"ab")).end(5, 0, 9).timeout(5 + limits::HOLD_NS);
    assert_eq!(b.take()[1..], [lost(Write, 7), Out::Close(5, CloseCause::Freed)]);
}

#[test]
fn a_close_from_outside_lets_held_reads_go_first_and_only_one_close_is_given() {
    let mut b = Bench::default();
    b.feed(&rec(2, Read, 0, 1, b"r1"));
    for _ in 0..2 {
        b.conn.close(MonoNs(9), CloseCause::ProcessExit, &mut b.stats, &mut |ev| b.out.push(own(ev)));
    }
    b.feed(&rec(10, Read, 2, 1, b"r2"));
    assert_eq!(b.take(), [data(Read, b"r1"), Out::Close(9, CloseCause::ProcessExit)]);
    assert_eq!(b.stats.drops(DropReason::RecordInvalid), 1);
}

#[test]
fn offsets_at_the_end_of_their_range_do_no_harm() {
    let mut b = Bench::default();
    b.feed(&rec(1, Write, u64::MAX - 1, 1, b"abc"));
    assert_eq!(b.take(), []);
    b.feed(&rec(1, Write, u64::MAX - 3, 1, b"abc")).feed(&rec(1, Write, u64::MAX, 1, b""));
    b.feed(&rec(1, Write, 0, 1, b"abc")).end(2, u64::MAX, u64::MAX);
    assert_eq!(
        b.take(),
        [lost(Write, u64::MAX - 3), data(Write, b"abc"), lost(Read, u64::MAX), Out::Close(2, CloseCause::Freed)]
    );
    assert_eq!((b.stats.drops(DropReason::RecordInvalid), b.stats.drops(DropReason::SeenTwice)), (1, 1));
}

#[test]
fn a_payload_longer_than_its_length_is_cut_and_counted() {
    let mut b = Bench::default();
    b.feed(&Rec { len: 2, ..rec(1, Write, 0, 1, b"abcd") }).feed(&rec(1, Write, 2, 1, b"x"));
    assert_eq!(b.take(), [data(Write, b"ab"), data(Write, b"x")]);
    assert_eq!(b.stats.drops(DropReason::RecordInvalid), 1);
}

/// A conversation: turns of writes and reads, cut into records at the given sizes; fewer than 256 bytes, all different.
fn conversation() -> impl Strategy<Value = Vec<Rec>> {
    let sizes = || prop::collection::vec(1_usize..8, 1..5);
    prop::collection::vec((sizes(), sizes()), 1..5).prop_map(|turns| {
        let mut out = Vec::new();
        let (mut at, mut offsets, mut byte) = (0, [0_u64; 2], 0_u8);
        for (turn, (writes, reads)) in turns.into_iter().enumerate() {
            for (dir, sizes) in [(Write, writes), (Read, reads)] {
                for size in sizes {
                    let payload: Vec<u8> = (0..size)
                        .map(|_| {
                            byte = byte.wrapping_add(1);
                            byte
                        })
                        .collect();
                    at += 1;
                    let offset = &mut offsets[usize::from(dir == Write)];
                    out.push(rec(at, dir, *offset, turn as u32 + 1, &payload));
                    *offset += size as u64;
                }
            }
        }
        out
    })
}

fn ends(records: &[Rec]) -> (u64, u64) {
    let end = |dir| records.iter().filter(|r| r.dir == dir).map(|r| r.offset + r.len).max().unwrap_or(0);
    (end(Read), end(Write))
}

/// The two streams with unknown bytes as `None`.
fn streams(out: &[Out]) -> [Vec<Option<u8>>; 2] {
    let mut streams = [Vec::new(), Vec::new()];
    for ev in out {
        match ev {
            Out::Data(dir, bytes) => streams[usize::from(*dir == Write)].extend(bytes.iter().map(|b| Some(*b))),
            Out::Gap(dir, len, _) => {
                let len = len.unwrap_or(0) as usize;
                streams[usize::from(*dir == Write)].extend(std::iter::repeat_n(None, len));
            }
            Out::Close(..) => {}
        }
    }
    streams
}

/// Draws the rings as the observer does: all reads (and the close) so far, then all writes so far, at the given moments.
fn drained(records: &[Rec], drains: &[(usize, usize)]) -> Vec<Vec<Rec>> {
    let mut out = Vec::new();
    let mut seen = [0, 0];
    let all = [(records.len(), records.len())];
    for (reads_at, writes_after) in drains.iter().chain(&all) {
        let reads_at = (*reads_at).min(records.len());
        let writes_at = (reads_at + writes_after).min(records.len());
        let mut drain = Vec::new();
        for (i, (dir, upto)) in [(Read, reads_at), (Write, writes_at)].into_iter().enumerate() {
            drain.extend(records.iter().take(upto).skip(seen[i]).filter(|r| r.dir == dir).cloned());
            seen[i] = seen[i].max(upto);
        }
        out.push(drain);
    }
    out
}

proptest! {
    #[test]
    fn any_order_of_the_two_rings_gives_the_same_streams_with_no_read_before_its_write(
        records in conversation(),
        mut drains in prop::collection::vec((0_usize..40, 0_usize..10), 0..6),
    ) {
        drains.sort_unstable();
        let (read_end, write_end) = ends(&records);
        let mut plain = Bench::default();
        for r in &records { plain.feed(r).timeout(0); }
        plain.end(999, read_end, write_end);
        let mut mixed = Bench::default();
        let order = drained(&records, &drains);
        prop_assert_eq!(order.iter().map(Vec::len).sum::<usize>(), records.len());
        for drain in &order {
            for r in drain { mixed.feed(r); }
            mixed.timeout(0);
        }
        mixed.end(999, read_end, write_end);
        prop_assert_eq!(streams(&plain.out), streams(&mixed.out));
        prop_assert_eq!(mixed.stats.gaps + mixed.stats.drops(DropReason::RecordInvalid), 0);
        prop_assert_eq!(mixed.out.last(), Some(&Out::Close(999, CloseCause::Freed)));
        // Every write of a turn is out before the first read of that turn.
        let place = |dir, payload: &Vec<u8>| mixed.out.iter().position(|o| *o == data(dir, payload));
        for read in records.iter().filter(|r| r.dir == Read) {
            for write in records.iter().filter(|r| r.dir == Write && r.turn == read.turn) {
                prop_assert!(place(Write, &write.payload) < place(Read, &read.payload));
            }
        }
    }

    #[test]
    fn any_lost_records_leave_exactly_their_bytes_as_gaps(
        records in conversation(),
        lost in prop::collection::vec(any::<bool>(), 60),
        mut drains in prop::collection::vec((0_usize..40, 0_usize..10), 0..6),
    ) {
        drains.sort_unstable();
        let (read_end, write_end) = ends(&records);
        let mut expected = [vec![None; read_end as usize], vec![None; write_end as usize]];
        let mut kept = Vec::new();
        for (r, lost) in records.iter().zip(&lost) {
            if !lost {
                for (i, b) in r.payload.iter().enumerate() {
                    expected[usize::from(r.dir == Write)][r.offset as usize + i] = Some(*b);
                }
                kept.push(r.clone());
            }
        }
        prop_assume!(!kept.is_empty());
        let mut b = Bench::default();
        for drain in drained(&kept, &drains) {
            for r in &drain { b.feed(r); }
            b.timeout(0);
        }
        b.end(999, read_end, write_end).timeout(u64::MAX);
        prop_assert_eq!(streams(&b.out), expected.clone());
        let unknown = expected.iter().flatten().filter(|b| b.is_none()).count() as u64;
        prop_assert_eq!(b.stats.bytes_lost, unknown);
        prop_assert!(b.conn.is_closed());
    }

    #[test]
    fn no_record_whatsoever_does_harm(
        records in prop::collection::vec(
            (any::<bool>(), prop_oneof![0_u64..100, any::<u64>()], 0_u32..4, 0_usize..20, prop_oneof![0_u64..100, any::<u64>()],
             any::<[bool; 5]>(), any::<bool>()), 1..60),
    ) {
        let mut b = Bench::default();
        for (i, (write, offset, turn, payload, len, f, close)) in records.into_iter().enumerate() {
            let flags = RecordFlags { from_start: f[0], capped: f[1], fault: f[2], after_skip: f[3], after_unknown_loss: f[4], sent: false };
            if close && i % 8 == 0 {
                b.kind(i as u64, RecordKind::Close { read_end: offset, write_end: len, flags });
            } else {
                let dir = if write { Write } else { Read };
                b.feed(&Rec { len, flags, ..rec(i as u64, dir, offset, turn, &vec![1; payload]) });
            }
        }
        b.timeout(u64::MAX);
        prop_assert_eq!(b.conn.poll_timeout(), None);
    }
}
