//! Joined late, and after losses.

use super::wire::*;
use crate::{
    conn::{CloseCause, GapCause},
    event::Direction::*,
    http::Protocol,
    stats::DropReason,
};

/// Peers that have talked before: their tables are full of what the observer has not seen.
fn old_peers() -> (Peer, Peer) {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    c.post(1, "/v1");
    c.post(3, "/other");
    s.answer(1, true, "429", "limit");
    s.answer(3, true, "200", "a");
    (c, s)
}

#[test]
fn joined_between_requests_every_request_is_seen_and_what_cannot_be_resolved_is_empty() {
    let (mut c, mut s) = old_peers();
    let mut b = Bench::joined();
    b.w(&[c.post(5, "/v1"), data(5, true, b"ask")].concat());
    assert_eq!(b.conn.protocol(), Protocol::Http2);
    assert!(!b.conn.is_opaque());
    b.r(&[s.answer(5, false, "429", "limit"), data(5, true, b"no")].concat());
    b.expect(&["0> POST  - @1", "0> body ask", "0> end", "0< ? - @2", "0< body no", "0< end"]);
    // What comes new is known from now on.
    b.w(&[c.post(7, "/new"), data(7, true, b"ask")].concat()).r(&s.answer(7, true, "503", "new"));
    b.w(&c.post(9, "/new")).r(&s.answer(9, true, "503", "new"));
    b.expect(&[
        "1> POST /new - @3",
        "1> body ask",
        "1> end",
        "1< 503 new @4",
        "1< end",
        "2> POST /new - @5",
        "2< 503 new @6",
        "2< end",
    ]);
    b.counted(&[]);
}

#[test]
fn joined_in_the_middle_of_an_answer_the_rest_is_used() {
    let (mut c, mut s) = old_peers();
    let mut b = Bench::joined();
    // The end of a frame, then whole ones.
    b.r(b"f a frame\"}\n\n");
    b.r(&data(5, false, b"data: {\"a\":1}\n\n"));
    b.r(&[data(5, false, b"data: [DONE]\n\n"), data(5, true, b"")].concat());
    b.expect(&["0< unseen", "0< body data: {\"a\":1}\n\ndata: [DONE]\n\n", "0< end"]);
    b.w(&c.post(7, "/new")).r(&s.answer(7, true, "200", "a"));
    b.expect(&["1> POST /new - @4", "1< 200 - @5", "1< end"]);
    b.counted(&[(DropReason::NotHttp, 1), (DropReason::Joined, 1)]);
}

#[test]
fn a_frame_that_is_read_header_apart_from_payload_is_not_taken_for_http_1_for_long() {
    let (mut c, mut s) = old_peers();
    let mut b = Bench::joined();
    let frame = data(5, false, b"data: 1\n\n");
    b.r(&frame[9..]);
    assert_eq!(b.conn.protocol(), Protocol::Http1);
    b.r(&frame[..9]).r(&frame[9..]).w(&c.post(7, "/new")).r(&s.answer(7, true, "200", "new"));
    b.expect(&[
        "0< unseen",
        "0< gap 9 Lost",
        "0! Desync",
        "1< unseen",
        "1< body data: 1\n\n",
        "2> POST /new - @4",
        "2< 200 new @5",
        "2< end",
    ]);
    assert_eq!(b.conn.protocol(), Protocol::Http2);
}

#[test]
fn a_joined_server_is_known_by_its_first_head() {
    let (mut c, mut s) = old_peers();
    let mut b = Bench::joined();
    b.r(&[frame(8, 0, 0, &[0, 0, 0, 9]), c.post(5, "/new")].concat()).w(&s.answer(5, true, "200", "z"));
    b.expect(&["0> POST /new - @1", "0< 200 z @2", "0< end"]);
}

#[test]
fn a_gap_inside_a_body_is_exact_and_what_follows_goes_on() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    b.w(&[c.post(1, "/a"), data(1, true, b"")].concat());
    b.r(&[&s.answer(1, false, "200", "a")[..], &data(1, false, b"0123456789")[..12]].concat()).lost(Read, 4);
    b.r(&data(1, false, b"0123456789")[16..]).r(&padded(1, true, b"end", 20)[..11]).lost(Read, 22);
    b.expect(&[
        "0> POST /a h @1",
        "0> end",
        "0< 200 a @2",
        "0< body 012",
        "0< gap 4 Lost",
        "0< body 789e",
        "0< gap 2 Lost",
        "0< end",
    ]);
    b.counted(&[]);
}

#[test]
fn a_gap_inside_a_head_costs_that_head_and_the_table() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    b.w(&c.post(1, "/a")).r(&s.answer(1, false, "200", "old"));
    let head = s.answer(3, false, "200", "new");
    b.w(&c.post(3, "/b")).r(&head[..10]).lost(Read, head.len() - 10).r(&data(3, true, b"x"));
    b.r(&[data(1, true, b"y"), s.headers(1, true, &[]), s.answer(5, true, "200", "old")].concat());
    b.expect(&[
        "0> POST /a h @1",
        "0< 200 old @2",
        "1> POST /b h @3",
        "1< unseen",
        "1< body x",
        "1< end",
        "0< body y",
        "0< end",
        "2< 200 - @7",
        "2< end",
    ]);
}

