//! The tables that an HPACK index points into (RFC 7541 section 2.3), with entries that are not known.

use std::collections::VecDeque;

use crate::limits;

/// What the table costs per entry beside its octets (RFC 7541 section 4.1).
const ENTRY_OVERHEAD: usize = 32;

/// Fields whose values are credentials. They are not kept: nothing asks for them.
const SECRET: [&[u8]; 9] = [
    b"authorization",
    b"proxy-authorization",
    b"cookie",
    b"set-cookie",
    b"api-key",
    b"x-api-key",
    b"x-goog-api-key",
    b"x-amz-security-token",
    b"ocp-apim-subscription-key",
];

/// Dynamic table of one direction.
///
/// Indices count from the latest insertion, so what the table holds is right whatever happened before the first insertion
/// that was seen: an index beyond its end is not known, and that is no error. For the same reason it does no harm to
/// drop entries earlier or later than the encoder does; its real size matters only for memory.
#[derive(Debug)]
pub(super) struct Table {
    /// Latest first.
    entries: VecDeque<Entry>,
    /// Sum of the sizes of all entries.
    size: usize,
    max: usize,
}

#[derive(Debug)]
struct Entry {
    /// Name and value in one, `None` when not known or not kept.
    octets: Option<Box<[u8]>>,
    name: u32,
    size: usize,
}

impl Table {
    /// An empty table, or one of which nothing is known.
    pub(super) fn new(max: usize) -> Self {
        Self { entries: VecDeque::new(), size: 0, max: max.min(limits::HPACK_TABLE_BYTES) }
    }

    /// Name and value at an index of the combined address space, where known.
    pub(super) fn get(&self, index: u32) -> Option<(&[u8], &[u8])> {
        let index = usize::try_from(index).ok()?.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(index - STATIC.len())?;
        entry.octets.as_ref()?.split_at_checked(entry.name as usize)
    }

    /// Inserts a field. One that is larger than the table empties it and leaves nothing; a place is kept for it all the
    /// same, for the size of the table may not be known, and an index must never point to another entry than it should.
    pub(super) fn insert(&mut self, name: Option<&[u8]>, value: &[u8]) {
        let size = name.map_or(0, <[u8]>::len) + value.len() + ENTRY_OVERHEAD;
        let fits = size <= self.max;
        if !fits {
            self.entries.clear();
            self.size = 0;
        }
        let name = name.filter(|name| fits && !SECRET.contains(name));
        let octets = name.map(|name| [name, value].concat().into_boxed_slice());
        let size = if fits { size } else { ENTRY_OVERHEAD };
        let name = name.map_or(0, <[u8]>::len) as u32;
        self.entries.push_front(Entry { octets, name, size });
        self.size += size;
        self.shrink();
    }

    /// Takes the size that the encoder announced.
    pub(super) fn resize(&mut self, max: u32) {
        self.max = usize::try_from(max).unwrap_or(usize::MAX).min(limits::HPACK_TABLE_BYTES);
        self.shrink();
    }

    /// Forgets everything: insertions were lost, so no index points to where it did.
    pub(super) fn forget(&mut self) {
        *self = Self::new(limits::HPACK_TABLE_BYTES);
    }

    /// Octets that the entries occupy.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.entries.iter().map(|it| ENTRY_OVERHEAD + it.octets.as_ref().map_or(0, |octets| octets.len())).sum()
    }

    fn shrink(&mut self) {
        while self.size > self.max
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size;
        }
    }
}

/// RFC 7541 appendix A; the first has index 1.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];
