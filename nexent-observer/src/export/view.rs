//! Numbers of an exchange as every exporter needs them. `None` where a time was not seen.

use nexent_observer_core::{
    event::{Address, MonoNs},
    timing::{Cause, Exchange, ExchangeId, Outcome, TokenSource},
};

/// Value of a label or attribute for something that was not seen.
pub(super) const UNKNOWN: &str = "unknown";
/// `error.type` when the call failed and nothing says how (OpenTelemetry's fallback).
pub(super) const OTHER_ERROR: &str = "_OTHER";

/// An exchange's name in lines and spans.
pub(super) fn id(id: ExchangeId) -> String {
    format!("{}-{}", id.conn.0, id.no)
}

/// Whether a failed call of its client is tried here once more.
pub(super) fn is_retry(exchange: &Exchange) -> bool {
    exchange.retry_of.is_some() || exchange.retry_count.is_some_and(|n| n > 0)
}

/// Seconds from the request start to `at`. Stamps that contradict each other make it unknown, not zero.
pub(super) fn since_start(exchange: &Exchange, at: Option<MonoNs>) -> Option<f64> {
    let ns = at?.0.checked_sub(exchange.request_start?.0)?;
    Some(ns as f64 / 1e9)
}

/// Time to first token, in seconds.
pub(super) fn ttft(exchange: &Exchange) -> Option<f64> {
    since_start(exchange, exchange.first_token)
}

/// Whole duration, in seconds.
pub(super) fn duration(exchange: &Exchange) -> Option<f64> {
    since_start(exchange, exchange.end)
}

/// Whether the answer was, or should have been, a stream.
pub(super) fn is_stream(exchange: &Exchange) -> bool {
    exchange.streamed || exchange.request.stream == Some(true)
}

/// Provider as the request tells it, else as the response does.
pub(super) fn provider(exchange: &Exchange) -> Option<&'static str> {
    exchange.call.provider.or(exchange.response.provider)
}

/// Operation; unknown when the request was not seen.
pub(super) fn operation(exchange: &Exchange) -> &'static str {
    Some(exchange.call.operation).filter(|operation| !operation.is_empty()).unwrap_or(UNKNOWN)
}

/// Model asked for, else the one that answered.
pub(super) fn model(exchange: &Exchange) -> Option<&str> {
    exchange.request.model.as_deref().or(exchange.response_model.as_deref())
}

/// `error.type` of a failed call; `None` when it did not fail. Giving up by the caller is no failure.
pub(super) fn error_type(exchange: &Exchange) -> Option<&str> {
    match exchange.outcome {
        Outcome::Error | Outcome::ServerAbort => Some(exchange.error_type.as_deref().unwrap_or(OTHER_ERROR)),
        Outcome::Completed | Outcome::ClientAbort | Outcome::Incomplete => exchange.error_type.as_deref(),
    }
}

/// Whether the whole exchange was seen: only then its times go into histograms.
pub(super) fn is_complete(exchange: &Exchange) -> bool {
    exchange.outcome != Outcome::Incomplete
}

/// Values of the label `cause`.
pub(super) const STALL_CAUSES: [&str; 3] = ["late_arrival", "late_read", UNKNOWN];

/// Number of stalls by cause, in the order of [`STALL_CAUSES`].
pub(super) fn stalls_by_cause(exchange: &Exchange) -> [u64; 3] {
    let of = |cause| exchange.stall_causes.iter().filter(|it| **it == Some(cause)).count() as u64;
    let (arrival, read) = (of(Cause::LateArrival), of(Cause::LateRead));
    [arrival, read, (exchange.stalls.len() as u64).saturating_sub(arrival + read)]
}

/// One token count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TokenCount {
    /// `input`, `output`, `cached_input` or `reasoning`.
    pub(super) kind: &'static str,
    /// Who counted.
    pub(super) source: TokenSource,
    /// How many.
    pub(super) tokens: u64,
}

/// The known token counts. Only the output count may come from another source than the provider.
pub(super) fn token_counts(exchange: &Exchange) -> impl Iterator<Item = TokenCount> {
    let usage = exchange.usage;
    [
        ("input", TokenSource::Usage, usage.input),
        ("output", exchange.usage_source, exchange.output_tokens),
        ("cached_input", TokenSource::Usage, usage.cached_input),
        ("reasoning", TokenSource::Usage, usage.reasoning),
    ]
    .into_iter()
    .filter_map(|(kind, source, tokens)| Some(TokenCount { kind, source, tokens: tokens? }))
}

/// Host without its port, and the port where it says one.
pub(super) fn host_and_port(host: &str) -> (&str, Option<u16>) {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, after)) => (v6, after.strip_prefix(':')),
        // More than one colon and no brackets: an IPv6 address without a port.
        None => match host.split_once(':') {
            Some((name, port)) if !port.contains(':') => (name, Some(port)),
            _ => (host, None),
        },
    };
    (name, port.and_then(|port| port.parse().ok()))
}

/// The other end of the connection: `ADDRESS:PORT`, or `unix`.
pub(super) fn peer(exchange: &Exchange) -> Option<String> {
    Some(match exchange.peer?.remote {
        Address::Inet(address) => address.to_string(),
        Address::Unix => "unix".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixture;

    #[test]
    fn host_splits_into_address_and_port() {
        for (host, want) in [
            ("api.openai.com", ("api.openai.com", None)),
            ("localhost:8443", ("localhost", Some(8443))),
            ("[::1]:8443", ("::1", Some(8443))),
            ("[::1]", ("::1", None)),
            ("::1", ("::1", None)),
            ("h:99999", ("h", None)),
            ("", ("", None)),
        ] {
            assert_eq!(host_and_port(host), want, "{host}");
        }
    }

    #[test]
    fn counts_not_known_are_absent_and_chunks_never_pass_for_usage() {
        let mut exchange = fixture::completed();
        exchange.usage = Default::default();
        exchange.usage_source = TokenSource::Chunks;
        exchange.output_tokens = Some(5);
        let counts: Vec<_> = token_counts(&exchange).collect();
        assert_eq!(counts, [TokenCount { kind: "output", source: TokenSource::Chunks, tokens: 5 }]);
    }

    #[test]
    fn a_failed_call_always_has_an_error_type_and_a_caller_that_gives_up_has_none() {
        let mut exchange = fixture::completed();
        exchange.outcome = Outcome::ServerAbort;
        assert_eq!(error_type(&exchange), Some("_OTHER"));
        exchange.outcome = Outcome::ClientAbort;
        assert_eq!(error_type(&exchange), None);
    }
}
