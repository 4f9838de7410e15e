//! `cargo xtask test`: everything, one part after the other, with one summary.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use xtask::{python, sh};

use crate::{
    build::{self, Source},
    fuzz, lint,
};

/// Flags of the command.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// What cannot run here is a failure, and the prebuilt kernel half is built again and compared
    #[arg(long)]
    ci: bool,
    /// Only these parts
    #[arg(long, value_enum)]
    only: Vec<Part>,
}

/// A part of the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Rules of the house.
    Lint,
    /// Unit and property tests of all crates.
    Unit,
    /// Tests of the test harness itself.
    Harness,
    /// Every fuzz target, a fixed number of runs, and that each finds a bug put in front of it.
    Fuzz,
    /// Real probes, real processes.
    Integration,
    /// The prebuilt kernel half is what its sources give.
    Prebuilt,
}

/// What a part came to.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    passed: u64,
    failed: u64,
    not_run: u64,
}

/// Runs the parts; an error says how many tests failed.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let parts = [Part::Lint, Part::Unit, Part::Harness, Part::Fuzz, Part::Prebuilt, Part::Integration];
    let chosen = parts.into_iter().filter(|part| options.only.is_empty() || options.only.contains(part));
    let mut all = Tally::default();
    let mut lines = Vec::new();
    for part in chosen {
        if part == Part::Prebuilt && !options.ci && !options.only.contains(&part) {
            continue; // needs a second toolchain, which users are spared
        }
        sh::say(&format!("== {part:?}"));
        let start = Instant::now();
        let tally = match run_part(root, part, options.ci) {
            Ok(tally) => tally,
            Err(error) => {
                sh::say(&format!("{part:?}: {error:#}"));
                Tally { failed: 1, ..Tally::default() }
            }
        };
        let Tally { passed, failed, not_run } = tally;
        let seconds = start.elapsed().as_secs();
        lines.push(format!("{part:?}: {passed} passed, {failed} failed, {not_run} not run ({seconds} s)"));
        all = Tally { passed: all.passed + passed, failed: all.failed + failed, not_run: all.not_run + not_run };
    }
    let mut out = std::io::stdout();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    if all.not_run > 0 {
        writeln!(out, "{} tests were NOT RUN: see above why", all.not_run)?;
    }
    writeln!(out, "{} passed, {} failed", all.passed, all.failed)?;
    if all.failed > 0 || (options.ci && all.not_run > 0) {
        bail!("{} failed, {} not run", all.failed, all.not_run);
    }
    Ok(())
}

fn run_part(root: &Path, part: Part, ci: bool) -> Result<Tally> {
    let one = Tally { passed: 1, ..Tally::default() };
    match part {
        Part::Lint => lint::run(root, &lint::Options { rules: Vec::new(), ci }).map(|()| one),
        Part::Prebuilt => build::check_prebuilt(root).map(|()| one),
        Part::Unit => {
            let object = build::object(root)?;
            let command = &mut sh::cargo(root);
            command.args(["test", "--locked", "--workspace", "--exclude", "integration-tests", "--no-fail-fast"]);
            cargo_test(command.env("NEXENT_OBSERVER_BPF_OBJECT", object))
        }
        Part::Harness => {
            for script in ["test_compare.py", "test_matrix.py"] {
                sh::run(Command::new(python::clients()?).arg(root.join("tests/fixtures").join(script)))?;
            }
            let hooks = root.join("sdk/python");
            let interpreters = python::hooks_everywhere()?;
            for (version, python) in &interpreters {
                sh::say(&format!("the Python hooks on Python {version}"));
                sh::run(Command::new(python).args(["-m", "pytest", "--quiet"]).current_dir(&hooks))
                    .with_context(|| format!("the Python hooks on Python {version}"))?;
            }
            let versions: Vec<String> = interpreters.iter().map(|(version, _)| version.to_string()).collect();
            sh::say(&format!("the Python hooks were tried on every Python that is here: {}", versions.join(", ")));
            Ok(Tally { passed: 2 + interpreters.len() as u64, ..Tally::default() })
        }
        Part::Fuzz => {
            fuzz::repeatable_smoke(root)?;
            // Found in seconds, 13 at most in ten runs of the slowest; the search is by chance, so it may take ten times as long.
            fuzz::planted(root, 12 * fuzz::SMOKE_SECONDS)?;
            Ok(Tally { passed: 2, ..Tally::default() })
        }
        Part::Integration => integration(root, ci),
    }
}

fn integration(root: &Path, ci: bool) -> Result<Tally> {
    build::all(root, Source::Auto)?;
    let object = build::object(root)?;
    let cargo = || {
        let mut command = sh::cargo(root);
        command.env("NEXENT_OBSERVER_BPF_OBJECT", &object);
        command
    };
    let list = cargo()
        .args(["test", "--locked", "--package", "integration-tests", "--", "--list", "--format", "terse"])
        .stderr(Stdio::inherit())
        .output()
        .context("listing the integration tests")?;
    let listed = String::from_utf8_lossy(&list.stdout).lines().filter(|line| line.ends_with(": test")).count() as u64;
    if !list.status.success() || listed == 0 {
        bail!("the integration tests do not build");
    }
    let probe = cargo()
        .args(["run", "--quiet", "--locked", "--package", "integration-tests", "--bin", "can_run_ebpf"])
        .output()?;
    if !probe.status.success() {
        let why = String::from_utf8_lossy(&probe.stderr).trim().to_owned();
        sh::say(&format!("INTEGRATION TESTS ARE NOT RUN: this machine cannot run the probes: {why}"));
        return Ok(Tally { failed: u64::from(ci), not_run: listed, ..Tally::default() });
    }
    cargo_test(cargo().args([
        "test",
        "--locked",
        "--package",
        "integration-tests",
        "--no-fail-fast",
        "--",
        "--test-threads=1",
        "--nocapture",
    ]))
}

/// Runs `cargo test`, shows what it prints, and adds up its closing lines.
fn cargo_test(command: &mut Command) -> Result<Tally> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("running cargo test")?;
    let mut tally = Tally::default();
    let mut out = std::io::stdout();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            writeln!(out, "{line}")?;
            if let Some(result) = result_line(&line) {
                tally.passed += result.passed;
                tally.failed += result.failed;
                tally.not_run += result.not_run;
            }
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        bail!("{} failed without a failing test: {status}", sh::shown(command));
    }
    if tally.passed == 0 {
        bail!("{} ran no test", sh::shown(command));
    }
    Ok(tally)
}

/// Numbers of a line `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn result_line(line: &str) -> Option<Tally> {
    let rest = line.trim_start().strip_prefix("test result: ")?;
    let number = |word: &str| {
        let before = rest.split(word).next()?;
        before.rsplit(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()
    };
    Some(Tally { passed: number(" passed")?, failed: number(" failed")?, not_run: number(" ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_added_up() {
        let tally = result_line("test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 7 filtered out");
        assert!(matches!(tally, Some(Tally { passed: 12, failed: 3, not_run: 1 })), "{tally:?}");
        assert!(result_line("running 3 tests").is_none());
    }
}
