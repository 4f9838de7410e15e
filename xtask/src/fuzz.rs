//! `cargo xtask fuzz`: runs the fuzz targets of `fuzz/` for a while, without a nightly toolchain and without cargo-fuzz.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use xtask::sh;

/// Options of `cargo xtask fuzz`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// How long each target runs.
    #[arg(long, default_value_t = SMOKE_SECONDS, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Only this target.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Put a bug in front of each target and fail if one does not find it within its time.
    #[arg(long)]
    planted: bool,
}

/// How long a target runs in a smoke run.
pub(crate) const SMOKE_SECONDS: u32 = 10;
/// What `cargo fuzz build --sanitizer none` (0.13) passes to rustc: coverage counters and traced comparisons for libFuzzer.
/// There is no unsafe code in what is tested, so that an address sanitizer, which needs a nightly, would find little.
const RUSTFLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-sanitizer-coverage-stack-depth \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    --cfg fuzzing";
/// Longest input, in bytes: large enough for several exchanges, small enough to be quick.
const MAX_LEN: u32 = 4096;
/// A single input that takes longer than this is a finding, in seconds.
const TIMEOUT_SECONDS: u32 = 5;
/// Memory over this is a finding, in MiB.
const RSS_LIMIT_MIB: u32 = 512;

/// Most that is shown of what a failing target said; all of it shows when the target is run with the input.
const FAILURE_LINES: usize = 40;
const FAILURE_LINE_CHARS: usize = 2000;

/// Runs the command.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let &Options { seconds, ref target, planted: with_bugs } = options;
    let Some(name) = target else {
        return if with_bugs { planted(root, seconds) } else { smoke(root, seconds) };
    };
    let all = targets(root)?;
    if !all.contains(name) {
        bail!("there is no target {name}; the targets are {}", all.join(", "));
    }
    let only = std::slice::from_ref(name);
    let corpora = root.join("fuzz/corpus");
    if with_bugs { find_planted(root, only, seconds) } else { find_none(root, only, &time(seconds), &corpora) }
}

/// Runs every target for `seconds`; fails when one finds something.
pub(crate) fn smoke(root: &Path, seconds: u32) -> Result<()> {
    find_none(root, &targets(root)?, &time(seconds), &root.join("fuzz/corpus"))
}

/// Runs every target a fixed number of times from a fixed seed and from the committed inputs alone: the same on every machine, so
/// that a test suite does not turn red by chance. Finding new bugs is for the runs by time.
pub(crate) fn repeatable_smoke(root: &Path) -> Result<()> {
    let corpus = sh::target_dir(root).join("fuzz-smoke");
    if corpus.exists() {
        fs::remove_dir_all(&corpus).with_context(|| format!("emptying {}", corpus.display()))?;
    }
    find_none(root, &targets(root)?, "-runs=60000 -seed=1", &corpus)
}

/// Runs every target with its planted bug; fails when one does not find it within `seconds`.
pub(crate) fn planted(root: &Path, seconds: u32) -> Result<()> {
    find_planted(root, &targets(root)?, seconds)
}

