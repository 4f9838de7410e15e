//! The observer at work: one loop over a closed set of inputs. Whatever may block (exports, the web, detaching) lives elsewhere.

mod say;

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, Waker, unix::SourceFd};
use nexent_observer_common::counters::Counter;
use nexent_observer_core::{
    event::MonoNs,
    pipeline::{Output, Pipeline},
    timing::{self, Tokenizers},
};
use std::os::fd::AsRawFd;

use crate::{
    config::{CacheDir, Config},
    enrich::{filter::Filter, names::Names, services::Services},
    error::RunError,
    export::{
        Exports, Observed, Service,
        ids::{Parents, SpanIds},
        live::{LiveStream, PROCESSES, Snapshot, Strips},
        work::{Kind, Work},
    },
    fault::{Fault, Faulty},
    hooks::{
        Hooks, Said,
        spans::{Done, HookSpan},
    },
    privileges,
    probe::{
        attach::Attacher,
        cache::Cache,
        closes::{self, LostCloses},
        kernel::{KernelHalf, KernelOptions, Rings},
        silence::Silent,
        targets::{Change, Ended, Selection, Targets},
    },
    ring::{Drain, ProcessEvent, ProcessEventKind, RingEvent},
    serve::Outside,
    tape::recorder::{self, Recorder},
    telemetry::KernelCounts,
    tokens::Known,
};

/// Runs until it is told to stop (SIGINT, SIGTERM), or until every process named by pid has ended.
///
/// # Errors
/// [`RunError`]; nothing stays attached.
pub fn run(config: &Config, recording: Option<&recorder::Options>) -> Result<(), RunError> {
    let fault = std::env::var(crate::fault::VARIABLE).ok().map(|text| Fault::parse(&text)).transpose();
    let fault = fault.map_err(RunError::runtime)?;
    if let Some(fault) = fault {
        tracing::warn!(?fault, "A fault is put in on purpose: the numbers will be wrong.");
    }
    // What can fail without touching a process comes first.
    let known = config.tokenizer.then(|| Known::load(&config.tokenizer_files)).transpose();
    let known = known.map_err(|error| RunError::runtime(error.to_string()))?;
    let counts_again = recording.is_some_and(|recording| recording.with_content);
    let known = known.map(|known| if counts_again { known.ready() } else { known });
    let tokenizers = known.map(|known| Arc::new(known) as Arc<dyn Tokenizers>);
    let (outside, exports) = Outside::start(config)?;
    let start = |options| Recorder::start(options, &config.limits, config.join_by_content, &exports.health);
    let recorder = recording.map(start).transpose()?;
    let helpers = Helpers { names: outside.names(), tokenizers, recorder: recorder.clone() };
    let mut observer = Observer::attach(config, exports, helpers, fault)?;
    let done = observer.observe(&outside, config.drain_interval);
    let Observer { exports, targets, .. } = observer;
    drop(targets); // detaches
    if let Some(recorder) = recorder {
        recorder.finish();
    }
    outside.stop(exports);
    done
}

/// What the loop asks of others.
struct Helpers {
    names: Names,
    tokenizers: Option<Arc<dyn Tokenizers>>,
    recorder: Option<Recorder>,
}

/// What the loop waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// The time has come to look into the rings.
    Tick,
    /// A ring is over a quarter full.
    RingFills,
    /// The user wants it to end.
    Stop,
}

const WAKE_READS: Token = Token(0);
const WAKE_WRITES: Token = Token(1);
const WAKE_STOP: Token = Token(2);
const WAKE_FILES: Token = Token(3);
/// Time to the next tick while a process is being attached to or has just ended: waits of some milliseconds follow one another then.
const HURRIED: Duration = Duration::from_millis(10);
/// After so long at the least, when something wakes us: a host may start a thousand processes a second.
const AT_ONCE: Duration = Duration::from_millis(2);
/// How often counters and gauges are brought up to date.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How often the open streams are shown to those who watch; with the housekeeping when nobody does or they are very many.
const SHOWING: Duration = Duration::from_millis(250);
/// So many streams are very many.
const MANY_STREAMS: usize = 1000;

