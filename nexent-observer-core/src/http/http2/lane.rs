//! One direction of an HTTP/2 connection: cuts its bytes into frames, wherever the records are cut.

use std::borrow::Cow;

use super::{
    frame::{self, END_HEADERS, END_STREAM, FIRST_MAX_FRAME, Frame, HEADER_BYTES, Kind, PADDED, PRIORITY},
    hpack::Decoder,
};
use crate::{event::Stamp, http::detect, limits};

/// Where the next byte stands.
#[derive(Debug, Clone, Copy)]
enum At {
    /// Before the first byte of the connection: the client's preface or a frame.
    Start,
    /// In the preface; so many bytes of it came.
    Preface(u8),
    /// Before or in a frame header; so many bytes of it came.
    Header(u8),
    /// Before the pad length of a DATA frame.
    PadLength(Frame),
    /// In a DATA frame.
    Data(Data),
    /// In a frame with a part of a header block; so many bytes are to come.
    Block(u32),
    /// In a frame whose payload is a few words.
    Words { frame: Frame, left: u32, got: u8 },
    /// In a payload that says nothing here.
    Skip(u32),
    /// Out of step: where the next frame begins is not known.
    Seek,
}

#[derive(Debug, Clone, Copy)]
struct Data {
    stream: u32,
    /// Bytes of data to come.
    left: u32,
    /// Bytes of padding to come after them.
    pad: u32,
    end_stream: bool,
}

/// What a header block belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heading {
    pub(super) stream: u32,
    pub(super) end_stream: bool,
    /// Of a PUSH_PROMISE.
    pub(super) is_promise: bool,
    /// Stamp of the first byte of the frame header.
    pub(super) first: Stamp,
}

/// Why a header block cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadBlock {
    /// Bytes of it were lost.
    Lost,
    /// Over [`limits::HEAD_BYTES`].
    TooLong,
    /// Its padding is longer than its frame.
    Invalid,
}

/// A header block that is not complete.
#[derive(Debug)]
struct Pending {
    heading: Heading,
    /// Frame that is being read, or the last one.
    frame: Frame,
    bytes: Vec<u8>,
    bad: Option<BadBlock>,
}

/// Result of [`Lane::step`].
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// All bytes were taken.
    More,
    /// The client's preface is complete.
    Preface,
    /// Bytes of a body, at least one.
    Data(u32, &'a [u8]),
    /// The DATA frame that ends this side of the stream is complete.
    End(u32),
    /// A header block is complete.
    Block(Heading, Result<Cow<'a, [u8]>, BadBlock>),
    /// RST_STREAM: stream and error code.
    Reset(u32, u32),
    /// GOAWAY: last stream that was or may be served.
    GoAway(u32),
    /// The sender takes frames of this size.
    MaxFrame(u32),
    /// What comes is no HTTP/2.
    Invalid,
}

/// What a gap of known size did, see [`Lane::skip`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Skipped {
    /// All of it was inside the current frame: so many bytes of a body, if any.
    Inside(Option<(u32, u32)>),
    /// It reaches beyond the current frame, or into what cannot be counted. So many bytes of a body were in the current
    /// frame; `true` when that frame was the last of its side of the stream.
    Beyond(Option<(u32, u32, bool)>),
}

/// One direction.
#[derive(Debug)]
pub(super) struct Lane {
    at: At,
    /// Frame header, or words of a payload, so far.
    small: [u8; HEADER_BYTES],
    /// Stamp of the first byte of the current frame header.
    first: Stamp,
    block: Option<Box<Pending>>,
    /// Longest frame that the receiver was seen to allow.
    allowed: u32,
    /// What it allowed may not have been seen.
    joined: bool,
    pub(super) hpack: Decoder,
    /// Header blocks may have been lost of which the next one will tell.
    pub(super) in_doubt: bool,
    /// Stamp of the last data.
    pub(super) last: Stamp,
}

fn take<'a>(bytes: &mut &'a [u8], n: u32) -> &'a [u8] {
    let (taken, rest) = bytes.split_at_checked(n as usize).unwrap_or((bytes, &[]));
    *bytes = rest;
    taken
}

