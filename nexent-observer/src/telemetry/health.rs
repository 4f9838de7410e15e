//! Own health: what was taken in, what was lost, what the exporters did, and whether the observer is ready.

use std::{
    fmt,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use nexent_observer_core::stats::{DropReason, Stats};
use prometheus::{Counter, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, core::Collector};

use super::{Metric, Register, process};
use crate::probe::{
    attach::Losses,
    silence::{Cause, Silent},
    targets::Census,
};

/// The event loop is taken for stuck when it has not ticked for so long.
const LOOP_SILENCE: Duration = Duration::from_secs(10);
/// The observer counts as losing for so long after the last loss.
const LOSS_MEMORY: Duration = Duration::from_secs(60);

/// Counters of the kernel half and of the probes, as absolute values since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelCounts {
    /// Records lost of what processes read.
    pub lost_read_records: u64,
    /// Records lost of what processes wrote.
    pub lost_write_records: u64,
    /// Bytes left uncopied because of a verdict.
    pub skipped_bytes: u64,
    /// Bytes of plain sockets that are no HTTP.
    pub plain_other_bytes: u64,
    /// Operations on plain HTTP whose bytes cannot be seen.
    pub plain_unseen: u64,
    /// Entries of the rings that could not be decoded.
    pub malformed_records: u64,
    /// TLS records that belong to no known socket.
    pub aead_unjoined: u64,
    /// Connections of rustls that were joined late.
    pub aead_rejoined: u64,
    /// Probes attached now.
    pub attached_probes: u64,
    /// Processes observed now.
    pub attached_processes: u64,
    /// Probes that were gone from the code of processes.
    pub probe_losses: Losses,
}

/// Who exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exporter {
    /// OTLP.
    Otlp,
    /// JSON lines.
    Jsonl,
    /// The recording.
    Record,
}

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Spans,
    /// Metric data points.
    Metrics,
    /// Lines, one per exchange.
    Lines,
    /// Entries of a recording; of the queue, blocks of them.
    Entries,
}

/// Why an exporter gave items up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropCause {
    /// The queue had no room.
    QueueFull,
    /// Retries ran out of time.
    Timeout,
    /// The receiver refused them for good.
    Rejected,
    /// The flush at shutdown ran out of time.
    Shutdown,
    /// The file or pipe could not be written.
    WriteError,
    /// The exchange has no time at all.
    NoTime,
}

impl Exporter {
    fn as_str(self) -> &'static str {
        match self {
            Self::Otlp => "otlp",
            Self::Jsonl => "jsonl",
            Self::Record => "record",
        }
    }
}

impl Signal {
    fn as_str(self) -> &'static str {
        match self {
            Self::Spans => "spans",
            Self::Metrics => "metrics",
            Self::Lines => "lines",
            Self::Entries => "entries",
        }
    }
}

impl DropCause {
    /// All causes.
    pub const ALL: [Self; 6] =
        [Self::QueueFull, Self::Timeout, Self::Rejected, Self::Shutdown, Self::WriteError, Self::NoTime];

    /// Label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Timeout => "timeout",
            Self::Rejected => "rejected",
            Self::Shutdown => "shutdown",
            Self::WriteError => "write_error",
            Self::NoTime => "no_time",
        }
    }
}

/// Counters of one exporter and signal, resolved once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Channel {
    /// Items that wait.
    pub depth: IntGauge,
    /// Items delivered.
    pub exported: IntCounter,
    /// Attempts that failed.
    pub failures: IntCounter,
    dropped: [IntCounter; DropCause::ALL.len()],
}

impl Channel {
    /// Counts `n` items given up.
    pub fn dropped(&self, cause: DropCause, n: u64) {
        if let Some(counter) = self.dropped.get(cause as usize) {
            counter.inc_by(n);
        }
    }

    /// Items given up for `cause` so far.
    #[must_use]
    pub fn dropped_so_far(&self, cause: DropCause) -> u64 {
        self.dropped.get(cause as usize).map_or(0, IntCounter::get)
    }
}

/// Whether the observer does its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Attached, and nothing was lost lately.
    Ready,
    /// No process is observed (yet, or any more).
    NotAttached,
    /// Records or exchanges were lost within the last minute.
    Losing,
    /// The event loop does not move: nothing else that is known is of now.
    Stuck,
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::NotAttached => "not ready: no process is attached",
            Self::Losing => "not ready: records or exchanges were lost within the last 60 s",
            Self::Stuck => "not ready: the event loop does not move",
        })
    }
}

