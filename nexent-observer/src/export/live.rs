//! The streams that are open now: for the gauges, the page and the terminal.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use nexent_observer_core::{
    event::{ConnId, MonoNs},
    timing::{ActiveStream, Cursor, ExchangeId},
};
use tokio::sync::watch;

use super::Service;
use crate::probe::silence::Silent;

/// Streams whose ticks are followed for those who watch; of more, ticks are not shown.
pub const STRIPS: usize = 200;
/// Ticks kept of one stream.
pub const STRIP_TICKS: usize = 256;
/// Ticks older than this are let go, in ns.
pub const STRIP_NS: u64 = 30_000_000_000;
/// Processes that are named in a snapshot.
pub const PROCESSES: usize = 64;

/// One open LLM call. Times in ns; what is not known yet is `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveStream {
    /// Connection and exchange on it.
    pub id: ExchangeId,
    /// Who made the call.
    pub service: Arc<Service>,
    /// `gen_ai.provider.name`.
    pub provider: Option<&'static str>,
    /// Model asked for.
    pub model: Option<String>,
    /// `gen_ai.operation.name`.
    pub operation: &'static str,
    /// Since the request start.
    pub elapsed_ns: Option<u64>,
    /// Time to first token.
    pub ttft_ns: Option<u64>,
    /// Since the last output chunk (before the first one: since the request start).
    pub silent_ns: Option<u64>,
    /// Output chunks so far.
    pub chunks: u64,
    /// Output tokens so far, where the provider reports them as it goes.
    pub tokens: Option<u64>,
    /// Present token rate, tokens/s.
    pub tokens_per_second: Option<f64>,
    /// Distinct read times that carried output within the last [`STRIP_NS`], at most [`STRIP_TICKS`]; empty while nobody
    /// watches and for streams over [`STRIPS`].
    pub ticks: Vec<MonoNs>,
}

/// One moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// Which moment.
    pub at: MonoNs,
    /// The same on the wall clock, ms since the Unix epoch.
    pub unix_ms: u64,
    /// All open streams, in no order.
    pub streams: Vec<LiveStream>,
    /// Observed processes: the first [`PROCESSES`] by number.
    pub processes: Arc<[Arc<Service>]>,
    /// All of them.
    pub processes_total: usize,
    /// Those that should be seen now and are not.
    pub silent: Arc<[Silent]>,
}

/// The last snapshot. The event loop replaces it; readers get the whole of one moment, and may wait for the next.
#[derive(Debug)]
pub struct Live {
    snapshot: watch::Sender<Arc<Snapshot>>,
    watchers: Arc<AtomicUsize>,
}

impl Default for Live {
    fn default() -> Self {
        Self { snapshot: watch::Sender::new(Arc::default()), watchers: Arc::default() }
    }
}

impl Live {
    /// Replaces the snapshot.
    pub fn set(&self, snapshot: Snapshot) {
        // What it replaces is given back here, so that thousands of streams are freed outside the lock.
        drop(self.snapshot.send_replace(Arc::new(snapshot)));
    }

    /// The snapshot.
    #[must_use]
    pub fn get(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// Follows the snapshots; as long as somebody does, they come more often and with ticks.
    #[must_use]
    pub fn watch(&self) -> Watcher {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watcher { snapshots: self.snapshot.subscribe(), count: Arc::clone(&self.watchers) }
    }

    /// Whether somebody watches.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }
}

/// Somebody who watches.
#[derive(Debug)]
pub struct Watcher {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    count: Arc<AtomicUsize>,
}

impl Watcher {
    /// The present snapshot, which counts as seen.
    pub fn get(&mut self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow_and_update())
    }

