//! The observer's view of itself: the table of metric names, its own health, and whether it is ready.

#[cfg(test)]
pub(crate) mod docs;
mod health;
mod names;
mod process;
mod register;

pub use health::{Channel, DropCause, Exporter, Health, HealthSummary, KernelCounts, Readiness, Signal};
pub use names::{CHUNK_SECONDS, Def, Kind, Metric, SECONDS, TOKENS_PER_SECOND};
pub use register::Register;
