//! An exchange as a CLIENT span by the GenAI conventions, v1.41 or those of 2026: of what is known here they differ in
//! `gen_ai.response.finish_reasons` only.
//!
//! `gen_ai.*`, `server.*`, `http.*`, `error.type` mean what OpenTelemetry says. What it has no name for is under
//! `nexent.*`. Only counts of the provider become `gen_ai.usage.*`. What was not seen has no attribute.

use std::{collections::HashMap, sync::Arc};

use nexent_observer_core::{
    event::{Address, MonoNs, Role},
    limits::FINISH_REASONS,
    llm::{Call, RequestFacts, ResponseFacts, well_known_finish_reason},
    timing::{Cause, Exchange, Outcome},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span, status},
};

use super::{
    Finished, Item,
    config::{Names, OtlpConfig},
    limits,
    resource::{array, attribute, boolean, float, int, resource, schema_url, scope, text},
};
use crate::export::{
    Service,
    breakdown::Breakdown,
    clock::Offset,
    ids::SpanIds,
    view,
    work::{Attribute, Event, Kind, Named, Work},
};

/// Chunks of the timeline that go into one span; the JSON line has all of them.
const CHUNKS: usize = 1024;
/// Stalls that become events of one span.
const STALLS: usize = 64;
/// W3C trace flag: sampled.
const SAMPLED: u32 = 1;

/// Spans of one request, grouped by service: an SDK binds one resource to its provider, an observer of many services
/// needs one per service in the same request.
pub(super) fn request(batch: &[Item], config: &OtlpConfig) -> ExportTraceServiceRequest {
    let schema_url = schema_url(config.names);
    let mut by_service: HashMap<&Arc<Service>, usize> = HashMap::new();
    let mut resource_spans: Vec<ResourceSpans> = Vec::new();
    for item in batch {
        let (service, span) = match item {
            Item::Call(finished) => (&finished.observed.service, span(finished, config)),
            Item::Work(work, offset) => (&work.service, Some(work_span(work, *offset, config))),
        };
        let Some(span) = span else { continue };
        let at = *by_service.entry(service).or_insert_with(|| {
            resource_spans.push(ResourceSpans {
                resource: Some(resource(service, &config.resource)),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope()),
                    spans: Vec::new(),
                    schema_url: schema_url.into(),
                }],
                schema_url: schema_url.into(),
            });
            resource_spans.len() - 1
        });
        if let Some(scope) = resource_spans.get_mut(at).and_then(|r| r.scope_spans.first_mut()) {
            scope.spans.push(span);
        }
    }
    ExportTraceServiceRequest { resource_spans }
}

/// Whether the exchange has any time to make a span of.
pub(super) fn has_time(exchange: &Exchange) -> bool {
    bounds(exchange).is_some()
}

/// First and last known time. The first is the request start unless the exchange was joined after it.
fn bounds(exchange: &Exchange) -> Option<(MonoNs, MonoNs)> {
    let Exchange { request_start, request_sent, first_byte, first_chunk, first_token, last_token, end, .. } = exchange;
    let times = [*request_start, *request_sent, *first_byte, *first_chunk, *first_token, *last_token, *end];
    let first_output = exchange.chunks.iter().next().map(|chunk| chunk.at);
    let known = || times.iter().copied().flatten().chain(first_output);
    let start = (*request_start).or_else(|| known().min())?;
    let end = (*end).or_else(|| known().max())?;
    Some((start, end.max(start)))
}

