//! Heads of HTTP/1 messages: where they end, what they say, how their body is framed (RFC 9112 section 6).

use std::mem::MaybeUninit;

use httparse::Status;
use smallvec::SmallVec;

use crate::{
    conn::GapCause,
    http::{Headers, RequestHead, ResponseHead, Side, detect},
    limits,
    stats::DropReason,
};

/// Collects a head that did not come in one piece. Empty, and without memory, between heads.
#[derive(Debug, Default)]
pub(super) struct HeadBuffer {
    bytes: Vec<u8>,
    /// No end of the head begins before this index.
    searched: usize,
}

/// Result of [`HeadBuffer::push`].
pub(super) enum Pushed {
    /// The head is not complete; all bytes were taken.
    Partial,
    /// The head is complete; so many of the given bytes were taken.
    Complete(usize),
    /// Over [`limits::HEAD_BYTES`].
    TooLong,
}

impl HeadBuffer {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Empties the buffer and gives its bytes out.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.searched = 0;
        std::mem::take(&mut self.bytes)
    }

    /// Appends up to the end of the head. Linear over all calls for one head.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Pushed {
        let had = self.bytes.len();
        let room = limits::HEAD_BYTES.saturating_sub(had);
        self.bytes.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        while let Some(tail) = self.bytes.get(self.searched..)
            && let Some(lf) = memchr::memchr(b'\n', tail)
        {
            let end = match tail.get(lf + 1..) {
                Some([b'\n', ..]) => Some(lf + 2),
                Some([b'\r', b'\n', ..]) => Some(lf + 3),
                Some([] | [b'\r']) => {
                    self.searched += lf;
                    return self.unfinished();
                }
                _ => None,
            };
            if let Some(end) = end {
                let end = self.searched + end;
                self.bytes.truncate(end);
                return Pushed::Complete(end.saturating_sub(had));
            }
            self.searched += lf + 1;
        }
        self.searched = self.bytes.len();
        self.unfinished()
    }

    fn unfinished(&self) -> Pushed {
        if self.bytes.len() < limits::HEAD_BYTES { Pushed::Partial } else { Pushed::TooLong }
    }
}

/// How the body of a message is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
    /// Whatever comes until the connection ends. Never of a request.
    UntilClose,
    /// The fields contradict each other: where the body ends cannot be known.
    Invalid,
    /// The rest of the head is lost, and with it how the body ends: so many bytes, for this reason. Of a request only.
    Cut(Option<u64>, GapCause),
}

/// What a body carries, as far as it helps to find its framing again after a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Server-sent events.
    Sse,
    /// One JSON value per line.
    JsonLines,
    /// Anything else.
    Other,
}

/// What the rest of the stage needs to know of the fields of a head.
#[derive(Debug, Clone, Copy)]
struct Fields<'a> {
    length: Length,
    coding: Coding,
    shape: Shape,
    host: Option<&'a str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Absent,
    Is(u64),
    Invalid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Absent,
    ChunkedLast,
    Other,
}

type FieldList<'a> = SmallVec<[(&'a str, &'a [u8]); 32]>;

fn fields<'a>(parsed: &[httparse::Header<'a>]) -> (FieldList<'a>, Fields<'a>) {
    let mut found = Fields { length: Length::Absent, coding: Coding::Absent, shape: Shape::Other, host: None };
    let list = parsed.iter().map(|field| {
        let httparse::Header { name, value } = *field;
        match name.len() {
            4 if name.eq_ignore_ascii_case("host") => {
                found.host = found.host.or_else(|| std::str::from_utf8(value).ok().map(str::trim));
            }
            12 if name.eq_ignore_ascii_case("content-type") => found.shape = shape(value),
            14 if name.eq_ignore_ascii_case("content-length") => found.length = content_length(found.length, value),
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                let last = value.rsplit(|b| *b == b',').next().unwrap_or_default();
                let chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
                found.coding = if chunked { Coding::ChunkedLast } else { Coding::Other };
            }
            _ => {}
        }
        (name, value)
    });
    (list.collect(), found)
}

fn shape(content_type: &[u8]) -> Shape {
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(b"text/event-stream") {
        Shape::Sse
    } else if [&b"application/x-ndjson"[..], b"application/jsonl", b"application/stream+json"]
        .iter()
        .any(|t| essence.eq_ignore_ascii_case(t))
    {
        Shape::JsonLines
    } else {
        Shape::Other
    }
}

