//! Running commands and saying so.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Says what is being done, to stderr.
pub fn say(line: &str) {
    // Nobody can be told that stderr is gone.
    drop(writeln!(std::io::stderr(), "xtask: {line}"));
}

/// Root of the checkout.
pub fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask lies in the checkout")?.to_owned())
}

/// A file below `tests/fixtures`.
pub fn fixture(name: &str) -> Result<PathBuf> {
    Ok(root()?.join("tests/fixtures").join(name))
}

/// Where cargo puts what it builds.
pub fn target_dir(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// What is kept between checkouts.
pub fn cache_dir() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(base.join("nexent-observer"))
}

/// The cargo that runs this, in a directory.
pub fn cargo(directory: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(directory);
    command
}

/// Runs a command to its end; its output goes where ours goes.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("running {}", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// Whether a command runs and succeeds; its output is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A command as a person would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Installs Debian packages unless their program is there.
pub fn have(program: &str, packages: &[&str]) -> Result<()> {
    if succeeds(Command::new(program).arg("--version")) {
        return Ok(());
    }
    say(&format!("installing Debian packages, for {program}: {}", packages.join(" ")));
    apt_install(packages)
}

/// Installs Debian packages. Needs root; says so otherwise.
pub fn apt_install(packages: &[&str]) -> Result<()> {
    let is_root = fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    let line = format!("apt-get install --yes --no-install-recommends {}", packages.join(" "));
    if !is_root {
        bail!("these packages are missing; install them as root: {line}");
    }
    let quiet = |command: &mut Command| {
        command.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        run(command)
    };
    quiet(Command::new("apt-get").args(["update", "--quiet"])).context("apt-get update")?;
    quiet(Command::new("apt-get").args(["install", "--yes", "--no-install-recommends"]).args(packages)).context(line)
}
