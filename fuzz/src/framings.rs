//! Targets `ndjson`, `json_array` and `aws_events`: any bytes as the body of a streamed answer in one of these framings.
//!
//! The input is the body; `~|` cuts it, `~u` is a gap of unknown size. Of `aws_events` the input is the payloads of frames:
//! `~f` begins a frame, `~x` one that is damaged on the way, `~e` an exception; the frames are made here, with their checksums.
//! Whole and cut it must give the same; and without a gap the same as the same events in another framing.

use nexent_observer_core::{
    conn::GapCause,
    http::{Head, Headers, HttpEventKind, RequestHead, ResponseHead, Side},
};

use crate::{
    llm::{Cuts, Player, Seen, Step},
    script::{Op, parse},
};

/// A call whose answer comes in a framing.
struct Call {
    path: &'static str,
    kind: &'static [u8],
}

const OLLAMA: Call = Call { path: "/api/chat", kind: b"application/x-ndjson" };
const ARRAY: Call = Call { path: "/v1/models/m:streamGenerateContent", kind: b"application/json" };
const EVENTS: Call = Call { path: "/v1/models/m:streamGenerateContent", kind: b"text/event-stream" };
const CONVERSE: Call = Call { path: "/model/m/converse-stream", kind: b"application/vnd.amazon.eventstream" };

/// Bytes in pieces, or a gap.
enum Part<'a> {
    Pieces(Vec<&'a [u8]>),
    Gap,
}

fn parts(script: &[u8]) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    for op in parse(script, b"") {
        match (op, parts.last_mut()) {
            (Op::Bytes(bytes), Some(Part::Pieces(pieces))) => pieces.push(bytes),
            (Op::Bytes(bytes), _) => parts.push(Part::Pieces(vec![bytes])),
            (Op::Mark(b'u', _), _) => parts.push(Part::Gap),
            (Op::Mark(..), _) => {}
        }
    }
    parts
}

