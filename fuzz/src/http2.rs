//! Target `h2`: the frames of one HTTP/2 connection, cut and with gaps, against the order of events that `http/mod.rs` promises.
//!
//! The input is one letter (`s` seen from its start, else joined midway) and a script. Bytes are the payload of DATA frames.
//! `~w`, `~r` switch to frames that are written, read; `~s`n to stream 1 + 2n; `~h` is a header block of the current stream,
//! `~H` one over three frames, `~i` one that puts fields into the dynamic table, `~j` one that takes them from there, `~t`
//! trailers; `~p`n pads the next frame by n bytes, `~e` ends the stream, `~c`n resets it, `~y` is a GOAWAY, `~S` SETTINGS, `~P` a PING;
//! `~z` lets the next bytes be no frame; `~|` cuts a record after the frame; `~g`n, `~u`, `~x` as in target `http1`.

use nexent_observer_core::{
    conn::{CloseCause, GapCause},
    event::Direction,
    http::StartSeen,
};

use crate::{
    http1::{Cuts, Step, run},
    script::{Op, parse},
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// What the script says, frames made: bytes of one direction, a gap, the end.
enum Item {
    Bytes(Direction, Vec<u8>),
    Gap(Direction, Option<u64>),
    Close,
}

/// Plays the script.
pub fn check(input: &[u8]) {
    let Some((first, script)) = input.split_first() else { return };
    let start = if *first == b's' { StartSeen::Yes } else { StartSeen::No };
    let items = items(script, start == StartSeen::Yes, false);
    let whole = run(start, &steps(&items), Cuts::None, false);
    // But for who reset a stream: a reset that was read is the peer's.
    let said =
        |log: &[String]| log.iter().map(|line| line.replace("by_peer: true", "by_peer: false")).collect::<Vec<_>>();
    let mirrored = run(start, &steps(&items), Cuts::None, true);
    assert_eq!(said(&whole.log), said(&mirrored.log), "a server is a client with directions swapped");
    let gap = items.iter().any(|item| matches!(item, Item::Gap(..)));
    if start == StartSeen::Yes && !gap && whole.drops == 0 {
        let items = self::items(script, true, cfg!(feature = "planted"));
        for cuts in [Cuts::Marked, Cuts::EveryByte] {
            assert_eq!(
                whole,
                run(start, &steps(&items), cuts, false),
                "wherever records are cut, the events are the same"
            );
        }
    }
}

/// One step for the bytes between two changes of direction or marks of a cut.
fn steps(items: &[Item]) -> Vec<Step<'_>> {
    items
        .iter()
        .map(|item| match item {
            Item::Bytes(dir, bytes) => Step::Bytes(*dir, bytes.chunks(7).collect()),
            Item::Gap(dir, len) => Step::Gap(*dir, *len, GapCause::Lost),
            Item::Close => Step::Close(CloseCause::Freed),
        })
        .collect()
}

/// `wrong_pad`: the bug that is planted.
fn items(script: &[u8], preface: bool, wrong_pad: bool) -> Vec<Item> {
    let mut items = Vec::new();
    if preface {
        let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, &[])].concat();
        items.push(Item::Bytes(Direction::Write, hello));
        items.push(Item::Bytes(Direction::Read, frame(SETTINGS, 0, 0, &[])));
    }
    let (mut dir, mut stream, mut pad, mut raw, mut join) = (Direction::Write, 1_u32, None, false, false);
    for op in parse(script, b"spcg") {
        let request = dir == Direction::Write;
        let bytes = match op {
            Op::Bytes(bytes) if std::mem::take(&mut raw) => bytes.to_vec(),
            Op::Bytes(bytes) => match pad.take() {
                Some(n) => {
                    let told = if wrong_pad && n == 3 { 2 } else { n };
                    let padded = [&[told], bytes, &vec![0; usize::from(n)]].concat();
                    frame(DATA, PADDED, stream, &padded)
                }
                None => frame(DATA, 0, stream, bytes),
            },
            Op::Mark(b'h', _) => frame(HEADERS, END_HEADERS, stream, &block(request, 0)),
            Op::Mark(b'i', _) => frame(HEADERS, END_HEADERS, stream, &block(request, 0x40)),
            Op::Mark(b'j', _) => frame(HEADERS, END_HEADERS, stream, &indexed(request)),
            Op::Mark(b'H', _) => {
                let block = block(request, 0);
                let (a, rest) = block.split_at(9);
                let (b, c) = rest.split_at(10);
                [
                    frame(HEADERS, 0, stream, a),
                    frame(CONTINUATION, 0, stream, b),
                    frame(CONTINUATION, END_HEADERS, stream, c),
                ]
                .concat()
            }
            Op::Mark(b't', _) => frame(HEADERS, END_HEADERS | END_STREAM, stream, &literal(0, b"x-t", b"1")),
            Op::Mark(b'e', _) => frame(DATA, END_STREAM, stream, &[]),
            Op::Mark(b'c', code) => frame(RST_STREAM, 0, stream, &u32::from(code).to_be_bytes()),
            Op::Mark(b'y', _) => frame(GOAWAY, 0, 0, &[stream.to_be_bytes(), [0; 4]].concat()),
            Op::Mark(b'S', _) => frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 64]),
            Op::Mark(b'P', _) => frame(PING, 0, 0, &[7; 8]),
            Op::Mark(mark, n) => {
                match mark {
                    b'w' => dir = Direction::Write,
                    b'r' => dir = Direction::Read,
                    b's' => stream = 1 + 2 * u32::from(n),
                    b'p' => pad = Some(n),
                    b'z' => raw = true,
                    b'g' => items.push(Item::Gap(dir, Some(u64::from(n) + 1))),
                    b'u' => items.push(Item::Gap(dir, None)),
                    b'x' => {
                        items.push(Item::Close);
                        return items;
                    }
                    _ => {}
                }
                join = false;
                continue;
            }
        };
        match items.last_mut() {
            Some(Item::Bytes(same, all)) if join && *same == dir => all.extend(bytes),
            _ => items.push(Item::Bytes(dir, bytes)),
        }
        join = true;
    }
    items
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A field as a literal: 0 without, 0x40 with incremental indexing (RFC 7541 section 6.2).
fn literal(kind: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[kind, name.len() as u8], name, &[value.len() as u8], value].concat()
}

const REQUEST: [(&[u8], &[u8]); 4] = [
    (b":method", b"POST"),
    (b":authority", b"h"),
    (b":path", b"/v1/chat/completions"),
    (b"content-type", b"application/json"),
];
const RESPONSE: [(&[u8], &[u8]); 2] = [(b":status", b"200"), (b"content-type", b"text/event-stream")];

fn fields(request: bool) -> &'static [(&'static [u8], &'static [u8])] {
    if request { &REQUEST } else { &RESPONSE }
}

fn block(request: bool, kind: u8) -> Vec<u8> {
    fields(request).iter().flat_map(|(name, value)| literal(kind, name, value)).collect()
}

/// The fields that the last block with indexing left in the dynamic table; the newest has index 62.
fn indexed(request: bool) -> Vec<u8> {
    (0..fields(request).len() as u8).rev().map(|i| 0x80 | (62 + i)).collect()
}
