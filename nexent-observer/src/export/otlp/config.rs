//! OTLP settings: the `OTEL_*` variables (OpenTelemetry specification, "OTLP Exporter Configuration" and
//! "Environment Variable Specification"), `JAEGER_ENDPOINT`, and the URL of the command line.

use std::{path::PathBuf, time::Duration};

use reqwest::{
    Url,
    header::{HeaderName, HeaderValue},
};

use crate::export::env::{Env, Reader};

/// Port that every collector uses for OTLP over gRPC.
const GRPC_PORT: u16 = 4317;
/// Port that every collector uses for OTLP over HTTP.
const HTTP_PORT: u16 = 4318;

/// Everything that OTLP export needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct OtlpConfig {
    /// Where spans go; `None`: nowhere.
    pub traces: Option<Target>,
    /// Where metrics go; `None`: nowhere.
    pub metrics: Option<Target>,
    /// How spans are batched.
    pub batch: Batch,
    /// `OTEL_METRIC_EXPORT_INTERVAL`.
    pub metric_interval: Duration,
    /// `OTEL_METRIC_EXPORT_TIMEOUT`: one export with its retries.
    pub metric_timeout: Duration,
    /// `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE`.
    pub temporality: Temporality,
    /// Buckets of histograms.
    pub aggregation: Aggregation,
    /// Names of metrics and attributes.
    pub names: Names,
    /// What a span may hold.
    pub span_limits: SpanLimits,
    /// `OTEL_RESOURCE_ATTRIBUTES` of the observer without the identity of a service: added to every observed service
    /// that does not say otherwise (`deployment.environment.name`, `host.name`, ...).
    pub resource: Vec<(String, String)>,
    /// Wait before the first retry; doubles up to [`Self::backoff_max`].
    pub backoff_first: Duration,
    /// Longest wait between retries.
    pub backoff_max: Duration,
}

/// Where one signal goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Complete URL (HTTP) or scheme and authority (gRPC).
    pub url: Url,
    /// How it is sent.
    pub protocol: Protocol,
    /// Sent with every request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Requests are compressed with gzip.
    pub gzip: bool,
    /// One request.
    pub timeout: Duration,
    /// PEM file of certificates to trust instead of the system's.
    pub certificate: Option<PathBuf>,
    /// PEM file of the client's certificate chain.
    pub client_certificate: Option<PathBuf>,
    /// PEM file of the client's key.
    pub client_key: Option<PathBuf>,
}

/// Transport of OTLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Protobuf over gRPC.
    Grpc,
    /// Protobuf over HTTP.
    Http,
    /// JSON over HTTP.
    HttpJson,
}

/// Batching of spans (`OTEL_BSP_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Longest wait of a span for its batch.
    pub schedule_delay: Duration,
    /// One export with its retries; after it the batch is dropped.
    pub export_timeout: Duration,
    /// Spans that may wait.
    pub max_queue: usize,
    /// Spans in one request.
    pub max_batch: usize,
}

/// `OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    /// Histograms have the advisory buckets.
    Explicit,
    /// Histograms have base-2 exponential buckets.
    Exponential,
}

/// Which names OpenTelemetry's GenAI conventions have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Those of semantic-conventions v1.41.
    V1_41,
    /// Those of semantic-conventions-genai 0.1, of 2026.
    V2026,
    /// Both side by side.
    Both,
}

impl Names {
    /// Whether the names of v1.41 are exported.
    #[must_use]
    pub fn has_v1_41(self) -> bool {
        self != Self::V2026
    }

    /// Whether the names of 2026 are exported.
    #[must_use]
    pub fn has_v2026(self) -> bool {
        self != Self::V1_41
    }
}

/// Limits on attributes and events (OpenTelemetry specification, "Attribute Limits", "Span Limits").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanLimits {
    /// `OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT`, else `OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT`, in characters.
    pub value_chars: usize,
    /// `OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT`, else `OTEL_ATTRIBUTE_COUNT_LIMIT`.
    pub attributes: usize,
    /// `OTEL_SPAN_EVENT_COUNT_LIMIT`.
    pub events: usize,
    /// `OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT`, else `OTEL_ATTRIBUTE_COUNT_LIMIT`.
    pub event_attributes: usize,
}

impl Default for SpanLimits {
    fn default() -> Self {
        Self { value_chars: usize::MAX, attributes: 128, events: 128, event_attributes: 128 }
    }
}

