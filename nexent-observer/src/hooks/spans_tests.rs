//! What becomes of spans of hooks.

use nexent_observer_core::{
    chain::Ended,
    event::{ConnId, Direction, Peer, Record, RecordFlags, RecordKind, Role, Stamp},
    limits::Limits,
    timing::{ExchangeId, Options},
};

use super::*;
use crate::{
    export::{clock::Offset, fixture, policy::Kept},
    hooks::Hooks,
};

const PID: u32 = 7;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PEER: &str = "10.0.0.9:8443";

struct Play {
    hooks: Hooks,
    pipeline: Pipeline,
    now: u64,
}

impl Play {
    fn new() -> Self {
        let pipeline = Pipeline::new(Limits::default(), Options::default());
        Self { hooks: Hooks::default(), pipeline, now: 1_000 }
    }

    fn say(&mut self, text: &str) {
        self.now += 1_000;
        let announcement = Announcement { at: MonoNs(self.now), pid: PID, tid: 8, text: text.as_bytes() };
        assert_eq!(self.hooks.take(&announcement, &self.pipeline), None);
        assert_eq!(self.hooks.not_understood, 0, "{text}");
    }

    fn begin(&mut self, span: u64, parent: Option<u64>, rest: &str) {
        let parent = parent.map_or_else(String::new, |parent| format!(r#","p":"{parent:016x}""#));
        self.say(&format!(r#"{{"v":1,"k":"begin","s":"{span:016x}","t":"{TRACE}"{parent},{rest}}}"#));
    }

    fn end(&mut self, span: u64) {
        self.say(&format!(r#"{{"v":1,"k":"end","s":"{span:016x}"}}"#));
    }

    /// Thread 8 reads a request from [`PEER`].
    fn asked(&mut self) -> Arc<Served> {
        self.now += 1_000;
        let at = Stamp { entry: MonoNs(self.now), ret: MonoNs(self.now) };
        let mut record = |kind| self.pipeline.handle_event(&Record { conn: ConnId(1), pid: PID, tid: 8, at, kind });
        let remote = Address::Inet(PEER.parse().unwrap());
        record(RecordKind::Peer(Peer {
            local: remote,
            remote,
            connect_ns: None,
            tls_ns: None,
            socket: None,
            retransmits: 0,
        }));
        let payload = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n".as_slice();
        let flags = RecordFlags { from_start: true, ..RecordFlags::default() };
        let (dir, len) = (Direction::Read, payload.len() as u64);
        record(RecordKind::Data { dir, offset: 0, turn: 0, payload, len, flags });
        self.pipeline.serving(PID, 8).unwrap().1
    }

    fn answered(&mut self, served: &Arc<Served>) {
        self.now += 1_000;
        let inbound = Inbound {
            served: Arc::clone(served),
            peer: served.peer,
            pid: PID,
            tid: Some(8),
            method: Some("GET"),
            route: Some("/a".into()),
            host: None,
            status: Some(200),
            first_byte: None,
            end: MonoNs(self.now),
            ended: Ended::Completed,
        };
        self.hooks.spans.inbound(Box::new(inbound));
    }

    /// A call that was made in `span` is over.
    fn call(&mut self, span: u64) -> SpanIds {
        let mut exchange = fixture::completed();
        exchange.pid = PID;
        exchange.role = Role::Client;
        exchange.call.traceparent = None;
        let said = Said { trace_id: u128::from_str_radix(TRACE, 16).unwrap(), span_id: span, endpoint: None };
        exchange.said = Some(self.hooks.spans.said(PID, Arc::new(said)));
        let observed = fixture::observed(exchange);
        let ids = SpanIds::of_exchange(&observed.exchange, None);
        let finished =
            Finished { observed, ids, retry_of: None, kept: Kept::default(), offset: Offset(0), named: None };
        self.hooks.spans.call(Box::new(finished));
        ids
    }

    fn done(&mut self) -> Vec<Done> {
        (0..=SETTLING_DRAINS).for_each(|_| self.hooks.spans.settle());
        std::iter::from_fn(|| self.hooks.spans.poll()).collect()
    }
}

fn id(span: u64) -> SpanId {
    SpanId(span.to_be_bytes())
}

#[test]
fn an_endpoint_is_a_span_with_what_was_said_of_it() {
    let mut p = Play::new();
    p.begin(1, Some(9), r#""n":"svc.run","o":"endpoint","a":{"user":"u","n":1,"list":[1]}"#);
    let start = p.now;
    p.say(r#"{"v":1,"k":"set","s":"0000000000000001","a":{"n":2,"x":1.5,"b":true}}"#);
    p.say(r#"{"v":1,"k":"event","s":"0000000000000001","n":"done","a":{"k":"v"}}"#);
    p.say(r#"{"v":1,"k":"end","s":"0000000000000001","e":"ValueError"}"#);
    let done = p.done();
    let [Done::Span(span)] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((span.start.0, span.end.0, span.server), (start, p.now, false));
    assert_eq!((span.ids.span, span.ids.parent, span.ids.trace.to_string()), (id(1), Some(id(9)), TRACE.to_owned()));
    let text = |text: &str| Attribute::Text(text.into());
    let attributes: Vec<_> =
        [("user", text("u")), ("n", Attribute::Int(2)), ("x", Attribute::Float(1.5)), ("b", Attribute::Bool(true))]
            .map(|(key, value)| (key.to_owned(), value))
            .into();
    let mut said = span.named.attributes.clone();
    said.sort_by_key(|(key, _)| attributes.iter().position(|(known, _)| known == key));
    assert_eq!(
        (span.named.name.as_str(), said, span.named.error.as_deref()),
        ("svc.run", attributes, Some("ValueError"))
    );
    assert_eq!((span.named.events[0].name.as_str(), span.named.events.len()), ("done", 1));
}

#[test]
fn a_call_and_the_hook_that_names_it_are_one_span_whichever_ends_first() {
    for call_first in [true, false] {
        let mut p = Play::new();
        p.begin(2, Some(1), r#""n":"chat_completion","o":"llm","m":"gpt-4""#);
        let ids = if call_first { Some(p.call(2)) } else { None };
        assert!(p.done().is_empty());
        p.end(2);
        let ids = ids.unwrap_or_else(|| {
            assert!(p.done().is_empty());
            p.call(2)
        });
        let done = p.done();
        let [Done::Call(call)] = done.as_slice() else { panic!("{done:?}") };
        assert_eq!((call.ids.span, call.ids.parent), (ids.span, Some(id(1))));
        let named = call.named.as_ref().unwrap();
        assert_eq!(named.name, "chat_completion");
        assert_eq!(named.attributes, [("gen_ai.request.model".to_owned(), Attribute::Text("gpt-4".into()))]);
    }
}

#[test]
fn several_calls_in_one_named_piece_of_work_are_below_it() {
    let mut p = Play::new();
    p.begin(2, Some(1), r#""n":"with retries","o":"llm""#);
    p.call(2);
    p.call(2);
    p.end(2);
    let done = p.done();
    let [Done::Span(span), Done::Call(one), Done::Call(two)] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((span.ids.span, span.ids.parent), (id(2), Some(id(1))));
    assert_eq!((one.ids.parent, two.ids.parent), (Some(id(2)), Some(id(2))));
    assert!(one.named.is_none());
    // One that is told after the end of the span, because its answer came through the other ring.
    p.begin(4, Some(1), r#""n":"with retries","o":"llm""#);
    p.call(4);
    p.end(4);
    p.hooks.spans.settle();
    p.call(4);
    assert!(matches!(p.done().as_slice(), [Done::Span(_), Done::Call(_), Done::Call(_)]));
    // One that is told even later goes below what is there.
    p.begin(5, Some(1), r#""n":"detached","o":"llm""#);
    p.call(5);
    p.end(5);
    p.done();
    p.call(5);
    let done = p.done();
    let [Done::Call(late)] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!(late.ids.parent, Some(id(1)));
    // Calls of an endpoint do not wait for it.
    p.begin(3, None, r#""n":"e","o":"endpoint""#);
    p.call(3);
    assert!(matches!(p.done().as_slice(), [Done::Call(_)]));
}

#[test]
fn a_request_and_the_hook_that_names_it_are_one_span() {
    let mut p = Play::new();
    let served = p.asked();
    p.begin(5, None, &format!(r#""n":"GET request","o":"server","peer":"{PEER}""#));
    let ids = p.hooks.spans.served(PID, &served);
    assert_eq!((ids.span, ids.trace.to_string()), (id(5), TRACE.to_owned()), "what it calls is below the hook's span");
    assert_eq!(p.call(5).parent, Some(id(5)));
    p.done();
    p.answered(&served);
    assert!(p.done().is_empty());
    p.say(r#"{"v":1,"k":"set","s":"0000000000000005","n":"GET /items/{item}"}"#);
    assert_eq!(p.hooks.spans.served_name(PID, &served).as_deref(), Some("GET /items/{item}"));
    p.end(5);
    // The next request of the connection comes before all is told of this one.
    let next =
        Arc::new(Served { id: ExchangeId { no: 1, ..served.id }, start: MonoNs(p.now), ..Served::clone(&served) });
    let other = TRACE.replace('4', "5");
    p.say(&format!(
        r#"{{"v":1,"k":"begin","s":"0000000000000006","t":"{other}","n":"next","o":"server","peer":"{PEER}"}}"#
    ));
    assert_eq!(p.hooks.spans.served(PID, &served), ids);
    assert_eq!(p.hooks.spans.served(PID, &next).span, id(6));
    let done = p.done();
    let [Done::Inbound(inbound, merged, Some(named))] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((*merged, inbound.served.id, named.name.as_str()), (ids, served.id, "GET /items/{item}"));
    p.answered(&next);
    p.end(6);
    let done = p.done();
    let [Done::Inbound(_, merged, Some(_))] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((merged.span, merged.trace.to_string()), (id(6), other));
    assert!(p.hooks.spans.by_peer.is_empty());
}

#[test]
fn a_span_without_a_parent_is_below_the_request_that_its_thread_serves_and_takes_its_trace_along() {
    for late in [true, false] {
        let mut p = Play::new();
        let begin = r#""n":"svc.run","o":"endpoint""#;
        let served = if late {
            // The request was read before, but is told after what its hook says.
            let start = p.now;
            p.now += 10_000;
            p.begin(5, None, begin);
            let now = std::mem::replace(&mut p.now, start);
            let served = p.asked();
            p.now = now;
            served
        } else {
            let served = p.asked();
            p.begin(5, None, begin);
            served
        };
        let Play { hooks, pipeline, .. } = &mut p;
        hooks.spans.drained(pipeline);
        let root = SpanIds::of_served(&served);
        assert_eq!(p.call(5).trace, root.trace);
        p.done();
        p.begin(6, Some(5), r#""n":"inner""#);
        p.end(6);
        p.end(5);
        let spans = p.done();
        let [Done::Span(inner), Done::Span(outer)] = spans.as_slice() else { panic!("{spans:?}") };
        p.answered(&served);
        let done = p.done();
        let [Done::Inbound(_, of, None)] = done.as_slice() else { panic!("{done:?}") };
        assert_eq!((inner.ids.trace, inner.ids.parent), (root.trace, Some(id(5))));
        assert_eq!((outer.ids.trace, outer.ids.parent), (root.trace, Some(root.span)));
        assert_eq!(*of, root);
    }
}

#[test]
fn what_never_finds_its_other_half_or_never_ends_is_exported_all_the_same() {
    let mut p = Play::new();
    p.begin(1, None, r#""n":"cached","o":"llm""#);
    p.end(1);
    p.begin(2, None, &format!(r#""n":"r","o":"server","peer":"{PEER}""#));
    p.end(2);
    p.begin(3, None, r#""n":"endless","o":"endpoint""#);
    p.hooks.spans.keep_house(MonoNs(p.now));
    assert!(p.done().is_empty());
    p.hooks.spans.keep_house(MonoNs(p.now + PATIENCE_NS + 5_000));
    assert_eq!(p.done().len(), 2);
    p.hooks.spans.process_exit(PID, MonoNs(p.now + 7));
    let done = p.done();
    let [Done::Span(span)] = done.as_slice() else { panic!("{done:?}") };
    assert_eq!((span.named.name.as_str(), span.end.0), ("endless", p.now + 7));
    p.begin(4, None, r#""n":"cut off","o":"llm""#);
    p.call(4);
    p.hooks.spans.stop(MonoNs(p.now + 9));
    assert!(matches!(p.done().as_slice(), [Done::Call(_)]));
    assert!(p.hooks.spans.open.is_empty() && p.hooks.spans.by_peer.is_empty());
}

#[test]
fn spans_attributes_events_and_traces_are_bounded() {
    let mut p = Play::new();
    for span in 1..=OPEN as u64 + 10 {
        p.begin(span, Some(u64::MAX), r#""n":"x""#);
    }
    assert_eq!((p.hooks.spans.open.len(), p.done().len()), (OPEN, 10));
    let last = OPEN + 10;
    for n in 0..2 * OF_ONE_SPAN {
        p.say(&format!(r#"{{"v":1,"k":"set","s":"{last:016x}","a":{{"k{n}":1}}}}"#));
        p.say(&format!(r#"{{"v":1,"k":"event","s":"{last:016x}","n":"e"}}"#));
    }
    let open = &p.hooks.spans.open[&(PID, last as u64)];
    assert_eq!((open.named.attributes.len(), open.named.events.len()), (OF_ONE_SPAN, OF_ONE_SPAN));
    let served = Served {
        id: ExchangeId { conn: ConnId(1), no: 0 },
        endpoint: None,
        peer: None,
        start: MonoNs(0),
        traceparent: None,
    };
    for trace in 0..TRACES as u128 + 10 {
        p.hooks.spans.remember(PID, trace, SpanIds::of_served(&served));
    }
    for span in (1 << 32)..(1 << 32) + TRACES as u64 + 10 {
        p.begin(span, Some(u64::MAX), r#""n":"x","o":"llm""#);
        p.call(span);
        p.end(span);
        p.done();
    }
    assert_eq!((p.hooks.spans.merged.len(), p.hooks.spans.merged_order.len()), (TRACES, TRACES));
    assert_eq!((p.hooks.spans.traces.len(), p.hooks.spans.traces_order.len()), (TRACES, TRACES));
}

#[test]
fn spans_that_nobody_ends_are_bounded_in_bytes_and_setting_an_attribute_anew_takes_nothing() {
    let mut p = Play::new();
    p.begin(1, Some(u64::MAX), r#""n":"first""#);
    for n in 0..1000 {
        p.say(&format!(r#"{{"v":1,"k":"set","s":"{:016x}","a":{{"progress":{n},"text":"{n}"}}}}"#, 1));
    }
    assert!(p.hooks.spans.bytes < 1024, "{}", p.hooks.spans.bytes);
    let text = "x".repeat(600);
    let mut spans = 1;
    while p.hooks.spans.open.len() == spans && spans < OPEN {
        spans += 1;
        p.begin(spans as u64, Some(u64::MAX), r#""n":"endless""#);
        for _ in 0..OF_ONE_SPAN {
            p.say(&format!(r#"{{"v":1,"k":"event","s":"{spans:016x}","n":"e","a":{{"t":"{text}"}}}}"#));
        }
    }
    assert!(spans < OPEN / 4 && p.hooks.spans.bytes <= OPEN_BYTES, "{spans} spans, {}", p.hooks.spans.bytes);
    let done = p.done();
    // The first one is small.
    let [Done::Span(oldest), Done::Span(next)] = done.as_slice() else { panic!("{} are done", done.len()) };
    assert_eq!((oldest.named.name.as_str(), next.named.events.len()), ("first", OF_ONE_SPAN));
    p.hooks.spans.stop(MonoNs(p.now + 9));
    assert_eq!((p.hooks.spans.bytes, p.hooks.spans.open.len()), (0, 0));
}

#[test]
fn peers_are_read_as_frameworks_write_them() {
    for (text, want) in [
        ("10.0.0.9:8443", Some("10.0.0.9:8443")),
        ("::1:8443", Some("[::1]:8443")),
        ("[::1]:8443", Some("[::1]:8443")),
        ("::ffff:10.0.0.9:8443", Some("10.0.0.9:8443")),
        ("localhost:1", None),
        ("10.0.0.9:99999", None),
        ("", None),
    ] {
        assert_eq!(peer_of(text), want.map(|text| text.parse().unwrap()), "{text}");
    }
}
