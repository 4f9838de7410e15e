//! From exec to the first request that is seen whole, for a program whose TLS functions are known already.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::observer::monotonic_ns;

use super::{
    Bench,
    figure::{Budget, Figure},
    sink::Sink,
    watched::{FakeTls, Watcher},
};

/// Processes that are started one after the other.
const STARTS: usize = 10;
/// How long each of them makes requests, and how often.
const LIFE: Duration = Duration::from_millis(600);
const EVERY: Duration = Duration::from_millis(1);

/// Starts processes of an executable that is watched.
pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    // A file of its own: nothing else on the machine runs it.
    let copy = bench.fake_tls.with_file_name("fake_tls-attach");
    drop(fs::remove_file(&copy));
    fs::copy(&bench.fake_tls, &copy).with_context(|| format!("cannot write {}", copy.display()))?;
    let sink = Sink::start()?;
    let known = FakeTls::start(&copy)?;
    let watcher = Watcher::start(&bench.observer, &["--exe", &copy.to_string_lossy()], &bench.dir, &sink)?;
    let mut started = Vec::new();
    for _ in 0..STARTS {
        let exec_ns = monotonic_ns();
        let mut process = FakeTls::start(&copy)?;
        let until = Instant::now() + LIFE;
        while Instant::now() < until {
            process.tell("requests 1 200")?;
            process.done()?;
            thread::sleep(EVERY);
        }
        started.push((process.pid(), exec_ns));
    }
    thread::sleep(Duration::from_millis(500));
    let lines = watcher.stop()?;
    drop(known);
    let mut took: Vec<f64> = started.iter().map(|start| first_whole_ms(&lines, *start)).collect();
    took.sort_by(f64::total_cmp);
    let how = format!(
        "{STARTS} processes of an executable that is watched (--exe) and runs already, one after the other; each makes a request every {} ms from its start. \
         Time from before its fork to the start of its first request that has a whole record",
        EVERY.as_millis(),
    );
    let at = |i: usize| took.get(i).copied().unwrap_or(f64::NAN);
    Ok(vec![
        Figure::judged(
            "attach after exec, known library, worst",
            at(STARTS - 1),
            "ms",
            Budget::Under(100.0),
            format!("{how}; the worst of them."),
        ),
        Figure::reported("attach after exec, known library, median", at(STARTS / 2), "ms", "The same; the median."),
    ])
}

/// Time from the start of a process to its first request that was seen whole, ms; infinite when none was.
fn first_whole_ms(lines: &[Value], (pid, exec_ns): (u32, u64)) -> f64 {
    let whole = lines.iter().filter(|line| line["pid"] == pid && line["outcome"] == "completed");
    let first = whole.filter_map(|line| line["request_start_ns"].as_u64()).min();
    first.map_or(f64::INFINITY, |first| first.saturating_sub(exec_ns) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_whole_request_of_a_process_counts_and_none_is_never_in_time() {
        let line = |pid, outcome, start: u64| json!({"pid": pid, "outcome": outcome, "request_start_ns": start});
        let lines = [
            line(1, "incomplete", 2_000_000),
            line(1, "completed", 9_000_000),
            line(1, "completed", 5_000_000),
            line(2, "completed", 1_000_000),
        ];
        assert_eq!(first_whole_ms(&lines, (1, 1_000_000)), 4.0);
        assert_eq!(first_whole_ms(&lines, (3, 1_000_000)), f64::INFINITY);
    }
}
