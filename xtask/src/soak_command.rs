//! `cargo xtask soak`: the proofs of docs/reliability.md, for minutes each.
#![expect(clippy::print_stdout, reason = "the figures are what this command is for")]

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, ensure};
use xtask::{
    sh,
    soak::{Bed, Figures, PROOFS, Proof, Taken},
};

use crate::{
    build::{self, Source},
    docs,
};

/// Flags of the command.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Only this proof; may be given several times
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(PROOFS.iter().map(|proof| proof.name)))]
    only: Vec<String>,
    /// How long the load of each proof lasts; a million connections take five minutes
    #[arg(long, value_name = "N", default_value_t = 5.0, value_parser = minutes)]
    minutes: f64,
    /// Put the figures of the proofs that are run, and hold, into docs/reliability.md
    #[arg(long)]
    write_docs: bool,
    /// Use this executable instead of building one
    #[arg(long, value_name = "PATH")]
    observer: Option<std::path::PathBuf>,
}

/// From three seconds to a day.
fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.05..=1440.0).contains(&minutes) { Ok(minutes) } else { Err("expected 0.05 to 1440 minutes".to_owned()) }
}

/// Runs the proofs; an error names those whose claim does not hold.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let load_before = docs::load_average();
    let target = sh::target_dir(root);
    let observer = match &options.observer {
        Some(path) => path.clone(),
        None => build::all(root, Source::Auto)?,
    };
    let mut command = sh::cargo(root);
    command.args(["build", "--release", "--locked", "--package", "integration-tests", "--bin", "fake_tls"]);
    sh::run(command.env("NEXENT_OBSERVER_BPF_OBJECT", build::object(root)?)).context("building the target")?;
    let fake_tls = target.join("release/fake_tls");
    let seconds = (options.minutes * 60.0).round() as u64;
    let mut failed = Vec::new();
    for proof in
        PROOFS.iter().filter(|proof| options.only.is_empty() || options.only.iter().any(|name| name == proof.name))
    {
        sh::say(&format!("proving: {}", proof.name));
        let began = Instant::now();
        let bed = Bed::make(&observer, &fake_tls, &target.join("soak").join(proof.name), seconds)?;
        match proof.run(&bed) {
            Ok(figures) => {
                let row = row(proof, &figures, began.elapsed().as_secs());
                print!("### {}\n\n{row}", proof.name);
                if options.write_docs {
                    let command = format!("cargo xtask soak --only {} --minutes {}", proof.name, options.minutes);
                    let section = docs::section(root, &command, &row, &load_before);
                    docs::write(&root.join("docs/reliability.md"), proof.name, &section)?;
                }
            }
            Err(error) => {
                sh::say(&format!("{} does not hold: {error:#}", proof.name));
                failed.push(proof.name);
            }
        }
    }
    ensure!(failed.is_empty(), "do not hold: {}", failed.join(", "));
    Ok(())
}

/// What a proof came to, as Markdown.
fn row(proof: &Proof, figures: &Figures, seconds: u64) -> String {
    let mut numbers = vec![format!("{seconds} s")];
    if figures.streams > 0 {
        numbers.push(format!("{} streams", figures.streams));
    }
    numbers.extend(figures.calls.map(|calls| format!("{calls} calls of TLS functions")));
    numbers.extend(figures.taken.map(taken));
    format!("{}\n\n- Done: {}\n- Seen: {}\n- {}.\n\n", proof.claim, figures.done, figures.seen, numbers.join("; "))
}

fn taken(taken: Taken) -> String {
    let [before, most, after] = taken.rss_mib;
    format!(
        "{} records decoded, {} lost; memory {before:.1} MiB when attached, {most:.1} at most, {after:.1} at the end; {:.1} s of CPU in {:.0} s",
        taken.records, taken.lost, taken.cpu_s, taken.seconds
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_are_not_known_are_left_out() {
        let proof = &PROOFS[0];
        let figures = Figures { done: "this".to_owned(), seen: "that".to_owned(), ..Figures::default() };
        assert!(row(proof, &figures, 7).ends_with("- Done: this\n- Seen: that\n- 7 s.\n\n"));
        let taken = Some(Taken { records: 5.0, lost: 1.0, rss_mib: [1.0, 3.0, 2.0], cpu_s: 0.5, seconds: 9.0 });
        let row = row(proof, &Figures { streams: 3, calls: Some(4), taken, ..figures }, 7);
        assert!(row.contains("7 s; 3 streams; 4 calls of TLS functions; 5 records decoded, 1 lost; memory 1.0 MiB when attached, 3.0 at most, 2.0 at the end; 0.5 s of CPU in 9 s."), "{row}");
    }

    #[test]
    fn minutes_have_bounds() {
        assert!(minutes("0.1").is_ok() && minutes("0").is_err() && minutes("NaN").is_err() && minutes("x").is_err());
    }
}
