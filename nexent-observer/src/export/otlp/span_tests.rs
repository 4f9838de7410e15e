//! What a span of a call says.

use super::*;
use crate::export::{
    Observed, fixture,
    ids::{SpanId, SpanIds, TraceId},
    policy::{Kept, Slow},
};
use nexent_observer_core::timing::Timeline;

const IDS: SpanIds = SpanIds { trace: TraceId([1; 16]), span: SpanId([2; 8]), parent: Some(SpanId([3; 8])) };
const OFFSET: Offset = Offset(1_700_000_000_000_000_000);
const MS: u64 = 1_000_000;

fn finished(exchange: Exchange) -> Finished {
    Finished {
        observed: fixture::observed(exchange),
        ids: IDS,
        retry_of: None,
        kept: Kept::default(),
        offset: OFFSET,
        named: None,
    }
}

fn only_span(exchange: Exchange) -> Span {
    span(&finished(exchange), &OtlpConfig::default()).unwrap()
}

fn texts_of(span: &Span, key: &str) -> Vec<String> {
    let Some(Value::ArrayValue(array)) = get(span, key) else { return Vec::new() };
    let text = |v: &Value| if let Value::StringValue(s) = v { s.clone() } else { panic!("{v:?}") };
    array.values.iter().filter_map(|v| v.value.as_ref()).map(text).collect()
}

fn get<'a>(span: &'a Span, key: &str) -> Option<&'a Value> {
    let mut found = span.attributes.iter().filter(|a| a.key == key);
    let value = found.next()?.value.as_ref()?.value.as_ref();
    assert!(found.next().is_none(), "{key} twice");
    value
}

fn str_of(span: &Span, key: &str) -> Option<String> {
    get(span, key).map(|v| match v {
        Value::StringValue(s) => s.clone(),
        other => panic!("{key}: {other:?}"),
    })
}

fn int_of(span: &Span, key: &str) -> Option<i64> {
    get(span, key).map(|v| match v {
        Value::IntValue(n) => *n,
        other => panic!("{key}: {other:?}"),
    })
}

fn float_of(span: &Span, key: &str) -> Option<f64> {
    get(span, key).map(|v| match v {
        Value::DoubleValue(x) => *x,
        other => panic!("{key}: {other:?}"),
    })
}

fn ints_of(span: &Span, key: &str) -> Vec<i64> {
    let Some(Value::ArrayValue(array)) = get(span, key) else { return Vec::new() };
    let int = |v: &Value| if let Value::IntValue(n) = v { *n } else { panic!("{v:?}") };
    array.values.iter().filter_map(|v| v.value.as_ref()).map(int).collect()
}

#[test]
fn a_completed_stream_has_the_genai_attributes_and_no_status() {
    let span = only_span(fixture::completed());
    assert_eq!(span.name, "chat gpt-4o");
    assert_eq!(span.kind(), span::SpanKind::Client);
    assert_eq!(span.status, None);
    assert_eq!((span.trace_id.as_slice(), span.span_id.as_slice()), (&[1; 16][..], &[2; 8][..]));
    assert_eq!(span.parent_span_id, [3; 8]);
    assert_eq!(span.start_time_unix_nano, 1_700_000_000_000_000_000 + fixture::START);
    assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 360 * MS);
    for (key, want) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.model", "gpt-4o"),
        ("gen_ai.response.model", "gpt-4o-2024-08-06"),
        ("gen_ai.response.id", "chatcmpl-1"),
        ("server.address", "api.example.test"),
        ("http.request.method", "POST"),
        ("url.path", "/v1/chat/completions"),
        ("nexent.provider.request_id", "req-1"),
        ("nexent.outcome", "completed"),
        ("nexent.token.source", "usage"),
    ] {
        assert_eq!(str_of(&span, key).as_deref(), Some(want), "{key}");
    }
    for (key, want) in [
        ("server.port", 8443),
        ("http.response.status_code", 200),
        ("http.request.resend_count", 1),
        ("gen_ai.request.max_tokens", 256),
        ("gen_ai.usage.input_tokens", 20),
        ("gen_ai.usage.output_tokens", 10),
        ("gen_ai.usage.cache_read.input_tokens", 8),
        ("nexent.bytes_lost", 0),
        ("nexent.chunk.count", 5),
    ] {
        assert_eq!(int_of(&span, key), Some(want), "{key}");
    }
    for (key, want) in [
        ("gen_ai.request.temperature", 0.5),
        ("gen_ai.response.time_to_first_chunk", 0.2),
        ("nexent.time_to_request_sent", 0.001),
        ("nexent.time_to_first_byte", 0.19),
        ("nexent.time_to_first_token", 0.25),
        ("nexent.time_to_last_token", 0.35),
        ("nexent.decode_tokens_per_second", 80.0),
        ("nexent.provider.processing_seconds", 0.18),
    ] {
        assert_eq!(float_of(&span, key), Some(want), "{key}");
    }
    assert_eq!(get(&span, "gen_ai.request.stream"), Some(&Value::BoolValue(true)));
    assert_eq!(ints_of(&span, "nexent.chunk.offsets_us"), [250_000, 270_000, 270_000, 300_000, 350_000]);
    assert!(matches!(get(&span, "http.response.header.x-ratelimit-remaining-requests"), Some(Value::ArrayValue(_))));
    for absent in ["error.type", "gen_ai.request.top_p", "gen_ai.usage.reasoning.output_tokens", "nexent.chunk.tokens"]
    {
        assert_eq!(get(&span, absent), None, "{absent}");
    }
}

