//! From the fields of a header block to the head of a message (RFC 9113 section 8.3).

use smallvec::SmallVec;

use super::hpack::Fields;
use crate::http::{Headers, RequestHead, ResponseHead};

type FieldList<'a> = SmallVec<[(&'a str, &'a [u8]); 32]>;

/// Fields that are no pseudo-header fields and whose names are text. `:protocol` (RFC 8441 section 4) has no other place.
fn list(fields: &Fields) -> FieldList<'_> {
    let plain = fields.iter().filter(|(name, _)| name.first() != Some(&b':') || *name == b":protocol");
    plain.filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value))).collect()
}

fn text<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    std::str::from_utf8(fields.get(name)?).ok()
}

/// Hands the head of a request to `read`.
pub(super) fn request<R>(fields: &Fields, read: impl FnOnce(&RequestHead<'_>) -> R) -> R {
    let list = list(fields);
    let headers = Headers(&list);
    let host = text(fields, ":authority").or_else(|| headers.get("host"));
    let pseudo = |name| text(fields, name).unwrap_or_default();
    read(&RequestHead { method: pseudo(":method"), path: pseudo(":path"), host, headers })
}

/// Status of a response, where it was resolved.
pub(super) fn status(fields: &Fields) -> Option<u16> {
    let [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] = *fields.get(":status")? else { return None };
    Some([a, b, c].iter().fold(0, |n, digit| n * 10 + u16::from(digit - b'0')))
}

/// Hands the head of a response to `read`.
pub(super) fn response<R>(fields: &Fields, read: impl FnOnce(&ResponseHead<'_>) -> R) -> R {
    let list = list(fields);
    read(&ResponseHead { status: status(fields), headers: Headers(&list) })
}
