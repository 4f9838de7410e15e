//! Framing: AWS event streams (`application/vnd.amazon.eventstream`).
//!
//! Source: "Amazon event stream encoding" in the AWS documentation. A frame is its length, the length of its headers, a
//! CRC32 of both, headers, payload, and a CRC32 of all before; numbers are big-endian. After a gap or damage the next
//! frame is where the first checksum is right.

use super::api::{Defects, Frame};
use crate::limits::EVENT_BYTES;

/// A buffer that grew over this for one frame is given back after it, in bytes.
const KEEP_BYTES: usize = 16 * 1024;
/// Lengths and their checksum, in bytes.
const PRELUDE: usize = 12;
/// Prelude and the checksum at the end, in bytes.
const AROUND: usize = PRELUDE + 4;

/// Incremental decoder.
#[derive(Debug, Default)]
pub(super) struct AwsEvents {
    /// Bytes that are no whole frame yet.
    held: Vec<u8>,
    /// Bytes of a frame over the cap that are still to come.
    skip: usize,
    /// Where the next frame begins is not known.
    lost: bool,
}

/// What the bytes begin with.
enum Start {
    /// Part of a frame.
    Part,
    /// A frame of this length.
    Frame(usize),
    /// A frame over the cap, of this length.
    TooLong(usize),
    /// No frame.
    Damage,
}

impl AwsEvents {
    /// Forgets the frame in progress: bytes are missing here.
    pub(super) fn gap(&mut self) {
        *self = Self { lost: true, ..Self::default() };
    }

    /// Takes the next bytes; `on_event` gets every event that they complete.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut on_event: impl FnMut(Frame<'_>)) -> Defects {
        let mut defects = Defects::default();
        // At most one frame's worth is held at a time, however much comes at once.
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            let (piece, rest) = bytes.split_at((skipped + EVENT_BYTES).min(bytes.len()));
            self.held.extend_from_slice(piece.get(skipped..).unwrap_or_default());
            bytes = rest;
            self.frames(&mut on_event, &mut defects);
        }
        defects
    }

    fn frames(&mut self, on_event: &mut impl FnMut(Frame<'_>), defects: &mut Defects) {
        let mut at = 0;
        loop {
            let rest = self.held.get(at..).unwrap_or_default();
            match start(rest) {
                Start::Part => break,
                Start::Damage => {
                    defects.frame_invalid += u64::from(!std::mem::replace(&mut self.lost, true));
                    at += 1;
                }
                Start::TooLong(len) => {
                    self.lost = false;
                    defects.event_too_long += 1;
                    self.skip = len.saturating_sub(rest.len());
                    at += len.min(rest.len());
                }
                Start::Frame(len) => {
                    self.lost = false;
                    let Some(frame) = rest.get(..len) else { break };
                    at += len;
                    match event(frame) {
                        Some(event) => on_event(event),
                        None => defects.frame_invalid += 1,
                    }
                }
            }
        }
        self.held.drain(..at.min(self.held.len()));
        if self.held.is_empty() && self.held.capacity() > KEEP_BYTES {
            self.held = Vec::new();
        }
    }
}

