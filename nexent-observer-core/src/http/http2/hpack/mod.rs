//! HPACK (RFC 7541) for an observer that may have come late: what cannot be resolved is left out, never guessed.

mod table;

use std::ops::Range;

use httlib_huffman::DecoderSpeed;
use smallvec::SmallVec;

use self::table::Table;
use crate::{http::Side, limits};

/// Size of a dynamic table before its first size update (RFC 9113 section 6.5.2, `SETTINGS_HEADER_TABLE_SIZE`).
const FIRST_TABLE_BYTES: usize = 4096;

/// Decoder of one direction of a connection.
///
/// It needs no SETTINGS: an encoder tells the size that it uses in the header block itself (RFC 7541 section 4.2), and a
/// table that is kept larger or smaller than the encoder's gives no wrong value (see [`Table`]).
#[derive(Debug)]
pub(super) struct Decoder {
    table: Table,
}

/// A header block that does not decode.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid;

/// Fields of one header block, in order.
#[derive(Debug, Default)]
pub(super) struct Fields {
    octets: Vec<u8>,
    list: SmallVec<[(Range<usize>, Range<usize>); 32]>,
    /// Fields were left out: too many or too long.
    pub(super) too_long: bool,
    /// Whether the first field could not be resolved; `None` in an empty block.
    first_unknown: Option<bool>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { table: Table::new(FIRST_TABLE_BYTES) }
    }

    /// A header block was lost, or may have been.
    pub(super) fn forget(&mut self) {
        self.table.forget();
    }

    /// Decodes a whole header block. After an error the table is forgotten: what the rest would have inserted is not known.
    pub(super) fn decode(&mut self, block: &[u8]) -> Result<Fields, Invalid> {
        let mut fields = Fields::default();
        let mut rest = block;
        while let Some(&first) = rest.first() {
            if self.representation(first, &mut rest, &mut fields).is_none() {
                self.table.forget();
                return Err(Invalid);
            }
        }
        Ok(fields)
    }

    /// One representation (RFC 7541 section 6).
    fn representation(&mut self, first: u8, rest: &mut &[u8], fields: &mut Fields) -> Option<()> {
        if first & 0x80 != 0 {
            let index = integer(rest, 7).filter(|index| *index > 0)?;
            let start = fields.octets.len();
            let field = self.table.get(index).map(|(name, value)| {
                fields.octets.extend_from_slice(name);
                let name = start..fields.octets.len();
                fields.octets.extend_from_slice(value);
                (name.clone(), name.end..fields.octets.len())
            });
            fields.push(start, field);
            return Some(());
        }
        if first & 0xe0 == 0x20 {
            self.table.resize(integer(rest, 5)?);
            return Some(());
        }
        let insert = first & 0x40 != 0;
        let index = integer(rest, if insert { 6 } else { 4 })?;
        let start = fields.octets.len();
        let known = match index {
            0 => string(rest, &mut fields.octets).map(|()| true)?,
            _ => self.table.get(index).map(|(name, _)| fields.octets.extend_from_slice(name)).is_some(),
        };
        let name = start..fields.octets.len();
        string(rest, &mut fields.octets)?;
        let value = name.end..fields.octets.len();
        if insert {
            let octets = |range: &Range<usize>| fields.octets.get(range.clone()).unwrap_or_default();
            self.table.insert(known.then(|| octets(&name)), octets(&value));
        }
        fields.push(start, known.then_some((name, value)));
        Some(())
    }
}

impl Fields {
    /// Takes the field whose octets begin at `start`, unless it is not known or one too many.
    fn push(&mut self, start: usize, field: Option<(Range<usize>, Range<usize>)>) {
        self.first_unknown.get_or_insert_with(|| field.is_none());
        let Some(field) = field else { return self.octets.truncate(start) };
        if self.list.len() >= limits::HEAD_FIELDS || self.octets.len() > limits::HEAD_BYTES {
            self.too_long = true;
            return self.octets.truncate(start);
        }
        self.list.push(field);
    }

    /// Name and value of each field that is known.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let octets = |range: &Range<usize>| self.octets.get(range.clone()).unwrap_or_default();
        self.list.iter().map(move |(name, value)| (octets(name), octets(value)))
    }

    /// First value of a field.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(n, _)| *n == name.as_bytes()).map(|(_, value)| value)
    }

    /// Whose head the block is, by its pseudo-header fields; `None` for trailers, and where none could be resolved.
    pub(super) fn side(&self) -> Option<Side> {
        self.iter().take_while(|(name, _)| name.first() == Some(&b':')).find_map(|(name, _)| match name {
            b":status" => Some(Side::Response),
            b":method" | b":path" | b":scheme" | b":authority" => Some(Side::Request),
            _ => None,
        })
    }

    /// Whether the block cannot be a head: pseudo-header fields come first (RFC 9113 section 8.3), and the first is none.
    pub(super) fn is_trailer(&self) -> bool {
        self.first_unknown != Some(true) && self.iter().next().is_none_or(|(name, _)| name.first() != Some(&b':'))
    }
}

/// An integer with a prefix of `bits` (RFC 7541 section 5.1).
fn integer(rest: &mut &[u8], bits: u32) -> Option<u32> {
    let (&first, mut after) = rest.split_first()?;
    let max = (1_u32 << bits) - 1;
    let mut value = u32::from(first) & max;
    if value == max {
        // Five more octets hold 32 bits.
        for shift in [0, 7, 14, 21, 28] {
            let (&octet, tail) = after.split_first()?;
            after = tail;
            let part = u64::from(octet & 0x7f) << shift;
            value = value.checked_add(u32::try_from(part).ok()?)?;
            if octet & 0x80 == 0 {
                *rest = after;
                return Some(value);
            }
        }
        return None;
    }
    *rest = after;
    Some(value)
}

/// A string (RFC 7541 section 5.2), appended to `to`.
fn string(rest: &mut &[u8], to: &mut Vec<u8>) -> Option<()> {
    let huffman = rest.first()? & 0x80 != 0;
    let len = usize::try_from(integer(rest, 7)?).ok()?;
    let (octets, after) = rest.split_at_checked(len)?;
    *rest = after;
    if huffman {
        httlib_huffman::decode(octets, to, DecoderSpeed::FourBits).ok()
    } else {
        to.extend_from_slice(octets);
        Some(())
    }
}

#[cfg(test)]
mod tests;
