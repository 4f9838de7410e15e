//! Damaged, spliced and cut answers of every API: nothing breaks, and an exchange still begins and ends as it must.

use nexent_observer_core::{
    conn::GapCause,
    http::{HttpEventKind, Side},
};

use super::{
    calls::{self, LINES},
    fixture,
    llm_support::{Bench, Fields, JSON, SSE},
};

/// Host, path, header fields and answers that belong there; and answers of which the path says nothing.
fn calls() -> Vec<(String, String, Fields<'static>, Vec<u8>)> {
    let known = calls::all().into_iter().map(|call| {
        let kind = call.kind();
        (call.host, call.path, kind, fixture(&call.fixture))
    });
    let unknown =
        [(SSE, "anthropic/thinking_text_tool.sse"), (LINES, "ollama/chat.ndjson"), (calls::EVENTS, "cohere/chat.sse")];
    known.chain(unknown.map(|(kind, name)| ("h".to_owned(), "/unknown".to_owned(), kind, fixture(name)))).collect()
}

/// A small deterministic generator: the same damage on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

#[test]
fn damage_of_any_kind_does_no_harm() {
    let calls = calls();
    let words: [&[u8]; 12] = [
        b"\"",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b"\n",
        b"\r\n\r\n",
        b"null",
        b"-1e999",
        b"\xff",
        b"{\"type\":\"error\"}",
    ];
    let mut random = Random(11);
    for _ in 0..200 {
        for (host, path, kind, body) in &calls {
            let mut body = body.clone();
            for _ in 0..random.below(4) {
                let at = random.below(body.len() + 1);
                let end = (at + random.below(40)).min(body.len());
                match random.below(4) {
                    0 => drop(body.splice(at..end, words[random.below(words.len())].iter().copied())),
                    1 => drop(body.drain(at..end)),
                    2 => {
                        let other = &calls[random.below(calls.len())].3;
                        let from = random.below(other.len());
                        let to = (from + random.below(300)).min(other.len());
                        body.splice(at..at, other[from..to].iter().copied());
                    }
                    _ if at < body.len() => body[at] ^= 1 << random.below(8),
                    _ => {}
                }
            }
            let mut bench = Bench::default();
            bench.post(path, host, br#"{"model":"m","messages":[],"input":"x"}"#);
            bench.response_head(if random.below(5) == 0 { 500 } else { 200 }, kind);
            let mut rest = body.as_slice();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((1 + random.below(200)).min(rest.len()));
                bench.body(piece);
                rest = after;
                if random.below(60) == 0 {
                    bench.feed(Side::Response, HttpEventKind::Gap { len: None, cause: GapCause::Lost });
                }
            }
            bench.end();
            let (first, last) = (bench.seen.log.first().unwrap(), bench.seen.log.last().unwrap());
            assert!(first == "NotLlm" || first == "Start" && last == "End", "{path}: {}", bench.seen.log());
        }
    }
}

#[test]
fn deep_nesting_overflows_no_stack() {
    let deep = [b"{\"a\":".repeat(200_000), b"[".repeat(200_000)].concat();
    for (host, path, ..) in &calls() {
        for (headers, body) in [
            (JSON, deep.clone()),
            (SSE, [b"data: ".as_slice(), &deep, b"\n\n"].concat()),
            (LINES, [deep.as_slice(), b"\n"].concat()),
        ] {
            let mut bench = Bench::default();
            bench.post(path, host, b"{\"model\":\"m\",\"messages\":[]}");
            bench.response_head(200, headers);
            bench.body(&body);
            bench.end();
            assert_eq!(bench.seen.deltas, 0);
        }
    }
}
