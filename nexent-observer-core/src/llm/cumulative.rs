//! Streams whose events bring the whole text so far, or only what is new, without saying which.

/// Longest beginning of a first piece that is kept, in bytes.
const FIRST_BYTES: usize = 256;
/// Most texts of an event that are told apart.
const SLOTS: usize = 1024;

/// What was told of the texts of a stream, in the order in which an event holds them.
#[derive(Debug, Default)]
pub(super) struct Cumulative {
    /// Each event brings only what is new; `None` while that is not known: then the second event tells.
    pub(super) incremental: Option<bool>,
    told: Vec<Told>,
}

/// What was told of one text that grows from event to event.
#[derive(Debug, Default)]
struct Told {
    bytes: usize,
    /// The beginning of the first piece, to tell whether the next one repeats it.
    first: String,
}

impl Cumulative {
    /// What is new in the text in `slot` of the event.
    pub(super) fn new_part<'a>(&mut self, slot: usize, text: &'a str) -> &'a str {
        if self.incremental == Some(true) || slot >= SLOTS || text.is_empty() {
            return text;
        }
        if self.told.len() <= slot {
            self.told.resize_with(slot + 1, Told::default);
        }
        let Some(told) = self.told.get_mut(slot) else { return text };
        if told.bytes == 0 {
            told.bytes = text.len();
            if self.incremental.is_none() {
                told.first = text.get(..text.floor_char_boundary(FIRST_BYTES)).unwrap_or_default().to_owned();
            }
            return text;
        }
        if self.incremental.is_none() {
            let repeats = text.starts_with(told.first.as_str());
            self.incremental = Some(!repeats);
            if !repeats {
                self.told = Vec::new();
                return text;
            }
        }
        let new = text.get(told.bytes..).unwrap_or_default();
        told.bytes = told.bytes.max(text.len());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(incremental: Option<bool>, texts: &[&str]) -> Vec<String> {
        let mut seen = Cumulative { incremental, ..Cumulative::default() };
        texts.iter().map(|text| seen.new_part(0, text).to_owned()).collect()
    }

    #[test]
    fn what_repeats_itself_is_told_once() {
        assert_eq!(read(None, &["", "Gr", "Grü", "Grü", "Grüße"]), ["", "Gr", "ü", "", "ße"]);
        assert_eq!(read(None, &["Gr", "ü", "ße", "Gr"]), ["Gr", "ü", "ße", "Gr"]);
        assert_eq!(read(Some(true), &["ha", "haha", "ha"]), ["ha", "haha", "ha"]);
        assert_eq!(read(Some(false), &["a", "ab", "a", "abc"]), ["a", "b", "", "c"]);
    }

    #[test]
    fn texts_are_told_apart_up_to_a_cap() {
        let mut seen = Cumulative::default();
        assert_eq!(
            [seen.new_part(0, "a"), seen.new_part(1, "x"), seen.new_part(0, "ab"), seen.new_part(1, "xy")],
            ["a", "x", "b", "y"]
        );
        seen.new_part(usize::MAX, "z");
        assert!(seen.told.len() <= SLOTS);
    }
}
