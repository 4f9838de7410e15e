//! The one table of metric names. Registration, docs/metrics.md and the tests are made from it: a metric that is not
//! here does not exist.

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution over fixed buckets.
    Histogram,
}

impl Kind {
    /// The word of the text format.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Def {
    /// Name in Prometheus, complete: no exporter adds a suffix.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// Definition, as served in the HELP line.
    pub help: &'static str,
    /// Upper bounds of a histogram, without the infinite one; empty for other types.
    pub buckets: &'static [f64],
}

/// Seconds of requests and first tokens: 0.01 s to 300 s.
pub const SECONDS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0];
/// Seconds between chunks: from 1 ms.
pub const CHUNK_SECONDS: &[f64] =
    &[0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
/// Tokens per second: 1 to 2000.
pub const TOKENS_PER_SECOND: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0, 1000.0, 2000.0];

/// A count over another one of the same: from half to double, close around 1.
const RATIO: &[f64] = &[0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0];

/// Labels of the call.
const CALL: &[&str] = &["service", "provider", "model", "endpoint"];

macro_rules! metrics {
    ($($variant:ident = $name:literal, $kind:ident, $labels:expr, $buckets:expr, $help:expr;)*) => {
        /// Every metric of the process, in the order of docs/metrics.md.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Metric {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Metric {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its row of the table.
            #[must_use]
            pub fn def(self) -> Def {
                match self {
                    $(Self::$variant => Def {
                        name: $name,
                        kind: Kind::$kind,
                        labels: $labels,
                        help: $help,
                        buckets: $buckets,
                    },)*
                }
            }
        }
    };
}

