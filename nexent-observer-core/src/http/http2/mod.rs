//! HTTP/2 (RFC 9113) on one connection, seen from its start or joined at any time.

mod frame;
mod head;
mod hpack;
mod lane;
mod messages;
mod stream;

use self::{
    lane::{BadBlock, Heading, Lane, Skipped, Step},
    stream::{Damage, Part, Streams},
};
use super::{AbortCause, ExchangeNo, HttpEvent, HttpEventKind, Side, StartSeen, http1::Switch};
use crate::{
    conn::{CloseCause, GapCause, StreamEvent},
    event::{Direction, MonoNs, Role, Stamp},
    stats::{DropReason, Stats},
};

/// Whether a record looks like frames of a connection that was joined mid-life.
pub(super) fn looks_like_frames(bytes: &[u8]) -> bool {
    frame::begins_with_frame(bytes, frame::FIRST_MAX_FRAME)
}

/// State of one connection.
#[derive(Debug)]
pub(super) struct Http2 {
    /// Known from the preface, from a head, or from the kind of body that comes.
    role: Option<Role>,
    read: Lane,
    write: Lane,
    streams: Streams,
    /// Heads may have gone by unseen: a stream that is not known is not an error.
    incomplete: bool,
    /// That this is HTTP/2 is more than a guess. Before that no exchange begins.
    sure: bool,
}

impl Http2 {
    /// A connection whose exchanges are numbered from `next`.
    pub(super) fn new(start: StartSeen, next: ExchangeNo) -> Self {
        let from_start = start == StartSeen::Yes;
        Self {
            role: None,
            read: Lane::new(from_start),
            write: Lane::new(from_start),
            streams: Streams::new(next, from_start),
            incomplete: !from_start,
            sure: from_start,
        }
    }

    /// A connection that was HTTP/1: the exchange of the upgrade goes on as stream 1, half closed by the client (RFC 7540
    /// section 3.2).
    pub(super) fn upgraded(switch: Switch) -> Self {
        let mut http2 = Self::new(StartSeen::Yes, switch.next);
        http2.role = Some(switch.role);
        http2.streams.adopt(switch.exchange, switch.asked);
        http2
    }

    /// Whether enough was seen to know who is the client, so that bytes that look like HTTP/1 are not.
    pub(super) fn is_sure(&self) -> bool {
        self.sure
    }

    /// The connection turned out not to speak HTTP/2: ends what is open. The number of the next exchange.
    pub(super) fn give_up(&mut self, at: Stamp, sink: &mut impl FnMut(HttpEvent<'_>)) -> ExchangeNo {
        while let Some(stream) = self.streams.remove_oldest() {
            let kind = HttpEventKind::Abort(AbortCause::Desync);
            sink(HttpEvent { exchange: stream.no, side: Side::Response, at, kind });
        }
        self.streams.next()
    }

    pub(super) fn feed(&mut self, ev: &StreamEvent<'_>, stats: &mut Stats, sink: &mut impl FnMut(HttpEvent<'_>)) {
        match *ev {
            StreamEvent::Data { dir, at, bytes } => {
                self.lane(dir).last = at;
                self.data(dir, at, bytes, stats, sink);
            }
            StreamEvent::Gap { dir, at, len, cause } => self.gap(dir, at, len, cause, stats, sink),
            StreamEvent::Close { at, cause } => self.close(at, cause, sink),
        }
    }

    fn lane(&mut self, dir: Direction) -> &mut Lane {
        match dir {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        }
    }

    /// Which messages a direction carries, where known.
    fn side(&self, dir: Direction) -> Option<Side> {
        Some(match (self.role?, dir) {
            (Role::Client, Direction::Write) | (Role::Server, Direction::Read) => Side::Request,
            (Role::Client, Direction::Read) | (Role::Server, Direction::Write) => Side::Response,
        })
    }

    /// A direction was found to carry the messages of a side.
    fn learn(&mut self, dir: Direction, side: Side) {
        self.sure = true;
        self.role.get_or_insert(match (dir, side) {
            (Direction::Write, Side::Request) | (Direction::Read, Side::Response) => Role::Client,
            (Direction::Read, Side::Request) | (Direction::Write, Side::Response) => Role::Server,
        });
    }

