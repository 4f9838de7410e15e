//! Writes a recording. The event loop fills blocks; a thread compresses and writes them, so that a slow disk costs the loop nothing but
//! blocks, which are counted and noted in the recording itself.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nexent_observer_core::{
    event::{ConnId, MonoNs, Record, Said, ThreadEvent},
    limits::Limits,
    pipeline::{Tap, Tapped},
    tape::{
        Redactor, Secret, entry,
        frame::{self, BLOCK_BYTES, Block, Kind},
    },
};

use super::info::{Info, RecordedService};
use crate::{
    error::RunError,
    export::{Service, clock::WallClock},
    privileges,
    telemetry::{Channel, DropCause, Exporter, Health, Signal},
};

/// Blocks that may wait to be written.
const QUEUE: usize = 64;
/// The clock is noted again when it moved by more than this against the other one, in ns.
const CLOCK_STEP_NS: u64 = 1_000_000;

/// What is recorded, where and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The file; made anew.
    pub file: PathBuf,
    /// With all content.
    pub with_content: bool,
    /// The recording ends after so long.
    pub time: Option<Duration>,
    /// The recording ends when the file has about so many bytes.
    pub max_bytes: u64,
    /// The observer ends with the recording.
    pub ends_run: bool,
}

/// A handle of the running recording. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    with_content: bool,
    sink: Mutex<Sink>,
    written: Arc<Written>,
    max_bytes: u64,
    until: Option<Instant>,
    began: Instant,
    ends_run: bool,
    progress: bool,
}

/// What the writing thread tells.
#[derive(Debug, Default)]
struct Written {
    bytes: AtomicU64,
    /// Entries lost since the last one that was written.
    lost: AtomicU64,
    /// Entries lost in all.
    lost_in_all: AtomicU64,
}

/// A block and how many entries are in it.
type Packet = (Block, u64);

#[derive(Debug)]
struct Sink {
    block: Block,
    entries: u64,
    queue: Option<SyncSender<Packet>>,
    thread: Option<JoinHandle<()>>,
    channel: Channel,
    written: Arc<Written>,
    scratch: Vec<u8>,
    clock: WallClock,
    offset: i64,
    redactor: Option<Redactor>,
    /// No more is taken: it is full, over, or its time is up.
    closed: bool,
}

