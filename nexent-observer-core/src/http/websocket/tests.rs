//! Conversations with every kind of frame, cut, lost, broken and too long.

use std::fmt::Write as _;

use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use super::{super::Headers, *};
use crate::{event::MonoNs, limits, stats::DropReason};

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A frame: first byte, payload, masked or not.
fn frame(first: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let bit = if masked { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        n @ 0..126 => bytes.push(bit | n as u8),
        n @ 126..0x1_0000 => {
            bytes.push(bit | 126);
            bytes.extend((n as u16).to_be_bytes());
        }
        n => {
            bytes.push(bit | 127);
            bytes.extend((n as u64).to_be_bytes());
        }
    }
    if masked {
        bytes.extend(KEY);
        bytes.extend(payload.iter().zip(KEY.iter().cycle()).map(|(b, k)| b ^ k));
    } else {
        bytes.extend(payload);
    }
    bytes
}

/// One end's compressor.
struct Deflater(Compress, bool);

impl Deflater {
    fn new(takeover: bool) -> Self {
        Self(Compress::new(Compression::default(), false), takeover)
    }

    /// A message as RFC 7692 section 7.2.1 has it: flushed, without the last four bytes.
    fn message(&mut self, text: &[u8]) -> Vec<u8> {
        if !self.1 {
            self.0.reset();
        }
        let mut out = Vec::with_capacity(text.len() * 2 + 1000);
        self.0.compress_vec(text, &mut out, FlushCompress::Sync).unwrap();
        assert_eq!(out.split_off(out.len() - 4), [0, 0, 0xff, 0xff]);
        out
    }
}

struct Bench {
    socket: Socket,
    stats: Stats,
    now: u64,
    log: Vec<String>,
}

fn stamp(n: u64) -> Stamp {
    Stamp { entry: MonoNs(n), ret: MonoNs(n) }
}

fn tell(log: &mut Vec<String>, told: Told<'_>) {
    let Told::Message(message) = told else { return log.push("undecoded".into()) };
    let shown = message.bytes.get(..40).unwrap_or(message.bytes);
    log.push(format!("{:?} {} {} @{}", message.kind, message.len, shown.escape_ascii(), message.first.ret.0));
}

impl Bench {
    fn new(extensions: &str) -> Self {
        let headers = [("Sec-WebSocket-Extensions", extensions.as_bytes())];
        Self { socket: Socket::new(&Headers(&headers)), stats: Stats::default(), now: 0, log: vec![] }
    }

    fn feed(&mut self, side: Side, bytes: &[u8]) -> &mut Self {
        self.now += 1;
        let Self { socket, stats, now, log } = self;
        socket.feed(side, stamp(*now), bytes, stats, &mut |told| tell(log, told));
        self
    }

    fn server(&mut self, bytes: &[u8]) -> &mut Self {
        self.feed(Side::Response, bytes)
    }

    fn client(&mut self, bytes: &[u8]) -> &mut Self {
        self.feed(Side::Request, bytes)
    }

    #[track_caller]
    fn expect(&mut self, lines: &[&str]) -> &mut Self {
        assert_eq!(self.log, lines);
        self.log.clear();
        self
    }

    #[track_caller]
    fn counted(&self, reasons: &[(DropReason, u64)]) {
        let all = DropReason::ALL.into_iter().filter(|r| self.stats.drops(*r) > 0);
        assert_eq!(all.map(|r| (r, self.stats.drops(r))).collect::<Vec<_>>(), reasons);
    }
}

