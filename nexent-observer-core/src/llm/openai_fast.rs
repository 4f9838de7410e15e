//! The usual chunk of an OpenAI-compatible stream, read without a JSON parser.
//!
//! A strict matcher for a subset of JSON: one choice, a `delta` of strings and nulls, no nested values elsewhere, no
//! repeated members. Whatever it accepts, it understands as the full parse does; whatever it does not expect, it leaves
//! to the full parse. Neighbouring chunks of a stream mostly begin with the same bytes up to their `delta`, so a
//! beginning that was matched once is compared, not matched again.

use super::json_str::{hex4, plain_end};

/// What a matched chunk says.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Chunk<'a> {
    /// `id`, unless it is that of the remembered beginning.
    pub(super) id: Option<&'a str>,
    /// `model`, unless it is that of the remembered beginning.
    pub(super) model: Option<&'a str>,
    /// `index` of its choice.
    pub(super) choice: u32,
    /// `content`.
    pub(super) content: Option<Raw<'a>>,
    /// `refusal`.
    pub(super) refusal: Option<Raw<'a>>,
    /// `reasoning_content`.
    pub(super) reasoning_content: Option<Raw<'a>>,
    /// `reasoning`.
    pub(super) reasoning: Option<Raw<'a>>,
    /// `finish_reason`.
    pub(super) finish: Option<&'a str>,
}

/// Inside of a JSON string.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Raw<'a> {
    /// As sent.
    pub(super) text: &'a str,
    /// It holds escapes.
    pub(super) escaped: bool,
}

/// A beginning that was matched: all up to the inside of `delta`.
#[derive(Debug, Clone, Default)]
pub(super) struct Beginning {
    bytes: Vec<u8>,
    top: u8,
    member: u8,
    choice: u32,
}

/// Longest beginning that is remembered, in bytes.
const BEGINNING_BYTES: usize = 1024;

const ID: u8 = 1;
const MODEL: u8 = 2;
const OBJECT: u8 = 4;
const CHOICES: u8 = 8;
const USAGE: u8 = 16;
const INDEX: u8 = 1;
const DELTA: u8 = 2;
const FINISH: u8 = 4;
const CONTENT: u8 = 1;
const REFUSAL: u8 = 2;
const REASONING_CONTENT: u8 = 4;
const REASONING: u8 = 8;

impl Beginning {
    /// Forgets it: what it said about `id` and `model` is no longer the last word.
    pub(super) fn forget(&mut self) {
        self.bytes.clear();
    }
}

/// Matches one chunk; `None` leaves it to the full parse.
pub(super) fn chunk<'a>(json: &'a str, beginning: &mut Beginning) -> Option<Chunk<'a>> {
    let mut m = Matcher { json, bytes: json.as_bytes(), at: 0, top: 0, member: 0, chunk: Chunk::default() };
    if !beginning.bytes.is_empty() && m.bytes.starts_with(&beginning.bytes) {
        m.at = beginning.bytes.len();
        m.top = beginning.top;
        m.member = beginning.member;
        m.chunk.choice = beginning.choice;
        m.after_beginning()?;
    } else {
        m.beginning()?;
        let (end, top, member) = (m.at, m.top, m.member);
        m.after_beginning()?;
        if end <= BEGINNING_BYTES && member & FINISH == 0 {
            beginning.bytes.clear();
            beginning.bytes.extend_from_slice(m.bytes.get(..end)?);
            beginning.top = top;
            beginning.member = member;
            // An index that comes after the delta is read each time; the one before it is part of the beginning.
            beginning.choice = if member & INDEX == 0 { 0 } else { m.chunk.choice };
        }
    }
    Some(m.chunk)
}

struct Matcher<'a> {
    json: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// Members of the chunk seen so far.
    top: u8,
    /// Members of the choice seen so far.
    member: u8,
    chunk: Chunk<'a>,
}

impl<'a> Matcher<'a> {
    /// From the first brace to the inside of `delta`.
    fn beginning(&mut self) -> Option<()> {
        self.expect(b'{')?;
        while self.top_member()? {
            self.expect(b',')?;
        }
        self.expect(b'[')?;
        self.expect(b'{')?;
        while self.choice_member()? {
            self.expect(b',')?;
        }
        self.expect(b'{')
    }

    /// From the inside of `delta` to the end.
    fn after_beginning(&mut self) -> Option<()> {
        self.delta()?;
        while self.more(b'}')? {
            if !self.choice_member()? {
                return None;
            }
        }
        self.expect(b']')?;
        while self.more(b'}')? {
            if !self.top_member()? {
                return None;
            }
        }
        (self.at == self.bytes.len()).then_some(())
    }

    /// One member of the chunk; false when it is `choices`, whose value comes next.
    fn top_member(&mut self) -> Option<bool> {
        match self.key()? {
            "id" => {
                once(&mut self.top, ID)?;
                self.chunk.id = self.plain_or_null()?;
            }
            "model" => {
                once(&mut self.top, MODEL)?;
                self.chunk.model = self.plain_or_null()?;
            }
            "object" => {
                once(&mut self.top, OBJECT)?;
                // Old servers name an error here.
                if self.plain()? == "error" {
                    return None;
                }
            }
            "choices" => {
                once(&mut self.top, CHOICES)?;
                return Some(false);
            }
            "usage" => {
                once(&mut self.top, USAGE)?;
                self.literal(b"null")?;
            }
            "error" | "code" | "type" | "x_groq" | "timings" => return None,
            _ => self.scalar()?,
        }
        Some(true)
    }

