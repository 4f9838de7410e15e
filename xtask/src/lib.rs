//! What the demo and the integration tests share: a local LLM server, real clients, the observer as a user runs it, and the
//! comparison of what they logged.

pub mod browser;
pub mod clients;
pub mod compare;
pub mod cycles;
pub mod fake_tls;
pub mod golang;
pub mod interpreters;
pub mod matrix;
pub mod observer;
pub mod probe_point;
pub mod process;
pub mod python;
pub mod runtime;
pub mod rust;
pub mod server;
pub mod sh;
pub mod soak;
pub mod stack;
pub mod stage;
pub mod truth;
