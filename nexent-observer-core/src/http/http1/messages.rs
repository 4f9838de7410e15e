//! What the heads of an HTTP/1 connection set going: exchanges begin, are answered, end and are given up.

use super::{
    Http1, Switch,
    chunked::Chunked,
    exchange::{Exchange, RequestPart, ResponsePart},
    head::{Framing, Shape},
    lane::{Body, State},
};
use crate::{
    event::Stamp,
    http::{AbortCause, ExchangeNo, Head, HttpEvent, HttpEventKind, RequestHead, ResponseHead, Side, websocket},
    limits,
    stats::{DropReason, Stats},
};

impl Http1 {
    pub(super) fn on_request(
        &mut self,
        at: Stamp,
        head: &RequestHead<'_>,
        framing: Framing,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        let first = self.request.first;
        // A request that came late: its response went on without it, as one without a request.
        let late = self.orphan.take().is_some_and(|response| first.entry < response);
        let exchange = (!late).then(|| {
            self.give_up_damaged(at, sink);
            if self.exchanges.len() >= limits::OPEN_EXCHANGES {
                self.evict(at, stats, sink);
            }
            let no = self.exchanges.number();
            self.exchanges.push(Exchange::of_request(no, first.entry, head));
            stats.http_exchanges += 1;
            emit_head(sink, no, Side::Request, at, first, Head::Request(*head));
            no
        });
        self.request.exchange = exchange;
        match framing {
            Framing::Length(0) => self.finish(Side::Request, at, sink),
            Framing::Length(n) => self.request.state = State::Body(Body::Length(n)),
            Framing::Chunked => self.request.state = State::Body(Body::Chunked(Chunked::new())),
            Framing::Cut(len, cause) => {
                self.request.state = State::Resync;
                emit(sink, exchange, Side::Request, at, HttpEventKind::Gap { len, cause });
                self.lose_request();
            }
            Framing::Invalid | Framing::UntilClose => {
                stats.count(DropReason::HeadInvalid);
                self.lose_request();
                self.request.exchange = None;
                self.request.state = State::Seek;
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what was parsed of the head, and where it goes")]
    pub(super) fn on_response(
        &mut self,
        at: Stamp,
        head: &ResponseHead<'_>,
        framing: Framing,
        shape: Shape,
        synced: bool,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        let status = head.status.unwrap_or_default();
        if (100..200).contains(&status) && status != 101 {
            self.response.state = State::Head { synced };
            return;
        }
        let first = self.response.first;
        let found = self.exchanges.answered_at(at.ret, self.in_step);
        let exchange = self.begin_response(found, first, stats, sink);
        let no = exchange.no;
        if found.is_some() && is_upgrade_to_http2(head) {
            let asked = exchange.request != RequestPart::Open;
            self.switch = Some(Switch { role: self.role, exchange: no, asked, next: self.exchanges.next() });
            (self.request.state, self.response.state) = (State::Stopped, State::Stopped);
            return;
        }
        emit_head(sink, no, Side::Response, at, first, Head::Response(*head));
        emit_damage(sink, &exchange, at);
        self.response.exchange = Some(no);
        if websocket::accepts(head) {
            // What follows, in both directions, is told as bodies until the connection ends.
            self.websocket = true;
            self.response.body(State::Body(Body::UntilClose), no, Shape::Other);
            self.request.body(State::Body(Body::UntilClose), no, Shape::Other);
            return;
        }
        let tunnel = exchange.is_connect && (200..300).contains(&status);
        if status == 101 || tunnel {
            // What follows, in both directions, is another protocol.
            if exchange.request == RequestPart::Open {
                self.lose_request();
            }
            self.finish(Side::Response, at, sink);
            self.tunnel = tunnel;
            (self.request.state, self.response.state) = (State::Stopped, State::Stopped);
            return;
        }
        if exchange.is_head || status == 204 || status == 304 {
            return self.finish(Side::Response, at, sink);
        }
        match framing {
            Framing::Length(0) => self.finish(Side::Response, at, sink),
            Framing::Length(n) => self.response.body(State::Body(Body::Length(n)), no, Shape::Other),
            Framing::Chunked => {
                self.response.body(State::Body(Body::Chunked(Chunked::new())), no, shape);
            }
            Framing::UntilClose => self.response.body(State::Body(Body::UntilClose), no, Shape::Other),
            Framing::Invalid | Framing::Cut(..) => {
                stats.count(DropReason::HeadInvalid);
                self.abort(Some(no), at, AbortCause::Desync, sink);
                self.response.state = State::Seek;
                self.in_step = false;
            }
        }
    }

    /// Marks the exchange that is being answered, or makes one for a response without a request. Those before it in a
    /// row with lost bytes will not be answered any more. Returns the exchange as it was.
    pub(super) fn begin_response(
        &mut self,
        found: Option<ExchangeNo>,
        first: Stamp,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) -> Exchange {
        if let Some(no) = found {
            while let Some(passed) = self.exchanges.remove_first(|e| e.is_unanswered() && e.no < no) {
                self.forget(passed);
                emit(sink, Some(passed), Side::Response, first, HttpEventKind::Abort(AbortCause::Desync));
            }
            if let Some(exchange) = self.exchanges.get_mut(no) {
                let before = *exchange;
                exchange.response = ResponsePart::Begun;
                self.in_step = true;
                return before;
            }
        }
        stats.count(DropReason::Joined);
        stats.http_exchanges += 1;
        self.orphan = Some(first.ret);
        let before = Exchange::of_unseen_request(self.exchanges.number(), first.ret);
        self.exchanges.push(Exchange { response: ResponsePart::Begun, ..before });
        before
    }

    /// The end of the current request body will not be seen.
    pub(super) fn lose_request(&mut self) {
        if let Some(exchange) = self.request.exchange.and_then(|no| self.exchanges.get_mut(no)) {
            exchange.request = RequestPart::Lost;
        }
    }

    /// The current message of a side is complete.
    pub(super) fn finish(&mut self, side: Side, at: Stamp, sink: &mut impl FnMut(HttpEvent<'_>)) {
        let lane = self.lane(side);
        lane.state = State::Head { synced: true };
        let Some(no) = lane.exchange.take() else { return };
        let request_last = self.request.last;
        if let Some(exchange) = self.exchanges.get_mut(no) {
            match side {
                Side::Request => exchange.request = RequestPart::Done,
                Side::Response => {
                    exchange.response = ResponsePart::Done;
                    if exchange.request == RequestPart::Lost {
                        emit(sink, Some(no), Side::Request, request_last, HttpEventKind::End);
                        if self.request.exchange == Some(no) {
                            self.request.exchange = None;
                        }
                    }
                }
            }
        }
        emit(sink, Some(no), side, at, HttpEventKind::End);
        self.exchanges.remove_if_over(no);
    }

    /// Ends an exchange before its time. The lanes go on without it.
    pub(super) fn abort(
        &mut self,
        no: Option<ExchangeNo>,
        at: Stamp,
        cause: AbortCause,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        if let Some(no) = no
            && self.exchanges.remove_first(|e| e.no == no).is_some()
        {
            self.forget(no);
            emit(sink, Some(no), Side::Response, at, HttpEventKind::Abort(cause));
        }
    }

    pub(super) fn forget(&mut self, no: ExchangeNo) {
        for lane in [&mut self.request, &mut self.response] {
            if lane.exchange == Some(no) {
                lane.exchange = None;
            }
        }
    }

    /// A new request begins: what could not be followed before it will not be any more, nor can what waits behind it be
    /// told apart.
    pub(super) fn give_up_damaged(&mut self, at: Stamp, sink: &mut impl FnMut(HttpEvent<'_>)) {
        if matches!(self.response.state, State::Resync) {
            self.response.state = State::Seek;
            self.abort(self.response.exchange, at, AbortCause::Desync, sink);
        }
        if !self.in_step {
            while let Some(no) = self.exchanges.remove_first(Exchange::is_unanswered) {
                self.forget(no);
                emit(sink, Some(no), Side::Response, at, HttpEventKind::Abort(AbortCause::Desync));
            }
        }
    }

    /// Lets all open exchanges go. Which response belongs to which request is not known after that.
    pub(super) fn evict(&mut self, at: Stamp, stats: &mut Stats, sink: &mut impl FnMut(HttpEvent<'_>)) {
        while let Some(no) = self.exchanges.remove_first(|_| true) {
            stats.count(DropReason::ExchangesFull);
            self.forget(no);
            emit(sink, Some(no), Side::Response, at, HttpEventKind::Abort(AbortCause::Evicted));
        }
        self.response.head.take();
        self.response.state = State::Seek;
        self.in_step = false;
    }
}

/// Whether HTTP/2 follows in plain text, and on it the answer (RFC 7540 section 3.2).
fn is_upgrade_to_http2(head: &ResponseHead<'_>) -> bool {
    let named = |value: &str| value.split(',').any(|name| name.trim().eq_ignore_ascii_case("h2c"));
    head.status == Some(101) && head.headers.get("upgrade").is_some_and(named)
}

pub(super) fn emit(
    sink: &mut impl FnMut(HttpEvent<'_>),
    exchange: Option<ExchangeNo>,
    side: Side,
    at: Stamp,
    kind: HttpEventKind<'_>,
) {
    if let Some(exchange) = exchange {
        sink(HttpEvent { exchange, side, at, kind });
    }
}

pub(super) fn emit_head(
    sink: &mut impl FnMut(HttpEvent<'_>),
    exchange: ExchangeNo,
    side: Side,
    at: Stamp,
    first: Stamp,
    head: Head<'_>,
) {
    emit(sink, Some(exchange), side, at, HttpEventKind::Head { first, head });
}

/// Tells of bytes that were lost where the response should have begun.
pub(super) fn emit_damage(sink: &mut impl FnMut(HttpEvent<'_>), exchange: &Exchange, at: Stamp) {
    if let ResponsePart::Damaged(cause) = exchange.response {
        emit(sink, Some(exchange.no), Side::Response, at, HttpEventKind::Gap { len: None, cause });
    }
}
