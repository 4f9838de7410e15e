//! Redaction of text bodies: JSON, lines of it, and server-sent events, all by one machine that goes from line to line. It gives out
//! one byte for each that it takes, later when it must see more of a text before it knows what becomes of it.
//!
//! What stays: brackets, commas, white space, `true`, `false`, `null`, `[DONE]`, the names of fields of events, and of strings and
//! numbers what [`super::json`] says. Everything else becomes a filler.

use super::{
    Secret, base64,
    json::{Nesting, Of, Rule},
    words,
};
use crate::limits::{EVENT_BYTES, REQUEST_HEAD_BYTES, REQUEST_TAIL_BYTES};

/// What content is replaced by.
pub(super) const FILLER: u8 = b'x';
/// Bytes at the beginning of a content text that tell it from another where texts may repeat what was sent before.
const TOLD_APART: usize = 256;
/// Fields of server-sent events that stay (`error` is llama.cpp's).
const FIELDS: [&[u8]; 5] = [b"data", b"event", b"id", b"retry", b"error"];
/// Words of JSON that stay, and that of OpenAI's last event.
const LITERALS: [&[u8]; 4] = [b"true", b"false", b"null", b"DONE"];

/// A text body on its way.
#[derive(Debug)]
pub(super) struct Text {
    nesting: Nesting,
    state: State,
    /// What was taken and not given out.
    held: Vec<u8>,
    secret: Secret,
    /// A field of an event was seen.
    events: bool,
    after_cr: bool,
    /// A byte other than of a byte-order mark was seen.
    started: bool,
    /// What comes up to the next line end may be the rest of a line.
    resync: bool,
    /// Texts are told apart, because a later one may repeat an earlier one.
    cumulative: bool,
    /// Members called `bytes` hold JSON in Base64.
    base64: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the beginning of a line; letters that may name a field are held.
    LineStart,
    /// The rest of the line is replaced.
    Rest,
    /// The name of an event, held.
    EventName,
    /// In JSON, between tokens.
    Between,
    /// In a string; it is held unless its rule is `Content`. `told`: what tells it apart so far, and its length.
    Str { rule: Rule, escaped: bool, told: u64, len: usize },
    /// A word, held.
    Word,
    /// A number. `whole`: in its integer part, no digit of it was seen yet.
    Number { keep: bool, whole: bool },
}

impl Text {
    pub(super) fn new(of: Of, secret: Secret) -> Self {
        Self {
            nesting: Nesting::new(of),
            state: State::LineStart,
            held: Vec::new(),
            secret,
            events: false,
            after_cr: false,
            started: false,
            resync: false,
            cumulative: false,
            base64: false,
        }
    }

    pub(super) fn cumulative(self, cumulative: bool) -> Self {
        Self { cumulative, ..self }
    }

    /// One of an AWS event stream.
    pub(super) fn of_aws(secret: Secret) -> Self {
        Self { base64: true, ..Self::new(Of::Response, secret) }
    }

    /// The end of a request, behind a hole. `in_string`: it begins inside of a string.
    fn inside(depth: u64, in_string: bool, secret: Secret) -> Self {
        let state = if in_string {
            State::Str { rule: Rule::Content, escaped: false, told: 0, len: 0 }
        } else {
            State::Between
        };
        Self { nesting: Nesting::inside(depth), state, started: true, ..Self::new(Of::Request, secret) }
    }

    /// Bytes are missing here.
    pub(super) fn gap(&mut self, out: &mut Vec<u8>) {
        self.finish(out);
        self.nesting.reset();
        self.resync = true;
        self.started = true;
        self.state = State::LineStart;
    }

