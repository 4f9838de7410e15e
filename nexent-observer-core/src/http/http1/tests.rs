//! What the stage says of whole conversations, cut, lost and mixed in every way.

use proptest::prelude::*;

use crate::{
    conn::{CloseCause, GapCause, StreamEvent},
    event::{
        Direction::{self, *},
        MonoNs, Stamp,
    },
    http::{Head, HttpConnection, HttpEvent, HttpEventKind, Protocol, Side, StartSeen},
    limits,
    stats::{DropReason, Stats},
};

/// A connection under test. Every call of a feeding method is one record; its time is one later than the last.
struct Bench {
    conn: HttpConnection,
    stats: Stats,
    now: u64,
    /// One line per event; neighbouring bodies of a message are one line.
    log: Vec<String>,
    /// Exchange, side and stamp of each event.
    stamps: Vec<(u32, Side, u64)>,
}

fn stamp(at: u64) -> Stamp {
    Stamp { entry: MonoNs(at), ret: MonoNs(at) }
}

impl Bench {
    fn new(start: StartSeen) -> Self {
        Self { conn: HttpConnection::new(start), stats: Stats::default(), now: 0, log: vec![], stamps: vec![] }
    }

    fn fresh() -> Self {
        Self::new(StartSeen::Yes)
    }

    fn joined() -> Self {
        Self::new(StartSeen::No)
    }

    fn event(&mut self, ev: StreamEvent<'_>) -> &mut Self {
        let (log, stamps) = (&mut self.log, &mut self.stamps);
        self.conn.feed(&ev, &mut self.stats, &mut |ev| {
            stamps.push((ev.exchange.0, ev.side, ev.at.ret.0));
            record(log, &ev);
        });
        self
    }

    fn data(&mut self, dir: Direction, bytes: &[u8]) -> &mut Self {
        self.now += 1;
        self.event(StreamEvent::Data { dir, at: stamp(self.now), bytes })
    }

    /// The process writes.
    fn w(&mut self, text: &str) -> &mut Self {
        self.data(Write, text.as_bytes())
    }

    /// The process reads.
    fn r(&mut self, text: &str) -> &mut Self {
        self.data(Read, text.as_bytes())
    }

    fn gap(&mut self, dir: Direction, len: Option<u64>, cause: GapCause) -> &mut Self {
        self.now += 1;
        self.event(StreamEvent::Gap { dir, at: stamp(self.now), len, cause })
    }

    fn lost(&mut self, dir: Direction, len: u64) -> &mut Self {
        self.gap(dir, Some(len), GapCause::Lost)
    }

    fn close(&mut self, cause: CloseCause) -> &mut Self {
        self.now += 1;
        self.event(StreamEvent::Close { at: MonoNs(self.now), cause })
    }

    #[track_caller]
    fn expect(&mut self, lines: &[&str]) -> &mut Self {
        assert_eq!(self.log, lines);
        self.log.clear();
        self
    }

    #[track_caller]
    fn counted(&self, reasons: &[(DropReason, u64)]) -> &Self {
        let all = DropReason::ALL.into_iter().filter(|r| self.stats.drops(*r) > 0);
        let all: Vec<_> = all.map(|r| (r, self.stats.drops(r))).collect();
        assert_eq!(all, reasons);
        self
    }
}

fn record(log: &mut Vec<String>, ev: &HttpEvent<'_>) {
    let side = if ev.side == Side::Request { '>' } else { '<' };
    let no = ev.exchange.0;
    let line = match ev.kind {
        HttpEventKind::Head { first, head } => {
            let first = first.ret.0;
            match head {
                Head::Request(h) => {
                    format!("{no}{side} {} {} {} @{first}", h.method, h.path, h.host.unwrap_or("-"))
                }
                Head::Response(h) => {
                    format!("{no}{side} {} {} @{first}", h.status.unwrap(), h.headers.get("x").unwrap_or("-"))
                }
                Head::Unseen => format!("{no}{side} unseen"),
            }
        }
        HttpEventKind::Body(bytes) => {
            assert!(!bytes.is_empty());
            let prefix = format!("{no}{side} body ");
            let text = String::from_utf8_lossy(bytes);
            // The last body of this message, unless something else of this exchange came in between.
            let mine = |l: &&mut String| l.starts_with(&format!("{no}{side}"));
            if let Some(last) = log.iter_mut().rfind(mine).filter(|l| l.starts_with(&prefix)) {
                last.push_str(&text);
                return;
            }
            format!("{prefix}{text}")
        }
        HttpEventKind::Gap { len, cause } => {
            format!("{no}{side} gap {} {cause:?}", len.map_or_else(|| "?".into(), |n| n.to_string()))
        }
        HttpEventKind::End => format!("{no}{side} end"),
        HttpEventKind::Abort(cause) => format!("{no}! {cause:?}"),
    };
    log.push(line);
}

