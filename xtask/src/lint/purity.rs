//! Rules `core-is-pure` (no clock, files, environment, sockets, threads, processes) and `no-unsafe`.
//!
//! Clippy says the same with resolved names (nexent-observer-core/clippy.toml); this also sees what clippy's lists do not name.

use anyhow::{Context, Result};

use super::{
    report::{Outcome, Problem},
    rust,
    tree::Tree,
};

/// Sources of the core.
const CORE: &str = "nexent-observer-core/src/";
/// What of the standard library the core must not touch.
const IMPURE: [&[&str]; 9] = [
    &["env"],
    &["fs"],
    &["io"],
    &["net"],
    &["os"],
    &["process"],
    &["thread"],
    &["time", "Instant"],
    &["time", "SystemTime"],
];
/// Crates without unsafe code.
const SAFE: [&str; 2] = ["nexent-observer-core/src/lib.rs", "nexent-observer-common/src/lib.rs"];

/// Rule `core-is-pure` over the checkout.
pub(super) fn rule(tree: &Tree) -> Result<Outcome> {
    let mut problems = Vec::new();
    for (path, text) in tree.with_extension(&["rs"]).filter(|(path, _)| path.starts_with(CORE)) {
        problems.extend(impure(path, text).with_context(|| path.to_owned())?);
    }
    Ok(Outcome::Checked(problems))
}

/// Breaches in one file. Tests may read files and measure.
fn impure(path: &str, text: &str) -> Result<Vec<Problem>> {
    if rust::is_test_file(path) {
        return Ok(Vec::new());
    }
    let tokens = rust::tokens(text)?;
    let breach = |used: rust::Path| {
        let segments: Vec<&str> = used.segments.iter().map(String::as_str).collect();
        let glob = segments.last() == Some(&"*");
        let named = segments.strip_suffix(&["*"]).or_else(|| segments.strip_suffix(&["self"])).unwrap_or(&segments);
        // `std::time` itself may lead to a clock only through a glob or a module name.
        let refused =
            IMPURE.iter().any(|bad| named.starts_with(bad) || (bad.starts_with(named) && (glob || named.len() == 1)));
        (refused && !used.start.test).then(|| {
            let place = format!("{path}:{}", used.start.line);
            let what = format!("the core uses std::{}", segments.join("::"));
            Problem::new(
                place,
                what,
                "take time from the record's stamp, and do input and output in the crate nexent-observer",
            )
        })
    };
    Ok(rust::paths_from(&tokens, "std").into_iter().filter_map(breach).collect())
}

/// Rule `no-unsafe` over the checkout.
pub(super) fn forbids_unsafe(tree: &Tree) -> Result<Outcome> {
    let mut problems = Vec::new();
    for wanted in SAFE {
        let text = tree.files().find(|(path, _)| *path == wanted).map_or("", |(_, text)| text);
        problems.extend(allows_unsafe(wanted, text)?);
    }
    Ok(Outcome::Checked(problems))
}

fn allows_unsafe(path: &str, text: &str) -> Result<Option<Problem>> {
    let words: Vec<String> =
        rust::tokens(text)?.into_iter().filter(|token| !token.test).map(|token| token.text).collect();
    let attribute = ["#", "!", "[", "forbid", "(", "unsafe_code", ")", "]"];
    if words.windows(attribute.len()).any(|window| window == attribute) {
        return Ok(None);
    }
    Ok(Some(Problem::new(path, "does not forbid unsafe code", "put `#![forbid(unsafe_code)]` under the module's docs")))
}

#[cfg(test)]
mod tests {
    use super::{allows_unsafe, impure};

    #[test]
    fn clocks_files_and_the_rest_are_found_however_they_are_named() {
        for text in [
            "use std::time::Instant;",
            "use std::{collections::HashMap, time::{Duration, SystemTime}};",
            "fn f() { std::thread::spawn(g); }",
            "use std::fs;",
            "use std::env::var as v;",
            "use std::{net::{self, TcpStream as T}};",
            "use std::process::*;",
            "use std::time;",
            "use std::time::*;",
            "use std::*;",
            "use std::os::fd::RawFd;",
            "use std::io::Write;",
        ] {
            assert!(!impure("nexent-observer-core/src/a.rs", text).unwrap().is_empty(), "{text}");
        }
    }

    #[test]
    fn pure_parts_and_tests_are_free() {
        for text in [
            "use std::{collections::{HashMap, VecDeque}, fmt, sync::Arc, time::Duration};",
            "// std::fs\nconst A: &str = \"std::env\";",
            "#[cfg(test)] mod tests { use std::time::Instant; }",
        ] {
            assert!(impure("nexent-observer-core/src/a.rs", text).unwrap().is_empty(), "{text}");
        }
        assert!(impure("nexent-observer-core/src/conn/tests.rs", "use std::fs;").unwrap().is_empty());
    }

    #[test]
    fn only_a_real_forbid_counts() {
        assert!(allows_unsafe("lib.rs", "//! Docs.\n#![no_std]\n#![forbid(unsafe_code)]\n").unwrap().is_none());
        assert!(allows_unsafe("lib.rs", "//! #![forbid(unsafe_code)]\n#![deny(unsafe_code)]\n").unwrap().is_some());
        assert!(allows_unsafe("lib.rs", "").unwrap().is_some());
    }
}
