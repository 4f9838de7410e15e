//! One direction of a WebSocket: from frames to messages (RFC 6455 sections 5.4 to 5.6).

use super::{
    Told,
    deflate::{Bad, Deflate},
    frame::{self, HEADER_BYTES, Header, Opcode, Parsed, Rules},
};
use crate::{
    event::Stamp,
    http::{Message, MessageKind},
    limits,
    stats::{DropReason, Stats},
};

/// Memory of a message that is kept for the next one, in bytes.
const KEPT_BYTES: usize = 64 * 1024;

/// Where the next byte stands.
#[derive(Debug, Clone, Copy)]
enum At {
    /// In a frame header of which so many bytes are in the buffer.
    Header(u8),
    /// In a payload.
    Payload { header: Header, left: u64 },
    /// Not known: only the beginning of a record is looked at.
    Seek,
    /// Behind the closing frame: nothing follows (RFC 6455 section 5.5.1).
    Closed,
}

/// The message that is under way.
#[derive(Debug, Clone, Copy)]
struct Partial {
    text: bool,
    compressed: bool,
    /// A part of it is missing.
    damaged: bool,
    /// Stamp of its first byte.
    first: Stamp,
    /// Bytes so far, also those that are not kept.
    len: u64,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Lane {
    rules: Rules,
    at: At,
    header: [u8; HEADER_BYTES],
    /// Stamp of the first byte of the current frame.
    first: Stamp,
    deflate: Option<Deflate>,
    message: Option<Partial>,
    /// What is kept of the message.
    bytes: Vec<u8>,
    /// First bytes of the current closing frame.
    close: [u8; 2],
    /// That compressed messages cannot be decoded any more was told.
    told: bool,
}

fn unmask(bytes: &mut [u8], mask: Option<[u8; 4]>, from: u64) {
    if let Some(mask) = mask {
        let phase = (from % 4) as usize;
        for (byte, key) in bytes.iter_mut().zip(mask.iter().cycle().skip(phase)) {
            *byte ^= key;
        }
    }
}

impl Lane {
    pub(super) fn new(masked: bool, deflate: Option<Deflate>) -> Self {
        Self {
            rules: Rules { masked, deflate: deflate.is_some() },
            at: At::Header(0),
            header: [0; HEADER_BYTES],
            first: Stamp::default(),
            deflate,
            message: None,
            bytes: Vec::new(),
            close: [0; 2],
            told: false,
        }
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, at: Stamp, mut bytes: &[u8], stats: &mut Stats, sink: &mut dyn FnMut(Told<'_>)) {
        if let At::Seek = self.at {
            if !frame::begins(bytes, self.rules) {
                return sink(Told::Undecoded);
            }
            self.at = At::Header(0);
        }
        while !bytes.is_empty() {
            match self.at {
                At::Header(got) => {
                    if got == 0 {
                        self.first = at;
                    }
                    let Some((header, rest)) = self.header(got, bytes) else {
                        stats.count(DropReason::WebSocketInvalid);
                        self.lose();
                        return sink(Told::Undecoded);
                    };
                    bytes = rest;
                    let Some(header) = header else { return };
                    if !self.begin(&header, stats, sink) {
                        stats.count(DropReason::WebSocketInvalid);
                        self.lose();
                        return sink(Told::Undecoded);
                    }
                    self.at = At::Payload { header, left: header.len };
                    if header.len == 0 {
                        self.end_frame(&header, stats, sink);
                    } else if self.is_plain(&header) {
                        // The usual case of a server's message: nothing is copied.
                        let whole = usize::try_from(header.len).ok().filter(|len| *len <= limits::MESSAGE_BYTES);
                        if let Some((payload, rest)) = whole.and_then(|len| bytes.split_at_checked(len)) {
                            bytes = rest;
                            self.at = At::Header(0);
                            if let Some(Partial { text, first, len: 0, .. }) = self.message.take() {
                                let kind = if text { MessageKind::Text } else { MessageKind::Binary };
                                sink(Told::Message(Message { kind, first, len: header.len, bytes: payload }));
                            }
                        }
                    }
                }
                At::Payload { header, left } => {
                    let n = usize::try_from(left).unwrap_or(usize::MAX);
                    let (payload, rest) = bytes.split_at_checked(n).unwrap_or((bytes, &[]));
                    bytes = rest;
                    self.payload(&header, header.len - left, payload, stats, sink);
                    let left = left - payload.len() as u64;
                    self.at = At::Payload { header, left };
                    if left == 0 {
                        self.end_frame(&header, stats, sink);
                    }
                }
                At::Seek | At::Closed => return,
            }
        }
    }

    /// Completes a frame header from what is in the buffer and `bytes`. `Some((None, _))`: more bytes are needed; `None`: it
    /// is no header.
    fn header<'b>(&mut self, got: u8, bytes: &'b [u8]) -> Option<(Option<Header>, &'b [u8])> {
        if got == 0 {
            match frame::parse(bytes, self.rules) {
                Parsed::Header(header, size) => return Some((Some(header), bytes.get(size..)?)),
                Parsed::Invalid => return None,
                Parsed::Needs(_) => {}
            }
        }
        let (mut got, mut rest) = (usize::from(got), bytes);
        loop {
            match frame::parse(self.header.get(..got)?, self.rules) {
                Parsed::Header(header, _) => return Some((Some(header), rest)),
                Parsed::Invalid => return None,
                Parsed::Needs(size) => {
                    let Some((byte, after)) = rest.split_first() else {
                        self.at = At::Header(got as u8);
                        return Some((None, rest));
                    };
                    debug_assert!(got < size);
                    *self.header.get_mut(got)? = *byte;
                    got += 1;
                    rest = after;
                }
            }
        }
    }

