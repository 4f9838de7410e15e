//! Anthropic messages.

use super::{
    Ask, fixture,
    llm_support::{Fields, JSON, SSE},
    usage,
};

const BODY: &[u8] =
    br#"{"max_tokens":1024,"messages":[{"role":"user","content":"Hi"}],"model":"claude-sonnet-4-5","stream":true}"#;
const MESSAGES: Ask<'_> = Ask::new("api.anthropic.com", "/v1/messages", BODY);
const VERSION: Fields<'_> = &[("anthropic-version", b"2023-06-01"), ("x-api-key", b"secret")];

#[test]
fn a_streamed_message_takes_the_last_value_of_each_count() {
    let body = fixture("anthropic/thinking_text_tool.sse");
    let seen = MESSAGES.answer(200, SSE, &body);
    assert_eq!((seen.text.as_str(), seen.reasoning.as_str()), ("Straße \"1\"\n", "Hm"));
    assert_eq!(seen.tools, "[ToolName 0 look_up][ToolArguments 0 {\"q\":1}]");
    // 61 + 2000 read from the cache + 100 written to it; never 43 + 61, never 3 + 40.
    assert_eq!(seen.usage, usage(2161, 40, Some(2000), Some(9)));
    assert_eq!(seen.finish, ["tool_use"]);
    assert_eq!((seen.model.as_deref(), seen.id.as_deref()), (Some("claude-sonnet-4-5"), Some("msg_01")));
    // Pings are no chunks; a signature is a chunk and no token.
    assert_eq!((seen.chunks, seen.deltas, seen.first_token_chunk), (15, 5, Some(2)));
    assert_eq!(seen.log[seen.log.len() - 2..].join(" "), "Done End");
    let (call, request) = (seen.call.unwrap(), seen.request.unwrap());
    assert_eq!((call.provider, call.operation), (Some("anthropic"), "chat"));
    assert_eq!((request.stream, request.max_tokens), (Some(true), Some(1024)));
    MESSAGES.truncated(SSE, &body);
}

#[test]
fn the_beginning_of_a_message_tells_no_output_tokens() {
    let body = fixture("anthropic/thinking_text_tool.sse");
    let (seen, _) = MESSAGES.answered(200, SSE, &mut [&body[..1200]].into_iter());
    assert_eq!(seen.usage.unwrap().input, Some(2143));
    assert_eq!(seen.usage.unwrap().output, None, "it is provisional there");
}

#[test]
fn the_beginning_of_a_tool_call_is_the_first_token() {
    let seen = MESSAGES.fixture(SSE, "anthropic/tool_first.sse");
    assert_eq!((seen.first_token_chunk, seen.tools.as_str()), (Some(1), "[ToolName 0 f]"));
}

#[test]
fn an_error_in_the_stream_after_a_200_is_an_error() {
    let seen = MESSAGES.fixture(SSE, "anthropic/overloaded.sse");
    assert_eq!((seen.error.as_deref(), seen.text.as_str()), (Some("overloaded_error"), "par"));
    assert!(!seen.log().contains("Done"));
}

#[test]
fn a_whole_message_is_read_block_by_block() {
    let seen = MESSAGES.fixture(JSON, "anthropic/whole.json");
    assert_eq!((seen.text.as_str(), seen.reasoning.as_str()), ("Yes.", "HmQUJD"));
    assert_eq!(
        (seen.tools.as_str(), seen.usage),
        ("[ToolName 0 f][ToolArguments 0 {\"text\": \"not output\"}]", usage(10, 7, None, None))
    );
    for (status, kind) in [(429, "rate_limit_error"), (529, "overloaded_error")] {
        let body = format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"secret"}},"request_id":"r"}}"#);
        assert_eq!(MESSAGES.answer(status, JSON, body.as_bytes()).error.as_deref(), Some(kind));
    }
    assert_eq!(MESSAGES.answer(502, JSON, b"<html>").error.as_deref(), Some("502"));
}

#[test]
fn other_hosts_are_proven_by_the_version_header_or_recognised() {
    let proxy = Ask { host: "litellm.internal:4000", headers: VERSION, ..MESSAGES };
    let seen = proxy.answer(500, JSON, b"{}");
    assert_eq!((seen.log[0].as_str(), seen.error.as_deref()), ("Start", Some("500")));
    assert_eq!(seen.response.unwrap().provider, Some("anthropic"));
    let unproven = Ask { headers: &[], ..proxy };
    assert_eq!(unproven.fixture(SSE, "anthropic/thinking_text_tool.sse").usage, usage(2161, 40, Some(2000), Some(9)));
    assert_eq!(unproven.fixture(JSON, "anthropic/whole.json").text, "Yes.");
    let chat = Ask::new("graph.example", "/v1/messages", br#"{"to":"x","text":{"body":"y"}}"#);
    assert_eq!(chat.answer(200, JSON, br#"{"messages":[{"id":"1"}]}"#).log(), "NotLlm");
    let counting = Ask { path: "/v1/messages/count_tokens", headers: VERSION, ..MESSAGES };
    assert_eq!(counting.answer(200, JSON, br#"{"input_tokens":14}"#).log(), "NotLlm");
}

#[test]
fn on_vertex_the_path_names_model_and_stream() {
    let body = br#"{"anthropic_version":"vertex-2023-10-16","messages":[],"max_tokens":9}"#;
    let path = "/v1/projects/p/locations/l/publishers/anthropic/models/claude-sonnet-4-5@20250929:streamRawPredict";
    let seen = Ask::new("us-east5-aiplatform.googleapis.com", path, body).fixture(SSE, "anthropic/tool_first.sse");
    let request = seen.request.unwrap();
    assert_eq!((request.model.as_deref(), request.stream), (Some("claude-sonnet-4-5@20250929"), Some(true)));
    assert_eq!(seen.call.unwrap().provider, Some("gcp.vertex_ai"));
}
