//! The observer in a proof: what it counts, how much memory and CPU it takes, and what it leaves in its targets.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::{observer, process::Guarded, truth::free_address};

/// Longest wait for what should come soon; the machine may be busy with other things.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at a metric.
const LOOK: Duration = Duration::from_millis(50);

/// How the observer is started.
#[derive(Debug, Default)]
pub(super) struct Start<'a> {
    /// Its arguments behind `run`.
    pub(super) flags: &'a [&'a str],
    /// Variables of its environment.
    pub(super) env: &'a [(&'a str, &'a str)],
    /// Whether it writes JSON lines, to a file of its own.
    pub(super) lines: bool,
    /// A command that becomes the observer, with its arguments; it is given the observer's own behind them.
    pub(super) by: &'a [&'a str],
}

/// A running observer.
#[derive(Debug)]
pub(super) struct Watched {
    process: Guarded,
    jsonl: PathBuf,
    log: PathBuf,
    listen: SocketAddr,
    began: Instant,
    /// Resident memory when it had attached, MiB.
    before_mib: f64,
}

/// What an observer took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    /// Records that it decoded.
    pub records: f64,
    /// Records that were lost and counted.
    pub lost: f64,
    /// Resident memory when it had attached, at most and at the end, MiB.
    pub rss_mib: [f64; 3],
    /// CPU time of all its threads, s.
    pub cpu_s: f64,
    /// Since its start, s.
    pub seconds: f64,
}

impl Watched {
    /// Starts it and waits until it has attached to `processes` processes.
    pub(super) fn start(binary: &Path, dir: &Path, processes: usize, start: &Start<'_>) -> Result<Self> {
        let mut watched = Self::start_only(binary, dir, start)?;
        watched.until("nexent_observer_attached_processes", &[], |n| n >= processes as f64)?;
        watched.before_mib = watched.status_mib("VmRSS")?;
        Ok(watched)
    }

    /// Starts it.
    pub(super) fn start_only(binary: &Path, dir: &Path, start: &Start<'_>) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (jsonl, log) = (dir.join("observer.jsonl"), dir.join("observer.stderr"));
        if jsonl.exists() {
            fs::remove_file(&jsonl).with_context(|| format!("cannot remove {}", jsonl.display()))?;
        }
        let errors = File::create(&log).context("cannot write the observer's log")?;
        let listen = free_address()?;
        let mut command = match start.by.split_first() {
            None => Command::new(binary),
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary);
                command
            }
        };
        command.arg("run").args(start.flags).args(["--listen", &listen.to_string()]);
        if start.lines {
            command.arg("--jsonl").arg(&jsonl);
        }
        command.envs(start.env.iter().copied()).env_remove("NEXENT_OBSERVER_TEST_FAULT").stderr(errors);
        let process = Guarded::spawn("nexent-observer", &mut command)?;
        Ok(Self { process, jsonl, log, listen, began: Instant::now(), before_mib: 0.0 })
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its whole log.
    pub(super) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What `/metrics` gives.
    pub(super) fn metrics(&self) -> Result<String> {
        observer::metrics(self.listen)
    }

    /// Sum of a metric over the series with these labels.
    pub(super) fn sum(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(observer::sum(&self.metrics()?, name, labels))
    }

    /// Waits until a sum is as wanted; the sum.
    pub(super) fn until(&mut self, name: &str, labels: &[&str], wanted: impl Fn(f64) -> bool) -> Result<f64> {
        let end = Instant::now() + PATIENCE;
        let mut last = f64::NAN;
        loop {
            if let Some(status) = self.process.ended()? {
                bail!("the observer ended: {status}\n{}", self.said());
            }
            // Right after its start it does not listen yet.
            if let Ok(metrics) = self.metrics() {
                last = observer::sum(&metrics, name, labels);
                if wanted(last) {
                    return Ok(last);
                }
            }
            ensure!(Instant::now() < end, "{name} {labels:?} is {last} after {PATIENCE:?}; see {}", self.log.display());
            thread::sleep(LOOK);
        }
    }

    /// Waits until everything that was in the rings has been counted: no stream is open, and nothing changes for a second and a half,
    /// which is longer than the time between two looks at the kernel half's counters.
    pub(super) fn settled(&mut self) -> Result<()> {
        const QUIET: Duration = Duration::from_millis(1500);
        let end = Instant::now() + PATIENCE;
        let mut last = (f64::NAN, Instant::now());
        loop {
            let metrics = self.metrics()?;
            let all = [
                "nexent_observer_records_total",
                "nexent_observer_lost_records_total",
                "nexent_observer_open_exchanges",
            ];
            let now = all.iter().map(|name| observer::sum(&metrics, name, &[])).sum::<f64>();
            if now != last.0 {
                last = (now, Instant::now());
            } else if last.1.elapsed() >= QUIET {
                return Ok(());
            }
            ensure!(Instant::now() < end, "records still come after {PATIENCE:?}; see {}", self.log.display());
            thread::sleep(LOOK);
        }
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// A line of its `/proc/PID/status`, MiB.
    pub(super) fn status_mib(&self, field: &str) -> Result<f64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        mib_of(&status, field).with_context(|| format!("{path} has no {field}"))
    }

    /// What it took so far.
    pub(super) fn taken(&self) -> Result<Taken> {
        let metrics = self.metrics()?;
        let of = |name| observer::sum(&metrics, name, &[]);
        Ok(Taken {
            records: of("nexent_observer_records_total"),
            lost: of("nexent_observer_lost_records_total"),
            rss_mib: [self.before_mib, self.status_mib("VmHWM")?, self.status_mib("VmRSS")?],
            cpu_s: of("nexent_observer_process_cpu_seconds_total"),
            seconds: self.began.elapsed().as_secs_f64(),
        })
    }

    /// Ends it in order; its lines.
    pub(super) fn stop(mut self) -> Result<Vec<Value>> {
        let status = self.process.interrupt()?;
        ensure!(status.success(), "the observer ended with {status}\n{}", self.said());
        if !self.jsonl.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&self.jsonl).with_context(|| format!("cannot read {}", self.jsonl.display()))?;
        text.lines()
            .map(|line| serde_json::from_str(line).context("the observer wrote a line that is no JSON"))
            .collect()
    }

    /// Kills it.
    pub(super) fn kill(mut self) -> Result<()> {
        self.process.kill().map(drop)
    }
}

