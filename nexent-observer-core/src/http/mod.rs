//! Stage 4: byte streams of a connection in, HTTP messages out, whatever the version.

mod coding;
mod connection;
mod content;
mod detect;
mod http1;
mod http2;
mod websocket;

pub use connection::{HttpConnection, Protocol, StartSeen};

use crate::{
    conn::{CloseCause, GapCause},
    event::Stamp,
};

/// Number of an exchange (request and its response) on its connection, from 0, in the order of request heads (HTTP/1)
/// or as they appear (HTTP/2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeNo(pub u32);

/// Which message of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The request.
    Request,
    /// The response.
    Response,
}

/// Output of this stage. Of each side the order is: `Head`, then `Body` and `Gap` in any order, then `End`. An `Abort` ends
/// both sides and is the last event of its exchange (its `side` says nothing).
///
/// An exchange is over after both `End`s (in any order: an error may be answered before the request is complete) or an
/// `Abort`. An exchange joined after its request has no request events and is over after its response's `End`. Where the
/// end of a request body could not be seen (after a `Gap`), the request's `End` comes with its response's and bears the
/// stamp of the last write that was seen.
///
/// A WebSocket is one exchange. Behind the head of its response come `Message` and `Gap` of both sides, also where the
/// request's `End` was given out (of HTTP/1 it is that of the handshake). Its response's `End` says that the peers closed it
/// as RFC 6455 section 7.1 asks; else it is aborted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HttpEvent<'a> {
    /// Exchange on this connection.
    pub exchange: ExchangeNo,
    /// Message.
    pub side: Side,
    /// Stamp of the call that completed what the event says.
    pub at: Stamp,
    /// Content.
    pub kind: HttpEventKind<'a>,
}

/// Content of an [`HttpEvent`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HttpEventKind<'a> {
    /// A message head was completed (1xx heads are not reported). `first` is the stamp of its first byte.
    Head {
        /// Stamp of the call that carried the first byte of the head.
        first: Stamp,
        /// The head.
        head: Head<'a>,
    },
    /// Decoded body bytes (transfer coding and content coding removed). At least one byte.
    Body(&'a [u8]),
    /// A WebSocket message is complete; `at` is the stamp of its last byte.
    Message(Message<'a>),
    /// Body bytes that are not known; `len` in bytes on the wire where known.
    Gap {
        /// How many bytes of the wire, where known.
        len: Option<u64>,
        /// Why.
        cause: GapCause,
    },
    /// The message is complete.
    End,
    /// The exchange will not be completed.
    Abort(AbortCause),
}

/// A WebSocket message, whole and decoded. The side of its event says who sent it: `Request` is the client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Message<'a> {
    /// What it is.
    pub kind: MessageKind,
    /// Stamp of the call with its first byte.
    pub first: Stamp,
    /// Its length, in bytes.
    pub len: u64,
    /// The message, up to [`crate::limits::MESSAGE_BYTES`] of it. Not checked to be UTF-8.
    pub bytes: &'a [u8],
}

/// What a [`Message`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Text.
    Text,
    /// Binary.
    Binary,
    /// No message but the closing frame, with its status code (RFC 6455 section 7.4), where it has one.
    Close(Option<u16>),
}

/// Head of a message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Head<'a> {
    /// Request line and fields.
    Request(RequestHead<'a>),
    /// Status line and fields.
    Response(ResponseHead<'a>),
    /// The head went by before the observer looked, or was lost: only what follows is known. The exchange is incomplete.
    Unseen,
}

/// Head of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestHead<'a> {
    /// Method, as sent; empty when it could not be resolved (HTTP/2 joined mid-connection).
    pub method: &'a str,
    /// Path with query, as sent (origin-form, or the path of an absolute-form target); empty when it could not
    /// be resolved.
    pub path: &'a str,
    /// Authority: `Host` or `:authority`, as sent.
    pub host: Option<&'a str>,
    /// Fields.
    pub headers: Headers<'a>,
}

/// Head of a response.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResponseHead<'a> {
    /// Status code, 100 to 999; `None` when it could not be resolved (HTTP/2 joined mid-connection).
    pub status: Option<u16>,
    /// Fields.
    pub headers: Headers<'a>,
}

/// Header fields of one message, in order. Values are bytes: the network promises no encoding. Fields that could not be
/// resolved (HTTP/2 joined mid-connection) are left out, and so are those with credentials after their first use there.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Headers<'a>(pub &'a [(&'a str, &'a [u8])]);

impl<'a> Headers<'a> {
    /// First value of a field as text; the name is compared without case. `None` when absent or not UTF-8.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a str> {
        let (_, value) = self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok().map(str::trim)
    }
}

/// Why an exchange will not be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AbortCause {
    /// The connection ended in the middle of the exchange.
    Closed(CloseCause),
    /// The peer or the process reset this stream (HTTP/2 RST_STREAM); `by_peer` says who, `code` is the error code.
    Reset {
        /// The reset was read, not written.
        by_peer: bool,
        /// HTTP/2 error code (RFC 9113 section 7).
        code: u32,
    },
    /// Bytes were lost or are no HTTP, and the rest of the exchange could not be followed.
    Desync,
    /// The peer closed the connection going away (HTTP/2 GOAWAY) without serving this stream.
    GoAway,
    /// Let go to keep memory bounded.
    Evicted,
}
