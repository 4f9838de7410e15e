//! Real exchanges, where the corpus of recordings is at hand (`NEXENT_CORPUS`, else `../shared/corpus` beside the
//! checkout or beside its parent). It is no part of the project.

use std::{fs, path::PathBuf};

use nexent_observer_core::stats::Stats;
use serde_json::Value;

use crate::llm_support::{Bench, Seen};

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

/// What a plain reading of the body gives: text, finish reasons, output tokens. Written without the decoder's code.
fn plain_reading(recording: &Value) -> (String, Vec<String>, Option<u64>) {
    let body = String::from_utf8(base64(recording["response"]["body_base64"].as_str().unwrap())).unwrap();
    let events: Vec<Value> = if body.trim_start().starts_with("data:") {
        body.lines().filter_map(|l| serde_json::from_str(l.strip_prefix("data: ")?).ok()).collect()
    } else {
        vec![serde_json::from_str(&body).unwrap()]
    };
    let (mut text, mut finish, mut tokens) = (String::new(), Vec::new(), None);
    for event in events {
        for choice in event["choices"].as_array().into_iter().flatten() {
            text += choice["delta"]["content"]
                .as_str()
                .or_else(|| choice["message"]["content"].as_str())
                .unwrap_or_default();
            finish.extend(choice["finish_reason"].as_str().map(str::to_owned));
        }
        tokens = event["usage"]["completion_tokens"]
            .as_u64()
            .or_else(|| event["x_groq"]["usage"]["completion_tokens"].as_u64())
            .or(tokens);
    }
    (text, finish, tokens)
}

fn shown(count: Option<u64>) -> String {
    count.map_or_else(|| "-".to_owned(), |n| n.to_string())
}

#[test]
fn recorded_chat_completions_are_read_as_they_are() {
    let Some(recordings) = recordings() else {
        println!("SKIPPED: no corpus of recordings found (set NEXENT_CORPUS to its folder); nothing was checked");
        return;
    };
    let mut checked = 0;
    for line in recordings.lines() {
        let recording: Value = serde_json::from_str(line).unwrap();
        let name = recording["name"].as_str().unwrap();
        if !recording["request"]["url"].as_str().unwrap().contains("/chat/completions") {
            // Nothing else may pass for a chat completion yet.
            let (seen, _) = replay(&recording, 1000);
            assert_eq!(seen.log(), "NotLlm", "{name}");
            continue;
        }
        checked += 1;
        let (seen, stats) = replay(&recording, usize::MAX);
        for piece in [1, 97, 200] {
            assert_eq!(replay(&recording, piece), (seen.clone(), stats.clone()), "{name} in pieces of {piece}");
        }
        let (text, finish, tokens) = plain_reading(&recording);
        assert_eq!((&seen.text, &seen.finish), (&text, &finish), "{name}");
        assert_eq!(seen.usage.and_then(|u| u.output), tokens, "{name}");
        let failed = recording["response"]["status"].as_u64().unwrap() >= 400;
        assert_eq!(seen.error.is_some(), failed, "{name}");
        assert_eq!(seen.deltas == 0, failed, "{name}");
        assert_eq!(seen.log.last().map(String::as_str), Some("End"), "{name}");
        let request = seen.request.unwrap();
        assert!(request.model.is_some() && !request.truncated, "{name}");
        assert_eq!(
            stats,
            {
                let mut s = Stats::default();
                s.chunks = stats.chunks;
                s
            },
            "{name}: no defects"
        );
        println!(
            "{:<14} {:<26} in {:>4} out {:>4} chunks {:>4} first token in chunk {:?} {:?} {:?}  {name}",
            seen.call.unwrap().provider.unwrap_or("-"),
            seen.model.as_deref().or(request.model.as_deref()).unwrap_or("-"),
            shown(seen.usage.and_then(|u| u.input)),
            shown(tokens),
            seen.chunks,
            seen.first_token_chunk,
            seen.finish,
            seen.error,
        );
    }
    assert!(checked >= 20, "only {checked} chat completions in the corpus");
}
