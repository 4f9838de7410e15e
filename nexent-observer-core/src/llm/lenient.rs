//! Deserialising what comes from servers that do not keep to the schema: a target takes the values that it understands
//! and lets all others pass. A repeated key overrides the earlier one. Only broken JSON is an error.

use std::{borrow::Cow, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A target. What it does not override, it lets pass.
pub(super) trait Take<'de>: Default {
    /// Takes the value of the current key.
    fn take_value<A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<(), A::Error> {
        map.next_value_seed(Into(self))
    }
    fn take_str(&mut self, _text: Cow<'de, str>) {}
    fn take_count(&mut self, _number: u64) {}
    fn take_float(&mut self, _number: f64) {}
    fn take_bool(&mut self, _yes: bool) {}
    fn take_seq<A: SeqAccess<'de>>(&mut self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
    fn take_map<A: MapAccess<'de>>(&mut self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// Parses `json`, whole and nothing after it, into a target.
pub(super) fn parse<'de, T: Take<'de>>(json: &'de str) -> Result<T, serde_json::Error> {
    let mut target = T::default();
    let mut de = serde_json::Deserializer::from_str(json);
    Into(&mut target).deserialize(&mut de)?;
    de.end()?;
    Ok(target)
}

/// The value of the current key into `target`, whatever stood there before.
pub(super) fn value<'de, T: Take<'de>, A: MapAccess<'de>>(target: &mut T, map: &mut A) -> Result<(), A::Error> {
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
    fn take_str(&mut self, text: Cow<'de, str>) {
        self.0 = Some(text);
    }
}

/// The arguments of a tool call: a string as it reads, an object or an array as it is written. An empty object says
/// nothing. As the value of a key only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Json<'de>(pub(super) Text<'de>);

impl<'de> Take<'de> for Json<'de> {
    fn take_value<A: MapAccess<'de>>(&mut self, map: &mut A) -> Result<(), A::Error> {
        let raw = map.next_value::<&'de RawValue>()?.get();
        match raw.as_bytes() {
            [b'"', ..] => self.0 = parse(raw).map_err(A::Error::custom)?,
            [b'{', inside @ .., b'}'] if inside.trim_ascii().is_empty() => {}
            [b'{' | b'[', ..] => self.0 = Text(Some(Cow::Borrowed(raw))),
            _ => {}
        }
        Ok(())
    }
}

/// A count; whole floats are taken too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count(pub(super) Option<u64>);

impl<'de> Take<'de> for Count {
    fn take_count(&mut self, number: u64) {
        self.0 = Some(number);
    }
    fn take_float(&mut self, number: f64) {
        if number.fract() == 0.0 && (0.0..9e15).contains(&number) {
            self.0 = Some(number as u64);
        }
    }
}

/// `true`; what is absent or of another type is false.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Flag(pub(super) bool);

impl Take<'_> for Flag {
    fn take_bool(&mut self, yes: bool) {
        self.0 = yes;
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
    fn take_seq<A: SeqAccess<'de>>(&mut self, mut seq: A) -> Result<(), A::Error> {
        self.present = true;
        while self.items.len() < MAX {
            let mut item = T::default();
            if seq.next_element_seed(Into(&mut item))?.is_none() {
                return Ok(());
            }
            self.items.push(item);
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// An object that may be absent.
impl<'de, T: Take<'de>> Take<'de> for Option<Box<T>> {
    fn take_map<A: MapAccess<'de>>(&mut self, map: A) -> Result<(), A::Error> {
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
            fn take_map<A: serde::de::MapAccess<'de>>(&mut self, mut map: A) -> Result<(), A::Error> {
                while let Some(key) = $crate::llm::lenient::key(&mut map)? {
                    match &*key {
                        $($($key)|+ => $crate::llm::lenient::value(&mut self.$field, &mut map)?,)*
                        _ => $crate::llm::lenient::skip(&mut map)?,
                    }
                }
                Ok(())
            }
        }
    };
}
pub(super) use object;

struct Into<'t, T>(&'t mut T);

impl<'de, T: Take<'de>> DeserializeSeed<'de> for Into<'_, T> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Take<'de>> Visitor<'de> for Into<'_, T> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<(), E> {
        self.0.take_str(Cow::Borrowed(text));
        Ok(())
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.take_str(Cow::Owned(text.to_owned()));
        Ok(())
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.0.take_count(number);
        Ok(())
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.0.take_float(number);
        Ok(())
    }
    fn visit_bool<E: Error>(self, yes: bool) -> Result<(), E> {
        self.0.take_bool(yes);
        Ok(())
    }
    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        self.0.take_seq(seq)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        self.0.take_map(map)
    }
}
