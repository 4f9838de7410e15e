//! Logs: to standard error, one line a fact.

use std::io::{self, IsTerminal};

use tracing::{level_filters::LevelFilter, subscriber::Subscriber};
use tracing_subscriber::{
    Layer, filter::Targets, fmt::MakeWriter, layer::SubscriberExt, registry, util::SubscriberInitExt,
};

use crate::config::{Config, LogFormat};

/// Starts logging for the rest of the process. A second call changes nothing.
pub(super) fn start(config: &Config) {
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // Fails only when a subscriber is set already, and then that one logs.
    drop(subscriber(config.log_level, config.log_format, colour, io::stderr).try_init());
}

fn subscriber<W>(level: LevelFilter, format: LogFormat, colour: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(colour)
        .with_target(false)
        // A standard error that went away must not end the process: the layer would report it with `eprintln!`.
        .log_internal_errors(false);
    let layer = match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    registry().with(layer.with_filter(filter(level)))
}

/// Only our own crates are heard below `warn`: at `trace`, HTTP libraries write the headers that they send, and those of an
/// exporter hold its credentials.
fn filter(level: LevelFilter) -> Targets {
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("nexent_observer", level)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: LevelFilter, format: LogFormat) -> String {
        let shared = Shared::default();
        let writer = shared.clone();
        tracing::subscriber::with_default(subscriber(level, format, false, move || writer.clone()), || {
            tracing::warn!(target: "h2", "theirs at warn");
            tracing::info!(target: "h2", "theirs at info");
            tracing::trace!(target: "nexent_observer_core::http", "core at trace");
            tracing::info!("ours at info");
            tracing::error!("ours at error");
        });
        let bytes = shared.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn other_crates_are_not_heard_below_warn() {
        for (level, want) in [
            (LevelFilter::OFF, &[][..]),
            (LevelFilter::ERROR, &["ours at error"]),
            (LevelFilter::INFO, &["theirs at warn", "ours at info", "ours at error"]),
            (LevelFilter::TRACE, &["theirs at warn", "core at trace", "ours at info", "ours at error"]),
        ] {
            let text = logged(level, LogFormat::Text);
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), want.len(), "{level}: {text}");
            assert!(lines.iter().zip(want).all(|(line, end)| line.ends_with(end)), "{level}: {text}");
        }
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged(LevelFilter::INFO, LogFormat::Json);
        let messages: Vec<String> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["message"].to_string())
            .collect();
        assert_eq!(messages, ["\"theirs at warn\"", "\"ours at info\"", "\"ours at error\""]);
    }
}
