//! Framing: server-sent events (HTML Living Standard section 9.2.6, "Interpreting an event stream").
//!
//! An event takes the time of the bytes that carried the end of its **blank line**: that is where every client
//! dispatches it, so data whose blank line comes in a later read reached the client's code only then. A CR ends a line
//! at once; an LF that follows it, maybe in the next read, belongs to it and changes nothing.
//!
//! Two things that the standard has clients ignore are read, because servers report errors by them in the middle of a
//! stream: JSON without `data:` (Gemini; on one line or more, ended by its last bracket) and the field `error` (llama.cpp).

use std::mem;

use smallvec::SmallVec;

use super::api::{Defects, Frame};
use crate::limits::EVENT_BYTES;

/// Longest event name that is told apart, in bytes; the rest is cut.
const EVENT_NAME_BYTES: usize = 64;
/// A buffer that grew over this for one event is given back after it, in bytes.
const KEEP_BYTES: usize = 16 * 1024;

/// Incremental decoder. An event that lies wholly in one slice is handed out in place; only a split one is copied.
#[derive(Debug, Default)]
pub(super) struct Sse {
    /// Beginning of a line whose end is still to come.
    line: Vec<u8>,
    /// Data lines of the current event that came in earlier slices, joined with LF.
    data: Vec<u8>,
    has_data: bool,
    name: SmallVec<[u8; 24]>,
    /// The last byte was a CR that ended a line.
    after_cr: bool,
    /// Some byte of the stream was seen: no byte-order mark can come any more.
    started: bool,
    /// What comes up to the next line end may be the rest of a line: kept only if it is a whole data line after all.
    resync: bool,
    /// The current event may lack its beginning.
    tentative: bool,
    /// Open brackets of the JSON without `data:` that the current event is.
    bare: Option<u64>,
    /// The current event is too long: skipped up to its blank line.
    skipping: bool,
    /// While skipping: the current line has bytes, so its end is no blank line.
    skipped_line: bool,
}

impl Sse {
    /// A decoder for a stream whose beginning is not known.
    pub(super) fn midstream() -> Self {
        let mut sse = Self::default();
        sse.gap();
        sse
    }

    /// Forgets the event in progress: bytes are missing here. The next line start is where decoding goes on.
    pub(super) fn gap(&mut self) {
        let (mut line, mut data) = (mem::take(&mut self.line), mem::take(&mut self.data));
        line.clear();
        data.clear();
        *self = Self { line, data, started: true, resync: true, tentative: true, ..Self::default() };
    }

