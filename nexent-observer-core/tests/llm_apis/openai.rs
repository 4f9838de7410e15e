//! OpenAI's APIs beside chat completions: responses, legacy completions, embeddings.

use nexent_observer_core::{
    llm::{Usage, Verdict},
    stats::DropReason,
};

use super::{
    Ask, fixture,
    llm_support::{Bench, JSON, SSE},
    usage,
};

const RESPONSES: Ask<'_> = Ask::new(
    "api.openai.com",
    "/v1/responses",
    br#"{"input":"Hi","model":"gpt-5-mini","stream":true,"max_output_tokens":77,"max_tokens":1,"temperature":0.5}"#,
);
const COMPLETIONS: Ask<'_> =
    Ask::new("localhost:8000", "/v1/completions", br#"{"model":"davinci-002","prompt":"x","stream":true}"#);
const EMBEDDINGS: Ask<'_> =
    Ask::new("api.openai.com", "/v1/embeddings", br#"{"input":"x","model":"text-embedding-3-small"}"#);

#[test]
fn a_streamed_response_tells_text_reasoning_tools_and_ends_with_its_usage() {
    let body = fixture("responses/text_and_tool.sse");
    let seen = RESPONSES.answer(200, SSE, &body);
    assert_eq!(seen.text, "Zürich 🚀\n");
    assert_eq!(seen.reasoning, "Let me");
    assert_eq!(seen.tools, "[ToolName 0 look_up][ToolArguments 0 {\"q\":][ToolArguments 0 1}]");
    assert_eq!(seen.usage, usage(40, 25, Some(32), Some(16)));
    assert_eq!(seen.finish, ["completed"]);
    assert_eq!((seen.model.as_deref(), seen.id.as_deref()), (Some("gpt-5-mini-2025-08-07"), Some("resp_01")));
    assert_eq!((seen.chunks, seen.deltas, seen.first_token_chunk), (18, 6, Some(4)));
    assert_eq!(seen.log[seen.log.len() - 4..].join(" "), "Finish Usage Done End");
    let (call, request) = (seen.call.unwrap(), seen.request.unwrap());
    assert_eq!((call.provider, call.operation), (Some("openai"), "chat"));
    assert_eq!((request.model.as_deref(), request.stream), (Some("gpt-5-mini"), Some(true)));
    assert_eq!((request.max_tokens, request.temperature), (Some(77), Some(0.5)));
    RESPONSES.truncated(SSE, &body);
}

#[test]
fn an_incomplete_response_says_why() {
    let seen = RESPONSES.fixture(SSE, "responses/incomplete.sse");
    assert_eq!(seen.tools, "[Refusal 0 I can't]");
    assert_eq!(seen.finish, ["max_output_tokens"]);
    assert_eq!(seen.usage, usage(5, 3, None, None));
}

#[test]
fn errors_in_a_response_stream_are_told_once_flat_or_nested() {
    let seen = RESPONSES.fixture(SSE, "responses/nested_error_then_failed.sse");
    assert_eq!(seen.error.as_deref(), Some("server_is_overloaded"));
    assert_eq!(seen.log[4..].join(" "), "Chunk Identity Chunk Error Chunk Done End");
    let seen = RESPONSES.fixture(SSE, "responses/flat_error.sse");
    assert_eq!((seen.error.as_deref(), seen.text.as_str()), (Some("rate_limit_exceeded"), "par"));
    assert_eq!(seen.log.last().map(String::as_str), Some("End"));
}

#[test]
fn a_whole_response_is_read_item_by_item() {
    let seen = RESPONSES.fixture(JSON, "responses/whole.json");
    assert_eq!((seen.text.as_str(), seen.reasoning.as_str()), ("Four", "Hmm. Well."));
    assert_eq!(seen.tools, "[Refusal 0 no more][ToolName 0 f][ToolArguments 0 {}][ToolName 0 g][ToolArguments 0 raw]");
    assert_eq!((seen.usage, seen.chunks), (usage(40, 25, Some(32), Some(16)), 1));
    let queued = br#"{"id":"r","object":"response","status":"queued","model":"m","output":[],"error":null}"#;
    let seen = RESPONSES.answer(200, JSON, queued);
    assert_eq!((seen.finish.len(), seen.deltas, seen.error), (0, 0, None));
    let failed = br#"{"id":"r","object":"response","status":"failed","output":[],"error":{"code":"server_error","message":"secret"}}"#;
    assert_eq!(RESPONSES.answer(200, JSON, failed).error.as_deref(), Some("server_error"));
    let refused = br#"{"error":{"message":"secret","type":"invalid_request_error","code":null}}"#;
    assert_eq!(RESPONSES.answer(400, JSON, refused).error.as_deref(), Some("invalid_request_error"));
    assert_eq!(RESPONSES.answer(502, JSON, b"oops").error.as_deref(), Some("502"));
}

#[test]
fn a_response_on_an_unknown_path_is_recognised_by_request_and_answer() {
    for (path, headers, name) in
        [("/llm/responses", SSE, "responses/text_and_tool.sse"), ("/ask", JSON, "responses/whole.json")]
    {
        let seen = Ask { host: "gateway.example", path, ..RESPONSES }.fixture(headers, name);
        assert_eq!((seen.log[0].as_str(), seen.usage), ("Start", usage(40, 25, Some(32), Some(16))), "{path}");
        assert_eq!(seen.call.unwrap().operation, "chat");
        assert_eq!(seen.response.unwrap().provider, Some("openai_compatible"));
    }
    let survey = Ask::new("forms.example", "/surveys/7/responses", br#"{"answers":[1,2]}"#);
    assert_eq!(survey.answer(200, JSON, br#"{"id":1}"#).log(), "NotLlm");
}

#[test]
fn a_legacy_completion_is_read_streamed_and_whole() {
    let body = fixture("completions/text.sse");
    let seen = COMPLETIONS.answer(200, SSE, &body);
    assert_eq!((seen.text.as_str(), seen.first_token_chunk, seen.chunks), ("One two\n", Some(1), 5));
    assert_eq!((seen.usage, seen.finish.as_slice()), (usage(4, 3, None, None), ["length".to_owned()].as_slice()));
    assert_eq!(seen.log[seen.log.len() - 2..].join(" "), "Done End");
    assert_eq!(seen.call.unwrap().operation, "text_completion");
    COMPLETIONS.truncated(SSE, &body);
    let seen = COMPLETIONS.fixture(SSE, "completions/mixed_end.sse");
    assert_eq!((seen.text.as_str(), seen.finish.as_slice()), ("One", ["stop".to_owned()].as_slice()));
    let seen = COMPLETIONS.fixture(JSON, "completions/whole.json");
    assert_eq!((seen.text.as_str(), seen.finish.len(), seen.usage), ("ab", 2, usage(4, 2, None, None)));
    let seen =
        Ask { host: "gateway.example", path: "/x/completions", ..COMPLETIONS }.fixture(SSE, "completions/text.sse");
    assert_eq!((seen.call.unwrap().operation, seen.text.as_str()), ("text_completion", "One two\n"));
}

#[test]
fn writers_stream_of_values_is_complete_at_its_end() {
    let seen = COMPLETIONS.fixture(SSE, "completions/writer_values.sse");
    assert_eq!((seen.text.as_str(), seen.deltas), ("Sure, ok", 3));
    assert_eq!(seen.log[seen.log.len() - 2..].join(" "), "Done End");
}

#[test]
fn mistrals_fill_in_the_middle_answers_with_chat_messages() {
    let ask = Ask::new("api.mistral.ai", "/v1/fim/completions", br#"{"model":"codestral","prompt":"x"}"#);
    let body = br#"{"object":"chat.completion","model":"codestral","choices":[{"index":0,"message":{"content":"y"},"finish_reason":"stop"}]}"#;
    let seen = ask.answer(200, JSON, body);
    assert_eq!((seen.text.as_str(), seen.call.unwrap().operation), ("y", "text_completion"));
}

#[test]
fn embeddings_tell_model_and_input_tokens_only() {
    let seen = EMBEDDINGS.fixture(JSON, "embeddings/two.json");
    assert_eq!(seen.log(), "Start Request RequestEnd Response Chunk Identity Usage End");
    assert_eq!(seen.usage, Some(Usage { input: Some(8), ..Usage::default() }));
    assert_eq!(seen.model.as_deref(), Some("text-embedding-3-small"));
    assert_eq!(seen.call.unwrap().operation, "embeddings");
    let voyage = br#"{"object":"list","data":[],"model":"voyage-3","usage":{"total_tokens":12}}"#;
    assert_eq!(EMBEDDINGS.answer(200, JSON, voyage).usage.unwrap().input, Some(12));
    for (status, body, want) in [
        (401, br#"{"error":{"code":"401","message":"secret"}}"#.as_slice(), "401"),
        (400, br#"{"error":{"message":"secret","type":"invalid_request_error","code":null}}"#, "invalid_request_error"),
        (404, br#"{"error":"model_not_found"}"#, "model_not_found"),
        (500, b"oops", "500"),
    ] {
        assert_eq!(EMBEDDINGS.answer(status, JSON, body).error.as_deref(), Some(want));
    }
    let azure = Ask {
        host: "r.openai.azure.com",
        path: "/openai/deployments/my%2Fada/embeddings?api-version=1",
        body: br#"{"input":["x"]}"#,
        headers: &[],
    };
    let seen = azure.fixture(JSON, "embeddings/two.json");
    assert_eq!(seen.request.unwrap().model.as_deref(), Some("my/ada"));
    let seen = Ask { host: "gateway.example", path: "/embeddings", ..EMBEDDINGS }.fixture(JSON, "embeddings/two.json");
    assert_eq!(seen.usage.unwrap().input, Some(8), "recognised by its answer");
}

#[test]
fn megabytes_of_vectors_are_read_without_keeping_them() {
    let mut bench = Bench::default();
    bench.post(EMBEDDINGS.path, EMBEDDINGS.host, EMBEDDINGS.body);
    bench.response_head(200, JSON);
    bench.body(br#"{"object":"list","data":[{"embedding":["#);
    // Over the cap of a body that is kept whole.
    let vectors = b"0.0123456789,".repeat(80_000);
    for _ in 0..12 {
        bench.body(&vectors);
    }
    bench.body(br#"1]}],"model":"m","usage":{"prompt_tokens":3,"total_tokens":3}}"#);
    bench.end();
    assert_eq!(bench.exchange.verdict(), Verdict::Llm);
    assert_eq!((bench.seen.usage.unwrap().input, bench.stats.drops(DropReason::BodyTooLong)), (Some(3), 0));
}
