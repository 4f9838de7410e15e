//! Fuzz target `llm`; what it checks stands in `src/llm.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexent_observer_fuzz::llm::check(input));
