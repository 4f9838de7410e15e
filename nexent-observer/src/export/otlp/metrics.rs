//! The measurements under the OpenTelemetry GenAI names, one resource per observed service.
//!
//! Aggregated here, with the advisory buckets, and exported at an interval. State is bounded: so many services (the one
//! silent longest makes room), so many attribute sets per service (further ones share the set `otel.metric.overflow=true`, as
//! in the OpenTelemetry SDK), so many error types per set.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use nexent_observer_core::timing::Exchange;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, ExponentialHistogram, ExponentialHistogramDataPoint, Histogram, HistogramDataPoint,
        Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exponential_histogram_data_point, metric::Data,
        number_data_point,
    },
};

use super::{
    config::{Aggregation, Names, Temporality},
    exponential::Dense,
    histogram::{Buckets, Hist, Point},
    instruments::{Extra, INSTRUMENTS, Instrument, Measure, Shape, routes},
    resource::{boolean, int, resource, schema_url, scope, text},
};
use crate::export::{Observed, Service, view};

const SERVICES: usize = 512;
const SETS_PER_SERVICE: usize = 200;
const ERROR_TYPES_PER_SET: usize = 32;

/// All metrics of all services.
#[derive(Debug)]
pub(super) struct Aggregates {
    names: Names,
    aggregation: Aggregation,
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

/// Position in [`INSTRUMENTS`], and the attribute that the point has beyond those of its set.
type PointKey = (usize, Option<(&'static str, String)>);

/// The points of one set of attributes.
#[derive(Debug, Default)]
struct Set {
    points: BTreeMap<PointKey, Hist>,
    error_types: BTreeSet<String>,
}

impl Aggregates {
    pub(super) fn new(names: Names, aggregation: Aggregation) -> Self {
        Self { names, aggregation, services: HashMap::new(), clock: 0 }
    }

    /// Adds one exchange. `now` is wall-clock time in ns since the epoch.
    pub(super) fn add(&mut self, observed: &Observed, now_unix_ns: u64) {
        let Observed { exchange, service, endpoint: _, served: _ } = observed;
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
        per_service.sets.entry(attributes).or_default().add(exchange, self.names, self.aggregation);
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
            let mut points: [Vec<(Point, Vec<KeyValue>)>; INSTRUMENTS.len()] = Default::default();
            for (attributes, set) in &mut per_service.sets {
                for ((at, extra), hist) in &mut set.points {
                    let point = hist.collect(temporality, per_service.start_unix_ns, now_unix_ns);
                    if let (Some(point), Some(points)) = (point, points.get_mut(*at)) {
                        let extra = extra.as_ref().map(|(key, value)| text(key, value));
                        points.push((point, attributes.key_values().into_iter().chain(extra).collect()));
                    }
                }
            }
            count += points.iter().map(|points| points.len() as u64).sum::<u64>();
            let metrics: Vec<_> = INSTRUMENTS
                .iter()
                .zip(points)
                .filter_map(|(instrument, points)| metric(instrument, points, temporality, self.aggregation))
                .collect();
            if !metrics.is_empty() {
                resource_metrics.push(ResourceMetrics {
                    resource: Some(resource(service, shared)),
                    scope_metrics: vec![ScopeMetrics {
                        scope: Some(scope()),
                        metrics,
                        schema_url: schema_url(self.names).into(),
                    }],
                    schema_url: schema_url(self.names).into(),
                });
            }
        }
        (ExportMetricsServiceRequest { resource_metrics }, count)
    }

    /// What the last [`Self::collect`] gave was delivered.
    pub(super) fn delivered(&mut self) {
        for set in self.services.values_mut().flat_map(|per| per.sets.values_mut()) {
            set.points.values_mut().for_each(Hist::delivered);
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
    fn add(&mut self, exchange: &Exchange, names: Names, aggregation: Aggregation) {
        let operation = view::operation(exchange);
        let error_type = view::error_type(exchange).map(|error_type| self.error_type(error_type));
        let mut record = |measure, values: &mut dyn FnMut(&mut Hist)| {
            for (at, instrument, extra) in routes(names, operation, measure) {
                let extra = match extra {
                    Extra::No => None,
                    Extra::ErrorType => error_type.clone().map(|error_type| ("error.type", error_type)),
                    Extra::TokenType(kind) => Some(("gen_ai.token.type", kind.to_owned())),
                    Extra::Modality => Some(("gen_ai.token.modality", view::UNKNOWN.to_owned())),
                };
                values(self.points.entry((at, extra)).or_insert_with(|| new_hist(instrument, aggregation)));
            }
        };
        // Counts are true whatever the times are; and they are the provider's only. One that it did not give is not recorded
        // as 0, in 2026 neither: v1.41 forbids that, 2026 says both, and unknown is not zero.
        let usage = exchange.usage;
        for (measure, tokens) in [
            (Measure::Input, usage.input),
            (Measure::Output, usage.output),
            (Measure::CacheRead, usage.cached_input),
            (Measure::Reasoning, usage.reasoning),
        ] {
            if let Some(tokens) = tokens {
                record(measure, &mut |hist| hist.add(tokens as f64));
            }
        }
        if !view::is_complete(exchange) {
            return;
        }
        for (measure, seconds) in [
            (Measure::Duration, view::duration(exchange)),
            // Only a stream has these.
            (Measure::FirstChunk, view::since_start(exchange, exchange.first_chunk)),
            (Measure::FirstToken, view::ttft(exchange)),
        ] {
            if let Some(seconds) = seconds {
                record(measure, &mut |hist| hist.add(seconds));
            }
        }
        if exchange.chunks.gaps().next().is_some() {
            record(Measure::PerChunk, &mut |hist| exchange.chunks.gaps().for_each(|gap| hist.add(gap as f64 / 1e9)));
        }
    }

    /// The error type, or `_OTHER` when there are too many.
    fn error_type(&mut self, error_type: &str) -> String {
        if self.error_types.contains(error_type) {
            return error_type.to_owned();
        }
        if self.error_types.len() >= ERROR_TYPES_PER_SET {
            return view::OTHER_ERROR.to_owned();
        }
        self.error_types.insert(error_type.to_owned());
        error_type.to_owned()
    }
}

/// A counter is a histogram without bounds, of which only the sum is told.
fn new_hist(instrument: &Instrument, aggregation: Aggregation) -> Hist {
    match instrument.shape {
        Shape::Histogram(bounds) => Hist::new(aggregation, bounds),
        Shape::Counter => Hist::new(Aggregation::Explicit, &[]),
    }
}

fn metric(
    instrument: &Instrument,
    points: Vec<(Point, Vec<KeyValue>)>,
    temporality: Temporality,
    aggregation: Aggregation,
) -> Option<Metric> {
    let aggregation_temporality = match temporality {
        Temporality::Cumulative => AggregationTemporality::Cumulative,
        Temporality::Delta => AggregationTemporality::Delta,
    };
    let aggregation_temporality = aggregation_temporality.into();
    if points.is_empty() {
        return None;
    }
    let data = match (instrument.shape, aggregation) {
        (Shape::Histogram(_), Aggregation::Explicit) => Data::Histogram(Histogram {
            data_points: points.into_iter().filter_map(|(point, attributes)| histogram(point, attributes)).collect(),
            aggregation_temporality,
        }),
        (Shape::Histogram(_), Aggregation::Exponential) => Data::ExponentialHistogram(ExponentialHistogram {
            data_points: points.into_iter().filter_map(|(point, attributes)| exponential(&point, attributes)).collect(),
            aggregation_temporality,
        }),
        (Shape::Counter, _) => Data::Sum(Sum {
            data_points: points.into_iter().map(|(point, attributes)| sum(&point, attributes)).collect(),
            aggregation_temporality,
            is_monotonic: true,
        }),
    };
    Some(Metric {
        name: instrument.name.into(),
        description: instrument.description.into(),
        unit: instrument.unit.into(),
        data: Some(data),
        ..Metric::default()
    })
}

fn histogram(point: Point, attributes: Vec<KeyValue>) -> Option<HistogramDataPoint> {
    let Point { start_unix_ns, time_unix_ns, count, sum, buckets } = point;
    let Buckets::Explicit { bounds, counts } = buckets else { return None };
    Some(HistogramDataPoint {
        attributes,
        start_time_unix_nano: start_unix_ns,
        time_unix_nano: time_unix_ns,
        count,
        sum: Some(sum),
        bucket_counts: counts.into(),
        explicit_bounds: bounds.to_vec(),
        ..HistogramDataPoint::default()
    })
}

fn exponential(point: &Point, attributes: Vec<KeyValue>) -> Option<ExponentialHistogramDataPoint> {
    let Point { start_unix_ns, time_unix_ns, count, sum, buckets } = point;
    let Buckets::Exponential(exponential) = buckets else { return None };
    let Dense { scale, zeros, offset, counts } = exponential.dense();
    Some(ExponentialHistogramDataPoint {
        attributes,
        start_time_unix_nano: *start_unix_ns,
        time_unix_nano: *time_unix_ns,
        count: *count,
        sum: Some(*sum),
        scale,
        zero_count: zeros,
        positive: Some(exponential_histogram_data_point::Buckets { offset, bucket_counts: counts }),
        ..ExponentialHistogramDataPoint::default()
    })
}

fn sum(point: &Point, attributes: Vec<KeyValue>) -> NumberDataPoint {
    NumberDataPoint {
        attributes,
        start_time_unix_nano: point.start_unix_ns,
        time_unix_nano: point.time_unix_ns,
        // Tokens are whole numbers, and an f64 holds those exactly up to 2^53.
        value: Some(number_data_point::Value::AsInt(point.sum as i64)),
        ..NumberDataPoint::default()
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
            let name = || metric.name.clone();
            match metric.data.as_ref().unwrap() {
                Data::Histogram(histogram) => out.extend(
                    histogram.data_points.iter().map(|p| (name(), p.count, p.sum.unwrap(), p.attributes.clone())),
                ),
                Data::Sum(sum) => {
                    assert!(sum.is_monotonic);
                    out.extend(sum.data_points.iter().map(|p| {
                        let Some(number_data_point::Value::AsInt(value)) = p.value else { panic!("{p:?}") };
                        (name(), 1, value as f64, p.attributes.clone())
                    }));
                }
                other => panic!("{other:?}"),
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
        let mut aggregates = Aggregates::new(Names::V1_41, Aggregation::Explicit);
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
    fn the_same_stream_under_the_names_of_2026_and_under_both() {
        let of = |names| {
            let mut aggregates = Aggregates::new(names, Aggregation::Explicit);
            add(&mut aggregates, fixture::completed());
            aggregates.collect(Temporality::Cumulative, 200, &[]).0
        };
        let new = rows(&[
            ("gen_ai.client.inference.duration", 1, 0.36),
            ("gen_ai.client.inference.operation.input_tokens", 1, 20.0),
            ("gen_ai.client.inference.operation.output_tokens", 1, 10.0),
            ("gen_ai.client.inference.time_per_output_chunk", 3, 0.1),
            ("gen_ai.client.inference.time_to_first_chunk", 1, 0.2),
            ("gen_ai.client.inference.usage.cache_read.input_tokens", 1, 8.0),
            ("gen_ai.client.inference.usage.input_tokens", 1, 20.0),
            ("gen_ai.client.inference.usage.output_tokens", 1, 10.0),
            ("nexent.gen_ai.client.time_to_first_token", 1, 0.25),
        ]);
        assert_eq!(summary(&of(Names::V2026)), new);
        let mut both = [summary(&of(Names::V1_41)), new].concat();
        both.sort_by(|a, b| a.partial_cmp(b).unwrap());
        both.dedup();
        assert_eq!(summary(&of(Names::Both)), both, "each name once, ours too");
        for (name, _, _, attributes) in points(&of(Names::V2026)) {
            let modality = attributes.contains(&text("gen_ai.token.modality", "unknown"));
            assert_eq!(modality, name.contains(".usage."), "{name}");
            assert!(attributes.iter().all(|a| a.key != "gen_ai.token.type"), "{name}");
        }
        let url = |names| of(names).resource_metrics[0].scope_metrics[0].schema_url.clone();
        assert_eq!((url(Names::V1_41).as_str(), url(Names::V2026).as_str()), (schema_url(Names::V1_41), ""));
    }

    #[test]
    fn histograms_are_exponential_where_that_is_asked_for_and_counters_stay_counters() {
        let mut aggregates = Aggregates::new(Names::Both, Aggregation::Exponential);
        add(&mut aggregates, fixture::completed());
        let (request, count) = aggregates.collect(Temporality::Delta, 200, &[]);
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let mut points = 0;
        for metric in metrics {
            match metric.data.as_ref().unwrap() {
                Data::ExponentialHistogram(data) => {
                    for point in &data.data_points {
                        let counts = &point.positive.as_ref().unwrap().bucket_counts;
                        assert_eq!(point.count, counts.iter().sum::<u64>() + point.zero_count, "{}", metric.name);
                        points += 1;
                    }
                }
                Data::Sum(data) => points += data.data_points.len() as u64,
                other => panic!("{}: {other:?}", metric.name),
            }
        }
        assert_eq!(points, count);
        assert!(metrics.iter().any(|metric| matches!(metric.data, Some(Data::Sum(_)))));
    }

    #[test]
    fn embeddings_have_metrics_of_their_own_in_2026() {
        let mut exchange = fixture::failed();
        exchange.call.operation = "embeddings";
        exchange.usage.input = Some(7);
        let mut aggregates = Aggregates::new(Names::V2026, Aggregation::Explicit);
        add(&mut aggregates, exchange);
        let all = points(&aggregates.collect(Temporality::Cumulative, 200, &[]).0);
        let names: Vec<_> = all.iter().map(|p| (p.0.as_str(), p.2)).collect();
        let want =
            [("gen_ai.client.embeddings.duration", 0.2), ("gen_ai.client.embeddings.operation.input_tokens", 7.0)];
        assert_eq!(names, want);
        assert!(all.iter().all(|p| p.3.contains(&text("error.type", "rate_limit_exceeded"))));
    }

    #[test]
    fn a_counter_gives_what_came_since_the_last_delivery() {
        let mut aggregates = Aggregates::new(Names::V2026, Aggregation::Explicit);
        let tokens = |aggregates: &mut Aggregates| {
            add(aggregates, fixture::completed());
            let (request, _) = aggregates.collect(Temporality::Delta, 200, &[]);
            aggregates.delivered();
            points(&request).into_iter().find(|p| p.0.ends_with("usage.output_tokens")).unwrap().2
        };
        assert_eq!([tokens(&mut aggregates), tokens(&mut aggregates)], [10.0, 10.0]);
    }

    #[test]
    fn a_failed_call_has_its_error_type_and_a_joined_one_gives_no_time() {
        let mut aggregates = Aggregates::new(Names::V1_41, Aggregation::Explicit);
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
        let mut aggregates = Aggregates::new(Names::V1_41, Aggregation::Explicit);
        add(&mut aggregates, exchange);
        let (request, _) = aggregates.collect(Temporality::Cumulative, 200, &[]);
        assert!(points(&request).iter().all(|p| p.0 != "gen_ai.client.token.usage"));
    }

    #[test]
    fn cumulative_points_grow_and_delta_points_are_what_came_since_the_last_delivery() {
        let durations = |temporality, deliver: bool| {
            let mut aggregates = Aggregates::new(Names::V1_41, Aggregation::Explicit);
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
        let row = |i: &Instrument| {
            let shape = if i.shape == Shape::Counter { "counter" } else { "histogram" };
            format!("| `{}` | {} | {shape} | `{}` | {} |\n", i.name, i.names(), i.unit, i.description)
        };
        let rows: Vec<_> = INSTRUMENTS.iter().map(row).collect();
        crate::telemetry::docs::check("otlp metrics", &rows.concat());
    }

    #[test]
    fn an_idle_service_exports_no_delta_points() {
        let mut aggregates = Aggregates::new(Names::V1_41, Aggregation::Explicit);
        add(&mut aggregates, fixture::completed());
        aggregates.collect(Temporality::Delta, 200, &[]);
        aggregates.delivered();
        let (request, count) = aggregates.collect(Temporality::Delta, 300, &[]);
        assert_eq!((request.resource_metrics.len(), count), (0, 0));
    }

    #[test]
    fn services_attribute_sets_and_error_types_are_bounded() {
        let mut aggregates = Aggregates::new(Names::V1_41, Aggregation::Explicit);
        for i in 0..2 * SERVICES as u32 {
            let mut observed = fixture::observed(fixture::failed());
            observed.service = Arc::new(Service { pid: i, ..Service::default() });
            aggregates.add(&observed, 100);
        }
        assert_eq!(aggregates.services.len(), SERVICES);
        let latest = Service { pid: 2 * SERVICES as u32 - 1, ..Service::default() };
        assert!(aggregates.services.contains_key(&latest), "the one silent longest goes");

        let mut aggregates = Aggregates::new(Names::V1_41, Aggregation::Explicit);
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
