//! LLM calls over WebSockets, through the whole core: OpenAI's Realtime API and its Responses API.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "tape_support/mod.rs"]
mod tape_support;

use flate2::{Compress, Compression, FlushCompress};
use nexent_observer_core::{
    event::{
        ConnId,
        Direction::{self, *},
        MonoNs, Record, RecordFlags, RecordKind, Stamp,
    },
    limits::{Limits, SOCKET_CALLS},
    pipeline::{Output, Pipeline},
    stats::DropReason,
    timing::{Exchange, Options, Outcome, TokenSource},
};
use tape_support::{Tape, assert_replays, counting};

const MS: u64 = 1_000_000;
/// Of the masked frames of a client.
const KEY: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

fn frame(first: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let bit = if masked { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        n @ 0..126 => bytes.push(bit | n as u8),
        n @ 126..0x1_0000 => {
            bytes.push(bit | 126);
            bytes.extend((n as u16).to_be_bytes());
        }
        n => {
            bytes.push(bit | 127);
            bytes.extend((n as u64).to_be_bytes());
        }
    }
    if masked {
        bytes.extend(KEY);
        bytes.extend(payload.iter().zip(KEY.iter().cycle()).map(|(b, k)| b ^ k));
    } else {
        bytes.extend(payload);
    }
    bytes
}

/// How the records of a moment are cut.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Nowhere,
    Every,
    At(usize),
}

/// A client and a server on one connection that the pipeline observes. Each message comes 1 ms after the one before.
struct Bench {
    pipeline: Pipeline,
    cut: Cut,
    /// Compressors of the client and of the server.
    deflate: Option<[Compress; 2]>,
    now: u64,
    offsets: [u64; 2],
    turn: u32,
    last_was_read: bool,
    tape: Tape,
    /// All exchanges so far.
    all: Vec<Exchange>,
}

/// However a test ends, a replay of what the tap was shown gives the same numbers.
impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.taken();
            self.pipeline = Pipeline::new(Limits::default(), Options::default());
            assert_replays(&self.tape, &self.all, Limits::default());
        }
    }
}

impl Bench {
    /// The handshake is asked for.
    fn asking(path: &str, cut: Cut, deflate: bool) -> Self {
        let compress = || Compress::new(Compression::default(), false);
        let mut b = Self {
            pipeline: Pipeline::new(Limits::default(), counting("counted")),
            cut,
            deflate: deflate.then(|| [compress(), compress()]),
            now: 1000 * MS,
            offsets: [0, 0],
            turn: 0,
            last_was_read: true,
            tape: Tape::default(),
            all: Vec::new(),
        };
        b.pipeline.set_tap(b.tape.tap());
        let ask = format!(
            "GET {path} HTTP/1.1\r\nHost: api.openai.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nAuthorization: Bearer k\r\n\r\n"
        );
        b.send(Write, ask.as_bytes());
        b
    }

    fn on(path: &str, cut: Cut, deflate: bool) -> Self {
        let mut b = Self::asking(path, cut, deflate);
        let extension = if deflate { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{extension}x-request-id: req_1\r\n\r\n"
        );
        b.send(Read, answer.as_bytes());
        b
    }

    fn realtime() -> Self {
        Self::on("/v1/realtime?model=gpt-realtime", Cut::Nowhere, false)
    }

    fn responses() -> Self {
        Self::on("/v1/responses", Cut::Nowhere, false)
    }

    fn record(&mut self, kind: RecordKind<'_>) {
        let at = Stamp { entry: MonoNs(self.now - 1000), ret: MonoNs(self.now) };
        self.pipeline.handle_event(&Record { conn: ConnId(1), pid: 1, tid: 1, at, kind });
        if self.pipeline.poll_timeout().is_some_and(|due| due.0 <= self.now) {
            self.pipeline.handle_timeout(MonoNs(self.now));
        }
    }

