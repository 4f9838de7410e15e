//! OpenAI chat completions and everything of that shape (`POST .../chat/completions`).
//!
//! Source: OpenAI API reference, "Create chat completion" and "The chat completion chunk object"; what other servers do
//! differently is named where it matters.

use std::borrow::Cow;

use super::{
    LlmEventKind, Payload, RequestFacts,
    api::{Api, Decoder, Frame, Member, Out, RequestDraft, Shape, Value},
    json_str, name,
    openai_fast::{self, Raw},
    openai_parse::{Choice, Completion, Content, Function, Message, Part},
};
use crate::stats::DropReason;

/// The row of this API.
pub(super) static API: Api = Api {
    operation: "chat",
    fallback_provider: "openai_compatible",
    paths: &["/chat/completions"],
    path_model: azure_deployment,
    request,
    request_shape: |shape| shape.contains(&Shape::Model) && shape.contains(&Shape::Messages),
    recognise: |json| Completion::parse(json).is_some_and(|c| c.is_chat()),
    decoder: || Box::<Chat>::default(),
};

/// `/openai/deployments/{deployment}/chat/completions`: on Azure the deployment is what is asked for.
fn azure_deployment(path: &str) -> Option<&str> {
    let (_, rest) = path.split_once("/deployments/")?;
    rest.split('/').next().filter(|name| !name.is_empty())
}

fn request(draft: &mut RequestDraft, member: Member<'_>) {
    let RequestDraft { facts, max_tokens_fixed } = draft;
    let RequestFacts { model, stream, max_tokens, temperature, top_p, choices, truncated: _ } = facts;
    if member.parent.is_some() {
        return;
    }
    let value = member.value;
    match member.key {
        "model" => {
            *model = match value {
                Value::Str(text) if !text.is_empty() => Some(name::clean(text).into_owned()),
                _ => None,
            }
        }
        "stream" => *stream = if let Value::Bool(yes) = value { Some(yes) } else { None },
        "max_completion_tokens" => {
            if let Some(count) = value.count() {
                (*max_tokens, *max_tokens_fixed) = (Some(count), true);
            }
        }
        // The older name of the same bound.
        "max_tokens" if !*max_tokens_fixed => *max_tokens = value.count(),
        "temperature" => *temperature = value.float(),
        "top_p" => *top_p = value.float(),
        "n" => *choices = value.count().and_then(|n| n.try_into().ok()),
        _ => {}
    }
}

/// Decoder of one response.
#[derive(Debug, Default)]
struct Chat {
    model: String,
    id: String,
    /// A delta was seen, so a whole `message` in the stream repeats it (Perplexity).
    streamed: bool,
    done: bool,
    scratch: String,
    beginning: openai_fast::Beginning,
}

impl Decoder for Chat {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Out<'_>) {
        // Clients stop reading at the end marker; what comes after it was never delivered.
        if self.done || frame.name == b"ping" {
            return;
        }
        if frame.data.trim_ascii() == b"[DONE]" {
            self.done = true;
            out.emit(LlmEventKind::Done);
            return;
        }
        let json = text(frame.data, out);
        if frame.name != b"error"
            && let Some(chunk) = openai_fast::chunk(&json, &mut self.beginning)
        {
            self.fast(&chunk, out);
            return;
        }
        match Completion::parse(&json) {
            Some(completion) => self.full(&completion, frame.name == b"error", out),
            None if frame.name == b"error" => {
                out.emit(LlmEventKind::Chunk);
                out.error(super::api::ErrorEvidence::default());
            }
            None if frame.whole => out.count(DropReason::JsonInvalid),
            None => {}
        }
    }

    fn body(&mut self, body: &[u8], out: &mut Out<'_>) {
        let failed = out.status.is_some_and(|s| s >= 400);
        let json = text(body, out);
        match Completion::parse(&json) {
            Some(completion) => self.full(&completion, failed, out),
            // The body of an error may be anything: a proxy's page, a line of text, nothing.
            None if failed => {}
            None => out.count(DropReason::JsonInvalid),
        }
    }
}

impl Chat {
    fn fast(&mut self, chunk: &openai_fast::Chunk<'_>, out: &mut Out<'_>) {
        let openai_fast::Chunk { id, model, choice, content, refusal, reasoning_content, reasoning, finish } = *chunk;
        out.emit(LlmEventKind::Chunk);
        self.identity(id, model, out);
        let filled = |raw: Option<Raw<'_>>| raw.is_some_and(|r| !r.text.is_empty());
        let thought = if filled(reasoning_content) { reasoning_content } else { reasoning };
        let texts = [(Payload::Reasoning, thought), (Payload::Text, content), (Payload::Refusal, refusal)];
        let mut any = false;
        for (payload, raw) in texts {
            let Some(raw) = raw.filter(|r| !r.text.is_empty()) else { continue };
            any = true;
            let text = if raw.escaped {
                self.scratch.clear();
                json_str::unescape_into(raw.text, &mut self.scratch);
                &self.scratch
            } else {
                raw.text
            };
            out.emit(LlmEventKind::Delta { payload, choice, text });
        }
        self.note_output(any, out);
        finish_of(choice, finish, out);
    }

