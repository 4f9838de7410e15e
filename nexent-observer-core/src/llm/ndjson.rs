//! Framing: one JSON value a line (`application/x-ndjson`). A line takes the time of the bytes that carried its LF.

use super::api::{Defects, Frame};
use crate::limits::EVENT_BYTES;

/// A buffer that grew over this for one line is given back after it, in bytes.
const KEEP_BYTES: usize = 16 * 1024;

/// Incremental decoder. A line that lies wholly in one slice is handed out in place; only a split one is copied.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Beginning of a line whose end is still to come.
    held: Vec<u8>,
    /// Up to the next line end, nothing is kept: the line is too long, or its beginning is lost.
    skipping: bool,
}

impl Lines {
    /// A decoder for a stream whose beginning is not known.
    pub(super) fn midstream() -> Self {
        Self { held: Vec::new(), skipping: true }
    }

    /// Bytes are missing here. What comes up to the next line end is the rest of some line.
    pub(super) fn gap(&mut self) {
        *self = Self::midstream();
    }

    /// Takes the next bytes; `on_line` gets every line that they complete, blank ones left out.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut on_line: impl FnMut(Frame<'_>)) -> Defects {
        let mut defects = Defects::default();
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if self.held.len() + line.len() > EVENT_BYTES {
                defects.event_too_long += 1;
            } else if self.held.is_empty() {
                hand_out(line, true, &mut on_line);
            } else {
                self.held.extend_from_slice(line);
                hand_out(&self.held, true, &mut on_line);
            }
            self.held.clear();
            if self.held.capacity() > KEEP_BYTES {
                self.held = Vec::new();
            }
        }
        if self.skipping {
            return defects;
        }
        if self.held.len() + bytes.len() > EVENT_BYTES {
            defects.event_too_long += 1;
            *self = Self::midstream();
        } else {
            self.held.extend_from_slice(bytes);
        }
        defects
    }

    /// The stream is over: what came after the last line end is a line all the same, if it is whole.
    pub(super) fn finish(&mut self, mut on_line: impl FnMut(Frame<'_>)) {
        hand_out(&std::mem::take(&mut self.held), false, &mut on_line);
    }
}

fn hand_out(line: &[u8], whole: bool, on_line: &mut impl FnMut(Frame<'_>)) {
    let data = line.trim_ascii();
    if !data.is_empty() {
        on_line(Frame { name: b"", error: false, data, whole });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<'a>(pieces: impl IntoIterator<Item = Option<&'a [u8]>>) -> Vec<(String, bool)> {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        let mut on = |f: Frame<'_>| seen.push((String::from_utf8_lossy(f.data).into_owned(), f.whole));
        for piece in pieces {
            match piece {
                Some(bytes) => assert_eq!(lines.feed(bytes, &mut on), Defects::default()),
                None => lines.gap(),
            }
        }
        lines.finish(on);
        seen
    }

    #[test]
    fn lines_are_the_same_in_every_cut_and_the_last_one_is_marked() {
        let body = b"{\"a\":1}\r\n\n  {\"b\":2}\n{\"c\":\"\xc3\xa9\"}";
        let want = [("{\"a\":1}", true), ("{\"b\":2}", true), ("{\"c\":\"é\"}", false)].map(|(l, w)| (l.to_owned(), w));
        assert_eq!(run([Some(body.as_slice())]), want);
        assert_eq!(run(body.chunks(1).map(Some)), want);
        for cut in 0..=body.len() {
            assert_eq!(run([Some(&body[..cut]), Some(&body[cut..])]), want, "cut at {cut}");
        }
    }

    #[test]
    fn after_a_gap_the_rest_of_a_line_is_not_taken_for_one() {
        let seen = run([Some(b"{\"a\":1}\n{\"b\"".as_slice()), None, Some(b":2}\n{\"c\":3}\n")]);
        assert_eq!(seen.iter().map(|(l, _)| l.as_str()).collect::<Vec<_>>(), ["{\"a\":1}", "{\"c\":3}"]);
    }

    #[test]
    fn a_line_over_the_cap_is_skipped_counted_once_and_the_next_one_is_right() {
        for piece in [1000, 64 * 1024, EVENT_BYTES * 2] {
            let mut lines = Lines::default();
            let mut body = vec![b'x'; EVENT_BYTES + 1];
            body.extend(b"\n{}\n");
            let (mut seen, mut too_long) = (Vec::new(), 0);
            for bytes in body.chunks(piece) {
                too_long += lines.feed(bytes, |f| seen.push(f.data.to_vec())).event_too_long;
                assert!(lines.held.capacity() <= 2 * EVENT_BYTES);
            }
            assert_eq!((seen, too_long), (vec![b"{}".to_vec()], 1));
            assert!(lines.held.capacity() <= KEEP_BYTES);
        }
    }
}
