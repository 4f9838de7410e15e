//! Stage 5 from HTTP events to LLM events, over fixtures in every cut and over the cases that go wrong in the field.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod llm_support;

use llm_support::{Bench, Fields, JSON, SSE, Seen};
use nexent_observer_core::{
    conn::{CloseCause, GapCause},
    event::Stamp,
    http::{AbortCause, Head, Headers, HttpEventKind, RequestHead, ResponseHead, Side},
    limits::EVENT_BYTES,
    llm::{Usage, Verdict},
    stats::{DropReason, Stats},
};

const PATH: &str = "/v1/chat/completions";
const ASK: &[u8] = br#"{"messages":[{"role":"user","content":"Hi"}],"model":"gpt-4o","stream":true}"#;

fn exchange<'a>(status: u16, headers: Fields<'_>, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Seen, Stats) {
    let mut bench = Bench::default();
    bench.post(PATH, "api.openai.com", ASK);
    bench.response_head(status, headers);
    pieces.into_iter().for_each(|piece| bench.body(piece));
    bench.end();
    // Stamps differ with the cuts by their nature; they have their own tests.
    (Seen { stamps: Vec::new(), ..bench.seen }, bench.stats)
}

/// The body whole, byte by byte and cut at every offset: always the same.
fn every_way(status: u16, headers: Fields<'_>, body: &[u8]) -> (Seen, Stats) {
    let whole = exchange(status, headers, [body]);
    assert_eq!(exchange(status, headers, body.chunks(1)), whole, "byte by byte");
    for cut in 0..=body.len() {
        let (a, b) = body.split_at(cut);
        assert_eq!(exchange(status, headers, [a, b]), whole, "cut at {cut}");
    }
    whole
}

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/llm/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn usage(input: u64, output: u64, cached_input: Option<u64>, reasoning: Option<u64>) -> Option<Usage> {
    Some(Usage { input: Some(input), output: Some(output), cached_input, reasoning })
}

#[test]
fn a_streamed_text_is_read_the_same_in_every_cut() {
    let (seen, stats) = every_way(200, SSE, &fixture("openai_text.sse"));
    assert_eq!(
        seen.log(),
        "Start Request RequestEnd Response Chunk Identity Chunk Delta Chunk Delta Chunk Delta Chunk Finish Chunk Usage Done End"
    );
    assert_eq!(seen.text, "Grüße \"data: x\"\n\n😀🚀");
    assert_eq!(seen.usage, usage(31, 9, Some(16), Some(0)));
    assert_eq!(seen.finish, ["stop"]);
    assert_eq!((seen.model.as_deref(), seen.id.as_deref()), (Some("gpt-4o-mini-2024-07-18"), Some("chatcmpl-A1")));
    assert_eq!((seen.chunks, seen.first_token_chunk), (6, Some(1)));
    let mut three = Stats::default();
    three.chunks = 3;
    assert_eq!(stats, three);
    let call = seen.call.unwrap();
    assert_eq!((call.provider, call.operation, call.path.as_str()), (Some("openai"), "chat", PATH));
    let request = seen.request.unwrap();
    assert_eq!((request.model.as_deref(), request.stream, request.truncated), (Some("gpt-4o"), Some(true), false));
}

#[test]
fn a_first_chunk_with_role_and_tool_name_is_the_first_token() {
    let (seen, _) = every_way(200, SSE, &fixture("openai_tools.sse"));
    assert_eq!(seen.first_token_chunk, Some(0));
    assert_eq!(seen.tools, "[ToolName 0 get_weather][ToolArguments 0 {\"city\":][ToolArguments 0 \"Köln\"}]");
    assert_eq!(seen.finish, ["tool_calls"]);
    assert_eq!(seen.usage, None, "absent is not zero");
}

