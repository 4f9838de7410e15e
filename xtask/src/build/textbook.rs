//! The kernel half of the textbook configuration (`tests/textbook`), which only `cargo xtask bench` needs: built where it is measured, by the
//! toolchain of the real one.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::tools::Toolchain;
use crate::sh;

/// Builds it; the path of the object.
pub(crate) fn textbook(root: &Path) -> Result<PathBuf> {
    let toolchain = Toolchain::ready()?;
    let target = sh::target_dir(root).join("ebpf/textbook");
    let arch = env::consts::ARCH;
    let flags =
        ["-Clinker=bpf-linker", "-Cdebuginfo=2", "-Clink-arg=--btf", "--cfg", &format!("bpf_target_arch=\"{arch}\"")];
    sh::say("building the textbook probes");
    let mut cargo = toolchain.cargo(&root.join("tests/textbook"));
    cargo
        .args(["build", "--release", "--locked", "--quiet", "--target", "bpfel-unknown-none", "-Zbuild-std=core"])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_TARGET_DIR", &target);
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"CARGO_PROFILE_")) {
        cargo.env_remove(name);
    }
    sh::run(&mut cargo).context("building the textbook probes")?;
    let object = target.join("textbook.o");
    fs::copy(target.join("bpfel-unknown-none/release/textbook"), &object).context("taking the object")?;
    toolchain.strip(&object)?;
    Ok(object)
}
