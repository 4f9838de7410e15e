//! The measurements under the OpenTelemetry GenAI names (profile v1.41), one resource per observed service.
//!
//! Aggregated here, in histograms with the advisory buckets, and exported at an interval. State is bounded: so many
//! services (the one silent longest makes room), so many attribute sets per service (further ones share the set
//! `otel.metric.overflow=true`, as in the OpenTelemetry SDK).

use std::{collections::HashMap, sync::Arc};

use nexent_observer_core::timing::Exchange;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Histogram, HistogramDataPoint, Metric, ResourceMetrics, ScopeMetrics, metric::Data,
    },
};

use super::{
    config::Temporality,
    histogram::{Hist, Point},
    resource::{SCHEMA_URL, boolean, int, resource, scope, text},
};
use crate::export::{Observed, Service, view};

const SERVICES: usize = 512;
const SETS_PER_SERVICE: usize = 200;
const ERROR_TYPES_PER_SET: usize = 32;

/// Advisory buckets of the times, in seconds.
const TIMES: &[f64] = &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
/// Advisory buckets of token counts.
const TOKENS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// Name, unit and description of each metric, in the order of [`Set::points`].
const METRICS: [(&str, &str, &str); 5] = [
    ("gen_ai.client.operation.duration", "s", "GenAI operation duration."),
    ("gen_ai.client.token.usage", "{token}", "Number of input and output tokens used, as reported by the provider."),
    (
        "gen_ai.client.operation.time_to_first_chunk",
        "s",
        "Time from the request to the first chunk of the stream, of any kind.",
    ),
    ("gen_ai.client.operation.time_per_output_chunk", "s", "Time between neighbouring reads that carry output chunks."),
    ("nexent.gen_ai.client.time_to_first_token", "s", "Time from the request to the first generated payload."),
];

/// All histograms of all services.
#[derive(Debug, Default)]
pub(super) struct Aggregates {
    services: HashMap<Arc<Service>, PerService>,
    /// Grows with every exchange: tells which service was silent longest.
    clock: u64,
}

#[derive(Debug)]
struct PerService {
    used: u64,
    start_unix_ns: u64,
    sets: HashMap<Attributes, Set>,
}

/// Attributes that all metrics of a call share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Attributes {
    Call {
        operation: &'static str,
        provider: Option<&'static str>,
        request_model: Option<String>,
        response_model: Option<String>,
        host: Option<String>,
    },
    Overflow,
}

#[derive(Debug)]
struct Set {
    /// By `error.type`; `None` is success.
    duration: HashMap<Option<String>, Hist>,
    input_tokens: Hist,
    output_tokens: Hist,
    first_chunk: Hist,
    per_chunk: Hist,
    first_token: Hist,
}

impl Aggregates {
    /// Adds one exchange. `now` is wall-clock time in ns since the epoch.
    pub(super) fn add(&mut self, observed: &Observed, now_unix_ns: u64) {
        let Observed { exchange, service, endpoint: _ } = observed;
        self.clock += 1;
        if !self.services.contains_key(service) && self.services.len() >= SERVICES {
            self.evict();
        }
        let per_service = self.services.entry(Arc::clone(service)).or_insert_with(|| PerService {
            used: 0,
            start_unix_ns: now_unix_ns,
            sets: HashMap::new(),
        });
        per_service.used = self.clock;
        let mut attributes = Attributes::of(exchange);
        if per_service.sets.len() >= SETS_PER_SERVICE && !per_service.sets.contains_key(&attributes) {
            attributes = Attributes::Overflow;
        }
        per_service.sets.entry(attributes).or_insert_with(Set::new).add(exchange);
    }

    fn evict(&mut self) {
        let oldest = self.services.iter().min_by_key(|(_, per)| per.used).map(|(service, _)| Arc::clone(service));
        if let Some(oldest) = oldest {
            self.services.remove(&oldest);
        }
    }

