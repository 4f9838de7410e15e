//! Target `http1`: the byte streams of one connection, cut and with gaps, against the order of events that `http/mod.rs`
//! promises.
//!
//! The input is one letter (`s` seen from its start, else joined midway) and a script: `~w`, `~r` switch to bytes that are
//! written, read; `~|` cuts a record; `~g`n a gap of n bytes, `~G`n of 2^n, `~u` of unknown size, `~k`n of n bytes left out on
//! purpose; `~x`, `~e`, `~v` the end (freed, process gone, let go).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use nexent_observer_core::{
    conn::{CloseCause, GapCause, StreamEvent},
    event::{Direction, MonoNs, Stamp},
    http::{Head, HttpConnection, HttpEvent, HttpEventKind, RequestHead, ResponseHead, Side, StartSeen},
    limits::OPEN_EXCHANGES,
    stats::{DropReason, Stats},
};

#[cfg(feature = "planted")]
use crate::planted::{Cut, piece_of_chunked};
use crate::script::{Op, parse};

/// One step: bytes of one moment, in the pieces that the script cuts them into, or a gap, or the end.
pub(crate) enum Step<'a> {
    Bytes(Direction, Vec<&'a [u8]>),
    Gap(Direction, Option<u64>, GapCause),
    Close(CloseCause),
}

fn steps(script: &[u8]) -> Vec<Step<'_>> {
    let (mut steps, mut dir) = (Vec::new(), Direction::Write);
    let mut same_moment = false;
    for op in parse(script, b"gGk") {
        let step = match op {
            Op::Bytes(bytes) => {
                if let (true, Some(Step::Bytes(_, pieces))) = (same_moment, steps.last_mut()) {
                    pieces.push(bytes);
                    continue;
                }
                Step::Bytes(dir, vec![bytes])
            }
            Op::Mark(b'|', _) => continue,
            Op::Mark(b'w' | b'r', _) => {
                dir = if op == Op::Mark(b'r', 0) { Direction::Read } else { Direction::Write };
                same_moment = false;
                continue;
            }
            Op::Mark(b'g', n) => Step::Gap(dir, Some(u64::from(n) + 1), GapCause::Lost),
            Op::Mark(b'G', n) => Step::Gap(dir, Some(1 << (n % 64)), GapCause::Fault),
            Op::Mark(b'k', n) => Step::Gap(dir, Some(u64::from(n) + 1), GapCause::Capped),
            Op::Mark(b'u', _) => Step::Gap(dir, None, GapCause::Lost),
            Op::Mark(b'x', _) => Step::Close(CloseCause::Freed),
            Op::Mark(b'e', _) => Step::Close(CloseCause::ProcessExit),
            Op::Mark(b'v', _) => Step::Close(CloseCause::Evicted),
            Op::Mark(..) => continue,
        };
        same_moment = matches!(step, Step::Bytes(..));
        let last = matches!(step, Step::Close(_));
        steps.push(step);
        // Nothing follows a close: the stage before sees to it.
        if last {
            break;
        }
    }
    steps
}

/// How the bytes of a moment are cut.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Cuts {
    None,
    Marked,
    EveryByte,
}

/// What a run gave: one line an event, neighbouring bodies joined.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Run {
    pub(crate) log: Vec<String>,
    pub(crate) drops: u64,
}

