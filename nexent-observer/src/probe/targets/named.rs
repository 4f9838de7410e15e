//! Processes that are named by pid at the start.

use std::time::Instant;

use nexent_observer_core::event::MonoNs;

use super::{Change, LOOK_AGAIN, PASSES_WITHIN, Targets};
use crate::{
    enrich::filter::Verdict,
    probe::{
        attach::{AttachError, Manner},
        candidates::{Candidate, Reason},
    },
};

impl Targets {
    /// Attaches to a process named by pid.
    ///
    /// # Errors
    /// [`AttachError`]; nothing is attached then.
    pub fn add_pid(&mut self, pid: u32) -> Result<(), AttachError> {
        if self.judge(pid, Reason::Pid) == Verdict::Unwanted {
            self.changes.push(Change::OptedOut { pid });
            return Ok(());
        }
        let until = Instant::now() + PASSES_WITHIN;
        let report = loop {
            match self.attacher.attach(pid, Manner::Own, None) {
                Err(error) if error.is_passing() && Instant::now() < until => std::thread::sleep(LOOK_AGAIN),
                Err(AttachError::Searching { .. }) => {
                    tracing::warn!(
                        pid,
                        "What it has mapped cannot be looked into yet: it is attached to when that is done."
                    );
                    self.candidates.add(pid, Candidate { named: true, ..Candidate::new(Reason::Pid, MonoNs(0), 0) });
                    return Ok(());
                }
                done => break done?,
            }
        };
        self.reasons.insert(pid, Reason::Pid);
        self.changes.push(Change::Attached { report, after_exec: None });
        Ok(())
    }

    /// Whether a process that was named at the start is still to be attached to.
    #[must_use]
    pub fn awaits_named(&self) -> bool {
        self.candidates.awaits_named()
    }
}
