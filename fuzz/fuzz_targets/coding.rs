//! Fuzz target `coding`; what it checks stands in `src/coding.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexent_observer_fuzz::coding::check(input));
