//! The observer under load: its CPU, and records lost.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    Bench,
    figure::{Budget, Figure},
    sink::Sink,
    watched::{FakeTls, Watcher},
};

/// Until exporters and housekeeping run as they always do.
const WARM_UP: Duration = Duration::from_secs(2);
/// The observer's CPU is taken over this long.
const WINDOW: Duration = Duration::from_secs(10);
/// From the last byte to its line and to the counters: a drain, and housekeeping once a second.
const SETTLE: Duration = Duration::from_millis(1500);

/// What a load came to.
struct Outcome {
    /// CPU time over the window, in percent of a core; NaN when the load was shorter than that.
    cpu_percent: f64,
    /// CPU time over the whole load.
    cpu_ns: f64,
    /// Exchanges and chunks that the target made.
    made: (u64, u64),
    /// How far the observer's lines differ, in exchanges and in chunks.
    missing: (u64, u64),
    /// Records that the kernel half counted as lost.
    lost: f64,
    /// Seconds that the target needed; 0 where it does not say.
    seconds: f64,
    resident_mib: f64,
}

/// CPU at 200 streams of 100 chunks a second, with metrics, spans and JSON lines, without a tokenizer and with one.
pub(super) fn cpu(bench: &Bench) -> Result<Vec<Figure>> {
    let idle = idle(bench)?;
    let seconds = (WARM_UP + WINDOW).as_secs() + 2;
    let load = format!("load 200 100 {seconds}");
    let of = run(bench, &load, "off", true)?;
    let counting = run(bench, &load, "auto", true)?;
    let how = format!(
        "Time on a CPU of all threads (/proc/PID/task/*/schedstat) over {} s of 200 streams of 100 chunks a second, with /metrics, JSON lines to a file, \
         spans and metrics over OTLP/HTTP to a local collector. {}",
        WINDOW.as_secs(),
        of.shown_rate(),
    );
    Ok(vec![
        Figure::judged("observer, CPU at 200 x 100 chunks/s", of.cpu_percent, "% of a core", Budget::Under(1.0), how),
        Figure::judged(
            "observer, CPU at that load with tokenizer auto",
            counting.cpu_percent,
            "% of a core",
            Budget::Under(2.0),
            "The same, and every answer is of a model whose tokens are counted.",
        ),
        Figure::reported(
            "observer, CPU per chunk at that load",
            of.cpu_percent / 100.0 * 1e9 / (of.made.1 as f64 / of.seconds),
            "ns",
            "The figure above over the rate of chunks: everything from the ring to the exporters, ticks included.",
        ),
        Figure::reported(
            "observer, CPU while nothing happens",
            idle,
            "% of a core",
            "The same, attached to a process that does nothing: the tick of 100 ms.",
        ),
        Figure::reported("observer, resident memory", of.resident_mib, "MiB", "At the end of that load."),
        Figure::reported(
            "observer, resident memory with tokenizer auto",
            counting.resident_mib,
            "MiB",
            "The same: one vocabulary (o200k) was made ready. Without a model that wants it there is none.",
        ),
        of.lost("lost at 200 x 100 chunks/s", 20_000.0),
    ])
}

/// Losses at the two loads that fill the rings.
pub(super) fn loss(bench: &Bench) -> Result<Vec<Figure>> {
    let large = run(bench, "requests 50 300000", "off", false)?;
    let fast = run(bench, "load 200 500 5", "off", false)?;
    Ok(vec![
        large.lost("lost with 50 concurrent requests of 300 KB", 0.0),
        fast.lost("lost at 100,000 chunks/s", 100_000.0),
        Figure::reported(
            "observer, CPU per chunk at 100,000 chunks/s",
            fast.cpu_ns / fast.made.1 as f64,
            "ns",
            fast.shown_rate(),
        ),
    ])
}

impl Outcome {
    /// Whatever is lost counts; that nothing is lost counts only at the rate that was asked for, in chunks a second.
    fn lost(&self, name: &'static str, rate: f64) -> Figure {
        let (exchanges, chunks) = self.made;
        let (missing, chunks_missing) = self.missing;
        let lost = self.lost + (missing + chunks_missing) as f64;
        if lost == 0.0 && (chunks as f64) < 0.9 * rate * self.seconds {
            let how = format!("The machine is too busy for this load: {}", self.shown_rate());
            return Figure::judged(name, f64::NAN, "", Budget::Zero, how);
        }
        let how = format!(
            "Records lost as counted by the kernel half ({}), exchanges ({missing}) and chunks ({chunks_missing}) by which the JSON lines differ from what the target made: \
             {exchanges} exchanges, {chunks} chunks.",
            self.lost,
        );
        Figure::judged(name, lost, "", Budget::Zero, how)
    }

