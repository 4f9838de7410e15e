//! Tests of [`super`], kept apart so that the settings can be read in one sitting.

use std::collections::HashMap;

use super::*;

fn loaded(pairs: &[(&str, &str)], url: Option<&str>) -> Loaded {
    let env: HashMap<String, String> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    load(&env, url)
}

fn config(pairs: &[(&str, &str)], url: Option<&str>) -> OtlpConfig {
    let loaded = loaded(pairs, url);
    assert_eq!(loaded.warnings, [""; 0]);
    loaded.config.unwrap()
}

/// URL and protocol of traces and metrics.
fn targets(pairs: &[(&str, &str)], url: Option<&str>) -> [Option<(String, Protocol)>; 2] {
    let config = loaded(pairs, url).config.unwrap_or_default();
    [config.traces, config.metrics].map(|t| t.map(|t| (t.url.to_string(), t.protocol)))
}

fn some(url: &str, protocol: Protocol) -> Option<(String, Protocol)> {
    Some((url.to_owned(), protocol))
}

#[test]
fn off_unless_an_endpoint_is_configured() {
    assert_eq!(loaded(&[], None), Loaded::default());
    assert_eq!(loaded(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], None).config, None);
    assert_eq!(loaded(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], None).config, None);
    let disabled = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"), ("OTEL_SDK_DISABLED", "TRUE")];
    assert_eq!(loaded(&disabled, None).config, None);
}

