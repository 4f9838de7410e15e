//! Bodies with codings, and WebSockets, on whole connections of both versions.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};

use crate::{
    conn::{CloseCause, GapCause, StreamEvent},
    event::{
        Direction::{self, *},
        MonoNs, Stamp,
    },
    http::{Head, HttpConnection, HttpEvent, HttpEventKind, Side, StartSeen},
    limits,
    stats::{DropReason, Stats},
};

/// A connection under test. Each record comes one later than the last.
struct Bench {
    conn: HttpConnection,
    stats: Stats,
    now: u64,
    /// One line per event; neighbouring bodies of one record are one line.
    log: Vec<String>,
}

fn line(ev: &HttpEvent<'_>) -> String {
    let (no, side) = (ev.exchange.0, if ev.side == Side::Request { '>' } else { '<' });
    let what = match ev.kind {
        HttpEventKind::Head { head: Head::Request(head), .. } => format!("{} {}", head.method, head.path),
        HttpEventKind::Head { head: Head::Response(head), .. } => format!("{}", head.status.unwrap_or(0)),
        HttpEventKind::Head { head: Head::Unseen, .. } => "unseen".into(),
        HttpEventKind::Body(bytes) => format!("{}", bytes.escape_ascii()),
        HttpEventKind::Message(message) => {
            let text = message.bytes.get(..60).unwrap_or(message.bytes);
            format!("{:?} {} {} @{}", message.kind, message.len, text.escape_ascii(), message.first.ret.0)
        }
        HttpEventKind::Gap { len, cause } => format!("gap {len:?} {cause:?}"),
        HttpEventKind::End => "end".into(),
        HttpEventKind::Abort(cause) => format!("{cause:?}"),
    };
    format!("{no}{side}{} {what}", ev.at.ret.0)
}

impl Bench {
    fn new(start: StartSeen) -> Self {
        Self { conn: HttpConnection::new(start), stats: Stats::default(), now: 0, log: vec![] }
    }

    fn event(&mut self, ev: StreamEvent<'_>) {
        let log = &mut self.log;
        let mut body = None;
        self.conn.feed(&ev, &mut self.stats, &mut |ev| {
            let message = matches!(ev.kind, HttpEventKind::Body(_)).then_some((ev.exchange, ev.side));
            match (log.last_mut(), ev.kind) {
                (Some(last), HttpEventKind::Body(bytes)) if body == message => {
                    *last += &bytes.escape_ascii().to_string();
                }
                _ => log.push(line(&ev)),
            }
            body = message;
        });
    }

    fn data(&mut self, dir: Direction, bytes: &[u8]) -> &mut Self {
        self.now += 1;
        let at = Stamp { entry: MonoNs(self.now), ret: MonoNs(self.now) };
        self.event(StreamEvent::Data { dir, at, bytes });
        self
    }

    fn gap(&mut self, dir: Direction, len: u64, cause: GapCause) -> &mut Self {
        self.now += 1;
        let at = Stamp { entry: MonoNs(self.now), ret: MonoNs(self.now) };
        self.event(StreamEvent::Gap { dir, at, len: Some(len), cause });
        self
    }

