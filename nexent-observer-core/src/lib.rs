//! The pure core: stages 3 to 7 of nexent-observer, in the order in which a byte travels.
//!
//! Nothing here reads a clock, a file, a socket or the environment, and nothing spawns (rule checked by `xtask lint`).
//! The only time is the one that the kernel half stamped on a record ([`event::MonoNs`]). Bad bytes are never an error
//! that reaches a neighbour: a stage says what it knows, counts the defect in [`stats::Stats`] and resynchronises or lets
//! go. A gap is a value that flows downstream, so that timing can say "unknown" instead of something wrong.
#![forbid(unsafe_code)]
#![warn(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod event;
pub mod limits;
pub mod stats;

pub mod conn;
pub mod http;
pub mod llm;
pub mod timing;

pub mod chain;

pub mod pipeline;

pub mod tape;
