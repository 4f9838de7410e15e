//! The kernel half: prebuilt in the repository, or built here.
//!
//! A prebuilt object spares users 1.6 GB of toolchain. It is trusted because it is reproducible: CI builds it again from source
//! and compares every byte, and a fingerprint of the sources tells when it is out of date.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{fingerprint, tools::Toolchain};
use crate::sh;

/// Where the kernel half comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Source {
    /// The prebuilt one if it was made from these sources, else from source.
    Auto,
    /// From source, installing what is needed.
    Source,
}

/// Architectures whose argument layout is built.
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

fn prebuilt(root: &Path, arch: &str) -> PathBuf {
    root.join("nexent-observer-ebpf/prebuilt").join(format!("{arch}.o"))
}

fn fingerprint_file(root: &Path) -> PathBuf {
    root.join("nexent-observer-ebpf/prebuilt/SOURCES.sha256")
}

/// Whether the prebuilt objects were made from these sources.
pub(crate) fn prebuilt_fits(root: &Path) -> Result<bool> {
    let recorded = fs::read_to_string(fingerprint_file(root)).unwrap_or_default();
    Ok(recorded.trim() == fingerprint::of_sources(root)?)
}

/// The object for this machine.
pub(crate) fn object(root: &Path, source: Source) -> Result<PathBuf> {
    if let Some(given) = env::var_os("NEXENT_OBSERVER_BPF_OBJECT") {
        return Ok(PathBuf::from(given));
    }
    let arch = env::consts::ARCH;
    let kept = prebuilt(root, arch);
    if source == Source::Auto && kept.exists() && prebuilt_fits(root)? {
        return Ok(kept);
    }
    if source == Source::Auto {
        sh::say("the prebuilt kernel half is not of these sources: building it");
    }
    build(root, arch, &Toolchain::ready()?)
}

/// Builds the object of one architecture and gives its path.
fn build(root: &Path, arch: &str, toolchain: &Toolchain) -> Result<PathBuf> {
    let target = sh::target_dir(root).join("ebpf").join(arch);
    let home =
        env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo"))).unwrap_or_default();
    // Paths of this machine must not get into the object.
    let flags = [
        "-Clinker=bpf-linker".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "--cfg".to_owned(),
        format!("bpf_target_arch=\"{arch}\""),
        format!("--remap-path-prefix={}=/nexent-observer", root.display()),
        format!("--remap-path-prefix={home}=/cargo"),
        "--remap-path-prefix=/usr/lib/rustlib/src/rust=/rust".to_owned(),
    ];
    sh::say(&format!("building the kernel half for {arch}"));
    let mut cargo = toolchain.cargo(&root.join("nexent-observer-ebpf"));
    cargo
        .args(["build", "--release", "--locked", "--target", "bpfel-unknown-none", "-Zbuild-std=core"])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_TARGET_DIR", &target);
    // A profile that somebody set for the rest of the tree would give other bytes (seen with CARGO_PROFILE_RELEASE_LTO).
    for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"CARGO_PROFILE_")) {
        cargo.env_remove(name);
    }
    sh::run(&mut cargo).context("building the kernel half")?;
    let object = target.join(format!("{arch}.o"));
    fs::copy(target.join("bpfel-unknown-none/release/nexent-observer"), &object).context("taking the object")?;
    toolchain.strip(&object)?;
    named_by_paths(&object)?;
    Ok(object)
}

/// Fails when a function has a mangled name: it carries a hash of the crate's path, so the object would be another in every checkout.
fn named_by_paths(object: &Path) -> Result<()> {
    let bytes = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    if let Some(name) = mangled(&bytes) {
        bail!(
            "{name} was not inlined, and its name differs with the path of the checkout: give it #[inline(always)], and pass a trait's method instead of a closure"
        );
    }
    Ok(())
}

/// The first name in an object's string tables that is mangled as Rust's are (RFC 2603: `_R`, then a path: `N` nested, `I` with arguments,
/// `C` a crate, `M`, `X`, `Y` an impl's).
fn mangled(object: &[u8]) -> Option<String> {
    let begins = |name: &[u8]| matches!(name, [0, b'_', b'R', b'N' | b'I' | b'C' | b'M' | b'X' | b'Y']);
    let at = object.windows(4).position(begins)?;
    let name: Vec<u8> = object.iter().skip(at + 1).copied().take_while(|byte| *byte != 0).collect();
    Some(String::from_utf8_lossy(&name).into_owned())
}

/// Builds all architectures and puts them into the repository.
pub(crate) fn update_prebuilt(root: &Path) -> Result<()> {
    let toolchain = Toolchain::ready()?;
    for arch in ARCHITECTURES {
        let object = build(root, arch, &toolchain)?;
        fs::copy(&object, prebuilt(root, arch)).context("keeping the object")?;
    }
    fs::write(fingerprint_file(root), fingerprint::of_sources(root)? + "\n").context("keeping the fingerprint")?;
    sh::say("the prebuilt kernel half is up to date");
    Ok(())
}

/// Fails unless the prebuilt objects are exactly what these sources give.
pub(crate) fn check_prebuilt(root: &Path) -> Result<()> {
    let toolchain = Toolchain::ready()?;
    if !matches!(toolchain, Toolchain::Debian { .. }) {
        bail!("only Debian's toolchain gives the prebuilt objects byte for byte; this machine has another");
    }
    if !prebuilt_fits(root)? {
        bail!("the prebuilt kernel half is not of these sources: run `cargo xtask build --update-prebuilt`");
    }
    for arch in ARCHITECTURES {
        let built = fingerprint::of_file(&build(root, arch, &toolchain)?)?;
        let kept = fingerprint::of_file(&prebuilt(root, arch))?;
        if built != kept {
            bail!("the prebuilt kernel half for {arch} is {kept}, but its sources give {built}");
        }
        sh::say(&format!("the prebuilt kernel half for {arch} is what its sources give ({kept})"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::mangled;

    #[test]
    fn functions_closures_and_impls_that_were_not_inlined_are_found_by_their_names() {
        for name in [
            "_RNvCs1_4ebpf4tell",
            "_RNCNvCs1_4ebpf4tell0B3_",
            "_RINvCs1_4ebpf4facthE",
            "_RNvXs_Cs1_4ebpfNtB4_6PeerOf",
            "_RMs_Cs1_4ebpf",
        ] {
            let object = [b"\x7fELF\0memcpy\0", name.as_bytes(), b"\0license\0"].concat();
            assert_eq!(mangled(&object).as_deref(), Some(name));
        }
        assert_eq!(mangled(b"\x7fELF\0memcpy\0_license\0READ_RING\0xdp_RN\0"), None);
    }
}
