//! What the tests put on the wire, and what they read from the stage.

use httlib_hpack::Encoder;

use crate::{
    conn::{CloseCause, GapCause, StreamEvent},
    event::{
        Direction::{self, *},
        MonoNs, Stamp,
    },
    http::{Head, HttpConnection, HttpEvent, HttpEventKind, Side, StartSeen},
    stats::{DropReason, Stats},
};

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

pub(super) fn data(stream: u32, end: bool, body: &[u8]) -> Vec<u8> {
    frame(0, u8::from(end), stream, body)
}

/// DATA with `pad` bytes of padding.
pub(super) fn padded(stream: u32, end: bool, body: &[u8], pad: u8) -> Vec<u8> {
    frame(0, 8 | u8::from(end), stream, &[&[pad], body, &vec![0; usize::from(pad)]].concat())
}

pub(super) fn settings(entries: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        entries.iter().flat_map(|(id, v)| [&id.to_be_bytes()[..], &v.to_be_bytes()].concat()).collect();
    frame(4, 0, 0, &payload)
}

pub(super) fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(3, 0, stream, &code.to_be_bytes())
}

pub(super) fn go_away(last: u32) -> Vec<u8> {
    frame(7, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())
}

/// One side of a connection: it encodes its heads with a dynamic table.
pub(super) struct Peer(Encoder<'static>);

impl Peer {
    pub(super) fn new() -> Self {
        Self(Encoder::with_dynamic_size(4096))
    }

    pub(super) fn block(&mut self, fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        let flags = Encoder::BEST_FORMAT | Encoder::WITH_INDEXING | Encoder::HUFFMAN_VALUE;
        for (name, value) in fields {
            self.0.encode((name.as_bytes().to_vec(), value.as_bytes().to_vec(), flags), &mut block).unwrap();
        }
        block
    }

    pub(super) fn headers(&mut self, stream: u32, end: bool, fields: &[(&str, &str)]) -> Vec<u8> {
        let block = self.block(fields);
        frame(1, 4 | u8::from(end), stream, &block)
    }

    /// POST to `path` at host h.
    pub(super) fn post(&mut self, stream: u32, path: &str) -> Vec<u8> {
        let fields = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "h")];
        self.headers(stream, false, &fields)
    }

    /// A head with status and the field `server`.
    pub(super) fn answer(&mut self, stream: u32, end: bool, status: &str, x: &str) -> Vec<u8> {
        self.headers(stream, end, &[(":status", status), ("server", x)])
    }
}

pub(super) fn stamp(at: u64) -> Stamp {
    Stamp { entry: MonoNs(at), ret: MonoNs(at) }
}

/// A connection under test. Every call of a feeding method is one record; its time is one later than the last.
pub(super) struct Bench {
    pub(super) conn: HttpConnection,
    pub(super) stats: Stats,
    pub(super) now: u64,
    /// One line per event; neighbouring bodies of a message are one line.
    pub(super) log: Vec<String>,
    /// Exchange, side and stamp of each event.
    pub(super) stamps: Vec<(u32, Side, u64)>,
}

impl Bench {
    pub(super) fn new(start: StartSeen) -> Self {
        Self { conn: HttpConnection::new(start), stats: Stats::default(), now: 0, log: vec![], stamps: vec![] }
    }

    /// Of a client, from the start, with the preface and both SETTINGS exchanged.
    pub(super) fn client() -> Self {
        let mut b = Self::new(StartSeen::Yes);
        b.w(&[PREFACE, &settings(&[(1, 4096), (2, 0)])].concat()).r(&settings(&[(3, 100)])).expect(&[]);
        b.now = 0;
        b
    }

    pub(super) fn joined() -> Self {
        Self::new(StartSeen::No)
    }

    pub(super) fn event(&mut self, ev: StreamEvent<'_>) -> &mut Self {
        let (log, stamps) = (&mut self.log, &mut self.stamps);
        self.conn.feed(&ev, &mut self.stats, &mut |ev| {
            stamps.push((ev.exchange.0, ev.side, ev.at.ret.0));
            record(log, &ev);
        });
        self
    }

    pub(super) fn data(&mut self, dir: Direction, bytes: &[u8]) -> &mut Self {
        self.now += 1;
        self.event(StreamEvent::Data { dir, at: stamp(self.now), bytes })
    }

