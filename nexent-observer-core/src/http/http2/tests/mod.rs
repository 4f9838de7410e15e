//! What the stage says of whole HTTP/2 conversations, cut, lost and mixed in every way.

mod loss;
mod properties;
mod wire;

use self::wire::*;
use crate::{
    conn::CloseCause,
    http::{Protocol, Side, StartSeen},
    limits,
    stats::DropReason,
};

#[test]
fn interleaved_streams_are_told_apart_and_padding_is_removed() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    b.w(&[c.post(1, "/a"), data(1, false, b"ask"), c.post(3, "/b")].concat());
    b.w(&[data(1, true, b""), padded(3, true, b"other", 7)].concat());
    b.r(&[s.answer(3, false, "200", "b"), s.answer(1, false, "200", "a"), data(1, false, b"1")].concat());
    b.r(&[padded(3, false, b"x", 0), data(1, false, b"2"), padded(3, true, b"", 200), data(1, true, b"3")].concat());
    b.expect(&[
        "0> POST /a h @1",
        "0> body ask",
        "1> POST /b h @1",
        "0> end",
        "1> body other",
        "1> end",
        "1< 200 b @3",
        "0< 200 a @3",
        "0< body 123",
        "1< body x",
        "1< end",
        "0< end",
    ]);
    b.close(CloseCause::Freed).expect(&[]).counted(&[]);
    assert_eq!((b.stats.http_exchanges, b.conn.protocol()), (2, Protocol::Http2));
}

#[test]
fn a_head_in_pieces_bears_the_stamps_of_its_first_and_last_byte() {
    let mut c = Peer::new();
    let block = c.block(&[(":method", "POST"), (":scheme", "https"), (":path", "/a"), (":authority", "h"), ("y", "z")]);
    let priority = [0x80, 0, 0, 0, 16];
    let first = frame(1, 0x28, 1, &[&[3][..], &priority, &block[..2], &[0; 3]].concat());
    let rest = [frame(9, 0, 1, &block[2..2]), frame(9, 0, 1, &block[2..5]), frame(9, 4, 1, &block[5..])].concat();
    let all = [first, rest].concat();
    let mut b = Bench::client();
    for byte in &all {
        b.w(&[*byte]);
    }
    b.expect(&["0> POST /a h @1"]);
    assert_eq!(b.stamps, [(0, Side::Request, all.len() as u64)]);
}

#[test]
fn interim_responses_and_trailers_are_no_heads() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    b.w(&[c.post(1, "/a"), c.headers(1, true, &[("trailer", "1")])].concat());
    b.r(&[s.answer(1, false, "100", "i"), s.answer(1, false, "103", "j"), s.answer(1, false, "200", "k")].concat());
    b.r(&[data(1, false, b"body"), s.headers(1, true, &[("grpc-status", "0")])].concat());
    b.expect(&["0> POST /a h @1", "0> end", "0< 200 k @2", "0< body body", "0< end"]);
}

#[test]
fn frames_that_say_nothing_here_are_skipped_and_pushed_heads_keep_hpack_in_step() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    b.w(&[frame(8, 0, 0, &[0, 0, 1, 0]), frame(6, 0, 0, &[7; 8]), c.post(1, "/a"), data(1, true, b"")].concat());
    let promise = s.block(&[(":method", "GET"), (":path", "/style.css"), ("server", "pushed")]);
    b.r(&[
        frame(5, 0, 1, &[&2_u32.to_be_bytes()[..], &promise[..1]].concat()),
        frame(9, 4, 1, &promise[1..]),
        frame(2, 0, 1, &[0; 5]),
        frame(0xfe, 0xff, 77, b"unknown"),
        settings(&[(5, 65_536), (1, 0)]),
        frame(4, 1, 0, b""),
        s.answer(2, false, "200", "pushed"),
        data(2, true, b"css"),
        s.answer(1, true, "200", "pushed"),
    ]
    .concat());
    b.expect(&["0> POST /a h @1", "0> end", "0< 200 pushed @2", "0< end"]).counted(&[]);
}

