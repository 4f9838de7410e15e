//! Real exchanges, where the corpus of recordings is at hand (`NEXENT_CORPUS`, else `../shared/corpus` beside the
//! checkout or beside its parent). It is no part of the project.

use std::{fs, path::PathBuf};

use nexent_observer_core::stats::Stats;
use serde_json::Value;

use crate::llm_support::{Bench, Seen};

/// Recordings of the APIs that are known.
const CHECKED: usize = 64;

fn recordings() -> Option<String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let beside = root.ancestors().skip(2).take(2).map(|dir| dir.join("shared/corpus"));
    std::env::var_os("NEXENT_CORPUS")
        .map(PathBuf::from)
        .into_iter()
        .chain(beside)
        .find_map(|dir| fs::read_to_string(if dir.is_dir() { dir.join("recordings.jsonl") } else { dir }).ok())
}

fn base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u32> = text.bytes().filter(|c| *c != b'=').map(|c| u32::from(digit(c))).collect();
    let bytes = digits.chunks(4).flat_map(|four| {
        let word = four.iter().enumerate().fold(0, |word, (i, d)| word | d << (18 - 6 * i));
        word.to_be_bytes().into_iter().skip(1).take(four.len() * 3 / 4)
    });
    bytes.collect()
}

fn replay(recording: &Value, piece: usize) -> (Seen, Stats) {
    let url = recording["request"]["url"].as_str().unwrap();
    let (host, path) = url.split_once("://").unwrap().1.split_once('/').unwrap();
    let mut bench = Bench::default();
    bench.post(&format!("/{path}"), host, recording["request"]["body"].as_str().unwrap_or_default().as_bytes());
    let headers: Vec<(&str, &[u8])> = recording["response"]["headers"]
        .as_object()
        .unwrap()
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?.as_bytes())))
        .collect();
    bench.response_head(recording["response"]["status"].as_u64().unwrap() as u16, &headers);
    let body = base64(recording["response"]["body_base64"].as_str().unwrap());
    body.chunks(piece).for_each(|piece| bench.body(piece));
    bench.end();
    (Seen { stamps: Vec::new(), ..bench.seen }, bench.stats)
}

/// What a plain reading of the body gives. Written without the decoders' code.
#[derive(Debug, Default)]
struct Reading {
    text: String,
    finish: Vec<String>,
    input: Option<u64>,
    output: Option<u64>,
}

impl Reading {
    fn finish(&mut self, reason: &Value) {
        self.finish.extend(reason.as_str().map(str::to_owned));
    }

    fn tokens(&mut self, input: &Value, output: &Value) {
        self.input = input.as_u64().or(self.input);
        self.output = output.as_u64().or(self.output);
    }
}

/// The JSON values of a body, framing taken off. Checksums are not looked at.
fn values(body: &[u8]) -> Vec<Value> {
    if body.first() == Some(&0) {
        let (mut values, mut rest) = (Vec::new(), body);
        while !rest.is_empty() {
            let number = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap()) as usize;
            let payload: Value = serde_json::from_slice(&rest[12 + number(4)..number(0) - 4]).unwrap();
            values.push(
                payload["bytes"]
                    .as_str()
                    .map_or_else(|| payload.clone(), |b| serde_json::from_slice(&base64(b)).unwrap()),
            );
            rest = &rest[number(0)..];
        }
        return values;
    }
    let Ok(body) = std::str::from_utf8(body) else { return Vec::new() };
    let lines =
        || body.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ").unwrap_or(line)).ok());
    serde_json::from_str(body).map_or_else(|_| lines().collect(), |whole| vec![whole])
}