    fn full(&mut self, completion: &Completion<'_>, failed: bool, out: &mut Out<'_>) {
        out.emit(LlmEventKind::Chunk);
        self.identity(completion.id.non_empty(), completion.model.non_empty(), out);
        let mut any = false;
        for (position, choice) in completion.choices.items.iter().enumerate() {
            let number = choice.index.0.and_then(|i| u32::try_from(i).ok()).unwrap_or(position as u32);
            if let Some(message) = self.message_of(choice) {
                deltas(message, &mut |payload, text: &str| {
                    if !text.is_empty() {
                        any = true;
                        out.emit(LlmEventKind::Delta { payload, choice: number, text });
                    }
                });
            }
        }
        self.note_output(any, out);
        for (position, choice) in completion.choices.items.iter().enumerate() {
            let number = choice.index.0.and_then(|i| u32::try_from(i).ok()).unwrap_or(position as u32);
            finish_of(number, choice.finish_reason.non_empty(), out);
        }
        let usage = completion.usage();
        if usage != super::Usage::default() {
            out.emit(LlmEventKind::Usage(usage));
        }
        if let Some(evidence) = completion.error(failed) {
            out.error(evidence);
        }
    }

    fn message_of<'c, 'de>(&self, choice: &'c Choice<'de>) -> Option<&'c Message<'de>> {
        match (&choice.delta, &choice.message) {
            (Some(delta), _) => Some(delta),
            (None, Some(message)) if !self.streamed => Some(message),
            _ => None,
        }
    }

    fn note_output(&mut self, any: bool, out: &mut Out<'_>) {
        if any {
            self.streamed = true;
            out.stats.chunks += 1;
        }
    }

    /// Reports `id` and `model` when they are new. Azure's first event has both empty: those are no values.
    fn identity(&mut self, id: Option<&str>, model: Option<&str>, out: &mut Out<'_>) {
        let id = changed(&mut self.id, id);
        let model = changed(&mut self.model, model);
        if id || model {
            self.beginning.forget();
            out.emit(LlmEventKind::Identity {
                model: model.then_some(self.model.as_str()),
                id: id.then_some(self.id.as_str()),
            });
        }
    }
}

/// The text of an event or body; what is no UTF-8 is counted and replaced, for the rest of it still counts.
fn text<'a>(bytes: &'a [u8], out: &mut Out<'_>) -> Cow<'a, str> {
    let text = String::from_utf8_lossy(bytes);
    if let Cow::Owned(_) = text {
        out.count(DropReason::Utf8Invalid);
    }
    text
}

fn changed(kept: &mut String, seen: Option<&str>) -> bool {
    let Some(seen) = seen.filter(|s| !s.is_empty() && *s != kept.as_str()) else { return false };
    let seen = name::clean(seen);
    if seen.is_empty() || *seen == **kept {
        return false;
    }
    kept.clear();
    kept.push_str(&seen);
    true
}

fn finish_of(choice: u32, reason: Option<&str>, out: &mut Out<'_>) {
    if let Some(reason) = reason.filter(|r| !r.is_empty()) {
        out.emit(LlmEventKind::Finish { choice, reason: &name::clean(reason) });
    }
}

/// Everything generated in one `delta` or `message`; texts may be empty.
fn deltas(message: &Message<'_>, on: &mut dyn FnMut(Payload, &str)) {
    // Some servers send the same thought under both names: only one of them counts.
    let thought = message.reasoning_content.non_empty().or_else(|| message.reasoning.non_empty());
    on(Payload::Reasoning, thought.unwrap_or_default());
    content(&message.content, on);
    on(Payload::Refusal, message.refusal.non_empty().unwrap_or_default());
    for call in &message.tool_calls.items {
        for called in [&call.function, &call.custom].into_iter().flatten() {
            function(called, on);
        }
    }
    if let Some(called) = &message.function_call {
        function(called, on);
    }
    if let Some(audio) = &message.audio {
        on(Payload::Audio, audio.transcript.non_empty().unwrap_or_default());
        on(Payload::Audio, audio.data.non_empty().unwrap_or_default());
    }
}

fn content(content: &Content<'_>, on: &mut dyn FnMut(Payload, &str)) {
    on(Payload::Text, content.text.non_empty().unwrap_or_default());
    for Part { text, thinking, .. } in &content.parts.items {
        on(Payload::Reasoning, thinking.text.non_empty().unwrap_or_default());
        for part in &thinking.parts.items {
            on(Payload::Reasoning, part.text.non_empty().unwrap_or_default());
        }
        on(Payload::Text, text.non_empty().unwrap_or_default());
    }
}

