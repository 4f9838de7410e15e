//! The observer's whole life beside real processes: it comes late, its targets come and go, either side dies, peers are
//! hostile, receivers are down. Needs root, eBPF and `cargo xtask build`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "all of it is test code, also what is not below #[test]; figures are shown with --nocapture"
)]

mod attach;
mod bad_start;
mod death;
mod discovery;
mod doctor;
mod executables;
mod exports;
mod harness;
mod hostile;
mod hung;
mod libraries;
mod liveness;
mod phases;
mod plain;
mod privileges;
mod record;
mod rewritten;
mod rustls;
