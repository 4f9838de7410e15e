//! Who may see the page and its API, and what a browser may do with them.
//!
//! On loopback without a token: whoever reaches it, but only under a name of loopback, or a web site could rebind its own
//! name to 127.0.0.1 and read along. With a token: whoever shows it, in a header or once in the form of `/login`.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{self, HeaderName},
    },
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use crate::config::Secret;

/// Sessions that a login began; the oldest goes first.
const SESSIONS: usize = 64;
/// How long one lasts.
const SESSION: Duration = Duration::from_secs(12 * 3600);
/// Bytes of a session's number.
const SESSION_BYTES: usize = 32;
/// Logins looked at at once, each for [`LOGIN_DELAY`] when it fails: 8 guesses a second, whoever makes them.
const LOGINS: usize = 4;
const LOGIN_DELAY: Duration = Duration::from_millis(500);
/// Name of the cookie.
const COOKIE: &str = "nexent_observer_session";

/// What every answer says to a browser. No script, style, picture or connection but from here; nobody frames it.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Who may come in.
#[derive(Debug)]
pub(super) struct Access {
    token: Option<Secret>,
    loopback: bool,
    sessions: Mutex<VecDeque<Session>>,
    logins: Semaphore,
}

struct Session {
    number: [u8; SESSION_BYTES],
    until: Instant,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

/// Why somebody may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// A name that is none of loopback.
    Host,
    /// Another site's page asks.
    CrossSite,
    /// Neither token nor session.
    Token,
}

impl Access {
    /// For a server on this address.
    pub(super) fn new(address: SocketAddr, token: Option<Secret>) -> Self {
        Self { token, loopback: address.ip().is_loopback(), sessions: Mutex::default(), logins: Semaphore::new(LOGINS) }
    }

    /// Whether the page asks who one is.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
            return Err(Refusal::CrossSite);
        }
        let Some(token) = &self.token else { return self.check_host(headers) };
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(7));
        let by_token = shown.is_some_and(|(scheme, shown)| {
            scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(shown.ct_eq(token.expose().as_bytes()))
        });
        if by_token || cookies(headers).any(|number| self.is_session(&number)) { Ok(()) } else { Err(Refusal::Token) }
    }

    /// Only what is reached on loopback needs it: everything else has a token.
    fn check_host(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if !self.loopback || host.is_some_and(names_loopback) { Ok(()) } else { Err(Refusal::Host) }
    }

    /// Begins a session for who knows the token: the value of `Set-Cookie`.
    pub(super) async fn login(&self, token: &str) -> Option<HeaderValue> {
        let wanted = self.token.as_ref()?;
        // The semaphore is never closed.
        let _turn = self.logins.acquire().await;
        if !bool::from(token.as_bytes().ct_eq(wanted.expose().as_bytes())) {
            tokio::time::sleep(LOGIN_DELAY).await;
            return None;
        }
        let mut number = [0; SESSION_BYTES];
        let filled = rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty());
        if filled != Ok(SESSION_BYTES) {
            return None;
        }
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= SESSIONS {
            sessions.pop_front();
        }
        sessions.push_back(Session { number, until: Instant::now() + SESSION });
        let seconds = SESSION.as_secs();
        let cookie = format!("{COOKIE}={}; HttpOnly; SameSite=Strict; Path=/; Max-Age={seconds}", hex(&number));
        HeaderValue::from_str(&cookie).ok()
    }

    fn is_session(&self, text: &str) -> bool {
        let now = Instant::now();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|session| session.until > now);
        sessions.iter().any(|session| bool::from(hex(&session.number).as_bytes().ct_eq(text.as_bytes())))
    }
}