/// Everything that the loop owns.
struct Observer {
    drain: Drain,
    pipeline: Pipeline,
    targets: Targets,
    exports: Exports,
    faulty: Faulty,
    hooks: Hooks,
    services: Named,
    recorder: Option<Recorder>,
    strips: Strips,
    processes: Arc<[Arc<Service>]>,
    silent: Arc<[Silent]>,
    /// Processes whose last exchanges are in the core: what hooks began in them ends after the next drain.
    ended: Vec<u32>,
    /// Processes found dead before the last drain; their connections end after the next one.
    dying: Vec<Ended>,
    lost_closes: LostCloses,
    ends_with_targets: bool,
}

impl Observer {
    /// Loads the kernel half and attaches to the processes named by pid.
    fn attach(config: &Config, exports: Exports, helpers: Helpers, fault: Option<Fault>) -> Result<Self, RunError> {
        let Helpers { names, tokenizers, recorder } = helpers;
        let filter = Filter::new(&config.only, &config.host_root).map_err(|user| {
            RunError::runtime(format!(
                "only_user: the host has no user {user:?} (its /etc/passwd is sought under host_root)"
            ))
        })?;
        let (kernel, rings) = KernelHalf::load(KernelOptions {
            read_ring_bytes: config.read_ring_bytes,
            write_ring_bytes: config.write_ring_bytes,
            write_head_bytes: config.write_head_bytes,
            write_tail_bytes: config.write_tail_bytes,
            report_all_execs: config.all || !config.exes.is_empty(),
            phases: config.phases,
        })
        .map_err(|error| RunError::runtime(error.to_string()))?;
        let attacher = Attacher::new(kernel, config.per_pid_attach_limit)
            .map_err(|error| RunError::caused("a thread cannot be started", error))?
            .with_plain_http(config.plain_http)
            .with_phases(config.phases);
        let attacher = match &config.cache_dir {
            CacheDir::Off => attacher,
            CacheDir::At(directory) => match Cache::open(directory) {
                Ok(cache) => attacher.with_cache(cache),
                Err(error) => {
                    tracing::warn!("Findings are not kept on disk: {error}.");
                    attacher
                }
            },
        };
        let selection = Selection {
            executables: config.exes.clone(),
            all: config.all,
            filter,
            opt_in: config.opt_in,
            trial: config.trial,
            names: names.clone(),
        };
        let mut targets = Targets::new(attacher, selection)
            .map_err(|error| RunError::caused("an executable of `exe` cannot be used", error))?;
        // Everything is loaded and open; what comes from now on is reading /proc, attaching and the kernel half's maps.
        let held = privileges::confine(|| targets.attacher().kernel().counter(Counter::ReadLost).is_ok())
            .map_err(|error| RunError::caused("capabilities that are not needed cannot be dropped", error))?;
        tracing::info!("Capabilities: {held}.");
        exports.health.held_capabilities(&held.names());
        let options = timing::Options { capture_content: config.capture_content, tokenizers };
        let mut pipeline = Pipeline::new(config.limits.clone(), options);
        if let Some(tap) = recorder.as_ref().and_then(Recorder::tap) {
            pipeline.set_tap(tap);
        }
        if config.join_by_content {
            pipeline.join_by_content();
        }
        let mut observer = Self {
            drain: Drain::new(rings),
            pipeline,
            targets,
            exports,
            faulty: Faulty::new(fault),
            hooks: Hooks::default(),
            services: Named {
                services: Services::new(config.service_name.clone(), names),
                recorder: recorder.clone(),
                told: HashMap::new(),
            },
            recorder,
            strips: Strips::default(),
            processes: Arc::default(),
            silent: Arc::default(),
            ended: Vec::new(),
            dying: Vec::new(),
            lost_closes: LostCloses::default(),
            ends_with_targets: config.exes.is_empty() && !config.all,
        };
        for pid in &config.pids {
            observer.targets.add_pid(*pid).map_err(|error| RunError::runtime(error.to_string()))?;
        }
        Ok(observer)
    }

