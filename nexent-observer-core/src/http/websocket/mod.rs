//! WebSocket (RFC 6455) on an exchange that was upgraded: frames in, whole messages out, with `permessage-deflate`
//! (RFC 7692) undone.

mod deflate;
mod frame;
mod lane;

use self::{deflate::Deflate, lane::Lane};
use super::{Headers, MessageKind, RequestHead, ResponseHead, Side};
use crate::{event::Stamp, stats::Stats};

/// What a [`Lane`] tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Told<'a> {
    /// A message, or the closing frame.
    Message(super::Message<'a>),
    /// Something that came is not known.
    Undecoded,
}

/// Both directions of one WebSocket.
#[derive(Debug)]
pub(super) struct Socket {
    client: Lane,
    server: Lane,
    closing: bool,
    ended: [bool; 2],
}

/// Whether a request asks for a WebSocket over HTTP/2 (RFC 8441 section 4). Over HTTP/1 the response alone tells.
pub(super) fn asks(head: &RequestHead<'_>) -> bool {
    head.method == "CONNECT" && head.headers.get(":protocol") == Some("websocket")
}

/// Whether a response of HTTP/1 makes the connection a WebSocket (RFC 6455 section 4.2.2).
pub(super) fn accepts(head: &ResponseHead<'_>) -> bool {
    let named = |value: &str| value.split(',').any(|name| name.trim().eq_ignore_ascii_case("websocket"));
    head.status == Some(101) && head.headers.get("upgrade").is_some_and(named)
}

impl Socket {
    /// A socket whose handshake was answered with these fields.
    pub(super) fn new(headers: &Headers<'_>) -> Self {
        let (client, server) = Deflate::negotiated(headers).unzip();
        Self { client: Lane::new(true, client), server: Lane::new(false, server), closing: false, ended: [false; 2] }
    }

    /// Takes the next bytes of a direction.
    pub(super) fn feed(
        &mut self,
        side: Side,
        at: Stamp,
        bytes: &[u8],
        stats: &mut Stats,
        sink: &mut dyn FnMut(Told<'_>),
    ) {
        let closing = &mut self.closing;
        let lane = match side {
            Side::Request => &mut self.client,
            Side::Response => &mut self.server,
        };
        lane.feed(at, bytes, stats, &mut |told| {
            if let Told::Message(message) = &told {
                *closing |= matches!(message.kind, MessageKind::Close(_));
            }
            sink(told);
        });
    }

    /// Bytes of a direction are not known: `len` of them, where that is known.
    pub(super) fn gap(&mut self, side: Side, len: Option<u64>) {
        match side {
            Side::Request => self.client.gap(len),
            Side::Response => self.server.gap(len),
        }
    }

    /// A side's stream has ended. Whether both have.
    pub(super) fn end(&mut self, side: Side) -> bool {
        let [client, server] = &mut self.ended;
        match side {
            Side::Request => *client = true,
            Side::Response => *server = true,
        }
        *client && *server
    }

    /// Whether one of the peers said that it is done (RFC 6455 section 5.5.1).
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }
}

#[cfg(test)]
mod tests;
