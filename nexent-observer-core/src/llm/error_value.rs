//! What APIs put under `error`: an object with a code and a type, or only a text.

use std::borrow::Cow;

use serde::de::MapAccess;

use super::{
    api::ErrorEvidence,
    lenient::{Count, Odd, Take, Text, object},
};

object! {
    /// An error object.
    ErrorObject { code: Code<'de> = "code", kind: Text<'de> = "type" | "status", }
}

/// An error code: text or number.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Code<'de> {
    pub(super) text: Text<'de>,
    pub(super) number: Count,
}

impl<'de> Take<'de> for Code<'de> {
    fn take_str(&mut self, text: Cow<'de, str>) -> Odd {
        self.text.take_str(text)
    }
    fn take_count(&mut self, number: u64) -> Odd {
        self.number.take_count(number)
    }
    fn take_float(&mut self, number: f64) -> Odd {
        self.number.take_float(number)
    }
}

/// The value of `error`: an object, or only a text.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ErrorValue<'de> {
    text: Text<'de>,
    object: Option<Box<ErrorObject<'de>>>,
}

impl<'de> Take<'de> for ErrorValue<'de> {
    fn take_str(&mut self, text: Cow<'de, str>) -> Odd {
        self.text.take_str(text)
    }
    fn take_map<A: MapAccess<'de>>(&mut self, map: A) -> Result<Odd, A::Error> {
        self.object.take_map(map)
    }
}

impl ErrorValue<'_> {
    pub(super) fn evidence(&self) -> Option<ErrorEvidence<'_>> {
        match (&self.object, self.text.non_empty()) {
            (Some(object), _) => Some(ErrorEvidence {
                code: object.code.text.non_empty(),
                code_number: object.code.number.0,
                kind: object.kind.non_empty(),
            }),
            (None, Some(text)) => Some(ErrorEvidence { code: Some(text), ..ErrorEvidence::default() }),
            (None, None) => None,
        }
    }
}
