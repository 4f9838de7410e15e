//! What was attached.

use std::path::PathBuf;

use crate::probe::{hookpoint::Cost, kernel::Turn, plan::FamilyPlan};

/// An implementation of TLS that is hooked in a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooked {
    /// File that holds it, as the process sees it.
    pub path: PathBuf,
    /// What was found there.
    pub plan: FamilyPlan,
}

/// What was attached to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachReport {
    /// Which.
    pub pid: u32,
    /// Implementations of TLS that are hooked.
    pub hooked: Vec<Hooked>,
    /// Whether the attachment is shared with other processes and filtered.
    pub filtered: bool,
    /// Whether its sockets are looked at for plain HTTP.
    pub plain: bool,
    /// Whether the process or one of its libraries was not observed before.
    pub news: bool,
}

/// Whether a call of one of these implementations is single-stepped, for a warning.
#[must_use]
pub fn is_expensive(report: &AttachReport) -> bool {
    report
        .hooked
        .iter()
        .flat_map(|hooked| &hooked.plan.hooks)
        .any(|hook| hook.program.turn() != Turn::Second && hook.cost == Cost::SingleStepped)
}
