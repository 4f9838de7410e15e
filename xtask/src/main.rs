//! Everything a person runs: `cargo xtask <command>`.

mod bench;
mod build;
mod demo;
mod dist;
mod docs;
mod fuzz;
mod lint;
mod matrix_command;
mod screenshots;
mod sdk_numbers;
mod soak_command;
mod stack_command;
mod suite;
mod table;
mod tool;
mod truth_command;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::sh;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Everything a person runs: build, demo, test, lint, bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the kernel half and the process into target/release/nexent-observer.
    Build(build::Options),
    /// Run everything: lint, unit and property tests, integration with real eBPF.
    Test(suite::Options),
    /// Watch a real client stream from a local server, and check every number.
    Demo(demo::Options),
    /// Run many real clients at once and compare every number with what they logged.
    Truth(truth_command::Options),
    /// Run one client of every kind against a server of every dialect, and compare every number.
    Matrix(matrix_command::Options),
    /// Measure what observing costs, against the budgets of docs/overhead.md.
    Bench(bench::Options),
    /// Run the long proofs of docs/reliability.md: losses, outages, kills, and great numbers, with real probes.
    Soak(soak_command::Options),
    /// Check the monitoring stack: read every file below deploy/, and run dashboards and alerts against a real Prometheus.
    StackTest(stack_command::Options),
    /// Run the fuzz targets for a while each; a find is a failure.
    Fuzz(fuzz::Options),
    /// Take the pictures of the page in docs/img.
    Screenshots(screenshots::Options),
    /// Let the official SDKs read every fixture and recording, and write down the numbers that the decoders are held to.
    SdkNumbers(sdk_numbers::Options),
    /// Make a release: static binary, wheel, image context, completions, manual pages, SBOM, checksums.
    Dist(dist::Options),
    /// Check the rules of the house: format, clippy, dependencies, stage order, purity, links, scripts.
    Lint(lint::Options),
}

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let done = sh::root().and_then(|root| match command {
        Command::Build(options) => build::run(&root, &options),
        Command::Test(options) => suite::run(&root, &options),
        Command::Demo(options) => demo::run(&root, &options),
        Command::Truth(options) => truth_command::run(&root, &options),
        Command::Matrix(options) => matrix_command::run(&root, &options),
        Command::Bench(options) => bench::run(&root, &options),
        Command::Soak(options) => soak_command::run(&root, &options),
        Command::StackTest(options) => stack_command::run(&root, &options),
        Command::Fuzz(options) => fuzz::run(&root, &options),
        Command::Screenshots(options) => screenshots::run(&root, &options),
        Command::SdkNumbers(options) => sdk_numbers::run(&root, &options),
        Command::Dist(options) => dist::run(&root, &options),
        Command::Lint(options) => lint::run(&root, &options),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            sh::say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