    /// A request with everything to be exported now, and how many points it has. The points count as delivered only
    /// after [`Self::delivered`]: with delta temporality a failed export loses nothing.
    pub(super) fn collect(
        &mut self,
        temporality: Temporality,
        now_unix_ns: u64,
        shared: &[(String, String)],
    ) -> (ExportMetricsServiceRequest, u64) {
        let mut count = 0;
        let mut resource_metrics = Vec::new();
        for (service, per_service) in &mut self.services {
            let mut points: [Vec<HistogramDataPoint>; METRICS.len()] = Default::default();
            for (attributes, set) in &mut per_service.sets {
                let mut add = |metric: usize, hist: &mut Hist, extra: Option<KeyValue>| {
                    let point = hist.collect(temporality, per_service.start_unix_ns, now_unix_ns);
                    if let (Some(point), Some(points)) = (point, points.get_mut(metric)) {
                        points.push(data_point(point, attributes.key_values().into_iter().chain(extra).collect()));
                    }
                };
                set.points(&mut add);
            }
            count += points.iter().map(|points| points.len() as u64).sum::<u64>();
            let metrics: Vec<_> =
                METRICS.into_iter().zip(points).filter_map(|(def, points)| metric(def, points, temporality)).collect();
            if !metrics.is_empty() {
                resource_metrics.push(ResourceMetrics {
                    resource: Some(resource(service, shared)),
                    scope_metrics: vec![ScopeMetrics { scope: Some(scope()), metrics, schema_url: SCHEMA_URL.into() }],
                    schema_url: SCHEMA_URL.into(),
                });
            }
        }
        (ExportMetricsServiceRequest { resource_metrics }, count)
    }

    /// What the last [`Self::collect`] gave was delivered.
    pub(super) fn delivered(&mut self) {
        for set in self.services.values_mut().flat_map(|per| per.sets.values_mut()) {
            set.points(&mut |_, hist, _| hist.delivered());
        }
    }
}

impl Attributes {
    fn of(exchange: &Exchange) -> Self {
        Self::Call {
            operation: view::operation(exchange),
            provider: view::provider(exchange),
            request_model: exchange.request.model.clone(),
            response_model: exchange.response_model.clone(),
            host: exchange.call.host.clone(),
        }
    }

    fn key_values(&self) -> Vec<KeyValue> {
        let Self::Call { operation, provider, request_model, response_model, host } = self else {
            return vec![boolean("otel.metric.overflow", true)];
        };
        let mut out = vec![
            text("gen_ai.operation.name", operation),
            text("gen_ai.provider.name", provider.unwrap_or(view::UNKNOWN)),
        ];
        out.extend(request_model.as_deref().map(|model| text("gen_ai.request.model", model)));
        out.extend(response_model.as_deref().map(|model| text("gen_ai.response.model", model)));
        if let Some(host) = host {
            let (address, port) = view::host_and_port(host);
            out.push(text("server.address", address));
            out.extend(port.map(|port| int("server.port", u64::from(port))));
        }
        out
    }
}

impl Set {
    fn new() -> Self {
        let times = || Hist::new(TIMES);
        Self {
            duration: HashMap::new(),
            input_tokens: Hist::new(TOKENS),
            output_tokens: Hist::new(TOKENS),
            first_chunk: times(),
            per_chunk: times(),
            first_token: times(),
        }
    }

    fn add(&mut self, exchange: &Exchange) {
        // Counts are true whatever the times are; and they are the provider's only (OpenTelemetry: "MUST NOT report" else).
        let counted =
            [(&mut self.input_tokens, exchange.usage.input), (&mut self.output_tokens, exchange.usage.output)];
        for (hist, tokens) in counted {
            if let Some(tokens) = tokens {
                hist.add(tokens as f64);
            }
        }
        if !view::is_complete(exchange) {
            return;
        }
        if let Some(seconds) = view::duration(exchange) {
            let mut error = view::error_type(exchange).map(str::to_owned);
            if self.duration.len() >= ERROR_TYPES_PER_SET && !self.duration.contains_key(&error) {
                error = error.map(|_| view::OTHER_ERROR.to_owned());
            }
            self.duration.entry(error).or_insert_with(|| Hist::new(TIMES)).add(seconds);
        }
        // Only a stream has these.
        for (hist, at) in [(&mut self.first_chunk, exchange.first_chunk), (&mut self.first_token, exchange.first_token)]
        {
            if let Some(seconds) = view::since_start(exchange, at) {
                hist.add(seconds);
            }
        }
        for gap in exchange.chunks.gaps() {
            self.per_chunk.add(gap as f64 / 1e9);
        }
    }

