//! Amazon Bedrock: Converse and Invoke, whole and as AWS event streams.

use serde_json::{Value, json};

use nexent_observer_core::{
    conn::GapCause,
    http::{HttpEventKind, Side},
    stats::DropReason,
};

use super::{
    Ask,
    calls::EVENTS,
    fixture,
    llm_support::{Bench, JSON},
    usage,
};

const HOST: &str = "bedrock-runtime.us-east-1.amazonaws.com";
const CONVERSE: Ask<'_> = Ask::new(
    HOST,
    "/model/anthropic.claude-3-haiku-20240307-v1%3A0/converse-stream",
    br#"{"messages":[],"inferenceConfig":{"maxTokens":300,"temperature":0.5,"topP":0.9}}"#,
);

/// A frame as the service makes it.
fn frame(headers: &[(&str, &str)], payload: &str) -> Vec<u8> {
    let mut head = Vec::new();
    for (name, value) in headers {
        head.push(name.len() as u8);
        head.extend(name.as_bytes());
        head.push(7);
        head.extend((value.len() as u16).to_be_bytes());
        head.extend(value.as_bytes());
    }
    let mut out = ((16 + head.len() + payload.len()) as u32).to_be_bytes().to_vec();
    out.extend((head.len() as u32).to_be_bytes());
    out.extend(crc32fast::hash(&out).to_be_bytes());
    out.extend(head);
    out.extend(payload.as_bytes());
    out.extend(crc32fast::hash(&out).to_be_bytes());
    out
}

fn event(kind: &str, payload: &Value) -> Vec<u8> {
    let headers = [(":event-type", kind), (":content-type", "application/json"), (":message-type", "event")];
    frame(&headers, &payload.to_string())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let four = |three: &[u8]| {
        let word = three.iter().chain(&[0, 0]).take(3).fold(0_u32, |word, b| word << 8 | u32::from(*b));
        (0..4)
            .map(move |i| if i > three.len() { '=' } else { DIGITS[(word >> (18 - 6 * i) & 63) as usize] as char })
            .collect::<String>()
    };
    bytes.chunks(3).map(four).collect()
}

/// An event of InvokeModelWithResponseStream.
fn chunk(native: &Value) -> Vec<u8> {
    event("chunk", &json!({"bytes": base64(native.to_string().as_bytes()), "p": "abcdef"}))
}

/// The event stream that a fixture stands for: one event a line, `type<TAB>JSON`. A `chunk` carries its JSON in base64, a
/// type that begins with `!` is an exception.
pub(crate) fn frames(lines: &[u8]) -> Vec<u8> {
    let lines = std::str::from_utf8(lines).unwrap().lines();
    let frame = |line: &str| {
        let (kind, payload) = line.split_once('\t').unwrap();
        let value = || serde_json::from_str(payload).unwrap();
        match (kind, kind.strip_prefix('!')) {
            ("chunk", _) => chunk(&value()),
            (_, Some(kind)) => frame(&[(":message-type", "exception"), (":exception-type", kind)], payload),
            _ => event(kind, &value()),
        }
    };
    lines.flat_map(frame).collect()
}

/// The frames of the fixture, one by one.
fn converse() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = fixture("bedrock/converse.events");
    while !rest.is_empty() {
        let len = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        frames.push(rest.drain(..len).collect());
    }
    frames
}

#[test]
fn a_conversation_is_read_frame_by_frame() {
    let seen = CONVERSE.answer(200, EVENTS, &converse().concat());
    assert_eq!((seen.text.as_str(), seen.reasoning.as_str()), ("Größe 🚀", "Hm"));
    assert_eq!(seen.tools, "[ToolName 0 look_up][ToolArguments 0 {\"q\":1}]");
    assert_eq!(seen.usage, usage(236, 58, Some(150), None), "the cache is added to the input");
    assert_eq!((seen.chunks, seen.deltas, seen.first_token_chunk), (9, 4, Some(1)));
    assert_eq!(
        (seen.finish.as_slice(), seen.log.last().unwrap().as_str()),
        (["tool_use".to_owned()].as_slice(), "End")
    );
    assert!(seen.log().contains("Usage Done"));
    let (call, request) = (seen.call.unwrap(), seen.request.unwrap());
    assert_eq!((call.provider, call.operation), (Some("aws.bedrock"), "chat"));
    assert_eq!(request.model.as_deref(), Some("anthropic.claude-3-haiku-20240307-v1:0"));
    assert_eq!((request.stream, request.max_tokens), (Some(true), Some(300)));
    assert_eq!((request.temperature, request.top_p), (Some(0.5), Some(0.9)));
    assert!(seen.response.unwrap().stream);
}

