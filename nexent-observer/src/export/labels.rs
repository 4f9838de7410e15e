//! Label values from the outside, made safe: no control characters, bounded in length and in number.
//!
//! A model name or an error code is whatever a peer sends. Each label admits a fixed number of values in the life of
//! the process, and the set of combinations has a cap of its own; what comes later is `other`, and the overflow is
//! counted. So a scrape stays bounded whatever the network says.

use std::{
    borrow::Cow,
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use super::view::UNKNOWN;
use crate::telemetry::Health;

/// Stands for all values over the cap.
const OTHER: &str = "other";
/// Longest label value, in bytes.
const VALUE_BYTES: usize = 128;

/// How many values each label admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Label `service`.
    pub service: usize,
    /// Label `provider`.
    pub provider: usize,
    /// Label `model`.
    pub model: usize,
    /// Label `endpoint`.
    pub endpoint: usize,
    /// Label `error_type`.
    pub error_type: usize,
    /// Combinations of the four labels of a call, and of those with operation and error type.
    pub series: usize,
}

impl Caps {
    /// The same cap for every label.
    #[must_use]
    pub fn of_each_label(values: usize) -> Self {
        let Self { series, .. } = Self::default();
        Self { service: values, provider: values, model: values, endpoint: values, error_type: values, series }
    }
}

impl Default for Caps {
    fn default() -> Self {
        Self { service: 200, provider: 100, model: 200, endpoint: 200, error_type: 100, series: 2000 }
    }
}

type Value = Arc<str>;

/// Values of `service`, `provider`, `model`, `endpoint`, in this order.
pub(super) type CallLabels = [Value; 4];

/// The admitted values. One lock, taken for well under a microsecond per exchange.
#[derive(Debug)]
pub(super) struct Labels {
    health: Arc<Health>,
    admitted: Mutex<Admitted>,
}

#[derive(Debug)]
struct Admitted {
    service: Values,
    provider: Values,
    model: Values,
    endpoint: Values,
    route: Values,
    error_type: Values,
    cap: usize,
    calls: HashSet<CallLabels>,
    errors: HashSet<(CallLabels, &'static str, Value)>,
}

#[derive(Debug)]
struct Values {
    label: &'static str,
    cap: usize,
    known: HashSet<Value>,
}

impl Labels {
    pub(super) fn new(caps: Caps, health: Arc<Health>) -> Self {
        let Caps { service, provider, model, endpoint, error_type, series } = caps;
        let values = |label, cap| Values { label, cap, known: HashSet::new() };
        let admitted = Mutex::new(Admitted {
            service: values("service", service),
            provider: values("provider", provider),
            model: values("model", model),
            endpoint: values("endpoint", endpoint),
            route: values("route", endpoint),
            error_type: values("error_type", error_type),
            cap: series,
            calls: HashSet::new(),
            errors: HashSet::new(),
        });
        Self { health, admitted }
    }

    /// Labels of a call; what is `None` is `unknown`.
    pub(super) fn call(
        &self,
        service: &str,
        provider: Option<&str>,
        model: Option<&str>,
        endpoint: Option<&str>,
    ) -> CallLabels {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let Admitted { service: services, provider: providers, model: models, endpoint: endpoints, .. } =
            &mut *admitted;
        let labels = [
            services.admit(Some(service), &self.health),
            providers.admit(provider, &self.health),
            models.admit(model, &self.health),
            endpoints.admit(endpoint, &self.health),
        ];
        let cap = admitted.cap;
        if admitted.calls.contains(&labels) {
            return labels;
        }
        if admitted.calls.len() < cap {
            admitted.calls.insert(labels.clone());
            return labels;
        }
        self.health.label_overflow("series");
        std::array::from_fn(|_| Value::from(OTHER))
    }

    /// Labels `service`, `provider`, `model` of an open stream.
    pub(super) fn stream(&self, service: &str, provider: Option<&str>, model: Option<&str>) -> [Value; 3] {
        // Counted among the combinations of finished calls: a stream becomes one when it ends.
        let [service, provider, model, _] = self.call(service, provider, model, None);
        [service, provider, model]
    }

