//! The wire between the kernel half and the process.
#![no_std]
#![forbid(unsafe_code)]
