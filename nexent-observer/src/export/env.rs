//! Reading settings from the environment by the rules of OpenTelemetry: empty is unset, words are compared without
//! case, and a value that makes no sense is named in a warning and ignored.

use std::{collections::HashMap, fmt::Display, str::FromStr, time::Duration};

/// Where variables come from, so that tests need no process environment.
pub trait Env {
    /// Value of a variable; `None` when unset. Empty values are treated as unset by the callers.
    fn var(&self, name: &str) -> Option<String>;
}

/// The environment of this process. A variable that is not UTF-8 counts as unset.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessEnv;

impl Env for ProcessEnv {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

impl Env for HashMap<String, String> {
    fn var(&self, name: &str) -> Option<String> {
        self.get(name).cloned()
    }
}

/// Reads variables and collects what is wrong with them. Warnings name the variable, never its value: headers carry
/// credentials.
pub(super) struct Reader<'a> {
    env: &'a dyn Env,
    pub(super) warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(env: &'a dyn Env) -> Self {
        Self { env, warnings: Vec::new() }
    }

    pub(super) fn warn(&mut self, name: &str, what: impl Display) {
        self.warnings.push(format!("{name}: {what}"));
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.env.var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The first of `names` that is set, with its name.
    pub(super) fn first<'n>(&self, names: &[&'n str]) -> Option<(&'n str, String)> {
        names.iter().find_map(|name| Some((*name, self.text(name)?)))
    }

    /// Only "true" is true.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// A number that `accept` takes.
    pub(super) fn number<T: FromStr>(&mut self, name: &str, accept: impl Fn(&T) -> bool) -> Option<T> {
        let value = self.text(name)?;
        let number = value.parse().ok().filter(accept);
        if number.is_none() {
            self.warn(name, "not a number in range, ignored");
        }
        number
    }

    /// A time in whole milliseconds, over 0.
    pub(super) fn millis(&mut self, name: &str) -> Option<Duration> {
        self.number(name, |ms: &u64| *ms > 0).map(Duration::from_millis)
    }

    /// `key=value,...` with percent-encoded values (W3C Baggage, properties after `;` are cut). `None`, with a warning,
    /// when any part is broken.
    pub(super) fn pairs(&mut self, name: &str, value: &str) -> Option<Vec<(String, String)>> {
        let pairs: Option<Vec<_>> = value
            .split(',')
            .filter(|pair| !pair.trim().is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=')?;
                let (key, value) = (percent_decode(key.trim())?, percent_decode(value.trim())?);
                (!key.is_empty()).then_some((key, value))
            })
            .collect();
        if pairs.is_none() {
            self.warn(name, "not a list of key=value pairs, ignored as a whole");
        }
        pairs
    }
}

/// Text without its `%XX`; `None` when one is broken or the result is not UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            out.push((high * 16 + low) as u8); // two hex digits
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn empty_is_unset_and_bad_numbers_are_ignored_with_a_warning() {
        let env = env(&[("A", " "), ("B", "12x"), ("C", "0"), ("D", "250")]);
        let mut reader = Reader::new(&env);
        assert_eq!(reader.text("A"), None);
        assert_eq!(reader.millis("A"), None);
        assert!(reader.warnings.is_empty());
        assert_eq!(reader.millis("B"), None);
        assert_eq!(reader.millis("C"), None);
        assert_eq!(reader.millis("D"), Some(Duration::from_millis(250)));
        assert_eq!(reader.warnings.len(), 2);
    }

    #[test]
    fn pairs_are_decoded_and_a_broken_list_is_ignored_without_showing_it() {
        let env = env(&[]);
        let mut reader = Reader::new(&env);
        let pairs = reader.pairs("H", "api-key=a%20b%3D, x=y=z ,").unwrap();
        assert_eq!(pairs, [("api-key".into(), "a b=".into()), ("x".into(), "y=z".into())]);
        for bad in ["secret", "=secret", "k=secret%2", "k=secret%zz", "k=%ff"] {
            assert_eq!(reader.pairs("H", bad), None);
        }
        assert_eq!(reader.warnings.len(), 5);
        assert!(!reader.warnings.concat().contains("secret"));
    }
}
