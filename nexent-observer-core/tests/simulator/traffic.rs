//! Synthetic OpenAI chat traffic over HTTP/1.1: the bytes of each message, and at which byte what becomes known.

use std::fmt::Write as _;

use nexent_observer_core::timing::Outcome;

use crate::rng::Rng;

/// Something that is known once the bytes before `offset` of the response are read.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub(crate) offset: usize,
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum What {
    /// A data event: its answer text, whether it carries payload, the output tokens counted by then.
    Event { text: String, output: bool, counted: Option<u64> },
    /// The finish reason, known with the event before it.
    Finish,
    /// `[DONE]`.
    Done,
    /// End of the HTTP message.
    End,
}

/// One exchange: what crosses the wire and what is true about it.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) llm: bool,
    pub(crate) request: Vec<u8>,
    /// Length of the request's head.
    pub(crate) head: usize,
    pub(crate) response: Vec<u8>,
    pub(crate) marks: Vec<Mark>,
    pub(crate) status: u16,
    pub(crate) stream: bool,
    pub(crate) error_type: Option<String>,
    pub(crate) id: String,
    /// Read only so much of the response, then close. `None`: read it all.
    pub(crate) abort_after: Option<usize>,
}

impl Script {
    /// Offset after which the exchange is over for the one who reads it.
    pub(crate) fn over_at(&self) -> usize {
        self.abort_after.unwrap_or(self.response.len())
    }

    /// What was known when reading stopped.
    pub(crate) fn known(&self) -> impl Iterator<Item = &Mark> {
        let over = self.over_at();
        self.marks.iter().filter(move |m| m.offset <= over)
    }

    pub(crate) fn outcome(&self, head_known: bool) -> Outcome {
        let has = |what| self.known().any(|m| m.what == what);
        let (done, finish, end) = (has(What::Done), has(What::Finish), has(What::End));
        match () {
            () if head_known && self.status >= 400 => Outcome::Error,
            () if done => Outcome::Completed,
            () if finish => Outcome::Completed,
            () if end && self.stream => Outcome::ServerAbort,
            () if end => Outcome::Completed,
            () => Outcome::ClientAbort,
        }
    }

    /// Length of the response's head.
    pub(crate) fn response_head(&self) -> usize {
        self.response.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |i| i + 4)
    }
}

/// Exchange `no` of connection `conn`; `last` may be given up in the middle.
pub(crate) fn script(rng: &mut Rng, conn: usize, no: usize, last: bool) -> Script {
    let mut s = match rng.range(0, 100) {
        0..60 => stream(rng, conn, no),
        60..80 => whole(rng, conn, no),
        80..90 => refusal(rng, conn, no),
        _ => other(rng),
    };
    if last && s.llm && rng.percent(40) {
        s.abort_after = Some(rng.range(0, s.response.len() + 1));
    }
    s
}

fn request(rng: &mut Rng, stream: bool) -> (Vec<u8>, usize) {
    let filler = if rng.percent(10) { rng.range(10_000, 60_000) } else { rng.range(10, 600) };
    let body = format!(
        r#"{{"model":"gpt-4o-mini","messages":[{{"role":"user","content":"{}"}}],"stream":{stream}}}"#,
        "x".repeat(filler)
    );
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nContent-Type: application/json\r\nAuthorization: Bearer none\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let len = head.len();
    ((head + &body).into_bytes(), len)
}

fn id(conn: usize, no: usize) -> String {
    format!("chatcmpl-{conn}-{no}")
}

/// Escapes, several bytes a character, CRLF: what a decoder may trip on.
const PIECES: [&str; 8] =
    [" the", "Hello", " wörld", " \\\"q\\\"", "\\n\\n", "data: ", " 日本", "\\u00e9\\ud83d\\ude00"];

