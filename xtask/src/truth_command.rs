//! `cargo xtask truth`: the truth test by hand, with its tables.
#![expect(clippy::print_stdout, reason = "the tables are what this command is for")]

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use xtask::{
    compare::Verdict,
    python, sh,
    truth::{self, CASES},
};

use crate::build::{self, Source};

/// Flags of the command.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Only these cases
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(CASES.iter().map(|case| case.name)))]
    cases: Vec<String>,
    /// Use this executable instead of building one
    #[arg(long, value_name = "PATH")]
    observer: Option<PathBuf>,
}

/// Runs the cases one after the other; an error names those that disagree.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let binary = options.observer.clone().map_or_else(|| build::all(root, Source::Auto), Ok)?;
    let python = python::clients()?;
    let mut wrong = Vec::new();
    for case in
        CASES.iter().filter(|case| options.cases.is_empty() || options.cases.iter().any(|name| name == case.name))
    {
        println!("\n== {}\n", case.name);
        let dir = sh::target_dir(root).join("truth").join(case.name);
        match truth::run(case, &binary, &python, &dir) {
            Ok(Verdict::Agree) => {}
            Ok(Verdict::Disagree) => wrong.push(case.name),
            Err(error) => {
                println!("{error:#}");
                wrong.push(case.name);
            }
        }
    }
    if !wrong.is_empty() {
        bail!("the observer is wrong in: {}", wrong.join(", "));
    }
    Ok(())
}