    /// Takes the next bytes of the stream; `on_event` gets every event that they complete.
    pub(super) fn feed<'a>(&mut self, mut bytes: &'a [u8], mut on_event: impl FnMut(Frame<'_>)) -> Defects {
        let mut defects = Defects::default();
        // First data line of the current event, while it lies in `bytes` and is the only one.
        let mut held: Option<&'a [u8]> = None;
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while !bytes.is_empty() {
            let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) else {
                self.keep_partial_line(bytes, held.map_or(0, <[u8]>::len), &mut defects);
                break;
            };
            let Some((line, rest)) = bytes.split_at_checked(end) else { break };
            bytes = match rest {
                [b'\r', b'\n', rest @ ..] => rest,
                [b'\r'] => {
                    self.after_cr = true;
                    &[]
                }
                [_, rest @ ..] => rest,
                [] => &[],
            };
            if self.skipping {
                self.skip_line(!line.is_empty());
            } else if self.line.is_empty() {
                self.take_line(line, Some(&mut held), &mut on_event, &mut defects);
            } else {
                let mut whole = mem::take(&mut self.line);
                whole.extend_from_slice(line);
                self.spill(&mut held);
                self.take_line(&whole, None, &mut on_event, &mut defects);
                whole.clear();
                self.line = give_back(whole);
            }
        }
        self.spill(&mut held);
        defects
    }

    /// The stream is over. The standard drops an event without its blank line; servers exist that leave the last one
    /// out, so it is handed out, marked as not known to be whole.
    pub(super) fn finish(&mut self, mut on_event: impl FnMut(Frame<'_>)) {
        if self.skipping {
            return;
        }
        let line = mem::take(&mut self.line);
        let mut defects = Defects::default();
        self.tentative = true;
        if !line.is_empty() {
            self.take_line(&line, None, &mut on_event, &mut defects);
        }
        self.take_line(b"", None, &mut on_event, &mut defects);
    }

    fn keep_partial_line(&mut self, bytes: &[u8], held: usize, defects: &mut Defects) {
        if self.skipping {
            self.skipped_line = true;
        } else if self.line.len() + self.data.len() + held + bytes.len() > EVENT_BYTES + b"data: ".len() {
            self.skip_event(true, defects);
        } else {
            self.line.extend_from_slice(bytes);
        }
    }

    fn skip_event(&mut self, in_line: bool, defects: &mut Defects) {
        defects.event_too_long += 1;
        self.reset_event();
        self.line = Vec::new();
        self.skipping = true;
        self.skipped_line = in_line;
    }

    fn skip_line(&mut self, has_bytes: bool) {
        if !has_bytes && !self.skipped_line {
            self.skipping = false;
            self.reset_event();
        }
        self.skipped_line = false;
    }

    fn spill(&mut self, held: &mut Option<&[u8]>) {
        if let Some(first) = held.take()
            && !self.skipping
        {
            self.data.extend_from_slice(first);
        }
    }

    /// One line without its end. `held` is given when the line may be borrowed beyond this call.
    fn take_line<'a, 'b>(
        &mut self,
        mut line: &'a [u8],
        held: Option<&mut Option<&'b [u8]>>,
        on_event: &mut impl FnMut(Frame<'_>),
        defects: &mut Defects,
    ) where
        'a: 'b,
    {
        if !self.started {
            self.started = true;
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if mem::take(&mut self.resync) && !line.starts_with(b"data:") {
            // The rest of a line whose beginning is lost, or the end of one: no blank line in either case.
            return;
        }
        if line.is_empty() {
            self.dispatch(held.and_then(Option::take), on_event);
            return;
        }
        if self.bare.is_some() || (!self.has_data && matches!(line.first(), Some(b'{' | b'['))) {
            self.take_bare(line, on_event, defects);
            return;
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(0) => return,
            Some(colon) => {
                let value = line.get(colon + 1..).unwrap_or_default();
                (line.get(..colon).unwrap_or_default(), value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, [].as_slice()),
        };
        match field {
            b"data" => self.take_data(value, held, defects),
            b"event" => self.name = value.iter().copied().take(EVENT_NAME_BYTES).collect(),
            b"error" if value.starts_with(b"{") => {
                self.name = SmallVec::from_slice(b"error");
                self.take_data(value, held, defects);
            }
            _ => {}
        }
    }

    fn take_data<'a: 'b, 'b>(&mut self, value: &'a [u8], held: Option<&mut Option<&'b [u8]>>, defects: &mut Defects) {
        let earlier = held.as_ref().and_then(|h| h.as_ref()).map_or(0, |first| first.len());
        if self.data.len() + earlier + value.len() > EVENT_BYTES {
            if let Some(held) = held {
                *held = None;
            }
            self.skip_event(false, defects);
            return;
        }
        match held {
            Some(held) if !self.has_data => *held = Some(value),
            held => {
                if let Some(first) = held.and_then(Option::take) {
                    self.data.extend_from_slice(first);
                }
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
        }
        self.has_data = true;
    }

    /// One line of JSON without `data:`.
    fn take_bare(&mut self, line: &[u8], on_event: &mut impl FnMut(Frame<'_>), defects: &mut Defects) {
        if self.data.len() + 1 + line.len() > EVENT_BYTES {
            self.skip_event(false, defects);
            return;
        }
        if mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(line);
        let depth = depth_after(line, self.bare.unwrap_or(0));
        self.bare = Some(depth);
        if depth == 0 {
            self.dispatch(None, on_event);
        }
    }

    fn dispatch(&mut self, held: Option<&[u8]>, on_event: &mut impl FnMut(Frame<'_>)) {
        let data = held.unwrap_or(&self.data);
        // The standard would give out an event of empty data lines too; it carries nothing, here it is dropped.
        if !data.is_empty() {
            // Nobody promised that a line without a field is JSON at all.
            let whole = !self.tentative && self.bare.is_none();
            on_event(Frame { name: &self.name, error: *self.name == *b"error", data, whole });
        }
        self.reset_event();
    }

    fn reset_event(&mut self) {
        self.data.clear();
        if self.data.capacity() > KEEP_BYTES {
            self.data = Vec::new();
        }
        self.has_data = false;
        self.name.clear();
        self.tentative = false;
        self.bare = None;
    }

    /// Bytes held in buffers.
    #[cfg(test)]
    fn buffered(&self) -> usize {
        self.line.capacity() + self.data.capacity()
    }
}

/// Open brackets after a line of JSON, of so many before it. Strings do not go over the end of a line.
fn depth_after(line: &[u8], mut depth: u64) -> u64 {
    let mut bytes = line.iter();
    let mut in_string = false;
    while let Some(b) = bytes.next() {
        match (in_string, b) {
            (true, b'\\') => {
                bytes.next();
            }
            (_, b'"') => in_string = !in_string,
            (false, b'{' | b'[') => depth += 1,
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    depth
}

fn give_back(buffer: Vec<u8>) -> Vec<u8> {
    if buffer.capacity() > KEEP_BYTES { Vec::new() } else { buffer }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Event = (String, String, bool);

    fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
        let mut sse = Sse::default();
        let mut events = Vec::new();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        for piece in pieces {
            sse.feed(piece, |f| events.push((text(f.name), text(f.data), f.whole)));
        }
        sse.finish(|f| events.push((text(f.name), text(f.data), f.whole)));
        events
    }

    fn whole(events: &[(&str, &str)]) -> Vec<Event> {
        events.iter().map(|(n, d)| ((*n).to_owned(), (*d).to_owned(), true)).collect()
    }

    #[test]
    fn every_legal_shape_is_read() {
        type Case<'a> = (&'a [u8], &'a [(&'a str, &'a str)]);
        let cases: [Case<'_>; 14] = [
            (b"data: a\n\ndata: b\n\n", &[("", "a"), ("", "b")]),
            (b"data: a\r\n\r\ndata: b\r\n\r\n", &[("", "a"), ("", "b")]),
            (b"data: a\r\rdata: b\r\r", &[("", "a"), ("", "b")]),
            (b"data: a\n\r\ndata: b\r\n\ndata: c\r\n\r", &[("", "a"), ("", "b"), ("", "c")]),
            (b"\xef\xbb\xbfdata: a\n\n", &[("", "a")]),
            (b"data:a\n\ndata:  b\n\n", &[("", "a"), ("", " b")]),
            (b"data: a\ndata: b\ndata\ndata: c\n\n", &[("", "a\nb\n\nc")]),
            (b": ping\n\n:\ndata: a\n: x\n\n", &[("", "a")]),
            (b"event: e\ndata: a\n\ndata: b\n\n", &[("e", "a"), ("", "b")]),
            (b"data: a\nevent:e\n\n", &[("e", "a")]),
            (b"id: 1\nretry: 2\nfoo: 3\nfoo\ndata: a\n\n", &[("", "a")]),
            (b"event: e\n\ndata: a\n\n", &[("", "a")]),
            (b"data\n\ndata:\n\ndata: a\n\n", &[("", "a")]),
            (b"\n\n\r\n data: no\ndatax: no\ndata: yes\n\n", &[("", "yes")]),
        ];
        for (bytes, events) in cases {
            let text = String::from_utf8_lossy(bytes).into_owned();
            assert_eq!(run([bytes]), whole(events), "{text:?}");
            assert_eq!(run(bytes.chunks(1)), whole(events), "{text:?} byte by byte");
            for cut in 0..=bytes.len() {
                let (a, b) = bytes.split_at(cut);
                assert_eq!(run([a, b]), whole(events), "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn json_without_a_field_and_the_field_error_are_events() {
        type Case<'a> = (&'a [u8], &'a [(&'a str, &'a str, bool)]);
        let cases: [Case<'_>; 8] = [
            (b"data: a\n\n{\"error\":{}}\n", &[("", "a", true), ("", "{\"error\":{}}", false)]),
            (
                b"data: a\n\n[{\n \"x\": \"}]\\\"\"\r\n}\n]\ndata: b\n\n",
                &[("", "a", true), ("", "[{\n \"x\": \"}]\\\"\"\n}\n]", false), ("", "b", true)],
            ),
            (b":c\n{\"a\":\n\ndata: b\n\n", &[("", "{\"a\":", false), ("", "b", true)]),
            (b":c\nevent: error\n{\"a\":1}\n\ndata: b\n\n", &[("error", "{\"a\":1}", false), ("", "b", true)]),
            (b":c\nerror: {\"code\":500}\n\ndata: b\n\n", &[("error", "{\"code\":500}", true), ("", "b", true)]),
            (b":c\nerror: none\ndata: b\n\n", &[("", "b", true)]),
            (b"data: {\n{\"no\":1}\ndata: }\n\n", &[("", "{\n}", true)]),
            (b":c\n[DONE]\n\n", &[("", "[DONE]", false)]),
        ];
        for (bytes, events) in cases {
            let want: Vec<Event> = events.iter().map(|(n, d, w)| ((*n).to_owned(), (*d).to_owned(), *w)).collect();
            let text = String::from_utf8_lossy(bytes).into_owned();
            assert_eq!(run([bytes]), want, "{text:?}");
            assert_eq!(run(bytes.chunks(1)), want, "{text:?} byte by byte");
            for cut in 0..=bytes.len() {
                let (a, b) = bytes.split_at(cut);
                assert_eq!(run([a, b]), want, "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn the_last_event_may_lack_its_blank_line_and_is_marked() {
        for bytes in [b"data: a\n\ndata: b".as_slice(), b"data: a\n\ndata: b\n"] {
            assert_eq!(run([bytes]), [("".into(), "a".into(), true), ("".into(), "b".into(), false)]);
        }
    }

    #[test]
    fn an_event_is_given_out_with_the_bytes_of_its_blank_line() {
        let mut sse = Sse::default();
        let mut seen = 0;
        sse.feed(b"data: a\n", |_| seen += 1);
        assert_eq!(seen, 0);
        sse.feed(b"\n", |_| seen += 1);
        assert_eq!(seen, 1);
        sse.feed(b"data: a\r\n\r", |_| seen += 1);
        assert_eq!(seen, 2, "the CR of the blank line ends it");
        sse.feed(b"\ndata: b\n\n", |_| seen += 1);
        assert_eq!(seen, 3, "the LF after it is no second blank line");
    }

    #[test]
    fn an_event_over_the_cap_is_skipped_counted_once_and_the_next_one_is_right() {
        for line_end in ["\n", "\r\n"] {
            for lines in [1, 3] {
                let mut sse = Sse::default();
                let mut events = Vec::new();
                let mut too_long = 0;
                let piece = vec![b'x'; 100_000];
                let mut feed = |sse: &mut Sse, bytes: &[u8]| {
                    too_long += sse.feed(bytes, |f| events.push(f.data.to_vec())).event_too_long;
                    assert!(sse.buffered() <= 2 * EVENT_BYTES + KEEP_BYTES);
                };
                for _ in 0..lines {
                    feed(&mut sse, b"data: ");
                    for _ in 0..=EVENT_BYTES / piece.len() / lines {
                        feed(&mut sse, &piece);
                    }
                    feed(&mut sse, line_end.as_bytes());
                }
                feed(&mut sse, format!("{line_end}data: next{line_end}{line_end}").as_bytes());
                assert_eq!(too_long, 1);
                assert_eq!(events, [b"next".to_vec()]);
                assert!(sse.buffered() <= 2 * KEEP_BYTES);
            }
        }
    }

    #[test]
    fn json_without_a_field_is_capped_too() {
        let mut sse = Sse::default();
        let (mut events, mut too_long) = (Vec::new(), 0);
        sse.feed(b":c\n{\n", |_| {});
        for _ in 0..=EVENT_BYTES / 1000 {
            too_long += sse
                .feed(&[b"\"a\":1,".repeat(170).as_slice(), b"\n"].concat(), |f| events.push(f.data.to_vec()))
                .event_too_long;
            assert!(sse.buffered() <= 2 * EVENT_BYTES + KEEP_BYTES);
        }
        sse.feed(b"\ndata: next\n\n", |f| events.push(f.data.to_vec()));
        assert_eq!((too_long, events), (1, vec![b"next".to_vec()]));
    }

    #[test]
    fn after_a_gap_decoding_goes_on_at_the_next_line_start() {
        let go = |before: &[u8], after: &[u8]| {
            let mut sse = Sse::default();
            let mut events = Vec::new();
            let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
            sse.feed(before, |f| events.push((text(f.data), f.whole)));
            sse.gap();
            sse.feed(after, |f| events.push((text(f.data), f.whole)));
            events
        };
        let next = ("next".to_owned(), true);
        assert_eq!(go(b"data: a", b"b\n\ndata: next\n\n"), std::slice::from_ref(&next));
        // The gap may have ended right at a line start: kept, but only as a guess.
        assert_eq!(go(b"data: a", b"data: b\n\ndata: next\n\n"), [("b".to_owned(), false), next.clone()]);
        assert_eq!(go(b"data: a\n", b"\ndata: next\n\n"), [("next".to_owned(), false)]);
        assert_eq!(go(b"data: a", b"\n\r\ndata: next\n\n"), std::slice::from_ref(&next));
        assert_eq!(go(b"event: x\ndata: a", b"tail\ndata: b\n\ndata: next\n\n"), [("b".to_owned(), false), next]);
    }

    /// The standard's algorithm, line by line over the whole text.
    fn reference(stream: &str) -> Vec<Event> {
        let stream = stream.strip_prefix('\u{feff}').unwrap_or(stream).replace("\r\n", "\n").replace('\r', "\n");
        let (mut data, mut name, mut events) = (String::new(), String::new(), Vec::new());
        let complete = stream.rfind('\n').map_or("", |i| &stream[..i]);
        for line in complete.split('\n').filter(|_| stream.contains('\n')) {
            if line.is_empty() {
                if data.pop().is_some() && !data.is_empty() {
                    events.push((name.clone(), data.clone(), true));
                }
                data.clear();
                name.clear();
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => data = format!("{data}{value}\n"),
                "event" => value.clone_into(&mut name),
                _ => {}
            }
        }
        events
    }

    proptest! {
        #[test]
        fn any_text_in_any_pieces_gives_what_the_standard_says(
            parts in proptest::collection::vec(prop_oneof![
                Just("\n"), Just("\r"), Just("\r\n"), Just("\n\n"), Just("data:"), Just("data: "), Just("data"),
                Just("event: e"), Just(": c"), Just("x"), Just("é"), Just(":"), Just(" "), Just("\"a\":1}"),
            ], 0..40),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let text = parts.concat();
            let bytes = text.as_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
            at.push(0);
            at.push(bytes.len());
            at.sort_unstable();
            let mut events = run(at.windows(2).map(|w| &bytes[w[0]..w[1]]));
            if events.last().is_some_and(|e| !e.2) {
                events.pop();
            }
            prop_assert_eq!(events, reference(&text));
        }
    }
}
