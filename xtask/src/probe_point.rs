//! Programs that speak through the probe point of docs/hooks.md in other languages than Python: `sdk/c` and `sdk/examples`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::sh;

/// A language for which the header is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// By `gcc`, C99 as most programs have it.
    C,
    /// By `g++`.
    Cpp,
}

/// Builds `tests/fixtures/hooks/speaker.c` and the file with the header's implementation, both with all warnings as errors.
pub fn speaker(language: Language) -> Result<PathBuf> {
    let (compiler, standard, name) = match language {
        Language::C => ("gcc", "c99", "c"),
        Language::Cpp => ("g++", "c++11", "c++"),
    };
    sh::have(compiler, &[if language == Language::C { "gcc" } else { "g++" }, "libc6-dev"])?;
    let program = scratch()?.join(format!("speaker-{name}"));
    let sources = sh::fixture("hooks")?;
    sh::run(
        Command::new(compiler)
            .args(["-x", name, &format!("-std={standard}"), "-O2", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(sh::root()?.join("sdk/c"))
            .args([sources.join("speaker.c"), sources.join("speaker_probe.c")])
            .arg("-o")
            .arg(&program),
    )
    .with_context(|| format!("cannot build the program in {name}"))?;
    Ok(program)
}

/// Builds the addon of `sdk/examples/node` as its own comment says.
pub fn node_addon() -> Result<PathBuf> {
    sh::have("node", &["nodejs"])?;
    sh::have("gcc", &["gcc", "libc6-dev"])?;
    let headers = node_headers()?;
    let addon = scratch()?.join("announce.node");
    // Under a name of its own first: a process may have the old one loaded.
    let fresh = addon.with_extension(format!("{}", std::process::id()));
    sh::run(
        Command::new("gcc")
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(&headers)
            .arg("-o")
            .arg(&fresh)
            .arg(sh::root()?.join("sdk/examples/node/announce.c")),
    )
    .context("cannot build the addon for Node.js")?;
    fs::rename(&fresh, &addon).with_context(|| format!("cannot replace {}", addon.display()))?;
    Ok(addon)
}

/// Node's own headers, beside its executable; else those of Debian. The interface is the same in all versions (Node-API).
fn node_headers() -> Result<PathBuf> {
    let output =
        Command::new("node").args(["-p", "process.execPath"]).output().context("cannot ask node where it is")?;
    let node = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let beside = node.parent().unwrap_or_else(|| Path::new("/")).join("../include/node");
    if beside.join("node_api.h").exists() {
        return Ok(beside);
    }
    let debian = PathBuf::from("/usr/include/node");
    if !debian.join("node_api.h").exists() {
        sh::say("installing the Debian package libnode-dev: node has no headers beside it");
        sh::apt_install(&["libnode-dev"])?;
    }
    ensure!(debian.join("node_api.h").exists(), "libnode-dev brought no {}/node_api.h", debian.display());
    Ok(debian)
}

fn scratch() -> Result<PathBuf> {
    let dir = sh::target_dir(&sh::root()?).join("probe-point");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}