/// What a person wants to know of the observer at a glance. Counts are since its start.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct HealthSummary {
    /// `ready`, `not_attached`, `losing` or `stuck`.
    pub state: &'static str,
    /// Seconds since the start.
    pub uptime_s: f64,
    /// Processes observed now.
    pub processes: u64,
    /// Probes attached now.
    pub probes: u64,
    /// Records of the kernel half taken in.
    pub records: u64,
    /// Records lost because a ring was full.
    pub lost_records: u64,
    /// Bytes known to be lost.
    pub lost_bytes: u64,
    /// Holes in byte streams.
    pub gaps: u64,
    /// HTTP exchanges seen, LLM calls or not.
    pub http_exchanges: u64,
    /// LLM calls that ended.
    pub llm_exchanges: u64,
    /// Of them, those not seen whole.
    pub incomplete: u64,
    /// Items that exporters gave up.
    pub export_dropped: u64,
    /// What was dropped in the core, by reason; only reasons that occurred.
    pub drops: Vec<(&'static str, u64)>,
}

/// The observer's own metrics. Shared by all parts through an `Arc`; every method is cheap and takes no lock that the
/// event loop could wait for.
#[derive(Debug)]
pub struct Health {
    began: Instant,
    /// Milliseconds since `began` of the loop's last tick.
    ticked_ms: AtomicU64,
    /// Milliseconds since `began` of the last loss; negative while there was none.
    lost_ms: AtomicI64,
    records: IntCounter,
    bytes: IntCounter,
    lost_read: IntCounter,
    lost_write: IntCounter,
    lost_bytes: IntCounter,
    skipped_bytes: IntCounter,
    plain_other_bytes: IntCounter,
    plain_unseen: IntCounter,
    malformed: IntCounter,
    aead_unjoined: IntCounter,
    aead_rejoined: IntCounter,
    understood: IntCounter,
    not_understood: IntCounter,
    gaps: IntCounter,
    drops: Vec<(DropReason, IntCounter)>,
    http_exchanges: IntCounter,
    llm_exchanges: IntCounter,
    /// Incomplete exchanges.
    pub(crate) incomplete: IntCounter,
    chunks: IntCounter,
    connections: IntGauge,
    open_exchanges: IntGauge,
    attached_probes: IntGauge,
    attached_processes: IntGauge,
    found_processes: IntGaugeVec,
    probe_losses: IntCounterVec,
    silent_processes: IntGaugeVec,
    /// Spans left out by sampling.
    pub(crate) sampled_out: IntCounter,
    /// Spans kept for a reason, by reason.
    pub(crate) kept_spans: IntCounterVec,
    label_overflow: IntCounterVec,
    queue_depth: IntGaugeVec,
    exported: IntCounterVec,
    failures: IntCounterVec,
    dropped: IntCounterVec,
    held_capabilities: IntGaugeVec,
    cpu_seconds: Counter,
    resident: IntGauge,
}

