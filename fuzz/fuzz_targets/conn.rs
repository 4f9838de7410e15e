//! Fuzz target `conn`; what it checks stands in `src/conn.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexent_observer_fuzz::conn::check(input));
