//! Damaged, spliced and cut answers of every API: nothing breaks, and an exchange still begins and ends as it must.

use nexent_observer_core::{
    conn::GapCause,
    http::{HttpEventKind, Side},
};

use super::{
    fixture,
    llm_support::{Bench, Fields, JSON, SSE},
};

const LINES: Fields<'_> = &[("content-type", b"application/x-ndjson")];
const EVENTS: Fields<'_> = &[("content-type", b"application/vnd.amazon.eventstream")];

/// Host, path and answers that belong there.
const CALLS: [(&str, &str, Fields<'_>, &str); 23] = [
    ("h", "/generate_stream", SSE, "native/tgi.sse"),
    ("h", "/completion", SSE, "native/llama_cpp.sse"),
    ("h", "/v1/chat/completions", SSE, "openai_tools.sse"),
    ("h", "/v1/completions", SSE, "completions/text.sse"),
    ("h", "/v1/completions", SSE, "completions/writer_values.sse"),
    ("h", "/v1/responses", SSE, "responses/text_and_tool.sse"),
    ("h", "/v1/responses", JSON, "responses/whole.json"),
    ("h", "/v1/embeddings", JSON, "embeddings/two.json"),
    ("api.anthropic.com", "/v1/messages", SSE, "anthropic/thinking_text_tool.sse"),
    ("api.anthropic.com", "/v1/messages", JSON, "anthropic/whole.json"),
    ("h", "/v1beta/models/m:streamGenerateContent", SSE, "gemini/stream_crlf.sse"),
    ("h", "/v1beta/models/m:streamGenerateContent", JSON, "gemini/stream.json"),
    ("h", "/v1beta/models/m:generateContent", JSON, "gemini/whole.json"),
    ("h:11434", "/api/chat", LINES, "ollama/chat.ndjson"),
    ("h:11434", "/api/generate", LINES, "ollama/generate.ndjson"),
    ("h:11434", "/api/embed", JSON, "ollama/embed.json"),
    ("api.cohere.com", "/v2/chat", SSE, "cohere/chat.sse"),
    ("api.cohere.com", "/v2/chat", JSON, "cohere/chat.json"),
    ("h", "/model/m/converse-stream", EVENTS, "cohere/chat.sse"),
    ("h", "/model/m/invoke", JSON, "anthropic/whole.json"),
    ("h", "/api/v1/services/aigc/text-generation/generation", SSE, "dashscope/cumulative.sse"),
    ("h", "/unknown", SSE, "anthropic/thinking_text_tool.sse"),
    ("h", "/unknown", LINES, "ollama/chat.ndjson"),
];

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
    let bodies: Vec<Vec<u8>> = CALLS.iter().map(|call| fixture(call.3)).collect();
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
    for _ in 0..300 {
        for (call, body) in CALLS.iter().zip(&bodies) {
            let mut body = body.clone();
            for _ in 0..random.below(4) {
                let at = random.below(body.len() + 1);
                let end = (at + random.below(40)).min(body.len());
                match random.below(4) {
                    0 => drop(body.splice(at..end, words[random.below(words.len())].iter().copied())),
                    1 => drop(body.drain(at..end)),
                    2 => {
                        let other = &bodies[random.below(bodies.len())];
                        let from = random.below(other.len());
                        let to = (from + random.below(300)).min(other.len());
                        body.splice(at..at, other[from..to].iter().copied());
                    }
                    _ if at < body.len() => body[at] ^= 1 << random.below(8),
                    _ => {}
                }
            }
            let mut bench = Bench::default();
            bench.post(call.1, call.0, br#"{"model":"m","messages":[],"input":"x"}"#);
            bench.response_head(if random.below(5) == 0 { 500 } else { 200 }, call.2);
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
            assert!(first == "NotLlm" || first == "Start" && last == "End", "{}: {}", call.1, bench.seen.log());
        }
    }
}

#[test]
fn deep_nesting_overflows_no_stack() {
    let deep = [b"{\"a\":".repeat(200_000), b"[".repeat(200_000)].concat();
    for (host, path, _, _) in CALLS {
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
