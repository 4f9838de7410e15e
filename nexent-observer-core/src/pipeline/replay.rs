//! Stages 5 and 6 by themselves: fed with what a [`super::Tap`] was shown.

use std::collections::HashMap;

use super::{Output, SharedCalls, connection::Calls, tap::Tapped};
use crate::{
    event::ConnId,
    limits::Limits,
    stats::{DropReason, Stats},
    timing::{ActiveStream, Options},
};

/// Gives the same exchanges as the pipeline whose tap was shown what this is fed with.
#[derive(Debug)]
pub struct Replay {
    connections: HashMap<ConnId, Calls>,
    conn: Stats,
    shared: SharedCalls,
}

impl Replay {
    /// One that was fed with nothing. Tokens are not counted again, whatever the options say: their text may not be what it was.
    #[must_use]
    pub fn new(limits: Limits, options: &Options) -> Self {
        let options = Options { tokenizers: None, ..options.clone() };
        let shared = SharedCalls { replays: true, ..SharedCalls::new(limits, options) };
        Self { connections: HashMap::new(), conn: Stats::default(), shared }
    }

    /// Takes in what a tap was shown. Of a connection of which nothing was shown before, only [`Tapped::Connection`] counts.
    pub fn handle(&mut self, conn: ConnId, tapped: &Tapped<'_>) {
        if let Tapped::Connection { pid, .. } = *tapped
            && !self.connections.contains_key(&conn)
        {
            if self.connections.len() >= self.shared.limits.connections {
                self.conn.count(DropReason::ConnectionsFull);
                return;
            }
            self.connections.insert(conn, Calls::new(conn, pid));
        }
        if let Tapped::Over = tapped {
            self.connections.remove(&conn);
        } else if let Some(calls) = self.connections.get_mut(&conn) {
            calls.replay(tapped, &mut self.shared);
        }
    }

    /// The next output; only ever [`Output::Exchange`].
    pub fn poll_output(&mut self) -> Option<Output> {
        self.shared.outputs.pop_front()
    }

    /// Counters of the stages that run here.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut all = self.conn.clone();
        for stage in [&self.shared.llm, &self.shared.timing] {
            all.add(stage);
        }
        all.connections_open = self.connections.len() as u64;
        all
    }

    /// The LLM calls that are open now, in no order.
    pub fn active(&self) -> impl Iterator<Item = ActiveStream<'_>> {
        self.connections.values().flat_map(Calls::active)
    }
}
