//! Logs: to standard error, one line a fact.

use std::io::{self, IsTerminal};

use crate::config::{Config, LogFormat};

/// Starts logging for the rest of the process. A second call changes nothing.
pub(super) fn start(config: &Config) {
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(config.log_level)
        .with_ansi(colour)
        .with_target(false)
        // A standard error that went away must not end the process: the layer would report it with `eprintln!`.
        .log_internal_errors(false);
    let started = match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // Fails only when a subscriber is set already, and then that one logs.
    drop(started);
}
