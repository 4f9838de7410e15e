//! The proofs of `cargo xtask soak`, each for seconds. Needs root, eBPF and `cargo xtask build`.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "all of it is test code, also what is not below #[test]")]

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use xtask::{
    sh,
    soak::{Bed, Figures, PROOFS},
};

/// How long the load of each is to last, s.
const SECONDS: u64 = 5;

/// Two cores and one kernel: side by side they would measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a proof; it fails when its claim does not hold.
fn prove(name: &str) -> Figures {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let target = sh::target_dir(&sh::root().unwrap());
    let binary = target.join("release/nexent-observer");
    assert!(binary.exists(), "{} is missing: cargo xtask build", binary.display());
    let proof = PROOFS.iter().find(|proof| proof.name == name).unwrap();
    let fake_tls = Path::new(env!("CARGO_BIN_EXE_fake_tls"));
    let bed = Bed::make(&binary, fake_tls, &target.join("soak-short").join(name), SECONDS).unwrap();
    let figures = proof.run(&bed).unwrap();
    eprintln!("{name}: {} {} {:?}", figures.done, figures.seen, figures.taken);
    figures
}

#[test]
fn every_record_that_a_small_ring_loses_is_counted_and_nothing_incomplete_is_timed() {
    assert!(prove("overflow").taken.unwrap().lost > 0.0);
}

#[test]
fn an_observer_that_was_stopped_counts_what_it_lost_and_is_right_afterwards() {
    assert!(prove("stopped").taken.unwrap().lost > 0.0);
}

#[test]
fn a_connection_whose_end_was_lost_does_not_stay_until_it_is_idle() {
    assert!(prove("lost-ends").taken.unwrap().lost > 0.0);
}

#[test]
fn observers_killed_at_random_moments_leave_no_breakpoint() {
    prove("killed");
}

#[test]
fn every_span_is_delivered_or_counted_while_the_collector_is_slow_refuses_is_dead_and_comes_back() {
    prove("collector");
}

#[test]
fn a_wall_clock_that_is_stepped_changes_no_duration() {
    assert_eq!(prove("clock-steps").taken.unwrap().lost, 0.0);
}

#[test]
fn a_disk_that_is_full_and_has_room_again_costs_lines_that_are_counted() {
    prove("full-disk");
}

#[test]
fn ten_thousand_streams_at_once() {
    assert!(prove("streams").streams >= 10_000);
}

#[test]
fn short_connections_leave_nothing() {
    assert!(prove("connections").streams > 10_000);
}

#[test]
fn thousands_of_models_make_a_bounded_number_of_series() {
    prove("labels");
}

#[test]
fn endless_lines_and_bombs_are_counted_and_what_follows_is_right() {
    prove("hostile");
}
