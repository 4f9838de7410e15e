//! The usual chunk of an OpenAI-compatible stream, read without a JSON parser.
//!
//! [`chunk`] is a strict matcher for a subset of JSON: one choice, a `delta` of strings and nulls (or one `text`), no nested values
//! elsewhere, no repeated members. Whatever it accepts, it understands as the full parse does; whatever it does not
//! expect, it leaves to the full parse.
//!
//! Neighbouring chunks of a stream mostly differ in one text only (and in OpenAI's padding, `obfuscation`). So a chunk
//! that was matched leaves a [`Template`]: the bytes around its text. A chunk that has the same bytes around another
//! text of the same kind means the same but for that text, and only the text is looked at.

use super::json_str::{hex4, plain_end};

/// What a matched chunk says.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Chunk<'a> {
    /// `id`.
    pub(super) id: Option<&'a str>,
    /// `model`.
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
    /// `arguments` of its only tool call.
    pub(super) arguments: Option<Raw<'a>>,
    /// `text` of a legacy completion.
    pub(super) text: Option<Raw<'a>>,
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

/// Which text of a `delta`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Field {
    /// `content`, or the `text` of a legacy completion.
    #[default]
    Content,
    /// `refusal`.
    Refusal,
    /// `reasoning_content` or `reasoning`.
    Reasoning,
    /// `arguments` of a tool call.
    Arguments,
}

/// What stood around the only text of a chunk that was matched and finished nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Template {
    /// All before the text, with its opening quote. Empty: there is no template.
    before: Vec<u8>,
    /// All after the text, from its closing quote; if `padded`, only up to the opening quote of the last member.
    after: Vec<u8>,
    /// The last member of the chunk is a string that nobody reads and that differs each time.
    padded: bool,
    field: Field,
    choice: u32,
}

/// Longest chunk without its text that is remembered, in bytes.
const TEMPLATE_BYTES: usize = 2048;

impl Template {
    /// Forgets it: it names an `id` and a `model` that are no longer the last ones.
    pub(super) fn forget(&mut self) {
        self.before.clear();
    }

    /// The text of a chunk that is this template but for its text, its field and its choice.
    pub(super) fn text<'a>(&self, data: &'a [u8]) -> Option<(Field, u32, Raw<'a>)> {
        if self.before.is_empty() {
            return None;
        }
        let rest = data.strip_prefix(self.before.as_slice())?;
        let (end, escaped) = text_end(rest, 0)?;
        let (text, rest) = rest.split_at_checked(end)?;
        let rest = rest.strip_prefix(self.after.as_slice())?;
        if self.padded {
            let end = plain_end(rest, 0);
            if rest.get(end..) != Some(b"\"}") {
                return None;
            }
            std::str::from_utf8(rest).ok()?;
        } else if !rest.is_empty() {
            return None;
        }
        // The quotes around it are ASCII, the rest of the chunk was valid before: so the chunk is valid if the text is.
        Some((self.field, self.choice, Raw { text: std::str::from_utf8(text).ok()?, escaped }))
    }

    fn learn(&mut self, m: &Matcher<'_>) {
        self.forget();
        let (Some((field, start, end)), 1, None) = (m.text, m.texts, m.chunk.finish) else { return };
        let padding = m.padding.filter(|&(from, to)| from > end && to + 2 == m.bytes.len());
        let until = padding.map_or(m.bytes.len(), |(from, _)| from);
        let (Some(before), Some(after)) = (m.bytes.get(..start), m.bytes.get(end..until)) else { return };
        if before.len() + after.len() <= TEMPLATE_BYTES {
            self.before.extend_from_slice(before);
            self.after.clear();
            self.after.extend_from_slice(after);
            (self.padded, self.field, self.choice) = (padding.is_some(), field, m.chunk.choice);
        }
    }
}

const ID: u8 = 1;
const MODEL: u8 = 2;
const OBJECT: u8 = 4;
const CHOICES: u8 = 8;
const USAGE: u8 = 16;
const INDEX: u8 = 1;
const DELTA: u8 = 2;
const FINISH: u8 = 4;
const TEXT: u8 = 8;
const CONTENT: u8 = 1;
const REFUSAL: u8 = 2;
const REASONING_CONTENT: u8 = 4;
const REASONING: u8 = 8;
const TOOL_CALLS: u8 = 16;
const FUNCTION: u8 = 1;
const ARGUMENTS: u8 = 2;

/// Matches one chunk and leaves its template; `None` leaves it to the full parse.
pub(super) fn chunk<'a>(json: &'a str, template: &mut Template) -> Option<Chunk<'a>> {
    let mut m = Matcher {
        json,
        bytes: json.as_bytes(),
        at: 0,
        top: 0,
        member: 0,
        text: None,
        texts: 0,
        padding: None,
        chunk: Chunk::default(),
    };
    m.whole()?;
    template.learn(&m);
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
    /// The latest non-null text of the delta: what it is, and where its inside begins and ends.
    text: Option<(Field, usize, usize)>,
    /// How many such texts there are.
    texts: u8,
    /// Where the inside of the latest string that nobody reads begins and ends.
    padding: Option<(usize, usize)>,
    chunk: Chunk<'a>,
}