#[test]
fn the_documentation_names_every_attribute_of_our_own() {
    let mut full = fixture::completed();
    full.stalled_before_first_token = true;
    full.chunks = fixture::timeline((0..2000).map(|i| (MonoNs(fixture::START + i), Some(1))));
    let mut finished = finished(full);
    finished.observed.endpoint = Some("POST /agent/run".into());
    let rule = nexent_observer_core::timing::Rule::Only;
    finished.observed.exchange.cause = Some(nexent_observer_core::timing::CausedBy { rule, served: None });
    finished.kept.error = true;
    let exchange = &mut finished.observed.exchange;
    exchange.stalls = vec![(MonoNs(fixture::START), MonoNs(fixture::START + 1))];
    (exchange.connect_ns, exchange.tls_ns) = (Some(1), Some(1));
    let span = span(&finished, &OtlpConfig::default()).unwrap();
    let own: Vec<_> = span.attributes.iter().map(|a| a.key.as_str()).filter(|key| key.starts_with("nexent.")).collect();
    assert!(own.len() >= 28, "{own:?}");
    for key in own.iter().chain(&["nexent.stall", "nexent.stall.seconds", "nexent.stall.cause"]) {
        assert!(crate::telemetry::docs::text().contains(&format!("`{key}`")), "docs/metrics.md lacks {key}");
    }
}

#[test]
fn a_slow_call_says_why_it_is_kept_and_where_its_time_went() {
    let mut exchange = fixture::completed();
    let at = |ms: u64| MonoNs(fixture::START + ms * MS);
    (exchange.last_token, exchange.end) = (Some(at(7_250)), Some(at(7_260)));
    exchange.stalls = vec![(at(1_000), at(5_000))];
    let slow = Slow { duration: true, token_rate: true };
    let finished = Finished { kept: Kept { error: false, stall: true, slow }, ..finished(exchange) };
    let span = span(&finished, &OtlpConfig::default()).unwrap();
    assert_eq!(texts_of(&span, "nexent.kept.reasons"), ["stall", "duration", "token_rate"]);
    assert_eq!(str_of(&span, "nexent.phase.largest").as_deref(), Some("stalls"));
    for (part, seconds) in [
        ("connect", None),
        ("tls", None),
        ("upload", Some(0.001)),
        ("first_byte_wait", Some(0.189)),
        ("first_token_wait", Some(0.06)),
        ("decode", Some(3.0)),
        ("stalls", Some(4.0)),
        ("rest", Some(0.01)),
    ] {
        assert_eq!(float_of(&span, &format!("nexent.phase.{part}")), seconds, "{part}");
    }
    assert_eq!(texts_of(&only_span(fixture::completed()), "nexent.kept.reasons"), [""; 0], "only where there is one");
}

