//! One direction of an HTTP/1 connection: where in its sequence of messages it stands.

use super::{
    chunked::Chunked,
    head::{HeadBuffer, Shape},
};
use crate::{event::Stamp, http::ExchangeNo};

/// Where a direction stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum State {
    /// Out of step: only a record that begins with a head (or with a stream) is looked at.
    Seek,
    /// Before or in a head; `synced` says that one must stand here.
    Head {
        /// Not a guess.
        synced: bool,
    },
    /// In a body.
    Body(Body),
    /// In a body whose framing was lost.
    Resync,
    /// Not followed any more.
    Stopped,
}

/// How the current body ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body {
    /// After so many more bytes, at least one.
    Length(u64),
    /// By its transfer coding.
    Chunked(Chunked),
    /// With the connection.
    UntilClose,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) state: State,
    /// The head so far, when it is in more than one piece.
    pub(super) head: HeadBuffer,
    /// Stamp of the first byte of the current or last head.
    pub(super) first: Stamp,
    /// Stamp of the last data (kept for requests only).
    pub(super) last: Stamp,
    /// Whose message this is; `None` between messages and for one that is followed but not reported.
    pub(super) exchange: Option<ExchangeNo>,
    /// What the body carries, when it is chunked.
    pub(super) shape: Shape,
}

impl Lane {
    pub(super) fn new(state: State) -> Self {
        Self {
            state,
            head: HeadBuffer::default(),
            first: Stamp::default(),
            last: Stamp::default(),
            exchange: None,
            shape: Shape::Other,
        }
    }

    /// Begins a body.
    pub(super) fn body(&mut self, state: State, exchange: ExchangeNo, shape: Shape) {
        (self.state, self.exchange, self.shape) = (state, Some(exchange), shape);
    }
}
