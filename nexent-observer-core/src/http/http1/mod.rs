//! HTTP/1.0 and 1.1 (RFC 9112) on one connection.

mod chunked;
mod exchange;
mod head;
mod lane;
mod messages;
mod resync;

pub(super) use resync::looks_like_stream;

use self::{
    chunked::Step,
    exchange::Exchanges,
    head::{Framing, Pushed, Shape},
    lane::{Body, Lane, State},
    messages::{emit, emit_damage, emit_head},
};
use super::{AbortCause, ExchangeNo, Head, HttpEvent, HttpEventKind, RequestHead, Side, StartSeen, detect};
use crate::{
    conn::{CloseCause, GapCause, StreamEvent},
    event::{Direction, MonoNs, Role, Stamp},
    limits,
    stats::{DropReason, Stats},
};

/// State of one connection.
#[derive(Debug)]
pub(super) struct Http1 {
    role: Role,
    request: Lane,
    response: Lane,
    exchanges: Exchanges,
    /// Whether the next response belongs to the oldest request that waits for one.
    in_step: bool,
    /// First byte of the last response that had no request, until the next request.
    orphan: Option<MonoNs>,
    /// Whether this turn was counted as no HTTP.
    noise_counted: bool,
    last: Side,
    tunnel: bool,
    /// The connection became a WebSocket: there are no more messages on it.
    websocket: bool,
    switch: Option<Switch>,
}

/// An upgrade to HTTP/2 (RFC 7540 section 3.2): the exchange is answered on the new connection's stream 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Switch {
    pub(super) role: Role,
    pub(super) exchange: ExchangeNo,
    /// The `End` of its request was given out.
    pub(super) asked: bool,
    /// Number of the next exchange.
    pub(super) next: ExchangeNo,
}

impl Http1 {
    /// A connection whose exchanges are numbered from `next`.
    pub(super) fn new(role: Role, start: StartSeen, next: ExchangeNo) -> Self {
        let state = match start {
            StartSeen::Yes => State::Head { synced: true },
            StartSeen::No => State::Seek,
        };
        Self {
            role,
            request: Lane::new(state),
            response: Lane::new(state),
            exchanges: Exchanges::new(next),
            in_step: true,
            orphan: None,
            noise_counted: false,
            last: Side::Request,
            tunnel: false,
            websocket: false,
            switch: None,
        }
    }

    /// Whether the connection became a tunnel by CONNECT.
    pub(super) fn is_tunnel(&self) -> bool {
        self.tunnel
    }

    /// Number of the next exchange, if the connection speaks another protocol since a response 101.
    pub(super) fn upgraded(&self) -> Option<ExchangeNo> {
        // Asked after every read: first what the read has just used, for the other lane is seldom in the caches.
        let stopped = |lane: &Lane| matches!(lane.state, State::Stopped);
        let (now, other) = match self.last {
            Side::Request => (&self.request, &self.response),
            Side::Response => (&self.response, &self.request),
        };
        let stopped = stopped(now) && stopped(other);
        (stopped && !self.tunnel).then(|| self.exchanges.next())
    }

