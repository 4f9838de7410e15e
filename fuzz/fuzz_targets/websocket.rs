//! Fuzz target `websocket`; what it checks stands in `src/websocket.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| nexent_observer_fuzz::websocket::check(input));