impl Lane {
    pub(super) fn new(from_start: bool) -> Self {
        Self {
            at: if from_start { At::Start } else { At::Seek },
            small: [0; HEADER_BYTES],
            first: Stamp::default(),
            block: None,
            allowed: FIRST_MAX_FRAME,
            joined: !from_start,
            hpack: Decoder::new(),
            in_doubt: false,
            last: Stamp::default(),
        }
    }

    /// Takes the frame size that the other side announced. Frames of earlier, larger announcements may be on the way.
    pub(super) fn allow_frames(&mut self, len: u32) {
        self.allowed = self.allowed.max(len);
    }

    /// Looks for a frame header in a record. `false` when none was found; else `bytes` begin with it.
    pub(super) fn resync(&mut self, bytes: &mut &[u8], is_open: impl Fn(u32) -> bool) -> bool {
        let found = frame::find(bytes, self.allowed, is_open);
        let rest = found.and_then(|at| bytes.get(at..));
        if let Some(rest) = rest {
            *bytes = rest;
            self.at = At::Start;
        }
        rest.is_some()
    }

    pub(super) fn is_seeking(&self) -> bool {
        matches!(self.at, At::Seek)
    }

    /// Where the next frame begins is not known any more. Header blocks may have been lost: see [`Self::in_doubt`].
    pub(super) fn lose(&mut self) {
        self.at = At::Seek;
        self.block = None;
    }