metrics! {
    TokenGenerationRate = "llm_token_generation_rate", Histogram, CALL, TOKENS_PER_SECOND,
        "Decode rate of one streamed answer in tokens/s: output tokens seen as deltas, without those that share the time of the first token, over the time from the first to the last token. Not recorded with fewer than two distinct times, under 10 ms, or when bytes were lost.";
    TimeToFirstToken = "llm_time_to_first_token_seconds", Histogram, CALL, SECONDS,
        "Seconds from the write of the first byte of the request head to the first event with generated payload (text, reasoning, refusal, tool call, audio). Connect and TLS handshake come before it. Role-only, empty and usage-only events do not count.";
    RequestDuration = "llm_request_duration_seconds", Histogram, &["service", "provider", "model", "endpoint", "operation", "outcome"], SECONDS,
        "Seconds from the write of the first byte of the request head to the end of the answer. Incomplete exchanges (bytes lost, or joined mid-stream) are left out.";
    TotalTokens = "llm_total_tokens", Counter, &["service", "provider", "model", "endpoint", "type", "source"], &[],
        "Tokens. Type input includes cached_input, type output includes reasoning. Source says who counted: usage (the provider), tokenizer (a tokenizer on the text), chunks (number of output chunks, a lower bound). Counts that are not known are not added.";
    ErrorCount = "llm_error_count", Counter, &["service", "provider", "model", "endpoint", "operation", "error_type"], &[],
        "Calls that ended in an error of the provider or were cut off by the peer. error_type is the provider's own code or type, else the HTTP status, else _OTHER.";
    InterChunkLatency = "llm_inter_chunk_latency_seconds", Histogram, CALL, CHUNK_SECONDS,
        "Seconds between neighbouring distinct read times that carry output of one stream: one sample per read, not per event. Chunks decoded from one read share its time and are never interpolated.";
    EndToEndTokenRate = "llm_end_to_end_token_rate", Histogram, CALL, TOKENS_PER_SECOND,
        "Output tokens over the time from the request start to the last output chunk, in tokens/s: includes the wait for the first token.";
    Requests = "llm_requests", Counter, CALL, &[],
        "LLM calls that ended, whatever their outcome, incomplete ones too.";
    Retries = "llm_retries", Counter, CALL, &[],
        "Calls that repeat a failed one: their client says so (x-stainless-retry-count), or the same process sent the same request again within 120 s of the end of one that failed with 408, 409, 429, 5xx or an error in the stream, or without an end. Each is also in llm_requests; llm_requests minus llm_retries is the number of logical operations.";
    TokenCountRatio = "llm_token_count_ratio", Histogram, CALL, RATIO,
        "Output tokens that a tokenizer counted in the text over those that the provider reports for it, one sample per call where both are known and nothing was lost. Reasoning that was not shown is left out.";
    StreamStalls = "llm_stream_stalls", Counter, CALL, &[],
        "Gaps after the first token that were longer than both 2 s and 10 times the stream's median gap. Not counted for incomplete exchanges.";
    StreamStallCauses = "llm_stream_stall_causes", Counter, &["service", "provider", "model", "endpoint", "cause"], &[],
        "The stalls of llm_stream_stalls by cause: late_arrival (for most of the time nothing was in the socket: the server or the network), late_read (for most of the time data lay in the socket unread: the process's own loop), unknown (the socket was not watched).";
    Retransmits = "llm_retransmits", Counter, CALL, &[],
        "TCP segments that this host sent again while a call was open, or while the connection for it was made. What the other side sent again cannot be seen here. Calls whose socket is not known add nothing.";
    SlowRequests = "llm_slow_requests", Counter, &["service", "provider", "model", "endpoint", "reason"], &[],
        "Slow calls by reason: duration (longer than LLM_SLOW_REQUEST_THRESHOLD_SECONDS) or token_rate (decode rate under LLM_SLOW_TOKEN_RATE_THRESHOLD). A call can count under both. Incomplete exchanges are left out.";
    ActiveStreams = "llm_active_streams", Gauge, &["service", "provider", "model"], &[],
        "LLM calls that are open now.";
    LiveTokensPerSecond = "llm_live_tokens_per_second", Gauge, &["service", "provider", "model"], &[],
        "Sum of the present token rates of the open streams, in tokens/s. Streams whose rate is not known yet add nothing.";

    Records = "nexent_observer_records_total", Counter, &[], &[],
        "Records of the kernel half that were decoded.";
    Bytes = "nexent_observer_bytes_total", Counter, &[], &[],
        "Payload bytes that were decoded.";
    LostRecords = "nexent_observer_lost_records_total", Counter, &["ring"], &[],
        "Records that the kernel half could not hand over because a ring was full or a table had no room. Ring read holds what the process read, ring write what it wrote.";
    LostBytes = "nexent_observer_lost_bytes_total", Counter, &[], &[],
        "Bytes that were lost before they were decoded, where their number is known.";
    Gaps = "nexent_observer_gaps_total", Counter, &[], &[],
        "Losses in a connection's byte stream, of known size or not.";
    SkippedBytes = "nexent_observer_skipped_bytes_total", Counter, &[], &[],
        "Bytes that the kernel half left uncopied because they belong to HTTP exchanges that are no LLM calls. Not a loss.";
    PlainOtherBytes = "nexent_observer_plain_other_bytes_total", Counter, &[], &[],
        "Bytes on plain sockets of observed processes that are no HTTP: their calls were looked at, nothing of them was copied. Not a loss.";
    PlainUnseen = "nexent_observer_plain_unseen_total", Counter, &[], &[],
        "Operations on sockets with plain HTTP whose bytes cannot be seen (splice, sendfile, io_uring). Each is a gap in its connection.";
    MalformedRecords = "nexent_observer_malformed_records_total", Counter, &[], &[],
        "Entries of the rings that could not be decoded: the two halves of the observer do not fit. A loss.";
    AeadUnjoined = "nexent_observer_aead_unjoined_total", Counter, &[], &[],
        "TLS records that rustls opened and that belong to no socket that is known: their bytes are not seen.";
    AeadRejoined = "nexent_observer_aead_rejoined_total", Counter, &[], &[],
        "Connections of rustls whose socket turned out to carry another one: what came before stands apart from what follows.";
    Announcements = "nexent_observer_announcements_total", Counter, &["understood"], &[],
        "Announcements of in-process hooks, by whether they were understood: true, or false (too long, unreadable, no JSON, or of another version).";
    Drops = "nexent_observer_drops_total", Counter, &["reason"], &[],
        "Defects and drops in the pipeline by reason.";
    HttpExchanges = "nexent_observer_http_exchanges_total", Counter, &[], &[],
        "HTTP exchanges that began.";
    LlmExchanges = "nexent_observer_llm_exchanges_total", Counter, &[], &[],
        "LLM exchanges that ended.";
    IncompleteExchanges = "nexent_observer_incomplete_exchanges_total", Counter, &[], &[],
        "LLM exchanges that ended with bytes lost or were joined mid-stream: counted in llm_requests, kept out of the latency histograms.";
    Chunks = "nexent_observer_chunks_total", Counter, &[], &[],
        "Output chunks that were decoded.";
    Connections = "nexent_observer_connections", Gauge, &[], &[],
        "Connections that are followed now.";
    OpenExchanges = "nexent_observer_open_exchanges", Gauge, &[], &[],
        "LLM exchanges that are open now.";
    AttachedProbes = "nexent_observer_attached_probes", Gauge, &[], &[],
        "Probes that are attached now.";
    AttachedProcesses = "nexent_observer_attached_processes", Gauge, &[], &[],
        "Processes that are observed now.";
    FoundProcesses = "nexent_observer_found_processes", Gauge, &["state"], &[],
        "Processes that exe and all have found, by state: trial (observed, no call of an LLM so far), let_go (busy without one; looked at again later), candidate (nothing to observe in it yet), left_alone (opted out, not opted in, not wanted by a filter, or refused by the kernel).";
    ProbeLosses = "nexent_observer_probe_losses_total", Counter, &["outcome"], &[],
        "Libraries of processes from whose code probes were gone although they were attached, by what came of it: restored (they are in it again), reattached (they were attached anew, to another file below an overlay file system), failed (they cannot be put back), rewritten (of a file, not of a process: it was written over in place or opened for that, so its probes were taken away; what it holds then is hooked).";
    SilentProcesses = "nexent_observer_silent_processes", Gauge, &["cause"], &[],
        "Processes that should be seen now and are not, by cause: probes_gone (probes are gone from their code and cannot be put back), bytes_unseen (they move bytes over TLS that none of their probes sees). docs/troubleshooting.md has the rule.";
    QueueDepth = "nexent_observer_queue_depth", Gauge, &["exporter", "signal"], &[],
        "Items that wait in an export queue.";
    Exported = "nexent_observer_exported_total", Counter, &["exporter", "signal"], &[],
        "Items that an exporter delivered: spans, metric data points, lines, entries of a recording.";
    ExportFailures = "nexent_observer_export_failures_total", Counter, &["exporter", "signal"], &[],
        "Attempts of an exporter that failed; an attempt that is retried counts each time.";
    ExportDropped = "nexent_observer_export_dropped_total", Counter, &["exporter", "signal", "reason"], &[],
        "Items that an exporter gave up: queue_full, timeout (retries ran out of time), rejected (the receiver refused them), shutdown (the flush ran out of time), write_error, no_time (an exchange without any time).";
    SampledOut = "nexent_observer_sampled_out_spans_total", Counter, &[], &[],
        "Spans that were left out by TELEMETRY_SAMPLE_RATE.";
    KeptSpans = "nexent_observer_kept_spans_total", Counter, &["reason"], &[],
        "Spans that are kept whatever TELEMETRY_SAMPLE_RATE says, by reason: error, stall (after the first token or before it), duration and token_rate (as llm_slow_requests). A span can count under several.";
    LabelOverflow = "nexent_observer_label_overflow_total", Counter, &["label"], &[],
        "Label values that were replaced by other because the label (or, as label series, the set of label combinations) had reached its cap.";
    BuildInfo = "nexent_observer_build_info", Gauge, &["version"], &[],
        "1, with the version of the observer.";
    HeldCapabilities = "nexent_observer_held_capabilities", Gauge, &["capability", "in_effect"], &[],
        "1 for each Linux capability that the observer keeps: in_effect always, or attaching (permitted always, in effect only while probes are attached). All others were dropped after the start.";
    ProcessCpuSeconds = "nexent_observer_process_cpu_seconds_total", Counter, &[], &[],
        "CPU time of the observer itself, user and system, in seconds.";
    ProcessResidentMemory = "nexent_observer_process_resident_memory_bytes", Gauge, &[], &[],
        "Resident memory of the observer itself, in bytes.";
}
