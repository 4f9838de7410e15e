//! Target `apis`: any bytes as the answer of any API, against the promise that cuts change nothing and that what comes out is
//! in order.
//!
//! The input is one letter that chooses the call (the rest of the division by their number counts) and a script, as that of
//! target `llm` from its response on: bytes of the body, `~|` cuts, `~g`n is a gap of n bytes, `~u` one of unknown size,
//! `~a` an abort.

use std::sync::LazyLock;

use nexent_observer_core::http::{Head, Headers, HttpEventKind, RequestHead, ResponseHead, Side};

use crate::llm::{Cuts, Player, Step, steps};

/// The table of the core's fixtures, one call a line: so an API that has a fixture is fuzzed.
const TABLE: &str = include_str!("../../nexent-observer-core/tests/fixtures/llm/calls.json");

/// A call and the kind of its answer.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Call {
    host: &'static str,
    path: &'static str,
    status: u16,
    kind: &'static str,
}

/// The calls of the table, and two on paths that say nothing.
static CALLS: LazyLock<Vec<Call>> = LazyLock::new(|| {
    let unknown = |kind| Call { host: "h", path: "/unknown", status: 200, kind };
    let table = TABLE.lines().filter_map(|line| {
        let (_, extension) = text(line, "fixture")?.rsplit_once('.')?;
        let kind = match extension {
            "sse" => "text/event-stream",
            "ndjson" => "application/x-ndjson",
            "json" => "application/json",
            // Frames with checksums have a target of their own.
            _ => return None,
        };
        let status = if line.contains("\"status\"") { 429 } else { 200 };
        Some(Call { host: text(line, "host")?, path: text(line, "path")?, status, kind })
    });
    let mut calls: Vec<Call> = table.chain(["text/event-stream", "application/json"].map(unknown)).collect();
    calls.dedup();
    assert!(calls.len() > 20, "the table is read");
    calls
});

/// A string of a line of the table; none of them has an escape.
fn text(line: &'static str, key: &str) -> Option<&'static str> {
    let (_, rest) = line.split_once(&format!("\"{key}\": \""))?;
    rest.split('"').next()
}

/// Plays the script.
pub fn check(input: &[u8]) {
    let Some((call, script)) = input.split_first() else { return };
    let call = &CALLS[usize::from(call.wrapping_sub(b'A')) % CALLS.len()];
    let script = [b"~r", script].concat();
    let steps = steps(&script);
    let whole = run(call, &steps, Cuts::None);
    for cuts in [Cuts::Marked, Cuts::EveryByte] {
        assert_eq!(whole, run(call, &steps, cuts), "cuts change nothing");
    }
}

fn run(call: &Call, steps: &[Step<'_>], cuts: Cuts) -> crate::llm::Seen {
    let Call { host, path, status, kind } = *call;
    let mut player = Player::new();
    let headers = [("content-type", b"application/json".as_slice()), ("anthropic-version", b"2023-06-01")];
    let head = RequestHead { method: "POST", path, host: Some(host), headers: Headers(&headers) };
    player.head(Side::Request, Head::Request(head));
    let body = br#"{"model":"m","messages":[],"input":"x","prompt":"x","inputs":"x","contents":[],"stream":true}"#;
    player.step(&Step::Body(Side::Request, vec![body.as_slice()]), Cuts::None);
    let headers = [("content-type", kind.as_bytes())];
    let answer = Head::Response(ResponseHead { status: Some(status), headers: Headers(&headers) });
    let mut answered = false;
    for step in steps {
        let (Step::Body(side, _) | Step::Other(side, _)) = step;
        let abort = matches!(step, Step::Other(_, HttpEventKind::Abort(_)));
        if *side == Side::Response && !abort && !std::mem::replace(&mut answered, true) {
            player.head(Side::Response, answer);
        }
        player.step(step, cuts);
    }
    player.seen()
}
