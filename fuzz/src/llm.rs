//! Target `llm`: one HTTP exchange with any heads, bodies and gaps, against the order of events and the promise that cuts
//! change nothing.
//!
//! The input is three letters that choose the heads (the rest of the division by their number counts) and a script: bytes
//! of the request body, from `~r` on bytes of the response body; `~|` cuts, `~g`n is a gap of n bytes, `~u` one of unknown
//! size, `~a` an abort, `~e` the end of the response while the request goes on. Messages that are not aborted are ended.

use nexent_observer_core::{
    conn::{CloseCause, GapCause},
    event::{MonoNs, Stamp},
    http::{AbortCause, ExchangeNo, Head, Headers, HttpEvent, HttpEventKind, RequestHead, ResponseHead, Side},
    llm::{LlmEvent, LlmEventKind, LlmExchange, Verdict},
    stats::{DropReason, Stats},
};

use crate::script::{Op, parse};

type Fields = &'static [(&'static str, &'static [u8])];

const REQUESTS: [Option<(&str, &str, Fields)>; 6] = [
    Some(("POST", "/v1/chat/completions", &[("content-type", b"application/json")])),
    Some(("POST", "/openai/deployments/d/chat/completions?api-version=1", &[])),
    Some(("POST", "/unknown", &[("content-type", b"application/json")])),
    Some(("POST", "/upload", &[("content-type", b"multipart/form-data")])),
    Some(("GET", "/v1/models", &[])),
    None,
];

const RESPONSES: [Option<(u16, Fields)>; 7] = [
    Some((200, &[("content-type", b"text/event-stream; charset=utf-8"), ("x-request-id", b"req_1")])),
    Some((200, &[("content-type", b"application/json"), ("x-ratelimit-remaining-tokens", b"9")])),
    Some((200, &[])),
    Some((429, &[("content-type", b"application/json")])),
    Some((500, &[("content-type", b"text/html")])),
    Some((204, &[("content-type", b"text/plain")])),
    None,
];

/// One step of an exchange, without its heads.
pub(crate) enum Step<'a> {
    /// Bytes of a body, in the pieces that the script cuts them into.
    Body(Side, Vec<&'a [u8]>),
    /// Anything else.
    Other(Side, HttpEventKind<'a>),
}

pub(crate) fn steps(script: &[u8]) -> Vec<Step<'_>> {
    let (mut steps, mut side, mut ended) = (Vec::new(), Side::Request, false);
    for op in parse(script, b"g") {
        let gap = |len| HttpEventKind::Gap { len, cause: GapCause::Lost };
        match op {
            Op::Bytes(bytes) => match steps.last_mut() {
                Some(Step::Body(same, pieces)) if *same == side => pieces.push(bytes),
                _ => steps.push(Step::Body(side, vec![bytes])),
            },
            Op::Mark(b'g', n) => steps.push(Step::Other(side, gap(Some(u64::from(n) + 1)))),
            Op::Mark(b'u', _) => steps.push(Step::Other(side, gap(None))),
            Op::Mark(b'r', _) if side == Side::Request => {
                steps.push(Step::Other(side, HttpEventKind::End));
                side = Side::Response;
            }
            Op::Mark(b'e', _) if side == Side::Request => {
                side = Side::Response;
                ended = true;
            }
            Op::Mark(b'a', _) => {
                let cause = AbortCause::Closed(CloseCause::Freed);
                steps.push(Step::Other(side, HttpEventKind::Abort(cause)));
                return steps;
            }
            Op::Mark(..) => {}
        }
    }
    steps.push(Step::Other(Side::Response, HttpEventKind::End));
    if side == Side::Request || ended {
        steps.push(Step::Other(Side::Request, HttpEventKind::End));
    }
    steps
}

/// How the bytes of a body are cut.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Cuts {
    None,
    Marked,
    EveryByte,
}

/// Plays the script.
pub fn check(input: &[u8]) {
    let Some(([request, response, status], script)) = input.split_first_chunk::<3>() else { return };
    let request = REQUESTS[usize::from(*request) % REQUESTS.len()];
    let response = RESPONSES[usize::from(*response) % RESPONSES.len()];
    let status = (*status != b'.').then_some(response.map_or(0, |(status, _)| status));
    let steps = steps(script);
    let whole = run(request, response, status, &steps, Cuts::None);
    assert_eq!(whole, run(request, response, status, &steps, Cuts::Marked), "cuts change nothing");
    assert_eq!(whole, run(request, response, status, &steps, Cuts::EveryByte), "cuts at every byte change nothing");
}