    /// A frame begins. `false`: none such may stand here.
    fn begin(&mut self, header: &Header, stats: &mut Stats, sink: &mut dyn FnMut(Told<'_>)) -> bool {
        match (header.opcode, self.message.is_some()) {
            (Opcode::Text | Opcode::Binary, false) => {
                let mut damaged = false;
                if let Some(deflate) = self.deflate.as_mut().filter(|_| header.compressed) {
                    damaged = !deflate.begin();
                    if damaged && !std::mem::replace(&mut self.told, true) {
                        stats.count(DropReason::CodingGap);
                    }
                }
                if damaged {
                    sink(Told::Undecoded);
                }
                let text = header.opcode == Opcode::Text;
                let (compressed, first) = (header.compressed, self.first);
                self.message = Some(Partial { text, compressed, damaged, first, len: 0 });
                true
            }
            (Opcode::Continuation, open) => open,
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => true,
            (Opcode::Text | Opcode::Binary, true) => false,
        }
    }

    /// Whether the frame is a whole message that needs nothing done to it.
    fn is_plain(&self, header: &Header) -> bool {
        let begins = matches!(header.opcode, Opcode::Text | Opcode::Binary);
        begins && header.fin && header.mask.is_none() && !header.compressed
    }

    /// Takes a part of a payload that begins `from` bytes behind the payload's beginning.
    fn payload(
        &mut self,
        header: &Header,
        from: u64,
        payload: &[u8],
        stats: &mut Stats,
        sink: &mut dyn FnMut(Told<'_>),
    ) {
        match header.opcode {
            Opcode::Ping | Opcode::Pong => {}
            Opcode::Close => {
                let to = usize::try_from(from).ok().and_then(|from| self.close.get_mut(from..));
                for (slot, byte) in to.unwrap_or_default().iter_mut().zip(payload) {
                    *slot = *byte;
                }
            }
            Opcode::Continuation | Opcode::Text | Opcode::Binary => {
                let Some(message) = &mut self.message else { return };
                if message.damaged {
                    return;
                }
                let kept = &mut self.bytes;
                let mut keep = |bytes: &[u8], from: u64, mask| {
                    message.len = message.len.saturating_add(bytes.len() as u64);
                    let room = limits::MESSAGE_BYTES.saturating_sub(kept.len());
                    let had = kept.len();
                    kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
                    unmask(kept.get_mut(had..).unwrap_or_default(), mask, from);
                };
                let Some(deflate) = self.deflate.as_mut().filter(|_| message.compressed) else {
                    return keep(payload, from, header.mask);
                };
                let mut piece = [0; 1024];
                for (i, part) in payload.chunks(piece.len()).enumerate() {
                    let Some(plain) = piece.get_mut(..part.len()) else { return };
                    plain.copy_from_slice(part);
                    unmask(plain, header.mask, from + 1024 * i as u64);
                    if let Err(bad) = deflate.feed(plain, &mut |bytes| keep(bytes, 0, None)) {
                        return self.bad(bad, stats, sink);
                    }
                }
            }
        }
    }

    /// A compressed message cannot be decoded.
    fn bad(&mut self, bad: Bad, stats: &mut Stats, sink: &mut dyn FnMut(Told<'_>)) {
        stats.count(match bad {
            Bad::Invalid => DropReason::ContentCoding,
            Bad::TooLong => DropReason::DecodedTooLong,
        });
        // One reason is told for one loss.
        self.told = true;
        self.spoil();
        sink(Told::Undecoded);
    }

    /// The message under way will not be told, and compressed ones behind it may refer to it.
    fn spoil(&mut self) {
        self.bytes = Vec::new();
        if let Some(message) = &mut self.message {
            message.damaged = true;
            if let Some(deflate) = self.deflate.as_mut().filter(|_| message.compressed) {
                deflate.lose();
            }
        }
    }

    /// A frame is complete.
    fn end_frame(&mut self, header: &Header, stats: &mut Stats, sink: &mut dyn FnMut(Told<'_>)) {
        self.at = At::Header(0);
        match header.opcode {
            Opcode::Ping | Opcode::Pong => {}
            Opcode::Close => {
                self.at = At::Closed;
                self.bytes = Vec::new();
                let mut code = self.close;
                unmask(&mut code, header.mask, 0);
                let code = (header.len >= 2).then(|| u16::from_be_bytes(code));
                let (kind, first) = (MessageKind::Close(code), self.first);
                sink(Told::Message(Message { kind, first, len: header.len, bytes: &[] }));
            }
            Opcode::Continuation | Opcode::Text | Opcode::Binary if header.fin => self.end_message(stats, sink),
            Opcode::Continuation | Opcode::Text | Opcode::Binary => {}
        }
    }

    /// A message is complete.
    fn end_message(&mut self, stats: &mut Stats, sink: &mut dyn FnMut(Told<'_>)) {
        let kept = &mut self.bytes;
        if let Some(message) = self.message.as_mut().filter(|message| message.compressed && !message.damaged)
            && let Some(deflate) = &mut self.deflate
        {
            let end = deflate.end(&mut |bytes| {
                message.len = message.len.saturating_add(bytes.len() as u64);
                let room = limits::MESSAGE_BYTES.saturating_sub(kept.len());
                kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
            });
            if let Err(bad) = end {
                self.bad(bad, stats, sink);
            }
        }
        let Some(Partial { text, damaged, first, len, .. }) = self.message.take() else { return };
        if !damaged {
            if len > self.bytes.len() as u64 {
                stats.count(DropReason::MessageTooLong);
            }
            let kind = if text { MessageKind::Text } else { MessageKind::Binary };
            sink(Told::Message(Message { kind, first, len, bytes: &self.bytes }));
        }
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
    }

    /// Memory held for the message under way, in bytes.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.bytes.capacity()
    }

    /// Where the next frame begins is not known any more.
    fn lose(&mut self) {
        self.at = At::Seek;
        self.message = None;
        self.bytes = Vec::new();
        if let Some(deflate) = &mut self.deflate {
            deflate.lose();
        }
    }

    /// Bytes are missing here.
    pub(super) fn gap(&mut self, len: Option<u64>) {
        match (self.at, len) {
            (At::Closed, _) => {}
            (At::Payload { header, left }, Some(n)) if n <= left => {
                let control = matches!(header.opcode, Opcode::Close | Opcode::Ping | Opcode::Pong);
                if !control {
                    self.spoil();
                }
                if n < left {
                    self.at = At::Payload { header, left: left - n };
                } else {
                    self.at = if header.opcode == Opcode::Close { At::Closed } else { At::Header(0) };
                    if !control && header.fin {
                        self.message = None;
                    }
                }
            }
            _ => self.lose(),
        }
    }
}
