//! `cargo xtask lint`: the rules of the house. All run, even after one has failed; each says what is wrong, where, and what to do.

mod cargo;
mod corpus;
mod data;
mod links;
mod purity;
mod report;
mod rust;
mod scripts;
mod shape;
mod stages;
mod tree;

use std::{io::Write, path::Path};

use anyhow::{Result, bail};

use report::{Outcome, Problem};
use tree::Tree;

/// Options of `cargo xtask lint`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Run only the rules named.
    #[arg(long = "rule", value_name = "NAME")]
    pub(crate) rules: Vec<String>,
    /// Install cargo-deny if it is not there: minutes, once.
    #[arg(long)]
    pub(crate) ci: bool,
}

/// A rule: its name and what it does.
type Rule = (&'static str, fn(&Tree) -> Result<Outcome>);

/// Every rule; the slow ones last.
const RULES: &[Rule] = &[
    ("docs-on-top", shape::docs_on_top),
    ("file-length", shape::file_length),
    ("leftovers", shape::leftovers),
    ("stage-order", stages::rule),
    ("core-is-pure", purity::rule),
    ("no-unsafe", purity::forbids_unsafe),
    ("links", links::rule),
    ("shell", scripts::shell),
    ("python", scripts::python),
    ("yaml", data::yaml),
    ("json", data::json),
    ("corpus", corpus::rule),
    ("dependencies", cargo::dependencies),
    ("format", cargo::format),
    ("prebuilt", cargo::prebuilt),
    ("deny", cargo::deny),
    ("clippy", cargo::clippy),
];

/// Runs the command.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    if let Some(unknown) = options.rules.iter().find(|name| RULES.iter().all(|(rule, _)| rule != name)) {
        let known: Vec<&str> = RULES.iter().map(|(rule, _)| *rule).collect();
        bail!("there is no rule {unknown}; the rules are {}", known.join(", "));
    }
    if options.ci {
        cargo::CARGO_DENY.install(root)?;
    }
    let tree = Tree::of_checkout(root)?;
    let mut failed = Vec::new();
    for (name, rule) in RULES {
        if !options.rules.is_empty() && !options.rules.iter().any(|wanted| wanted == name) {
            continue;
        }
        // A rule that cannot run has not passed.
        let outcome = rule(&tree).unwrap_or_else(|error| {
            Outcome::Checked(vec![Problem::new(
                "xtask",
                format!("the rule could not run: {error:#}"),
                "mend what it needs",
            )])
        });
        for line in outcome.lines(name) {
            // Nobody can be told that stderr is gone.
            drop(writeln!(std::io::stderr(), "{line}"));
        }
        if outcome.failed() {
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        bail!("lint: {} failed: {}", failed.len(), failed.join(", "));
    }
    Ok(())
}
