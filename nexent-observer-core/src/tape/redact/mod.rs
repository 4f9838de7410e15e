//! Takes content and secrets out of what a [`Tap`](crate::pipeline::Tap) is shown, so that it may be kept: counts, sizes, times and the
//! cut of every body stay, so that a replay gives the same numbers.
//!
//! What may stay is listed, and everything else goes: header fields by name and by the form of their value ([`head`]), text in bodies
//! where the API itself puts a word that is one of its own ([`words`]), the names of models, reasons and failures in their places, counts
//! and settings, and ids as other ids ([`text`], [`json`]). Bodies that are not read by later stages become filler of the same length.
//!
//! Whether a name may stay is known at its end, which may come with a later read. Until then the events of its connection are held,
//! in order.

mod aws;
mod base64;
mod head;
mod json;
mod secret;
mod text;
mod words;

#[cfg(test)]
mod tests;

pub use secret::Secret;

use std::collections::{HashMap, VecDeque};

use crate::{
    event::{ConnId, Stamp},
    http::{
        ExchangeNo, Head, Headers, HttpEvent, HttpEventKind, Message, MessageKind, RequestHead, ResponseHead, Side,
    },
    limits::{REDACT_BYTES, REDACT_EVENTS},
    pipeline::Tapped,
    tape::entry,
};
use json::Of;
use text::{FILLER, Tail, Text};

/// Takes out content and secrets. Gives out entries of a tape, whole and in the order in which they are written.
#[derive(Debug)]
pub struct Redactor {
    secret: Secret,
    connections: HashMap<ConnId, Connection>,
    /// Bodies whose held bytes were replaced, though more might have been known of them: too much was held.
    pub forced: u64,
}

#[derive(Debug, Default)]
struct Connection {
    queue: VecDeque<Item>,
    /// Bytes in the queue.
    held: usize,
    lanes: HashMap<(ExchangeNo, Side), Lane>,
    /// Exchanges whose answers may repeat themselves.
    cumulative: Vec<ExchangeNo>,
}

/// Something that waits for its turn.
#[derive(Debug)]
enum Item {
    /// An entry.
    Whole(Vec<u8>),
    /// A piece of a body, which comes out of its lane.
    Piece { exchange: ExchangeNo, side: Side, at: Stamp, len: usize },
}

/// A body.
#[derive(Debug)]
struct Lane {
    body: Body,
    /// Redacted and not given out.
    ready: Vec<u8>,
    ended: bool,
}

#[derive(Debug)]
enum Body {
    Text(Box<Text>),
    Tail(Tail),
    Aws(aws::Aws),
    Other,
}

impl Body {
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => text.feed(bytes, out),
            Self::Tail(tail) => tail.feed(bytes, out),
            Self::Aws(aws) => aws.feed(bytes, out),
            Self::Other => out.resize(out.len() + bytes.len(), FILLER),
        }
    }

    fn finish(&mut self, complete: bool, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => text.finish(out),
            Self::Tail(tail) => tail.finish(complete, out),
            Self::Aws(aws) => aws.finish(out),
            Self::Other => {}
        }
    }

    fn gap(&mut self, side: Side, secret: Secret, out: &mut Vec<u8>) {
        self.finish(false, out);
        if side == Side::Request {
            *self = Self::Tail(Tail::new(secret));
        } else if let Self::Text(text) = self {
            text.gap(out);
        }
    }
}

impl Redactor {
    /// One that was shown nothing.
    #[must_use]
    pub fn new(secret: Secret) -> Self {
        Self { secret, connections: HashMap::new(), forced: 0 }
    }

    /// Takes in what a tap was shown; `write` gets the entries that are ready.
    pub fn take(&mut self, conn: ConnId, tapped: &Tapped<'_>, write: &mut dyn FnMut(&[u8])) {
        let Self { secret, connections, forced } = self;
        let connection = connections.entry(conn).or_default();
        match tapped {
            Tapped::Http(event) => connection.event(conn, event, *secret),
            &Tapped::Asked { exchange, digest } => {
                let digest = secret.replace_digest(digest);
                connection.whole(entry::tapped(conn, &Tapped::Asked { exchange, digest }));
            }
            other => {
                if let Tapped::Dismissed { exchange } = other {
                    connection.end(*exchange, None, false);
                }
                if let Tapped::Over = other {
                    connection.force();
                }
                connection.whole(entry::tapped(conn, other));
            }
        }
        connection.drain(conn, write);
        if connection.queue.len() > REDACT_EVENTS || connection.held > REDACT_BYTES {
            *forced += 1;
            connection.force();
            connection.drain(conn, write);
        }
        if let Tapped::Over = tapped {
            connections.remove(&conn);
        }
    }

    /// Gives out what is held; the recording ends.
    pub fn finish(&mut self, write: &mut dyn FnMut(&[u8])) {
        for (conn, connection) in &mut self.connections {
            connection.force();
            connection.drain(*conn, write);
        }
    }
}

impl Connection {
    fn whole(&mut self, entry: Vec<u8>) {
        self.held += entry.len();
        self.queue.push_back(Item::Whole(entry));
    }