/// How an API's events read; `None` for what is not to be taken for an LLM call.
fn reader(url: &str) -> Option<fn(&Value, &mut Reading)> {
    let path = url.split(['?', '#']).next().unwrap();
    Some(match path {
        _ if path.ends_with("/embeddings") && !path.ends_with("/api/embeddings") => |event, all| {
            let usage = &event["usage"];
            all.tokens(
                if usage["prompt_tokens"].is_null() { &usage["total_tokens"] } else { &usage["prompt_tokens"] },
                &Value::Null,
            );
        },
        _ if path.contains("/converse") || path.contains("titan") => |event, all| {
            let parts = event["output"]["message"]["content"].as_array().into_iter().flatten();
            all.text.extend(parts.chain([&event["delta"]]).filter_map(|part| part["text"].as_str()));
            all.text += event["outputText"].as_str().unwrap_or_default();
            all.finish(&event["stopReason"]);
            all.finish(&event["completionReason"]);
            all.tokens(&event["usage"]["inputTokens"], &event["usage"]["outputTokens"]);
            let metrics = &event["amazon-bedrock-invocationMetrics"];
            all.tokens(&metrics["inputTokenCount"], &metrics["outputTokenCount"]);
        },
        _ if path.ends_with("/v2/chat") || path.ends_with("/v2/embed") => |event, all| {
            let content = &event["delta"]["message"]["content"];
            let parts = event["message"]["content"].as_array().into_iter().flatten();
            all.text.extend(parts.chain([content]).filter_map(|part| part["text"].as_str()));
            for end in [event, &event["delta"]] {
                all.finish(&end["finish_reason"]);
                all.tokens(
                    &end["usage"]["billed_units"]["input_tokens"],
                    &end["usage"]["billed_units"]["output_tokens"],
                );
                all.tokens(&end["meta"]["billed_units"]["input_tokens"], &Value::Null);
            }
        },
        _ if path.ends_with("/v1/messages") || path.contains("/invoke") => |event, all| {
            let parts = event["content"].as_array().into_iter().flatten();
            all.text.extend(parts.chain([&event["delta"]]).filter_map(|part| part["text"].as_str()));
            all.finish(&event["stop_reason"]);
            all.finish(&event["delta"]["stop_reason"]);
            for usage in [&event["message"]["usage"], &event["usage"]] {
                all.tokens(&usage["input_tokens"], &usage["output_tokens"]);
            }
        },
        _ if path.contains(":generateContent") => |event, all| {
            for candidate in event["candidates"].as_array().into_iter().flatten() {
                let parts = candidate["content"]["parts"].as_array().into_iter().flatten();
                all.text.extend(parts.filter(|part| part["thought"] != true).filter_map(|part| part["text"].as_str()));
                all.finish(&candidate["finishReason"]);
            }
            let usage = &event["usageMetadata"];
            let thoughts = usage["thoughtsTokenCount"].as_u64().unwrap_or(0);
            all.tokens(
                &usage["promptTokenCount"],
                &(usage["candidatesTokenCount"].as_u64().unwrap() + thoughts).into(),
            );
        },
        _ if path.ends_with("/api/embeddings") => |_, _| {},
        _ if path.ends_with("/api/chat") || path.ends_with("/api/generate") => |event, all| {
            all.text += event["message"]["content"].as_str().unwrap_or_default();
            all.text += event["response"].as_str().unwrap_or_default();
            all.finish(&event["done_reason"]);
            all.tokens(&event["prompt_eval_count"], &event["eval_count"]);
        },
        _ if path.ends_with("/responses") => |event, all| {
            if event["type"] == "response.output_text.delta" {
                all.text += event["delta"].as_str().unwrap();
            }
            let whole = if event["object"] == "response" { event } else { &event["response"] };
            let parts = event["output"].as_array().into_iter().flatten().flat_map(|item| item["content"].as_array());
            all.text.extend(parts.flatten().filter_map(|part| part["text"].as_str()));
            if whole["usage"].is_object() {
                all.tokens(&whole["usage"]["input_tokens"], &whole["usage"]["output_tokens"]);
                all.finish(&whole["status"]);
            }
        },
        _ if path.ends_with("/completions") => |event, all| {
            all.text += event["value"].as_str().unwrap_or_default();
            for choice in event["choices"].as_array().into_iter().flatten() {
                let texts = [&choice["delta"]["content"], &choice["message"]["content"], &choice["text"]];
                all.text += texts.into_iter().find_map(Value::as_str).unwrap_or_default();
                all.finish(&choice["finish_reason"]);
            }
            for usage in [&event["x_groq"]["usage"], &event["usage"]] {
                all.tokens(&usage["prompt_tokens"], &usage["completion_tokens"]);
            }
        },
        _ => return None,
    })
}

fn shown(count: Option<u64>) -> String {
    count.map_or_else(|| "-".to_owned(), |n| n.to_string())
}

#[test]
fn recorded_exchanges_are_read_as_they_are() {
    let Some(recordings) = recordings() else {
        println!("SKIPPED: no corpus of recordings found (set NEXENT_CORPUS to its folder); nothing was checked");
        return;
    };
    let mut checked = 0;
    for line in recordings.lines() {
        let recording: Value = serde_json::from_str(line).unwrap();
        let name = recording["name"].as_str().unwrap();
        let Some(read) = reader(recording["request"]["url"].as_str().unwrap()) else {
            let (seen, _) = replay(&recording, 1000);
            assert_eq!(seen.log(), "NotLlm", "{name}");
            continue;
        };
        checked += 1;
        let body = base64(recording["response"]["body_base64"].as_str().unwrap());
        let (seen, stats) = replay(&recording, usize::MAX);
        for piece in [1, 97, 200] {
            assert_eq!(replay(&recording, piece), (seen.clone(), stats.clone()), "{name} in pieces of {piece}");
        }
        let mut all = Reading::default();
        values(&body).iter().for_each(|value| read(value, &mut all));
        assert_eq!((&seen.text, &seen.finish), (&all.text, &all.finish), "{name}");
        assert_eq!(seen.usage.and_then(|u| u.input), all.input, "{name}");
        assert_eq!(seen.usage.and_then(|u| u.output), all.output, "{name}");
        let failed = recording["response"]["status"].as_u64().unwrap() >= 400;
        assert_eq!(seen.error.is_some(), failed, "{name}");
        let call = seen.call.unwrap();
        let embeddings = call.operation == "embeddings";
        assert_eq!(seen.deltas == 0, failed || embeddings, "{name}");
        assert_eq!(seen.log.last().map(String::as_str), Some("End"), "{name}");
        let request = seen.request.unwrap();
        assert!(request.model.is_some() && !request.truncated, "{name}");
        let mut clean = Stats::default();
        clean.chunks = stats.chunks;
        assert_eq!(stats, clean, "{name}: no defects");
        println!(
            "{:<15} {:<16} {:<28} in {:>4} out {:>4} chunks {:>4} first token in chunk {:?} {:?} {:?}  {name}",
            call.provider.unwrap_or("-"),
            call.operation,
            seen.model.as_deref().or(request.model.as_deref()).unwrap_or("-"),
            shown(all.input),
            shown(all.output),
            seen.chunks,
            seen.first_token_chunk,
            seen.finish,
            seen.error,
        );
    }
    assert!(checked >= CHECKED, "only {checked} of the recordings were checked");
}
