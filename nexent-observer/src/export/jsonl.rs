//! One JSON object per line per exchange.
//!
//! The keys and their order are a promise (docs/metrics.md). Times are `CLOCK_MONOTONIC` nanoseconds; what was not
//! seen is null, never zero. A writer thread does the writing, so a slow disk or a reader that does not read costs the
//! event loop nothing but a full queue, which is counted.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread,
    time::Duration,
};

use nexent_observer_core::{
    event::{Found, MonoNs},
    timing::{Cause, Exchange, Timeline},
};
use serde::{Serialize, Serializer, ser::SerializeSeq};

use super::{
    Observed,
    ids::SpanIds,
    queue::{ByteBudget, Held},
    view,
};
use crate::{
    privileges,
    telemetry::{Channel, DropCause, Exporter, Health, Signal},
};

/// Lines that may wait.
const QUEUE_LINES: usize = 4096;
/// Bytes of lines that may wait.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// Below so many bytes a write waits this long for more.
const FEW_BYTES: usize = 64 * 1024;
const GATHERING: Duration = Duration::from_millis(50);
/// A write is made at the latest at so many bytes.
const WRITE_BYTES: usize = 256 * 1024;

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `-`: standard output.
    Stdout,
    /// Appended to a file, which is made when it is not there.
    File(PathBuf),
}

impl Target {
    /// As given on the command line.
    #[must_use]
    pub fn from_arg(arg: &Path) -> Self {
        if arg == Path::new("-") { Self::Stdout } else { Self::File(arg.to_owned()) }
    }

    /// A file that is made here is its owner's alone when it is to be `private`; one that is there keeps its rights.
    fn open(&self, private: bool) -> io::Result<Box<dyn Write + Send>> {
        let Self::File(path) = self else { return Ok(Box::new(io::stdout())) };
        let mode = if private { 0o600 } else { 0o666 };
        let file = OpenOptions::new().create(true).append(true).mode(mode).open(path)?;
        let meta = file.metadata()?;
        if private && meta.is_file() && meta.mode() & 0o077 != 0 {
            let (path, mode) = (path.display(), meta.mode() & 0o777);
            tracing::warn!("Generated text goes to {path}, which has mode {mode:o}: other users can read or write it.");
        }
        Ok(Box::new(file))
    }
}

/// A line and its share of the queue.
struct Line {
    bytes: Vec<u8>,
    _held: Held,
}

/// Writes lines on a thread of its own.
#[derive(Debug)]
pub struct Jsonl {
    lines: SyncSender<Line>,
    budget: ByteBudget,
    channel: Channel,
    done: Receiver<()>,
}

impl Jsonl {
    /// Opens the target; `private` when the lines will hold generated text. The error names the file.
    pub fn open(target: &Target, private: bool, health: &Health) -> io::Result<Self> {
        let out = target.open(private).map_err(|error| match target {
            Target::Stdout => error,
            Target::File(path) => {
                let text =
                    format!("cannot append to {}: {error}; give --jsonl a file that can be written", path.display());
                io::Error::new(error.kind(), text)
            }
        })?;
        Self::to_writer(out, health)
    }

    fn to_writer(out: Box<dyn Write + Send>, health: &Health) -> io::Result<Self> {
        let channel = health.channel(Exporter::Jsonl, Signal::Lines);
        let (lines, queue) = sync_channel(QUEUE_LINES);
        let (done_tx, done) = sync_channel(1);
        let counters = channel.clone();
        thread::Builder::new().name("jsonl".into()).spawn(move || {
            privileges::shed();
            Writer::new(out, counters).run(&queue);
            drop(done_tx);
        })?;
        Ok(Self { lines, budget: ByteBudget::new(QUEUE_BYTES), channel, done })
    }

