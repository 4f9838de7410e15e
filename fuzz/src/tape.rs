//! Target `tape`: the file of a recording, its entries, and what redaction makes of a body.
//!
//! The first byte says which: `f` a file, `e` the entries of a block, `q` a request body, any other a response body.

use nexent_observer_core::{
    event::{ConnId, Stamp},
    http::{ExchangeNo, Head, Headers, HttpEvent, HttpEventKind, RequestHead, ResponseHead, Side},
    limits::{Limits, TAPE_BLOCK_BYTES},
    pipeline::{Replay, Tapped},
    tape::{
        Redactor, Secret,
        entry::{self, Entry},
        frame::{self, Broken, Unpacker},
    },
    timing::Options,
};

#[cfg(feature = "planted")]
use crate::planted::tapped;
#[cfg(not(feature = "planted"))]
use nexent_observer_core::tape::entry::tapped;

/// Checks the input.
pub fn check(input: &[u8]) {
    let Some((which, rest)) = input.split_first() else { return };
    match which {
        b'f' => file(rest),
        b'e' => entries(rest),
        b'q' => body(rest, Side::Request),
        _ => body(rest, Side::Response),
    }
}

/// What reading a file gives.
fn read(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool, Option<Broken>) {
    let (mut unpacker, mut blocks) = (Unpacker::default(), Vec::new());
    let mut pieces = bytes.chunks(piece);
    loop {
        match unpacker.next_block() {
            Ok(Some(block)) => {
                assert!(block.len() <= TAPE_BLOCK_BYTES);
                entries(&block);
                blocks.push(block);
            }
            Ok(None) => match pieces.next() {
                Some(piece) => unpacker.push(piece),
                None => return (blocks, unpacker.has_ended(), None),
            },
            Err(broken) => return (blocks, false, Some(broken)),
        }
    }
}

fn file(bytes: &[u8]) {
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(read(bytes, 1), whole, "byte by byte");
}

/// Entries are read or refused; what is read is the same when it is written again, and no order of them harms the stages.
fn entries(block: &[u8]) {
    let mut replay = Replay::new(Limits::default(), &Options { capture_content: true, ..Options::default() });
    for bytes in frame::entries(block) {
        let Ok(bytes) = bytes else { return };
        let read = entry::read(bytes, |entry| {
            let Entry::Tapped(conn, shown) = entry else { return };
            let again = tapped(conn, &shown);
            let same = entry::read(&again, |entry| entry == Entry::Tapped(conn, shown));
            assert_eq!(same, Ok(true), "{shown:?}");
            replay.handle(conn, &shown);
        });
        if read.is_ok() {
            while replay.poll_output().is_some() {}
        }
    }
    assert_eq!(replay.active().count() as u64 <= replay.stats().exchanges_open, true);
}

/// The bytes of a body after redaction, which came in these pieces.
fn redacted<'a>(side: Side, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut redactor = Redactor::new(Secret::new([5; 16]));
    let mut out = Vec::new();
    let mut write = |bytes: &[u8]| {
        let read = entry::read(bytes, |entry| {
            if let Entry::Tapped(_, Tapped::Http(HttpEvent { kind: HttpEventKind::Body(body), .. })) = entry {
                out.extend_from_slice(body);
            }
        });
        assert!(read.is_ok());
    };
    let event = |kind| HttpEvent { exchange: ExchangeNo(0), side, at: Stamp::default(), kind };
    let head = match side {
        Side::Request => Head::Request(RequestHead { method: "POST", path: "/", host: None, headers: Headers(&[]) }),
        Side::Response => Head::Response(ResponseHead { status: Some(200), headers: Headers(&[]) }),
    };
    let head = event(HttpEventKind::Head { first: Stamp::default(), head });
    redactor.take(ConnId(1), &Tapped::Http(&head), &mut write);
    for piece in pieces {
        redactor.take(ConnId(1), &Tapped::Http(&event(HttpEventKind::Body(piece))), &mut write);
    }
    redactor.take(ConnId(1), &Tapped::Http(&event(HttpEventKind::End)), &mut write);
    out
}

fn body(bytes: &[u8], side: Side) {
    // Beyond, events are given out before a name ends, and then the cut counts.
    let bytes = bytes.get(..2000).unwrap_or(bytes);
    if bytes.is_empty() {
        return;
    }
    let whole = redacted(side, std::iter::once(bytes));
    assert_eq!(whole.len(), bytes.len());
    assert_eq!(redacted(side, bytes.chunks(1)), whole, "byte by byte");
    // What was redacted has nothing left to redact but ids, which become others.
    assert_eq!(redacted(side, std::iter::once(whole.as_slice())).len(), whole.len());
}
