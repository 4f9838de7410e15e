//! `cargo xtask dist`: what a user takes: a static binary with the kernel half embedded, the wheel of the Python hooks, an image context, shell
//! completions, manual pages, SBOM and checksums. What was made is taken apart and tried by `check` before it is called done.

mod check;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use xtask::{python, sh};

use crate::{build, tool::Tool};

/// Flags of the command.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Where the files go; a directory that is there is emptied [default: target/dist]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Make nothing: check the release that is there
    #[arg(long)]
    check: bool,
}

/// What writes the SBOM.
const CYCLONEDX: Tool = Tool { name: "cargo-cyclonedx", version: "0.5.9" };

/// Files of the checkout that go into the archive, and where.
const FILES: &[(&str, &str)] = &[
    ("README.md", "README.md"),
    ("CHANGELOG.md", "CHANGELOG.md"),
    ("SECURITY.md", "SECURITY.md"),
    ("ARCHITECTURE.md", "ARCHITECTURE.md"),
    ("CONTRIBUTING.md", "CONTRIBUTING.md"),
    ("LICENSE-MIT", "LICENSE-MIT"),
    ("LICENSE-APACHE", "LICENSE-APACHE"),
    ("deploy/systemd/nexent-observer.service", "systemd/nexent-observer.service"),
    ("deploy/systemd/config.yaml", "systemd/config.yaml"),
];

/// Shells with a completion script, and what its file is called.
const SHELLS: &[(&str, &str)] =
    &[("bash", "nexent-observer.bash"), ("zsh", "_nexent-observer"), ("fish", "nexent-observer.fish")];

/// The image of a release: the executable and certificate authorities, nothing to build.
const DOCKERFILE: &str = "\
# The release in a container: docker build --tag nexent-observer:VERSION .
FROM debian:12.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY nexent-observer /usr/bin/nexent-observer
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/nexent-observer/
ENV NEXENT_OBSERVER_LISTEN=0.0.0.0:9464
EXPOSE 9464
ENTRYPOINT [\"/usr/bin/nexent-observer\"]
CMD [\"run\"]
";

/// Makes the release, and checks it.
pub(crate) fn run(root: &Path, options: &Options) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| sh::target_dir(root).join("dist"));
    if options.check {
        return check::release(root, &out, None);
    }
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot empty {}", out.display()))?;
    }
    let release = Release::new(root, out)?;
    release.binary()?;
    release.descriptions()?;
    release.sbom()?;
    for (from, to) in FILES {
        copy(&root.join(from), &release.tree.join(to))?;
    }
    release.documents()?;
    release.archive(&release.name, &release.tree)?;
    release.image_context()?;
    release.wheel()?;
    fs::remove_dir_all(release.staging()).context("cannot remove the staging directory")?;
    release.checksums()?;
    check::release(root, &release.out, Some(&release.commit))?;
    for line in fs::read_to_string(release.out.join("SHA256SUMS"))?.lines() {
        sh::say(line);
    }
    sh::say(&format!("the release is in {}", release.out.display()));
    Ok(())
}

/// A release in the making.
struct Release {
    root: PathBuf,
    out: PathBuf,
    /// `nexent-observer-VERSION-ARCH-linux`.
    name: String,
    /// What becomes the archive.
    tree: PathBuf,
    commit: String,
    /// Time of the commit, seconds since 1970: the only time in the archives, so that two of one commit are the same.
    epoch: String,
}

impl Release {
    fn new(root: &Path, out: PathBuf) -> Result<Self> {
        let git = |arguments: &[&str]| -> Result<String> {
            let output = Command::new("git").args(arguments).current_dir(root).output().context("running git")?;
            ensure!(output.status.success(), "git {} failed: a release is made from a checkout", arguments.join(" "));
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let dirty = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
        let commit = git(&["rev-parse", "HEAD"])? + if dirty { " with changes" } else { "" };
        if dirty {
            sh::say("the checkout has changes: the release says so");
        }
        let name = archive_name();
        let tree = out.join("staging").join(&name);
        fs::create_dir_all(&tree).with_context(|| format!("cannot make {}", tree.display()))?;
        Ok(Self { root: root.to_owned(), out, name, tree, commit, epoch: git(&["log", "-1", "--format=%ct"])? })
    }

    fn staging(&self) -> PathBuf {
        self.out.join("staging")
    }

    fn executable(&self) -> PathBuf {
        self.tree.join("nexent-observer")
    }

    /// The static executable. glibc's, because no registry here has Rust's library for musl.
    fn binary(&self) -> Result<()> {
        let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
        let object = build::object(&self.root)?;
        sh::say("building the static binary");
        sh::run(
            sh::cargo(&self.root)
                .args(["build", "--release", "--locked", "--package", "nexent-observer", "--target", &target])
                .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
                .env("NEXENT_OBSERVER_BPF_OBJECT", &object)
                .env("NEXENT_OBSERVER_COMMIT", &self.commit),
        )
        .context("building the static binary")?;
        let built = sh::target_dir(&self.root).join(target).join("release/nexent-observer");
        copy(&built, &self.executable())
    }

    fn told(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let output = Command::new(self.executable()).args(arguments).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success() && !output.stdout.is_empty(), "{} says nothing", arguments.join(" "));
        Ok(output.stdout)
    }