impl Recorder {
    /// Opens the file and starts the thread. `join_by_content`: the pipeline was told to.
    ///
    /// # Errors
    /// One sentence on what cannot be opened.
    pub fn start(options: &Options, limits: &Limits, join_by_content: bool, health: &Health) -> Result<Self, RunError> {
        let Options { file: path, with_content, time, max_bytes, ends_run } = options;
        let failed = |error| RunError::caused(format!("cannot record to {}", path.display()), error);
        let kind = if *with_content { Kind::Content } else { Kind::Redacted };
        let mut file = open(path).map_err(failed)?;
        file.write_all(&frame::beginning(kind)).map_err(failed)?;
        if *with_content {
            tracing::warn!(
                "Everything is recorded to {}, prompts, answers and keys included: keep it to yourself.",
                path.display()
            );
        }
        let redactor = if *with_content { None } else { Some(Redactor::new(Secret::new(random().map_err(failed)?))) };
        let channel = health.channel(Exporter::Record, Signal::Entries);
        let written = Arc::<Written>::default();
        let (queue, packets) = sync_channel(QUEUE);
        let writer = Writer { file, good: 0, written: Arc::clone(&written), channel: channel.clone(), failing: false };
        let thread = thread::Builder::new()
            .name("record".into())
            .spawn(move || {
                privileges::shed();
                writer.run(&packets);
            })
            .map_err(failed)?;
        let mut clock = WallClock::default();
        let offset = clock.offset();
        let began = Instant::now();
        let mut sink = Sink {
            block: Block::default(),
            entries: 0,
            queue: Some(queue),
            thread: Some(thread),
            channel,
            written: Arc::clone(&written),
            scratch: Vec::new(),
            clock,
            offset: offset.0,
            redactor,
            closed: false,
        };
        let info = Info {
            observer: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned()),
            architecture: std::env::consts::ARCH.to_owned(),
            began_unix_ns: offset.unix_ns(MonoNs(crate::export::clock::monotonic_ns())),
            limits: limits.into(),
            join_by_content,
        };
        let info = serde_json::to_vec(&info).map_err(|error| failed(error.into()))?;
        sink.put(|out| entry::info(out, &info));
        sink.put(|out| entry::clock(out, offset.0));
        tracing::info!("Recording to {}.", path.display());
        Ok(Self(Arc::new(Shared {
            with_content: *with_content,
            sink: Mutex::new(sink),
            written,
            max_bytes: *max_bytes,
            until: time.map(|time| began + time),
            began,
            ends_run: *ends_run,
            progress: io::stderr().is_terminal(),
        })))
    }

    fn sink(&self) -> MutexGuard<'_, Sink> {
        self.0.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it takes what goes into the pipeline, rather than what a tap is shown.
    #[must_use]
    pub fn with_content(&self) -> bool {
        self.0.with_content
    }

    /// What a pipeline is to be tapped with, for a recording without content.
    #[must_use]
    pub fn tap(&self) -> Option<Box<dyn Tap>> {
        (!self.0.with_content).then(|| Box::new(self.clone()) as Box<dyn Tap>)
    }

    /// A record goes into the pipeline.
    pub fn record(&self, record: &Record<'_>) {
        self.sink().put(|out| entry::record(out, record));
    }

    /// What a hook said goes into the pipeline.
    pub fn said(&self, tid: u32, said: Option<&Arc<Said>>) {
        self.sink().put(|out| entry::said(out, tid, said));
    }

    /// The pipeline is told that a process is gone.
    pub fn exit(&self, pid: u32, at: MonoNs) {
        self.sink().put(|out| entry::exit(out, pid, at));
    }

    /// What happened to a thread goes into the pipeline.
    pub fn thread(&self, event: &ThreadEvent) {
        self.sink().put(|out| entry::thread(out, event));
    }

    /// The pipeline is told the time.
    pub fn timeout(&self, now: MonoNs) {
        self.sink().put(|out| entry::timeout(out, now));
    }

    /// A process became known.
    pub fn service(&self, service: &Service) {
        if let Ok(json) = serde_json::to_vec(&RecordedService::of(service, self.0.with_content)) {
            self.sink().put(|out| entry::service(out, &json));
        }
    }

    /// Hands on what waits, and notes what the clock did. To be called every second or so; true when the observer is to end.
    #[must_use]
    pub fn keep_house(&self) -> bool {
        let mut sink = self.sink();
        let offset = sink.clock.offset().0;
        if offset.abs_diff(sink.offset) > CLOCK_STEP_NS {
            sink.offset = offset;
            sink.put(|out| entry::clock(out, offset));
        }
        sink.send();
        let bytes = self.0.written.bytes.load(Ordering::Relaxed);
        let over = bytes >= self.0.max_bytes || self.is_late();
        if self.0.progress && !sink.closed {
            let (seconds, kb) = (self.0.began.elapsed().as_secs(), bytes / 1000);
            let lost = self.0.written.lost_in_all.load(Ordering::Relaxed);
            drop(write!(io::stderr(), "\rRecording: {seconds} s, {kb} kB, {lost} entries lost "));
        }
        if over && !sink.closed {
            tracing::info!(bytes, "The recording ends: its time is up, or it is as long as it may be.");
            sink.close();
        }
        over && self.0.ends_run
    }

    fn is_late(&self) -> bool {
        self.0.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Writes what waits, and the end, and waits until that is done. What comes later is not recorded.
    pub fn finish(&self) {
        let mut sink = self.sink();
        sink.close();
        let Some(thread) = sink.thread.take() else { return };
        drop(sink);
        if thread.join().is_err() {
            tracing::error!("The recording was not finished: its thread failed.");
        }
        if self.0.progress {
            drop(writeln!(io::stderr()));
        }
        let lost = self.0.written.lost_in_all.load(Ordering::Relaxed);
        let bytes = self.0.written.bytes.load(Ordering::Relaxed);
        tracing::info!(bytes, lost, "The recording is complete.");
    }
}

