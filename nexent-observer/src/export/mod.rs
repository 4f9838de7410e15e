//! Stage 7: finished exchanges in; metrics, spans and lines out.
//!
//! [`Exports::export`] is the one call of the event loop. It never blocks and never fails: what cannot be delivered is
//! counted in [`crate::telemetry::Health`]. Wall-clock time exists only from here on ([`clock`]).

use std::{sync::Arc, time::Duration};

use nexent_observer_core::timing::Exchange;

use crate::{enrich::Identity, telemetry::Health};

pub mod breakdown;
pub mod clock;
pub mod env;
#[cfg(test)]
pub(crate) mod fixture;
pub mod history;
pub mod ids;
pub mod jsonl;
mod labels;
pub mod live;
pub mod otlp;
pub mod policy;
pub mod prometheus;
mod queue;
mod view;
pub mod work;

pub use labels::Caps;

/// A finished exchange and what is known of the process that made it.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// The call.
    pub exchange: Exchange,
    /// Who made it.
    pub service: Arc<Service>,
    /// Inbound endpoint of the service that caused the call, as a route (`POST /agent/run`), where known.
    pub endpoint: Option<Arc<str>>,
    /// The span of the request that caused the call, where it is known.
    pub served: Option<ids::SpanIds>,
}

/// An observed service: becomes the label `service`, and one OTLP resource. Two exchanges with an equal `Service`
/// share a resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Service {
    /// `service.name`.
    pub name: String,
    /// `process.pid` in the initial pid namespace.
    pub pid: u32,
    /// `service.namespace`.
    pub namespace: Option<String>,
    /// `service.instance.id`.
    pub instance_id: Option<String>,
    /// More resource attributes (`process.executable.name`, `container.id`, `k8s.pod.name`, ...), without those above.
    pub attributes: Vec<(String, String)>,
}

impl Service {
    /// The service that a process is an instance of.
    #[must_use]
    pub fn of_process(pid: u32, identity: Identity) -> Self {
        let Identity { service, namespace, attributes } = identity;
        Self { name: service, pid, namespace, instance_id: None, attributes }
    }
}

/// All exporters that are switched on.
#[derive(Debug)]
pub struct Exports {
    /// What is slow, and which spans are kept.
    pub policy: policy::Policy,
    /// Metrics.
    pub prometheus: Arc<prometheus::Prometheus>,
    /// The open streams, as `prometheus` and every other view read them.
    pub live: Arc<live::Live>,
    /// Spans of calls that may be tried again.
    pub failed: ids::FailedSpans,
    /// The last exchanges, for the page and the terminal.
    pub history: Arc<history::History>,
    /// JSON lines, where asked for.
    pub jsonl: Option<jsonl::Jsonl>,
    /// OTLP, where an endpoint is configured.
    pub otlp: Option<otlp::Otlp>,
    /// The observer's own metrics.
    pub health: Arc<Health>,
    /// From the kernel's clock to wall-clock time.
    pub clock: clock::WallClock,
}

impl Exports {
    /// Gives one exchange to every exporter; returns the identity of its span, which is made whether or not the span is
    /// exported, so that a line and a span can be found from each other.
    pub fn export(&mut self, observed: Observed) -> ids::SpanIds {
        let (ids, finished) = self.record(observed);
        if let Some(finished) = finished {
            self.span(finished);
        }
        ids
    }

    /// The same but for the span, which is given back, if it is to be exported.
    pub fn record(&mut self, mut observed: Observed) -> (ids::SpanIds, Option<Box<otlp::Finished>>) {
        let Self { policy, prometheus, live: _, failed, history, jsonl, otlp, health, clock } = self;
        let ids = ids::SpanIds::of_exchange(&observed.exchange, observed.served);
        let retry_of = failed.link(&observed.exchange, ids);
        let slow = policy.slow(&observed.exchange);
        prometheus.record(&observed, slow);
        history.add(&observed, slow, &ids, clock.offset());
        if let Some(jsonl) = jsonl {
            jsonl.write(&observed, &ids);
        }
        let Some(otlp) = otlp else { return (ids, None) };
        otlp.measure(&observed);
        let kept = policy.kept(&observed.exchange, slow);
        health.kept(kept.reasons());
        if !policy.samples(kept, &ids) {
            health.sampled_out.inc();
            return (ids, None);
        }
        // Text goes to the line only: a queue of spans must not hold megabytes of answers.
        observed.exchange.output_text = None;
        let offset = clock.offset();
        (ids, Some(Box::new(otlp::Finished { observed, ids, retry_of, kept, offset, named: None })))
    }

