//! Buckets of a base-2 exponential histogram (OpenTelemetry metrics data model, "ExponentialHistogram"; SDK specification,
//! "Base2 Exponential Bucket Histogram Aggregation").

use std::collections::BTreeMap;

/// Buckets that one point may span; the specification's default.
const MAX_SIZE: i64 = 160;
/// Finest scale; the specification's default.
const MAX_SCALE: i32 = 20;

/// Counts at one scale. With base 2^(2^-scale), bucket i holds what is over base^i, up to base^(i+1).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Exponential {
    scale: i32,
    zeros: u64,
    buckets: BTreeMap<i64, u64>,
}

/// The buckets as a point has them: from `offset` on without holes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Dense {
    pub(super) scale: i32,
    pub(super) zeros: u64,
    pub(super) offset: i32,
    pub(super) counts: Vec<u64>,
}

impl Default for Exponential {
    fn default() -> Self {
        Self { scale: MAX_SCALE, zeros: 0, buckets: BTreeMap::new() }
    }
}

impl Exponential {
    /// Counts a value. Durations and counts are never negative; what is not a number is not counted.
    pub(super) fn add(&mut self, value: f64) {
        if value == 0.0 {
            self.zeros += 1;
        } else if value > 0.0 && value.is_finite() {
            // Exact for powers of two, whose logarithm is a whole number: they are the upper bounds of their buckets.
            let at = (value.log2() * f64::from(self.scale).exp2()).ceil() as i64 - 1;
            *self.buckets.entry(at).or_default() += 1;
            self.fit();
        }
    }

    /// How many values were counted.
    pub(super) fn count(&self) -> u64 {
        self.zeros + self.buckets.values().sum::<u64>()
    }

    /// What came since `earlier`, a former state of the same buckets.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let mut before = earlier.clone();
        before.coarsen(before.scale - self.scale);
        let count = |(at, n): (&i64, &u64)| {
            let new = n - before.buckets.get(at).copied().unwrap_or_default().min(*n);
            (new > 0).then_some((*at, new))
        };
        let buckets = self.buckets.iter().filter_map(count).collect();
        Self { scale: self.scale, zeros: self.zeros.saturating_sub(before.zeros), buckets }
    }

    /// Without holes.
    pub(super) fn dense(&self) -> Dense {
        let (Some((&first, _)), Some((&last, _))) = (self.buckets.first_key_value(), self.buckets.last_key_value())
        else {
            return Dense { scale: self.scale, zeros: self.zeros, offset: 0, counts: Vec::new() };
        };
        let counts = (first..=last).map(|at| self.buckets.get(&at).copied().unwrap_or_default()).collect();
        // At the finest scale the exponents of an f64, 11 bits, become 31 bits.
        Dense { scale: self.scale, zeros: self.zeros, offset: i32::try_from(first).unwrap_or(i32::MIN), counts }
    }

    /// Makes the buckets as much coarser as it takes to span no more than may be.
    fn fit(&mut self) {
        let (Some((first, _)), Some((last, _))) = (self.buckets.first_key_value(), self.buckets.last_key_value())
        else {
            return;
        };
        let mut by = 0;
        while (last >> by) - (first >> by) >= MAX_SIZE {
            by += 1;
        }
        self.coarsen(by);
    }

    /// Joins 2^by buckets into one.
    fn coarsen(&mut self, by: i32) {
        if by <= 0 {
            return;
        }
        self.scale -= by;
        let mut joined = BTreeMap::new();
        for (at, n) in &self.buckets {
            *joined.entry(at >> by).or_default() += n;
        }
        self.buckets = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = f64>) -> Exponential {
        let mut hist = Exponential::default();
        values.into_iter().for_each(|value| hist.add(value));
        hist
    }

    /// Lower (exclusive) and upper (inclusive) bound of each counted bucket, and its count.
    fn bounds(hist: &Exponential) -> Vec<(f64, f64, u64)> {
        let Dense { scale, offset, counts, .. } = hist.dense();
        let bound = |at: i32| (f64::from(at) * f64::from(-scale).exp2()).exp2();
        let all = counts.into_iter().zip(offset..).map(|(n, at)| (bound(at), bound(at + 1), n));
        all.filter(|(_, _, n)| *n > 0).collect()
    }

    #[test]
    fn each_value_lies_in_its_bucket_and_none_is_lost() {
        let values = [0.000_3, 0.01, 0.5, 0.51, 1.0, 1.5, 2.0, 7.3, 300.0, 67_108_864.0];
        let hist = of(values);
        let mut rest = values.to_vec();
        for (lower, upper, n) in bounds(&hist) {
            let (inside, outside): (Vec<_>, _) =
                rest.into_iter().partition(|v| *v > lower * (1.0 - 1e-12) && *v <= upper * (1.0 + 1e-12));
            assert_eq!(inside.len() as u64, n, "({lower}, {upper}]");
            rest = outside;
        }
        assert_eq!((rest.len(), hist.count()), (0, 10));
        assert!(hist.dense().counts.len() <= MAX_SIZE as usize);
    }

    #[test]
    fn a_power_of_two_is_the_upper_bound_of_its_bucket() {
        // Two values this far apart leave whole powers of two as bounds.
        let mut hist = of([1e-40, 1e40]);
        hist.add(4.0);
        let scale = hist.dense().scale;
        assert!(scale < 0, "{scale}");
        let (_, upper, _) =
            bounds(&hist).into_iter().find(|(lower, upper, _)| (*lower..=*upper).contains(&4.0)).unwrap();
        assert!(upper >= 4.0);
        let fine = of([2.0]);
        assert_eq!(bounds(&fine)[0].1, 2.0);
        assert_eq!(fine.dense().scale, MAX_SCALE);
    }

    #[test]
    fn the_scale_is_the_finest_that_fits() {
        let narrow = of([1.0, 1.000_1]).dense();
        let wide = of([0.01, 81.92]).dense();
        assert_eq!((narrow.scale, wide.scale), (20, 3), "13 octaves of 160 buckets");
        assert!(wide.counts.len() <= MAX_SIZE as usize && wide.counts.len() > MAX_SIZE as usize / 2 - 1);
    }

    #[test]
    fn what_came_since_is_right_also_when_the_scale_became_coarser() {
        let before = of([1.0, 1.1, 0.0]);
        let mut now = before.clone();
        [1.0, 500.0, 0.0, 0.0].into_iter().for_each(|value| now.add(value));
        let new = now.since(&before);
        assert!(new.scale < before.scale);
        assert_eq!((new.count(), new.zeros), (4, 2));
        assert_eq!(bounds(&new).into_iter().map(|(_, _, n)| n).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(now.since(&now).count(), 0);
    }

    #[test]
    fn what_is_no_number_is_not_counted() {
        let hist = of([f64::NAN, f64::INFINITY, -1.0]);
        assert_eq!((hist.count(), hist.dense().counts), (0, Vec::new()));
        assert_eq!(of([f64::MIN_POSITIVE, f64::MAX, 5e-324]).count(), 3);
    }
}