    /// The loop.
    fn observe(&mut self, outside: &Outside, interval: Duration) -> Result<(), RunError> {
        let failed = |error: io::Error| RunError::caused("the event loop failed", error);
        let mut poll = Poll::new().map_err(failed)?;
        let stop = outside.on_stop(Waker::new(poll.registry(), WAKE_STOP).map_err(failed)?);
        self.register(&poll).map_err(failed)?;
        self.targets.attacher().hurry();
        let mut events = Events::with_capacity(8);
        let (mut next_tick, mut next_housekeeping) = (Instant::now() + interval, Instant::now());
        let mut next_showing = Instant::now();
        let (mut woken, mut turned) = (false, Instant::now());
        loop {
            let input = wait(&mut poll, &mut events, next_tick, &stop).map_err(failed)?;
            let now = monotonic();
            self.drain();
            // Also when the time for a tick had come: what is not re-armed never wakes us again.
            if events.iter().any(|event| [WAKE_READS, WAKE_WRITES].contains(&event.token())) {
                self.drain.rearm_wakeups();
                woken = true;
            }
            // What was written to is asked for with the tick.
            if events.iter().any(|event| event.token() == WAKE_FILES) {
                next_tick = next_tick.min(turned + AT_ONCE);
            }
            match input {
                Input::Tick => {
                    if std::mem::take(&mut woken) {
                        self.drain.rearm_execs();
                    }
                    self.turn(now);
                    turned = Instant::now();
                    let hurried =
                        self.targets.is_due(MonoNs(now.0 + interval.as_nanos() as u64)) || !self.dying.is_empty();
                    next_tick = Instant::now() + if hurried { interval.min(HURRIED) } else { interval };
                    if Instant::now() >= next_housekeeping {
                        next_housekeeping = Instant::now() + HOUSEKEEPING;
                        self.keep_house(now);
                        next_showing = Instant::now() + SHOWING;
                        if self.recorder.as_ref().is_some_and(Recorder::keep_house) {
                            self.finish(now);
                            return Ok(());
                        }
                    } else if Instant::now() >= next_showing {
                        next_showing = Instant::now() + SHOWING;
                        let live = &self.exports.live;
                        if live.is_watched() && live.get().streams.len() < MANY_STREAMS {
                            self.show(now);
                        }
                    }
                }
                Input::RingFills if self.targets.is_due(now) => next_tick = next_tick.min(turned + AT_ONCE),
                Input::RingFills => {}
                Input::Stop => {
                    tracing::info!("Stopping.");
                    self.finish(now);
                    return Ok(());
                }
            }
            let none = self.targets.observed() == 0 && !self.targets.awaits_named();
            if self.ends_with_targets && none && self.dying.is_empty() {
                // The last process's open exchanges have just ended; they are still in the core.
                self.finish(now);
                tracing::info!("No observed process is left; ending.");
                return Ok(());
            }
        }
    }

    /// The end: takes and exports what is there, and waits for nothing.
    fn finish(&mut self, now: MonoNs) {
        self.drain();
        self.pipeline.stop();
        self.drain();
        self.hooks.spans.stop(now);
        self.export_named();
    }

    fn register(&mut self, poll: &Poll) -> io::Result<()> {
        for files in self.targets.attacher().file_watchers() {
            poll.registry().register(&mut SourceFd(&files.as_raw_fd()), WAKE_FILES, Interest::READABLE)?;
        }
        let Rings { reads, writes, .. } = self.drain.rings();
        // Edge-triggered, as mio is: a ring with records in it does not keep us awake, only a wake-up of the kernel half does.
        poll.registry().register(&mut SourceFd(&reads.as_raw_fd()), WAKE_READS, Interest::READABLE)?;
        poll.registry().register(&mut SourceFd(&writes.as_raw_fd()), WAKE_WRITES, Interest::READABLE)
    }

