//! The wire between the kernel half and the process: records, map values, and the pure decisions that both sides share.
//!
//! Compiled for the BPF target and for the host, without `std`, without allocation and without dependencies. Every type that
//! crosses is `#[repr(C)]`, has no implicit padding (asserted here) and is valid for any bit pattern.
#![no_std]
#![forbid(unsafe_code)]

pub mod cookie;
pub mod counters;
pub mod piece;
pub mod plain;
pub mod record;
pub mod state;
pub mod tls;
