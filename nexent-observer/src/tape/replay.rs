//! Gives the exchanges of a recording again, through the same exporters as `run`.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mio::{Events, Poll, Token, Waker};
use nexent_observer_core::{
    event::{MonoNs, ThreadEvent},
    limits::Limits,
    pipeline::{Output, Pipeline, Replay, Tapped},
    stats::Stats,
    tape::{entry::Entry, frame::Kind},
    timing::{self, ExchangeId, Tokenizers},
};

use super::{
    info::{Info, RecordedService},
    serve,
    source::{self, Ending, Report},
};
use crate::{
    config::{Config, JsonlTarget, Listen, keys},
    error::RunError,
    export::{
        Exports, Service,
        clock::{Offset, WallClock},
        live::{LiveStream, PROCESSES, Snapshot},
    },
    hooks::Hooks,
    privileges,
    run::{self, live},
    serve::Outside,
    telemetry::{Exporter, Signal},
    tokens::Known,
};

/// How fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    /// As fast as possible.
    Max,
    /// So many times as fast as it was.
    Times(f64),
}

impl std::str::FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let times = text.strip_suffix('x').unwrap_or(text).parse().ok();
        times
            .filter(|times: &f64| (0.001..=1e6).contains(times))
            .map(Self::Times)
            .ok_or_else(|| "a number from 0.001 to 1000000, or max".to_owned())
    }
}

/// What to do with a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The file.
    pub file: PathBuf,
    /// How fast; unset: as it was when somebody looks at the port, else as fast as possible.
    pub speed: Option<Speed>,
    /// Serve an answer here.
    pub serve: Option<SocketAddr>,
    /// Which exchange is served, as the JSON lines name it.
    pub exchange: Option<ExchangeId>,
}

/// Lines that wait before a fast replay waits for them: it has no cause to lose any.
const LINES_AHEAD: i64 = 512;
/// Longest sleep in one go, so that the observer's page goes on.
const LONGEST_SLEEP: Duration = Duration::from_millis(200);
/// How often gauges are brought up to date.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Calls and served requests that may wait for their process to be named.
const NAMELESS: usize = 65_536;

/// Replays a recording.
///
/// # Errors
/// What cannot be opened or read; a recording that is damaged, after all that comes before the damage.
pub fn run(options: &Options, mut config: Config) -> Result<(), RunError> {
    if let Some(address) = options.serve {
        return serve::run(&options.file, address, options.exchange);
    }
    let listens = config.origin(&keys::LISTEN) != crate::config::Origin::Default
        || config.origin(&keys::PROMETHEUS_PORT) != crate::config::Origin::Default;
    if !listens {
        config.listen = Listen::Off;
    }
    if !listens && config.jsonl.is_none() && config.otlp.is_none() && config.jaeger_endpoint.is_none() {
        config.jsonl = Some(JsonlTarget::Stdout);
    }
    // A recording without content has the counts of then; of one with content the text is counted again.
    let known = config.tokenizer.then(|| Known::load(&config.tokenizer_files)).transpose();
    let known = known.map_err(|error| RunError::runtime(error.to_string()))?;
    let tokenizers = known.map(|known| Arc::new(known.at_once()) as Arc<dyn Tokenizers>);
    let speed = options.speed.unwrap_or(if listens { Speed::Times(1.0) } else { Speed::Max });
    let (outside, exports) = Outside::start(&config)?;
    // Nothing of a recording needs any.
    privileges::shed();
    let failed = |error| RunError::caused("the replay cannot be timed", error);
    let poll = Poll::new().map_err(failed)?;
    let stop = outside.on_stop(Waker::new(poll.registry(), Token(0)).map_err(failed)?);
    let mut replaying = Replaying {
        core: Core::None,
        options: timing::Options { capture_content: config.capture_content, tokenizers },
        services: Services::default(),
        exports,
        hooks: Hooks::default(),
        pace: Pace { speed, began: None, poll, stop },
        next_housekeeping: Instant::now(),
        lost: 0,
    };
    let report = source::read(&options.file, |kind, entry| replaying.take(kind, &entry))?;
    replaying.core.end();
    replaying.collect();
    replaying.deliver(true);
    let Replaying { exports, pace, lost, core, .. } = replaying;
    exports.health.core(&core.stats());
    if listens && pace.speed != Speed::Max && report.ending != Ending::Stopped {
        tracing::info!("The recording is over; the port stays open until interrupted.");
        let mut pace = pace;
        while !pace.sleep(LONGEST_SLEEP) {
            exports.health.tick();
        }
    }
    exports.live.set(Snapshot::default());
    outside.stop(exports);
    say(report, lost)
}

