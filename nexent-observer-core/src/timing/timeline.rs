//! Times of the output chunks of one stream, packed: about 4 bytes a chunk at usual rates, 1 byte when coalesced.
//!
//! Each chunk is one LEB128 number: the time since the chunk before it in ns, shifted left by two; bit 0 says that a
//! token count follows as a second number, bit 1 that bytes were lost between the two chunks. A chunk with the time of
//! the one before it is coalesced, so that needs no bit.

use crate::event::MonoNs;

/// Bit 0 of an entry: a token count follows.
const HAS_TOKENS: u64 = 1;
/// Bit 1 of an entry: bytes were lost since the chunk before.
const AFTER_HOLE: u64 = 2;
const FLAG_BITS: u32 = 2;
/// Longest LEB128 number of 64 bits, in bytes.
const VARINT_BYTES: usize = 10;

/// Times of the output chunks, packed; capped at `limits::Limits::timeline_bytes`. What it holds is always a beginning
/// of the stream: after the cap nothing is added and [`Timeline::truncated`] says so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timeline {
    packed: Vec<u8>,
    first: MonoNs,
    len: u32,
    truncated: bool,
}

/// One output chunk as the timeline tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimelineChunk {
    /// When the read that completed it returned.
    pub at: MonoNs,
    /// Tokens in it where known (continuous usage, else those that a tokenizer could tell by then), else `None`.
    pub tokens: Option<u32>,
    /// Decoded from the same read as the chunk before it: shares its time.
    pub coalesced: bool,
}

/// How far a reader of a growing [`Timeline`] is; the default is its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    read: usize,
    at: MonoNs,
}

impl Timeline {
    /// The chunks that were kept, in the order of arrival. Times never go back.
    #[must_use]
    pub fn iter(&self) -> Chunks<'_> {
        Chunks(Entries { packed: &self.packed, at: self.first.0, begun: false })
    }

    /// Inter-chunk latency samples in ns: the time between neighbouring distinct read times that carry output, one
    /// sample per read. A pair with a loss between it is no sample: chunks may have come in the hole.
    #[must_use]
    pub fn gaps(&self) -> Gaps<'_> {
        Gaps(Entries { packed: &self.packed, at: self.first.0, begun: false })
    }

    /// The first chunk behind `cursor`, which moves past it: for a reader that comes again while the stream is open. A
    /// cursor belongs to the timeline that it was first used with.
    pub fn next_after(&self, cursor: &mut Cursor) -> Option<TimelineChunk> {
        let rest = self.packed.get(cursor.read..)?;
        let at = if cursor.read == 0 { self.first.0 } else { cursor.at.0 };
        let mut entries = Entries { packed: rest, at, begun: cursor.read != 0 };
        let entry = entries.next()?;
        *cursor = Cursor { read: self.packed.len() - entries.packed.len(), at: MonoNs(entry.at) };
        Some(TimelineChunk { at: cursor.at, tokens: entry.tokens, coalesced: entry.gap == Some(0) })
    }

    /// Number of chunks kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether no chunk was kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether later chunks were left out because of the cap.
    #[must_use]
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// Bytes of heap that it holds.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.packed.capacity()
    }

    /// Begins the timeline: the time from which the first `push` counts.
    pub(super) fn begin(&mut self, at: MonoNs) {
        self.first = at;
    }

    /// Adds a chunk `gap` ns after the one before it, unless that would take the timeline over `cap` bytes.
    pub(super) fn push(&mut self, gap: u64, tokens: Option<u32>, after_hole: bool, cap: usize) {
        if self.truncated {
            return;
        }
        let mut entry = [0; 2 * VARINT_BYTES];
        let flags = u64::from(tokens.is_some()) * HAS_TOKENS + u64::from(after_hole) * AFTER_HOLE;
        let mut used = put_varint(&mut entry, 0, (gap << FLAG_BITS) | flags);
        if let Some(tokens) = tokens {
            used = put_varint(&mut entry, used, u64::from(tokens));
        }
        // The shift must not lose bits: a gap of 2^62 ns is 146 years, so such a stamp is broken.
        if self.packed.len() + used > cap || gap.leading_zeros() < FLAG_BITS || self.len == u32::MAX {
            self.truncated = true;
            return;
        }
        self.grow(used, cap);
        self.packed.extend_from_slice(entry.get(..used).unwrap_or_default());
        self.len += 1;
    }

    /// Grows by an eighth instead of doubling: thousands of streams are open at once, and each would hold half its
    /// timeline's size in reserve. By 256 bytes at least, which are 60 chunks: in steps of 64 bytes growing took 4 % of the
    /// core's time (seen).
    fn grow(&mut self, more: usize, cap: usize) {
        let len = self.packed.len();
        if self.packed.capacity() - len < more {
            let step = (len / 8).clamp(256, 4096).min(cap - len);
            self.packed.reserve_exact(step.max(more));
        }
    }
}

impl<'a> IntoIterator for &'a Timeline {
    type Item = TimelineChunk;
    type IntoIter = Chunks<'a>;

    fn into_iter(self) -> Chunks<'a> {
        self.iter()
    }
}

/// Iterator of [`Timeline::iter`].
#[derive(Debug, Clone)]
pub struct Chunks<'a>(Entries<'a>);

impl Iterator for Chunks<'_> {
    type Item = TimelineChunk;

    fn next(&mut self) -> Option<TimelineChunk> {
        let e = self.0.next()?;
        Some(TimelineChunk { at: MonoNs(e.at), tokens: e.tokens, coalesced: e.gap == Some(0) })
    }
}

