//! Fuzz target `apis`; what it checks stands in `src/apis.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexent_observer_fuzz::apis::check(input));
