//! Probes come and go on busy processes of every kind, and the observer is killed now and then: nothing that the clients get may
//! change. Needs root, eBPF and `cargo xtask build`.

use xtask::{compare::Verdict, cycles, sh};

/// How often, where nothing else is said.
const CYCLES: u32 = 200;

#[test]
fn two_hundred_observers_come_and_go_and_no_client_notices() {
    let target = sh::target_dir(&sh::root().unwrap());
    let binary = target.join("release/nexent-observer");
    assert!(binary.exists(), "{} is missing: cargo xtask build", binary.display());
    let done = cycles::run(CYCLES, &binary, &target.join("cycles")).unwrap();
    assert_eq!((done.verdict, done.cycles, done.killed), (Verdict::Agree, CYCLES, CYCLES / 4), "see the checks above");
}
