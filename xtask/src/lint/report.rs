//! What a rule says.

use std::fmt;

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// File, and line where there is one.
    place: String,
    /// What is wrong.
    what: String,
    /// What to do.
    remedy: String,
}

impl Problem {
    /// A problem at a place.
    pub(super) fn new(place: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.place, self.what, self.remedy)
    }
}

/// How a rule ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It looked; these are the breaches.
    Checked(Vec<Problem>),
    /// It could not look, for this reason.
    NotRun(String),
}

impl Outcome {
    /// Whether the rule is broken.
    pub(super) fn failed(&self) -> bool {
        matches!(self, Self::Checked(problems) if !problems.is_empty())
    }

    /// What to print, one line each.
    pub(super) fn lines(&self, rule: &str) -> Vec<String> {
        match self {
            Self::Checked(problems) if problems.is_empty() => vec![format!("ok   {rule}")],
            Self::Checked(problems) => problems.iter().map(|problem| format!("FAIL {rule}: {problem}")).collect(),
            Self::NotRun(reason) => vec![format!("NOT RUN {rule}: {reason}")],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Problem};

    #[test]
    fn a_breach_fails_and_says_what_where_and_what_to_do() {
        let outcome = Outcome::Checked(vec![Problem::new("a.rs:3", "is wrong", "mend it")]);
        assert!(outcome.failed());
        assert_eq!(outcome.lines("rule"), ["FAIL rule: a.rs:3: is wrong; mend it"]);
    }

    #[test]
    fn a_rule_that_did_not_run_neither_passes_nor_fails_and_says_so() {
        let outcome = Outcome::NotRun("no tool".to_owned());
        assert!(!outcome.failed());
        assert_eq!(outcome.lines("rule"), ["NOT RUN rule: no tool"]);
        assert_eq!(Outcome::Checked(Vec::new()).lines("rule"), ["ok   rule"]);
    }
}
