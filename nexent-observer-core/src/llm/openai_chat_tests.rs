//! Tests of the decoder of OpenAI chat completions, and of its fast paths against the full parse.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::{
    event::Stamp,
    llm::{LlmEvent, Usage},
    stats::Stats,
};

struct Run {
    chat: Chat,
    stats: Stats,
    errored: bool,
    status: Option<u16>,
    events: Vec<String>,
}

impl Run {
    fn new() -> Self {
        Self { chat: Chat::default(), stats: Stats::default(), errored: false, status: Some(200), events: Vec::new() }
    }

    fn with(&mut self, f: impl FnOnce(&mut Chat, &mut Out<'_>)) {
        let events = &mut self.events;
        let mut sink = |ev: LlmEvent<'_>| events.push(format!("{:?}", ev.kind));
        f(
            &mut self.chat,
            &mut Out {
                error_kind: None,
                at: Stamp::default(),
                status: self.status,
                errored: &mut self.errored,
                stats: &mut self.stats,
                sink: &mut sink,
            },
        );
    }

    /// The event as it comes, fast path first.
    fn feed(&mut self, data: &str) {
        self.with(|chat, out| chat.frame(Frame { name: b"", error: false, data: data.as_bytes(), whole: true }, out));
    }

    /// The event through the full parse only.
    fn feed_full(&mut self, data: &str) {
        self.with(|chat, out| match Completion::parse(data) {
            Some((completion, odd)) => {
                out.odd(odd);
                chat.full(&completion, false, out);
            }
            None => out.count(DropReason::JsonInvalid),
        });
    }
}

fn events(data: &[&str]) -> Vec<String> {
    let mut run = Run::new();
    data.iter().for_each(|d| run.feed(d));
    run.events
}

fn usage(json: &Json) -> Option<Usage> {
    let text = json.to_string();
    Some(Completion::parse(&text).unwrap().0.usage()).filter(|u| *u != Usage::default())
}

fn u(input: u64, output: u64, cached: Option<u64>, reasoning: Option<u64>) -> Option<Usage> {
    Some(Usage { input: Some(input), output: Some(output), cached_input: cached, reasoning })
}

#[test]
fn the_usual_chunk_is_taken_by_the_fast_path() {
    for chunk in [
        r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","service_tier":"default","system_fingerprint":"fp","choices":[{"index":0,"delta":{"content":"a \"b\"\n"},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"xY"}"#,
        r#"{"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]}"#,
        r#"{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":null,"reasoning_content":"\u4f60"},"finish_reason":null}]}"#,
    ] {
        let mut template = Template::default();
        assert!(openai_fast::chunk(chunk, &mut template).is_some(), "{chunk}");
        assert!(openai_fast::chunk(chunk, &mut template).is_some(), "{chunk}");
    }
}

#[test]
fn usage_is_normalised() {
    let details = |cached: u64, reasoning: u64| {
        json!({"usage":{"prompt_tokens":24,"completion_tokens":8,"total_tokens":32,
            "prompt_tokens_details":{"cached_tokens":cached},"completion_tokens_details":{"reasoning_tokens":reasoning}}})
    };
    assert_eq!(usage(&details(7, 5)), u(24, 8, Some(7), Some(5)));
    let xai = json!({"usage":{"prompt_tokens":12,"completion_tokens":1,"total_tokens":303,"completion_tokens_details":{"reasoning_tokens":290}}});
    assert_eq!(usage(&xai), u(12, 291, None, Some(290)));
    let deepseek = json!({"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_cache_hit_tokens":4,"prompt_cache_miss_tokens":5}});
    assert_eq!(usage(&deepseek), u(9, 3, Some(4), None));
    let groq = json!({"choices":[],"x_groq":{"usage":{"prompt_tokens":18,"completion_tokens":73,"total_time":0.5}}});
    assert_eq!(usage(&groq), u(18, 73, None, None));
    let moonshot =
        json!({"choices":[{"index":0,"delta":{},"usage":{"prompt_tokens":1,"completion_tokens":2,"cached_tokens":1}}]});
    assert_eq!(usage(&moonshot), u(1, 2, Some(1), None));
    let llama = json!({"choices":[],"timings":{"cache_n":10,"prompt_n":5,"predicted_n":7}});
    assert_eq!(usage(&llama), u(15, 7, Some(10), None));
    for none in [
        json!({"usage":null}),
        json!({}),
        json!({"usage":"12"}),
        json!({"usage":{"prompt_tokens":-1,"completion_tokens":"x"}}),
    ] {
        assert_eq!(usage(&none), None, "{none}");
    }
    let huge = json!({"usage":{"prompt_tokens":u64::MAX,"completion_tokens":u64::MAX,"total_tokens":u64::MAX,"completion_tokens_details":{"reasoning_tokens":u64::MAX}}});
    assert_eq!(usage(&huge), u(u64::MAX, u64::MAX, None, Some(u64::MAX)));
}