    /// The connection turned out not to speak HTTP/1: ends what is open. The number of the next exchange.
    pub(super) fn give_up(&mut self, at: Stamp, sink: &mut impl FnMut(HttpEvent<'_>)) -> ExchangeNo {
        while let Some(no) = self.exchanges.remove_first(|_| true) {
            emit(sink, Some(no), Side::Response, at, HttpEventKind::Abort(AbortCause::Desync));
        }
        self.exchanges.next()
    }

    /// The protocol that a response said to go on with, once; what [`Self::feed`] gave back is of it.
    pub(super) fn take_switch(&mut self) -> Option<Switch> {
        self.switch.take()
    }

    /// Takes one event of the connection. Returns the bytes that belong to another protocol.
    pub(super) fn feed<'b>(
        &mut self,
        ev: &StreamEvent<'b>,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) -> &'b [u8] {
        match *ev {
            StreamEvent::Data { dir, at, bytes } => return self.data(self.side(dir), at, bytes, stats, sink),
            StreamEvent::Gap { dir, at, len, cause } => self.gap(self.side(dir), at, len, cause, stats, sink),
            StreamEvent::Close { at, cause } => self.close(at, cause, sink),
        }
        &[]
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

    fn data<'b>(
        &mut self,
        side: Side,
        at: Stamp,
        mut bytes: &'b [u8],
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) -> &'b [u8] {
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
                    Step::More => return &[],
                    Step::End(rest) => {
                        self.finish(side, at, sink);
                        rest
                    }
                    Step::Invalid => {
                        stats.count(DropReason::ChunkInvalid);
                        self.damage(side, at, Some(bytes.len() as u64), GapCause::Lost, sink);
                        return &[];
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
                    emit(sink, exchange, side, at, HttpEventKind::Body(bytes));
                    return &[];
                }
                State::Head { synced } => {
                    let synced = *synced;
                    self.head(side, at, bytes, synced, stats, sink)
                }
                State::Seek => self.seek(side, at, bytes, stats, sink),
                State::Resync => self.resync(side, at, bytes, sink),
                State::Stopped => return bytes,
            };
        }
        bytes
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
        let whole = side == Side::Response || detect::is_known_method(start);
        if !start.is_empty() && whole && head::may_be_head(start, side) {
            self.lane(side).state = State::Head { synced: false };
            return start;
        }
        if side == Side::Response && looks_like_stream(bytes) {
            // Late bytes of an exchange given up when the next request was written are not a new one.
            let found = self.exchanges.answered_at(at.ret, self.in_step);
            if found.is_some() || !self.exchanges.awaits_later(at.ret) {
                let exchange = self.begin_response(found, at, stats, sink);
                emit_head(sink, exchange.no, side, at, at, Head::Unseen);
                emit_damage(sink, &exchange, at);
                self.response.body(State::Resync, exchange.no, Shape::Sse);
                return bytes;
            }
        }
        if side == Side::Response {
            // The middle of something: the answer to what waits may be in it, or in what was lost before it.
            self.in_step = false;
            self.exchanges.damage_unanswered(at.ret, GapCause::Lost);
        }
        self.noise(stats);
        &[]
    }

    /// Looks for the framing of a body again.
    fn resync<'b>(&mut self, side: Side, at: Stamp, bytes: &'b [u8], sink: &mut impl FnMut(HttpEvent<'_>)) -> &'b [u8] {
        let lane = self.lane(side);
        let exchange = lane.exchange;
        let is_head = match side {
            Side::Request => detect::is_known_method(bytes) && detect::is_request_line(bytes) == Some(true),
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
        let had = lane.head.as_slice().len();
        match lane.head.push(bytes) {
            Pushed::Partial => {
                // What came before was looked at when it came; so many bytes always tell.
                if had < 64 && !head::may_be_head(lane.head.as_slice(), side) {
                    let why = head::why_none(lane.head.as_slice());
                    return self.bad_head(side, at, again, why, synced, stats, sink);
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
        // The parser takes methods that are given up while the head is not complete: cuts must not tell.
        if !head::may_be_head(bytes, side) {
            return Err(head::why_none(bytes));
        }
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
                self.in_step = false;
                let spoilt = self.exchanges.answered_at(at.ret, self.in_step);
                self.abort(spoilt, at, AbortCause::Desync, sink);
            }
        }
        again
    }

    fn gap(
        &mut self,
        side: Side,
        at: Stamp,
        len: Option<u64>,
        cause: GapCause,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        let lane = self.lane(side);
        let exchange = lane.exchange;
        match (&mut lane.state, len) {
            (State::Stopped, _) => {}
            (State::Seek | State::Head { .. }, _) => {
                let head = lane.head.take();
                lane.state = State::Seek;
                // Left out on purpose, it is the middle of one turn. What was lost may be the rest of one request and the
                // beginning of the next: then whose answer comes is not known.
                if side == Side::Request
                    && cause == GapCause::Capped
                    && let Some(head) = head::up_to_cut(head)
                {
                    let on = |h: &RequestHead<'_>, _| self.on_request(at, h, Framing::Cut(len, cause), stats, sink);
                    // What is no head even so far is let go like one of which nothing is known.
                    head::parse_request(&head, on).ok();
                }
                if side == Side::Response {
                    self.in_step = false;
                    self.exchanges.damage_unanswered(at.ret, cause);
                }
            }
            (State::Resync | State::Body(Body::UntilClose), _) => {
                if side == Side::Response {
                    self.exchanges.damage_unanswered(at.ret, cause);
                }
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
                    self.gap(side, at, Some(n - within), cause, stats, sink);
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
        match side {
            Side::Request => self.lose_request(),
            Side::Response => {
                self.in_step = false;
                self.exchanges.damage_unanswered(at.ret, cause);
            }
        }
    }

    fn close(&mut self, at: MonoNs, cause: CloseCause, sink: &mut impl FnMut(HttpEvent<'_>)) {
        let at = Stamp { entry: at, ret: at };
        let until_close = matches!(self.response.state, State::Body(Body::UntilClose));
        if cause == CloseCause::Freed && until_close && !self.websocket {
            self.finish(Side::Response, at, sink);
        }
        let in_step = self.in_step;
        // Their responses may be among the bytes that were lost: that none was seen says nothing.
        while let Some(no) = self.exchanges.remove_first(|e| !in_step && e.is_unanswered()) {
            emit(sink, Some(no), Side::Response, at, HttpEventKind::Abort(AbortCause::Desync));
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

#[cfg(test)]
mod tests;
