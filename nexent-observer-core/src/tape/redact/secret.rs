//! The secret of one recording, which is never written down: by it equal ids stay equal, and nobody can tell which they were.

use std::hash::{DefaultHasher, Hasher};

/// Letters and digits of a replaced id.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A random number of the recorder's choice.
#[derive(Clone, Copy)]
pub struct Secret([u8; 16]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Of random bytes that nobody else knows.
    #[must_use]
    pub const fn new(random: [u8; 16]) -> Self {
        Self(random)
    }

    fn hash(self, with: u64, bytes: &[u8]) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.0);
        hasher.write_u64(with);
        hasher.write(bytes);
        hasher.finish()
    }

    /// What tells a text that goes on with `byte` from others, after what told its beginning.
    pub(super) fn next(self, told: u64, byte: u8) -> u64 {
        self.hash(told, &[byte])
    }

    /// What stands for the digest of a body: the same for the same body of this recording, and no way to it from a guessed one.
    pub(super) fn replace_digest(self, digest: u64) -> u64 {
        self.hash(u64::MAX, &digest.to_le_bytes())
    }

    /// Another id of the same length; the same for the same id.
    pub(super) fn replace_id(self, id: &[u8], out: &mut Vec<u8>) {
        let mut word = 0;
        out.extend((0..id.len()).map(|n| {
            if n % 12 == 0 {
                word = self.hash(n as u64, id);
            }
            word = word.rotate_right(5);
            ALPHABET.get((word & 31) as usize).copied().unwrap_or(b'x')
        }));
    }
}
