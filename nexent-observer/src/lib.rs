//! The process: stages 1, 2 and 7 around the pure core.

pub mod run;

pub mod probe;
pub mod ring;

pub mod enrich;
pub mod export;
pub mod hooks;
pub mod serve;
pub mod survey;
pub mod tape;
pub mod telemetry;
pub mod tokens;
pub mod top;
pub mod web;

pub mod cli;
pub mod config;
pub mod error;
pub mod fault;
pub mod privileges;
