//! gzip (RFC 1952, any number of members), the zlib format (RFC 1950) and bare deflate (RFC 1951).

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::{Decode, Defect, Step};

/// Bits of a gzip header's flags (RFC 1952 section 2.3.1).
const HEAD_CRC: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;

/// Where the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the fixed part of a gzip header, behind so many bytes.
    Fixed(u8),
    /// In the length of the extra field, behind so many bytes.
    ExtraLength(u8),
    /// In the extra field.
    Extra(u16),
    /// In the file name or the comment, which end with a zero.
    Name,
    Comment,
    /// In the header's checksum; so many bytes are left.
    HeadCrc(u8),
    /// At the beginning of what is called deflate: its first two bytes tell whether it has zlib's header.
    Sniff,
    /// In the compressed data.
    Data,
    /// In gzip's trailer, behind so many bytes.
    Trailer(u8),
    /// Behind the end.
    End,
}

/// Decoder of one body.
#[derive(Debug)]
pub(super) struct Inflate {
    at: At,
    gzip: bool,
    flags: u8,
    extra: u16,
    /// Made when compressed data come.
    inflate: Option<Box<Decompress>>,
    /// First bytes that were looked at and not decoded.
    held: [u8; 2],
    held_len: u8,
    crc: Crc,
    trailer: [u8; 8],
}

impl Inflate {
    /// Of a gzip body.
    pub(super) fn gzip() -> Self {
        Self::at(At::Fixed(0), true)
    }

    /// Of a body whose coding is called deflate.
    pub(super) fn deflate() -> Self {
        Self::at(At::Sniff, false)
    }

    fn at(at: At, gzip: bool) -> Self {
        Self {
            at,
            gzip,
            flags: 0,
            extra: 0,
            inflate: None,
            held: [0; 2],
            held_len: 0,
            crc: Crc::new(),
            trailer: [0; 8],
        }
    }

    /// Takes one byte that is not compressed data.
    fn byte(&mut self, byte: u8) -> Result<(), Defect> {
        self.at = match self.at {
            At::Fixed(got) => {
                match (got, byte) {
                    (0, 0x1f) | (1, 0x8b) | (2, 8) | (4..=9, _) => {}
                    // Bits that mean nothing yet may mean that something else follows.
                    (3, flags) if flags & 0xe0 == 0 => self.flags = flags,
                    _ => return Err(Defect::Invalid),
                }
                if got < 9 { At::Fixed(got + 1) } else { self.behind(EXTRA) }
            }
            At::ExtraLength(0) => {
                self.extra = u16::from(byte);
                At::ExtraLength(1)
            }
            At::ExtraLength(_) => match self.extra | u16::from(byte) << 8 {
                0 => self.behind(NAME),
                n => At::Extra(n),
            },
            At::Extra(1) => self.behind(NAME),
            At::Extra(left) => At::Extra(left - 1),
            At::Name if byte == 0 => self.behind(COMMENT),
            At::Comment if byte == 0 => self.behind(HEAD_CRC),
            At::HeadCrc(2) => At::HeadCrc(1),
            At::HeadCrc(_) => self.begin(false),
            At::Trailer(got) => {
                if let Some(slot) = self.trailer.get_mut(usize::from(got)) {
                    *slot = byte;
                }
                if got < 7 { At::Trailer(got + 1) } else { self.check()? }
            }
            At::Sniff => {
                if let Some(slot) = self.held.get_mut(usize::from(self.held_len)) {
                    *slot = byte;
                }
                self.held_len += 1;
                if self.held_len < 2 {
                    At::Sniff
                } else {
                    // RFC 1950 section 2.2: method 8, a window of at most 32 KiB, a check that is a multiple of 31.
                    let zlib = self.held[0] & 0x8f == 8 && u16::from_be_bytes(self.held).is_multiple_of(31);
                    self.begin(zlib)
                }
            }
            // Padding with zeros is usual on tapes and is no defect.
            At::End if byte == 0 => At::End,
            At::End if self.gzip && byte == 0x1f => At::Fixed(1),
            At::End => return Err(Defect::Trailing),
            at @ (At::Name | At::Comment | At::Data) => at,
        };
        Ok(())
    }

    /// The first optional part of a gzip header from `flag` on that is there.
    fn behind(&mut self, flag: u8) -> At {
        let has = |bit: u8| bit >= flag && self.flags & bit != 0;
        // The order in the header is that of the bits, but for the checksum, which comes last.
        if flag != HEAD_CRC && has(EXTRA) {
            At::ExtraLength(0)
        } else if flag != HEAD_CRC && has(NAME) {
            At::Name
        } else if flag != HEAD_CRC && has(COMMENT) {
            At::Comment
        } else if self.flags & HEAD_CRC != 0 {
            At::HeadCrc(2)
        } else {
            self.begin(false)
        }
    }

    /// Compressed data follow.
    fn begin(&mut self, zlib: bool) -> At {
        self.crc.reset();
        match &mut self.inflate {
            Some(inflate) => inflate.reset(zlib),
            None => self.inflate = Some(Box::new(Decompress::new(zlib))),
        }
        At::Data
    }

    fn check(&self) -> Result<At, Defect> {
        let [a, b, c, d, e, f, g, h] = self.trailer;
        let right =
            u32::from_le_bytes([a, b, c, d]) == self.crc.sum() && u32::from_le_bytes([e, f, g, h]) == self.crc.amount();
        if right { Ok(At::End) } else { Err(Defect::Invalid) }
    }

    /// Takes compressed data.
    fn data(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Defect> {
        let held_len = usize::from(self.held_len);
        let (input, held) = match self.held.get(..held_len) {
            Some(held) if held_len > 0 => (held, true),
            _ => (input, false),
        };
        let Some(inflate) = &mut self.inflate else { return Err(Defect::Invalid) };
        let (read, written) = (inflate.total_in(), inflate.total_out());
        let status = inflate.decompress(input, out, FlushDecompress::None).map_err(|_| Defect::Invalid)?;
        let (read, written) = ((inflate.total_in() - read) as usize, (inflate.total_out() - written) as usize);
        if self.gzip {
            self.crc.update(out.get(..written).unwrap_or_default());
        }
        if status == Status::StreamEnd {
            self.at = if self.gzip { At::Trailer(0) } else { At::End };
        }
        if !held {
            return Ok(Step { read, written });
        }
        self.held.copy_within(read.min(held_len).., 0);
        self.held_len -= read.min(held_len) as u8;
        Ok(Step { read: 0, written })
    }
}

impl Decode for Inflate {
    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Defect> {
        let mut read = 0;
        loop {
            let rest = input.get(read..).unwrap_or_default();
            if self.at == At::Data {
                let held = self.held_len;
                let step = self.data(rest, out)?;
                read += step.read;
                // Bytes held before are decoded first: then those that came.
                if step.written == 0 && (held != self.held_len || self.at != At::Data) {
                    continue;
                }
                return Ok(Step { read, written: step.written });
            }
            let Some(&byte) = rest.first() else { return Ok(Step { read, written: 0 }) };
            self.byte(byte)?;
            read += 1;
        }
    }

    fn is_complete(&self) -> bool {
        self.at == At::End
    }
}
