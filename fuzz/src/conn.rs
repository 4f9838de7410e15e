//! Target `conn`: records of one connection with any offsets, lengths, turns, flags and closes, against the promise that
//! known bytes and gaps add up, byte by byte.
//!
//! The input is a list of letters, each with a number (one byte, counted from `0`) where it says so:
//! `w`n, `r`n a record of n bytes; `W`n, `R`n of n KiB (at most 64); before it `>`n loses n bytes, `<`n goes n bytes back, `m`n jumps to
//! n bytes before the largest offset, `p`n takes n bytes off the payload, `P`n adds n, `f`n sets flag bits, `^`n sets the turn;
//! `c`n `C`n a close with n bytes more read (written) than was seen; `t`n the timer n*10 ms later; `T` the timer at the end
//! of time; `x` the end by another way. Anything else passes time.

use nexent_observer_core::{
    conn::{CloseCause, Reassembly, StreamEvent},
    event::{ConnId, Direction, MonoNs, Record, RecordFlags, RecordKind, Stamp},
    limits::HOLD_BYTES,
    stats::{DropReason, Stats},
};

#[cfg(feature = "planted")]
use crate::planted::feed_record;

#[cfg(not(feature = "planted"))]
fn feed_record(
    reassembly: &mut Reassembly,
    record: &Record<'_>,
    stats: &mut Stats,
    sink: &mut impl FnMut(StreamEvent<'_>),
) {
    reassembly.feed(record, stats, sink);
}

/// What was sent and what came of one direction.
#[derive(Debug, Default)]
struct Lane {
    /// Highest end of a record so far: where the next one begins.
    next: u64,
    /// Ends that records and closes named, and where they began.
    ends: Vec<u64>,
    begins: Vec<u64>,
    /// Bytes and gaps given out so far.
    position: u64,
    /// Data given out: at which position, and which bytes.
    given: Vec<(u64, Vec<u8>)>,
}

/// What came out of the reassembly.
#[derive(Debug, Default)]
struct Seen {
    lanes: [Lane; 2],
    losses: u64,
    lost: u64,
    closed: Option<CloseCause>,
    /// Bytes read that the current call gave out.
    burst: usize,
}

impl Seen {
    fn take(&mut self, event: StreamEvent<'_>) {
        assert_eq!(self.closed, None, "nothing comes after a close");
        match event {
            StreamEvent::Data { dir, bytes, .. } => {
                assert!(!bytes.is_empty());
                if dir == Direction::Read {
                    self.burst += bytes.len();
                }
                let lane = &mut self.lanes[dir as usize];
                lane.given.push((lane.position, bytes.to_vec()));
                lane.position += bytes.len() as u64;
            }
            StreamEvent::Gap { dir, len, cause, .. } => {
                assert_ne!(len, Some(0));
                if cause.is_loss() {
                    self.losses += 1;
                    self.lost = self.lost.saturating_add(len.unwrap_or(0));
                }
                let lane = &mut self.lanes[dir as usize];
                lane.position = lane.position.checked_add(len.unwrap_or(0)).expect("no more than the stream has");
            }
            StreamEvent::Close { cause, .. } => self.closed = Some(cause),
        }
    }
}

/// The byte of a direction at an offset, so that a misplaced byte shows.
fn byte_at(dir: Direction, offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ dir as u8
}

/// Plays the letters.
pub fn check(input: &[u8]) {
    let mut reassembly = Reassembly::new();
    let (mut stats, mut seen) = (Stats::default(), Seen::default());
    let (mut now, mut records, mut fed) = (1_000, 0, 0);
    let (mut turn, mut flags, mut fewer, mut more) = (1_u32, RecordFlags::default(), 0, 0);
    let mut offset_of_next: Option<Box<dyn Fn(u64) -> u64>> = None;
    let (mut from_start, mut begun) = (false, false);
    let mut input = input.iter().copied();
    while let Some(letter) = input.next() {
        let mut number = || u64::from(input.next().unwrap_or(b'0').wrapping_sub(b'0'));
        now += 1_000;
        let at = Stamp { entry: MonoNs(now - 500), ret: MonoNs(now) };
        let record = |kind| Record { conn: ConnId(1), pid: 7, tid: 7, at, kind };
        seen.burst = 0;
        match letter {
            b'w' | b'W' | b'r' | b'R' => {
                let dir = if letter.eq_ignore_ascii_case(&b'r') { Direction::Read } else { Direction::Write };
                let len = if letter.is_ascii_uppercase() { number() % 65 * 1024 } else { number() };
                let lane = &mut seen.lanes[dir as usize];
                let offset = offset_of_next.take().map_or(lane.next, |of| of(lane.next));
                let size = len.saturating_sub(std::mem::take(&mut fewer)) + std::mem::take(&mut more);
                let payload: Vec<u8> = (0..size).map(|i| byte_at(dir, offset.wrapping_add(i))).collect();
                lane.begins.push(offset);
                if let Some(end) = offset.checked_add(len) {
                    lane.ends.push(end);
                    lane.next = lane.next.max(end);
                }
                if !reassembly.is_closed() && !std::mem::replace(&mut begun, true) {
                    from_start = flags.from_start;
                }
                let flags = std::mem::take(&mut flags);
                let record = record(RecordKind::Data { dir, offset, turn, payload: &payload, len, flags });
                feed_record(&mut reassembly, &record, &mut stats, &mut |event| seen.take(event));
                assert!(seen.burst <= HOLD_BYTES + payload.len(), "more was held than may be");
                (records, fed) = (records + 1, fed + payload.len() as u64);
            }
            b'c' | b'C' => {
                let n = number();
                let [read, write] = &mut seen.lanes;
                let read_end = read.next.saturating_add(if letter == b'c' { n } else { 0 });
                let write_end = write.next.saturating_add(if letter == b'C' { n } else { 0 });
                for (lane, end) in [(read, read_end), (write, write_end)] {
                    lane.begins.push(end);
                    lane.ends.push(end);
                }
                let flags = std::mem::take(&mut flags);
                let record = record(RecordKind::Close { read_end, write_end, flags });
                feed_record(&mut reassembly, &record, &mut stats, &mut |event| seen.take(event));
                records += 1;
            }
            b't' | b'T' => {
                let end = letter == b'T';
                now += if end { 0 } else { number() * 10_000_000 };
                let time = MonoNs(if end { u64::MAX } else { now });
                reassembly.handle_timeout(time, &mut stats, &mut |event| seen.take(event));
                assert!(seen.burst <= HOLD_BYTES);
                assert!(reassembly.poll_timeout().is_none_or(|due| due > time), "what was due was done");
            }
            b'x' => {
                let cause = CloseCause::ProcessExit;
                reassembly.close(MonoNs(now), cause, &mut stats, &mut |event| seen.take(event));
                assert!(seen.closed.is_some() && reassembly.poll_timeout().is_none());
            }
            b'>' => {
                offset_of_next = Some({
                    let n = number();
                    Box::new(move |next| next.saturating_add(n))
                })
            }
            b'<' => {
                offset_of_next = Some({
                    let n = number();
                    Box::new(move |next| next.saturating_sub(n))
                })
            }
            b'm' => {
                offset_of_next = Some({
                    let n = number();
                    Box::new(move |_| u64::MAX - n)
                })
            }
            b'p' => fewer = number(),
            b'P' => more = number(),
            b'^' => turn = number() as u32,
            b'f' => {
                let bits = number();
                let has = |bit: u64| bits & (1 << bit) != 0;
                flags = RecordFlags {
                    from_start: has(0),
                    capped: has(1),
                    fault: has(2),
                    after_skip: has(3),
                    after_unknown_loss: has(4),
                    sent: has(5),
                };
            }
            _ => {}
        }
        assert_eq!(reassembly.is_closed(), seen.closed.is_some());
        assert_eq!(reassembly.is_from_start(), from_start);
    }
    reassembly.handle_timeout(MonoNs(u64::MAX), &mut stats, &mut |event| seen.take(event));
    assert_eq!(reassembly.poll_timeout(), None, "nothing waits for ever");

    assert_eq!((stats.records, stats.gaps, stats.bytes_lost), (records, seen.losses, seen.lost));
    assert_eq!(stats.drops(DropReason::Gap), seen.losses);
    assert!(stats.bytes <= fed);
    for dir in [Direction::Read, Direction::Write] {
        check_lane(dir, &seen.lanes[dir as usize], from_start);
    }
}

/// The bytes of a direction are those of its offsets, counted from some offset at which it may have begun, and end at one
/// that a record named.
fn check_lane(dir: Direction, lane: &Lane, from_start: bool) {
    if lane.position == 0 {
        return;
    }
    let fits = |begin: u64| {
        let Some(end) = begin.checked_add(lane.position) else { return false };
        let mut pieces = lane.given.iter();
        lane.ends.contains(&end)
            && pieces.all(|(at, bytes)| bytes.iter().zip(begin + at..).all(|(byte, at)| *byte == byte_at(dir, at)))
    };
    let right = if from_start { fits(0) } else { lane.begins.iter().any(|begin| fits(*begin)) };
    assert!(right, "{dir:?}: bytes and gaps do not add up: {lane:?}");
}