    /// The process writes.
    pub(super) fn w(&mut self, bytes: &[u8]) -> &mut Self {
        self.data(Write, bytes)
    }

    /// The process reads.
    pub(super) fn r(&mut self, bytes: &[u8]) -> &mut Self {
        self.data(Read, bytes)
    }

    pub(super) fn gap(&mut self, dir: Direction, len: Option<u64>, cause: GapCause) -> &mut Self {
        self.now += 1;
        self.event(StreamEvent::Gap { dir, at: stamp(self.now), len, cause })
    }

    pub(super) fn lost(&mut self, dir: Direction, len: usize) -> &mut Self {
        self.gap(dir, Some(len as u64), GapCause::Lost)
    }

    pub(super) fn close(&mut self, cause: CloseCause) -> &mut Self {
        self.now += 1;
        self.event(StreamEvent::Close { at: MonoNs(self.now), cause })
    }

    #[track_caller]
    pub(super) fn expect(&mut self, lines: &[&str]) -> &mut Self {
        assert_eq!(self.log, lines);
        self.log.clear();
        self
    }

    #[track_caller]
    pub(super) fn counted(&self, reasons: &[(DropReason, u64)]) -> &Self {
        let all = DropReason::ALL.into_iter().filter(|r| self.stats.drops(*r) > 0);
        let all: Vec<_> = all.map(|r| (r, self.stats.drops(r))).collect();
        assert_eq!(all, reasons);
        self
    }
}

fn record(log: &mut Vec<String>, ev: &HttpEvent<'_>) {
    let side = if ev.side == Side::Request { '>' } else { '<' };
    let no = ev.exchange.0;
    let line = match ev.kind {
        HttpEventKind::Head { first, head } => {
            let first = first.ret.0;
            match head {
                Head::Request(h) => {
                    format!("{no}{side} {} {} {} @{first}", h.method, h.path, h.host.unwrap_or("-"))
                }
                Head::Response(h) => {
                    let status = h.status.map_or_else(|| "?".into(), |s| s.to_string());
                    format!("{no}{side} {status} {} @{first}", h.headers.get("server").unwrap_or("-"))
                }
                Head::Unseen => format!("{no}{side} unseen"),
            }
        }
        HttpEventKind::Body(bytes) => {
            assert!(!bytes.is_empty());
            let prefix = format!("{no}{side} body ");
            let text = String::from_utf8_lossy(bytes);
            // The last body of this message, unless something else of this side came in between.
            let mine = |l: &&mut String| l.starts_with(&format!("{no}{side}"));
            if let Some(last) = log.iter_mut().rfind(mine).filter(|l| l.starts_with(&prefix)) {
                last.push_str(&text);
                return;
            }
            format!("{prefix}{text}")
        }
        HttpEventKind::Gap { len, cause } => {
            format!("{no}{side} gap {} {cause:?}", len.map_or_else(|| "?".into(), |n| n.to_string()))
        }
        HttpEventKind::Message(message) => {
            format!("{no}{side} {:?} {}", message.kind, String::from_utf8_lossy(message.bytes))
        }
        HttpEventKind::End => format!("{no}{side} end"),
        HttpEventKind::Abort(cause) => format!("{no}! {cause:?}"),
    };
    log.push(line);
}

/// Checks the contract of the output: a head first, nothing after the end of a side, nothing after an abort.
pub(super) fn contract(log: &[String]) -> Result<(), String> {
    let mut sides = std::collections::HashMap::new();
    let mut aborted = std::collections::HashSet::new();
    for line in log {
        let (no, rest) = line.split_at(line.find(['>', '<', '!']).unwrap());
        if aborted.contains(no) {
            return Err(format!("{line} after its abort in {log:#?}"));
        }
        let (side, what) = rest.split_at(1);
        if side == "!" {
            aborted.insert(no.to_owned());
            continue;
        }
        let what = what.trim_start();
        let state = sides.entry((no.to_owned(), side.to_owned())).or_insert(0);
        let expected = i32::from(what == "end" || what.starts_with("body") || what.starts_with("gap"));
        if *state != expected {
            return Err(format!("{line} out of order in {log:#?}"));
        }
        *state = if what == "end" { 2 } else { 1 };
    }
    Ok(())
}
