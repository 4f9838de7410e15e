//! Real clients by the dozen, and every number of the observer against what they logged. Needs root, eBPF and
//! `cargo xtask build`; `cargo xtask truth NAME` runs one of these by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

use std::sync::{Mutex, PoisonError};

use xtask::{
    compare::Verdict,
    python, sh,
    truth::{self, CASES},
};

/// Side by side they would measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn agrees(name: &str) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let target = sh::target_dir(&sh::root().unwrap());
    let binary = target.join("release/nexent-observer");
    assert!(binary.exists(), "{} is missing: cargo xtask build", binary.display());
    let case = CASES.iter().find(|case| case.name == name).expect("a case of that name");
    let python = python::clients().unwrap();
    let verdict = truth::run(case, &binary, &python, &target.join("truth").join(name)).unwrap();
    assert_eq!(verdict, Verdict::Agree, "see the violated checks above");
}

#[test]
fn eight_threads_of_the_synchronous_sdk() {
    agrees("threads");
}

#[test]
fn twenty_streams_on_one_loop() {
    agrees("async");
}

#[test]
fn twenty_streams_on_uvloop() {
    agrees("uvloop");
}

#[test]
fn fifty_requests_of_300_kb_at_a_time() {
    agrees("large-requests");
}

#[test]
fn sixty_four_workers_forked_before_the_observer_attached() {
    agrees("forked");
}

#[test]
fn sixty_four_workers_forked_after_the_observer_attached() {
    agrees("forked-later");
}

#[test]
fn twenty_four_workers_named_by_pid() {
    agrees("many-pids");
}

#[test]
fn errors_retries_and_aborts_on_threads() {
    agrees("trouble-threads");
}

#[test]
fn errors_retries_and_aborts_on_a_loop() {
    agrees("trouble-async");
}

#[test]
fn eight_threads_without_tls() {
    agrees("plain-threads");
}

#[test]
fn twenty_streams_on_one_loop_without_tls() {
    agrees("plain-async");
}

#[test]
fn twenty_streams_on_uvloop_without_tls() {
    agrees("plain-uvloop");
}

#[test]
fn fifty_requests_of_300_kb_at_a_time_without_tls() {
    agrees("plain-large-requests");
}

#[test]
fn errors_retries_and_aborts_without_tls() {
    agrees("plain-trouble");
}

#[test]
fn every_case_has_its_test() {
    let here = include_str!("truth.rs");
    for case in CASES {
        assert!(here.contains(&format!("agrees(\"{}\")", case.name)), "{}", case.name);
    }
}
