//! Spans of what is no LLM call: requests that a service serves, calls of tools, work that a hook names.

use std::sync::Arc;

use nexent_observer_core::{
    chain::{Ended, Inbound, ToolCall},
    event::{Address, MonoNs, Peer},
};

use super::{Service, ids::SpanIds, view};

/// A span, ready but for its attributes' form.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// Whose it is.
    pub service: Arc<Service>,
    /// Its identity.
    pub ids: SpanIds,
    /// Its name; few of them.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// When it began.
    pub start: MonoNs,
    /// When it ended.
    pub end: MonoNs,
    /// Attributes, each key once.
    pub attributes: Vec<(String, Attribute)>,
    /// What happened in it.
    pub events: Vec<Event>,
    /// It failed.
    pub failed: bool,
}

/// Kind of a span (OpenTelemetry, "SpanKind").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It serves a request.
    Server,
    /// It makes one.
    Client,
    /// Neither.
    Internal,
}

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    /// Text.
    Text(String),
    /// Whole number.
    Int(i64),
    /// Number.
    Float(f64),
    /// Truth.
    Bool(bool),
}

/// Something that happened in a span.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When.
    pub at: MonoNs,
    /// What.
    pub name: String,
    /// Attributes.
    pub attributes: Vec<(String, Attribute)>,
}

/// What a hook says of a span whose times are known better.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Attributes.
    pub attributes: Vec<(String, Attribute)>,
    /// Events.
    pub events: Vec<Event>,
    /// Type of the error with which it ended.
    pub error: Option<String>,
}

impl Work {
    /// A served request. `route` is what may be shown of its route: few in number. What a hook says of it is `named`.
    #[must_use]
    pub fn of_inbound(
        inbound: &Inbound,
        route: Option<&str>,
        ids: SpanIds,
        service: Arc<Service>,
        named: Option<Named>,
    ) -> Self {
        let method = inbound.method.unwrap_or("_OTHER");
        // What the conventions of HTTP spans ask for: `_OTHER` is no name.
        let shown = if method == "_OTHER" { "HTTP" } else { method };
        let name = route.map_or_else(|| shown.to_owned(), |route| format!("{shown} {route}"));
        let mut attributes = Attributes::default();
        attributes.text("http.request.method", inbound.method);
        attributes.text("http.route", route);
        attributes.int("http.response.status_code", inbound.status.map(i64::from));
        attributes.host(inbound.host.as_deref());
        attributes.peer(inbound.peer);
        attributes.int("thread.id", inbound.tid.map(i64::from));
        attributes.text("nexent.outcome", Some(outcome(inbound.ended)));
        let failed = inbound.status.filter(|status| *status >= 500);
        let first_byte = inbound.first_byte.map(|at| at.seconds_since(inbound.served.start));
        attributes.float("nexent.time_to_first_byte", first_byte);
        let error = failed.map(|status| status.to_string());
        attributes.text("error.type", named.as_ref().and_then(|named| named.error.as_deref()).or(error.as_deref()));
        let failed = attributes.has("error.type");
        let (start, end) = (inbound.served.start, inbound.end);
        let work = Self {
            service,
            ids,
            name,
            kind: Kind::Server,
            start,
            end,
            attributes: attributes.0,
            events: Vec::new(),
            failed,
        };
        match named {
            Some(named) => work.named(named),
            None => work,
        }
    }