    /// Takes bytes up to the next thing to tell.
    pub(super) fn step<'a>(&mut self, at: Stamp, bytes: &mut &'a [u8]) -> Step<'a> {
        loop {
            match self.at {
                At::Start => match bytes.first() {
                    None => return Step::More,
                    Some(b'P') => self.at = At::Preface(0),
                    Some(_) => self.at = At::Header(0),
                },
                At::Preface(got) => {
                    let left = detect::HTTP2_PREFACE.get(usize::from(got)..).unwrap_or_default();
                    let come = take(bytes, left.len() as u32);
                    if !left.starts_with(come) {
                        return Step::Invalid;
                    }
                    if come.len() == left.len() {
                        self.at = At::Header(0);
                        return Step::Preface;
                    }
                    self.at = At::Preface(got + come.len() as u8);
                    return Step::More;
                }
                At::Header(0) if bytes.len() >= HEADER_BYTES => {
                    self.first = at;
                    let Some(frame) = Frame::parse(take(bytes, HEADER_BYTES as u32)) else { return Step::Invalid };
                    if let Some(step) = self.begin(frame, bytes) {
                        return step;
                    }
                }
                At::Header(got) => {
                    if bytes.is_empty() {
                        return Step::More;
                    }
                    if got == 0 {
                        self.first = at;
                    }
                    let got = self.keep(bytes, got, HEADER_BYTES as u32 - u32::from(got));
                    self.at = At::Header(got);
                    if usize::from(got) == HEADER_BYTES {
                        let Some(frame) = Frame::parse(&self.small) else { return Step::Invalid };
                        if let Some(step) = self.begin(frame, bytes) {
                            return step;
                        }
                    }
                }
                At::PadLength(frame) => {
                    let Some((&pad, rest)) = bytes.split_first() else { return Step::More };
                    *bytes = rest;
                    let Some(left) = (frame.len - 1).checked_sub(u32::from(pad)) else { return Step::Invalid };
                    let end_stream = frame.has(END_STREAM);
                    self.at = At::Data(Data { stream: frame.stream, left, pad: u32::from(pad), end_stream });
                }
                At::Data(mut data) => {
                    let body = take(bytes, data.left);
                    data.left -= body.len() as u32;
                    data.pad -= if data.left == 0 { take(bytes, data.pad).len() as u32 } else { 0 };
                    let complete = data.left == 0 && data.pad == 0;
                    if !body.is_empty() {
                        self.at = At::Data(data);
                        return Step::Data(data.stream, body);
                    }
                    if !complete {
                        self.at = At::Data(data);
                        return Step::More;
                    }
                    self.at = At::Header(0);
                    if data.end_stream {
                        return Step::End(data.stream);
                    }
                }
                At::Block(left) => {
                    let part = take(bytes, left);
                    let left = left - part.len() as u32;
                    self.at = At::Block(left);
                    if let Some(pending) = &mut self.block {
                        pending.push(part);
                    }
                    if left > 0 {
                        return Step::More;
                    }
                    self.at = At::Header(0);
                    if let Some(step) = self.end_block_frame() {
                        return step;
                    }
                }
                At::Words { frame, left, got } => {
                    if left == 0 {
                        self.at = At::Header(0);
                    } else if bytes.is_empty() {
                        return Step::More;
                    } else if let Some(step) = self.words(frame, left, got, bytes) {
                        return step;
                    }
                }
                At::Skip(left) => {
                    let left = left - take(bytes, left).len() as u32;
                    if left > 0 {
                        self.at = At::Skip(left);
                        return Step::More;
                    }
                    self.at = At::Header(0);
                }
                At::Seek => {
                    *bytes = &[];
                    return Step::More;
                }
            }
        }
    }

    /// Appends up to `n` bytes to the small buffer that has `got`; returns how many it has then.
    fn keep(&mut self, bytes: &mut &[u8], got: u8, n: u32) -> u8 {
        let come = take(bytes, n);
        for (to, from) in self.small.iter_mut().skip(usize::from(got)).zip(come) {
            *to = *from;
        }
        got + come.len() as u8
    }

    /// Goes on behind a frame header.
    fn begin<'a>(&mut self, frame: Frame, bytes: &mut &'a [u8]) -> Option<Step<'a>> {
        let continues = self.block.as_ref().map(|pending| pending.heading.stream);
        let in_order = match frame.kind {
            // A header block whose beginning was lost goes on.
            Kind::Continuation => continues.is_none_or(|stream| stream == frame.stream),
            _ => continues.is_none(),
        };
        let allowed = if self.joined { self.allowed.max(limits::FRAME_BYTES) } else { self.allowed };
        if !frame.is_legal() || frame.len > allowed || !in_order {
            return Some(Step::Invalid);
        }
        let (len, stream) = (frame.len, frame.stream);
        self.at = match frame.kind {
            Kind::Data if frame.has(PADDED) => At::PadLength(frame),
            Kind::Data => At::Data(Data { stream, left: len, pad: 0, end_stream: frame.has(END_STREAM) }),
            Kind::Headers | Kind::PushPromise => {
                let is_promise = frame.kind == Kind::PushPromise;
                let end_stream = !is_promise && frame.has(END_STREAM);
                let heading = Heading { stream, end_stream, is_promise, first: self.first };
                if frame.has(END_HEADERS) && bytes.len() >= len as usize {
                    self.at = At::Header(0);
                    let block = fragment(&frame, take(bytes, len)).map(Cow::Borrowed);
                    return Some(Step::Block(heading, block.ok_or(BadBlock::Invalid)));
                }
                let pending = Pending { heading, frame, bytes: Vec::new(), bad: None };
                self.block = Some(Box::new(pending));
                At::Block(len)
            }
            Kind::Continuation => {
                let first = self.first;
                let pending = self.block.get_or_insert_with(|| {
                    let heading = Heading { stream, end_stream: false, is_promise: false, first };
                    Box::new(Pending { heading, frame, bytes: Vec::new(), bad: Some(BadBlock::Lost) })
                });
                pending.frame = frame;
                At::Block(len)
            }
            Kind::RstStream | Kind::GoAway | Kind::Settings => At::Words { frame, left: len, got: 0 },
            Kind::Priority | Kind::Ping | Kind::WindowUpdate | Kind::Extension | Kind::Unknown => At::Skip(len),
        };
        None
    }

    /// A frame with a part of a header block is complete.
    fn end_block_frame<'a>(&mut self) -> Option<Step<'a>> {
        let pending = self.block.as_mut()?;
        pending.strip();
        if !pending.frame.has(END_HEADERS) {
            return None;
        }
        let Pending { heading, bytes, bad, .. } = *self.block.take()?;
        Some(Step::Block(heading, bad.map_or(Ok(Cow::Owned(bytes)), Err)))
    }

    /// Reads a word of RST_STREAM (4 bytes), GOAWAY (8) or SETTINGS (6 each).
    fn words<'a>(&mut self, frame: Frame, left: u32, got: u8, bytes: &mut &'a [u8]) -> Option<Step<'a>> {
        let word: u8 = match frame.kind {
            Kind::RstStream => 4,
            Kind::GoAway => 8,
            _ => 6,
        };
        let now = self.keep(bytes, got, left.min(u32::from(word.saturating_sub(got))));
        let left = left - u32::from(now - got);
        if now < word {
            self.at = At::Words { frame, left, got: now };
            return None;
        }
        let [a, b, c, d, e, f, ..] = self.small;
        match frame.kind {
            Kind::RstStream => {
                self.at = At::Header(0);
                Some(Step::Reset(frame.stream, u32::from_be_bytes([a, b, c, d])))
            }
            Kind::GoAway => {
                self.at = At::Skip(left);
                Some(Step::GoAway(u32::from_be_bytes([a, b, c, d]) & !(1 << 31)))
            }
            _ => {
                self.at = At::Words { frame, left, got: 0 };
                // SETTINGS_MAX_FRAME_SIZE
                ([a, b] == [0, 5]).then(|| Step::MaxFrame(u32::from_be_bytes([c, d, e, f]).min(0x00ff_ffff)))
            }
        }
    }

    /// Counts off `n` bytes that are not known.
    pub(super) fn skip(&mut self, n: u64) -> Skipped {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        match self.at {
            At::Data(mut data) => {
                let body = n.min(data.left);
                data.left -= body;
                let pad = (n - body).min(data.pad);
                data.pad -= pad;
                let body = (body > 0).then_some((data.stream, body));
                self.at = At::Data(data);
                if n == pad + body.map_or(0, |b| b.1) {
                    return Skipped::Inside(body);
                }
                Skipped::Beyond(Some((data.stream, body.map_or(0, |b| b.1), data.end_stream)))
            }
            At::Block(left) if n <= left => {
                self.at = At::Block(left - n);
                if let Some(pending) = &mut self.block {
                    pending.spoil(BadBlock::Lost);
                }
                Skipped::Inside(None)
            }
            At::Words { left, .. } | At::Skip(left) if n <= left => {
                self.at = At::Skip(left - n);
                Skipped::Inside(None)
            }
            _ => Skipped::Beyond(None),
        }
    }
}

