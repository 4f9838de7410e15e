//! What TLS records on a socket say of the writes that they carry. Pure, so that the same decision is tested on the host and verified
//! in the kernel.

/// Header of a record (RFC 8446 section 5.1), bytes.
pub const RECORD_HEADER: u64 = 5;
/// Most plaintext of one record, bytes (RFC 8446 section 5.1).
pub const RECORD_PLAINTEXT: u64 = 1 << 14;

/// Least that a cipher adds to a record's plaintext, bytes: a tag of 8 and the inner type (AES-CCM-8 in TLS 1.3).
const LEAST_ADDED: u64 = 9;
/// Most: the vector, a SHA-384 and the padding of the block ciphers of TLS 1.2.
const MOST_ADDED: u64 = 16 + 48 + 16;

const CHANGE_CIPHER_SPEC: u64 = 0x14;
const HANDSHAKE: u64 = 0x16;
const APPLICATION_DATA: u64 = 0x17;

/// The header of a record: type, version and length, from its bytes in memory order as the low bytes of a little-endian word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header(u64);

impl Header {
    /// From the first eight bytes of a record.
    #[must_use]
    #[inline(always)]
    pub const fn of(word: u64) -> Self {
        Self(word)
    }

    /// Bytes behind the header.
    #[must_use]
    #[inline(always)]
    pub const fn length(self) -> u64 {
        (((self.0 >> 24) & 0xff) << 8) | ((self.0 >> 32) & 0xff)
    }

    /// Whether these bytes can begin a record of TLS 1.0 to 1.3 at all.
    #[must_use]
    #[inline(always)]
    pub const fn is_tls(self) -> bool {
        let (kind, version) = (self.0 & 0xff, (self.0 >> 8) & 0xffff);
        kind >= CHANGE_CIPHER_SPEC && kind <= APPLICATION_DATA && (version & 0xff) == 3 && (version >> 8) <= 4
    }

    /// Whether the record can only be one of a handshake. In TLS 1.3 most of a handshake looks like application data.
    #[must_use]
    #[inline(always)]
    pub const fn is_handshake(self) -> bool {
        let kind = self.0 & 0xff;
        self.is_tls() && (kind == HANDSHAKE || kind == CHANGE_CIPHER_SPEC)
    }

    /// Whether the record can be the first of those that carry a write of `n` bytes.
    #[must_use]
    #[inline(always)]
    pub const fn begins_write(self, n: u64) -> bool {
        let plain = if n < RECORD_PLAINTEXT { n } else { RECORD_PLAINTEXT };
        let length = self.length();
        self.is_tls()
            && (self.0 & 0xff) == APPLICATION_DATA
            && length >= plain + LEAST_ADDED
            && length <= plain + MOST_ADDED
    }
}

/// Fewest bytes of TLS records that carry a write of `n` bytes.
#[must_use]
#[inline(always)]
pub const fn least_on_wire(n: u64) -> u64 {
    let records = n.saturating_add(RECORD_PLAINTEXT - 1) >> 14;
    n.saturating_add(records.wrapping_mul(RECORD_HEADER + LEAST_ADDED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u8, version: u8, length: u16) -> Header {
        let [high, low] = length.to_be_bytes();
        Header::of(u64::from_le_bytes([kind, 3, version, high, low, 0xaa, 0xbb, 0xcc]))
    }

    #[test]
    fn a_record_begins_the_write_that_it_can_carry_and_no_other() {
        // What AES-GCM adds in TLS 1.3 and 1.2, ChaCha20 in 1.2, and AES-CBC with SHA-1.
        for added in [17, 24, 16, 16 + 20 + 12] {
            assert!(header(0x17, 3, 500 + added).begins_write(500), "{added}");
            assert!(header(0x17, 3, 16_384 + added).begins_write(300_000), "{added}");
            assert!(!header(0x17, 3, 16_384 + added).begins_write(500));
            assert!(!header(0x16, 3, 500 + added).begins_write(500), "a handshake");
            assert!(!header(0x17, 9, 500 + added).begins_write(500), "no version of TLS");
        }
        assert!(!header(0x17, 3, 500).begins_write(500), "nothing added");
        assert!(!header(0x17, 3, 700).begins_write(500));
        assert_eq!(header(0x17, 3, 0x1234).length(), 0x1234);
    }

    #[test]
    fn handshakes_are_told_by_their_type() {
        assert!(header(0x16, 1, 512).is_handshake());
        assert!(header(0x14, 3, 1).is_handshake());
        for (kind, version) in [(0x15, 3), (0x17, 3), (0x16, 5), (b'G', 3)] {
            assert!(!header(kind, version, 40).is_handshake());
        }
    }

    #[test]
    fn no_write_is_thought_to_be_sent_before_its_records_can_be() {
        for (n, records) in [(1, 1), (16_384, 1), (16_385, 2), (300_000, 19)] {
            assert_eq!(least_on_wire(n), n + records * 14);
        }
        assert_eq!(least_on_wire(0), 0);
        assert!(least_on_wire(u64::MAX) >= u64::MAX - (1 << 60), "no overflow");
    }
}