#[test]
fn a_repeated_key_overrides_the_earlier_one() {
    let twice = r#"{"choices":[{"index":1,"delta":{"content":"no"},"index":2,"delta":{"content":"no","content":"yes"}}],"model":"a","model":"b"}"#;
    assert_eq!(
        events(&[twice]),
        ["Chunk", "Identity { model: Some(\"b\"), id: None }", "Delta { payload: Text, choice: 2, text: \"yes\" }"]
    );
}

#[test]
fn what_was_generated_is_told_apart() {
    let seen = events(&[
        r#"{"choices":[{"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"x","function":{"name":"f","arguments":""}}]}}]}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"a\":"}},{"custom":{"name":"g","input":"i"}}]}}]}"#,
        r#"{"choices":[{"delta":{"function_call":{"name":"h","arguments":"{}"}}}]}"#,
        r#"{"choices":[{"delta":{"refusal":"no"}},{"delta":{"content":"second"}}]}"#,
        r#"{"choices":[{"delta":{"audio":{"id":"a","data":"QQ==","transcript":"hi"}}}]}"#,
        r#"{"choices":[{"delta":{"reasoning":"r","reasoning_content":"r"}}]}"#,
        r#"{"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"t"}]},{"type":"text","text":"u"},{"type":"reference"}]}}]}"#,
    ]);
    let deltas: Vec<&str> = seen.iter().filter(|e| *e != "Chunk").map(String::as_str).collect();
    assert_eq!(
        deltas,
        [
            r#"Delta { payload: ToolName, choice: 0, text: "f" }"#,
            r#"Delta { payload: ToolArguments, choice: 0, text: "{\"a\":" }"#,
            r#"Delta { payload: ToolName, choice: 0, text: "g" }"#,
            r#"Delta { payload: ToolArguments, choice: 0, text: "i" }"#,
            r#"Delta { payload: ToolName, choice: 0, text: "h" }"#,
            r#"Delta { payload: ToolArguments, choice: 0, text: "{}" }"#,
            r#"Delta { payload: Refusal, choice: 0, text: "no" }"#,
            r#"Delta { payload: Text, choice: 1, text: "second" }"#,
            r#"Delta { payload: Audio, choice: 0, text: "hi" }"#,
            r#"Delta { payload: Audio, choice: 0, text: "QQ==" }"#,
            r#"Delta { payload: Reasoning, choice: 0, text: "r" }"#,
            r#"Delta { payload: Reasoning, choice: 0, text: "t" }"#,
            r#"Delta { payload: Text, choice: 0, text: "u" }"#,
        ]
    );
}

#[test]
fn role_empty_filter_and_usage_events_are_chunks_without_deltas() {
    let seen = events(&[
        r#"{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0}]}"#,
        r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null}}]}"#,
        r#"{"choices":[{"index":0,"delta":{}}],"obfuscation":"abc"}"#,
        r#"{"choices":[{"index":0,"delta":null}]}"#,
        r#"{}"#,
    ]);
    assert_eq!(seen, ["Chunk"; 5]);
}

