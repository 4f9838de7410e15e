//! What may stay of names: the words that APIs themselves are made of. A text made of these words alone says nothing that its API's
//! documentation does not.

use std::{collections::HashSet, sync::LazyLock};

/// Longest name that is looked at, in bytes; a longer one is never kept.
pub(super) const NAME_BYTES: usize = 256;

/// Whether a text is made of words of APIs only: runs of letters and digits, a capital after a small letter beginning a new one,
/// with `_`, `-`, `.`, `:` and `/` between them.
pub(super) fn is_known(text: &[u8]) -> bool {
    let mut any = false;
    let known = words(text, |word| {
        any = true;
        WORDS.contains(word)
    });
    known && any
}

/// Hands the words of a text, in small letters, to `each`; false when there is something between them that does not belong, or `each`
/// says so.
pub(super) fn words(text: &[u8], mut each: impl FnMut(&str) -> bool) -> bool {
    let mut word = [0_u8; 24];
    let mut len = 0;
    let mut small = false;
    let mut done = |word: &[u8]| word.is_empty() || std::str::from_utf8(word).is_ok_and(&mut each);
    for &byte in text {
        let inside = byte.is_ascii_alphanumeric();
        if !inside && !matches!(byte, b'_' | b'-' | b'.' | b':' | b'/') {
            return false;
        }
        if !inside || (byte.is_ascii_uppercase() && small) {
            if !done(word.get(..len).unwrap_or_default()) {
                return false;
            }
            len = 0;
        }
        small = byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if inside {
            let Some(place) = word.get_mut(len) else { return false };
            *place = byte.to_ascii_lowercase();
            len += 1;
        }
    }
    done(word.get(..len).unwrap_or_default())
}

/// Whether a text reads as a machine's name for something: starts with a letter, then letters, digits, `_`, `-`, `.`; at most
/// 64 bytes. As the later stages ask it (`llm::name`).
pub(super) fn is_identifier(text: &[u8]) -> bool {
    text.len() <= 64
        && text.first().is_some_and(u8::is_ascii_alphabetic)
        && text.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Whether a text may be the name of a model.
pub(super) fn is_model(text: &[u8]) -> bool {
    text.len() <= NAME_BYTES
        && text.first().is_some_and(u8::is_ascii_alphanumeric)
        && text.iter().all(|b| b.is_ascii_alphanumeric() || b"_-.:/@+% ".contains(b))
        && !is_credential(text)
}

/// Whether a text begins as keys of well-known services do.
pub(super) fn is_credential(text: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 14] = [
        b"sk-", b"sk_", b"pk-", b"xai-", b"gsk_", b"hf_", b"AIza", b"AKIA", b"ASIA", b"ghp_", b"gho_", b"xox", b"eyJ",
        b"Bearer",
    ];
    BEGINNINGS.iter().any(|beginning| text.starts_with(beginning))
}

/// The words, in small letters.
static WORDS: LazyLock<HashSet<&str>> = LazyLock::new(|| include_str!("words.txt").split_ascii_whitespace().collect());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_in_order_and_can_be_met() {
        let words: Vec<_> = include_str!("words.txt").split_ascii_whitespace().collect();
        assert!(words.is_sorted_by(|a, b| a < b));
        assert!(
            words
                .iter()
                .all(|word| { word.len() <= 24 && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) })
        );
    }

    #[test]
    fn names_of_apis_are_known_and_other_words_are_not() {
        for known in [
            "response.output_text.delta",
            "content_block_start",
            "MAX_TOKENS",
            "cacheReadInputTokenCount",
            "topP",
            "message-end",
            "chat.completion.chunk",
            "x_groq",
            "amazon-bedrock-invocationMetrics",
            "partial_image_b64",
            "2.0",
        ] {
            assert!(is_known(known.as_bytes()), "{known}");
        }
        for unknown in
            ["", "_", "secret", "output_secret", "textsecret", "text secret", "t\u{e9}xt", "text\"", "api_key_of_alice"]
        {
            assert!(!is_known(unknown.as_bytes()), "{unknown}");
        }
    }

    #[test]
    fn keys_of_services_pass_for_no_model() {
        assert!(is_model(b"anthropic.claude-3-5-sonnet-20241022-v2:0") && is_model(b"meta-llama/Llama-3.1-8B"));
        for bad in [b"".as_slice(), b"sk-proj-abc", b"eyJhbGciOi", b"AKIAIOSFODNN7", b"a\\u0041", b"-x", b"a\"b"] {
            assert!(!is_model(bad));
        }
    }
}
