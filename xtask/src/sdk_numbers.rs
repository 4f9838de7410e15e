//! `cargo xtask sdk-numbers`: lets the official SDKs read every fixture and every recording, and writes their numbers down.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use xtask::{python, sh};

/// Flags of the command.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Write nothing; fail if the SDKs read other numbers than those that are committed
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let python = python::readers()?;
    let core = root.join("nexent-observer-core/tests/fixtures");
    let committed = core.join("sdk");
    let out = if options.check { sh::target_dir(root).join("sdk-numbers") } else { committed.clone() };
    fs::create_dir_all(&out).with_context(|| format!("creating {}", out.display()))?;
    let mut command = Command::new(python);
    command.arg(sh::fixture("readers/sdk_numbers.py")?).arg(core.join("llm")).arg(&out);
    let mut written = vec!["fixtures.jsonl"];
    match recordings(root) {
        Some(file) => {
            command.arg("--corpus").arg(file);
            written.push("recordings.jsonl");
        }
        None => sh::say("the recordings are not at hand (NEXENT_OBSERVER_CORPUS): their numbers stay as they are"),
    }
    sh::run(&mut command)?;
    if options.check {
        for name in written {
            let read = |folder: &Path| fs::read_to_string(folder.join(name)).with_context(|| format!("reading {name}"));
            if read(&committed)? != read(&out)? {
                bail!("{name} is not what the SDKs read: compare {} with {}", committed.display(), out.display());
            }
        }
    }
    Ok(())
}

/// The recordings, which are no part of the project.
fn recordings(root: &Path) -> Option<PathBuf> {
    let given = env::var_os("NEXENT_OBSERVER_CORPUS").map(PathBuf::from);
    let beside = root.ancestors().skip(1).take(2).map(|folder| folder.join("shared/corpus"));
    let file = |path: PathBuf| if path.is_dir() { path.join("recordings.jsonl") } else { path };
    given.into_iter().chain(beside).map(file).find(|path| path.is_file())
}
