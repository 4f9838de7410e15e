//! Stage 1: processes, their libraries, the addresses in them, and the probes on these.

pub mod attach;
pub mod aws_lc;
pub mod boringssl;
pub mod btf;
pub mod cache;
mod candidates;
pub mod elf;
pub mod gnutls;
pub mod go;
pub mod hookpoint;
pub mod hooks;
pub mod kernel;
pub mod library;
pub mod openssl;
mod passes;
mod phases;
pub mod plain;
pub mod plan;
pub mod process;
pub mod silence;
pub mod static_openssl;
pub mod targets;
pub mod trial;
mod undertaker;
mod xref;
