//! Which protocol a connection speaks, from the first bytes of a direction.

/// Client connection preface of HTTP/2 (RFC 9113 section 3.4).
pub(super) const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method taken for one, in bytes. The longest registered one has 17 (UPDATEREDIRECTREF).
const METHOD_BYTES: usize = 24;

/// What bytes look like at the beginning of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guess {
    /// A request head of HTTP/1.
    Request,
    /// A response head of HTTP/1.
    Response,
    /// The beginning of HTTP/2: the client's preface, or the SETTINGS frame that a server may send before it.
    Http2,
    /// None of these.
    Neither,
    /// Too few bytes to tell.
    More,
}

/// Looks at the beginning of a message; never needs more than 24 bytes. [`Guess::Request`] is a promise of form only: a
/// method in upper case, a space, a visible character.
pub(super) fn guess(bytes: &[u8]) -> Guess {
    let is_prefix = |of: &[u8]| bytes.iter().zip(of).all(|(a, b)| a == b);
    if is_prefix(b"HTTP/1.") {
        return if bytes.len() < 7 { Guess::More } else { Guess::Response };
    }
    if is_prefix(HTTP2_PREFACE) {
        return if bytes.len() < HTTP2_PREFACE.len() { Guess::More } else { Guess::Http2 };
    }
    if bytes.first() == Some(&0) {
        return guess_settings(bytes);
    }
    let method = bytes.iter().take(METHOD_BYTES + 1).take_while(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_'));
    let len = method.count();
    match (bytes.get(len), bytes.get(len + 1)) {
        _ if len > METHOD_BYTES => Guess::Neither,
        (None, _) => Guess::More,
        (Some(b' '), None) if len > 0 => Guess::More,
        (Some(b' '), Some(next)) if len > 0 && next.is_ascii_graphic() => Guess::Request,
        _ => Guess::Neither,
    }
}

/// A SETTINGS frame as the first of a connection: at most 16 KiB in entries of 6 bytes, no flags, stream 0 (RFC 9113
/// sections 4.1 and 6.5).
fn guess_settings(bytes: &[u8]) -> Guess {
    let frame = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let same = bytes.iter().zip(frame).enumerate().all(|(i, (a, b))| matches!(i, 1 | 2) || *a == b);
    match bytes {
        _ if !same => Guess::Neither,
        [_, high, low, _, _, _, _, _, _, ..] => {
            let len = u16::from_be_bytes([*high, *low]);
            if len <= 16_384 && len % 6 == 0 { Guess::Http2 } else { Guess::Neither }
        }
        _ => Guess::More,
    }
}

/// Whether the first line of `bytes` is a request line of HTTP/1; `None` when it is not complete.
pub(super) fn is_request_line(bytes: &[u8]) -> Option<bool> {
    let line = first_line(bytes)?;
    Some(guess(line) == Guess::Request && (line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")))
}

/// Whether `bytes` begin like a message of HTTP in a version that is not read here: a status line, as far as it is there, or
/// a whole request line.
pub(super) fn has_other_version(bytes: &[u8]) -> bool {
    if bytes.starts_with(b"HTTP/") {
        return !b"HTTP/1.".starts_with(bytes) && guess(bytes) != Guess::Response
            || is_status_line(bytes) == Some(false);
    }
    let Some(line) = first_line(bytes).filter(|line| guess(line) == Guess::Request) else { return false };
    let last = line.rsplit(|b| *b == b' ').next().and_then(|last| last.strip_prefix(b"HTTP/"));
    let is_version = |v: &[u8]| matches!(v, [b'0'..=b'9'] | [b'0'..=b'9', b'.', b'0'..=b'9']);
    last.is_some_and(|version| is_version(version) && !matches!(version, b"1.0" | b"1.1"))
}

/// Whether `bytes` begin with a method of RFC 9110 or 5789 and a space, or with a part of that. Asked where the bytes before
/// are not known: of `POST /x` without its first bytes, `T /x` is a request line too.
pub(super) fn is_known_method(bytes: &[u8]) -> bool {
    const METHODS: [&[u8]; 9] =
        [b"POST ", b"GET ", b"PUT ", b"DELETE ", b"HEAD ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE "];
    METHODS.iter().any(|method| bytes.iter().zip(*method).all(|(a, b)| a == b))
}

/// Whether the first line of `bytes` is a status line of HTTP/1; `None` when it is not complete.
pub(super) fn is_status_line(bytes: &[u8]) -> Option<bool> {
    let line = first_line(bytes)?;
    let status = line.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(1..5));
    Some(matches!(status, Some([b' ', digits @ ..]) if digits.iter().all(u8::is_ascii_digit)))
}

fn first_line(bytes: &[u8]) -> Option<&[u8]> {
    let line = bytes.get(..memchr::memchr(b'\n', bytes)?)?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

/// Empty lines that may stand before a message head (RFC 9112 section 2.2).
pub(super) fn skip_empty_lines(bytes: &[u8]) -> &[u8] {
    let empty = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    bytes.get(empty..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_method_is_no_known_method() {
        for known in ["POST /x HTTP/1.1", "GET /", "PO", "TRACE *", ""] {
            assert!(is_known_method(known.as_bytes()), "{known}");
        }
        for rest in ["OST /x HTTP/1.1", "T /x HTTP/1.1", "ET / HTTP/1.1", "POSTS / HTTP/1.1", "post / HTTP/1.1"] {
            assert!(!is_known_method(rest.as_bytes()), "{rest}");
        }
    }

    #[test]
    fn each_beginning_is_told_at_its_first_sufficient_byte() {
        for (bytes, enough, is) in [
            (&b"POST /v1/chat/completions HTTP/1.1\r\n"[..], 6, Guess::Request),
            (b"GET http://h/ HTTP/1.1\r\n", 5, Guess::Request),
            (b"CONNECT api.openai.com:443 HTTP/1.1\r\n", 9, Guess::Request),
            (b"PROPFIND /x HTTP/1.1\r\n", 10, Guess::Request),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", 24, Guess::Http2),
            (b"PRINT /x HTTP/1.1", 7, Guess::Request),
            (b"HTTP/1.1 200 OK\r\n", 7, Guess::Response),
            (b"HTTP/1.0 404 Not Found\r\n", 7, Guess::Response),
            (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03", 9, Guess::Http2),
            (b"\x00\x00\x11\x04\x00\x00\x00\x00\x00\x00\x03", 9, Guess::Neither),
            (b"\x00\x00\x12\x01\x00\x00\x00\x00\x00\x00\x03", 4, Guess::Neither),
            (b"220 mail ready\r\n", 1, Guess::Neither),
            (b"data: {}\n\n", 1, Guess::Neither),
            (b"HELO there", 6, Guess::Request),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA /", 25, Guess::Neither),
            (b"GET  /", 5, Guess::Neither),
        ] {
            for n in 0..bytes.len() {
                let expected = if n < enough { Guess::More } else { is };
                assert_eq!(guess(&bytes[..n]), expected, "{:?}", String::from_utf8_lossy(&bytes[..n]));
            }
        }
    }
}
