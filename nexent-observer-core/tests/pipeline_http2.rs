//! LLM calls over HTTP/2, through the whole core: streams that share a connection, joined late, cut short, with losses.

#[path = "tape_support/mod.rs"]
mod tape_support;

use httlib_hpack::Encoder;
use nexent_observer_core::{
    event::{
        ConnId,
        Direction::{self, *},
        MonoNs, Record, RecordFlags, RecordKind, Stamp,
    },
    limits::Limits,
    pipeline::{Output, Pipeline},
    timing::{Exchange, Options, Outcome},
};
use tape_support::{Tape, assert_replays, counting};

const MS: u64 = 1_000_000;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const ASK: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}"#;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn data(stream: u32, end: bool, body: &str) -> Vec<u8> {
    frame(0, u8::from(end), stream, body.as_bytes())
}

fn headers(hpack: &mut Encoder<'_>, stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let flags = Encoder::BEST_FORMAT | Encoder::WITH_INDEXING | Encoder::HUFFMAN_VALUE;
    for (name, value) in fields {
        hpack.encode((name.as_bytes().to_vec(), value.as_bytes().to_vec(), flags), &mut block).expect("encodable");
    }
    frame(1, 4, stream, &block)
}

fn event(text: &str) -> String {
    format!(
        "data: {{\"id\":\"c\",\"model\":\"m-1\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"
    )
}

fn last(output: u32) -> String {
    let usage = format!("{{\"prompt_tokens\":5,\"completion_tokens\":{output},\"total_tokens\":9}}");
    format!(
        "data: {{\"id\":\"c\",\"choices\":[{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}\n\ndata: {{\"id\":\"c\",\"choices\":[],\"usage\":{usage}}}\n\ndata: [DONE]\n\n"
    )
}

/// A client and a server on one connection that the pipeline observes. Each record comes 1 ms after the one before.
struct Bench {
    pipeline: Pipeline,
    client: Encoder<'static>,
    server: Encoder<'static>,
    observed: bool,
    from_start: bool,
    now: u64,
    offsets: [u64; 2],
    turn: u32,
    last_was_read: bool,
    tape: Tape,
}

impl Bench {
    fn new() -> Self {
        let (mut pipeline, tape) = (Pipeline::new(Limits::default(), counting("counted")), Tape::default());
        pipeline.set_tap(tape.tap());
        let mut bench = Self {
            pipeline,
            tape,
            client: Encoder::with_dynamic_size(4096),
            server: Encoder::with_dynamic_size(4096),
            observed: true,
            from_start: true,
            now: 1000 * MS,
            offsets: [0, 0],
            turn: 0,
            last_was_read: true,
        };
        bench.send(Write, &[PREFACE, &frame(4, 0, 0, b"")].concat());
        bench.send(Read, &frame(4, 0, 0, b""));
        bench
    }

    /// Bytes of which the first `known` reach the observer.
    fn send_capped(&mut self, dir: Direction, bytes: &[u8], known: usize) {
        self.now += MS;
        let offset = &mut self.offsets[usize::from(dir == Write)];
        let at = *offset;
        *offset += bytes.len() as u64;
        if dir == Write && self.last_was_read {
            self.turn += 1;
        }
        self.last_was_read = dir == Read;
        if !self.observed {
            return;
        }
        let capped = known < bytes.len();
        let flags = RecordFlags { from_start: self.from_start, capped, ..RecordFlags::default() };
        let (payload, len) = (&bytes[..known], bytes.len() as u64);
        self.record(RecordKind::Data { dir, offset: at, turn: self.turn, payload, len, flags });
    }

    fn send(&mut self, dir: Direction, bytes: &[u8]) {
        self.send_capped(dir, bytes, bytes.len());
    }

    fn record(&mut self, kind: RecordKind<'_>) {
        let at = Stamp { entry: MonoNs(self.now - 1000), ret: MonoNs(self.now) };
        self.pipeline.handle_event(&Record { conn: ConnId(1), pid: 1, tid: 1, at, kind });
        if self.pipeline.poll_timeout().is_some_and(|due| due.0 <= self.now) {
            self.pipeline.handle_timeout(MonoNs(self.now));
        }
    }

