//! One OTLP resource per observed service, and the small builders that spans and metrics share.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
};

use super::config::Names;
use crate::export::Service;

/// Schema of the names. Those of 2026 have none that is published.
pub(super) fn schema_url(names: Names) -> &'static str {
    if names.has_v1_41() { "https://opentelemetry.io/schemas/1.41.0" } else { "" }
}

const DISTRO: &str = "nexent-observer";

/// The resource of `service`; `shared` are the attributes that every resource gets unless the service says otherwise.
pub(super) fn resource(service: &Service, shared: &[(String, String)]) -> Resource {
    let Service { name, pid, namespace, instance_id, attributes } = service;
    let mut out = vec![text("service.name", name)];
    out.extend(namespace.as_deref().map(|value| text("service.namespace", value)));
    out.extend(instance_id.as_deref().map(|value| text("service.instance.id", value)));
    out.push(int("process.pid", u64::from(*pid)));
    out.push(text("telemetry.distro.name", DISTRO));
    out.push(text("telemetry.distro.version", env!("CARGO_PKG_VERSION")));
    // The service's own first, and each key once: a resource with a key twice is not valid.
    for (key, value) in attributes.iter().chain(shared) {
        if !out.iter().any(|known| known.key == *key) {
            out.push(text(key, value));
        }
    }
    Resource { attributes: out, ..Resource::default() }
}

pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: DISTRO.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    }
}

pub(super) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

pub(super) fn int(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

pub(super) fn float(key: &str, value: f64) -> KeyValue {
    attribute(key, Value::DoubleValue(value))
}

pub(super) fn boolean(key: &str, value: bool) -> KeyValue {
    attribute(key, Value::BoolValue(value))
}

pub(super) fn array(key: &str, values: impl IntoIterator<Item = Value>) -> KeyValue {
    let values = values.into_iter().map(|value| AnyValue { value: Some(value) }).collect();
    attribute(key, Value::ArrayValue(ArrayValue { values }))
}
