//! Redaction of AWS event streams: each frame is taken whole, its payload redacted as a text, and its checksums made anew.

use super::{
    Secret,
    text::{FILLER, Text},
    words,
};
use crate::limits::EVENT_BYTES;

/// Lengths and their checksum, and that at the end of a frame, in bytes.
const PRELUDE: usize = 12;
const AROUND: usize = PRELUDE + 4;

/// An event stream on its way.
#[derive(Debug)]
pub(super) struct Aws {
    held: Vec<u8>,
    /// Bytes of a frame over the cap that are still to come.
    skip: usize,
    secret: Secret,
}

impl Aws {
    pub(super) fn new(secret: Secret) -> Self {
        Self { held: Vec::new(), skip: 0, secret }
    }

    pub(super) fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        out.resize(out.len() + skipped, FILLER);
        self.held.extend_from_slice(bytes.get(skipped..).unwrap_or_default());
        let held = std::mem::take(&mut self.held);
        let mut rest = held.as_slice();
        while let (Some(len), Some(headers), Some(sum)) = (number(rest, 0), number(rest, 4), number(rest, 8)) {
            let (len, headers) = (len as usize, headers as usize);
            let checked = rest.get(..8).is_some_and(|prelude| crc32fast::hash(prelude) == sum);
            if !checked || len < AROUND || headers > len - AROUND {
                // No frame: the next one is where the first checksum is right.
                out.push(FILLER);
                rest = rest.get(1..).unwrap_or_default();
            } else if len > EVENT_BYTES {
                // Its length is told, as it is to later stages, which skip it.
                let here = len.min(rest.len());
                out.extend_from_slice(rest.get(..PRELUDE).unwrap_or_default());
                out.resize(out.len() + here.saturating_sub(PRELUDE), FILLER);
                self.skip = len - here;
                rest = rest.get(here..).unwrap_or_default();
            } else if let Some((frame, after)) = rest.split_at_checked(len) {
                self.frame(frame, headers, out);
                rest = after;
            } else {
                break;
            }
        }
        self.held = rest.to_vec();
    }

    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        out.resize(out.len() + self.held.len(), FILLER);
        self.held.clear();
        self.skip = 0;
    }

    fn frame(&self, frame: &[u8], headers: usize, out: &mut Vec<u8>) {
        let at = out.len();
        let Some((body, sum)) = frame.split_last_chunk::<4>() else { return };
        let sound = crc32fast::hash(body) == u32::from_be_bytes(*sum);
        let (prelude, rest) = body.split_at(PRELUDE.min(body.len()));
        let (heads, payload) = rest.split_at(headers.min(rest.len()));
        out.extend_from_slice(prelude);
        let from = out.len();
        if heads_of(heads, out).is_none() {
            out.truncate(from);
            // Later stages cannot read them either.
            out.resize(from + heads.len(), FILLER);
        }
        let mut text = Text::of_aws(self.secret);
        text.feed(payload, out);
        text.finish(out);
        let sum = crc32fast::hash(out.get(at..).unwrap_or_default());
        // A damaged frame stays one.
        out.extend_from_slice(&if sound { sum } else { !sum }.to_be_bytes());
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The headers of a frame: names that are known stay, and texts made of known words, or that name an exception.
fn heads_of(mut heads: &[u8], out: &mut Vec<u8>) -> Option<()> {
    while let Some((&len, rest)) = heads.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(len))?;
        let (&kind, rest) = rest.split_first()?;
        out.push(len);
        keep_or_fill(name, words::is_known(name), out);
        out.push(kind);
        let fixed = match kind {
            0 | 1 => 0,
            2 => 1,
            3 => 2,
            4 => 4,
            5 | 8 => 8,
            9 => 16,
            6 | 7 => {
                let (len, rest) = rest.split_first_chunk::<2>()?;
                let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
                out.extend_from_slice(len);
                let exception = matches!(name, b":exception-type" | b":error-code");
                let status = exception && value.iter().all(u8::is_ascii_digit) && value.len() <= 3;
                let named = status || exception && words::is_identifier(value) && !words::is_credential(value);
                keep_or_fill(value, words::is_known(value) || named, out);
                heads = rest;
                continue;
            }
            _ => return None,
        };
        let (_, rest) = rest.split_at_checked(fixed)?;
        out.resize(out.len() + fixed, 0);
        heads = rest;
    }
    Some(())
}

fn keep_or_fill(text: &[u8], keep: bool, out: &mut Vec<u8>) {
    if keep {
        out.extend_from_slice(text);
    } else {
        out.resize(out.len() + text.len(), FILLER);
    }
}