    fn ask(&mut self, stream: u32) {
        let fields = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", "/v1/chat/completions"),
            (":authority", "api.openai.com"),
            ("content-type", "application/json"),
            ("authorization", "Bearer k"),
        ];
        let head = headers(&mut self.client, stream, &fields);
        self.send(Write, &head);
        self.send(Write, &data(stream, true, ASK));
    }

    fn begin_answer(&mut self, stream: u32, status: &str, kind: &str) {
        let head =
            headers(&mut self.server, stream, &[(":status", status), ("content-type", kind), ("x-request-id", "r")]);
        self.send(Read, &head);
    }

    fn close(&mut self) -> Vec<Exchange> {
        self.now += MS;
        let [read_end, write_end] = self.offsets;
        self.record(RecordKind::Close { read_end, write_end, flags: RecordFlags::default() });
        let mut exchanges = Vec::new();
        while let Some(output) = self.pipeline.poll_output() {
            match output {
                Output::Exchange(x) => exchanges.push(*x),
                Output::Inbound(_) | Output::Tool(_) => {}
                Output::NotLlm { .. } => panic!("a verdict on HTTP/2"),
            }
        }
        exchanges.sort_by_key(|x| x.id);
        // A replay of what the tap was shown gives the same numbers.
        self.pipeline = Pipeline::new(Limits::default(), Options::default());
        assert_replays(&self.tape, &exchanges, Limits::default());
        exchanges
    }
}

fn text(x: &Exchange) -> &str {
    x.output_text.as_deref().unwrap_or("")
}

/// Times of the chunks in ms since the start of the request.
fn times(x: &Exchange) -> Vec<u64> {
    let start = x.request_start.expect("seen from its start");
    x.chunks.iter().map(|chunk| chunk.at.since(start) / MS).collect()
}

#[test]
fn two_interleaved_streams_are_exactly_right() {
    let mut b = Bench::new();
    b.ask(1);
    b.ask(3);
    b.begin_answer(1, "200", "text/event-stream");
    b.begin_answer(3, "200", "text/event-stream");
    // Events are cut where they like, and a read carries both streams.
    let (one, two) = (event("one "), event("two "));
    b.send(Read, &[data(1, false, &one), data(3, false, &two[..20])].concat());
    b.send(Read, &[data(3, false, &two[20..]), data(1, false, &event("1"))].concat());
    b.send(Read, &data(3, false, &event("zwei")));
    b.send(Read, &[data(1, false, &last(2)), data(3, false, &last(7)), data(3, true, "")].concat());
    b.send(Read, &data(1, true, ""));
    let got = b.close();
    assert_eq!(
        got.iter().map(|x| (x.id.no, x.outcome, text(x))).collect::<Vec<_>>(),
        [(0, Outcome::Completed, "one 1"), (1, Outcome::Completed, "two zwei")]
    );
    assert_eq!(
        got.iter().map(|x| (x.usage.input, x.output_tokens)).collect::<Vec<_>>(),
        [(Some(5), Some(2)), (Some(5), Some(7))]
    );
    // Requests begin at 3 and 5 ms (entry 1 us before), their bodies a ms later; heads come at 7 and 8, `[DONE]` at 12.
    assert_eq!((times(&got[0]), times(&got[1])), (vec![6, 7], vec![5, 6]));
    let since_start = |x: &Exchange, t: Option<MonoNs>| t.unwrap().since(x.request_start.unwrap());
    for (x, [sent, first_byte, end]) in got.iter().zip([[1, 4, 9], [1, 3, 7]]) {
        assert_eq!(since_start(x, x.request_written), sent * MS + 1000);
        assert_eq!(since_start(x, x.first_byte), first_byte * MS + 1000);
        assert_eq!(since_start(x, x.end), end * MS + 1000);
        assert_eq!(x.call.path, "/v1/chat/completions");
        assert_eq!(x.call.host.as_deref(), Some("api.openai.com"));
        assert_eq!(x.call.provider, Some("openai"));
        assert_eq!((x.response.status, x.response.request_id.as_deref()), (Some(200), Some("r")));
        assert_eq!(x.request.model.as_deref(), Some("m"));
    }
    assert_eq!(b.pipeline.stats().connections_open, 0);
}

