//! `cargo xtask stack-test`: reads everything below `deploy/`, and shows dashboards, alerts, backends and a container a running observer.
#![expect(clippy::print_stdout, reason = "what was seen is what this command is for")]

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use xtask::{
    python, sh,
    stack::{files, image, live, traces},
};

use crate::build::{self, Source};

/// Flags of the command.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Only these parts; `files` needs no root
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Also what takes minutes: a tracing backend with a query API (a download of 850 MB), all stages of the Dockerfile
    #[arg(long)]
    slow: bool,
    /// Use this executable instead of building one
    #[arg(long, value_name = "PATH")]
    observer: Option<PathBuf>,
}

/// What is tested by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Every file below deploy/ by what it is written for
    Files,
    /// Dashboards and alerts: Prometheus and Alertmanager
    Live,
    /// Spans and metrics by OTLP
    Traces,
    /// The image in a container
    Image,
}

/// Runs the checks.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let binary = options.observer.clone().map_or_else(|| build::all(root, Source::Auto), Ok)?;
    let binary = binary.canonicalize().with_context(|| format!("there is no {}", binary.display()))?;
    for part in [Part::Files, Part::Live, Part::Traces, Part::Image] {
        if options.only.is_empty() || options.only.contains(&part) {
            let start = Instant::now();
            run_part(root, part, &binary, options.slow)?;
            println!("({part:?}: {} s)", start.elapsed().as_secs());
        }
    }
    Ok(())
}

fn run_part(root: &Path, part: Part, binary: &Path, slow: bool) -> Result<()> {
    let dir = |name: &str| sh::target_dir(root).join("stack").join(name);
    match part {
        Part::Files => {
            files::check(root, binary, &dir("files"))?;
            println!("every file below deploy/ was read by what it is written for");
        }
        Part::Live => println!("{}", live::run(root, binary, &python::clients()?, &dir("live"))?.lines.join("\n")),
        Part::Traces => {
            println!("{}", traces::run(root, binary, &python::clients()?, &dir("rotel"), traces::Backend::Rotel)?);
            if slow {
                println!(
                    "{}",
                    traces::run(root, binary, &python::clients()?, &dir("phoenix"), traces::Backend::Phoenix)?
                );
            }
        }
        Part::Image => match image::unavailable(&dir("containers"))? {
            Some(why) => println!("THE IMAGE WAS NOT RUN: no containers here: {why}"),
            None => {
                let seen = image::run(root, binary, &python::clients()?, &dir("image"), &dir("containers"))?;
                println!("{}", seen.join("\n"));
                if slow {
                    println!("{}", image::compile(root, &dir("compile"), &dir("containers"))?);
                }
            }
        },
    }
    Ok(())
}
