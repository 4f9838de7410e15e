//! What stage 4 gives to stage 5, shown to whoever records it. [`super::Replay`] takes it back in.

use std::{fmt::Debug, sync::Arc};

use crate::{
    event::{ConnId, Peer, Role, Said},
    http::{ExchangeNo, HttpEvent},
};

/// Gets everything that the later stages get of exchanges that are, or may be, LLM calls, in that order. Of an exchange that is
/// known to be none nothing is shown from then on, and of one that never could be, nothing at all.
pub trait Tap: Debug + Send {
    /// Something of a connection.
    fn take(&mut self, conn: ConnId, tapped: Tapped<'_>);
}

/// What a [`Tap`] gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tapped<'a> {
    /// What goes for all exchanges of the connection; comes first, and again when it changes.
    Connection {
        /// Process (tgid in the initial pid namespace).
        pid: u32,
        /// What the process is on it.
        role: Role,
        /// Its two ends, where they were seen.
        peer: Option<Peer>,
    },
    /// What the next event begins, if it begins something: an exchange, or a call on a WebSocket.
    Begin {
        /// The exchange.
        exchange: ExchangeNo,
        /// Thread that asks.
        tid: Option<u32>,
        /// What an in-process hook said of it.
        said: Option<&'a Arc<Said>>,
    },
    /// What was said of an open exchange was said of another one, nobody knows of which.
    Unsaid {
        /// The exchange.
        exchange: ExchangeNo,
    },
    /// An exchange turned out to be no LLM call.
    Dismissed {
        /// The exchange.
        exchange: ExchangeNo,
    },
    /// An event. Of a connection that the process serves, its stamps are turned round as the later stages want them.
    Http(&'a HttpEvent<'a>),
    /// The connection is over.
    Over,
}
