//! What the pipeline promises to who drives it: verdicts, closes, exits, bounds.

#[path = "tape_support/mod.rs"]
mod tape_support;

use std::sync::Arc;

use nexent_observer_core::{
    event::{Address, ConnId, Direction, Found, MonoNs, Peer, Record, RecordFlags, RecordKind, Said, Stamp},
    limits::Limits,
    pipeline::{Output, Pipeline},
    stats::DropReason,
    timing::{Exchange, Options, Outcome},
};
use tape_support::{Tape, assert_replays, counting};

const CHAT: &str = "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Length: 2\r\n\r\n{}";
const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const OTHER: &str = "GET /health HTTP/1.1\r\nHost: h\r\n\r\n";
const OTHER_HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n";

fn event(text: &str) -> String {
    let data = format!("data: {{\"id\":\"c\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n");
    format!("{:x}\r\n{data}\r\n", data.len())
}

struct Bench {
    pipeline: Pipeline,
    now: u64,
    /// Read and write offsets of connections 0 to 9.
    offsets: [[u64; 2]; 10],
    tape: Tape,
    /// All exchanges so far.
    all: Vec<Exchange>,
}

/// However a test ends, a replay of what the tap was shown gives the same numbers.
impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.take();
            self.pipeline = Pipeline::new(Limits::default(), Options::default());
            assert_replays(&self.tape, &self.all, Limits::default());
        }
    }
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let (mut pipeline, tape) = (Pipeline::new(limits, counting("counted")), Tape::default());
        pipeline.set_tap(tape.tap());
        Self { pipeline, now: 1_000_000, offsets: Default::default(), tape, all: Vec::new() }
    }

    fn record(&mut self, conn: u64, pid: u32, kind: RecordKind<'_>) {
        self.now += 1_000_000;
        let at = Stamp { entry: MonoNs(self.now - 1000), ret: MonoNs(self.now) };
        self.pipeline.handle_event(&Record { conn: ConnId(conn), pid, tid: pid, at, kind });
    }

    fn data(&mut self, conn: u64, dir: Direction, turn: u32, bytes: &str) {
        let slot = &mut self.offsets[conn as usize][usize::from(dir == Direction::Write)];
        let offset = *slot;
        *slot += bytes.len() as u64;
        let flags = RecordFlags { from_start: true, ..RecordFlags::default() };
        let (payload, len) = (bytes.as_bytes(), bytes.len() as u64);
        self.record(conn, conn as u32 + 100, RecordKind::Data { dir, offset, turn, payload, len, flags });
    }

    fn write(&mut self, conn: u64, turn: u32, bytes: &str) {
        self.data(conn, Direction::Write, turn, bytes);
    }

    fn read(&mut self, conn: u64, turn: u32, bytes: &str) {
        self.data(conn, Direction::Read, turn, bytes);
    }

    fn close(&mut self, conn: u64) {
        let [read_end, write_end] = self.offsets[conn as usize];
        let kind = RecordKind::Close { read_end, write_end, flags: RecordFlags::default() };
        self.record(conn, conn as u32 + 100, kind);
    }

    /// Both rings are drained.
    fn drained(&mut self) {
        if self.pipeline.poll_timeout().is_some_and(|due| due.0 <= self.now) {
            self.pipeline.handle_timeout(MonoNs(self.now));
        }
    }

    fn take(&mut self) -> (Vec<Exchange>, Vec<(u64, u32)>) {
        let (mut exchanges, mut verdicts) = (Vec::new(), Vec::new());
        while let Some(output) = self.pipeline.poll_output() {
            match output {
                Output::Exchange(x) => exchanges.push(*x),
                Output::Inbound(_) | Output::Tool(_) => {}
                Output::NotLlm { conn, turn } => verdicts.push((conn.0, turn)),
            }
        }
        self.all.extend_from_slice(&exchanges);
        (exchanges, verdicts)
    }

    fn verdicts(&mut self) -> Vec<(u64, u32)> {
        self.drained();
        self.take().1
    }
}

