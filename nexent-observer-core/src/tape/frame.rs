//! The file of a recording: a beginning, blocks of entries, and an end. Every block stands by itself, so that a file that was cut
//! anywhere can be read up to there.

use super::{entry::Malformed, wire};
use crate::limits::{TAPE_BLOCK_BYTES, TAPE_ENTRY_BYTES};

/// What a file begins with.
const MAGIC: [u8; 8] = *b"NXO-TAPE";
/// The version of the format that is written, and the only one that is read.
pub const VERSION: u16 = 1;
/// Magic, version, kind, reserved.
const BEGINNING: usize = 12;
/// Compressed length, length, checksum.
const BLOCK_HEAD: usize = 12;
/// A block is written when it has so many bytes, though an entry may make it longer.
pub const BLOCK_BYTES: usize = 256 * 1024;
/// Fast, and still a tenth of the size.
const LEVEL: i32 = 3;

/// What a recording holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What stage 4 gave out, without content.
    Redacted,
    /// What went into stage 3, with content.
    Content,
}

/// Why a file cannot be read, or not further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It is no recording.
    #[error("this is no recording of nexent-observer")]
    NoTape,
    /// It is of another version.
    #[error("this recording has version {0} of the format, and this program reads version {VERSION}")]
    Version(u16),
    /// Its kind is none that is known.
    #[error("this recording is of a kind that this program does not know")]
    Kind,
    /// A block that says it is longer than any is.
    #[error("the recording is damaged: a block of {0} bytes, more than any has")]
    TooLong(u32),
    /// A block whose bytes are not those that were written.
    #[error("the recording is damaged: the checksum of a block is wrong")]
    Checksum,
    /// A block that does not decompress, or to another length.
    #[error("the recording is damaged: a block cannot be decompressed")]
    Compression,
    /// Bytes in a block that are no entries.
    #[error("the recording is damaged: a block does not consist of entries")]
    Entries,
}

/// The beginning of a file.
#[must_use]
pub fn beginning(kind: Kind) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.push(match kind {
        Kind::Redacted => 0,
        Kind::Content => 1,
    });
    out.push(0);
    out
}

/// The end of a file: a block of no bytes.
#[must_use]
pub fn end() -> Vec<u8> {
    vec![0; BLOCK_HEAD]
}

/// Entries on their way into a block.
#[derive(Debug, Default)]
pub struct Block(Vec<u8>);

impl Block {
    /// Appends an entry; false when it is too long for any block, and was left out.
    #[must_use]
    pub fn push(&mut self, entry: &[u8]) -> bool {
        let fits = entry.len() <= TAPE_ENTRY_BYTES;
        if fits {
            wire::bytes(&mut self.0, entry);
        }
        fits
    }

    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The block as it is written. `None` when the library that compresses it failed, which it has no cause to.
    #[must_use]
    pub fn pack(&self) -> Option<Vec<u8>> {
        let mut packed = Vec::with_capacity(zstd_safe::compress_bound(self.0.len()));
        zstd_safe::compress(&mut packed, &self.0, LEVEL).ok()?;
        let (short, long) = (u32::try_from(packed.len()).ok()?, u32::try_from(self.0.len()).ok()?);
        let mut out = Vec::with_capacity(BLOCK_HEAD + packed.len());
        out.extend_from_slice(&short.to_le_bytes());
        out.extend_from_slice(&long.to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&packed).to_le_bytes());
        out.extend_from_slice(&packed);
        Some(out)
    }
}

/// Reads a file that is handed in in pieces. Holds one block at most.
#[derive(Debug, Default)]
pub struct Unpacker {
    held: Vec<u8>,
    kind: Option<Kind>,
    ended: bool,
    broken: Option<Broken>,
}

impl Unpacker {
    /// Takes the next bytes of the file, as many as [`Self::wants`] at most.
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.ended && self.broken.is_none() {
            self.held.extend_from_slice(bytes);
        }
    }

    /// How many bytes it can do with.
    #[must_use]
    pub fn wants(&self) -> usize {
        let wanted = match (self.kind, self.lengths()) {
            (None, _) => BEGINNING,
            (_, None) => BLOCK_HEAD,
            (_, Some((packed, ..))) => BLOCK_HEAD + packed.min(TAPE_BLOCK_BYTES as u32) as usize,
        };
        wanted.saturating_sub(self.held.len())
    }

    /// What the recording holds, once that is known.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// Whether the end of the recording was read. A file without it was cut.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    fn lengths(&self) -> Option<(u32, u32, u32)> {
        let number = |at: usize| Some(u32::from_le_bytes(*self.held.get(at..)?.first_chunk()?));
        self.kind?;
        Some((number(0)?, number(4)?, number(8)?))
    }

    /// The next block, if all of it is there.
    ///
    /// # Errors
    /// [`Broken`], and the same again from then on.
    pub fn next_block(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        self.advance().inspect_err(|broken| self.broken = Some(*broken))
    }

    fn advance(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        if self.kind.is_none() {
            // What cannot be the beginning is refused as soon as it shows.
            if !self.held.iter().zip(MAGIC).all(|(is, wanted)| *is == wanted) {
                return Err(Broken::NoTape);
            }
            let Some(&[low, high, kind, _]) = self.held.get(MAGIC.len()..).and_then(<[u8]>::first_chunk) else {
                return Ok(None);
            };
            let version = u16::from_le_bytes([low, high]);
            if version != VERSION {
                return Err(Broken::Version(version));
            }
            self.kind = Some(match kind {
                0 => Kind::Redacted,
                1 => Kind::Content,
                _ => return Err(Broken::Kind),
            });
            self.held.drain(..BEGINNING);
        }
        let Some((packed, len, sum)) = self.lengths().filter(|_| !self.ended) else { return Ok(None) };
        if packed == 0 && len == 0 {
            if sum != 0 {
                return Err(Broken::Checksum);
            }
            self.ended = true;
            self.held = Vec::new();
            return Ok(None);
        }
        for claimed in [packed, len] {
            if claimed as usize > TAPE_BLOCK_BYTES {
                return Err(Broken::TooLong(claimed));
            }
        }
        let all = BLOCK_HEAD + packed as usize;
        let Some(bytes) = self.held.get(BLOCK_HEAD..all) else { return Ok(None) };
        if crc32fast::hash(bytes) != sum {
            return Err(Broken::Checksum);
        }
        let mut block = Vec::with_capacity(len as usize);
        zstd_safe::decompress(&mut block, bytes).map_err(|_| Broken::Compression)?;
        if block.len() != len as usize {
            return Err(Broken::Compression);
        }
        self.held.drain(..all);
        Ok(Some(block))
    }
}

/// The entries of a block, each as it was pushed.
///
/// # Errors
/// [`Broken::Entries`], after which nothing comes.
pub fn entries(block: &[u8]) -> impl Iterator<Item = Result<&[u8], Broken>> {
    let mut rest = wire::Reader(block);
    std::iter::from_fn(move || {
        if rest.0.is_empty() {
            return None;
        }
        let entry = rest.bytes().map_err(|Malformed| Broken::Entries);
        if entry.is_err() {
            rest.0 = &[];
        }
        Some(entry)
    })
}
