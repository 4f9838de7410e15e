//! Content and transfer codings undone: gzip, deflate, br, zstd, also one upon another.
//!
//! Everything that the bytes fed so far carry comes out at once, so that what a server flushed bears the stamp of the read
//! that brought it. What comes out is bounded ([`limits::DECODED_BYTES`], [`limits::DECODED_RATIO`]), and so is the memory
//! of each decoder: 32 KiB of history for gzip and deflate, at most 16 MiB for br (RFC 7932 section 9.1; it grows with
//! what comes out), at most 8 MiB for zstd (RFC 8878 section 3.1.1.1.2 recommends that no encoder asks for more).

mod brotli;
mod inflate;
mod zstd;

use smallvec::SmallVec;

use self::{brotli::Brotli, inflate::Inflate, zstd::Zstd};
use crate::{http::Headers, limits};

/// What a decoder gives out at a time, in bytes.
const PIECE_BYTES: usize = 4096;

/// A coding that can be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// RFC 9110 section 8.4.1.3.
    Gzip,
    /// RFC 9110 section 8.4.1.2: the zlib format; bare deflate, as some servers send, too.
    Deflate,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

/// The codings of a body, in the order in which they were applied.
pub(super) type Codings = SmallVec<[Coding; 2]>;

/// Why a body cannot be decoded any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Defect {
    /// The bytes are not of the coding.
    Invalid,
    /// It would become larger, or take more memory, than is allowed.
    TooLong,
    /// The body is complete; what comes behind it is not of the coding.
    Trailing,
}

/// What one step of a decoder did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    read: usize,
    written: usize,
}

/// Undoes one coding.
trait Decode: std::fmt::Debug + Send {
    /// Takes bytes and gives bytes. With all of `input` taken and room left in `out`, there is nothing more to give.
    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Defect>;
    /// Whether the body may end here.
    fn is_complete(&self) -> bool;
}

/// The codings that the fields of a message name; `None` when one of them is not known, or too many are named.
pub(super) fn codings(headers: &Headers<'_>) -> Option<Codings> {
    let mut codings = Codings::new();
    // The transfer coding is applied last. Its `chunked` is undone already.
    for (field, transfer) in [("content-encoding", false), ("transfer-encoding", true)] {
        for (_, value) in headers.0.iter().filter(|(name, _)| name.eq_ignore_ascii_case(field)) {
            for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                let is = |name: &[u8]| token.eq_ignore_ascii_case(name);
                let coding = match token {
                    _ if token.is_empty() || is(b"identity") || (transfer && is(b"chunked")) => continue,
                    _ if is(b"gzip") || is(b"x-gzip") => Coding::Gzip,
                    _ if is(b"deflate") => Coding::Deflate,
                    _ if is(b"br") => Coding::Brotli,
                    _ if is(b"zstd") => Coding::Zstd,
                    _ => return None,
                };
                if codings.len() >= limits::CODINGS {
                    return None;
                }
                codings.push(coding);
            }
        }
    }
    Some(codings)
}

/// What a body begins with that no event stream and no JSON begins with: the magic number of a coding. `None` when more
/// bytes are needed, at most 4.
pub(super) fn sniff(start: &[u8]) -> Option<Option<Coding>> {
    const MAGIC: [(&[u8], Coding); 2] = [(&[0x1f, 0x8b, 8], Coding::Gzip), (&[0x28, 0xb5, 0x2f, 0xfd], Coding::Zstd)];
    if let Some((_, coding)) = MAGIC.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(Some(*coding));
    }
    (!MAGIC.iter().any(|(magic, _)| magic.starts_with(start))).then_some(None)
}

/// Undoes all codings of one body.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The coding that was applied last comes first.
    stages: SmallVec<[Box<dyn Decode>; 1]>,
    budget: Budget,
}

/// What may still come out.
#[derive(Debug, Default)]
struct Budget {
    fed: u64,
    given: u64,
}

impl Budget {
    fn give(&mut self, n: usize) -> Result<(), Defect> {
        self.given = self.given.saturating_add(n as u64);
        let by_ratio = self.fed.saturating_mul(limits::DECODED_RATIO).saturating_add(limits::DECODED_FREE_BYTES);
        if self.given > by_ratio.min(limits::DECODED_BYTES) { Err(Defect::TooLong) } else { Ok(()) }
    }
}

impl Decoder {
    /// A decoder at the beginning of a body.
    pub(super) fn new(codings: &[Coding]) -> Self {
        let stage = |coding: &Coding| -> Box<dyn Decode> {
            match coding {
                Coding::Gzip => Box::new(Inflate::gzip()),
                Coding::Deflate => Box::new(Inflate::deflate()),
                Coding::Brotli => Box::new(Brotli::new()),
                Coding::Zstd => Box::new(Zstd::new()),
            }
        };
        Self { stages: codings.iter().rev().map(stage).collect(), budget: Budget::default() }
    }

    /// Takes the next bytes; `sink` gets everything that they complete, in pieces that are not empty. After an error the
    /// decoder is of no use any more.
    pub(super) fn feed(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<(), Defect> {
        self.budget.fed = self.budget.fed.saturating_add(bytes.len() as u64);
        run(&mut self.stages, &mut self.budget, bytes, sink)
    }

    /// Whether the body may end here.
    pub(super) fn is_complete(&self) -> bool {
        self.stages.iter().all(|stage| stage.is_complete())
    }
}

/// Calls itself once for each coding: at most [`limits::CODINGS`] deep.
fn run(
    stages: &mut [Box<dyn Decode>],
    budget: &mut Budget,
    mut bytes: &[u8],
    sink: &mut dyn FnMut(&[u8]),
) -> Result<(), Defect> {
    let Some((stage, later)) = stages.split_first_mut() else {
        if !bytes.is_empty() {
            sink(bytes);
        }
        return Ok(());
    };
    let mut out = [0; PIECE_BYTES];
    loop {
        let Step { read, written } = stage.step(bytes, &mut out)?;
        bytes = bytes.get(read..).unwrap_or_default();
        budget.give(written)?;
        run(later, budget, out.get(..written).unwrap_or_default(), sink)?;
        if bytes.is_empty() && written < out.len() {
            return Ok(());
        }
        if read == 0 && written == 0 {
            return Err(Defect::Invalid);
        }
    }
}

#[cfg(test)]
mod tests;
