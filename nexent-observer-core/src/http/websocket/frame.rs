//! Frame headers (RFC 6455 section 5.2).

/// Longest frame header: 2 bytes, 8 of length, 4 of mask.
pub(super) const HEADER_BYTES: usize = 14;
/// Longest payload of a control frame (RFC 6455 section 5.5).
const CONTROL_BYTES: u64 = 125;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// A frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) fin: bool,
    /// RSV1: with `permessage-deflate`, the message is compressed (RFC 7692 section 6).
    pub(super) compressed: bool,
    pub(super) opcode: Opcode,
    pub(super) mask: Option<[u8; 4]>,
    pub(super) len: u64,
}

/// Result of [`parse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A header of so many bytes.
    Header(Header, usize),
    /// More bytes are needed, this many in all.
    Needs(usize),
    /// These bytes are no header.
    Invalid,
}

/// What is allowed in a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    /// Frames are masked: those of a client are, those of a server are not (RFC 6455 section 5.1).
    pub(super) masked: bool,
    /// `permessage-deflate` was negotiated.
    pub(super) deflate: bool,
}

/// Reads the header at the beginning of `bytes`.
pub(super) fn parse(bytes: &[u8], rules: Rules) -> Parsed {
    let [first, second, rest @ ..] = bytes else { return Parsed::Needs(2) };
    let opcode = match first & 0x0f {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        _ => return Parsed::Invalid,
    };
    let (fin, compressed) = (first & 0x80 != 0, first & 0x40 != 0);
    let begins = matches!(opcode, Opcode::Text | Opcode::Binary);
    if first & 0x30 != 0 || (compressed && !(rules.deflate && begins)) || (second & 0x80 != 0) != rules.masked {
        return Parsed::Invalid;
    }
    let short = u64::from(second & 0x7f);
    let extended = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask_len = if rules.masked { 4 } else { 0 };
    let (Some(length), Some(mask)) = (rest.get(..extended), rest.get(extended..extended + mask_len)) else {
        return Parsed::Needs(2 + extended + mask_len);
    };
    let len = if extended == 0 { short } else { length.iter().fold(0, |len, byte| len << 8 | u64::from(*byte)) };
    // The shortest form is a must, and the longest has 63 bits.
    let minimal = match extended {
        2 => len > CONTROL_BYTES,
        8 => len > 0xffff && len >> 63 == 0,
        _ => true,
    };
    let is_control = !begins && opcode != Opcode::Continuation;
    if !minimal || (is_control && (!fin || len > CONTROL_BYTES)) || (opcode == Opcode::Close && len == 1) {
        return Parsed::Invalid;
    }
    let mask = mask.try_into().ok();
    Parsed::Header(Header { fin, compressed, opcode, mask, len }, 2 + extended + mask_len)
}

/// Most frames that are looked at to tell whether a record begins with one.
const LOOKED_AT: usize = 4;

/// Whether a record looks as if it began with a frame. Only asked when the place in the stream was lost: the frames must
/// fill the record, or a message that is JSON must begin it.
pub(super) fn begins(mut bytes: &[u8], rules: Rules) -> bool {
    for _ in 0..LOOKED_AT {
        let Parsed::Header(header, size) = parse(bytes, rules) else { return false };
        let payload = bytes.get(size..).unwrap_or_default();
        let first = payload.first().map(|byte| byte ^ header.mask.map_or(0, |[first, ..]| first));
        if header.opcode == Opcode::Text && !header.compressed && first == Some(b'{') {
            return true;
        }
        let Some(rest) = usize::try_from(header.len).ok().and_then(|len| payload.get(len..)) else { return false };
        if rest.is_empty() {
            return true;
        }
        bytes = rest;
    }
    true
}