    /// Exports the span of an exchange.
    pub fn span(&self, finished: Box<otlp::Finished>) {
        if let Some(otlp) = &self.otlp {
            otlp.span(otlp::Item::Call(finished));
        }
    }

    /// Exports another span, if its trace is sampled or it failed.
    pub fn work(&mut self, work: work::Work) {
        let Some(otlp) = &self.otlp else { return };
        if work.failed || work.ids.trace.fraction() < self.policy.sample_rate {
            otlp.span(otlp::Item::Work(Box::new(work), self.clock.offset()));
        } else {
            self.health.sampled_out.inc();
        }
    }

    /// What may be shown of a route, which comes from the network: a fixed number of values.
    #[must_use]
    pub fn route(&self, route: &str) -> Option<Arc<str>> {
        self.prometheus.route(route)
    }

    /// Delivers what is queued, for at most `deadline` in all; what is left then is counted as dropped.
    pub async fn shutdown(self, deadline: Duration) {
        let Self { policy: _, prometheus: _, live: _, failed: _, history: _, jsonl, otlp, health: _, clock: _ } = self;
        let lines = async {
            if let Some(jsonl) = jsonl {
                jsonl.shutdown(deadline).await;
            }
        };
        let spans = async {
            if let Some(otlp) = otlp {
                otlp.shutdown(deadline).await;
            }
        };
        tokio::join!(lines, spans);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Exporter, Register, Signal};

    fn exports(sample_rate: f64, jsonl: Option<jsonl::Jsonl>, otlp: Option<otlp::Otlp>, health: Health) -> Exports {
        let register = Register::default();
        let health = Arc::new(health);
        let live = Arc::<live::Live>::default();
        let (of_prometheus, caps) = (Arc::clone(&live), Caps::default());
        let prometheus = prometheus::Prometheus::new(&register, Arc::clone(&health), of_prometheus, caps);
        Exports {
            policy: policy::Policy { sample_rate, ..policy::Policy::default() },
            prometheus: Arc::new(prometheus.unwrap()),
            live,
            failed: ids::FailedSpans::default(),
            history: Arc::default(),
            jsonl,
            otlp,
            health,
            clock: clock::WallClock::default(),
        }
    }

    #[tokio::test]
    async fn every_exchange_gets_a_line_and_a_sampled_out_span_is_counted_but_a_failed_call_is_kept() {
        let dir = std::env::temp_dir().join(format!("nexent-observer-exports-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("lines");
        let health = Health::new(&Register::default()).unwrap();
        let jsonl = jsonl::Jsonl::open(&jsonl::Target::File(path.clone()), false, &health).unwrap();
        let env = std::collections::HashMap::new();
        // Nobody listens on the discard port: the spans stay queued.
        let config = otlp::load(&env, Some("http://127.0.0.1:9")).config.unwrap();
        let otlp = otlp::Otlp::start(&config, &health).unwrap();
        let spans = health.channel(Exporter::Otlp, Signal::Spans);
        let mut exports = exports(0.0, Some(jsonl), Some(otlp), health);
        let mut with_text = fixture::completed();
        with_text.output_text = Some("secret".into());
        let ids = [with_text, fixture::failed()].map(|exchange| exports.export(fixture::observed(exchange)));
        assert_eq!((exports.health.sampled_out.get(), spans.depth.get()), (1, 1));
        for (reason, spans) in [("error", 1), ("stall", 0), ("duration", 0), ("token_rate", 0)] {
            assert_eq!(exports.health.kept_spans.with_label_values(&[reason]).get(), spans, "{reason}");
        }
        exports.shutdown(Duration::from_secs(1)).await;
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        for (line, ids) in lines.iter().zip(ids) {
            assert!(line.contains(&format!("\"trace_id\":\"{}\",\"span_id\":\"{}\"", ids.trace, ids.span)));
        }
        assert!(lines[0].contains("\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\""));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