    /// Queues one line; never blocks.
    pub fn write(&self, observed: &Observed, ids: &SpanIds) {
        let sent = line(observed, ids).and_then(|bytes| {
            let held = self.budget.take(bytes.len())?;
            self.channel.depth.inc();
            match self.lines.try_send(Line { bytes, _held: held }) {
                Ok(()) => Some(()),
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    self.channel.depth.dec();
                    None
                }
            }
        });
        if sent.is_none() {
            self.channel.dropped(DropCause::QueueFull, 1);
        }
    }

    /// Writes what is queued, for at most `deadline`: a reader that does not read must not hold the exit up.
    pub async fn shutdown(self, deadline: Duration) {
        let Self { lines, budget: _, channel, done } = self;
        drop(lines);
        let waited = tokio::task::spawn_blocking(move || done.recv_timeout(deadline)).await;
        if let Ok(Err(RecvTimeoutError::Timeout)) = waited {
            channel.dropped(DropCause::Shutdown, u64::try_from(channel.depth.get()).unwrap_or(0));
        }
    }
}

struct Writer<W: Write> {
    out: W,
    /// Whole lines, not written yet.
    buffer: Vec<u8>,
    channel: Channel,
    failing: bool,
    /// The last write ended inside a line: the next one begins with a newline, so that only that line is broken.
    torn: bool,
}

impl<W: Write> Writer<W> {
    fn new(out: W, channel: Channel) -> Self {
        Self { out, buffer: Vec::new(), channel, failing: false, torn: false }
    }

    /// Writes until all senders are gone; a little after a line came, together with those that come until then. Waking this thread costs the
    /// event loop as much as most of a line does, and so does each write.
    fn run(mut self, queue: &Receiver<Line>) {
        while let Ok(line) = queue.recv() {
            self.add(&line);
            self.add_waiting(queue);
            if self.buffer.len() < FEW_BYTES {
                thread::sleep(GATHERING);
                self.add_waiting(queue);
            }
            self.write_out();
        }
    }

    fn add_waiting(&mut self, queue: &Receiver<Line>) {
        while let Ok(line) = queue.try_recv() {
            self.add(&line);
        }
    }

    fn add(&mut self, line: &Line) {
        self.channel.depth.dec();
        self.buffer.extend_from_slice(&line.bytes);
        if self.buffer.len() >= WRITE_BYTES {
            self.write_out();
        }
    }

    /// Writes the buffer out. Lines that cannot be written are dropped, not kept: a full disk stays full for long.
    fn write_out(&mut self) {
        let mut rest = self.buffer.as_slice();
        let mut error = if self.torn { self.out.write_all(b"\n").err() } else { None };
        self.torn &= error.is_some();
        while error.is_none() && !rest.is_empty() {
            match self.out.write(rest) {
                Ok(0) => error = Some(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    let (written, left) = rest.split_at(n.min(rest.len()));
                    self.torn = !written.ends_with(b"\n");
                    self.channel.exported.inc_by(count_lines(written));
                    rest = left;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => error = Some(e),
            }
        }
        let error = error.or_else(|| self.out.flush().err());
        self.channel.dropped(DropCause::WriteError, count_lines(rest));
        self.buffer.clear();
        self.say(error.as_ref());
    }

    /// Counts a failure; logs a change from working to failing, and back, once.
    fn say(&mut self, error: Option<&io::Error>) {
        match error {
            None if std::mem::take(&mut self.failing) => tracing::info!("JSON lines are written again"),
            None => {}
            Some(error) => {
                self.channel.failures.inc();
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "JSON lines cannot be written and are dropped; the observer goes on");
                }
            }
        }
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

/// The line of one exchange, newline included. `None` only if serde refuses, which these types give no cause for.
fn line(observed: &Observed, ids: &SpanIds) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(1024 + 24 * observed.exchange.chunks.len());
    serde_json::to_writer(&mut bytes, &Record::new(observed, ids)).ok()?;
    bytes.push(b'\n');
    Some(bytes)
}