#[test]
fn azures_first_event_is_a_chunk_and_no_token() {
    let (seen, _) = every_way(200, SSE, &fixture("azure_first_event.sse"));
    assert_eq!((seen.chunks, seen.first_token_chunk), (4, Some(2)));
    assert_eq!(seen.model.as_deref(), Some("gpt-4.1-mini-2025-04-14"));
    assert_eq!((seen.text.as_str(), seen.finish.as_slice()), ("One", ["content_filter".to_owned()].as_slice()));
}

#[test]
fn usage_on_every_chunk_is_cumulative_and_reasoning_is_told_apart() {
    let (seen, _) = every_way(200, SSE, &fixture("vllm_continuous_reasoning.sse"));
    assert_eq!(seen.log.iter().filter(|e| *e == "Usage").count(), 4);
    assert_eq!(seen.usage, usage(5, 3, None, None));
    assert_eq!((seen.reasoning.as_str(), seen.text.as_str()), ("Hm", "Yes"));
    assert_eq!(seen.finish, ["length"]);
}

#[test]
fn comments_are_no_chunks_and_an_error_in_a_200_stream_is_an_error() {
    let (seen, stats) = every_way(200, SSE, &fixture("openrouter_error_crlf.sse"));
    assert_eq!(seen.log(), "Start Request RequestEnd Response Chunk Identity Delta Chunk Error Done End");
    assert_eq!(seen.error.as_deref(), Some("502"));
    assert_eq!(stats.drops(DropReason::JsonInvalid), 0);
}

#[test]
fn a_stream_without_done_and_without_its_last_blank_line_is_read_to_its_end() {
    let body = fixture("no_done_no_blank_line.sse");
    let (seen, stats) = every_way(200, SSE, &body);
    assert_eq!(
        seen.log(),
        "Start Request RequestEnd Response Chunk Identity Delta Chunk Finish Usage End",
        "no Done: nobody sent it"
    );
    assert_eq!(seen.usage, usage(2, 1, None, None));
    assert_eq!(stats.drops(DropReason::JsonInvalid), 0);
    // Cut short inside the last event: it is no defect, it was never completed.
    let (cut, stats) = exchange(200, SSE, [&body[..body.len() - 20]]);
    assert_eq!((cut.usage, cut.text.as_str()), (None, "Hi"));
    assert_eq!(stats.drops(DropReason::JsonInvalid), 0);
}

#[test]
fn a_whole_answer_gives_text_tokens_and_finish_at_its_end() {
    let (seen, _) = every_way(200, JSON, &fixture("whole_after_blank_lines.json"));
    assert_eq!(
        seen.log(),
        "Start Request RequestEnd Response Chunk Identity Delta Delta Delta Delta Finish Finish Usage End"
    );
    assert_eq!((seen.text.as_str(), seen.reasoning.as_str()), ("Forty-two.", "Deep"));
    assert_eq!(seen.tools, "[ToolName 1 f][ToolArguments 1 {}]");
    assert_eq!(seen.usage, usage(9, 12, Some(4), Some(7)));
    assert_eq!(seen.finish, ["stop", "tool_calls"]);
}

