//! One request that the process serves, from its head to the end of its answer.

use std::sync::Arc;

use crate::{
    event::{MonoNs, Peer},
    http::{Head, HttpEvent, HttpEventKind, RequestHead, Side},
    limits::NAME_BYTES,
    stats::Stats,
    timing::{ExchangeId, Served},
};

use super::{Chain, content::Prints, route};

/// Methods that are told by their name (RFC 9110 section 9, RFC 5789); `_OTHER` stands for the rest, as OpenTelemetry has it.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
const OTHER_METHOD: &str = "_OTHER";

/// A request that the process served, and that was no LLM call. Of its contents nothing is kept, of its path only the route.
#[derive(Debug, Clone, PartialEq)]
pub struct Inbound {
    /// Its identity, endpoint, begin and `traceparent`, and its peer as far as that was known when it began.
    pub served: Arc<Served>,
    /// The two ends of its connection, where they were seen. Of a TLS connection they are known once the process wrote on it.
    pub peer: Option<Peer>,
    /// Process (tgid in the initial pid namespace).
    pub pid: u32,
    /// Thread that read its head.
    pub tid: Option<u32>,
    /// Method, or `_OTHER`; `None` when it was not seen.
    pub method: Option<&'static str>,
    /// Path with ids folded (`/users/{id}`), without its query; `None` when it was not seen.
    pub route: Option<String>,
    /// `Host` as sent, port included.
    pub host: Option<String>,
    /// HTTP status of the answer.
    pub status: Option<u16>,
    /// Entry of the write that carries the first byte of the answer.
    pub first_byte: Option<MonoNs>,
    /// Entry of the write that carries the last byte of the answer, or when it broke off.
    pub end: MonoNs,
    /// How it ended.
    pub ended: Ended,
}

/// How a served request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was answered to the end.
    Completed,
    /// It broke off: the peer went away, the process gave up, or bytes were lost.
    Broken,
}

/// Follows one served request.
#[derive(Debug)]
pub struct Serving {
    pid: u32,
    served: Arc<Served>,
    tid: Option<u32>,
    method: Option<&'static str>,
    route: Option<String>,
    host: Option<String>,
    status: Option<u16>,
    first_byte: Option<MonoNs>,
    prints: Option<Box<Prints>>,
    followed: bool,
    llm: bool,
}

impl Serving {
    /// A request begins with its head: `reader` read it. `None` when the event is no head of a request.
    pub fn begin(
        id: ExchangeId,
        (pid, reader): (u32, Option<u32>),
        peer: Option<Peer>,
        event: &HttpEvent<'_>,
        chain: &mut Chain,
        stats: &mut Stats,
    ) -> Option<Self> {
        let HttpEventKind::Head { first, head: Head::Request(head) } = event.kind else { return None };
        let method = (!head.method.is_empty())
            .then(|| METHODS.into_iter().find(|known| *known == head.method).unwrap_or(OTHER_METHOD));
        let route = (!head.path.is_empty()).then(|| route::route(head.path));
        let endpoint = method.zip(route.as_deref()).map(|(method, route)| Arc::from(format!("{method} {route}")));
        let traceparent = head.headers.get("traceparent").filter(|text| text.len() <= NAME_BYTES).map(Box::from);
        let served = Arc::new(Served { id, endpoint, peer, start: first.entry, traceparent });
        let body = Body::of(&head);
        let compared = chain.compares_content();
        let followed = chain.begin(pid, Arc::clone(&served), reader, compared && body == Body::Other, stats);
        Some(Self {
            pid,
            served,
            tid: reader,
            method,
            route,
            host: head.host.map(cleaned),
            status: None,
            first_byte: None,
            prints: (compared && followed && body == Body::Json).then(Box::default),
            followed,
            llm: false,
        })
    }

    /// Which request.
    #[must_use]
    pub fn id(&self) -> ExchangeId {
        self.served.id
    }

    /// It turned out to be an LLM call: it is told as one.
    pub fn is_llm(&mut self) {
        self.llm = true;
    }

    /// Takes an event of this request; `writer` is the thread of the latest write. Whether it is over, and how.
    pub fn feed(&mut self, event: &HttpEvent<'_>, writer: Option<u32>, chain: &mut Chain) -> Option<Ended> {
        match (event.side, event.kind) {
            (_, HttpEventKind::Abort(_)) => return Some(Ended::Broken),
            (Side::Response, HttpEventKind::End) => return Some(Ended::Completed),
            (Side::Response, HttpEventKind::Head { first, head }) => {
                self.first_byte = Some(first.entry);
                if let Head::Response(head) = head {
                    self.status = head.status;
                }
                chain.answered(self.pid, self.served.id, writer);
            }
            (Side::Request, HttpEventKind::Body(bytes)) => {
                if let Some(prints) = &mut self.prints {
                    prints.feed(bytes);
                }
            }
            (Side::Request, HttpEventKind::Gap { .. }) => {
                if let Some(prints) = &mut self.prints {
                    prints.gap();
                }
            }
            (Side::Request, HttpEventKind::End) => {
                if let Some(prints) = self.prints.take() {
                    chain.body(self.pid, self.served.id, *prints);
                }
            }
            _ => {}
        }
        None
    }

    /// It is over; `peer` is what is known of its connection now. `None` when it was an LLM call.
    pub fn finish(self, at: MonoNs, ended: Ended, peer: Option<Peer>, chain: &mut Chain) -> Option<Inbound> {
        let Self { pid, served, tid, method, route, host, status, first_byte, prints: _, followed, llm } = self;
        chain.end(pid, served.id, (at, ended), followed);
        let end = at.max(served.start);
        let peer = peer.or(served.peer);
        let inbound = Inbound { served, peer, pid, tid, method, route, host, status, first_byte, end, ended };
        (!llm).then_some(inbound)
    }
}

/// What kind of body a request has, as far as texts go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    None,
    Json,
    /// One in which texts are not looked for; or its query may hold some.
    Other,
}

impl Body {
    fn of(head: &RequestHead<'_>) -> Self {
        /// A shorter query holds no text that would be compared.
        const QUERY_BYTES: usize = 32;
        if head.path.split_once('?').is_some_and(|(_, query)| query.len() >= QUERY_BYTES) {
            return Self::Other;
        }
        let kind = head.headers.get("content-type").unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind.ends_with("/json") || kind.ends_with("+json") {
            return Self::Json;
        }
        let length = head.headers.get("content-length").and_then(|text| text.parse::<u64>().ok());
        let bodiless = ["GET", "HEAD", "OPTIONS", "DELETE", "TRACE"].contains(&head.method);
        match length {
            Some(0) => Self::None,
            None if bodiless && head.headers.get("transfer-encoding").is_none() => Self::None,
            _ => Self::Other,
        }
    }
}

/// A text from the network, short and without control characters.
pub(super) fn cleaned(text: &str) -> String {
    let text = text.rsplit_once('@').map_or(text, |(_, host)| host);
    let text = text.get(..text.floor_char_boundary(NAME_BYTES)).unwrap_or(text);
    text.chars().map(|c| if c.is_control() { '_' } else { c }).collect()
}