/// What one point of a metric covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temporality {
    /// All since the start.
    Cumulative,
    /// What came since the last delivered export.
    Delta,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            schedule_delay: Duration::from_millis(5000),
            export_timeout: Duration::from_millis(30_000),
            max_queue: 2048,
            max_batch: 512,
        }
    }
}

impl Default for OtlpConfig {
    fn default() -> Self {
        Self {
            traces: None,
            metrics: None,
            batch: Batch::default(),
            metric_interval: Duration::from_millis(60_000),
            metric_timeout: Duration::from_millis(30_000),
            temporality: Temporality::Cumulative,
            aggregation: Aggregation::Explicit,
            names: Names::V1_41,
            span_limits: SpanLimits::default(),
            resource: Vec::new(),
            backoff_first: Duration::from_millis(500),
            backoff_max: Duration::from_secs(15),
        }
    }
}

/// What the environment says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Loaded {
    /// `None`: OTLP is off, because no endpoint is configured or everything is switched off.
    pub config: Option<OtlpConfig>,
    /// What was wrong and ignored, one sentence each.
    pub warnings: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Traces,
    Metrics,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Traces => "v1/traces",
            Self::Metrics => "v1/metrics",
        }
    }
}

/// Reads the settings. `url` is that of the command line: a base URL for both signals that beats every variable.
/// OTLP is off unless some endpoint is configured: the specification's localhost default would make an observer that
/// nobody configured knock at a closed port for ever.
#[must_use]
pub fn load(env: &dyn Env, url: Option<&str>) -> Loaded {
    let mut reader = Reader::new(env);
    let resource = resource(&mut reader);
    if reader.flag("OTEL_SDK_DISABLED") {
        return Loaded { config: None, warnings: reader.warnings };
    }
    let traces = target(&mut reader, Kind::Traces, url);
    let metrics = target(&mut reader, Kind::Metrics, url);
    let default = OtlpConfig::default();
    let config = OtlpConfig {
        batch: batch(&mut reader),
        metric_interval: reader.millis("OTEL_METRIC_EXPORT_INTERVAL").unwrap_or(default.metric_interval),
        metric_timeout: reader.millis("OTEL_METRIC_EXPORT_TIMEOUT").unwrap_or(default.metric_timeout),
        temporality: temporality(&mut reader),
        aggregation: aggregation(&mut reader),
        span_limits: span_limits(&mut reader),
        resource,
        ..OtlpConfig { traces, metrics, ..default }
    };
    let on = config.traces.is_some() || config.metrics.is_some();
    Loaded { config: on.then_some(config), warnings: reader.warnings }
}

fn resource(reader: &mut Reader<'_>) -> Vec<(String, String)> {
    const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let text = reader.text(NAME).unwrap_or_default();
    let mut attributes = reader.pairs(NAME, &text).unwrap_or_default();
    // Who the observer is says nothing about who the observed service is.
    attributes.retain(|(key, _)| !key.starts_with("service.") && !key.starts_with("process."));
    attributes
}

