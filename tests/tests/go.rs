//! Go programs, whose `crypto/tls` is hooked without return probes: every number against what the program logged. Needs root, eBPF
//! and `cargo xtask build`.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

use std::{
    process::Command,
    sync::{Mutex, PoisonError},
};

use xtask::{
    clients::Driver,
    compare::Verdict,
    golang::{self, Link, Toolchain},
    server::Kind,
    sh,
    truth::{self, Attach},
};

/// Side by side they would measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const SCENARIOS: &str = "plain,coalesced,cut,cut-random-chunks,multibyte,tool,tools,big-events,reasoning,head-with-first,head-with-all,\
                         multi-token,crlf,comments,no-done,until-close,continue,slow-first,fast,one-token";

fn agrees(name: &str, toolchain: Toolchain, link: Link, attach: Attach) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let program = golang::driver(toolchain, link).unwrap();
    let target = sh::target_dir(&sh::root().unwrap());
    let dir = target.join("truth").join(name);
    let binary = target.join("release/nexent-observer");
    assert!(binary.exists(), "{} is missing: cargo xtask build", binary.display());
    let flags = ["--workers", "8", "--requests", "10", "--plan", SCENARIOS];
    let start = |server: &_| Driver::launch(Command::new(&program), name, server, &dir, &flags);
    let verdict = truth::run_driver(start, Kind::Simulated, attach, &binary, &dir).unwrap();
    assert_eq!(verdict, Verdict::Agree, "see the violated checks above");
}

#[test]
fn an_old_go_program_with_symbols() {
    agrees("go-old", Toolchain::Debian, Link::Plain, Attach::Pids);
}

#[test]
fn a_current_go_program_without_symbols() {
    agrees("go-stripped", Toolchain::Current, Link::Stripped, Attach::Exe);
}

#[test]
fn a_go_program_at_any_address_without_symbols() {
    agrees("go-pie", Toolchain::Current, Link::Pie, Attach::Pids);
}
