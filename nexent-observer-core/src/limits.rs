//! Every cap of the core in one place. A buffer without a cap here is a bug. The test that goes over each is named in
//! `tests/limits.rs`.

/// Longest message head (start line and all fields), in bytes; a longer one is a defect and ends the exchange.
pub const HEAD_BYTES: usize = 64 * 1024;
/// Most header fields in one head.
pub const HEAD_FIELDS: usize = 128;
/// Most bytes of an HPACK dynamic table that are kept, as RFC 7541 section 4.1 counts them; entries beyond are unknown.
pub const HPACK_TABLE_BYTES: usize = 64 * 1024;
/// Longest HTTP/2 frame taken for one on a connection whose SETTINGS were not all seen, in bytes of its payload.
pub const FRAME_BYTES: u32 = 1024 * 1024;
/// Longest chunk-size line including extensions, in bytes (RFC 9112 section 7.1).
pub const CHUNK_LINE_BYTES: usize = 4096;
/// Most codings (`content-encoding`, `transfer-encoding`) that are undone one after another.
pub const CODINGS: usize = 4;
/// Most bytes that all codings of one body may give, in bytes. More than any answer, streamed or not, has.
pub const DECODED_BYTES: u64 = 256 * 1024 * 1024;
/// Most bytes that may come out of one compressed byte, on the average of a body beyond its first
/// [`DECODED_FREE_BYTES`]. Streams of events come to 10 or 20; a bomb to a thousand.
pub const DECODED_RATIO: u64 = 256;
/// Bytes of a body that may come out whatever went in.
pub const DECODED_FREE_BYTES: u64 = 1024 * 1024;
/// Most bodies decoded at once on one connection: each has a window of up to 16 MiB.
pub const DECODERS: usize = 64;
/// Largest zstd window, as the logarithm of its bytes: 8 MiB, which RFC 8878 section 3.1.1.1.2 tells decoders to support.
pub const ZSTD_WINDOW_LOG: u32 = 23;
/// Longest WebSocket message of which all is told, in bytes; of a longer one the rest is left out.
pub const MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Calls that are open at once on one WebSocket, asked for and answered.
pub const SOCKET_CALLS: usize = 64;
/// Longest single event (SSE event, NDJSON line) that is decoded, in bytes; a longer one is skipped and counted.
pub const EVENT_BYTES: usize = 4 * 1024 * 1024;
/// Longest answer body that is not a stream and is decoded, in bytes.
pub const BODY_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of a request body that are kept at its head.
pub const REQUEST_HEAD_BYTES: usize = 64 * 1024;
/// Bytes of a request body that are kept at its tail.
pub const REQUEST_TAIL_BYTES: usize = 64 * 1024;
/// Rate-limit headers kept of one response.
pub const RATE_LIMIT_HEADERS: usize = 24;
/// Longest text kept of a name (model, id, host, path, finish reason, error type), in bytes.
pub const NAME_BYTES: usize = 256;
/// Bytes kept of reads that may have overtaken the write they answer, per connection; over it they go on without that
/// write. What one drain brings of one answer: a large one (embeddings) of a server on the same host comes at once.
pub const HOLD_BYTES: usize = 1024 * 1024;
/// How long such reads wait for that write, in nanoseconds, and at least until both rings are drained.
pub const HOLD_NS: u64 = 100_000_000;
/// Most finish reasons (choices) kept of one exchange.
pub const FINISH_REASONS: usize = 16;
/// Most stalls kept of one exchange.
pub const STALLS: usize = 256;
/// Latest retransmits kept of one connection, for the request that is being written while they happen.
pub const RETRANSMITS: usize = 256;
/// Most late reads kept of one exchange; stalls behind them have no cause.
pub const LATE_READS: usize = 256;
/// Most outputs that wait to be taken. The process takes them after each record, but one record (or the end of a process)
/// may end thousands of exchanges.
pub const OUTPUTS: usize = 128 * 1024;
/// Longest text that waits to be counted by a tokenizer, of one choice of one exchange, in bytes. Text with spaces waits for a
/// word at most; what has no border for so long is counted in pieces.
pub const TOKENIZER_PENDING_BYTES: usize = 2048;
/// Texts of one exchange that are counted side by side: kinds of payload, and choices.
pub const TOKENIZER_LANES: usize = 16;
/// Longest text of one exchange that is given to a tokenizer, in bytes; beyond it there is no count. About 250,000 tokens, more
/// than any model gives.
pub const TOKENIZED_BYTES: usize = 1024 * 1024;
/// Failed calls that are remembered until the same request comes again.
pub const RETRIES: usize = 1024;
/// How long after its end a failed call is remembered, in nanoseconds. SDKs wait up to a minute where the server says so.
pub const RETRY_WINDOW_NS: u64 = 120_000_000_000;
/// Most exchanges open on one connection.
pub const OPEN_EXCHANGES: usize = 256;
/// Longest entry of a recording, in bytes: a WebSocket message, and what stands before it.
pub const TAPE_ENTRY_BYTES: usize = MESSAGE_BYTES + 128 * 1024;
/// Longest block of a recording, compressed or not, in bytes.
pub const TAPE_BLOCK_BYTES: usize = 8 * 1024 * 1024;
/// Most events of one connection that wait for a name to end while a recording is redacted.
pub const REDACT_EVENTS: usize = 4096;
/// Bytes of such events. A frame of an AWS event stream is taken whole.
pub const REDACT_BYTES: usize = 2 * EVENT_BYTES;
/// Most processes whose served requests are followed.
pub const SERVING_PROCESSES: usize = 4096;
/// Most requests that one process is seen serving at once; while there are more, only hooks and `traceparent` prove a parent.
pub const SERVED_OPEN: usize = 4096;
/// Most open calls of one process whose cause is looked for.
pub const CALLS_OPEN: usize = 16 * 1024;
/// Most bytes of the body of one call that wait to be compared, until both rings are drained.
pub const COMPARED_BYTES: usize = 256 * 1024;
/// Most blocks of 32 bytes by which the texts of one served request are found again.
pub const BLOCKS_OF_REQUEST: usize = 4096;
/// Most such blocks of all requests that one process is serving.
pub const BLOCKS: usize = 64 * 1024;
/// Most threads of one process that were started during a request and are remembered.
pub const STARTED_THREADS: usize = 4096;
/// A thread that lives for so long after the request in which it was started was not started for it alone, in nanoseconds: far more than a thread
/// takes to end on a busy machine.
pub const THREAD_OUTLIVES_NS: u64 = 2_000_000_000;
/// Most calls that wait for the end of the request in which their thread was started.
pub const CALLS_WAITING: usize = 4096;
/// Most bytes of timelines, stalls and texts that such calls hold together.
pub const CALLS_WAITING_BYTES: usize = 32 * 1024 * 1024;
/// How long such a call waits at most, in nanoseconds: what the observer says of it is so much late.
pub const CALL_WAITS_NS: u64 = 60_000_000_000;
/// Most bytes kept of the request of a tool's call, until its name was read.
pub const TOOL_BODY_BYTES: usize = 8 * 1024;

/// Caps that a user may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most connections followed at once; the one silent longest goes first.
    pub connections: usize,
    /// A connection silent for so long is let go, in nanoseconds.
    pub idle_ns: u64,
    /// Longest packed timeline of one exchange, in bytes.
    pub timeline_bytes: usize,
    /// Longest generated text kept when content was asked for, in bytes.
    pub content_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 65_536,
            idle_ns: 15 * 60 * 1_000_000_000,
            timeline_bytes: 64 * 1024,
            content_bytes: 1024 * 1024,
        }
    }
}
