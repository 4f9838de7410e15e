//! What the first bytes of a socket call say. Pure, so that the same decision is tested on the host and verified in the kernel.

/// Bytes looked at.
pub const LOOK_BYTES: usize = 8;

/// What a call on a socket begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// A request of HTTP/1, or the preface of HTTP/2: the connection begins here, or one of its requests does.
    Request,
    /// A request for a tunnel (`CONNECT`): what follows its answer is another protocol, as a rule TLS.
    Tunnel,
    /// A response of HTTP/1.
    Response,
    /// A TLS record (RFC 8446 section 5.1: types 20 to 23, legacy version 3.x).
    Encrypted,
    /// Something else, or too short to tell.
    Other,
}

/// Methods of RFC 9110 and 5789, with as much of the name and its space as eight bytes hold, and the preface of HTTP/2 (RFC 9113
/// section 3.4).
const REQUESTS: [&[u8]; 9] =
    [b"POST ", b"GET ", b"PUT ", b"DELETE ", b"HEAD ", b"OPTIONS ", b"PATCH ", b"TRACE ", b"PRI * HT"];

/// `text` as a word in memory order and the mask of its bytes.
const fn word(text: &[u8]) -> (u64, u64) {
    let (mut bytes, mut mask) = ([0u8; LOOK_BYTES], [0u8; LOOK_BYTES]);
    let mut at = 0;
    while at < text.len() {
        bytes[at] = text[at];
        mask[at] = 0xff;
        at += 1;
    }
    (u64::from_ne_bytes(bytes), u64::from_ne_bytes(mask))
}

/// The first `n` bytes of `first` (in memory order) are the beginning of a call; the rest says nothing.
#[must_use]
#[inline(always)]
pub fn look(first: u64, n: u64) -> Look {
    let kept = if n >= LOOK_BYTES as u64 { u64::MAX } else { (1u64 << (n * 8)).wrapping_sub(1) };
    // Memory order is little-endian on every machine that the kernel half is built for.
    let first = first.to_le() & kept;
    let begins = |(text, mask): (u64, u64)| first & mask.to_le() == text.to_le();
    let mut at = 0;
    while at < REQUESTS.len() {
        if begins(const { words(&REQUESTS) }[at]) {
            return Look::Request;
        }
        at += 1;
    }
    if begins(const { word(b"CONNECT ") }) {
        return Look::Tunnel;
    }
    if begins(const { word(b"HTTP/1.") }) {
        return Look::Response;
    }
    let (kind, version) = (first & 0xff, (first >> 8) & 0xff);
    if n >= 2 && matches!(kind, 0x14..=0x17) && version == 3 {
        return Look::Encrypted;
    }
    Look::Other
}

const fn words<const N: usize>(texts: &[&[u8]; N]) -> [(u64, u64); N] {
    let mut all = [(0, 0); N];
    let mut at = 0;
    while at < N {
        all[at] = word(texts[at]);
        at += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Look {
        let mut first = [0xee; LOOK_BYTES];
        for (to, from) in first.iter_mut().zip(bytes) {
            *to = *from;
        }
        look(u64::from_ne_bytes(first), bytes.len() as u64)
    }

    #[test]
    fn each_beginning_is_told() {
        for request in
            ["POST /v1", "GET / HT", "GET /", "PUT /x ", "DELETE /", "HEAD / H", "OPTIONS ", "PATCH /", "TRACE /"]
        {
            assert_eq!(of(request.as_bytes()), Look::Request, "{request}");
        }
        assert_eq!(of(b"PRI * HTTP/2.0"), Look::Request);
        assert_eq!(of(b"CONNECT api.openai.com:443"), Look::Tunnel);
        assert_eq!(of(b"HTTP/1.1 200 OK"), Look::Response);
        assert_eq!(of(b"HTTP/1.0"), Look::Response);
        for kind in 0x14..=0x17 {
            assert_eq!(of(&[kind, 3, 1, 0]), Look::Encrypted);
        }
        assert_eq!(of(&[0x16, 3]), Look::Encrypted);
    }

    #[test]
    fn other_protocols_are_not_taken_for_it() {
        let others: [&[u8]; 14] = [
            b"",
            b"G",
            b"GET",
            b"get / HT",
            b"GETX / H",
            b"POSTGRES",
            b"HTTP/2.0",
            b"HTTP",
            b"*1\r\n$4\r\n",
            b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
            b"\x16",
            b"\x13\x03\x01",
            b"\x18\x03\x01",
            b"\x16\x02\x01",
        ];
        for other in others {
            assert_eq!(of(other), Look::Other, "{other:?}");
        }
    }

    #[test]
    fn bytes_behind_the_end_of_a_short_call_say_nothing() {
        let whole = u64::from_ne_bytes(*b"POST /v1");
        assert_eq!(look(whole, 4), Look::Other);
        assert_eq!(look(whole, 5), Look::Request);
        assert_eq!(look(whole, 0), Look::Other);
    }
}
