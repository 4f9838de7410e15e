//! What is kept in place of content, because redaction takes away what it is made from: counts of tokens, which request repeats which,
//! and what sockets told.

use nexent_observer_core::{
    event::{Address, ConnId, Direction, Found, MonoNs, Peer, RecordFlags, RecordKind},
    http::ExchangeNo,
    limits::Limits,
    pipeline::Tapped,
    tape::{
        Redactor, Secret,
        entry::{self, Entry},
    },
    timing::{Cause, Exchange, TokenSource},
};

use super::{Wire, chunk, post, tape_support::assert_replays};

const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const BUSY: &[u8] = b"HTTP/1.1 503 X\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";

fn ask(prompt: &str) -> Vec<u8> {
    let body = format!(r#"{{"model":"m","stream":true,"messages":[{{"role":"user","content":"{prompt}"}}]}}"#);
    post("/v1/chat/completions", "api.openai.com", &[], body.as_bytes())
}

fn event(text: &str) -> Vec<u8> {
    format!(
        "data: {{\"id\":\"c\",\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"
    )
    .into_bytes()
}

/// Exchanges of a run that is over, after its replay gave the same.
fn replayed(wire: Wire) -> Vec<Exchange> {
    let Wire { pipeline, tape, exchanges, .. } = wire;
    drop(pipeline);
    assert_replays(&tape, &exchanges, Limits::default());
    exchanges
}

#[test]
fn tokens_are_those_that_were_counted_in_the_text_of_then() {
    let mut wire = Wire::new();
    wire.write(&ask("hi"));
    wire.read(STREAM);
    // Escapes are text of another length; a word goes on over an event; the last one shows more at its end.
    for text in ["one", " two three\\n", "\\u00e9 four", "teen five"] {
        wire.read(&chunk(&event(text)));
    }
    wire.read(&chunk(&[event(" six"), event(" seven eight")].concat()));
    wire.read(&chunk(b"data: [DONE]\n\n"));
    let exchanges = replayed(wire);
    let [x] = &exchanges[..] else { panic!("{exchanges:?}") };
    assert_eq!((x.counted_tokens, x.usage_source), (Some(9), TokenSource::Tokenizer));
    assert!(x.chunks.iter().any(|chunk| chunk.tokens > Some(1)) && x.decode_rate.is_some());
}

#[test]
fn a_stream_that_breaks_off_or_has_a_hole_has_the_counts_of_then() {
    for (lost, closed) in [(0, true), (30, false), (30, true)] {
        let mut wire = Wire::new();
        wire.write(&ask("hi"));
        wire.read(STREAM);
        wire.read(&chunk(&event("one two three")));
        wire.moves(Direction::Read, &chunk(&event(" four five")), lost);
        wire.read(&chunk(&event(" six seven")));
        if !closed {
            wire.read(&chunk(b"data: [DONE]\n\n"));
        }
        wire.close();
        assert!(replayed(wire).iter().all(|x| x.counted_tokens >= Some(4)));
    }
}

#[test]
fn a_retry_is_one_in_the_replay_and_a_request_that_only_looks_alike_is_none() {
    let mut wire = Wire::new();
    for prompt in ["what is a", "what is b", "what is a", "what is a"] {
        wire.turn += 1;
        wire.write(&ask(prompt));
        wire.read(BUSY);
    }
    wire.close();
    let links: Vec<_> = replayed(wire).iter().map(|x| (x.retry_of.map(|id| id.no), x.retry_count)).collect();
    assert_eq!(links, [(None, None), (None, None), (Some(0), Some(1)), (Some(2), Some(2))]);
}

#[test]
fn the_digest_of_a_request_is_not_kept_and_by_another_secret_it_is_another() {
    let kept = |secret, digest| {
        let (mut redactor, mut kept) = (Redactor::new(Secret::new([secret; 16])), Vec::new());
        redactor.take(ConnId(1), &Tapped::Asked { exchange: ExchangeNo(0), digest }, &mut |bytes| {
            let read = entry::read(bytes, |entry| {
                let Entry::Tapped(_, Tapped::Asked { digest, .. }) = entry else { panic!("{entry:?}") };
                kept.push(digest);
            });
            assert_eq!(read, Ok(()));
        });
        kept.remove(0)
    };
    assert_eq!(kept(1, 5), kept(1, 5));
    assert!(![5, kept(1, 6), kept(2, 5)].contains(&kept(1, 5)));
}

#[test]
fn phases_and_causes_of_waits_are_those_of_then() {
    let address = Address::Inet(([127, 0, 0, 1], 443).into());
    let (local, remote, socket) = (address, address, Some(Found::NextSend));
    let peer = Peer { local, remote, connect_ns: Some(5), tls_ns: Some(7), socket, retransmits: 3 };
    let mut wire = Wire::new();
    wire.record(RecordKind::Peer(peer));
    wire.record(RecordKind::Retransmit); // before the first byte, and told to the first call if it began before
    wire.write(&ask("hi"));
    let written = MonoNs(wire.now);
    wire.record(RecordKind::Retransmit);
    wire.record(RecordKind::Sent { until: written });
    let sent = MonoNs(wire.now);
    let arrived = MonoNs(wire.now + 1_000_000);
    wire.now += 5_000_000_000;
    wire.record(RecordKind::Late { arrived });
    wire.read(STREAM);
    // Quick ones, by which the slow ones are stalls.
    (0..8).for_each(|_| wire.read(&chunk(&event("one"))));
    for late in [true, false] {
        let arrived = MonoNs(wire.now + 1_000_000);
        wire.now += 5_000_000_000;
        if late {
            wire.record(RecordKind::Late { arrived });
        }
        wire.read(&chunk(&event(" two")));
    }
    wire.read(&chunk(b"data: [DONE]\n\n"));
    wire.read(b"0\r\n\r\n");
    // Between two calls: it counts for none, and the next one begins after it.
    wire.record(RecordKind::Retransmit);
    wire.record(RecordKind::Late { arrived: written });
    wire.turn += 1;
    wire.write(&ask("hi again"));
    wire.record(RecordKind::Retransmit);
    wire.read(BUSY);
    wire.close();
    let exchanges = replayed(wire);
    let [first, second] = &exchanges[..] else { panic!("{exchanges:?}") };
    assert_eq!((first.request_sent, first.connect_ns, first.tls_ns), (Some(sent), Some(5), Some(7)));
    assert_eq!((first.socket, first.peer), (socket, Some(peer)));
    assert_eq!(first.first_token_cause, Some(Cause::LateRead));
    assert_eq!(first.stall_causes, [Some(Cause::LateRead), Some(Cause::LateArrival)]);
    assert_eq!((first.read_delay.unwrap().reads, first.retransmits), (2, Some(4)));
    assert_eq!((second.read_delay.unwrap().reads, second.retransmits, second.connect_ns), (0, Some(1), None));
}

#[test]
fn a_socket_that_is_found_while_a_call_is_open_is_watched_from_then_on() {
    let (local, remote) = (Address::Unix, Address::Unix);
    let peer = Peer { local, remote, connect_ns: None, tls_ns: None, socket: Some(Found::InsideWrite), retransmits: 0 };
    let mut wire = Wire::new();
    wire.write(&ask("hi"));
    wire.read(STREAM);
    wire.read(&chunk(&event("one")));
    wire.record(RecordKind::Peer(peer));
    let arrived = MonoNs(wire.now + 1_000_000);
    wire.now += 5_000_000_000;
    wire.record(RecordKind::Late { arrived });
    wire.read(&chunk(&event(" two")));
    let flags = RecordFlags::default();
    wire.record(RecordKind::Close { read_end: wire.sent[0], write_end: wire.sent[1], flags });
    let exchanges = replayed(wire);
    assert!(exchanges[0].socket.is_some() && exchanges[0].read_delay.is_some());
    assert_eq!(exchanges[0].first_token_cause, None, "it was not watched by then");
}