    /// One member of the choice; false when it is `delta`, whose value comes next.
    fn choice_member(&mut self) -> Option<bool> {
        match self.key()? {
            "index" => {
                once(&mut self.member, INDEX)?;
                self.chunk.choice = self.small_number()?;
            }
            "delta" => {
                once(&mut self.member, DELTA)?;
                return Some(false);
            }
            "finish_reason" => {
                once(&mut self.member, FINISH)?;
                self.chunk.finish = self.plain_or_null()?;
            }
            "message" | "usage" => return None,
            _ => self.scalar()?,
        }
        Some(true)
    }

    /// The inside of `delta` with its closing brace.
    fn delta(&mut self) -> Option<()> {
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Some(());
        }
        let mut seen = 0;
        loop {
            match self.key()? {
                "content" => {
                    once(&mut seen, CONTENT)?;
                    self.chunk.content = self.text_or_null()?;
                }
                "refusal" => {
                    once(&mut seen, REFUSAL)?;
                    self.chunk.refusal = self.text_or_null()?;
                }
                "reasoning_content" => {
                    once(&mut seen, REASONING_CONTENT)?;
                    self.chunk.reasoning_content = self.text_or_null()?;
                }
                "reasoning" => {
                    once(&mut seen, REASONING)?;
                    self.chunk.reasoning = self.text_or_null()?;
                }
                "tool_calls" | "function_call" | "audio" => self.literal(b"null")?,
                _ => self.scalar()?,
            }
            if !self.more(b'}')? {
                return Some(());
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, b: u8) -> Option<()> {
        (self.peek()? == b).then(|| self.at += 1)?;
        // Python's `json.dumps` puts one space after a comma.
        if b == b',' && self.peek() == Some(b' ') {
            self.at += 1;
        }
        Some(())
    }

    /// True after a comma, false after `close`.
    fn more(&mut self, close: u8) -> Option<bool> {
        if self.peek()? == close {
            self.at += 1;
            return Some(false);
        }
        self.expect(b',')?;
        Some(true)
    }

    fn key(&mut self) -> Option<&'a str> {
        let key = self.plain()?;
        self.expect(b':')?;
        if self.peek() == Some(b' ') {
            self.at += 1;
        }
        Some(key)
    }

    /// A string without escapes.
    fn plain(&mut self) -> Option<&'a str> {
        self.expect(b'"')?;
        let end = plain_end(self.bytes, self.at);
        let text = self.json.get(self.at..end)?;
        self.at = end;
        self.expect(b'"')?;
        Some(text)
    }

    fn plain_or_null(&mut self) -> Option<Option<&'a str>> {
        if self.peek()? == b'n' { self.literal(b"null").map(|()| None) } else { self.plain().map(Some) }
    }

    /// A string with escapes of single code units.
    fn text_or_null(&mut self) -> Option<Option<Raw<'a>>> {
        if self.peek()? == b'n' {
            return self.literal(b"null").map(|()| None);
        }
        self.expect(b'"')?;
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at = plain_end(self.bytes, self.at);
            match self.peek()? {
                b'"' => {
                    let text = self.json.get(start..self.at)?;
                    self.at += 1;
                    return Some(Some(Raw { text, escaped }));
                }
                b'\\' => {
                    escaped = true;
                    match self.bytes.get(self.at + 1)? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 2,
                        // Surrogates, paired or not, are for the full parse.
                        b'u' if !(0xd800..=0xdfff).contains(&hex4(self.bytes, self.at + 2)?) => self.at += 6,
                        _ => return None,
                    }
                }
                _ => return None,
            }
        }
    }

    fn literal(&mut self, word: &[u8]) -> Option<()> {
        self.bytes.get(self.at..)?.starts_with(word).then(|| self.at += word.len())
    }

    /// A value that nobody reads: a string without escapes, a short whole number, a literal.
    fn scalar(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => self.plain().map(|_| ()),
            b'n' => self.literal(b"null"),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'1'..=b'9' => {
                let digits = self.bytes.get(self.at..)?.iter().take(20).take_while(|b| b.is_ascii_digit()).count();
                self.at += digits;
                // 19 digits fit into 64 bits; longer ones, fractions and exponents are for the full parse.
                (digits < 20 && !matches!(self.peek()?, b'.' | b'e' | b'E')).then_some(())
            }
            b'0' => {
                self.at += 1;
                matches!(self.peek()?, b',' | b'}').then_some(())
            }
            _ => None,
        }
    }

    fn small_number(&mut self) -> Option<u32> {
        let start = self.at;
        self.scalar()?;
        self.json.get(start..self.at)?.parse().ok()
    }
}

/// Marks a member as seen; `None` when it was already.
fn once(seen: &mut u8, bit: u8) -> Option<()> {
    (*seen & bit == 0).then(|| *seen |= bit)
}
