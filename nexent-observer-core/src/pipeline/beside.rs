//! What goes on on a connection beside LLM calls: requests that the process serves, and calls of tools that it makes.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Output, Parked, SharedCalls};
use crate::{
    chain::{Chain, Ended, Serving, ToolDraft},
    event::{ConnId, Peer, Role, Said},
    http::{ExchangeNo, Head, HttpEvent, HttpEventKind},
    limits::OPEN_EXCHANGES,
    timing::ExchangeId,
};

/// Of one connection, each in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct Beside {
    serving: SmallVec<[Box<Serving>; 1]>,
    tools: SmallVec<[Box<Tool>; 1]>,
}

#[derive(Debug)]
struct Tool {
    draft: ToolDraft,
    said: Option<Arc<Said>>,
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Of {
    pub(super) conn: ConnId,
    pub(super) pid: u32,
    pub(super) role: Role,
    pub(super) peer: Option<Peer>,
    /// Threads of the latest read and write.
    pub(super) reader: Option<u32>,
    pub(super) writer: Option<u32>,
}

impl Of {
    fn id(self, no: ExchangeNo) -> ExchangeId {
        ExchangeId { conn: self.conn, no: no.0 }
    }
}

impl Beside {
    /// Takes an event before anybody else: a request may begin.
    pub(super) fn begin(&mut self, event: &HttpEvent<'_>, of: Of, shared: &mut SharedCalls) {
        let HttpEventKind::Head { head: Head::Request(_), .. } = event.kind else { return };
        let (id, SharedCalls { chain, timing, .. }) = (of.id(event.exchange), &mut *shared);
        match of.role {
            Role::Server => {
                let begun = Serving::begin(id, (of.pid, of.reader), of.peer, event, chain, timing);
                self.serving.extend(begun.map(Box::new));
                // The stage before ends its oldest exchange at the same cap; this one is for it not to matter.
                if self.serving.len() > OPEN_EXCHANGES {
                    self.over(0, event, Ended::Broken, of, shared);
                }
            }
            Role::Client if self.tools.len() < OPEN_EXCHANGES => {
                let draft = ToolDraft::begin(id, (of.pid, of.writer), of.peer, event);
                self.tools.extend(draft.map(|draft| Box::new(Tool { draft, said: None })));
            }
            Role::Client => {}
        }
    }

    /// Takes an event after everybody else: a request may be over.
    pub(super) fn feed(&mut self, event: &HttpEvent<'_>, of: Of, shared: &mut SharedCalls) {
        let id = of.id(event.exchange);
        if let Some(at) = self.serving.iter().position(|serving| serving.id() == id)
            && let Some(serving) = self.serving.get_mut(at)
            && let Some(ended) = serving.feed(event, of.writer, &mut shared.chain)
        {
            self.over(at, event, ended, of, shared);
        }
        if let Some(at) = self.tools.iter().position(|tool| tool.draft.id() == id)
            && self.tools.get_mut(at).is_some_and(|tool| tool.draft.feed(event))
        {
            let Tool { draft, said } = *self.tools.remove(at);
            let Some(mut call) = draft.finish() else { return };
            call.said = said;
            shared.give_out_joined(Parked::Tool(call), of.reader);
        }
    }

    fn over(&mut self, at: usize, event: &HttpEvent<'_>, ended: Ended, of: Of, shared: &mut SharedCalls) {
        let serving = self.serving.remove(at);
        if let Some(inbound) = serving.finish(event.at.ret, ended, of.peer, &mut shared.chain) {
            shared.give_out(Output::Inbound(Box::new(inbound)));
        }
    }

    /// An exchange is an LLM call.
    pub(super) fn is_llm(&mut self, id: ExchangeId) {
        self.serving.iter_mut().filter(|serving| serving.id() == id).for_each(|serving| serving.is_llm());
        self.tools.retain(|tool| tool.draft.id() != id);
    }

    /// An exchange is no LLM call; `tool`: it is one of a tool.
    pub(super) fn is_not_llm(
        &mut self,
        id: ExchangeId,
        pid: u32,
        tool: bool,
        said: Option<Arc<Said>>,
        chain: &mut Chain,
    ) {
        match self.tools.iter().position(|tool| tool.draft.id() == id) {
            Some(at) if tool => {
                if let Some(tool) = self.tools.get_mut(at) {
                    tool.draft.confirm();
                    tool.said = said;
                }
                return;
            }
            Some(at) => drop(self.tools.remove(at)),
            None => {}
        }
        chain.forget(pid, id);
    }

    /// Calls of tools are open, or may be.
    pub(super) fn has_tools(&self) -> bool {
        !self.tools.is_empty()
    }
}
