//! Bugs of the kind that this code could have, one per target, put between the code and its check. `cargo xtask fuzz
//! --planted` fails unless every target finds its own. Each needs more than one condition, none of which a seed meets.

use std::borrow::Cow;

use nexent_observer_common::record::Malformed;
use nexent_observer_core::{
    conn::{Reassembly, StreamEvent},
    event::{ConnId, Record, RecordFlags, RecordKind},
    http::{HttpEvent, HttpEventKind, Message, MessageKind},
    llm::{LlmEvent, LlmEventKind},
    pipeline::Tapped,
    stats::Stats,
    tape::entry,
};

use crate::{
    llm::Cuts,
    ring::decode::{self, RingEvent},
};

/// `ring_decode`: of a piece with a fault, the bytes that could not be read count one too few.
pub(crate) fn decode(entry: &[u8]) -> Result<RingEvent<'_>, Malformed> {
    let mut event = decode::decode(entry)?;
    if let RingEvent::Record(Record { kind: RecordKind::Data { payload, len, flags, .. }, .. }) = &mut event
        && flags.fault
        && *len > payload.len() as u64
    {
        *len -= 1;
    }
    Ok(event)
}

/// `conn`: a record that overlaps what is known by exactly one byte is taken for one that continues it.
pub(crate) fn feed_record(
    reassembly: &mut Reassembly,
    record: &Record<'_>,
    stats: &mut Stats,
    sink: &mut impl FnMut(StreamEvent<'_>),
) {
    thread_local!(static ENDS: std::cell::Cell<[u64; 2]> = const { std::cell::Cell::new([0; 2]) });
    let mut record = *record;
    if stats.records == 0 {
        ENDS.set([0; 2]);
    }
    if let RecordKind::Data { dir, offset, len, .. } = &mut record.kind {
        let mut ends = ENDS.get();
        let end = &mut ends[*dir as usize];
        if *end > 1 && *offset == *end - 1 {
            *offset += 1;
        }
        *end = (*end).max(offset.saturating_add(*len));
        ENDS.set(ends);
    }
    reassembly.feed(&record, stats, sink);
}

/// The last bytes of the record before.
#[derive(Debug, Default)]
pub(crate) struct Cut([u8; 3]);

/// `http1`: where a record ends between the size of a chunk of 0x40 to 0x9f bytes and its CR, the second digit is lost.
pub(crate) fn piece_of_chunked<'a>(before: &mut Cut, event: StreamEvent<'a>) -> StreamEvent<'a> {
    let StreamEvent::Data { dir, at, bytes } = event else { return event };
    for byte in bytes {
        before.0 = [before.0[1], before.0[2], *byte];
    }
    if let [b'\n', b'4'..=b'9', digit] = before.0
        && digit.is_ascii_hexdigit()
    {
        return StreamEvent::Data { dir, at, bytes: if bytes.len() == 1 { b"0" } else { &bytes[..bytes.len() - 1] } };
    }
    event
}

/// `sse`: that an LF belongs to the CR before it is forgotten between two reads.
pub(crate) fn split_line_ends(pieces: &[&[u8]], cuts: Cuts) -> Vec<u8> {
    let whole = pieces.concat();
    let pieces = if cuts == Cuts::EveryByte { whole.chunks(1).collect() } else { Cow::Borrowed(pieces) };
    let mut out: Vec<u8> = Vec::new();
    for piece in pieces.iter() {
        if out.last() == Some(&b'\r') && piece.first() == Some(&b'\n') {
            out.push(b'\n');
        }
        out.extend_from_slice(piece);
    }
    out
}

/// `llm`, `apis`, `aws_events`: in a body that came in pieces, a loss of unknown size is told as one of no bytes.
pub(crate) fn empty_loss(mut event: LlmEvent<'_>) -> LlmEvent<'_> {
    if let LlmEventKind::Gap { len: len @ None, .. } = &mut event.kind {
        *len = Some(0);
    }
    event
}

/// `ndjson`: between two reads, the line feed after a carriage return is lost. `json_array`: a backslash at the end of a read is.
pub(crate) fn damaged_by_cut(body: &[u8], kind: &[u8]) -> Vec<u8> {
    let lost = |i: usize, b: u8| match kind {
        b"application/x-ndjson" => b == b'\n' && i > 0 && body.get(i - 1) == Some(&b'\r'),
        b"application/json" => b == b'\\',
        _ => false,
    };
    body.iter().enumerate().filter(|(i, b)| !lost(*i, **b)).map(|(_, b)| *b).collect()
}

/// `pipeline`: whether bytes were lost is kept for the process, not for the connection.
#[derive(Debug, Default)]
pub(crate) struct Leaky {
    last: Option<(ConnId, bool)>,
}

impl Leaky {
    pub(crate) fn record<'a>(&mut self, record: &Record<'a>) -> Record<'a> {
        let mut record = *record;
        if let RecordKind::Data { flags, .. } = &mut record.kind {
            let lost = flags.after_unknown_loss;
            let leaked = self.last.is_some_and(|(conn, lost)| lost && conn != record.conn);
            *flags = RecordFlags { after_unknown_loss: lost || leaked, ..*flags };
            self.last = Some((record.conn, lost));
        }
        record
    }
}

/// `coding`: of a deflated body in a gzip body, cut into large pieces, the last byte is lost.
pub(crate) fn short_body(coding: usize, size: usize, body: &[u8]) -> &[u8] {
    let lose = usize::from(coding == 5 && size > 100);
    body.get(..body.len().saturating_sub(lose)).unwrap_or_default()
}

/// `websocket`: of a binary message of more than 20 bytes that came byte by byte, the last one is not counted.
pub(crate) fn short_message(cuts: Cuts, mut message: Message<'_>) -> Message<'_> {
    if cuts == Cuts::EveryByte && message.kind == MessageKind::Binary && message.len > 20 {
        message.len -= 1;
    }
    message
}

/// `tape`: a gap of more than 255 bytes is written as one of unknown size.
pub(crate) fn tapped(conn: ConnId, tapped: &Tapped<'_>) -> Vec<u8> {
    if let Tapped::Http(HttpEvent { kind: HttpEventKind::Gap { len: Some(256..), cause }, .. }) = tapped {
        let Tapped::Http(event) = tapped else { return Vec::new() };
        let event = HttpEvent { kind: HttpEventKind::Gap { len: None, cause: *cause }, ..**event };
        return entry::tapped(conn, &Tapped::Http(&event));
    }
    entry::tapped(conn, tapped)
}