#[test]
fn wrong_types_are_let_pass_and_only_broken_json_is_a_defect() {
    let mut run = Run::new();
    for odd in [
        r#"{"choices":{"a":1},"id":7,"model":["m"],"usage":3,"error":null}"#,
        r#"{"choices":[1,"x",null,[],{"delta":"x"},{"delta":{"content":7,"tool_calls":{"a":1}},"finish_reason":{}}]}"#,
        r#"{"choices":[{"index":-1,"delta":{"content":"ok"}}]}"#,
    ] {
        run.feed(odd);
    }
    assert_eq!(run.stats.drops(DropReason::JsonInvalid), 0);
    assert_eq!(run.events, ["Chunk", "Chunk", "Chunk", "Delta { payload: Text, choice: 0, text: \"ok\" }"]);
    let deep = format!(r#"{{"choices":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let deep_delta = format!(r#"{{"choices":[{{"delta":{}"#, r#"{"delta":"#.repeat(100_000));
    for bad in ["{", "null", "7", "\"x\"", "hello", "{\"choices\":[}", "{} {}", &deep_delta] {
        let before = run.stats.drops(DropReason::JsonInvalid);
        run.feed(bad);
        assert_eq!(run.stats.drops(DropReason::JsonInvalid), before + 1, "{}", &bad[..bad.len().min(40)]);
    }
    run.feed(&deep);
    assert_eq!(run.events.len(), 5, "nesting that nobody reads costs nothing");
}

#[test]
fn a_small_event_cannot_grow_into_large_memory() {
    let many = format!(r#"{{"choices":[{}{{}}]}}"#, r#"{"delta":{}},"#.repeat(100_000));
    assert_eq!(Completion::parse(&many).unwrap().0.choices.items.len(), 128);
}

#[test]
fn text_that_is_no_utf8_is_counted_and_the_rest_still_counts() {
    let mut run = Run::new();
    let data = b"{\"choices\":[{\"delta\":{\"content\":\"a\xff\"}}]}";
    run.with(|chat, out| chat.frame(Frame { name: b"", error: false, data, whole: true }, out));
    assert_eq!(run.events, ["Chunk", "Delta { payload: Text, choice: 0, text: \"a\u{fffd}\" }"]);
    assert_eq!(run.stats.drops(DropReason::Utf8Invalid), 1);
}

#[test]
fn identity_is_told_once_and_again_when_it_changes() {
    let chunk =
        |id: &str| format!(r#"{{"id":"{id}","model":"m","choices":[{{"index":0,"delta":{{"content":"x"}}}}]}}"#);
    let full = |id: &str| format!(r#"{{"id":"{id}","model":"m","choices":[],"usage":{{"prompt_tokens":1}}}}"#);
    let seen = events(&[
        &chunk("a"),
        &chunk("a"),
        &chunk("a"),
        &full("b"),
        &chunk("a"),
        &chunk("a"),
        &chunk("c"),
        &chunk("a"),
    ]);
    let ids: Vec<&str> = seen.iter().filter(|e| e.starts_with("Identity")).map(String::as_str).collect();
    let id = |id: &str| format!("Identity {{ model: None, id: Some(\"{id}\") }}");
    assert_eq!(ids[0], "Identity { model: Some(\"m\"), id: Some(\"a\") }");
    assert_eq!(ids[1..], [id("b"), id("a"), id("c"), id("a")]);
}

#[test]
fn a_whole_message_in_a_stream_counts_unless_it_repeats_the_deltas() {
    let whole = r#"{"object":"chat.completion.done","choices":[{"index":0,"message":{"content":"ab"}}]}"#;
    assert_eq!(events(&[whole]).len(), 2);
    let delta = r#"{"choices":[{"index":0,"delta":{"content":"ab"},"message":{"content":"ab"}}]}"#;
    assert_eq!(events(&[delta, whole]).iter().filter(|e| e.starts_with("Delta")).count(), 1);
}

#[test]
fn an_error_in_the_stream_is_told_once() {
    let mut run = Run::new();
    run.feed(r#"{"choices":[{"index":0,"delta":{"content":"x"}}],"error":{"code":502,"message":"secret"}}"#);
    run.feed(r#"{"error":{"type":"other"}}"#);
    run.feed("[DONE]");
    let rest: Vec<&str> = run.events[2..].iter().map(String::as_str).collect();
    assert_eq!(rest, ["Error(ErrorFacts { error_type: \"502\" })", "Chunk", "Done"]);
    for (data, kind) in [
        (r#"{"object":"error","message":"m","type":"BadRequestError","code":400}"#, "BadRequestError"),
        (r#"{"error":"overloaded"}"#, "overloaded"),
        (r#"{"error":"Sorry, it did not work"}"#, "_OTHER"),
        (r#"{"error":{"code":"429","type":"rate_limit"}}"#, "rate_limit"),
        (r#"{"choices":[],"x_groq":{"error":"over_capacity"}}"#, "over_capacity"),
    ] {
        assert_eq!(events(&[data])[1], format!("Error(ErrorFacts {{ error_type: {kind:?} }})"), "{data}");
    }
    let mut named = Run::new();
    named.with(|chat, out| chat.frame(Frame { name: b"error", error: true, data: b"oops", whole: true }, out));
    assert_eq!(named.events, ["Chunk", "Error(ErrorFacts { error_type: \"_OTHER\" })"]);
}

#[test]
fn nothing_after_the_end_marker_counts_and_pings_do_not() {
    let mut run = Run::new();
    run.with(|chat, out| chat.frame(Frame { name: b"ping", error: false, data: b"{}", whole: true }, out));
    run.feed(" [DONE] ");
    run.feed(r#"{"choices":[{"delta":{"content":"x"}}]}"#);
    assert_eq!(run.events, ["Done"]);
}

/// Chunks near the usual shape: members in any order, missing, repeated, of odd types, with odd spaces and texts.
fn chunk() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        Just("\"\""),
        Just("\"a\""),
        Just("\" hello world, this is text\""),
        Just("\"q\\\"\\n\\\\\""),
        Just("\"\\u4f60\\u597d\""),
        Just("\"\\ud83d\\ude00\""),
        Just("\"\\ud83d\""),
        Just("\"é😀\""),
        Just("null"),
        Just("7"),
        Just("\"\\x\""),
        Just("[]"),
        Just("\"\u{7f}\u{9b}\""),
        Just("\"tab\t\"")
    ];
    let scalar = prop_oneof![
        Just("null"),
        Just("1"),
        Just("0"),
        Just("01"),
        Just("-1"),
        Just("1.5"),
        Just("1e3"),
        Just("12345678901234567890123"),
        Just("true"),
        Just("\"x\""),
        Just("\"y\\n\""),
        Just("{}"),
        Just("[]"),
        Just("nul"),
        Just("\"error\""),
        Just("\"chat.completion.chunk\"")
    ];
    let delta_key = prop_oneof![
        6 => Just("content"), 2 => Just("role"), 2 => Just("refusal"), 2 => Just("reasoning_content"), 2 => Just("reasoning"),
        3 => Just("tool_calls"), 1 => Just("audio"), 1 => Just("x"), 1 => Just("cont\\u0065nt")
    ];
    let call_key = prop_oneof![
        3 => Just("arguments"), 2 => Just("name"), 1 => Just("input"), 1 => Just("x")
    ];
    let function = prop::collection::vec((call_key, text.clone()), 1..3).prop_map(|m| {
        let members: Vec<String> = m.into_iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
        format!("[{{\"index\":0,\"function\":{{{}}}}}]", members.join(","))
    });
    let text = prop_oneof![6 => text.prop_map(str::to_owned), 1 => function];
    let delta = prop::collection::vec((delta_key, text), 0..4)
        .prop_map(|m| m.into_iter().map(|(k, v)| format!("\"{k}\":{v}")).collect::<Vec<_>>().join(","))
        .prop_map(|m| format!("{{{m}}}"));
    let choice_key = prop_oneof![
        3 => Just("index"), 3 => Just("logprobs"), 3 => Just("finish_reason"), 1 => Just("message"), 1 => Just("usage"), 1 => Just("stop_reason"), 2 => Just("text")
    ];
    let choice =
        (prop::collection::vec((choice_key, scalar.clone()), 0..4), prop::option::weighted(0.95, delta), 0_usize..5)
            .prop_map(|(members, delta, at)| {
                let mut parts: Vec<String> = members.into_iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
                if let Some(delta) = delta {
                    parts.insert(at.min(parts.len()), format!("\"delta\":{delta}"));
                }
                format!("{{{}}}", parts.join(","))
            });
    let choices = prop::collection::vec(choice, 0..3).prop_map(|c| format!("[{}]", c.join(",")));
    let choices = prop_oneof![8 => choices, 1 => Just("null".to_owned())];
    let top_key = prop_oneof![
        4 => Just("id"), 4 => Just("model"), 4 => Just("object"), 3 => Just("created"), 2 => Just("usage"), 1 => Just("error"),
        1 => Just("x_groq"), 1 => Just("type"), 1 => Just("code"), 1 => Just("timings"), 2 => Just("obfuscation"), 1 => Just("choices")
    ];
    (
        prop::collection::vec((top_key, scalar), 0..5),
        choices,
        0_usize..6,
        prop::sample::select(vec!["", "", "", " ", "\n", ",", "}"]),
        any::<bool>(),
    )
        .prop_map(|(members, choices, at, tail, spaced)| {
            let mut parts: Vec<String> = members.into_iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
            parts.insert(at.min(parts.len()), format!("\"choices\":{choices}"));
            let text = format!("{{{}}}{tail}", parts.join(","));
            if spaced { text.replace(":", ": ").replace("\",\"", "\", \"") } else { text }
        })
}

/// A chunk of the usual layout, with a few of its bytes changed.
fn mutated() -> impl Strategy<Value = String> {
    let base = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1764499721,"model":"gpt-4o","system_fingerprint":"fp_1","choices":[{"index":0,"delta":{"content":" word\n"},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"aB"}"#;
    prop::collection::vec(
        (
            any::<prop::sample::Index>(),
            prop::sample::select(vec!["", "\"", "\\", "{", "}", ",", ":", "[", "]", "0", "n", " ", "é", "\"a\":1,"]),
        ),
        0..4,
    )
    .prop_map(move |edits| {
        let mut text: Vec<char> = base.chars().collect();
        for (at, with) in edits {
            let at = at.index(text.len());
            text.splice(at..at + 1, with.chars());
        }
        text.into_iter().collect()
    })
}

/// A run of chunks that differ in their text and padding only, and now and then in more.
fn family() -> impl Strategy<Value = Vec<String>> {
    let layout = prop::sample::select(vec![
        r#"{"id":"ID","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":1,"delta":{"content":TEXT},"logprobs":null,"finish_reason":FIN}],"usage":null,"obfuscation":"PAD"}"#,
        r#"{"id":"ID","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":TEXT}}]},"finish_reason":FIN}]}"#,
        r#"{"choices":[{"delta":{"reasoning_content":TEXT,"content":null},"finish_reason":FIN,"index":2}],"id":"ID","model":"m","system_fingerprint":"PAD"}"#,
        r#"{"choices":[{"delta":{"role":"assistant","reasoning":"","reasoning_content":TEXT},"finish_reason":FIN}],"id":"ID"}"#,
        r#"{"choices":[{"delta":{"content":"","refusal":TEXT},"finish_reason":FIN,"x":"PAD"}],"id":"ID"}"#,
        r#"{"choices":[{"delta":{"content":TEXT,"content":null},"finish_reason":FIN}],"id":"ID"}"#,
        r#"{"choices":[{"delta":{"content":TEXT},"finish_reason":FIN}],"id":"ID","error":"PAD"}"#,
        r#"{"id":"ID","object":"text_completion","model":"m","choices":[{"index":1,"text":TEXT,"logprobs":null,"finish_reason":FIN}],"x":"PAD"}"#,
        r#"{"id":"ID","choices":[{"text":TEXT,"delta":{"content":TEXT},"finish_reason":FIN}],"x":"PAD"}"#,
        r#"{"id": "ID", "pad": "PAD", "choices": [{"index": 0, "delta": {"content": TEXT}, "finish_reason": FIN}]}"#,
    ]);
    let text = prop::sample::select(vec![
        r#""""#,
        r#"" a""#,
        r#"" b""#,
        r#""\"\n""#,
        r#""é😀""#,
        r#""\u4f60""#,
        r#""\ud83d\ude00""#,
        "null",
        "7",
        r#""x","content":"y""#,
        r#"""}}]}"#,
        r#""\ud83d""#,
        "\"tab\t\"",
        r#"""#,
    ]);
    let id = prop_oneof![9 => Just("a"), 1 => Just("b"), 1 => Just("")];
    let fin = prop_oneof![9 => Just("null"), 1 => Just("\"stop\"")];
    let pad = prop::sample::select(vec!["", "q", "qqqqqqqqq", "\\n", "é", "\"}", "\",\"id\":\"c"]);
    layout.prop_flat_map(move |layout| {
        prop::collection::vec((text.clone(), id.clone(), fin.clone(), pad.clone()), 1..9).prop_map(move |members| {
            let fill = |(text, id, fin, pad): (&str, &str, &str, &str)| {
                layout.replace("PAD", pad).replace("TEXT", text).replace("ID", id).replace("FIN", fin)
            };
            members.into_iter().map(fill).collect()
        })
    })
}

fn same_either_way<'a>(chunks: impl IntoIterator<Item = &'a String>) -> Result<(), TestCaseError> {
    let (mut fast, mut full) = (Run::new(), Run::new());
    for chunk in chunks {
        fast.feed(chunk);
        full.feed_full(chunk);
        prop_assert_eq!(&fast.events, &full.events, "after {}", chunk);
    }
    prop_assert_eq!(fast.stats, full.stats);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_fast_path_says_what_the_full_parse_says(
        chunks in prop::collection::vec(prop_oneof![chunk(), mutated()], 1..4), repeat in 1_usize..5) {
        same_either_way(std::iter::repeat_n(&chunks, repeat).flatten())?;
    }

    #[test]
    fn a_template_says_what_the_full_parse_says(a in family(), b in family()) {
        same_either_way(a.iter().chain(&b).chain(&a))?;
    }
}

#[test]
fn the_second_chunk_of_a_kind_is_read_by_its_template() {
    let chunk = |text: &str, pad: &str| {
        format!(
            r#"{{"id":"c","choices":[{{"index":1,"delta":{{"content":"{text}"}},"finish_reason":null}}],"usage":null,"obfuscation":"{pad}"}}"#
        )
    };
    let mut template = Template::default();
    assert!(template.text(chunk("a", "x").as_bytes()).is_none());
    assert!(openai_fast::chunk(&chunk("a", "x"), &mut template).is_some());
    let second = chunk("b\\n", "yyy");
    assert_eq!(template.text(second.as_bytes()), Some((Field::Content, 1, Raw { text: "b\\n", escaped: true })));
    for other in [
        chunk("b", "y\\n"),
        chunk("b", "\",\"id\":\"d"),
        chunk("b", "y").replace("null}", "\"stop\"}"),
        chunk("\\ud83d", ""),
    ] {
        assert!(template.text(other.as_bytes()).is_none(), "{other}");
    }
    assert!(template.text(b"{\"id\":\"c\",\"choices\":[{\"index\":1,\"delta\":{\"content\":\"\xff\"},\"finish_reason\":null}],\"usage\":null,\"obfuscation\":\"\"}").is_none());
    template.forget();
    assert!(template.text(second.as_bytes()).is_none());
    let legacy = |text: &str| format!(r#"{{"id":"c","choices":[{{"text":"{text}","index":0,"finish_reason":null}}]}}"#);
    assert!(openai_fast::chunk(&legacy("a"), &mut template).is_some());
    assert_eq!(template.text(legacy("b").as_bytes()), Some((Field::Content, 0, Raw { text: "b", escaped: false })));
}