    /// A call of the Model Context Protocol (OpenTelemetry, "MCP client").
    #[must_use]
    pub fn of_tool(call: &ToolCall, ids: SpanIds, service: Arc<Service>) -> Self {
        let method = call.method.as_deref();
        let name = match (method, call.tool.as_deref()) {
            (Some(method), Some(tool)) => format!("{method} {tool}"),
            (method, _) => method.unwrap_or("mcp").to_owned(),
        };
        let mut attributes = Attributes::default();
        attributes.text("mcp.method.name", method);
        attributes.text("gen_ai.tool.name", call.tool.as_deref());
        attributes.text("gen_ai.operation.name", (method == Some("tools/call")).then_some("execute_tool"));
        attributes.text("http.request.method", Some("POST"));
        attributes.int("http.response.status_code", call.status.map(i64::from));
        attributes.host(call.host.as_deref());
        attributes.peer(call.peer);
        attributes.int("thread.id", call.tid.map(i64::from));
        attributes.text("nexent.outcome", Some(outcome(call.ended)));
        attributes.float("nexent.time_to_first_byte", call.first_byte.map(|at| at.seconds_since(call.start)));
        attributes.text("nexent.parent.rule", call.cause.as_ref().map(|cause| cause.rule.as_str()));
        let error = call.status.filter(|status| *status >= 400).map(|status| status.to_string());
        attributes.text("error.type", error.as_deref());
        Self {
            service,
            ids,
            name,
            kind: Kind::Client,
            start: call.start,
            end: call.end.max(call.start),
            attributes: attributes.0,
            events: Vec::new(),
            failed: error.is_some(),
        }
    }

    /// A span that only a hook knows of.
    #[must_use]
    pub fn of_hook(
        service: Arc<Service>,
        ids: SpanIds,
        kind: Kind,
        (start, end): (MonoNs, MonoNs),
        tid: u32,
        named: Named,
    ) -> Self {
        let mut attributes = Attributes::default();
        attributes.int("thread.id", Some(i64::from(tid)));
        attributes.text("error.type", named.error.as_deref());
        let failed = named.error.is_some();
        let name = view::UNKNOWN.to_owned();
        let attributes = attributes.0;
        Self { service, ids, name, kind, start, end, attributes, events: Vec::new(), failed }.named(named)
    }

    fn named(mut self, named: Named) -> Self {
        let Named { name, attributes, events, error: _ } = named;
        if !name.is_empty() {
            self.name = name;
        }
        for (key, value) in attributes {
            if !self.attributes.iter().any(|(known, _)| *known == key) {
                self.attributes.push((key, value));
            }
        }
        self.events = events;
        self
    }
}

fn outcome(ended: Ended) -> &'static str {
    match ended {
        Ended::Completed => "completed",
        Ended::Broken => "incomplete",
    }
}

/// Attributes of which unknown ones are left out.
#[derive(Debug, Default)]
struct Attributes(Vec<(String, Attribute)>);

impl Attributes {
    fn text(&mut self, key: &str, value: Option<&str>) {
        self.0.extend(value.map(|value| (key.to_owned(), Attribute::Text(value.to_owned()))));
    }

    fn int(&mut self, key: &str, value: Option<i64>) {
        self.0.extend(value.map(|value| (key.to_owned(), Attribute::Int(value))));
    }

    fn float(&mut self, key: &str, value: Option<f64>) {
        self.0.extend(value.map(|value| (key.to_owned(), Attribute::Float(value))));
    }

    fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(known, _)| known == key)
    }

    fn host(&mut self, host: Option<&str>) {
        let Some((address, port)) = host.map(view::host_and_port) else { return };
        self.text("server.address", Some(address));
        self.int("server.port", port.map(i64::from));
    }

    fn peer(&mut self, peer: Option<Peer>) {
        match peer.map(|peer| peer.remote) {
            Some(Address::Inet(address)) => {
                self.text("network.peer.address", Some(&address.ip().to_string()));
                self.int("network.peer.port", Some(i64::from(address.port())));
            }
            Some(Address::Unix) => self.text("network.transport", Some("unix")),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use nexent_observer_core::{
        event::ConnId,
        timing::{CausedBy, ExchangeId, Rule, Served},
    };

    use super::*;
    use crate::export::{fixture, ids};

    const ID: ExchangeId = ExchangeId { conn: ConnId(3), no: 1 };

    fn inbound() -> Inbound {
        let peer = fixture::completed().peer;
        let endpoint = Some("POST /api/agent/run".into());
        Inbound {
            served: Arc::new(Served { id: ID, endpoint, peer: None, start: MonoNs(1_000_000_000), traceparent: None }),
            peer,
            pid: 7,
            tid: Some(8),
            method: Some("POST"),
            route: Some("/api/agent/run".into()),
            host: Some("shop:8000".into()),
            status: Some(200),
            first_byte: Some(MonoNs(1_500_000_000)),
            end: MonoNs(3_000_000_000),
            ended: Ended::Completed,
        }
    }

    fn get<'a>(work: &'a Work, key: &str) -> Option<&'a Attribute> {
        work.attributes.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    #[test]
    fn a_served_request_is_a_server_span_by_the_conventions_of_http() {
        let inbound = inbound();
        let ids = SpanIds::of_served(&inbound.served);
        let work = Work::of_inbound(&inbound, inbound.route.as_deref(), ids, fixture::service(), None);
        assert_eq!((work.name.as_str(), work.kind, work.failed), ("POST /api/agent/run", Kind::Server, false));
        let text = |text: &str| Some(Attribute::Text(text.into()));
        assert_eq!(get(&work, "http.route"), text("/api/agent/run").as_ref());
        assert_eq!(get(&work, "server.address"), text("shop").as_ref());
        assert_eq!(get(&work, "network.peer.address"), text("10.0.0.9").as_ref());
        assert_eq!(get(&work, "http.response.status_code"), Some(&Attribute::Int(200)));
        assert_eq!(get(&work, "nexent.time_to_first_byte"), Some(&Attribute::Float(0.5)));
        let mut odd = inbound.clone();
        (odd.method, odd.status) = (Some("_OTHER"), Some(503));
        let work = Work::of_inbound(&odd, None, ids, fixture::service(), None);
        assert_eq!((work.name.as_str(), work.failed), ("HTTP", true));
        assert_eq!(get(&work, "error.type"), text("503").as_ref());
        let named = Named {
            name: "GET /items/{item_id}".into(),
            attributes: vec![
                ("user.kind".into(), Attribute::Bool(true)),
                ("http.response.status_code".into(), Attribute::Int(1)),
            ],
            error: Some("ValueError".into()),
            events: Vec::new(),
        };
        let work = Work::of_inbound(&inbound, None, ids, fixture::service(), Some(named));
        assert_eq!((work.name.as_str(), work.failed), ("GET /items/{item_id}", true));
        assert_eq!(get(&work, "user.kind"), Some(&Attribute::Bool(true)));
        assert_eq!(get(&work, "http.response.status_code"), Some(&Attribute::Int(200)), "what was seen is what was");
    }

    #[test]
    fn a_tools_call_is_a_client_span_below_the_request_that_caused_it() {
        let served = inbound().served;
        let call = ToolCall {
            id: ID,
            pid: 7,
            tid: None,
            peer: None,
            host: Some("tools:9".into()),
            method: Some("tools/call".into()),
            tool: Some("search".into()),
            traceparent: None,
            status: Some(500),
            start: MonoNs(5),
            first_byte: None,
            end: MonoNs(9),
            ended: Ended::Broken,
            said: None,
            cause: Some(CausedBy { rule: Rule::Thread, served: Some(Arc::clone(&served)) }),
        };
        let of_served = SpanIds::of_served(&served);
        let ids = SpanIds::of_child(&ids::Parents { said: None, traceparent: None, served: Some(of_served) });
        assert_eq!((ids.trace, ids.parent), (of_served.trace, Some(of_served.span)));
        let work = Work::of_tool(&call, ids, fixture::service());
        assert_eq!((work.name.as_str(), work.kind, work.failed), ("tools/call search", Kind::Client, true));
        assert_eq!(get(&work, "nexent.parent.rule"), Some(&Attribute::Text("thread".into())));
        assert_eq!(get(&work, "gen_ai.operation.name"), Some(&Attribute::Text("execute_tool".into())));
    }
}
