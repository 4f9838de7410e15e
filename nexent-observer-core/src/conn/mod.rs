//! Stage 3: records of one connection in, its two byte streams out, exact or with a named gap.

mod held;
mod reassembly;
mod table;

pub use reassembly::Reassembly;
pub use table::Table;

use crate::event::{Direction, MonoNs, Stamp};

/// Output of this stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEvent<'a> {
    /// The next bytes of a direction.
    Data {
        /// Which way.
        dir: Direction,
        /// When.
        at: Stamp,
        /// At least one byte.
        bytes: &'a [u8],
    },
    /// Bytes that existed and are not known.
    Gap {
        /// Which way.
        dir: Direction,
        /// Stamp of the record that showed the gap.
        at: Stamp,
        /// How many bytes, when the kernel half could count them.
        len: Option<u64>,
        /// Why.
        cause: GapCause,
    },
    /// No more bytes will come on this connection.
    Close {
        /// When the end was seen.
        at: MonoNs,
        /// What ended it.
        cause: CloseCause,
    },
}

/// Why bytes are unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GapCause {
    /// A record was lost (ring full) or its entry could not be kept. Counts as `bytes_lost`.
    Lost,
    /// Left out on purpose: cap on written bytes. Not a loss.
    Capped,
    /// The process's memory could not be read. Counts as `bytes_lost`.
    Fault,
    /// Left out because user space had given the verdict "not LLM". Not a loss.
    Skipped,
    /// They came and could not be decoded (an unknown or broken coding, a cap). Not a loss. Only from stage 4 on.
    Undecoded,
}

impl GapCause {
    /// Whether the gap is data that should have been there.
    #[must_use]
    pub fn is_loss(self) -> bool {
        matches!(self, Self::Lost | Self::Fault)
    }
}

/// What ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseCause {
    /// The TLS object was freed, cleared or made anew: the process closed the connection.
    Freed,
    /// The process ended.
    ProcessExit,
    /// The observer let go of it (idle, table full, detached).
    Evicted,
}

#[cfg(test)]
mod tests;
