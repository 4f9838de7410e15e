//! `traceparent` (W3C Trace Context section 3.2.2).

/// Trace id and parent id. `None` when the value is not valid.
#[must_use]
pub fn parse_traceparent(value: &str) -> Option<(u128, u64)> {
    let mut fields = value.trim().split('-');
    let version = hex(fields.next()?, 2)?;
    let trace = hex(fields.next()?, 32)?;
    let parent = hex(fields.next()?, 16)?;
    let _flags = hex(fields.next()?, 2)?;
    // Version 0 has exactly four fields; a later one may add fields; 255 is forbidden.
    let version_ok = if version == 0 { fields.next().is_none() } else { version != 0xff };
    (version_ok && trace != 0 && parent != 0).then_some((trace, parent as u64))
}

/// Lower-case hex of exactly so many digits, at most 32.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (text.len() == digits && text.bytes().all(digit)).then(|| u128::from_str_radix(text, 16).ok())?
}
