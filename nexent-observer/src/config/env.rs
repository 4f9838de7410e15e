//! The environment as a value, so that nothing below reads the process's own.

use std::{collections::BTreeMap, ffi::OsString};

use super::{
    ConfigError, Origin,
    keys::{self, ENV_PREFIX, KEYS, Key, Kind},
    raw::{Layer, Raw},
};

/// The variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "NEXENT_OBSERVER_CONFIG";

/// Environment variables by name.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// That of this process. Variables whose name is not UTF-8 cannot be ours and are left out.
    #[must_use]
    pub fn of_this_process() -> Self {
        Self(std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect())
    }

    /// Value of a variable; an empty one counts as unset, as the OpenTelemetry specification wants it for its own.
    pub fn get(&self, name: &str) -> Result<Option<&str>, ConfigError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(value) => match value.to_str() {
                Some("") => Ok(None),
                Some(text) => Ok(Some(text)),
                None => Err(ConfigError::Unreadable {
                    origin: Origin::Environment { name: name.to_owned() },
                    reason: "its value is not UTF-8".to_owned(),
                }),
            },
        }
    }

    /// The `OTEL_*` variables that are set, with their values. The export stage reads them itself.
    pub fn otel(&self) -> impl Iterator<Item = (&str, String)> {
        self.0
            .iter()
            .filter(|(name, value)| name.starts_with("OTEL_") && !value.is_empty())
            .map(|(name, value)| (name.as_str(), value.to_string_lossy().into_owned()))
    }

    /// The keys that variables set. `NEXENT_OBSERVER_*` wins over the Nexent name of the same key.
    pub(super) fn layer(&self) -> Result<Layer, ConfigError> {
        self.refuse_unknown()?;
        let mut layer = Layer::default();
        for key in KEYS {
            for name in std::iter::once(key.variable()).chain(key.alias.map(str::to_owned)) {
                let Some(value) = self.get(&name)? else { continue };
                if is_link_to_prometheus(&name, value) {
                    continue;
                }
                let values = match key.kind {
                    Kind::Many { separator } => value.split(separator).map(|part| part.trim().to_owned()).collect(),
                    Kind::One | Kind::Switch => vec![value.to_owned()],
                };
                layer.insert(key, Raw { values, origin: Origin::Environment { name } });
                break;
            }
        }
        Ok(layer)
    }

    fn refuse_unknown(&self) -> Result<(), ConfigError> {
        for name in self.0.keys().filter(|name| *name != CONFIG_VARIABLE) {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            let key = rest.to_ascii_lowercase();
            if is_service_link(rest)
                || is_for_developers(rest)
                || keys::find(&key).is_some_and(|known| known.variable() == *name)
            {
                continue;
            }
            return Err(ConfigError::UnknownKey {
                hint: keys::closest(&key).and_then(keys::find).map(Key::variable),
                key: name.clone(),
                origin: Origin::Environment { name: name.clone() },
            });
        }
        Ok(())
    }
}

impl<N: Into<String>, V: Into<OsString>, const COUNT: usize> From<[(N, V); COUNT]> for Environment {
    fn from(variables: [(N, V); COUNT]) -> Self {
        variables.into_iter().collect()
    }
}

impl<N: Into<String>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// Kubernetes gives every pod such variables for a Service named `nexent-observer`; they are no configuration.
/// <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
fn is_service_link(rest: &str) -> bool {
    matches!(rest, "SERVICE_HOST" | "SERVICE_PORT" | "PORT")
        || rest.starts_with("SERVICE_PORT_")
        || rest.starts_with("PORT_")
}

/// Likewise for a Service named `prometheus`: its link has the very name of an alias of ours, and no port in it.
fn is_link_to_prometheus(name: &str, value: &str) -> bool {
    name == "PROMETHEUS_PORT" && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

/// `cargo xtask build` and the tests use these; they configure nothing that a user sets.
fn is_for_developers(rest: &str) -> bool {
    rest == "BPF_OBJECT" || rest.starts_with("TEST_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_variable_is_refused_with_the_one_that_was_meant() {
        let error = Environment::from([("NEXENT_OBSERVER_LISTNE", "off")]).layer().unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown variable NEXENT_OBSERVER_LISTNE in the environment; did you mean NEXENT_OBSERVER_LISTEN?"
        );
        assert_eq!(error.exit_code(), 78);
    }

    #[test]
    fn service_links_and_variables_of_others_are_no_keys() {
        let layer = Environment::from([
            ("NEXENT_OBSERVER_SERVICE_HOST", "10.0.0.1"),
            ("NEXENT_OBSERVER_SERVICE_PORT_METRICS", "9464"),
            ("NEXENT_OBSERVER_PORT", "tcp://10.0.0.1:9464"),
            ("NEXENT_OBSERVER_PORT_9464_TCP_ADDR", "10.0.0.1"),
            ("NEXENT_OBSERVER_BPF_OBJECT", "/x.o"),
            ("NEXENT_OBSERVER_TEST_FAULT", "none"),
            ("PATH", "/bin"),
            ("LISTEN", "off"),
        ])
        .layer()
        .unwrap();
        assert_eq!(layer, Layer::default());
    }

    #[test]
    fn the_link_to_a_service_named_prometheus_is_no_port() {
        let port = |name: &'static str, value: &'static str| {
            let layer = Environment::from([(name, value)]).layer().unwrap();
            layer.get(&keys::PROMETHEUS_PORT).map(|raw| raw.values.concat())
        };
        assert_eq!(port("PROMETHEUS_PORT", "tcp://10.0.0.2:9090"), None);
        assert_eq!(port("PROMETHEUS_PORT", "9090").as_deref(), Some("9090"));
        assert!(
            port("NEXENT_OBSERVER_PROMETHEUS_PORT", "tcp://10.0.0.2:9090").is_some(),
            "no link has our prefix twice"
        );
        assert!(port("PROMETHEUS_PORT", "90x90").is_some(), "a typing error is still one");
    }

    #[test]
    fn an_empty_variable_is_unset_so_the_nexent_name_is_used() {
        let layer =
            Environment::from([("NEXENT_OBSERVER_SERVICE_NAME", ""), ("SERVICE_NAME", "backend")]).layer().unwrap();
        let raw = layer.get(&keys::SERVICE_NAME).unwrap();
        assert_eq!(raw.values, ["backend"]);
        assert_eq!(raw.origin, Origin::Environment { name: "SERVICE_NAME".to_owned() });
    }

    #[test]
    fn a_value_that_is_not_utf8_is_an_error_that_names_the_variable() {
        use std::os::unix::ffi::OsStringExt;
        let bad = OsString::from_vec(vec![0xff, 0xfe]);
        let error = Environment::from([("SERVICE_NAME", bad)]).layer().unwrap_err();
        assert_eq!(error.to_string(), "cannot read environment variable SERVICE_NAME: its value is not UTF-8");
    }
}