#[test]
fn an_http_error_is_named_by_code_then_type_then_status() {
    let (seen, stats) = every_way(429, JSON, &fixture("error_429.json"));
    assert_eq!(seen.error.as_deref(), Some("rate_limit_exceeded"));
    assert_eq!(seen.log(), "Start Request RequestEnd Response Chunk Error End");
    assert!(!format!("{seen:?}").contains("organization"), "no message text is kept");
    assert_eq!(stats, Stats::default());
    let html: Fields<'_> = &[("content-type", b"text/html")];
    let octets: Fields<'_> = &[("content-type", b"application/octet-stream")];
    let cases: [(u16, Fields<'_>, &[u8], &str); 11] = [
        (502, html, b"<html>Bad gateway</html>", "502"),
        (503, &[], b"", "503"),
        (500, JSON, b"oops", "500"),
        (500, JSON, b"{\"error\":", "500"),
        (400, octets, b"{\"error\":{\"type\":\"invalid_request_error\",\"code\":null}}", "invalid_request_error"),
        (400, JSON, b"{\"error\":{\"code\":\"400\",\"type\":\"Please, no sentence\"}}", "400"),
        (401, JSON, b"{\"code\":\"InvalidApiKey\",\"message\":\"m\",\"request_id\":\"r\"}", "InvalidApiKey"),
        (404, JSON, b"{\"detail\":\"Not Found\"}", "404"),
        (529, JSON, b"{\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}", "overloaded_error"),
        (400, JSON, b"[{\"error\":{\"code\":400,\"status\":\"INVALID_ARGUMENT\"}}]", "INVALID_ARGUMENT"),
        (429, SSE, b"event: error\ndata: {\"error\":{\"code\":\"slow_down\"}}\n\n", "slow_down"),
    ];
    for (status, headers, body, want) in cases {
        let (seen, stats) = every_way(status, headers, body);
        assert_eq!(seen.error.as_deref(), Some(want), "{status} {:?}", String::from_utf8_lossy(body));
        assert_eq!(seen.log.iter().filter(|e| *e == "Error").count(), 1);
        assert_eq!(stats, Stats::default());
    }
}

#[test]
fn what_came_decides_not_what_was_asked_for() {
    let stream = fixture("openai_text.sse");
    for headers in [JSON, &[], &[("content-type", b"text/plain".as_slice())]] {
        let (seen, _) = every_way(200, headers, &stream[..1200]);
        assert!(seen.text.starts_with("Grüße"), "{headers:?}");
    }
    let (seen, _) = every_way(200, SSE, &fixture("whole_after_blank_lines.json"));
    assert_eq!(seen.text, "Forty-two.");
    let (seen, _) = every_way(200, SSE, b"{\"error\":{\"code\":\"overloaded\"}}");
    assert_eq!(seen.error.as_deref(), Some("overloaded"));
}

#[test]
fn an_event_takes_the_stamp_of_the_bytes_with_its_blank_line() {
    let mut bench = Bench::default();
    bench.post(PATH, "h", ASK);
    bench.response_head(200, SSE);
    let chunk = br#"data: {"choices":[{"index":0,"delta":{"content":"x"}}]}"#;
    let mut feed = |bytes: &[u8]| {
        let before = bench.seen.log.len();
        bench.body(bytes);
        (bench.now, bench.seen.log[before..].join(" "), bench.seen.stamps[before..].to_vec())
    };
    // Head and first event may come in one read: it must not be lost.
    let (now, log, stamps) = feed(&[chunk.as_slice(), b"\n\n", chunk, b"\n"].concat());
    assert_eq!((log.as_str(), stamps), ("Chunk Delta", vec![now; 2]));
    let (now, log, stamps) = feed(b"\n");
    assert_eq!((log.as_str(), stamps), ("Chunk Delta", vec![now; 2]), "the client gets it only with the blank line");
    let (now, log, stamps) = feed(&[chunk.as_slice(), b"\n\n", chunk, b"\n\n"].concat());
    assert_eq!((log.as_str(), stamps), ("Chunk Delta Chunk Delta", vec![now; 4]), "one read, one time");
}

#[test]
fn a_whole_answer_takes_the_stamp_of_its_last_bytes_not_of_the_close() {
    let mut bench = Bench::default();
    bench.post(PATH, "h", ASK);
    bench.response_head(200, JSON);
    bench.body(br#"{"choices":[{"message":{"content":"x"}}]}"#);
    let body_at = bench.now;
    bench.end();
    assert_eq!(bench.seen.log[4..].join(" "), "Chunk Delta End");
    assert_eq!(bench.seen.stamps[4..], [body_at, body_at, bench.now]);
}

#[test]
fn a_gap_in_the_stream_costs_the_events_that_it_hit_and_no_more() {
    let body = fixture("openai_text.sse");
    let events: Vec<usize> = (0..body.len()).filter(|&i| body[..i].ends_with(b"\n\n")).chain([body.len()]).collect();
    for from in (0..body.len()).step_by(7) {
        for len in [1, 50, 400] {
            let to = (from + len).min(body.len());
            let mut bench = Bench::default();
            bench.post(PATH, "h", ASK);
            bench.response_head(200, SSE);
            bench.body(&body[..from]);
            bench.feed(Side::Response, HttpEventKind::Gap { len: Some(len as u64), cause: GapCause::Lost });
            bench.body(&body[to..]);
            bench.end();
            assert!(bench.seen.log.contains(&"Gap".to_owned()));
            let untouched = events.iter().enumerate().filter(|&(i, &end)| {
                let start = if i == 0 { 0 } else { events[i - 1] };
                (end <= from || start >= to) && i < 6
            });
            let got = bench.seen.chunks as usize;
            assert!((untouched.count()..=6).contains(&got), "gap {from}..{to}: {got} chunks");
            assert!("Grüße \"data: x\"\n\n😀🚀".len() >= bench.seen.text.len());
            assert_eq!(bench.stats.drops(DropReason::JsonInvalid), 0, "a torn event is no defect of the server");
        }
    }
}

#[test]
fn a_gap_in_a_whole_answer_leaves_times_and_nothing_wrong() {
    let mut bench = Bench::default();
    bench.post(PATH, "h", ASK);
    bench.response_head(200, JSON);
    bench.body(b"{\"choices\":[");
    bench.feed(Side::Response, HttpEventKind::Gap { len: None, cause: GapCause::Fault });
    bench.body(b"]}");
    bench.end();
    assert_eq!(bench.seen.log[3..].join(" "), "Response Gap End");
}

#[test]
fn other_methods_and_paths_are_dropped_at_the_request_head() {
    let form: Fields<'_> = &[("content-type", b"application/x-www-form-urlencoded")];
    for (method, path, headers) in [("GET", PATH, JSON), ("DELETE", PATH, &[]), ("POST", "/login", form)] {
        let mut bench = Bench::default();
        bench.request_head(method, path, "api.openai.com", headers);
        assert_eq!(bench.exchange.verdict(), Verdict::NotLlm);
        bench.response_head(200, SSE);
        bench.body(&fixture("openai_text.sse"));
        bench.end();
        assert_eq!(bench.seen.log(), "NotLlm");
    }
}

#[test]
fn an_unknown_path_is_decided_by_request_and_answer() {
    let stream = fixture("azure_first_event.sse");
    let stream = &stream[memchr_blank(&stream)..];
    let whole =
        br#"{"object":"chat.completion","choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}"#;
    let go = |body: &[u8], status: u16, headers: Fields<'_>, answer: &[u8]| {
        let mut bench = Bench::default();
        bench.post("/api/ask?key=secret", "gateway.example:8443", body);
        assert_ne!(bench.exchange.verdict(), Verdict::Llm);
        bench.response_head(status, headers);
        bench.body(answer);
        bench.end();
        assert!(!format!("{:?}", bench.seen).contains("secret"));
        bench.seen
    };
    let seen = go(ASK, 200, SSE, stream);
    assert_eq!(seen.log(), "Start Request RequestEnd Response Chunk Identity Chunk Delta Chunk Finish Done End");
    assert_eq!(seen.stamps[..4], [1, 3, 3, 4], "what was held back keeps its stamps");
    let call = seen.call.unwrap();
    assert_eq!((call.operation, call.provider, call.path.as_str()), ("chat", None, "/api/ask"));
    assert_eq!(seen.request.unwrap().model.as_deref(), Some("gpt-4o"));
    assert_eq!(seen.response.unwrap().provider, Some("openai_compatible"));
    assert_eq!(go(ASK, 200, JSON, whole).text, "x");
    for (body, status, headers, answer) in [
        (ASK, 200, JSON, b"{\"result\":1}".as_slice()),
        (b"{\"user\":1}", 200, JSON, whole),
        (b"not json", 200, SSE, stream),
        (ASK, 404, JSON, b"{\"error\":{}}"),
        (ASK, 200, &[("content-type", b"text/html".as_slice())], b"<html>"),
        (b"{}", 200, SSE, b"data: {\"tick\":1}\n\ndata: {\"tick\":2}\n\ndata: {\"tick\":3}\n\ndata: {\"tick\":4}\n\n"),
        (
            b"{\"jsonrpc\":\"2.0\",\"method\":\"tools/call\"}",
            200,
            SSE,
            b"event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n",
        ),
    ] {
        assert_eq!(go(body, status, headers, answer).log(), "NotLlm", "{:?}", String::from_utf8_lossy(answer));
    }
}

/// Offset after the first blank line.
fn memchr_blank(body: &[u8]) -> usize {
    (0..body.len()).find(|&i| body[..i].ends_with(b"\n\n")).unwrap()
}

#[test]
fn a_stream_without_its_request_is_joined() {
    let body = fixture("openai_text.sse");
    // The response head was seen, the request was not.
    let mut bench = Bench::default();
    bench.response_head(200, &[("content-type", b"text/event-stream"), ("x-request-id", b"r1")]);
    bench.body(&body);
    bench.end();
    assert_eq!(bench.seen.log[..4].join(" "), "Joined Response Chunk Identity");
    assert_eq!(bench.seen.usage, usage(31, 9, Some(16), Some(0)));
    assert_eq!(bench.seen.response.unwrap().request_id.as_deref(), Some("r1"));
    assert_eq!(bench.stats.drops(DropReason::Joined), 1);
    // Nothing was seen but the middle of the body, from any byte on.
    for from in (0..body.len() - 900).step_by(11) {
        let mut bench = Bench::default();
        bench.feed(Side::Response, HttpEventKind::Head { first: Stamp::default(), head: Head::Unseen });
        bench.body(&body[from..]);
        bench.end();
        assert_eq!(bench.seen.log.first().map(String::as_str), Some("Joined"), "from {from}");
        assert_eq!(bench.seen.log.last().map(String::as_str), Some("End"));
        assert_eq!(bench.seen.usage, usage(31, 9, Some(16), Some(0)));
        assert_eq!(bench.stats.drops(DropReason::JsonInvalid), 0);
    }
    // Another stream is not.
    let mut bench = Bench::default();
    bench.feed(Side::Response, HttpEventKind::Head { first: Stamp::default(), head: Head::Unseen });
    bench.body(&b"data: {\"price\":1}\n\n".repeat(10));
    assert_eq!(bench.seen.log(), "NotLlm");
}

#[test]
fn a_request_body_without_its_head_still_tells_the_model() {
    let mut bench = Bench::default();
    bench.feed(Side::Request, HttpEventKind::Head { first: Stamp::default(), head: Head::Unseen });
    bench.feed(Side::Request, HttpEventKind::Body(ASK));
    bench.feed(Side::Request, HttpEventKind::End);
    bench.response_head(200, SSE);
    bench.body(&fixture("openai_tools.sse"));
    assert_eq!(bench.seen.log[..5].join(" "), "Joined Request RequestEnd Response Chunk");
    assert_eq!(bench.seen.request.unwrap().model.as_deref(), Some("gpt-4o"));
}

#[test]
fn the_request_is_told_when_the_response_starts_first() {
    let mut bench = Bench::default();
    bench.request_head("POST", PATH, "h", &[]);
    bench.feed(Side::Request, HttpEventKind::Body(b"{\"model\":\"m\",\"messages\":[\"..."));
    bench.response_head(413, JSON);
    bench.body(b"{\"error\":{\"code\":\"too_large\"}}");
    bench.end();
    bench.feed(Side::Request, HttpEventKind::End);
    assert_eq!(bench.seen.log(), "Start Request Response Chunk Error End RequestEnd");
    let request = bench.seen.request.unwrap();
    assert_eq!((request.model.as_deref(), request.truncated), (Some("m"), true));
}

#[test]
fn a_capped_request_body_tells_the_members_of_its_tail() {
    let mut bench = Bench::default();
    bench.request_head("POST", "/openai/deployments/my-dep/chat/completions?api-version=1", "r.openai.azure.com", &[]);
    bench.feed(Side::Request, HttpEventKind::Body(b"{\"messages\":[{\"content\":\"aaa"));
    bench.feed(Side::Request, HttpEventKind::Gap { len: Some(300_000), cause: GapCause::Capped });
    bench.feed(Side::Request, HttpEventKind::Body(br#"\"model\":\"evil\",\"x"}],"stream":true,"n":2}"#));
    bench.feed(Side::Request, HttpEventKind::End);
    let request = bench.seen.request.clone().unwrap();
    assert_eq!((request.model.as_deref(), request.stream, request.choices), (Some("my-dep"), Some(true), Some(2)));
    assert!(request.truncated);
    assert_eq!(bench.seen.log(), "Start Request RequestEnd", "a gap in the request is no gap of the response");
    assert_eq!(bench.seen.call.unwrap().provider, Some("azure.ai.openai"));
}

#[test]
fn an_abort_tells_what_was_known() {
    let closed = AbortCause::Closed(CloseCause::Freed);
    let mut bench = Bench::default();
    bench.request_head("POST", PATH, "h", &[]);
    bench.feed(Side::Request, HttpEventKind::Body(b"{\"model\":\"m\","));
    bench.feed(Side::Request, HttpEventKind::Abort(closed));
    assert_eq!(bench.seen.log(), "Start Request Abort");
    let mut bench = Bench::default();
    bench.post(PATH, "h", ASK);
    bench.response_head(500, JSON);
    bench.body(b"{\"err");
    bench.feed(Side::Response, HttpEventKind::Abort(closed));
    assert_eq!(bench.seen.log[3..].join(" "), "Response Error Abort");
    let mut bench = Bench::default();
    bench.post("/ask", "h", ASK);
    bench.feed(Side::Response, HttpEventKind::Abort(closed));
    assert_eq!(bench.seen.log(), "NotLlm");
}

#[test]
fn defects_are_counted_and_the_next_event_is_right() {
    let mut body = b"data: {broken\n\ndata: plain\n\n".to_vec();
    body.extend(b"data: \xff\xfe\n\ndata: ");
    body.extend(vec![b'x'; EVENT_BYTES + 1]);
    body.extend(b"\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"ok\"}}]}\n\n");
    let (seen, stats) = exchange(200, SSE, body.chunks(65_536));
    assert_eq!((seen.text.as_str(), seen.chunks), ("ok", 1));
    assert_eq!(stats.drops(DropReason::JsonInvalid), 3);
    assert_eq!(stats.drops(DropReason::Utf8Invalid), 1);
    assert_eq!(stats.drops(DropReason::EventTooLong), 1);
}

#[test]
fn names_from_the_network_are_harmless() {
    let long = "m".repeat(10_000);
    let mut bench = Bench::default();
    let ask = format!(r#"{{"model":"\u001b[31m{long}","messages":[]}}"#);
    bench.post("/x\u{1b}[2J/v1/chat/completions", "h\u{7}", ask.as_bytes());
    bench.response_head(200, &[("x-request-id", b"a\x1b[0mb")]);
    bench.body(
        format!(r#"{{"id":"{long}","model":"\u001b]0;t\u0007gpt\n","choices":[{{"message":{{"content":"x"}},"finish_reason":"st\u0000op"}}]}}"#)
            .as_bytes(),
    );
    bench.end();
    let seen = bench.seen;
    assert_eq!(seen.request.unwrap().model.unwrap().len(), 256);
    assert_eq!(seen.id.unwrap().len(), 256);
    assert_eq!(seen.model.as_deref(), Some("gpt"));
    assert_eq!(seen.finish, ["stop"]);
    assert_eq!(seen.response.unwrap().request_id.as_deref(), Some("ab"));
    let call = seen.call.unwrap();
    assert_eq!((call.path.as_str(), call.host.as_deref()), ("/x/v1/chat/completions", Some("h")));
}

#[test]
fn any_bytes_in_any_order_do_no_harm() {
    // A small deterministic generator: the same bytes on every run.
    let mut state = 7_u64;
    let mut random = move |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let words: [&[u8]; 14] = [
        b"data: ",
        b"\n\n",
        b"{",
        b"}",
        b"\"choices\":[",
        b"\"delta\":{",
        b"]",
        b"\xff",
        b"\r",
        b"event: error\n",
        b"[DONE]",
        b"\"",
        b"\\",
        b":",
    ];
    for _ in 0..3000 {
        let mut bench = Bench::default();
        for _ in 0..random(30) {
            let side = if random(3) == 0 { Side::Request } else { Side::Response };
            let word = words[random(14) as usize];
            match random(12) {
                0 => bench.request_head("POST", if random(2) == 0 { PATH } else { "/x" }, "h", JSON),
                1 => {
                    bench
                        .response_head(if random(4) == 0 { 500 } else { 200 }, if random(2) == 0 { SSE } else { JSON });
                }
                2 => bench.feed(side, HttpEventKind::Head { first: Stamp::default(), head: Head::Unseen }),
                3 => bench.feed(side, HttpEventKind::Gap { len: None, cause: GapCause::Lost }),
                4 if random(4) == 0 => bench.feed(side, HttpEventKind::End),
                5 if random(8) == 0 => bench.feed(side, HttpEventKind::Abort(AbortCause::Desync)),
                _ => bench.feed(side, HttpEventKind::Body(word)),
            }
        }
        if let Some(first) = bench.seen.log.first() {
            assert!(["Start", "Joined", "NotLlm"].contains(&first.as_str()), "{}", bench.seen.log());
        }
    }
}

#[test]
fn an_open_exchange_is_small() {
    // 10,000 open streams have 64 MiB for the whole pipeline.
    assert!(size_of::<nexent_observer_core::llm::LlmExchange>() <= 256);
}

/// HTTP/2 joined in mid-connection: of the request head nothing but the method can be resolved.
#[test]
fn a_failed_call_whose_path_was_not_seen_is_known_by_what_it_asked() {
    let openai = br#"{"error":{"message":"secret","type":"tokens","code":"rate_limit_exceeded"}}"#.as_slice();
    let anthropic = br#"{"type":"error","error":{"type":"overloaded_error","message":"secret"},"request_id":"r"}"#;
    let gemini = br#"{"error":{"code":429,"message":"secret","status":"RESOURCE_EXHAUSTED"}}"#;
    type Case<'a> = (&'a [u8], u16, &'a [u8], &'a str, Option<&'a str>);
    let cases: [Case<'_>; 7] = [
        (ASK, 429, openai, "rate_limit_exceeded", Some("openai_compatible")),
        (ASK, 529, anthropic, "overloaded_error", Some("anthropic")),
        (ASK, 503, b"", "503", Some("openai_compatible")),
        (ASK, 502, b"<html>secret</html>", "502", Some("openai_compatible")),
        (br#"{"contents":[]}"#, 429, gemini, "RESOURCE_EXHAUSTED", Some("gcp.gen_ai")),
        (br#"{"name":"x"}"#, 429, openai, "", None),
        (b"", 429, openai, "", None),
    ];
    for (ask, status, answer, error, provider) in cases {
        let mut bench = Bench::default();
        let head = RequestHead { method: "POST", path: "", host: None, headers: Headers(&[]) };
        bench.feed(Side::Request, HttpEventKind::Head { first: Stamp::default(), head: Head::Request(head) });
        if !ask.is_empty() {
            bench.feed(Side::Request, HttpEventKind::Body(ask));
        }
        bench.feed(Side::Request, HttpEventKind::End);
        bench.response_head(status, if answer.starts_with(b"<") { &[("content-type", b"text/html")] } else { JSON });
        answer.chunks(7).for_each(|piece| bench.body(piece));
        bench.end();
        let said = String::from_utf8_lossy(ask);
        let Some(provider) = provider else {
            assert_eq!(bench.seen.log(), "NotLlm", "{said}");
            continue;
        };
        assert_eq!(bench.seen.error.as_deref(), Some(error), "{said}");
        assert_eq!(bench.seen.response.as_ref().unwrap().provider, Some(provider), "{said}");
        assert!(!format!("{:?}", bench.seen).contains("secret"));
    }
    // The status could not be resolved either.
    for (answer, error) in [(openai, Some("rate_limit_exceeded")), (br#"{"ok":1}"#, None)] {
        let mut bench = Bench::default();
        let head = RequestHead { method: "POST", path: "", host: None, headers: Headers(&[]) };
        bench.feed(Side::Request, HttpEventKind::Head { first: Stamp::default(), head: Head::Request(head) });
        bench.feed(Side::Request, HttpEventKind::Body(ASK));
        bench.feed(Side::Request, HttpEventKind::End);
        let head = Head::Response(ResponseHead { status: None, headers: Headers(&[]) });
        bench.feed(Side::Response, HttpEventKind::Head { first: Stamp::default(), head });
        bench.body(answer);
        bench.end();
        assert_eq!(bench.seen.error.as_deref(), error);
        assert_eq!(bench.seen.not_llm.is_some(), error.is_none());
    }
    // A path that was seen and is not known is judged by its answers only.
    let mut bench = Bench::default();
    bench.post("/tickets", "h", ASK);
    bench.response_head(429, JSON);
    bench.body(openai);
    bench.end();
    assert_eq!(bench.seen.log(), "NotLlm");
}

#[test]
fn headers_tell_what_a_body_leaves_out() {
    let path = "/model/m/invoke";
    let mut bench = Bench::default();
    bench.post(path, "bedrock-runtime.us-east-1.amazonaws.com", b"{}");
    bench.response_head(
        200,
        &[
            ("content-type", b"application/json"),
            ("x-amzn-bedrock-input-token-count", b"6"),
            ("x-amzn-bedrock-output-token-count", b"4"),
            ("x-amzn-bedrock-invocation-latency", b"321"),
            ("x-amzn-requestid", b"r-1"),
        ],
    );
    bench.body(br#"{"outputs":[{"text":"Ja","stop_reason":"stop"}]}"#);
    bench.end();
    assert_eq!((bench.seen.usage, bench.seen.text.as_str()), (usage(6, 4, None, None), "Ja"));
    let facts = bench.seen.response.unwrap();
    assert_eq!((facts.processing_ms, facts.request_id.as_deref()), (Some(321.0), Some("r-1")));
    let mut bench = Bench::default();
    bench.post(path, "bedrock-runtime.us-east-1.amazonaws.com", b"{}");
    bench.response_head(
        400,
        &[("content-type", b"application/json"), ("x-amzn-errortype", b"ValidationException:http://x/")],
    );
    bench.body(br#"{"message":"secret"}"#);
    bench.end();
    assert_eq!(bench.seen.error.as_deref(), Some("ValidationException"));
}

/// While it is open whether an exchange is an LLM call, only so many gaps are kept.
#[test]
fn gaps_that_are_held_back_are_capped() {
    let mut bench = Bench::default();
    bench.post("/unknown", "h", ASK);
    bench.response_head(200, SSE);
    for n in 0..1000 {
        bench.feed(Side::Response, HttpEventKind::Gap { len: Some(n), cause: GapCause::Lost });
    }
    assert_eq!((bench.exchange.verdict(), bench.seen.log()), (Verdict::Undecided, String::new()));
    bench.body(
        b"data: x\n\ndata: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
    );
    bench.end();
    assert_eq!((bench.seen.text.as_str(), bench.seen.log.iter().filter(|l| *l == "Gap").count()), ("a", 8));
}