fn span(finished: &Finished, config: &OtlpConfig) -> Option<Span> {
    let Finished { observed, ids, retry_of, kept, offset, named } = finished;
    let exchange = &observed.exchange;
    let (start, end) = bounds(exchange)?;
    let mut attributes = Vec::with_capacity(48);
    call_attributes(&mut attributes, exchange);
    peer_attributes(&mut attributes, exchange);
    request_attributes(&mut attributes, &exchange.request, view::is_stream(exchange));
    response_attributes(&mut attributes, exchange, config.names);
    time_attributes(&mut attributes, exchange);
    phase_attributes(&mut attributes, exchange);
    let reasons: Vec<_> = kept.reasons().map(|reason| Value::StringValue(reason.into())).collect();
    attributes.extend((!reasons.is_empty()).then(|| array("nexent.kept.reasons", reasons)));
    chunk_attributes(&mut attributes, exchange, start);
    attributes.extend(observed.endpoint.as_deref().map(|endpoint| text("nexent.endpoint", endpoint)));
    attributes.extend(exchange.cause.as_ref().map(|cause| text("nexent.parent.rule", cause.rule.as_str())));
    attributes.extend(exchange.tid.map(|tid| int("thread.id", u64::from(tid))));
    let operation = view::operation(exchange);
    let failed = view::error_type(exchange).is_some();
    let mut span = Span {
        trace_id: ids.trace.0.to_vec(),
        span_id: ids.span.0.to_vec(),
        parent_span_id: ids.parent.map(|parent| parent.0.to_vec()).unwrap_or_default(),
        flags: SAMPLED,
        name: match exchange.request.model.as_deref() {
            Some(model) => format!("{operation} {model}"),
            None => operation.to_owned(),
        },
        kind: match exchange.role {
            Role::Client => span::SpanKind::Client,
            Role::Server => span::SpanKind::Server,
        }
        .into(),
        start_time_unix_nano: offset.unix_ns(start),
        end_time_unix_nano: offset.unix_ns(end),
        attributes,
        events: stall_events(exchange, *offset),
        links: retry_of.iter().map(link).collect(),
        dropped_events_count: exchange.stalls.len().saturating_sub(STALLS) as u32, // stalls of one stream: far below 2^32
        // Unset, not Ok, on success: Ok is the application's word (OpenTelemetry, "Set status").
        status: failed.then(|| Status { message: String::new(), code: status::StatusCode::Error.into() }),
        ..Span::default()
    };
    if let Some(named) = named {
        name_span(&mut span, named, *offset);
    }
    limits::apply(&mut span, &config.span_limits);
    Some(span)
}

/// Gives a span the name, the attributes and the events that a hook chose. What was seen stays as it was seen.
fn name_span(span: &mut Span, named: &Named, offset: Offset) {
    let Named { name, attributes, events, error } = named;
    if !name.is_empty() {
        span.name.clone_from(name);
    }
    for (key, value) in attributes {
        if !span.attributes.iter().any(|known| known.key == *key) {
            span.attributes.push(key_value(key, value));
        }
    }
    if let (Some(error), None) = (error, &span.status) {
        span.attributes.push(text("error.type", error));
        span.status = Some(Status { message: String::new(), code: status::StatusCode::Error.into() });
    }
    span.events.extend(events.iter().map(|event| span_event(event, offset)));
}

fn work_span(work: &Work, offset: Offset, config: &OtlpConfig) -> Span {
    let Work { service: _, ids, name, kind, start, end, attributes, events, failed } = work;
    let kind = match kind {
        Kind::Server => span::SpanKind::Server,
        Kind::Client => span::SpanKind::Client,
        Kind::Internal => span::SpanKind::Internal,
    };
    let mut span = Span {
        trace_id: ids.trace.0.to_vec(),
        span_id: ids.span.0.to_vec(),
        parent_span_id: ids.parent.map(|parent| parent.0.to_vec()).unwrap_or_default(),
        flags: SAMPLED,
        name: name.clone(),
        kind: kind.into(),
        start_time_unix_nano: offset.unix_ns(*start),
        end_time_unix_nano: offset.unix_ns(*end),
        attributes: attributes.iter().map(|(key, value)| key_value(key, value)).collect(),
        events: events.iter().map(|event| span_event(event, offset)).collect(),
        status: failed.then(|| Status { message: String::new(), code: status::StatusCode::Error.into() }),
        ..Span::default()
    };
    limits::apply(&mut span, &config.span_limits);
    span
}

fn span_event(event: &Event, offset: Offset) -> span::Event {
    span::Event {
        time_unix_nano: offset.unix_ns(event.at),
        name: event.name.clone(),
        attributes: event.attributes.iter().map(|(key, value)| key_value(key, value)).collect(),
        dropped_attributes_count: 0,
    }
}

fn key_value(key: &str, value: &Attribute) -> KeyValue {
    attribute(
        key,
        match value {
            Attribute::Text(text) => Value::StringValue(text.clone()),
            Attribute::Int(n) => Value::IntValue(*n),
            Attribute::Float(x) => Value::DoubleValue(*x),
            Attribute::Bool(b) => Value::BoolValue(*b),
        },
    )
}

fn call_attributes(out: &mut Vec<KeyValue>, exchange: &Exchange) {
    let Call { provider: _, operation: _, method, host, path, traceparent: _, retry_count: _ } = &exchange.call;
    out.push(text("gen_ai.operation.name", view::operation(exchange)));
    out.push(text("gen_ai.provider.name", view::provider(exchange).unwrap_or(view::UNKNOWN)));
    if let Some(host) = host {
        let (address, port) = view::host_and_port(host);
        out.push(text("server.address", address));
        out.extend(port.map(|port| int("server.port", u64::from(port))));
    }
    // Of an HTTP/2 connection joined mid-life either may be unknown by itself.
    out.extend((!method.is_empty()).then(|| text("http.request.method", method)));
    out.extend((!path.is_empty()).then(|| text("url.path", path)));
    out.extend(exchange.retry_count.filter(|n| *n > 0).map(|n| int("http.request.resend_count", u64::from(n))));
    out.extend(exchange.retry_of.map(|id| text("nexent.retry_of", &view::id(id))));
    out.extend(view::error_type(exchange).map(|error_type| text("error.type", error_type)));
}

