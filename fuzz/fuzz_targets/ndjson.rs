//! Fuzz target `ndjson`; what it checks stands in `src/framings.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexent_observer_fuzz::framings::ndjson(input));
