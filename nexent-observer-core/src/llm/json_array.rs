//! Framing: a JSON array that is written element by element (Gemini without `alt=sse`). An element takes the time of the
//! bytes that carried its last brace.
//!
//! Only objects are elements; what else stands in the array is passed over. A JSON string holds no line feed, so a line
//! feed is always outside of strings: after a gap, an opening brace at the start of a line begins an element, as this
//! API writes them.

use super::api::{Defects, Frame};
use crate::limits::EVENT_BYTES;

/// A buffer that grew over this for one element is given back after it, in bytes.
const KEEP_BYTES: usize = 16 * 1024;

/// Incremental decoder. An element that lies wholly in one slice is handed out in place; only a split one is copied.
#[derive(Debug, Default)]
pub(super) struct Elements {
    /// Beginning of an element whose end is still to come.
    held: Vec<u8>,
    /// Open braces; 0 between elements.
    depth: u64,
    text: Text,
    /// The element is too long: followed to its end, not kept.
    skipping: bool,
    /// Bytes are missing: nothing is an element before a brace at the start of a line.
    resync: Option<Resync>,
}

/// Where the scan stands within strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Text {
    #[default]
    Outside,
    Inside,
    Escaped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resync {
    InLine,
    LineStart,
}

impl Elements {
    /// Forgets the element in progress: bytes are missing here.
    pub(super) fn gap(&mut self) {
        *self = Self { resync: Some(Resync::InLine), ..Self::default() };
    }