#[test]
fn an_answer_that_was_cut_off_has_the_finish_reason_error_under_the_names_of_2026() {
    let reasons = |names, exchange: &Exchange| {
        let config = OtlpConfig { names, ..OtlpConfig::default() };
        texts_of(&span(&finished(exchange.clone()), &config).unwrap(), "gen_ai.response.finish_reasons")
    };
    let mut exchange = fixture::completed();
    assert_eq!(reasons(Names::V2026, &exchange), ["stop"]);
    exchange.outcome = Outcome::ClientAbort;
    assert_eq!(reasons(Names::Both, &exchange), ["stop"], "said is said");
    exchange.finish_reasons.clear();
    assert_eq!(reasons(Names::V1_41, &exchange), [""; 0]);
    assert_eq!(reasons(Names::V2026, &exchange), ["error"]);
    exchange.request.choices = Some(2);
    assert_eq!(reasons(Names::Both, &exchange), ["error", "error"]);
    exchange.request.choices = Some(u32::MAX);
    assert_eq!(reasons(Names::V2026, &exchange).len(), FINISH_REASONS);
    assert_eq!(reasons(Names::V2026, &fixture::failed()), [""; 0], "nothing had begun");
    assert_eq!(reasons(Names::V2026, &fixture::joined()), [""; 0], "nobody knows");
}

#[test]
fn the_schema_is_that_of_the_names() {
    let url = |names| {
        let config = OtlpConfig { names, ..OtlpConfig::default() };
        request(&[Item::Call(Box::new(finished(fixture::completed())))], &config).resource_spans.remove(0).schema_url
    };
    assert_eq!(url(Names::V1_41), "https://opentelemetry.io/schemas/1.41.0");
    assert_eq!(url(Names::V2026), "");
}

#[test]
fn a_path_that_is_not_known_has_no_attribute_beside_a_method_that_is() {
    let mut exchange = fixture::completed();
    exchange.call.path.clear();
    let span = only_span(exchange);
    assert_eq!(str_of(&span, "http.request.method").as_deref(), Some("POST"));
    assert_eq!(get(&span, "url.path"), None);
}

#[test]
fn a_failed_call_has_status_error_and_no_token_counts() {
    let span = only_span(fixture::failed());
    assert_eq!(span.status.as_ref().unwrap().code(), status::StatusCode::Error);
    assert_eq!(str_of(&span, "error.type").as_deref(), Some("rate_limit_exceeded"));
    assert_eq!(int_of(&span, "http.response.status_code"), Some(429));
    assert!(!span.attributes.iter().any(|a| a.key.starts_with("gen_ai.usage.") || a.key.starts_with("nexent.chunk.")));
}

#[test]
fn a_served_call_is_a_server_span_whose_peer_is_no_server() {
    let mut exchange = fixture::completed();
    exchange.role = Role::Server;
    exchange.call.host = None;
    let span = only_span(exchange);
    assert_eq!(span.kind, i32::from(span::SpanKind::Server));
    assert_eq!(get(&span, "server.address"), None);
    assert_eq!(str_of(&span, "network.peer.address").as_deref(), Some("10.0.0.9"));
}

#[test]
fn a_joined_stream_begins_where_it_was_joined_and_says_nothing_about_what_came_before() {
    let span = only_span(fixture::joined());
    assert_eq!(span.name, view::UNKNOWN, "never empty");
    assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 110 * MS);
    assert_eq!(str_of(&span, "nexent.outcome").as_deref(), Some("incomplete"));
    assert_eq!(str_of(&span, "nexent.token.source").as_deref(), Some("chunks"));
    for absent in [
        "gen_ai.response.time_to_first_chunk",
        "nexent.time_to_first_token",
        "nexent.time_to_last_token",
        "nexent.bytes_lost",
        "gen_ai.usage.output_tokens",
        "http.request.method",
        "url.path",
    ] {
        assert_eq!(get(&span, absent), None, "{absent}");
    }
    // Its Host went by unseen, but the other end of its connection is known.
    assert_eq!(str_of(&span, "server.address").as_deref(), Some("10.0.0.9"));
    assert_eq!(str_of(&span, "network.peer.address").as_deref(), Some("10.0.0.9"));
    assert_eq!(ints_of(&span, "nexent.chunk.offsets_us"), [0, 20_000, 20_000, 50_000, 100_000]);
    assert_eq!(span.status, None);
    let [stall] = span.events.as_slice() else { panic!("{:?}", span.events) };
    assert_eq!(stall.name, "nexent.stall");
    assert_eq!(stall.time_unix_nano, OFFSET.unix_ns(MonoNs(fixture::START + 300 * MS)));
    assert_eq!(stall.attributes, [float("nexent.stall.seconds", 2.7), text("nexent.stall.cause", "late_read")]);
}

#[test]
fn a_caller_that_gave_up_is_no_error() {
    let mut exchange = fixture::completed();
    exchange.outcome = Outcome::ClientAbort;
    let span = only_span(exchange);
    assert_eq!(span.status, None);
    assert_eq!(str_of(&span, "nexent.outcome").as_deref(), Some("client_abort"));
}

