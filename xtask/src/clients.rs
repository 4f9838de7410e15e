//! Drivers of the real SDKs: `tests/fixtures/clients`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{process::Guarded, server::LlmServer, sh};

/// A running driver; ended when dropped.
#[derive(Debug)]
pub struct Driver {
    /// What the SDK gave: one JSON line per request.
    pub log: PathBuf,
    /// All its processes: the driver and, where it has forked them already, its workers.
    pub pids: Vec<u32>,
    process: Guarded,
}

impl Driver {
    /// Starts `script` against `server` and waits until it stands at its gate: all imported, no connection open.
    /// Logs go to `dir` under `name`, the truth clock's to `dir/clock`.
    pub fn start(
        python: &Path,
        script: &str,
        name: &str,
        server: &LlmServer,
        dir: &Path,
        flags: &[&str],
    ) -> Result<Self> {
        let mut command = Command::new(python);
        command.arg(sh::fixture("clients")?.join(script));
        Self::launch(command, name, server, dir, flags)
    }

    /// The same for any program that speaks the drivers' protocol.
    pub fn launch(mut command: Command, name: &str, server: &LlmServer, dir: &Path, flags: &[&str]) -> Result<Self> {
        let log = dir.join(format!("{name}.jsonl"));
        let clock = clock_dir(dir);
        fs::create_dir_all(&clock).with_context(|| format!("cannot make {}", clock.display()))?;
        let errors = fs::File::create(dir.join(format!("{name}.stderr"))).context("cannot write the driver's log")?;
        let process = Guarded::talking(
            name,
            command
                .args(["--base-url", &server.base_url])
                .arg("--log")
                .arg(&log)
                .arg("--clock-dir")
                .arg(&clock)
                .args(flags)
                .env("SSL_CERT_FILE", &server.certificate.cert)
                .stderr(errors),
        )?;
        let ready = process.event("ready", Duration::from_secs(60))?;
        let workers = ready["workers"].as_array().into_iter().flatten();
        let pids = workers.filter_map(|pid| u32::try_from(pid.as_u64()?).ok()).chain([process.pid()]).collect();
        Ok(Self { log, pids, process })
    }

    /// Opens the gate.
    pub fn go(&mut self) -> Result<()> {
        self.process.say("go")
    }

    /// Lets it finish the requests under way (endless rounds) or its plan, and waits for its end.
    pub fn finish(&mut self, timeout: Duration) -> Result<u64> {
        self.process.close_stdin();
        self.done(timeout)
    }

    /// Waits until it has made all its rounds; the number of requests it made.
    pub fn done(&mut self, timeout: Duration) -> Result<u64> {
        let done = self.process.event("done", timeout)?;
        let status = self.process.wait(timeout)?;
        ensure!(status.success(), "a client failed: {status}; see {}", self.log.with_extension("stderr").display());
        done["exchanges"].as_u64().context("the client did not say how many requests it made")
    }

    /// Fails when it has ended although it should not have.
    pub fn check(&mut self) -> Result<()> {
        match self.process.ended()? {
            None => Ok(()),
            Some(status) => {
                anyhow::bail!("a client ended: {status}; see {}", self.log.with_extension("stderr").display())
            }
        }
    }
}

/// Where the truth clock's logs of a run are.
#[must_use]
pub fn clock_dir(dir: &Path) -> PathBuf {
    dir.join("clock")
}
