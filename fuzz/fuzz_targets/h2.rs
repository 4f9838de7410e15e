//! Fuzz target `h2`; what it checks stands in `src/http2.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexent_observer_fuzz::http2::check(input));
