//! Runs `tests/fixtures/compare.py`: the observer's records beside what client and server logged.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{clients::clock_dir, sh};

/// Whether the records agree with the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All checks pass.
    Agree,
    /// A check is violated; the table says which.
    Disagree,
}

/// Compares one run, whose logs are in `dir`, and prints the table. Requests that started before `attached_ns`
/// (CLOCK_MONOTONIC) may be missing. The summary is left in `dir/summary.json`.
pub fn run(
    dir: &Path,
    observer_jsonl: &Path,
    server_log: &Path,
    client_logs: &[PathBuf],
    attached_ns: u64,
) -> Result<Verdict> {
    let status = Command::new("python3")
        .arg(sh::fixture("compare.py")?)
        .arg("--observer")
        .arg(observer_jsonl)
        .arg("--clock-dir")
        .arg(clock_dir(dir))
        .arg("--server-log")
        .arg(server_log)
        .arg("--client-log")
        .args(client_logs)
        .args(["--attached-ns", &attached_ns.to_string()])
        .arg("--summary")
        .arg(dir.join("summary.json"))
        .status()
        .context("cannot run python3")?;
    match status.code() {
        Some(0) => Ok(Verdict::Agree),
        Some(1) => Ok(Verdict::Disagree),
        _ => bail!("the comparison itself failed: {status}"),
    }
}
