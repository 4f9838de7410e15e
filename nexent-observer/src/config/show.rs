//! Prints the resolved configuration and where each value came from.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{
    Config, Environment,
    value::{REDACTED, redact_url},
};

/// Writes YAML that can serve as a configuration file again (except for secrets, which are taken out); the origin
/// stands in a comment behind each value.
pub fn write_yaml(out: &mut impl Write, config: &Config, environment: &Environment) -> io::Result<()> {
    for setting in config.settings() {
        let name = setting.key.name;
        match &setting.value {
            // A JSON scalar or array is YAML too, so quoting is never a question.
            Value::Null => writeln!(out, "# {name} is unset")?,
            value => writeln!(out, "{name}: {value}  # {}", setting.origin)?,
        }
    }
    for (name, value) in environment.otel() {
        writeln!(out, "# {name}={}", redact_variable(name, &value).escape_debug())?;
    }
    Ok(())
}

/// Writes one JSON object: `settings` holds value and origin of each key, `otel` the `OTEL_*` variables that are set.
pub fn write_json(out: &mut impl Write, config: &Config, environment: &Environment) -> io::Result<()> {
    let settings: serde_json::Map<String, Value> = config
        .settings()
        .iter()
        .map(|s| (s.key.name.to_owned(), json!({ "value": s.value, "origin": s.origin })))
        .collect();
    let otel: serde_json::Map<String, Value> =
        environment.otel().map(|(name, value)| (name.to_owned(), json!(redact_variable(name, &value)))).collect();
    serde_json::to_writer_pretty(&mut *out, &json!({ "settings": settings, "otel": otel }))?;
    writeln!(out)
}

/// Takes the secrets out of an `OTEL_*` variable: of headers only the names stay.
fn redact_variable(name: &str, value: &str) -> String {
    if name.ends_with("_HEADERS") {
        let names = value.split(',').map(|pair| match pair.split_once('=') {
            Some((header, _)) => format!("{}={REDACTED}", header.trim()),
            None => REDACTED.to_owned(),
        });
        return names.collect::<Vec<_>>().join(",");
    }
    // Keys and certificates are paths in today's specification. Variables this version does not know may hold anything.
    if ["HEADER", "TOKEN", "SECRET", "PASSWORD", "KEY", "CERTIFICATE", "AUTH"].iter().any(|word| name.contains(word)) {
        return REDACTED.to_owned();
    }
    if value.contains("://") || value.contains('@') { redact_url(value) } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_and_passwords_of_otel_variables_do_not_show() {
        for (name, value, want) in [
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "authorization=Bearer s3cret, x-k=s3cret",
                "authorization=REDACTED,x-k=REDACTED",
            ),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "s3cret", "REDACTED"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://u:s3cret@h:4318", "https://REDACTED@h:4318"),
            ("OTEL_SOME_TOKEN", "s3cret", "REDACTED"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "s3cret", "REDACTED"),
            ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "s3cret", "REDACTED"),
            ("OTEL_BASIC_AUTH", "s3cret", "REDACTED"),
            ("OTEL_SERVICE_NAME", "backend", "backend"),
        ] {
            assert_eq!(redact_variable(name, value), want, "{name}");
        }
    }
}
