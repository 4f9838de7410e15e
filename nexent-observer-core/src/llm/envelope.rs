//! What all decoders do around the JSON of an event or a body: parse it, and say what it means that it is none.

use serde::de::{MapAccess, SeqAccess};

use super::{
    LlmEventKind,
    api::{ErrorEvidence, Frame, Out},
    lenient::{self, Items, Odd, Take},
};
use crate::stats::DropReason;

/// An object, or the first one in an array: some servers wrap an error into one.
#[derive(Debug, Clone, PartialEq)]
struct One<T>(Option<Box<T>>);

impl<T> Default for One<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Take<'de>> Take<'de> for One<T> {
    fn take_map<A: MapAccess<'de>>(&mut self, map: A) -> Result<Odd, A::Error> {
        self.0.take_map(map)
    }
    fn take_seq<A: SeqAccess<'de>>(&mut self, seq: A) -> Result<Odd, A::Error> {
        let mut items = Items::<Self, 1>::default();
        let odd = items.take_seq(seq)?;
        self.0 = items.items.pop().and_then(|one| one.0);
        Ok(odd)
    }
}

/// The object in an event. Anything else is an error where the framing says so, a defect where the event is whole, and
/// else the rest of something that was cut off.
pub(super) fn event<'de, T: Take<'de>>(json: &'de str, frame: &Frame<'_>, out: &mut Out<'_>) -> Option<Box<T>> {
    if let Ok((One(Some(event)), odd)) = lenient::parse(json) {
        out.odd(odd);
        return Some(event);
    }
    if frame.error {
        out.emit(LlmEventKind::Chunk);
        out.error(ErrorEvidence::default());
    } else if frame.whole {
        out.count(DropReason::JsonInvalid);
    }
    None
}

/// The object in a whole body. The body of an error may be anything: a proxy's page, a line of text, nothing.
pub(super) fn body<'de, T: Take<'de>>(json: &'de str, out: &mut Out<'_>) -> Option<Box<T>> {
    match lenient::parse(json) {
        Ok((One(Some(answer)), odd)) => {
            out.odd(odd);
            Some(answer)
        }
        _ => {
            if !out.failed() {
                out.count(DropReason::JsonInvalid);
            }
            None
        }
    }
}