#[test]
fn after_a_lost_record_the_next_frame_boundary_is_found_and_the_streams_know() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    b.w(&[c.post(1, "/a"), c.post(3, "/b"), c.post(5, "/c")].concat());
    b.r(&[s.answer(1, false, "200", "a"), s.answer(3, false, "200", "b")].concat());
    b.log.clear();
    let lost = [data(1, false, b"data: 2\n\n"), s.answer(5, false, "200", "c"), data(3, true, b"!")].concat();
    b.lost(Read, lost.len()).r(&[data(1, false, b"data: 3\n\n"), data(5, true, b"data: 1\n\n")].concat());
    b.expect(&[
        "0< gap ? Lost",
        "1< gap ? Lost",
        "0< body data: 3\n\n",
        "2< unseen",
        "2< gap ? Lost",
        "2< body data: 1\n\n",
        "2< end",
    ]);
    b.r(&data(1, true, b"")).w(&c.post(7, "/a")).r(&s.answer(7, true, "200", "a"));
    b.expect(&["0< end", "3> POST /a h @6", "3< 200 - @7", "3< end"]);
    // Whether stream 3 was answered to its end cannot be known; stream 5 has its answer.
    b.close(CloseCause::Freed).expect(&["0! Closed(Freed)", "1! Desync", "2! Closed(Freed)", "3! Closed(Freed)"]);
}

#[test]
fn a_record_that_begins_inside_a_frame_is_read_from_its_first_header() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    b.w(&[c.post(1, "/a"), data(1, true, b"")].concat()).r(&s.answer(1, false, "200", "a"));
    b.log.clear();
    b.gap(Read, None, GapCause::Lost);
    b.r(&[&b"ata: {\"x\": 1}\n\n"[..], &data(1, false, b"data: 2\n\n"), &data(1, true, b"")].concat());
    b.expect(&["0< gap ? Lost", "0< body data: 2\n\n", "0< end"]);
}

#[test]
fn a_capped_prompt_costs_no_later_head_its_fields() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    b.w(&[c.post(1, "/a"), data(1, false, b"{head")].concat());
    b.gap(Write, Some(200_000), GapCause::Capped);
    b.w(&data(1, true, b"tail}")).r(&s.answer(1, true, "200", "a"));
    b.w(&c.post(3, "/a")).r(&s.answer(3, true, "200", "a"));
    b.expect(&[
        "0> POST /a h @1",
        "0> body {head",
        "0> gap ? Capped",
        "0> body tail}",
        "0> end",
        "0< 200 a @4",
        "0< end",
        "1> POST /a h @5",
        "1< 200 a @6",
        "1< end",
    ]);
    // A gap that may have held a head, as the numbers show.
    b.gap(Write, Some(200_000), GapCause::Capped).w(&c.post(7, "/a")).expect(&["1> gap ? Capped", "2> POST  - @8"]);
}

#[test]
fn an_answer_without_its_request_does_not_hide_that_a_head_was_lost() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    b.w(&[c.post(1, "/a"), data(1, true, b"")].concat()).r(&s.answer(1, true, "200", "a"));
    let lost = c.post(3, "/secret");
    b.lost(Write, lost.len()).r(&s.answer(3, true, "200", "a"));
    b.w(&c.post(5, "/a"));
    b.expect(&["0> POST /a h @1", "0> end", "0< 200 a @2", "0< end", "1< 200 a @4", "1< end", "2> POST  - @5"]);
}

#[test]
fn a_request_whose_end_was_lost_ends_with_its_answer() {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut b = Bench::client();
    b.w(&c.post(1, "/a")).gap(Write, None, GapCause::Lost).r(&s.answer(1, true, "200", "a"));
    b.expect(&["0> POST /a h @1", "0> gap ? Lost", "0< 200 a @3", "0> end", "0< end"]);
    assert_eq!(b.stamps.iter().map(|s| s.2).collect::<Vec<_>>(), [1, 2, 3, 1, 3]);
}

/// Joined late, it is not known how large a frame the peers agreed on: up to a cap, a large one is taken for one.
#[test]
fn a_frame_over_the_cap_is_no_frame_on_a_joined_connection() {
    let cap = crate::limits::FRAME_BYTES as usize;
    for (len, is_frame) in [(cap, true), (cap + 1, false)] {
        let (mut c, mut s) = old_peers();
        let mut b = Bench::joined();
        b.w(&c.post(5, "/new")).r(&s.answer(5, false, "200", "a"));
        b.log.clear();
        b.r(&data(5, true, &vec![b'x'; len]));
        assert_eq!(b.log.last().is_some_and(|l| l == "0< end"), is_frame, "{len}");
    }
}