fn run(
    request: Option<(&str, &str, Fields)>,
    response: Option<(u16, Fields)>,
    status: Option<u16>,
    steps: &[Step<'_>],
    cuts: Cuts,
) -> Seen {
    let mut player = Player::new();
    if let Some((method, path, headers)) = request {
        let head = RequestHead { method, path, host: Some("api.openai.com:443"), headers: Headers(headers) };
        player.head(Side::Request, Head::Request(head));
    }
    let answer = response
        .map_or(Head::Unseen, |(_, headers)| Head::Response(ResponseHead { status, headers: Headers(headers) }));
    let mut answered = false;
    for step in steps {
        let (Step::Body(side, _) | Step::Other(side, _)) = step;
        let abort = matches!(step, Step::Other(_, HttpEventKind::Abort(_)));
        if *side == Side::Response && !abort && !std::mem::replace(&mut answered, true) {
            player.head(Side::Response, answer);
        }
        // Events of a request whose head was not seen do not come.
        if *side == Side::Response || request.is_some() || abort {
            player.step(step, cuts);
        }
    }
    player.seen()
}

/// What came of one exchange.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// One line an event.
    pub(crate) log: Vec<String>,
    drops: Vec<u64>,
}

/// Plays HTTP events into an exchange and checks the order of what comes out.
pub(crate) struct Player {
    exchange: LlmExchange,
    stats: Stats,
    now: u64,
    log: Vec<String>,
    first: bool,
    over: bool,
}

impl Player {
    pub(crate) fn new() -> Self {
        let exchange = LlmExchange::new();
        Self { exchange, stats: Stats::default(), now: 0, log: Vec::new(), first: true, over: false }
    }

    pub(crate) fn head(&mut self, side: Side, head: Head<'_>) {
        self.now += 1;
        let first = self.stamp();
        self.feed(side, HttpEventKind::Head { first, head }, false);
    }

    pub(crate) fn step(&mut self, step: &Step<'_>, cuts: Cuts) {
        self.now += 1;
        match step {
            Step::Other(side, kind) => self.feed(*side, *kind, cuts != Cuts::None),
            Step::Body(side, pieces) => match cuts {
                Cuts::None => self.feed(*side, HttpEventKind::Body(&pieces.concat()), false),
                Cuts::Marked => pieces.iter().for_each(|piece| self.feed(*side, HttpEventKind::Body(piece), true)),
                Cuts::EveryByte => {
                    pieces.concat().chunks(1).for_each(|piece| self.feed(*side, HttpEventKind::Body(piece), true));
                }
            },
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp { entry: MonoNs(self.now), ret: MonoNs(self.now) }
    }

    #[cfg_attr(not(feature = "planted"), expect(unused_variables, reason = "the planted bug is one of cut bodies"))]
    fn feed(&mut self, side: Side, kind: HttpEventKind<'_>, cut: bool) {
        let at = self.stamp();
        let Self { exchange, stats, log, first, over, .. } = self;
        let mut take = |event: LlmEvent<'_>| {
            #[cfg(feature = "planted")]
            let event = if cut { crate::planted::empty_loss(event) } else { event };
            assert!(!*over, "nothing follows the last event");
            let begins = matches!(event.kind, LlmEventKind::Start { .. } | LlmEventKind::Joined);
            assert_eq!(
                std::mem::take(first) && !matches!(event.kind, LlmEventKind::NotLlm(_)),
                begins,
                "the first event is Start, Joined or NotLlm: {event:?} after {log:?}"
            );
            *over = matches!(event.kind, LlmEventKind::NotLlm(_) | LlmEventKind::Abort(_));
            assert!(event.at.ret <= at.ret);
            if let LlmEventKind::Delta { text, .. } = event.kind {
                assert!(!text.is_empty());
            }
            log.push(format!("{event:?}"));
        };
        exchange.feed(&HttpEvent { exchange: ExchangeNo(0), side, at, kind }, stats, &mut take);
        match exchange.verdict() {
            Verdict::Undecided => assert!(log.is_empty()),
            Verdict::Llm | Verdict::NotLlm => assert!(!log.is_empty()),
        }
        // Undecided exchanges end with a verdict.
        if matches!((side, kind), (Side::Response, HttpEventKind::End) | (_, HttpEventKind::Abort(_))) {
            assert_ne!(exchange.verdict(), Verdict::Undecided);
        }
    }

    pub(crate) fn seen(self) -> Seen {
        let drops = DropReason::ALL.iter().map(|reason| self.stats.drops(*reason)).collect();
        Seen { log: self.log, drops }
    }
}
