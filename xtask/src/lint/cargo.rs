//! Rules that cargo and its tools answer: `dependencies`, `format`, `prebuilt`, `deny`, `clippy`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use xtask::sh;

use super::{
    report::{Outcome, Problem},
    tree::Tree,
};
use crate::{build, tool::Tool};

/// Crates whose dependencies are closed: (crate, what it may depend on). Dependencies of their tests are free.
const CLOSED: [(&str, &[&str]); 2] = [
    (
        "nexent-observer-core",
        // zstd-safe is the one that is not Rust: see ARCHITECTURE.md, "Libraries, and why".
        &[
            "brotli-decompressor",
            "crc32fast",
            "flate2",
            "httlib-huffman",
            "httparse",
            "memchr",
            "serde",
            "serde_json",
            "smallvec",
            "thiserror",
            "zstd-safe",
        ],
    ),
    ("nexent-observer-common", &[]),
];
/// Packages outside of the workspace: their manifests.
const OUTSIDE: [&str; 3] = ["nexent-observer-ebpf/Cargo.toml", "fuzz/Cargo.toml", "tests/textbook/Cargo.toml"];

/// Rule `dependencies`: the core and the wire do not grow by accident.
pub(super) fn dependencies(tree: &Tree) -> Result<Outcome> {
    let mut command = sh::cargo(tree.root());
    command.args(["metadata", "--format-version", "1", "--no-deps", "--locked"]);
    let output = command.stdin(Stdio::null()).output().context("running cargo metadata")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(Outcome::Checked(open_dependencies(&serde_json::from_slice(&output.stdout)?)?))
}

fn open_dependencies(metadata: &serde_json::Value) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for (name, allowed) in CLOSED {
        let packages =
            metadata.get("packages").and_then(|value| value.as_array()).context("metadata without packages")?;
        let package = packages.iter().find(|package| text(package, "name") == name);
        let package = package.with_context(|| format!("there is no package {name}"))?;
        let dependencies = package.get("dependencies").and_then(|value| value.as_array());
        for dependency in dependencies.context("a package without dependencies")? {
            let other = text(dependency, "name");
            if text(dependency, "kind") != "dev" && !allowed.contains(&other) {
                let what = format!("depends on {other}, which is not on its list");
                let remedy = "do without it, or argue for it in the list in xtask/src/lint/cargo.rs";
                problems.push(Problem::new(format!("{name}/Cargo.toml"), what, remedy));
            }
        }
    }
    Ok(problems)
}

fn text<'a>(value: &'a serde_json::Value, key: &str) -> &'a str {
    value.get(key).and_then(|value| value.as_str()).unwrap_or_default()
}

/// Rule `format`: the workspace, and the packages outside of it.
pub(super) fn format(tree: &Tree) -> Result<Outcome> {
    let mut problems = Vec::new();
    for manifest in ["Cargo.toml"].iter().chain(OUTSIDE.iter().filter(|manifest| tree.exists(manifest))) {
        let mut command = sh::cargo(tree.root());
        command.args(["fmt", "--manifest-path", manifest]);
        // Of a package outside, `--all` would also mean the workspace that it depends on.
        command.args((*manifest == "Cargo.toml").then_some("--all")).args(["--", "--check", "--files-with-diff"]);
        problems.extend(failure(manifest, command, "run it without `-- --check --files-with-diff`")?);
    }
    Ok(Outcome::Checked(problems))
}

/// Rule `prebuilt`: the prebuilt kernel half is of these sources. That it is what they give, byte for byte, takes a toolchain
/// and is checked by `cargo xtask build --check-prebuilt`.
pub(super) fn prebuilt(tree: &Tree) -> Result<Outcome> {
    if build::prebuilt_fits(tree.root())? {
        return Ok(Outcome::Checked(Vec::new()));
    }
    let remedy = "run `cargo xtask build --update-prebuilt`";
    Ok(Outcome::Checked(vec![Problem::new("nexent-observer-ebpf/prebuilt", "is not of these sources", remedy)]))
}

