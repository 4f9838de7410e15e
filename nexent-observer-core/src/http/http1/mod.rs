//! HTTP/1.0 and 1.1 (RFC 9112) on one connection.

mod chunked;
mod exchange;
mod head;
mod lane;
mod resync;

pub(super) use resync::looks_like_stream;

use self::{
    chunked::Step,
    exchange::{Exchange, Exchanges, RequestPart, ResponsePart},
    head::{Framing, Pushed, Shape},
    lane::{Body, Lane, State},
};
use super::{
    AbortCause, ExchangeNo, Head, HttpEvent, HttpEventKind, RequestHead, ResponseHead, Side, StartSeen, detect,
};
use crate::{
    conn::{CloseCause, GapCause, StreamEvent},
    event::{Direction, MonoNs, Stamp},
    limits,
    stats::{DropReason, Stats},
};

/// What the observed process is on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It writes requests and reads responses.
    Client,
    /// It reads requests and writes responses.
    Server,
}

/// State of one connection.
#[derive(Debug)]
pub(super) struct Http1 {
    role: Role,
    request: Lane,
    response: Lane,
    exchanges: Exchanges,
    /// First byte of the last response that had no request, until the next request.
    orphan: Option<MonoNs>,
    /// Whether this turn was counted as no HTTP.
    noise_counted: bool,
    last: Side,
    tunnel: bool,
}

impl Http1 {
    pub(super) fn new(role: Role, start: StartSeen) -> Self {
        let state = match start {
            StartSeen::Yes => State::Head { synced: true },
            StartSeen::No => State::Seek,
        };
        Self {
            role,
            request: Lane::new(state),
            response: Lane::new(state),
            exchanges: Exchanges::default(),
            orphan: None,
            noise_counted: false,
            last: Side::Request,
            tunnel: false,
        }
    }

    /// Whether the connection became a tunnel by CONNECT.
    pub(super) fn is_tunnel(&self) -> bool {
        self.tunnel
    }

