//! Texts of JSON bodies, compared by hashes of 32 bytes: those of requests that a process serves, and those that it sends.
//!
//! Of a served request each text is cut into blocks of [`WINDOW`] bytes, whose hashes are kept while it is served. Over a sent
//! body a hash of the same width rolls (Karp and Rabin), so that a block is found wherever it stands in the prompt. No text is
//! kept. Escapes are undone on both sides, for one may write `\u4e2d` where the other writes the character.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use smallvec::SmallVec;

use crate::{
    limits::{BLOCKS, BLOCKS_OF_REQUEST, COMPARED_BYTES},
    timing::{ExchangeId, Served},
};

/// Bytes of one block: the shortest text that is found again.
const WINDOW: usize = 32;
/// A block with fewer different bytes is a line of dashes or blanks, which proves nothing.
const DIFFERENT_BYTES: u32 = 9;
/// 2^61 - 1, a prime.
const MODULUS: u64 = (1 << 61) - 1;
const BASE: u64 = 0x0dd0_6e4a_93b1_c727;
/// `BASE` to the power of `WINDOW`.
const BASE_OF_WINDOW: u64 = {
    let (mut power, mut n) = (1, 0);
    while n < WINDOW {
        power = times(power, BASE);
        n += 1;
    }
    power
};

const fn times(a: u64, b: u64) -> u64 {
    ((a as u128 * b as u128) % MODULUS as u128) as u64
}

/// The hash of the latest [`WINDOW`] bytes.
#[derive(Debug, Clone, Default)]
struct Rolling {
    latest: [u8; WINDOW],
    /// Bytes since the beginning.
    len: usize,
    hash: u64,
}

impl Rolling {
    /// Takes a byte; the hash once there are enough.
    fn push(&mut self, byte: u8) -> Option<u64> {
        let slot = &mut self.latest[self.len % WINDOW];
        let old = std::mem::replace(slot, byte);
        let mut hash = times(self.hash, BASE) + u64::from(byte) + 1;
        if self.len >= WINDOW {
            hash += MODULUS - times(u64::from(old) + 1, BASE_OF_WINDOW);
        }
        self.hash = hash % MODULUS;
        self.len += 1;
        (self.len >= WINDOW).then_some(self.hash)
    }

    fn restart(&mut self) {
        (self.len, self.hash) = (0, 0);
    }

    fn tells_something(&self) -> bool {
        let mut seen = [0_u64; 4];
        for byte in self.latest {
            seen[usize::from(byte >> 6)] |= 1 << (byte & 63);
        }
        seen.iter().map(|bits| bits.count_ones()).sum::<u32>() >= DIFFERENT_BYTES
    }
}

/// Undoes the escapes of JSON (RFC 8259 section 7), byte by byte.
#[derive(Debug, Clone, Default)]
struct Unescape {
    escape: Escape,
    /// The first half of a pair.
    high: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    No,
    Begun,
    Unicode {
        digits: u8,
        value: u32,
    },
}

/// What a byte of JSON came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decoded {
    /// A text begins or ends.
    Quote,
    /// A byte.
    Byte(u8),
    /// A character that was escaped.
    Char(char),
    /// Nothing yet.
    Nothing,
}

impl Unescape {
    fn push(&mut self, byte: u8) -> Decoded {
        match self.escape {
            Escape::No => match byte {
                b'\\' => {
                    self.escape = Escape::Begun;
                    Decoded::Nothing
                }
                b'"' => {
                    self.high = None;
                    Decoded::Quote
                }
                byte => Decoded::Byte(byte),
            },
            Escape::Begun => {
                self.escape = Escape::No;
                Decoded::Byte(match byte {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'f' => 12,
                    b'u' => {
                        self.escape = Escape::Unicode { digits: 0, value: 0 };
                        return Decoded::Nothing;
                    }
                    byte => byte,
                })
            }
            Escape::Unicode { digits, value } => {
                let value = value << 4 | (byte as char).to_digit(16).unwrap_or(0);
                if digits < 3 {
                    self.escape = Escape::Unicode { digits: digits + 1, value };
                    return Decoded::Nothing;
                }
                self.escape = Escape::No;
                self.unit(value)
            }
        }
    }

