//! Gemini on Google AI and on Vertex.

use nexent_observer_core::{
    conn::GapCause,
    http::{HttpEventKind, Side},
};

use super::{
    Ask, fixture,
    llm_support::{Bench, JSON, SSE},
    usage,
};

const BODY: &[u8] = br#"{"contents":[{"parts":[{"text":"Hi"}]}],"generationConfig":{"maxOutputTokens":50,"temperature":0.1,"topP":0.9,"candidateCount":1}}"#;
const HOST: &str = "generativelanguage.googleapis.com";
const STREAM: Ask<'_> =
    Ask::new(HOST, "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse&key=secret", BODY);
const ARRAY: Ask<'_> = Ask { path: "/v1beta/models/gemini-2.5-flash:streamGenerateContent", ..STREAM };
const WHOLE: Ask<'_> = Ask { path: "/v1beta/models/gemini-2.5-flash:generateContent", ..STREAM };

#[test]
fn a_stream_is_the_same_as_events_and_as_an_array() {
    for (ask, headers, name) in [(STREAM, SSE, "gemini/stream_crlf.sse"), (ARRAY, JSON, "gemini/stream.json")] {
        let body = fixture(name);
        let seen = ask.answer(200, headers, &body);
        assert_eq!((seen.text.as_str(), seen.reasoning.as_str()), ("Größe \"}{\" 🚀", "Think {"), "{name}");
        // An object is told as it is written, blanks and all.
        let tools: String = seen.tools.split_whitespace().collect();
        assert_eq!(tools, "[ToolName0look_up][ToolArguments0{\"q\":[1]}]");
        assert_eq!(seen.usage, usage(15, 11, Some(8), Some(4)));
        assert_eq!(seen.finish, ["STOP"]);
        assert_eq!((seen.model.as_deref(), seen.id.as_deref()), (Some("gemini-2.5-flash"), Some("r1")));
        assert_eq!((seen.chunks, seen.deltas, seen.first_token_chunk), (4, 5, Some(0)));
        assert!(seen.response.as_ref().unwrap().stream);
        let (call, request) = (seen.call.unwrap(), seen.request.unwrap());
        assert_eq!((call.provider, call.operation), (Some("gcp.gemini"), "generate_content"));
        assert_eq!((request.model.as_deref(), request.stream), (Some("gemini-2.5-flash"), Some(true)));
        assert_eq!((request.max_tokens, request.temperature, request.top_p), (Some(50), Some(0.1), Some(0.9)));
        assert_eq!(request.choices, Some(1));
        ask.truncated(headers, &body);
    }
}

#[test]
fn the_elements_of_an_array_come_as_they_are_written() {
    let body = fixture("gemini/stream.json");
    let mut bench = Bench::default();
    bench.post(ARRAY.path, HOST, BODY);
    bench.response_head(200, JSON);
    let comma = body.windows(3).position(|w| w == b"\n,\r").unwrap();
    bench.body(&body[..comma]);
    assert_eq!((bench.seen.chunks, bench.seen.reasoning.as_str()), (1, "Think {"));
    bench.feed(Side::Response, HttpEventKind::Gap { len: Some(10), cause: GapCause::Lost });
    bench.body(&body[comma + 13..]);
    bench.end();
    assert_eq!((bench.seen.chunks, bench.seen.text.as_str()), (3, "🚀"), "the element that the gap hit is not known");
    assert_eq!(bench.seen.finish, ["STOP"]);
}

#[test]
fn a_whole_answer_is_read_part_by_part() {
    let seen = WHOLE.fixture(JSON, "gemini/whole.json");
    assert_eq!((seen.text.as_str(), seen.usage), ("A", usage(5, 9, None, None)));
    assert_eq!(seen.tools, "[ToolArguments 0 1+1][Audio 0 iVBO]");
    assert_eq!((seen.finish.as_slice(), seen.chunks), (["MAX_TOKENS".to_owned()].as_slice(), 1));
    assert_eq!(seen.request.unwrap().stream, Some(false));
    assert!(!seen.response.unwrap().stream);
}

#[test]
fn a_refused_prompt_is_finished_by_its_reason() {
    let body = br#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},"usageMetadata":{"promptTokenCount":7,"trafficType":"X"}}"#;
    let seen = WHOLE.answer(200, JSON, body);
    assert_eq!(seen.finish, ["PROHIBITED_CONTENT"]);
    assert_eq!((seen.usage.unwrap().input, seen.usage.unwrap().output), (Some(7), None));
}

#[test]
fn errors_are_named_by_their_status() {
    let error = br#"{"error":{"code":429,"message":"secret","status":"RESOURCE_EXHAUSTED","details":[]}}"#;
    for ask in [STREAM, ARRAY, WHOLE] {
        assert_eq!(ask.answer(429, JSON, error).error.as_deref(), Some("RESOURCE_EXHAUSTED"));
    }
    let list = [b"[".as_slice(), error, b"]"].concat();
    assert_eq!(ARRAY.answer(429, JSON, &list).error.as_deref(), Some("RESOURCE_EXHAUSTED"));
    let in_stream = [b"data: ".as_slice(), error, b"\r\n\r\n"].concat();
    assert_eq!(STREAM.answer(200, SSE, &in_stream).error.as_deref(), Some("RESOURCE_EXHAUSTED"));
    assert_eq!(STREAM.answer(503, JSON, b"x").error.as_deref(), Some("503"));
}

#[test]
fn vertex_has_the_same_paths_behind_its_own() {
    let path = "/v1/projects/p/locations/l/publishers/google/models/gemini-2.5-pro:streamGenerateContent?alt=sse";
    let seen = Ask::new("europe-west4-aiplatform.googleapis.com", path, BODY).fixture(SSE, "gemini/stream_crlf.sse");
    assert_eq!(seen.call.unwrap().provider, Some("gcp.vertex_ai"));
    assert_eq!(seen.request.unwrap().model.as_deref(), Some("gemini-2.5-pro"));
}

#[test]
fn an_embedding_is_a_call_without_tokens() {
    let ask = Ask { path: "/v1beta/models/gemini-embedding-001:batchEmbedContents", ..STREAM };
    let seen = ask.answer(200, JSON, br#"{"embeddings":[{"values":[0.1,0.2]}]}"#);
    assert_eq!(seen.log(), "Start Request RequestEnd Response Chunk End");
    assert_eq!(seen.call.unwrap().operation, "embeddings");
    assert_eq!(seen.request.unwrap().model.as_deref(), Some("gemini-embedding-001"));
    let counting = Ask { path: "/v1beta/models/gemini-2.5-flash:countTokens", ..STREAM };
    assert_eq!(counting.answer(200, JSON, br#"{"totalTokens":3}"#).log(), "NotLlm");
}