/// The targets, by their files.
fn targets(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if let (Some("rs"), Some(name)) = (path.extension().and_then(|e| e.to_str()), path.file_stem()) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn find_none(root: &Path, targets: &[String], until: &str, corpora: &Path) -> Result<()> {
    let programs = build(root, &[])?;
    let mut found = Vec::new();
    for target in targets {
        // What was found interesting is kept from run to run, where cargo-fuzz keeps it too.
        let corpus = corpora.join(target);
        let outcome = fuzz(root, &programs, target, &corpus, &root.join("fuzz/artifacts"), until)?;
        match &outcome.artifact {
            None => sh::say(&format!("{target}: {}", outcome.numbers())),
            Some(artifact) => {
                let artifact = artifact.display();
                sh::say(&format!("{target} found a bug, with {artifact}:\n{}", outcome.failure()));
                found.push(format!("{target} ({artifact})"));
            }
        }
    }
    if !found.is_empty() {
        bail!("fuzzing found bugs: {}", found.join(", "));
    }
    Ok(())
}

fn find_planted(root: &Path, targets: &[String], seconds: u32) -> Result<()> {
    let programs = build(root, &["--features", "planted"])?;
    let scratch = target_dir(root).join("planted");
    let mut missed = Vec::new();
    for target in targets {
        // From the seeds alone, each time: an earlier find must not help.
        let corpus = scratch.join("corpus").join(target);
        if corpus.exists() {
            fs::remove_dir_all(&corpus).with_context(|| format!("removing {}", corpus.display()))?;
        }
        let artifacts = scratch.join("artifacts");
        let seeds_only = "-runs=0";
        if fuzz(root, &programs, target, &corpus, &artifacts, seeds_only)?.artifact.is_some() {
            bail!("a seed of {target} meets its planted bug: that shows nothing");
        }
        let begin = Instant::now();
        let outcome = fuzz(root, &programs, target, &corpus, &artifacts, &time(seconds))?;
        let took = begin.elapsed().as_secs_f64();
        match (&outcome.artifact, outcome.panic()) {
            (Some(_), Some(panic)) => sh::say(&format!("{target}: found its planted bug in {took:.1} s ({panic})")),
            (Some(_), None) => bail!("{target} ended without a panic:\n{}", outcome.failure()),
            (None, _) => {
                sh::say(&format!("{target}: its planted bug was not found; {}", outcome.numbers()));
                missed.push(target.as_str());
            }
        }
    }
    if !missed.is_empty() {
        bail!("planted bugs were not found within {seconds} s: {}", missed.join(", "));
    }
    Ok(())
}

/// Where the targets are built: apart from everything else, because their flags differ.
fn target_dir(root: &Path) -> PathBuf {
    sh::target_dir(root).join("fuzz")
}

/// Builds all targets; returns the folder of the programs.
fn build(root: &Path, features: &[&str]) -> Result<PathBuf> {
    if !sh::succeeds(Command::new("c++").arg("--version")) {
        sh::say("installing g++, which libFuzzer is compiled with");
        sh::apt_install(&["g++"])?;
    }
    let host = host()?;
    sh::say("building the fuzz targets");
    let mut command = sh::cargo(&root.join("fuzz"));
    command
        .args(["build", "--quiet", "--release", "--locked", "--bins", "--target", &host, "--target-dir"])
        .arg(target_dir(root))
        .args(features)
        // With --target, build scripts are built without these.
        .env("RUSTFLAGS", RUSTFLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    sh::run(&mut command)?;
    Ok(target_dir(root).join(host).join("release"))
}

/// The triple that rustc builds for by default.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").stdin(Stdio::null()).output().context("running rustc -vV")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = said.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    Ok(host.to_owned())
}

/// What a run of a target gave.
#[derive(Debug)]
struct Outcome {
    /// The input that made it fail.
    artifact: Option<PathBuf>,
    /// All that it said.
    said: String,
}

/// libFuzzer's flag for a run of so many seconds.
fn time(seconds: u32) -> String {
    format!("-max_total_time={seconds}")
}

/// Runs one target until it fails or what `until` says is done.
fn fuzz(root: &Path, programs: &Path, target: &str, corpus: &Path, artifacts: &Path, until: &str) -> Result<Outcome> {
    let artifacts = artifacts.join(target);
    for folder in [corpus, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let mut command = Command::new(programs.join(target));
    command
        .args(until.split(' '))
        .arg(format!("-max_len={MAX_LEN}"))
        .arg(format!("-timeout={TIMEOUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={RSS_LIMIT_MIB}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .arg(corpus)
        .arg(root.join("fuzz/seeds").join(target))
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    let words = root.join("fuzz/dicts").join(target).with_extension("dict");
    if words.exists() {
        command.arg(format!("-dict={}", words.display()));
    }
    let output = command.output().with_context(|| format!("running {}", sh::shown(&command)))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let artifact = said.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path.into());
    if artifact.is_none() && !output.status.success() {
        let shown = Outcome { artifact, said }.failure();
        bail!("{} failed: {}\n{shown}", sh::shown(&command), output.status);
    }
    Ok(Outcome { artifact, said })
}

impl Outcome {
    /// Runs, speed and coverage in one line.
    fn numbers(&self) -> String {
        let stat = |name: &str| {
            let line = self.said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map_or("?", str::trim).to_owned()
        };
        let done = self.said.lines().rev().find_map(|line| line.split_once(" cov: "));
        let coverage = done.and_then(|(_, rest)| rest.split(' ').next()).unwrap_or("?");
        let runs = stat("stat::number_of_executed_units");
        let speed = stat("stat::average_exec_per_sec");
        let memory = stat("stat::peak_rss_mb");
        format!("{runs} runs, {speed}/s, {coverage} edges covered, {memory} MiB")
    }

    /// What it said when it failed, without the progress before that; bounded.
    fn failure(&self) -> String {
        let begins =
            |line: &&str| !["panicked at ", "ERROR: libFuzzer", "ALARM:"].iter().any(|mark| line.contains(mark));
        let lines = self.said.lines().skip_while(begins).take(FAILURE_LINES);
        lines.map(|line| line.chars().take(FAILURE_LINE_CHARS).collect::<String>()).collect::<Vec<_>>().join("\n")
    }

    /// What the panic said, shortened.
    fn panic(&self) -> Option<String> {
        let mut lines = self.said.lines().skip_while(|line| !line.contains("panicked at "));
        let place = lines.next()?.split_once("panicked at ")?.1;
        let what: String = lines.next().unwrap_or_default().chars().take(80).collect();
        Some(format!("{place} {what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_program_and_seeds() {
        let root = sh::root().unwrap();
        let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap();
        let targets = targets(&root).unwrap();
        assert!(!targets.is_empty());
        for target in targets {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
            assert!(fs::read_dir(root.join("fuzz/seeds").join(&target)).unwrap().count() > 0, "{target}");
        }
    }

    #[test]
    fn numbers_and_panics_are_found_in_what_libfuzzer_says() {
        let said = "#2\tINITED cov: 8 ft: 9\n#35\tDONE   cov: 91 ft: 10 corp: 2/6b\n\
            stat::number_of_executed_units: 35\nstat::average_exec_per_sec:     7\nstat::peak_rss_mb:              27\n\
            thread '<unnamed>' (1) panicked at src/conn.rs:3:5:\nit does not hold\n";
        let outcome = Outcome { artifact: None, said: said.to_owned() };
        assert_eq!(outcome.numbers(), "35 runs, 7/s, 91 edges covered, 27 MiB");
        assert_eq!(outcome.panic().as_deref(), Some("src/conn.rs:3:5: it does not hold"));
    }
}
