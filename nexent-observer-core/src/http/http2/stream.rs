//! Streams open on one HTTP/2 connection.

use smallvec::SmallVec;

use crate::{
    conn::GapCause,
    http::{ExchangeNo, Side},
};

/// How far one side of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Its head was not seen.
    Awaited,
    /// Its head was given out.
    Open,
    /// Its `End` was given out.
    Done,
}

/// What was lost of one side of a stream and not made good by what came after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    None,
    /// To be told behind the head.
    Untold(GapCause),
    /// Told; the end of the side may have been in it.
    Told,
}

/// One stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) no: ExchangeNo,
    pub(super) request: (Part, Damage),
    pub(super) response: (Part, Damage),
}

impl Stream {
    pub(super) fn side(&mut self, side: Side) -> &mut (Part, Damage) {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }

    /// Whether the end of the request may be among what was lost.
    pub(super) fn may_have_ended(&self) -> bool {
        self.request.0 == Part::Open && self.request.1 != Damage::None
    }

    /// Whether nothing is to come of it. A request that was never seen is not waited for.
    pub(super) fn is_over(&self) -> bool {
        self.response.0 == Part::Done && self.request.0 != Part::Open
    }
}

/// How many streams are remembered after their end: frames of a stream that one side has reset may still come.
const ENDED: usize = 16;

/// The open streams, and the latest that ended.
#[derive(Debug)]
pub(super) struct Streams {
    /// In the order of their identifiers.
    open: SmallVec<[Stream; 2]>,
    ended: [u32; ENDED],
    next_ended: usize,
    next: u32,
    /// From this identifier to [`Self::last`], the head of each request was seen.
    from: u32,
    /// Of the latest request whose head was seen; 0 before the first.
    last: u32,
    /// A request may have ended by what was lost.
    ended_unseen: bool,
}

impl Streams {
    /// Without streams; their exchanges are numbered from `next`.
    pub(super) fn new(next: ExchangeNo, from_start: bool) -> Self {
        Self {
            open: SmallVec::new(),
            ended: [0; ENDED],
            next_ended: 0,
            next: next.0,
            from: if from_start { 0 } else { u32::MAX },
            last: 0,
            ended_unseen: false,
        }
    }

    /// Heads of requests were lost, or may have been.
    pub(super) fn lose_heads(&mut self) {
        self.from = u32::MAX;
    }

    /// The head of a request was seen.
    pub(super) fn saw_request(&mut self, id: u32) {
        self.from = self.from.min(id);
        self.last = id;
        self.ended_unseen = false;
    }

    /// Whether a loss is known to have held no header block of requests, now that one of stream `next` follows. A client
    /// numbers its streams in order (RFC 9113 section 5.1.1) and sends trailers, if ever, as the last thing on a
    /// stream: so none was lost if the numbers go on by 2 and each request that was on the way has gone on since.
    pub(super) fn lost_no_head(&self, next: u32) -> bool {
        let ended_unseen = self.ended_unseen || self.open.iter().any(Stream::may_have_ended);
        self.last > 0 && next == self.last + 2 && !ended_unseen
    }

    /// The number of the next exchange.
    pub(super) fn next(&self) -> ExchangeNo {
        ExchangeNo(self.next)
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.open.iter_mut()
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Stream> {
        let at = self.open.binary_search_by_key(&id, |stream| stream.id).ok()?;
        self.open.get_mut(at)
    }

    pub(super) fn is_open(&self, id: u32) -> bool {
        self.open.binary_search_by_key(&id, |stream| stream.id).is_ok()
    }

    /// Whether a stream that is not open is known to have been.
    pub(super) fn has_ended(&self, id: u32) -> bool {
        self.ended.contains(&id) || (self.from..=self.last).contains(&id)
    }

    /// Opens a stream that is not open.
    pub(super) fn open(&mut self, id: u32) -> ExchangeNo {
        let no = ExchangeNo(self.next);
        self.next = self.next.wrapping_add(1);
        let side = (Part::Awaited, Damage::None);
        if let Err(at) = self.open.binary_search_by_key(&id, |stream| stream.id) {
            self.open.insert(at, Stream { id, no, request: side, response: side });
        }
        no
    }

    /// Opens stream 1 for an exchange that has a number. `asked`: all of its request was seen.
    pub(super) fn adopt(&mut self, no: ExchangeNo, asked: bool) {
        let request = if asked { (Part::Done, Damage::None) } else { (Part::Open, Damage::Told) };
        self.open.insert(0, Stream { id: 1, no, request, response: (Part::Awaited, Damage::None) });
        self.last = 1;
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<Stream> {
        let at = self.open.binary_search_by_key(&id, |stream| stream.id).ok()?;
        if let Some(slot) = self.ended.get_mut(self.next_ended) {
            *slot = id;
        }
        self.next_ended = (self.next_ended + 1) % ENDED;
        let stream = self.open.remove(at);
        self.ended_unseen |= stream.may_have_ended();
        Some(stream)
    }

    /// Takes out the highest stream, if it is above `last`.
    pub(super) fn remove_above(&mut self, last: u32) -> Option<Stream> {
        let id = self.open.last().map(|stream| stream.id).filter(|id| *id > last)?;
        self.remove(id)
    }

    /// Takes out the stream whose exchange is the oldest.
    pub(super) fn remove_oldest(&mut self) -> Option<Stream> {
        let id = self.open.iter().min_by_key(|stream| stream.no)?.id;
        self.remove(id)
    }
}
