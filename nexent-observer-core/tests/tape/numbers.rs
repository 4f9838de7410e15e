//! Every fixture of every API, recorded and replayed: the same numbers, however it is cut.

use std::fs;

use nexent_observer_core::{event::Direction, limits::Limits};
use serde_json::Value;

use super::{Wire, bytes, chunk, post, tape_support::assert_replays};

struct Call {
    name: String,
    host: String,
    path: String,
    status: u64,
    headers: Vec<(String, String)>,
    body: String,
    kind: &'static str,
    answer: Vec<u8>,
}

fn calls() -> Vec<Call> {
    let read = |name: &str| fs::read(format!("{}/tests/fixtures/llm/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let table: Vec<Value> = serde_json::from_slice(&read("calls.json")).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let call = |row: &Value| {
        let name = text(&row["fixture"]);
        let kind = match name.rsplit_once('.').unwrap().1 {
            "sse" => "text/event-stream; charset=utf-8",
            "ndjson" => "application/x-ndjson",
            "events" => "application/vnd.amazon.eventstream",
            _ => "application/json",
        };
        let headers = row["headers"].as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text(value)));
        Call {
            host: text(&row["host"]),
            path: text(&row["path"]),
            status: row["status"].as_u64().unwrap_or(200),
            headers: headers.collect(),
            body: if row["body"].is_null() {
                r#"{"model":"m","messages":[],"input":"x","stream":true,"max_tokens":7,"temperature":0.5}"#.to_owned()
            } else {
                row["body"].to_string()
            },
            kind,
            answer: read(&name),
            name,
        }
    };
    table.iter().map(call).collect()
}

impl Call {
    fn ask(&self) -> Vec<u8> {
        post(&self.path, &self.host, &self.headers, self.body.as_bytes())
    }

    fn head(&self) -> Vec<u8> {
        format!(
            "HTTP/1.1 {} X\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\nx-request-id: req_123\r\nx-ratelimit-remaining-tokens: 77\r\nopenai-processing-ms: 12\r\n\r\n",
            self.status, self.kind
        )
        .into_bytes()
    }

    /// The call with its answer in these pieces.
    fn made<'a>(&self, pieces: impl IntoIterator<Item = &'a [u8]>) -> Wire {
        let mut wire = Wire::new();
        wire.write(&self.ask());
        wire.read(&self.head());
        for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
            wire.read(&chunk(piece));
        }
        wire.read(b"0\r\n\r\n");
        wire.close();
        wire
    }
}

fn replays(wire: Wire) -> usize {
    let Wire { pipeline, tape, exchanges, .. } = wire;
    drop(pipeline);
    assert_replays(&tape, &exchanges, Limits::default());
    exchanges.len()
}

#[test]
fn every_fixture_gives_the_same_numbers() {
    for call in calls() {
        let wire = call.made([call.answer.as_slice()]);
        assert_eq!(replays(wire), 1, "{}", call.name);
        assert_eq!(replays(call.made(call.answer.chunks(1))), 1, "{}", call.name);
    }
}

#[test]
fn wherever_an_answer_is_cut_its_numbers_are_the_same() {
    for call in calls() {
        for cut in (1..call.answer.len()).step_by(17) {
            let (a, b) = call.answer.split_at(cut);
            replays(call.made([a, b]));
        }
    }
}

#[test]
fn an_answer_that_breaks_off_anywhere_breaks_off_in_the_replay() {
    for call in calls() {
        for end in (0..call.answer.len()).step_by(23) {
            let mut wire = Wire::new();
            wire.write(&call.ask());
            wire.read(&call.head());
            if end > 0 {
                wire.read(&chunk(&call.answer[..end]));
            }
            wire.close();
            replays(wire);
        }
    }
}

#[test]
fn gaps_of_requests_and_answers_are_gaps_of_the_replay() {
    for call in calls() {
        let ask = call.ask();
        let head = ask.len() - call.body.len();
        for (at, len) in [(3, 10), (10, 20), (20, 3), (1, 40)] {
            let mut wire = Wire::new();
            let (from, to) = ((head + at).min(ask.len()), (head + at + len).min(ask.len()));
            wire.moves(Direction::Write, &ask[..to], to - from);
            wire.write(&ask[to..]);
            wire.read(&call.head());
            let answer = chunk(&call.answer);
            let (from, to) = ((at * 20).min(answer.len()), (at * 20 + len * 3).min(answer.len()));
            wire.moves(Direction::Read, &answer[..to], to - from);
            if to < answer.len() {
                wire.read(&answer[to..]);
            }
            wire.read(b"0\r\n\r\n");
            wire.close();
            replays(wire);
        }
    }
}

#[test]
fn services_that_are_no_llm_leave_nothing() {
    let mut wire = Wire::new();
    wire.write(b"GET /secret HTTP/1.1\r\nHost: secret.example\r\nCookie: secret\r\n\r\n");
    wire.read(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nSet-Cookie: secret\r\n\r\nsecret");
    wire.write(b"POST /form HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nsecret");
    wire.read(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret");
    wire.close();
    let bytes = bytes(&wire.tape);
    assert!(!bytes.windows(6).any(|window| window == b"secret"), "{bytes:?}");
    assert!(bytes.len() < 64, "{bytes:?}");
    assert_eq!(replays(wire), 0);
}
