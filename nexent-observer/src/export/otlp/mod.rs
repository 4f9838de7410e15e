//! Spans and metrics over OTLP, by gRPC or HTTP.
//!
//! The OpenTelemetry SDK binds one resource to a provider; an observer of many services needs one resource per observed
//! service in the same request. So the requests are built here, from the generated types of `opentelemetry-proto`, and
//! batching, retries and limits follow the SDK's specification (batching processor, OTLP exporter) with the SDK's
//! variables.
//!
//! The event loop only queues and counts; two tasks do the rest. An endpoint that is down costs a bounded queue and a
//! counter, and one log line when it goes and one when it comes back.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    Observed, clock,
    ids::SpanIds,
    policy::Kept,
    queue::{ByteBudget, Held},
    work::{Attribute, Event, Named, Work},
};
use crate::telemetry::{Channel, DropCause, Exporter, Health, Signal};

mod config;
mod exponential;
mod grpc;
mod histogram;
mod http;
mod instruments;
mod limits;
mod metrics;
mod resource;
mod retry;
mod span;
mod tasks;
#[cfg(test)]
mod tests;
mod transport;

pub use config::{Aggregation, Batch, Loaded, Names, OtlpConfig, Protocol, SpanLimits, Target, Temporality, load};
pub(crate) use http::ensure_tls_provider;
pub use transport::OtlpError;

/// Bytes that queued exchanges may hold: a thousand long timelines, whatever the count says.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;

/// An exchange whose span is to be exported.
#[derive(Debug)]
pub struct Finished {
    /// The exchange.
    pub observed: Observed,
    /// Identity of its span.
    pub ids: SpanIds,
    /// The span of the failed call that this one repeats, where it is still known.
    pub retry_of: Option<SpanIds>,
    /// Why it is kept although spans are sampled.
    pub kept: Kept,
    /// From its clock to wall-clock time: one offset for all times of the span.
    pub offset: clock::Offset,
    /// What a hook says of it, where its span is one with the hook's.
    pub named: Option<Box<Named>>,
}

/// A span to be exported.
#[derive(Debug)]
pub enum Item {
    /// Of an exchange.
    Call(Box<Finished>),
    /// Of something else, and from its clock to wall-clock time.
    Work(Box<Work>, clock::Offset),
}

/// A span that waits and its share of the queue.
#[derive(Debug)]
struct Queued {
    item: Item,
    held: Held,
}

/// The exporter.
#[derive(Debug)]
pub struct Otlp {
    spans: Option<Spans>,
    metrics: Option<Metrics>,
}

#[derive(Debug)]
struct Spans {
    queue: mpsc::Sender<Queued>,
    budget: ByteBudget,
    channel: Channel,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Metrics {
    aggregates: Arc<Mutex<metrics::Aggregates>>,
    stop: watch::Sender<bool>,
    channel: Channel,
    task: JoinHandle<()>,
}

impl Otlp {
    /// Starts the tasks; must be called inside a tokio runtime. Fails on settings that can never work (an unreadable
    /// certificate); an endpoint that does not answer is no failure.
    pub fn start(config: &OtlpConfig, health: &Health) -> Result<Self, OtlpError> {
        let config = Arc::new(config.clone());
        let spans = config.traces.as_ref().map(|target| {
            let transport = transport::Transport::new(target)?;
            let (queue, waiting) = mpsc::channel(config.batch.max_queue);
            let channel = health.channel(Exporter::Otlp, Signal::Spans);
            let task = tasks::Spans { waiting, transport, channel: channel.clone(), config: Arc::clone(&config) };
            let task = tokio::spawn(task.run());
            Ok::<_, OtlpError>(Spans { queue, budget: ByteBudget::new(QUEUE_BYTES), channel, task })
        });
        let metrics = config.metrics.as_ref().map(|target| {
            let transport = transport::Transport::new(target)?;
            let aggregates = Arc::new(Mutex::new(metrics::Aggregates::new(config.names, config.aggregation)));
            let (stop, stopped) = watch::channel(false);
            let channel = health.channel(Exporter::Otlp, Signal::Metrics);
            let task = tasks::Metrics {
                aggregates: Arc::clone(&aggregates),
                stopped,
                transport,
                channel: channel.clone(),
                config: Arc::clone(&config),
            };
            let task = tokio::spawn(task.run());
            Ok::<_, OtlpError>(Metrics { aggregates, stop, channel, task })
        });
        Ok(Self { spans: spans.transpose()?, metrics: metrics.transpose()? })
    }

