//! Typed values: how each is read from text, and how it is shown.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use serde_json::{Value, json};

use crate::{
    probe::plain::PlainHttp,
    tokens::{ModelFile, Pattern},
};

/// Where `/metrics` is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// On this address. Port 0 lets the kernel choose.
    On(SocketAddr),
}

/// Where findings are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheDir {
    /// Nowhere.
    Off,
    /// In this directory.
    At(PathBuf),
}

/// Where JSON lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonlTarget {
    /// Standard output.
    Stdout,
    /// This file, appended to.
    File(PathBuf),
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object.
    Json,
}

/// Which names OpenTelemetry's GenAI conventions have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Semconv {
    /// Those of semantic-conventions v1.41, the last that held them.
    V1_41,
    /// Those of semantic-conventions-genai, which began in 2026.
    V2026,
    /// Both side by side.
    Both,
}

/// Whether the page is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebPage {
    /// Where nobody can reach it who may not see it.
    Auto,
    /// Yes, or the observer does not start.
    On,
    /// No.
    Off,
}

/// A token. `Debug` leaves it out.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a token that is long enough to be none that is guessed, and that fits into a header.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (16..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
    }

    /// The token itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// A URL of scheme http or https with a host. May hold a password: `Debug` and `Display` leave it out.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(String);

/// Where a node's pods are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kubelet {
    /// At the API server, where there is one.
    Auto,
    /// Nowhere.
    Off,
    /// Here.
    At(Endpoint),
}

impl Endpoint {
    /// A URL of scheme http or https with a host.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        endpoint(text)
    }

    /// The URL as configured, with its secrets.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact_url(&self.0))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What stands in the place of a secret.
pub(super) const REDACTED: &str = "REDACTED";

/// Takes user, password and query out of a URL; text that is no URL passes unless it holds an `@`.
pub(super) fn redact_url(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), text),
    };
    // A password may itself hold a slash, a question mark or an `@`: everything up to the last `@` goes, and before the
    // query is looked for. That hides a host too many when the query holds an `@`, which is the harmless side.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => (format!("{REDACTED}@"), rest),
        None => (String::new(), rest),
    };
    match rest.split_once(['?', '#']) {
        Some((rest, _)) => format!("{scheme}{user}{rest}?{REDACTED}"),
        None => format!("{scheme}{user}{rest}"),
    }
}

/// A value as `config` shows it, secrets taken out.
pub(super) trait Shown {
    fn shown(&self) -> Value;
}

macro_rules! shown_as_is {
    ($($type:ty),*) => {
        $(impl Shown for $type {
            fn shown(&self) -> Value {
                json!(self)
            }
        })*
    };
}
shown_as_is!(bool, u16, u32, u64, usize, f64, String, PathBuf, Vec<u32>, Vec<PathBuf>, Vec<String>);

impl<T: Shown> Shown for Option<T> {
    fn shown(&self) -> Value {
        self.as_ref().map_or(Value::Null, Shown::shown)
    }
}

/// `auto` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WhenKnown(pub(super) bool);

impl Shown for WhenKnown {
    fn shown(&self) -> Value {
        json!(if self.0 { "auto" } else { "off" })
    }
}

impl Shown for Vec<ModelFile> {
    fn shown(&self) -> Value {
        self.iter().map(|file| format!("{}={}", file.models.as_str(), file.path.display())).collect()
    }
}

impl Shown for CacheDir {
    fn shown(&self) -> Value {
        match self {
            Self::Off => "off".into(),
            Self::At(path) => path.to_string_lossy().into(),
        }
    }
}

impl Shown for Listen {
    fn shown(&self) -> Value {
        match self {
            Self::Off => json!("off"),
            Self::On(address) => json!(address.to_string()),
        }
    }
}

impl Shown for JsonlTarget {
    fn shown(&self) -> Value {
        match self {
            Self::Stdout => json!("-"),
            Self::File(path) => json!(path),
        }
    }
}

impl Shown for LogFormat {
    fn shown(&self) -> Value {
        match self {
            Self::Text => json!("text"),
            Self::Json => json!("json"),
        }
    }
}

impl Shown for PlainHttp {
    fn shown(&self) -> Value {
        match self {
            Self::Auto => json!("auto"),
            Self::On => json!("on"),
            Self::Off => json!("off"),
        }
    }
}

impl Shown for WebPage {
    fn shown(&self) -> Value {
        match self {
            Self::Auto => json!("auto"),
            Self::On => json!("on"),
            Self::Off => json!("off"),
        }
    }
}

impl Shown for Secret {
    fn shown(&self) -> Value {
        json!(REDACTED)
    }
}

impl Shown for Semconv {
    fn shown(&self) -> Value {
        match self {
            Self::V1_41 => json!("v1.41"),
            Self::V2026 => json!("2026"),
            Self::Both => json!("both"),
        }
    }
}