/// Several equal values are one value, different ones are none (RFC 9112 section 6.3, rule 5).
fn content_length(before: Length, value: &[u8]) -> Length {
    value.split(|b| *b == b',').fold(before, |before, item| {
        let digits = item.trim_ascii();
        let n = digits.iter().try_fold(0_u64, |n, b| {
            let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
            n.checked_mul(10)?.checked_add(digit)
        });
        match (before, n) {
            (_, None) => Length::Invalid,
            _ if digits.is_empty() => Length::Invalid,
            (Length::Absent, Some(n)) => Length::Is(n),
            (Length::Is(m), Some(n)) if m == n => Length::Is(n),
            _ => Length::Invalid,
        }
    })
}

/// Result of parsing: nothing yet, or what the reader made of the head and how many bytes it had.
pub(super) type Parsed<R> = Result<Option<(R, usize)>, DropReason>;

fn defect(error: httparse::Error) -> DropReason {
    match error {
        httparse::Error::TooManyHeaders => DropReason::HeadTooLong,
        httparse::Error::Version => DropReason::HttpVersion,
        _ => DropReason::HeadInvalid,
    }
}

/// Room for the fields of a head, not initialised: clearing 4 KiB would cost more than most heads.
macro_rules! field_room {
    () => {
        [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; limits::HEAD_FIELDS]
    };
}