/// Who is at the other end. Where no `Host` said so, of a client's call that is the server, as far as it can be known.
fn peer_attributes(out: &mut Vec<KeyValue>, exchange: &Exchange) {
    let Some(peer) = exchange.peer else { return };
    let Address::Inet(remote) = peer.remote else {
        out.push(text("network.transport", "unix"));
        return;
    };
    let address = remote.ip().to_string();
    if exchange.call.host.is_none() && exchange.role == Role::Client {
        out.push(text("server.address", &address));
        out.push(int("server.port", u64::from(remote.port())));
    }
    out.push(text("network.peer.address", &address));
    out.push(int("network.peer.port", u64::from(remote.port())));
}

fn request_attributes(out: &mut Vec<KeyValue>, request: &RequestFacts, is_stream: bool) {
    let RequestFacts { model, stream: _, max_tokens, temperature, top_p, choices, truncated: _ } = request;
    out.extend(model.as_deref().map(|model| text("gen_ai.request.model", model)));
    // Only when true: unset means not streamed.
    out.extend(is_stream.then(|| boolean("gen_ai.request.stream", true)));
    out.extend(max_tokens.map(|n| int("gen_ai.request.max_tokens", n)));
    out.extend(temperature.map(|t| float("gen_ai.request.temperature", t)));
    out.extend(top_p.map(|p| float("gen_ai.request.top_p", p)));
    out.extend(choices.filter(|n| *n != 1).map(|n| int("gen_ai.request.choice.count", u64::from(n))));
}

fn response_attributes(out: &mut Vec<KeyValue>, exchange: &Exchange, names: Names) {
    let ResponseFacts { status, stream: _, provider: _, request_id, processing_ms, rate_limit } = &exchange.response;
    out.extend(status.map(|status| int("http.response.status_code", u64::from(status))));
    out.extend(request_id.as_deref().map(|id| text("nexent.provider.request_id", id)));
    out.extend(processing_ms.map(|ms| float("nexent.provider.processing_seconds", ms / 1e3)));
    for (name, value) in rate_limit {
        out.push(array(&format!("http.response.header.{name}"), [Value::StringValue(value.clone())]));
    }
    out.extend(exchange.response_model.as_deref().map(|model| text("gen_ai.response.model", model)));
    out.extend(exchange.response_id.as_deref().map(|id| text("gen_ai.response.id", id)));
    let word = |reason: &String| Value::StringValue(well_known_finish_reason(reason).to_owned());
    let mut reasons: Vec<_> = exchange.finish_reasons.iter().map(word).collect();
    if reasons.is_empty() && names.has_v2026() {
        reasons = vec![Value::StringValue("error".into()); unfinished_choices(exchange)];
    }
    out.extend((!reasons.is_empty()).then(|| array("gen_ai.response.finish_reasons", reasons)));
    let usage = exchange.usage;
    out.extend(usage.input.map(|n| int("gen_ai.usage.input_tokens", n)));
    out.extend(usage.output.map(|n| int("gen_ai.usage.output_tokens", n)));
    out.extend(usage.cached_input.map(|n| int("gen_ai.usage.cache_read.input_tokens", n)));
    out.extend(usage.reasoning.map(|n| int("gen_ai.usage.reasoning.output_tokens", n)));
    if let Some(tokens) = exchange.output_tokens {
        out.push(int("nexent.output_tokens", tokens));
        out.push(text("nexent.token.source", exchange.usage_source.as_str()));
    }
    out.extend(exchange.counted_tokens.map(|n| int("nexent.counted_tokens", n)));
    out.push(text("nexent.outcome", exchange.outcome.as_str()));
    // Absent: some were lost, and nobody knows how many.
    out.extend(exchange.bytes_lost.map(|n| int("nexent.bytes_lost", n)));
}

/// Choices of an answer that had begun and was cut off before any of them was finished: the names of 2026 have the finish
/// reason `error` for each. Where some were finished, which ones were not is not known any more.
fn unfinished_choices(exchange: &Exchange) -> usize {
    let begun = exchange.first_token.is_some() || !exchange.chunks.is_empty();
    let cut_off = matches!(exchange.outcome, Outcome::ClientAbort | Outcome::ServerAbort | Outcome::Error);
    let choices = exchange.request.choices.map_or(1, |n| n as usize).min(FINISH_REASONS);
    if begun && cut_off { choices } else { 0 }
}