const POST: &str = "POST /v1/chat HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody";
const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const SSE: &str = "HTTP/1.1 200 OK\r\nX: s\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const OK5: &str = "HTTP/1.1 200 OK\r\nX: five\r\nContent-Length: 5\r\n\r\nhello";

/// A chunk.
fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

#[test]
fn a_streamed_answer_is_told_in_order_with_framing_removed() {
    let mut b = Bench::fresh();
    b.w(POST).expect(&["0> POST /v1/chat h @1", "0> body body", "0> end"]);
    b.r(&format!("{SSE}{}", chunk("data: 1\n\n")));
    b.r(&chunk("data: 2\n\n")).r("0\r\n\r\n");
    b.expect(&["0< 200 s @2", "0< body data: 1\n\ndata: 2\n\n", "0< end"]);
    assert_eq!(b.stamps.last(), Some(&(0, Side::Response, 4)));
    b.w(GET).r(OK5).expect(&["1> GET /a h @5", "1> end", "1< 200 five @6", "1< body hello", "1< end"]);
    b.close(CloseCause::Freed).expect(&[]).counted(&[]);
    assert_eq!(b.stats.http_exchanges, 2);
    assert_eq!(b.conn.protocol(), Protocol::Http1);
}

#[test]
fn a_head_in_two_records_bears_the_stamps_of_its_first_and_last_byte() {
    let mut b = Bench::fresh();
    b.w(&GET[..9]).w(&GET[9..]).r(&OK5[..1]).r("TTP/1.1 200").r(&OK5[12..]);
    b.expect(&["0> GET /a h @1", "0> end", "0< 200 five @3", "0< body hello", "0< end"]);
    let at: Vec<u64> = b.stamps.iter().map(|s| s.2).collect();
    assert_eq!(at, [2, 2, 5, 5, 5]);
}

#[test]
fn a_server_is_the_same_with_directions_swapped() {
    let mut b = Bench::fresh();
    b.r(POST).w(OK5).r(GET).w(OK5);
    b.expect(&[
        "0> POST /v1/chat h @1",
        "0> body body",
        "0> end",
        "0< 200 five @2",
        "0< body hello",
        "0< end",
        "1> GET /a h @3",
        "1> end",
        "1< 200 five @4",
        "1< body hello",
        "1< end",
    ]);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut b = Bench::fresh();
    b.w(&format!("{GET}HEAD /b HTTP/1.1\r\n\r\n{GET}"));
    b.expect(&["0> GET /a h @1", "0> end", "1> HEAD /b - @1", "1> end", "2> GET /a h @1", "2> end"]);
    b.r(&format!("{OK5}HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{OK5}"));
    b.expect(&[
        "0< 200 five @2",
        "0< body hello",
        "0< end",
        "1< 200 - @2",
        "1< end",
        "2< 200 five @2",
        "2< body hello",
        "2< end",
    ]);
}

#[test]
fn responses_without_a_body_have_none_whatever_their_fields_say() {
    for (request, status) in [("HEAD", 200), ("GET", 204), ("GET", 304)] {
        let mut b = Bench::fresh();
        b.w(&format!("{request} / HTTP/1.1\r\n\r\n"));
        b.r(&format!("HTTP/1.1 {status} x\r\nContent-Length: 5\r\n\r\n")).w(GET).r(OK5);
        assert_eq!(b.log[2..4], [format!("0< {status} - @2"), "0< end".into()]);
        assert_eq!(b.log[6..], ["1< 200 five @4", "1< body hello", "1< end"]);
    }
}

#[test]
fn interim_responses_are_passed_over() {
    let mut b = Bench::fresh();
    b.w("POST /u HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").r("HTTP/1.1 100 Continue\r\n\r\n");
    b.w("body").r(&format!("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n{OK5}"));
    b.expect(&["0> POST /u - @1", "0> body body", "0> end", "0< 200 five @4", "0< body hello", "0< end"]);
}