/// Parses a request head at the beginning of `bytes` and hands it to `read`.
pub(super) fn parse_request<R>(bytes: &[u8], read: impl FnOnce(&RequestHead<'_>, Framing) -> R) -> Parsed<R> {
    let mut room = field_room!();
    let mut request = httparse::Request::new(&mut []);
    let mut config = httparse::ParserConfig::default();
    config.ignore_invalid_headers_in_requests(true);
    let used = match config.parse_request_with_uninit_headers(&mut request, bytes, &mut room) {
        Ok(Status::Complete(used)) => used,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(defect(error)),
    };
    let method = request.method.unwrap_or_default();
    let target = request.path.unwrap_or_default();
    let (list, fields) = fields(request.headers);
    let framing = match (fields.coding, fields.length) {
        (Coding::ChunkedLast, _) => Framing::Chunked,
        (Coding::Other, _) | (_, Length::Invalid) => Framing::Invalid,
        (Coding::Absent, Length::Is(n)) => Framing::Length(n),
        (Coding::Absent, Length::Absent) => Framing::Length(0),
    };
    let (authority, path) = split_target(target);
    let head = RequestHead { method, path, host: fields.host.or(authority), headers: Headers(&list) };
    Ok(Some((read(&head, framing), used)))
}

/// The whole lines of a head that was cut off, ended as a head ends; `None` when there is no whole line.
pub(super) fn up_to_cut(mut head: Vec<u8>) -> Option<Vec<u8>> {
    head.truncate(memchr::memrchr(b'\n', &head)? + 1);
    head.extend_from_slice(b"\r\n");
    Some(head)
}

/// Authority and path of a request target (RFC 9112 section 3.2).
fn split_target(target: &str) -> (Option<&str>, &str) {
    let scheme = target.find("://").filter(|n| target.get(..*n).is_some_and(|s| !s.contains('/')));
    let Some(rest) = scheme.and_then(|n| target.get(n + 3..)) else { return (None, target) };
    match rest.find(['/', '?']) {
        Some(n) => (rest.get(..n), rest.get(n..).unwrap_or_default()),
        None => (Some(rest), "/"),
    }
}

/// Parses a response head at the beginning of `bytes` and hands it to `read`. The framing does not know the request: a
/// response to HEAD, and one that has no body by its status, is the caller's.
pub(super) fn parse_response<R>(bytes: &[u8], read: impl FnOnce(&ResponseHead<'_>, Framing, Shape) -> R) -> Parsed<R> {
    let mut room = field_room!();
    let mut response = httparse::Response::new(&mut []);
    let mut config = httparse::ParserConfig::default();
    config
        .ignore_invalid_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_multiple_spaces_in_response_status_delimiters(true);
    let used = match config.parse_response_with_uninit_headers(&mut response, bytes, &mut room) {
        Ok(Status::Complete(used)) => used,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(defect(error)),
    };
    let Some(status) = response.code.filter(|code| (100..=999).contains(code)) else {
        return Err(DropReason::HeadInvalid);
    };
    let (list, fields) = fields(response.headers);
    let framing = match (fields.coding, fields.length) {
        (Coding::ChunkedLast, _) => Framing::Chunked,
        (Coding::Other, _) => Framing::UntilClose,
        (Coding::Absent, Length::Is(n)) => Framing::Length(n),
        (Coding::Absent, Length::Absent) => Framing::UntilClose,
        (Coding::Absent, Length::Invalid) => Framing::Invalid,
    };
    let head = ResponseHead { status: Some(status), headers: Headers(&list) };
    Ok(Some((read(&head, framing, fields.shape), used)))
}

/// Why bytes are no head of this side.
pub(super) fn why_none(bytes: &[u8]) -> DropReason {
    if detect::has_other_version(bytes) { DropReason::HttpVersion } else { DropReason::HeadInvalid }
}

/// Whether bytes are, or can still become, the head of a message of this side.
pub(super) fn may_be_head(bytes: &[u8], side: Side) -> bool {
    let guess = detect::guess(bytes);
    match side {
        Side::Request => matches!(guess, detect::Guess::Request | detect::Guess::More),
        Side::Response => guess == detect::Guess::Response || b"HTTP/1.".starts_with(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: &str) -> Parsed<(String, String, Option<String>, Framing)> {
        parse_request(head.as_bytes(), |h, f| (h.method.into(), h.path.into(), h.host.map(Into::into), f))
    }

    fn response(fields: &str) -> Framing {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        parse_response(head.as_bytes(), |_, f, _| f).unwrap().unwrap().0
    }

    #[test]
    fn targets_give_path_and_authority_in_every_form() {
        for (target, host, path) in [
            ("/v1/x?k=1", Some("h"), "/v1/x?k=1"),
            ("http://a:8/v1", Some("h"), "/v1"),
            ("https://a?q=/b", Some("h"), "?q=/b"),
            ("http://a", Some("h"), "/"),
            ("*", Some("h"), "*"),
            ("a.b:443", Some("h"), "a.b:443"),
            ("/redirect?to=http://x/y", Some("h"), "/redirect?to=http://x/y"),
        ] {
            let (parsed, _) = request(&format!("GET {target} HTTP/1.1\r\nHost: h \r\n\r\n")).unwrap().unwrap();
            assert_eq!(parsed, ("GET".into(), path.into(), host.map(Into::into), Framing::Length(0)));
        }
        let (parsed, _) = request("GET http://a:8/v1 HTTP/1.1\r\n\r\n").unwrap().unwrap();
        assert_eq!((parsed.1.as_str(), parsed.2.as_deref()), ("/v1", Some("a:8")));
    }

    #[test]
    fn the_framing_of_a_response_follows_rfc_9112_section_6_3() {
        assert_eq!(response("Content-Length: 5\r\n"), Framing::Length(5));
        assert_eq!(response("Content-Length: 5, 5\r\ncontent-length:5\r\n"), Framing::Length(5));
        assert_eq!(response("Content-Length: 5\r\nContent-Length: 6\r\n"), Framing::Invalid);
        for bad in ["+5", "-5", "", "5,", "0x5", "99999999999999999999", "5 5"] {
            assert_eq!(response(&format!("Content-Length: {bad}\r\n")), Framing::Invalid, "{bad}");
        }
        assert_eq!(response("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), Framing::Chunked);
        assert_eq!(response("Transfer-Encoding: gzip, Chunked\r\n"), Framing::Chunked);
        assert_eq!(response("Transfer-Encoding: chunked, gzip\r\n"), Framing::UntilClose);
        assert_eq!(response(""), Framing::UntilClose);
    }

    #[test]
    fn the_framing_of_a_request_follows_rfc_9112_section_6_3() {
        let framing = |fields: &str| request(&format!("POST / HTTP/1.1\r\n{fields}\r\n")).unwrap().unwrap().0.3;
        assert_eq!(framing(""), Framing::Length(0));
        assert_eq!(framing("Transfer-Encoding: chunked\r\nContent-Length: 9\r\n"), Framing::Chunked);
        assert_eq!(framing("Transfer-Encoding: gzip\r\n"), Framing::Invalid);
        assert_eq!(framing("Content-Length: 1, 2\r\n"), Framing::Invalid);
    }

    #[test]
    fn too_many_fields_are_a_defect_of_their_own() {
        let head = |n| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(n));
        assert!(request(&head(limits::HEAD_FIELDS)).unwrap().is_some());
        assert_eq!(request(&head(limits::HEAD_FIELDS + 1)), Err(DropReason::HeadTooLong));
        assert_eq!(request("GET / HTTQ/1.1\r\n\r\n"), Err(DropReason::HttpVersion));
        assert_eq!(request("GET / HTTP/1.1\r\n: b\r\n\r\n").map(|_| ()), Ok(()));
    }
}
