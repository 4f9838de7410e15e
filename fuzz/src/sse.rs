//! Target `sse`: any bytes as the body of a streamed answer, against the HTML standard's reading of an event stream.
//!
//! The input is the body; `~|` cuts it. Whole, cut, and written anew event by event it must give the same.

use nexent_observer_core::http::{Head, Headers, HttpEventKind, RequestHead, ResponseHead, Side};

use crate::{
    llm::{Cuts, Player, Step},
    script::{Op, parse},
};

/// Feeds the body.
pub fn check(input: &[u8]) {
    let pieces: Vec<&[u8]> = parse(input, b"")
        .into_iter()
        .filter_map(|op| if let Op::Bytes(bytes) = op { Some(bytes) } else { None })
        .collect();
    if pieces.is_empty() {
        return;
    }
    let whole = run(&pieces, Cuts::None, true);
    for cuts in [Cuts::Marked, Cuts::EveryByte] {
        assert_eq!(whole, run(&pieces, cuts, true), "cuts change nothing");
    }
    // What is read beyond the standard (errors that servers write without `data:`) has tests of its own.
    let body = pieces.concat();
    let mut lines = body.split(|b| matches!(b, b'\r' | b'\n'));
    if lines.any(|line| line.starts_with(b"{") || line.starts_with(b"[") || line.starts_with(b"error:")) {
        return;
    }
    // A comment in front: these bytes are a stream, and its very beginning (byte-order mark, other framings) is over.
    let body = [b":\n", pieces.concat().as_slice()].concat();
    let rewritten = [b":\n", rewrite(&body).as_slice()].concat();
    let (body, rewritten) = (run(&[&body], Cuts::None, false), run(&[&rewritten], Cuts::None, false));
    assert_eq!(body, rewritten, "the standard reads the same events");
}

fn run(pieces: &[&[u8]], cuts: Cuts, to_the_end: bool) -> crate::llm::Seen {
    let mut player = Player::new();
    let headers = Headers(&[("content-type", b"text/event-stream")]);
    let request = RequestHead { method: "POST", path: "/v1/chat/completions", host: None, headers: Headers(&[]) };
    player.head(Side::Request, Head::Request(request));
    player.step(&Step::Other(Side::Request, HttpEventKind::End), Cuts::None);
    player.head(Side::Response, Head::Response(ResponseHead { status: Some(200), headers }));
    #[cfg(feature = "planted")]
    let kept = if cuts == Cuts::None { None } else { Some(crate::planted::split_line_ends(pieces, cuts)) };
    #[cfg(feature = "planted")]
    let pieces = &kept.as_ref().map_or_else(|| pieces.to_vec(), |kept| vec![kept.as_slice()])[..];
    player.step(&Step::Body(Side::Response, pieces.to_vec()), cuts);
    if to_the_end {
        player.step(&Step::Other(Side::Response, HttpEventKind::End), Cuts::None);
    }
    player.seen()
}

/// The events of a body as the standard reads them (HTML section 9.2.6), written in one plain way.
fn rewrite(body: &[u8]) -> Vec<u8> {
    let mut lines = Vec::new();
    let mut rest = body;
    while let Some(end) = rest.iter().position(|b| matches!(b, b'\r' | b'\n')) {
        lines.push(&rest[..end]);
        let both = rest[end..].starts_with(b"\r\n");
        rest = &rest[end + 1 + usize::from(both)..];
    }
    let (mut out, mut data, mut name) = (Vec::new(), Vec::<&[u8]>::new(), &b""[..]);
    for line in lines {
        if line.is_empty() {
            // An event without data is none; one empty data line is no data.
            if data.iter().any(|line| !line.is_empty()) || data.len() > 1 {
                out.extend([b"event: ", name, b"\n"].concat());
                for line in &data {
                    out.extend([b"data: ", *line, b"\n"].concat());
                }
                out.push(b'\n');
            }
            (data, name) = (Vec::new(), b"");
            continue;
        }
        let colon = line.iter().position(|b| *b == b':');
        let (field, value) = colon.map_or((line, &b""[..]), |at| (&line[..at], &line[at + 1..]));
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => data.push(value),
            b"event" => name = value,
            _ => {}
        }
    }
    out
}