    fn data(
        &mut self,
        dir: Direction,
        at: Stamp,
        mut bytes: &[u8],
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        loop {
            if self.lane(dir).is_seeking() && !bytes.is_empty() {
                let (lane, streams) = match dir {
                    Direction::Read => (&mut self.read, &self.streams),
                    Direction::Write => (&mut self.write, &self.streams),
                };
                let before = bytes.len();
                let found = lane.resync(&mut bytes, |id| streams.is_open(id));
                if !found || bytes.len() < before {
                    // A stream that began after the loss has now lost bytes too.
                    self.damage(dir, at, GapCause::Lost, sink);
                }
                if !found {
                    return;
                }
            }
            match self.lane(dir).step(at, &mut bytes) {
                Step::More => return,
                Step::Data(stream, body) => self.on_body(dir, at, stream, body, stats, sink),
                Step::End(stream) => self.on_end(dir, at, stream, sink),
                Step::Block(heading, block) => {
                    let decoded = match block {
                        Ok(block) => self.decode(dir, heading, &block, stats),
                        Err(why) => {
                            self.lane(dir).hpack.forget();
                            match why {
                                BadBlock::Lost => {}
                                BadBlock::TooLong => stats.count(DropReason::HeadTooLong),
                                BadBlock::Invalid => stats.count(DropReason::HeadInvalid),
                            }
                            None
                        }
                    };
                    self.on_block(dir, at, heading, decoded.as_ref(), stats, sink);
                }
                Step::Preface => self.learn(dir, Side::Request),
                Step::Reset(stream, code) => self.on_reset(dir, at, stream, code, sink),
                Step::GoAway(last) => self.on_go_away(dir, at, last, sink),
                Step::MaxFrame(len) => {
                    let other = if dir == Direction::Read { Direction::Write } else { Direction::Read };
                    self.lane(other).allow_frames(len);
                }
                Step::Invalid => {
                    stats.count(DropReason::NotHttp);
                    self.lose(dir, at, GapCause::Lost, sink);
                }
            }
        }
    }

    /// Decodes a header block. `None` when it cannot be.
    fn decode(&mut self, dir: Direction, heading: Heading, block: &[u8], stats: &mut Stats) -> Option<hpack::Fields> {
        let doubted = std::mem::take(&mut self.lane(dir).in_doubt);
        if doubted && !self.streams.lost_no_head(heading.stream) {
            self.lane(dir).hpack.forget();
        }
        let Ok(fields) = self.lane(dir).hpack.decode(block) else {
            stats.count(DropReason::HeadInvalid);
            return None;
        };
        if fields.too_long {
            stats.count(DropReason::HeadTooLong);
        }
        if !heading.is_promise
            && let Some(side) = fields.side()
        {
            self.learn(dir, side);
        }
        Some(fields)
    }

    fn gap(
        &mut self,
        dir: Direction,
        at: Stamp,
        len: Option<u64>,
        cause: GapCause,
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        let skipped = match len {
            Some(n) => self.lane(dir).skip(n),
            None => Skipped::Beyond(None),
        };
        let body = match skipped {
            Skipped::Inside(body) => body,
            Skipped::Beyond(body) => body.map(|(stream, len, _)| (stream, len)),
        };
        if let Some((stream, len)) = body.filter(|(_, len)| *len > 0) {
            self.on_body_gap(dir, at, stream, u64::from(len), cause, stats, sink);
        }
        match skipped {
            // What the gap completed is told at once.
            Skipped::Inside(_) => self.data(dir, at, &[], stats, sink),
            Skipped::Beyond(body) => {
                if let Some((stream, _, true)) = body {
                    self.on_end(dir, at, stream, sink);
                }
                self.lose(dir, at, cause, sink);
            }
        }
    }

    /// The frames of a direction cannot be followed any more.
    fn lose(&mut self, dir: Direction, at: Stamp, cause: GapCause, sink: &mut impl FnMut(HttpEvent<'_>)) {
        self.incomplete = true;
        let is_request = self.side(dir) == Some(Side::Request);
        let lane = self.lane(dir);
        lane.lose();
        if is_request {
            lane.in_doubt = true;
            self.streams.lose_heads();
        } else {
            lane.hpack.forget();
        }
        self.damage(dir, at, cause, sink);
    }

    /// Each stream may have lost bytes in a direction.
    fn damage(&mut self, dir: Direction, at: Stamp, cause: GapCause, sink: &mut impl FnMut(HttpEvent<'_>)) {
        let Some(side) = self.side(dir) else { return };
        for stream in self.streams.iter_mut() {
            let no = stream.no;
            let (part, damage) = stream.side(side);
            match (*part, *damage) {
                (Part::Awaited, Damage::None) => *damage = Damage::Untold(cause),
                (Part::Open, Damage::None) => {
                    *damage = Damage::Told;
                    sink(HttpEvent { exchange: no, side, at, kind: HttpEventKind::Gap { len: None, cause } });
                }
                _ => {}
            }
        }
    }

    fn close(&mut self, at: MonoNs, cause: CloseCause, sink: &mut impl FnMut(HttpEvent<'_>)) {
        let at = Stamp { entry: at, ret: at };
        while let Some(stream) = self.streams.remove_oldest() {
            // Its end may be among the bytes that were lost: that it was not seen says nothing.
            let lost = stream.response.0 != Part::Done && stream.response.1 != Damage::None;
            let cause = if lost { AbortCause::Desync } else { AbortCause::Closed(cause) };
            sink(HttpEvent { exchange: stream.no, side: Side::Response, at, kind: HttpEventKind::Abort(cause) });
        }
        self.read.lose();
        self.write.lose();
    }
}

#[cfg(test)]
mod tests;
