//! Where the time of a call went, as far as it was seen.

use nexent_observer_core::{event::MonoNs, timing::Exchange};
use serde::Serialize;

/// The parts of one call in seconds, in the order in which they pass. They do not overlap; those from `upload` on make up the
/// duration where all of them are known. What was not seen is `None`, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Breakdown {
    /// TCP connect, before the request start.
    pub connect: Option<f64>,
    /// TLS handshake, before the request start.
    pub tls: Option<f64>,
    /// Request start to request sent.
    pub upload: Option<f64>,
    /// Request sent to the first byte of the response head.
    pub first_byte_wait: Option<f64>,
    /// First byte to first token: of a stream only.
    pub first_token_wait: Option<f64>,
    /// First token to last token, without the stalls between them.
    pub decode: Option<f64>,
    /// All stalls after the first token together; `None` also when there was none.
    pub stalls: Option<f64>,
    /// What came after the last token until the end, without stalls: usage, end markers. For an answer without tokens, all
    /// after the first byte.
    pub rest: Option<f64>,
    /// Name of the longest part that was seen. `None` when a part that was not seen may be longer.
    pub largest: Option<&'static str>,
}

impl Breakdown {
    /// Takes a call apart.
    #[must_use]
    pub fn of(exchange: &Exchange) -> Self {
        let Exchange { request_start, request_sent, first_byte, first_token, last_token, end, stalls, .. } = exchange;
        let between = |from: &Option<MonoNs>, to: &Option<MonoNs>| to.as_ref()?.0.checked_sub(from.as_ref()?.0);
        // A stall may reach over the last token into the rest.
        let stalled = |from: &Option<MonoNs>, to: &Option<MonoNs>| {
            let (Some(from), Some(to)) = (from, to) else { return 0 };
            let inside = stalls.iter().map(|stall| stall.1.min(*to).0.saturating_sub(stall.0.max(*from).0));
            inside.fold(0, u64::saturating_add)
        };
        let without_stalls = |from, to| Some(between(from, to)?.saturating_sub(stalled(from, to)));
        let all_stalls = stalls.iter().fold(0u64, |sum, stall| sum.saturating_add(stall.1.since(stall.0)));
        let ns = Self::parts([
            exchange.connect_ns,
            exchange.tls_ns,
            between(request_start, request_sent),
            between(request_sent, first_byte),
            between(first_byte, first_token),
            without_stalls(first_token, last_token),
            (!stalls.is_empty()).then_some(all_stalls),
            if exchange.streamed { without_stalls(last_token, end) } else { between(first_byte, end) },
        ]);
        Self { largest: ns.longest(between(request_start, end)), ..ns }
    }

    fn parts(ns: [Option<u64>; 8]) -> Self {
        let [connect, tls, upload, first_byte_wait, first_token_wait, decode, stalls, rest] =
            ns.map(|ns| ns.map(|ns| ns as f64 / 1e9));
        Self { connect, tls, upload, first_byte_wait, first_token_wait, decode, stalls, rest, largest: None }
    }

    /// Name and seconds of each part, in order.
    #[must_use]
    pub fn named(&self) -> [(&'static str, Option<f64>); 8] {
        let Self { connect, tls, upload, first_byte_wait, first_token_wait, decode, stalls, rest, largest: _ } = *self;
        [
            ("connect", connect),
            ("tls", tls),
            ("upload", upload),
            ("first_byte_wait", first_byte_wait),
            ("first_token_wait", first_token_wait),
            ("decode", decode),
            ("stalls", stalls),
            ("rest", rest),
        ]
    }

    /// The longest part, unless what no part explains of the duration is longer. Without a duration nothing can be said.
    fn longest(&self, duration_ns: Option<u64>) -> Option<&'static str> {
        let duration = duration_ns? as f64 / 1e9;
        let (name, seconds) = self
            .named()
            .into_iter()
            .filter_map(|(name, seconds)| Some((name, seconds?)))
            .max_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let in_request = self.named().into_iter().skip(2).filter_map(|(_, seconds)| seconds).sum::<f64>();
        (seconds > 0.0 && duration - in_request <= seconds).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixture::{self, START};

    const MS: u64 = 1_000_000;

    fn at(ms: u64) -> MonoNs {
        MonoNs(START + ms * MS)
    }

    /// Milliseconds of the parts in order.
    fn ms(exchange: &Exchange) -> [Option<i64>; 8] {
        Breakdown::of(exchange).named().map(|(_, seconds)| seconds.map(|s| (s * 1e3).round() as i64))
    }

    #[test]
    fn the_parts_of_a_stream_that_was_seen_whole_make_up_its_duration() {
        let exchange = fixture::completed();
        let parts = ms(&exchange);
        assert_eq!(parts, [None, None, Some(1), Some(189), Some(60), Some(100), None, Some(10)]);
        assert_eq!(parts.into_iter().flatten().sum::<i64>(), 360);
        assert_eq!(Breakdown::of(&exchange).largest, Some("first_byte_wait"));
    }

    #[test]
    fn connect_and_tls_count_where_they_are_known_and_are_no_part_of_the_duration() {
        let mut exchange = fixture::completed();
        (exchange.connect_ns, exchange.tls_ns) = (Some(20 * MS), Some(400 * MS));
        assert_eq!(ms(&exchange)[..2], [Some(20), Some(400)]);
        assert_eq!(Breakdown::of(&exchange).largest, Some("tls"));
    }

    #[test]
    fn stalls_are_taken_out_of_the_part_that_they_stand_in() {
        let mut exchange = fixture::completed();
        exchange.last_token = Some(at(9_000));
        exchange.end = Some(at(13_000));
        // The second begins with the last token and lasts until the end.
        exchange.stalls = vec![(at(1_000), at(4_000)), (at(9_000), at(13_000))];
        assert_eq!(ms(&exchange)[5..], [Some(8_750 - 3_000), Some(7_000), Some(0)]);
        assert_eq!(ms(&exchange).into_iter().flatten().sum::<i64>(), 13_000);
        assert_eq!(Breakdown::of(&exchange).largest, Some("stalls"));
    }

    #[test]
    fn an_answer_that_is_no_stream_has_no_token_times() {
        let mut exchange = fixture::failed();
        exchange.end = Some(at(1_000));
        assert_eq!(ms(&exchange), [None, None, Some(1), Some(189), None, None, None, Some(810)]);
        assert_eq!(Breakdown::of(&exchange).largest, Some("rest"));
    }

    #[test]
    fn nothing_is_called_largest_while_something_unseen_may_be_longer() {
        let mut exchange = fixture::completed();
        exchange.request_sent = None;
        // 190 of 360 ms are unexplained, the decode took 100.
        assert_eq!(ms(&exchange), [None, None, None, None, Some(60), Some(100), None, Some(10)]);
        assert_eq!(Breakdown::of(&exchange).largest, None);
        exchange.last_token = Some(at(4_000));
        exchange.end = Some(at(4_010));
        assert_eq!(Breakdown::of(&exchange).largest, Some("decode"));
        assert_eq!(Breakdown::of(&fixture::joined()).largest, None);
    }

    #[test]
    fn stamps_that_contradict_each_other_give_no_part() {
        let mut exchange = fixture::completed();
        // The head of the answer came before the request was through.
        exchange.request_sent = Some(at(195));
        assert_eq!(ms(&exchange)[2..4], [Some(195), None]);
        assert_eq!(serde_json::to_value(Breakdown::of(&exchange)).unwrap()["first_byte_wait"], serde_json::Value::Null);
    }
}