fn function(called: &Function<'_>, on: &mut dyn FnMut(Payload, &str)) {
    on(Payload::ToolName, called.name.non_empty().unwrap_or_default());
    on(Payload::ToolArguments, called.arguments.non_empty().unwrap_or_default());
}

#[cfg(test)]
mod tests {
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
            Self {
                chat: Chat::default(),
                stats: Stats::default(),
                errored: false,
                status: Some(200),
                events: Vec::new(),
            }
        }

        fn with(&mut self, f: impl FnOnce(&mut Chat, &mut Out<'_>)) {
            let events = &mut self.events;
            let mut sink = |ev: LlmEvent<'_>| events.push(format!("{:?}", ev.kind));
            f(
                &mut self.chat,
                &mut Out {
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
            self.with(|chat, out| chat.frame(Frame { name: b"", data: data.as_bytes(), whole: true }, out));
        }

        /// The event through the full parse only.
        fn feed_full(&mut self, data: &str) {
            self.with(|chat, out| match Completion::parse(data) {
                Some(completion) => chat.full(&completion, false, out),
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
        Some(Completion::parse(&text).unwrap().usage()).filter(|u| *u != Usage::default())
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
            let mut beginning = openai_fast::Beginning::default();
            assert!(openai_fast::chunk(chunk, &mut beginning).is_some(), "{chunk}");
            assert!(openai_fast::chunk(chunk, &mut beginning).is_some(), "{chunk}");
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
        let groq =
            json!({"choices":[],"x_groq":{"usage":{"prompt_tokens":18,"completion_tokens":73,"total_time":0.5}}});
        assert_eq!(usage(&groq), u(18, 73, None, None));
        let moonshot = json!({"choices":[{"index":0,"delta":{},"usage":{"prompt_tokens":1,"completion_tokens":2,"cached_tokens":1}}]});
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
        assert_eq!(Completion::parse(&many).unwrap().choices.items.len(), 128);
    }

    #[test]
    fn text_that_is_no_utf8_is_counted_and_the_rest_still_counts() {
        let mut run = Run::new();
        let data = b"{\"choices\":[{\"delta\":{\"content\":\"a\xff\"}}]}";
        run.with(|chat, out| chat.frame(Frame { name: b"", data, whole: true }, out));
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
        named.with(|chat, out| chat.frame(Frame { name: b"error", data: b"oops", whole: true }, out));
        assert_eq!(named.events, ["Chunk", "Error(ErrorFacts { error_type: \"_OTHER\" })"]);
    }

    #[test]
    fn nothing_after_the_end_marker_counts_and_pings_do_not() {
        let mut run = Run::new();
        run.with(|chat, out| chat.frame(Frame { name: b"ping", data: b"{}", whole: true }, out));
        run.feed(" [DONE] ");
        run.feed(r#"{"choices":[{"delta":{"content":"x"}}]}"#);
        assert_eq!(run.events, ["Done"]);
    }

    #[test]
    fn the_deployment_in_an_azure_path_is_the_model_asked_for() {
        assert_eq!(azure_deployment("/openai/deployments/my-gpt/chat/completions"), Some("my-gpt"));
        assert_eq!(azure_deployment("/v1/chat/completions"), None);
        assert_eq!(azure_deployment("/openai/deployments//chat/completions"), None);
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
            1 => Just("tool_calls"), 1 => Just("audio"), 1 => Just("x"), 1 => Just("cont\\u0065nt")
        ];
        let delta = prop::collection::vec((delta_key, text), 0..4)
            .prop_map(|m| m.into_iter().map(|(k, v)| format!("\"{k}\":{v}")).collect::<Vec<_>>().join(","))
            .prop_map(|m| format!("{{{m}}}"));
        let choice_key = prop_oneof![
            3 => Just("index"), 3 => Just("logprobs"), 3 => Just("finish_reason"), 1 => Just("message"), 1 => Just("usage"), 1 => Just("stop_reason")
        ];
        let choice = (
            prop::collection::vec((choice_key, scalar.clone()), 0..4),
            prop::option::weighted(0.95, delta),
            0_usize..5,
        )
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
                prop::sample::select(vec![
                    "", "\"", "\\", "{", "}", ",", ":", "[", "]", "0", "n", " ", "é", "\"a\":1,",
                ]),
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_fast_path_says_what_the_full_parse_says(
            chunks in prop::collection::vec(prop_oneof![chunk(), mutated()], 1..4), repeat in 1_usize..3) {
            let (mut fast, mut full) = (Run::new(), Run::new());
            for _ in 0..repeat {
                for chunk in &chunks {
                    fast.feed(chunk);
                    full.feed_full(chunk);
                }
            }
            prop_assert_eq!(&fast.events, &full.events, "{:?}", chunks);
            prop_assert_eq!(fast.stats, full.stats);
        }
    }
}