fn start(bytes: &[u8]) -> Start {
    let (Some(len), Some(headers), Some(sum)) = (number(bytes, 0), number(bytes, 4), number(bytes, 8)) else {
        return Start::Part;
    };
    let (len, headers) = (len as usize, headers as usize);
    let checked = bytes.get(..PRELUDE - 4).is_some_and(|prelude| crc32fast::hash(prelude) == sum);
    if !checked || len < AROUND || headers > len - AROUND {
        Start::Damage
    } else if len > EVENT_BYTES {
        Start::TooLong(len)
    } else {
        Start::Frame(len)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// What a whole frame says; `None` when it is damaged.
fn event(frame: &[u8]) -> Option<Frame<'_>> {
    let (body, sum) = frame.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_be_bytes(*sum) {
        return None;
    }
    let (headers, data) = body.get(PRELUDE..)?.split_at_checked(number(body, 4)? as usize)?;
    let mut event = Frame { name: b"", error: false, data, whole: true };
    let mut rest = headers;
    while !rest.is_empty() {
        let (name, value, after) = header(rest)?;
        rest = after;
        match name {
            b":event-type" => event.name = value,
            b":exception-type" | b":error-code" => (event.name, event.error) = (value, true),
            b":message-type" => event.error |= matches!(value, b"exception" | b"error"),
            _ => {}
        }
    }
    Some(event)
}

/// Name and value of the first header, and what follows it. Only strings have a value here.
fn header(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (&len, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(len))?;
    let (&kind, rest) = rest.split_first()?;
    let len = match kind {
        0 | 1 => 0,
        2 => 1,
        3 => 2,
        4 => 4,
        5 | 8 => 8,
        9 => 16,
        6 | 7 => {
            let (len, rest) = rest.split_first_chunk::<2>()?;
            let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
            return Some((name, value, rest));
        }
        _ => return None,
    };
    Some((name, &[], rest.get(len..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
        let mut head = b"\x01x\x00\x01y\x04\x00\x00\x00\x01".to_vec();
        for (name, value) in headers {
            head.push(name.len() as u8);
            head.extend(name.as_bytes());
            head.push(7);
            head.extend((value.len() as u16).to_be_bytes());
            head.extend(value.as_bytes());
        }
        let mut out = ((AROUND + head.len() + payload.len()) as u32).to_be_bytes().to_vec();
        out.extend((head.len() as u32).to_be_bytes());
        out.extend(crc32fast::hash(&out).to_be_bytes());
        out.extend(head);
        out.extend(payload);
        out.extend(crc32fast::hash(&out).to_be_bytes());
        out
    }

    fn run<'a>(pieces: impl IntoIterator<Item = Option<&'a [u8]>>) -> (Vec<String>, Defects) {
        let mut events = AwsEvents::default();
        let (mut seen, mut defects) = (Vec::new(), Defects::default());
        for piece in pieces {
            match piece {
                Some(bytes) => {
                    defects += events.feed(bytes, |f| {
                        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
                        seen.push(format!("{}{}={}", if f.error { "!" } else { "" }, text(f.name), text(f.data)));
                    });
                }
                None => events.gap(),
            }
        }
        (seen, defects)
    }

    fn body() -> Vec<u8> {
        [
            frame(&[(":event-type", "a"), (":message-type", "event")], b"1"),
            frame(&[(":message-type", "exception"), (":exception-type", "throttlingException")], b"{}"),
            frame(&[(":message-type", "error"), (":error-code", "500")], b""),
            frame(&[(":event-type", "b")], b"2"),
        ]
        .concat()
    }

    #[test]
    fn frames_are_the_same_in_every_cut() {
        let body = body();
        let want = ["a=1", "!throttlingException={}", "!500=", "b=2"].map(str::to_owned).to_vec();
        assert_eq!(run([Some(body.as_slice())]), (want.clone(), Defects::default()));
        assert_eq!(run(body.chunks(1).map(Some)), (want.clone(), Defects::default()));
        for cut in 0..=body.len() {
            assert_eq!(run([Some(&body[..cut]), Some(&body[cut..])]).0, want, "cut at {cut}");
        }
    }

    #[test]
    fn damage_costs_the_frames_that_it_hit_and_is_counted() {
        let whole = body();
        for at in 0..whole.len() {
            let mut body = whole.clone();
            body[at] ^= 0x20;
            let (seen, defects) = run([Some(body.as_slice())]);
            assert_eq!((seen.len(), defects.frame_invalid), (3, 1), "byte {at}");
        }
    }

    #[test]
    fn after_a_gap_decoding_goes_on_at_the_next_frame() {
        let body = body();
        let second = frame(&[(":event-type", "a"), (":message-type", "event")], b"1").len();
        for from in 1..second {
            let (seen, defects) = run([Some(&body[..5]), None, Some(&body[from..])]);
            assert_eq!((seen.len(), defects), (3, Defects::default()), "from {from}");
        }
    }

    #[test]
    fn a_frame_over_the_cap_is_skipped_counted_once_and_the_next_one_is_right() {
        let body = [frame(&[], &vec![b'x'; EVENT_BYTES]), frame(&[(":event-type", "b")], b"2")].concat();
        for piece in [10_000, EVENT_BYTES + 7, body.len()] {
            let (seen, defects) = run(body.chunks(piece).map(Some));
            assert_eq!((seen, defects.event_too_long), (vec!["b=2".to_owned()], 1));
        }
    }

    #[test]
    fn endless_junk_is_not_kept() {
        let mut events = AwsEvents::default();
        let mut defects = Defects::default();
        for _ in 0..50 {
            defects += events.feed(&[0x7f; 100_000], |_| panic!("there is no frame"));
            assert!(events.held.len() < PRELUDE);
        }
        assert_eq!(defects.frame_invalid, 1);
        for bad in [b"\x00\x00\x00\x10\xff\xff\xff\xff".as_slice(), b"\x00\x00\x00\x00\x00\x00\x00\x00"] {
            let lying = [bad, &crc32fast::hash(bad).to_be_bytes(), &[0; 40]].concat();
            assert_eq!(run([Some(lying.as_slice())]).1.frame_invalid, 1);
        }
    }
}
