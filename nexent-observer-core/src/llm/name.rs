//! Names that come from the network made safe to print, to use as a label, and to keep.

use std::borrow::Cow;

use crate::limits::NAME_BYTES;

/// `raw` without control characters and ANSI escape sequences (ECMA-48 section 5.4), cut to [`NAME_BYTES`] on a
/// character boundary. Borrowed when nothing had to go.
pub(super) fn clean(raw: &str) -> Cow<'_, str> {
    if raw.len() <= NAME_BYTES && !raw.chars().any(is_unwanted) {
        return Cow::Borrowed(raw);
    }
    let mut out = String::with_capacity(raw.len().min(NAME_BYTES));
    let mut chars = raw.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            skip_escape(&mut chars);
        } else if c == '\u{9b}' {
            skip_csi(&mut chars);
        } else if !is_unwanted(c) {
            if out.len() + c.len_utf8() > NAME_BYTES {
                break;
            }
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Controls (C0, DEL, C1) and the characters that reorder what a terminal or a page shows.
fn is_unwanted(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn skip_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match chars.peek() {
        Some('[') => {
            chars.next();
            skip_csi(chars);
        }
        // OSC, DCS, SOS, PM, APC: a string up to BEL or ST.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            chars.next();
            while let Some(c) = chars.next() {
                if c == '\u{7}' || c == '\u{9c}' {
                    return;
                }
                if c == '\u{1b}' {
                    chars.next_if_eq(&'\\');
                    return;
                }
            }
        }
        Some(_) => {
            chars.next_if(|c| !c.is_control());
        }
        None => {}
    }
}

/// Parameters and intermediates up to and with the final byte of a control sequence.
fn skip_csi(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while chars.next_if(|c| matches!(c, '\u{20}'..='\u{3f}')).is_some() {}
    chars.next_if(|c| matches!(c, '\u{40}'..='\u{7e}'));
}

/// Whether `text` reads as a machine's name for an error, not as a sentence: starts with a letter, then letters,
/// digits, `_`, `-`, `.`; at most 64 bytes. Keeps `error.type` of low cardinality.
pub(super) fn is_identifier(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn controls_and_ansi_sequences_are_removed() {
        assert_eq!(clean("gpt-4o"), "gpt-4o");
        assert_eq!(clean("a\u{1b}[31;1mred\u{1b}[0m\r\nb\u{7f}"), "aredb");
        assert_eq!(clean("\u{1b}]0;title\u{7}x\u{1b}]8;;u\u{1b}\\y"), "xy");
        assert_eq!(clean("\u{9b}2Jz"), "z");
        assert_eq!(clean("a\u{202e}b"), "ab");
        assert_eq!(clean("end\u{1b}"), "end");
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let long = "é".repeat(NAME_BYTES);
        let cut = clean(&long);
        assert_eq!(cut.len(), NAME_BYTES);
        assert_eq!(clean(&format!("x{long}")).len(), NAME_BYTES - 1);
    }

    #[test]
    fn identifiers_are_told_from_sentences() {
        assert!(is_identifier("rate_limit_exceeded"));
        assert!(is_identifier("DeploymentNotFound"));
        for no in ["", "429", "_x", "not found", "naïve", &"a".repeat(65)] {
            assert!(!is_identifier(no), "{no}");
        }
    }

    proptest! {
        #[test]
        fn a_clean_name_is_short_printable_and_stays_as_it_is(raw in "\\PC*|.{0,400}|[\u{1b}\\[\\];0-9m\u{7}a]{0,40}") {
            let once = clean(&raw).into_owned();
            prop_assert!(once.len() <= NAME_BYTES);
            prop_assert!(!once.chars().any(is_unwanted));
            prop_assert_eq!(clean(&once), once.as_str());
        }
    }
}
