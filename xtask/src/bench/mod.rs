//! `cargo xtask bench`: the budgets of docs/overhead.md, measured.
#![expect(clippy::print_stdout, reason = "the table is what this command is for")]

mod attach;
mod chain;
mod figure;
mod from_memory;
mod hooks;
mod load;
mod others;
mod page;
mod plain;
mod probe;
pub(crate) mod sink;
mod stamps;
mod watched;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::sh;

use crate::{
    build::{self, Source},
    docs,
};
use figure::{Figure, Verdict};

/// Flags of the command.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Only this group of figures; may be given several times
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(GROUPS.iter().map(|group| group.name)))]
    only: Vec<String>,
    /// Write the figures to this file as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Put the table into docs/overhead.md; needs all figures
    #[arg(long, conflicts_with = "only")]
    write_docs: bool,
    /// Succeed whatever the figures are
    #[arg(long)]
    no_judge: bool,
    /// Use this executable instead of building one
    #[arg(long, value_name = "PATH")]
    observer: Option<PathBuf>,
}

/// What a group needs.
struct Bench {
    root: PathBuf,
    /// Where its logs go.
    dir: PathBuf,
    observer: PathBuf,
    fake_tls: PathBuf,
    probe_bench: PathBuf,
    plain_bench: PathBuf,
    textbook: PathBuf,
}

/// Figures that are taken together.
struct Group {
    name: &'static str,
    /// Whether the observer is measured.
    observer: bool,
    /// Programs of `tests/` that it needs.
    programs: &'static [&'static str],
    run: fn(&Bench) -> Result<Vec<Figure>>,
}

const GROUPS: &[Group] = &[
    Group { name: "probe", observer: false, programs: &["fake_tls", "probe_bench"], run: probe::run },
    Group { name: "plain", observer: false, programs: &["plain_bench"], run: plain::run },
    Group { name: "cpu", observer: true, programs: &["fake_tls"], run: load::cpu },
    Group { name: "page", observer: true, programs: &["fake_tls"], run: page::run },
    Group { name: "loss", observer: true, programs: &["fake_tls"], run: load::loss },
    Group { name: "core", observer: false, programs: &[], run: from_memory::run },
    Group { name: "chain", observer: true, programs: &[], run: chain::run },
    Group { name: "stamps", observer: true, programs: &[], run: stamps::run },
    Group { name: "attach", observer: true, programs: &["fake_tls"], run: attach::run },
    Group { name: "hooks", observer: true, programs: &[], run: hooks::run },
    Group { name: "others", observer: true, programs: &["textbook"], run: others::run },
];

/// Measures and prints; an error when a figure is over its budget or could not be taken.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let load_before = docs::load_average();
    let groups: Vec<&Group> = GROUPS
        .iter()
        .filter(|group| options.only.is_empty() || options.only.iter().any(|name| name == group.name))
        .collect();
    let bench = prepare(root, options, &groups)?;
    let (mut figures, mut failed) = (Vec::new(), Vec::new());
    for group in groups {
        sh::say(&format!("measuring: {}", group.name));
        match measure(group, &bench) {
            Ok(taken) => {
                print!("{}", figure::table(&taken));
                figures.extend(taken);
            }
            Err(error) => {
                sh::say(&format!("{} could not be measured: {error:#}", group.name));
                failed.push(group.name);
            }
        }
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&json!({ "figures": figures, "not_measured": failed }))?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    ensure!(failed.is_empty(), "could not be measured: {}", failed.join(", "));
    if options.write_docs {
        let table = figure::markdown(&figures);
        let section = docs::section(root, "cargo xtask bench --write-docs", &table, &load_before);
        docs::write(&root.join("docs/overhead.md"), "figures", &section)?;
    }
    let over: Vec<&str> =
        figures.iter().filter(|figure| figure.verdict == Verdict::Over).map(|figure| figure.name).collect();
    if !over.is_empty() && !options.no_judge {
        bail!("over budget: {}", over.join("; "));
    }
    Ok(())
}

/// Runs a group; once more when a figure is over its budget, since the neighbours of a busy machine can do that.
fn measure(group: &Group, bench: &Bench) -> Result<Vec<Figure>> {
    let first = (group.run)(bench)?;
    if first.iter().all(|figure| figure.verdict != Verdict::Over) {
        return Ok(first);
    }
    sh::say(&format!("{}: a figure is over its budget, measuring once more", group.name));
    let second = (group.run)(bench)?;
    Ok(second.into_iter().zip(first).map(|(second, first)| second.after(first)).collect())
}

/// Builds what the groups measure, and what measures it.
fn prepare(root: &Path, options: &Options, groups: &[&Group]) -> Result<Bench> {
    let target = sh::target_dir(root);
    let release = target.join("release");
    let observer = match &options.observer {
        Some(path) => path.clone(),
        None if groups.iter().any(|group| group.observer) => build::all(root, Source::Auto)?,
        None => release.join("nexent-observer"),
    };
    let programs: BTreeSet<&str> = groups.iter().flat_map(|group| group.programs).copied().collect();
    if !programs.is_empty() {
        let mut command = sh::cargo(root);
        command.args(["build", "--release", "--locked", "--package", "integration-tests"]);
        command.args(programs.iter().flat_map(|name| ["--bin", name]));
        sh::run(command.env("NEXENT_OBSERVER_BPF_OBJECT", build::object(root)?)).context("building the targets")?;
    }
    Ok(Bench {
        root: root.to_owned(),
        dir: target.join("bench"),
        observer,
        fake_tls: release.join("fake_tls"),
        probe_bench: release.join("probe_bench"),
        plain_bench: release.join("plain_bench"),
        textbook: release.join("textbook"),
    })
}

/// Runs a command that prints one JSON object.
fn json_of(command: &mut Command) -> Result<Value> {
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("running {}", sh::shown(command)))?;
    ensure!(output.status.success(), "{} failed: {}", sh::shown(command), output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("{} printed no JSON", sh::shown(command)))
}
