//! No secret survives, wherever it stands and however it is cut or written.

use proptest::prelude::*;

use super::{Wire, bytes, chunk, post};

/// What is looked for; any six bytes of it are too many.
const SECRET: &str = "Zq7vKw9XjR3mTb5Y";

/// The forms in which a client may write a secret in JSON.
fn forms() -> [String; 4] {
    let escaped: String = SECRET.bytes().map(|b| format!("\\u{:04x}", b)).collect();
    let mixed: String = SECRET
        .bytes()
        .enumerate()
        .map(|(n, b)| if n % 3 == 0 { format!("\\u{:04X}", b) } else { (b as char).to_string() })
        .collect();
    [SECRET.to_owned(), escaped, mixed, format!("a \\\"{SECRET}\\\" \\\\")]
}

fn assert_gone(bytes: &[u8]) {
    // Escapes are resolved too, so that no form of writing hides one.
    let mut plain = Vec::new();
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        let code =
            rest.strip_prefix(b"\\u").and_then(|code| code.get(..4)).and_then(|code| std::str::from_utf8(code).ok());
        if let Some(code) = code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            plain.push(code);
            rest = &rest[6..];
        } else {
            plain.push(byte);
            rest = after;
        }
    }
    for text in [bytes, &plain] {
        for part in SECRET.as_bytes().windows(6) {
            assert!(!text.windows(6).any(|window| window == part), "{}", String::from_utf8_lossy(text));
        }
    }
}

/// Places of a JSON text that a secret is put into.
fn request(secret: &str) -> String {
    format!(
        r#"{{"model":"gpt-4o","{secret}":"{secret}","stream":true,"user":"{secret}","messages":[{{"role":"{secret}","content":"{secret}","{secret}":[{{"{secret}":"{secret}"}}],"type":"{secret}"}}],"metadata":{{"model":"{secret}","type":"{secret}","{secret}":1}},"tools":[{{"type":"function","function":{{"name":"{secret}","description":"{secret}","parameters":{{"type":"object","properties":{{"{secret}":{{"type":"string","enum":["{secret}"]}}}}}}}}}}],"stop":["{secret}"],"input":"{secret}","instructions":"{secret}","response_format":{{"type":"{secret}"}},"stream_options":{{"include_usage":true,"{secret}":"{secret}"}}}}"#
    )
}

fn event(secret: &str) -> String {
    format!(
        r#"{{"id":"{secret}","object":"{secret}","type":"{secret}","{secret}":"{secret}","model":"gpt-4o","system_fingerprint":"{secret}","choices":[{{"index":0,"delta":{{"role":"{secret}","content":"{secret}","reasoning_content":"{secret}","refusal":"{secret}","tool_calls":[{{"id":"{secret}","type":"{secret}","function":{{"name":"{secret}","arguments":"{secret}"}},"arguments":{{"model":"{secret}","finish_reason":"{secret}","type":"{secret}","code":"{secret}","{secret}":{{"{secret}":null}}}}}}],"{secret}":{{"finish_reason":null}}}},"logprobs":{{"content":[{{"token":"{secret}","bytes":[1,2]}}]}},"finish_reason":null}}],"delta":{{"type":"{secret}","text":"{secret}","thinking":"{secret}","partial_json":"{secret}","signature":"{secret}"}},"content":[{{"type":"tool_use","input":{{"error":{{"code":"{secret}"}},"model":"{secret}"}}}}],"candidates":[{{"content":{{"parts":[{{"text":"{secret}","functionCall":{{"name":"{secret}","args":{{"{secret}":"{secret}","id":"{secret}"}}}}}}]}}}}],"error":{{"message":"{secret}","param":"{secret}"}},"status":"{secret}","event":"{secret}","usage":{{"prompt_tokens":9,"{secret}":3}}}}"#
    )
}