#[test]
fn a_verdict_comes_once_a_turn_and_not_before_the_response_head() {
    let mut b = Bench::new(Limits::default());
    b.write(1, 1, OTHER);
    assert_eq!(b.verdicts(), []);
    b.read(1, 1, &OTHER_HEAD[..20]);
    assert_eq!(b.verdicts(), [], "leaving out the rest of the head would lose where the message ends");
    b.read(1, 1, &OTHER_HEAD[20..]);
    assert_eq!(b.verdicts(), [(1, 1)]);
    b.read(1, 1, "x");
    assert_eq!(b.verdicts(), []);
    b.write(1, 2, OTHER);
    b.read(1, 2, OTHER_HEAD);
    b.drained();
    assert_eq!(b.take().0.len(), 0);
}

#[test]
fn verdicts_due_in_two_turns_of_one_drain_are_one_verdict_on_the_later() {
    let mut b = Bench::new(Limits::default());
    b.write(1, 1, "no HTTP at all");
    b.read(1, 1, "no");
    b.write(1, 2, "none");
    b.read(1, 2, "no");
    assert_eq!(b.verdicts(), [(1, 2)]);
    b.write(1, 3, "none");
    b.read(1, 3, "no");
    assert_eq!(b.verdicts(), [(1, 3)]);
}

#[test]
fn no_verdict_while_an_llm_call_is_open_on_the_connection_or_may_be() {
    let mut b = Bench::new(Limits::default());
    // Pipelined behind one that is no LLM call.
    b.write(1, 1, OTHER);
    b.write(1, 1, CHAT);
    b.read(1, 1, OTHER_HEAD);
    assert_eq!(b.verdicts(), []);
    // The request that shows it is in the ring that is drained later.
    b.write(2, 1, OTHER);
    b.drained();
    b.read(2, 1, OTHER_HEAD);
    b.write(2, 1, CHAT);
    assert_eq!(b.verdicts(), []);
    b.write(3, 1, CHAT);
    b.read(3, 1, STREAM);
    assert_eq!(b.verdicts(), []);
}