impl Pending {
    fn push(&mut self, part: &[u8]) {
        if self.bad.is_none() && self.bytes.len() + part.len() > limits::HEAD_BYTES {
            self.spoil(BadBlock::TooLong);
        }
        if self.bad.is_none() {
            self.bytes.extend_from_slice(part);
        }
    }

    fn spoil(&mut self, why: BadBlock) {
        self.bad = Some(why);
        self.bytes = Vec::new();
    }

    /// Takes away what is not header block of the frame that began it; the others are nothing but header block.
    fn strip(&mut self) {
        if self.bad.is_some() || self.frame.kind == Kind::Continuation {
            return;
        }
        match fragment(&self.frame, &self.bytes).map(<[u8]>::to_vec) {
            Some(fragment) => self.bytes = fragment,
            None => self.spoil(BadBlock::Invalid),
        }
    }
}

/// The part of a header block in the payload of HEADERS or PUSH_PROMISE.
fn fragment<'a>(frame: &Frame, payload: &'a [u8]) -> Option<&'a [u8]> {
    let (pad, rest) = if frame.has(PADDED) { payload.split_first()? } else { (&0, payload) };
    let fixed = match frame.kind {
        Kind::PushPromise => 4,
        Kind::Headers if frame.has(PRIORITY) => 5,
        _ => 0,
    };
    let end = rest.len().checked_sub(usize::from(*pad))?;
    rest.get(fixed..end)
}