    fn shown_rate(&self) -> String {
        format!(
            "The target made {} chunks in {:.1} s ({:.0}/s).",
            self.made.1,
            self.seconds,
            self.made.1 as f64 / self.seconds
        )
    }
}

/// CPU of an observer whose target does nothing, in percent of a core.
fn idle(bench: &Bench) -> Result<f64> {
    let sink = Sink::start()?;
    let target = FakeTls::start(&bench.fake_tls)?;
    let watcher = Watcher::start(&bench.observer, &["--pid", &target.pid().to_string()], &bench.dir, &sink)?;
    thread::sleep(WARM_UP);
    let before = watcher.cpu_ns()?;
    thread::sleep(WINDOW);
    let percent = (watcher.cpu_ns()? - before) / WINDOW.as_nanos() as f64 * 100.0;
    watcher.stop()?;
    Ok(percent)
}

/// Runs one command of the target under the observer, with this value of `tokenizer`; with a `window`, the CPU is taken in the middle of it.
fn run(bench: &Bench, command: &str, tokenizer: &str, window: bool) -> Result<Outcome> {
    let sink = Sink::start()?;
    let mut target = FakeTls::start(&bench.fake_tls)?;
    let pid = target.pid().to_string();
    let flags = ["--pid", &pid, "--tokenizer", tokenizer];
    let watcher = Watcher::start(&bench.observer, &flags, &bench.dir, &sink)?;
    let begin = watcher.cpu_ns()?;
    target.tell(command)?;
    let mut cpu_percent = f64::NAN;
    if window {
        thread::sleep(WARM_UP);
        let (from, before) = (std::time::Instant::now(), watcher.cpu_ns()?);
        // Looked at as a scraper does, somewhat more often.
        for _ in 0..2 {
            thread::sleep(WINDOW / 2);
            watcher.sum("nexent_observer_records_total")?;
        }
        cpu_percent = (watcher.cpu_ns()? - before) / from.elapsed().as_nanos() as f64 * 100.0;
    }
    let said = target.done()?;
    thread::sleep(SETTLE);
    let cpu_ns = watcher.cpu_ns()? - begin;
    let lost = watcher.sum("nexent_observer_lost_records_total")?;
    let resident_mib = watcher.sum("nexent_observer_process_resident_memory_bytes")? / 1_048_576.0;
    let lines = watcher.stop()?;
    ensure!(sink.span_bytes() > 0, "no spans came: not everything was measured");
    let made = (number(&said, "exchanges"), number(&said, "chunks"));
    let (exchanges, chunks) = seen(&lines);
    let missing = (made.0.abs_diff(exchanges), made.1.abs_diff(chunks));
    let seconds = said["seconds"].as_f64().unwrap_or(0.0);
    Ok(Outcome { cpu_percent, cpu_ns, made, missing, lost, seconds, resident_mib })
}

fn number(said: &Value, key: &str) -> u64 {
    said[key].as_u64().unwrap_or(0)
}

/// Exchanges that were seen whole, and the chunks of their timelines.
fn seen(lines: &[Value]) -> (u64, u64) {
    let whole = lines.iter().filter(|line| line["outcome"] == "completed" && line["bytes_lost"] == 0);
    whole.fold((0, 0), |(exchanges, chunks), line| {
        (exchanges + 1, chunks + line["chunks"].as_array().map_or(0, |chunks| chunks.len() as u64))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::figure::Verdict, *};

    #[test]
    fn no_loss_at_a_lower_rate_shows_nothing_and_a_loss_counts_at_any() {
        let verdict = |chunks, lost| {
            let of = Outcome {
                cpu_percent: 0.0,
                cpu_ns: 0.0,
                made: (1, chunks),
                missing: (0, 0),
                lost,
                seconds: 1.0,
                resident_mib: 0.0,
            };
            let figure = of.lost("x", 1000.0);
            (figure.verdict, figure.value.is_nan())
        };
        assert_eq!(verdict(950, 0.0), (Verdict::Ok, false));
        assert_eq!(verdict(800, 0.0), (Verdict::Over, true));
        assert_eq!(verdict(800, 1.0), (Verdict::Over, false));
    }

    #[test]
    fn only_whole_exchanges_count_as_seen() {
        let line =
            |outcome, lost| json!({"outcome": outcome, "bytes_lost": lost, "chunks": [[1, 1, false], [2, 1, false]]});
        assert_eq!(seen(&[line("completed", 0), line("completed", 9), line("incomplete", 0)]), (1, 2));
    }
}
