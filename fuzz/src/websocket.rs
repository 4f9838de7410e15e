//! Target `websocket`: any bytes on an upgraded connection, cut and with gaps.
//!
//! The input is one letter (`d` with permessage-deflate, `n` with it and without context takeover, else without) and a
//! script: `~c`, `~s` switch to bytes of the client, of the server; `~|` cuts a record; `~g`n is a gap of n + 1 bytes, `~u` one of
//! unknown size.

use nexent_observer_core::{
    conn::{CloseCause, GapCause, StreamEvent},
    event::{
        Direction::{self, Read, Write},
        MonoNs, Stamp,
    },
    http::{HttpConnection, HttpEvent, HttpEventKind, Message, Side, StartSeen},
    limits,
    stats::{DropReason, Stats},
};

use crate::{
    llm::Cuts,
    script::{Op, parse},
};

/// What a run gave.
#[derive(Debug, PartialEq)]
struct Run {
    messages: Vec<(bool, String)>,
    gaps: usize,
    drops: u64,
}

enum Step<'a> {
    Bytes(Direction, Vec<&'a [u8]>),
    Gap(Direction, Option<u64>),
}

fn steps(script: &[u8]) -> Vec<Step<'_>> {
    let (mut steps, mut dir) = (Vec::new(), Write);
    let mut fresh = true;
    for op in parse(script, b"g") {
        match op {
            Op::Bytes(bytes) => match steps.last_mut() {
                Some(Step::Bytes(_, pieces)) if !fresh => pieces.push(bytes),
                _ => {
                    steps.push(Step::Bytes(dir, vec![bytes]));
                    fresh = false;
                }
            },
            Op::Mark(b'|', _) => {}
            Op::Mark(b'g', n) => {
                steps.push(Step::Gap(dir, Some(u64::from(n) + 1)));
                fresh = true;
            }
            Op::Mark(b'u', _) => {
                steps.push(Step::Gap(dir, None));
                fresh = true;
            }
            Op::Mark(mark, _) => {
                dir = if mark == b's' { Read } else { Write };
                fresh = true;
            }
        }
    }
    steps
}

fn run(extension: &str, steps: &[Step<'_>], cuts: Cuts) -> Run {
    let mut connection = HttpConnection::new(StartSeen::Yes);
    let mut stats = Stats::default();
    let mut run = Run { messages: Vec::new(), gaps: 0, drops: 0 };
    let mut ends = 0;
    let mut feed = |event: StreamEvent<'_>| {
        connection.feed(&event, &mut stats, &mut |event: HttpEvent<'_>| match event.kind {
            HttpEventKind::Message(message) => {
                assert!(message.bytes.len() <= limits::MESSAGE_BYTES && message.bytes.len() as u64 <= message.len);
                #[cfg(feature = "planted")]
                let message = crate::planted::short_message(cuts, message);
                let Message { kind, len, bytes, .. } = message;
                let text = format!("{kind:?} {len} {}", bytes.escape_ascii());
                run.messages.push((event.side == Side::Request, text));
            }
            HttpEventKind::Gap { .. } => run.gaps += 1,
            HttpEventKind::Body(_) => panic!("a WebSocket has no body"),
            HttpEventKind::Abort(_) => ends += 1,
            HttpEventKind::End if event.side == Side::Response => ends += 1,
            _ => {}
        });
    };
    let at = Stamp::default();
    let ask = b"GET /v1/realtime HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    feed(StreamEvent::Data { dir: Write, at, bytes: ask });
    let answer = format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n{extension}\r\n");
    feed(StreamEvent::Data { dir: Read, at, bytes: answer.as_bytes() });
    for step in steps {
        match step {
            Step::Gap(dir, len) => feed(StreamEvent::Gap { dir: *dir, at, len: *len, cause: GapCause::Lost }),
            Step::Bytes(dir, pieces) => {
                let whole = pieces.concat();
                let pieces = match cuts {
                    Cuts::None => vec![whole.as_slice()],
                    Cuts::Marked => pieces.clone(),
                    Cuts::EveryByte => whole.chunks(1).collect(),
                };
                pieces.into_iter().for_each(|bytes| feed(StreamEvent::Data { dir: *dir, at, bytes }));
            }
        }
    }
    feed(StreamEvent::Close { at: MonoNs(0), cause: CloseCause::Freed });
    assert_eq!(ends, 1, "the exchange ends once");
    run.drops = DropReason::ALL.iter().map(|reason| stats.drops(*reason)).sum();
    run
}

/// Plays the script.
pub fn check(input: &[u8]) {
    let Some((first, script)) = input.split_first() else { return };
    let extension = match first {
        b'd' => "Sec-WebSocket-Extensions: permessage-deflate\r\n",
        b'n' => {
            "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
        }
        _ => "",
    };
    let steps = steps(script);
    let whole = run(extension, &steps, Cuts::None);
    let (marked, every) = (run(extension, &steps, Cuts::Marked), run(extension, &steps, Cuts::EveryByte));
    // Bytes that are no frame are given up by records, so cuts may tell there.
    if whole.drops == 0 && whole.gaps == 0 {
        assert_eq!(whole, marked, "wherever records are cut, the messages are the same");
        assert_eq!(whole, every, "cut at every byte");
    }
}
