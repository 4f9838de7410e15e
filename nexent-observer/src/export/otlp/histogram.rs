//! A histogram with fixed bounds that knows what of it was delivered.

use super::config::Temporality;

/// One histogram.
#[derive(Debug)]
pub(super) struct Hist {
    bounds: &'static [f64],
    now: State,
    /// What the last collected point covered.
    collected: Option<(State, u64)>,
    /// What was delivered so far, and up to when.
    delivered: Option<(State, u64)>,
}

#[derive(Debug, Clone)]
struct State {
    buckets: Box<[u64]>,
    sum: f64,
}

impl State {
    fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// One point, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub(super) start_unix_ns: u64,
    pub(super) time_unix_ns: u64,
    pub(super) count: u64,
    pub(super) sum: f64,
    pub(super) bucket_counts: Vec<u64>,
    pub(super) bounds: &'static [f64],
}

impl Hist {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let buckets = vec![0; bounds.len() + 1].into();
        Self { bounds, now: State { buckets, sum: 0.0 }, collected: None, delivered: None }
    }

    /// Adds one sample; bounds are inclusive above.
    pub(super) fn add(&mut self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.now.buckets.get_mut(at) {
            *bucket += 1;
            self.now.sum += value;
        }
    }

    /// The point to send now; `None` when there is nothing to say.
    pub(super) fn collect(&mut self, temporality: Temporality, start: u64, now: u64) -> Option<Point> {
        let base = self.delivered.as_ref().filter(|_| temporality == Temporality::Delta);
        let (bucket_counts, sum, start_unix_ns) = match base {
            Some((base, until)) => {
                let buckets = self.now.buckets.iter().zip(&base.buckets);
                (buckets.map(|(now, base)| now - base).collect(), self.now.sum - base.sum, *until)
            }
            None => (self.now.buckets.to_vec(), self.now.sum, start),
        };
        self.collected = Some((self.now.clone(), now));
        let count: u64 = bucket_counts.iter().sum();
        debug_assert!(base.is_some() || count == self.now.count());
        (count > 0).then_some(Point {
            start_unix_ns,
            time_unix_ns: now,
            count,
            sum,
            bucket_counts,
            bounds: self.bounds,
        })
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
        let mut hist = Hist::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 2.1] {
            hist.add(value);
        }
        let point = hist.collect(Temporality::Cumulative, 1, 9).unwrap();
        assert_eq!(point.bucket_counts, [2, 2, 1]);
        assert_eq!((point.start_unix_ns, point.time_unix_ns), (1, 9));
        assert!((point.sum - 7.1).abs() < 1e-9);
    }

    #[test]
    fn a_sample_between_collect_and_delivery_is_in_the_next_delta() {
        let mut hist = Hist::new(&[1.0]);
        hist.add(0.5);
        assert_eq!(hist.collect(Temporality::Delta, 1, 10).unwrap().count, 1);
        hist.add(0.5);
        hist.delivered();
        let next = hist.collect(Temporality::Delta, 1, 20).unwrap();
        assert_eq!((next.count, next.start_unix_ns, next.time_unix_ns), (1, 10, 20));
        hist.delivered();
        assert_eq!(hist.collect(Temporality::Delta, 1, 30), None);
    }
}
