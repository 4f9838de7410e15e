//! Seeded simulation of the whole pipeline: many connections of synthetic traffic, cut, reordered and damaged as the
//! kernel half may deliver it. What was not damaged must come out exactly; what was must say so, and never be wrong.
//!
//! `NEXENT_SIM_SEED=N` replays one seed, `NEXENT_SIM_RUNS=N` runs more than the default.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "all of this is a test")]

mod check;
mod drive;
mod rng;
#[path = "../tape_support/mod.rs"]
mod tape_support;
mod traffic;
mod wire;

use check::{Tally, check};
use rng::Rng;
use wire::{Faults, Wire, connection};

const CONNECTIONS: usize = 40;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs seeds; the first that fails stops with the way to replay it.
fn simulate(first_seed: u64, faults: Faults) -> Tally {
    let (from, runs) = match number("NEXENT_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (first_seed, number("NEXENT_SIM_RUNS").unwrap_or(25)),
    };
    let mut all = Tally::default();
    for seed in from..from + runs {
        let mut rng = Rng::new(seed);
        let wires: Vec<Wire> = (0..CONNECTIONS).map(|no| connection(&mut rng, no, faults)).collect();
        let out = drive::drive(&wires);
        let tally = check(&wires, &out).unwrap_or_else(|e| panic!("NEXENT_SIM_SEED={seed}: {e}"));
        assert!(out.most_waiting <= 4096, "NEXENT_SIM_SEED={seed}: {} outputs waited", out.most_waiting);
        all.right += tally.right;
        all.damaged_right += tally.damaged_right;
        all.incomplete += tally.incomplete;
        all.unseen += tally.unseen;
        all.mixed += tally.mixed;
        all.skipped += tally.skipped;
    }
    println!("seeds {from}..{}: {all:?}", from + runs);
    all
}

#[test]
fn undamaged_traffic_comes_out_exactly_however_it_is_cut_and_reordered() {
    let tally = simulate(1, Faults::default());
    assert!(tally.right > 0);
    assert_eq!((tally.incomplete, tally.unseen, tally.damaged_right), (0, 0, 0));
}

#[test]
fn damaged_traffic_is_marked_or_right_and_its_neighbours_are_exact() {
    let tally = simulate(10_000, Faults { loss: 60, join: 20 });
    assert!(tally.right > 0 && tally.incomplete > 0 && tally.damaged_right > 0, "{tally:?}");
    assert!(tally.mixed * 20 <= tally.incomplete, "{tally:?}");
}
