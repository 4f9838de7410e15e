//! Faults put in on purpose, so that a test can show that wrong numbers are noticed. Off unless the variable
//! `NEXENT_OBSERVER_TEST_FAULT` is set, and then said loudly.

use nexent_observer_core::event::{Direction, MonoNs, Record, RecordKind};

/// Name of the variable.
pub const VARIABLE: &str = "NEXENT_OBSERVER_TEST_FAULT";

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Every stamp of a read is later by so many nanoseconds.
    ShiftReads(u64),
    /// The n-th record of a read, from 1, is lost before anyone saw it.
    DropRead(u64),
}

impl Fault {
    /// Parses `shift_ns:N` or `drop_record:N`.
    ///
    /// # Errors
    /// A sentence that says what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(kind, n)| {
            let n = n.parse().ok()?;
            match kind {
                "shift_ns" => Some(Self::ShiftReads(n)),
                "drop_record" => Some(Self::DropRead(n)),
                _ => None,
            }
        });
        parsed.ok_or_else(|| format!("{VARIABLE} is {text:?}; it takes shift_ns:N or drop_record:N"))
    }
}

/// Applies a fault to the records that pass.
#[derive(Debug, Default)]
pub struct Faulty {
    fault: Option<Fault>,
    reads: u64,
}

impl Faulty {
    /// With a fault or without.
    #[must_use]
    pub fn new(fault: Option<Fault>) -> Self {
        Self { fault, reads: 0 }
    }

    /// The record as it goes on; `None`: it is lost.
    #[inline]
    pub fn pass<'a>(&mut self, record: Record<'a>) -> Option<Record<'a>> {
        let Some(fault) = self.fault else { return Some(record) };
        let RecordKind::Data { dir: Direction::Read, .. } = record.kind else { return Some(record) };
        self.reads += 1;
        match fault {
            Fault::ShiftReads(ns) => {
                let mut shifted = record;
                shifted.at.entry = MonoNs(record.at.entry.0.saturating_add(ns));
                shifted.at.ret = MonoNs(record.at.ret.0.saturating_add(ns));
                Some(shifted)
            }
            Fault::DropRead(n) => (self.reads != n).then_some(record),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_what_it_says() {
        assert_eq!(Fault::parse("shift_ns:5000000"), Ok(Fault::ShiftReads(5_000_000)));
        assert_eq!(Fault::parse("drop_record:17"), Ok(Fault::DropRead(17)));
        for bad in ["", "shift_ns", "shift_ns:x", "drop_record:-1", "other:1"] {
            assert!(Fault::parse(bad).is_err_and(|message| message.contains(VARIABLE)), "{bad}");
        }
    }
}
