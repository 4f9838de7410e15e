//! The observer under test, as a user runs it.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::time::{ClockId, clock_gettime};

use crate::process::Guarded;

/// A running observer; ended when dropped.
#[derive(Debug)]
pub struct Observer {
    /// Its records.
    pub jsonl: PathBuf,
    /// Where `/metrics` is.
    pub listen: SocketAddr,
    log: PathBuf,
    process: Guarded,
}

impl Observer {
    /// Starts `nexent-observer run` on `targets` (`--pid N` ... or `--exe PATH`).
    /// `fault` is what the observer is to do wrong, for tests that must see that.
    pub fn start(
        binary: &Path,
        targets: &[String],
        dir: &Path,
        listen: SocketAddr,
        fault: Option<&str>,
    ) -> Result<Self> {
        let jsonl = dir.join("observer.jsonl");
        let log = dir.join("observer.stderr");
        let errors = fs::File::create(&log).context("cannot write the observer's log")?;
        let mut command = Command::new(binary);
        command.arg("run").args(targets).arg("--jsonl").arg(&jsonl).arg("--capture-content");
        command.args(["--listen", &listen.to_string()]).stderr(errors).env_remove("NEXENT_OBSERVER_TEST_FAULT");
        if let Some(fault) = fault {
            command.env("NEXENT_OBSERVER_TEST_FAULT", fault);
        }
        Ok(Self { jsonl, listen, log, process: Guarded::spawn("nexent-observer", &mut command)? })
    }

    /// Waits until `processes` processes are attached; the CLOCK_MONOTONIC time at which that was known, ns.
    pub fn attached(&mut self, processes: usize, timeout: Duration) -> Result<u64> {
        let until = Instant::now() + timeout;
        loop {
            self.check()?;
            let metrics = self.metrics().unwrap_or_default();
            if gauge(&metrics, "nexent_observer_attached_processes").is_some_and(|count| count >= processes as f64) {
                return Ok(monotonic_ns());
            }
            if Instant::now() >= until {
                bail!("the observer did not attach to {processes} processes within {timeout:?}\n{}", self.said());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What `/metrics` gives.
    pub fn metrics(&self) -> Result<String> {
        metrics(self.listen)
    }

    /// Fails when it has ended although it should not have.
    pub fn check(&mut self) -> Result<()> {
        match self.process.ended()? {
            None => Ok(()),
            Some(status) => bail!("the observer ended: {status}\n{}", self.said()),
        }
    }

    /// Ends it with SIGINT, as Ctrl-C does: it writes out what it has.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.interrupt()?;
        ensure!(status.success(), "the observer ended with {status}\n{}", self.said());
        Ok(())
    }

    /// Kills it, wherever it is.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// The lines of its log that tell where it attached to a process.
    pub fn hooks(&self, pid: u64) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let pid = format!(" pid={pid} ");
        log.lines().filter(|line| line.contains("Attached.") && line.contains(&pid)).map(str::to_owned).collect()
    }

    /// The last lines of its log.
    fn said(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// What `/metrics` gives at this address.
pub fn metrics(listen: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&listen, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "/metrics: {}", answer.lines().next().unwrap_or("no answer"));
    Ok(answer)
}

/// Value of an unlabelled metric in the text format.
fn gauge(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Sum over the series of a metric whose labels contain all of `labels` (`reason="x"`), in the text format; 0 when there is none.
#[must_use]
pub fn sum(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (series, value) =
            if rest.starts_with('{') { rest.rsplit_once("} ")? } else { ("", rest.strip_prefix(' ')?) };
        let fits = labels.iter().all(|label| series.contains(label));
        value.trim().parse::<f64>().ok().filter(|_| fits)
    });
    values.sum()
}

/// Now on CLOCK_MONOTONIC, the clock of all logs, ns.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_no_other() {
        let text = "# HELP a_b c\na_b{ring=\"read\"} 3\na_b{ring=\"} 9\"} 4\na_b_total 7\na_b 1\n";
        assert_eq!(sum(text, "a_b", &[]), 8.0);
        assert_eq!(sum(text, "a_b", &["ring=\"read\""]), 3.0);
        assert_eq!(sum(text, "a", &[]), 0.0);
    }

    #[test]
    fn a_gauge_is_found_by_its_whole_name() {
        let text = "# HELP a_b c\na_b_total 7\na_b 3\n";
        assert_eq!(gauge(text, "a_b"), Some(3.0));
        assert_eq!(gauge(text, "a"), None);
        assert_eq!(gauge(text, "HELP"), None);
    }
}