fn run(call: &Call, parts: &[Part<'_>], cuts: Cuts) -> Seen {
    let mut player = Player::new();
    let host = Some("localhost:11434");
    let request = RequestHead { method: "POST", path: call.path, host, headers: Headers(&[]) };
    player.head(Side::Request, Head::Request(request));
    player.step(&Step::Other(Side::Request, HttpEventKind::End), Cuts::None);
    let headers = [("content-type", call.kind)];
    player.head(Side::Response, Head::Response(ResponseHead { status: Some(200), headers: Headers(&headers) }));
    for part in parts {
        let step = match part {
            Part::Pieces(pieces) => Step::Body(Side::Response, pieces.clone()),
            Part::Gap => Step::Other(Side::Response, HttpEventKind::Gap { len: None, cause: GapCause::Lost }),
        };
        player.step(&step, cuts);
    }
    player.step(&Step::Other(Side::Response, HttpEventKind::End), Cuts::None);
    player.seen()
}

/// The same in every cut; its log.
fn same_in_every_cut(call: &Call, parts: &[Part<'_>]) -> Seen {
    let whole = run(call, parts, Cuts::None);
    for cuts in [Cuts::Marked, Cuts::EveryByte] {
        assert_eq!(whole, run_cut(call, parts, cuts), "cuts change nothing");
    }
    whole
}

#[cfg(not(feature = "planted"))]
fn run_cut(call: &Call, parts: &[Part<'_>], cuts: Cuts) -> Seen {
    run(call, parts, cuts)
}

#[cfg(feature = "planted")]
fn run_cut(call: &Call, parts: &[Part<'_>], cuts: Cuts) -> Seen {
    let changed: Vec<Option<Vec<u8>>> = parts
        .iter()
        .map(|part| match part {
            Part::Pieces(pieces) => Some(crate::planted::damaged_by_cut(&pieces.concat(), call.kind)),
            Part::Gap => None,
        })
        .collect();
    let parts: Vec<Part<'_>> =
        changed.iter().map(|bytes| bytes.as_ref().map_or(Part::Gap, |bytes| Part::Pieces(vec![bytes]))).collect();
    run(call, &parts, cuts)
}

/// The body without gaps; `None` when there is one.
fn plain(parts: &[Part<'_>]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    for part in parts {
        let Part::Pieces(pieces) = part else { return None };
        body.extend(pieces.concat());
    }
    Some(body)
}

/// What was said, without when: stamps count the steps.
fn said(seen: Seen) -> Vec<String> {
    seen.log.into_iter().filter_map(|line| line.split_once("kind: ").map(|(_, kind)| kind.to_owned())).collect()
}

/// Target `ndjson`.
pub fn ndjson(input: &[u8]) {
    let parts = parts(input);
    let whole = same_in_every_cut(&OLLAMA, &parts);
    let Some(body) = plain(&parts) else { return };
    // Blank lines and blanks around a line say nothing. Of the last line it is not known whether it is whole.
    let mut lines: Vec<&[u8]> = body.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).collect();
    let last = lines.pop().unwrap_or_default();
    lines.retain(|line| !line.is_empty());
    let mut plain: Vec<u8> = lines.iter().flat_map(|line| [*line, b"\n"].concat()).collect();
    plain.extend_from_slice(last);
    let plain = run(&OLLAMA, &[Part::Pieces(vec![&plain])], Cuts::None);
    assert_eq!(said(whole), said(plain), "blanks say nothing");
}

/// Target `json_array`.
pub fn json_array(input: &[u8]) {
    let input = [b"[", input].concat();
    let parts = parts(&input);
    let whole = same_in_every_cut(&ARRAY, &parts);
    let Some(body) = plain(&parts) else { return };
    let elements = elements(&body);
    if elements.iter().any(|element| element.contains(&b'\r') || element.contains(&b'\n')) {
        return;
    }
    let mut events = b":\n".to_vec();
    for element in elements {
        events.extend([b"data: ", element, b"\n\n"].concat());
    }
    let events = run(&EVENTS, &[Part::Pieces(vec![&events])], Cuts::None);
    let about = |seen: Seen| -> Vec<String> {
        // The heads tell of the framings.
        seen.log.into_iter().filter(|line| !line.contains("kind: Response")).collect()
    };
    assert_eq!(about(whole), about(events), "the elements are the events");
}

/// The whole objects in an array, found by counting braces outside of strings.
fn elements(body: &[u8]) -> Vec<&[u8]> {
    let (mut found, mut depth, mut start, mut text, mut escaped) = (Vec::new(), 0_u32, 0, false, false);
    for (i, b) in body.iter().enumerate() {
        match (text, b) {
            (true, _) if std::mem::take(&mut escaped) => {}
            (true, b'\\') => escaped = true,
            (true, b'"') => text = false,
            (true, _) => {}
            (false, b'"') => text = depth > 0,
            (false, b'{') => {
                if depth == 0 {
                    start = i;
                }
                depth += 1;
            }
            (false, b'}') if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    found.push(&body[start..=i]);
                }
            }
            _ => {}
        }
    }
    // What is left open is told at the end, as not whole.
    if depth > 0 {
        found.push(&body[start..]);
    }
    found
}

/// Target `aws_events`.
pub fn aws_events(input: &[u8]) {
    let (mut frames, mut kinds) = (Vec::<Vec<u8>>::new(), Vec::new());
    for op in parse(input, b"") {
        match (op, frames.last_mut()) {
            (Op::Mark(mark @ (b'f' | b'x' | b'e' | b'u'), _), _) => {
                frames.push(Vec::new());
                kinds.push(mark);
            }
            (Op::Bytes(bytes), Some(frame)) => frame.extend_from_slice(bytes),
            _ => {}
        }
    }
    let built: Vec<Vec<u8>> = frames.iter().zip(&kinds).map(|(payload, kind)| frame(payload, *kind)).collect();
    let parts = |keep: fn(u8) -> bool| -> Vec<Part<'_>> {
        let kept = built.iter().zip(&kinds).filter(|(_, kind)| keep(**kind));
        kept.map(|(bytes, kind)| if *kind == b'u' { Part::Gap } else { Part::Pieces(vec![bytes]) }).collect()
    };
    let whole = same_in_every_cut(&CONVERSE, &parts(|_| true));
    if kinds.contains(&b'x') && !kinds.contains(&b'u') {
        let intact = run(&CONVERSE, &parts(|kind| kind != b'x'), Cuts::None);
        assert_eq!(said(whole), said(intact), "a damaged frame costs itself");
    }
}

/// A frame as the service makes it.
fn frame(payload: &[u8], kind: u8) -> Vec<u8> {
    let headers: [(&str, &str); 2] = if kind == b'e' {
        [(":message-type", "exception"), (":exception-type", "throttlingException")]
    } else {
        [(":message-type", "event"), (":event-type", "contentBlockDelta")]
    };
    let mut head = Vec::new();
    for (name, value) in headers {
        head.push(name.len() as u8);
        head.extend(name.as_bytes());
        head.push(7);
        head.extend((value.len() as u16).to_be_bytes());
        head.extend(value.as_bytes());
    }
    let mut out = ((16 + head.len() + payload.len()) as u32).to_be_bytes().to_vec();
    out.extend((head.len() as u32).to_be_bytes());
    out.extend(crc32(&out).to_be_bytes());
    out.extend(head);
    out.extend(payload);
    let mut check = crc32(&out);
    if kind == b'x' {
        check ^= 1;
    }
    out.extend(check.to_be_bytes());
    out
}

/// CRC-32 (IEEE 802.3), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}
