//! The LLM metrics in Prometheus' text format.
//!
//! The format is 0.0.4 for every scraper, also for one that would take OpenMetrics: there a counter must end in
//! `_total`, and the names of these metrics are fixed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use nexent_observer_core::timing::Exchange;
use prometheus::{GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec, Registry, TextEncoder};

use super::{
    Observed,
    labels::{CallLabels, Caps, Labels},
    live::Live,
    policy::Slow,
    view,
};
use crate::telemetry::{Health, Metric, Register};

/// Content type of [`Prometheus::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Collects the LLM metrics and renders them together with the observer's own.
#[derive(Debug)]
pub struct Prometheus {
    registry: Registry,
    health: Arc<Health>,
    live: Arc<Live>,
    labels: Labels,
    token_generation_rate: HistogramVec,
    time_to_first_token: HistogramVec,
    request_duration: HistogramVec,
    total_tokens: IntCounterVec,
    error_count: IntCounterVec,
    inter_chunk_latency: HistogramVec,
    end_to_end_token_rate: HistogramVec,
    requests: IntCounterVec,
    retries: IntCounterVec,
    token_count_ratio: HistogramVec,
    stream_stalls: IntCounterVec,
    stream_stall_causes: IntCounterVec,
    retransmits: IntCounterVec,
    slow_requests: IntCounterVec,
    gauges: Mutex<LiveGauges>,
}

#[derive(Debug)]
struct LiveGauges {
    active_streams: IntGaugeVec,
    tokens_per_second: GaugeVec,
    /// Every combination ever seen, with its present values: what has no open stream now is 0, not gone.
    sums: HashMap<[Arc<str>; 3], (i64, f64)>,
}

impl Prometheus {
    /// Registers the LLM metrics. `register` is the one that `health` was made with, so that both are served together.
    pub fn new(
        register: &Register,
        health: Arc<Health>,
        live: Arc<Live>,
        caps: Caps,
    ) -> Result<Self, prometheus::Error> {
        Ok(Self {
            registry: register.registry().clone(),
            labels: Labels::new(caps, Arc::clone(&health)),
            health,
            live,
            token_generation_rate: register.histogram(Metric::TokenGenerationRate)?,
            time_to_first_token: register.histogram(Metric::TimeToFirstToken)?,
            request_duration: register.histogram(Metric::RequestDuration)?,
            total_tokens: register.counter(Metric::TotalTokens)?,
            error_count: register.counter(Metric::ErrorCount)?,
            inter_chunk_latency: register.histogram(Metric::InterChunkLatency)?,
            end_to_end_token_rate: register.histogram(Metric::EndToEndTokenRate)?,
            requests: register.counter(Metric::Requests)?,
            retries: register.counter(Metric::Retries)?,
            token_count_ratio: register.histogram(Metric::TokenCountRatio)?,
            stream_stalls: register.counter(Metric::StreamStalls)?,
            stream_stall_causes: register.counter(Metric::StreamStallCauses)?,
            retransmits: register.counter(Metric::Retransmits)?,
            slow_requests: register.counter(Metric::SlowRequests)?,
            gauges: Mutex::new(LiveGauges {
                active_streams: register.gauge(Metric::ActiveStreams)?,
                tokens_per_second: register.float_gauge(Metric::LiveTokensPerSecond)?,
                sums: HashMap::new(),
            }),
        })
    }

    /// What may be shown of a route; `None`: it is one too many.
    pub(super) fn route(&self, route: &str) -> Option<Arc<str>> {
        self.labels.route(route)
    }