impl Shown for Kubelet {
    fn shown(&self) -> Value {
        match self {
            Self::Auto => json!("auto"),
            Self::Off => json!("off"),
            Self::At(endpoint) => endpoint.shown(),
        }
    }
}

impl Shown for Endpoint {
    fn shown(&self) -> Value {
        json!(self.to_string())
    }
}

impl Shown for tracing::level_filters::LevelFilter {
    fn shown(&self) -> Value {
        json!(self.to_string().to_ascii_lowercase())
    }
}

// Parsers say only whether the text is allowed: the key itself knows the sentence that says what is.

pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// A whole number within bounds, both allowed.
pub(super) fn whole(min: u64, max: u64) -> impl Fn(&str) -> Option<u64> {
    move |text| digits(text).filter(|n| (min..=max).contains(n))
}

/// A finite number within bounds, both allowed.
pub(super) fn number(min: f64, max: f64) -> impl Fn(&str) -> Option<f64> {
    move |text| f64::from_str(text.trim()).ok().filter(|n| (min..=max).contains(n))
}

/// A size in bytes within bounds; `KiB`, `MiB` and `GiB` are powers of 1024.
pub(super) fn size(min: u64, max: u64) -> impl Fn(&str) -> Option<u64> {
    move |text| {
        let text = text.trim();
        let (count, unit) = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)]
            .into_iter()
            .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))
            .unwrap_or((text, 1));
        digits(count)?.checked_mul(unit).filter(|n| (min..=max).contains(n))
    }
}

/// Digits and nothing else: `u64::from_str` would take a plus sign.
fn digits(text: &str) -> Option<u64> {
    let text = text.trim();
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

pub(super) fn ring_size(text: &str) -> Option<u64> {
    size(1 << 16, 1 << 30)(text).filter(|n| n.is_power_of_two())
}

pub(super) fn pid(text: &str) -> Option<u32> {
    whole(1, 4_194_304)(text).and_then(|n| u32::try_from(n).ok())
}

pub(super) fn port(text: &str) -> Option<u16> {
    whole(1, 65_535)(text).and_then(|n| u16::try_from(n).ok())
}

pub(super) fn absolute_path(text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text);
    (path.is_absolute() && !text.contains('\0')).then_some(path)
}

pub(super) fn tokenizer(text: &str) -> Option<WhenKnown> {
    match text.trim() {
        "auto" => Some(WhenKnown(true)),
        "off" => Some(WhenKnown(false)),
        _ => None,
    }
}

pub(super) fn model_file(text: &str) -> Option<ModelFile> {
    let (models, path) = text.split_once('=')?;
    let path = path.trim();
    let models = Pattern::parse(models.trim())?;
    (!path.is_empty() && !path.contains('\0')).then(|| ModelFile { models, path: PathBuf::from(path) })
}

pub(super) fn listen(text: &str) -> Option<Listen> {
    match text.trim() {
        "off" => Some(Listen::Off),
        address => address.parse().ok().map(Listen::On),
    }
}

pub(super) fn cache_dir(text: &str) -> Option<CacheDir> {
    if text.trim() == "off" { Some(CacheDir::Off) } else { absolute_path(text).map(CacheDir::At) }
}

pub(super) fn jsonl(text: &str) -> Option<JsonlTarget> {
    match text {
        "" => None,
        "-" => Some(JsonlTarget::Stdout),
        path => (!path.contains('\0')).then(|| JsonlTarget::File(PathBuf::from(path))),
    }
}

