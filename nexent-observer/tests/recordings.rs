//! Recordings of the project's own test server, replayed: the same lines as when they were made. `UPDATE_GOLDEN=1` writes the lines anew.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/recordings"))
}

fn replay(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nexent-observer"));
    command.env_clear().stdin(Stdio::null()).current_dir(folder());
    command.arg("replay").args(arguments).output().unwrap()
}

/// The lines without the ids of spans, which are made anew.
fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &mut lines {
        for id in ["trace_id", "span_id"] {
            assert!(line[id].take().is_string());
        }
    }
    // What ends with its process does so in no order.
    lines.sort_by_key(|line| line["id"].as_str().map(str::to_owned));
    lines
}

fn gives(name: &str) -> Vec<Value> {
    let tape = format!("{name}.tape");
    let found = lines(&replay(&[&tape, "--jsonl", "-"]));
    let golden = folder().join(format!("{name}.jsonl"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let text: String = found.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&golden, text).unwrap();
    }
    let text = fs::read_to_string(&golden).unwrap();
    let wanted: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (found, wanted) in found.iter().zip(&wanted) {
        assert_eq!(found, wanted);
    }
    assert_eq!(found.len(), wanted.len());
    found
}

#[test]
fn a_recorded_stall_is_a_stall_again() {
    let lines = gives("stall");
    assert_eq!(lines.len(), 2);
    let stalls: Vec<f64> = lines
        .iter()
        .flat_map(|line| line["stalls"].as_array().unwrap())
        .map(|stall| (stall[1].as_u64().unwrap() - stall[0].as_u64().unwrap()) as f64 / 1e9)
        .collect();
    assert!(matches!(stalls.as_slice(), [stall] if (2.0..4.0).contains(stall)), "{stalls:?}");
}

#[test]
fn a_busy_run_with_a_loss_gives_the_same_numbers_again() {
    let lines = gives("busy_with_a_loss");
    let count = |outcome: &str| lines.iter().filter(|line| line["outcome"] == outcome).count();
    assert!(count("completed") > 60 && count("error") > 5 && count("client_abort") > 0 && count("incomplete") > 0);
}

#[test]
fn a_replay_at_the_speed_of_then_takes_as_long_and_gives_the_same() {
    let began = std::time::Instant::now();
    let slow = lines(&replay(&["stall.tape", "--speed", "4"]));
    let took = began.elapsed().as_secs_f64();
    assert_eq!(slow, lines(&replay(&["stall.tape"])));
    let times = |key: &str| slow.iter().filter_map(|line| line[key].as_u64()).collect::<Vec<_>>();
    let end = times("end_ns").into_iter().max().unwrap();
    let start = times("request_start_ns").into_iter().min().unwrap();
    assert!(took >= (end - start) as f64 / 4e9 - 0.1, "{took}");
}

#[test]
fn what_is_no_recording_is_refused_with_a_sentence() {
    for (file, wanted) in [
        ("stall.jsonl", "this is no recording of nexent-observer"),
        ("nothing.tape", "cannot read nothing.tape"),
        ("/dev/null", "the recording ends before its first entry"),
    ] {
        let output = replay(&[file]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(wanted), "{file}: {said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(output.stdout.is_empty());
    }
    for (arguments, wanted) in [
        (&["stall.tape", "--speed", "0"][..], "a number from 0.001"),
        (&["stall.tape", "--exchange", "1-2"], "--serve"),
        (&["stall.tape", "--serve", "127.0.0.1:0", "--exchange", "x"], "two numbers"),
    ] {
        let output = replay(arguments);
        assert_eq!(output.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&output.stderr).contains(wanted));
    }
    let output = replay(&["stall.tape", "--serve", "127.0.0.1:0", "--exchange", "999-0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("has no answer of exchange 999-0"));
}