    /// Counts one exchange.
    pub fn record(&self, observed: &Observed, slow: Slow) {
        let Observed { exchange, service, endpoint, served: _ } = observed;
        let labels =
            self.labels.call(&service.name, view::provider(exchange), view::model(exchange), endpoint.as_deref());
        self.requests.with_label_values(&labels).inc();
        self.count_tokens(exchange, &labels);
        if let Some(error_type) = view::error_type(exchange) {
            let operation = view::operation(exchange);
            let error_type = self.labels.error_type(&labels, operation, error_type);
            self.error_count.with_label_values(&with(&labels, [operation, &error_type])).inc();
        }
        // Touched even when nothing is added: a counter that first appears with its first event has no rate.
        self.retries.with_label_values(&labels).inc_by(u64::from(view::is_retry(exchange)));
        let stalls = self.stream_stalls.with_label_values(&labels);
        let causes =
            view::STALL_CAUSES.map(|cause| self.stream_stall_causes.with_label_values(&with(&labels, [cause])));
        self.retransmits.with_label_values(&labels).inc_by(exchange.retransmits.unwrap_or(0).into());
        for (reason, is_slow) in Slow::REASONS.into_iter().zip(slow.flags()) {
            let counter = self.slow_requests.with_label_values(&with(&labels, [reason]));
            counter.inc_by(u64::from(is_slow));
        }
        if !view::is_complete(exchange) {
            self.health.incomplete.inc();
            return;
        }
        stalls.inc_by(exchange.stalls.len() as u64);
        for (counter, n) in causes.iter().zip(view::stalls_by_cause(exchange)) {
            counter.inc_by(n);
        }
        self.observe_times(exchange, &labels);
    }

    fn count_tokens(&self, exchange: &Exchange, labels: &CallLabels) {
        for view::TokenCount { kind, source, tokens } in view::token_counts(exchange) {
            self.total_tokens.with_label_values(&with(labels, [kind, source.as_str()])).inc_by(tokens);
        }
    }

    fn observe_times(&self, exchange: &Exchange, labels: &CallLabels) {
        let observe = |family: &HistogramVec, value: Option<f64>| {
            if let Some(value) = value {
                family.with_label_values(labels).observe(value);
            }
        };
        observe(&self.time_to_first_token, view::ttft(exchange));
        observe(&self.token_generation_rate, exchange.decode_rate);
        observe(&self.token_count_ratio, exchange.token_count_ratio);
        observe(&self.end_to_end_token_rate, exchange.end_to_end_rate);
        if let Some(seconds) = view::duration(exchange) {
            let values = with(labels, [view::operation(exchange), exchange.outcome.as_str()]);
            self.request_duration.with_label_values(&values).observe(seconds);
        }
        if exchange.chunks.len() > 1 {
            let gaps = self.inter_chunk_latency.with_label_values(labels).local();
            for gap in exchange.chunks.gaps() {
                gaps.observe(gap as f64 / 1e9);
            }
            gaps.flush();
        }
    }

