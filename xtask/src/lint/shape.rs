//! Rules about a file as a whole: `docs-on-top`, `file-length`, `leftovers`.

use anyhow::Result;

use super::{
    report::{Outcome, Problem},
    tree::Tree,
};

/// A file is read in one sitting.
const LINES: usize = 700;
/// Files that may be longer, and why.
const LONGER: &[(&str, &str)] = &[];
/// What counts as source.
const SOURCE: &[&str] = &["rs", "py", "sh", "js", "ts", "css", "html"];
/// What may hold leftovers of work: source, and what configures it.
const WRITTEN: &[&str] = &["rs", "py", "sh", "js", "ts", "css", "html", "toml", "yaml", "yml", "md"];
/// Marks of unfinished work. Written in two halves, or this file would break its own rule.
const MARKS: [&str; 5] = [
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("#[ig", "nore"),
];

/// Rule `docs-on-top`: every Rust file says first what it is.
pub(super) fn docs_on_top(tree: &Tree) -> Result<Outcome> {
    let bare = tree.with_extension(&["rs"]).filter(|(_, text)| !has_docs_on_top(text));
    let problem = |(path, _)| Problem::new(path, "does not begin with `//!`", "say in one line what the file is");
    Ok(Outcome::Checked(bare.map(problem).collect()))
}

fn has_docs_on_top(text: &str) -> bool {
    text.lines().next().and_then(|line| line.strip_prefix("//!")).is_some_and(|said| !said.trim().is_empty())
}

/// Rule `file-length`.
pub(super) fn file_length(tree: &Tree) -> Result<Outcome> {
    let problems = tree.with_extension(SOURCE).filter_map(|(path, text)| too_long(path, text.lines().count(), LONGER));
    Ok(Outcome::Checked(problems.collect()))
}

fn too_long(path: &str, lines: usize, longer: &[(&str, &str)]) -> Option<Problem> {
    if lines <= LINES || longer.iter().any(|(known, reason)| *known == path && !reason.is_empty()) {
        return None;
    }
    Some(Problem::new(path, format!("has {lines} lines, over {LINES}"), "split it by idea"))
}

/// Rule `leftovers`: nothing is left for later.
pub(super) fn leftovers(tree: &Tree) -> Result<Outcome> {
    Ok(Outcome::Checked(tree.with_extension(WRITTEN).flat_map(|(path, text)| left_in(path, text)).collect()))
}

fn left_in(path: &str, text: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for mark in MARKS.iter().filter(|mark| holds_word(line, mark)) {
            problems.push(Problem::new(
                format!("{path}:{number}"),
                format!("has `{mark}`"),
                "do it, or write an issue",
            ));
        }
    }
    problems
}

/// Whether `mark` stands in the line, not as part of a longer word.
fn holds_word(line: &str, mark: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(mark).any(|(at, _)| {
        let before = line.get(..at).and_then(|part| part.chars().next_back());
        let after = line.get(at + mark.len()..).and_then(|part| part.chars().next());
        let open_end = mark.ends_with('(') || mark.starts_with('#');
        !before.is_some_and(is_word) && (open_end || !after.is_some_and(is_word))
    })
}

#[cfg(test)]
mod tests {
    use super::{MARKS, has_docs_on_top, left_in, too_long};

    #[test]
    fn a_file_without_docs_on_top_is_refused() {
        assert!(has_docs_on_top("//! What it is.\n"));
        for text in ["", "use std::fmt;\n", "\n//! Late.\n", "//!\n", "// Not docs.\n"] {
            assert!(!has_docs_on_top(text), "{text:?}");
        }
    }

    #[test]
    fn a_long_file_needs_a_reason() {
        assert!(too_long("a.rs", 700, &[]).is_none());
        assert!(too_long("a.rs", 701, &[]).is_some());
        assert!(too_long("a.rs", 701, &[("a.rs", "one table")]).is_none());
        assert!(too_long("a.rs", 701, &[("a.rs", ""), ("b.rs", "one table")]).is_some());
    }

    #[test]
    fn every_mark_of_unfinished_work_is_found_with_its_line() {
        for mark in MARKS {
            let found = left_in("a.rs", &format!("fn f() {{\n    {mark}\n}}"));
            assert_eq!(found.len(), 1, "{mark}");
            assert!(found[0].to_string().starts_with("a.rs:2: "), "{}", found[0]);
        }
        let twice = ["XX", "X"].concat();
        assert!(left_in("a.sh", &format!("mktemp -d /tmp/a.{twice}{twice}")).is_empty());
    }
}