    /// Takes everything out of the rings and out of the core.
    fn drain(&mut self) {
        let Self { drain, pipeline, targets, exports, faulty, hooks, services, recorder, .. } = self;
        let recorder = recorder.as_ref().filter(|recorder| recorder.with_content());
        let mut deliver = |output, targets: &mut Targets, hooks: &mut Hooks| {
            if let Output::NotLlm { conn, turn } = output {
                if let Err(error) = targets.attacher().kernel().give_verdict(conn.0, turn) {
                    tracing::debug!(%error, "A verdict could not be given.");
                }
                return;
            }
            if let Output::Exchange(exchange) = &output {
                targets.calls_llm(exchange.pid);
            }
            let mut service = |pid| services.of(pid);
            take_output(output, exports, hooks, &mut service);
            while let Some(done) = hooks.spans.poll() {
                export(done, exports, &mut service);
            }
        };
        drain.run(|event| match event {
            RingEvent::Record(record) => {
                let Some(record) = faulty.pass(record) else { return };
                if targets.is_left_alone(record.pid) {
                    return;
                }
                targets.heard(&record);
                if let Some(recorder) = recorder {
                    recorder.record(&record);
                }
                pipeline.handle_event(&record);
                while let Some(output) = pipeline.poll_output() {
                    deliver(output, targets, hooks);
                }
            }
            RingEvent::Announcement(announcement) => {
                if let Some(Said { tid, said }) = hooks.take(&announcement, pipeline) {
                    if let Some(recorder) = recorder {
                        recorder.said(tid, said.as_ref());
                    }
                    pipeline.handle_said(tid, said);
                }
            }
            RingEvent::Thread(event) => {
                if let Some(recorder) = recorder {
                    recorder.thread(&event);
                }
                pipeline.handle_thread(&event);
            }
            RingEvent::Process(event) => {
                if let ProcessEvent { at, pid, kind: ProcessEventKind::Exec } = event {
                    // What the process was is over at this point of the ring; what it is comes later in it.
                    if let Some(recorder) = recorder {
                        recorder.exit(pid, at);
                    }
                    pipeline.process_exit(pid, at);
                    while let Some(output) = pipeline.poll_output() {
                        deliver(output, targets, hooks);
                    }
                    hooks.spans.process_exit(pid, at);
                }
                targets.handle_event(event);
            }
        });
        let now = monotonic();
        if pipeline.poll_timeout().is_some_and(|due| due <= now) {
            if let Some(recorder) = recorder {
                recorder.timeout(now);
            }
            pipeline.handle_timeout(now);
        }
        hooks.spans.drained(pipeline);
        while let Some(output) = pipeline.poll_output() {
            deliver(output, targets, hooks);
        }
        self.hooks.spans.settle();
        self.ended.drain(..).for_each(|pid| self.hooks.spans.process_exit(pid, now));
        self.export_named();
    }

    /// Exports what hooks have named.
    fn export_named(&mut self) {
        let Self { exports, hooks, services, .. } = self;
        while let Some(done) = hooks.spans.poll() {
            export(done, exports, &mut |pid| services.of(pid));
        }
    }

    /// Follows processes.
    fn turn(&mut self, now: MonoNs) {
        for Ended { pid, open, replaced } in std::mem::take(&mut self.dying) {
            if !replaced {
                let recorder = self.recorder.as_ref().filter(|recorder| recorder.with_content());
                for end in open {
                    let record = end.record(pid, now);
                    if let Some(recorder) = recorder {
                        recorder.record(&record);
                    }
                    self.pipeline.handle_event(&record);
                }
                if let Some(recorder) = recorder {
                    recorder.exit(pid, now);
                }
                self.pipeline.process_exit(pid, now);
                self.ended.push(pid);
            }
            if !self.targets.attacher().observes(pid) {
                self.services.forget(pid);
            }
        }
        for change in self.targets.poll(now) {
            match change {
                Change::Attached { report, after_exec } => {
                    let service = self.services.of(report.pid);
                    say::attached(&report, &service, after_exec);
                }
                Change::Adopted { pid, parent } => {
                    self.services.adopt(pid, parent);
                    tracing::debug!(pid, parent, "A forked process is observed.");
                }
                Change::Gone(ended) => {
                    let pid = ended.pid;
                    tracing::info!(pid, "A process is not observed any more: it ended or runs something else.");
                    self.dying.push(ended);
                }
                Change::LetGo(ended) => {
                    let pid = ended.pid;
                    tracing::info!(
                        pid,
                        "A process is let go: it is busy, and not with an LLM. It is looked at again later."
                    );
                    self.dying.push(ended);
                }
                Change::Refused(error) => tracing::warn!("{error}."),
                Change::Lost(loss) => say::lost(&loss),
                Change::Silent(Silent { pid, why, advice, .. }) => {
                    tracing::warn!(pid, "A process is not seen though it talks: {why}; {advice}.");
                }
                Change::OptedOut { pid } => {
                    tracing::info!(pid, "A process asks to be left alone (ENABLE_TELEMETRY=false): not observed.");
                }
            }
        }
    }