#[test]
fn the_examples_of_rfc_6455_section_5_7_are_read() {
    let mut b = Bench::new("");
    b.server(b"\x81\x05Hello").client(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    b.server(b"\x01\x03Hel").server(b"\x89\x05Hello").server(b"\x80\x02lo");
    b.client(b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    b.expect(&["Text 5 Hello @1", "Text 5 Hello @2", "Text 5 Hello @3"]);
    b.server(&frame(0x82, &[b'x'; 256], false)).server(&frame(0x82, &[b'y'; 65_536], false));
    let (x, y) = ("x".repeat(40), "y".repeat(40));
    b.expect(&[&format!("Binary 256 {x} @7"), &format!("Binary 65536 {y} @8")]).counted(&[]);
}

#[test]
fn the_examples_of_rfc_7692_section_7_2_3_are_read() {
    let mut b = Bench::new("permessage-deflate");
    // One frame; two frames; the window of the first message used by the second; stored; a final block.
    b.server(b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00")
        .server(b"\x41\x03\xf2\x48\xcd")
        .server(b"\x80\x04\xc9\xc9\x07\x00");
    b.server(b"\xc1\x05\xf2\x00\x11\x00\x00").server(b"\xc1\x0b\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00");
    let hello = |n: u32| format!("Text 5 Hello @{n}");
    b.expect(&[&hello(1), &hello(2), &hello(4), &hello(5)]);
    b.server(b"\xc1\x08\xf3\x48\xcd\xc9\xc9\x07\x00\x00").expect(&[&hello(6)]).counted(&[]);
}

#[test]
fn a_closing_frame_tells_its_code_and_is_the_last() {
    let mut b = Bench::new("");
    b.server(b"\x81\x02hi\x88\x04\x03\xf3hm\x81\x02no").expect(&["Text 2 hi @1", "Close(Some(1011)) 4  @1"]);
    assert!(b.socket.is_closing());
    b.client(&frame(0x88, &[0x03, 0xe8], true)).expect(&["Close(Some(1000)) 2  @2"]);
    b.client(&frame(0x81, b"late", true)).expect(&[]).counted(&[]);
    let mut b = Bench::new("");
    b.client(&frame(0x88, b"", true)).expect(&["Close(None) 0  @1"]).counted(&[]);
}

/// Both directions of a conversation with everything in it.
fn conversation(extensions: &str) -> Vec<(Side, Vec<u8>)> {
    let deflate = extensions.contains("permessage-deflate");
    let mut client = Deflater::new(!extensions.contains("client_no_context_takeover"));
    let mut server = Deflater::new(!extensions.contains("server_no_context_takeover"));
    let mut wire = Vec::new();
    for i in 0..6 {
        let text = format!("{{\"type\":\"response.output_text.delta\",\"delta\":\"word {i}\"}}").repeat(i % 3 * 3 + 1);
        for (side, peer, masked) in [(Side::Request, &mut client, true), (Side::Response, &mut server, false)] {
            // Compression is the sender's choice for each message.
            let packed = deflate && i != 3;
            let payload = if packed { peer.message(text.as_bytes()) } else { text.clone().into_bytes() };
            let rsv1 = if packed { 0x40 } else { 0 };
            if i % 2 == 0 {
                wire.push((side, frame(0x81 | rsv1, &payload, masked)));
                continue;
            }
            let (a, rest) = payload.split_at(payload.len() / 3);
            let (b, c) = rest.split_at(rest.len() / 2);
            wire.push((side, frame(0x01 | rsv1, a, masked)));
            wire.push((side, frame(0x89, b"ping", masked)));
            wire.push((side, frame(0x00, b, masked)));
            wire.push((side, frame(0x00, b"", masked)));
            wire.push((side, frame(0x80, c, masked)));
        }
    }
    wire.push((Side::Request, frame(0x88, &[3, 232], true)));
    wire.push((Side::Response, frame(0x88, &[3, 232], false)));
    wire
}

const EXTENSIONS: [&str; 4] = [
    "",
    "permessage-deflate; server_max_window_bits=15",
    "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
    "x-other, permessage-deflate;server_no_context_takeover",
];

/// The messages of one side, wherever the bytes are cut.
fn messages(extensions: &str, side: Side, pieces: &[&[u8]]) -> Vec<String> {
    let mut b = Bench::new(extensions);
    for piece in pieces {
        b.now = 0;
        b.feed(side, piece);
    }
    b.counted(&[]);
    b.log
}

#[test]
fn wherever_records_are_cut_the_messages_are_the_same() {
    for extensions in EXTENSIONS {
        for side in [Side::Request, Side::Response] {
            let of_side = conversation(extensions).into_iter().filter(|(s, _)| *s == side);
            let bytes: Vec<u8> = of_side.flat_map(|(_, bytes)| bytes).collect();
            let whole = messages(extensions, side, &[&bytes]);
            assert_eq!(whole.len(), 7);
            assert!(whole[1].starts_with("Text 216 {\\\"type\\\":\\\"response."), "{}", whole[1]);
            assert_eq!(messages(extensions, side, &bytes.chunks(1).collect::<Vec<_>>()), whole);
            for cut in 0..bytes.len() {
                assert_eq!(messages(extensions, side, &[&bytes[..cut], &bytes[cut..]]), whole, "{extensions} {cut}");
            }
        }
    }
}

#[test]
fn a_message_has_the_stamps_of_its_first_and_its_last_byte() {
    let mut b = Bench::new("");
    let bytes = frame(0x81, b"hello", true);
    for byte in &bytes {
        b.client(&[*byte]);
    }
    // It was told in the call of its last byte, which the bench's caller stamps.
    b.expect(&["Text 5 hello @1"]);
    assert_eq!(b.now, bytes.len() as u64);
}

#[test]
fn what_is_no_frame_is_counted_once_and_left_at_the_next_record_that_begins_with_one() {
    let good = frame(0x81, b"{\"type\":\"x\"}", false);
    for bad in [
        &b"\x83\x00"[..],      // a reserved opcode
        b"\xc1\x00",           // a compressed message without the extension
        b"\xa1\x00",           // RSV2
        b"\x81\x80\0\0\0\0",   // masked by the server
        b"\x09\x00",           // a ping in parts
        b"\x89\x7e\x00\x80",   // a long ping
        b"\x80\x01x",          // the rest of nothing
        b"\x01\x01x\x81\x01y", // a message inside of a message
        b"\x81\x7e\x00\x05",   // a length that is not minimal
        b"\x81\x7f\0\0\0\0\0\0\xff\xff",
        b"\x81\x7f\xff\0\0\0\0\0\0\0",
        b"\x88\x01x", // a closing frame with half a code
    ] {
        let mut b = Bench::new("");
        b.server(bad).server(b"no frame either").server(&good);
        b.expect(&["undecoded", "undecoded", "Text 12 {\\\"type\\\":\\\"x\\\"} @3"]);
        b.counted(&[(DropReason::WebSocketInvalid, 1)]);
    }
}

#[test]
fn a_gap_inside_of_a_message_loses_that_message_only() {
    for masked in [false, true] {
        let side = if masked { Side::Request } else { Side::Response };
        let bytes = frame(0x81, &[b'a'; 300], masked);
        let next = frame(0x81, b"next", masked);
        let start = bytes.len() - 300;
        for (from, len) in [(0, 300), (0, 10), (5, 290), (299, 1), (100, 3)] {
            let mut b = Bench::new("");
            b.feed(side, &bytes[..start + from]);
            b.socket.gap(side, Some(len as u64));
            b.feed(side, &[&bytes[start + from + len..], &next].concat());
            b.expect(&["Text 4 next @2"]).counted(&[]);
        }
        // Of unknown size, or beyond the frame: the next record that begins with a frame is found.
        for len in [None, Some(400)] {
            let mut b = Bench::new("");
            b.feed(side, &bytes[..50]);
            b.socket.gap(side, len);
            b.feed(side, b"the rest of something").feed(side, &next).expect(&["undecoded", "Text 4 next @3"]);
            b.counted(&[]);
        }
    }
}

#[test]
fn after_a_gap_compressed_messages_need_a_new_window() {
    for (extensions, takeover) in
        [("permessage-deflate", true), ("permessage-deflate; server_no_context_takeover", false)]
    {
        let mut peer = Deflater::new(takeover);
        let mut all: Vec<_> =
            (0..4).map(|i| frame(0xc1, &peer.message(format!("hello {i}").as_bytes()), false)).collect();
        all.push(frame(0x81, b"plain", false));
        let mut b = Bench::new(extensions);
        b.server(&all[0]);
        b.server(&all[1][..3]);
        b.socket.gap(Side::Response, Some(all[1].len() as u64 - 3));
        b.server(&all[2]).server(&all[3]).server(&all[4]);
        if takeover {
            b.expect(&["Text 7 hello 0 @1", "undecoded", "undecoded", "Text 5 plain @5"]);
            b.counted(&[(DropReason::CodingGap, 1)]);
        } else {
            b.expect(&["Text 7 hello 0 @1", "Text 7 hello 2 @3", "Text 7 hello 3 @4", "Text 5 plain @5"]).counted(&[]);
        }
    }
}

#[test]
fn a_message_over_the_cap_is_cut_and_counted() {
    let long = vec![b'a'; limits::MESSAGE_BYTES + 10];
    for (masked, parts) in [(false, 1), (true, 1), (false, 3)] {
        let side = if masked { Side::Request } else { Side::Response };
        let mut b = Bench::new("");
        let n = long.len().div_ceil(parts);
        for (i, part) in long.chunks(n).enumerate() {
            let first = if i == 0 { 1 } else { 0 } | if i + 1 == parts { 0x80 } else { 0 };
            for piece in frame(first, part, masked).chunks(100_000) {
                b.now = 0;
                b.feed(side, piece);
            }
        }
        b.expect(&[&format!("Text {} {} @1", long.len(), "a".repeat(40))]);
        b.counted(&[(DropReason::MessageTooLong, 1)]);
        let lane = if masked { &b.socket.client } else { &b.socket.server };
        assert_eq!(lane.kept(), 0, "the memory is given back");
    }
}

#[test]
fn a_compressed_message_over_the_cap_is_cut_and_the_next_one_is_read() {
    let mut peer = Deflater::new(true);
    let text: String = (0..500_000_u64).fold(String::new(), |mut text, i| {
        write!(text, "{} ", i * 7919 % 100_003).unwrap();
        text
    });
    assert!(text.len() < 4 * limits::MESSAGE_BYTES);
    let text = text.repeat(2);
    let (long, next) = (peer.message(text.as_bytes()), peer.message(b"0 7919 15838 ok"));
    let mut b = Bench::new("permessage-deflate");
    b.server(&frame(0xc1, &long, false)).server(&frame(0xc1, &next, false));
    assert!(text.len() > limits::MESSAGE_BYTES);
    b.expect(&[&format!("Text {} {} @1", text.len(), &text[..40]), "Text 15 0 7919 15838 ok @2"]);
    b.counted(&[(DropReason::MessageTooLong, 1)]);
}

#[test]
fn a_bomb_in_a_message_is_counted_and_plain_messages_go_on() {
    let bomb = Deflater::new(true).message(&vec![0; 6 * 1024 * 1024]);
    let mut b = Bench::new("permessage-deflate");
    b.server(&frame(0xc1, &bomb, false)).server(&frame(0xc1, b"\x00", false)).server(&frame(0x81, b"hi", false));
    b.expect(&["undecoded", "undecoded", "Text 2 hi @3"]).counted(&[(DropReason::DecodedTooLong, 1)]);
    // What is no deflate at all.
    let mut b = Bench::new("permessage-deflate");
    b.server(&frame(0xc1, b"\xff\xff\xff", false)).server(&frame(0x81, b"hi", false));
    b.expect(&["undecoded", "Text 2 hi @2"]).counted(&[(DropReason::ContentCoding, 1)]);
}

#[test]
fn a_handshake_is_told_by_its_response() {
    let response = |status, fields: &[(&str, &[u8])]| accepts(&ResponseHead { status, headers: Headers(fields) });
    assert!(response(Some(101), &[("Upgrade", b"websocket")]));
    assert!(response(Some(101), &[("upgrade", b"h2c, WebSocket")]));
    assert!(!response(Some(200), &[("Upgrade", b"websocket")]));
    assert!(!response(Some(101), &[("Upgrade", b"h2c")]));
    assert!(!response(Some(101), &[]));
}

#[test]
fn a_socket_at_rest_is_small() {
    assert!(size_of::<Socket>() <= 512, "{}", size_of::<Socket>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_bytes_make_it_panic_or_grow(
        bytes in proptest::collection::vec(prop_oneof![Just(0x81), Just(0xc1), Just(0), Just(2), any::<u8>()], 0..400),
        size in 1..50_usize,
        which in 0..EXTENSIONS.len(),
    ) {
        let mut b = Bench::new(EXTENSIONS[which]);
        for (i, piece) in bytes.chunks(size).enumerate() {
            let side = if i % 3 == 0 { Side::Request } else { Side::Response };
            b.feed(side, piece);
            if i % 7 == 6 {
                b.socket.gap(side, (i % 2 == 0).then_some(3));
            }
        }
        prop_assert!(b.socket.client.kept() <= limits::MESSAGE_BYTES);
    }
}
