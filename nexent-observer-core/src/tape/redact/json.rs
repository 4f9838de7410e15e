//! The nesting of a JSON text as far as redaction must know it: where a value stands, and what its key says of it.

use super::words;

/// Deepest nesting that is told apart; what is deeper is content.
const DEPTH: usize = 64;

/// Which body it is: of requests only the top is ever read by later stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// A request.
    Request,
    /// A response.
    Response,
}

/// What a key says of its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// A word of the API, such as the type of an event.
    structure: bool,
    /// The name of a model.
    model: bool,
    /// Why something ended.
    reason: bool,
    /// What a failure is called, if it stands in an error.
    failure: bool,
    /// An id.
    id: bool,
    /// A count or a setting.
    number: bool,
    /// JSON in Base64 (Bedrock).
    base64: bool,
    /// What it holds is of the user's making.
    content: bool,
    /// The value is an error, or what says why something failed.
    error: bool,
    /// In it a model is the one that answers.
    holds_model: bool,
}

/// What becomes of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Replaced.
    Content,
    /// A key: kept if known.
    Key,
    /// Kept if made of known words.
    Structure,
    /// Kept if it can be a model's name.
    Model,
    /// Kept if it is an identifier.
    Name,
    /// Replaced by another of the same length, the same one for the same id.
    Id,
    /// What it encodes is treated as a text of its own.
    Base64,
}

impl Facts {
    fn of(key: &[u8]) -> Self {
        let mut last = [0_u8; 24];
        let mut facts = Self::default();
        let mut number = false;
        words::words(key, |word| {
            last = [0; 24];
            last.iter_mut().zip(word.bytes()).for_each(|(to, from)| *to = from);
            number |= NUMBERS.contains(&word);
            true
        });
        facts.number = number;
        facts.id = last.starts_with(b"id\0");
        match key {
            b"type" | b"status" => (facts.structure, facts.failure) = (true, true),
            b"event" | b"object" | b"role" | b"phase" | b"jsonrpc" => facts.structure = true,
            b"model" | b"modelVersion" => facts.model = true,
            b"finish_reason" | b"finishReason" | b"stop_reason" | b"stopReason" | b"completionReason"
            | b"done_reason" | b"blockReason" | b"stop_type" => facts.reason = true,
            b"code" | b"error_type" => (facts.failure, facts.structure) = (true, true),
            b"reason" => (facts.failure, facts.structure) = (true, true),
            b"error" => (facts.error, facts.reason) = (true, true),
            b"details" | b"incomplete_details" | b"status_details" => facts.error = true,
            b"message" | b"response" | b"session" => facts.holds_model = true,
            b"bytes" => facts.base64 = true,
            b"args" | b"arguments" | b"input" | b"parsed" | b"properties" | b"schema" | b"messages" | b"contents"
            | b"tools" | b"functions" | b"documents" => facts.content = true,
            _ => {}
        }
        facts
    }
}

/// Words of which one is in every key of a number that is kept.
const NUMBERS: [&str; 14] = [
    "tokens",
    "token",
    "count",
    "index",
    "n",
    "temperature",
    "top",
    "max",
    "predict",
    "code",
    "status",
    "number",
    "length",
    "units",
];

#[derive(Debug, Clone, Copy)]
struct Level {
    object: bool,
    content: bool,
    facts: Facts,
    /// A string that comes next is a key.
    expects_key: bool,
}

/// Where in a JSON text one is.
#[derive(Debug)]
pub(super) struct Nesting {
    of: Of,
    levels: Vec<Level>,
    /// Open containers beyond [`DEPTH`].
    deeper: u64,
}

impl Nesting {
    pub(super) fn new(of: Of) -> Self {
        Self { of, levels: Vec::new(), deeper: 0 }
    }

    /// Inside so many containers of a request whose beginning is not known.
    pub(super) fn inside(depth: u64) -> Self {
        let mut nesting = Self::new(Of::Request);
        for n in 0..depth.min(DEPTH as u64) {
            let level = Level { object: true, content: n > 0, facts: Facts::default(), expects_key: false };
            nesting.levels.push(level);
        }
        nesting.deeper = depth.saturating_sub(DEPTH as u64);
        nesting
    }

    pub(super) fn reset(&mut self) {
        self.levels.clear();
        self.deeper = 0;
    }

    pub(super) fn is_outside(&self) -> bool {
        self.levels.is_empty()
    }

    pub(super) fn open(&mut self, object: bool) {
        if self.levels.len() >= DEPTH {
            self.deeper += 1;
            return;
        }
        let depth = self.levels.len() + 1;
        let (content, facts) = match self.levels.last() {
            Some(level) => (level.content || level.facts.content, level.facts),
            None => (false, Facts::default()),
        };
        // Later stages read the members of a request and, of objects, theirs.
        let content = content || self.of == Of::Request && (depth > 2 || depth == 2 && !object);
        // The key of an array says what its elements are, until an object in it says more.
        let facts = if object { Facts::default() } else { Facts { number: false, ..facts } };
        self.levels.push(Level { object, content, facts, expects_key: object });
    }

    pub(super) fn close(&mut self) {
        if self.deeper > 0 {
            self.deeper -= 1;
        } else {
            self.levels.pop();
        }
    }

    pub(super) fn comma(&mut self) {
        if self.deeper == 0
            && let Some(level) = self.levels.last_mut().filter(|level| level.object)
        {
            level.expects_key = true;
            level.facts = Facts::default();
        }
    }

    pub(super) fn colon(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.expects_key = false;
        }
    }

    /// What becomes of the string that begins here.
    pub(super) fn rule(&self) -> Rule {
        let Some(level) = self.levels.last() else { return Rule::Content };
        if level.content || self.deeper > 0 {
            return Rule::Content;
        }
        if level.expects_key {
            return Rule::Key;
        }
        let facts = level.facts;
        // The elements of an array at the top stand at the top themselves.
        let top = self.levels.len() == 2 && self.levels.first().is_some_and(|level| !level.object);
        let parent = self.levels.len().checked_sub(2).and_then(|at| self.levels.get(at)).map(|level| level.facts);
        let parent = parent.filter(|_| !top);
        if facts.base64 {
            Rule::Base64
        } else if facts.id {
            Rule::Id
        } else if facts.model && parent.is_none_or(|parent| parent.holds_model) {
            Rule::Model
        } else if facts.reason || facts.failure && parent.is_some_and(|parent| parent.error) {
            Rule::Name
        } else if facts.structure {
            Rule::Structure
        } else {
            Rule::Content
        }
    }

    /// A key ended; `known`: it was kept.
    pub(super) fn key(&mut self, key: &[u8], known: bool) {
        if let Some(level) = self.levels.last_mut() {
            level.facts = if known { Facts::of(key) } else { Facts::default() };
            level.expects_key = false;
        }
    }

    /// Whether a number that stands here is kept.
    pub(super) fn keeps_number(&self) -> bool {
        self.deeper == 0 && self.levels.last().is_some_and(|level| level.object && !level.content && level.facts.number)
    }
}
