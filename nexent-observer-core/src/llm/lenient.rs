//! Deserialising what comes from servers that do not keep to the schema: a target takes the values that it understands
//! and lets all others pass, counting them: a member of another type than the API gives it is worth knowing of. `null` is no type.
//! A repeated key overrides the earlier one. Only broken JSON is an error.

use std::{borrow::Cow, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// How many values were of a type that their target does not take.
pub(super) type Odd = u32;

/// A target. What it does not override, it lets pass and counts.
pub(super) trait Take<'de>: Default {
    /// Takes the value of the current key.
    fn take_value<A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<Odd, A::Error> {
        map.next_value_seed(Into(self))
    }
    fn take_str(&mut self, _text: Cow<'de, str>) -> Odd {
        1
    }
    fn take_count(&mut self, _number: u64) -> Odd {
        1
    }
    fn take_float(&mut self, _number: f64) -> Odd {
        1
    }
    fn take_bool(&mut self, _yes: bool) -> Odd {
        1
    }
    fn take_seq<A: SeqAccess<'de>>(&mut self, mut seq: A) -> Result<Odd, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(1)
    }
    fn take_map<A: MapAccess<'de>>(&mut self, mut map: A) -> Result<Odd, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(1)
    }
}

/// Parses `json`, whole and nothing after it, into a target; says how many of its values were odd.
pub(super) fn parse<'de, T: Take<'de>>(json: &'de str) -> Result<(T, Odd), serde_json::Error> {
    let mut target = T::default();
    let mut de = serde_json::Deserializer::from_str(json);
    let odd = Into(&mut target).deserialize(&mut de)?;
    de.end()?;
    Ok((target, odd))
}

/// The value of the current key into `target`, whatever stood there before.
pub(super) fn value<'de, T: Take<'de>, A: MapAccess<'de>>(target: &mut T, map: &mut A) -> Result<Odd, A::Error> {
    *target = T::default();
    target.take_value(map)
}

/// Lets the value of the current key pass.
pub(super) fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}

/// The next key.
pub(super) fn key<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Cow<'de, str>>, A::Error> {
    let mut key = Text::default();
    Ok(map.next_key_seed(Into(&mut key))?.and(key.0))
}

/// A string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Text<'de>(pub(super) Option<Cow<'de, str>>);

impl Text<'_> {
    /// The text unless it is absent or empty.
    pub(super) fn non_empty(&self) -> Option<&str> {
        self.0.as_deref().filter(|text| !text.is_empty())
    }
}

impl<'de> Take<'de> for Text<'de> {
    fn take_str(&mut self, text: Cow<'de, str>) -> Odd {
        self.0 = Some(text);
        0
    }
}

/// The arguments of a tool call: a string as it reads, an object or an array as it is written. An empty object says
/// nothing. As the value of a key only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Json<'de>(pub(super) Text<'de>);

impl<'de> Take<'de> for Json<'de> {
    fn take_value<A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<Odd, A::Error> {
        let raw = map.next_value::<&'de RawValue>()?.get();
        match raw.as_bytes() {
            [b'"', ..] => (self.0, _) = parse(raw).map_err(A::Error::custom)?,
            [b'{', inside @ .., b'}'] if inside.trim_ascii().is_empty() => {}
            [b'{' | b'[', ..] => self.0 = Text(Some(Cow::Borrowed(raw))),
            [b'n', ..] => {}
            _ => return Ok(1),
        }
        Ok(0)
    }
}

/// A count; whole floats are taken too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count(pub(super) Option<u64>);

impl<'de> Take<'de> for Count {
    fn take_count(&mut self, number: u64) -> Odd {
        self.0 = Some(number);
        0
    }
    fn take_float(&mut self, number: f64) -> Odd {
        let whole = number.fract() == 0.0 && (0.0..9e15).contains(&number);
        if whole {
            self.0 = Some(number as u64);
        }
        Odd::from(!whole)
    }
}

/// `true`; what is absent or of another type is false.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Flag(pub(super) bool);

impl Take<'_> for Flag {
    fn take_bool(&mut self, yes: bool) -> Odd {
        self.0 = yes;
        0
    }
}

/// Something that is not looked into here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Anything;

impl<'de> Take<'de> for Anything {
    fn take_str(&mut self, _text: Cow<'de, str>) -> Odd {
        0
    }
    fn take_count(&mut self, _number: u64) -> Odd {
        0
    }
    fn take_float(&mut self, _number: f64) -> Odd {
        0
    }
    fn take_bool(&mut self, _yes: bool) -> Odd {
        0
    }
    fn take_seq<A: SeqAccess<'de>>(&mut self, mut seq: A) -> Result<Odd, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(0)
    }
    fn take_map<A: MapAccess<'de>>(&mut self, mut map: A) -> Result<Odd, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(0)
    }
}