#[test]
fn an_exception_in_the_stream_is_an_error() {
    let mut frames = converse();
    frames.truncate(4);
    frames.push(frame(
        &[(":message-type", "exception"), (":exception-type", "throttlingException")],
        r#"{"message":"secret"}"#,
    ));
    let seen = CONVERSE.answer(200, EVENTS, &frames.concat());
    assert_eq!((seen.error.as_deref(), seen.text.as_str()), (Some("throttlingException"), "Größe 🚀"));
}

#[test]
fn a_lost_frame_costs_itself() {
    let frames = converse();
    let mut bench = Bench::default();
    bench.post(CONVERSE.path, HOST, CONVERSE.body);
    bench.response_head(200, EVENTS);
    bench.body(&frames[..2].concat());
    bench.body(&frames[2][..9]);
    bench.feed(Side::Response, HttpEventKind::Gap { len: Some(20), cause: GapCause::Lost });
    bench.body(&frames[2][29..]);
    bench.body(&frames[3..].concat());
    bench.end();
    assert_eq!((bench.seen.chunks, bench.seen.text.as_str()), (8, "Größe 🚀"));
    assert_eq!(bench.stats.drops(DropReason::FrameInvalid), 0, "a torn frame is no defect of the server");
    let mut broken = converse().concat();
    broken[40] ^= 1;
    let (seen, stats) = CONVERSE.answered(200, EVENTS, &mut [broken.as_slice()].into_iter());
    assert_eq!((seen.chunks, stats.drops(DropReason::FrameInvalid)), (8, 1));
}

