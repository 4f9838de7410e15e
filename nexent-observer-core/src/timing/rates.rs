//! The arithmetic of DESIGN section 3, free of state.

use crate::event::MonoNs;

use super::Timeline;

/// Shortest gap that can be a stall, in ns.
pub const STALL_MIN_NS: u64 = 2_000_000_000;
/// A stall is longer than this many median gaps of its stream.
pub const STALL_MEDIANS: u64 = 10;
/// Shortest span from the first to the last token time over which a decode rate means anything, in ns.
pub const RATE_SPAN_MIN_NS: u64 = 10_000_000;

/// Median of the inter-chunk latencies, in ns; of the kept beginning when the timeline is truncated. `None` without a
/// gap. With an even number it is the mean of the two in the middle.
pub(super) fn median_gap(timeline: &Timeline) -> Option<u64> {
    let mut gaps: Vec<u64> = timeline.gaps().collect();
    let half = gaps.len() / 2;
    if gaps.is_empty() {
        return None;
    }
    let even = gaps.len().is_multiple_of(2);
    let (below, &mut upper, _) = gaps.select_nth_unstable(half);
    let lower = if even { below.iter().copied().max().unwrap_or(upper) } else { upper };
    Some(lower.midpoint(upper))
}

/// A silence longer than this, in ns, is a stall of a stream with that median gap.
#[must_use]
pub fn stall_threshold(median_gap: Option<u64>) -> u64 {
    median_gap.map_or(STALL_MIN_NS, |m| m.saturating_mul(STALL_MEDIANS).max(STALL_MIN_NS))
}

/// What the decode rate is computed from.
pub(super) struct Decode {
    /// First and last token time.
    pub(super) first: MonoNs,
    pub(super) last: MonoNs,
    /// Tokens of the answer that were streamed.
    pub(super) tokens: u64,
    /// Tokens that share the first time, where counted.
    pub(super) first_tokens: Option<u64>,
    /// Output chunks, and those that share the first time.
    pub(super) chunks: u64,
    pub(super) first_chunks: u64,
}

/// Decode rate in tokens/s. Tokens that share the first time took their time before it, so they do not count; where
/// their number is not known it is estimated as their share of the chunks.
pub(super) fn decode_rate(d: &Decode) -> Option<f64> {
    let span = d.last.since(d.first);
    if span < RATE_SPAN_MIN_NS || d.chunks <= d.first_chunks {
        return None;
    }
    let before = match d.first_tokens {
        Some(n) => n as f64,
        None => d.tokens as f64 * d.first_chunks as f64 / d.chunks as f64,
    };
    let rest = d.tokens as f64 - before;
    (rest > 0.0).then(|| rest / (span as f64 / 1e9))
}

/// `tokens` over the time from `start` to `last`, in tokens/s; `None` without a time or a token.
pub(super) fn end_to_end_rate(tokens: u64, start: MonoNs, last: MonoNs) -> Option<f64> {
    let span = last.since(start);
    (span > 0 && tokens > 0).then(|| tokens as f64 / (span as f64 / 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(gaps: &[u64]) -> Timeline {
        let mut t = Timeline::default();
        t.push(0, None, false, 1 << 16);
        for &gap in gaps {
            t.push(gap, None, false, 1 << 16);
        }
        t
    }

    #[test]
    fn median_of_gaps() {
        let cases: [(&[u64], Option<u64>); 6] = [
            (&[], None),
            (&[0, 0], None),
            (&[7], Some(7)),
            (&[9, 1, 5], Some(5)),
            (&[1, 0, 9, 5, 0, 7], Some(6)),
            (&[u64::MAX >> 3, u64::MAX >> 3], Some(u64::MAX >> 3)),
        ];
        for (gaps, want) in cases {
            assert_eq!(median_gap(&timeline(gaps)), want, "{gaps:?}");
        }
    }

    #[test]
    fn the_threshold_is_two_seconds_or_ten_medians_whichever_is_longer() {
        assert_eq!(stall_threshold(None), 2_000_000_000);
        assert_eq!(stall_threshold(Some(200_000_000)), 2_000_000_000);
        assert_eq!(stall_threshold(Some(200_000_001)), 2_000_000_010);
        assert_eq!(stall_threshold(Some(u64::MAX)), u64::MAX);
    }

    #[test]
    fn decode_rate_leaves_out_what_shares_the_first_time() {
        let d = |tokens, first_tokens, chunks, first_chunks, span: u64| {
            decode_rate(&Decode {
                first: MonoNs(100),
                last: MonoNs(100 + span),
                tokens,
                first_tokens,
                chunks,
                first_chunks,
            })
        };
        assert_eq!(d(11, None, 11, 1, 1_000_000_000), Some(10.0));
        assert_eq!(d(22, None, 11, 1, 1_000_000_000), Some(20.0)); // two tokens a chunk: the first two do not count
        assert_eq!(d(22, Some(12), 11, 1, 1_000_000_000), Some(10.0)); // counted, not estimated
        assert_eq!(d(11, None, 11, 11, 0), None); // one read
        assert_eq!(d(11, None, 11, 1, 9_999_999), None);
        assert_eq!(d(11, None, 11, 1, 10_000_000), Some(1000.0));
        assert_eq!(d(3, Some(3), 11, 1, 1_000_000_000), None); // nothing left to rate
    }
}
