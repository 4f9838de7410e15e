//! `cargo xtask matrix`: the matrix of clients by hand.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use xtask::{
    compare::Verdict,
    matrix::{self, CLIENTS, Client},
    sh,
};

use crate::{
    build::{self, Source},
    docs,
};

/// Flags of the command.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Only these clients
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(CLIENTS.iter().map(|client| client.name)))]
    clients: Vec<String>,
    /// Use this executable instead of building one
    #[arg(long, value_name = "PATH")]
    observer: Option<PathBuf>,
    /// Write the table into docs/compatibility.md, unless a number is wrong
    #[arg(long, conflicts_with = "clients")]
    write_docs: bool,
}

/// Runs the clients; an error when a number is wrong.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let binary = options.observer.clone().map_or_else(|| build::all(root, Source::Auto), Ok)?;
    let wanted = |client: &Client| options.clients.is_empty() || options.clients.iter().any(|name| name == client.name);
    let clients: Vec<Client> = CLIENTS.iter().copied().filter(wanted).collect();
    let (dir, load_before) = (sh::target_dir(root).join("matrix"), docs::load_average());
    match matrix::run(&clients, &binary, &dir, None)? {
        Verdict::Agree if options.write_docs => {
            let file = matrix::table(&dir);
            let table = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let section = docs::section(root, "cargo xtask matrix --write-docs", &table, &load_before);
            docs::write(&root.join("docs/compatibility.md"), "matrix", &section)
        }
        Verdict::Agree => Ok(()),
        Verdict::Disagree => bail!("the observer is wrong: see the violated checks above"),
    }
}
