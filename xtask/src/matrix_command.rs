//! `cargo xtask matrix`: the matrix of clients by hand.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use xtask::{
    compare::Verdict,
    matrix::{self, CLIENTS, Client},
    sh,
};

use crate::build::{self, Source};

/// Flags of the command.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Only these clients
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(CLIENTS.iter().map(|client| client.name)))]
    clients: Vec<String>,
    /// Use this executable instead of building one
    #[arg(long, value_name = "PATH")]
    observer: Option<PathBuf>,
}

/// Runs the clients; an error when a number is wrong.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let binary = options.observer.clone().map_or_else(|| build::all(root, Source::Auto), Ok)?;
    let wanted = |client: &Client| options.clients.is_empty() || options.clients.iter().any(|name| name == client.name);
    let clients: Vec<Client> = CLIENTS.iter().copied().filter(wanted).collect();
    match matrix::run(&clients, &binary, &sh::target_dir(root).join("matrix"), None)? {
        Verdict::Agree => Ok(()),
        Verdict::Disagree => bail!("the observer is wrong: see the violated checks above"),
    }
}