    /// Completions and manual pages, as the executable itself writes them.
    fn descriptions(&self) -> Result<()> {
        for (shell, file) in SHELLS {
            write(&self.tree.join("completions").join(file), &self.told(&["completions", shell])?)?;
        }
        write(&self.tree.join("man/nexent-observer.1"), &self.told(&["man"])?)?;
        let help = String::from_utf8(self.told(&["--help"])?).context("--help is no UTF-8")?;
        let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
        for line in commands.take_while(|line| line.starts_with("  ")) {
            let Some(command) = line.split_whitespace().next() else { continue };
            let page = self.tree.join(format!("man/nexent-observer-{command}.1"));
            write(&page, &self.told(&["man", command])?)?;
        }
        Ok(())
    }

    /// What the executable is made of, as CycloneDX, by cargo-cyclonedx.
    fn sbom(&self) -> Result<()> {
        CYCLONEDX.install(&self.root)?;
        let mut command = CYCLONEDX.command(&self.root)?.context("cargo-cyclonedx is gone")?;
        let arguments = ["cyclonedx", "--manifest-path", "nexent-observer/Cargo.toml", "--format", "json", "--quiet"];
        let skip = usize::from(command.get_args().next().is_some());
        let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
        command.args(&arguments[skip..]).args(["--target", &target, "--describe", "crate", "--spec-version", "1.5"]);
        sh::run(command.env("SOURCE_DATE_EPOCH", &self.epoch)).context("writing the SBOM")?;
        // It writes one beside each manifest of the workspace.
        let mut found = None;
        for member in fs::read_dir(&self.root)?.flatten() {
            for file in fs::read_dir(member.path()).into_iter().flatten().flatten() {
                let name = file.file_name().to_string_lossy().into_owned();
                if !name.ends_with(".cdx.json") {
                    continue;
                }
                if name == "nexent-observer.cdx.json" {
                    found = Some(fs::read(file.path())?);
                }
                fs::remove_file(file.path())?;
            }
        }
        let bytes = found.context("cargo-cyclonedx wrote no SBOM for nexent-observer")?;
        write(&self.tree.join("sbom.cdx.json"), &bytes)
    }

    /// What README.md and SECURITY.md lead to: `docs/`, as far as git knows it.
    fn documents(&self) -> Result<()> {
        let listed = Command::new("git").args(["ls-files", "docs"]).current_dir(&self.root).output()?;
        ensure!(listed.status.success(), "git ls-files failed: a release is made from a checkout");
        for file in String::from_utf8_lossy(&listed.stdout).lines() {
            copy(&self.root.join(file), &self.tree.join(file))?;
        }
        Ok(())
    }

    /// A tar.gz of a directory; the same bytes for the same files.
    fn archive(&self, name: &str, directory: &Path) -> Result<()> {
        let parent = directory.parent().context("the directory has a parent")?;
        let file = self.out.join(format!("{name}.tar.gz"));
        sh::run(
            Command::new("tar")
                .args([
                    "--sort=name",
                    "--owner=0",
                    "--group=0",
                    "--numeric-owner",
                    "--mode=go-w",
                    "--use-compress-program=gzip -9n",
                ])
                .arg(format!("--mtime=@{}", self.epoch))
                .arg("--create")
                .arg("--file")
                .arg(&file)
                .arg("--directory")
                .arg(parent)
                .arg(directory.file_name().context("the directory has a name")?),
        )
        .with_context(|| format!("writing {}", file.display()))
    }

    fn image_context(&self) -> Result<()> {
        let name = context_name();
        let context = self.staging().join(&name);
        for file in ["nexent-observer", "LICENSE-MIT", "LICENSE-APACHE"] {
            copy(&self.tree.join(file), &context.join(file))?;
        }
        write(&context.join("Dockerfile"), DOCKERFILE.replace("VERSION", env!("CARGO_PKG_VERSION")).as_bytes())?;
        self.archive(&name, &context)
    }

    /// The wheel, as its own environment is given it.
    fn wheel(&self) -> Result<()> {
        python::hooks()?;
        let wheels = sh::target_dir(&self.root).join("wheels");
        let mut copied = 0;
        for wheel in fs::read_dir(&wheels)?.flatten() {
            fs::copy(wheel.path(), self.out.join(wheel.file_name()))?;
            copied += 1;
        }
        ensure!(copied == 1, "{copied} wheels instead of one");
        Ok(())
    }

    /// `SHA256SUMS`, as `sha256sum --check` reads it.
    fn checksums(&self) -> Result<()> {
        let mut files: Vec<PathBuf> = fs::read_dir(&self.out)?.flatten().map(|entry| entry.path()).collect();
        files.sort();
        let mut lines = String::new();
        for file in files {
            let name = file.file_name().context("a file has a name")?.to_string_lossy().into_owned();
            let digest = Sha256::digest(fs::read(&file)?);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            lines.push_str(&format!("{hex}  {name}\n"));
        }
        write(&self.out.join("SHA256SUMS"), lines.as_bytes())
    }
}

/// Name of the archive, and of the directory in it.
fn archive_name() -> String {
    format!("nexent-observer-{}-{}-linux", env!("CARGO_PKG_VERSION"), env::consts::ARCH)
}

/// Name of the archive with what an image is built from, and of the directory in it.
fn context_name() -> String {
    format!("nexent-observer-{}-{}-image-context", env!("CARGO_PKG_VERSION"), env::consts::ARCH)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
