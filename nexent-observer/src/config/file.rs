//! The configuration file: one YAML mapping of keys to scalars or sequences of scalars.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

use super::{
    ConfigError, Origin,
    keys::{self, Kind},
    raw::{Layer, Raw},
};

/// Longest file that is read, in bytes.
const FILE_BYTES: u64 = 1024 * 1024;

/// Reads and parses the file.
pub(super) fn read(path: &Path) -> Result<Layer, ConfigError> {
    let fail = |reason: String| ConfigError::Unreadable { origin: Origin::file(path), reason };
    let mut text = String::new();
    let file = File::open(path).map_err(|error| fail(error.to_string()))?;
    // The length is not asked for beforehand: a pipe (`--config <(...)`) has none.
    file.take(FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| fail(error.to_string()))?;
    if text.len() as u64 > FILE_BYTES {
        return Err(fail(format!("it is longer than {FILE_BYTES} bytes")));
    }
    parse(path, &text)
}

/// Parses the text of the file at `path`.
pub(super) fn parse(path: &Path, text: &str) -> Result<Layer, ConfigError> {
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        duplicate_keys: DuplicateKeyPolicy::Error,
    };
    let map: Option<BTreeMap<String, Spanned<Value>>> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| ConfigError::Unreadable {
            origin: Origin::file(path),
            reason: error.to_string().replace('\n', " "),
        })?;
    let mut layer = Layer::default();
    for (name, Spanned { value, referenced, .. }) in map.unwrap_or_default() {
        let origin = Origin::File { path: PathBuf::from(path), line: referenced.line() };
        let Some(key) = keys::find(&name) else {
            let hint = keys::closest(&name).map(str::to_owned);
            return Err(ConfigError::UnknownKey { key: name, origin, hint });
        };
        let values = match (value, key.kind) {
            (Value::Scalar(text), _) => vec![text],
            (Value::Sequence(items), Kind::Many { .. }) => items,
            (Value::Sequence(_), Kind::One | Kind::Switch) => {
                return Err(ConfigError::value(key, origin, "a sequence"));
            }
            (Value::Empty, _) => return Err(ConfigError::value(key, origin, "no value")),
        };
        layer.insert(key, Raw { values, origin });
    }
    Ok(layer)
}

/// A value as the file writes it. Scalars become text again, so that one parser serves all three sources.
#[derive(Debug, PartialEq, Eq)]
enum Value {
    Empty,
    Scalar(String),
    Sequence(Vec<String>),
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar or a sequence of scalars")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Scalar(value.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Empty)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(item) = items.next_element::<Scalar>()? {
            values.push(item.0);
        }
        Ok(Value::Sequence(values))
    }
}

/// An item of a sequence: no sequence again, so nothing here recurses by input.
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(ScalarVisitor)? {
            Value::Scalar(text) => Ok(Self(text)),
            Value::Empty | Value::Sequence(_) => Err(D::Error::custom("expected a scalar in the sequence")),
        }
    }
}

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        ValueVisitor.visit_bool(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        ValueVisitor.visit_i64(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        ValueVisitor.visit_u64(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        ValueVisitor.visit_f64(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        ValueVisitor.visit_str(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Layer, ConfigError> {
        parse(Path::new("/etc/observer.yaml"), text)
    }

    fn values(text: &str, name: &str) -> Vec<String> {
        parse_text(text).unwrap().get(keys::find(name).unwrap()).unwrap().values.clone()
    }

    #[test]
    fn scalars_of_every_yaml_type_arrive_as_text() {
        for (text, name, want) in [
            ("listen: off\n", "listen", "off"),
            ("listen: 0.0.0.0:1\n", "listen", "0.0.0.0:1"),
            ("capture_content: true\n", "capture_content", "true"),
            ("capture_content: yes\n", "capture_content", "yes"),
            ("telemetry_sample_rate: 0.5\n", "telemetry_sample_rate", "0.5"),
            ("drain_interval_ms: 20\n", "drain_interval_ms", "20"),
            ("read_ring_bytes: 8MiB\n", "read_ring_bytes", "8MiB"),
            ("service_name: \"7\"\n", "service_name", "7"),
            ("pid: -1\n", "pid", "-1"),
        ] {
            assert_eq!(values(text, name), [want], "{text}");
        }
    }

    #[test]
    fn a_list_is_a_sequence_or_one_scalar() {
        assert_eq!(values("pid: [1, 2]\n", "pid"), ["1", "2"]);
        assert_eq!(values("pid: 7\n", "pid"), ["7"]);
        assert_eq!(values("exe:\n  - /usr/bin/python3\n  - /a b\n", "exe"), ["/usr/bin/python3", "/a b"]);
    }

    #[test]
    fn the_origin_names_file_and_line() {
        let layer = parse_text("# comment\nlisten: off\n").unwrap();
        assert_eq!(layer.get(&keys::LISTEN).unwrap().origin.to_string(), "file /etc/observer.yaml, line 2");
    }

    #[test]
    fn an_empty_file_says_nothing() {
        for text in ["", "# only a comment\n", "---\n", "{}\n"] {
            assert_eq!(parse_text(text).unwrap(), Layer::default(), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_one_line_of_error_with_code_78() {
        for (text, want) in [
            ("listne: off\n", "unknown key listne in file /etc/observer.yaml, line 1; did you mean listen?"),
            ("log_level: info\nfoo_bar: 1\n", "unknown key foo_bar in file /etc/observer.yaml, line 2"),
            (
                "listen: [a, b]\n",
                "listen in file /etc/observer.yaml, line 1 is a sequence; expected IP:PORT (an IPv6 address in brackets) or off",
            ),
            (
                "jsonl:\n",
                "jsonl in file /etc/observer.yaml, line 1 is no value; expected a path, or - for standard output",
            ),
        ] {
            let error = parse_text(text).unwrap_err();
            assert_eq!(error.to_string(), want);
            assert_eq!(error.exit_code(), 78);
        }
        for text in
            ["- a\n", "listen: {a: 1}\n", "pid: [[1]]\n", "listen: off\nlisten: off\n", "listen: [\n", "just text"]
        {
            let error = parse_text(text).unwrap_err();
            let message = error.to_string();
            assert!(message.starts_with("cannot read file /etc/observer.yaml: "), "{message}");
            assert!(!message.contains('\n'), "{message}");
            assert_eq!(error.exit_code(), 78);
        }
    }

    #[test]
    fn deep_nesting_and_alias_bombs_are_refused() {
        let deep = format!("pid: {}", "[".repeat(100_000));
        assert!(parse_text(&deep).is_err());
        let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x]\n");
        for level in b'b'..=b'k' {
            let (now, before) = (char::from(level), char::from(level - 1));
            bomb.push_str(&format!(
                "{now}: &{now} [*{before}, *{before}, *{before}, *{before}, *{before}, *{before}]\n"
            ));
        }
        assert!(parse_text(&bomb).is_err());
    }
}