    fn send(&mut self, dir: Direction, bytes: &[u8]) {
        self.now += MS;
        if dir == Write && self.last_was_read {
            self.turn += 1;
        }
        self.last_was_read = dir == Read;
        let pieces: Vec<&[u8]> = match self.cut {
            Cut::Nowhere => vec![bytes],
            Cut::Every => bytes.chunks(1).collect(),
            Cut::At(n) => <[&[u8]; 2]>::from(bytes.split_at(n.min(bytes.len()))).to_vec(),
        };
        for payload in pieces.into_iter().filter(|piece| !piece.is_empty()) {
            let flags = RecordFlags { from_start: true, ..RecordFlags::default() };
            let offset = self.offsets[usize::from(dir == Write)];
            self.offsets[usize::from(dir == Write)] += payload.len() as u64;
            let len = payload.len() as u64;
            self.record(RecordKind::Data { dir, offset, turn: self.turn, payload, len, flags });
        }
    }

    fn text(&mut self, dir: Direction, json: &str) -> &mut Self {
        let (mut payload, mut first) = (json.as_bytes().to_vec(), 0x81);
        if let Some(peers) = &mut self.deflate {
            let mut out = Vec::with_capacity(json.len() * 2 + 100);
            peers[usize::from(dir == Read)].compress_vec(json.as_bytes(), &mut out, FlushCompress::Sync).unwrap();
            out.truncate(out.len() - 4);
            (payload, first) = (out, 0xc1);
        }
        self.send(dir, &frame(first, &payload, dir == Write));
        self
    }

    /// The client says.
    fn c(&mut self, json: &str) -> &mut Self {
        self.text(Write, json)
    }

    /// The server says.
    fn s(&mut self, json: &str) -> &mut Self {
        self.text(Read, json)
    }

    fn lose(&mut self, dir: Direction, json: &str) -> &mut Self {
        self.offsets[usize::from(dir == Write)] += frame(0x81, json.as_bytes(), dir == Write).len() as u64;
        self
    }

    fn taken(&mut self) -> Vec<Exchange> {
        let mut exchanges = Vec::new();
        while let Some(output) = self.pipeline.poll_output() {
            if let Output::Exchange(x) = output {
                exchanges.push(*x);
            }
        }
        self.all.extend_from_slice(&exchanges);
        exchanges
    }

    fn closed(&mut self) -> Vec<Exchange> {
        self.now += MS;
        let [read_end, write_end] = self.offsets;
        self.record(RecordKind::Close { read_end, write_end, flags: RecordFlags::default() });
        let stats = self.pipeline.stats();
        assert_eq!((stats.exchanges_open, stats.connections_open), (0, 0));
        self.taken()
    }
}

fn ms(x: &Exchange, at: Option<MonoNs>) -> Option<f64> {
    at.map(|at| (at.0 as f64 - x.request_start.unwrap().0 as f64) / MS as f64)
}

const CREATE: &str =
    r#"{"type":"response.create","event_id":"e1","response":{"max_output_tokens":200,"temperature":0.8}}"#;
const CREATED: &str = r#"{"type":"response.created","event_id":"v1","response":{"object":"realtime.response","id":"resp_1","status":"in_progress","usage":null}}"#;
const DONE: &str = r#"{"type":"response.done","event_id":"v9","response":{"object":"realtime.response","id":"resp_1","status":"completed","status_details":null,"output":[{"type":"message","content":[{"type":"output_audio","transcript":"Hi you"}]}],"usage":{"total_tokens":253,"input_tokens":132,"output_tokens":121,"input_token_details":{"text_tokens":119,"audio_tokens":13,"image_tokens":0,"cached_tokens":64,"cached_tokens_details":{"text_tokens":64,"audio_tokens":0}},"output_token_details":{"text_tokens":30,"audio_tokens":91}}}}"#;

