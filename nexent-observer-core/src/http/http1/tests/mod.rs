//! What the stage says of whole conversations, cut, lost and mixed in every way.

mod cuts;
mod loss;

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
        HttpEventKind::Message(message) => {
            format!("{no}{side} {:?} {}", message.kind, String::from_utf8_lossy(message.bytes))
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

#[test]
fn a_version_that_is_not_spoken_is_named_wherever_it_stands() {
    const ASK: &str = "GET / HTTP/9.9\r\nHost: h\r\n\r\n";
    const ANSWER: &str = "HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n";
    for start in [StartSeen::Yes, StartSeen::No] {
        for steps in [&[(Write, ASK)][..], &[(Write, GET), (Read, OK5), (Write, ASK)], &[(Read, ANSWER)]] {
            for size in [1000, 1] {
                let mut b = Bench::new(start);
                for (dir, text) in steps {
                    text.as_bytes().chunks(size).for_each(|piece| {
                        b.data(*dir, piece);
                    });
                }
                assert_eq!(b.stats.drops(DropReason::HttpVersion), 1, "{start:?} {steps:?} {size}");
                assert_eq!(b.stats.drops(DropReason::HeadInvalid), 0);
            }
        }
    }
    for version in ["HTTP/9.9", "HTTP/1.9", "HTTP/2"] {
        let mut b = Bench::fresh();
        b.w(GET).r(&format!("{version} 200 OK\r\nContent-Length: 0\r\n\r\n"));
        b.expect(&["0> GET /a h @1", "0> end", "0! Desync"]).counted(&[(DropReason::HttpVersion, 1)]);
        b.w(GET).r(OK5).expect(&["1> GET /a h @3", "1> end", "1< 200 five @4", "1< body hello", "1< end"]);
    }
}