/// The object of one line; the order of the fields is the order of the keys.
#[derive(Debug, Serialize)]
struct Record<'a> {
    id: String,
    pid: u32,
    service: &'a str,
    endpoint: Option<&'a str>,
    provider: Option<&'a str>,
    model: Option<&'a str>,
    response_model: Option<&'a str>,
    operation: Option<&'a str>,
    stream: Option<bool>,
    method: Option<&'a str>,
    host: Option<&'a str>,
    path: Option<&'a str>,
    role: &'static str,
    peer: Option<String>,
    http_status: Option<u16>,
    outcome: &'a str,
    error_type: Option<&'a str>,
    finish_reasons: &'a [String],
    request_id: Option<&'a str>,
    retry_count: Option<u32>,
    retry_of: Option<String>,
    connect_ns: Option<u64>,
    tls_ns: Option<u64>,
    request_start_ns: Option<u64>,
    request_written_ns: Option<u64>,
    request_sent_ns: Option<u64>,
    first_byte_ns: Option<u64>,
    first_chunk_ns: Option<u64>,
    first_token_ns: Option<u64>,
    last_token_ns: Option<u64>,
    end_ns: Option<u64>,
    ttft_s: Option<f64>,
    duration_s: Option<f64>,
    decode_tokens_per_s: Option<f64>,
    end_to_end_tokens_per_s: Option<f64>,
    usage: Tokens,
    chunks: Chunks<'a>,
    stalls: Vec<(u64, u64)>,
    stall_causes: Vec<Option<&'static str>>,
    first_token_cause: Option<&'static str>,
    late_reads: Option<u32>,
    read_delay_max_ns: Option<u64>,
    read_delay_ns: Option<u64>,
    retransmits: Option<u32>,
    socket_source: Option<&'static str>,
    bytes_lost: Option<u64>,
    timeline_truncated: bool,
    trace_id: String,
    span_id: String,
    parent_rule: Option<&'a str>,
    parent_span_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_text: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Tokens {
    input: Option<u64>,
    output: Option<u64>,
    cached_input: Option<u64>,
    reasoning: Option<u64>,
    source: Option<&'static str>,
    counted: Option<u64>,
}

/// `[[ns since request_start, tokens or null, coalesced], ...]`; ns is null where the request start was not seen.
#[derive(Debug)]
struct Chunks<'a> {
    start: Option<MonoNs>,
    timeline: &'a Timeline,
}

impl Serialize for Chunks<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.timeline.len()))?;
        for chunk in self.timeline {
            let ns = self.start.map(|start| chunk.at.since(start));
            seq.serialize_element(&(ns, chunk.tokens, chunk.coalesced))?;
        }
        seq.end()
    }
}