    pub(super) fn feed(&mut self, ev: &StreamEvent<'_>, stats: &mut Stats, sink: &mut impl FnMut(HttpEvent<'_>)) {
        match *ev {
            StreamEvent::Data { dir, at, bytes } => self.data(self.side(dir), at, bytes, stats, sink),
            StreamEvent::Gap { dir, at, len, cause } => self.gap(self.side(dir), at, len, cause, sink),
            StreamEvent::Close { at, cause } => self.close(at, cause, sink),
        }
    }

    fn side(&self, dir: Direction) -> Side {
        match (self.role, dir) {
            (Role::Client, Direction::Write) | (Role::Server, Direction::Read) => Side::Request,
            (Role::Client, Direction::Read) | (Role::Server, Direction::Write) => Side::Response,
        }
    }

    fn lane(&mut self, side: Side) -> &mut Lane {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }

    fn data(
        &mut self,
        side: Side,
        at: Stamp,
        mut bytes: &[u8],
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        if side == Side::Request {
            if self.last == Side::Response {
                self.noise_counted = false;
            }
            self.request.last = at;
        }
        self.last = side;
        while !bytes.is_empty() {
            let lane = self.lane(side);
            let exchange = lane.exchange;
            bytes = match &mut lane.state {
                State::Body(Body::Chunked(chunked)) => match chunked.step(bytes) {
                    Step::Data(data, rest) => {
                        emit(sink, exchange, side, at, HttpEventKind::Body(data));
                        rest
                    }
                    Step::More => return,
                    Step::End(rest) => {
                        self.finish(side, at, sink);
                        rest
                    }
                    Step::Invalid => {
                        stats.count(DropReason::ChunkInvalid);
                        return self.damage(side, at, Some(bytes.len() as u64), GapCause::Lost, sink);
                    }
                },
                State::Body(Body::Length(left)) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX);
                    let (data, rest) = bytes.split_at_checked(n).unwrap_or((bytes, &[]));
                    *left -= data.len() as u64;
                    let complete = *left == 0;
                    emit(sink, exchange, side, at, HttpEventKind::Body(data));
                    if complete {
                        self.finish(side, at, sink);
                    }
                    rest
                }
                State::Body(Body::UntilClose) => {
                    return emit(sink, exchange, side, at, HttpEventKind::Body(bytes));
                }
                State::Head { synced } => {
                    let synced = *synced;
                    self.head(side, at, bytes, synced, stats, sink)
                }
                State::Seek => self.seek(side, at, bytes, stats, sink),
                State::Resync => self.resync(side, at, bytes, sink),
                State::Stopped => return,
            };
        }
    }

    /// Looks for a head, or for a stream whose head is gone, at the beginning of a record.
    fn seek<'b>(
        &mut self,
        side: Side,
        at: Stamp,
        bytes: &'b [u8],
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) -> &'b [u8] {
        let start = detect::skip_empty_lines(bytes);
        if !start.is_empty() && head::may_be_head(start, side) {
            self.lane(side).state = State::Head { synced: false };
            return start;
        }
        if side == Side::Response && looks_like_stream(bytes) {
            // Late bytes of an exchange given up when the next request was written are not a new one.
            let found = self.exchanges.answered_at(at.ret);
            if found.is_some() || !self.exchanges.awaits_later(at.ret) {
                let exchange = self.begin_response(found, at, stats, sink);
                emit_head(sink, exchange.no, side, at, at, Head::Unseen);
                emit_damage(sink, &exchange, at);
                self.response.body(State::Resync, exchange.no, Shape::Sse);
                return bytes;
            }
        }
        self.noise(stats);
        &[]
    }

    /// Looks for the framing of a body again.
    fn resync<'b>(&mut self, side: Side, at: Stamp, bytes: &'b [u8], sink: &mut impl FnMut(HttpEvent<'_>)) -> &'b [u8] {
        let lane = self.lane(side);
        let exchange = lane.exchange;
        let is_head = match side {
            Side::Request => detect::is_request_line(bytes) == Some(true),
            Side::Response => detect::guess(bytes) == detect::Guess::Response,
        };
        if is_head {
            lane.exchange = None;
            lane.state = State::Head { synced: false };
            if side == Side::Response {
                self.abort(exchange, at, AbortCause::Desync, sink);
            }
            return bytes;
        }
        let found = resync::find_chunk(bytes, lane.shape);
        if found.is_some() {
            lane.state = State::Body(Body::Chunked(chunked::Chunked::new()));
        }
        let (skipped, rest) = bytes.split_at_checked(found.unwrap_or(bytes.len())).unwrap_or((bytes, &[]));
        if !skipped.is_empty() {
            let len = Some(skipped.len() as u64);
            emit(sink, exchange, side, at, HttpEventKind::Gap { len, cause: GapCause::Lost });
        }
        if side == Side::Request && resync::ends_body(bytes) {
            self.finish(side, at, sink);
        }
        rest
    }

    /// Takes bytes of a head; returns what follows it.
    fn head<'b>(
        &mut self,
        side: Side,
        at: Stamp,
        mut bytes: &'b [u8],
        synced: bool,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) -> &'b [u8] {
        let lane = self.lane(side);
        let buffered = !lane.head.is_empty();
        if !buffered {
            bytes = detect::skip_empty_lines(bytes);
            if bytes.is_empty() {
                return bytes;
            }
            lane.first = at;
            let within = bytes.get(..limits::HEAD_BYTES).unwrap_or(bytes);
            match self.whole_head(side, at, within, synced, stats, sink) {
                Ok(Some(used)) => return bytes.get(used..).unwrap_or_default(),
                Ok(None) => {}
                Err(reason) => return self.bad_head(side, at, &[], reason, synced, stats, sink),
            }
        }
        // A head that turns out not to be one may have been cut short by the beginning of a real one.
        let again = if buffered { bytes } else { &[] };
        let lane = self.lane(side);
        match lane.head.push(bytes) {
            Pushed::Partial => {
                let start = lane.head.as_slice();
                if start.len() < 64 && !head::may_be_head(start, side) {
                    return self.bad_head(side, at, again, DropReason::HeadInvalid, synced, stats, sink);
                }
                &[]
            }
            Pushed::Complete(used) => {
                let whole = lane.head.take();
                match self.whole_head(side, at, &whole, synced, stats, sink) {
                    Ok(Some(_)) => bytes.get(used..).unwrap_or_default(),
                    Ok(None) => self.bad_head(side, at, again, DropReason::HeadInvalid, synced, stats, sink),
                    Err(reason) => self.bad_head(side, at, again, reason, synced, stats, sink),
                }
            }
            Pushed::TooLong => self.bad_head(side, at, &[], DropReason::HeadTooLong, synced, stats, sink),
        }
    }

    /// Parses a head that is complete in `bytes`, else `None`; on success its length.
    fn whole_head(
        &mut self,
        side: Side,
        at: Stamp,
        bytes: &[u8],
        synced: bool,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) -> Result<Option<usize>, DropReason> {
        let parsed = match side {
            Side::Request => head::parse_request(bytes, |h, framing| self.on_request(at, h, framing, stats, sink))?,
            Side::Response => head::parse_response(bytes, |h, framing, shape| {
                self.on_response(at, h, framing, shape, synced, stats, sink);
            })?,
        };
        Ok(parsed.map(|((), used)| used))
    }

    /// Gives up on a head. Returns the bytes that may hold a better one.
    #[expect(clippy::too_many_arguments, reason = "one place for every way in which a head can be bad")]
    fn bad_head<'b>(
        &mut self,
        side: Side,
        at: Stamp,
        again: &'b [u8],
        reason: DropReason,
        synced: bool,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) -> &'b [u8] {
        let lane = self.lane(side);
        lane.head.take();
        lane.state = State::Seek;
        if !synced && reason == DropReason::HeadInvalid {
            self.noise(stats);
        } else {
            stats.count(reason);
            if side == Side::Response {
                let spoilt = self.exchanges.answered_at(at.ret);
                self.abort(spoilt, at, AbortCause::Desync, sink);
            }
        }
        again
    }

    fn on_request(
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
            Framing::Chunked => self.request.state = State::Body(Body::Chunked(chunked::Chunked::new())),
            Framing::Invalid | Framing::UntilClose => {
                stats.count(DropReason::HeadInvalid);
                self.lose_request();
                self.request.exchange = None;
                self.request.state = State::Seek;
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what was parsed of the head, and where it goes")]
    fn on_response(
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
        let found = self.exchanges.answered_at(at.ret);
        let exchange = self.begin_response(found, first, stats, sink);
        let no = exchange.no;
        emit_head(sink, no, Side::Response, at, first, Head::Response(*head));
        emit_damage(sink, &exchange, at);
        self.response.exchange = Some(no);
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
                self.response.body(State::Body(Body::Chunked(chunked::Chunked::new())), no, shape);
            }
            Framing::UntilClose => self.response.body(State::Body(Body::UntilClose), no, Shape::Other),
            Framing::Invalid => {
                stats.count(DropReason::HeadInvalid);
                self.abort(Some(no), at, AbortCause::Desync, sink);
                self.response.state = State::Seek;
            }
        }
    }

    /// Marks the exchange that is being answered, or makes one for a response without a request. Those before it in a
    /// row with lost bytes will not be answered any more. Returns the exchange as it was.
    fn begin_response(
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

    fn gap(&mut self, side: Side, at: Stamp, len: Option<u64>, cause: GapCause, sink: &mut impl FnMut(HttpEvent<'_>)) {
        let lane = self.lane(side);
        let exchange = lane.exchange;
        match (&mut lane.state, len) {
            (State::Stopped, _) => {}
            (State::Seek | State::Head { .. }, _) => {
                lane.head.take();
                lane.state = State::Seek;
                if side == Side::Response {
                    self.exchanges.damage_next(at.ret, cause);
                }
            }
            (State::Resync | State::Body(Body::UntilClose), _) => {
                emit(sink, exchange, side, at, HttpEventKind::Gap { len, cause });
            }
            (State::Body(Body::Length(left)), Some(n)) => {
                let within = n.min(*left);
                *left -= within;
                let complete = *left == 0;
                emit(sink, exchange, side, at, HttpEventKind::Gap { len: Some(within), cause });
                if complete {
                    self.finish(side, at, sink);
                }
                if n > within {
                    self.gap(side, at, Some(n - within), cause, sink);
                }
            }
            (State::Body(Body::Chunked(chunked)), Some(n)) => {
                if chunked.skip(n) {
                    emit(sink, exchange, side, at, HttpEventKind::Gap { len, cause });
                } else {
                    self.damage(side, at, len, cause, sink);
                }
            }
            (State::Body(_), _) => self.damage(side, at, len, cause, sink),
        }
    }

    /// The framing of the body is lost.
    fn damage(
        &mut self,
        side: Side,
        at: Stamp,
        len: Option<u64>,
        cause: GapCause,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        let lane = self.lane(side);
        lane.state = State::Resync;
        emit(sink, lane.exchange, side, at, HttpEventKind::Gap { len, cause });
        if side == Side::Request {
            self.lose_request();
        }
    }

    /// The end of the current request body will not be seen.
    fn lose_request(&mut self) {
        if let Some(exchange) = self.request.exchange.and_then(|no| self.exchanges.get_mut(no)) {
            exchange.request = RequestPart::Lost;
        }
    }

    /// The current message of a side is complete.
    fn finish(&mut self, side: Side, at: Stamp, sink: &mut impl FnMut(HttpEvent<'_>)) {
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
    fn abort(&mut self, no: Option<ExchangeNo>, at: Stamp, cause: AbortCause, sink: &mut impl FnMut(HttpEvent<'_>)) {
        if let Some(no) = no
            && self.exchanges.remove_first(|e| e.no == no).is_some()
        {
            self.forget(no);
            emit(sink, Some(no), Side::Response, at, HttpEventKind::Abort(cause));
        }
    }

    fn forget(&mut self, no: ExchangeNo) {
        for lane in [&mut self.request, &mut self.response] {
            if lane.exchange == Some(no) {
                lane.exchange = None;
            }
        }
    }

    /// A new request begins: what could not be followed before it will not be any more, nor can what waits behind it be
    /// told apart.
    fn give_up_damaged(&mut self, at: Stamp, sink: &mut impl FnMut(HttpEvent<'_>)) {
        let resync = matches!(self.response.state, State::Resync);
        if resync {
            self.response.state = State::Seek;
            self.abort(self.response.exchange, at, AbortCause::Desync, sink);
        }
        if resync || self.exchanges.is_damaged() {
            while let Some(no) = self.exchanges.remove_first(Exchange::is_unanswered) {
                self.forget(no);
                emit(sink, Some(no), Side::Response, at, HttpEventKind::Abort(AbortCause::Desync));
            }
        }
    }

    /// Lets all open exchanges go. Which response belongs to which request is not known after that.
    fn evict(&mut self, at: Stamp, stats: &mut Stats, sink: &mut impl FnMut(HttpEvent<'_>)) {
        while let Some(no) = self.exchanges.remove_first(|_| true) {
            stats.count(DropReason::ExchangesFull);
            self.forget(no);
            emit(sink, Some(no), Side::Response, at, HttpEventKind::Abort(AbortCause::Evicted));
        }
        self.response.head.take();
        self.response.state = State::Seek;
    }

    fn close(&mut self, at: MonoNs, cause: CloseCause, sink: &mut impl FnMut(HttpEvent<'_>)) {
        let at = Stamp { entry: at, ret: at };
        if cause == CloseCause::Freed && matches!(self.response.state, State::Body(Body::UntilClose)) {
            self.finish(Side::Response, at, sink);
        }
        while let Some(no) = self.exchanges.remove_first(|_| true) {
            emit(sink, Some(no), Side::Response, at, HttpEventKind::Abort(AbortCause::Closed(cause)));
        }
        (self.request, self.response) = (Lane::new(State::Stopped), Lane::new(State::Stopped));
    }

    fn noise(&mut self, stats: &mut Stats) {
        if !std::mem::replace(&mut self.noise_counted, true) {
            stats.count(DropReason::NotHttp);
        }
    }
}

fn emit(
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

fn emit_head(
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
fn emit_damage(sink: &mut impl FnMut(HttpEvent<'_>), exchange: &Exchange, at: Stamp) {
    if let ResponsePart::Damaged(cause) = exchange.response {
        emit(sink, Some(exchange.no), Side::Response, at, HttpEventKind::Gap { len: None, cause });
    }
}

#[cfg(test)]
mod tests;