/// An array of which at most `MAX` elements are kept: a small body must not grow into large memory.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Items<T, const MAX: usize> {
    pub(super) items: Vec<T>,
    /// It was an array at all.
    pub(super) present: bool,
}

impl<T, const MAX: usize> Default for Items<T, MAX> {
    fn default() -> Self {
        Self { items: Vec::new(), present: false }
    }
}

impl<'de, T: Take<'de>, const MAX: usize> Take<'de> for Items<T, MAX> {
    fn take_seq<A: SeqAccess<'de>>(&mut self, mut seq: A) -> Result<Odd, A::Error> {
        self.present = true;
        let mut all: Odd = 0;
        while self.items.len() < MAX {
            let mut item = T::default();
            let Some(odd) = seq.next_element_seed(Into(&mut item))? else { return Ok(all) };
            all = all.saturating_add(odd);
            self.items.push(item);
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(all)
    }
}

/// An object that may be absent.
impl<'de, T: Take<'de>> Take<'de> for Option<Box<T>> {
    fn take_map<A: MapAccess<'de>>(&mut self, map: A) -> Result<Odd, A::Error> {
        self.get_or_insert_default().take_map(map)
    }
}

/// Defines a struct that takes the named members of an object.
macro_rules! object {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty = $($key:literal)|+,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq)]
        pub(super) struct $name<'de> {
            $(pub(super) $field: $type,)*
            _json: std::marker::PhantomData<&'de str>,
        }

        impl<'de> $crate::llm::lenient::Take<'de> for $name<'de> {
            fn take_map<A: serde::de::MapAccess<'de>>(&mut self, mut map: A) -> Result<$crate::llm::lenient::Odd, A::Error> {
                let mut all: $crate::llm::lenient::Odd = 0;
                while let Some(key) = $crate::llm::lenient::key(&mut map)? {
                    let odd = match &*key {
                        $($($key)|+ => $crate::llm::lenient::value(&mut self.$field, &mut map)?,)*
                        _ => {
                            $crate::llm::lenient::skip(&mut map)?;
                            0
                        }
                    };
                    all = all.saturating_add(odd);
                }
                Ok(all)
            }
        }
    };
}
pub(super) use object;

struct Into<'t, T>(&'t mut T);

impl<'de, T: Take<'de>> DeserializeSeed<'de> for Into<'_, T> {
    type Value = Odd;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Odd, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Take<'de>> Visitor<'de> for Into<'_, T> {
    type Value = Odd;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Odd, E> {
        Ok(self.0.take_str(Cow::Borrowed(text)))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Odd, E> {
        Ok(self.0.take_str(Cow::Owned(text.to_owned())))
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<Odd, E> {
        Ok(self.0.take_count(number))
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<Odd, E> {
        Ok(1)
    }
    fn visit_f64<E: Error>(self, number: f64) -> Result<Odd, E> {
        Ok(self.0.take_float(number))
    }
    fn visit_bool<E: Error>(self, yes: bool) -> Result<Odd, E> {
        Ok(self.0.take_bool(yes))
    }
    fn visit_unit<E: Error>(self) -> Result<Odd, E> {
        Ok(0)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Odd, A::Error> {
        self.0.take_seq(seq)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Odd, A::Error> {
        self.0.take_map(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    object! {
        /// One of each.
        All {
            text: Text<'de> = "text",
            json: Json<'de> = "json",
            count: Count = "count",
            flag: Flag = "flag",
            items: Items<Text<'de>, 2> = "items",
            inner: Option<Box<Inner<'de>>> = "inner",
        }
    }

    object! {
        /// One level below.
        Inner { count: Count = "count", }
    }

    #[test]
    fn members_of_another_type_are_let_pass_and_counted_and_null_is_none() {
        let odd = |json: &str| parse::<All<'_>>(json).unwrap().1;
        let clean =
            r#"{"text":"a","json":{"a":[1]},"count":1.0,"flag":true,"items":["a"],"inner":{"count":2},"other":[{}]}"#;
        assert_eq!(odd(clean), 0);
        assert_eq!(odd(r#"{"text":null,"json":null,"count":null,"flag":null,"items":null,"inner":null}"#), 0);
        assert_eq!(odd(r#"{"text":1,"json":true,"count":"7","flag":0,"items":{},"inner":[]}"#), 6);
        assert_eq!(odd(r#"{"count":-1}"#) + odd(r#"{"count":1.5}"#) + odd(r#"{"inner":{"count":[]}}"#), 3);
        assert_eq!(odd(r#"{"items":["a",1,2,3]}"#), 1, "what is not kept is not looked at");
        let (all, odd) = parse::<All<'_>>(r#"{"text":{"deep":[1]},"count":3}"#).unwrap();
        assert_eq!((all.text, all.count, odd), (Text(None), Count(Some(3)), 1), "the rest counts all the same");
    }
}