impl<'a> Record<'a> {
    fn new(observed: &'a Observed, ids: &SpanIds) -> Self {
        let Observed { exchange, service, endpoint, served: _ } = observed;
        // Taken apart completely: a new field must be given a place here or be left out on purpose.
        let Exchange {
            id,
            pid,
            role,
            peer: _,
            tid: _,
            call,
            request,
            response,
            response_model,
            response_id: _,
            outcome,
            error_type: _,
            finish_reasons,
            socket,
            connect_ns,
            tls_ns,
            request_start,
            request_written,
            request_sent,
            first_byte,
            streamed,
            first_chunk,
            first_token,
            last_token,
            end,
            retry_of,
            retry_count,
            chunks,
            stalls,
            stall_causes,
            first_token_cause,
            read_delay,
            retransmits,
            stalled_before_first_token: _,
            usage,
            usage_source,
            output_tokens,
            counted_tokens,
            token_count_ratio: _,
            decode_rate,
            end_to_end_rate,
            bytes_lost,
            output_text,
            said: _,
            cause,
        } = exchange;
        let ns = |at: &Option<MonoNs>| at.map(|MonoNs(ns)| ns);
        // A joined exchange has no request, and with it none of these: unknown is null.
        let seen = |text: &'a str| (!text.is_empty()).then_some(text);
        let source = output_tokens.map(|_| usage_source.as_str());
        Self {
            id: view::id(*id),
            pid: *pid,
            service: &service.name,
            endpoint: endpoint.as_deref(),
            provider: view::provider(exchange),
            model: request.model.as_deref(),
            response_model: response_model.as_deref(),
            operation: seen(call.operation),
            stream: request.stream.or_else(|| streamed.then_some(true)),
            method: seen(&call.method),
            host: call.host.as_deref(),
            path: seen(&call.path),
            role: role.as_str(),
            peer: view::peer(exchange),
            http_status: response.status,
            outcome: outcome.as_str(),
            error_type: view::error_type(exchange),
            finish_reasons,
            request_id: response.request_id.as_deref(),
            retry_count: *retry_count,
            retry_of: retry_of.map(view::id),
            connect_ns: *connect_ns,
            tls_ns: *tls_ns,
            request_start_ns: ns(request_start),
            request_written_ns: ns(request_written),
            request_sent_ns: ns(request_sent),
            first_byte_ns: ns(first_byte),
            first_chunk_ns: ns(first_chunk),
            first_token_ns: ns(first_token),
            last_token_ns: ns(last_token),
            end_ns: ns(end),
            ttft_s: view::ttft(exchange),
            duration_s: view::duration(exchange),
            decode_tokens_per_s: *decode_rate,
            end_to_end_tokens_per_s: *end_to_end_rate,
            usage: Tokens {
                input: usage.input,
                output: *output_tokens,
                cached_input: usage.cached_input,
                reasoning: usage.reasoning,
                source,
                counted: *counted_tokens,
            },
            chunks: Chunks { start: *request_start, timeline: chunks },
            stalls: stalls.iter().map(|(from, to)| (from.0, to.0)).collect(),
            stall_causes: stall_causes.iter().map(|cause| cause.map(Cause::as_str)).collect(),
            first_token_cause: first_token_cause.map(Cause::as_str),
            late_reads: read_delay.map(|delay| delay.reads),
            read_delay_max_ns: read_delay.and_then(|delay| (delay.reads > 0).then_some(delay.max_ns)),
            read_delay_ns: read_delay.map(|delay| delay.total_ns),
            retransmits: *retransmits,
            socket_source: socket.map(Found::as_str),
            bytes_lost: *bytes_lost,
            timeline_truncated: chunks.truncated(),
            trace_id: ids.trace.to_string(),
            span_id: ids.span.to_string(),
            parent_rule: cause.as_ref().map(|cause| cause.rule.as_str()),
            parent_span_id: ids.parent.map(|parent| parent.to_string()),
            output_text: output_text.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::{
        export::{
            fixture,
            ids::{SpanId, TraceId},
        },
        telemetry::Register,
    };

    const IDS: SpanIds = SpanIds { trace: TraceId([0xab; 16]), span: SpanId([0xcd; 8]), parent: None };

    fn text(exchange: Exchange) -> String {
        String::from_utf8(line(&fixture::observed(exchange), &IDS).unwrap()).unwrap()
    }

    /// Takes `room` bytes, then fails until `room` is raised.
    #[derive(Debug, Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (written, room) = &mut *self.0.lock().unwrap();
            let n = bytes.len().min(*room);
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *room -= n;
            written.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn golden_lines_of_a_completed_a_failed_and_a_joined_exchange() {
        let mut with_text = fixture::completed();
        with_text.output_text = Some("Hi \"there\"\n".into());
        let lines: String = [fixture::completed(), fixture::failed(), fixture::joined(), with_text].map(text).concat();
        fixture::golden("lines.jsonl", &lines);
    }

    #[test]
    fn what_a_head_did_not_say_is_null_and_never_empty() {
        // An HTTP/2 connection joined mid-life: indices into a table that was not seen.
        let mut exchange = fixture::completed();
        exchange.call.path.clear();
        exchange.call.host = None;
        let object: serde_json::Value = serde_json::from_str(&text(exchange)).unwrap();
        assert_eq!((&object["path"], &object["host"]), (&serde_json::Value::Null, &serde_json::Value::Null));
        assert_eq!(object["method"], "POST");
    }

    #[test]
    fn a_file_made_for_generated_text_is_its_owners_alone_and_one_that_is_there_keeps_its_rights() {
        let dir = std::env::temp_dir().join(format!("nexent-observer-jsonl-mode-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mode = |name: &str, private| {
            let path = dir.join(name);
            drop(Target::File(path.clone()).open(private).unwrap());
            std::fs::metadata(path).unwrap().mode() & 0o777
        };
        assert_eq!(mode("private", true), 0o600);
        let shared = dir.join("shared");
        std::fs::write(&shared, "").unwrap();
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(mode("shared", true), 0o644);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn keys_and_their_order_are_those_of_the_design() {
        let keys = "id, pid, service, endpoint, provider, model, response_model, operation, stream, method, host, path, role, peer, \
            http_status, outcome, error_type, finish_reasons, request_id, retry_count, retry_of, connect_ns, tls_ns, \
            request_start_ns, request_written_ns, request_sent_ns, first_byte_ns, first_chunk_ns, first_token_ns, last_token_ns, end_ns, \
            ttft_s, duration_s, decode_tokens_per_s, end_to_end_tokens_per_s, usage, chunks, stalls, stall_causes, \
            first_token_cause, late_reads, read_delay_max_ns, read_delay_ns, retransmits, socket_source, bytes_lost, \
            timeline_truncated, trace_id, span_id, parent_rule, parent_span_id";
        let line = text(fixture::completed());
        let mut from = 0;
        for key in keys.split(", ") {
            let found = line[from..].find(&format!("\"{key}\":"));
            from += found.unwrap_or_else(|| panic!("{key} is missing or out of order in {line}"));
        }
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&line).unwrap();
        assert_eq!(object.len(), keys.split(", ").count());
        for key in object.keys().map(String::as_str).chain(["output_text"]) {
            assert!(crate::telemetry::docs::text().contains(&format!("`{key}`")), "docs/metrics.md lacks {key}");
        }
    }

    #[test]
    fn a_full_disk_is_counted_breaks_one_line_at_most_and_heals() {
        let health = Health::new(&Register::default()).unwrap();
        let channel = health.channel(Exporter::Jsonl, Signal::Lines);
        let disk = Disk::default();
        let mut writer = Writer::new(disk.clone(), channel.clone());
        let budget = ByteBudget::new(1000);
        let mut put = |text: &str| {
            channel.depth.inc();
            writer.add(&Line { bytes: text.into(), _held: budget.take(text.len()).unwrap() });
            writer.write_out();
        };
        disk.0.lock().unwrap().1 = 6;
        put("one\n");
        put("two\n"); // two bytes fit
        put("three\n"); // none
        disk.0.lock().unwrap().1 = 100;
        put("four\n");
        assert_eq!(disk.0.lock().unwrap().0, b"one\ntw\nfour\n");
        assert_eq!(channel.exported.get(), 2);
        assert_eq!(channel.dropped_so_far(DropCause::WriteError), 2);
        assert_eq!(channel.failures.get(), 2);
        assert_eq!(channel.depth.get(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_fills_the_queue_and_costs_the_loop_nothing() {
        use std::os::unix::net::UnixStream;
        let health = Health::new(&Register::default()).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let jsonl = Jsonl::to_writer(Box::new(ours), &health).unwrap();
        let observed = fixture::observed(fixture::completed());
        let began = std::time::Instant::now();
        // A third more than the queue holds.
        for _ in 0..6_000 {
            jsonl.write(&observed, &IDS);
        }
        assert!(began.elapsed() < Duration::from_secs(5));
        let channel = jsonl.channel.clone();
        assert!(channel.dropped_so_far(DropCause::QueueFull) > 1_000);
        assert!(channel.depth.get() <= QUEUE_LINES as i64 + 1);
        let began = std::time::Instant::now();
        jsonl.shutdown(Duration::from_millis(200)).await;
        assert!(began.elapsed() < Duration::from_secs(2), "the exit is not held up");
        assert!(channel.dropped_so_far(DropCause::Shutdown) > 0);
        drop(theirs);
    }

    #[tokio::test]
    async fn lines_are_appended_to_the_file_and_all_are_there_after_shutdown() {
        let dir = std::env::temp_dir().join(format!("nexent-observer-jsonl-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("out.jsonl");
        std::fs::write(&path, "before\n").unwrap();
        let health = Health::new(&Register::default()).unwrap();
        let jsonl = Jsonl::open(&Target::from_arg(&path), false, &health).unwrap();
        for _ in 0..3 {
            jsonl.write(&fixture::observed(fixture::failed()), &IDS);
        }
        jsonl.shutdown(Duration::from_secs(5)).await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("before\n{"));
        assert_eq!(text.lines().count(), 4);
        std::fs::remove_dir_all(&dir).unwrap();
        let error = Jsonl::open(&Target::from_arg(&path), false, &health).unwrap_err().to_string();
        assert!(error.contains("out.jsonl") && error.contains("--jsonl"), "{error}");
    }
}