pub(super) fn endpoint(text: &str) -> Option<Endpoint> {
    let text = text.trim();
    let rest = ["http://", "https://"].into_iter().find_map(|scheme| {
        let (head, rest) = text.split_at_checked(scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then_some(rest)
    })?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    let host = match host.strip_prefix('[') {
        Some(address) => address.split_once(']')?.0,
        None => host.split(':').next()?,
    };
    let printable = text.bytes().all(|b| b.is_ascii_graphic());
    (printable && !host.is_empty()).then(|| Endpoint(text.to_owned()))
}

pub(super) fn service_name(text: &str) -> Option<String> {
    let name = text.trim();
    (!name.is_empty() && name.len() <= 255 && !name.contains(char::is_control)).then(|| name.to_owned())
}

pub(super) fn pattern(text: &str) -> Option<String> {
    ((1..=4096).contains(&text.len()) && !text.contains(char::is_control)).then(|| text.to_owned())
}

pub(super) fn node_name(text: &str) -> Option<String> {
    // It becomes part of a URL. Names of nodes are names of DNS (Kubernetes, "Nodes").
    let name = text.trim();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    ((1..=253).contains(&name.len()) && name.chars().all(fits)).then(|| name.to_owned())
}

pub(super) fn kubelet(text: &str) -> Option<Kubelet> {
    match text.trim() {
        "auto" => Some(Kubelet::Auto),
        "off" | "false" => Some(Kubelet::Off),
        url => endpoint(url).map(Kubelet::At),
    }
}

pub(super) fn log_level(text: &str) -> Option<tracing::level_filters::LevelFilter> {
    // Not `parse` alone: it also takes the digits 0 to 5, whose order nobody remembers.
    let text = text.trim().to_ascii_lowercase();
    ["off", "error", "warn", "info", "debug", "trace"].contains(&text.as_str()).then(|| text.parse().ok()).flatten()
}

pub(super) fn semconv(text: &str) -> Option<Semconv> {
    match text.trim() {
        "v1.41" => Some(Semconv::V1_41),
        "2026" => Some(Semconv::V2026),
        "both" => Some(Semconv::Both),
        _ => None,
    }
}

pub(super) fn secret(text: &str) -> Option<Secret> {
    Secret::parse(text.trim())
}

pub(super) fn web_page(text: &str) -> Option<WebPage> {
    match text.trim() {
        "auto" => Some(WebPage::Auto),
        // YAML's words for true and false, too.
        "on" | "true" => Some(WebPage::On),
        "off" | "false" => Some(WebPage::Off),
        _ => None,
    }
}

pub(super) fn log_format(text: &str) -> Option<LogFormat> {
    match text.trim() {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

pub(super) fn plain_http(text: &str) -> Option<PlainHttp> {
    match text.trim() {
        "auto" => Some(PlainHttp::Auto),
        // YAML's words for true and false, too.
        "on" | "true" => Some(PlainHttp::On),
        "off" | "false" => Some(PlainHttp::Off),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_units_and_nothing_else() {
        let any = size(0, u64::MAX);
        for (text, want) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("8MiB", Some(8 << 20)),
            ("64 KiB", Some(64 << 10)),
            ("1GiB", Some(1 << 30)),
            ("8MB", None),
            ("8mib", None),
            ("-1", None),
            ("+1", None),
            ("1.5MiB", None),
            ("KiB", None),
            ("", None),
            ("18446744073709551615GiB", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(any(text), want, "{text:?}");
        }
        assert_eq!(ring_size("8MiB"), Some(8 << 20));
        assert_eq!(ring_size("3MiB"), None, "no power of two");
        assert_eq!(ring_size("32KiB"), None, "too small");
    }

    #[test]
    fn numbers_are_finite_and_in_range() {
        let ratio = number(0.0, 1.0);
        for text in ["0", "1", "0.25", "1e-3"] {
            assert!(ratio(text).is_some(), "{text}");
        }
        for text in ["", "-0.1", "1.01", "NaN", "inf", "half", "0,5"] {
            assert!(ratio(text).is_none(), "{text}");
        }
    }

    #[test]
    fn pids_are_positive_whole_numbers() {
        assert_eq!(pid("4194304"), Some(4_194_304));
        for text in ["0", "-1", "+5", "4194305", "abc", "", "1.0", "0x10"] {
            assert_eq!(pid(text), None, "{text}");
        }
    }

    #[test]
    fn endpoints_need_scheme_and_host() {
        for text in ["http://localhost:4318", "https://u:p@h/v1/traces?k=v", "HTTP://h", "http://[::1]:4317"] {
            assert!(endpoint(text).is_some(), "{text}");
        }
        for text in [
            "",
            "localhost:4318",
            "http://",
            "http://:80",
            "grpc://h",
            "http:///path",
            "http://h /x",
            "http://é",
            "http://[]:1",
        ] {
            assert!(endpoint(text).is_none(), "{text}");
        }
    }

    #[test]
    fn passwords_and_queries_do_not_show() {
        for (text, want) in [
            ("http://h:4318/v1", "http://h:4318/v1"),
            ("https://user:s3cret@h/v1", "https://REDACTED@h/v1"),
            ("https://user:a@b/c@h/v1", "https://REDACTED@h/v1"),
            ("https://user:s3?cret@h/v1", "https://REDACTED@h/v1"),
            ("https://user:s3#cret@h/v1?k=s3cret", "https://REDACTED@h/v1?REDACTED"),
            ("https://h/v1?mail=s3cret@b", "https://REDACTED@b"),
            ("https://h/v1?token=s3cret", "https://h/v1?REDACTED"),
            ("user:s3cret@h", "REDACTED@h"),
        ] {
            assert_eq!(redact_url(text), want);
        }
        let shown = format!("{:?}", endpoint("https://user:s3cret@h/?k=s3cret").unwrap());
        assert!(!shown.contains("s3cret"), "{shown}");
    }

    #[test]
    fn booleans_and_levels_have_closed_sets_of_words() {
        for (text, want) in [("TRUE", Some(true)), ("0", Some(false)), ("off", Some(false)), ("", None), ("2", None)] {
            assert_eq!(boolean(text), want, "{text}");
        }
        assert!(log_level("WARN").is_some());
        assert!(log_level("3").is_none());
        assert!(log_level("verbose").is_none());
    }
}
