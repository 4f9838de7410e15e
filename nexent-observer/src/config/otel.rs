//! Variables of OpenTelemetry that say the same as one of our keys. Each is the weakest word of the environment, and by its
//! specification's rule a value that makes no sense is named in a warning and ignored, where one of our own is an error.

use tracing::level_filters::LevelFilter;

use super::{
    Environment, Listen, Origin,
    keys::{self, Key},
    raw::{Layer, Raw},
    value::{self, Shown},
};
use crate::export::env::percent_decode;

/// A variable, the key that it sets, and how its value reads as one of that key: `Ok(None)` when it does not speak of it.
type Rule = (&'static str, &'static Key, fn(&Words<'_>, &str) -> Result<Option<String>, &'static str>);

const RULES: [Rule; 7] = [
    ("OTEL_SERVICE_NAME", &keys::SERVICE_NAME, |_, text| {
        kept(text, value::service_name, "not a name of 1 to 255 bytes")
    }),
    ("OTEL_RESOURCE_ATTRIBUTES", &keys::SERVICE_NAME, |_, text| Ok(service_name(text))),
    ("OTEL_LOG_LEVEL", &keys::LOG_LEVEL, |_, text| log_level(text)),
    ("OTEL_TRACES_SAMPLER", &keys::TELEMETRY_SAMPLE_RATE, sample_rate),
    ("OTEL_EXPORTER_PROMETHEUS_HOST", &keys::LISTEN, listen),
    ("OTEL_EXPORTER_PROMETHEUS_PORT", &keys::PROMETHEUS_PORT, |_, text| kept(text, value::port, "not a port")),
    ("OTEL_SEMCONV_STABILITY_OPT_IN", &keys::SEMCONV, |_, text| semconv(text)),
];

/// The environment and what it says of our keys so far.
struct Words<'a> {
    environment: &'a Environment,
    layer: &'a Layer,
}

/// Adds what the variables say of keys that `layer` does not set yet; gives the warnings, one sentence each.
pub(super) fn add(environment: &Environment, layer: &mut Layer) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, key, read) in RULES {
        if layer.get(key).is_some() {
            continue;
        }
        let words = Words { environment, layer };
        let Some(text) = words.get(name) else { continue };
        match read(&words, &text) {
            Ok(Some(value)) => {
                let origin = Origin::Environment { name: name.to_owned() };
                layer.insert(key, Raw { values: vec![value], origin });
            }
            Ok(None) => {}
            Err(what) => warnings.push(format!("{name}: {what}, ignored")),
        }
    }
    let words = Words { environment, layer };
    let propagators = words.get("OTEL_PROPAGATORS").map(|list| list.to_ascii_lowercase());
    if propagators.is_some_and(|list| list.split(',').all(|word| word.trim() != "tracecontext")) {
        warnings.push("OTEL_PROPAGATORS: only tracecontext is known, and used".to_owned());
    }
    if environment.otel().any(|(name, _)| matches!(name, "OTEL_CONFIG_FILE" | "OTEL_EXPERIMENTAL_CONFIG_FILE")) {
        warnings.push("OTEL_CONFIG_FILE: declarative configuration is not supported; see docs/config.md".to_owned());
    }
    warnings
}

impl Words<'_> {
    /// A variable, trimmed; empty is unset.
    fn get(&self, name: &str) -> Option<String> {
        self.environment.otel().find(|(known, _)| *known == name).map(|(_, value)| value.trim().to_owned())
    }
}

fn kept<T>(text: &str, parse: impl Fn(&str) -> Option<T>, what: &'static str) -> Result<Option<String>, &'static str> {
    parse(text).map(|_| Some(text.to_owned())).ok_or(what)
}

/// `service.name` of a list of attributes. A list that is broken is the exporters' to complain of.
fn service_name(list: &str) -> Option<String> {
    let pairs = list.split(',').filter_map(|pair| pair.split_once('='));
    let (_, name) = pairs.into_iter().find(|(key, _)| key.trim() == "service.name")?;
    percent_decode(name.trim()).filter(|name| value::service_name(name).is_some())
}

fn log_level(text: &str) -> Result<Option<String>, &'static str> {
    let level = match text.to_ascii_lowercase().as_str() {
        "none" => LevelFilter::OFF,
        "verbose" | "all" => LevelFilter::TRACE,
        other => value::log_level(other).ok_or("not a level")?,
    };
    Ok(level.shown().as_str().map(str::to_owned))
}