impl<'a> Matcher<'a> {
    fn whole(&mut self) -> Option<()> {
        self.expect(b'{')?;
        while self.top_member()? {
            self.expect(b',')?;
        }
        self.expect(b'[')?;
        self.expect(b'{')?;
        loop {
            if !self.choice_member()? {
                self.expect(b'{')?;
                self.delta()?;
            }
            if !self.more(b'}')? {
                break;
            }
        }
        // Of a chat or of a legacy completion; servers that mix both in one choice are for the full parse.
        if !matches!(self.member & (DELTA | TEXT), DELTA | TEXT) {
            return None;
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
            "error" | "code" | "type" | "x_groq" | "timings" | "value" => return None,
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
            "text" => {
                once(&mut self.member, TEXT)?;
                self.chunk.text = self.text_or_null(Field::Content)?;
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
                    self.chunk.content = self.text_or_null(Field::Content)?;
                }
                "refusal" => {
                    once(&mut seen, REFUSAL)?;
                    self.chunk.refusal = self.text_or_null(Field::Refusal)?;
                }
                "reasoning_content" => {
                    once(&mut seen, REASONING_CONTENT)?;
                    self.chunk.reasoning_content = self.text_or_null(Field::Reasoning)?;
                }
                "reasoning" => {
                    once(&mut seen, REASONING)?;
                    self.chunk.reasoning = self.text_or_null(Field::Reasoning)?;
                }
                "tool_calls" => {
                    once(&mut seen, TOOL_CALLS)?;
                    self.tool_calls()?;
                }
                "function_call" | "audio" => self.literal(b"null")?,
                _ => self.scalar()?,
            }
            if !self.more(b'}')? {
                return Some(());
            }
        }
    }

    /// `null`, or one piece of the arguments of one tool call; a name, which comes once, is for the full parse.
    fn tool_calls(&mut self) -> Option<()> {
        if self.peek()? == b'n' {
            return self.literal(b"null");
        }
        self.expect(b'[')?;
        self.expect(b'{')?;
        let mut seen = 0;
        loop {
            match self.key()? {
                "function" => {
                    once(&mut seen, FUNCTION)?;
                    self.function()?;
                }
                "custom" => return None,
                _ => self.scalar()?,
            }
            if !self.more(b'}')? {
                return self.expect(b']');
            }
        }
    }

    fn function(&mut self) -> Option<()> {
        self.expect(b'{')?;
        let mut seen = 0;
        loop {
            match self.key()? {
                "arguments" => {
                    once(&mut seen, ARGUMENTS)?;
                    self.chunk.arguments = self.text_or_null(Field::Arguments)?;
                }
                "name" => self.literal(b"null")?,
                "input" => return None,
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

    fn text_or_null(&mut self, field: Field) -> Option<Option<Raw<'a>>> {
        if self.peek()? == b'n' {
            return self.literal(b"null").map(|()| None);
        }
        self.expect(b'"')?;
        let start = self.at;
        let (end, escaped) = text_end(self.bytes, start)?;
        self.at = end + 1;
        self.text = Some((field, start, end));
        self.texts += 1;
        Some(Some(Raw { text: self.json.get(start..end)?, escaped }))
    }

    fn literal(&mut self, word: &[u8]) -> Option<()> {
        self.bytes.get(self.at..)?.starts_with(word).then(|| self.at += word.len())
    }

    /// A value that nobody reads: a string without escapes, a short whole number, a literal.
    fn scalar(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => {
                let text = self.plain()?;
                self.padding = Some((self.at - 1 - text.len(), self.at - 1));
                Some(())
            }
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

/// Where the quote is that ends the string whose inside begins at `at`, and whether it holds escapes; escapes of single
/// code units only.
fn text_end(bytes: &[u8], mut at: usize) -> Option<(usize, bool)> {
    let mut escaped = false;
    loop {
        at = plain_end(bytes, at);
        match bytes.get(at)? {
            b'"' => return Some((at, escaped)),
            b'\\' => {
                escaped = true;
                match bytes.get(at + 1)? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at += 2,
                    // Surrogates, paired or not, are for the full parse.
                    b'u' if !(0xd800..=0xdfff).contains(&hex4(bytes, at + 2)?) => at += 6,
                    _ => return None,
                }
            }
            _ => return None,
        }
    }
}

/// Marks a member as seen; `None` when it was already.
fn once(seen: &mut u8, bit: u8) -> Option<()> {
    (*seen & bit == 0).then(|| *seen |= bit)
}
