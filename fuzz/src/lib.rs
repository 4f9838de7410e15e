//! What the fuzz targets do with their input: one module per target, in the order in which a byte travels.
//!
//! Each has a `check` that takes any bytes, runs them through the code under test and panics when what came out
//! contradicts what that code promises. `cargo xtask fuzz` builds and runs them with a stable toolchain;
//! `cargo fuzz run TARGET fuzz/corpus/TARGET fuzz/seeds/TARGET` does so with a nightly one.
#![forbid(unsafe_code)]

pub mod ring;

pub mod coding;
pub mod conn;

pub mod http1;
pub mod http2;

pub mod framings;
pub mod sse;
pub mod websocket;

pub mod apis;
pub mod llm;

pub mod pipeline;

pub mod tape;

#[cfg(feature = "planted")]
mod planted;
mod script;