    /// Adds the measurements of one exchange, whether or not its span is sampled.
    pub fn measure(&self, observed: &Observed) {
        if let Some(metrics) = &self.metrics {
            metrics.aggregates.lock().unwrap_or_else(PoisonError::into_inner).add(observed, unix_now());
        }
    }

    /// Queues one span; never blocks. What does not fit is dropped and counted.
    pub fn span(&self, item: Item) {
        let Some(Spans { queue, budget, channel, task: _ }) = &self.spans else { return };
        if let Item::Call(finished) = &item
            && !span::has_time(&finished.observed.exchange)
        {
            channel.dropped(DropCause::NoTime, 1);
            return;
        }
        let Some(held) = budget.take(heap_bytes(&item)) else {
            channel.dropped(DropCause::QueueFull, 1);
            return;
        };
        channel.depth.inc();
        match queue.try_send(Queued { item, held }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {
                channel.depth.dec();
                channel.dropped(DropCause::QueueFull, 1);
            }
        }
    }

    /// Exports what is queued and the last metrics, for at most `deadline`.
    pub async fn shutdown(self, deadline: Duration) {
        let Self { spans, metrics } = self;
        let deadline = Instant::now() + deadline;
        let spans = async {
            if let Some(Spans { queue, budget: _, channel, task }) = spans {
                drop(queue);
                finish(task, deadline).await;
                // Only what was delivered or given up has left the gauge.
                channel.dropped(DropCause::Shutdown, u64::try_from(channel.depth.get()).unwrap_or(0));
                channel.depth.set(0);
            }
        };
        let metrics = async {
            if let Some(Metrics { aggregates: _, stop, channel, task }) = metrics {
                stop.send_replace(true);
                finish(task, deadline).await;
                channel.dropped(DropCause::Shutdown, u64::try_from(channel.depth.get()).unwrap_or(0));
                channel.depth.set(0);
            }
        };
        tokio::join!(spans, metrics);
    }
}

/// Waits for a task, and ends it when time is up.
async fn finish(mut task: JoinHandle<()>, deadline: Instant) {
    match timeout_at(deadline, &mut task).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "an OTLP task failed"),
        Err(_) => task.abort(),
    }
}

/// What a span holds, roughly: its long parts, and a lump for the short ones.
fn heap_bytes(item: &Item) -> usize {
    let attributes = |list: &[(String, Attribute)]| -> usize {
        let text = |value: &Attribute| if let Attribute::Text(text) = value { text.len() } else { 0 };
        list.iter().map(|(key, value)| size_of::<(String, Attribute)>() + key.len() + text(value)).sum()
    };
    let events = |list: &[Event]| -> usize { list.iter().map(|event| 64 + attributes(&event.attributes)).sum() };
    let (exchange, named) = match item {
        Item::Call(finished) => (Some(&finished.observed.exchange), finished.named.as_deref()),
        Item::Work(work, _) => return size_of::<Work>() + 256 + attributes(&work.attributes) + events(&work.events),
    };
    let long = exchange.map_or(0, |exchange| {
        exchange.chunks.heap_bytes()
            + exchange.stalls.len() * size_of::<(u64, u64)>()
            + exchange.output_text.as_ref().map_or(0, String::len)
    });
    let hook = named.map_or(0, |named| attributes(&named.attributes) + events(&named.events));
    size_of::<Finished>() + 1024 + long + hook
}

fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