fn delta(kind: &str, response: &str, delta: &str) -> String {
    format!(
        r#"{{"type":"response.{kind}.delta","event_id":"v5","response_id":"{response}","item_id":"i","output_index":0,"content_index":0,"delta":"{delta}"}}"#
    )
}

/// One response that the client asked for.
fn asked(b: &mut Bench) {
    b.s(r#"{"type":"session.created","event_id":"v0","session":{"type":"realtime","object":"realtime.session","id":"sess_1","model":"gpt-realtime-2026"}}"#);
    b.c(r#"{"type":"conversation.item.create","item":{"type":"message","role":"user","content":[{"type":"input_text","text":"Hi"}]}}"#);
    b.c(CREATE).s(CREATED);
    b.s(r#"{"type":"response.output_item.added","event_id":"v2","response_id":"resp_1","output_index":0,"item":{"id":"i","type":"message","status":"in_progress","role":"assistant","content":[]}}"#);
    b.s(&delta("output_audio_transcript", "resp_1", ""));
    b.s(&delta("output_audio_transcript", "resp_1", "Hi "));
    b.s(&delta("output_audio", "resp_1", "UklGRg=="));
    b.s(&delta("output_audio_transcript", "resp_1", "you")).s(DONE);
    b.s(r#"{"type":"rate_limits.updated","event_id":"va","rate_limits":[{"name":"tokens","limit":1,"remaining":1,"reset_seconds":0.1}]}"#);
}

#[test]
fn a_response_that_the_client_asked_for_is_a_call_of_its_own() {
    let mut b = Bench::realtime();
    asked(&mut b);
    let [x] = &b.taken()[..] else { panic!("one call") };
    assert_eq!((x.outcome, x.call.operation, x.call.provider), (Outcome::Completed, "chat", Some("openai")));
    assert_eq!((x.call.method.as_str(), x.call.path.as_str()), ("GET", "/v1/realtime"));
    assert_eq!(x.request.model.as_deref(), Some("gpt-realtime"));
    assert_eq!((x.request.max_tokens, x.request.temperature), (Some(200), Some(0.8)));
    assert_eq!((x.response_model.as_deref(), x.response_id.as_deref()), (Some("gpt-realtime-2026"), Some("resp_1")));
    assert_eq!((x.response.request_id.as_deref(), x.response.status, x.streamed), (Some("req_1"), None, true));
    // From the entry of the client's last message to returns of reads: 0.001 ms more than the steps between.
    let first = ms(x, x.first_token).unwrap();
    assert!((first - 4.001).abs() < 1e-6, "{first}: the empty delta is no token");
    assert_eq!(ms(x, x.first_byte).map(f64::round), Some(1.0));
    assert_eq!(ms(x, x.last_token).map(f64::round), Some(6.0));
    assert_eq!(ms(x, x.end).map(f64::round), Some(7.0));
    assert_eq!((x.usage.input, x.usage.output, x.usage.cached_input), (Some(132), Some(121), Some(64)));
    assert_eq!((x.usage_source, x.output_tokens), (TokenSource::Usage, Some(121)));
    assert_eq!(x.finish_reasons, ["completed"]);
    assert_eq!(b.closed().len(), 0);
}

#[test]
fn tokens_of_calls_that_share_a_socket_are_counted_apart_and_replayed_as_they_were() {
    let mut b = Bench::on("/v1/realtime?model=counted-rt", Cut::Nowhere, false);
    b.c(CREATE)
        .s(CREATED)
        .s(&delta("output_text", "resp_1", "one two"))
        .c(CREATE)
        .s(&CREATED.replace("resp_1", "resp_2"));
    b.s(&delta("output_text", "resp_2", "three four five")).s(&delta("output_text", "resp_1", " six"));
    b.s(DONE).s(&DONE.replace("resp_1", "resp_2"));
    let mut all = b.closed();
    all.sort_by_key(|x| x.id);
    assert_eq!(all.iter().map(|x| x.counted_tokens).collect::<Vec<_>>(), [Some(3), Some(3)]);
}

#[test]
fn wherever_records_are_cut_and_however_they_are_packed_the_call_is_the_same() {
    let run = |cut, deflate| {
        let mut b = Bench::on("/openai/v1/realtime?api-version=1&deployment=my%2Drt", cut, deflate);
        asked(&mut b);
        let mut all = b.closed();
        assert_eq!(b.pipeline.stats().drops(DropReason::WebSocketInvalid), 0);
        assert_eq!(all.len(), 1);
        all.remove(0)
    };
    let whole = run(Cut::Nowhere, false);
    assert_eq!(whole.request.model.as_deref(), Some("my-rt"));
    assert_eq!(run(Cut::Every, false), whole);
    assert_eq!(run(Cut::Nowhere, true), whole);
    assert_eq!(run(Cut::Every, true), whole);
    for cut in 0..DONE.len() {
        assert_eq!(run(Cut::At(cut), cut % 2 == 0), whole, "cut at {cut}");
    }
}

#[test]
fn every_kind_of_generated_delta_is_a_first_token() {
    let kinds = [
        "output_text",
        "text",
        "output_audio",
        "audio",
        "output_audio_transcript",
        "audio_transcript",
        "function_call_arguments",
    ];
    for kind in kinds {
        let mut b = Bench::realtime();
        b.c(CREATE).s(CREATED).s(&delta(kind, "resp_1", "")).s(&delta(kind, "resp_1", "x")).s(DONE);
        let all = b.taken();
        assert_eq!(ms(&all[0], all[0].first_token).map(f64::round), Some(3.0), "{kind}");
    }
    let mut b = Bench::realtime();
    b.c(CREATE)
        .s(CREATED)
        .s(r#"{"type":"response.output_item.added","response_id":"resp_1","item":{"type":"function_call","name":"f"}}"#)
        .s(DONE);
    let all = b.taken();
    assert_eq!(ms(&all[0], all[0].first_token).map(f64::round), Some(2.0), "the name of a call is generated");
    let mut b = Bench::realtime();
    b.c(CREATE).s(CREATED).s(&delta("content_part", "resp_1", "x")).s(DONE);
    assert_eq!(b.taken()[0].first_token, None);
}

#[test]
fn a_response_to_speech_starts_when_the_speech_stopped() {
    let mut b = Bench::realtime();
    let audio = format!(r#"{{"type":"input_audio_buffer.append","audio":"{}"}}"#, "UklG".repeat(500));
    b.c(&audio).s(r#"{"type":"input_audio_buffer.speech_started","audio_start_ms":1}"#).c(&audio);
    b.s(r#"{"type":"input_audio_buffer.speech_stopped","audio_end_ms":2}"#);
    let stopped = b.now;
    b.s(r#"{"type":"input_audio_buffer.committed","item_id":"i"}"#).c(&audio);
    b.s(CREATED).s(&delta("output_audio", "resp_1", "UklGRg==")).s(DONE);
    // Without the end of speech, with what was taken in.
    b.s(r#"{"type":"input_audio_buffer.committed","item_id":"j"}"#);
    let committed = b.now;
    b.s(&CREATED.replace("resp_1", "resp_2")).s(&DONE.replace("resp_1", "resp_2"));
    // Speech that was taken up again is none that was answered.
    b.s(r#"{"type":"input_audio_buffer.speech_stopped"}"#).s(r#"{"type":"input_audio_buffer.speech_started"}"#);
    b.s(r#"{"type":"input_audio_buffer.speech_stopped"}"#);
    let again = b.now;
    b.s(&CREATED.replace("resp_1", "resp_3")).s(&DONE.replace("resp_1", "resp_3"));
    let all = b.taken();
    let starts: Vec<u64> = all.iter().map(|x| x.request_start.unwrap().0).collect();
    assert_eq!(starts, [stopped, committed, again]);
    assert_eq!(ms(&all[0], all[0].first_token), Some(4.0), "from when the event was read");
    assert!(all.iter().all(|x| x.outcome == Outcome::Completed && x.request.model.as_deref() == Some("gpt-realtime")));
}

#[test]
fn every_status_has_its_end() {
    let cases = [
        (r#""status":"cancelled","status_details":{"type":"cancelled","reason":"turn_detected"}"#, "turn_detected"),
        (
            r#""status":"cancelled","status_details":{"type":"cancelled","reason":"client_cancelled"}"#,
            "client_cancelled",
        ),
        (
            r#""status":"incomplete","status_details":{"type":"incomplete","reason":"max_output_tokens"}"#,
            "max_output_tokens",
        ),
        (r#""status":"cancelled","status_details":null"#, "cancelled"),
    ];
    for (status, reason) in cases {
        let mut b = Bench::realtime();
        b.c(CREATE).s(CREATED).s(&delta("output_text", "resp_1", "a"));
        b.s(&DONE.replace(r#""status":"completed","status_details":null"#, status));
        let x = &b.taken()[0];
        assert_eq!((x.outcome, x.finish_reasons.as_slice()), (Outcome::Completed, &[reason.to_owned()][..]));
    }
    let failed = r#""status":"failed","status_details":{"type":"failed","error":{"type":"server_error","code":"rate_limit_exceeded","message":"m"}}"#;
    let mut b = Bench::realtime();
    b.c(CREATE).s(CREATED).s(&DONE.replace(r#""status":"completed","status_details":null"#, failed));
    let x = &b.taken()[0];
    assert_eq!((x.outcome, x.error_type.as_deref()), (Outcome::Error, Some("rate_limit_exceeded")));
}

#[test]
fn an_error_ends_the_request_that_it_is_about_and_no_other() {
    let error = |about: &str| {
        format!(
            r#"{{"type":"error","event_id":"v7","error":{{"type":"invalid_request_error","code":"conversation_already_has_active_response","message":"m","event_id":{about}}}}}"#
        )
    };
    let mut b = Bench::realtime();
    b.c(CREATE).s(CREATED).c(&CREATE.replace("e1", "e2"));
    // About something else, about nothing that is known while both wait, about the second.
    b.s(&error(r#""e0""#));
    assert_eq!(b.taken().len(), 0);
    b.s(&error(r#""e2""#));
    let x = &b.taken()[0];
    assert_eq!(
        (x.outcome, x.error_type.as_deref()),
        (Outcome::Error, Some("conversation_already_has_active_response"))
    );
    b.s(&error("null"));
    assert_eq!(b.taken().len(), 0, "a response that is under way goes on");
    b.s(DONE);
    assert_eq!(b.taken()[0].outcome, Outcome::Completed);
    b.c(CREATE).s(&error("null"));
    assert_eq!(b.taken()[0].outcome, Outcome::Error);
}

#[test]
fn responses_that_overlap_are_told_apart() {
    let mut b = Bench::realtime();
    b.c(CREATE).c(&CREATE.replace("e1", "e2"));
    b.s(CREATED).s(&CREATED.replace("resp_1", "resp_2"));
    for (response, text) in [("resp_2", "b1"), ("resp_1", "a1"), ("resp_2", "b2"), ("resp_1", "a2"), ("resp_9", "?")] {
        b.s(&delta("output_text", response, text));
    }
    b.s(DONE).s(&DONE.replace("resp_1", "resp_2"));
    let all = b.taken();
    let texts: Vec<_> = all.iter().map(|x| (x.response_id.as_deref(), x.output_text.as_deref())).collect();
    assert_eq!(texts, [(Some("resp_1"), Some("a1a2")), (Some("resp_2"), Some("b1b2"))]);
    assert!(all[0].id != all[1].id && all[0].request_start < all[1].request_start);
}

#[test]
fn the_responses_api_is_multiplexed_by_stream() {
    let mut b = Bench::responses();
    let create = |stream: &str| {
        format!(
            r#"{{"type":"response.create","stream_id":"{stream}","model":"gpt-5","input":"Hi","max_output_tokens":9}}"#
        )
    };
    b.c(&create("s1")).c(&create("s2"));
    for stream in ["s2", "s1"] {
        b.s(&format!(r#"{{"type":"response.created","stream_id":"{stream}","sequence_number":0,"response":{{"id":"resp_{stream}","model":"gpt-5-2026","status":"in_progress"}}}}"#));
    }
    for (stream, text) in [("s1", "a"), ("s2", "x"), ("s1", "b"), ("s2", "y")] {
        b.s(&format!(r#"{{"type":"response.output_text.delta","stream_id":"{stream}","sequence_number":1,"item_id":"m","delta":"{text}"}}"#));
    }
    for stream in ["s1", "s2"] {
        b.s(&format!(r#"{{"type":"response.completed","stream_id":"{stream}","sequence_number":9,"response":{{"id":"resp_{stream}","status":"completed","usage":{{"input_tokens":5,"output_tokens":2,"output_tokens_details":{{"reasoning_tokens":1}}}}}}}}"#));
    }
    let all = b.taken();
    let texts: Vec<_> = all.iter().map(|x| (x.response_id.as_deref(), x.output_text.as_deref())).collect();
    assert_eq!(texts, [(Some("resp_s1"), Some("ab")), (Some("resp_s2"), Some("xy"))]);
    for x in &all {
        assert_eq!((x.outcome, x.usage.output, x.usage.reasoning), (Outcome::Completed, Some(2), Some(1)));
        assert_eq!((x.request.model.as_deref(), x.request.max_tokens), (Some("gpt-5"), Some(9)));
        assert_eq!(x.response_model.as_deref(), Some("gpt-5-2026"));
    }
}

#[test]
fn events_of_the_responses_api_without_an_id_belong_to_the_response_under_way() {
    let mut b = Bench::responses();
    b.c(r#"{"type":"response.create","model":"gpt-5","input":"Hi"}"#);
    b.s(r#"{"type":"response.created","response":{"id":"resp_1","status":"in_progress"}}"#);
    b.s(r#"{"type":"response.output_text.delta","delta":"hello"}"#);
    // An id that a gateway changed.
    b.s(r#"{"type":"response.incomplete","response":{"id":"resp_other","status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}}"#);
    let x = &b.taken()[0];
    assert_eq!((x.outcome, x.output_text.as_deref()), (Outcome::Completed, Some("hello")));
    assert_eq!(x.finish_reasons, ["max_output_tokens"]);
    b.c(r#"{"type":"response.create","model":"gpt-5","input":"Hi"}"#);
    b.s(r#"{"type":"error","status":400,"error":{"type":"invalid_request_error","code":"model_not_found","message":"m"}}"#);
    let x = &b.taken()[0];
    assert_eq!((x.outcome, x.error_type.as_deref()), (Outcome::Error, Some("model_not_found")));
}

#[test]
fn a_socket_that_ends_ends_its_calls() {
    let close = |code: u16| frame(0x88, &code.to_be_bytes(), false);
    // The process lets go.
    let mut b = Bench::realtime();
    b.c(CREATE).s(CREATED).s(&delta("output_text", "resp_1", "a")).c(CREATE);
    let outcomes: Vec<_> = b.closed().iter().map(|x| x.outcome).collect();
    assert_eq!(outcomes, [Outcome::ClientAbort; 2]);
    // It says so first.
    let mut b = Bench::realtime();
    b.c(CREATE).s(CREATED).send(Write, &frame(0x88, &[3, 232], true));
    assert_eq!(b.taken()[0].outcome, Outcome::ClientAbort);
    b.send(Read, &close(1000));
    assert_eq!(b.closed().len(), 0);
    // The server ends it.
    let mut b = Bench::realtime();
    b.c(CREATE).s(CREATED).s(&delta("output_text", "resp_1", "a")).c(CREATE).send(Read, &close(1011));
    for x in b.closed() {
        assert_eq!((x.outcome, x.error_type.as_deref()), (Outcome::Error, Some("websocket_closed_1011")));
    }
}

#[test]
fn a_loss_makes_the_calls_that_it_hits_incomplete_and_no_later_ones() {
    let mut b = Bench::realtime();
    b.c(CREATE)
        .s(CREATED)
        .lose(Read, &delta("output_text", "resp_1", "a"))
        .s(&delta("output_text", "resp_1", "b"))
        .s(DONE);
    asked(&mut b);
    // The request of the third is lost: when it was made is not known.
    b.lose(Write, CREATE).c(r#"{"type":"response.cancel"}"#).s(CREATED).s(&delta("output_text", "resp_1", "b")).s(DONE);
    let all = b.taken();
    let outcomes: Vec<_> = all.iter().map(|x| x.outcome).collect();
    assert_eq!(outcomes, [Outcome::Incomplete, Outcome::Completed, Outcome::Incomplete]);
    assert_eq!((all[0].ttft_ns(), all[2].request_start), (None, None));
    assert_eq!(b.pipeline.stats().drops(DropReason::Joined), 1);
}

#[test]
fn a_refused_handshake_and_other_sockets_are_no_calls() {
    let mut b = Bench::on("/v1/realtime", Cut::Nowhere, false);
    assert_eq!(b.closed().len(), 0);
    // A path of no API.
    let mut b = Bench::on("/socket.io/", Cut::Nowhere, false);
    b.c(CREATE).s(CREATED).s(DONE);
    assert_eq!(b.closed().len(), 0);
    // A path like that of an API, with other messages.
    let mut b = Bench::on("/realtime", Cut::Nowhere, false);
    b.c(r#"{"topic":"t","event":"phx_join"}"#).s(r#"{"type":"error"}"#).s("[1]").s("no json").s(r#"{"type":7}"#);
    assert_eq!(b.closed().len(), 0);
    // An answer that is not 101: the connection goes on with HTTP.
    let mut b = Bench::asking("/v1/realtime", Cut::Nowhere, false);
    b.send(Read, b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n");
    b.send(Read, b"{}");
    assert_eq!(b.pipeline.poll_output(), Some(Output::NotLlm { conn: ConnId(1), turn: b.turn }));
    let ask = r#"{"model":"m","messages":[]}"#;
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{ask}", ask.len());
    b.send(Write, head.as_bytes());
    b.send(Read, b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(b.closed().len(), 1);
}

#[test]
fn audio_without_responses_leaves_nothing_behind() {
    let mut b = Bench::realtime();
    let audio = format!(r#"{{"type":"input_audio_buffer.append","audio":"{}"}}"#, "UklG".repeat(5000));
    for _ in 0..2000 {
        b.c(&audio).s(r#"{"type":"input_audio_buffer.committed","item_id":"i"}"#);
    }
    assert_eq!(b.pipeline.stats().exchanges_open, 0);
    assert_eq!(b.closed().len(), 0);
}

#[test]
fn calls_that_are_never_answered_are_let_go_at_the_cap() {
    let mut b = Bench::realtime();
    for _ in 0..SOCKET_CALLS + 3 {
        b.c(CREATE);
    }
    let stats = b.pipeline.stats();
    assert_eq!(stats.exchanges_open, SOCKET_CALLS as u64);
    assert_eq!(stats.drops(DropReason::ExchangesFull), 3);
    assert_eq!(b.pipeline.active().count(), SOCKET_CALLS);
    let gone = b.taken();
    assert!(gone.len() == 3 && gone.iter().all(|x| x.outcome == Outcome::Incomplete));
    assert_eq!(b.closed().len(), SOCKET_CALLS);
}
