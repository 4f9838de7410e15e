//! The response body: which framing it has, and its events or its whole.

use smallvec::SmallVec;

use super::{
    api::{Defects, Frame, JsonBody, Piece},
    aws_events::AwsEvents,
    detect::BodyKind,
    json_array::Elements,
    json_scan::Scanner,
    ndjson::Lines,
    sse::Sse,
};
use crate::limits::BODY_BYTES;

/// Longest beginning of a body that is needed to tell its framing, in bytes (`event:`).
const SNIFF_BYTES: usize = 8;

/// A response body as it comes in.
#[derive(Debug)]
pub(super) struct ResponseBody {
    kind: BodyKind,
    json: JsonBody,
    framing: Framing,
}

#[derive(Debug)]
enum Framing {
    /// Not told yet. `indented`: the whitespace before `start` ended with a space.
    Unknown {
        start: SmallVec<[u8; SNIFF_BYTES]>,
        indented: bool,
    },
    Sse(Box<Sse>),
    Lines(Box<Lines>),
    Elements(Box<Elements>),
    AwsEvents(Box<AwsEvents>),
    /// The members of one object are told as they come by.
    Members(Box<Scanner>),
    Whole(Vec<u8>),
    /// Longer than the cap: not kept.
    Overflown,
    /// Nothing that is read.
    Opaque,
}

