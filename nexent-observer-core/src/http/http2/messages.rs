//! What the frames of streams set going: exchanges begin, are answered, end and are given up.

use super::{
    Http2, head,
    hpack::Fields,
    lane::Heading,
    stream::{Damage, Part, Stream},
};
use crate::{
    conn::GapCause,
    event::{Direction, Stamp},
    http::{AbortCause, ExchangeNo, Head, HttpEvent, HttpEventKind, Side, http1},
    limits,
    stats::{DropReason, Stats},
};

/// `NO_ERROR` (RFC 9113 section 7).
const NO_ERROR: u32 = 0;

impl Http2 {
    /// A header block is complete; `fields` is `None` when it could not be decoded.
    pub(super) fn on_block(
        &mut self,
        dir: Direction,
        at: Stamp,
        heading: Heading,
        fields: Option<&Fields>,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        let id = heading.stream;
        // Nobody pushes answers of LLMs: pushed streams (even numbers) are left alone.
        if heading.is_promise || id.is_multiple_of(2) {
            return;
        }
        let Some(side) = self.side(dir) else { return };
        let before = self.streams.get_mut(id).map(|stream| *stream.side(side));
        if before.is_none() && self.streams.has_ended(id) {
            return;
        }
        let is_trailer = match (before, fields) {
            (Some((Part::Open | Part::Done, _)), _) => true,
            (Some((Part::Awaited, Damage::None)), Some(fields)) => fields.is_trailer(),
            // The head may have gone by: then a block that ends the stream and cannot be resolved is not one.
            (_, Some(fields)) => fields.is_trailer() || (heading.end_stream && fields.side().is_none()),
            (_, None) => false,
        };
        if side == Side::Request && !is_trailer {
            self.streams.saw_request(id);
        }
        match fields {
            _ if is_trailer => {}
            Some(fields) if side == Side::Response => {
                // An interim response; without a body by definition.
                if head::status(fields).is_some_and(|status| (100..200).contains(&status)) {
                    return;
                }
                head::response(fields, |it| self.on_head(side, at, heading, Head::Response(*it), stats, sink));
            }
            Some(fields) => {
                head::request(fields, |it| self.on_head(side, at, heading, Head::Request(*it), stats, sink));
            }
            None => self.on_head(side, at, heading, Head::Unseen, stats, sink),
        }
        if heading.end_stream {
            self.on_end(dir, at, id, sink);
        }
    }

    /// A head begins a side of a stream.
    fn on_head(
        &mut self,
        side: Side,
        at: Stamp,
        heading: Heading,
        head: Head<'_>,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        let id = heading.stream;
        if !self.streams.is_open(id) {
            self.open(side, at, id, stats, sink);
        }
        let Some(stream) = self.streams.get_mut(id) else { return };
        let no = stream.no;
        let (part, damage) = stream.side(side);
        *part = Part::Open;
        let before = *damage;
        // The damage was before the head, unless the head itself is lost.
        if let Damage::Untold(_) = before {
            *damage = Damage::None;
        }
        sink(HttpEvent { exchange: no, side, at, kind: HttpEventKind::Head { first: heading.first, head } });
        if let (Damage::Untold(cause), Head::Unseen) = (before, head) {
            sink(HttpEvent { exchange: no, side, at, kind: HttpEventKind::Gap { len: None, cause } });
        }
    }