#[test]
fn a_server_is_the_same_with_directions_swapped() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::new(StartSeen::Yes);
    b.r(&PREFACE[..10]).w(&settings(&[])).r(&PREFACE[10..]).r(&settings(&[]));
    b.r(&[c.post(1, "/a"), data(1, true, b"x")].concat())
        .w(&[s.answer(1, false, "200", "a"), data(1, true, b"y")].concat());
    b.expect(&["0> POST /a h @5", "0> body x", "0> end", "0< 200 a @6", "0< body y", "0< end"]);
}

#[test]
fn a_server_that_speaks_first_is_understood() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::new(StartSeen::Yes);
    b.r(&settings(&[(3, 100)])[..4])
        .r(&settings(&[(3, 100)])[4..])
        .w(&[PREFACE, &settings(&[]), &c.post(1, "/a")].concat());
    b.w(&data(1, true, b"")).r(&s.answer(1, true, "204", "a"));
    b.expect(&["0> POST /a h @3", "0> end", "0< 204 a @5", "0< end"]);
}

#[test]
fn resets_name_who_reset_and_why_and_what_was_on_the_way_is_no_exchange() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    for (stream, path) in [(1, "/a"), (3, "/b"), (5, "/c")] {
        b.w(&c.post(stream, path));
    }
    b.log.clear();
    b.w(&reset(1, 8)).r(&reset(3, 7)).r(&[s.answer(1, false, "200", "late"), data(1, false, b"late")].concat());
    b.expect(&["0! Reset { by_peer: false, code: 8 }", "1! Reset { by_peer: true, code: 7 }"]);
    // An answer before the end of the request, and no more of that wanted.
    b.r(&[s.answer(5, false, "413", "e"), data(5, true, b"big"), reset(5, 0)].concat());
    b.expect(&["2< 413 e @7", "2< body big", "2< end", "2> end"]);
    b.w(&c.post(7, "/d")).r(&[s.answer(7, false, "200", "e"), reset(7, 0)].concat());
    b.expect(&["3> POST /d h @8", "3< 200 e @9", "3! Reset { by_peer: true, code: 0 }"]).counted(&[]);
}

#[test]
fn going_away_ends_the_streams_that_are_not_served_and_no_others() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    for (stream, path) in [(1, "/a"), (3, "/b"), (5, "/c")] {
        b.w(&c.post(stream, path));
    }
    b.log.clear();
    b.r(&go_away(0x7fff_ffff)).expect(&[]);
    b.w(&go_away(0)).expect(&[]);
    b.r(&go_away(1)).expect(&["2! GoAway", "1! GoAway"]);
    b.w(&data(1, true, b"")).r(&s.answer(1, false, "200", "a"));
    b.close(CloseCause::Freed).expect(&["0> end", "0< 200 a @8", "0! Closed(Freed)"]);
}

#[test]
fn larger_frames_are_taken_when_the_receiver_allowed_them_and_not_before() {
    for (allowed, counted) in [(false, &[(DropReason::NotHttp, 1)][..]), (true, &[])] {
        let (mut c, mut s) = (Peer::new(), Peer::new());
        let mut b = Bench::client();
        if allowed {
            b.w(&settings(&[(5, 100_000)]));
        }
        b.w(&c.post(1, "/a")).r(&s.answer(1, false, "200", "a"));
        b.log.clear();
        b.r(&data(1, true, &vec![b'x'; 90_000]));
        assert_eq!(b.log.last().unwrap() == "0< end", allowed);
        b.counted(counted);
    }
}

#[test]
fn too_many_open_streams_cost_the_oldest_one() {
    let mut c = Peer::new();
    let mut b = Bench::client();
    for n in 0..=limits::OPEN_EXCHANGES as u32 {
        b.w(&c.post(2 * n + 1, "/a"));
    }
    let aborts: Vec<_> = b.log.iter().filter(|l| l.contains('!')).collect();
    assert_eq!(aborts, ["0! Evicted"]);
    b.counted(&[(DropReason::ExchangesFull, 1)]);
}

