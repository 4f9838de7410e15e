//! `cargo xtask stack-test`: reads everything below `deploy/`, and shows dashboards and alerts a running observer.
#![expect(clippy::print_stdout, reason = "what was seen is what this command is for")]

use std::path::{Path, PathBuf};

use anyhow::Result;
use xtask::{
    python, sh,
    stack::{files, live},
};

use crate::build::{self, Source};

/// Flags of the command.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Only read the files; nothing is observed, and no root is needed
    #[arg(long)]
    files_only: bool,
    /// Use this executable instead of building one
    #[arg(long, value_name = "PATH")]
    observer: Option<PathBuf>,
}

/// Runs the checks.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let binary = options.observer.clone().map_or_else(|| build::all(root, Source::Auto), Ok)?;
    files::check(root, &binary, &sh::target_dir(root).join("stack-files"))?;
    println!("every file below deploy/ was read by what it is written for");
    if options.files_only {
        return Ok(());
    }
    let report = live::run(root, &binary, &python::clients()?, &sh::target_dir(root).join("stack"))?;
    println!("{}", report.lines.join("\n"));
    Ok(())
}
