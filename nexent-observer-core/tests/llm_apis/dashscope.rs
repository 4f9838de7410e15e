//! DashScope's own API.

use super::{
    Ask, fixture,
    llm_support::{Fields, JSON, SSE},
    usage,
};

const STREAM: Fields<'_> = &[("X-DashScope-SSE", b"enable")];
const ASK: Ask<'_> = Ask {
    host: "dashscope.aliyuncs.com",
    path: "/api/v1/services/aigc/text-generation/generation",
    headers: STREAM,
    body: br#"{"model":"qwen-plus","input":{"messages":[]},"parameters":{"result_format":"message","max_tokens":9,"n":1}}"#,
};
const PIECES: &[u8] = br#"{"model":"qwen-plus","input":{},"parameters":{"incremental_output":true}}"#;
const CUMULATIVE: &[u8] = br#"{"model":"qwen-plus","input":{},"parameters":{"incremental_output":false}}"#;

#[test]
fn what_grows_from_event_to_event_is_told_once() {
    for (name, bodies) in
        [("dashscope/cumulative.sse", [ASK.body, CUMULATIVE]), ("dashscope/pieces.sse", [ASK.body, PIECES])]
    {
        for body in bodies {
            let seen = Ask { body, ..ASK }.fixture(SSE, name);
            assert_eq!((seen.text.as_str(), seen.reasoning.as_str()), ("Grüße 🚀", "Hm"), "{name}");
            assert_eq!((seen.chunks, seen.deltas, seen.first_token_chunk), (5, 4, Some(0)), "{name}");
            assert_eq!(
                (seen.usage, seen.finish.as_slice()),
                (usage(20, 6, None, Some(2)), ["stop".to_owned()].as_slice())
            );
            assert_eq!((seen.call.unwrap().provider, seen.id.as_deref()), (Some("dashscope"), Some("q-1")));
            let request = seen.request.unwrap();
            assert_eq!((request.model.as_deref(), request.stream), (Some("qwen-plus"), Some(true)));
        }
    }
    ASK.truncated(SSE, &fixture("dashscope/cumulative.sse"));
}

#[test]
fn pieces_that_repeat_each_other_are_pieces_when_the_request_says_so() {
    let event = |text: &str| format!("data:{{\"output\":{{\"text\":\"{text}\",\"finish_reason\":\"null\"}}}}\n\n");
    let body = [event("ha"), event("haha"), event("ha")].concat();
    assert_eq!(Ask { body: PIECES, ..ASK }.answer(200, SSE, body.as_bytes()).text, "hahahaha");
}

#[test]
fn a_plain_text_is_read_streamed_and_whole() {
    let seen = ASK.fixture(SSE, "dashscope/text.sse");
    assert_eq!((seen.text.as_str(), seen.usage), ("One", usage(3, 2, None, None)));
    let ask = Ask { headers: &[], path: "/api/v1/services/aigc/multimodal-generation/generation", ..ASK };
    let body = r#"{"output":{"choices":[{"finish_reason":"stop","message":{"role":"assistant","content":[{"text":"Yes."}]}}]},"usage":{"input_tokens":3,"output_tokens":2},"request_id":"q"}"#;
    let seen = ask.answer(200, JSON, body.as_bytes());
    assert_eq!((seen.text.as_str(), seen.request.unwrap().stream), ("Yes.", Some(false)));
}

#[test]
fn errors_are_named_by_their_code() {
    let error = r#"{"code":"Throttling.RateQuota","message":"secret","request_id":"q"}"#;
    assert_eq!(ASK.answer(429, JSON, error.as_bytes()).error.as_deref(), Some("Throttling.RateQuota"));
    let stream = format!("id:1\nevent:error\n:HTTP_STATUS/400\ndata:{error}\n\n");
    assert_eq!(ASK.answer(200, SSE, stream.as_bytes()).error.as_deref(), Some("Throttling.RateQuota"));
}
