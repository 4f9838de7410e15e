//! The toolchain for the BPF target. Finds what is there, installs what is missing, and says what it did.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::sh;

/// Version of bpf-linker that is known to build against LLVM 22 and to give the prebuilt object.
const BPF_LINKER: &str = "0.13.0";
/// Debian's packages with a rustc that knows the BPF target and its standard library's source, and the LLVM that bpf-linker
/// links against.
const PACKAGES: [&str; 5] = ["rustc-web", "rust-web-src", "llvm-22-dev", "libzstd-dev", "zlib1g-dev"];
/// Where those packages put things.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src/rust/library/core/src/lib.rs";
const LLVM_BIN: &str = "/usr/lib/llvm-22/bin";

/// A toolchain that is ready to use.
#[derive(Debug)]
pub(crate) enum Toolchain {
    /// Debian's packages: gives the prebuilt object byte for byte.
    Debian {
        /// Directory of bpf-linker.
        linker_dir: PathBuf,
    },
    /// A rustup nightly with rust-src and a bpf-linker on PATH.
    Nightly,
}

impl Toolchain {
    /// Finds a toolchain, or installs Debian's.
    pub(crate) fn ready() -> Result<Self> {
        if !is_debian() {
            return nightly();
        }
        let missing: Vec<&str> = PACKAGES.into_iter().filter(|package| !is_installed(package)).collect();
        if !missing.is_empty() {
            sh::say(&format!("installing packages for the BPF target: {}", missing.join(" ")));
            sh::apt_install(&missing)?;
        }
        if !Path::new(DEBIAN_SOURCE).exists() || !Path::new(DEBIAN_RUSTC).exists() {
            bail!(
                "the packages {} are installed, but {DEBIAN_RUSTC} or {DEBIAN_SOURCE} is missing",
                PACKAGES.join(" ")
            );
        }
        Ok(Self::Debian { linker_dir: bpf_linker()? })
    }

    /// A cargo command set up for the BPF target.
    pub(crate) fn cargo(&self, directory: &Path) -> Command {
        match self {
            Self::Debian { linker_dir } => {
                let mut command = Command::new("cargo");
                let path = env::var("PATH").unwrap_or_default();
                command
                    .current_dir(directory)
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("PATH", format!("{}:{LLVM_BIN}:{path}", linker_dir.display()));
                command
            }
            Self::Nightly => {
                let mut command = Command::new("cargo");
                command.arg("+nightly").current_dir(directory);
                command
            }
        }
    }

    /// Removes debug sections (which hold paths and hashes of paths); the kernel reads BTF, which stays.
    pub(crate) fn strip(&self, object: &Path) -> Result<()> {
        let tool = match self {
            Self::Debian { .. } => format!("{LLVM_BIN}/llvm-objcopy"),
            Self::Nightly => "llvm-objcopy".to_owned(),
        };
        sh::run(Command::new(tool).arg("--strip-debug").arg(object))
    }
}

fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && sh::succeeds(Command::new("apt-cache").args(["show", "rustc-web"]))
}

fn nightly() -> Result<Toolchain> {
    let sysroot = Command::new("rustc").args(["+nightly", "--print", "sysroot"]).output();
    let has_source = sysroot.is_ok_and(|output| {
        let root = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Path::new(&root).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
    });
    if has_source && sh::succeeds(Command::new("bpf-linker").arg("--version")) {
        return Ok(Toolchain::Nightly);
    }
    bail!(
        "building the kernel half from source needs `rustup toolchain install nightly --component rust-src` and \
         `cargo install bpf-linker`; without changes to it none is needed: `cargo xtask build` takes the prebuilt object"
    )
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

/// Directory of a bpf-linker of our version, built once per user.
fn bpf_linker() -> Result<PathBuf> {
    let cache = sh::cache_dir()?.join(format!("bpf-linker-{BPF_LINKER}"));
    let directory = cache.join("bin");
    if directory.join("bpf-linker").exists() {
        return Ok(directory);
    }
    sh::say(&format!("building bpf-linker {BPF_LINKER} (about two minutes, once) into {}", cache.display()));
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    let path = env::var("PATH").unwrap_or_default();
    sh::run(
        Command::new("cargo")
            .args(["install", "bpf-linker", "--locked", "--version", BPF_LINKER])
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(&cache)
            .env("PATH", format!("{LLVM_BIN}:{path}"))
            .env("LLVM_SYS_221_PREFIX", "/usr/lib/llvm-22")
            .env_remove("CARGO_TARGET_DIR"),
    )
    .context("building bpf-linker")?;
    Ok(directory)
}
