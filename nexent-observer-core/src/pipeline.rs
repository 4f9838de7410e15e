//! Joins stages 3 to 6. The only module that knows them all.

use crate::{event::ConnId, timing::Exchange};

/// What the core gives out.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// An LLM call ended.
    Exchange(Box<Exchange>),
    /// What goes on in this turn of this HTTP/1 connection is no LLM call: the kernel half may stop copying until the
    /// process writes again.
    NotLlm {
        /// Connection.
        conn: ConnId,
        /// Turn.
        turn: u32,
    },
}