impl Health {
    /// Registers the observer's own metrics.
    pub fn new(register: &Register) -> Result<Self, prometheus::Error> {
        let none: [&str; 0] = [];
        let counter = |metric| register.counter(metric).map(|c| c.with_label_values(&none));
        let gauge = |metric| register.gauge(metric).map(|g| g.with_label_values(&none));
        let lost = register.counter(Metric::LostRecords)?;
        let drops = register.counter(Metric::Drops)?;
        let announcements = register.counter(Metric::Announcements)?;
        let kept_spans = register.counter(Metric::KeptSpans)?;
        for reason in crate::export::policy::Kept::REASONS {
            kept_spans.with_label_values(&[reason]);
        }
        register.gauge(Metric::BuildInfo)?.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            began: Instant::now(),
            ticked_ms: AtomicU64::new(0),
            lost_ms: AtomicI64::new(-1),
            records: counter(Metric::Records)?,
            bytes: counter(Metric::Bytes)?,
            lost_read: lost.with_label_values(&["read"]),
            lost_write: lost.with_label_values(&["write"]),
            lost_bytes: counter(Metric::LostBytes)?,
            skipped_bytes: counter(Metric::SkippedBytes)?,
            plain_other_bytes: counter(Metric::PlainOtherBytes)?,
            plain_unseen: counter(Metric::PlainUnseen)?,
            malformed: counter(Metric::MalformedRecords)?,
            aead_unjoined: counter(Metric::AeadUnjoined)?,
            aead_rejoined: counter(Metric::AeadRejoined)?,
            understood: announcements.with_label_values(&["true"]),
            not_understood: announcements.with_label_values(&["false"]),
            gaps: counter(Metric::Gaps)?,
            drops: DropReason::ALL.map(|reason| (reason, drops.with_label_values(&[reason.as_str()]))).into(),
            http_exchanges: counter(Metric::HttpExchanges)?,
            llm_exchanges: counter(Metric::LlmExchanges)?,
            incomplete: counter(Metric::IncompleteExchanges)?,
            chunks: counter(Metric::Chunks)?,
            connections: gauge(Metric::Connections)?,
            open_exchanges: gauge(Metric::OpenExchanges)?,
            attached_probes: gauge(Metric::AttachedProbes)?,
            attached_processes: gauge(Metric::AttachedProcesses)?,
            found_processes: register.gauge(Metric::FoundProcesses)?,
            probe_losses: register.counter(Metric::ProbeLosses)?,
            silent_processes: register.gauge(Metric::SilentProcesses)?,
            sampled_out: counter(Metric::SampledOut)?,
            kept_spans,
            label_overflow: register.counter(Metric::LabelOverflow)?,
            queue_depth: register.gauge(Metric::QueueDepth)?,
            exported: register.counter(Metric::Exported)?,
            failures: register.counter(Metric::ExportFailures)?,
            dropped: register.counter(Metric::ExportDropped)?,
            held_capabilities: register.gauge(Metric::HeldCapabilities)?,
            cpu_seconds: register.float_counter(Metric::ProcessCpuSeconds)?.with_label_values(&none),
            resident: gauge(Metric::ProcessResidentMemory)?,
        })
    }

    /// Counts a span that is kept for these reasons.
    pub fn kept(&self, reasons: impl Iterator<Item = &'static str>) {
        reasons.for_each(|reason| self.kept_spans.with_label_values(&[reason]).inc());
    }

    /// Shows the capabilities that are kept, and when each is in effect.
    pub fn held_capabilities(&self, names: &[(String, &'static str)]) {
        for (capability, in_effect) in names {
            self.held_capabilities.with_label_values(&[capability.as_str(), in_effect]).set(1);
        }
    }

    /// Takes over the core's counters (absolute since the start).
    pub fn core(&self, stats: &Stats) {
        // Not destructured: the counters by reason are private to the core.
        advance(&self.records, stats.records);
        advance(&self.bytes, stats.bytes);
        advance(&self.lost_bytes, stats.bytes_lost);
        if advance(&self.gaps, stats.gaps) {
            self.lost_now();
        }
        for (reason, counter) in &self.drops {
            if advance(counter, stats.drops(*reason)) && loses_exchanges(*reason) {
                self.lost_now();
            }
        }
        advance(&self.http_exchanges, stats.http_exchanges);
        advance(&self.llm_exchanges, stats.llm_exchanges);
        advance(&self.chunks, stats.chunks);
        self.connections.set(signed(stats.connections_open));
        self.open_exchanges.set(signed(stats.exchanges_open));
    }

    /// Takes over the counters of the in-process hooks.
    pub fn hooks(&self, understood: u64, not_understood: u64) {
        advance(&self.understood, understood);
        advance(&self.not_understood, not_understood);
    }

    /// Takes over the counters of the kernel half and of the probes.
    pub fn kernel(&self, counts: KernelCounts) {
        let KernelCounts {
            lost_read_records,
            lost_write_records,
            skipped_bytes,
            plain_other_bytes,
            plain_unseen,
            malformed_records,
            aead_unjoined,
            aead_rejoined,
            attached_probes,
            attached_processes,
            probe_losses: Losses { restored, reattached, failed, rewritten },
        } = counts;
        let read = advance(&self.lost_read, lost_read_records);
        let malformed = advance(&self.malformed, malformed_records);
        if advance(&self.lost_write, lost_write_records) || read || malformed {
            self.lost_now();
        }
        advance(&self.skipped_bytes, skipped_bytes);
        advance(&self.plain_other_bytes, plain_other_bytes);
        advance(&self.plain_unseen, plain_unseen);
        advance(&self.aead_unjoined, aead_unjoined);
        advance(&self.aead_rejoined, aead_rejoined);
        let losses = [("restored", restored), ("reattached", reattached), ("failed", failed), ("rewritten", rewritten)];
        for (outcome, count) in losses {
            advance(&self.probe_losses.with_label_values(&[outcome]), count);
        }
        self.attached_probes.set(signed(attached_probes));
        self.attached_processes.set(signed(attached_processes));
    }

    /// Processes that were found, by state.
    pub fn census(&self, census: Census) {
        let Census { on_trial, let_go, candidates, left_alone } = census;
        let states = [("trial", on_trial), ("let_go", let_go), ("candidate", candidates), ("left_alone", left_alone)];
        for (state, count) in states {
            self.found_processes.with_label_values(&[state]).set(signed(count as u64));
        }
    }

    /// Processes that should be seen and are not.
    pub fn silent(&self, silent: &[Silent]) {
        for cause in Cause::ALL {
            let count = silent.iter().filter(|process| process.cause == cause).count();
            self.silent_processes.with_label_values(&[cause.as_str()]).set(signed(count as u64));
        }
    }

    /// The event loop is alive. To be called at least every few seconds.
    pub fn tick(&self) {
        self.ticked_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// How long the event loop has been silent, if that is too long.
    #[must_use]
    pub fn stuck_for(&self) -> Option<Duration> {
        let silent = Duration::from_millis(self.now_ms().saturating_sub(self.ticked_ms.load(Ordering::Relaxed)));
        (silent > LOOP_SILENCE).then_some(silent)
    }

    /// Whether the observer is attached and not losing.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let lost_ms = self.lost_ms.load(Ordering::Relaxed);
        let lost_ago = u64::try_from(lost_ms).ok().map(|at| Duration::from_millis(self.now_ms().saturating_sub(at)));
        if self.stuck_for().is_some() {
            Readiness::Stuck
        } else if self.attached_processes.get() == 0 {
            Readiness::NotAttached
        } else if lost_ago.is_some_and(|ago| ago < LOSS_MEMORY) {
            Readiness::Losing
        } else {
            Readiness::Ready
        }
    }

    /// The state in words and numbers.
    #[must_use]
    pub fn summary(&self) -> HealthSummary {
        let state = match self.readiness() {
            Readiness::Stuck => "stuck",
            Readiness::Ready => "ready",
            Readiness::NotAttached => "not_attached",
            Readiness::Losing => "losing",
        };
        let drops = self.drops.iter().map(|(reason, count)| (reason.as_str(), count.get()));
        let given_up = self.dropped.collect().into_iter().flat_map(|family| family.get_metric().to_vec());
        let unsigned = |gauge: &IntGauge| u64::try_from(gauge.get()).unwrap_or(0);
        HealthSummary {
            state,
            uptime_s: self.began.elapsed().as_secs_f64(),
            processes: unsigned(&self.attached_processes),
            probes: unsigned(&self.attached_probes),
            records: self.records.get(),
            lost_records: self.lost_read.get().saturating_add(self.lost_write.get()),
            lost_bytes: self.lost_bytes.get(),
            gaps: self.gaps.get(),
            http_exchanges: self.http_exchanges.get(),
            llm_exchanges: self.llm_exchanges.get(),
            incomplete: self.incomplete.get(),
            export_dropped: given_up.map(|metric| metric.get_counter().get_value() as u64).sum(),
            drops: drops.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// Counters of one exporter.
    #[must_use]
    pub fn channel(&self, exporter: Exporter, signal: Signal) -> Channel {
        let labels = [exporter.as_str(), signal.as_str()];
        Channel {
            depth: self.queue_depth.with_label_values(&labels),
            exported: self.exported.with_label_values(&labels),
            failures: self.failures.with_label_values(&labels),
            dropped: DropCause::ALL
                .map(|cause| self.dropped.with_label_values(&[exporter.as_str(), signal.as_str(), cause.as_str()])),
        }
    }

    /// A label value was replaced by `other`.
    pub(crate) fn label_overflow(&self, label: &'static str) {
        self.label_overflow.with_label_values(&[label]).inc();
    }

    /// Reads what this process costs; called once per scrape.
    pub(crate) fn measure_process(&self) {
        if let Some(seconds) = process::cpu_seconds() {
            self.cpu_seconds.inc_by((seconds - self.cpu_seconds.get()).max(0.0));
        }
        if let Some(bytes) = process::resident_bytes() {
            self.resident.set(bytes);
        }
    }

    fn lost_now(&self) {
        self.lost_ms.store(signed(self.now_ms()), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Whether exchanges are let go for this reason that nothing is wrong with but that there are too many.
fn loses_exchanges(reason: DropReason) -> bool {
    matches!(reason, DropReason::ConnectionsFull | DropReason::ExchangesFull | DropReason::OutputsFull)
}

/// Raises a counter to an absolute value; says whether it moved.
fn advance(counter: &IntCounter, to: u64) -> bool {
    let by = to.saturating_sub(counter.get());
    counter.inc_by(by);
    by > 0
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        Health::new(&Register::default()).unwrap()
    }

    #[test]
    fn absolute_counts_are_taken_over_once_and_never_go_back() {
        let health = health();
        let mut stats = Stats::default();
        stats.records = 7;
        stats.count(DropReason::Joined);
        health.core(&stats);
        health.core(&stats);
        assert_eq!(health.records.get(), 7);
        let joined = health.drops.iter().find(|(reason, _)| *reason == DropReason::Joined).unwrap();
        assert_eq!(joined.1.get(), 1);
        stats.records = 3;
        health.core(&stats);
        assert_eq!(health.records.get(), 7);
    }

    #[test]
    fn ready_only_while_attached_and_not_losing() {
        let health = health();
        assert_eq!(health.readiness(), Readiness::NotAttached);
        let attached = KernelCounts { attached_processes: 1, ..KernelCounts::default() };
        health.kernel(attached);
        assert_eq!(health.readiness(), Readiness::Ready);
        health.kernel(KernelCounts { lost_read_records: 1, ..attached });
        assert_eq!(health.readiness(), Readiness::Losing);
        health.kernel(KernelCounts { lost_read_records: 1, attached_processes: 0, ..attached });
        assert_eq!(health.readiness(), Readiness::NotAttached);
    }

    #[test]
    fn every_loss_makes_it_unready_and_a_defect_of_a_peer_does_not() {
        let ready = || {
            let health = health();
            health.kernel(KernelCounts { attached_processes: 1, ..KernelCounts::default() });
            assert_eq!(health.readiness(), Readiness::Ready);
            health
        };
        let losses = [
            KernelCounts { lost_read_records: 1, ..KernelCounts::default() },
            KernelCounts { lost_write_records: 1, ..KernelCounts::default() },
            KernelCounts { malformed_records: 1, ..KernelCounts::default() },
        ];
        for loss in losses {
            let health = ready();
            health.kernel(KernelCounts { attached_processes: 1, ..loss });
            assert_eq!(health.readiness(), Readiness::Losing, "{loss:?}");
        }
        for reason in DropReason::ALL {
            let health = ready();
            let mut stats = Stats::default();
            stats.count(reason);
            health.core(&stats);
            let losing =
                matches!(reason, DropReason::ConnectionsFull | DropReason::ExchangesFull | DropReason::OutputsFull);
            assert_eq!(health.readiness() == Readiness::Losing, losing, "{reason:?}");
        }
        let health = ready();
        let mut stats = Stats::default();
        stats.gaps = 1;
        health.core(&stats);
        assert_eq!(health.readiness(), Readiness::Losing);
    }

    #[test]
    fn a_loop_that_does_not_move_is_neither_well_nor_ready() {
        let mut health = health();
        health.kernel(KernelCounts { attached_processes: 1, ..KernelCounts::default() });
        let Some(earlier) = Instant::now().checked_sub(LOOP_SILENCE + Duration::from_secs(1)) else { return };
        health.began = earlier;
        assert!(health.stuck_for().is_some_and(|silent| silent > LOOP_SILENCE));
        assert_eq!(health.readiness(), Readiness::Stuck);
        health.tick();
        assert_eq!((health.stuck_for(), health.readiness()), (None, Readiness::Ready));
    }

    #[test]
    fn the_summary_names_what_occurred_and_nothing_else() {
        let health = health();
        let mut stats = Stats::default();
        stats.count(DropReason::Joined);
        health.core(&stats);
        health.kernel(KernelCounts { attached_processes: 2, lost_write_records: 3, ..KernelCounts::default() });
        health.channel(Exporter::Jsonl, Signal::Lines).dropped(DropCause::QueueFull, 4);
        health.channel(Exporter::Otlp, Signal::Spans).dropped(DropCause::Timeout, 5);
        let summary = health.summary();
        assert_eq!((summary.state, summary.processes, summary.lost_records), ("losing", 2, 3));
        assert_eq!(summary.export_dropped, 9);
        assert_eq!(summary.drops, [(DropReason::Joined.as_str(), 1)]);
    }

    #[test]
    fn every_drop_cause_has_its_own_counter() {
        let channel = health().channel(Exporter::Otlp, Signal::Spans);
        for (i, cause) in DropCause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, i);
            channel.dropped(cause, i as u64 + 1);
            assert_eq!(channel.dropped_so_far(cause), i as u64 + 1);
        }
    }
}