#[test]
fn joined_between_calls_every_later_call_is_recognised_by_its_body() {
    let mut b = Bench::new();
    (b.observed, b.from_start) = (false, false);
    b.ask(1);
    b.begin_answer(1, "200", "text/event-stream");
    b.send(Read, &data(1, true, &event("unseen")));
    b.observed = true;
    for stream in [3, 5] {
        b.ask(stream);
        b.begin_answer(stream, "200", "text/event-stream");
        b.send(Read, &data(stream, false, &event("seen")));
        b.send(Read, &data(stream, true, &last(1)));
    }
    let got = b.close();
    let told: Vec<_> = got.iter().map(|x| (x.outcome, text(x), x.request.model.as_deref(), x.output_tokens)).collect();
    assert_eq!(told, [(Outcome::Completed, "seen", Some("m"), Some(1)); 2]);
    assert!(got.iter().all(|x| x.call.path.is_empty() && x.call.host.is_none() && x.call.operation == "chat"));
}

#[test]
fn a_capped_prompt_leaves_its_call_and_the_next_one_whole() {
    let mut b = Bench::new();
    let head = headers(
        &mut b.client,
        1,
        &[
            (":method", "POST"),
            (":scheme", "https"),
            (":path", "/v1/chat/completions"),
            (":authority", "api.openai.com"),
        ],
    );
    b.send(Write, &head);
    let prompt = "x".repeat(16_000);
    b.send(
        Write,
        &data(1, false, &format!("{{\"model\":\"big\",\"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}")),
    );
    for n in 0..10 {
        // One capped inside a frame, the others whole frames.
        b.send_capped(Write, &data(1, false, &prompt), if n == 0 { 100 } else { 0 });
    }
    b.send(Write, &data(1, true, "\"}],\"stream\":true}"));
    for stream in [1, 3] {
        b.begin_answer(stream, "200", "text/event-stream");
        b.send(Read, &data(stream, true, &[event("a"), last(1)].concat()));
        if stream == 1 {
            b.ask(3);
        }
    }
    let got = b.close();
    let told: Vec<_> = got.iter().map(|x| (x.outcome, x.request.model.as_deref(), x.call.path.as_str())).collect();
    assert_eq!(
        told,
        [
            (Outcome::Completed, Some("big"), "/v1/chat/completions"),
            (Outcome::Completed, Some("m"), "/v1/chat/completions")
        ]
    );
    assert_eq!(b.pipeline.stats().bytes_lost, 0);
}

#[test]
fn who_ends_a_stream_early_is_who_aborted_it_and_the_others_go_on() {
    let mut b = Bench::new();
    for stream in [1, 3, 5, 7] {
        b.ask(stream);
        b.begin_answer(stream, "200", "text/event-stream");
        b.send(Read, &data(stream, false, &event("a")));
    }
    b.send(Write, &frame(3, 0, 1, &8_u32.to_be_bytes()));
    b.send(Read, &frame(3, 0, 3, &2_u32.to_be_bytes()));
    b.send(Read, &frame(7, 0, 0, &[5_u32.to_be_bytes(), [0; 4]].concat()));
    // On the way when the client reset.
    b.send(Read, &data(1, false, &event("late")));
    b.send(Read, &data(5, true, &last(1)));
    let got: Vec<_> = b.close().iter().map(|x| (x.outcome, text(x).to_owned())).collect();
    let a = || "a".to_owned();
    assert_eq!(
        got,
        [
            (Outcome::ClientAbort, a()),
            (Outcome::ServerAbort, a()),
            (Outcome::Completed, a()),
            (Outcome::ServerAbort, a())
        ]
    );
}

#[test]
fn a_lost_record_makes_only_what_it_may_have_touched_incomplete() {
    let mut b = Bench::new();
    b.ask(1);
    b.begin_answer(1, "200", "text/event-stream");
    b.send(Read, &data(1, false, &event("a")));
    b.observed = false;
    b.send(Read, &data(1, false, &event("lost")));
    b.observed = true;
    b.send(Read, &data(1, true, &last(9)));
    b.ask(3);
    b.begin_answer(3, "200", "text/event-stream");
    b.send(Read, &data(3, true, &[event("b"), last(1)].concat()));
    let got: Vec<_> = b.close().iter().map(|x| (x.outcome, text(x).to_owned())).collect();
    assert_eq!(got, [(Outcome::Incomplete, "a\u{fffd}".to_owned()), (Outcome::Completed, "b".to_owned())]);
}