    /// Brings counters and gauges up to date.
    fn keep_house(&mut self, now: MonoNs) {
        // A long answer counts before it ends, and one that ended before it is told.
        for pid in self.pipeline.active().map(|stream| stream.pid).chain(self.pipeline.waiting()) {
            self.targets.calls_llm(pid);
        }
        let census = self.targets.census();
        let attached_processes = self.targets.observed() as u64;
        let attacher = self.targets.attacher();
        let attached_probes = attacher.probes() as u64;
        let probe_losses = attacher.losses();
        let kernel = attacher.kernel();
        let counter = |counter| kernel.counter(counter).unwrap_or_default();
        let counts = KernelCounts {
            lost_read_records: counter(Counter::ReadLost),
            lost_write_records: counter(Counter::WriteLost),
            skipped_bytes: counter(Counter::SkippedBytes),
            plain_other_bytes: counter(Counter::PlainOtherBytes),
            plain_unseen: counter(Counter::PlainUnseen),
            malformed_records: self.drain.defects.malformed,
            aead_unjoined: counter(Counter::AeadUnjoined),
            aead_rejoined: counter(Counter::AeadRejoined),
            attached_probes,
            attached_processes,
            probe_losses,
        };
        let known = self.lost_closes.due(counts.lost_read_records, now).then(|| kernel.connections());
        match known {
            Some(Ok(known)) => {
                self.drain(); // with what came last on those that have ended until now
                self.end_unknown(&known, now);
            }
            Some(Err(error)) => tracing::debug!(%error, "Connections whose end was lost stay until they are idle."),
            None => {}
        }
        let health = &self.exports.health;
        health.kernel(counts);
        self.hooks.spans.keep_house(now);
        health.census(census);
        self.silent = self.targets.silent().into();
        health.silent(&self.silent);
        health.hooks(self.hooks.heard, self.hooks.not_understood);
        health.core(&self.pipeline.stats());
        health.tick();
        let mut pids: Vec<u32> = self.targets.attacher().pids().collect();
        pids.sort_unstable();
        let services = &mut self.services;
        self.processes = pids.into_iter().take(PROCESSES).map(|pid| services.of(pid)).collect();
        let (chunks, open) = (self.pipeline.stats().chunks, self.pipeline.active().count() as u64);
        let unix_s = self.exports.clock.offset().unix_ns(now) / 1_000_000_000;
        self.exports.history.second(unix_s, chunks, open);
        self.show(now);
    }

    /// Ends the connections that the kernel half does not know any more: it lost the record of their end.
    fn end_unknown(&mut self, known: &HashSet<u64>, now: MonoNs) {
        let silent = self.pipeline.silent(MonoNs(now.0.saturating_sub(closes::SILENT)), now);
        // The process of one that ends has its own way to end it.
        let ends = |pid| self.dying.iter().any(|ended| ended.pid == pid);
        let ended: Vec<_> = silent.filter(|record| !known.contains(&record.conn.0) && !ends(record.pid)).collect();
        if !ended.is_empty() {
            tracing::debug!(connections = ended.len(), "Connections have ended whose end was lost.");
        }
        let recorder = self.recorder.as_ref().filter(|recorder| recorder.with_content());
        for record in ended {
            if let Some(recorder) = recorder {
                recorder.record(&record);
            }
            self.pipeline.handle_event(&record);
        }
    }

    /// Shows the open streams.
    fn show(&mut self, now: MonoNs) {
        let Self { pipeline, targets, exports, services, strips, processes, silent, .. } = self;
        let watched = exports.live.is_watched();
        if watched {
            strips.begin();
        } else {
            strips.clear();
        }
        let streams = pipeline.active().map(|stream| {
            let service = services.of(stream.pid);
            let ticks = if watched { strips.ticks(&stream, now) } else { Vec::new() };
            LiveStream { ticks, ..live(&stream, service, now) }
        });
        let streams = streams.collect();
        exports.live.set(Snapshot {
            at: now,
            unix_ms: exports.clock.offset().unix_ns(now) / 1_000_000,
            streams,
            processes: Arc::clone(processes),
            processes_total: targets.observed(),
            silent: Arc::clone(silent),
        });
    }
}

/// Waits for the next input.
fn wait(poll: &mut Poll, events: &mut Events, next_tick: Instant, stop: &AtomicBool) -> io::Result<Input> {
    match poll.poll(events, Some(next_tick.saturating_duration_since(Instant::now()))) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) => return Err(error),
    }
    if stop.load(Ordering::Relaxed) {
        return Ok(Input::Stop);
    }
    Ok(if Instant::now() >= next_tick { Input::Tick } else { Input::RingFills })
}

/// Now, on the clock of the kernel half.
fn monotonic() -> MonoNs {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer to a local; the clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    MonoNs((now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64))
}

/// Names processes, and tells a recorder each name.
struct Named {
    services: Services,
    recorder: Option<Recorder>,
    /// What the recorder was told last of each process that is observed.
    told: HashMap<u32, Arc<Service>>,
}

