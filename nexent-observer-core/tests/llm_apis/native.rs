//! Own APIs of self-hosted servers.

use super::{
    Ask, fixture,
    llm_support::{JSON, SSE},
    usage,
};

const TGI: Ask<'_> = Ask::new(
    "tgi.internal:8080",
    "/generate_stream",
    br#"{"inputs":"x","parameters":{"max_new_tokens":9,"temperature":0.5}}"#,
);
const LLAMA: Ask<'_> =
    Ask::new("127.0.0.1:8080", "/completion", br#"{"prompt":"x","n_predict":9,"temperature":0.5,"stream":true}"#);

#[test]
fn a_stream_is_read_token_by_token_and_known_by_its_answer() {
    for (ask, name, provider, finish) in
        [(TGI, "native/tgi.sse", "tgi", "eos_token"), (LLAMA, "native/llama_cpp.sse", "llama_cpp", "eos")]
    {
        let body = fixture(name);
        let seen = ask.answer(200, SSE, &body);
        assert_eq!((seen.text.as_str(), seen.usage), ("Grüße", usage(7, 3, None, None)), "{name}");
        assert_eq!((seen.chunks, seen.deltas, seen.finish.as_slice()), (3, 2, [finish.to_owned()].as_slice()));
        assert_eq!(seen.log[seen.log.len() - 2..].join(" "), "Done End");
        let (call, request) = (seen.call.unwrap(), seen.request.unwrap());
        assert_eq!((call.operation, seen.response.unwrap().provider), ("text_completion", Some(provider)));
        assert_eq!((request.stream, request.max_tokens, request.temperature), (Some(true), Some(9), Some(0.5)));
    }
    LLAMA.truncated(SSE, &fixture("native/llama_cpp.sse"));
}

#[test]
fn a_text_that_grows_from_event_to_event_is_told_once() {
    let ask = Ask::new(
        "sglang.internal:30000",
        "/generate",
        br#"{"text":"x","sampling_params":{"max_new_tokens":9,"temperature":0.5,"n":1},"stream":true}"#,
    );
    let seen = ask.fixture(SSE, "native/sglang.sse");
    assert_eq!((seen.text.as_str(), seen.usage), ("Grüße", usage(7, 3, Some(4), None)));
    assert_eq!((seen.chunks, seen.deltas, seen.finish.as_slice()), (3, 2, ["length".to_owned()].as_slice()));
    assert_eq!(seen.log[seen.log.len() - 2..].join(" "), "Done End");
    let request = seen.request.unwrap();
    assert_eq!((request.stream, request.max_tokens, request.temperature), (Some(true), Some(9), Some(0.5)));
    assert_eq!(seen.response.unwrap().provider, Some("sglang"));
    let whole = r#"{"text":"Ja","meta_info":{"id":"s2","finish_reason":{"type":"stop"},"prompt_tokens":7,"completion_tokens":2}}"#;
    let seen = ask.answer(200, JSON, whole.as_bytes());
    assert_eq!((seen.text.as_str(), seen.usage), ("Ja", usage(7, 2, None, None)));
}

#[test]
fn whole_answers_are_read() {
    let tgi =
        r#"{"generated_text":"Ja","details":{"finish_reason":"length","generated_tokens":2,"input_length":null}}"#;
    let seen = Ask { path: "/generate", ..TGI }.answer(200, JSON, tgi.as_bytes());
    assert_eq!((seen.text.as_str(), seen.usage.unwrap().output), ("Ja", Some(2)));
    assert_eq!(seen.request.unwrap().stream, Some(false));
    let llama =
        r#"{"content":"Ja","stop":true,"stop_type":"limit","model":"m","tokens_predicted":2,"tokens_evaluated":5}"#;
    let seen = LLAMA.answer(200, JSON, llama.as_bytes());
    assert_eq!((seen.text.as_str(), seen.usage), ("Ja", usage(5, 2, None, None)));
}

#[test]
fn an_error_in_the_stream_is_named_by_its_type() {
    let first = &fixture("native/tgi.sse")[..];
    let first = &first[..first.windows(2).position(|w| w == b"\n\n").unwrap() + 2];
    let body = [first, b"data:{\"error\":\"secret words\",\"error_type\":\"incomplete_generation\"}\n\n"].concat();
    let seen = TGI.answer(200, SSE, &body);
    assert_eq!((seen.text.as_str(), seen.error.as_deref()), ("Grü", Some("incomplete_generation")));
    let report = Ask::new("reports.example", "/generate", br#"{"inputs":"x"}"#);
    assert_eq!(report.answer(200, JSON, br#"{"url":"x"}"#).log(), "NotLlm");
}
