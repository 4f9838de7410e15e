//! The chunked transfer coding (RFC 9112 section 7.1), from pieces cut anywhere.

use crate::limits;

/// Where in the coding the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the digits of a chunk size.
    Size { any: bool },
    /// Behind the digits, before the line feed.
    Extension,
    /// In the data of a chunk.
    Data,
    /// Behind the data, before its CR LF.
    DataEnd,
    /// Between that CR and LF.
    DataLf,
    /// In the trailer section; `empty` as long as its current line has no character.
    Trailer { empty: bool },
}

/// Decoder of one chunked body. No buffer: data are slices of what was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunked {
    at: At,
    /// Size read so far, or data bytes of the chunk still to come.
    left: u64,
    /// Bytes of the current size line or trailer section.
    line: u32,
}

/// Result of [`Chunked::step`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// Data bytes, and what follows them.
    Data(&'a [u8], &'a [u8]),
    /// All bytes were framing; more are needed.
    More,
    /// The body is complete; the rest belongs to what follows.
    End(&'a [u8]),
    /// These bytes are no chunked coding.
    Invalid,
}

impl Chunked {
    /// At the beginning of a body (or of any chunk).
    pub(super) fn new() -> Self {
        Self { at: At::Size { any: false }, left: 0, line: 0 }
    }

    /// Takes bytes up to the next data, the end or a defect.
    pub(super) fn step<'a>(&mut self, mut bytes: &'a [u8]) -> Step<'a> {
        loop {
            if self.at == At::Data {
                let n = usize::try_from(self.left).unwrap_or(usize::MAX);
                let (data, rest) = bytes.split_at_checked(n).unwrap_or((bytes, &[]));
                self.took(data.len() as u64);
                return if data.is_empty() { Step::More } else { Step::Data(data, rest) };
            }
            let Some((&byte, rest)) = bytes.split_first() else { return Step::More };
            bytes = rest;
            self.line += 1;
            self.at = match (self.at, byte) {
                (At::Size { any }, _) => match (byte as char).to_digit(16) {
                    Some(digit) if self.left <= u64::MAX >> 4 => {
                        self.left = self.left << 4 | u64::from(digit);
                        At::Size { any: true }
                    }
                    None if any && byte == b'\n' => self.line_end(),
                    None if any && matches!(byte, b'\r' | b';' | b' ' | b'\t') => At::Extension,
                    _ => return Step::Invalid,
                },
                (At::Extension, b'\n') => self.line_end(),
                (At::Extension, _) => At::Extension,
                (At::DataEnd, b'\r') => At::DataLf,
                (At::DataEnd | At::DataLf, b'\n') => Self::new().at,
                (At::DataEnd | At::DataLf, _) => return Step::Invalid,
                (At::Trailer { empty: true }, b'\n') => return Step::End(bytes),
                (At::Trailer { .. }, b'\n') => At::Trailer { empty: true },
                // A CR alone does not fill a line.
                (At::Trailer { empty }, b'\r') => At::Trailer { empty },
                (At::Trailer { .. }, _) => At::Trailer { empty: false },
                (At::Data, _) => At::Data,
            };
            match self.at {
                At::Size { any: false } => (self.left, self.line) = (0, 0),
                At::Size { .. } | At::Extension if self.line as usize > limits::CHUNK_LINE_BYTES => {
                    return Step::Invalid;
                }
                At::Trailer { .. } if self.line as usize > limits::HEAD_BYTES => return Step::Invalid,
                _ => {}
            }
        }
    }

    /// Counts off `n` data bytes that are not known. `false` when they are not all data of the current chunk.
    pub(super) fn skip(&mut self, n: u64) -> bool {
        let inside = self.at == At::Data && n <= self.left;
        if inside {
            self.took(n);
        }
        inside
    }

    fn took(&mut self, n: u64) {
        self.left -= n;
        if self.left == 0 {
            self.at = At::DataEnd;
        }
    }

    /// What follows the line with the size.
    fn line_end(&mut self) -> At {
        self.line = 0;
        if self.left == 0 { At::Trailer { empty: true } } else { At::Data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, and what is left when the body ended (`None` when it did not).
    fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, Option<Vec<u8>>), ()> {
        let (mut decoder, mut data) = (Chunked::new(), Vec::new());
        for (i, piece) in pieces.iter().enumerate() {
            let mut bytes = *piece;
            loop {
                match decoder.step(bytes) {
                    Step::Data(d, rest) => {
                        data.extend_from_slice(d);
                        bytes = rest;
                    }
                    Step::More => break,
                    Step::End(rest) => return Ok((data, Some([&[rest], &pieces[i + 1..]].concat().concat()))),
                    Step::Invalid => return Err(()),
                }
            }
        }
        Ok((data, None))
    }

    #[test]
    fn a_body_is_the_same_wherever_it_is_cut() {
        let body: &[u8] = b"5\r\nhello\r\n00A;name=\"v\" \r\n, world...\r\n1\n!\n0;x\r\nTrailer: a\r\nb: \r\n\r\nNEXT";
        let expected = Ok((b"hello, world...!".to_vec(), Some(b"NEXT".to_vec())));
        assert_eq!(decode(&[body]), expected);
        assert_eq!(decode(&body.chunks(1).collect::<Vec<_>>()), expected);
        for i in 0..body.len() {
            for j in i..body.len() {
                assert_eq!(decode(&[&body[..i], &body[i..j], &body[j..]]), expected);
            }
        }
    }

    #[test]
    fn what_is_no_chunked_coding_is_refused() {
        for bad in
            [&b"\r\n"[..], b"x\r\n", b"-1\r\n", b"5\r\nhelloX", b"5\r\nhello\rX", b"10000000000000000\r\n", b";a\r\n"]
        {
            assert_eq!(decode(&[bad]), Err(()), "{:?}", String::from_utf8_lossy(bad));
        }
        assert_eq!(decode(&[b"FFFFFFFFFFFFFFFF\r\nx"]), Ok((b"x".to_vec(), None)));
    }

    #[test]
    fn endless_lines_are_refused() {
        let extension = [&b"5;"[..], &vec![b'a'; limits::CHUNK_LINE_BYTES]].concat();
        assert_eq!(decode(&[&extension]), Err(()));
        assert_eq!(decode(&[&vec![b'0'; limits::CHUNK_LINE_BYTES + 1]]), Err(()));
        let trailer = [&b"0\r\n"[..], &b"a: b\r\n".repeat(limits::HEAD_BYTES / 6 + 1)].concat();
        assert_eq!(decode(&[&trailer]), Err(()));
    }

    #[test]
    fn only_data_of_the_current_chunk_can_be_skipped() {
        let mut decoder = Chunked::new();
        assert!(!decoder.skip(1));
        assert_eq!(decoder.step(b"5\r\nh"), Step::Data(b"h", b""));
        assert!(!decoder.skip(5));
        assert!(decoder.skip(3));
        assert_eq!(decoder.step(b"o\r\n0\r\n\r\n"), Step::Data(b"o", b"\r\n0\r\n\r\n"));
        assert_eq!(decoder.step(b"\r\n0\r\n\r\n"), Step::End(b""));
    }
}