#[test]
fn long_timelines_and_many_stalls_are_cut_and_say_so() {
    let mut exchange = fixture::completed();
    let at = |i: u64| MonoNs(fixture::START + i * MS);
    exchange.chunks = fixture::timeline((0..5000).map(|i| (at(i), Some(2))));
    exchange.stalls = (0..100).map(|i| (at(i), at(i + 1))).collect();
    let span = only_span(exchange);
    assert_eq!(ints_of(&span, "nexent.chunk.offsets_us").len(), CHUNKS);
    assert_eq!(ints_of(&span, "nexent.chunk.tokens"), vec![2; CHUNKS]);
    assert_eq!(int_of(&span, "nexent.chunk.count"), Some(5000));
    assert_eq!(get(&span, "nexent.chunk.truncated"), Some(&Value::BoolValue(true)));
    assert_eq!((span.events.len(), span.dropped_events_count), (STALLS, 36));
}

#[test]
fn a_retry_links_to_the_span_before_and_names_the_call() {
    let before = SpanIds { trace: TraceId([4; 16]), span: SpanId([5; 8]), parent: None };
    let exchange = Exchange { retry_of: Some(fixture::failed().id), retry_count: Some(2), ..fixture::completed() };
    let span = span(&Finished { retry_of: Some(before), ..finished(exchange) }, &OtlpConfig::default()).unwrap();
    let [link] = span.links.as_slice() else { panic!("{:?}", span.links) };
    assert_eq!((link.trace_id.as_slice(), link.span_id.as_slice()), (&[4; 16][..], &[5; 8][..]));
    assert_eq!(str_of(&span, "nexent.retry_of").as_deref(), Some("17-4"));
    assert_eq!(int_of(&span, "http.request.resend_count"), Some(2));
    assert_eq!(int_of(&span, "nexent.counted_tokens"), Some(9));
}

#[test]
fn one_resource_per_service_each_with_its_own_spans() {
    let mut other = fixture::observed(fixture::failed());
    other.service = Arc::new(Service { name: "other".into(), pid: 7, ..Service::default() });
    let mut timeless = fixture::completed();
    timeless.request_start = None;
    for time in
        [&mut timeless.request_written, &mut timeless.request_sent, &mut timeless.first_byte, &mut timeless.first_chunk]
    {
        *time = None;
    }
    (timeless.first_token, timeless.last_token, timeless.end) = (None, None, None);
    timeless.chunks = Timeline::default();
    assert!(!has_time(&timeless));
    let finished_of = |observed: Observed| Finished { observed, retry_of: None, ..finished(fixture::completed()) };
    let batch = [finished(fixture::completed()), finished_of(other), finished(fixture::joined()), finished(timeless)]
        .map(|finished| Item::Call(Box::new(finished)));
    let shared = [("host.name".to_owned(), "h".to_owned()), ("process.executable.name".to_owned(), "x".to_owned())];
    let config = OtlpConfig { resource: shared.into(), ..OtlpConfig::default() };
    let request = request(&batch, &config);
    let spans: Vec<_> = request.resource_spans.iter().map(|r| r.scope_spans[0].spans.len()).collect();
    assert_eq!(spans, [2, 1]);
    let resource = request.resource_spans[0].resource.as_ref().unwrap();
    let want = [
        text("service.name", "nexent-backend"),
        text("service.namespace", "nexent"),
        int("process.pid", 4242),
        text("telemetry.distro.name", "nexent-observer"),
        text("telemetry.distro.version", env!("CARGO_PKG_VERSION")),
        text("process.executable.name", "python3.11"),
        text("host.name", "h"),
    ];
    assert_eq!(resource.attributes, want);
}

#[test]
fn a_step_of_the_wall_clock_moves_a_span_as_a_whole_and_changes_no_duration() {
    const STEP: u64 = 3_600_000_000_000;
    let of = |offset| {
        let finished = Finished { offset, ..finished(fixture::joined()) };
        span(&finished, &OtlpConfig::default()).unwrap()
    };
    let (before, after) = (of(OFFSET), of(Offset(OFFSET.0 + STEP as i64)));
    assert!(!before.events.is_empty());
    let mut moved = before.clone();
    moved.start_time_unix_nano += STEP;
    moved.end_time_unix_nano += STEP;
    moved.events.iter_mut().for_each(|event| event.time_unix_nano += STEP);
    assert_eq!(moved, after, "nothing else depends on the wall clock");
}
