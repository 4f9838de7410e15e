//! Programs that crates.io has and that the project only runs: installed once, into the cache, at a pinned version.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use xtask::sh;

/// A program of crates.io, called as a subcommand of cargo.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    /// The crate, which is also the program: `cargo-NAME`.
    pub(crate) name: &'static str,
    /// Its version.
    pub(crate) version: &'static str,
}

impl Tool {
    fn dir(self) -> Result<PathBuf> {
        Ok(sh::cache_dir()?.join(format!("{}-{}", self.name, self.version)))
    }

    /// How cargo calls it.
    fn subcommand(self) -> &'static str {
        self.name.strip_prefix("cargo-").unwrap_or(self.name)
    }

    /// How it is called: by cargo where it is on PATH, else from the cache; `None` when it is in neither.
    pub(crate) fn command(self, root: &Path) -> Result<Option<Command>> {
        if sh::succeeds(sh::cargo(root).args([self.subcommand(), "--version"])) {
            let mut command = sh::cargo(root);
            command.arg(self.subcommand());
            return Ok(Some(command));
        }
        let program = self.dir()?.join("bin").join(self.name);
        let mut command = Command::new(&program);
        command.current_dir(root);
        Ok(program.exists().then_some(command))
    }

    /// Installs it into the cache where neither PATH nor the cache has it.
    pub(crate) fn install(self, root: &Path) -> Result<()> {
        if self.command(root)?.is_some() {
            return Ok(());
        }
        let dir = self.dir()?;
        sh::say(&format!("installing {} {} (crates.io) into {}", self.name, self.version, dir.display()));
        let target = dir.join("target");
        let mut install = sh::cargo(root);
        install.args(["install", self.name, "--locked", "--version", self.version, "--quiet", "--root"]).arg(&dir);
        sh::run(install.env("CARGO_TARGET_DIR", &target))
            .with_context(|| format!("cannot install {}; is crates.io reachable?", self.name))?;
        fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))
    }
}