impl Named {
    fn of(&mut self, pid: u32) -> Arc<Service> {
        let service = self.services.of(pid);
        if let Some(recorder) = &self.recorder
            && self.told.get(&pid).is_none_or(|told| !Arc::ptr_eq(told, &service))
        {
            recorder.service(&service);
            self.told.insert(pid, Arc::clone(&service));
        }
        service
    }

    /// A forked process is what its parent was.
    fn adopt(&mut self, pid: u32, parent: u32) {
        self.services.adopt(pid, parent);
        if self.recorder.is_some() {
            self.of(pid);
        }
    }

    fn forget(&mut self, pid: u32) {
        self.services.forget(pid);
        self.told.remove(&pid);
    }
}

/// Takes what the core gives out.
pub(crate) fn take_output(
    output: Output,
    exports: &mut Exports,
    hooks: &mut Hooks,
    service: &mut impl FnMut(u32) -> Arc<Service>,
) {
    match output {
        Output::Exchange(mut exchange) => {
            let pid = exchange.pid;
            exchange.said = exchange.said.take().map(|said| hooks.spans.said(pid, said));
            let cause = exchange.cause.as_ref().and_then(|cause| cause.served.as_deref());
            let named = exchange.said.as_ref().and_then(|said| said.endpoint.clone());
            let endpoint = named
                .or_else(|| hooks.spans.served_name(pid, cause?))
                .or_else(|| cause.and_then(|served| served.endpoint.clone()));
            let served = cause.map(|served| hooks.spans.served(pid, served));
            let observed = Observed { exchange: *exchange, service: service(pid), endpoint, served };
            if let (_, Some(finished)) = exports.record(observed) {
                hooks.spans.call(finished);
            }
        }
        Output::Inbound(inbound) => hooks.spans.inbound(inbound),
        Output::Tool(call) => {
            let said = call.said.clone().map(|said| hooks.spans.said(call.pid, said));
            let cause = call.cause.as_ref().and_then(|cause| cause.served.as_deref());
            let served = cause.map(|served| hooks.spans.served(call.pid, served));
            let (said, traceparent) = (said.as_deref(), call.traceparent.as_deref());
            let ids = SpanIds::of_child(&Parents { said, traceparent, served });
            exports.work(Work::of_tool(&call, ids, service(call.pid)));
        }
        Output::NotLlm { .. } => {}
    }
}

/// Exports what is ready.
pub(crate) fn export(done: Done, exports: &mut Exports, service: &mut impl FnMut(u32) -> Arc<Service>) {
    match done {
        Done::Call(finished) => exports.span(finished),
        Done::Inbound(inbound, ids, named) => {
            // What is not found has whatever path anybody asked for.
            let found = inbound.route.as_deref().filter(|_| !matches!(inbound.status, Some(404 | 405)));
            let route = found.and_then(|route| exports.route(route));
            exports.work(Work::of_inbound(&inbound, route.as_deref(), ids, service(inbound.pid), named));
        }
        Done::Span(span) => {
            let HookSpan { pid, tid, ids, server, start, end, named } = *span;
            let kind = if server { Kind::Server } else { Kind::Internal };
            exports.work(Work::of_hook(service(pid), ids, kind, (start, end), tid, named));
        }
    }
}

/// An open stream as the gauges and views want it.
pub(crate) fn live(stream: &timing::ActiveStream<'_>, service: Arc<Service>, now: MonoNs) -> LiveStream {
    let start = stream.request_start;
    let since_start = |at: MonoNs| start.map(|start| at.since(start));
    LiveStream {
        id: stream.id,
        service,
        provider: stream.call.provider,
        model: stream.request_model.or(stream.response_model).map(str::to_owned),
        operation: stream.call.operation,
        elapsed_ns: since_start(now),
        ttft_ns: stream.first_token.and_then(since_start),
        silent_ns: stream.last_token.or(start).map(|at| now.since(at)),
        chunks: u64::from(stream.chunks),
        tokens: None,
        tokens_per_second: live_rate(stream),
        ticks: Vec::new(),
    }
}

/// Chunks a second since the first one: what can be said of a stream that has not ended. Unknown below two chunks or 10 ms.
fn live_rate(stream: &timing::ActiveStream<'_>) -> Option<f64> {
    let span = stream.last_token?.since(stream.first_token?);
    (stream.chunks >= 2 && span >= 10_000_000).then(|| f64::from(stream.chunks - 1) * 1e9 / span as f64)
}
