//! Names from processes and from the wire, for a terminal: nothing in them moves the cursor, colours, or turns the line.

/// The text with every character replaced that would not show as itself, cut to `chars` characters.
///
/// Replaced are control characters of C0 and C1 (escape sequences begin with one), those that change the direction of the
/// text around them, and those without a width, with which one name can pass for another.
#[must_use]
pub(crate) fn printable(text: &str, chars: usize) -> String {
    let mut shown: String =
        text.chars().take(chars).map(|c| if is_unseen(c) { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if text.chars().nth(chars).is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202f}'
            | '\u{205f}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_direction_marks_and_invisible_characters_lose_their_effect() {
        let hostile = "a\u{1b}[2J\u{9b}31m\u{7}\r\n\t\u{202e}b\u{2066}\u{200b}c\u{feff}";
        let shown = printable(hostile, 100);
        assert_eq!(shown.chars().filter(|c| *c == char::REPLACEMENT_CHARACTER).count(), 10);
        assert!(shown.starts_with('a') && shown.contains("[2J") && !shown.contains(is_unseen), "{shown:?}");
        assert_eq!(printable("gpt-4o 模型 é", 100), "gpt-4o 模型 é");
    }

    #[test]
    fn long_names_are_cut_and_say_so() {
        assert_eq!(printable("abcdef", 4), "abc…");
        assert_eq!(printable("abcd", 4), "abcd");
        assert_eq!(printable(&"x".repeat(1 << 20), 8).chars().count(), 8);
    }
}
