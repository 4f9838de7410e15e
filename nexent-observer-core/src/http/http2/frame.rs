//! Frame headers (RFC 9113 sections 4.1 and 6), and which bytes may be one.

use crate::http::detect;

/// Length of a frame header.
pub(super) const HEADER_BYTES: usize = 9;

/// `SETTINGS_MAX_FRAME_SIZE` before anything else was announced.
pub(super) const FIRST_MAX_FRAME: u32 = 16_384;

/// DATA, HEADERS: last frame of this side of the stream.
pub(super) const END_STREAM: u8 = 0x1;
/// SETTINGS, PING: an acknowledgement.
const ACK: u8 = 0x1;
/// HEADERS, PUSH_PROMISE, CONTINUATION: last of the header block.
pub(super) const END_HEADERS: u8 = 0x4;
/// DATA, HEADERS, PUSH_PROMISE: with padding.
pub(super) const PADDED: u8 = 0x8;
/// HEADERS: with the fields of PRIORITY.
pub(super) const PRIORITY: u8 = 0x20;

/// Highest stream taken for one where a frame boundary is looked for: a connection that had more is too rare to take
/// random bytes for frames.
const MAX_PLAUSIBLE_STREAM: u32 = (1 << 24) - 1;

/// Headers checked in a row when a frame boundary is looked for.
const CHAIN: usize = 8;

/// Type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Headers,
    Priority,
    RstStream,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// ALTSVC, ORIGIN, PRIORITY_UPDATE (RFC 7838, 8336, 9218).
    Extension,
    Unknown,
}

/// A frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Bytes of the payload.
    pub(super) len: u32,
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) stream: u32,
    reserved: bool,
}

impl Frame {
    /// Reads the header at the beginning of `bytes`, if it is all there.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, s @ ..] = *bytes.first_chunk::<HEADER_BYTES>()?;
        let kind = match kind {
            0x0 => Kind::Data,
            0x1 => Kind::Headers,
            0x2 => Kind::Priority,
            0x3 => Kind::RstStream,
            0x4 => Kind::Settings,
            0x5 => Kind::PushPromise,
            0x6 => Kind::Ping,
            0x7 => Kind::GoAway,
            0x8 => Kind::WindowUpdate,
            0x9 => Kind::Continuation,
            0xa | 0xc | 0x10 => Kind::Extension,
            _ => Kind::Unknown,
        };
        let stream = u32::from_be_bytes(s);
        let len = u32::from_be_bytes([0, a, b, c]);
        Some(Self { len, kind, flags, stream: stream & !(1 << 31), reserved: stream >> 31 == 1 })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether the frame breaks no rule after which the connection cannot be followed. Unknown flags are none of these.
    pub(super) fn is_legal(&self) -> bool {
        let on_stream = self.stream != 0;
        match self.kind {
            Kind::Data => on_stream && (!self.has(PADDED) || self.len >= 1),
            Kind::Headers => {
                let fixed = u32::from(self.has(PADDED)) + if self.has(PRIORITY) { 5 } else { 0 };
                on_stream && self.len >= fixed
            }
            Kind::Priority => on_stream && self.len == 5,
            Kind::RstStream => on_stream && self.len == 4,
            Kind::Settings => !on_stream && self.len.is_multiple_of(6) && (!self.has(ACK) || self.len == 0),
            Kind::PushPromise => on_stream && self.len >= 4 + u32::from(self.has(PADDED)),
            Kind::Ping => !on_stream && self.len == 8,
            Kind::GoAway => !on_stream && self.len >= 8,
            Kind::WindowUpdate => self.len == 4,
            Kind::Continuation => on_stream,
            Kind::Extension | Kind::Unknown => true,
        }
    }

    /// Whether bytes of unknown origin may be this frame: much stricter than [`Self::is_legal`].
    fn is_plausible(&self, max_len: u32) -> bool {
        let flags = match self.kind {
            Kind::Data => END_STREAM | PADDED,
            Kind::Headers => END_STREAM | END_HEADERS | PADDED | PRIORITY,
            Kind::Settings | Kind::Ping => ACK,
            Kind::PushPromise => END_HEADERS | PADDED,
            Kind::Continuation => END_HEADERS,
            Kind::Priority | Kind::RstStream | Kind::GoAway | Kind::WindowUpdate | Kind::Extension => 0,
            Kind::Unknown => return false,
        };
        let stream = match self.kind {
            Kind::WindowUpdate | Kind::Extension => self.stream == 0 || self.stream % 2 == 1,
            Kind::Settings | Kind::Ping | Kind::GoAway => true,
            Kind::Headers => self.stream % 2 == 1 && self.len > 0,
            _ => self.stream % 2 == 1,
        };
        let stream = stream && self.stream <= MAX_PLAUSIBLE_STREAM;
        self.is_legal() && !self.reserved && self.flags & !flags == 0 && stream && self.len <= max_len
    }
}

/// How the frames that seem to begin at the start of some bytes go on.
enum Chain {
    /// Some header is none, or the first is not complete.
    Broken,
    /// All headers to the end are plausible; `closed` when there is more than one, or the last frame ends with the bytes.
    Plausible { closed: bool },
}

fn chain(bytes: &[u8], max_len: u32) -> Chain {
    let mut at = bytes;
    for n in 0..CHAIN {
        let Some(frame) = Frame::parse(at) else {
            return if n == 0 { Chain::Broken } else { Chain::Plausible { closed: n > 1 || at.is_empty() } };
        };
        if !frame.is_plausible(max_len) {
            return Chain::Broken;
        }
        let Some(next) = at.get(HEADER_BYTES + frame.len as usize..) else {
            return Chain::Plausible { closed: n > 0 };
        };
        at = next;
    }
    Chain::Plausible { closed: true }
}

/// Whether a record begins with a frame, as far as it shows.
pub(super) fn begins_with_frame(bytes: &[u8], max_len: u32) -> bool {
    matches!(chain(bytes, max_len), Chain::Plausible { .. })
}

/// Index of the first frame header in a record of which it is not known where its first frame begins. At its start one
/// header is enough; inside, another one or the end of the record must follow the frame, or it must be of a stream that
/// `is_open`. In text no zero byte stands, so that the search finds the first header or nothing.
pub(super) fn find(bytes: &[u8], max_len: u32, is_open: impl Fn(u32) -> bool) -> Option<usize> {
    if begins_with_frame(bytes, max_len) || bytes.starts_with(detect::HTTP2_PREFACE) {
        return Some(0);
    }
    memchr::memchr_iter(0, bytes).find(|at| {
        let bytes = bytes.get(*at..).unwrap_or_default();
        match chain(bytes, max_len) {
            Chain::Broken => false,
            Chain::Plausible { closed } => closed || Frame::parse(bytes).is_some_and(|f| is_open(f.stream)),
        }
    })
}