/// A field of a process's status that is in kB, as MiB.
fn mib_of(status: &str, field: &str) -> Option<f64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(rest.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
}

/// Number of bytes in which the code of a file differs from what process `pid` has mapped of it: each breakpoint is one.
pub fn breakpoints(pid: u32, file: &Path) -> Result<usize> {
    let original = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let inode = original.metadata()?.ino().to_string();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).with_context(|| format!("process {pid} is gone"))?;
    let memory = File::open(format!("/proc/{pid}/mem")).with_context(|| format!("cannot read process {pid}"))?;
    let (mut differing, mut code) = (0, 0);
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [range, rights, offset, _, mapped_inode, ..] = fields.as_slice() else { continue };
        if *mapped_inode != inode || !rights.contains('x') {
            continue;
        }
        let (from, to) = range.split_once('-').context("a mapping without a range")?;
        let number = |text| u64::from_str_radix(text, 16).context("a mapping without numbers");
        let (from, to, offset) = (number(from)?, number(to)?, number(offset)?);
        let size = usize::try_from(to.saturating_sub(from))?;
        let (mut mapped, mut on_disk) = (vec![0; size], vec![0; size]);
        memory.read_exact_at(&mut mapped, from).context("cannot read the code of a process")?;
        // The last page of a mapping may go on behind the file's end, as zeros.
        let mut got = 0;
        while let Some(rest) = on_disk.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match original.read_at(rest, offset + got as u64)? {
                0 => break,
                n => got += n,
            }
        }
        differing += mapped.iter().zip(&on_disk).filter(|(a, b)| a != b).count();
        code += size;
    }
    ensure!(code > 0, "{} is not mapped by process {pid}", file.display());
    Ok(differing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_its_own_line() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(mib_of(status, "VmRSS"), Some(1.0));
        assert_eq!(mib_of(status, "VmHWM"), Some(2.0));
        assert_eq!(mib_of(status, "Vm"), None);
    }

    #[test]
    fn code_that_nobody_touched_is_that_of_its_file() {
        assert_eq!(breakpoints(std::process::id(), &std::env::current_exe().unwrap()).unwrap(), 0);
    }
}
