//! What stage 4 gives to stage 5, shown to whoever records it. [`super::Replay`] takes it back in.

use std::{fmt::Debug, sync::Arc};

use crate::{
    event::{ConnId, MonoNs, Peer, Role, Said},
    http::{ExchangeNo, HttpEvent},
};

pub use crate::timing::Counted;

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
        /// Its socket is watched since then.
        watched_since: Option<MonoNs>,
    },
    /// The socket of the connection told something that may count for a call.
    Socket(SocketTold),
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
    /// The request body of an open exchange is about to end; only of calls that the process makes.
    Asked {
        /// The exchange.
        exchange: ExchangeNo,
        /// The same for the same body. It must not be kept as it is: content could be guessed by it.
        digest: u64,
    },
    /// What a tokenizer counted in the event that comes next, of each call in it.
    Counted(&'a [Counted]),
    /// An event. Of a connection that the process serves, its stamps are turned round as the later stages want them.
    Http(&'a HttpEvent<'a>),
    /// The connection is over.
    Over,
}

/// What the socket of a connection told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketTold {
    /// It had everything that was written by calls which returned until `until`.
    Sent {
        /// Return of the latest of these calls.
        until: MonoNs,
        /// When.
        at: MonoNs,
    },
    /// Data lay in it unread.
    Late {
        /// Arrival of that data.
        arrived: MonoNs,
        /// When it was read.
        at: MonoNs,
    },
    /// This host sent a segment again.
    Retransmit {
        /// When.
        at: MonoNs,
    },
}
