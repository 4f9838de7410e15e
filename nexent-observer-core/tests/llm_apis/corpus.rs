//! Real exchanges, where the corpus of recordings is at hand (`NEXENT_OBSERVER_CORPUS`, else `../shared/corpus` beside the
//! checkout or beside its parent). It is no part of the project.

use std::{fs, path::PathBuf};

use nexent_observer_core::stats::Stats;
use serde_json::Value;

use crate::{
    llm_support::{Bench, Seen},
    sdk,
};

fn recordings() -> Option<String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let beside = root.ancestors().skip(2).take(2).map(|dir| dir.join("shared/corpus"));
    std::env::var_os("NEXENT_OBSERVER_CORPUS")
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

/// Skips, and says so, where the recordings are absent: they are no part of the project.
#[test]
fn recorded_exchanges_are_read_as_the_official_sdks_read_them() {
    let Some(recordings) = recordings() else {
        println!(
            "SKIPPED: no corpus of recordings found (set NEXENT_OBSERVER_CORPUS to its folder); nothing was checked"
        );
        return;
    };
    let rows = sdk::rows("recordings.jsonl");
    assert_eq!(recordings.lines().count(), rows.len(), "the numbers are of these recordings");
    let mut differences = sdk::Differences::read();
    for (row, line) in rows.iter().zip(recordings.lines()) {
        let recording: Value = serde_json::from_str(line).unwrap();
        let name = recording["name"].as_str().unwrap();
        let body = base64(recording["response"]["body_base64"].as_str().unwrap());
        assert_eq!(row["crc32"], crc32fast::hash(&body), "{name}: the numbers are of other bytes");
        let (seen, stats) = replay(&recording, usize::MAX);
        if row["sdk"].is_null() {
            assert_eq!(seen.log(), "NotLlm", "{name}");
            continue;
        }
        for piece in [1, 97, 200] {
            assert_eq!(replay(&recording, piece), (seen.clone(), stats.clone()), "{name} in pieces of {piece}");
        }
        println!("{}  {name}", sdk::line(&seen));
        differences.check(&format!("recording {}", row["row"]), row, &seen);
        let failed = recording["response"]["status"].as_u64().unwrap() >= 400;
        let embeddings = seen.call.as_ref().unwrap().operation == "embeddings";
        assert_eq!((seen.error.is_some(), seen.deltas == 0), (failed, failed || embeddings), "{name}");
        assert_eq!(seen.log.last().map(String::as_str), Some("End"), "{name}");
        let request = seen.request.unwrap();
        assert!(request.model.is_some() && !request.truncated, "{name}");
        let mut clean = Stats::default();
        clean.chunks = stats.chunks;
        assert_eq!(stats, clean, "{name}: no defects");
    }
    differences.close("recording ");
}