#[test]
fn a_whole_conversation_is_read() {
    let ask = Ask {
        path: "/model/arn%3Aaws%3Abedrock%3Ax%3A0%3Ainference-profile%2Fus.amazon.nova-pro-v1%3A0/converse",
        ..CONVERSE
    };
    let body = json!({"metrics":{"latencyMs":1},"output":{"message":{"role":"assistant","content":[
        {"reasoningContent":{"reasoningText":{"text":"Hm","signature":"E"}}},{"text":"Yes."},{"toolUse":{"name":"f","toolUseId":"t","input":{"text":"no"}}}]}},
        "stopReason":"end_turn","usage":{"inputTokens":20,"outputTokens":72,"totalTokens":92}});
    let seen = ask.answer(200, JSON, body.to_string().as_bytes());
    assert_eq!(
        (seen.text.as_str(), seen.reasoning.as_str(), seen.tools.as_str()),
        ("Yes.", "Hm", "[ToolName 0 f][ToolArguments 0 {\"text\":\"no\"}]")
    );
    assert_eq!((seen.usage, seen.finish.as_slice()), (usage(20, 72, None, None), ["end_turn".to_owned()].as_slice()));
    let model = seen.request.unwrap().model.unwrap();
    assert_eq!(model, "arn:aws:bedrock:x:0:inference-profile/us.amazon.nova-pro-v1:0");
    assert_eq!(ask.answer(429, JSON, br#"{"message":"secret"}"#).error.as_deref(), Some("429"));
}

#[test]
fn an_invoked_model_speaks_its_vendors_language() {
    let stream = |model: &str, events: &[Value]| {
        let path = format!("/model/{model}/invoke-with-response-stream");
        let body: Vec<u8> = events.iter().flat_map(chunk).collect();
        Ask { path: &path, body: b"{\"max_tokens\":9}", ..CONVERSE }.answer(200, EVENTS, &body)
    };
    let metrics = json!({"inputTokenCount":6,"outputTokenCount":4,"invocationLatency":1,"firstByteLatency":1});
    let claude = stream(
        "anthropic.claude-3-haiku",
        &[
            json!({"type":"message_start","message":{"id":"m","model":"claude-3-haiku","usage":{"input_tokens":6,"output_tokens":1}}}),
            json!({"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Ja 🚀"}}),
            json!({"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}),
            json!({"type":"message_stop","amazon-bedrock-invocationMetrics":metrics}),
        ],
    );
    let titan = stream(
        "amazon.titan-text-express-v1",
        &[
            json!({"outputText":"Ja","index":0.0,"inputTextTokenCount":6.0}),
            json!({"outputText":" 🚀","index":0.0,"totalOutputTextTokenCount":4.0,"completionReason":"FINISH","amazon-bedrock-invocationMetrics":metrics}),
        ],
    );
    let nova = stream(
        "us.amazon.nova-lite-v1%3A0",
        &[
            json!({"messageStart":{"role":"assistant"}}),
            json!({"contentBlockDelta":{"delta":{"text":"Ja 🚀"},"contentBlockIndex":0}}),
            json!({"messageStop":{"stopReason":"end_turn"}}),
            json!({"metadata":{"usage":{"inputTokens":6,"outputTokens":4}},"amazon-bedrock-invocationMetrics":metrics}),
        ],
    );
    let llama = stream(
        "meta.llama3-8b-instruct-v1%3A0",
        &[
            json!({"generation":"Ja 🚀","prompt_token_count":6,"generation_token_count":1,"stop_reason":null}),
            json!({"generation":"","prompt_token_count":null,"generation_token_count":4,"stop_reason":"stop"}),
        ],
    );
    let mistral = stream(
        "mistral.mistral-7b-instruct-v0%3A2",
        &[
            json!({"outputs":[{"text":"Ja 🚀","stop_reason":null}]}),
            json!({"outputs":[{"text":"","stop_reason":"stop"}],"amazon-bedrock-invocationMetrics":metrics}),
        ],
    );
    let compatible = stream(
        "openai.gpt-oss-20b-1%3A0",
        &[
            json!({"choices":[{"index":0,"delta":{"content":"Ja 🚀"}}]}),
            json!({"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":6,"completion_tokens":4}}),
        ],
    );
    for seen in [claude, titan, nova, llama, mistral, compatible] {
        let model = seen.request.unwrap().model.unwrap();
        assert_eq!((seen.text.as_str(), seen.usage), ("Ja 🚀", usage(6, 4, None, None)), "{model}");
        assert_eq!(seen.finish.len(), 1, "{model}");
        assert_eq!((seen.first_token_chunk, seen.error), (seen.first_token_chunk.filter(|n| *n < 2), None), "{model}");
    }
}

#[test]
fn whole_answers_of_invoked_models_are_read() {
    let ask = Ask { path: "/model/m/invoke", body: b"{}", ..CONVERSE };
    for body in [
        json!({"type":"message","model":"m","content":[{"type":"text","text":"Ja"}],"stop_reason":"end_turn","usage":{"input_tokens":6,"output_tokens":4}}),
        json!({"inputTextTokenCount":6,"results":[{"tokenCount":4,"outputText":"Ja","completionReason":"FINISH"}]}),
        json!({"output":{"message":{"content":[{"text":"Ja"}]}},"stopReason":"end_turn","usage":{"inputTokens":6,"outputTokens":4}}),
        json!({"generation":"Ja","prompt_token_count":6,"generation_token_count":4,"stop_reason":"stop"}),
    ] {
        let seen = ask.answer(200, JSON, body.to_string().as_bytes());
        assert_eq!((seen.text.as_str(), seen.usage, seen.finish.len()), ("Ja", usage(6, 4, None, None), 1), "{body}");
    }
    let embed = Ask { path: "/model/amazon.titan-embed-text-v2%3A0/invoke", ..ask };
    let seen = embed.answer(200, JSON, br#"{"embedding":[0.1,0.2],"inputTextTokenCount":5}"#);
    assert_eq!((seen.call.unwrap().operation, seen.usage.unwrap().input), ("embeddings", Some(5)));
}