/// Iterator of [`Timeline::gaps`], in ns.
#[derive(Debug, Clone)]
pub struct Gaps<'a>(Entries<'a>);

impl Iterator for Gaps<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        loop {
            let e = self.0.next()?;
            match e.gap {
                Some(gap) if gap > 0 && !e.after_hole => return Some(gap),
                _ => {}
            }
        }
    }
}

struct Entry {
    at: u64,
    /// Since the chunk before; `None` for the first.
    gap: Option<u64>,
    tokens: Option<u32>,
    after_hole: bool,
}

#[derive(Debug, Clone)]
struct Entries<'a> {
    packed: &'a [u8],
    at: u64,
    begun: bool,
}

impl Entries<'_> {
    fn next(&mut self) -> Option<Entry> {
        let head = take_varint(&mut self.packed)?;
        let tokens = match head & HAS_TOKENS {
            0 => None,
            _ => Some(take_varint(&mut self.packed)? as u32), // was a u32 when it was put there
        };
        let gap = head >> FLAG_BITS;
        self.at = self.at.saturating_add(gap);
        let gap = std::mem::replace(&mut self.begun, true).then_some(gap);
        Some(Entry { at: self.at, gap, tokens, after_hole: head & AFTER_HOLE != 0 })
    }
}

/// Writes `value` at `at`; gives back the position after it.
fn put_varint(out: &mut [u8], mut at: usize, mut value: u64) -> usize {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if let Some(slot) = out.get_mut(at) {
            *slot = if value == 0 { low } else { low | 0x80 };
        }
        at += 1;
        if value == 0 {
            return at;
        }
    }
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAP: usize = 64 * 1024;

    #[test]
    fn a_usual_stream_of_500_chunks_takes_under_3_kib_of_heap() {
        let mut t = Timeline::default();
        for i in 0..500 {
            t.push(if i == 0 { 0 } else { 20_000_000 + i * 1000 }, None, false, CAP);
        }
        assert_eq!(t.len(), 500);
        assert!(t.heap_bytes() <= 3 * 1024, "{} bytes", t.heap_bytes());
    }

    #[test]
    fn a_cursor_gives_each_chunk_once_also_while_the_timeline_grows() {
        let mut t = Timeline::default();
        t.begin(MonoNs(500));
        let mut cursor = Cursor::default();
        assert_eq!(t.next_after(&mut cursor), None);
        let mut read = Vec::new();
        for i in 0..300_u64 {
            t.push(if i == 0 { 0 } else { i % 7 * 1000 }, (i % 3 == 0).then_some(i as u32), i % 11 == 0, CAP);
            if i % 5 == 0 {
                read.extend(std::iter::from_fn(|| t.next_after(&mut cursor)));
            }
        }
        read.extend(std::iter::from_fn(|| t.next_after(&mut cursor)));
        assert_eq!(read, t.iter().collect::<Vec<_>>());
        assert_eq!(t.next_after(&mut cursor), None);
    }

    #[test]
    fn a_full_timeline_says_truncated_keeps_its_beginning_and_never_passes_the_cap() {
        let mut t = Timeline::default();
        t.begin(MonoNs(5));
        for _ in 0..100 {
            t.push(1_000_000, Some(3), false, 100);
        }
        assert!(t.truncated());
        assert!(t.heap_bytes() <= 100, "{}", t.heap_bytes());
        assert_eq!(t.len(), t.iter().count());
        assert_eq!(t.iter().next().map(|c| c.at), Some(MonoNs(1_000_005)));
        // A small entry that would still fit must not go in after a bigger one was left out.
        let kept = t.len();
        t.push(0, None, false, 100);
        assert_eq!(t.len(), kept);
    }

    #[test]
    fn a_gap_that_does_not_fit_the_packing_truncates_instead_of_lying() {
        let mut t = Timeline::default();
        t.push(0, None, false, CAP);
        t.push(u64::MAX, None, false, CAP);
        assert!(t.truncated());
        assert_eq!(t.len(), 1);
    }

    #[test]
    fn a_pair_with_a_loss_between_is_no_latency_sample() {
        let mut t = Timeline::default();
        t.push(0, None, false, CAP);
        t.push(10, None, false, CAP);
        t.push(500, None, true, CAP);
        t.push(0, None, false, CAP);
        t.push(20, None, false, CAP);
        assert_eq!(t.gaps().collect::<Vec<_>>(), [10, 20]);
    }

    proptest! {
        #[test]
        fn what_was_pushed_comes_back(
            first in 0..u64::MAX / 4,
            pushed in proptest::collection::vec((0..1u64 << 40, proptest::option::of(any::<u32>()), any::<bool>()), 0..200),
        ) {
            let mut t = Timeline::default();
            t.begin(MonoNs(first));
            let mut at = first;
            let mut want = Vec::new();
            for (i, &(gap, tokens, hole)) in pushed.iter().enumerate() {
                let gap = if i == 0 { 0 } else { gap };
                at += gap;
                t.push(gap, tokens, hole, CAP);
                want.push(TimelineChunk { at: MonoNs(at), tokens, coalesced: i > 0 && gap == 0 });
            }
            prop_assert_eq!(t.iter().collect::<Vec<_>>(), want);
            prop_assert_eq!(t.len(), pushed.len());
        }
    }
}
