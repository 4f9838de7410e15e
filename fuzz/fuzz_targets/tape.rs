//! Fuzz target `tape`; what it checks stands in `src/tape.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexent_observer_fuzz::tape::check(input));
