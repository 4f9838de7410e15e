//! Makes collectors out of the table of names, so that no name, label or help text is written twice.

use prometheus::{
    CounterVec, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, core::Collector,
};

use super::Metric;

/// Registers metrics of the table in one registry.
#[derive(Debug, Clone, Default)]
pub struct Register {
    registry: Registry,
}

impl Register {
    /// The registry that all collectors made here are in.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A counter of whole things.
    pub fn counter(&self, metric: Metric) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(opts(metric), metric.def().labels)?)
    }

    /// A counter of fractions.
    pub fn float_counter(&self, metric: Metric) -> Result<CounterVec, prometheus::Error> {
        self.add(CounterVec::new(opts(metric), metric.def().labels)?)
    }

    /// A gauge of whole things.
    pub fn gauge(&self, metric: Metric) -> Result<IntGaugeVec, prometheus::Error> {
        self.add(IntGaugeVec::new(opts(metric), metric.def().labels)?)
    }

    /// A gauge of fractions.
    pub fn float_gauge(&self, metric: Metric) -> Result<GaugeVec, prometheus::Error> {
        self.add(GaugeVec::new(opts(metric), metric.def().labels)?)
    }

    /// A histogram with the buckets of the table.
    pub fn histogram(&self, metric: Metric) -> Result<HistogramVec, prometheus::Error> {
        let def = metric.def();
        let opts = HistogramOpts::new(def.name, def.help).buckets(def.buckets.to_vec());
        self.add(HistogramVec::new(opts, def.labels)?)
    }

    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }
}

fn opts(metric: Metric) -> Opts {
    let def = metric.def();
    Opts::new(def.name, def.help)
}
