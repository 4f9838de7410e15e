//! Reads the top of a JSON object (its members and those one level below) from a stream of bytes, keeping nothing else,
//! and finds its way into the end of an object whose middle is missing.
//!
//! What tells structure from text: in valid JSON a quote inside a string always has an odd number of backslashes before
//! it, so a quote with an even number is always a string's border, whoever wrote the text. That holds read forwards and
//! backwards, which is why no prompt can pass for a member.

use smallvec::SmallVec;

use super::{
    api::{Member, Value},
    json_str,
};

/// Longest key that is looked at, in bytes as written; a longer one is nobody's.
const KEY_BYTES: usize = 128;
/// Longest beginning of a value that is kept, in bytes as written.
const VALUE_BYTES: usize = 1024;

/// Incremental forward scanner. Constant memory, each byte is looked at once.
#[derive(Debug)]
pub(super) struct Scanner {
    state: State,
    /// Open containers; 0 before and after the object.
    depth: u64,
    /// Whether the containers at depth 1 and 2 are objects.
    object: [bool; 2],
    /// Keys in force at depth 1 and 2; `None` where the key was too long.
    keys: [Option<SmallVec<[u8; 32]>>; 2],
    /// The next string at this level is a key.
    expects_key: bool,
    /// String or scalar in the making.
    token: SmallVec<[u8; 64]>,
    overflow: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    Between,
    Text {
        keep: Keep,
        escaped: bool,
    },
    Scalar,
    Done,
    /// No object: nothing more is looked at.
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    Key,
    Value,
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self {
            state: State::Before,
            depth: 0,
            object: [true, false],
            keys: [None, None],
            expects_key: false,
            token: SmallVec::new(),
            overflow: false,
        }
    }

    /// A scanner that stands inside the top-level object, where a key comes next.
    fn at_top() -> Self {
        Self { state: State::Between, depth: 1, expects_key: true, ..Self::new() }
    }

    /// The body is no JSON object.
    pub(super) fn is_dead(&self) -> bool {
        self.state == State::Dead
    }

    /// Takes the next bytes; `on_member` gets each member once its value is known (containers: once they begin).
    pub(super) fn feed(&mut self, mut bytes: &[u8], on_member: &mut dyn FnMut(Member<'_>)) {
        while let Some((&b, rest)) = bytes.split_first() {
            match self.state {
                State::Done | State::Dead => return,
                State::Text { keep, escaped } => bytes = self.text(bytes, keep, escaped, on_member),
                State::Scalar => {
                    if matches!(b, b',' | b'}' | b']' | b':' | b'"' | b' ' | b'\t' | b'\n' | b'\r') {
                        self.end_scalar(on_member);
                        self.state = State::Between;
                    } else {
                        self.keep(&[b], VALUE_BYTES);
                        bytes = rest;
                    }
                }
                State::Before => {
                    bytes = rest;
                    match b {
                        b'{' => self.open(true),
                        // Whitespace, and a byte-order mark.
                        b' ' | b'\t' | b'\n' | b'\r' | 0xef | 0xbb | 0xbf => {}
                        _ => self.state = State::Dead,
                    }
                }
                State::Between => {
                    bytes = rest;
                    self.between(b, on_member);
                }
            }
        }
    }

    fn between(&mut self, b: u8, on_member: &mut dyn FnMut(Member<'_>)) {
        match b {
            b' ' | b'\t' | b'\n' | b'\r' => {}
            b'{' | b'[' => {
                if self.at_value() {
                    self.report(if b == b'{' { Value::Object } else { Value::Array }, on_member);
                }
                self.open(b == b'{');
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.expects_key = false;
                if self.depth == 0 {
                    self.state = State::Done;
                }
            }
            b',' => self.expects_key = self.in_object(),
            b':' => self.expects_key = false,
            b'"' => {
                self.token.clear();
                self.overflow = false;
                let keep = match (self.in_object(), self.expects_key) {
                    (true, true) => Keep::Key,
                    (true, false) => Keep::Value,
                    (false, _) => Keep::Nothing,
                };
                self.state = State::Text { keep, escaped: false };
            }
            _ if self.at_value() => {
                self.token.clear();
                self.overflow = false;
                self.token.push(b);
                self.state = State::Scalar;
            }
            _ => {}
        }
    }

    /// Inside a string: takes what belongs to it, gives back the rest.
    fn text<'a>(
        &mut self,
        bytes: &'a [u8],
        keep: Keep,
        escaped: bool,
        on_member: &mut dyn FnMut(Member<'_>),
    ) -> &'a [u8] {
        let cap = if keep == Keep::Key { KEY_BYTES } else { VALUE_BYTES };
        if escaped {
            let (one, rest) = bytes.split_at(bytes.len().min(1));
            if keep != Keep::Nothing {
                self.keep(one, cap);
            }
            self.state = State::Text { keep, escaped: false };
            return rest;
        }
        let at = memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
        let (plain, rest) = bytes.split_at(at);
        if keep != Keep::Nothing {
            self.keep(plain, cap);
        }
        match rest.split_first() {
            None => rest,
            Some((b'\\', rest)) => {
                if keep != Keep::Nothing {
                    self.keep(b"\\", cap);
                }
                self.state = State::Text { keep, escaped: true };
                rest
            }
            Some((_, rest)) => {
                self.state = State::Between;
                match keep {
                    Keep::Nothing => {}
                    Keep::Key => self.end_key(),
                    Keep::Value => {
                        let text = unescaped(&self.token);
                        self.report(Value::Str(&text), on_member);
                    }
                }
                rest
            }
        }
    }

    fn keep(&mut self, bytes: &[u8], cap: usize) {
        let room = cap.saturating_sub(self.token.len());
        self.overflow |= bytes.len() > room;
        self.token.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }

    fn end_key(&mut self) {
        let key = (!self.overflow).then(|| {
            if self.token.contains(&b'\\') {
                unescaped(&self.token).bytes().collect()
            } else {
                self.token.as_slice().into()
            }
        });
        if let Some(slot) = self.level().and_then(|level| self.keys.get_mut(level)) {
            *slot = key;
        }
    }

    fn end_scalar(&mut self, on_member: &mut dyn FnMut(Member<'_>)) {
        let token = std::mem::take(&mut self.token);
        let value = match token.as_slice() {
            b"true" => Some(Value::Bool(true)),
            b"false" => Some(Value::Bool(false)),
            b"null" => Some(Value::Null),
            number if !self.overflow => std::str::from_utf8(number).ok().map(Value::Num),
            _ => None,
        };
        if let Some(value) = value {
            self.report(value, on_member);
        }
    }

    fn report(&self, value: Value<'_>, on_member: &mut dyn FnMut(Member<'_>)) {
        let key = |level: usize| self.keys.get(level)?.as_deref().and_then(|k| std::str::from_utf8(k).ok());
        let (parent, key) = match self.depth {
            1 => (None, key(0)),
            2 => (key(0), key(1)),
            _ => return,
        };
        // Below a parent whose key is not known, nothing may pass for a top-level member.
        if let (Some(key), true) = (key, self.depth == 1 || parent.is_some()) {
            on_member(Member { parent, key, value });
        }
    }

    fn open(&mut self, object: bool) {
        self.depth += 1;
        self.state = State::Between;
        self.expects_key = object;
        if let Some(slot) = self.level().and_then(|level| self.object.get_mut(level)) {
            *slot = object;
        }
    }

    /// Index of the current depth in `object` and `keys`; `None` deeper down.
    fn level(&self) -> Option<usize> {
        matches!(self.depth, 1 | 2).then_some(self.depth as usize - 1)
    }

    fn in_object(&self) -> bool {
        self.level().and_then(|level| self.object.get(level)) == Some(&true)
    }

    fn at_value(&self) -> bool {
        self.in_object() && !self.expects_key
    }
}

