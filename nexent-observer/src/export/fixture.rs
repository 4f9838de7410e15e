//! Fixed exchanges for the tests of the exporters.

use std::sync::Arc;

use nexent_observer_core::{
    event::{Address, ConnId, Found, MonoNs, Peer, Role, Stamp},
    limits::Limits,
    llm::{Call, LlmEvent, LlmEventKind, Payload, RequestFacts, ResponseFacts, Usage},
    stats::Stats,
    timing::{Cause, Exchange, ExchangeId, Options, Outcome, Progress, ReadDelay, Timeline, Timing, TokenSource},
};

use super::{Observed, Service};

const MS: u64 = 1_000_000;
/// Request start of every fixture.
pub(crate) const START: u64 = 1_000_000_000_000;

fn at(ms: u64) -> Option<MonoNs> {
    Some(MonoNs(START + ms * MS))
}

/// The timeline of a stream with output chunks at these times, made by the stage that makes it.
pub(crate) fn timeline(chunks: impl IntoIterator<Item = (MonoNs, Option<u32>)>) -> Timeline {
    let limits = Limits { timeline_bytes: 1 << 20, ..Limits::default() };
    let id = ExchangeId { conn: ConnId(1), no: 0 };
    let mut timing = Timing::new(id, 1, None, &Options::default(), &limits);
    let mut stats = Stats::default();
    let mut total = 0;
    let mut feed = |at: MonoNs, kind| {
        let at = Stamp { entry: at, ret: at };
        assert_eq!(timing.feed(&LlmEvent { at, kind }), Progress::Open);
    };
    let facts = ResponseFacts { stream: true, ..ResponseFacts::default() };
    feed(MonoNs(0), LlmEventKind::Response { first: Stamp::default(), facts });
    for (at, tokens) in chunks {
        feed(at, LlmEventKind::Chunk);
        feed(at, LlmEventKind::Delta { payload: Payload::Text, choice: 0, text: "x" });
        if let Some(tokens) = tokens {
            total += u64::from(tokens);
            feed(at, LlmEventKind::Usage(Usage { output: Some(total), ..Usage::default() }));
        }
    }
    timing.finish(&mut stats).chunks
}

/// A streamed chat answer: 5 output chunks in 4 reads, 10 tokens by usage.
pub(crate) fn completed() -> Exchange {
    let chunk = |ms| (MonoNs(START + ms * MS), None);
    Exchange {
        id: ExchangeId { conn: ConnId(17), no: 3 },
        pid: 4242,
        role: Role::Client,
        peer: Some(Peer {
            local: Address::Inet(([10, 0, 0, 7], 40_000).into()),
            remote: Address::Inet(([10, 0, 0, 9], 8443).into()),
            connect_ns: Some(1_500_000),
            tls_ns: Some(12_000_000),
            socket: Some(Found::InsideWrite),
            retransmits: 0,
        }),
        tid: Some(4243),
        said: None,
        cause: None,
        call: Call {
            provider: Some("openai"),
            operation: "chat",
            method: "POST".into(),
            host: Some("api.example.test:8443".into()),
            path: "/v1/chat/completions".into(),
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
            retry_count: Some(1),
        },
        request: RequestFacts {
            model: Some("gpt-4o".into()),
            stream: Some(true),
            max_tokens: Some(256),
            temperature: Some(0.5),
            top_p: None,
            choices: None,
            truncated: false,
        },
        response: ResponseFacts {
            status: Some(200),
            stream: true,
            provider: None,
            request_id: Some("req-1".into()),
            processing_ms: Some(180.0),
            rate_limit: vec![("x-ratelimit-remaining-requests".into(), "99".into())],
        },
        response_model: Some("gpt-4o-2024-08-06".into()),
        response_id: Some("chatcmpl-1".into()),
        outcome: Outcome::Completed,
        error_type: None,
        finish_reasons: vec!["stop".into()],
        socket: Some(Found::InsideWrite),
        connect_ns: None,
        tls_ns: None,
        request_start: at(0),
        request_written: at(1),
        request_sent: at(1),
        first_byte: at(190),
        streamed: true,
        first_chunk: at(200),
        first_token: at(250),
        last_token: at(350),
        end: at(360),
        retry_of: None,
        retry_count: Some(1),
        chunks: timeline([chunk(250), chunk(270), chunk(270), chunk(300), chunk(350)]),
        stalls: Vec::new(),
        stall_causes: Vec::new(),
        first_token_cause: Some(Cause::LateArrival),
        read_delay: Some(ReadDelay { reads: 1, max_ns: 6_000_000, total_ns: 6_000_000 }),
        retransmits: Some(2),
        stalled_before_first_token: false,
        usage: Usage { input: Some(20), output: Some(10), cached_input: Some(8), reasoning: None },
        usage_source: TokenSource::Usage,
        output_tokens: Some(10),
        counted_tokens: Some(9),
        token_count_ratio: Some(0.9),
        decode_rate: Some(80.0),
        end_to_end_rate: Some(28.571_428_571_428_573),
        bytes_lost: Some(0),
        output_text: None,
    }
}