/// What has to be said of a recording that is not whole.
fn say(report: Report, lost: u64) -> Result<(), RunError> {
    if lost > 0 {
        tracing::warn!("{lost} entries are missing: the recording could not keep up when it was made.");
    }
    if report.malformed > 0 {
        tracing::warn!("{} entries could not be read and were left out.", report.malformed);
    }
    match report.ending {
        Ending::Whole | Ending::Stopped => Ok(()),
        Ending::Cut if report.entries == 0 => Err(RunError::runtime("the recording ends before its first entry")),
        Ending::Cut => {
            tracing::warn!("The recording was cut: it ends after {} entries, without its end.", report.entries);
            Ok(())
        }
        Ending::Broken(broken) => {
            Err(RunError::runtime(format!("{broken}, after {} entries that were replayed", report.entries)))
        }
    }
}

/// The stages that run.
#[derive(Debug)]
pub(super) enum Core {
    None,
    Pipeline(Box<Pipeline>),
    Replay(Box<Replay>),
}

impl Core {
    /// `join_by_content`: as the recorded pipeline did.
    pub(super) fn new(kind: Kind, limits: Limits, options: timing::Options, join_by_content: bool) -> Self {
        match kind {
            Kind::Content => {
                let mut pipeline = Box::new(Pipeline::new(limits, options));
                if join_by_content {
                    pipeline.join_by_content();
                }
                Self::Pipeline(pipeline)
            }
            Kind::Redacted => Self::Replay(Box::new(Replay::new(limits, &options))),
        }
    }

    /// Takes in an entry; one of the other kind of recording does nothing.
    pub(super) fn take(&mut self, entry: &Entry<'_>) {
        match (self, entry) {
            (Self::Pipeline(pipeline), Entry::Record(record)) => pipeline.handle_event(record),
            (Self::Pipeline(pipeline), Entry::Said { tid, said }) => pipeline.handle_said(*tid, said.clone()),
            (Self::Pipeline(pipeline), Entry::Exit { pid, at }) => pipeline.process_exit(*pid, *at),
            (Self::Pipeline(pipeline), Entry::Thread(event)) => pipeline.handle_thread(event),
            (Self::Pipeline(pipeline), Entry::Timeout(now)) => pipeline.handle_timeout(*now),
            (Self::Replay(replay), Entry::Tapped(conn, tapped)) => replay.handle(*conn, tapped),
            _ => {}
        }
    }

    /// The recording is over.
    pub(super) fn end(&mut self) {
        if let Self::Pipeline(pipeline) = self {
            pipeline.stop();
        }
    }

    /// What ended.
    pub(super) fn next(&mut self) -> Option<Output> {
        loop {
            let output = match self {
                Self::None => return None,
                Self::Pipeline(pipeline) => pipeline.poll_output(),
                Self::Replay(replay) => replay.poll_output(),
            };
            match output {
                Some(Output::NotLlm { .. }) => {}
                output => return output,
            }
        }
    }

    fn stats(&self) -> Stats {
        match self {
            Self::None => Stats::default(),
            Self::Pipeline(pipeline) => pipeline.stats(),
            Self::Replay(replay) => replay.stats(),
        }
    }

    fn live(&self, services: &Services, now: MonoNs) -> Vec<LiveStream> {
        let view = |stream: timing::ActiveStream<'_>| live(&stream, services.of(stream.pid), now);
        match self {
            Self::None => Vec::new(),
            Self::Pipeline(pipeline) => pipeline.active().map(view).collect(),
            Self::Replay(replay) => replay.active().map(view).collect(),
        }
    }
}

/// When an entry was made.
fn time(entry: &Entry<'_>) -> Option<MonoNs> {
    match entry {
        Entry::Record(record) => Some(record.at.ret),
        Entry::Exit { at, .. } | Entry::Thread(ThreadEvent { at, .. }) => Some(*at),
        Entry::Timeout(now) => Some(*now),
        Entry::Tapped(_, Tapped::Http(event)) => Some(event.at.ret),
        _ => None,
    }
}

/// Whose it is.
fn pid(output: &Output) -> Option<u32> {
    match output {
        Output::Exchange(exchange) => Some(exchange.pid),
        Output::Inbound(inbound) => Some(inbound.pid),
        Output::Tool(call) => Some(call.pid),
        Output::NotLlm { .. } => None,
    }
}

/// The processes of a recording.
#[derive(Debug, Default)]
struct Services {
    known: HashMap<u32, Arc<Service>>,
    /// What ended of processes that were not named yet: the name comes right behind the entry that ended it.
    nameless: Vec<Output>,
}

impl Services {
    fn of(&self, pid: u32) -> Arc<Service> {
        let unknown = || Arc::new(Service { name: "unknown_service".to_owned(), pid, ..Service::default() });
        self.known.get(&pid).map_or_else(unknown, Arc::clone)
    }
}

struct Replaying {
    core: Core,
    options: timing::Options,
    services: Services,
    exports: Exports,
    /// Only names what the exporters want named: what hooks said of their own spans is in no recording.
    hooks: Hooks,
    pace: Pace,
    next_housekeeping: Instant,
    lost: u64,
}

