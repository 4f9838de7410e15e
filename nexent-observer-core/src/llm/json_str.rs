//! The inside of JSON strings (RFC 8259 section 7): finding their end fast, and unescaping them.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Index of the first byte at or after `from` that is a quote, a backslash or a control character: the only bytes
/// that a JSON string does not take as they are. `bytes.len()` when there is none.
pub(super) fn plain_end(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    let (words, tail) = rest.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let x = u64::from_le_bytes(*word);
        let special = zero_bytes(x ^ (ONES * b'"' as u64))
            | zero_bytes(x ^ (ONES * b'\\' as u64))
            | (x.wrapping_sub(ONES * 0x20) & !x & HIGHS);
        // A borrow can mark bytes above the first true hit by mistake, never below it: the lowest mark is exact.
        if special != 0 {
            return from + i * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    let tail_at = from + words.len() * 8;
    let at = tail.iter().position(|&b| b == b'"' || b == b'\\' || b < 0x20);
    tail_at + at.unwrap_or(tail.len())
}

fn zero_bytes(x: u64) -> u64 {
    x.wrapping_sub(ONES) & !x & HIGHS
}

/// The code unit of the four hexadecimal digits at `at`.
pub(super) fn hex4(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at.checked_add(4)?)?;
    digits.iter().try_fold(0_u16, |unit, &b| Some(unit << 4 | (b as char).to_digit(16)? as u16))
}

/// Appends `raw`, the inside of a JSON string, to `out` with its escapes resolved. A lone surrogate becomes U+FFFD, an
/// unknown escape stands for its second character, an unfinished one at the end is left out.
pub(super) fn unescape_into(raw: &str, out: &mut String) {
    let bytes = raw.as_bytes();
    let mut from = 0;
    while let Some(at) = memchr::memchr(b'\\', bytes.get(from..).unwrap_or_default()).map(|i| i + from) {
        out.push_str(raw.get(from..at).unwrap_or_default());
        let Some(rest) = raw.get(at + 1..) else { return };
        let Some(escape) = rest.chars().next() else { return };
        from = at + 1 + escape.len_utf8();
        match escape {
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'u' => {
                let Some(unit) = hex4(bytes, from) else { return };
                from += 4;
                let low = (bytes.get(from..from + 2) == Some(b"\\u")).then(|| hex4(bytes, from + 2)).flatten();
                match (unit, low) {
                    (0xd800..=0xdbff, Some(low @ 0xdc00..=0xdfff)) => {
                        from += 6;
                        let code = 0x1_0000 + ((u32::from(unit) - 0xd800) << 10) + (u32::from(low) - 0xdc00);
                        out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                    }
                    _ => out.push(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER)),
                }
            }
            other => out.push(other),
        }
    }
    out.push_str(raw.get(from..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unfinished_and_unknown_escapes_do_no_harm() {
        let text = |raw: &str| {
            let mut out = String::new();
            unescape_into(raw, &mut out);
            out
        };
        assert_eq!(text("a\\"), "a");
        assert_eq!(text("a\\u12"), "a");
        assert_eq!(text("\\ud83d\\ude00!"), "\u{1f600}!");
        assert_eq!(text("\\ud83d!"), "\u{fffd}!");
        assert_eq!(text("\\ud83d\\n"), "\u{fffd}\n");
        assert_eq!(text("\\ude00"), "\u{fffd}");
        assert_eq!(text("\\é"), "é");
        assert_eq!(text("\\\"\\\\\\/"), "\"\\/");
    }

    proptest! {
        #[test]
        fn unescaping_is_what_serde_json_says(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            let mut out = String::new();
            unescape_into(&json[1..json.len() - 1], &mut out);
            prop_assert_eq!(&out, &text);
            let ascii: String = text.encode_utf16().map(|u| format!("\\u{u:04x}")).collect();
            out.clear();
            unescape_into(&ascii, &mut out);
            prop_assert_eq!(out, text);
        }

        #[test]
        fn the_end_of_the_plain_part_is_what_a_byte_loop_finds(bytes in proptest::collection::vec(
            prop_oneof![8 => 0x20_u8..=0xff, 1 => any::<u8>(), 1 => Just(b'"'), 1 => Just(b'\\')], 0..60), from in 0_usize..60) {
            let from = from.min(bytes.len());
            let slow = (from..bytes.len()).find(|&i| matches!(bytes[i], b'"' | b'\\' | 0..0x20)).unwrap_or(bytes.len());
            prop_assert_eq!(plain_end(&bytes, from), slow);
        }
    }
}
