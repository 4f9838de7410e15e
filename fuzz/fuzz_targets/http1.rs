//! Fuzz target `http1`; what it checks stands in `src/http1.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexent_observer_fuzz::http1::check(input));