    /// A unit of UTF-16.
    fn unit(&mut self, unit: u32) -> Decoded {
        let high = self.high.take();
        match (unit, high) {
            (0xd800..0xdc00, _) => {
                self.high = Some(unit);
                Decoded::Nothing
            }
            (0xdc00..0xe000, Some(high)) => {
                let code = 0x1_0000 + ((high - 0xd800) << 10) + (unit - 0xdc00);
                Decoded::Char(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
            }
            _ => Decoded::Char(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)),
        }
    }

    /// Decodes; `None` goes to `sink` at each quote.
    fn feed(&mut self, bytes: &[u8], mut sink: impl FnMut(Option<u8>)) {
        for &byte in bytes {
            match self.push(byte) {
                Decoded::Quote => sink(None),
                Decoded::Byte(byte) => sink(Some(byte)),
                Decoded::Char(c) => c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| sink(Some(byte))),
                Decoded::Nothing => {}
            }
        }
    }
}

/// Hashes of the texts of one served request, as its body goes by.
#[derive(Debug, Clone, Default)]
pub struct Prints {
    unescape: Unescape,
    rolling: Rolling,
    inside: bool,
    blocks: Vec<u64>,
    missing: bool,
}

impl Prints {
    /// The next bytes of the body.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.missing {
            return;
        }
        let Self { unescape, rolling, inside, blocks, missing } = self;
        let mut block = |rolling: &Rolling, hash| {
            if !rolling.tells_something() {
                return;
            }
            if blocks.len() >= BLOCKS_OF_REQUEST {
                *missing = true;
                return;
            }
            blocks.push(hash);
        };
        unescape.feed(bytes, |decoded| match decoded {
            Some(byte) if *inside => {
                if let Some(hash) = rolling.push(byte)
                    && rolling.len % WINDOW == 0
                {
                    block(rolling, hash);
                }
            }
            Some(_) => {}
            None => {
                // The end of a text that does not come out even: its last bytes once more.
                if *inside && rolling.len > WINDOW && rolling.len % WINDOW != 0 {
                    block(rolling, rolling.hash);
                }
                rolling.restart();
                *inside = !*inside;
            }
        });
    }

    /// Bytes are missing, or they are no JSON.
    pub fn gap(&mut self) {
        self.missing = true;
    }

    /// The blocks, and whether they are all that the body has.
    pub(super) fn finish(self) -> (Arc<[u64]>, bool) {
        let Self { mut blocks, inside, missing, .. } = self;
        blocks.sort_unstable();
        blocks.dedup();
        (blocks.into(), !inside && !missing)
    }
}

/// A hash is as good a hash as any.
#[derive(Debug, Clone, Copy, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0 << 8 | u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        // The table's own bits are the highest ones, which a number below 2^61 does not have.
        self.0 = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type Owners = SmallVec<[ExchangeId; 1]>;

/// The blocks of all requests that a process is serving.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    owners: HashMap<u64, Owners, BuildHasherDefault<AsItIs>>,
    of: HashMap<ExchangeId, Arc<[u64]>>,
}

impl Blocks {
    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Adds those of a request; how many there was room for.
    pub(super) fn add(&mut self, id: ExchangeId, prints: &Arc<[u64]>) -> usize {
        let mut kept = 0;
        for hash in prints.iter() {
            if self.owners.len() >= BLOCKS && !self.owners.contains_key(hash) {
                continue;
            }
            self.owners.entry(*hash).or_default().push(id);
            kept += 1;
        }
        if kept > 0 {
            self.of.insert(id, Arc::clone(prints));
        }
        kept
    }

    pub(super) fn remove(&mut self, id: ExchangeId) {
        for hash in self.of.remove(&id).iter().flat_map(|prints| prints.iter()) {
            if let Some(owners) = self.owners.get_mut(hash) {
                owners.retain(|owner| *owner != id);
                if owners.is_empty() {
                    self.owners.remove(hash);
                }
            }
        }
    }
}

/// Looks for blocks of served requests in the body of a call. The body itself stays only until both rings are drained: the request
/// that caused it may be told after it.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Bytes that were not compared yet, between losses.
    waiting: Vec<Vec<u8>>,
    waiting_bytes: usize,
    unescape: Unescape,
    rolling: Rolling,
    owner: Owner,
    found: Option<Arc<Served>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Owner {
    #[default]
    None,
    One(ExchangeId),
    /// Blocks of several requests, each of which only one has: a contradiction.
    Several,
}