    /// Takes the next bytes; `on_element` gets every element that they complete.
    pub(super) fn feed(&mut self, bytes: &[u8], mut on_element: impl FnMut(Frame<'_>)) -> Defects {
        let mut defects = Defects::default();
        let mut at = if self.resync.is_some() { self.find_line(bytes) } else { 0 };
        // Where the part of the element in progress begins in `bytes`.
        let mut start = at;
        while let Some(&b) = bytes.get(at) {
            if self.text == Text::Escaped {
                self.text = Text::Inside;
                at += 1;
                continue;
            }
            let rest = bytes.get(at..).unwrap_or_default();
            let next = match (self.text, self.depth) {
                (Text::Outside, 0) => memchr::memchr(b'{', rest),
                (Text::Outside, _) => memchr::memchr3(b'"', b'{', b'}', rest),
                _ => memchr::memchr2(b'"', b'\\', rest),
            };
            let Some(next) = next else { break };
            at += next + 1;
            match (self.text, rest.get(next).copied().unwrap_or(b)) {
                (Text::Outside, b'{') => {
                    if self.depth == 0 {
                        start = at - 1;
                    }
                    self.depth += 1;
                }
                (Text::Outside, b'}') => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        self.end_element(bytes.get(start..at).unwrap_or_default(), &mut on_element, &mut defects);
                    }
                }
                (Text::Outside, _) => self.text = Text::Inside,
                (_, b'\\') => self.text = Text::Escaped,
                _ => self.text = Text::Outside,
            }
        }
        if self.depth > 0 {
            self.keep(bytes.get(start..).unwrap_or_default(), &mut defects);
        }
        defects
    }

    /// The body is over: an element in progress is not whole.
    pub(super) fn finish(&mut self, mut on_element: impl FnMut(Frame<'_>)) {
        let data = std::mem::take(&mut self.held);
        if !data.is_empty() {
            on_element(Frame { name: b"", error: false, data: &data, whole: false });
        }
    }

    fn end_element(&mut self, part: &[u8], on_element: &mut impl FnMut(Frame<'_>), defects: &mut Defects) {
        if std::mem::take(&mut self.skipping) {
            return;
        }
        if self.held.len() + part.len() > EVENT_BYTES {
            defects.event_too_long += 1;
        } else if self.held.is_empty() {
            on_element(Frame { name: b"", error: false, data: part, whole: true });
        } else {
            self.held.extend_from_slice(part);
            on_element(Frame { name: b"", error: false, data: &self.held, whole: true });
        }
        self.held.clear();
        if self.held.capacity() > KEEP_BYTES {
            self.held = Vec::new();
        }
    }

    fn keep(&mut self, part: &[u8], defects: &mut Defects) {
        if self.skipping {
        } else if self.held.len() + part.len() > EVENT_BYTES {
            defects.event_too_long += 1;
            self.held = Vec::new();
            self.skipping = true;
        } else {
            self.held.extend_from_slice(part);
        }
    }

    /// Index of the first brace at the start of a line; the length of `bytes` when there is none.
    fn find_line(&mut self, bytes: &[u8]) -> usize {
        for (i, &b) in bytes.iter().enumerate() {
            match (self.resync, b) {
                (Some(Resync::LineStart), b'{') => {
                    self.resync = None;
                    return i;
                }
                (_, b'\n') => self.resync = Some(Resync::LineStart),
                _ => self.resync = Some(Resync::InLine),
            }
        }
        bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run<'a>(pieces: impl IntoIterator<Item = Option<&'a [u8]>>) -> Vec<String> {
        let mut elements = Elements::default();
        let mut seen = Vec::new();
        let text = |f: Frame<'_>| format!("{}{}", String::from_utf8_lossy(f.data), if f.whole { "" } else { " ..." });
        for piece in pieces {
            match piece {
                Some(bytes) => {
                    assert_eq!(elements.feed(bytes, |f| seen.push(text(f))), Defects::default());
                }
                None => elements.gap(),
            }
        }
        elements.finish(|f| seen.push(text(f)));
        seen
    }

    #[test]
    fn elements_are_cut_at_their_last_brace_in_every_cut() {
        let body = r#"[{"a":"}{\"]\\"}
,
{"b":{"c":[{}, 1]}} , 7, "x", {},{"d":"#;
        let want = [r#"{"a":"}{\"]\\"}"#, r#"{"b":{"c":[{}, 1]}}"#, "{}", "{\"d\": ..."];
        assert_eq!(run([Some(body.as_bytes())]), want);
        assert_eq!(run(body.as_bytes().chunks(1).map(Some)), want);
        for cut in 0..=body.len() {
            assert_eq!(run([Some(&body.as_bytes()[..cut]), Some(&body.as_bytes()[cut..])]), want, "cut at {cut}");
        }
    }

    #[test]
    fn an_element_is_given_out_with_its_last_brace() {
        let mut elements = Elements::default();
        let mut seen = 0;
        elements.feed(b"[{\"a\":1", |_| seen += 1);
        assert_eq!(seen, 0);
        elements.feed(b"}", |_| seen += 1);
        assert_eq!(seen, 1);
    }

    #[test]
    fn after_a_gap_decoding_goes_on_at_the_next_line_that_begins_an_element() {
        let seen = run([
            Some(b"[{\"a\":\"x".as_slice()),
            None,
            Some(b"{\\\"}\",\n  {\"inner\":1}\n}\r\n,\r\n"),
            Some(b"{\"b\":1}\n"),
        ]);
        assert_eq!(seen, ["{\"b\":1}"]);
    }

    #[test]
    fn an_element_over_the_cap_is_skipped_counted_once_and_the_next_one_is_right() {
        for piece in [1000, 64 * 1024, EVENT_BYTES * 2] {
            let body = format!("[{{\"a\":\"{}}}{{\"}},{{\"b\":1}}]", "x".repeat(EVENT_BYTES));
            let mut elements = Elements::default();
            let (mut seen, mut too_long) = (Vec::new(), 0);
            for bytes in body.as_bytes().chunks(piece) {
                too_long += elements.feed(bytes, |f| seen.push(f.data.to_vec())).event_too_long;
                assert!(elements.held.capacity() <= 2 * EVENT_BYTES);
            }
            assert_eq!((seen, too_long), (vec![b"{\"b\":1}".to_vec()], 1));
            assert!(elements.held.capacity() <= KEEP_BYTES);
        }
    }

    #[test]
    fn nesting_costs_no_stack_and_no_time() {
        let mut elements = Elements::default();
        let mut seen = 0;
        elements.feed(&vec![b'{'; 3_000_000], |_| seen += 1);
        elements.feed(&vec![b'}'; 4_000_000], |_| seen += 1);
        assert_eq!(seen, 0, "over the cap");
        elements.feed(b",{}", |_| seen += 1);
        assert_eq!(seen, 1);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same(
            parts in prop::collection::vec(prop_oneof![Just("{"), Just("}"), Just("\""), Just("\\"), Just("["), Just(","), Just("\n"), Just("x")], 0..60),
            cut in any::<prop::sample::Index>(),
            hole: bool,
        ) {
            let body = parts.concat();
            let (a, b) = body.as_bytes().split_at(cut.index(body.len() + 1));
            if hole {
                prop_assert_eq!(run([Some(a), None, Some(b)]), run(std::iter::once(Some(a)).chain([None]).chain(b.chunks(1).map(Some))));
            } else {
                prop_assert_eq!(run([Some(a), Some(b)]), run([Some(body.as_bytes())]));
                prop_assert_eq!(run(body.as_bytes().chunks(1).map(Some)), run([Some(body.as_bytes())]));
            }
        }
    }
}
