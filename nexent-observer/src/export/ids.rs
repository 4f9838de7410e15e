//! Identity of a span: that of the call's own `traceparent` where it has one, else random.

use std::{collections::VecDeque, fmt};

use nexent_observer_core::{
    limits::RETRIES,
    llm::Call,
    timing::{Exchange, ExchangeId, Outcome},
};

/// 16 bytes, never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

/// 8 bytes, never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

/// Identity of one span and of its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanIds {
    /// Trace.
    pub trace: TraceId,
    /// Span.
    pub span: SpanId,
    /// The span of the observed process that sent the call, where the call says so.
    pub parent: Option<SpanId>,
}

impl SpanIds {
    /// Identity for the span of an exchange. What a hook in the process said is stronger than what the call carries.
    #[must_use]
    pub fn of_exchange(exchange: &Exchange) -> Self {
        match exchange.said.as_deref() {
            Some(said) => Self {
                trace: TraceId(said.trace_id.to_be_bytes()),
                span: SpanId(random()),
                parent: Some(SpanId(said.span_id.to_be_bytes())),
            },
            None => Self::of_call(&exchange.call),
        }
    }

    /// Identity for the span of a call.
    #[must_use]
    pub fn of_call(call: &Call) -> Self {
        let parent = call.traceparent.as_deref().and_then(parse_traceparent);
        Self {
            trace: parent.map_or_else(|| TraceId(random()), |(trace, _)| trace),
            span: SpanId(random()),
            parent: parent.map(|(_, span)| span),
        }
    }
}

/// Spans of failed calls, remembered so that the span of a retry can point to them.
#[derive(Debug, Default)]
pub struct FailedSpans(VecDeque<(ExchangeId, SpanIds)>);

impl FailedSpans {
    /// Remembers the span of a call if it may be tried again; gives that of the call which it repeats. As many as the core
    /// remembers calls, the oldest go.
    pub fn link(&mut self, exchange: &Exchange, ids: SpanIds) -> Option<SpanIds> {
        let Self(spans) = self;
        let before = exchange.retry_of.and_then(|of| spans.iter().position(|(id, _)| *id == of));
        let before = before.and_then(|at| spans.remove(at)).map(|(_, ids)| ids);
        if matches!(exchange.outcome, Outcome::Error | Outcome::ClientAbort | Outcome::ServerAbort) {
            if spans.len() >= RETRIES {
                spans.pop_front();
            }
            spans.push_back((exchange.id, ids));
        }
        before
    }
}

impl TraceId {
    /// A number in `[0, 1)` that is the same for all spans of a trace: the random bits of W3C Trace Context level 2,
    /// as many of them as an `f64` holds.
    #[must_use]
    pub fn fraction(self) -> f64 {
        let [.., a, b, c, d, e, f, g] = self.0;
        (u64::from_be_bytes([0, a, b, c, d, e, f, g]) >> 3) as f64 / (1u64 << 53) as f64
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    while bytes == [0; N] {
        fastrand::fill(&mut bytes);
    }
    bytes
}

/// Trace and span of a `traceparent` (W3C Trace Context section 3.2.2). `None` when it is not valid.
fn parse_traceparent(value: &str) -> Option<(TraceId, SpanId)> {
    let mut fields = value.trim().split('-');
    let version: [u8; 1] = hex(fields.next()?)?;
    let trace: [u8; 16] = hex(fields.next()?)?;
    let span: [u8; 8] = hex(fields.next()?)?;
    let _flags: [u8; 1] = hex(fields.next()?)?;
    // Version 0 has exactly four fields; a later one may add fields; 255 is forbidden.
    let version_ok = match version {
        [0] => fields.next().is_none(),
        [v] => v != 0xff,
    };
    (version_ok && trace != [0; 16] && span != [0; 8]).then_some((TraceId(trace), SpanId(span)))
}

/// Lower-case hex of exactly `N` bytes.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (slot, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        if let [high, low] = *pair {
            *slot = digit(high)? << 4 | digit(low)?;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(traceparent: Option<&str>) -> SpanIds {
        SpanIds::of_call(&Call { traceparent: traceparent.map(str::to_owned), ..Call::default() })
    }

    #[test]
    fn a_valid_traceparent_gives_trace_and_parent() {
        let ids = of(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert_eq!(ids.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(ids.parent.unwrap().to_string(), "00f067aa0ba902b7");
        assert_ne!(ids.parent, Some(ids.span));
        // A later version may carry more.
        assert!(of(Some("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more")).parent.is_some());
    }

    #[test]
    fn an_invalid_traceparent_is_as_good_as_none() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473\u{e9}-00f067aa0ba902b7-01",
        ] {
            assert_eq!(of(Some(bad)).parent, None, "{bad}");
        }
    }

    #[test]
    fn a_retry_points_to_the_span_of_the_failed_call_and_only_so_many_are_remembered() {
        use crate::export::fixture;
        let mut spans = FailedSpans::default();
        let failed = fixture::failed();
        let first = of(None);
        assert_eq!(spans.link(&failed, first), None);
        let retry = |id| Exchange { retry_of: Some(id), ..fixture::completed() };
        assert_eq!(spans.link(&retry(failed.id), of(None)), Some(first));
        assert_eq!(spans.link(&retry(failed.id), of(None)), None, "a call has one retry");
        for no in 0..RETRIES as u32 + 1 {
            spans.link(&Exchange { id: ExchangeId { no, ..failed.id }, ..failed.clone() }, first);
        }
        assert_eq!(spans.0.len(), RETRIES);
        assert_eq!(spans.link(&retry(ExchangeId { no: 0, ..failed.id }), of(None)), None);
        assert_eq!(spans.link(&retry(ExchangeId { no: 1, ..failed.id }), of(None)), Some(first));
    }

    #[test]
    fn random_ids_differ_and_spread_over_the_fraction() {
        let ids: Vec<_> = (0..1000).map(|_| of(None)).collect();
        let distinct: std::collections::HashSet<_> = ids.iter().map(|i| (i.trace, i.span)).collect();
        assert_eq!(distinct.len(), 1000);
        let mean = ids.iter().map(|i| i.trace.fraction()).sum::<f64>() / 1000.0;
        assert!((0.4..0.6).contains(&mean), "{mean}");
        assert!(TraceId([0xff; 16]).fraction() < 1.0);
    }
}
