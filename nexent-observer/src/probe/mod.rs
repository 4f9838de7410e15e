//! Stage 1: processes, their libraries, the addresses in them, and the probes on these.

pub mod attach;
pub mod aws_lc;
pub mod btf;
pub mod elf;
pub mod go;
pub mod hookpoint;
pub mod hooks;
pub mod kernel;
pub mod library;
pub mod openssl;
mod phases;
pub mod plain;
pub mod plan;
pub mod process;
pub mod targets;
