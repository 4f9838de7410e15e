//! Clients in Rust: `tests/fixtures/clients/rust`, built with one TLS stack after the other, and programs from PyPI that are written in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{python, sh};

/// The TLS stack of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// rustls with aws-lc, reqwest's default.
    AwsLc,
    /// The same, without symbols.
    AwsLcStripped,
    /// rustls with ring.
    Ring,
    /// The system's OpenSSL.
    Native,
}

impl Tls {
    /// Feature of the client's package, and the name of the program.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::AwsLc => ("aws-lc", "fetcher-aws-lc"),
            Self::AwsLcStripped => ("aws-lc", "fetcher-aws-lc-stripped"),
            Self::Ring => ("ring", "fetcher-ring"),
            Self::Native => ("native", "fetcher-native"),
        }
    }
}

/// Builds the client and gives its path. The crates come from crates.io, as its lock file says.
pub fn fetcher(tls: Tls) -> Result<PathBuf> {
    let (feature, name) = tls.names();
    let target = sh::target_dir(&sh::root()?).join("rust-fetcher");
    if tls == Tls::Native && !sh::succeeds(Command::new("pkg-config").args(["--exists", "openssl"])) {
        sh::say(
            "installing the Debian packages libssl-dev and pkg-config: a client is linked with the system's OpenSSL",
        );
        sh::apt_install(&["libssl-dev", "pkg-config"])?;
    }
    sh::say(&format!("building the Rust client ({feature})"));
    sh::run(
        sh::cargo(&sh::fixture("clients/rust")?)
            .args(["build", "--quiet", "--release", "--locked", "--features", feature, "--bin", "fetcher"])
            .env("CARGO_TARGET_DIR", &target),
    )
    .context("cannot build the Rust client; is crates.io reachable?")?;
    let (built, out) = (target.join("release/fetcher"), target.join(name));
    let fresh = out.with_extension("new");
    fs::copy(&built, &fresh).with_context(|| format!("cannot copy {}", built.display()))?;
    if tls == Tls::AwsLcStripped {
        sh::run(Command::new("strip").arg(&fresh))?;
    }
    // In one step: the old one may be running.
    fs::rename(&fresh, &out).with_context(|| format!("cannot make {}", out.display()))?;
    Ok(out)
}

/// Builds the program that speaks TLS records without TLS, and gives its path.
pub fn records() -> Result<PathBuf> {
    let target = sh::target_dir(&sh::root()?).join("rust-fetcher");
    sh::say("building the program that speaks TLS records");
    sh::run(
        sh::cargo(&sh::fixture("clients/rust")?)
            .args(["build", "--quiet", "--release", "--locked", "--features", "records", "--bin", "records"])
            .env("CARGO_TARGET_DIR", &target),
    )
    .context("cannot build the Rust client; is crates.io reachable?")?;
    Ok(target.join("release/records"))
}

/// A program of the environment with those from PyPI: `deno`, `uv`.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = python::rust_programs()?.with_file_name(name);
    ensure!(path.exists(), "{} is missing: has its package changed?", path.display());
    // What runs may be another file: the package of Deno has it behind a script.
    let first = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(first.starts_with(b"\x7fELF"), "{} is no program: has its package changed?", Path::new(&path).display());
    Ok(path)
}
