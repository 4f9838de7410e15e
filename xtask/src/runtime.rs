//! What runs the programs of the matrix, and how each is installed: pinned versions below the target directory, or Debian's packages.

use std::{
    collections::hash_map::DefaultHasher,
    ffi::OsString,
    fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    golang::{self, Link, Toolchain},
    python,
    rust::{self, Tls},
    sh,
};

/// What runs a client's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// CPython with the packages of `tests/fixtures/sdks/requirements.txt`.
    Python,
    /// The system's `curl`; any interpreter runs the program that starts it.
    Curl,
    /// Debian's CPython with its `pycurl`, which is linked with GnuTLS.
    DebianPython,
    /// Node with the packages of `tests/fixtures/sdks/package.json`.
    Node,
    /// Bun, as its package brings it: BoringSSL inside, without symbols.
    Bun,
    /// `tests/fixtures/native/tls_pipe.c` with OpenSSL linked in and all symbols removed.
    StaticOpenSsl,
    /// The same, with its file replaced by another one when it runs: an upgrade.
    UpgradedOpenSsl,
    /// The same with GnuTLS.
    GnuTls,
    /// reqwest; any interpreter runs the program that starts it.
    Reqwest(Tls),
    /// Deno; likewise.
    Deno,
    /// Go's net/http; likewise.
    Go(Toolchain, Link),
    /// Debian's Ruby with its net/http; likewise.
    Ruby,
    /// Debian's PHP with its curl extension; likewise.
    Php,
    /// OpenAI's Codex CLI, of `tests/fixtures/sdks/agents/package.json`; likewise.
    Codex,
    /// Claude Code; likewise.
    ClaudeCode,
}

/// An installed runtime.
#[derive(Debug)]
pub struct Setup {
    /// What runs the script.
    pub program: PathBuf,
    /// Variables that the script needs.
    pub environment: Vec<(&'static str, OsString)>,
    /// The file that is replaced as soon as the client runs.
    pub upgraded: Option<PathBuf>,
    /// The program that the script starts, where it is told so behind `--`.
    pub arguments: Vec<OsString>,
}

impl Setup {
    fn plain(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), environment: Vec::new(), upgraded: None, arguments: Vec::new() }
    }
}

impl Runtime {
    /// Installs it if it is not there.
    pub fn install(self) -> Result<Setup> {
        match self {
            Self::Python => Ok(Setup::plain(python::sdks()?)),
            Self::Curl => {
                have("curl", "curl")?;
                Ok(Setup::plain("python3"))
            }
            Self::DebianPython => {
                let python = Path::new("/usr/bin/python3");
                if !sh::succeeds(Command::new(python).args(["-c", "import pycurl; assert 'GnuTLS' in pycurl.version"]))
                {
                    sh::say("installing the Debian packages python3 and python3-pycurl: a client with GnuTLS");
                    sh::apt_install(&["python3", "python3-pycurl"])?;
                }
                Ok(Setup::plain(python))
            }
            Self::Node | Self::Bun => {
                let modules = npm("sdks/package.json", "npm")?;
                let program = match self {
                    Self::Bun => modules.join("@oven/bun-linux-x64/bin/bun"),
                    _ => PathBuf::from("node"),
                };
                Ok(Setup { environment: vec![("SDK_MODULES", modules.into_os_string())], ..Setup::plain(program) })
            }
            Self::StaticOpenSsl => native("static-openssl", "OpenSSL", "libssl-dev", "openssl/ssl.h", &STATIC_OPENSSL),
            Self::UpgradedOpenSsl => {
                let program = static_openssl()?;
                let copy = program.with_file_name("upgraded-openssl");
                drop(fs::remove_file(&copy));
                fs::copy(&program, &copy).with_context(|| format!("cannot write {}", copy.display()))?;
                let environment =
                    vec![("TLS_PIPE", copy.clone().into_os_string()), ("TLS_PIPE_LIBRARY", "OpenSSL".into())];
                Ok(Setup { environment, upgraded: Some(copy), ..Setup::plain("python3") })
            }
            Self::Reqwest(tls) => Ok(Setup { arguments: vec![rust::fetcher(tls)?.into()], ..Setup::plain("python3") }),
            Self::Deno => {
                let arguments = vec![
                    rust::program("deno")?.into(),
                    "run".into(),
                    "--quiet".into(),
                    "--no-config".into(),
                    "--unstable-http".into(),
                    "--allow-net=localhost".into(),
                    "--allow-write".into(),
                    "--allow-env".into(),
                    sh::fixture("sdks/fetcher.ts")?.into(),
                ];
                Ok(Setup { arguments, ..Setup::plain("python3") })
            }
            Self::Go(toolchain, link) => {
                let program = golang::program(toolchain, link, "clients/go/fetcher.go")?;
                Ok(Setup { arguments: vec![program.into()], ..Setup::plain("python3") })
            }
            Self::Ruby => {
                have("ruby", "ruby")?;
                let arguments = vec!["ruby".into(), sh::fixture("sdks/fetcher.rb")?.into()];
                Ok(Setup { arguments, ..Setup::plain("python3") })
            }
            Self::Php => {
                if !sh::succeeds(Command::new("php").args(["-r", "exit(extension_loaded('curl') ? 0 : 1);"])) {
                    sh::say("installing the Debian packages php-cli and php-curl: it is one of the clients");
                    sh::apt_install(&["php-cli", "php-curl"])?;
                }
                let arguments = vec!["php".into(), sh::fixture("sdks/fetcher.php")?.into()];
                Ok(Setup { arguments, ..Setup::plain("python3") })
            }
            Self::Codex => agent("@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin/codex"),
            Self::ClaudeCode => agent("@anthropic-ai/claude-code-linux-x64/claude"),
            Self::GnuTls => native("gnutls", "GnuTLS", "libgnutls28-dev", "gnutls/gnutls.h", &["-DGNUTLS", "-lgnutls"]),
        }
    }
}