impl Scan {
    /// Takes bytes, of which a body has no more than the kernel half copies of a turn.
    pub(super) fn wait(&mut self, bytes: &[u8]) {
        let room = COMPARED_BYTES.saturating_sub(self.waiting_bytes);
        let bytes = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        if self.waiting.is_empty() {
            self.waiting.push(Vec::new());
        }
        if let Some(last) = self.waiting.last_mut() {
            last.extend_from_slice(bytes);
        }
        self.waiting_bytes += bytes.len();
    }

    /// Bytes are missing here.
    pub(super) fn gap(&mut self) {
        if self.waiting.last().is_none_or(|last| !last.is_empty()) {
            // The first piece goes on where the last comparison ended.
            self.waiting.extend(self.waiting.is_empty().then(Vec::new));
            self.waiting.push(Vec::new());
        }
    }

    /// Whether bytes wait to be compared.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Compares what waits.
    pub(super) fn compare(&mut self, blocks: &Blocks) {
        self.waiting_bytes = 0;
        for (number, piece) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            if number > 0 {
                self.rolling.restart();
                self.unescape = Unescape::default();
            }
            if !blocks.is_empty() {
                self.feed(&piece, blocks);
            }
        }
    }

    fn feed(&mut self, bytes: &[u8], blocks: &Blocks) {
        let Self { unescape, rolling, owner, .. } = self;
        if *owner == Owner::Several {
            return;
        }
        // Where texts begin and end is not followed: after missing bytes nobody knows. A quote inside a text is escaped.
        unescape.feed(bytes, |decoded| match decoded {
            None => rolling.restart(),
            Some(byte) => {
                let Some(hash) = rolling.push(byte) else { return };
                // A block that several requests have proves nothing.
                if let Some([of]) = blocks.owners.get(&hash).map(SmallVec::as_slice) {
                    *owner = match *owner {
                        Owner::None => Owner::One(*of),
                        Owner::One(known) if known == *of => return,
                        Owner::One(_) | Owner::Several => Owner::Several,
                    };
                }
            }
        });
    }

    pub(super) fn owner(&self) -> Option<ExchangeId> {
        if let Owner::One(id) = self.owner { Some(id) } else { None }
    }

    pub(super) fn decide(&mut self, found: Option<Arc<Served>>) {
        self.found = found;
    }

    pub(super) fn found(&self) -> Option<Arc<Served>> {
        self.found.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ConnId;

    fn id(no: u32) -> ExchangeId {
        ExchangeId { conn: ConnId(1), no }
    }

    fn prints(body: &str) -> (Arc<[u64]>, bool) {
        let mut prints = Prints::default();
        prints.feed(body.as_bytes());
        prints.finish()
    }

    fn owner(bodies: &[&str], call: &str) -> Option<u32> {
        let mut blocks = Blocks::default();
        for (no, body) in bodies.iter().enumerate() {
            let (prints, _) = prints(body);
            assert_eq!(blocks.add(id(no as u32), &prints), prints.len());
        }
        let owners: Vec<_> = [1, 7, call.len()]
            .map(|size| {
                let mut scan = Scan::default();
                for (number, piece) in call.as_bytes().chunks(size).enumerate() {
                    scan.wait(piece);
                    if number % 3 == 0 {
                        scan.compare(&blocks);
                    }
                }
                scan.compare(&blocks);
                scan.owner()
            })
            .into();
        assert!(owners.iter().all(|owner| *owner == owners[0]), "the same however it is cut");
        for no in 0..bodies.len() as u32 {
            blocks.remove(id(no));
        }
        assert!(blocks.is_empty() && blocks.of.is_empty(), "nothing is kept");
        owners[0].map(|id| id.no)
    }

    const A: &str = r#"{"query":"Which of the seven lakes is the deepest one?","n":1}"#;
    const B: &str = r#"{"query":"Who wrote the longest novel of that century?","n":2}"#;

    #[test]
    fn a_text_is_found_wherever_it_stands_in_the_prompt() {
        let call = |text: &str| format!(r#"{{"messages":[{{"role":"user","content":"Task:\n{text} Think first."}}]}}"#);
        assert_eq!(owner(&[A, B], &call("Which of the seven lakes is the deepest one?")), Some(0));
        assert_eq!(owner(&[A, B], &call("x Who wrote the longest novel of that century?")), Some(1));
        assert_eq!(owner(&[A, B], &call("Which of the seven lakes")), None, "shorter than a block");
        assert_eq!(owner(&[A, B], &call("Something else entirely, but long enough to hold a block")), None);
        let both = "Which of the seven lakes is the deepest one? Who wrote the longest novel of that century?";
        assert_eq!(owner(&[A, B], &call(both)), None, "a contradiction");
        assert_eq!(owner(&[A, A], &call("Which of the seven lakes is the deepest one?")), None, "two asked the same");
    }

    #[test]
    fn escapes_are_undone_on_both_sides() {
        let raw = "{\"q\":\"\u{6df1}\u{3044}\u{6e56} \u{1f600} \u{e9}t\u{e9}: the \\\"deepest\\\" lake\\nof all\"}";
        let escaped =
            r#"{"p":"> \u6df1\u3044\u6e56 \ud83d\ude00 \u00e9t\u00E9: the \u0022deepest\u0022 lake\u000aof all"}"#;
        assert_eq!(owner(&[raw], escaped), Some(0));
        assert_eq!(owner(&[escaped], raw.replace("\u{6df1}", "> \u{6df1}").as_str()), Some(0));
    }

    #[test]
    fn lines_of_dashes_blanks_and_broken_pairs_prove_nothing() {
        let dashes = format!(r#"{{"q":"{}"}}"#, "-".repeat(200));
        let dots = format!(r#"{{"q":"{}"}}"#, "- . ".repeat(50));
        assert_eq!((prints(&dashes).0.len(), prints(&dots).0.len()), (0, 0));
        let indented = format!("{{\n{}\"q\": 1}}", " ".repeat(100));
        assert_eq!(prints(&indented), (Arc::default(), true));
        assert!(prints(r#"{"q":"\ud83d\ud83dx\udc00\uZZZZ\q"}"#).1);
    }

    #[test]
    fn what_is_not_all_there_says_so() {
        assert!(prints(A).1);
        assert!(!prints(&A[..30]).1, "cut inside a text");
        let mut holed = Prints::default();
        holed.feed(A.as_bytes());
        holed.gap();
        holed.feed(A.as_bytes());
        assert!(!holed.finish().1);
    }

    #[test]
    fn a_text_after_a_loss_is_found_and_one_over_it_is_not() {
        let (prints, _) = prints(A);
        let mut blocks = Blocks::default();
        blocks.add(id(0), &prints);
        let text = "Which of the seven lakes is the deepest one?";
        for (before, after, want) in [("{\"q\":\"lost\\", text, Some(id(0))), (&text[..20], &text[20..], None)] {
            let mut scan = Scan::default();
            scan.wait(before.as_bytes());
            scan.gap();
            scan.gap();
            scan.wait(after.as_bytes());
            assert_eq!(scan.waiting.len(), 2);
            scan.compare(&blocks);
            assert_eq!((scan.owner(), scan.waits()), (want, false));
        }
    }

    #[test]
    fn a_body_waits_only_up_to_a_cap() {
        let mut scan = Scan::default();
        for _ in 0..9 {
            scan.wait(&vec![b'x'; COMPARED_BYTES / 4]);
        }
        assert_eq!(scan.waiting.iter().map(Vec::len).sum::<usize>(), COMPARED_BYTES);
    }

    #[test]
    fn a_request_and_a_process_have_only_so_many_blocks() {
        let word = |n: usize| format!("{n:08} is one of very many numbers. ");
        let long: String = (0..2 * BLOCKS_OF_REQUEST).map(word).collect();
        let (prints, whole) = prints(&format!("\"{long}\""));
        assert!(!whole);
        assert!((BLOCKS_OF_REQUEST / 2..=BLOCKS_OF_REQUEST).contains(&prints.len()), "{}", prints.len());
        let mut blocks = Blocks::default();
        let mut kept = 0;
        for no in 0..2 * (BLOCKS / BLOCKS_OF_REQUEST) as u32 {
            let own: Arc<[u64]> = (0..BLOCKS_OF_REQUEST as u64).map(|n| u64::from(no) << 32 | n).collect();
            kept += blocks.add(id(no), &own);
        }
        assert_eq!((kept, blocks.owners.len()), (BLOCKS, BLOCKS));
    }
}
