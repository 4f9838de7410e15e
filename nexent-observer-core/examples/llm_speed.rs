//! What one streamed chunk costs in stage 5, by kind of chunk and size of reads: `cargo run --release --example llm_speed`.
#![expect(clippy::print_stdout, reason = "the lines are what this program is for")]

use std::time::Instant;

use nexent_observer_core::{
    event::Stamp,
    http::{ExchangeNo, Head, Headers, HttpEvent, HttpEventKind, RequestHead, ResponseHead, Side},
    llm::{LlmEventKind, LlmExchange},
    stats::{DropReason, Stats},
};

/// Chunks in one stream.
const CHUNKS: usize = 20_000;

/// A stream of events of about 295 bytes; `tools` of 100 carry a piece of a tool call, `vary` changes `created`.
fn stream(tools: usize, vary: bool, text: &str) -> Vec<u8> {
    let mut body = String::new();
    for i in 0..CHUNKS {
        let created = 1_760_000_000 + if vary { i } else { 0 };
        let delta = if i % 100 < tools {
            r#"{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\""}}]}"#.to_owned()
        } else {
            format!(r#"{{"content":"{text}"}}"#)
        };
        body.push_str(&format!(
            "data: {{\"id\":\"chatcmpl-AbCdEfGhIjKlMnOpQrStUvWxYz012\",\"object\":\"chat.completion.chunk\",\"created\":{created},\"model\":\"gpt-4o-mini-2024-07-18\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_50906f2aac\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":null}}],\"usage\":null,\"obfuscation\":\"yPabhjnXh\"}}\n\n"
        ));
    }
    body.into_bytes()
}

fn run(body: &[u8], piece: usize) -> (usize, usize) {
    let mut stats = Stats::default();
    let mut exchange = LlmExchange::new();
    let (mut chunks, mut bytes) = (0, 0);
    let mut feed = |side, kind| {
        let ev = HttpEvent { exchange: ExchangeNo(0), side, at: Stamp::default(), kind };
        exchange.feed(&ev, &mut stats, &mut |ev| match ev.kind {
            LlmEventKind::Chunk => chunks += 1,
            LlmEventKind::Delta { text, .. } => bytes += text.len(),
            _ => {}
        });
    };
    let head = RequestHead { method: "POST", path: "/v1/chat/completions", host: None, headers: Headers(&[]) };
    feed(Side::Request, HttpEventKind::Head { first: Stamp::default(), head: Head::Request(head) });
    feed(Side::Request, HttpEventKind::End);
    let head = ResponseHead { status: Some(200), headers: Headers(&[("content-type", b"text/event-stream")]) };
    feed(Side::Response, HttpEventKind::Head { first: Stamp::default(), head: Head::Response(head) });
    for piece in body.chunks(piece) {
        feed(Side::Response, HttpEventKind::Body(piece));
    }
    feed(Side::Response, HttpEventKind::End);
    assert_eq!(stats.drops(DropReason::JsonInvalid), 0);
    (chunks, bytes)
}

fn main() {
    for (what, body) in [
        ("5 % tool calls", stream(5, false, " hello")),
        ("text only", stream(0, false, " hello")),
        ("text with escapes", stream(0, false, " \\\"hi\\\"\\n")),
        ("created differs in each chunk", stream(0, true, " hello")),
        ("surrogate escapes (full parse)", stream(0, false, "\\ud83d\\ude00")),
        ("tool-call pieces", stream(100, false, "")),
    ] {
        for piece in [200, 1200, 16_384] {
            let mut best = f64::MAX;
            for _ in 0..15 {
                let start = Instant::now();
                let (chunks, bytes) = run(&body, piece);
                best = best.min(start.elapsed().as_nanos() as f64 / CHUNKS as f64);
                assert!(chunks == CHUNKS && bytes > 0);
            }
            let size = body.len() / CHUNKS;
            println!("{what:<32} {size} B/chunk, pieces of {piece:>5} B: {best:>6.1} ns/chunk");
        }
    }
}
