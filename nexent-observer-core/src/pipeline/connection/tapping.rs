//! What a tap is shown of a connection, and a replay of that.

use crate::{
    http::{HttpEvent, HttpEventKind, Side},
    pipeline::{
        SharedCalls,
        tap::{SocketTold, Tapped},
    },
    timing::Progress,
};

use super::{About, Calls, Named, Role};

impl Calls {
    /// Shows the tap an event of an open exchange, and what it must know before; of an exchange that is no LLM call, only that.
    pub(super) fn tap_event(&mut self, at: usize, event: &HttpEvent<'_>, progress: Progress, shared: &mut SharedCalls) {
        let (id, tid, client) = (self.id, self.asker(), self.role != Some(Role::Server));
        let Some(open) = self.open.get_mut(at) else { return };
        let known = std::mem::replace(&mut open.tapped, progress != Progress::NotLlm);
        if progress == Progress::NotLlm {
            if let Some(tap) = shared.tap.as_deref_mut().filter(|_| known) {
                tap.take(id, Tapped::Dismissed { exchange: event.exchange });
            }
            return;
        }
        self.tap_connection(shared);
        let (Some(tap), Some(open)) = (shared.tap.as_deref_mut(), self.open.get_mut(at)) else { return };
        let (llm, timing) = &mut *open.both;
        if !known {
            tap.take(id, Tapped::Begin { exchange: event.exchange, tid, said: open.said.as_ref() });
        }
        // Only of what a process asks is a repetition looked for.
        if let (Side::Request, HttpEventKind::End, true) = (event.side, event.kind, client)
            && let Some(digest) = llm.request_digest()
        {
            tap.take(id, Tapped::Asked { exchange: event.exchange, digest });
        }
        if let Some(counted) = timing.take_counts() {
            tap.take(id, Tapped::Counted(&[counted]));
        }
        tap.take(id, Tapped::Http(event));
    }

    /// Likewise of a WebSocket, of which a call may begin with any event. After the event went through.
    pub(super) fn tap_socket(&mut self, event: &HttpEvent<'_>, shared: &mut SharedCalls) {
        if shared.tap.is_none() {
            return;
        }
        self.tap_connection(shared);
        let (tid, said) = (self.asker(), self.said.as_ref());
        let counted = std::mem::take(&mut shared.counted);
        if let Some(tap) = &mut shared.tap {
            tap.take(self.id, Tapped::Begin { exchange: event.exchange, tid, said });
            if !counted.is_empty() {
                tap.take(self.id, Tapped::Counted(&counted));
            }
            tap.take(self.id, Tapped::Http(event));
        }
    }

    /// Shows the tap what goes for all calls of the connection: what is new of it, and what its socket told before there was a call.
    fn tap_connection(&mut self, shared: &mut SharedCalls) {
        // Which thread reads is nobody's business but that of what causes a call, which is joined to none in a replay.
        let about = About { reader: None, ..self.about() };
        let Some(tap) = shared.tap.as_deref_mut() else { return };
        if self.tapped == Some(about) {
            return;
        }
        let before = self.tapped.replace(about);
        let About { role, peer, watched_since, .. } = about;
        tap.take(self.id, Tapped::Connection { pid: self.pid, role, peer, watched_since });
        if before.is_none() {
            for &at in &self.sent_again {
                tap.take(self.id, Tapped::Socket(SocketTold::Retransmit { at }));
            }
        }
    }

    pub(super) fn tap_socket_told(&self, told: SocketTold, shared: &mut SharedCalls) {
        if let Some(tap) = shared.tap.as_deref_mut().filter(|_| self.tapped.is_some()) {
            tap.take(self.id, Tapped::Socket(told));
        }
    }

    pub(super) fn tap_over(&mut self, shared: &mut SharedCalls) {
        if let Some(tap) = &mut shared.tap
            && self.tapped.take().is_some()
        {
            tap.take(self.id, Tapped::Over);
        }
    }

    /// What a tap was told, given back.
    pub(in crate::pipeline) fn replay(&mut self, tapped: &Tapped<'_>, shared: &mut SharedCalls) {
        match *tapped {
            Tapped::Connection { pid, role, peer, watched_since } => {
                (self.pid, self.role, self.peer) = (pid, Some(role), peer);
                if let Some(since) = watched_since {
                    self.watched(since);
                }
            }
            Tapped::Begin { tid, said, .. } => {
                (self.writer, self.reader) = (tid, tid);
                (self.said, self.named) = (said.cloned(), Named::Later);
            }
            Tapped::Unsaid { exchange } => {
                for open in self.open.iter_mut().filter(|open| open.no == exchange) {
                    open.said = None;
                }
            }
            Tapped::Dismissed { exchange } => {
                let before = self.open.len();
                self.open.retain(|open| open.no != exchange);
                shared.timing.exchanges_open -= (before - self.open.len()) as u64;
            }
            Tapped::Socket(told) => {
                self.socket_told(told);
            }
            Tapped::Asked { exchange, digest } => {
                for open in self.open.iter_mut().filter(|open| open.no == exchange) {
                    open.digest = Some(digest);
                }
            }
            Tapped::Counted(counted) => self.counted = counted.to_vec(),
            Tapped::Http(event) => {
                self.http_event_of(event, shared);
                self.counted.clear();
            }
            Tapped::Over => {}
        }
    }
}