fn stream(rng: &mut Rng, conn: usize, no: usize) -> Script {
    let id = id(conn, no);
    let mut body = String::new();
    let mut marks = Vec::new();
    let event = |body: &mut String, marks: &mut Vec<Mark>, choices: &str, usage: &str, what: What| {
        write!(
            body,
            "data: {{\"id\":\"{id}\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"gpt-4o-mini-2024\",\"choices\":[{choices}]{usage}}}\n\n"
        ).unwrap();
        marks.push(Mark { offset: body.len(), what });
    };
    let silent = || What::Event { text: String::new(), output: false, counted: None };
    let choice = |delta: &str, finish: &str| {
        format!("{{\"index\":0,\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":{finish}}}")
    };
    event(&mut body, &mut marks, &choice("\"role\":\"assistant\",\"content\":\"\"", "null"), "", silent());
    let continuous = rng.percent(20);
    let mut counted = 0;
    let usage = |counted: u64| {
        let total = counted + 11;
        format!(",\"usage\":{{\"prompt_tokens\":11,\"completion_tokens\":{counted},\"total_tokens\":{total}}}")
    };
    for _ in 0..rng.range(0, 60) {
        if rng.percent(5) {
            body.push_str(": ping\n\n");
        }
        counted += rng.range(1, 4) as u64;
        let tail = if continuous { usage(counted) } else { String::new() };
        let counted = continuous.then_some(counted);
        if rng.percent(10) {
            let delta = "\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"a\\\"\"}}]";
            let what = What::Event { text: String::new(), output: true, counted };
            event(&mut body, &mut marks, &choice(delta, "null"), &tail, what);
        } else {
            let piece = *rng.pick(&PIECES);
            let text: String = serde_json::from_str(&format!("\"{piece}\"")).unwrap();
            let what = What::Event { text, output: true, counted };
            event(&mut body, &mut marks, &choice(&format!("\"content\":\"{piece}\""), "null"), &tail, what);
        }
    }
    if !rng.percent(5) {
        event(&mut body, &mut marks, &choice("", "\"stop\""), "", silent());
        let offset = body.len();
        marks.push(Mark { offset, what: What::Finish });
        if rng.percent(50) {
            let what = What::Event { text: String::new(), output: false, counted: Some(counted) };
            event(&mut body, &mut marks, "", &usage(counted), what);
        }
        if !rng.percent(5) {
            body.push_str("data: [DONE]\n\n");
            let offset = body.len();
            marks.push(Mark { offset, what: What::Done });
        }
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\nx-request-id: req-{conn}-{no}\r\n\r\n"
    );
    let (response, at) = chunked(rng, head, body.as_bytes());
    for mark in &mut marks {
        mark.offset = at[mark.offset - 1] + 1;
    }
    let end = response.len();
    marks.push(Mark { offset: end, what: What::End });
    let (request, head) = request(rng, true);
    Script {
        llm: true,
        request,
        head,
        response,
        marks,
        status: 200,
        stream: true,
        error_type: None,
        id,
        abort_after: None,
    }
}

/// Chunk boundaries fall anywhere. Also gives where each body byte went.
fn chunked(rng: &mut Rng, head: String, body: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let mut out = head.into_bytes();
    let mut at = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let most = *rng.pick(&[30, 300, 3000]);
        let (now, later) = rest.split_at(rng.range(1, most).min(rest.len()));
        out.extend_from_slice(format!("{:x}\r\n", now.len()).as_bytes());
        at.extend((0..now.len()).map(|i| out.len() + i));
        out.extend_from_slice(now);
        out.extend_from_slice(b"\r\n");
        rest = later;
    }
    out.extend_from_slice(b"0\r\n\r\n");
    (out, at)
}

fn with_length(status: &str, no: &str, body: &str) -> Vec<u8> {
    let len = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\nx-request-id: {no}\r\n\r\n{body}")
        .into_bytes()
}

fn whole(rng: &mut Rng, conn: usize, no: usize) -> Script {
    let id = id(conn, no);
    let n = rng.range(1, 400);
    let text = "word ".repeat(n);
    let body = format!(
        "{{\"id\":\"{id}\",\"object\":\"chat.completion\",\"model\":\"gpt-4o-mini-2024\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\"{text}\"}},\"finish_reason\":\"stop\"}}],\"usage\":{{\"prompt_tokens\":11,\"completion_tokens\":{n},\"total_tokens\":{}}}}}",
        n + 11
    );
    let response = with_length("200 OK", &id, &body);
    let offset = response.len();
    let event = What::Event { text, output: true, counted: Some(n as u64) };
    let marks = [event, What::Finish, What::End].map(|what| Mark { offset, what }).into();
    let (request, head) = request(rng, false);
    Script {
        llm: true,
        request,
        head,
        response,
        marks,
        status: 200,
        stream: false,
        error_type: None,
        id,
        abort_after: None,
    }
}

fn refusal(rng: &mut Rng, conn: usize, no: usize) -> Script {
    let body =
        r#"{"error":{"message":"Rate limit reached","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#;
    let response = with_length("429 Too Many Requests", &id(conn, no), body);
    let marks = vec![Mark { offset: response.len(), what: What::End }];
    let stream = rng.percent(50);
    let (request, head) = request(rng, stream);
    let error_type = Some("rate_limit_exceeded".to_owned());
    Script {
        llm: true,
        request,
        head,
        response,
        marks,
        status: 429,
        stream: false,
        error_type,
        id: id(conn, no),
        abort_after: None,
    }
}

/// No LLM call.
fn other(rng: &mut Rng) -> Script {
    let request = b"GET /healthz?deep=1 HTTP/1.1\r\nHost: internal.example\r\n\r\n".to_vec();
    let body = format!("{{\"status\":\"{}\"}}", "ok".repeat(rng.range(1, 2000)));
    let head = request.len();
    let response = with_length("200 OK", "none", &body);
    Script {
        llm: false,
        request,
        head,
        response,
        marks: Vec::new(),
        status: 200,
        stream: false,
        error_type: None,
        id: String::new(),
        abort_after: None,
    }
}