    /// Calls `each` with the index in [`METRICS`], the histogram and the attribute it has beyond the set's.
    fn points(&mut self, each: &mut impl FnMut(usize, &mut Hist, Option<KeyValue>)) {
        let Self { duration, input_tokens, output_tokens, first_chunk, per_chunk, first_token } = self;
        for (error_type, hist) in duration {
            each(0, hist, error_type.as_deref().map(|error_type| text("error.type", error_type)));
        }
        each(1, input_tokens, Some(text("gen_ai.token.type", "input")));
        each(1, output_tokens, Some(text("gen_ai.token.type", "output")));
        each(2, first_chunk, None);
        each(3, per_chunk, None);
        each(4, first_token, None);
    }
}

fn metric(def: (&str, &str, &str), data_points: Vec<HistogramDataPoint>, temporality: Temporality) -> Option<Metric> {
    let (name, unit, description) = def;
    let aggregation_temporality = match temporality {
        Temporality::Cumulative => AggregationTemporality::Cumulative,
        Temporality::Delta => AggregationTemporality::Delta,
    };
    (!data_points.is_empty()).then(|| Metric {
        name: name.into(),
        description: description.into(),
        unit: unit.into(),
        data: Some(Data::Histogram(Histogram { data_points, aggregation_temporality: aggregation_temporality.into() })),
        ..Metric::default()
    })
}