/// What a body gives at its end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Last<'a> {
    /// The last event of a stream, which lacks its end.
    Frame(Frame<'a>),
    /// A whole body. Not empty.
    Whole(&'a [u8]),
    /// A whole body that was too long to be kept.
    TooLong,
}

impl ResponseBody {
    pub(super) fn new(kind: BodyKind, json: JsonBody) -> Self {
        let framing = match kind {
            // Binary: there is nothing to tell it by but its type.
            BodyKind::AwsEvents => Framing::AwsEvents(Box::default()),
            _ => Framing::Unknown { start: SmallVec::new(), indented: false },
        };
        Self { kind, json, framing }
    }

    /// A body whose beginning, and head, are not known: only a stream can still be read.
    pub(super) fn midstream() -> Self {
        let framing = Framing::Sse(Box::new(Sse::midstream()));
        Self { kind: BodyKind::Sse, json: JsonBody::default(), framing }
    }

    /// Takes the next bytes; `on_piece` gets every event (or member) that they complete.
    pub(super) fn feed(&mut self, bytes: &[u8], mut on_piece: impl FnMut(Piece<'_>)) -> Defects {
        let mut on_frame = |frame: Frame<'_>| on_piece(Piece::Frame(frame));
        match &mut self.framing {
            Framing::Sse(sse) => sse.feed(bytes, on_frame),
            Framing::Lines(lines) => lines.feed(bytes, on_frame),
            Framing::Elements(elements) => elements.feed(bytes, &mut on_frame),
            Framing::AwsEvents(events) => events.feed(bytes, &mut on_frame),
            Framing::Members(scanner) => {
                scanner.feed(bytes, &mut |member| on_piece(Piece::Member(member)));
                Defects::default()
            }
            Framing::Whole(body) if body.len() + bytes.len() <= BODY_BYTES => {
                body.extend_from_slice(bytes);
                Defects::default()
            }
            Framing::Whole(_) => {
                self.framing = Framing::Overflown;
                Defects { body_too_long: 1, ..Defects::default() }
            }
            Framing::Overflown | Framing::Opaque => Defects::default(),
            Framing::Unknown { .. } => self.sniff(bytes, &mut on_piece),
        }
    }

    /// Bytes are missing here.
    pub(super) fn gap(&mut self) {
        match &mut self.framing {
            Framing::Sse(sse) => sse.gap(),
            Framing::Lines(lines) => lines.gap(),
            Framing::Elements(elements) => elements.gap(),
            Framing::AwsEvents(events) => events.gap(),
            Framing::Unknown { .. } if self.kind == BodyKind::Sse => {
                self.framing = Framing::Sse(Box::new(Sse::midstream()));
            }
            Framing::Unknown { .. } if self.kind == BodyKind::Lines => {
                self.framing = Framing::Lines(Box::new(Lines::midstream()));
            }
            framing => *framing = Framing::Opaque,
        }
    }

    /// The body is complete.
    pub(super) fn finish(&mut self, mut on_last: impl FnMut(Last<'_>)) {
        match std::mem::replace(&mut self.framing, Framing::Opaque) {
            Framing::Sse(mut sse) => sse.finish(|frame| on_last(Last::Frame(frame))),
            Framing::Lines(mut lines) => lines.finish(|frame| on_last(Last::Frame(frame))),
            Framing::Elements(mut elements) => elements.finish(|frame| on_last(Last::Frame(frame))),
            Framing::Whole(body) => on_last(Last::Whole(&body)),
            Framing::Overflown => on_last(Last::TooLong),
            Framing::Unknown { .. } | Framing::Members(_) | Framing::AwsEvents(_) | Framing::Opaque => {}
        }
    }

    /// Tells the framing from the first bytes that are no whitespace. What the bytes look like outranks the content
    /// type: servers answer a stream request with a JSON error, and send streams under a wrong type or none. DeepSeek
    /// sends blank lines for minutes before its JSON.
    fn sniff(&mut self, mut bytes: &[u8], on_piece: &mut dyn FnMut(Piece<'_>)) -> Defects {
        let Framing::Unknown { start, indented } = &mut self.framing else { return Defects::default() };
        if start.is_empty() {
            let blank = |b: &u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n' | 0xef | 0xbb | 0xbf);
            let (space, rest) = bytes.split_at(bytes.iter().position(|b| !blank(b)).unwrap_or(bytes.len()));
            if let Some(last) = space.last() {
                *indented = matches!(last, b' ' | b'\t');
            }
            bytes = rest;
        }
        let held = start.len();
        start.extend(bytes.iter().copied().take(SNIFF_BYTES - held.min(SNIFF_BYTES)));
        if start.is_empty() {
            return Defects::default();
        }
        let (start, indented) = (start.clone(), *indented);
        let Some(framing) = framing_of(&start, self.kind, self.json) else { return Defects::default() };
        self.framing = framing;
        let mut defects = Defects::default();
        if indented && matches!(self.framing, Framing::Sse(_)) {
            defects += self.feed(b" ", &mut *on_piece);
        }
        defects += self.feed(start.get(..held).unwrap_or_default(), &mut *on_piece);
        defects += self.feed(bytes, on_piece);
        defects
    }
}

/// `None`: more bytes are needed.
fn framing_of(start: &[u8], kind: BodyKind, json: JsonBody) -> Option<Framing> {
    let sse = || Some(Framing::Sse(Box::default()));
    match start.first()? {
        _ if kind == BodyKind::Lines => return Some(Framing::Lines(Box::default())),
        b'[' if json == JsonBody::Array => return Some(Framing::Elements(Box::default())),
        b'{' if json == JsonBody::Members => return Some(Framing::Members(Box::new(Scanner::new()))),
        b'{' | b'[' => return Some(Framing::Whole(Vec::new())),
        b':' => return sse(),
        _ if kind == BodyKind::Sse => return sse(),
        _ => {}
    }
    for field in [b"data:".as_slice(), b"event:", b"id:", b"retry:"] {
        if start.starts_with(field) {
            return sse();
        }
        if field.starts_with(start) {
            return None;
        }
    }
    Some(if kind == BodyKind::Json { Framing::Whole(Vec::new()) } else { Framing::Opaque })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: BodyKind, json: JsonBody, body: &[u8], size: usize) -> String {
        let mut response = ResponseBody::new(kind, json);
        let mut seen = String::new();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        for piece in body.chunks(size) {
            response.feed(piece, |piece| {
                seen += &match piece {
                    Piece::Frame(f) => format!("<{}>", text(f.data)),
                    Piece::Member(m) => format!("|{}|", m.key),
                }
            });
        }
        response.finish(|last| {
            seen += &match last {
                Last::Frame(f) => format!("({})", text(f.data)),
                Last::Whole(b) => format!("[{}]", text(b)),
                Last::TooLong => "too long".into(),
            }
        });
        seen
    }

    #[test]
    fn the_bytes_outrank_the_content_type() {
        use BodyKind::{Json, Lines, Other, Sse, Unsaid};
        let cases: [(BodyKind, &[u8], &str); 16] = [
            (Sse, b"data: a\n\n", "<a>"),
            (Json, b"data: a\n\n", "<a>"),
            (Unsaid, b"event: x\ndata: a\n\n", "<a>"),
            (Other, b"id: 7\ndata: a\n\n", "<a>"),
            (Unsaid, b": keep-alive\n\ndata: a\n\n", "<a>"),
            (Unsaid, b"\xef\xbb\xbfdata: a\n\n", "<a>"),
            (Sse, b"foo: x\ndata: a\n\n", "<a>"),
            (Sse, b"  data: no\ndata: a\n\n", "<a>"),
            (Sse, b"{\"error\":1}", "[{\"error\":1}]"),
            (Json, b"\n\n\n \n{}", "[{}]"),
            (Unsaid, b"[1]", "[[1]]"),
            (Json, b"oops", "[oops]"),
            (Other, b"<html>", ""),
            (Unsaid, b"dat", ""),
            (Lines, b"\n{\"a\":1}\n{}", "<{\"a\":1}>({})"),
            (Lines, b"oops\n", "<oops>"),
        ];
        for (kind, body, want) in cases {
            for size in [1, 2, 3, 1000] {
                assert_eq!(
                    read(kind, JsonBody::Whole, body, size),
                    want,
                    "{:?} in pieces of {size}",
                    String::from_utf8_lossy(body)
                );
            }
        }
    }

    #[test]
    fn a_json_body_is_what_the_api_says_it_is() {
        use JsonBody::{Array, Members, Whole};
        let cases: [(JsonBody, &[u8], &str); 7] = [
            (Array, b"[{\"a\":1},{}", "<{\"a\":1}><{}>"),
            (Array, b"{\"a\":1}", "[{\"a\":1}]"),
            (Array, b"data: [1]\n\n", "<[1]>"),
            (Members, b"{\"a\":[1,2],\"b\":{\"c\":1}}", "|a||b||c|"),
            (Members, b"[1]", "[[1]]"),
            (Whole, b"[{}]", "[[{}]]"),
            (Members, b"data: {}\n\n", "<{}>"),
        ];
        for (json, body, want) in cases {
            for size in [1, 2, 1000] {
                assert_eq!(
                    read(BodyKind::Json, json, body, size),
                    want,
                    "{:?} in pieces of {size}",
                    String::from_utf8_lossy(body)
                );
            }
        }
    }

    #[test]
    fn endless_whitespace_is_not_kept() {
        let mut response = ResponseBody::new(BodyKind::Json, JsonBody::Whole);
        for _ in 0..1000 {
            response.feed(&[b'\n'; 1000], |_| {});
        }
        response.feed(b"{}", |_| {});
        let mut len = 0;
        response.finish(|last| {
            if let Last::Whole(body) = last {
                len = body.len();
            }
        });
        assert_eq!(len, 2);
    }

    #[test]
    fn a_whole_body_over_the_cap_is_let_go_and_counted_once() {
        let mut response = ResponseBody::new(BodyKind::Json, JsonBody::Whole);
        let mut too_long = 0;
        for _ in 0..=BODY_BYTES / 1_000_000 + 2 {
            too_long += response.feed(&vec![b'{'; 1_000_000], |_| {}).body_too_long;
        }
        assert_eq!(too_long, 1);
        let mut last = false;
        response.finish(|l| last = matches!(l, Last::TooLong));
        assert!(last);
    }
}
