//! One real client of every kind, a server of every dialect, and every number of the observer against theirs. Needs root, eBPF and
//! `cargo xtask build`; `cargo xtask matrix NAME` runs one client by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

use std::sync::{Mutex, PoisonError};

use xtask::{
    compare::Verdict,
    matrix::{self, CLIENTS, Client},
    sh,
};

/// Side by side they would measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn run(clients: &[Client], directory: &str, fault: Option<&str>) -> Verdict {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let target = sh::target_dir(&sh::root().unwrap());
    let binary = target.join("release/nexent-observer");
    assert!(binary.exists(), "{} is missing: cargo xtask build", binary.display());
    matrix::run(clients, &binary, &target.join(directory), fault).unwrap()
}

/// What must never leave the matrix, and so never the run of CI: a client that fails or that cannot be installed fails it.
const ALWAYS: [&str; 16] = [
    "openai",
    "openai-async",
    "aiohttp",
    "requests",
    "curl",
    "node",
    "bun",
    "deno",
    "curl_cffi",
    "pycurl",
    "reqwest",
    "reqwest-native",
    "go",
    "go-stripped",
    "static-openssl",
    "ruby",
];

/// Those whose programs are small enough for every run; `cargo xtask matrix` runs the others, too.
fn light() -> Vec<Client> {
    CLIENTS.iter().copied().filter(|client| !client.heavy).collect()
}

fn only(name: &str) -> Vec<Client> {
    CLIENTS.iter().copied().filter(|client| client.name == name).collect()
}

#[test]
fn no_client_of_the_fixed_list_has_left_the_matrix() {
    let gone: Vec<_> =
        ALWAYS.into_iter().filter(|name| light().iter().filter(|it| it.name == *name).count() != 1).collect();
    assert!(gone.is_empty(), "not once in CLIENTS: {gone:?}");
}

#[test]
fn every_client_of_the_matrix_agrees() {
    assert_eq!(run(&light(), "matrix", None), Verdict::Agree, "see the violated checks above");
}

#[test]
fn the_matrix_sees_stamps_that_are_late_and_a_record_that_is_gone() {
    for fault in ["shift_ns:5000000", "drop_record:40"] {
        assert_eq!(run(&only("ollama"), "matrix-fault", Some(fault)), Verdict::Disagree, "{fault} went unseen");
    }
}
