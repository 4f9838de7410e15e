//! Routes: paths whose parts that look like ids are folded, so that they are few.

/// Longest route, in bytes; of a longer path the end is left out.
const ROUTE_BYTES: usize = 120;
/// Most segments of a route.
const SEGMENTS: usize = 10;
/// A longer segment is no name that a developer gave.
const SEGMENT_BYTES: usize = 48;
/// Stands for an id.
const ID: &str = "{id}";
/// Stands for what was left out.
const REST: &str = "*";

/// The route of a path (RFC 9110 section 4.2.3: without query and fragment): `/users/{id}/orders`.
pub(super) fn route(path: &str) -> String {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut route = String::with_capacity(path.len().min(ROUTE_BYTES));
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    for (number, segment) in segments.enumerate() {
        let shown = if is_id(segment) { ID } else { segment };
        if number >= SEGMENTS || route.len() + shown.len() >= ROUTE_BYTES {
            route.push('/');
            route.push_str(REST);
            break;
        }
        route.push('/');
        route.push_str(shown);
    }
    if route.is_empty() {
        route.push('/');
    }
    route
}

/// Whether a segment is likely one of many: a number, a UUID, a hash, a token, an address, a text, or a name with one of these.
fn is_id(segment: &str) -> bool {
    if is_version(segment) {
        return false;
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~:".contains(&b);
    if segment.len() > SEGMENT_BYTES || !segment.bytes().all(plain) {
        return true;
    }
    segment.split(['-', '_', '.', '~', ':']).any(is_id_word)
}

/// `v1`, `v1.2`, `v1beta3`, `2024-10-21` (versions of an API by date).
fn is_version(segment: &str) -> bool {
    let rest = segment.strip_prefix(['v', 'V']).unwrap_or_default();
    let number = rest.len() <= 8
        && rest.starts_with(|c: char| c.is_ascii_digit())
        && rest.split('.').all(|part| part.len() <= 5 && !part.is_empty());
    let dashes = |(at, b): (usize, u8)| if at == 4 || at == 7 { b == b'-' } else { b.is_ascii_digit() };
    number && rest.bytes().filter(u8::is_ascii_digit).count() <= 3
        || segment.len() == 10 && segment.bytes().enumerate().all(dashes)
}

fn is_id_word(word: &str) -> bool {
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    if digits == 0 {
        return false;
    }
    let hex = word.bytes().all(|b| b.is_ascii_hexdigit());
    digits == word.len() || hex && word.len() >= 6 || digits >= 3 || word.len() >= 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_folded_and_names_are_not() {
        for (path, want) in [
            ("", "/"),
            ("/", "/"),
            ("/api/agent/run", "/api/agent/run"),
            ("/api/agent/run/?q=secret#x", "/api/agent/run"),
            ("//api///run", "/api/run"),
            ("/users/42", "/users/{id}"),
            ("/users/42/orders/7f3a9c12", "/users/{id}/orders/{id}"),
            ("/c/550e8400-e29b-41d4-a716-446655440000/m", "/c/{id}/m"),
            ("/t/0123456789abcdef0123456789abcdef", "/t/{id}"),
            ("/t/dGhpcyBpcyBhIHRlc3Q", "/t/{id}"),
            ("/t/ZXlKaGJHY2lPaUpJVXpJMU5pSjk9", "/t/{id}"),
            ("/t/conv_8f3a9c12", "/t/{id}"),
            ("/t/user-123", "/t/{id}"),
            ("/u/jane@example.org/x", "/u/{id}/x"),
            ("/u/jane%40example.org", "/u/{id}"),
            ("/files/r%C3%A9sum%C3%A9", "/files/{id}"),
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("/v1beta1/models", "/v1beta1/models"),
            ("/v1.2/models", "/v1.2/models"),
            ("/v123456/models", "/{id}/models"),
            ("/2024-10-21/models", "/2024-10-21/models"),
            ("/oauth2/token", "/oauth2/token"),
            ("/s3/base64/generate_presentation", "/s3/base64/generate_presentation"),
            ("/pkg.Service/GetUserConversationHistory", "/pkg.Service/GetUserConversationHistory"),
        ] {
            assert_eq!(route(path), want, "{path}");
        }
    }

    #[test]
    fn a_route_is_short_whatever_the_path() {
        let deep = "/a".repeat(5000);
        assert_eq!(route(&deep), format!("{}/*", "/a".repeat(SEGMENTS)));
        let wide = format!("/{}", "abcdefgh-".repeat(5).trim_end_matches('-')).repeat(9);
        let route = route(&wide);
        assert!(route.len() <= ROUTE_BYTES + 2 && route.ends_with("/*"), "{route}");
        assert_eq!(super::route(&format!("/{}", "x".repeat(100_000))), "/{id}");
    }
}