#[test]
fn after_an_upgrade_nothing_is_followed() {
    let mut b = Bench::fresh();
    b.w("GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n").r("HTTP/1.1 101 Switching\r\n\r\n\x01\x02").w(GET).r(OK5);
    b.expect(&["0> GET /ws - @1", "0> end", "0< 101 - @2", "0< end"]);
    b.close(CloseCause::Freed).expect(&[]);
    assert!(!b.conn.is_opaque());
}

#[test]
fn after_connect_the_connection_is_a_tunnel() {
    let mut b = Bench::fresh();
    b.w("CONNECT api:443 HTTP/1.1\r\nHost: api:443\r\n\r\n").r("HTTP/1.1 200 established\r\n\r\n").w("\x16\x03\x01");
    b.expect(&["0> CONNECT api:443 api:443 @1", "0> end", "0< 200 - @2", "0< end"]);
    assert!(b.conn.is_opaque());
    // A refusal is a response like any other.
    let mut b = Bench::fresh();
    b.w("CONNECT api:443 HTTP/1.1\r\n\r\n").r("HTTP/1.1 407 auth\r\nContent-Length: 1\r\n\r\nx").w(GET);
    assert_eq!(b.log[2..], ["0< 407 - @2", "0< body x", "0< end", "1> GET /a h @3", "1> end"]);
}

#[test]
fn a_body_until_close_ends_when_the_process_closes_and_not_when_the_observer_lets_go() {
    let until = "HTTP/1.0 200 OK\r\n\r\nsome";
    let mut b = Bench::fresh();
    b.w(GET).r(until).r(" more").close(CloseCause::Freed);
    b.expect(&["0> GET /a h @1", "0> end", "0< 200 - @2", "0< body some more", "0< end"]);
    for cause in [CloseCause::ProcessExit, CloseCause::Evicted] {
        let mut b = Bench::fresh();
        b.w(GET).r(until).close(cause);
        assert_eq!(b.log[4], format!("0! Closed({cause:?})"));
    }
}

#[test]
fn a_close_aborts_every_open_exchange_in_order() {
    let mut b = Bench::fresh();
    b.w(GET).w(POST).w(&POST[..POST.len() - 2]).r(&OK5[..50]).close(CloseCause::Freed);
    let aborts: Vec<_> = b.log.iter().filter(|l| l.contains('!')).collect();
    assert_eq!(aborts, ["0! Closed(Freed)", "1! Closed(Freed)", "2! Closed(Freed)"]);
}

#[test]
fn an_error_may_be_answered_while_the_request_is_still_being_written() {
    let mut b = Bench::fresh();
    b.w(&POST[..POST.len() - 2]).r(OK5).w("dy");
    b.expect(&["0> POST /v1/chat h @1", "0> body body", "0< 200 five @2", "0< body hello", "0< end", "0> end"]);
    let mut b = Bench::fresh();
    b.w(&POST[..POST.len() - 2]).r(OK5).close(CloseCause::Freed);
    assert_eq!(b.log.last().unwrap(), "0! Closed(Freed)");
}

#[test]
fn a_gap_inside_a_body_of_known_length_is_counted_off_exactly() {
    let mut b = Bench::fresh();
    b.w("POST /u HTTP/1.1\r\nContent-Length: 1000\r\n\r\nab").gap(Write, Some(990), GapCause::Capped).w("yz345678");
    b.expect(&["0> POST /u - @1", "0> body ab", "0> gap 990 Capped", "0> body yz345678", "0> end"]);
    b.r("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").lost(Read, 6).w(GET).r(OK5);
    b.expect(&[
        "0< 200 - @4",
        "0< body abc",
        "0< gap 6 Lost",
        "0< end",
        "1> GET /a h @6",
        "1> end",
        "1< 200 five @7",
        "1< body hello",
        "1< end",
    ]);
}

#[test]
fn a_gap_inside_one_chunk_is_counted_off_exactly() {
    let mut b = Bench::fresh();
    b.w(GET).r(SSE).r("14\r\ndata: 1").lost(Read, 10).r("end\r\n0\r\n\r\n").w(GET).r(OK5);
    assert_eq!(b.log[2..7], ["0< 200 s @2", "0< body data: 1", "0< gap 10 Lost", "0< body end", "0< end"]);
    assert_eq!(b.log[9..], ["1< 200 five @7", "1< body hello", "1< end"]);
    b.counted(&[]);
}

#[test]
fn a_gap_up_to_the_end_of_a_chunk_does_not_lose_the_framing() {
    let mut b = Bench::fresh();
    b.w(GET).r("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab").lost(Read, 3).r("\r\n0\r\n\r\n");
    assert_eq!(b.log[3..], ["0< body ab", "0< gap 3 Lost", "0< end"]);
}

