//! Rust source as tokens with lines, so that comments, strings and line breaks cannot mislead a rule.

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    /// As written; an opening or closing bracket is a token of its own.
    pub(super) text: String,
    /// Line, from 1.
    pub(super) line: usize,
    /// How many inline modules are around it.
    pub(super) inline_modules: usize,
    /// Under `#[cfg(test)]`.
    pub(super) test: bool,
}

/// A path such as `crate::conn::GapCause`, one for each leaf of a `use` tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    /// Segments after the root.
    pub(super) segments: Vec<String>,
    /// The token that begins it.
    pub(super) start: Token,
}

/// Whether a file holds only tests, by its name.
pub(super) fn is_test_file(path: &str) -> bool {
    let stem = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
    stem == "tests" || stem.ends_with("_tests") || path.split('/').any(|folder| folder == "tests")
}

/// The tokens of a file; doc comments are left out.
pub(super) fn tokens(text: &str) -> Result<Vec<Token>> {
    let stream: TokenStream = text.parse().map_err(|error| anyhow!("is no Rust: {error}"))?;
    let mut out = Vec::new();
    flatten(stream, Around { inline_modules: 0, test: false }, &mut out);
    Ok(out)
}

#[derive(Debug, Clone, Copy)]
struct Around {
    inline_modules: usize,
    test: bool,
}

fn flatten(stream: TokenStream, around: Around, out: &mut Vec<Token>) {
    let trees: Vec<TokenTree> = stream.into_iter().collect();
    let mut test_item = false;
    for (at, tree) in trees.iter().enumerate() {
        let line = tree.span().start().line;
        let here = Around { test: around.test || test_item, ..around };
        let token = |text: &str, line| Token {
            text: text.to_owned(),
            line,
            inline_modules: here.inline_modules,
            test: here.test,
        };
        let word = |back: usize| at.checked_sub(back).and_then(|i| trees.get(i)).map(ToString::to_string);
        match tree {
            TokenTree::Group(group) => {
                let after_hash = word(1).as_deref() == Some("#")
                    || (word(1).as_deref() == Some("!") && word(2).as_deref() == Some("#"));
                let is_attribute = after_hash && group.delimiter() == Delimiter::Bracket;
                let content = group.stream().to_string();
                if is_attribute && content.starts_with("doc =") {
                    continue;
                }
                if is_attribute && content.replace(' ', "") == "cfg(test)" {
                    test_item = true;
                }
                let is_module = group.delimiter() == Delimiter::Brace && word(2).as_deref() == Some("mod");
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                out.push(token(open, line));
                let inside = Around { inline_modules: here.inline_modules + usize::from(is_module), ..here };
                flatten(group.stream(), inside, out);
                out.push(token(close, group.span_close().start().line));
                if group.delimiter() == Delimiter::Brace && !is_attribute {
                    test_item = false;
                }
            }
            other => {
                let text = other.to_string();
                out.push(token(&text, line));
                if text == ";" {
                    test_item = false;
                }
            }
        }
    }
}

/// All paths that begin with `root` (`crate`, `std`), those of `use` trees spread out.
pub(super) fn paths_from(tokens: &[Token], root: &str) -> Vec<Path> {
    let mut out = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if token.text == root && is_separator(tokens, at + 1) {
            tree(tokens, at + 3, &mut Vec::new(), token, &mut out);
        }
    }
    out
}

/// All paths that climb with `super::`: how many levels, and the path from there.
pub(super) fn climbing_paths(tokens: &[Token]) -> Vec<(usize, Path)> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let mut levels = 0;
        while tokens.get(at).is_some_and(|token| token.text == "super") && is_separator(tokens, at + 1) {
            levels += 1;
            at += 3;
        }
        if levels == 0 {
            at += 1;
            continue;
        }
        let mut paths = Vec::new();
        tree(tokens, at, &mut Vec::new(), token, &mut paths);
        out.extend(paths.into_iter().map(|path| (levels, path)));
    }
    out
}

