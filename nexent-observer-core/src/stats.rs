//! Plain counters of the core. The process exports them; the core knows no metrics library.

/// Why something was dropped or a defect was counted. Each has a label value, a counter and a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DropReason {
    /// Bytes on a connection that are no HTTP.
    NotHttp,
    /// A message head over [`crate::limits::HEAD_BYTES`] or with too many fields.
    HeadTooLong,
    /// A message head that does not parse.
    HeadInvalid,
    /// A message head of a version of HTTP that is not read here (`HTTP/9.9`).
    HttpVersion,
    /// A chunk-size line that does not parse, or a missing CRLF after a chunk.
    ChunkInvalid,
    /// An event over [`crate::limits::EVENT_BYTES`].
    EventTooLong,
    /// A body over [`crate::limits::BODY_BYTES`] that had to be read whole.
    BodyTooLong,
    /// JSON that does not parse, or of the wrong shape.
    JsonInvalid,
    /// A member of a JSON text that is of another type than the API gives it: it was left out.
    JsonType,
    /// A frame of an AWS event stream whose checksum or length is wrong.
    FrameInvalid,
    /// Text that is not UTF-8.
    Utf8Invalid,
    /// A content coding that is not known, or bytes that are not of the coding that they are said to be of.
    ContentCoding,
    /// A compressed body or message over [`crate::limits::DECODED_BYTES`] or [`crate::limits::DECODED_RATIO`], or that wants
    /// more memory than is allowed.
    DecodedTooLong,
    /// The rest of a compressed body, or later messages of a WebSocket: what they refer to was lost.
    CodingGap,
    /// A compressed body left alone because [`crate::limits::DECODERS`] were being decoded on its connection.
    DecodersFull,
    /// Bytes on a WebSocket that are no frame (RFC 6455 section 5.2).
    WebSocketInvalid,
    /// A WebSocket message over [`crate::limits::MESSAGE_BYTES`]: its end was left out.
    MessageTooLong,
    /// Bytes lost before they reached the core.
    Gap,
    /// A response without a request: joined mid-stream.
    Joined,
    /// A connection let go because the table was full.
    ConnectionsFull,
    /// A connection let go because it was silent too long.
    Idle,
    /// An exchange let go because its connection had too many open.
    ExchangesFull,
    /// A record that contradicts what was seen before (a close of an unknown connection, a read after a close).
    RecordInvalid,
    /// Bytes that were seen before: a call inside another one and that one were both hooked, or a record came twice. They are left out.
    SeenTwice,
    /// A served request that was not followed: over [`crate::limits::SERVED_OPEN`] or [`crate::limits::SERVING_PROCESSES`].
    ServedFull,
    /// An output that nobody took, over [`crate::limits::OUTPUTS`].
    OutputsFull,
}

impl DropReason {
    /// All reasons, in the order of their label values in docs/metrics.md.
    pub const ALL: [Self; 26] = [
        Self::NotHttp,
        Self::HeadTooLong,
        Self::HeadInvalid,
        Self::HttpVersion,
        Self::ChunkInvalid,
        Self::EventTooLong,
        Self::BodyTooLong,
        Self::JsonInvalid,
        Self::JsonType,
        Self::FrameInvalid,
        Self::Utf8Invalid,
        Self::ContentCoding,
        Self::DecodedTooLong,
        Self::CodingGap,
        Self::DecodersFull,
        Self::WebSocketInvalid,
        Self::MessageTooLong,
        Self::Gap,
        Self::Joined,
        Self::ConnectionsFull,
        Self::Idle,
        Self::ExchangesFull,
        Self::RecordInvalid,
        Self::SeenTwice,
        Self::ServedFull,
        Self::OutputsFull,
    ];

    /// Label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotHttp => "not_http",
            Self::HeadTooLong => "head_too_long",
            Self::HeadInvalid => "head_invalid",
            Self::HttpVersion => "http_version",
            Self::ChunkInvalid => "chunk_invalid",
            Self::EventTooLong => "event_too_long",
            Self::BodyTooLong => "body_too_long",
            Self::JsonInvalid => "json_invalid",
            Self::JsonType => "json_type",
            Self::FrameInvalid => "frame_invalid",
            Self::Utf8Invalid => "utf8_invalid",
            Self::ContentCoding => "content_coding",
            Self::DecodedTooLong => "decoded_too_long",
            Self::CodingGap => "coding_gap",
            Self::DecodersFull => "decoders_full",
            Self::WebSocketInvalid => "websocket_invalid",
            Self::MessageTooLong => "message_too_long",
            Self::Gap => "gap",
            Self::Joined => "joined",
            Self::ConnectionsFull => "connections_full",
            Self::Idle => "idle",
            Self::ExchangesFull => "exchanges_full",
            Self::RecordInvalid => "record_invalid",
            Self::SeenTwice => "seen_twice",
            Self::ServedFull => "served_full",
            Self::OutputsFull => "outputs_full",
        }
    }
}

/// Counters of the whole core.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records taken in.
    pub records: u64,
    /// Payload bytes taken in.
    pub bytes: u64,
    /// Bytes that were lost before they reached the core, where their number is known.
    pub bytes_lost: u64,
    /// Gaps that are losses (known size or not).
    pub gaps: u64,
    /// HTTP exchanges begun.
    pub http_exchanges: u64,
    /// LLM exchanges finished.
    pub llm_exchanges: u64,
    /// Output chunks decoded.
    pub chunks: u64,
    /// Connections followed now.
    pub connections_open: u64,
    /// LLM exchanges open now.
    pub exchanges_open: u64,
    drops: [u64; DropReason::ALL.len()],
}

impl Stats {
    /// Counts one drop or defect.
    pub fn count(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    /// How often `reason` was counted.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Adds the counters of another stage.
    pub fn add(&mut self, other: &Self) {
        let Self {
            records,
            bytes,
            bytes_lost,
            gaps,
            http_exchanges,
            llm_exchanges,
            chunks,
            connections_open,
            exchanges_open,
            drops,
        } = other;
        self.records += records;
        self.bytes += bytes;
        self.bytes_lost += bytes_lost;
        self.gaps += gaps;
        self.http_exchanges += http_exchanges;
        self.llm_exchanges += llm_exchanges;
        self.chunks += chunks;
        self.connections_open += connections_open;
        self.exchanges_open += exchanges_open;
        for (mine, theirs) in self.drops.iter_mut().zip(drops) {
            *mine += theirs;
        }
    }
}