    /// A route of a served request, which is no label: as many are shown as of `endpoint`. `None`: one too many.
    pub(super) fn route(&self, route: &str) -> Option<Value> {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let value = admitted.route.admit(Some(route), &self.health);
        (*value != *OTHER).then_some(value)
    }

    /// Value of `error_type` for a call with these labels.
    pub(super) fn error_type(&self, call: &CallLabels, operation: &'static str, error_type: &str) -> Value {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let value = admitted.error_type.admit(Some(error_type), &self.health);
        let key = (call.clone(), operation, value);
        let cap = admitted.cap;
        if admitted.errors.contains(&key) {
            return key.2;
        }
        if admitted.errors.len() < cap {
            admitted.errors.insert(key.clone());
            return key.2;
        }
        self.health.label_overflow("series");
        Value::from(OTHER)
    }
}

impl Values {
    fn admit(&mut self, value: Option<&str>, health: &Health) -> Value {
        let value = sanitise(value.unwrap_or_default());
        if let Some(known) = self.known.get(value.as_ref()) {
            return Arc::clone(known);
        }
        if value == UNKNOWN || value == OTHER {
            return value.as_ref().into();
        }
        if self.known.len() < self.cap {
            let new: Value = value.as_ref().into();
            self.known.insert(Arc::clone(&new));
            return new;
        }
        health.label_overflow(self.label);
        OTHER.into()
    }
}

/// Control characters become `_`, long values are cut at a character boundary, an empty value is `unknown`.
fn sanitise(value: &str) -> Cow<'_, str> {
    let value = value.trim();
    let value = value.get(..value.floor_char_boundary(VALUE_BYTES)).unwrap_or(value);
    if value.is_empty() {
        Cow::Borrowed(UNKNOWN)
    } else if value.chars().any(char::is_control) {
        Cow::Owned(value.chars().map(|c| if c.is_control() { '_' } else { c }).collect())
    } else {
        Cow::Borrowed(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Register;

    #[test]
    fn values_are_sanitised() {
        assert_eq!(sanitise("  "), "unknown");
        assert_eq!(sanitise("a\nb\u{7f}\u{9b}c"), "a_b__c");
        assert_eq!(sanitise("gpt-4o"), "gpt-4o");
        let long = sanitise(&"\u{e9}".repeat(100)).into_owned();
        assert_eq!(long, "\u{e9}".repeat(64));
    }

    #[test]
    fn a_million_models_become_a_hundred_and_other() {
        let health = Arc::new(Health::new(&Register::default()).unwrap());
        let labels = Labels::new(Caps { model: 100, ..Caps::default() }, health);
        let mut seen = HashSet::new();
        for i in 0..10_000 {
            seen.insert(labels.call("s", Some("p"), Some(&format!("m{i}")), None));
        }
        assert_eq!(seen.len(), 101);
        // One that was admitted stays itself.
        assert_eq!(labels.call("s", Some("p"), Some("m7"), None)[2].as_ref(), "m7");
        assert_eq!(labels.call("s", Some("p"), Some("m9999"), None)[2].as_ref(), "other");
    }

    #[test]
    fn only_so_many_routes_are_shown_and_they_take_no_room_from_endpoints() {
        let health = Arc::new(Health::new(&Register::default()).unwrap());
        let labels = Labels::new(Caps { endpoint: 10, ..Caps::default() }, health);
        let shown = (0..100).filter(|i| labels.route(&format!("/r{i}")).is_some()).count();
        assert_eq!(shown, 10);
        assert_eq!(labels.call("s", None, None, Some("POST /agent/run"))[3].as_ref(), "POST /agent/run");
    }

    #[test]
    fn combinations_are_capped_even_when_each_label_is_not() {
        let health = Arc::new(Health::new(&Register::default()).unwrap());
        let labels = Labels::new(Caps { series: 50, ..Caps::default() }, health);
        let mut seen = HashSet::new();
        for i in 0..40 {
            for j in 0..40 {
                seen.insert(labels.call(&format!("s{i}"), None, Some(&format!("m{j}")), None));
            }
        }
        assert_eq!(seen.len(), 51);
        let call = labels.call("s0", None, Some("m0"), None);
        let errors: HashSet<_> = (0..1000).map(|i| labels.error_type(&call, "chat", &i.to_string())).collect();
        assert_eq!(errors.len(), 51);
    }
}