#[test]
fn bytes_that_are_no_http_get_a_verdict_and_a_preface_of_http2_does_not() {
    let mut b = Bench::new(Limits::default());
    b.write(1, 1, "\u{1}\u{2}binary protocol\n");
    b.read(1, 1, "\u{3}answer");
    assert_eq!(b.verdicts(), [(1, 1)]);
    b.write(2, 1, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    b.read(2, 1, "\0\0\0\u{4}\0\0\0\0\0");
    assert_eq!(b.verdicts(), []);
}

#[test]
fn a_close_that_overtook_all_writes_of_a_short_connection_ends_its_exchange() {
    let mut b = Bench::new(Limits::default());
    b.offsets[1] = [0, CHAT.len() as u64];
    b.close(1);
    b.offsets[1] = [0, 0];
    b.write(1, 1, CHAT);
    b.drained();
    let (exchanges, _) = b.take();
    assert_eq!(exchanges.iter().map(|x| x.outcome).collect::<Vec<_>>(), [Outcome::ClientAbort]);
    assert_eq!(b.pipeline.stats().connections_open, 0);
}

#[test]
fn a_silent_connection_whose_end_was_lost_leaves_the_table_and_only_what_was_open_on_it_is_incomplete() {
    let mut b = Bench::new(Limits::default());
    // Of one an answer is open, of the next one it is whole, and the third one is heard later.
    for conn in [1, 2, 3] {
        b.write(conn, 1, CHAT);
        b.read(conn, 1, &format!("{STREAM}{}", event("a")));
    }
    b.read(2, 1, &format!("{}0\r\n\r\n", event("b")));
    b.drained();
    assert_eq!(b.take().0.len(), 1);
    let before = MonoNs(b.now + 1);
    b.now += 5_000_000_000;
    b.read(3, 1, &event("b"));
    let ended: Vec<_> = b.pipeline.silent(before, MonoNs(b.now)).collect();
    assert_eq!(ended.iter().map(|record| (record.conn.0, record.pid)).collect::<Vec<_>>(), [(1, 101), (2, 102)]);
    for record in &ended {
        b.pipeline.handle_event(record);
    }
    b.drained();
    let exchanges = b.take().0;
    let open = exchanges.iter().map(|exchange| (exchange.id.conn, exchange.outcome, exchange.bytes_lost));
    assert_eq!(open.collect::<Vec<_>>(), [(ConnId(1), Outcome::Incomplete, None)]);
    assert_eq!(b.pipeline.stats().connections_open, 1);
    assert_eq!(b.pipeline.stats().drops(DropReason::RecordInvalid), 0);
}

#[test]
fn a_close_of_an_unknown_connection_is_counted_and_leaves_nothing() {
    let mut b = Bench::new(Limits::default());
    b.close(1);
    assert_eq!(b.pipeline.stats().drops(DropReason::RecordInvalid), 1);
    assert_eq!(b.pipeline.stats().connections_open, 0);
}

#[test]
fn the_end_of_a_process_ends_its_calls_and_no_others() {
    let mut b = Bench::new(Limits::default());
    for conn in [1, 2] {
        b.write(conn, 1, CHAT);
        b.read(conn, 1, STREAM);
        b.read(conn, 1, &event("hi"));
    }
    b.drained();
    assert_eq!(b.pipeline.active().count(), 2);
    let at = MonoNs(b.now + 5);
    b.pipeline.process_exit(101, at);
    let (exchanges, _) = b.take();
    assert_eq!(exchanges.len(), 1);
    assert_eq!((exchanges[0].pid, exchanges[0].outcome, exchanges[0].end), (101, Outcome::ClientAbort, Some(at)));
    let left: Vec<_> = b.pipeline.active().map(|s| (s.pid, s.chunks)).collect();
    assert_eq!(left, [(102, 1)]);
}

#[test]
fn detaching_leaves_the_outcome_open() {
    let mut b = Bench::new(Limits::default());
    b.write(1, 1, CHAT);
    b.pipeline.detach(101, MonoNs(b.now + 5));
    assert_eq!(b.take().0[0].outcome, Outcome::Incomplete);
}

#[test]
fn a_full_table_lets_the_connection_silent_longest_go_as_incomplete() {
    let mut b = Bench::new(Limits { connections: 2, ..Limits::default() });
    for conn in [1, 2, 3] {
        b.write(conn, 1, CHAT);
    }
    let (exchanges, _) = b.take();
    assert_eq!(exchanges.iter().map(|x| (x.pid, x.outcome)).collect::<Vec<_>>(), [(101, Outcome::Incomplete)]);
    assert_eq!(b.pipeline.stats().drops(DropReason::ConnectionsFull), 1);
    assert_eq!(b.pipeline.stats().connections_open, 2);
}

#[test]
fn a_silent_connection_is_let_go_when_its_time_is_up() {
    let mut b = Bench::new(Limits { idle_ns: 1_000_000_000, ..Limits::default() });
    b.write(1, 1, CHAT);
    let due = b.pipeline.poll_timeout().map(|t| t.0);
    assert_eq!(due, Some(b.now + 1_000_000_000));
    b.pipeline.handle_timeout(MonoNs(b.now + 999_999_999));
    assert_eq!(b.take().0.len(), 0);
    b.pipeline.handle_timeout(MonoNs(b.now + 1_000_000_000));
    assert_eq!(b.take().0[0].outcome, Outcome::Incomplete);
    assert_eq!(b.pipeline.poll_timeout(), None);
}

#[test]
fn what_is_open_and_what_was_seen_is_counted_over_all_stages() {
    let mut b = Bench::new(Limits::default());
    b.write(1, 1, CHAT);
    b.read(1, 1, STREAM);
    b.read(1, 1, &event("hi"));
    b.drained();
    let stats = b.pipeline.stats();
    assert_eq!((stats.records, stats.http_exchanges, stats.chunks), (3, 1, 1));
    assert_eq!((stats.connections_open, stats.exchanges_open, stats.llm_exchanges), (1, 1, 0));
    b.close(1);
    b.drained();
    let stats = b.pipeline.stats();
    assert_eq!((stats.connections_open, stats.exchanges_open, stats.llm_exchanges), (0, 0, 1));
}

/// What a hook says of a span with this endpoint.
fn said(endpoint: &str) -> Option<Arc<Said>> {
    Some(Arc::new(Said { trace_id: 7, span_id: 8, endpoint: Some(endpoint.into()) }))
}

/// Endpoints of the calls that ended.
fn endpoints(b: &mut Bench) -> Vec<Option<String>> {
    b.drained();
    b.take().0.into_iter().map(|exchange| Some(exchange.said?.endpoint.as_deref()?.to_owned())).collect()
}

#[test]
fn a_call_bears_what_a_hook_said_right_before_its_write() {
    let answer = format!("{STREAM}{}0\r\n\r\n", event("x"));
    let mut b = Bench::new(Limits::default());
    // Thread 101 writes connection 1, thread 102 connection 2: each has its own word.
    b.pipeline.handle_said(101, said("a"));
    b.pipeline.handle_said(102, said("b"));
    for conn in [2, 1] {
        b.write(conn, 1, CHAT);
        b.read(conn, 1, &answer);
        b.drained();
    }
    assert_eq!(endpoints(&mut b), [Some("b".to_owned()), Some("a".to_owned())]);
    // It holds for the connection until the next word, and no longer.
    b.write(1, 2, CHAT);
    b.read(1, 2, &answer);
    b.drained();
    b.pipeline.handle_said(101, said("c"));
    b.write(1, 3, CHAT);
    b.read(1, 3, &answer);
    b.drained();
    b.pipeline.handle_said(101, None);
    b.write(1, 4, CHAT);
    b.read(1, 4, &answer);
    b.drained();
    assert_eq!(endpoints(&mut b), [Some("a".to_owned()), Some("c".to_owned()), None]);
}

#[test]
fn a_word_between_two_writes_of_one_request_is_for_the_next_request() {
    let (head, body) = CHAT.split_at(CHAT.len() - 2);
    let answer = format!("{STREAM}{}0\r\n\r\n", event("x"));
    let mut b = Bench::new(Limits::default());
    b.pipeline.handle_said(101, said("a"));
    b.write(1, 1, head);
    b.pipeline.handle_said(101, said("b"));
    b.write(1, 1, body);
    b.read(1, 1, &answer);
    b.drained();
    assert_eq!(endpoints(&mut b), [Some("a".to_owned())]);
}

#[test]
fn of_several_requests_in_one_write_none_is_named() {
    let answer = format!("{STREAM}{}0\r\n\r\n", event("x"));
    let mut b = Bench::new(Limits::default());
    b.pipeline.handle_said(101, said("a"));
    b.write(1, 1, &CHAT.repeat(2));
    b.read(1, 1, &answer.repeat(2));
    assert_eq!(endpoints(&mut b), [None, None]);
}

#[test]
fn words_of_threads_that_never_write_are_bounded() {
    let mut b = Bench::new(Limits::default());
    for tid in 0..100_000 {
        b.pipeline.handle_said(1_000_000 + tid, said("a"));
    }
    b.pipeline.handle_said(101, said("b"));
    b.write(1, 1, CHAT);
    b.read(1, 1, &format!("{STREAM}{}0\r\n\r\n", event("x")));
    assert_eq!(endpoints(&mut b), [Some("b".to_owned())]);
}

#[test]
fn what_the_socket_tells_goes_to_the_call_that_the_connection_was_made_for_or_that_is_open() {
    let mut b = Bench::new(Limits::default());
    let address = Address::Inet(([127, 0, 0, 1], 443).into());
    let peer = Peer {
        local: address,
        remote: address,
        connect_ns: Some(5),
        tls_ns: Some(7),
        socket: Some(Found::NextSend),
        retransmits: 3,
    };
    b.write(1, 1, CHAT);
    let written = MonoNs(b.now);
    b.record(1, 101, RecordKind::Peer(peer));
    b.record(1, 101, RecordKind::Sent { until: written });
    let sent = MonoNs(b.now);
    b.record(1, 101, RecordKind::Retransmit);
    b.read(1, 1, &format!("{STREAM}{}0\r\n\r\n", event("a")));
    b.drained();
    b.record(1, 101, RecordKind::Retransmit); // of nothing that is open
    b.write(1, 2, CHAT);
    b.record(1, 101, RecordKind::Late { arrived: MonoNs(b.now - 500_000) });
    b.read(1, 2, &format!("{STREAM}{}0\r\n\r\n", event("b")));
    b.drained();
    let [first, second] = <[Exchange; 2]>::try_from(b.take().0).unwrap();
    assert_eq!((first.request_written, first.request_sent), (Some(written), Some(sent)));
    assert_eq!((first.connect_ns, first.tls_ns, first.retransmits), (Some(5), Some(7), Some(4)));
    assert_eq!((second.connect_ns, second.tls_ns, second.retransmits), (None, None, Some(0)));
    assert_eq!((first.read_delay.unwrap().reads, second.read_delay.unwrap().reads), (0, 1));
    assert_eq!(second.request_sent, None, "its socket did not say so");
    assert_eq!((first.socket, second.socket), (Some(Found::NextSend), Some(Found::NextSend)));
}

#[test]
fn what_the_socket_of_an_unknown_connection_tells_makes_no_connection() {
    let mut b = Bench::new(Limits::default());
    for kind in [RecordKind::Retransmit, RecordKind::Sent { until: MonoNs(1) }, RecordKind::Late { arrived: MonoNs(1) }]
    {
        b.record(9, 109, kind);
    }
    assert_eq!(b.pipeline.stats().connections_open, 0);
}

#[test]
fn retransmits_in_the_middle_of_a_write_count_for_the_request_that_it_carries() {
    for (many, counted) in [(3, Some(3)), (255, Some(255)), (256, None), (1000, None)] {
        let mut b = Bench::new(Limits::default());
        let address = Address::Unix;
        let socket = Some(Found::InsideWrite);
        let peer = Peer { local: address, remote: address, connect_ns: None, tls_ns: None, socket, retransmits: 0 };
        b.record(1, 101, RecordKind::Peer(peer));
        b.record(1, 101, RecordKind::Retransmit); // before the call
        let entry = MonoNs(b.now + 1);
        for _ in 0..many {
            b.record(1, 101, RecordKind::Retransmit);
        }
        let at = Stamp { entry, ret: MonoNs(b.now + 1_000_000) };
        let flags = RecordFlags { from_start: true, sent: true, ..RecordFlags::default() };
        let (payload, len) = (CHAT.as_bytes(), CHAT.len() as u64);
        let kind = RecordKind::Data { dir: Direction::Write, offset: 0, turn: 1, payload, len, flags };
        b.pipeline.handle_event(&Record { conn: ConnId(1), pid: 101, tid: 101, at, kind });
        b.offsets[1][1] = len;
        b.now = at.ret.0;
        b.read(1, 1, &format!("{STREAM}{}0\r\n\r\n", event("a")));
        b.drained();
        let exchanges = b.take().0;
        assert_eq!(exchanges.len(), 1);
        assert_eq!((exchanges[0].retransmits, exchanges[0].request_sent), (counted, Some(at.ret)), "{many}");
    }
}