/// As python-build-standalone links it: nothing is exported, and no symbol is left.
const STATIC_OPENSSL: [&str; 8] =
    ["-Wl,--exclude-libs,ALL", "-Wl,-Bstatic", "-lssl", "-lcrypto", "-Wl,-Bdynamic", "-ldl", "-lpthread", "-s"];

/// Installs a Debian package unless its program is there.
fn have(program: &str, package: &str) -> Result<()> {
    if !sh::succeeds(Command::new(program).arg("--version")) {
        sh::say(&format!("installing the Debian package {package}: it is one of the clients"));
        sh::apt_install(&[package])?;
    }
    Ok(())
}

/// A program of the agents' packages.
fn agent(program: &str) -> Result<Setup> {
    let program = npm("sdks/agents/package.json", "npm-agents")?.join(program);
    ensure!(program.exists(), "{} is missing: has its package changed?", program.display());
    Ok(Setup { arguments: vec![program.into()], ..Setup::plain("python3") })
}

/// The directory with the packages of a manifest, installed into `name` below the target directory if they changed.
fn npm(manifest: &str, name: &str) -> Result<PathBuf> {
    have("node", "nodejs")?;
    have("npm", "npm")?;
    let manifest = sh::fixture(manifest)?;
    let dir = sh::target_dir(&sh::root()?).join(name);
    let modules = dir.join("node_modules");
    let wanted = fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let mut hasher = DefaultHasher::new();
    wanted.hash(&mut hasher);
    let (stamp, stamp_file) = (format!("{:016x}", hasher.finish()), dir.join("package.stamp"));
    if modules.exists() && fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) {
        return Ok(modules);
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    fs::write(dir.join("package.json"), &wanted).with_context(|| format!("cannot write into {}", dir.display()))?;
    sh::say(&format!("installing {} into {} (npm)", manifest.display(), dir.display()));
    sh::run(
        Command::new("npm")
            .args(["install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"])
            .current_dir(&dir),
    )
    .context("cannot install the JavaScript packages; is the npm registry reachable?")?;
    fs::write(&stamp_file, stamp).with_context(|| format!("cannot write {}", stamp_file.display()))?;
    Ok(modules)
}

/// Bun's executable, for tests that look into it.
pub fn bun() -> Result<PathBuf> {
    Ok(Runtime::Bun.install()?.program)
}

/// `tls_pipe` as it is linked here; the script that speaks with it finds it in the environment.
fn native(name: &str, library: &str, package: &str, header: &str, flags: &[&str]) -> Result<Setup> {
    let program = tls_pipe(name, package, header, flags)?;
    let environment = vec![("TLS_PIPE", program.into_os_string()), ("TLS_PIPE_LIBRARY", library.into())];
    Ok(Setup { environment, ..Setup::plain("python3") })
}

/// The stripped program with OpenSSL linked in, for tests that look into it.
pub fn static_openssl() -> Result<PathBuf> {
    tls_pipe("static-openssl", "libssl-dev", "openssl/ssl.h", &STATIC_OPENSSL)
}

/// The same with its symbols, to compare with.
pub fn static_openssl_with_symbols() -> Result<PathBuf> {
    let flags: Vec<&str> = STATIC_OPENSSL.into_iter().filter(|flag| *flag != "-s").collect();
    tls_pipe("static-openssl-symbols", "libssl-dev", "openssl/ssl.h", &flags)
}

fn tls_pipe(name: &str, package: &str, header: &str, flags: &[&str]) -> Result<PathBuf> {
    if !Path::new("/usr/include").join(header).exists()
        && !Path::new("/usr/include/x86_64-linux-gnu").join(header).exists()
    {
        sh::say(&format!("installing the Debian packages {package} and gcc: a client is linked with it"));
        sh::apt_install(&[package, "gcc", "libc6-dev"])?;
    }
    let dir = sh::target_dir(&sh::root()?).join("native");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let program = dir.join(name);
    // Under a name of its own first: another test may be running the program.
    let fresh = dir.join(format!("{name}.{}", std::process::id()));
    let source = sh::fixture("native/tls_pipe.c")?;
    let newer = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    if newer(&program).is_some_and(|built| newer(&source).is_some_and(|written| written < built)) {
        return Ok(program);
    }
    sh::run(Command::new("gcc").args(["-O2", "-Wall", "-o"]).arg(&fresh).arg(&source).args(flags))
        .with_context(|| format!("cannot build {name}"))?;
    fs::rename(&fresh, &program).with_context(|| format!("cannot replace {}", program.display()))?;
    ensure!(program.exists(), "{} is missing", program.display());
    Ok(program)
}
