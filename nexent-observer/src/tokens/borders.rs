//! Positions at which a text can be cut without changing its tokens, whatever follows.
//!
//! Tokenizers first split a text by a rule and then look at each piece by itself. The rules of the families that matter (GPT,
//! Llama, Qwen, Mistral, SentencePiece) have no piece that goes on over a space behind something else, and most have none that
//! goes on from a letter or digit to punctuation.

/// A rule for borders: whether one is between these neighbours.
pub(super) type Border = fn(char, char) -> bool;

/// Before a space that follows something other than white space.
pub(super) fn at_spaces(left: char, right: char) -> bool {
    right == ' ' && !left.is_whitespace()
}

/// Likewise, and between a letter or digit and punctuation or the end of a line: texts in Chinese have no spaces, code has few.
/// Not before an apostrophe, which may begin the end of a word (`'s`).
pub(super) fn at_words(left: char, right: char) -> bool {
    at_spaces(left, right) || ends_word(right) && in_word(left)
}

/// The last position from `from` on that `border` allows; 0 when there is none.
pub(super) fn last(text: &str, from: usize, border: Border) -> usize {
    let mut next: Option<(usize, char)> = None;
    for (at, left) in text.char_indices().rev() {
        if let Some((border_at, _)) = next.filter(|(_, right)| border(left, *right)) {
            return border_at;
        }
        if at < from {
            return 0;
        }
        next = Some((at, left));
    }
    0
}

/// Letters and digits of which the regular expressions of all families say the same.
fn in_word(c: char) -> bool {
    c.is_ascii_alphanumeric()
        || matches!(c,
            '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}' | '\u{f8}'..='\u{24f}' // Latin
            | '\u{400}'..='\u{481}' // Cyrillic
            | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' // kana
            | '\u{4e00}'..='\u{9fa5}' // Chinese
            | '\u{ac00}'..='\u{d7a3}' // Hangul
        )
}

fn ends_word(c: char) -> bool {
    match c {
        '\n' | '\r' | '\t' => true,
        '\'' => false,
        _ => c.is_ascii_punctuation() || matches!(c, '，' | '。' | '、' | '！' | '？' | '：' | '；' | '（' | '）'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_border_is_found_and_none_before_the_start_of_the_look() {
        for (text, from, spaces, words) in [
            ("", 0, 0, 0),
            ("one", 0, 0, 0),
            (" one", 0, 0, 0),
            ("one two", 0, 3, 3),
            ("one two", 3, 3, 3),
            ("one two", 4, 0, 0),
            ("one  two", 0, 3, 3),
            ("one, two", 0, 4, 4),
            ("f(x", 0, 0, 1),
            ("don't", 0, 0, 0),
            ("你好，世", 0, 0, 6),
            ("你好，世", 6, 0, 6),
            ("é,", 0, 0, 2),
            ("a\n b", 0, 0, 1),
        ] {
            assert_eq!((last(text, from, at_spaces), last(text, from, at_words)), (spaces, words), "{text:?} {from}");
        }
    }
}