#[test]
fn a_head_over_its_cap_is_counted_and_costs_only_itself() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    b.w(&frame(1, 1, 1, b"\x83\x87\x84"));
    for _ in 0..5 {
        b.w(&frame(9, 0, 1, &[0x82; 16_000]));
    }
    b.w(&frame(9, 4, 1, &[0x82; 16_000]));
    b.expect(&["0> unseen", "0> end"]).counted(&[(DropReason::HeadTooLong, 1)]);
    b.w(&c.post(3, "/b")).r(&[s.answer(1, true, "200", "a"), s.answer(3, true, "200", "b")].concat());
    b.expect(&["1> POST /b h @8", "0< 200 a @9", "0< end", "1< 200 b @9", "1< end"]);
}

#[test]
fn an_upgraded_request_is_answered_on_stream_1_wherever_the_records_are_cut() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let ask = b"POST /up HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi".to_vec();
    // The server's SETTINGS come right behind the 101, before the client's preface.
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".to_vec();
    let read = [switch, settings(&[(3, 100)])].concat();
    let answer = [s.answer(1, false, "200", "up"), data(1, true, b"one")].concat();
    let write = [PREFACE.to_vec(), settings(&[])].concat();
    let (ask_2, answer_2) = (c.post(3, "/b"), s.answer(3, true, "200", "two"));
    use crate::event::Direction::{Read, Write};
    let steps = [(Write, ask), (Read, read), (Write, write), (Read, answer), (Write, ask_2), (Read, answer_2)];
    let run = |size: usize, cut: usize| {
        let mut b = Bench::new(StartSeen::Yes);
        for (n, (dir, bytes)) in steps.iter().enumerate() {
            b.now = n as u64;
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            for piece in head.chunks(size).chain(tail.chunks(size)) {
                b.now = n as u64;
                b.data(*dir, piece);
            }
        }
        assert_eq!(b.conn.protocol(), Protocol::Http2);
        b.log
    };
    let whole = run(usize::MAX, 0);
    let one = ["0> POST /up h @1", "0> body hi", "0> end", "0< 200 up @4", "0< body one", "0< end"];
    let two = ["1> POST /b h @5", "1< 200 two @6", "1< end"];
    assert_eq!(whole, [&one[..], &two[..]].concat());
    assert_eq!(run(1, 0), whole);
    for cut in 0..steps.iter().map(|(_, bytes)| bytes.len()).max().unwrap() {
        assert_eq!(run(usize::MAX, cut), whole, "cut at {cut}");
    }
}

#[test]
fn an_upgrade_before_the_end_of_the_request_ends_it_with_the_answer() {
    let mut s = Peer::new();
    let mut b = Bench::new(StartSeen::Yes);
    b.w(b"POST /up HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nContent-Length: 9\r\n\r\nhi");
    b.r(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n");
    b.r(&[settings(&[]), s.answer(1, true, "200", "up")].concat());
    b.expect(&["0> POST /up h @1", "0> body hi", "0< 200 up @3", "0> end", "0< end"]);
}

#[test]
fn what_is_no_frame_is_counted_and_the_next_exchange_is_seen() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    for bad in [
        frame(0, 0, 0, b"x"),
        frame(3, 0, 1, b"x"),
        frame(4, 0, 1, b""),
        frame(9, 4, 3, b"x"),
        b"HTTP/1.1 200".to_vec(),
    ] {
        let mut b = Bench::client();
        b.w(&c.post(1, "/a")).r(&bad).w(&c.post(3, "/b")).r(&s.answer(3, true, "200", "b"));
        assert_eq!(b.log.last().unwrap(), "1< end", "{bad:?}: {:?}", b.log);
        (c, s) = (Peer::new(), Peer::new());
    }
}

#[test]
fn a_connection_at_rest_is_small() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    b.w(&c.post(1, "/a")).r(&s.answer(1, false, "200", "b"));
    assert!(size_of::<super::Http2>() <= 640, "{}", size_of::<super::Http2>());
    assert!(size_of::<super::stream::Stream>() <= 32);
}

#[test]
fn a_guess_is_taken_back_when_http_1_follows() {
    let mut b = Bench::joined();
    // The middle of something binary.
    b.r(&frame(6, 0, 0, &[0; 8]));
    assert_eq!(b.conn.protocol(), Protocol::Http2);
    b.w(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n").r(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    b.expect(&["0> GET /a h @2", "0> end", "0< 200 - @3", "0< end"]);
    assert_eq!(b.conn.protocol(), Protocol::Http1);
}