fn batch(reader: &mut Reader<'_>) -> Batch {
    let default = Batch::default();
    let positive = |n: &usize| (1..=1_000_000).contains(n);
    let max_queue = reader.number("OTEL_BSP_MAX_QUEUE_SIZE", positive).unwrap_or(default.max_queue);
    let asked = reader.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", positive);
    if asked.is_some_and(|n| n > max_queue) {
        reader.warn("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "over OTEL_BSP_MAX_QUEUE_SIZE, that is used instead");
    }
    Batch {
        schedule_delay: reader.millis("OTEL_BSP_SCHEDULE_DELAY").unwrap_or(default.schedule_delay),
        export_timeout: reader.millis("OTEL_BSP_EXPORT_TIMEOUT").unwrap_or(default.export_timeout),
        max_queue,
        max_batch: asked.unwrap_or(default.max_batch).min(max_queue),
    }
}

fn span_limits(reader: &mut Reader<'_>) -> SpanLimits {
    let default = SpanLimits::default();
    let mut limit = |name| reader.number(name, |_: &usize| true);
    let length = limit("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT");
    let count = limit("OTEL_ATTRIBUTE_COUNT_LIMIT");
    SpanLimits {
        value_chars: limit("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT").or(length).unwrap_or(default.value_chars),
        attributes: limit("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT").or(count).unwrap_or(default.attributes),
        events: limit("OTEL_SPAN_EVENT_COUNT_LIMIT").unwrap_or(default.events),
        event_attributes: limit("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT").or(count).unwrap_or(default.event_attributes),
    }
}

fn aggregation(reader: &mut Reader<'_>) -> Aggregation {
    const NAME: &str = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION";
    match reader.text(NAME).map(|word| word.to_ascii_lowercase()).as_deref() {
        None | Some("explicit_bucket_histogram") => Aggregation::Explicit,
        Some("base2_exponential_bucket_histogram") => Aggregation::Exponential,
        Some(_) => {
            reader.warn(NAME, "neither explicit_bucket_histogram nor base2_exponential_bucket_histogram, ignored");
            Aggregation::Explicit
        }
    }
}

fn temporality(reader: &mut Reader<'_>) -> Temporality {
    const NAME: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
    match reader.text(NAME).map(|word| word.to_ascii_lowercase()).as_deref() {
        None | Some("cumulative") => Temporality::Cumulative,
        // "lowmemory" is delta for histograms, and histograms are all there is here.
        Some("delta" | "lowmemory") => Temporality::Delta,
        Some(_) => {
            reader.warn(NAME, "neither cumulative, delta nor lowmemory, ignored");
            Temporality::Cumulative
        }
    }
}

fn target(reader: &mut Reader<'_>, kind: Kind, url: Option<&str>) -> Option<Target> {
    if !wanted(reader, kind) {
        return None;
    }
    let endpoint = endpoint(reader, kind, url)?;
    let name = endpoint.name.clone();
    let mut target = Target {
        protocol: protocol(reader, kind),
        headers: headers(reader, kind),
        gzip: gzip(reader, kind),
        timeout: timeout(reader, kind),
        certificate: path(reader, kind, "CERTIFICATE"),
        client_certificate: path(reader, kind, "CLIENT_CERTIFICATE"),
        client_key: path(reader, kind, "CLIENT_KEY"),
        url: match parse(reader, kind, &endpoint) {
            Ok(url) => url,
            Err(what) => {
                reader.warn(&name, format_args!("{what}; no {} are exported", kind.word().to_ascii_lowercase()));
                return None;
            }
        },
    };
    if target.client_certificate.is_some() != target.client_key.is_some() {
        reader.warn(
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
            "needs OTEL_EXPORTER_OTLP_CLIENT_KEY and the other way round, both ignored",
        );
        target.client_certificate = None;
        target.client_key = None;
    }
    // gRPC has its own paths. The specification's default is HTTP, but what listens on 4317 speaks gRPC everywhere.
    if explicit_protocol(reader, kind).is_none() && target.url.port() == Some(GRPC_PORT) {
        target.protocol = Protocol::Grpc;
    }
    match target.protocol {
        Protocol::Grpc => target.url.set_path(""),
        Protocol::Http | Protocol::HttpJson if endpoint.is_base => {
            let base = target.url.path().trim_end_matches('/').to_owned();
            target.url.set_path(&format!("{base}/{}", kind.path()));
        }
        Protocol::Http | Protocol::HttpJson => {}
    }
    Some(target)
}

/// `OTEL_TRACES_EXPORTER` and `OTEL_METRICS_EXPORTER`: a list of names.
fn wanted(reader: &mut Reader<'_>, kind: Kind) -> bool {
    let name = format!("OTEL_{}_EXPORTER", kind.word());
    let Some(value) = reader.text(&name) else { return true };
    let words: Vec<_> = value.split(',').map(|word| word.trim().to_ascii_lowercase()).collect();
    for word in &words {
        match word.as_str() {
            "otlp" | "none" => {}
            "prometheus" => {} // always served
            "console" => reader.warn(&name, "console is not supported; `--jsonl -` prints every exchange"),
            _ => reader.warn(&name, "unknown exporter, ignored"),
        }
    }
    let known = words.iter().any(|word| matches!(word.as_str(), "none" | "console" | "prometheus"));
    words.iter().any(|word| word == "otlp") || !known
}

struct Endpoint {
    name: String,
    value: String,
    /// A base URL, to which the path of the signal is added.
    is_base: bool,
}

fn endpoint(reader: &Reader<'_>, kind: Kind, url: Option<&str>) -> Option<Endpoint> {
    let own = format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", kind.word());
    let general = "OTEL_EXPORTER_OTLP_ENDPOINT";
    if let Some(url) = url.map(str::trim).filter(|url| !url.is_empty()) {
        return Some(Endpoint { name: "--otlp".into(), value: url.into(), is_base: true });
    }
    if let Some((name, value)) = reader.first(&[&own, general]) {
        return Some(Endpoint { name: name.into(), value, is_base: name == general });
    }
    // Jaeger takes traces only.
    let value = reader.text("JAEGER_ENDPOINT").filter(|_| kind == Kind::Traces)?;
    Some(Endpoint { name: "JAEGER_ENDPOINT".into(), value: jaeger(&value), is_base: true })
}

/// The OTLP endpoint of a Jaeger collector: the old Thrift path and port stand for the same host's OTLP port. A URL
/// without them is taken as it is.
fn jaeger(value: &str) -> String {
    let Ok(mut url) = Url::parse(value) else { return value.into() };
    if url.path().trim_end_matches('/') == "/api/traces" || url.port() == Some(14268) {
        url.set_path("");
        // Fails only for a URL that cannot have a port, and that fails later with a warning.
        if url.set_port(Some(HTTP_PORT)).is_err() {
            return value.into();
        }
    }
    url.into()
}

fn parse(reader: &mut Reader<'_>, kind: Kind, endpoint: &Endpoint) -> Result<Url, &'static str> {
    let grpc = protocol(reader, kind) == Protocol::Grpc || endpoint.value.trim_end_matches('/').ends_with(":4317");
    let value = if endpoint.value.contains("://") {
        endpoint.value.clone()
    } else if grpc {
        let insecure = reader
            .first(&[&format!("OTEL_EXPORTER_OTLP_{}_INSECURE", kind.word()), "OTEL_EXPORTER_OTLP_INSECURE"])
            .is_some_and(|(_, value)| value.eq_ignore_ascii_case("true"));
        format!("{}://{}", if insecure { "http" } else { "https" }, endpoint.value)
    } else {
        return Err("not a URL with http:// or https://");
    };
    let url = Url::parse(&value).map_err(|_| "not a valid URL")?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err("not a URL with http:// or https:// and a host"),
    }
}

fn names(kind: Kind, what: &str) -> [String; 2] {
    [format!("OTEL_EXPORTER_OTLP_{}_{what}", kind.word()), format!("OTEL_EXPORTER_OTLP_{what}")]
}

fn own_or_general(reader: &Reader<'_>, kind: Kind, what: &str) -> Option<(String, String)> {
    let [own, general] = names(kind, what);
    reader.first(&[&own, &general]).map(|(name, value)| (name.to_owned(), value))
}

fn explicit_protocol(reader: &Reader<'_>, kind: Kind) -> Option<Protocol> {
    match own_or_general(reader, kind, "PROTOCOL")?.1.to_ascii_lowercase().as_str() {
        "grpc" => Some(Protocol::Grpc),
        "http/protobuf" => Some(Protocol::Http),
        "http/json" => Some(Protocol::HttpJson),
        _ => None,
    }
}

fn protocol(reader: &mut Reader<'_>, kind: Kind) -> Protocol {
    if let (None, Some((name, _))) = (explicit_protocol(reader, kind), own_or_general(reader, kind, "PROTOCOL")) {
        let warning = format!("{name}: neither grpc, http/protobuf nor http/json, ignored");
        if !reader.warnings.contains(&warning) {
            reader.warnings.push(warning);
        }
    }
    explicit_protocol(reader, kind).unwrap_or(Protocol::Http)
}

fn headers(reader: &mut Reader<'_>, kind: Kind) -> Vec<(HeaderName, HeaderValue)> {
    let Some((name, value)) = own_or_general(reader, kind, "HEADERS") else { return Vec::new() };
    let pairs = reader.pairs(&name, &value).unwrap_or_default();
    let mut headers = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        match (HeaderName::from_bytes(key.as_bytes()), HeaderValue::from_str(&value)) {
            (Ok(key), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.push((key, value));
            }
            _ => reader.warn(&name, "a pair is no valid header, that pair is ignored"),
        }
    }
    headers
}

fn gzip(reader: &mut Reader<'_>, kind: Kind) -> bool {
    let Some((name, value)) = own_or_general(reader, kind, "COMPRESSION") else { return false };
    match value.to_ascii_lowercase().as_str() {
        "gzip" => true,
        "none" => false,
        _ => {
            reader.warn(&name, "neither gzip nor none, ignored");
            false
        }
    }
}

fn timeout(reader: &mut Reader<'_>, kind: Kind) -> Duration {
    let [own, general] = names(kind, "TIMEOUT");
    reader.millis(&own).or_else(|| reader.millis(&general)).unwrap_or(Duration::from_secs(10))
}

fn path(reader: &Reader<'_>, kind: Kind, what: &str) -> Option<PathBuf> {
    own_or_general(reader, kind, what).map(|(_, value)| value.into())
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