    /// Waits for one that was not seen; `false` when none will come any more.
    pub async fn changed(&mut self) -> bool {
        self.snapshots.changed().await.is_ok()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Recent ticks of the open streams, kept by the event loop while somebody watches.
#[derive(Debug, Default)]
pub struct Strips {
    strips: HashMap<ExchangeId, Strip>,
    turn: u64,
}

#[derive(Debug, Default)]
struct Strip {
    cursor: Cursor,
    ticks: VecDeque<MonoNs>,
    last: Option<MonoNs>,
    turn: u64,
}

impl Strips {
    /// Begins a snapshot; streams that were in none since the last beginning are forgotten.
    pub fn begin(&mut self) {
        let turn = self.turn;
        self.strips.retain(|_, strip| strip.turn == turn);
        self.turn += 1;
    }

    /// Nobody watches.
    pub fn clear(&mut self) {
        self.strips = HashMap::new();
    }

    /// The recent ticks of a stream at `now`.
    pub fn ticks(&mut self, stream: &ActiveStream<'_>, now: MonoNs) -> Vec<MonoNs> {
        let Self { strips, turn } = self;
        if !stream.streamed || (strips.len() >= STRIPS && !strips.contains_key(&stream.id)) {
            return Vec::new();
        }
        let strip = strips.entry(stream.id).or_default();
        strip.turn = *turn;
        while let Some(chunk) = stream.timeline.next_after(&mut strip.cursor) {
            strip.add(chunk.at);
        }
        // The newest chunk is not in the timeline yet, and no further one once that is full.
        if let Some(last) = stream.last_token {
            strip.add(last);
        }
        let oldest = MonoNs(now.0.saturating_sub(STRIP_NS));
        while strip.ticks.front().is_some_and(|at| *at < oldest) {
            strip.ticks.pop_front();
        }
        strip.ticks.iter().copied().collect()
    }
}

impl Strip {
    fn add(&mut self, at: MonoNs) {
        if self.last.is_some_and(|last| at <= last) {
            return; // from the same read
        }
        self.last = Some(at);
        if self.ticks.len() >= STRIP_TICKS {
            self.ticks.pop_front();
        }
        self.ticks.push_back(at);
    }
}

/// Name of an exchange in the API: `CONNECTION-NUMBER`.
#[must_use]
pub fn name(id: ExchangeId) -> String {
    let ExchangeId { conn: ConnId(conn), no } = id;
    format!("{conn}-{no}")
}

#[cfg(test)]
mod tests {
    use nexent_observer_core::{
        llm::{Call, ResponseFacts},
        timing::Timeline,
    };

    use super::*;
    use crate::export::fixture;

    const MS: u64 = 1_000_000;

    fn stream<'a>(
        no: u32,
        timeline: &'a Timeline,
        last: u64,
        call: &'a Call,
        response: &'a ResponseFacts,
    ) -> ActiveStream<'a> {
        ActiveStream {
            id: ExchangeId { conn: ConnId(1), no },
            pid: 1,
            call,
            response,
            request_model: None,
            response_model: None,
            streamed: true,
            request_start: None,
            first_byte: None,
            first_token: None,
            last_token: Some(MonoNs(last)),
            chunks: 0,
            timeline,
        }
    }

    #[test]
    fn a_tick_is_a_read_and_old_ones_and_those_over_the_cap_go() {
        let (call, response) = (Call::default(), ResponseFacts::default());
        let mut strips = Strips::default();
        let few = fixture::timeline([10, 20, 20, 30].map(|ms| (MonoNs(ms * MS), None)));
        strips.begin();
        let ticks = strips.ticks(&stream(0, &few, 40 * MS, &call, &response), MonoNs(50 * MS));
        assert_eq!(ticks, [10, 20, 30, 40].map(|ms| MonoNs(ms * MS)));
        strips.begin();
        let later = MonoNs(STRIP_NS + 25 * MS);
        assert_eq!(
            strips.ticks(&stream(0, &few, 40 * MS, &call, &response), later),
            [30, 40].map(|ms| MonoNs(ms * MS))
        );
        let many = fixture::timeline((1..=2 * STRIP_TICKS as u64).map(|ms| (MonoNs(ms * MS), None)));
        let ticks = strips.ticks(&stream(1, &many, 0, &call, &response), MonoNs(0));
        assert_eq!((ticks.len(), ticks.last()), (STRIP_TICKS, Some(&MonoNs(2 * STRIP_TICKS as u64 * MS))));
    }

    #[test]
    fn strips_are_capped_and_those_of_ended_streams_make_room() {
        let (call, response, timeline) = (Call::default(), ResponseFacts::default(), Timeline::default());
        let mut strips = Strips::default();
        let mut shown = |from: u32| {
            strips.begin();
            let streams = (from..from + 2 * STRIPS as u32).map(|no| stream(no, &timeline, 5, &call, &response));
            streams.filter(|stream| !strips.ticks(stream, MonoNs(9)).is_empty()).count()
        };
        assert_eq!(shown(0), STRIPS);
        assert_eq!(shown(10_000), 0, "those of the turn before still stand");
        assert_eq!(shown(10_000), STRIPS);
    }

    #[tokio::test]
    async fn a_watcher_sees_each_snapshot_once_and_is_counted() {
        let live = Live::default();
        let mut watcher = live.watch();
        assert!(live.is_watched());
        live.set(Snapshot { unix_ms: 7, ..Snapshot::default() });
        assert!(watcher.changed().await);
        assert_eq!(watcher.get().unix_ms, 7);
        drop(watcher);
        assert!(!live.is_watched());
    }
}