    fn close(&mut self, cause: CloseCause) -> &mut Self {
        self.now += 1;
        self.event(StreamEvent::Close { at: MonoNs(self.now), cause });
        self
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

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";

/// gzip, flushed behind each piece.
fn gzip(pieces: &[&str]) -> Vec<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let mut all = Vec::new();
    for piece in pieces {
        encoder.write_all(piece.as_bytes()).unwrap();
        encoder.flush().unwrap();
        all.push(std::mem::take(encoder.get_mut()));
    }
    all.push(encoder.finish().unwrap());
    all
}

fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

fn chunked_head(coding: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn what_a_server_flushed_bears_the_stamp_of_the_read_that_brought_it() {
    let mut b = Bench::new(StartSeen::Yes);
    let parts = gzip(&["data: one\n\n", "data: two\n\n"]);
    b.data(Write, GET).data(Read, &chunked_head("gzip"));
    for part in &parts {
        b.data(Read, &chunk(part));
    }
    b.data(Read, b"0\r\n\r\n");
    b.expect(&["0>1 GET /a", "0>1 end", "0<2 200", r"0<3 data: one\n\n", r"0<4 data: two\n\n", "0<6 end"]);
    b.counted(&[]);
}

#[test]
fn a_request_has_a_coding_too() {
    let mut b = Bench::new(StartSeen::Yes);
    let body = gzip(&["{\"model\":\"m\"}"]).concat();
    let head = format!("POST /v1 HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", body.len());
    b.data(Write, &[head.as_bytes(), &body].concat());
    b.expect(&["0>1 POST /v1", r#"0>1 {\"model\":\"m\"}"#, "0>1 end"]);
}

#[test]
fn a_transfer_coding_is_undone_with_and_without_chunks() {
    let body = gzip(&["hello"]).concat();
    let mut b = Bench::new(StartSeen::Yes);
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n";
    b.data(Write, GET).data(Read, &[&head[..], &chunk(&body), b"0\r\n\r\n"].concat());
    b.expect(&["0>1 GET /a", "0>1 end", "0<2 200", "0<2 hello", "0<2 end"]);
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n";
    b.data(Write, GET).data(Read, &[&head[..], &body].concat()).close(CloseCause::Freed);
    b.expect(&["1>3 GET /a", "1>3 end", "1<4 200", "1<4 hello", "1<5 end"]);
}

#[test]
fn streams_of_http_2_have_a_decoder_each() {
    let mut b = Bench::new(StartSeen::Yes);
    // Indices of the static table (RFC 7541 appendix A): GET, https, /; status 200; content-encoding as a literal.
    let ask = |stream| frame(1, 5, stream, &[0x82, 0x87, 0x84]);
    let head = |stream| frame(1, 4, stream, b"\x88\x0f\x0b\x04gzip");
    let (one, two) = (gzip(&["one-a ", "one-b"]), gzip(&["two-a ", "two-b"]));
    b.data(Write, &[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, b""), &ask(1), &ask(3)].concat());
    b.data(Read, &[frame(4, 0, 0, b""), head(1), head(3)].concat());
    for i in 0..3 {
        let end = u8::from(i == 2);
        b.data(Read, &[frame(0, end, 3, &two[i]), frame(0, end, 1, &one[i])].concat());
    }
    let asked = ["0>1 GET /", "0>1 end", "1>1 GET /", "1>1 end", "0<2 200", "1<2 200"];
    let told = ["1<3 two-a ", "0<3 one-a ", "1<4 two-b", "0<4 one-b", "1<5 end", "0<5 end"];
    b.expect(&[&asked[..], &told].concat()).counted(&[]);
}

#[test]
fn a_coding_that_is_not_known_is_named_and_the_next_body_is_read() {
    let mut b = Bench::new(StartSeen::Yes);
    let head = b"HTTP/1.1 200 OK\r\nContent-Encoding: compress\r\nContent-Length: 4\r\n\r\n";
    b.data(Write, GET).data(Read, head).data(Read, b"ab").data(Read, b"cd");
    b.expect(&["0>1 GET /a", "0>1 end", "0<2 200", "0<3 gap None Undecoded", "0<4 end"]);
    b.counted(&[(DropReason::ContentCoding, 1)]);
    b.data(Write, GET).data(Read, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    b.expect(&["1>5 GET /a", "1>5 end", "1<6 200", "1<6 ok", "1<6 end"]);
}

#[test]
fn an_answer_without_a_body_needs_no_coding() {
    let mut b = Bench::new(StartSeen::Yes);
    for head in ["HTTP/1.1 304 Not Modified\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"] {
        for coding in ["gzip", "compress"] {
            b.data(Write, GET).data(Read, format!("{head}Content-Encoding: {coding}\r\n\r\n").as_bytes());
        }
    }
    b.counted(&[]);
    assert!(b.log.iter().all(|line| !line.contains("gap")));
}

#[test]
fn after_a_gap_the_rest_of_a_compressed_body_is_named_lost() {
    let parts = gzip(&["data: one\n\n", "data: two\n\n", "data: three\n\n"]);
    let mut b = Bench::new(StartSeen::Yes);
    b.data(Write, GET).data(Read, &chunked_head("gzip")).data(Read, &chunk(&parts[0]));
    let two = chunk(&parts[1]);
    b.data(Read, &two[..6]).gap(Read, two.len() as u64 - 10, GapCause::Lost).data(Read, &two[two.len() - 4..]);
    b.data(Read, &chunk(&parts[2])).data(Read, &chunk(&parts[3])).data(Read, b"0\r\n\r\n");
    let log = b.log.clone();
    let gap = format!("0<5 gap Some({}) Lost", two.len() - 10);
    // A byte of the second event was decoded before the gap.
    assert_eq!(log[3..], [r"0<3 data: one\n\n", "0<4 d", &gap, "0<6 gap None Undecoded", "0<9 end"]);
    b.counted(&[(DropReason::CodingGap, 1)]);
}

#[test]
fn a_body_that_breaks_off_is_told_as_far_as_it_came() {
    let parts = gzip(&["data: one\n\n", "data: two\n\n"]);
    let mut b = Bench::new(StartSeen::Yes);
    b.data(Write, GET).data(Read, &chunked_head("gzip")).data(Read, &chunk(&parts[0])).data(Read, b"0\r\n\r\n");
    b.expect(&["0>1 GET /a", "0>1 end", "0<2 200", r"0<3 data: one\n\n", "0<4 end"]);
    b.counted(&[(DropReason::ContentCoding, 1)]);
}

#[test]
fn a_bomb_is_counted_and_the_exchange_goes_on_without_its_body() {
    let bomb = gzip(&["0".repeat(6 * 1024 * 1024).as_str()]).concat();
    let mut b = Bench::new(StartSeen::Yes);
    b.data(Write, GET).data(Read, &chunked_head("gzip")).expect(&["0>1 GET /a", "0>1 end", "0<2 200"]);
    let mut given = 0;
    for piece in bomb.chunks(16_384) {
        let at = Stamp::default();
        b.conn.feed(&StreamEvent::Data { dir: Read, at, bytes: &chunk(piece) }, &mut b.stats, &mut |ev| {
            given += if let HttpEventKind::Body(bytes) = ev.kind { bytes.len() as u64 } else { 0 };
        });
    }
    assert!(given <= limits::DECODED_FREE_BYTES + bomb.len() as u64 * limits::DECODED_RATIO, "{given}");
    b.data(Read, b"0\r\n\r\n").expect(&["0<3 end"]).counted(&[(DropReason::DecodedTooLong, 1)]);
}

#[test]
fn only_so_many_bodies_are_decoded_at_once() {
    let mut b = Bench::new(StartSeen::Yes);
    let body = gzip(&["hello", "again"]);
    b.data(Write, &[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, b"")].concat());
    b.data(Read, &frame(4, 0, 0, b""));
    let streams: Vec<u32> = (0..=limits::DECODERS as u32).map(|i| 2 * i + 1).collect();
    for &stream in &streams {
        b.data(Write, &frame(1, 5, stream, &[0x82, 0x87, 0x84]));
        b.data(Read, &[frame(1, 4, stream, b"\x88\x0f\x0b\x04gzip"), frame(0, 0, stream, &body[0])].concat());
    }
    b.counted(&[(DropReason::DecodersFull, 1)]);
    assert_eq!(b.log.iter().filter(|line| line.ends_with(" hello")).count(), limits::DECODERS);
    // One that ends or is reset makes room.
    b.data(Read, &frame(0, 1, 1, &[body[1].as_slice(), &body[2]].concat()));
    b.data(Read, &frame(3, 0, 3, &[0, 0, 0, 8]));
    for stream in [1001, 1003] {
        b.data(Write, &frame(1, 5, stream, &[0x82, 0x87, 0x84]));
        b.data(Read, &[frame(1, 4, stream, b"\x88\x0f\x0b\x04gzip"), frame(0, 0, stream, &body[0])].concat());
    }
    b.counted(&[(DropReason::DecodersFull, 1)]);
}

#[test]
fn a_connection_joined_late_shows_codings_by_their_magic_number() {
    // content-encoding is an entry of a dynamic table that was never seen (index 62).
    let head = frame(1, 4, 5, &[0x88, 0xbe]);
    let body = gzip(&["data: {}\n\n"]).concat();
    for cut in 0..body.len() {
        let mut b = Bench::new(StartSeen::No);
        b.data(Read, &head);
        for piece in [&body[..cut], &body[cut..]] {
            b.data(Read, &frame(0, 0, 5, piece));
        }
        b.data(Read, &frame(0, 1, 5, b""));
        let told: String = b.log.iter().filter_map(|line| Some(line.split_once(' ')?.1)).collect();
        assert_eq!(told, r"200data: {}\n\nend", "{cut}");
    }
    for plain in ["{}", "(", "(b", "\u{1f}"] {
        let mut b = Bench::new(StartSeen::No);
        b.data(Read, &head);
        for byte in plain.as_bytes() {
            b.data(Read, &frame(0, 0, 5, &[*byte]));
        }
        b.data(Read, &frame(0, 1, 5, b""));
        let told: String = b.log.iter().filter_map(|line| Some(line.split_once(' ')?.1)).collect();
        assert_eq!(told, format!("200{}end", plain.escape_default()).replace("\\u{1f}", "\\x1f"));
    }
}

#[test]
fn wherever_records_are_cut_the_bodies_are_the_same() {
    let parts = gzip(&["data: one\n\n", "data: two\n\n"]);
    let chunks: Vec<u8> = parts.iter().flat_map(|part| chunk(part)).collect();
    let answer = [chunked_head("x-gzip"), chunks, b"0\r\n\r\n".to_vec()].concat();
    let run = |pieces: &[&[u8]]| {
        let mut b = Bench::new(StartSeen::Yes);
        b.data(Write, GET);
        for piece in pieces {
            b.data(Read, piece);
        }
        b.counted(&[]);
        b.log.iter().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect::<String>()
    };
    let whole = run(&[&answer]);
    assert_eq!(whole, r"GET /aend200data: one\n\ndata: two\n\nend");
    assert_eq!(run(&answer.chunks(1).collect::<Vec<_>>()), whole);
    for cut in 0..answer.len() {
        assert_eq!(run(&[&answer[..cut], &answer[cut..]]), whole, "{cut}");
    }
}

#[test]
fn a_websocket_that_was_closed_ends_and_one_that_was_not_is_aborted() {
    let ask = b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\n";
    for (closing, last) in [(true, "0<4 end"), (false, "0<4 Closed(Freed)")] {
        let mut b = Bench::new(StartSeen::Yes);
        // The first message comes in the record of the head.
        b.data(Write, ask).data(Read, &[&answer[..], b"\x81\x02hi"].concat());
        b.data(Read, if closing { b"\x88\x02\x03\xe9" } else { b"\x89\x02hi" }).close(CloseCause::Freed);
        let head = ["0>1 GET /ws", "0>1 end", "0<2 101", "0<2 Text 2 hi @2"];
        let close = closing.then_some("0<3 Close(Some(1001)) 2  @3");
        b.expect(&head.into_iter().chain(close).chain([last]).collect::<Vec<_>>()).counted(&[]);
    }
}

#[test]
fn a_websocket_over_http_2_is_an_exchange_like_one_over_http_1() {
    let mut b = Bench::new(StartSeen::Yes);
    let literal = |name: &[u8], value: &[u8]| [&[0, name.len() as u8][..], name, &[value.len() as u8], value].concat();
    let block = [literal(b":method", b"CONNECT"), literal(b":protocol", b"websocket"), vec![0x87, 0x84]].concat();
    b.data(Write, &[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, b""), &frame(1, 4, 1, &block)].concat());
    b.data(Read, &[frame(4, 0, 0, b""), frame(1, 4, 1, &[0x88])].concat());
    b.data(Write, &frame(0, 0, 1, &[0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2]));
    b.data(Read, &frame(0, 0, 1, b"\x81\x02yo")).data(Read, &frame(0, 1, 1, b"\x88\x00"));
    b.data(Write, &frame(0, 1, 1, &[0x88, 0x80, 1, 2, 3, 4]));
    let head = ["0>1 CONNECT /", "0<2 200", "0>3 Text 2 hi @3", "0<4 Text 2 yo @4"];
    b.expect(&[&head[..], &["0<5 Close(None) 0  @5", "0<5 end", "0>6 Close(None) 0  @6", "0>6 end"]].concat())
        .counted(&[]);
}