fn unescaped(raw: &[u8]) -> String {
    let mut out = String::with_capacity(raw.len());
    json_str::unescape_into(&String::from_utf8_lossy(raw), &mut out);
    out
}

/// Reads the end of an object whose beginning is missing: `tail` is everything from some unknown place inside it to its
/// last byte. Only members that begin in `tail` are reported.
pub(super) fn scan_tail(tail: &[u8], on_member: &mut dyn FnMut(Member<'_>)) {
    if let Some(start) = first_top_member(tail) {
        Scanner::at_top().feed(tail.get(start..).unwrap_or_default(), on_member);
    }
}

/// Where in `tail` the first whole member of the top-level object begins, found from the end backwards: the last byte
/// closes depth 1. `None` when there is none, or when `tail` is not the end of an object.
fn first_top_member(tail: &[u8]) -> Option<usize> {
    let mut at = tail.iter().rposition(|b| !b.is_ascii_whitespace())?;
    if tail.get(at) != Some(&b'}') {
        return None;
    }
    let mut depth = 1_u64;
    let mut first = None;
    while let Some(before) = at.checked_sub(1) {
        at = before;
        match tail.get(at)? {
            b'"' => {
                // Outside of strings, so this quote ends one; go to the quote that begins it.
                if backslashes_before(tail, at)? % 2 == 1 {
                    return None;
                }
                let Some(begin) = string_begin(tail, at) else { break };
                at = begin;
            }
            b'}' | b']' => depth += 1,
            b'{' | b'[' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b',' if depth == 1 => first = Some(at + 1),
            _ => {}
        }
    }
    first
}

/// Position of the quote that begins the string that ends at `end`; `None` when it lies before `tail` or cannot be told.
fn string_begin(tail: &[u8], end: usize) -> Option<usize> {
    let mut at = end;
    loop {
        at = memchr::memrchr(b'"', tail.get(..at)?)?;
        let run = backslashes_before(tail, at)?;
        if run % 2 == 0 {
            return Some(at);
        }
        at -= run;
    }
}

/// Number of backslashes right before `at`; `None` when they reach the start of `tail`, so that their number is not known.
fn backslashes_before(tail: &[u8], at: usize) -> Option<usize> {
    let run = tail.get(..at)?.iter().rev().take_while(|&&b| b == b'\\').count();
    (run == 0 || run < at).then_some(run)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, json};

    use super::*;

    type Seen = Vec<(Option<String>, String, String)>;

    fn note(seen: &mut Seen, m: Member<'_>) {
        seen.push((m.parent.map(str::to_owned), m.key.to_owned(), format!("{:?}", m.value)));
    }

    fn forward<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Seen, State) {
        let mut seen = Seen::new();
        let mut scanner = Scanner::new();
        for piece in pieces {
            scanner.feed(piece, &mut |m| note(&mut seen, m));
        }
        (seen, scanner.state)
    }

    /// What the document says, by a full parse.
    fn reference(doc: &Map<String, serde_json::Value>) -> Seen {
        fn value(v: &serde_json::Value) -> String {
            match v {
                serde_json::Value::Null => "Null".into(),
                serde_json::Value::Bool(b) => format!("Bool({b})"),
                serde_json::Value::Number(n) => format!("Num({:?})", n.to_string()),
                serde_json::Value::String(s) => format!("Str({s:?})"),
                serde_json::Value::Array(_) => "Array".into(),
                serde_json::Value::Object(_) => "Object".into(),
            }
        }
        let mut seen = Seen::new();
        for (k, v) in doc {
            seen.push((None, k.clone(), value(v)));
            for (k2, v2) in v.as_object().into_iter().flatten() {
                seen.push((Some(k.clone()), k2.clone(), value(v2)));
            }
        }
        seen
    }

    #[test]
    fn members_are_found_at_the_top_and_one_below_and_nowhere_else() {
        let body = br#" { "messages" : [{"role":"user","content":"\"model\":\"evil\",}{"},{"model":"evil"}],
            "opt":{"a":1,"deep":{"model":"evil"},"b":"x"},"m\u006fdel":"good\n\u00e9","t":-1.5e3,"n":null,"s":true } junk"#;
        let (seen, state) = forward([body.as_slice()]);
        assert_eq!(state, State::Done);
        let top: Vec<(&str, &str)> =
            seen.iter().filter(|m| m.0.is_none()).map(|m| (m.1.as_str(), m.2.as_str())).collect();
        assert_eq!(
            top,
            [
                ("messages", "Array"),
                ("opt", "Object"),
                ("model", "Str(\"good\\né\")"),
                ("t", "Num(\"-1.5e3\")"),
                ("n", "Null"),
                ("s", "Bool(true)")
            ]
        );
        let below: Vec<&str> = seen.iter().filter(|m| m.0.as_deref() == Some("opt")).map(|m| m.1.as_str()).collect();
        assert_eq!(below, ["a", "deep", "b"]);
        for cut in 0..body.len() {
            assert_eq!(forward([&body[..cut], &body[cut..]]).0, seen, "cut at {cut}");
        }
        assert_eq!(forward(body.chunks(1)).0, seen);
    }

    #[test]
    fn what_is_no_object_is_left_alone() {
        for body in ["[1]", "\"{\"", "hello {\"model\":\"x\"}", "1"] {
            let (seen, state) = forward([body.as_bytes()]);
            assert!(seen.is_empty(), "{body}");
            assert_eq!(state, State::Dead, "{body}");
        }
    }

    #[test]
    fn long_keys_are_nobodys_and_long_values_are_cut() {
        let long = "k".repeat(KEY_BYTES + 1);
        let (seen, _) = forward([format!(r#"{{"{long}":1,"{long}":{{"model":"x"}},"a":"{long}"}}"#).as_bytes()]);
        assert_eq!(seen.len(), 1);
        let (seen, _) = forward([format!(r#"{{"a":"{}"}}"#, "é".repeat(VALUE_BYTES)).as_bytes()]);
        assert!(seen[0].2.len() < VALUE_BYTES + 100);
    }

    #[test]
    fn nesting_costs_no_stack_and_no_memory() {
        let mut body = vec![b'['; 2_000_000];
        body.splice(0..0, *b"{\"a\":");
        body.extend(vec![b']'; 2_000_000]);
        body.extend(b",\"model\":\"m\"}");
        assert_eq!(forward([body.as_slice()]).0.len(), 2);
        let mut seen = Seen::new();
        scan_tail(&body, &mut |m| note(&mut seen, m));
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn a_tail_with_endless_backslashes_is_no_trap() {
        for tail in [r#"\\\\\","model":"m"}"#, r#"\"}"#, r#"\"#, "}", "", "\"}", ",}", "]}", "x"] {
            let mut seen = Seen::new();
            scan_tail(tail.as_bytes(), &mut |m| note(&mut seen, m));
            // The number of backslashes is not known: the quote may or may not end a string. Nothing is claimed before it.
            assert!(seen.len() <= 1, "{tail}: {seen:?}");
        }
        let mut big = vec![b'\\'; 1_000_000];
        big.extend(b"\"}");
        scan_tail(&big, &mut |_| panic!("nothing is known here"));
        let quotes = b"\\\"".repeat(500_000);
        scan_tail(&[&quotes, b"\"}".as_slice()].concat(), &mut |_| panic!("nothing is known here"));
    }

    /// Text that tries to look like structure.
    fn hostile_text(parts: usize) -> impl Strategy<Value = String> {
        prop::collection::vec(
            prop_oneof![
                Just("\""),
                Just("\\"),
                Just(","),
                Just("\"model\":\"evil\""),
                Just("\\\"model\\\":\\\"evil\\\""),
                Just("}"),
                Just("]}"),
                Just("{"),
                Just("[{"),
                Just(":"),
                Just("\n"),
                Just("é"),
                Just("data: "),
                Just("\",\"model\":\"evil\",\"a\":\""),
                Just("\\\\"),
                Just("x"),
                Just("stream\":true")
            ],
            0..parts,
        )
        .prop_map(|v| v.concat())
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            hostile_text(8).prop_map(serde_json::Value::from),
            any::<i32>().prop_map(serde_json::Value::from),
            any::<bool>().prop_map(serde_json::Value::from),
            Just(serde_json::Value::Null),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::vec((prop_oneof![Just("model".to_owned()), hostile_text(3)], inner), 0..4)
                    .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
            ]
        })
    }

    fn document() -> impl Strategy<Value = Map<String, serde_json::Value>> {
        prop::collection::vec(
            (
                prop_oneof![
                    Just("model".to_owned()),
                    Just("messages".to_owned()),
                    Just("stream".to_owned()),
                    hostile_text(3)
                ],
                value(),
            ),
            0..6,
        )
        .prop_map(|m| m.into_iter().collect())
    }

    proptest! {
        #[test]
        fn a_complete_body_is_read_as_a_full_parse_reads_it(doc in document(), pretty: bool, cut: prop::sample::Index) {
            let body = if pretty { serde_json::to_vec_pretty(&doc) } else { serde_json::to_vec(&doc) }.unwrap();
            let (a, b) = body.split_at(cut.index(body.len()));
            let (seen, state) = forward([a, b]);
            prop_assert_eq!(state, State::Done);
            prop_assert_eq!(seen, reference(&doc));
        }

        #[test]
        fn a_tail_yields_true_members_only_whatever_the_text_looks_like(doc in document(), pretty: bool, cut: prop::sample::Index) {
            let body = if pretty { serde_json::to_vec_pretty(&doc) } else { serde_json::to_vec(&doc) }.unwrap();
            let tail = &body[cut.index(body.len())..];
            let mut seen = Seen::new();
            scan_tail(tail, &mut |m| note(&mut seen, m));
            let truth = reference(&doc);
            prop_assert!(truth.ends_with(&seen), "{:?} of {:?}", seen, truth);
        }

        #[test]
        fn a_value_that_the_hole_cut_is_never_reported(doc in document(), cut: prop::sample::Index) {
            let body = serde_json::to_vec(&doc).unwrap();
            let (seen, _) = forward([&body[..cut.index(body.len())]]);
            prop_assert!(reference(&doc).starts_with(&seen));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'"'), Just(b'\\'), Just(b'{'), Just(b'}'), Just(b',')], 0..200)) {
            let whole = forward([bytes.as_slice()]).0;
            prop_assert_eq!(forward(bytes.chunks(1)).0, whole);
            scan_tail(&bytes, &mut |_| {});
        }
    }

    #[test]
    fn the_order_of_the_official_sdk_is_read_from_the_tail() {
        let doc = json!({"messages":[{"role":"user","content":"\"model\":\"evil\"".repeat(9)}],"model":"gpt-4o","stream":true,
            "stream_options":{"include_usage":true},"temperature":0.2,"tools":[{"type":"function","function":{"name":"f","parameters":{"model":"evil"}}}]});
        // `json!` sorts its keys; the SDK does not: "messages" first, "tools" last. Sorted order is the same here.
        let body = doc.to_string();
        let tail = &body[60..];
        let mut seen = Seen::new();
        scan_tail(tail.as_bytes(), &mut |m| note(&mut seen, m));
        let keys: Vec<&str> = seen.iter().filter(|m| m.0.is_none()).map(|m| m.1.as_str()).collect();
        assert_eq!(keys, ["model", "stream", "stream_options", "temperature", "tools"]);
    }
}