/// Where the time went.
fn phase_attributes(out: &mut Vec<KeyValue>, exchange: &Exchange) {
    let breakdown = Breakdown::of(exchange);
    for (part, seconds) in breakdown.named() {
        out.extend(seconds.map(|seconds| float(&format!("nexent.phase.{part}"), seconds)));
    }
    out.extend(breakdown.largest.map(|part| text("nexent.phase.largest", part)));
    out.extend(exchange.socket.map(|found| text("nexent.socket.source", found.as_str())));
    out.extend(exchange.retransmits.map(|n| int("nexent.retransmits", u64::from(n))));
    out.extend(exchange.first_token_cause.map(|cause| text("nexent.first_token.cause", cause.as_str())));
    if let Some(delay) = exchange.read_delay {
        out.push(int("nexent.read_delay.reads", u64::from(delay.reads)));
        out.push(float("nexent.read_delay.seconds", delay.total_ns as f64 / 1e9));
        out.extend((delay.reads > 0).then(|| float("nexent.read_delay.max_seconds", delay.max_ns as f64 / 1e9)));
    }
}

fn time_attributes(out: &mut Vec<KeyValue>, exchange: &Exchange) {
    let mut since_start = |key, at| {
        out.extend(view::since_start(exchange, at).map(|seconds| float(key, seconds)));
    };
    since_start("nexent.time_to_request_written", exchange.request_written);
    since_start("nexent.time_to_request_sent", exchange.request_sent);
    since_start("nexent.time_to_first_byte", exchange.first_byte);
    since_start("nexent.time_to_first_token", exchange.first_token);
    since_start("nexent.time_to_last_token", exchange.last_token);
    since_start("gen_ai.response.time_to_first_chunk", exchange.first_chunk);
    out.extend(exchange.decode_rate.map(|rate| float("nexent.decode_tokens_per_second", rate)));
    out.extend(exchange.end_to_end_rate.map(|rate| float("nexent.end_to_end_tokens_per_second", rate)));
    out.extend(exchange.stalled_before_first_token.then(|| boolean("nexent.stalled_before_first_token", true)));
}

/// The timeline as arrays of whole numbers: an event per token would be a hundred times the bytes.
fn chunk_attributes(out: &mut Vec<KeyValue>, exchange: &Exchange, start: MonoNs) {
    let chunks = &exchange.chunks;
    if chunks.is_empty() {
        return;
    }
    let offset_us = |at: MonoNs| Value::IntValue(i64::try_from(at.since(start) / 1000).unwrap_or(i64::MAX));
    out.push(array("nexent.chunk.offsets_us", chunks.iter().take(CHUNKS).map(|chunk| offset_us(chunk.at))));
    // All or nothing: an array with holes reads as zeros in many backends.
    let tokens: Option<Vec<_>> =
        chunks.iter().take(CHUNKS).map(|chunk| chunk.tokens.map(|n| Value::IntValue(n.into()))).collect();
    out.extend(tokens.map(|tokens| array("nexent.chunk.tokens", tokens)));
    out.push(int("nexent.chunk.count", chunks.len() as u64));
    let truncated = chunks.truncated() || chunks.len() > CHUNKS;
    out.extend(truncated.then(|| boolean("nexent.chunk.truncated", true)));
}

/// A link to the try before: the spans of one logical operation hang together by it.
fn link(ids: &SpanIds) -> span::Link {
    span::Link {
        trace_id: ids.trace.0.to_vec(),
        span_id: ids.span.0.to_vec(),
        attributes: vec![text("nexent.link.kind", "retry_of")],
        flags: SAMPLED,
        ..span::Link::default()
    }
}

fn stall_events(exchange: &Exchange, offset: Offset) -> Vec<span::Event> {
    let causes = exchange.stall_causes.iter().copied().chain(std::iter::repeat(None));
    let event = |((from, to), cause): (&(MonoNs, MonoNs), Option<Cause>)| {
        let mut attributes = vec![float("nexent.stall.seconds", to.seconds_since(*from))];
        attributes.extend(cause.map(|cause| text("nexent.stall.cause", cause.as_str())));
        span::Event {
            time_unix_nano: offset.unix_ns(*from),
            name: "nexent.stall".into(),
            attributes,
            dropped_attributes_count: 0,
        }
    };
    exchange.stalls.iter().zip(causes).take(STALLS).map(event).collect()
}

#[cfg(test)]
#[path = "span_tests.rs"]
mod tests;
