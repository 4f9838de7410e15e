//! Child processes that never outlive their owner, and the JSON lines they print.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a process has to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);
/// How long it has to end in order: it may have to take probes away, for which a crowded kernel takes its time.
const ORDERLY: Duration = Duration::from_secs(60);

/// A child process; ended by its pid when this is dropped.
#[derive(Debug)]
pub struct Guarded {
    name: String,
    child: Child,
    lines: Option<Receiver<String>>,
}

impl Guarded {
    /// Starts `command`, whose name in messages is `name`.
    pub fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        // A group of its own: the terminal's Ctrl-C must reach xtask alone, which then ends the others in order.
        let child = command.process_group(0).spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, lines: None })
    }

    /// As [`Self::spawn`], with standard input and output as pipes for [`Self::event`].
    pub fn talking(name: &str, command: &mut Command) -> Result<Self> {
        let mut this = Self::spawn(name, command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let stdout = this.child.stdout.take().context("no standard output")?;
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        this.lines = Some(receiver);
        Ok(this)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Standard input, if it is a pipe that is still open.
    pub fn stdin(&mut self) -> Option<&mut ChildStdin> {
        self.child.stdin.as_mut()
    }

    /// Writes a line to standard input.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let name = self.name.clone();
        let stdin = self.stdin().with_context(|| format!("the standard input of {name} is closed"))?;
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).with_context(|| format!("cannot write to {name}"))
    }

    /// Closes standard input: what was started with [`Self::talking`] takes that as the sign to end.
    pub fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Waits for the JSON line whose `event` is this one; other lines are passed over.
    pub fn event(&self, event: &str, timeout: Duration) -> Result<Value> {
        let lines = self.lines.as_ref().context("its output is not read")?;
        let until = Instant::now() + timeout;
        loop {
            let line = match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => bail!("{} did not say `{event}` within {timeout:?}", self.name),
                Err(RecvTimeoutError::Disconnected) => bail!("{} ended before it said `{event}`", self.name),
            };
            match serde_json::from_str::<Value>(&line) {
                Ok(value) if value["event"] == event => return Ok(value),
                _ => {}
            }
        }
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + timeout;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= until {
                bail!("{} (pid {}) did not end within {timeout:?}", self.name, self.pid());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks it to end with SIGINT and waits.
    pub fn interrupt(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::INT);
        self.wait(ORDERLY)
    }

    /// Kills it.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.wait(ORDERLY)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            // The only failure is that it has ended, and until it is waited for nobody else gets its pid.
            kill_process(pid, signal).unwrap_or(());
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        self.close_stdin();
        self.signal(Signal::TERM);
        if self.wait(GRACE).is_err() {
            self.signal(Signal::KILL);
            drop(self.child.wait());
        }
    }
}
