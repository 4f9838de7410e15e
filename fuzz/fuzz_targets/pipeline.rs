//! Fuzz target `pipeline`; what it checks stands in `src/pipeline.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexent_observer_fuzz::pipeline::check(input));