/// An answer 429 with an error body.
pub(crate) fn failed() -> Exchange {
    let mut exchange = completed();
    exchange.id.no = 4;
    exchange.call.traceparent = None;
    exchange.call.retry_count = None;
    exchange.retry_count = None;
    exchange.response.status = Some(429);
    exchange.response.stream = false;
    exchange.streamed = false;
    exchange.response_model = None;
    exchange.response_id = None;
    exchange.outcome = Outcome::Error;
    exchange.error_type = Some("rate_limit_exceeded".into());
    exchange.finish_reasons = Vec::new();
    exchange.first_chunk = None;
    exchange.first_token = None;
    exchange.last_token = None;
    exchange.end = at(200);
    exchange.chunks = Timeline::default();
    exchange.usage = Usage::default();
    exchange.output_tokens = None;
    exchange.counted_tokens = None;
    exchange.token_count_ratio = None;
    exchange.decode_rate = None;
    exchange.end_to_end_rate = None;
    exchange
}

/// A stream that was joined after its request, with a stall and an unknown loss.
pub(crate) fn joined() -> Exchange {
    let mut exchange = completed();
    exchange.id.no = 5;
    exchange.call.traceparent = None;
    exchange.call.retry_count = None;
    exchange.retry_count = None;
    exchange.call.provider = None;
    exchange.call.operation = "";
    exchange.call.method = String::new();
    exchange.call.host = None;
    exchange.call.path = String::new();
    exchange.request = RequestFacts::default();
    exchange.outcome = Outcome::Incomplete;
    exchange.finish_reasons = Vec::new();
    exchange.request_start = None;
    exchange.request_written = None;
    exchange.request_sent = None;
    exchange.first_token_cause = None;
    exchange.first_byte = None;
    exchange.first_chunk = None;
    exchange.first_token = None;
    exchange.stalls = vec![(MonoNs(START + 300 * MS), MonoNs(START + 3000 * MS))];
    exchange.stall_causes = vec![Some(Cause::LateRead)];
    exchange.usage = Usage::default();
    exchange.usage_source = TokenSource::Chunks;
    exchange.output_tokens = Some(5);
    exchange.counted_tokens = None;
    exchange.token_count_ratio = None;
    exchange.decode_rate = None;
    exchange.end_to_end_rate = None;
    exchange.bytes_lost = None;
    exchange
}

pub(crate) fn service() -> Arc<Service> {
    Arc::new(Service {
        name: "nexent-backend".into(),
        pid: 4242,
        namespace: Some("nexent".into()),
        instance_id: None,
        attributes: vec![("process.executable.name".into(), "python3.11".into())],
    })
}

pub(crate) fn observed(exchange: Exchange) -> Observed {
    Observed { exchange, service: service(), endpoint: None, served: None }
}

/// Compares `text` with a file of `golden/`; with `UPDATE_GOLDEN=1` writes it there instead, to be read before it is
/// committed.
pub(crate) fn golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/export/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{name} differs; UPDATE_GOLDEN=1 rewrites it");
}