/// Lets in who may see the page and the API; sends a browser to the form.
pub(super) async fn guard(
    State(shared): State<std::sync::Arc<super::Shared>>,
    request: Request,
    next: Next,
) -> Response {
    match shared.access.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(Refusal::Token) if request.uri().path() == "/" => Redirect::to("/login").into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// For what needs no token: on loopback a name of loopback is asked for all the same.
pub(super) async fn guard_host(
    State(shared): State<std::sync::Arc<super::Shared>>,
    request: Request,
    next: Next,
) -> Response {
    match shared.access.check_host(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Adds [`HEADERS`].
pub(super) async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Host => {
                let text =
                    "This address answers to localhost, 127.0.0.1 and [::1] only; set web_token to use another name.\n";
                (StatusCode::MISDIRECTED_REQUEST, text).into_response()
            }
            Self::CrossSite => (StatusCode::FORBIDDEN, "Not for other sites.\n").into_response(),
            Self::Token => {
                let text = "A token is needed: Authorization: Bearer TOKEN, or /login in a browser.\n";
                (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], text).into_response()
            }
        }
    }
}

/// Whether a `Host` names loopback, whatever the port.
fn names_loopback(host: &str) -> bool {
    let (name, rest) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some(parts) => parts,
            None => return false,
        },
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    port && (name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

/// Values of our cookie.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = String> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "a-token-of-24-characters";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())).collect()
    }

    fn access(address: &str, token: Option<&str>) -> Access {
        Access::new(address.parse().unwrap(), token.map(|token| Secret::parse(token).unwrap()))
    }

    #[test]
    fn on_loopback_only_names_of_loopback_are_answered() {
        let open = access("127.0.0.1:9464", None);
        for host in ["localhost", "LOCALHOST:9464", "127.0.0.1:80", "127.9.9.9", "[::1]:9464", "[::1]"] {
            assert_eq!(open.check(&headers(&[("host", host)])), Ok(()), "{host}");
        }
        for host in
            ["evil.test", "localhost.evil.test", "127.0.0.1.evil.test", "localhost:x", "", "[::1", "::1", "10.0.0.1"]
        {
            assert_eq!(open.check(&headers(&[("host", host)])), Err(Refusal::Host), "{host}");
        }
        assert_eq!(open.check(&HeaderMap::new()), Err(Refusal::Host));
    }

    #[test]
    fn another_sites_page_is_refused_also_with_everything_else_right() {
        let all = headers(&[("host", "localhost"), ("sec-fetch-site", "cross-site")]);
        assert_eq!(access("127.0.0.1:1", None).check(&all), Err(Refusal::CrossSite));
    }

    #[tokio::test]
    async fn a_token_is_asked_for_wherever_one_is_set() {
        for address in ["127.0.0.1:9464", "0.0.0.0:9464"] {
            let access = access(address, Some(TOKEN));
            let bearer = |text: &str| access.check(&headers(&[("host", "any.test"), ("authorization", text)]));
            assert_eq!(bearer(&format!("Bearer {TOKEN}")), Ok(()));
            assert_eq!(bearer(&format!("bearer {TOKEN}")), Ok(()));
            for bad in [TOKEN, "Bearer ", "Bearer", "", &format!("Basic {TOKEN}"), &format!("Bearer {TOKEN}x")] {
                assert_eq!(bearer(bad), Err(Refusal::Token), "{bad}");
            }
            assert_eq!(access.check(&headers(&[("host", "localhost")])), Err(Refusal::Token));
            assert!(access.login("another-token-of-24-char").await.is_none());
            assert!(access.login("").await.is_none());
        }
    }

    #[tokio::test]
    async fn a_login_gives_a_session_that_is_not_the_token_and_the_oldest_goes_first() {
        let access = access("0.0.0.0:9464", Some(TOKEN));
        let login = async || access.login(TOKEN).await.unwrap().to_str().unwrap().to_owned();
        let first = login().await;
        assert!(first.contains("HttpOnly") && first.contains("SameSite=Strict") && !first.contains(TOKEN), "{first}");
        let number = first.split(';').next().unwrap().to_owned();
        let may = |cookie: &str| access.check(&headers(&[("cookie", &format!("a=b; {cookie}"))])).is_ok();
        assert!(may(&number));
        assert!(!may(&number.replace('=', "=0")) && !may(&format!("{COOKIE}=")) && !may(&format!("x{number}")));
        for _ in 0..SESSIONS {
            login().await;
        }
        assert!(!may(&number));
        assert_eq!(access.sessions.lock().unwrap().len(), SESSIONS);
    }
}
