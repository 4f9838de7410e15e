//! The whole core from memory: speed and memory, without a kernel half.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::sh;

use super::{
    Bench,
    figure::{Budget, Figure},
};

/// Runs the core's example.
pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let example = build(bench)?;
    let speed = ask(&example, &["--seconds", "4"])?;
    let in_turn = ask(&example, &["--seconds", "4", "--streams", "200"])?;
    let memory = ask(&example, &["--open", "10000", "--chunks", "500"])?;
    let value = |answer: &Value, key: &str| answer[key].as_f64().unwrap_or(f64::NAN);
    let input =
        "HTTP/1.1 chunked SSE, events of 295 bytes cut every 200 bytes, 5 % of them tool calls, through the whole core";
    Ok(vec![
        Figure::judged(
            "core, speed from memory",
            value(&speed, "chunks_per_s") / 1e6,
            "million chunks/s",
            Budget::AtLeast(2.0),
            format!("One thread, by its time on a CPU: {input} (examples/pipeline_speed)."),
        )
        .not_due(),
        Figure::reported(
            "core, cost of a chunk",
            value(&speed, "ns_per_chunk"),
            "ns",
            "The same, the other way round.",
        ),
        Figure::reported(
            "core, cost of a chunk of 200 streams in turn",
            value(&in_turn, "ns_per_chunk"),
            "ns",
            "The same with 200 streams, a read of each in turn.",
        ),
        Figure::judged(
            "core, memory of 10,000 open streams",
            value(&memory, "mib"),
            "MiB",
            Budget::Under(64.0),
            "What the resident memory grew by, with 500 chunks of that kind in each stream.",
        )
        .not_due(),
    ])
}

fn build(bench: &Bench) -> Result<PathBuf> {
    sh::run(sh::cargo(&bench.root).args([
        "build",
        "--release",
        "--locked",
        "--package",
        "nexent-observer-core",
        "--example",
        "pipeline_speed",
    ]))?;
    Ok(sh::target_dir(&bench.root).join("release/examples/pipeline_speed"))
}

fn ask(example: &PathBuf, flags: &[&str]) -> Result<Value> {
    super::json_of(Command::new(example).args(flags)).with_context(|| format!("running {}", example.display()))
}