pub(crate) fn run(start: StartSeen, steps: &[Step<'_>], cuts: Cuts, mirrored: bool) -> Run {
    let turned = |dir| match dir {
        Direction::Read if mirrored => Direction::Write,
        Direction::Write if mirrored => Direction::Read,
        dir => dir,
    };
    let mut connection = HttpConnection::new(start);
    let contract = Contract { coded: start == StartSeen::No && may_be_sniffed(steps), ..Contract::default() };
    let (mut stats, mut contract, mut log) = (Stats::default(), contract, Log::default());
    for (i, step) in steps.iter().enumerate() {
        contract.now = MonoNs(i as u64 + 1);
        let at = Stamp { entry: contract.now, ret: contract.now };
        #[cfg(feature = "planted")]
        let mut planted = Cut::default();
        let mut feed = |event: StreamEvent<'_>| {
            #[cfg(feature = "planted")]
            let event = if cuts == Cuts::None { event } else { piece_of_chunked(&mut planted, event) };
            connection.feed(&event, &mut stats, &mut |event| {
                contract.event(&event);
                log.event(&event);
            });
        };
        match step {
            Step::Gap(dir, len, cause) => feed(StreamEvent::Gap { dir: turned(*dir), at, len: *len, cause: *cause }),
            Step::Close(cause) => feed(StreamEvent::Close { at: contract_now(i), cause: *cause }),
            Step::Bytes(dir, pieces) => {
                let whole = pieces.concat();
                let pieces = match cuts {
                    Cuts::None => vec![whole.as_slice()],
                    Cuts::Marked => pieces.clone(),
                    Cuts::EveryByte => whole.chunks(1).collect(),
                };
                for bytes in pieces {
                    feed(StreamEvent::Data { dir: turned(*dir), at, bytes });
                }
            }
        }
        let Step::Bytes(_, pieces) = step else { continue };
        contract.fed += pieces.iter().map(|p| p.len() as u64).sum::<u64>();
        assert!(contract.coded || contract.given <= contract.fed, "more body than bytes");
    }
    assert_eq!(stats.http_exchanges, contract.exchanges.len() as u64);
    if let Some(Step::Close(_)) = steps.last() {
        assert_eq!(contract.open(), 0, "a close ends every exchange");
    }
    Run { log: log.lines, drops: DropReason::ALL.iter().map(|reason| stats.drops(*reason)).sum() }
}

