//! The two tasks behind the exporter: one batches spans, one exports metrics at an interval.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout_at},
};

use super::{
    Item, Queued,
    config::OtlpConfig,
    metrics::Aggregates,
    retry::Delivery,
    span,
    transport::{Request, Transport},
    unix_now,
};
use crate::telemetry::Channel;

/// While spans are few, they are fetched so often: each that comes to a task that waits for it wakes a thread, for which the event loop pays
/// more than for all the rest of a span. A closed queue is noticed as late.
const GATHERING: Duration = Duration::from_millis(50);
/// Where more than this part of a batch came in that time they are many, and waited for.
const MANY: usize = 16;

/// Batches spans.
#[derive(Debug)]
pub(super) struct Spans {
    pub(super) waiting: mpsc::Receiver<Queued>,
    pub(super) transport: Transport,
    pub(super) channel: Channel,
    pub(super) config: Arc<OtlpConfig>,
}

impl Spans {
    /// Runs until the queue is closed and empty.
    pub(super) async fn run(self) {
        let Self { mut waiting, transport, channel, config } = self;
        let Some(target) = &config.traces else { return };
        let mut delivery = Delivery::new("spans", transport, channel.clone(), target, &config);
        let max = config.batch.max_batch;
        let mut batch: Vec<Queued> = Vec::new();
        while waiting.recv_many(&mut batch, max).await > 0 {
            // A batch waits for more until it is full or its first span is old enough; a closed queue ends the wait.
            let due = Instant::now() + config.batch.schedule_delay;
            let mut before = 0;
            while batch.len() < max {
                let room = max - batch.len();
                let few = batch.len() - before <= max / MANY;
                before = batch.len();
                if few && !waiting.is_closed() && Instant::now() < due {
                    sleep_until(due.min(Instant::now() + GATHERING)).await;
                    while batch.len() < max
                        && let Ok(span) = waiting.try_recv()
                    {
                        batch.push(span);
                    }
                    continue;
                }
                match timeout_at(due, waiting.recv_many(&mut batch, room)).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            // The memory of a batch in flight stays in the budget until it is gone.
            let (finished, held): (Vec<Item>, Vec<_>) = batch.drain(..).map(|q| (q.item, q.held)).unzip();
            let spans = finished.len();
            let request = Request::Spans(span::request(&finished, &config));
            drop(finished);
            delivery.deliver(&request, spans as u64, config.batch.export_timeout).await;
            drop(held);
            channel.depth.sub(spans as i64);
        }
    }
}

/// Exports metrics at an interval.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) aggregates: Arc<Mutex<Aggregates>>,
    pub(super) stopped: watch::Receiver<bool>,
    pub(super) transport: Transport,
    pub(super) channel: Channel,
    pub(super) config: Arc<OtlpConfig>,
}

impl Metrics {
    /// Runs until it is stopped; then exports once more.
    pub(super) async fn run(self) {
        let Self { aggregates, mut stopped, transport, channel, config } = self;
        let Some(target) = &config.metrics else { return };
        let mut delivery = Delivery::new("metrics", transport, channel.clone(), target, &config);
        let mut ticks = interval_at(Instant::now() + config.metric_interval, config.metric_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let last = tokio::select! {
                _ = ticks.tick() => false,
                // An error says that the exporter is gone, which is a stop too.
                _ = stopped.wait_for(|stop| *stop) => true,
            };
            let (request, points) = lock(&aggregates).collect(config.temporality, unix_now(), &config.resource);
            if points > 0 {
                channel.depth.set(i64::try_from(points).unwrap_or(i64::MAX));
                if delivery.deliver(&Request::Metrics(request), points, config.metric_timeout).await {
                    lock(&aggregates).delivered();
                }
                channel.depth.set(0);
            }
            if last {
                return;
            }
        }
    }
}

fn lock(aggregates: &Mutex<Aggregates>) -> std::sync::MutexGuard<'_, Aggregates> {
    aggregates.lock().unwrap_or_else(PoisonError::into_inner)
}
