//! Cohere v2.

use super::{
    Ask, fixture,
    llm_support::{JSON, SSE},
    usage,
};

const CHAT: Ask<'_> =
    Ask::new("api.cohere.com", "/v2/chat", br#"{"model":"command-a-03-2025","messages":[],"p":0.75,"stream":true}"#);

#[test]
fn a_streamed_chat_reports_what_was_billed() {
    let body = fixture("cohere/chat.sse");
    let seen = CHAT.answer(200, SSE, &body);
    assert_eq!((seen.text.as_str(), seen.reasoning.as_str()), ("Größe 🚀", "I willHm"));
    assert_eq!(seen.tools, "[ToolName 0 look_up][ToolArguments 0 {\"q\":1}]");
    assert_eq!(
        (seen.usage, seen.finish.as_slice()),
        (usage(8, 50, Some(16), None), ["TOOL_CALL".to_owned()].as_slice())
    );
    assert_eq!((seen.chunks, seen.deltas, seen.first_token_chunk), (12, 6, Some(1)));
    assert_eq!(seen.log[seen.log.len() - 2..].join(" "), "Done End");
    let (call, request) = (seen.call.unwrap(), seen.request.unwrap());
    assert_eq!((call.provider, call.operation, request.top_p), (Some("cohere"), "chat", Some(0.75)));
    assert_eq!(seen.id.as_deref(), Some("c-1"));
    CHAT.truncated(SSE, &body);
}

#[test]
fn a_stream_that_ends_with_an_error_is_an_error() {
    let seen = CHAT.fixture(SSE, "cohere/failed.sse");
    assert_eq!((seen.text.as_str(), seen.error.as_deref()), ("par", Some("ERROR")));
    assert_eq!(CHAT.answer(429, JSON, br#"{"id":"x","message":"secret"}"#).error.as_deref(), Some("429"));
}

#[test]
fn a_whole_chat_is_read() {
    let seen = CHAT.fixture(JSON, "cohere/chat.json");
    assert_eq!((seen.text.as_str(), seen.reasoning.as_str()), ("Yes.", "Plan."));
    assert_eq!((seen.tools.as_str(), seen.usage), ("[ToolName 0 f][ToolArguments 0 {}]", usage(8, 50, Some(16), None)));
    assert_eq!(seen.finish, ["COMPLETE"]);
}

#[test]
fn embeddings_tell_what_was_billed() {
    let ask = Ask { path: "/v2/embed", body: br#"{"model":"embed-v4.0","texts":["x"]}"#, ..CHAT };
    let seen = ask.fixture(JSON, "cohere/embed.json");
    assert_eq!((seen.usage.unwrap().input, seen.deltas), (Some(2), 0));
    assert_eq!(seen.call.unwrap().operation, "embeddings");
}

#[test]
fn elsewhere_its_answers_prove_it() {
    let ask = Ask { host: "gateway.example", ..CHAT };
    assert_eq!(ask.fixture(SSE, "cohere/chat.sse").text, "Größe 🚀");
    assert_eq!(ask.fixture(JSON, "cohere/chat.json").text, "Yes.");
    assert_eq!(ask.answer(200, JSON, br#"{"message":"hello"}"#).log(), "NotLlm");
    // A failed call: its path, what it asked and a JSON error together.
    assert_eq!(ask.answer(401, JSON, br#"{"id":"x","message":"invalid api token"}"#).error.as_deref(), Some("401"));
    assert_eq!(Ask { path: "/other", ..ask }.answer(401, JSON, br#"{"message":"no"}"#).log(), "NotLlm");
    assert_eq!(Ask { body: br#"{"text":"x"}"#, ..ask }.answer(401, JSON, br#"{"message":"no"}"#).log(), "NotLlm");
    assert_eq!(ask.answer(404, JSON, br#"{"status":404}"#).log(), "NotLlm");
}

#[test]
fn embeddings_are_known_elsewhere_too() {
    let body = br#"{"model":"embed-v4.0","texts":["x"],"input_type":"search_query","embedding_types":["float"]}"#;
    let ask = Ask { host: "gateway.example", path: "/v2/embed", body, ..CHAT };
    let seen = ask.fixture(JSON, "cohere/embed.json");
    assert_eq!((seen.usage.unwrap().input, seen.call.unwrap().operation), (Some(2), "embeddings"));
    assert_eq!(seen.response.unwrap().provider, Some("cohere"));
    assert_eq!(ask.answer(400, JSON, br#"{"message":"invalid request"}"#).error.as_deref(), Some("400"));
}