/// `OTEL_TRACES_SAMPLER` with `OTEL_TRACES_SAMPLER_ARG`. Traces are decided as a whole by their id either way, so
/// `parentbased_` makes no difference.
fn sample_rate(words: &Words<'_>, text: &str) -> Result<Option<String>, &'static str> {
    let sampler = text.to_ascii_lowercase();
    match sampler.strip_prefix("parentbased_").unwrap_or(&sampler) {
        "always_on" => Ok(Some("1.0".to_owned())),
        "always_off" => Ok(Some("0.0".to_owned())),
        "traceidratio" => match words.get("OTEL_TRACES_SAMPLER_ARG") {
            None => Ok(Some("1.0".to_owned())),
            Some(ratio) => kept(&ratio, value::number(0.0, 1.0), "OTEL_TRACES_SAMPLER_ARG is no number from 0 to 1"),
        },
        _ => Err("not a sampler that is known here"),
    }
}

/// The host, with the port that the rest of the environment names: `listen` and a port of the same source would contradict
/// each other.
fn listen(words: &Words<'_>, text: &str) -> Result<Option<String>, &'static str> {
    const WHAT: &str = "neither localhost nor an IP address";
    let host = if text.eq_ignore_ascii_case("localhost") { "127.0.0.1" } else { text.trim_matches(['[', ']']) };
    let address = host.parse::<std::net::IpAddr>().map_err(|_| WHAT)?;
    let ours = words.layer.get(&keys::PROMETHEUS_PORT).map(|raw| raw.values.concat());
    let port = ours.or_else(|| words.get("OTEL_EXPORTER_PROMETHEUS_PORT")).and_then(|port| value::port(&port));
    let default = keys::LISTEN.default.and_then(value::listen);
    let Some(Listen::On(mut listen)) = default else { return Err(WHAT) };
    listen.set_ip(address);
    listen.set_port(port.unwrap_or_else(|| listen.port()));
    Ok(Some(listen.to_string()))
}

/// A list of conventions to be tried; others than those of GenAI change nothing here.
fn semconv(text: &str) -> Result<Option<String>, &'static str> {
    let mut words =
        text.split(',').map(|word| word.trim().to_ascii_lowercase()).filter(|word| word.starts_with("gen_ai"));
    match words.next().as_deref() {
        None => Ok(None),
        Some("gen_ai_latest_experimental") => Ok(Some("2026".to_owned())),
        Some("gen_ai_latest_experimental/dup") => Ok(Some("both".to_owned())),
        Some(_) => Err("of GenAI only gen_ai_latest_experimental is known"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Flags, Semconv};

    fn load(variables: &[(&str, &str)]) -> Config {
        let environment: Environment = variables.iter().copied().collect();
        Config::load(Flags::default(), &environment).unwrap()
    }

    /// What `config` shows of a key, and where it came from.
    fn shown(variables: &[(&str, &str)], key: &Key) -> (String, String) {
        let config = load(variables);
        assert_eq!(config.warnings, [""; 0], "{variables:?}");
        let setting = config.settings().iter().find(|setting| setting.key == key).unwrap();
        (setting.value.to_string(), setting.origin.to_string())
    }

    #[test]
    fn each_variable_sets_its_key_and_says_so() {
        for (name, text, key, want) in [
            ("OTEL_SERVICE_NAME", "backend", &keys::SERVICE_NAME, "\"backend\""),
            ("OTEL_RESOURCE_ATTRIBUTES", "team=a,service.name=b%20c", &keys::SERVICE_NAME, "\"b c\""),
            ("OTEL_LOG_LEVEL", "none", &keys::LOG_LEVEL, "\"off\""),
            ("OTEL_LOG_LEVEL", "Verbose", &keys::LOG_LEVEL, "\"trace\""),
            ("OTEL_LOG_LEVEL", "WARN", &keys::LOG_LEVEL, "\"warn\""),
            ("OTEL_TRACES_SAMPLER", "always_off", &keys::TELEMETRY_SAMPLE_RATE, "0.0"),
            ("OTEL_TRACES_SAMPLER", "parentbased_always_on", &keys::TELEMETRY_SAMPLE_RATE, "1.0"),
            ("OTEL_TRACES_SAMPLER", "traceidratio", &keys::TELEMETRY_SAMPLE_RATE, "1.0"),
            ("OTEL_EXPORTER_PROMETHEUS_HOST", "0.0.0.0", &keys::LISTEN, "\"0.0.0.0:9464\""),
            ("OTEL_EXPORTER_PROMETHEUS_HOST", "localhost", &keys::LISTEN, "\"127.0.0.1:9464\""),
            ("OTEL_EXPORTER_PROMETHEUS_HOST", "::1", &keys::LISTEN, "\"[::1]:9464\""),
            ("OTEL_EXPORTER_PROMETHEUS_PORT", "9000", &keys::PROMETHEUS_PORT, "9000"),
            ("OTEL_SEMCONV_STABILITY_OPT_IN", "http/dup, gen_ai_latest_experimental", &keys::SEMCONV, "\"2026\""),
        ] {
            let origin = format!("environment variable {name}");
            assert_eq!(shown(&[(name, text)], key), (want.to_owned(), origin), "{name}={text}");
        }
        let ratio = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
        assert_eq!(shown(&ratio, &keys::TELEMETRY_SAMPLE_RATE).0, "0.25");
    }

    #[test]
    fn every_other_word_of_the_environment_is_stronger() {
        let level = [("NEXENT_OBSERVER_LOG_LEVEL", "error"), ("OTEL_LOG_LEVEL", "debug")];
        assert_eq!(shown(&level, &keys::LOG_LEVEL).0, "\"error\"");
        let name = [("SERVICE_NAME", "a"), ("OTEL_SERVICE_NAME", "b")];
        assert_eq!(shown(&name, &keys::SERVICE_NAME).0, "\"a\"");
        let name = [("OTEL_SERVICE_NAME", "a"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=b")];
        assert_eq!(shown(&name, &keys::SERVICE_NAME).0, "\"a\"");
        let rate = [("TELEMETRY_SAMPLE_RATE", "0.5"), ("OTEL_TRACES_SAMPLER", "always_off")];
        assert_eq!(shown(&rate, &keys::TELEMETRY_SAMPLE_RATE).0, "0.5");
        let names =
            [("NEXENT_OBSERVER_SEMCONV", "both"), ("OTEL_SEMCONV_STABILITY_OPT_IN", "gen_ai_latest_experimental")];
        assert_eq!(load(&names).semconv, Semconv::Both);
        let listen = [("NEXENT_OBSERVER_LISTEN", "off"), ("OTEL_EXPORTER_PROMETHEUS_HOST", "0.0.0.0")];
        assert_eq!(load(&listen).listen, Listen::Off);
    }

    #[test]
    fn host_and_port_come_together() {
        let address = |variables: &[(&str, &str)]| match load(variables).listen {
            Listen::On(address) => address.to_string(),
            Listen::Off => "off".to_owned(),
        };
        let host = ("OTEL_EXPORTER_PROMETHEUS_HOST", "0.0.0.0");
        assert_eq!(address(&[host, ("OTEL_EXPORTER_PROMETHEUS_PORT", "9000")]), "0.0.0.0:9000");
        assert_eq!(address(&[host, ("PROMETHEUS_PORT", "8000")]), "0.0.0.0:8000");
        assert_eq!(address(&[("OTEL_EXPORTER_PROMETHEUS_PORT", "9000")]), "127.0.0.1:9000");
    }

    #[test]
    fn what_makes_no_sense_is_named_and_ignored() {
        for (name, text) in [
            ("OTEL_SERVICE_NAME", "a\u{7}b"),
            ("OTEL_LOG_LEVEL", "loud"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_EXPORTER_PROMETHEUS_HOST", "metrics.example"),
            ("OTEL_EXPORTER_PROMETHEUS_PORT", "0"),
            ("OTEL_SEMCONV_STABILITY_OPT_IN", "gen_ai_of_tomorrow"),
            ("OTEL_CONFIG_FILE", "/etc/otel.yaml"),
            ("OTEL_PROPAGATORS", "b3,jaeger"),
        ] {
            let config = load(&[(name, text)]);
            assert_eq!(config.warnings.len(), 1, "{name}: {:?}", config.warnings);
            assert!(config.warnings[0].starts_with(name), "{:?}", config.warnings);
            assert!(config.settings().iter().all(|setting| setting.origin == Origin::Default), "{name}");
        }
        let bad = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")];
        assert_eq!(load(&bad).telemetry_sample_rate, 1.0);
        assert_eq!(load(&bad).warnings.len(), 1);
        // Conventions that are not ours, and an empty variable, are nobody's mistake.
        assert_eq!(load(&[("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database/dup")]).warnings, [""; 0]);
        assert_eq!(load(&[("OTEL_LOG_LEVEL", ""), ("OTEL_PROPAGATORS", "tracecontext,baggage")]).warnings, [""; 0]);
    }
}
