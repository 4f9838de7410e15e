//! Probes come and go on busy processes of every kind, and the observer is killed now and then: nothing that the clients get may
//! change. Needs root, eBPF and `cargo xtask build`.

use xtask::{
    compare::Verdict,
    cycles::{self, BUSY},
    sh,
};

/// Observers that come and go, every fourth of them killed. Each attaches to all the clients, but for the three that are killed as they start.
const OBSERVERS: u32 = 24;
/// Times that a process must have been attached to and left.
const ATTACHMENTS: usize = 200;

#[test]
fn two_hundred_attachments_come_and_go_and_no_client_notices() {
    let target = sh::target_dir(&sh::root().unwrap());
    let binary = target.join("release/nexent-observer");
    assert!(binary.exists(), "{} is missing: cargo xtask build", binary.display());
    let done = cycles::run(OBSERVERS, &binary, &target.join("cycles")).unwrap();
    assert_eq!(
        (done.verdict, done.cycles, done.killed),
        (Verdict::Agree, OBSERVERS, OBSERVERS / 4),
        "see the checks above"
    );
    assert!(done.attachments >= ATTACHMENTS, "{} attachments to {} processes", done.attachments, BUSY.len());
}