    /// Gives out what is held, replaced where it is not known to be harmless.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        match self.state {
            State::LineStart if FIELDS.contains(&self.held.as_slice()) => self.keep(out),
            State::EventName => self.end_event_name(out),
            State::Word => self.end_word(out),
            _ => self.replace(out),
        }
        // What comes goes on where this ended, but no decision of what was held is open any more.
        if let State::Str { rule, .. } = &mut self.state {
            *rule = Rule::Content;
        } else if self.state != State::LineStart {
            self.state = State::Rest;
        }
    }

    pub(super) fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            self.take(byte, out);
        }
    }

    fn take(&mut self, byte: u8, out: &mut Vec<u8>) {
        if matches!(byte, b'\n' | b'\r') {
            self.line_end(byte, out);
            return;
        }
        self.after_cr = false;
        match self.state {
            State::LineStart => self.line_start(byte, out),
            State::Rest => out.push(FILLER),
            State::EventName => {
                self.held.push(byte);
                if self.held.len() > words::NAME_BYTES {
                    self.replace(out);
                    self.state = State::Rest;
                }
            }
            State::Between => self.between(byte, out),
            State::Str { rule, escaped, told, len } => self.string(byte, rule, escaped, told, len, out),
            State::Word => {
                if byte.is_ascii_alphanumeric() {
                    self.held.push(byte);
                    if self.held.len() > words::NAME_BYTES {
                        self.replace(out);
                    }
                } else {
                    self.end_word(out);
                    self.state = State::Between;
                    self.between(byte, out);
                }
            }
            State::Number { keep, whole } => self.number(byte, keep, whole, out),
        }
    }

    fn line_end(&mut self, byte: u8, out: &mut Vec<u8>) {
        let blank = self.state == State::LineStart && self.held.is_empty() && !(byte == b'\n' && self.after_cr);
        self.after_cr = byte == b'\r';
        self.finish(out);
        // A string goes over no line end.
        self.state = State::LineStart;
        self.started = true;
        self.resync = false;
        if blank && self.events {
            self.nesting.reset();
        }
        out.push(byte);
    }

    fn line_start(&mut self, byte: u8, out: &mut Vec<u8>) {
        if !self.started && matches!(byte, 0xef | 0xbb | 0xbf) {
            out.push(byte);
            return;
        }
        self.started = true;
        if byte.is_ascii_lowercase() && self.held.len() < 5 {
            self.held.push(byte);
            return;
        }
        let field = FIELDS.contains(&self.held.as_slice()).then_some(self.held.first()).flatten().copied();
        if byte == b':' && (field.is_some() || self.held.is_empty() && (self.events || self.nesting.is_outside())) {
            let json = matches!(field, Some(b'd')) || self.held == b"error";
            let event = self.held == b"event";
            let rest = std::mem::take(&mut self.resync) && !(json && field == Some(b'd'));
            self.events = true;
            self.keep(out);
            out.push(byte);
            self.state = match (rest, json, event) {
                (false, true, _) => State::Between,
                (false, false, true) => State::EventName,
                _ => State::Rest,
            };
            return;
        }
        if std::mem::take(&mut self.resync) {
            self.replace(out);
            out.push(FILLER);
            self.state = State::Rest;
            return;
        }
        if self.held.is_empty() {
            self.state = State::Between;
            self.between(byte, out);
        } else {
            self.state = State::Word;
            self.take(byte, out);
        }
    }

    fn between(&mut self, byte: u8, out: &mut Vec<u8>) {
        match byte {
            b'"' => {
                out.push(byte);
                let rule = match self.nesting.rule() {
                    Rule::Base64 if !self.base64 => Rule::Content,
                    rule => rule,
                };
                self.state = State::Str { rule, escaped: false, told: 0, len: 0 };
                return;
            }
            b'{' | b'[' => self.nesting.open(byte == b'{'),
            b'}' | b']' => self.nesting.close(),
            b',' => self.nesting.comma(),
            b':' => self.nesting.colon(),
            b' ' | b'\t' => {}
            b'-' | b'0'..=b'9' => {
                self.state = State::Number { keep: self.nesting.keeps_number(), whole: true };
                return self.take(byte, out);
            }
            _ if byte.is_ascii_alphabetic() => {
                self.held.push(byte);
                self.state = State::Word;
                return;
            }
            _ => return out.push(FILLER),
        }
        out.push(byte);
    }

    fn string(&mut self, byte: u8, rule: Rule, escaped: bool, told: u64, len: usize, out: &mut Vec<u8>) {
        if byte == b'"' && !escaped {
            self.end_string(rule, out);
            out.push(byte);
            self.state = State::Between;
            return;
        }
        let escaped = byte == b'\\' && !escaped;
        let len = len.saturating_add(1);
        let mut state = State::Str { rule, escaped, told, len };
        if rule == Rule::Content {
            let mut filler = FILLER;
            if self.cumulative && len <= TOLD_APART {
                let told = self.secret.next(told, byte);
                filler = b'a' + (told >> 60) as u8;
                state = State::Str { rule, escaped, told, len };
            }
            out.push(if byte < b' ' { byte } else { filler });
        } else {
            self.held.push(byte);
            let longest = if rule == Rule::Base64 { EVENT_BYTES } else { words::NAME_BYTES };
            if self.held.len() > longest {
                self.replace(out);
                if rule == Rule::Key {
                    self.nesting.key(b"", false);
                }
                state = State::Str { rule: Rule::Content, escaped, told, len };
            }
        }
        self.state = state;
    }

    fn end_string(&mut self, rule: Rule, out: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.held);
        let keep = match rule {
            Rule::Content => return,
            Rule::Key => {
                let known = words::is_known(&held);
                self.nesting.key(&held, known);
                known
            }
            Rule::Structure => words::is_known(&held),
            Rule::Model => words::is_model(&held),
            Rule::Name => words::is_identifier(&held) && !words::is_credential(&held),
            Rule::Id => return self.secret.replace_id(&held, out),
            Rule::Base64 => return self.base64(&held, out),
        };
        if keep {
            out.extend_from_slice(&held);
        } else {
            // An identifier stays one, and what is none stays none: that decides which text names an error.
            let sentence = rule != Rule::Key && !words::is_identifier(&held);
            out.extend((0..held.len()).map(|n| if sentence && n % 2 == 0 { b' ' } else { FILLER }));
        }
    }

    fn base64(&self, held: &[u8], out: &mut Vec<u8>) {
        let mut inner = Vec::new();
        let at = out.len();
        if let Some(decoded) = base64::decode(held) {
            let mut text = Self::new(Of::Response, self.secret);
            text.feed(&decoded, &mut inner);
            text.finish(&mut inner);
            base64::encode(&inner, out);
        }
        if out.len() - at != held.len() {
            out.truncate(at);
            out.resize(at + held.len(), FILLER);
        }
    }

    fn number(&mut self, byte: u8, keep: bool, whole: bool, out: &mut Vec<u8>) {
        match byte {
            b'0'..=b'9' if keep => out.push(byte),
            // One that begins with a zero has no other digit before its point.
            b'0'..=b'9' if whole => out.push(if byte == b'0' { b'0' } else { b'1' }),
            b'0'..=b'9' => out.push(b'0'),
            b'-' | b'+' | b'.' | b'e' | b'E' => out.push(byte),
            _ => {
                self.state = State::Between;
                return self.between(byte, out);
            }
        }
        self.state = State::Number { keep, whole: whole && byte == b'-' };
    }

    fn end_word(&mut self, out: &mut Vec<u8>) {
        if LITERALS.contains(&self.held.as_slice()) {
            self.keep(out);
        } else {
            self.replace(out);
        }
    }

    fn end_event_name(&mut self, out: &mut Vec<u8>) {
        let name = self.held.strip_prefix(b" ").unwrap_or(&self.held);
        if name.is_empty() || words::is_known(name) {
            self.keep(out);
        } else {
            self.replace(out);
        }
    }

    fn keep(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }

    fn replace(&mut self, out: &mut Vec<u8>) {
        out.resize(out.len() + self.held.len(), FILLER);
        self.held.clear();
    }
}

