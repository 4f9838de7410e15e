//! What the socket of a connection told of one exchange: when the request was with it, how long data lay in it unread, what was sent
//! again. From that follows why a reader of the stream had to wait.

use crate::{event::MonoNs, limits::LATE_READS};

/// After the first token, data that lay unread for less, in ns, is counted and not kept: no stall is made of it.
const KEPT_LATE_NS: u64 = 100_000_000;

/// Why nothing came for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// For most of the time there was nothing in the socket: the server or the network.
    LateArrival,
    /// For most of the time data lay in the socket and the process did not read it: its own loop.
    LateRead,
}

impl Cause {
    /// Label value: `late_arrival`, `late_read`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LateArrival => "late_arrival",
            Self::LateRead => "late_read",
        }
    }
}

/// How long data lay in the socket unread while an exchange was open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadDelay {
    /// Reads that came late: over 5 ms after the arrival of what they took (`record::LATE_NS` of nexent-observer-common).
    pub reads: u32,
    /// The longest delay of these, ns; 0: there was none.
    pub max_ns: u64,
    /// All of them together, ns.
    pub total_ns: u64,
}

/// Facts of the socket, as they come.
#[derive(Debug, Clone)]
pub(super) struct Phases {
    delay: ReadDelay,
    /// `None`: some were forgotten.
    retransmits: Option<u32>,
    /// Arrival and read of what was read late, in the order of the reads.
    late: Vec<(MonoNs, MonoNs)>,
    /// From here on not all is kept.
    full_since: Option<MonoNs>,
}

impl Default for Phases {
    fn default() -> Self {
        Self { delay: ReadDelay::default(), retransmits: Some(0), late: Vec::new(), full_since: None }
    }
}

impl Phases {
    /// Data lay unread. `start`: the request began; what lay there before is not of this exchange.
    pub(super) fn late(&mut self, start: Option<MonoNs>, arrived: MonoNs, read: MonoNs, has_token: bool) {
        let arrived = start.map_or(arrived, |start| arrived.max(start));
        let delay = read.since(arrived);
        if delay == 0 {
            return;
        }
        let all = &mut self.delay;
        all.reads = all.reads.saturating_add(1);
        all.max_ns = all.max_ns.max(delay);
        all.total_ns = all.total_ns.saturating_add(delay);
        if has_token && delay < KEPT_LATE_NS {
            return;
        }
        if self.late.len() < LATE_READS {
            self.late.push((arrived, read));
        } else {
            self.full_since.get_or_insert(arrived);
        }
    }

    pub(super) fn retransmitted(&mut self, times: Option<u32>) {
        self.retransmits = self.retransmits.zip(times).map(|(all, more)| all.saturating_add(more));
    }

    pub(super) fn delay(&self) -> ReadDelay {
        self.delay
    }

    pub(super) fn retransmits(&self) -> Option<u32> {
        self.retransmits
    }

    /// Why nothing came from `from` to `to`. `None`: not all of it is kept.
    pub(super) fn cause(&self, from: MonoNs, to: MonoNs) -> Option<Cause> {
        if self.full_since.is_some_and(|since| since < to) {
            return None;
        }
        let inside = |(arrived, read): &(MonoNs, MonoNs)| read.0.min(to.0).saturating_sub(arrived.0.max(from.0));
        let unread = self.late.iter().map(inside).fold(0u64, u64::saturating_add);
        Some(if unread > to.since(from) / 2 { Cause::LateRead } else { Cause::LateArrival })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn ms(n: u64) -> MonoNs {
        MonoNs(n * MS)
    }

    #[test]
    fn what_lay_unread_for_most_of_a_gap_is_its_cause() {
        let mut phases = Phases::default();
        phases.late(Some(ms(0)), ms(1000), ms(3000), true);
        assert_eq!(phases.cause(ms(900), ms(3001)), Some(Cause::LateRead));
        assert_eq!(phases.cause(ms(0), ms(4001)), Some(Cause::LateArrival), "2000 of 4001 ms");
        assert_eq!(phases.cause(ms(3000), ms(6000)), Some(Cause::LateArrival), "another gap");
        assert_eq!(phases.cause(ms(2500), ms(3200)), Some(Cause::LateRead), "500 of 700 ms");
    }

    #[test]
    fn what_came_before_the_request_is_not_held_against_it() {
        let mut phases = Phases::default();
        // Tickets of TLS that lay there while the connection was idle.
        phases.late(Some(ms(10_000)), ms(1), ms(10_001), false);
        phases.late(Some(ms(10_000)), ms(1), ms(9_000), false);
        assert_eq!(phases.delay(), ReadDelay { reads: 1, max_ns: MS, total_ns: MS });
        assert_eq!(phases.cause(ms(10_000), ms(10_500)), Some(Cause::LateArrival));
    }

    #[test]
    fn late_reads_are_kept_up_to_a_cap_and_gaps_behind_it_have_no_cause() {
        let mut phases = Phases::default();
        for n in 0..2 * LATE_READS as u64 {
            phases.late(None, ms(1000 * n), ms(1000 * n + 200), true);
        }
        assert_eq!((phases.late.len(), phases.delay().reads), (LATE_READS, 2 * LATE_READS as u32));
        assert_eq!(phases.cause(ms(0), ms(190)), Some(Cause::LateRead));
        let full = 1000 * LATE_READS as u64;
        assert_eq!(phases.cause(ms(full - 500), ms(full)), Some(Cause::LateArrival));
        assert_eq!(phases.cause(ms(full), ms(full + 190)), None);
    }

    #[test]
    fn short_delays_after_the_first_token_are_counted_and_take_no_room() {
        let mut phases = Phases::default();
        for n in 0..10_000 {
            phases.late(None, ms(20 * n), ms(20 * n + 6), true);
        }
        assert_eq!((phases.late.len(), phases.delay().reads), (0, 10_000));
        assert_eq!(phases.delay().total_ns, 60_000 * MS);
    }

    proptest! {
        #[test]
        fn a_gap_is_read_late_exactly_where_unread_data_fills_most_of_it(
            steps in proptest::collection::vec((1..400u64, 100..4000u64), 0..40),
            from in 0..60_000u64,
            len in 1..20_000u64,
        ) {
            let mut phases = Phases::default();
            let (mut at, mut unread) = (0, vec![false; 200_000]);
            for (wait, delay) in steps {
                let arrived = at + wait;
                at = arrived + delay;
                phases.late(None, ms(arrived), ms(at), true);
                unread[arrived as usize..at as usize].fill(true);
            }
            let inside = unread[from as usize..(from + len) as usize].iter().filter(|unread| **unread).count() as u64;
            let cause = if inside * MS > len * MS / 2 { Cause::LateRead } else { Cause::LateArrival };
            prop_assert_eq!(phases.cause(ms(from), ms(from + len)), Some(cause));
        }
    }
}
