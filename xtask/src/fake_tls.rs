//! `tests/src/bin/fake_tls.rs`: a target whose traffic can be made at any rate.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::Guarded;

/// How long starting, or a command that does not say how long it takes, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// `fake_tls`, which does what it is told on standard input.
#[derive(Debug)]
pub struct FakeTls(Guarded);

impl FakeTls {
    /// Starts it.
    pub fn start(binary: &Path) -> Result<Self> {
        let process = Guarded::talking("fake_tls", &mut Command::new(binary))?;
        process.event("ready", PATIENCE)?;
        Ok(Self(process))
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Gives it a command.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        self.0.say(command).context("fake_tls does not listen")
    }

    /// What it says when it has done what it was told.
    pub fn done(&self) -> Result<Value> {
        self.done_within(PATIENCE)
    }

    /// Likewise, when that takes longer.
    pub fn done_within(&self, patience: Duration) -> Result<Value> {
        self.0.event("done", patience)
    }
}
