//! What the tests of stage 5 share: HTTP events made by hand, and a record of what came out.

use std::fmt::Write as _;

use nexent_observer_core::{
    event::{MonoNs, Stamp},
    http::{ExchangeNo, Head, Headers, HttpEvent, HttpEventKind, RequestHead, ResponseHead, Side},
    llm::{Call, LlmEvent, LlmEventKind, LlmExchange, NotLlm, Payload, RequestFacts, ResponseFacts, Usage},
    stats::Stats,
};

/// Header fields as tests write them.
pub(crate) type Fields<'a> = &'a [(&'a str, &'a [u8])];

/// A stamp that says `n`.
pub(crate) fn at(n: u64) -> Stamp {
    Stamp { entry: MonoNs(n), ret: MonoNs(n) }
}

/// What one exchange gave.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Seen {
    pub(crate) log: Vec<String>,
    pub(crate) stamps: Vec<u64>,
    pub(crate) call: Option<Call>,
    pub(crate) request: Option<RequestFacts>,
    pub(crate) response: Option<ResponseFacts>,
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) tools: String,
    /// Characters of refusals and of tool arguments, and number of tool names.
    pub(crate) refusal_chars: usize,
    pub(crate) argument_chars: usize,
    pub(crate) tool_names: usize,
    pub(crate) usage: Option<Usage>,
    pub(crate) finish: Vec<String>,
    pub(crate) model: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) not_llm: Option<NotLlm>,
    pub(crate) chunks: u32,
    pub(crate) deltas: u32,
    /// Number of the chunk with the first delta, from 0.
    pub(crate) first_token_chunk: Option<u32>,
}

impl Seen {
    fn take(&mut self, ev: &LlmEvent<'_>) {
        self.stamps.push(ev.at.ret.0);
        let name = match &ev.kind {
            LlmEventKind::Start { call, .. } => {
                self.call = Some(call.clone());
                "Start"
            }
            LlmEventKind::Request(facts) => {
                self.request = Some(facts.clone());
                "Request"
            }
            LlmEventKind::RequestEnd => "RequestEnd",
            LlmEventKind::Response { facts, .. } => {
                self.response = Some(facts.clone());
                "Response"
            }
            LlmEventKind::Chunk => {
                self.chunks += 1;
                "Chunk"
            }
            LlmEventKind::Delta { payload, choice, text } => {
                assert!(!text.is_empty());
                self.deltas += 1;
                self.first_token_chunk.get_or_insert(self.chunks - 1);
                match payload {
                    Payload::Refusal => self.refusal_chars += text.chars().count(),
                    Payload::ToolArguments => self.argument_chars += text.chars().count(),
                    Payload::ToolName => self.tool_names += 1,
                    _ => {}
                }
                match payload {
                    Payload::Text => self.text += text,
                    Payload::Reasoning => self.reasoning += text,
                    _ => write!(self.tools, "[{payload:?} {choice} {text}]").unwrap(),
                }
                "Delta"
            }
            LlmEventKind::Identity { model, id } => {
                self.model = model.map(str::to_owned).or_else(|| self.model.take());
                self.id = id.map(str::to_owned).or_else(|| self.id.take());
                "Identity"
            }
            LlmEventKind::Usage(usage) => {
                self.usage.get_or_insert_default().merge(*usage);
                "Usage"
            }
            LlmEventKind::Finish { reason, .. } => {
                self.finish.push((*reason).to_owned());
                "Finish"
            }
            LlmEventKind::Error(facts) => {
                self.error = Some(facts.error_type.clone());
                "Error"
            }
            LlmEventKind::Done => "Done",
            LlmEventKind::End => "End",
            LlmEventKind::Gap { .. } => "Gap",
            LlmEventKind::Joined => "Joined",
            LlmEventKind::Abort(_) => "Abort",
            LlmEventKind::NotLlm(why) => {
                self.not_llm = Some(*why);
                "NotLlm"
            }
        };
        self.log.push(name.to_owned());
    }

    pub(crate) fn log(&self) -> String {
        self.log.join(" ")
    }
}

/// One exchange under test; each fed event is stamped one later than the one before.
#[derive(Default)]
pub(crate) struct Bench {
    pub(crate) exchange: LlmExchange,
    pub(crate) stats: Stats,
    pub(crate) seen: Seen,
    pub(crate) now: u64,
}

impl Bench {
    pub(crate) fn feed(&mut self, side: Side, kind: HttpEventKind<'_>) {
        self.now += 1;
        let ev = HttpEvent { exchange: ExchangeNo(0), side, at: at(self.now), kind };
        let seen = &mut self.seen;
        self.exchange.feed(&ev, &mut self.stats, &mut |ev| seen.take(&ev));
    }

    pub(crate) fn request_head(&mut self, method: &str, path: &str, host: &str, headers: Fields<'_>) {
        let head = Head::Request(RequestHead { method, path, host: Some(host), headers: Headers(headers) });
        self.feed(Side::Request, HttpEventKind::Head { first: at(self.now), head });
    }

    /// A whole POST with this body.
    pub(crate) fn post(&mut self, path: &str, host: &str, body: &[u8]) {
        self.ask(path, host, &[], body);
    }

    /// The same with further header fields.
    pub(crate) fn ask(&mut self, path: &str, host: &str, headers: Fields<'_>, body: &[u8]) {
        let json: (&str, &[u8]) = ("content-type", b"application/json");
        let headers: Vec<_> = headers.iter().copied().chain([json]).collect();
        self.request_head("POST", path, host, &headers);
        if !body.is_empty() {
            self.feed(Side::Request, HttpEventKind::Body(body));
        }
        self.feed(Side::Request, HttpEventKind::End);
    }

    pub(crate) fn response_head(&mut self, status: u16, headers: Fields<'_>) {
        let head = Head::Response(ResponseHead { status: Some(status), headers: Headers(headers) });
        self.feed(Side::Response, HttpEventKind::Head { first: at(self.now), head });
    }

    pub(crate) fn body(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.feed(Side::Response, HttpEventKind::Body(bytes));
        }
    }

    pub(crate) fn end(&mut self) {
        self.feed(Side::Response, HttpEventKind::End);
    }
}

pub(crate) const SSE: Fields<'_> = &[("content-type", b"text/event-stream; charset=utf-8")];
pub(crate) const JSON: Fields<'_> = &[("content-type", b"application/json")];
