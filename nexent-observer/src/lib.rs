//! The process: stages 1, 2 and 7 around the pure core.

pub mod enrich;
pub mod probe;
pub mod ring;