#[test]
fn after_lost_chunks_the_stream_goes_on_at_the_next_size_line() {
    let mut b = Bench::fresh();
    b.w(GET).r(SSE).r(&chunk("data: 1\n\n")).lost(Read, 30).r(&chunk("data: 3\n\n")).r("0\r\n\r\n").w(GET).r(OK5);
    assert_eq!(b.log[3..7], ["0< body data: 1\n\n", "0< gap 30 Lost", "0< body data: 3\n\n", "0< end"]);
    assert_eq!(b.log.last().unwrap(), "1< end");
}

#[test]
fn after_a_loss_of_unknown_size_a_size_line_inside_a_record_is_found() {
    let mut b = Bench::fresh();
    b.w(GET).r(SSE).gap(Read, None, GapCause::Lost).r(&format!("a: 2\n\n\r\n{}", chunk("data: 3\n\n"))).r("0\r\n\r\n");
    assert_eq!(b.log[3..], ["0< gap ? Lost", "0< gap 8 Lost", "0< body data: 3\n\n", "0< end"]);
}

#[test]
fn a_body_that_cannot_be_followed_is_aborted_by_the_next_request_which_is_right() {
    for (gap, cause) in [(None, GapCause::Lost), (Some(70_000), GapCause::Skipped)] {
        let mut b = Bench::fresh();
        b.w(GET).r("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab").gap(Read, gap, cause);
        b.r("rest of something").w(POST).r(OK5);
        assert_eq!(b.log[6], "0! Desync");
        assert_eq!(b.log[10..], ["1< 200 five @6", "1< body hello", "1< end"]);
    }
}

#[test]
fn a_lost_response_is_not_taken_for_the_next_one() {
    // The second request comes before the gap shows, as it does when the rings are drained one after the other.
    let mut b = Bench::fresh();
    b.w(GET).w(GET).lost(Read, 70).r(OK5);
    // Right, but marked: had both answers been lost, a third one would look the same.
    assert_eq!(b.log[4..], ["0! Desync", "1< 200 five @4", "1< gap ? Lost", "1< body hello", "1< end"]);
    let mut b = Bench::fresh();
    b.w(GET).lost(Read, 70).w(GET).r(OK5);
    assert_eq!(b.log[2..], ["0! Desync", "1> GET /a h @3", "1> end", "1< 200 five @4", "1< body hello", "1< end"]);
}

#[test]
fn once_in_step_again_pipelined_requests_are_answered_in_order() {
    let mut b = Bench::fresh();
    b.w(GET).lost(Read, 70).w(GET).r(OK5);
    b.log.clear();
    b.w(&format!("{GET}{POST}")).r(OK5).r(OK5);
    let heads: Vec<_> = b.log.iter().filter(|l| l.contains("< 200")).collect();
    assert_eq!(heads, ["2< 200 five @6", "3< 200 five @7"]);
    assert!(!b.log.iter().any(|l| l.contains('!')));
}