fn is_separator(tokens: &[Token], at: usize) -> bool {
    [at, at + 1].iter().all(|at| tokens.get(*at).is_some_and(|token| token.text == ":"))
}

/// Reads one path or `use` tree that begins at `at`; gives the index after it.
fn tree(tokens: &[Token], mut at: usize, prefix: &mut Vec<String>, start: &Token, out: &mut Vec<Path>) -> usize {
    let depth = prefix.len();
    while let Some(token) = tokens.get(at) {
        if token.text == "{" && prefix.len() >= depth {
            at += 1;
            while tokens.get(at).is_some_and(|token| token.text != "}") {
                let next = tree(tokens, at, prefix, start, out);
                // `as name`, commas and anything else up to the next branch.
                at = next.max(at + 1);
                while tokens.get(at).is_some_and(|token| token.text != "," && token.text != "}") {
                    at += 1;
                }
                if tokens.get(at).is_some_and(|token| token.text == ",") {
                    at += 1;
                }
            }
            prefix.truncate(depth);
            return at + 1;
        }
        prefix.push(token.text.clone());
        at += 1;
        if !is_separator(tokens, at) {
            break;
        }
        at += 2;
        // The end of a path with generic arguments: `Vec::<u8>`.
        if tokens.get(at).is_some_and(|token| token.text == "<") {
            break;
        }
    }
    out.push(Path { segments: prefix.clone(), start: start.clone() });
    prefix.truncate(depth);
    at
}

#[cfg(test)]
mod tests {
    use super::{climbing_paths, is_test_file, paths_from, tokens};

    fn paths(text: &str) -> Vec<String> {
        paths_from(&tokens(text).unwrap(), "crate").into_iter().map(|path| path.segments.join("::")).collect()
    }

    #[test]
    fn a_use_tree_is_spread_out() {
        let text = "use crate::{\n  conn::{CloseCause as C, GapCause},\n  event::Stamp,\n  llm::*, http,\n};";
        assert_eq!(paths(text), ["conn::CloseCause", "conn::GapCause", "event::Stamp", "llm::*", "http"]);
    }

    #[test]
    fn paths_in_code_and_macros_count_and_those_in_comments_and_strings_do_not() {
        let text = "//! crate::a::A\n/// [`crate::b::B`]\nfn f() { /* crate::c */ g(\"crate::d\"); assert!(crate::e::E::new::<u8>()); }";
        assert_eq!(paths(text), ["e::E::new"]);
    }

    #[test]
    fn code_under_cfg_test_is_marked() {
        let text = "fn a() {}\n#[cfg(test)]\n#[allow(x)]\nmod tests { fn b() {} }\nfn c() {}\n#[cfg(test)] mod more;\nfn d() {}";
        let marked = |name: &str| tokens(text).unwrap().into_iter().find(|token| token.text == name).unwrap().test;
        assert_eq!(["a", "b", "c", "more", "d"].map(marked), [false, true, false, true, false]);
    }

    #[test]
    fn climbing_paths_know_their_levels_and_inline_modules() {
        let text = "use super::A; mod inner { use super::super::{b::B, C}; }";
        let found: Vec<(usize, String, usize)> = climbing_paths(&tokens(text).unwrap())
            .into_iter()
            .map(|(levels, path)| (levels, path.segments.join("::"), path.start.inline_modules))
            .collect();
        assert_eq!(found, [(1, "A".to_owned(), 0), (2, "b::B".to_owned(), 1), (2, "C".to_owned(), 1)]);
    }

    #[test]
    fn test_files_are_told_by_their_names() {
        assert!(
            is_test_file("core/src/conn/tests.rs")
                && is_test_file("core/src/a_tests.rs")
                && is_test_file("core/tests/a.rs")
        );
        assert!(!is_test_file("core/src/contests.rs"));
    }
}
