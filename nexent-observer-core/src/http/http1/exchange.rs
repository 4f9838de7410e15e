//! Exchanges open on one connection, in the order of their requests.

use std::collections::VecDeque;

use crate::{
    conn::GapCause,
    event::MonoNs,
    http::{ExchangeNo, RequestHead},
};

/// How far the request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestPart {
    /// Its body is on the way.
    Open,
    /// Its `End` was given out.
    Done,
    /// Its end cannot be seen any more.
    Lost,
    /// It went by before the observer looked.
    Unseen,
}

/// How far the response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResponsePart {
    /// Not begun.
    Awaited,
    /// Bytes were lost where it should have begun.
    Damaged(GapCause),
    /// Its head was given out.
    Begun,
    /// Its `End` was given out.
    Done,
}

/// One exchange.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchange {
    pub(super) no: ExchangeNo,
    /// When the call with the first byte of the request was entered: no byte of its response is older.
    pub(super) started: MonoNs,
    pub(super) is_head: bool,
    pub(super) is_connect: bool,
    pub(super) request: RequestPart,
    pub(super) response: ResponsePart,
}

impl Exchange {
    pub(super) fn of_request(no: ExchangeNo, started: MonoNs, head: &RequestHead<'_>) -> Self {
        Self {
            no,
            started,
            is_head: head.method == "HEAD",
            is_connect: head.method == "CONNECT",
            request: RequestPart::Open,
            response: ResponsePart::Awaited,
        }
    }

    pub(super) fn of_unseen_request(no: ExchangeNo, started: MonoNs) -> Self {
        Self {
            no,
            started,
            is_head: false,
            is_connect: false,
            request: RequestPart::Unseen,
            response: ResponsePart::Awaited,
        }
    }

    /// Whether no head of its response was given out.
    pub(super) fn is_unanswered(&self) -> bool {
        matches!(self.response, ResponsePart::Awaited | ResponsePart::Damaged(_))
    }

    fn is_over(&self) -> bool {
        self.response == ResponsePart::Done && self.request != RequestPart::Open
    }
}

/// The open exchanges.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    open: VecDeque<Exchange>,
    next: u32,
}

impl Exchanges {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// None yet; numbered from `next`.
    pub(super) fn new(next: ExchangeNo) -> Self {
        Self { next: next.0, ..Self::default() }
    }

    /// The number that comes next.
    pub(super) fn next(&self) -> ExchangeNo {
        ExchangeNo(self.next)
    }

    /// A number not used before.
    pub(super) fn number(&mut self) -> ExchangeNo {
        let no = ExchangeNo(self.next);
        self.next = self.next.wrapping_add(1);
        no
    }

    pub(super) fn push(&mut self, exchange: Exchange) {
        self.open.push_back(exchange);
    }

    pub(super) fn get_mut(&mut self, no: ExchangeNo) -> Option<&mut Exchange> {
        self.open.iter_mut().find(|e| e.no == no)
    }

    /// Takes out the oldest exchange that satisfies `which`.
    pub(super) fn remove_first(&mut self, which: impl Fn(&Exchange) -> bool) -> Option<ExchangeNo> {
        let at = self.open.iter().position(which)?;
        self.open.remove(at).map(|e| e.no)
    }

    /// Takes an exchange out if both its sides are done.
    pub(super) fn remove_if_over(&mut self, no: ExchangeNo) {
        self.remove_first(|e| e.no == no && e.is_over());
    }

    /// The exchange whose response may have begun at `at`: the oldest one unanswered. Where bytes were lost that may have
    /// held whole responses (`in_step` is false) order says nothing; then the newest request written before `at`, which is
    /// right unless requests are pipelined.
    pub(super) fn answered_at(&self, at: MonoNs, in_step: bool) -> Option<ExchangeNo> {
        let mut candidates = self.open.iter().filter(|e| e.is_unanswered() && e.started <= at);
        let found = if in_step { candidates.next() } else { candidates.next_back() };
        found.map(|e| e.no)
    }

    /// Whether a request waits that was written after `at`.
    pub(super) fn awaits_later(&self, at: MonoNs) -> bool {
        self.open.iter().any(|e| e.is_unanswered() && e.started > at)
    }

    /// Notes that bytes were lost where the next response should have begun. It is not known whose: what is lost may hold
    /// whole responses.
    pub(super) fn damage_unanswered(&mut self, at: MonoNs, cause: GapCause) {
        for exchange in self.open.iter_mut().filter(|e| e.is_unanswered() && e.started <= at) {
            exchange.response = ResponsePart::Damaged(cause);
        }
    }
}