/// Rule `clippy`: the workspace with tests, examples and benches; a warning is an error.
pub(super) fn clippy(tree: &Tree) -> Result<Outcome> {
    let mut command = sh::cargo(tree.root());
    command
        .args(["clippy", "--quiet", "--workspace", "--all-targets", "--keep-going", "--locked", "--", "-D", "warnings"])
        .env("NEXENT_OBSERVER_BPF_OBJECT", build::object(tree.root())?);
    Ok(Outcome::Checked(failure("workspace", command, "mend what clippy names")?.into_iter().collect()))
}

/// The cargo-deny that `--ci` installs: 270 s of processor time.
pub(super) const CARGO_DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2" };

/// Rule `deny`: licenses, sources and bans, none of which needs a network. Advisories do: `cargo deny check advisories`.
pub(super) fn deny(tree: &Tree) -> Result<Outcome> {
    if CARGO_DENY.command(tree.root())?.is_none() {
        let how = "`cargo xtask lint --ci` installs it, so does `cargo install cargo-deny --locked`";
        return Ok(Outcome::NotRun(format!("cargo-deny is not installed: {how}")));
    }
    let mut problems = Vec::new();
    for manifest in ["Cargo.toml", "nexent-observer-ebpf/Cargo.toml", "tests/textbook/Cargo.toml"] {
        let mut command = CARGO_DENY.command(tree.root())?.context("cargo-deny is gone")?;
        command.args(["--locked", "--manifest-path", manifest, "--log-level", "error"]);
        command.args(["check", "bans", "licenses", "sources"]);
        problems.extend(failure(manifest, command, "mend it, or argue for it in deny.toml")?);
    }
    Ok(Outcome::Checked(problems))
}

/// Runs a tool; when it fails, what it said goes to stderr and a problem names it.
fn failure(place: &str, mut command: Command, remedy: &str) -> Result<Option<Problem>> {
    let shown = sh::shown(&command);
    // The name of the program, not where it is installed.
    let (program, arguments) = shown.split_once(' ').unwrap_or((&shown, ""));
    let shown = format!("{} {arguments}", program.rsplit('/').next().unwrap_or(program));
    let shown = shown.trim_end();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {shown}"))?;
    if output.status.success() {
        return Ok(None);
    }
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    sh::say(&format!("{shown} says:\n{}", said.trim_end()));
    Ok(Some(Problem::new(place, format!("`{shown}` fails (above)"), remedy)))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::json;

    use super::{failure, open_dependencies};

    fn metadata(core: &serde_json::Value, common: &serde_json::Value) -> serde_json::Value {
        json!({"packages": [
            {"name": "nexent-observer-core", "dependencies": core},
            {"name": "nexent-observer-common", "dependencies": common},
        ]})
    }

    #[test]
    fn what_is_on_the_list_and_what_only_tests_need_passes() {
        let core = json!([{"name": "memchr", "kind": null}, {"name": "proptest", "kind": "dev"}]);
        assert!(open_dependencies(&metadata(&core, &json!([]))).unwrap().is_empty());
    }

    #[test]
    fn any_other_dependency_is_refused_also_of_a_build_script() {
        let core = json!([{"name": "tokio", "kind": null}, {"name": "cc", "kind": "build"}]);
        let common = json!([{"name": "memchr", "kind": null}]);
        let found: Vec<String> =
            open_dependencies(&metadata(&core, &common)).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 3);
        assert!(found[0].starts_with("nexent-observer-core/Cargo.toml: depends on tokio"), "{found:?}");
        assert!(found[2].starts_with("nexent-observer-common/Cargo.toml: depends on memchr"), "{found:?}");
    }

    #[test]
    fn a_renamed_crate_cannot_slip_out_of_the_list() {
        assert!(open_dependencies(&json!({"packages": []})).is_err());
    }

    #[test]
    fn a_tool_that_fails_is_a_problem_and_a_tool_that_is_missing_an_error() {
        assert_eq!(failure("x", Command::new("true"), "mend").unwrap(), None);
        assert!(failure("x", Command::new("false"), "mend").unwrap().unwrap().to_string().contains("`false` fails"));
        assert!(failure("x", Command::new("/nonexistent/tool"), "mend").is_err());
    }
}