/// Whether a body may begin with the magic number of gzip or zstd: where the head may not have been seen, that tells the coding.
/// The number may be spread over frames, so only its first two bytes are looked for, anywhere.
fn may_be_sniffed(steps: &[Step<'_>]) -> bool {
    let has = |byte: &u8| {
        let in_step =
            |step: &Step<'_>| matches!(step, Step::Bytes(_, pieces) if pieces.iter().any(|bytes| bytes.contains(byte)));
        steps.iter().any(in_step)
    };
    [[0x1f, 0x8b], [0x28, 0xb5]].iter().any(|magic| magic.iter().all(has))
}

fn contract_now(step: usize) -> MonoNs {
    MonoNs(step as u64 + 1)
}

/// Plays the script.
pub fn check(input: &[u8]) {
    let Some((first, script)) = input.split_first() else { return };
    let start = if *first == b's' { StartSeen::Yes } else { StartSeen::No };
    let steps = steps(script);
    let whole = run(start, &steps, Cuts::None, false);
    let mirrored = run(start, &steps, Cuts::None, true);
    assert_eq!(whole.log, mirrored.log, "a server is a client with directions swapped");
    let marked = run(start, &steps, Cuts::Marked, false);
    // Bytes that are not what they should be are given up by records, so cuts may tell there.
    let gap = steps.iter().any(|step| matches!(step, Step::Gap(..)));
    if start == StartSeen::Yes && !gap && whole.drops == 0 && !ends_in_bad_head(&steps) {
        assert_eq!(whole, marked, "wherever records are cut, the events are the same");
        assert_eq!(whole, run(start, &steps, Cuts::EveryByte, false), "cut at every byte");
    }
}

/// Whether a direction ends in the beginning of a head that could not be completed: when that is noticed is open.
fn ends_in_bad_head(steps: &[Step<'_>]) -> bool {
    let mut connection = HttpConnection::new(StartSeen::Yes);
    let mut stats = Stats::default();
    let mut feed = |dir, bytes: &[u8]| {
        connection.feed(&StreamEvent::Data { dir, at: Stamp::default(), bytes }, &mut stats, &mut |_| {});
    };
    for step in steps {
        if let Step::Bytes(dir, pieces) = step {
            feed(*dir, &pieces.concat());
        }
    }
    for dir in [Direction::Write, Direction::Read] {
        feed(dir, b"\r\n\r\n");
    }
    [DropReason::NotHttp, DropReason::HeadInvalid, DropReason::HeadTooLong].iter().any(|r| stats.drops(*r) > 0)
}

#[derive(Debug, Default)]
struct Log {
    lines: Vec<String>,
    body_of: Option<(u32, Side)>,
}

impl Log {
    fn event(&mut self, event: &HttpEvent<'_>) {
        let message = (event.exchange.0, event.side);
        let HttpEventKind::Body(bytes) = event.kind else {
            self.body_of = None;
            return self.lines.push(format!("{event:?}"));
        };
        if self.body_of.replace(message) != Some(message) {
            self.lines.push(format!("{message:?} {:?} ", event.at.ret));
        }
        let Some(line) = self.lines.last_mut() else { return };
        write!(line, "{}", bytes.escape_ascii()).expect("a string takes all");
    }
}

/// Where a message is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Part {
    #[default]
    Before,
    Within,
    Ended,
}

/// The order of events that `http/mod.rs` promises.
#[derive(Debug, Default)]
struct Contract {
    now: MonoNs,
    exchanges: BTreeMap<u32, ([Part; 2], bool)>,
    fed: u64,
    given: u64,
    /// A body may become longer than it is on the wire.
    coded: bool,
}

impl Contract {
    fn event(&mut self, event: &HttpEvent<'_>) {
        let HttpEvent { exchange, side, at, kind } = event;
        assert!(at.ret <= self.now, "a stamp of a later call");
        let begins = matches!(kind, HttpEventKind::Head { .. });
        let newest = self.exchanges.last_key_value().map(|(no, _)| *no);
        assert!(begins || newest.is_some_and(|newest| exchange.0 <= newest), "an exchange begins with a head");
        let (parts, aborted) = self.exchanges.entry(exchange.0).or_default();
        assert!(!*aborted, "an abort is the last event");
        let part = &mut parts[*side as usize];
        match kind {
            HttpEventKind::Abort(_) => {
                assert_ne!(*parts, [Part::Ended; 2], "what is over is not aborted");
                *aborted = true;
            }
            HttpEventKind::Head { first, head } => {
                if let Head::Request(RequestHead { headers, .. }) | Head::Response(ResponseHead { headers, .. }) = head
                {
                    let transfer = headers.0.iter().any(|(name, value)| {
                        name.eq_ignore_ascii_case("transfer-encoding") && !value.eq_ignore_ascii_case(b"chunked")
                    });
                    self.coded |= transfer || headers.get("content-encoding").is_some();
                }
                assert!(first.ret <= at.ret, "a head begins before it ends");
                assert_eq!(std::mem::replace(part, Part::Within), Part::Before);
            }
            HttpEventKind::End => assert_eq!(std::mem::replace(part, Part::Ended), Part::Within),
            HttpEventKind::Body(bytes) => {
                assert!(!bytes.is_empty() && *part == Part::Within);
                self.given += bytes.len() as u64;
            }
            // Of a WebSocket, the client's messages come behind the end of its handshake.
            HttpEventKind::Message(message) => {
                assert!(parts[Side::Response as usize] == Part::Within && message.first.ret <= at.ret);
            }
            HttpEventKind::Gap { len, .. } => {
                assert!(*len != Some(0) && (*part == Part::Within || parts[Side::Response as usize] == Part::Within));
            }
        }
        assert!(self.open() <= OPEN_EXCHANGES + 1, "too many exchanges are open");
    }

    /// Exchanges that are not over. One joined after its request is over with its response.
    fn open(&self) -> usize {
        let open = |(parts, aborted): &&([Part; 2], bool)| !aborted && parts.contains(&Part::Within);
        self.exchanges.values().filter(open).count()
    }
}
