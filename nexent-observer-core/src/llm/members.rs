//! The members at the top of a JSON object, and one level below, kept until it is known which API they belong to.

use super::{
    api::{Member, Value},
    json_scan::Scanner,
};

/// Most members kept of each level.
const MEMBERS_KEPT: usize = 64;

/// Some members of one object, in order. Memory is bounded: at most [`MEMBERS_KEPT`] of each level, their texts cut.
#[derive(Debug, Default)]
pub(super) struct Members {
    top: Vec<Kept>,
    below: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    parent: Option<String>,
    key: String,
    value: KeptValue,
}

#[derive(Debug)]
enum KeptValue {
    Str(String),
    Num(String),
    Bool(bool),
    Null,
    Object,
    Array,
}

impl Members {
    /// Those of a JSON text; none when it is no object.
    pub(super) fn of(json: &str) -> Self {
        let mut members = Self::default();
        Scanner::new().feed(json.as_bytes(), &mut |member| members.push(member));
        members
    }

    /// Keeps one more, if there is room.
    pub(super) fn push(&mut self, member: Member<'_>) {
        let level = if member.parent.is_some() { &mut self.below } else { &mut self.top };
        if level.len() < MEMBERS_KEPT {
            level.push(Kept::of(member));
        }
    }

    /// All of them, those of the top first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Member<'_>> {
        self.top.iter().chain(&self.below).map(Kept::as_member)
    }

    /// A string at the top.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.top.iter().rev().filter(|kept| kept.key == key).find_map(|kept| match &kept.value {
            KeptValue::Str(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Whether an array stands at the top under this key.
    pub(super) fn is_array(&self, key: &str) -> bool {
        self.top.iter().any(|kept| kept.key == key && matches!(kept.value, KeptValue::Array))
    }

    /// Whether an object stands at the top under this key.
    pub(super) fn is_object(&self, key: &str) -> bool {
        self.top.iter().any(|kept| kept.key == key && matches!(kept.value, KeptValue::Object))
    }

    /// Whether something other than `null` stands at the top under this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.top.iter().any(|kept| kept.key == key && !matches!(kept.value, KeptValue::Null))
    }

    /// Whether something other than `null` stands one level below the top.
    pub(super) fn has_below(&self, parent: &str, key: &str) -> bool {
        self.below.iter().any(|kept| {
            kept.parent.as_deref() == Some(parent) && kept.key == key && !matches!(kept.value, KeptValue::Null)
        })
    }
}

impl Kept {
    fn of(member: Member<'_>) -> Self {
        let value = match member.value {
            Value::Str(text) => KeptValue::Str(text.to_owned()),
            Value::Num(text) => KeptValue::Num(text.to_owned()),
            Value::Bool(b) => KeptValue::Bool(b),
            Value::Null => KeptValue::Null,
            Value::Object => KeptValue::Object,
            Value::Array => KeptValue::Array,
        };
        Self { parent: member.parent.map(str::to_owned), key: member.key.to_owned(), value }
    }

    fn as_member(&self) -> Member<'_> {
        let value = match &self.value {
            KeptValue::Str(text) => Value::Str(text),
            KeptValue::Num(text) => Value::Num(text),
            KeptValue::Bool(b) => Value::Bool(*b),
            KeptValue::Null => Value::Null,
            KeptValue::Object => Value::Object,
            KeptValue::Array => Value::Array,
        };
        Member { parent: self.parent.as_deref(), key: &self.key, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_by_key_and_kind() {
        let members = Members::of(r#"{"a":"x","b":[1],"c":{"d":1,"e":null},"n":null,"a":"y"}"#);
        assert_eq!(members.text("a"), Some("y"));
        assert!(members.is_array("b") && !members.is_array("c"));
        assert!(members.is_object("c") && !members.is_object("b"));
        assert!(members.has("b") && !members.has("n") && !members.has("d"));
        assert!(members.has_below("c", "d") && !members.has_below("c", "e") && !members.has_below("b", "d"));
        assert_eq!(members.iter().count(), 7);
        assert_eq!(Members::of("[1]").iter().count(), 0);
    }

    #[test]
    fn junk_members_cannot_grow_the_memory() {
        let junk: String =
            (0..10_000).map(|i| format!("\"k{i}\":\"{}\",\"o{i}\":{{\"a\":1}},", "v".repeat(2000))).collect();
        let members = Members::of(&format!("{{{junk}\"model\":\"m\"}}"));
        assert_eq!((members.top.len(), members.below.len()), (MEMBERS_KEPT, MEMBERS_KEPT));
    }

    #[test]
    fn members_below_do_not_push_out_those_of_the_top() {
        let below: String = (0..500).map(|i| format!("\"k{i}\":1,")).collect();
        let members = Members::of(&format!("{{\"o\":{{{below}\"z\":1}},\"model\":\"m\"}}"));
        assert_eq!(members.text("model"), Some("m"));
    }
}