    /// Opens a stream that one of its sides begins.
    fn open(&mut self, side: Side, at: Stamp, id: u32, stats: &mut Stats, sink: &mut impl FnMut(HttpEvent<'_>)) {
        if self.streams.len() >= limits::OPEN_EXCHANGES
            && let Some(oldest) = self.streams.remove_oldest()
        {
            stats.count(DropReason::ExchangesFull);
            emit(sink, oldest.no, side, at, HttpEventKind::Abort(AbortCause::Evicted));
        }
        self.streams.open(id);
        stats.http_exchanges += 1;
        if side == Side::Response {
            stats.count(DropReason::Joined);
        }
    }

    /// The exchange of a stream on which a body goes on; begun without its head, if that may have gone by unseen.
    fn body_of(
        &mut self,
        side: Side,
        at: Stamp,
        id: u32,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) -> Option<&mut Stream> {
        let part = self.streams.get_mut(id).map(|stream| stream.side(side).0);
        let unknown = !self.incomplete || id.is_multiple_of(2) || self.streams.has_ended(id);
        if part == Some(Part::Done) || (part.is_none() && unknown) {
            return None;
        }
        if part != Some(Part::Open) {
            let heading = Heading { stream: id, end_stream: false, is_promise: false, first: at };
            self.on_head(side, at, heading, Head::Unseen, stats, sink);
        }
        self.streams.get_mut(id)
    }

    pub(super) fn on_body(
        &mut self,
        dir: Direction,
        at: Stamp,
        id: u32,
        body: &[u8],
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        if self.role.is_none() && http1::looks_like_stream(body) {
            self.learn(dir, Side::Response);
        }
        let Some(side) = self.side(dir) else { return };
        let Some(stream) = self.body_of(side, at, id, stats, sink) else { return };
        // It goes on: its end was not in what was lost.
        stream.side(side).1 = Damage::None;
        emit(sink, stream.no, side, at, HttpEventKind::Body(body));
    }

    /// Bytes of a body are not known; how many is.
    #[expect(clippy::too_many_arguments, reason = "what is known of the gap, and where it goes")]
    pub(super) fn on_body_gap(
        &mut self,
        dir: Direction,
        at: Stamp,
        id: u32,
        len: u64,
        cause: GapCause,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        let Some(side) = self.side(dir) else { return };
        let Some(stream) = self.body_of(side, at, id, stats, sink) else { return };
        emit(sink, stream.no, side, at, HttpEventKind::Gap { len: Some(len), cause });
    }

    /// The last frame of a side is complete.
    pub(super) fn on_end(&mut self, dir: Direction, at: Stamp, id: u32, sink: &mut impl FnMut(HttpEvent<'_>)) {
        let Some(side) = self.side(dir) else { return };
        let last_request = match dir {
            Direction::Read => self.write.last,
            Direction::Write => self.read.last,
        };
        let Some(stream) = self.streams.get_mut(id) else { return };
        let no = stream.no;
        let (part, damage) = stream.side(side);
        match part {
            Part::Done => return,
            Part::Open => {}
            Part::Awaited => {
                emit(sink, no, side, at, HttpEventKind::Head { first: at, head: Head::Unseen });
                if let Damage::Untold(cause) = *damage {
                    emit(sink, no, side, at, HttpEventKind::Gap { len: None, cause });
                }
            }
        }
        (*part, *damage) = (Part::Done, Damage::None);
        let mut inferred = false;
        if side == Side::Response && stream.may_have_ended() {
            emit(sink, no, Side::Request, last_request, HttpEventKind::End);
            inferred = true;
        }
        let over = stream.is_over() || inferred;
        emit(sink, no, side, at, HttpEventKind::End);
        if over {
            self.streams.remove(id);
        }
    }

    pub(super) fn on_reset(
        &mut self,
        dir: Direction,
        at: Stamp,
        id: u32,
        code: u32,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        let Some(stream) = self.streams.remove(id) else { return };
        let by_peer = dir == Direction::Read;
        // A server that has answered may ask so that the rest of the request is not sent (RFC 9113 section 8.1).
        let answered = stream.response.0 == Part::Done && code == NO_ERROR;
        let kind =
            if answered { HttpEventKind::End } else { HttpEventKind::Abort(AbortCause::Reset { by_peer, code }) };
        let side = if answered { Side::Request } else { Side::Response };
        emit(sink, stream.no, side, at, kind);
    }

    pub(super) fn on_go_away(&mut self, dir: Direction, at: Stamp, last: u32, sink: &mut impl FnMut(HttpEvent<'_>)) {
        // A client's GOAWAY is about what the server pushes.
        if self.side(dir) != Some(Side::Response) {
            return;
        }
        while let Some(stream) = self.streams.remove_above(last) {
            emit(sink, stream.no, Side::Response, at, HttpEventKind::Abort(AbortCause::GoAway));
        }
    }
}

fn emit(sink: &mut impl FnMut(HttpEvent<'_>), exchange: ExchangeNo, side: Side, at: Stamp, kind: HttpEventKind<'_>) {
    sink(HttpEvent { exchange, side, at, kind });
}
