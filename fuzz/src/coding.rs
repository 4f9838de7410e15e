//! Target `coding`: any bytes as a compressed body, whole and in pieces, against another way to read them.
//!
//! The input is a letter for the coding, the size of the pieces, and the body.

use std::io::Read;

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use nexent_observer_core::{
    conn::{CloseCause, StreamEvent},
    event::{
        Direction::{Read as In, Write as Out},
        MonoNs, Stamp,
    },
    http::{HttpConnection, HttpEvent, HttpEventKind, StartSeen},
    limits,
    stats::{DropReason, Stats},
};

const CODINGS: [&str; 6] = ["gzip", "deflate", "br", "zstd", "gzip, br", "deflate, gzip"];

/// What became of a body.
#[derive(Debug, PartialEq)]
struct Body {
    bytes: Vec<u8>,
    gaps: usize,
    drops: Vec<u64>,
}

fn run(coding: &str, body: &[u8], size: usize) -> Body {
    let mut connection = HttpConnection::new(StartSeen::Yes);
    let mut stats = Stats::default();
    let mut out = Body { bytes: Vec::new(), gaps: 0, drops: Vec::new() };
    let mut feed = |event: StreamEvent<'_>| {
        connection.feed(&event, &mut stats, &mut |event: HttpEvent<'_>| match event.kind {
            HttpEventKind::Body(bytes) => {
                assert!(!bytes.is_empty());
                out.bytes.extend_from_slice(bytes);
            }
            HttpEventKind::Gap { .. } => out.gaps += 1,
            _ => {}
        });
    };
    let mut data = |dir, bytes: &[u8]| feed(StreamEvent::Data { dir, at: Stamp::default(), bytes });
    data(Out, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    data(In, format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\n\r\n").as_bytes());
    body.chunks(size).for_each(|piece| data(In, piece));
    feed(StreamEvent::Close { at: MonoNs(0), cause: CloseCause::Freed });
    out.drops = DropReason::ALL.iter().map(|reason| stats.drops(*reason)).collect();
    out
}

/// Decodes the body.
pub fn check(input: &[u8]) {
    let [coding, size, body @ ..] = input else { return };
    let index = usize::from(coding.wrapping_sub(b'0')) % CODINGS.len();
    let (coding, size) = (CODINGS[index], usize::from(*size).max(1));
    let whole = run(coding, body, body.len().max(1));
    let cap = limits::DECODED_FREE_BYTES + limits::DECODED_RATIO * body.len() as u64;
    assert!(whole.bytes.len() as u64 <= cap, "more than the cap");
    #[cfg(feature = "planted")]
    let body = crate::planted::short_body(index, size, body);
    let pieces = run(coding, body, size);
    assert_eq!(whole.drops, pieces.drops, "pieces change nothing");
    // How far a decoder comes before it notices damage may differ, and so may which of two notices it: data behind the end of the inner
    // stream is no gap, damage in the outer one is.
    let bad = whole.drops.iter().any(|count| *count > 0);
    assert!(bad || whole.gaps == pieces.gaps, "pieces make no gap");
    let same = if bad {
        whole.bytes.starts_with(&pieces.bytes) || pieces.bytes.starts_with(&whole.bytes)
    } else {
        whole.bytes == pieces.bytes
    };
    assert!(same, "pieces give the same bytes");
    if !bad && !body.is_empty() {
        let mut other = Vec::new();
        let read = match coding {
            "gzip" => MultiGzDecoder::new(body).read_to_end(&mut other).is_ok(),
            "deflate" => {
                ZlibDecoder::new(body).read_to_end(&mut other).is_ok() || {
                    other.clear();
                    DeflateDecoder::new(body).read_to_end(&mut other).is_ok()
                }
            }
            _ => return,
        };
        assert!(!read || other == whole.bytes, "another reader reads the same");
    }
}
