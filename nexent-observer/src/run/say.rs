//! What the log says of attaching and of what was lost by it.

use crate::{
    export::Service,
    probe::attach::{self, AttachReport, Hooked, Loss, Outcome},
};

/// Says what was attached, and what it will cost.
pub(super) fn attached(report: &AttachReport, service: &Service, after_exec: Option<u64>) {
    let after_exec_ms = after_exec.map(|ns| ns / 1_000_000);
    for Hooked { path, plan } in &report.hooked {
        tracing::info!(
            pid = report.pid,
            service = service.name,
            library = %path.display(),
            tls = %plan.family,
            probes = plan.hooks.len(),
            shared = report.filtered,
            after_exec_ms,
            "Attached."
        );
        for note in &plan.notes {
            tracing::info!(pid = report.pid, "{note}.");
        }
    }
    if report.plain {
        tracing::info!(pid = report.pid, service = service.name, "Its sockets are observed for plain HTTP.");
    }
    if attach::is_expensive(report) {
        tracing::warn!(
            pid = report.pid,
            "Probes in this process cost about 9 us a call instead of 1; see docs/overhead.md."
        );
    }
}

/// Says what became of probes that were gone.
pub(super) fn lost(Loss { pid, library, outcome }: &Loss) {
    let library = library.display();
    match outcome {
        Outcome::Restored | Outcome::Reattached => tracing::warn!(
            pid,
            %library,
            anew = *outcome == Outcome::Reattached,
            "Probes were gone from the code of a process and are back: what it read and wrote meanwhile was not seen."
        ),
        Outcome::Failed(why) => {
            tracing::warn!(pid, %library, "Probes are gone from the code of a process, and it is not seen any more: {why}.");
        }
    }
}
