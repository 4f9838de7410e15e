//! Base64 (RFC 4648 section 4), as far as events carry JSON in it.

/// Appends what `text` stands for; what is no base64 digit ends it.
pub(super) fn decode_into(text: &str, out: &mut Vec<u8>) {
    let mut word = 0_u32;
    let mut bits = 0;
    for byte in text.bytes() {
        let Some(digit) = digit(byte) else { return };
        word = word << 6 | digit;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits) as u8);
        }
    }
}

fn digit(byte: u8) -> Option<u32> {
    let digit = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard_are_decoded() {
        for (text, want) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob"), ("Zm9v*YmFy", "foo")]
        {
            let mut out = Vec::new();
            decode_into(text, &mut out);
            assert_eq!(out, want.as_bytes(), "{text}");
        }
        let mut out = Vec::new();
        decode_into("+/+/", &mut out);
        assert_eq!(out, [0xfb, 0xff, 0xbf]);
    }
}
