//! Rules `shell` and `python`: scripts parse. Nothing of them is run.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use super::{
    report::{Outcome, Problem},
    tree::{Tree, has_extension},
};

/// Reads Python source from stdin and prints what is wrong with it.
const PARSE: &str = "import ast, sys\ntry:\n    ast.parse(sys.stdin.buffer.read())\nexcept (SyntaxError, ValueError) as error:\n    sys.exit(f'line {getattr(error, \"lineno\", 0)}: {error}')";

/// Rule `shell`.
pub(super) fn shell(tree: &Tree) -> Result<Outcome> {
    parsed_by(tree, is_shell, || {
        let mut bash = Command::new("bash");
        bash.arg("-n");
        bash
    })
}

/// Rule `python`.
pub(super) fn python(tree: &Tree) -> Result<Outcome> {
    parsed_by(tree, is_python, || {
        let mut python = Command::new("python3");
        python.args(["-I", "-c", PARSE]);
        python
    })
}

fn is_shell(path: &str, text: &str) -> bool {
    has_extension(path, &["sh", "bash"]) || runs_by(path, text, &["sh", "bash"])
}

fn is_python(path: &str, text: &str) -> bool {
    has_extension(path, &["py", "pyi"]) || runs_by(path, text, &["python", "python3"])
}

/// Whether a file without extension says in its first line that one of these runs it.
fn runs_by(path: &str, text: &str, programs: &[&str]) -> bool {
    let first = text.lines().next().and_then(|line| line.strip_prefix("#!")).unwrap_or_default();
    let names = |word: &str| programs.contains(&word.rsplit('/').next().unwrap_or(word));
    Path::new(path).extension().is_none() && first.split_whitespace().any(names)
}

fn parsed_by(tree: &Tree, is_ours: fn(&str, &str) -> bool, parser: impl Fn() -> Command) -> Result<Outcome> {
    let mut problems = Vec::new();
    for (path, text) in tree.files().filter(|(path, text)| is_ours(path, text)) {
        problems.extend(refused(path, text, parser())?);
    }
    Ok(Outcome::Checked(problems))
}

/// Gives the text to a parser on its stdin.
fn refused(path: &str, text: &str, mut parser: Command) -> Result<Option<Problem>> {
    let name = parser.get_program().to_string_lossy().into_owned();
    let mut child = parser
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A parser that gives up early closes its end; its verdict counts.
        drop(stdin.write_all(text.as_bytes()));
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for {name}"))?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let what = format!("{name} refuses it: {}", said.lines().next().unwrap_or("it does not say why"));
    Ok(Some(Problem::new(path, what, "mend it")))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{PARSE, is_python, is_shell, refused};

    #[test]
    fn scripts_are_known_by_extension_or_first_line() {
        assert!(
            is_shell("a.sh", "") && is_shell(".ci/run", "#!/usr/bin/env bash\n") && is_shell("a/run", "#!/bin/sh -e\n")
        );
        assert!(is_python("a.py", "") && is_python("tool", "#!/usr/bin/env python3\n"));
        assert!(
            !is_shell("README.md", "#!/bin/sh\n") && !is_shell("tool", "bash\n") && !is_python("a.sh", "#!/bin/sh\n")
        );
    }

    #[test]
    fn a_script_that_does_not_parse_is_refused() {
        let bash = |text: &str| {
            let mut command = Command::new("bash");
            command.arg("-n");
            refused("a.sh", text, command).unwrap()
        };
        assert_eq!(bash("if true; then echo a; fi\n"), None);
        assert!(bash("if true; then echo a\n").unwrap().to_string().starts_with("a.sh: bash refuses it: "));
        let python = |text: &str| {
            let mut command = Command::new("python3");
            command.args(["-I", "-c", PARSE]);
            refused("a.py", text, command).unwrap()
        };
        assert_eq!(python("def f():\n    return 1\n"), None);
        assert!(python("def f():\nreturn 1\n").unwrap().to_string().starts_with("a.py: python3 refuses it: line 2: "));
    }

    #[test]
    fn a_missing_parser_is_an_error_and_not_a_pass() {
        assert!(refused("a", "text", Command::new("/nonexistent/parser")).is_err());
    }
}
