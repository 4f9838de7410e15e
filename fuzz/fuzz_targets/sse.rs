//! Fuzz target `sse`; what it checks stands in `src/sse.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexent_observer_fuzz::sse::check(input));
