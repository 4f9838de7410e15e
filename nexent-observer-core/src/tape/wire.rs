//! Numbers and texts as they stand in an entry: numbers in LEB128, texts behind their length.

use super::entry::Malformed;

pub(super) fn number(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

pub(super) fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A number that may be absent: one more than it is, or 0.
pub(super) fn maybe(out: &mut Vec<u8>, n: Option<u64>) {
    match n {
        Some(n) => {
            out.push(1);
            number(out, n);
        }
        None => out.push(0),
    }
}

/// Reads what the functions above wrote.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn byte(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(byte)
    }

    pub(super) fn number(&mut self) -> Result<u64, Malformed> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return Err(Malformed);
            }
            n |= part << shift;
            if byte < 0x80 {
                return Ok(n);
            }
        }
        Err(Malformed)
    }

    pub(super) fn small<T: TryFrom<u64>>(&mut self) -> Result<T, Malformed> {
        T::try_from(self.number()?).map_err(|_| Malformed)
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.small()?;
        self.take(len)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    pub(super) fn maybe(&mut self) -> Result<Option<u64>, Malformed> {
        Ok(if self.flag()? { Some(self.number()?) } else { None })
    }

    pub(super) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    /// Nothing is left.
    pub(super) fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(n: u64, text: Vec<u8>, absent: Option<u64>) {
            let mut out = Vec::new();
            number(&mut out, n);
            bytes(&mut out, &text);
            maybe(&mut out, absent);
            let mut reader = Reader(&out);
            prop_assert_eq!(reader.number().unwrap(), n);
            prop_assert_eq!(reader.bytes().unwrap(), text.as_slice());
            prop_assert_eq!(reader.maybe().unwrap(), absent);
            prop_assert!(reader.end().is_ok());
        }
    }

    #[test]
    fn a_number_over_64_bits_is_none() {
        assert!(Reader(&[0xff; 10]).number().is_err());
        assert!(Reader(&[0x80; 3]).number().is_err());
        let mut out = Vec::new();
        number(&mut out, u64::MAX);
        assert_eq!(Reader(&out).number(), Ok(u64::MAX));
    }
}
