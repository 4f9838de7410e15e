//! However the bytes are cut into records and however connections interleave, the same exchanges come out, up to stamps.

use nexent_observer_core::{
    event::{ConnId, Direction, MonoNs, Record, RecordFlags, RecordKind, Stamp},
    limits::Limits,
    pipeline::{Output, Pipeline},
    timing::{Exchange, Options, Outcome},
};
use proptest::prelude::*;

/// One turn: what is written, what is read.
type Turn = (Vec<u8>, Vec<u8>);

fn post(path: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

fn chunked(events: &[&str], per_chunk: usize) -> Vec<u8> {
    let body: String = events.iter().map(|e| format!("data: {e}\n\n")).collect();
    let mut out =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nx-request-id: r1\r\n\r\n"
            .to_vec();
    for chunk in body.as_bytes().chunks(per_chunk) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

fn json(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

const STREAM: [&str; 6] = [
    r#"{"id":"c1","model":"m-1","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
    r#"{"id":"c1","model":"m-1","choices":[{"index":0,"delta":{"content":"Gr\u00fc\u00dfe"},"finish_reason":null}]}"#,
    r#"{"id":"c1","model":"m-1","choices":[{"index":0,"delta":{"content":" \ud83d\ude00 日本"},"finish_reason":null}]}"#,
    r#"{"id":"c1","model":"m-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
    r#"{"id":"c1","model":"m-1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}"#,
    "[DONE]",
];

fn connections() -> Vec<Vec<Turn>> {
    let ask = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
    let answer = r#"{"id":"c2","model":"m-1","choices":[{"index":0,"message":{"content":"whole"},"finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
    let refusal = r#"{"error":{"message":"no","type":"requests","code":"rate_limit_exceeded"}}"#;
    vec![
        vec![
            (post("/v1/chat/completions", ask), chunked(&STREAM, 40)),
            (post("/v1/chat/completions", r#"{"model":"m","messages":[]}"#), json("200 OK", answer)),
        ],
        vec![
            (b"GET /health HTTP/1.1\r\nHost: other\r\n\r\n".to_vec(), json("200 OK", r#"{"ok":true}"#)),
            (post("/v1/chat/completions", ask), json("429 Too Many Requests", refusal)),
            (post("/v1/chat/completions", ask), chunked(&STREAM, 1000)),
        ],
        // Pipelined: two requests go out before anything is read; the last answer is cut off by the close.
        vec![(
            [post("/v1/chat/completions", ask), post("/v1/chat/completions", ask)].concat(),
            [&chunked(&STREAM, 7)[..], &chunked(&STREAM[..3], 1000)[..360]].concat(),
        )],
    ]
}

/// Records of a connection: direction, turn, bytes.
type Cut = Vec<(Direction, u32, Vec<u8>)>;

fn cut(turns: &[Turn], mut size: impl FnMut() -> usize) -> Cut {
    let mut out = Vec::new();
    for (i, (written, read)) in turns.iter().enumerate() {
        for (dir, mut rest) in [(Direction::Write, &written[..]), (Direction::Read, &read[..])] {
            while !rest.is_empty() {
                let (now, later) = rest.split_at(size().clamp(1, rest.len()));
                out.push((dir, i as u32 + 1, now.to_vec()));
                rest = later;
            }
        }
    }
    out
}

/// Feeds the records in the order that `next` chooses among the connections that have some left.
fn run(cuts: &[Cut], mut next: impl FnMut(usize) -> usize) -> Vec<Exchange> {
    let mut pipeline = Pipeline::new(Limits::default(), Options { capture_content: true, ..Options::default() });
    let mut out = Vec::new();
    let mut left: Vec<_> = cuts.iter().enumerate().map(|(i, c)| (i as u64 + 1, c.iter(), [0u64; 2])).collect();
    let mut now = 1_000;
    while !left.is_empty() {
        now += 1_000_000;
        let pick = next(left.len());
        let (conn, records, offsets) = &mut left[pick];
        let kind = match records.next() {
            Some((dir, turn, bytes)) => {
                let offset = &mut offsets[usize::from(*dir == Direction::Write)];
                let at = *offset;
                *offset += bytes.len() as u64;
                let flags = RecordFlags { from_start: true, ..RecordFlags::default() };
                let len = bytes.len() as u64;
                RecordKind::Data { dir: *dir, offset: at, turn: *turn, payload: bytes, len, flags }
            }
            None => RecordKind::Close { read_end: offsets[0], write_end: offsets[1], flags: RecordFlags::default() },
        };
        let at = Stamp { entry: MonoNs(now - 500), ret: MonoNs(now) };
        let record = Record { conn: ConnId(*conn), pid: 1, tid: 2, at, kind };
        pipeline.handle_event(&record);
        if pipeline.poll_timeout().is_some_and(|due| due.0 <= now) {
            pipeline.handle_timeout(MonoNs(now));
        }
        if matches!(kind, RecordKind::Close { .. }) {
            drop(left.remove(pick));
        }
        while let Some(output) = pipeline.poll_output() {
            if let Output::Exchange(x) = output {
                out.push(*x);
            }
        }
    }
    let stats = pipeline.stats();
    assert_eq!((stats.connections_open, stats.exchanges_open), (0, 0));
    out.sort_by_key(|x| x.id);
    out
}

/// All of an exchange but its times, and what follows from them: which of several equal requests repeats which.
fn timeless(mut x: Exchange) -> (Exchange, Vec<Option<u32>>, [bool; 8]) {
    (x.retry_of, x.retry_count) = (None, None);
    let tokens = x.chunks.iter().map(|c| c.tokens).collect();
    let known = [
        x.request_start.take(),
        x.request_written.take(),
        x.request_sent.take(),
        x.first_byte.take(),
        x.first_chunk.take(),
        x.first_token.take(),
        x.last_token.take(),
        x.end.take(),
    ]
    .map(|t| t.is_some());
    x.chunks = Default::default();
    x.decode_rate = None;
    x.end_to_end_rate = None;
    (x, tokens, known)
}

#[test]
fn uncut_traffic_gives_the_exchanges_that_it_holds() {
    let cuts: Vec<Cut> = connections().iter().map(|c| cut(c, || usize::MAX)).collect();
    let got = run(&cuts, |_| 0);
    let told: Vec<_> = got
        .iter()
        .map(|x| {
            (x.id.conn.0, x.id.no, x.outcome, x.output_text.as_deref().unwrap_or(""), x.output_tokens, x.chunks.len())
        })
        .collect();
    let want = [
        (1, 0, Outcome::Completed, "Grüße 😀 日本", Some(4), 2),
        (1, 1, Outcome::Completed, "whole", Some(2), 0),
        (2, 1, Outcome::Error, "", None, 0),
        (2, 2, Outcome::Completed, "Grüße 😀 日本", Some(4), 2),
        (3, 0, Outcome::Completed, "Grüße 😀 日本", Some(4), 2),
        (3, 1, Outcome::ClientAbort, "Grüße", Some(1), 1),
    ];
    assert_eq!(told, want);
}

#[test]
fn one_byte_a_record_gives_the_same_exchanges() {
    let cuts = |size: usize| connections().iter().map(|c| cut(c, || size)).collect::<Vec<_>>();
    let plain = |size| run(&cuts(size), |_| 0).into_iter().map(timeless).collect::<Vec<_>>();
    assert_eq!(plain(1), plain(usize::MAX));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_cut_and_any_interleaving_give_the_same_exchanges(
        sizes in proptest::collection::vec(1..400usize, 1..50),
        order in proptest::collection::vec(any::<usize>(), 1..50),
    ) {
        let whole: Vec<Cut> = connections().iter().map(|c| cut(c, || usize::MAX)).collect();
        let want: Vec<_> = run(&whole, |_| 0).into_iter().map(timeless).collect();
        let mut sizes = sizes.into_iter().cycle();
        let mut order = order.into_iter().cycle();
        let cuts: Vec<Cut> = connections().iter().map(|c| cut(c, || sizes.next().unwrap())).collect();
        let got: Vec<_> = run(&cuts, |n| order.next().unwrap() % n).into_iter().map(timeless).collect();
        prop_assert_eq!(got, want);
    }
}