fn data_point(point: Point, attributes: Vec<KeyValue>) -> HistogramDataPoint {
    let Point { start_unix_ns, time_unix_ns, count, sum, bucket_counts, bounds } = point;
    HistogramDataPoint {
        attributes,
        start_time_unix_nano: start_unix_ns,
        time_unix_nano: time_unix_ns,
        count,
        sum: Some(sum),
        bucket_counts,
        explicit_bounds: bounds.to_vec(),
        ..HistogramDataPoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixture;

    fn add(aggregates: &mut Aggregates, exchange: Exchange) {
        aggregates.add(&fixture::observed(exchange), 100);
    }

    /// Name, count, sum and attributes of each point, sorted.
    fn points(request: &ExportMetricsServiceRequest) -> Vec<(String, u64, f64, Vec<KeyValue>)> {
        let mut out = Vec::new();
        for metric in request.resource_metrics.iter().flat_map(|r| &r.scope_metrics).flat_map(|s| &s.metrics) {
            let Some(Data::Histogram(histogram)) = &metric.data else { panic!() };
            for point in &histogram.data_points {
                out.push((metric.name.clone(), point.count, point.sum.unwrap(), point.attributes.clone()));
            }
        }
        out.sort_by(|a, b| (&a.0, a.1, a.2).partial_cmp(&(&b.0, b.1, b.2)).unwrap());
        out
    }

    fn summary(request: &ExportMetricsServiceRequest) -> Vec<(String, u64, f64)> {
        let round = |x: f64| (x * 1e6).round() / 1e6;
        points(request).into_iter().map(|(name, count, sum, _)| (name, count, round(sum))).collect()
    }

    fn rows(rows: &[(&str, u64, f64)]) -> Vec<(String, u64, f64)> {
        rows.iter().map(|(name, count, sum)| ((*name).to_owned(), *count, *sum)).collect()
    }

    #[test]
    fn the_four_genai_metrics_of_a_completed_stream() {
        let mut aggregates = Aggregates::default();
        add(&mut aggregates, fixture::completed());
        let (request, count) = aggregates.collect(Temporality::Cumulative, 200, &[]);
        assert_eq!(count, 6);
        let want = rows(&[
            ("gen_ai.client.operation.duration", 1, 0.36),
            ("gen_ai.client.operation.time_per_output_chunk", 3, 0.1),
            ("gen_ai.client.operation.time_to_first_chunk", 1, 0.2),
            ("gen_ai.client.token.usage", 1, 10.0),
            ("gen_ai.client.token.usage", 1, 20.0),
            ("nexent.gen_ai.client.time_to_first_token", 1, 0.25),
        ]);
        assert_eq!(summary(&request), want);
        let all = points(&request);
        let usage = &all[3].3;
        assert!(usage.contains(&text("gen_ai.token.type", "output")) && usage.contains(&int("server.port", 8443)));
        assert!(!all[0].3.iter().any(|a| a.key == "error.type"));
    }

    #[test]
    fn a_failed_call_has_its_error_type_and_a_joined_one_gives_no_time() {
        let mut aggregates = Aggregates::default();
        add(&mut aggregates, fixture::failed());
        add(&mut aggregates, fixture::joined());
        let all = points(&aggregates.collect(Temporality::Cumulative, 200, &[]).0);
        let [(name, count, sum, attributes)] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((name.as_str(), *count, *sum), ("gen_ai.client.operation.duration", 1, 0.2));
        assert!(attributes.contains(&text("error.type", "rate_limit_exceeded")));
    }

    #[test]
    fn chunks_counted_for_want_of_usage_never_become_token_usage() {
        let mut exchange = fixture::completed();
        exchange.usage = Default::default();
        exchange.usage_source = nexent_observer_core::timing::TokenSource::Chunks;
        let mut aggregates = Aggregates::default();
        add(&mut aggregates, exchange);
        let (request, _) = aggregates.collect(Temporality::Cumulative, 200, &[]);
        assert!(points(&request).iter().all(|p| p.0 != "gen_ai.client.token.usage"));
    }

    #[test]
    fn cumulative_points_grow_and_delta_points_are_what_came_since_the_last_delivery() {
        let durations = |temporality, deliver: bool| {
            let mut aggregates = Aggregates::default();
            (0..3u64)
                .map(|i| {
                    add(&mut aggregates, fixture::failed());
                    let (request, _) = aggregates.collect(temporality, 200 + i, &[]);
                    if deliver {
                        aggregates.delivered();
                    }
                    points(&request)[0].1
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(durations(Temporality::Cumulative, true), [1, 2, 3]);
        assert_eq!(durations(Temporality::Delta, true), [1, 1, 1]);
        assert_eq!(durations(Temporality::Delta, false), [1, 2, 3], "a failed export loses nothing");
    }

    #[test]
    fn the_documentation_lists_every_metric() {
        let rows: Vec<_> = METRICS
            .iter()
            .map(|(name, unit, description)| format!("| `{name}` | histogram | `{unit}` | {description} |\n"))
            .collect();
        crate::telemetry::docs::check("otlp metrics", &rows.concat());
    }

    #[test]
    fn an_idle_service_exports_no_delta_points() {
        let mut aggregates = Aggregates::default();
        add(&mut aggregates, fixture::completed());
        aggregates.collect(Temporality::Delta, 200, &[]);
        aggregates.delivered();
        let (request, count) = aggregates.collect(Temporality::Delta, 300, &[]);
        assert_eq!((request.resource_metrics.len(), count), (0, 0));
    }

    #[test]
    fn services_attribute_sets_and_error_types_are_bounded() {
        let mut aggregates = Aggregates::default();
        for i in 0..2 * SERVICES as u32 {
            let mut observed = fixture::observed(fixture::failed());
            observed.service = Arc::new(Service { pid: i, ..Service::default() });
            aggregates.add(&observed, 100);
        }
        assert_eq!(aggregates.services.len(), SERVICES);
        let latest = Service { pid: 2 * SERVICES as u32 - 1, ..Service::default() };
        assert!(aggregates.services.contains_key(&latest), "the one silent longest goes");

        let mut aggregates = Aggregates::default();
        for i in 0..1000 {
            let mut exchange = fixture::failed();
            exchange.request.model = Some(format!("m{i}"));
            exchange.error_type = Some(format!("e{i}"));
            add(&mut aggregates, exchange);
        }
        let all = points(&aggregates.collect(Temporality::Cumulative, 200, &[]).0);
        assert_eq!(all.iter().map(|p| p.1).sum::<u64>(), 1000);
        assert!(all.len() <= SETS_PER_SERVICE + ERROR_TYPES_PER_SET + 1, "{}", all.len());
        assert!(all.iter().any(|p| p.3.contains(&boolean("otel.metric.overflow", true))));
    }
}
