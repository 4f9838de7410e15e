//! `cargo xtask build`: the kernel half and the process, into `target/release/nexent-observer`.

mod fingerprint;
mod kernel_half;
mod textbook;
mod tools;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub(crate) use kernel_half::{Source, check_prebuilt, prebuilt_fits};
pub(crate) use textbook::textbook;

use crate::sh;

/// Options of `cargo xtask build`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Where the kernel half comes from.
    #[arg(long, value_enum, default_value_t = Source::Auto)]
    pub(crate) kernel_half: Source,
    /// Build the kernel half from source and put it into the repository as the prebuilt one.
    #[arg(long, conflicts_with = "kernel_half")]
    pub(crate) update_prebuilt: bool,
    /// Build the kernel half from source and fail unless it equals the prebuilt one byte for byte.
    #[arg(long, conflicts_with_all = ["kernel_half", "update_prebuilt"])]
    pub(crate) check_prebuilt: bool,
}

/// Runs the command.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    if options.update_prebuilt {
        return kernel_half::update_prebuilt(root);
    }
    if options.check_prebuilt {
        return check_prebuilt(root);
    }
    let binary = all(root, options.kernel_half)?;
    sh::say(&format!("built {}", binary.display()));
    Ok(())
}

/// Builds everything that the demo and the tests need; gives the path of the binary.
pub(crate) fn all(root: &Path, source: Source) -> Result<PathBuf> {
    let object = kernel_half::object(root, source)?;
    sh::run(
        sh::cargo(root)
            .args(["build", "--release", "--locked", "--package", "nexent-observer"])
            .env("NEXENT_OBSERVER_BPF_OBJECT", &object),
    )
    .context("building nexent-observer")?;
    Ok(sh::target_dir(root).join("release/nexent-observer"))
}

/// The object to embed, for other commands that compile the crate.
pub(crate) fn object(root: &Path) -> Result<PathBuf> {
    kernel_half::object(root, Source::Auto)
}