#[test]
fn the_general_endpoint_is_a_base_and_a_signals_own_is_used_as_it_is() {
    use Protocol::Http;
    assert_eq!(
        targets(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/otlp/")], None),
        [some("http://c:4318/otlp/v1/traces", Http), some("http://c:4318/otlp/v1/metrics", Http)]
    );
    let own = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://t/x?k=1")];
    assert_eq!(targets(&own, None), [some("https://t/x?k=1", Http), some("http://c/v1/metrics", Http)]);
    // The command line beats both.
    let want = [some("http://cli:1/v1/traces", Http), some("http://cli:1/v1/metrics", Http)];
    assert_eq!(targets(&own, Some("http://cli:1")), want);
}

#[test]
fn grpc_by_name_or_by_port_and_its_scheme_by_insecure() {
    use Protocol::{Grpc, Http};
    let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "GRPC");
    let both = |url: &str| [some(url, Grpc), some(url, Grpc)];
    assert_eq!(targets(&[grpc, ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1/path")], None), both("http://c:1/"));
    assert_eq!(targets(&[grpc, ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317")], None), both("https://c:4317/"));
    let insecure = ("OTEL_EXPORTER_OTLP_INSECURE", "true");
    assert_eq!(targets(&[grpc, insecure, ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317")], None), both("http://c:4317/"));
    assert_eq!(targets(&[], Some("http://c:4317")), both("http://c:4317/"));
    let said = [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
    let want = [some("http://c:4317/v1/traces", Http), some("http://c:4317/v1/metrics", Http)];
    assert_eq!(targets(&said, Some("http://c:4317")), want);
    let json = [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")];
    assert_eq!(targets(&json, Some("http://c"))[0], some("http://c/v1/traces", Protocol::HttpJson));
    let mixed = [grpc, ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf")];
    assert_eq!(targets(&mixed, Some("http://c:9")), [some("http://c:9/", Grpc), some("http://c:9/v1/metrics", Http)]);
}

#[test]
fn a_jaeger_collector_url_becomes_its_otlp_endpoint_for_traces_only() {
    use Protocol::{Grpc, Http};
    for (url, want) in [
        ("http://jaeger:14268/api/traces", some("http://jaeger:4318/v1/traces", Http)),
        ("http://jaeger:14268/", some("http://jaeger:4318/v1/traces", Http)),
        ("http://[::1]:14268/api/traces/", some("http://[::1]:4318/v1/traces", Http)),
        ("http://jaeger:4318", some("http://jaeger:4318/v1/traces", Http)),
        ("http://jaeger:4317", some("http://jaeger:4317/", Grpc)),
    ] {
        assert_eq!(targets(&[("JAEGER_ENDPOINT", url)], None), [want, None], "{url}");
    }
    let both = [("JAEGER_ENDPOINT", "http://j:14268/api/traces"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c")];
    assert_eq!(targets(&both, None)[0], some("http://c/v1/traces", Http));
}

#[test]
fn settings_of_one_signal_beat_the_general_ones() {
    let config = config(
        &[
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x"),
            ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "a=b"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "70"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "/c.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem"),
            ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE", "/m.pem"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
            ("OTEL_METRIC_EXPORT_TIMEOUT", "900"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "300"),
        ],
        Some("https://c"),
    );
    let (traces, metrics) = (config.traces.unwrap(), config.metrics.unwrap());
    assert_eq!(traces.headers, [("authorization".parse().unwrap(), "Bearer x".parse().unwrap())]);
    assert!(!format!("{traces:?}").contains("Bearer"), "a header never gets into a log");
    assert_eq!(metrics.headers, [("a".parse().unwrap(), "b".parse().unwrap())]);
    assert_eq!((traces.gzip, metrics.gzip), (false, true));
    assert_eq!((traces.timeout.as_millis(), metrics.timeout.as_millis()), (70, 1500));
    assert_eq!(traces.certificate, Some("/ca.pem".into()));
    assert_eq!(traces.client_certificate, Some("/c.pem".into()));
    assert_eq!(traces.client_key, Some("/k.pem".into()));
    assert_eq!(metrics.client_certificate, Some("/m.pem".into()));
    assert_eq!(config.temporality, Temporality::Delta);
    assert_eq!((config.metric_interval.as_millis(), config.metric_timeout.as_millis()), (1000, 900));
    let batch = config.batch;
    assert_eq!((batch.max_queue, batch.max_batch), (100, 100));
    assert_eq!((batch.schedule_delay.as_millis(), batch.export_timeout.as_millis()), (20, 300));
}

#[test]
fn what_makes_no_sense_is_ignored_with_one_warning_each() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "soon"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1.5"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zip"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "carrier-pigeon"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "k k=v"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "weekly"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "/only.pem"),
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "linear"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "-1"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,broken"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ] {
        let loaded = loaded(&[(name, value)], Some("http://c"));
        assert_eq!(loaded.warnings.len(), 1, "{name}: {:?}", loaded.warnings);
        let config = loaded.config.unwrap();
        let mut default = config_default();
        if name == "OTEL_BSP_MAX_EXPORT_BATCH_SIZE" {
            default.batch.max_batch = default.batch.max_queue;
        }
        assert_eq!(config, default, "{name}");
    }
}

fn config_default() -> OtlpConfig {
    config(&[], Some("http://c"))
}

#[test]
fn a_broken_endpoint_switches_its_signal_off_and_says_so() {
    for bad in ["collector:4318", "ftp://c", "http://", "::"] {
        let loaded = loaded(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", bad)], None);
        assert_eq!(loaded.config, None, "{bad}");
        assert_eq!(loaded.warnings.len(), 1, "{bad}: {:?}", loaded.warnings);
        assert!(loaded.warnings[0].starts_with("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "));
    }
}

#[test]
fn exporters_can_be_switched_off_by_signal() {
    let on = |traces: &str| {
        let c = loaded(&[("OTEL_TRACES_EXPORTER", traces)], Some("http://c")).config.unwrap();
        (c.traces.is_some(), c.metrics.is_some())
    };
    assert_eq!(on("none"), (false, true));
    assert_eq!(on("NONE"), (false, true));
    assert_eq!(on("console"), (false, true));
    assert_eq!(on("console, otlp"), (true, true));
    assert_eq!(on("otlp"), (true, true));
    let all_off = [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "prometheus")];
    assert_eq!(loaded(&all_off, Some("http://c")).config, None);
}

#[test]
fn resource_attributes_are_shared_but_not_the_observers_identity() {
    let env = [(
        "OTEL_RESOURCE_ATTRIBUTES",
        "deployment.environment.name=prod,service.name=obs,service.version=1,process.pid=1",
    )];
    let read = loaded(&env, Some("http://c"));
    assert_eq!(read.config.unwrap().resource, [("deployment.environment.name".into(), "prod".into())]);
}

/// The variables of the specification that speak of exporting spans and metrics, each with a value that is not its default.
const VARIABLES: [(&str, &str); 20] = [
    ("OTEL_SDK_DISABLED", "true"),
    ("OTEL_RESOURCE_ATTRIBUTES", "a=b"),
    ("OTEL_TRACES_EXPORTER", "none"),
    ("OTEL_METRICS_EXPORTER", "none"),
    ("OTEL_BSP_SCHEDULE_DELAY", "1"),
    ("OTEL_BSP_EXPORT_TIMEOUT", "1"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "600"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1"),
    ("OTEL_METRIC_EXPORT_INTERVAL", "1"),
    ("OTEL_METRIC_EXPORT_TIMEOUT", "1"),
    ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
    ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "lowmemory"),
    ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram"),
    ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5"),
    ("OTEL_ATTRIBUTE_COUNT_LIMIT", "5"),
    ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "5"),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "5"),
    ("OTEL_SPAN_EVENT_COUNT_LIMIT", "5"),
    ("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "5"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://other"),
];

/// The rest of the names `OTEL_EXPORTER_OTLP_*`, which exist for both signals together and for each.
const OF_A_SIGNAL: [(&str, &str); 7] = [
    ("PROTOCOL", "grpc"),
    ("HEADERS", "a=b"),
    ("COMPRESSION", "gzip"),
    ("TIMEOUT", "1"),
    ("CERTIFICATE", "/ca.pem"),
    ("CLIENT_CERTIFICATE", "/c.pem"),
    ("CLIENT_KEY", "/k.pem"),
];

#[test]
fn each_variable_of_the_specification_changes_what_it_speaks_of() {
    let of = |pairs: &[(&str, &str)]| {
        let base = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/key.pem"),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "/cert.pem"),
            ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", "/key.pem"),
            ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE", "/cert.pem"),
        ];
        loaded(&[&base, pairs].concat(), None)
    };
    let base = of(&[]);
    assert_eq!(base.warnings, [""; 0]);
    for (name, value) in VARIABLES {
        let with = of(&[(name, value)]);
        assert_eq!(with.warnings, [""; 0], "{name}");
        assert_ne!(with.config, base.config, "{name}");
    }
    for (what, value) in OF_A_SIGNAL {
        let plain = loaded(&[], Some("http://c"));
        assert_ne!(loaded(&[(&format!("OTEL_EXPORTER_OTLP_{what}"), value)], Some("http://c")), plain, "{what}");
        let (traces, metrics) = (
            of(&[(&format!("OTEL_EXPORTER_OTLP_TRACES_{what}"), value)]).config.unwrap(),
            of(&[(&format!("OTEL_EXPORTER_OTLP_METRICS_{what}"), value)]).config.unwrap(),
        );
        let base = base.config.clone().unwrap();
        assert!(traces.traces != base.traces && traces.metrics == base.metrics, "traces: {what}");
        assert!(metrics.traces == base.traces && metrics.metrics != base.metrics, "metrics: {what}");
    }
    let own = [("OTEL_ATTRIBUTE_COUNT_LIMIT", "5"), ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "7")];
    let limits = of(&own).config.unwrap().span_limits;
    assert_eq!((limits.attributes, limits.event_attributes), (7, 5), "a span's own beats the general one");
    let length = of(&[("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "0")]).config.unwrap().span_limits;
    assert_eq!(length, SpanLimits { value_chars: 0, ..SpanLimits::default() });
}

#[test]
fn the_documentation_names_every_variable() {
    let config = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    let docs = format!("{}{}", crate::telemetry::docs::text(), std::fs::read_to_string(config).unwrap());
    let own = [
        "OTEL_SERVICE_NAME",
        "OTEL_LOG_LEVEL",
        "OTEL_TRACES_SAMPLER",
        "OTEL_TRACES_SAMPLER_ARG",
        "OTEL_EXPORTER_PROMETHEUS_HOST",
        "OTEL_EXPORTER_PROMETHEUS_PORT",
        "OTEL_SEMCONV_STABILITY_OPT_IN",
        "OTEL_PROPAGATORS",
        "OTEL_CONFIG_FILE",
        "OTEL_EXPORTER_OTLP_INSECURE",
        "OTEL_METRICS_EXEMPLAR_FILTER",
        "JAEGER_ENDPOINT",
    ];
    for name in VARIABLES.iter().map(|(name, _)| *name).chain(own) {
        // A row may name the rest of its variables by their endings.
        let short = |at: usize| docs.contains(&format!("`{}`", &name[at..]));
        let found = docs.contains(&format!("`{name}`")) || name.match_indices('_').skip(1).any(|(at, _)| short(at));
        assert!(found, "docs lack {name}");
    }
    for (what, _) in OF_A_SIGNAL {
        assert!(
            docs.contains(&format!("OTEL_EXPORTER_OTLP_{what}`")) || docs.contains(&format!("`_{what}`")),
            "{what}"
        );
    }
}
