//! Ends of connections whose records were lost: when the kernel half lost records, what it does not know any more has ended.

use nexent_observer_core::event::MonoNs;

/// A connection that was heard less than this before, ns, is left for the next look: what came last may still be in a ring.
pub const SILENT: u64 = 2_000_000_000;
/// From a loss to the look, ns.
const LOOK: u64 = 3_000_000_000;

/// Says when to look.
#[derive(Debug, Default)]
pub struct LostCloses {
    /// Records of the ring of reads, which closes go through, that were lost until the last call.
    lost: u64,
    /// When that number grew last.
    grew: MonoNs,
    look: Option<MonoNs>,
}

impl LostCloses {
    /// Whether to look now; `lost` is the number of records that the ring of reads has lost since the start. Every loss is followed by a look
    /// that comes at least [`SILENT`] after it was seen, and looks are at least that far apart.
    pub fn due(&mut self, lost: u64, now: MonoNs) -> bool {
        let after = |at: MonoNs| MonoNs(at.0.saturating_add(LOOK));
        if lost > self.lost {
            (self.lost, self.grew) = (lost, now);
            self.look.get_or_insert_with(|| after(now));
        }
        if self.look.is_none_or(|at| now < at) {
            return false;
        }
        self.look = (now < after(self.grew)).then(|| after(now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn looks(lost: &[u64]) -> Vec<u64> {
        let mut closes = LostCloses::default();
        (0..).zip(lost).filter(|(s, lost)| closes.due(**lost, MonoNs(s * S))).map(|(s, _)| s).collect()
    }

    #[test]
    fn without_a_loss_there_is_no_look_and_one_loss_makes_one() {
        assert_eq!(looks(&[0; 9]), Vec::<u64>::new());
        assert_eq!(looks(&[0, 4, 4, 4, 4, 4, 4, 4, 4]), [4]);
    }

    #[test]
    fn a_loss_shortly_before_a_look_makes_another_one() {
        assert_eq!(looks(&[0, 4, 4, 5, 5, 5, 5, 5, 5, 5]), [4, 7]);
        assert_eq!(looks(&[1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8, 8]), [3, 6, 9, 12]);
    }
}