#[test]
fn a_response_read_before_the_request_was_written_is_not_its_answer() {
    let mut b = Bench::fresh();
    b.now = 5;
    b.w(GET);
    b.event(StreamEvent::Data { dir: Read, at: stamp(5), bytes: b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n" });
    b.r(OK5);
    assert_eq!(b.log[2..], ["1< 408 - @5", "1< end", "0< 200 five @7", "0< body hello", "0< end"]);
}

#[test]
fn a_lost_tail_and_head_damage_both_responses_and_the_third_is_right() {
    let mut b = Bench::fresh();
    b.w(GET).r("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").w(GET).lost(Read, 60).r("lo").w(GET).r(OK5);
    assert!(b.log.contains(&"0< gap 6 Lost".to_string()));
    assert!(b.log.contains(&"1! Desync".to_string()));
    assert_eq!(b.log[b.log.len() - 3..], ["2< 200 five @7", "2< body hello", "2< end"]);
    // What came where the second response should have begun is no broken head: it is known that one was lost.
    b.counted(&[(DropReason::NotHttp, 1)]);
}

#[test]
fn late_bytes_of_a_stream_given_up_are_no_new_exchange() {
    let mut b = Bench::fresh();
    b.w(GET).r(SSE).gap(Read, None, GapCause::Lost).w(GET);
    b.event(StreamEvent::Data { dir: Read, at: stamp(3), bytes: chunk("data: 2\n\n").as_bytes() }).r(OK5);
    assert_eq!(b.log[3..6], ["0< gap ? Lost", "0! Desync", "1> GET /a h @4"]);
    assert_eq!(b.log[7..], ["1< 200 five @5", "1< body hello", "1< end"]);
    b.counted(&[(DropReason::NotHttp, 1)]);
}

#[test]
fn a_stream_whose_head_was_lost_is_reported_without_one() {
    let mut b = Bench::fresh();
    b.w(GET).lost(Read, 100).r(&chunk("data: 2\n\n")).r("0\r\n\r\n").w(GET).r(OK5);
    assert_eq!(b.log[2..6], ["0< unseen", "0< gap ? Lost", "0< body data: 2\n\n", "0< end"]);
    assert_eq!(b.log.last().unwrap(), "1< end");
    b.counted(&[]);
}

#[test]
fn a_lost_request_leaves_a_response_without_one() {
    let mut b = Bench::fresh();
    b.w(GET).r(OK5).lost(Write, 50).r(OK5).w(GET).r(OK5);
    assert_eq!(b.log[5..8], ["1< 200 five @4", "1< body hello", "1< end"]);
    assert_eq!(b.log[8..], ["2> GET /a h @5", "2> end", "2< 200 five @6", "2< body hello", "2< end"]);
    b.counted(&[(DropReason::Joined, 1)]);
}

#[test]
fn a_request_that_comes_after_its_response_does_not_shift_the_later_ones() {
    let mut b = Bench::fresh();
    b.now = 10;
    b.w(GET).r(OK5).r(OK5);
    b.log.clear();
    // Written before the second response was read, but late in its ring.
    let late = StreamEvent::Data { dir: Write, at: stamp(12), bytes: POST.as_bytes() };
    b.event(late).w(GET).r(OK5);
    b.expect(&["2> GET /a h @14", "2> end", "2< 200 five @15", "2< body hello", "2< end"]);
}

#[test]
fn a_request_body_whose_framing_was_lost_ends_with_its_response_or_its_last_chunk() {
    let head = "POST /u HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab";
    let mut b = Bench::fresh();
    b.w(head).gap(Write, Some(90), GapCause::Capped).w("tail").r(OK5).w(GET);
    b.expect(&[
        "0> POST /u - @1",
        "0> body ab",
        "0> gap 90 Capped",
        "0> gap 4 Lost",
        "0< 200 five @4",
        "0< body hello",
        "0> end",
        "0< end",
        "1> GET /a h @5",
        "1> end",
    ]);
    let mut b = Bench::fresh();
    b.w(head).gap(Write, Some(90), GapCause::Capped).r(OK5).w("tail").close(CloseCause::Freed);
    assert_eq!(b.log[3..], ["0< 200 five @3", "0< body hello", "0> end", "0< end"]);
    let mut b = Bench::fresh();
    b.w(head).gap(Write, Some(90), GapCause::Capped).w("tail\r\n0\r\n\r\n").r(OK5);
    assert_eq!(b.log[4..], ["0> end", "0< 200 five @4", "0< body hello", "0< end"]);
}

#[test]
fn joined_in_a_body_the_next_request_is_the_first() {
    let mut b = Bench::joined();
    b.r("half of a body POST").r("nothing").w("rest of a request").r("HELLO THERE").w(GET).r(OK5);
    b.expect(&["0> GET /a h @5", "0> end", "0< 200 five @6", "0< body hello", "0< end"]);
    b.counted(&[(DropReason::NotHttp, 2)]);
}

#[test]
fn joined_in_a_stream_it_is_reported_without_head_and_the_next_exchange_is_right() {
    let mut b = Bench::joined();
    b.r(&chunk("data: 8\n\n")).r(&chunk("data: 9\n\n")).r("0\r\n\r\n").w(GET).r(OK5);
    assert_eq!(b.log[..3], ["0< unseen", "0< body data: 8\n\ndata: 9\n\n", "0< end"]);
    assert_eq!(b.log.last().unwrap(), "1< end");
    b.counted(&[(DropReason::Joined, 1)]);
    let mut b = Bench::joined();
    b.r("data: 8\n\n\r\n").r(&chunk("data: 9\n\n"));
    b.expect(&["0< unseen", "0< gap 11 Lost", "0< body data: 9\n\n"]);
}

#[test]
fn joined_before_a_response_it_has_no_request() {
    let mut b = Bench::joined();
    b.r(SSE).r(&chunk("data: 1\n\n")).r("0\r\n\r\n").w(GET).r(OK5);
    assert_eq!(b.log[..3], ["0< 200 s @1", "0< body data: 1\n\n", "0< end"]);
    assert_eq!(b.log[3..], ["1> GET /a h @4", "1> end", "1< 200 five @5", "1< body hello", "1< end"]);
}

#[test]
fn joined_it_is_never_opaque() {
    let mut b = Bench::joined();
    b.w("\0\0\0\0").r("xyz").w("\x16\x03\x01").r("xyz");
    assert!(!b.conn.is_opaque());
    b.counted(&[(DropReason::NotHttp, 2)]);
}

#[test]
fn a_fresh_connection_that_is_no_http_is_opaque() {
    for bytes in ["\x16\x03\x01", "HELO there\r\n", "220 ready\r\n", "\0\0\0\x08\x04\u{2}", "AUTH\r\n"] {
        let mut b = Bench::fresh();
        b.w(bytes).w(GET).expect(&[]).counted(&[(DropReason::NotHttp, 1)]);
        assert!(b.conn.is_opaque(), "{bytes}");
    }
}

#[test]
fn http_2_is_recognised_and_never_opaque() {
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for start in [StartSeen::Yes, StartSeen::No] {
        for cut in 0..preface.len() {
            let mut b = Bench::new(start);
            b.w(&preface[..cut]).w(&preface[cut..]).r("\0\0\0\x04\0\0\0\0\0");
            assert_eq!(b.conn.protocol(), Protocol::Http2);
            assert!(!b.conn.is_opaque());
            b.expect(&[]).counted(&[]);
        }
    }
    // A server's SETTINGS before the client's preface was read.
    let mut b = Bench::fresh();
    b.w("\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64").r(preface);
    assert_eq!(b.conn.protocol(), Protocol::Http2);
}

#[test]
fn bad_framing_spoils_only_its_own_exchange() {
    let mut b = Bench::fresh();
    b.w(GET).r("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello").w(GET).r(OK5);
    assert_eq!(b.log[2..4], ["0< 200 - @2", "0! Desync"]);
    assert_eq!(b.log[6..], ["1< 200 five @4", "1< body hello", "1< end"]);
    assert_eq!(b.stats.drops(DropReason::HeadInvalid), 1);

    let mut b = Bench::fresh();
    b.w(GET).r("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n").w(GET).r(OK5);
    assert_eq!(b.log[3..5], ["0< gap 5 Lost", "0! Desync"]);
    assert_eq!(b.log[7..], ["1< 200 five @4", "1< body hello", "1< end"]);
    b.counted(&[(DropReason::ChunkInvalid, 1)]);

    let mut b = Bench::fresh();
    b.w(GET).r("HTTP/1.1 2x0 OK\r\n\r\n").w(GET).r(OK5);
    assert_eq!(b.log[2], "0! Desync");
    assert_eq!(b.log[5..], ["1< 200 five @4", "1< body hello", "1< end"]);
    b.counted(&[(DropReason::HeadInvalid, 1)]);
}

#[test]
fn a_request_with_contradictory_framing_is_still_answered() {
    let mut b = Bench::fresh();
    b.w("POST / HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\nx").r(OK5).w(GET).r(OK5);
    assert_eq!(b.log[..5], ["0> POST / - @1", "0< 200 five @2", "0< body hello", "0> end", "0< end"]);
    assert_eq!(b.log.last().unwrap(), "1< end");
    assert_eq!(b.stats.drops(DropReason::HeadInvalid), 1);
}

#[test]
fn endless_heads_are_cut_off_and_the_next_exchange_is_right() {
    let field = "a: bcdefgh\r\n".repeat(100);
    for lines in [true, false] {
        let mut b = Bench::fresh();
        b.w(GET).r("HTTP/1.1 200 OK\r\n");
        for _ in 0..10_000 {
            b.r(if lines { &field } else { "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" });
        }
        b.w(GET).r(OK5);
        assert_eq!(b.log[2], "0! Desync");
        assert_eq!(b.log[5..], ["1< 200 five @10004", "1< body hello", "1< end"]);
        assert_eq!(b.stats.drops(DropReason::HeadTooLong), 1);
        assert!(b.stats.drops(DropReason::NotHttp) <= 1);
    }
    let mut b = Bench::fresh();
    b.w(GET).r(&format!("HTTP/1.1 200 OK\r\n{}", field.repeat(1000))).w(GET).r(OK5);
    assert_eq!(b.log.last().unwrap(), "1< end");
    assert_eq!(b.stats.drops(DropReason::HeadTooLong), 1);
}

#[test]
fn a_request_line_without_an_end_is_no_http() {
    let mut b = Bench::fresh();
    b.w("GET /");
    for _ in 0..100 {
        b.w(&"a".repeat(1000));
    }
    b.w(" HTTP/1.1\r\n\r\n").expect(&[]).counted(&[(DropReason::NotHttp, 1)]);
    assert!(b.conn.is_opaque());
}

#[test]
fn too_many_open_exchanges_are_let_go() {
    let mut b = Bench::fresh();
    for _ in 0..=limits::OPEN_EXCHANGES {
        b.w(GET);
    }
    assert_eq!(b.log.iter().filter(|l| l.ends_with("! Evicted")).count(), limits::OPEN_EXCHANGES);
    b.counted(&[(DropReason::ExchangesFull, limits::OPEN_EXCHANGES as u64)]);
    b.log.clear();
    b.r(OK5).w(GET).r(OK5);
    assert_eq!(b.log[0], "256< 200 five @258");
    assert_eq!(b.log.last().unwrap(), "257< end");
}

#[test]
fn a_followed_connection_at_rest_is_small() {
    let mut b = Bench::fresh();
    b.w(POST).r(&SSE[..20]).r(&SSE[20..]).r(&chunk("data: 1\n\n"));
    assert!(size_of::<HttpConnection>() + size_of::<super::Http1>() <= 640);
}

/// A conversation of whole messages, each direction as one text per turn, with everything the framing allows.
fn fixture(i: usize) -> Vec<(Direction, String)> {
    let sse: String = ["data: {\"a\":1}\n\n", ": ping\n\n", "data: [DONE]\n\n"].iter().map(|c| chunk(c)).collect();
    match i {
        0 => vec![
            (Write, POST.into()),
            (Read, format!("{SSE}{sse}0\r\n\r\n")),
            (
                Write,
                "POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n".into(),
            ),
            (Read, format!("HTTP/1.1 100 Continue\r\n\r\n{OK5}")),
        ],
        1 => vec![
            (Write, format!("{GET}\r\nHEAD /h HTTP/1.1\r\n\r\n{POST}")),
            (Read, format!("\r\n{OK5}HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 204 No\r\n\r\n")),
            (Write, GET.replace('\r', "")),
            (Read, "HTTP/1.1 200 OK\nX: lf\n\nuntil close\r\n0\r\n\r\n".into()),
        ],
        2 => vec![
            (Read, POST.into()),
            (Write, format!("{SSE}{sse}0\r\nX: t\r\n\r\n")),
            (Read, GET.into()),
            (Write, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: w\r\n\r\n\x01\x02HTTP/1.1".into()),
        ],
        _ => vec![
            (Write, GET.into()),
            (Read, "HTTP/1.1 500 no\r\nX: e\r\nContent-Length: 0\r\n\r\n".into()),
            (Write, "CONNECT h:1 HTTP/1.1\r\n\r\n".into()),
            (Read, "HTTP/1.1 200 OK\r\n\r\n\x16\x03".into()),
        ],
    }
}

/// Feeds a fixture in pieces of the sizes that `size` gives. Stamps of first bytes are left out of the log: a turn has
/// one stamp however it is cut.
fn run(fixture: &[(Direction, String)], mut size: impl FnMut() -> usize) -> (Vec<String>, Stats) {
    let mut b = Bench::fresh();
    for (i, (dir, text)) in fixture.iter().enumerate() {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(size().clamp(1, rest.len()));
            b.event(StreamEvent::Data { dir: *dir, at: stamp(i as u64 + 1), bytes: piece });
            rest = after;
        }
    }
    b.now = 100;
    b.close(CloseCause::Freed);
    (b.log, b.stats)
}

#[test]
fn wherever_records_are_cut_the_events_are_the_same() {
    for i in 0..4 {
        let fixture = fixture(i);
        let whole = run(&fixture, || usize::MAX);
        assert!(whole.0.len() > 6 && !whole.0.iter().any(|l| l.contains('!') || l.contains("gap")), "{whole:#?}");
        assert_eq!(run(&fixture, || 1), whole);
        for cut in 1..fixture.iter().map(|f| f.1.len()).max().unwrap() {
            assert_eq!(run(&fixture, || cut), whole, "fixture {i} in pieces of {cut}");
            let mut first = true;
            let once = run(&fixture, || if std::mem::take(&mut first) { cut } else { usize::MAX });
            assert_eq!(once, whole);
        }
    }
}

/// Splits every record of every turn at one offset, in all turns alike.
#[test]
fn every_turn_can_be_cut_in_two_at_every_offset() {
    for i in 0..4 {
        let fixture = fixture(i);
        let whole = run(&fixture, || usize::MAX);
        for turn in 0..fixture.len() {
            for cut in 1..fixture[turn].1.len() {
                let mut pieces: Vec<usize> = Vec::new();
                for (n, f) in fixture.iter().enumerate() {
                    if n == turn {
                        pieces.extend([cut, f.1.len() - cut]);
                    } else {
                        pieces.push(f.1.len());
                    }
                }
                let mut pieces = pieces.into_iter();
                assert_eq!(run(&fixture, || pieces.next().unwrap()), whole, "fixture {i}, turn {turn}, cut {cut}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_cuts_give_the_same_events(i in 0_usize..4, sizes in prop::collection::vec(1_usize..30, 1..50)) {
        let fixture = fixture(i);
        let mut sizes = sizes.into_iter().cycle();
        prop_assert_eq!(run(&fixture, || sizes.next().unwrap()), run(&fixture, || usize::MAX));
    }

    #[test]
    fn whatever_was_lost_before_it_a_later_exchange_is_right(
        i in 0_usize..2,
        pieces in prop::collection::vec((1_usize..60, 0_u8..4), 1..40),
        unknown in any::<bool>(),
    ) {
        let mut b = Bench::fresh();
        let mut pieces = pieces.into_iter().cycle();
        for (dir, text) in fixture(i).into_iter().take(2) {
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                let (size, fate) = pieces.next().unwrap();
                let (piece, after) = rest.split_at(size.min(rest.len()));
                if fate == 0 {
                    b.gap(dir, (!unknown).then_some(piece.len() as u64), GapCause::Lost);
                } else {
                    b.data(dir, piece);
                }
                rest = after;
            }
        }
        b.log.clear();
        // After a loss it may take one exchange to be in step again.
        b.w(GET).r(OK5).w(POST).r(OK5);
        let last = b.log.iter().rposition(|l| l.contains("> POST")).unwrap();
        let no = b.log[last].split('>').next().unwrap().to_owned();
        let own: Vec<_> = b.log[last..].iter().filter(|l| l.starts_with(&no)).map(|l| l[no.len()..].split(" @").next().unwrap().to_owned()).collect();
        prop_assert_eq!(own, ["> POST /v1/chat h", "> body body", "> end", "< 200 five", "< body hello", "< end"]);
    }

    #[test]
    fn no_bytes_whatsoever_do_harm(
        events in prop::collection::vec((0_u8..12, any::<bool>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..40)), 1..60),
        fresh in any::<bool>(),
    ) {
        let words = [GET, POST, OK5, SSE, "5\r\nhello\r\n", "ffffffffffffffff\r\n", "0\r\n\r\n", "data: x\n\n", "\r\n"];
        let mut b = Bench::new(if fresh { StartSeen::Yes } else { StartSeen::No });
        for (kind, write, n, bytes) in events {
            let dir = if write { Write } else { Read };
            match kind {
                0 => b.gap(dir, Some(n), GapCause::Lost),
                1 => b.gap(dir, (n & 1 == 0).then_some(n % 64 + 1), GapCause::Capped),
                2 if !bytes.is_empty() => b.data(dir, &bytes),
                3 if n % 16 == 0 => b.close(CloseCause::Freed),
                _ => {
                    let word = words[n as usize % words.len()].as_bytes();
                    let cut = (n >> 32) as usize % word.len();
                    b.data(dir, &word[if n & 1 == 0 { 0 } else { cut }..])
                }
            };
        }
        // The contract of the output: a head first, nothing after the end of a side, nothing after an abort.
        let mut sides = std::collections::HashMap::new();
        let mut aborted = std::collections::HashSet::new();
        for line in &b.log {
            let at = line.find(['>', '<', '!']).unwrap();
            let (no, rest) = line.split_at(at);
            prop_assert!(!aborted.contains(no), "{:?}", b.log);
            let (side, what) = rest.split_at(1);
            if side == "!" {
                aborted.insert(no.to_owned());
                continue;
            }
            let what = what.trim_start();
            let state = sides.entry((no.to_owned(), side.to_owned())).or_insert(0);
            let expected = if what == "end" || what.starts_with("body") || what.starts_with("gap") { 1 } else { 0 };
            prop_assert_eq!(*state, expected, "{} in {:?}", line, b.log);
            *state = if what == "end" { 2 } else { 1 };
        }
    }
}