/// The end of a request body, of which a part before it is missing: only its own end shows what is in it.
#[derive(Debug)]
pub(super) struct Tail {
    held: Vec<u8>,
    secret: Secret,
}

impl Tail {
    pub(super) fn new(secret: Secret) -> Self {
        Self { held: Vec::new(), secret }
    }

    pub(super) fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.held.extend_from_slice(bytes);
        // Later stages read no more of it.
        if let Some(over) = self.held.len().checked_sub(REQUEST_HEAD_BYTES + REQUEST_TAIL_BYTES) {
            self.held.drain(..over);
            out.resize(out.len() + over, FILLER);
        }
    }

    /// Gives out what is held; `complete`: the body is, so that its last byte stands outside of everything.
    pub(super) fn finish(&mut self, complete: bool, out: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.held);
        if !complete {
            out.resize(out.len() + held.len(), FILLER);
            return;
        }
        let in_string = borders(&held) % 2 == 1;
        let mut text = Text::inside(depth(&held, in_string), in_string, self.secret);
        if !in_string && begins_with_key(&held) {
            text.nesting.comma();
        }
        text.feed(&held, out);
        text.finish(out);
    }
}

/// How many quotes are the border of a string: those behind an even number of backslashes.
fn borders(bytes: &[u8]) -> usize {
    let mut escaped = false;
    let mut borders = 0;
    for &byte in bytes {
        borders += usize::from(byte == b'"' && !escaped);
        escaped = byte == b'\\' && !escaped;
    }
    borders
}

/// Whether a text that begins outside of strings begins with a key.
fn begins_with_key(bytes: &[u8]) -> bool {
    let Some(string) = bytes.trim_ascii_start().strip_prefix(b"\"") else { return false };
    let mut escaped = false;
    let end = string.iter().position(|&byte| {
        let border = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        border
    });
    end.and_then(|end| string.get(end + 1..)).is_some_and(|rest| rest.trim_ascii_start().starts_with(b":"))
}

/// How many containers are open at the beginning of a text at the end of which none is.
fn depth(bytes: &[u8], mut in_string: bool) -> u64 {
    let (mut depth, mut escaped) = (0_i64, false);
    for &byte in bytes {
        match byte {
            b'"' if !escaped => in_string = !in_string,
            b'{' | b'[' if !in_string => depth -= 1,
            b'}' | b']' if !in_string => depth += 1,
            _ => {}
        }
        escaped = byte == b'\\' && !escaped;
    }
    u64::try_from(depth).unwrap_or(0)
}