    fn event(&mut self, conn: ConnId, event: &HttpEvent<'_>, secret: Secret) {
        let HttpEvent { exchange, side, at, kind } = *event;
        let http =
            |kind: HttpEventKind<'_>| entry::tapped(conn, &Tapped::Http(&HttpEvent { exchange, side, at, kind }));
        match kind {
            HttpEventKind::Head { first, head } => {
                let entry = self.head(exchange, side, &head, secret, |head| http(HttpEventKind::Head { first, head }));
                self.whole(entry);
            }
            HttpEventKind::Body(bytes) => {
                let lane = self.lanes.entry((exchange, side)).or_insert_with(|| Lane::new(Body::unseen(side, secret)));
                lane.body.feed(bytes, &mut lane.ready);
                self.held += bytes.len();
                self.queue.push_back(Item::Piece { exchange, side, at, len: bytes.len() });
            }
            HttpEventKind::Gap { .. } => {
                let lane = self.lanes.entry((exchange, side)).or_insert_with(|| Lane::new(Body::unseen(side, secret)));
                lane.body.gap(side, secret, &mut lane.ready);
                self.whole(http(kind));
            }
            HttpEventKind::Message(message) => {
                let bytes = self::message(side, &message, secret);
                self.whole(http(HttpEventKind::Message(Message { bytes: &bytes, ..message })));
            }
            HttpEventKind::End => {
                self.end(exchange, Some(side), true);
                self.whole(http(kind));
            }
            HttpEventKind::Abort(_) => {
                self.end(exchange, None, false);
                self.whole(http(kind));
            }
        }
    }

    fn head(
        &mut self,
        exchange: ExchangeNo,
        side: Side,
        head: &Head<'_>,
        secret: Secret,
        entry: impl Fn(Head<'_>) -> Vec<u8>,
    ) -> Vec<u8> {
        let (body, entry) = match head {
            Head::Request(head) => {
                let head::Request { method, path, host, fields, cumulative } = head::request(head, secret);
                if cumulative {
                    self.cumulative.push(exchange);
                }
                let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
                let (method, path, host) = (method.as_str(), path.as_str(), host.as_deref());
                let entry = entry(Head::Request(RequestHead { method, path, host, headers: Headers(&fields) }));
                (Body::Text(Box::new(Text::new(Of::Request, secret))), entry)
            }
            Head::Response(head) => {
                let fields = head::response(head, secret);
                let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
                let headers = Headers(&fields);
                let body = match headers.get("content-type") {
                    Some("application/vnd.amazon.eventstream") => Body::Aws(aws::Aws::new(secret)),
                    Some("application/x-other") => Body::Other,
                    _ => {
                        let cumulative = self.cumulative.contains(&exchange);
                        Body::Text(Box::new(Text::new(Of::Response, secret).cumulative(cumulative)))
                    }
                };
                (body, entry(Head::Response(ResponseHead { headers, ..*head })))
            }
            Head::Unseen => (Body::unseen(side, secret), entry(Head::Unseen)),
        };
        self.lanes.insert((exchange, side), Lane::new(body));
        entry
    }

    /// The bodies of an exchange end, or one of them.
    fn end(&mut self, exchange: ExchangeNo, side: Option<Side>, complete: bool) {
        for of in [Side::Request, Side::Response] {
            if side.is_none_or(|side| side == of)
                && let Some(lane) = self.lanes.get_mut(&(exchange, of))
            {
                lane.end(complete);
                if lane.ready.is_empty() {
                    self.lanes.remove(&(exchange, of));
                }
            }
        }
        if side != Some(Side::Request) {
            self.cumulative.retain(|no| *no != exchange);
        }
    }

    /// Gives out what is held as what is known of it.
    fn force(&mut self) {
        for lane in self.lanes.values_mut() {
            lane.body.finish(false, &mut lane.ready);
        }
    }

    fn drain(&mut self, conn: ConnId, write: &mut dyn FnMut(&[u8])) {
        while let Some(item) = self.queue.front() {
            match item {
                Item::Whole(entry) => {
                    write(entry);
                    self.held = self.held.saturating_sub(entry.len());
                }
                &Item::Piece { exchange, side, at, len } => {
                    let Some(lane) = self.lanes.get_mut(&(exchange, side)) else {
                        // A body that was begun anew: what it was is not known any more.
                        let filler = vec![FILLER; len];
                        let event = HttpEvent { exchange, side, at, kind: HttpEventKind::Body(&filler) };
                        write(&entry::tapped(conn, &Tapped::Http(&event)));
                        self.held = self.held.saturating_sub(len);
                        self.queue.pop_front();
                        continue;
                    };
                    let Some(bytes) = lane.ready.get(..len) else { return };
                    let event = HttpEvent { exchange, side, at, kind: HttpEventKind::Body(bytes) };
                    write(&entry::tapped(conn, &Tapped::Http(&event)));
                    lane.ready.drain(..len);
                    self.held = self.held.saturating_sub(len);
                    if lane.ended && lane.ready.is_empty() {
                        self.lanes.remove(&(exchange, side));
                    }
                }
            }
            self.queue.pop_front();
        }
    }
}

impl Lane {
    fn new(body: Body) -> Self {
        Self { body, ready: Vec::new(), ended: false }
    }

    fn end(&mut self, complete: bool) {
        self.body.finish(complete, &mut self.ready);
        self.body = Body::Other;
        self.ended = true;
    }
}

impl Body {
    /// One whose head was not seen.
    fn unseen(side: Side, secret: Secret) -> Self {
        let mut text = Text::new(if side == Side::Request { Of::Request } else { Of::Response }, secret);
        if side == Side::Response {
            text.gap(&mut Vec::new());
        }
        Self::Text(Box::new(text))
    }
}

/// A message of a WebSocket. Only texts are read by later stages.
fn message(side: Side, message: &Message<'_>, secret: Secret) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.bytes.len());
    match message.kind {
        MessageKind::Text => {
            let mut text = Text::new(if side == Side::Request { Of::Request } else { Of::Response }, secret);
            text.feed(message.bytes, &mut out);
            text.finish(&mut out);
        }
        MessageKind::Binary | MessageKind::Close(_) => out.resize(message.bytes.len(), FILLER),
    }
    out
}
