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

/// A stream of another API: one event, `CHUNKS` times.
fn repeated(event: &str, end: &str) -> Vec<u8> {
    format!("{event}{end}").repeat(CHUNKS).into_bytes()
}

fn run(path: &str, kind: &[u8], body: &[u8], piece: usize) -> (usize, usize) {
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
    let head = RequestHead { method: "POST", path, host: Some("api.anthropic.com"), headers: Headers(&[]) };
    feed(Side::Request, HttpEventKind::Head { first: Stamp::default(), head: Head::Request(head) });
    feed(Side::Request, HttpEventKind::End);
    let head = ResponseHead { status: Some(200), headers: Headers(&[("content-type", kind)]) };
    feed(Side::Response, HttpEventKind::Head { first: Stamp::default(), head: Head::Response(head) });
    for piece in body.chunks(piece) {
        feed(Side::Response, HttpEventKind::Body(piece));
    }
    feed(Side::Response, HttpEventKind::End);
    assert_eq!(stats.drops(DropReason::JsonInvalid), 0);
    (chunks, bytes)
}

fn main() {
    let (sse, lines) = (b"text/event-stream".as_slice(), b"application/x-ndjson".as_slice());
    let chat = "/v1/chat/completions";
    let legacy = r#"data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" hello","logprobs":null,"finish_reason":null}]}"#;
    let responses = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"sequence_number\":4,\"item_id\":\"msg_0123456789abcdef0123456789abcdef\",\"output_index\":0,\"content_index\":0,\"delta\":\" hello\",\"logprobs\":[],\"obfuscation\":\"yPabhjnXh\"}";
    let anthropic = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" hello\"}        }";
    let gemini = r#"data: {"candidates":[{"content":{"parts":[{"text":" hello"}],"role":"model"},"index":0}],"usageMetadata":{"promptTokenCount":10,"candidatesTokenCount":3,"totalTokenCount":13},"modelVersion":"gemini-2.5-flash","responseId":"r1"}"#;
    let ollama = r#"{"model":"llama3.2","created_at":"2026-01-01T00:00:00.123456Z","message":{"role":"assistant","content":" hello"},"done":false}"#;
    for (what, path, kind, body) in [
        ("5 % tool calls", chat, sse, stream(5, false, " hello")),
        ("text only", chat, sse, stream(0, false, " hello")),
        ("text with escapes", chat, sse, stream(0, false, " \\\"hi\\\"\\n")),
        ("created differs in each chunk", chat, sse, stream(0, true, " hello")),
        ("surrogate escapes (full parse)", chat, sse, stream(0, false, "\\ud83d\\ude00")),
        ("tool-call pieces", chat, sse, stream(100, false, "")),
        ("legacy completions", "/v1/completions", sse, repeated(legacy, "\n\n")),
        ("responses", "/v1/responses", sse, repeated(responses, "\n\n")),
        ("anthropic", "/v1/messages", sse, repeated(anthropic, "\n\n")),
        ("gemini", "/v1/models/m:streamGenerateContent", sse, repeated(gemini, "\r\n\r\n")),
        ("ollama", "/api/chat", lines, repeated(ollama, "\n")),
    ] {
        for piece in [200, 1200, 16_384] {
            let mut best = f64::MAX;
            for _ in 0..15 {
                let start = Instant::now();
                let (chunks, bytes) = run(path, kind, &body, piece);
                best = best.min(start.elapsed().as_nanos() as f64 / CHUNKS as f64);
                assert!(chunks == CHUNKS && bytes > 0);
            }
            let size = body.len() / CHUNKS;
            println!("{what:<32} {size} B/chunk, pieces of {piece:>5} B: {best:>6.1} ns/chunk");
        }
    }
}
