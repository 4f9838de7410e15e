//! What caused a call: the request that the process was serving, and how that is known.

use std::sync::Arc;

use crate::event::{MonoNs, Peer};

use super::ExchangeId;

/// A request that the process serves, as far as the calls that it causes need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Connection and exchange on it.
    pub id: ExchangeId,
    /// Method and route (`POST /api/agent/run`), ids folded; `None` when its path could not be read.
    pub endpoint: Option<Arc<str>>,
    /// The two ends of its connection, where they were seen.
    pub peer: Option<Peer>,
    /// When the first byte of its head was read.
    pub start: MonoNs,
    /// Its own `traceparent` (W3C Trace Context), as sent.
    pub traceparent: Option<Box<str>>,
}

/// Why a call has a parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CausedBy {
    /// The strongest rule that applied.
    pub rule: Rule,
    /// The request that the process was serving, where one is known; under [`Rule::Hook`] and [`Rule::Traceparent`] by a weaker
    /// rule where they do not name it.
    pub served: Option<Arc<Served>>,
}

/// How the parent of a call is known, strongest first (docs/tracing.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A hook in the process said it.
    Hook,
    /// The call carries a `traceparent`.
    Traceparent,
    /// The thread that made the call was serving exactly this request.
    Thread,
    /// A long text of the request's body is in the call's.
    Content,
    /// It was the only request that the process was serving.
    Only,
    /// The thread that made the call was started by one that was serving exactly this request, and ended before the request did.
    StartedThread,
}

impl Rule {
    /// Value of `parent_rule`: `hook`, `traceparent`, `thread`, `content`, `only`, `started_thread`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hook => "hook",
            Self::Traceparent => "traceparent",
            Self::Thread => "thread",
            Self::Content => "content",
            Self::Only => "only",
            Self::StartedThread => "started_thread",
        }
    }
}
