//! Identity of a span: what a hook or a `traceparent` says, else that of the request that caused it, else random.

use std::{
    collections::VecDeque,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::LazyLock,
};

use nexent_observer_core::{
    chain::parse_traceparent,
    event::{Role, Said},
    limits::RETRIES,
    llm::Call,
    timing::{Exchange, ExchangeId, Outcome, Served},
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

/// What may say where a span belongs, strongest first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parents<'a> {
    /// A hook in the process.
    pub said: Option<&'a Said>,
    /// `traceparent` of the call.
    pub traceparent: Option<&'a str>,
    /// The span of the request that caused it.
    pub served: Option<SpanIds>,
}

impl SpanIds {
    /// Identity for the span of an exchange; `served` is the span of the request that caused it.
    #[must_use]
    pub fn of_exchange(exchange: &Exchange, served: Option<Self>) -> Self {
        if exchange.role == Role::Server {
            return Self::of_request(exchange.id, exchange.call.traceparent.as_deref());
        }
        let (said, traceparent) = (exchange.said.as_deref(), exchange.call.traceparent.as_deref());
        Self::of_child(&Parents { said, traceparent, served })
    }

    /// Identity for the span of a call.
    #[must_use]
    pub fn of_call(call: &Call) -> Self {
        Self::of_child(&Parents { traceparent: call.traceparent.as_deref(), ..Parents::default() })
    }

    /// Identity for the span of a request that the process serves: the same each time it is asked for, so that its calls, which
    /// end before it, can be below it.
    #[must_use]
    pub fn of_served(served: &Served) -> Self {
        Self::of_request(served.id, served.traceparent.as_deref())
    }

    fn of_request(id: ExchangeId, traceparent: Option<&str>) -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let number = |salt: u8| KEYS.hash_one((id, salt)).max(1);
        let parent = traceparent.and_then(parse_traceparent);
        let own = u128::from(number(0)) << 64 | u128::from(number(1));
        Self {
            trace: TraceId(parent.map_or(own, |(trace, _)| trace).to_be_bytes()),
            span: SpanId(number(2).to_be_bytes()),
            parent: parent.map(|(_, span)| SpanId(span.to_be_bytes())),
        }
    }

    /// Identity for the span of something that has been caused.
    #[must_use]
    pub fn of_child(parents: &Parents<'_>) -> Self {
        let Parents { said, traceparent, served } = *parents;
        let span = SpanId(random());
        if let Some(said) = said {
            let (trace, parent) = (TraceId(said.trace_id.to_be_bytes()), SpanId(said.span_id.to_be_bytes()));
            return Self { trace, span, parent: Some(parent) };
        }
        if let Some((trace, parent)) = traceparent.and_then(parse_traceparent) {
            let (trace, parent) = (TraceId(trace.to_be_bytes()), SpanId(parent.to_be_bytes()));
            // A header that is handed on as it came in names the span before the request that handed it on.
            let handed_on = served.filter(|served| served.trace == trace && served.parent == Some(parent));
            return Self { trace, span, parent: Some(handed_on.map_or(parent, |served| served.span)) };
        }
        match served {
            Some(served) => Self { trace: served.trace, span, parent: Some(served.span) },
            None => Self { trace: TraceId(random()), span, parent: None },
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
    fn a_served_request_has_one_identity_and_its_calls_are_below_it() {
        let id = |no| ExchangeId { conn: nexent_observer_core::event::ConnId(5), no };
        let served = |no, traceparent: Option<&str>| Served {
            id: id(no),
            endpoint: None,
            peer: None,
            start: nexent_observer_core::event::MonoNs(1),
            traceparent: traceparent.map(Box::from),
        };
        let one = SpanIds::of_served(&served(1, None));
        assert_eq!(one, SpanIds::of_served(&served(1, None)));
        assert_ne!(one.trace, SpanIds::of_served(&served(2, None)).trace);
        assert_eq!(one.parent, None);
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let traced = SpanIds::of_served(&served(1, Some(header)));
        assert_eq!((traced.trace.to_string(), traced.span), ("4bf92f3577b34da6a3ce929d0e0e4736".into(), one.span));
        assert_eq!(traced.parent.unwrap().to_string(), "00f067aa0ba902b7");
        let child = |served, traceparent| SpanIds::of_child(&Parents { said: None, traceparent, served });
        assert_eq!(child(Some(one), None).parent, Some(one.span));
        let own = "00-4bf92f3577b34da6a3ce929d0e0e4736-00000000000000aa-01";
        assert_eq!(child(Some(traced), Some(own)).parent.unwrap().to_string(), "00000000000000aa");
        assert_eq!(child(Some(traced), Some(header)).parent, Some(traced.span), "handed on as it came in");
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