/// A call with the secret everywhere but where a name is told on purpose (model, reason, code of an error).
fn made(form: &str, cuts: &[usize], path: &str, kind: &str, framing: &str) -> Wire {
    let mut wire = Wire::new();
    let headers: Vec<(String, String)> = [
        ("Authorization", format!("Bearer {SECRET}")),
        ("X-Api-Key", SECRET.to_owned()),
        ("Cookie", format!("session={SECRET}")),
        (SECRET, SECRET.to_owned()),
        ("Accept", format!("application/json, {SECRET}/{SECRET}")),
        ("traceparent", SECRET.to_owned()),
        ("x-stainless-retry-count", SECRET.to_owned()),
        ("User-Agent", SECRET.to_owned()),
        ("anthropic-version", SECRET.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let path = format!("{path}?key={SECRET}#{SECRET}");
    let ask = post(&path, &format!("user:{SECRET}@api.openai.com"), &headers, request(form).as_bytes());
    let mut rest = ask.as_slice();
    for cut in cuts {
        let (a, b) = rest.split_at((*cut).min(rest.len().saturating_sub(1)));
        if !a.is_empty() {
            wire.write(a);
        }
        rest = b;
    }
    wire.write(rest);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}; x={SECRET}\r\nTransfer-Encoding: chunked\r\nSet-Cookie: {SECRET}\r\nx-request-id: {SECRET}\r\nx-ratelimit-{SECRET}: 1\r\nx-ratelimit-limit-requests: {SECRET}\r\nopenai-organization: {SECRET}\r\nx-groq-region: {SECRET}\r\nserver-timing: gfet4t7; dur={SECRET}\r\n\r\n"
    );
    wire.read(head.as_bytes());
    let event = event(form);
    let body = match framing {
        "sse" => format!(
            ": {form}\nid: {form}\nevent: {form}\n{form}: {form}\ndata: {event}\n\n{form}\n\ndata: {form}\n\ndata: [DONE]\n\n"
        ),
        "lines" => format!("{event}\n{form}\n{event}\n"),
        "array" => format!("[{event}\n,\r\n{event}]"),
        _ => event,
    };
    let mut rest = body.as_bytes();
    for cut in cuts {
        let (a, b) = rest.split_at((*cut).min(rest.len()));
        if !a.is_empty() {
            wire.read(&chunk(a));
        }
        rest = b;
    }
    if !rest.is_empty() {
        wire.read(&chunk(rest));
    }
    wire.read(b"0\r\n\r\n");
    wire
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_secret_survives_anywhere(
        form in 0_usize..4,
        cuts in proptest::collection::vec(1_usize..400, 0..12),
        path in prop_oneof![
            Just("/v1/chat/completions"), Just("/v1/messages"), Just("/v1/responses"), Just("/Zq7vKw9XjR3mTb5Y/ask"),
            Just("/v1beta/models/gemini:streamGenerateContent"), Just("/api/chat"), Just("/generate"),
            Just("/api/v1/services/aigc/text-generation/generation"),
        ],
        kind in prop_oneof![Just("text/event-stream"), Just("application/json"), Just("text/html"), Just("application/x-ndjson")],
        framing in prop_oneof![Just("sse"), Just("lines"), Just("array"), Just("whole")],
        closed: bool,
    ) {
        let mut wire = made(&forms()[form], &cuts, path, kind, framing);
        if closed {
            wire.close();
        }
        let tape = wire.tape.clone();
        drop(wire);
        let bytes = bytes(&tape);
        prop_assert!(!bytes.is_empty());
        assert_gone(&bytes);
    }
}

#[test]
fn the_search_for_secrets_finds_every_form() {
    for form in forms() {
        let found = std::panic::catch_unwind(|| assert_gone(form.as_bytes()));
        assert!(found.is_err(), "{form}");
    }
}

#[test]
fn a_secret_behind_a_hole_is_gone_too() {
    for form in forms() {
        let body = request(&form);
        let ask = post("/v1/chat/completions", "h", &[], body.as_bytes());
        let head = ask.len() - body.len();
        for from in (head + 1..ask.len() - 1).step_by(13) {
            for len in [1, 37] {
                let to = (from + len).min(ask.len());
                let mut wire = Wire::new();
                wire.moves(super::Direction::Write, &ask[..to], to - from);
                if to < ask.len() {
                    wire.write(&ask[to..]);
                }
                wire.read(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
                let answer = chunk(format!("data: {}\n\n", event(&form)).as_bytes());
                let (from, to) = (from.min(answer.len()), to.min(answer.len()));
                if from < to {
                    wire.moves(super::Direction::Read, &answer[..to], to - from);
                }
                if to < answer.len() {
                    wire.read(&answer[to..]);
                }
                wire.close();
                let tape = wire.tape.clone();
                drop(wire);
                assert_gone(&bytes(&tape));
            }
        }
    }
}