impl Tap for Recorder {
    fn take(&mut self, conn: ConnId, tapped: Tapped<'_>) {
        self.sink().with_redactor(|redactor, write| redactor.take(conn, &tapped, write));
    }
}

impl Sink {
    fn put(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        write(&mut scratch);
        self.push(&scratch);
        self.scratch = scratch;
    }

    fn with_redactor(&mut self, with: impl FnOnce(&mut Redactor, &mut dyn FnMut(&[u8]))) {
        if self.closed {
            return;
        }
        if let Some(mut redactor) = self.redactor.take() {
            with(&mut redactor, &mut |entry| self.push(entry));
            self.redactor = Some(redactor);
        }
    }

    fn push(&mut self, entry: &[u8]) {
        if self.closed {
            return;
        }
        if self.block.push(entry) {
            self.entries += 1;
        } else {
            self.lost(1);
        }
        if self.block.len() >= BLOCK_BYTES {
            self.send();
        }
    }

    fn send(&mut self) {
        let (block, entries) = (std::mem::take(&mut self.block), std::mem::take(&mut self.entries));
        if block.is_empty() {
            return;
        }
        let Some(queue) = &self.queue else { return };
        match queue.try_send((block, entries)) {
            Ok(()) => self.channel.depth.inc(),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.lost(entries),
        }
    }

    /// Takes no more. The thread writes the end when it has written what waits.
    fn close(&mut self) {
        if self.closed {
            return;
        }
        self.with_redactor(|redactor, write| redactor.finish(write));
        if let Some(Redactor { forced: forced @ 1.., .. }) = self.redactor {
            tracing::warn!(forced, "Names did not end in time and were replaced: numbers of a replay may differ.");
        }
        self.send();
        self.closed = true;
        self.queue = None;
    }

    fn lost(&self, entries: u64) {
        self.written.lose(entries);
        self.channel.dropped(DropCause::QueueFull, entries);
    }
}

impl Written {
    fn lose(&self, entries: u64) {
        self.lost.fetch_add(entries, Ordering::Relaxed);
        self.lost_in_all.fetch_add(entries, Ordering::Relaxed);
    }
}

/// The thread.
struct Writer {
    file: File,
    /// Length of the file up to its last whole block.
    good: u64,
    written: Arc<Written>,
    channel: Channel,
    failing: bool,
}

impl Writer {
    fn run(mut self, packets: &Receiver<Packet>) {
        self.good = self.file.stream_position().unwrap_or(0);
        while let Ok((block, entries)) = packets.recv() {
            self.channel.depth.dec();
            self.note_loss();
            self.write(block.pack().as_deref(), entries);
        }
        self.note_loss();
        self.write(Some(&frame::end()), 0);
    }

    /// What was lost is said where it is missing.
    fn note_loss(&mut self) {
        let lost = self.written.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let (mut block, mut out) = (Block::default(), Vec::new());
            entry::lost(&mut out, lost);
            if block.push(&out) && !self.put(block.pack().as_deref()) {
                self.written.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
    }

    fn write(&mut self, block: Option<&[u8]>, entries: u64) {
        if self.put(block) {
            self.channel.exported.inc_by(entries);
        } else {
            self.written.lose(entries);
            self.channel.dropped(DropCause::WriteError, entries);
        }
    }

    /// Writes a block or nothing of it.
    fn put(&mut self, block: Option<&[u8]>) -> bool {
        let Some(block) = block else { return false };
        match self.file.write_all(block) {
            Ok(()) => {
                self.good += block.len() as u64;
                self.written.bytes.store(self.good, Ordering::Relaxed);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("The recording is written again.");
                }
                true
            }
            Err(error) => {
                self.channel.failures.inc();
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "The recording cannot be written; what is missing is noted in it.");
                }
                // Half a block would end the file for every reader.
                drop(self.file.set_len(self.good).and_then(|()| self.file.seek(io::SeekFrom::Start(self.good))));
                false
            }
        }
    }
}

/// A new file, its owner's alone. One that is there is replaced only if it is a file.
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::PermissionsExt;
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
