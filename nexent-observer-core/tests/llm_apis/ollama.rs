//! Ollama's own API.

use super::{
    Ask, fixture,
    llm_support::{Fields, JSON},
    usage,
};

const LINES: Fields<'_> = &[("content-type", b"application/x-ndjson")];
const CHAT: Ask<'_> = Ask::new(
    "127.0.0.1:11434",
    "/api/chat",
    br#"{"model":"llama3.2","messages":[],"options":{"temperature":0.2,"top_p":0.5,"num_predict":9}}"#,
);
const GENERATE: Ask<'_> =
    Ask::new("localhost:11434", "/api/generate", br#"{"model":"llama3.2","prompt":"x","stream":false}"#);

#[test]
fn a_chat_is_read_line_by_line() {
    let body = fixture("ollama/chat.ndjson");
    let seen = CHAT.answer(200, LINES, &body);
    assert_eq!((seen.text.as_str(), seen.reasoning.as_str()), ("Grüße\n", "Hm"));
    assert_eq!(
        (seen.tools.as_str(), seen.usage),
        ("[ToolName 0 look_up][ToolArguments 0 {\"q\":1}]", usage(26, 12, None, None))
    );
    assert_eq!((seen.chunks, seen.deltas, seen.first_token_chunk), (5, 5, Some(0)));
    assert_eq!(seen.log[seen.log.len() - 4..].join(" "), "Finish Usage Done End");
    assert_eq!((seen.model.as_deref(), seen.finish.as_slice()), (Some("llama3.2"), ["stop".to_owned()].as_slice()));
    let (call, request, response) = (seen.call.unwrap(), seen.request.unwrap(), seen.response.unwrap());
    assert_eq!((call.operation, response.provider, response.stream), ("chat", Some("ollama"), true));
    assert_eq!((request.model.as_deref(), request.max_tokens), (Some("llama3.2"), Some(9)));
    assert_eq!((request.temperature, request.top_p), (Some(0.2), Some(0.5)));
    assert_eq!(request.stream, Some(true), "the default where nothing is said");
    CHAT.truncated(LINES, &body);
}

#[test]
fn a_generation_ends_with_its_last_line_even_without_a_line_feed() {
    let seen = GENERATE.fixture(LINES, "ollama/generate.ndjson");
    assert_eq!((seen.text.as_str(), seen.first_token_chunk), ("One", Some(1)));
    assert_eq!((seen.usage, seen.finish.len()), (usage(3, 2, None, None), 0));
    assert_eq!(seen.log[seen.log.len() - 2..].join(" "), "Done End");
    assert_eq!(seen.call.unwrap().operation, "text_completion");
    assert_eq!(seen.request.unwrap().stream, Some(false));
}

#[test]
fn errors_come_as_a_text_in_or_instead_of_the_stream() {
    let seen = CHAT.fixture(LINES, "ollama/error_in_stream.ndjson");
    assert_eq!((seen.text.as_str(), seen.error.as_deref()), ("par", Some("_OTHER")));
    let seen = CHAT.answer(404, JSON, br#"{"error":"model 'secret' not found"}"#);
    assert_eq!(seen.error.as_deref(), Some("404"));
}

#[test]
fn a_whole_answer_is_one_value() {
    let seen = CHAT.fixture(JSON, "ollama/chat.json");
    assert_eq!((seen.text.as_str(), seen.usage), ("Yes.", usage(26, 12, None, None)));
    assert!(!seen.response.unwrap().stream);
}

#[test]
fn embeddings_tell_their_input_tokens() {
    let ask = Ask::new("127.0.0.1:11434", "/api/embed", br#"{"model":"all-minilm","input":["x"]}"#);
    let seen = ask.fixture(JSON, "ollama/embed.json");
    assert_eq!((seen.usage.unwrap().input, seen.model.as_deref()), (Some(8), Some("all-minilm")));
    let old = Ask { path: "/api/embeddings", ..ask };
    let seen = old.answer(200, JSON, br#"{"embedding":[0.1,0.2]}"#);
    assert_eq!((seen.log(), seen.usage), ("Start Request RequestEnd Response Chunk End".to_owned(), None));
}

#[test]
fn elsewhere_its_paths_prove_nothing_and_its_answers_do() {
    let seen = Ask { host: "llm.internal", ..CHAT }.fixture(LINES, "ollama/chat.ndjson");
    assert_eq!((seen.text.as_str(), seen.request.unwrap().stream), ("Grüße\n", Some(true)));
    let seen = Ask { host: "llm.internal", ..GENERATE }.fixture(LINES, "ollama/generate.ndjson");
    assert_eq!(seen.call.unwrap().operation, "text_completion");
    // So do its errors, if what was asked is a call of it.
    for status in [404, 500] {
        let seen = Ask { host: "llm.internal", ..CHAT }.answer(status, JSON, br#"{"error":"model not found"}"#);
        assert_eq!((seen.error, seen.response.unwrap().provider), (Some(status.to_string()), Some("ollama")));
    }
    // Any web application may have this path.
    let page = Ask::new("shop.example", "/api/chat", br#"{"messages":[]}"#);
    let stream: Fields<'_> = &[("content-type", b"text/plain; charset=utf-8")];
    assert_eq!(page.answer(200, stream, b"0:\"Hello\"\n").log(), "NotLlm");
    assert_eq!(page.answer(500, JSON, br#"{"error":"no"}"#).log(), "NotLlm");
}