    /// The whole text, metrics of the observer itself included. May take milliseconds with thousands of series: not
    /// for the event loop.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        // Held to the end: of two scrapes at once, the second must not set gauges while the first reads them.
        let mut gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.update(&self.live, &self.labels);
        self.health.measure_process();
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

impl LiveGauges {
    fn update(&mut self, live: &Live, labels: &Labels) {
        for sums in self.sums.values_mut() {
            *sums = (0, 0.0);
        }
        for stream in &live.get().streams {
            let key = labels.stream(&stream.service.name, stream.provider, stream.model.as_deref());
            let sums = self.sums.entry(key).or_default();
            sums.0 += 1;
            sums.1 += stream.tokens_per_second.unwrap_or(0.0);
        }
        for (labels, (streams, rate)) in &self.sums {
            self.active_streams.with_label_values(labels).set(*streams);
            self.tokens_per_second.with_label_values(labels).set(*rate);
        }
    }
}

/// The labels of the call and `more` behind them.
fn with<'a, const N: usize>(call: &'a CallLabels, more: [&'a str; N]) -> Vec<&'a str> {
    call.iter().map(AsRef::as_ref).chain(more).collect()
}

#[cfg(test)]
mod tests {
    use nexent_observer_core::stats::Stats;

    use super::*;
    use crate::{
        export::{
            fixture,
            live::{LiveStream, Snapshot},
            policy::Policy,
        },
        telemetry::{DropCause, Exporter, KernelCounts, Kind, Signal},
    };

    struct Bench {
        prometheus: Prometheus,
        health: Arc<Health>,
        live: Arc<Live>,
    }

    fn bench(caps: Caps) -> Bench {
        let register = Register::default();
        let health = Arc::new(Health::new(&register).unwrap());
        let live = Arc::new(Live::default());
        let prometheus = Prometheus::new(&register, Arc::clone(&health), Arc::clone(&live), caps).unwrap();
        Bench { prometheus, health, live }
    }

    fn record(bench: &Bench, exchange: Exchange) {
        let slow = Policy::default().slow(&exchange);
        bench.prometheus.record(&fixture::observed(exchange), slow);
    }

    fn llm_lines(text: &str) -> String {
        text.lines()
            .filter(|line| line.starts_with("llm_") && !line.contains("_bucket"))
            .map(|l| format!("{l}\n"))
            .collect()
    }

    fn stream(model: Option<&str>, rate: Option<f64>) -> LiveStream {
        LiveStream {
            id: fixture::completed().id,
            service: fixture::service(),
            provider: Some("openai"),
            model: model.map(str::to_owned),
            operation: "chat",
            elapsed_ns: None,
            ttft_ns: None,
            silent_ns: None,
            chunks: 0,
            tokens: None,
            tokens_per_second: rate,
            ticks: Vec::new(),
        }
    }

    #[test]
    fn golden_text_of_a_completed_a_failed_and_an_incomplete_exchange() {
        let bench = bench(Caps::default());
        record(&bench, fixture::completed());
        record(&bench, fixture::failed());
        record(&bench, fixture::joined());
        let text = bench.prometheus.render().unwrap();
        fixture::golden("prometheus.txt", &llm_lines(&text));
        assert!(text.contains("nexent_observer_incomplete_exchanges_total 1\n"));
        // One sample per distinct read time: 20, 30, 50 ms; the coalesced chunk gives none.
        let bucket = |le: &str| {
            let start = "llm_inter_chunk_latency_seconds_bucket{";
            let line = text.lines().find(|l| l.starts_with(start) && l.contains(&format!("le=\"{le}\""))).unwrap();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!([bucket("0.01"), bucket("0.02"), bucket("0.03"), bucket("0.05")], ["0", "1", "2", "3"]);
    }

    #[test]
    fn slow_calls_and_stalls_are_counted() {
        let bench = bench(Caps::default());
        let mut exchange = fixture::completed();
        exchange.decode_rate = Some(2.0);
        exchange.stalls = fixture::joined().stalls;
        exchange.stall_causes = fixture::joined().stall_causes;
        record(&bench, exchange);
        let text = bench.prometheus.render().unwrap();
        let labels = r#"endpoint="unknown",model="gpt-4o",provider="openai","#;
        assert!(
            text.contains(&format!(
                "llm_slow_requests{{{labels}reason=\"token_rate\",service=\"nexent-backend\"}} 1\n"
            ))
        );
        assert!(
            text.contains(&format!("llm_slow_requests{{{labels}reason=\"duration\",service=\"nexent-backend\"}} 0\n"))
        );
        for (cause, n) in [("late_read", 1), ("late_arrival", 0), ("unknown", 0)] {
            let line = format!("llm_stream_stall_causes{{cause=\"{cause}\",{labels}service=\"nexent-backend\"}} {n}\n");
            assert!(text.contains(&line), "{line}");
        }
        assert!(text.contains(&format!("llm_retransmits{{{labels}service=\"nexent-backend\"}} 2\n")));
        assert!(text.contains(&format!("llm_stream_stalls{{{labels}service=\"nexent-backend\"}} 1\n")));
    }

    #[test]
    fn retries_are_counted_by_what_the_client_says_and_by_what_was_seen() {
        let bench = bench(Caps::default());
        let seen = fixture::completed().id;
        for (retry_count, retry_of) in
            [(None, None), (Some(0), None), (Some(2), None), (None, Some(seen)), (Some(1), Some(seen))]
        {
            record(&bench, Exchange { retry_count, retry_of, ..fixture::completed() });
        }
        let text = bench.prometheus.render().unwrap();
        let labels = r#"{endpoint="unknown",model="gpt-4o",provider="openai",service="nexent-backend"}"#;
        assert!(text.contains(&format!("llm_requests{labels} 5\n")));
        assert!(text.contains(&format!("llm_retries{labels} 3\n")));
    }

    #[test]
    fn gauges_are_those_of_the_last_snapshot_and_fall_to_zero() {
        let bench = bench(Caps::default());
        bench.live.set(Snapshot {
            streams: vec![stream(Some("a"), Some(30.0)), stream(Some("a"), Some(12.5)), stream(None, None)],
            ..Snapshot::default()
        });
        let text = bench.prometheus.render().unwrap();
        let line = |name: &str, model: &str| {
            format!("{name}{{model=\"{model}\",provider=\"openai\",service=\"nexent-backend\"}}")
        };
        assert!(text.contains(&(line("llm_active_streams", "a") + " 2\n")));
        assert!(text.contains(&(line("llm_live_tokens_per_second", "a") + " 42.5\n")));
        assert!(text.contains(&(line("llm_active_streams", "unknown") + " 1\n")));
        bench.live.set(Snapshot { streams: Vec::new(), ..Snapshot::default() });
        let text = bench.prometheus.render().unwrap();
        assert!(text.contains(&(line("llm_active_streams", "a") + " 0\n")));
        assert!(text.contains(&(line("llm_live_tokens_per_second", "a") + " 0\n")));
    }

    #[test]
    fn an_explosion_of_models_and_errors_stays_bounded_and_is_counted() {
        let bench = bench(Caps { model: 10, error_type: 5, ..Caps::default() });
        for i in 0..500 {
            let mut exchange = fixture::failed();
            exchange.request.model = Some(format!("model \"{i}\"\n\u{0}"));
            exchange.error_type = Some(format!("e{i}"));
            record(&bench, exchange);
        }
        let text = bench.prometheus.render().unwrap();
        let requests: Vec<_> = text.lines().filter(|l| l.starts_with("llm_requests{")).collect();
        assert_eq!(requests.len(), 11);
        let other = r#"llm_requests{endpoint="unknown",model="other",provider="openai",service="nexent-backend"} 490"#;
        assert!(requests.contains(&other), "{requests:#?}");
        assert!(text.contains("nexent_observer_label_overflow_total{label=\"model\"} 490\n"));
        assert!(text.contains("nexent_observer_label_overflow_total{label=\"error_type\"} 495\n"));
        assert!(text.contains(r#"model="model \"3\"__""#), "quotes are escaped, the rest is sanitised");
        assert!(!text.contains('\0'));
    }

    #[test]
    fn every_metric_of_the_table_is_served_with_its_help_and_type() {
        let bench = bench(Caps { model: 1, ..Caps::default() });
        record(&bench, fixture::completed());
        let mut other = fixture::failed();
        other.request.model = Some("another".into());
        record(&bench, other);
        bench.live.set(Snapshot { streams: vec![stream(None, None)], ..Snapshot::default() });
        bench.health.core(&Stats::default());
        bench.health.kernel(KernelCounts::default());
        bench.health.census(crate::probe::targets::Census::default());
        bench.health.silent(&[]);
        bench.health.held_capabilities(&[("CAP_SYS_ADMIN".to_owned(), "attaching")]);
        bench.health.channel(Exporter::Otlp, Signal::Spans).dropped(DropCause::QueueFull, 1);
        let text = bench.prometheus.render().unwrap();
        for metric in Metric::ALL {
            let def = metric.def();
            assert!(text.contains(&format!("# HELP {} {}\n", def.name, def.help)), "{}", def.name);
            assert!(text.contains(&format!("# TYPE {} {}\n", def.name, def.kind.as_str())), "{}", def.name);
            let sample = text.lines().find(|l| l.starts_with(def.name) && !l.starts_with('#')).unwrap();
            for label in def.labels {
                assert!(sample.contains(&format!("{label}=\"")), "{sample} lacks {label}");
            }
            assert_eq!(def.kind == Kind::Histogram, !def.buckets.is_empty());
            assert!(def.buckets.is_sorted_by(|a, b| a < b));
        }
        let families = text.lines().filter(|l| l.starts_with("# TYPE ")).count();
        assert_eq!(families, Metric::ALL.len(), "nothing is served that is not in the table");
    }
}
