//! Fuzz target `ring_decode`; what it checks stands in `src/ring.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexent_observer_fuzz::ring::check(input));
