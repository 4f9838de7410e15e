//! What counts as slow, and which spans are kept when spans are sampled.

use nexent_observer_core::timing::{Exchange, Outcome};

use super::{ids::SpanIds, view};

/// Thresholds and the sample rate, as the configuration has them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// `LLM_SLOW_REQUEST_THRESHOLD_SECONDS`: a call that takes longer is slow.
    pub slow_request_seconds: f64,
    /// `LLM_SLOW_TOKEN_RATE_THRESHOLD`: a stream with a decode rate under it, in tokens/s, is slow.
    pub slow_token_rate: f64,
    /// `TELEMETRY_SAMPLE_RATE`: share of traces whose spans are kept, 0.0 to 1.0. Metrics and lines are never sampled.
    pub sample_rate: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { slow_request_seconds: 5.0, slow_token_rate: 10.0, sample_rate: 1.0 }
    }
}

/// Why a call is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slow {
    /// It took too long.
    pub duration: bool,
    /// Its tokens came too slowly.
    pub token_rate: bool,
}

/// Why a span is kept although spans are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kept {
    /// The call failed.
    pub error: bool,
    /// It stalled, before the first token or after it.
    pub stall: bool,
    /// It was slow.
    pub slow: Slow,
}

impl Kept {
    /// Label values of `nexent_observer_kept_spans_total`: those of [`Slow::REASONS`] and two more.
    pub const REASONS: [&'static str; 4] = ["error", "stall", Slow::REASONS[0], Slow::REASONS[1]];

    /// Those that hold.
    pub fn reasons(self) -> impl Iterator<Item = &'static str> {
        let [duration, token_rate] = self.slow.flags();
        Self::REASONS
            .into_iter()
            .zip([self.error, self.stall, duration, token_rate])
            .filter_map(|(r, holds)| holds.then_some(r))
    }
}

impl Slow {
    /// Label values of `llm_slow_requests`.
    pub const REASONS: [&'static str; 2] = ["duration", "token_rate"];

    /// In the order of [`Self::REASONS`].
    #[must_use]
    pub fn flags(self) -> [bool; 2] {
        [self.duration, self.token_rate]
    }
}

impl Policy {
    /// Whether, and why, the call is slow. An incomplete exchange is not: its times are not all known.
    #[must_use]
    pub fn slow(&self, exchange: &Exchange) -> Slow {
        if exchange.outcome == Outcome::Incomplete {
            return Slow::default();
        }
        Slow {
            duration: view::duration(exchange).is_some_and(|seconds| seconds > self.slow_request_seconds),
            token_rate: exchange.decode_rate.is_some_and(|rate| rate < self.slow_token_rate),
        }
    }

    /// Why the span of a call is exported whatever the sample rate says, if there is a reason.
    #[must_use]
    pub fn kept(&self, exchange: &Exchange, slow: Slow) -> Kept {
        Kept {
            error: view::error_type(exchange).is_some(),
            stall: !exchange.stalls.is_empty() || exchange.stalled_before_first_token,
            slow,
        }
    }

    /// Whether the span of a call is exported: for a reason, else by the trace id, so that all calls of one trace are exported
    /// or none.
    #[must_use]
    pub fn samples(&self, kept: Kept, ids: &SpanIds) -> bool {
        kept.reasons().next().is_some() || ids.trace.fraction() < self.sample_rate
    }
}

#[cfg(test)]
mod tests {
    use nexent_observer_core::event::MonoNs;

    use super::*;
    use crate::export::fixture;

    #[test]
    fn slow_by_duration_and_by_rate_and_never_when_incomplete() {
        let policy = Policy::default();
        let mut exchange = fixture::completed();
        assert_eq!(policy.slow(&exchange), Slow::default());
        exchange.decode_rate = Some(9.9);
        assert_eq!(policy.slow(&exchange), Slow { duration: false, token_rate: true });
        exchange.end = exchange.request_start.map(|MonoNs(at)| MonoNs(at + 5_000_000_001));
        assert_eq!(policy.slow(&exchange), Slow { duration: true, token_rate: true });
        exchange.outcome = Outcome::Incomplete;
        assert_eq!(policy.slow(&exchange), Slow::default());
    }

    #[test]
    fn at_rate_zero_only_errors_stalls_and_slow_calls_are_kept() {
        let policy = Policy { sample_rate: 0.0, ..Policy::default() };
        let reasons = |exchange: &Exchange| {
            let kept = policy.kept(exchange, policy.slow(exchange));
            let reasons: Vec<_> = kept.reasons().collect();
            assert_eq!(policy.samples(kept, &SpanIds::of_call(&exchange.call)), !reasons.is_empty());
            reasons
        };
        let mut exchange = fixture::completed();
        assert_eq!(reasons(&exchange), [""; 0]);
        exchange.stalled_before_first_token = true;
        assert_eq!(reasons(&exchange), ["stall"]);
        let mut exchange = fixture::completed();
        exchange.stalls = vec![(MonoNs(1), MonoNs(2))];
        assert_eq!(reasons(&exchange), ["stall"]);
        let mut exchange = fixture::completed();
        exchange.decode_rate = Some(1.0);
        assert_eq!(reasons(&exchange), ["token_rate"]);
        let mut exchange = fixture::failed();
        assert_eq!(reasons(&exchange), ["error"]);
        exchange.end = exchange.request_start.map(|MonoNs(at)| MonoNs(at + 6_000_000_000));
        assert_eq!(reasons(&exchange), ["error", "duration"]);
    }

    #[test]
    fn the_sample_rate_keeps_about_its_share_and_all_at_one() {
        let mut exchange = fixture::completed();
        exchange.call.traceparent = None;
        let kept = |rate| {
            let policy = Policy { sample_rate: rate, ..Policy::default() };
            let ids = || SpanIds::of_call(&exchange.call);
            (0..2000).filter(|_| policy.samples(Kept::default(), &ids())).count()
        };
        assert_eq!(kept(1.0), 2000);
        assert!((300..=500).contains(&kept(0.2)), "{}", kept(0.2));
    }
}
