//! The monitoring stack below `deploy/`: every file is read by what it is meant for, or by that program's own schema, and
//! dashboards and alerts are shown the metrics of a running observer.
//!
//! There is no Docker daemon, Grafana, Jaeger or Kubernetes in it: Prometheus is the real one, the others are stood for by their
//! schemas (`tests/fixtures/stack`).

pub mod alertmanager;
pub mod containers;
pub mod dashboards;
pub mod documents;
pub mod files;
pub mod image;
pub mod live;
pub mod prometheus;
pub mod promql;
pub mod traces;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::sh;

/// Debian's Prometheus with promtool; installs it where it is missing. The package's service is not used.
fn need_prometheus() -> Result<()> {
    need(&[("promtool", "prometheus"), ("prometheus", "prometheus")], "alerts and dashboards are checked with it")
}

/// Installs the packages of programs that are missing, and says so. `programs` are names and their Debian packages.
fn need(programs: &[(&str, &str)], why: &str) -> Result<()> {
    let missing = programs.iter().filter(|(program, _)| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    });
    let mut packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    sh::say(&format!("installing the Debian package {}: {why}", packages.join(", ")));
    sh::apt_install(&packages)
}

/// Runs a checker and gives what it printed; what it printed is the error when it refuses.
fn checked(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("running {}", sh::shown(command)))?;
    let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    if !status.success() {
        bail!("{} refuses: {status}\n{said}", sh::shown(command));
    }
    Ok(said)
}

/// A shell script in `dir`, for what must start with other variables or fewer privileges.
fn script(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}")).with_context(|| format!("cannot write {}", path.display()))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&path, mode).with_context(|| format!("cannot make {} executable", path.display()))?;
    Ok(path)
}

/// A relative path of the checkout as a string.
fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned()
}