impl Replaying {
    /// Takes an entry in its time; false when the user wants it to end.
    fn take(&mut self, kind: Kind, entry: &Entry<'_>) -> bool {
        match entry {
            Entry::Info(json) => {
                let (limits, join_by_content) = match serde_json::from_slice::<Info>(json) {
                    Ok(info) => (info.limits.limits(), info.join_by_content),
                    Err(error) => {
                        tracing::warn!(%error, "What the recording says about itself cannot be read.");
                        (Limits::default(), false)
                    }
                };
                self.core = Core::new(kind, limits, self.options.clone(), join_by_content);
            }
            Entry::Service(json) => match serde_json::from_slice::<RecordedService>(json) {
                Ok(recorded) => {
                    let service = Service::from(recorded);
                    self.services.known.insert(service.pid, Arc::new(service));
                }
                Err(error) => tracing::warn!(%error, "A process of the recording cannot be read."),
            },
            Entry::Clock(offset) => self.exports.clock = WallClock::fixed(Offset(*offset)),
            Entry::Lost(entries) => self.lost = self.lost.saturating_add(*entries),
            entry => {
                self.deliver(true);
                if let Some(at) = time(entry)
                    && self.wait(at)
                {
                    return false;
                }
                self.core.take(entry);
                self.collect();
                return !self.pace.is_stopped();
            }
        }
        self.deliver(false);
        true
    }

    /// Takes what ended out of the core.
    fn collect(&mut self) {
        while let Some(output) = self.core.next() {
            if self.services.nameless.len() < NAMELESS {
                self.services.nameless.push(output);
            }
        }
    }

    /// Exports what ended; `all`: also of processes that have no name.
    fn deliver(&mut self, all: bool) {
        let Self { services, exports, hooks, pace, .. } = self;
        let lines = exports.health.channel(Exporter::Jsonl, Signal::Lines).depth;
        for output in std::mem::take(&mut services.nameless) {
            if !all && pid(&output).is_some_and(|pid| !services.known.contains_key(&pid)) {
                services.nameless.push(output);
                continue;
            }
            run::take_output(output, exports, hooks, &mut |pid| services.of(pid));
            while let Some(done) = hooks.spans.poll() {
                run::export(done, exports, &mut |pid| services.of(pid));
            }
            while lines.get() > LINES_AHEAD && !pace.is_stopped() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Shows what is open.
    fn show(&mut self, now: MonoNs) {
        let Self { core, services, exports, .. } = self;
        let streams = core.live(services, now);
        let unix_ns = exports.clock.offset().unix_ns(now);
        exports.history.second(unix_ns / 1_000_000_000, core.stats().chunks, streams.len() as u64);
        let mut pids: Vec<u32> = services.known.keys().copied().collect();
        pids.sort_unstable();
        exports.live.set(Snapshot {
            at: now,
            unix_ms: unix_ns / 1_000_000,
            streams,
            processes_total: pids.len(),
            silent: Arc::default(),
            processes: pids.into_iter().take(PROCESSES).map(|pid| services.of(pid)).collect(),
        });
    }

    /// Waits until `at` is due; true when the user wants it to end.
    fn wait(&mut self, at: MonoNs) -> bool {
        loop {
            let left = self.pace.left(at);
            if Instant::now() >= self.next_housekeeping {
                self.next_housekeeping = Instant::now() + HOUSEKEEPING;
                let now = self.pace.now(at, left);
                self.exports.health.core(&self.core.stats());
                self.exports.health.tick();
                self.show(now);
            }
            if left.is_zero() {
                return self.pace.is_stopped();
            }
            if self.pace.sleep(left.min(LONGEST_SLEEP)) {
                return true;
            }
        }
    }
}

/// When entries are due.
struct Pace {
    speed: Speed,
    /// When the replay began, and the time of the recording then.
    began: Option<(Instant, MonoNs)>,
    poll: Poll,
    stop: Arc<AtomicBool>,
}

impl Pace {
    /// How long until `at` is due.
    fn left(&mut self, at: MonoNs) -> Duration {
        let Speed::Times(times) = self.speed else { return Duration::ZERO };
        let (began, first) = *self.began.get_or_insert_with(|| (Instant::now(), at));
        let due = Duration::try_from_secs_f64(at.seconds_since(first) / times).unwrap_or(Duration::MAX);
        due.saturating_sub(began.elapsed())
    }

    /// The time of the recording, so long before `at`.
    fn now(&self, at: MonoNs, left: Duration) -> MonoNs {
        let Speed::Times(times) = self.speed else { return at };
        MonoNs(at.0.saturating_sub((left.as_secs_f64() * times * 1e9) as u64))
    }

    /// Sleeps; true when the user wants it to end.
    fn sleep(&mut self, time: Duration) -> bool {
        let mut events = Events::with_capacity(1);
        if let Err(error) = self.poll.poll(&mut events, Some(time))
            && error.kind() != io::ErrorKind::Interrupted
        {
            std::thread::sleep(time);
        }
        self.is_stopped()
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
