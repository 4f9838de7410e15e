//! A histogram that knows what of it was delivered.

use super::{
    config::{Aggregation, Temporality},
    exponential::Exponential,
};

/// One histogram.
#[derive(Debug)]
pub(super) struct Hist {
    now: State,
    /// What the last collected point covered.
    collected: Option<(State, u64)>,
    /// What was delivered so far, and up to when.
    delivered: Option<(State, u64)>,
}

#[derive(Debug, Clone)]
struct State {
    buckets: Buckets,
    sum: f64,
}

/// The counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Buckets {
    /// One more than bounds, which are inclusive above.
    Explicit {
        /// Upper bounds.
        bounds: &'static [f64],
        /// Of each bucket.
        counts: Box<[u64]>,
    },
    /// Bounds that follow the values.
    Exponential(Exponential),
}

/// One point, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub(super) start_unix_ns: u64,
    pub(super) time_unix_ns: u64,
    pub(super) count: u64,
    pub(super) sum: f64,
    pub(super) buckets: Buckets,
}

impl Buckets {
    fn add(&mut self, value: f64) {
        match self {
            Self::Explicit { bounds, counts } => {
                let at = bounds.partition_point(|bound| *bound < value);
                if let Some(count) = counts.get_mut(at) {
                    *count += 1;
                }
            }
            Self::Exponential(exponential) => exponential.add(value),
        }
    }

    fn count(&self) -> u64 {
        match self {
            Self::Explicit { counts, .. } => counts.iter().sum(),
            Self::Exponential(exponential) => exponential.count(),
        }
    }

    /// What came since `earlier`, a former state of the same histogram.
    fn since(&self, earlier: &Self) -> Self {
        match (self, earlier) {
            (Self::Explicit { bounds, counts }, Self::Explicit { counts: before, .. }) => {
                let counts = counts.iter().zip(before).map(|(now, before)| now - before).collect();
                Self::Explicit { bounds, counts }
            }
            (Self::Exponential(now), Self::Exponential(before)) => Self::Exponential(now.since(before)),
            // A histogram never changes its kind.
            _ => self.clone(),
        }
    }
}

impl Hist {
    /// An empty one; `bounds` are used by explicit buckets.
    pub(super) fn new(aggregation: Aggregation, bounds: &'static [f64]) -> Self {
        let buckets = match aggregation {
            Aggregation::Explicit => Buckets::Explicit { bounds, counts: vec![0; bounds.len() + 1].into() },
            Aggregation::Exponential => Buckets::Exponential(Exponential::default()),
        };
        Self { now: State { buckets, sum: 0.0 }, collected: None, delivered: None }
    }

    /// Adds one sample, which is finite.
    pub(super) fn add(&mut self, value: f64) {
        self.now.buckets.add(value);
        self.now.sum += value;
    }

    /// The point to send now; `None` when there is nothing to say.
    pub(super) fn collect(&mut self, temporality: Temporality, start: u64, now: u64) -> Option<Point> {
        let base = self.delivered.as_ref().filter(|_| temporality == Temporality::Delta);
        let (buckets, sum, start_unix_ns) = match base {
            Some((base, until)) => (self.now.buckets.since(&base.buckets), self.now.sum - base.sum, *until),
            None => (self.now.buckets.clone(), self.now.sum, start),
        };
        self.collected = Some((self.now.clone(), now));
        let count = buckets.count();
        (count > 0).then_some(Point { start_unix_ns, time_unix_ns: now, count, sum, buckets })
    }

    /// The point last collected was delivered.
    pub(super) fn delivered(&mut self) {
        if let Some(collected) = self.collected.take() {
            self.delivered = Some(collected);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_above() {
        let mut hist = Hist::new(Aggregation::Explicit, &[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 2.1] {
            hist.add(value);
        }
        let point = hist.collect(Temporality::Cumulative, 1, 9).unwrap();
        assert_eq!(point.buckets, Buckets::Explicit { bounds: &[1.0, 2.0], counts: [2, 2, 1].into() });
        assert_eq!((point.start_unix_ns, point.time_unix_ns), (1, 9));
        assert!((point.sum - 7.1).abs() < 1e-9);
    }

    #[test]
    fn a_sample_between_collect_and_delivery_is_in_the_next_delta() {
        for aggregation in [Aggregation::Explicit, Aggregation::Exponential] {
            let mut hist = Hist::new(aggregation, &[1.0]);
            hist.add(0.5);
            assert_eq!(hist.collect(Temporality::Delta, 1, 10).unwrap().count, 1);
            hist.add(0.25);
            hist.delivered();
            let next = hist.collect(Temporality::Delta, 1, 20).unwrap();
            assert_eq!((next.count, next.sum), (1, 0.25));
            assert_eq!((next.start_unix_ns, next.time_unix_ns), (10, 20));
            hist.delivered();
            assert_eq!(hist.collect(Temporality::Delta, 1, 30), None);
        }
    }
}
