//! Finding the framing of a streamed body again after a loss.
//!
//! Servers write a chunk with its size line in one call, and TLS hands out one record per read, so most often the next
//! record begins with a size line. Otherwise one is looked for inside the record.

use super::head::Shape;

/// Fields of server-sent events (HTML standard, section 9.2.6), and the comment.
const SSE_STARTS: [&[u8]; 5] = [b"data:", b"event:", b"id:", b"retry:", b":"];

/// Index of the first chunk-size line in `bytes`, which begin at the start of a record.
pub(super) fn find_chunk(bytes: &[u8], shape: Shape) -> Option<usize> {
    if shape == Shape::Other {
        return None;
    }
    if is_chunk(bytes, shape) {
        return Some(0);
    }
    let starts = memchr::memmem::find_iter(bytes, b"\r\n").map(|n| n + 2);
    starts.into_iter().find(|n| bytes.get(*n..).is_some_and(|b| is_chunk(b, shape)))
}

/// Whether `bytes` begin with a chunk whose data begin like the body of a stream, or with the last chunk.
fn is_chunk(bytes: &[u8], shape: Shape) -> bool {
    let digits = bytes.iter().take(9).take_while(|b| b.is_ascii_hexdigit()).count();
    let Some((size, rest)) = bytes.split_at_checked(digits) else { return false };
    if !(1..=8).contains(&digits) {
        return false;
    }
    let Some(data) = rest.strip_prefix(b"\r\n") else { return false };
    let size = std::str::from_utf8(size).ok().and_then(|s| usize::from_str_radix(s, 16).ok());
    match size {
        None => false,
        Some(0) => data == b"\r\n",
        Some(size) => {
            // A chunk that is all there must be followed by its CR LF.
            let closed = data.get(size..).is_none_or(|after| b"\r\n".starts_with(after) || after.starts_with(b"\r\n"));
            closed && begins(data, shape)
        }
    }
}

/// Whether data begin, as far as they are there, like an event.
fn begins(data: &[u8], shape: Shape) -> bool {
    match shape {
        Shape::Sse => SSE_STARTS.iter().any(|field| data.starts_with(field) || field.starts_with(data)),
        Shape::JsonLines => data.first().is_none_or(|b| *b == b'{'),
        Shape::Other => false,
    }
}

/// Whether a record looks like the middle of a response that streams server-sent events: it begins with a chunk of them,
/// or a line of it begins with `data:`.
pub(in crate::http) fn looks_like_stream(bytes: &[u8]) -> bool {
    bytes.starts_with(b"data:")
        || memchr::memmem::find(bytes, b"\ndata:").is_some()
        || (is_chunk(bytes, Shape::Sse) && !bytes.starts_with(b"0") && bytes.contains(&b':'))
}

/// Whether a record ends a chunked body, whatever came before it.
pub(super) fn ends_body(bytes: &[u8]) -> bool {
    bytes == b"0\r\n\r\n" || bytes.ends_with(b"\r\n0\r\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_line_is_found_at_the_start_or_inside_but_not_where_it_only_looks_like_one() {
        for (bytes, expected) in [
            (&b"a\r\ndata: 12\n\n\r\n"[..], Some(0)),
            (b"b\r\n", Some(0)),
            (b"b\r\ndat", Some(0)),
            (b"6\r\n: ping\n\r\n", None),
            (b"8\r\n: ping\n\n\r\n", Some(0)),
            (b"0\r\n\r\n", Some(0)),
            (b"ta: {}\n\n\r\n1a\r\ndata: {\"x\":1}", Some(10)),
            (b"tail\n\n\r\n0\r\n\r\n", Some(8)),
            (b"data: 5\r\n\r\n", None),
            (b"123456789\r\ndata: x", None),
            (b"9\r\nxyz: 12\n\n\r\n", None),
            (b"\r\ndata: x\r\n", None),
        ] {
            assert_eq!(find_chunk(bytes, Shape::Sse), expected, "{:?}", String::from_utf8_lossy(bytes));
            assert_eq!(find_chunk(bytes, Shape::Other), None);
        }
        assert_eq!(find_chunk(b"9\r\n{\"a\":1}\n\n\r\n", Shape::JsonLines), Some(0));
    }

    #[test]
    fn a_stream_is_told_from_other_bytes() {
        for yes in [&b"a\r\ndata: 12\n\n\r\n"[..], b"data: x", b"event: a\ndata: b\n", b"10\r\nevent: x\n"] {
            assert!(looks_like_stream(yes));
        }
        for no in [&b"0\r\n\r\n"[..], b"{\"data\": 1}", b"b\r\n", b"\x17\x03data:"] {
            assert!(!looks_like_stream(no));
        }
    }
}
