//! The real observer on a fake target: how much of a core it takes, and whether it sees everything.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
pub(super) use xtask::fake_tls::FakeTls;
use xtask::{observer, process::Guarded};

use super::sink::Sink;

/// How long starting and attaching may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The observer as a user runs it, with metrics, JSON lines and, to a collector, spans and metrics; without content.
pub(super) struct Watcher {
    process: Guarded,
    jsonl: PathBuf,
    log: PathBuf,
    /// Where metrics and page are.
    pub(super) listen: SocketAddr,
}

impl Watcher {
    /// Starts it on `targets` (`--pid N` or `--exe PATH`) and waits until it has attached to one process.
    pub(super) fn start(binary: &Path, targets: &[&str], dir: &Path, sink: &Sink) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (jsonl, log) = (dir.join("observer.jsonl"), dir.join("observer.stderr"));
        if jsonl.exists() {
            fs::remove_file(&jsonl).with_context(|| format!("cannot remove {}", jsonl.display()))?;
        }
        let errors = fs::File::create(&log).context("cannot write the observer's log")?;
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let listen = listen.context("cannot find a free port")?;
        let mut command = Command::new(binary);
        command.arg("run").args(targets).arg("--jsonl").arg(&jsonl).args(["--listen", &listen.to_string()]);
        command.args(["--otlp", &format!("http://{}", sink.address)]).stderr(errors);
        // Twelve times as often as by default, so that a run of seconds has some.
        command.env("OTEL_METRIC_EXPORT_INTERVAL", "5000").env_remove("NEXENT_OBSERVER_TEST_FAULT");
        let process = Guarded::spawn("nexent-observer", &mut command)?;
        let mut watcher = Self { process, jsonl, log, listen };
        let until = Instant::now() + PATIENCE;
        while watcher.sum("nexent_observer_attached_processes").unwrap_or(0.0) < 1.0 {
            if let Some(status) = watcher.process.ended()? {
                bail!("the observer ended: {status}; see {}", watcher.log.display());
            }
            ensure!(Instant::now() < until, "the observer did not attach; see {}", watcher.log.display());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(watcher)
    }

    /// CPU time of all its threads since their start, ns.
    pub(super) fn cpu_ns(&self) -> Result<f64> {
        cpu_ns(self.process.pid())
    }

    /// Sum of a metric over its labels.
    pub(super) fn sum(&self, name: &str) -> Result<f64> {
        Ok(observer::sum(&observer::metrics(self.listen)?, name, &[]))
    }

    /// Ends it; what it has written.
    pub(super) fn stop(mut self) -> Result<Vec<Value>> {
        let status = self.process.interrupt()?;
        ensure!(status.success(), "the observer ended with {status}; see {}", self.log.display());
        let text = fs::read_to_string(&self.jsonl).with_context(|| format!("cannot read {}", self.jsonl.display()))?;
        text.lines()
            .map(|line| serde_json::from_str(line).context("the observer wrote a line that is no JSON"))
            .collect()
    }
}

/// CPU time of all threads of a process since their start, ns.
pub(super) fn cpu_ns(pid: u32) -> Result<f64> {
    let tasks = format!("/proc/{pid}/task");
    let mut sum = 0.0;
    for task in fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
        let path = task?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        sum += on_cpu_ns(&text).with_context(|| format!("{} has no times", path.display()))?;
    }
    Ok(sum)
}

/// Time on a CPU in a task's `schedstat`, ns.
fn on_cpu_ns(schedstat: &str) -> Option<f64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_on_a_cpu_is_the_first_of_three() {
        assert_eq!(on_cpu_ns("1234567 89 10\n"), Some(1_234_567.0));
        assert_eq!(on_cpu_ns(""), None);
    }
}
