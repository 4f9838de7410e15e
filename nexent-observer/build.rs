//! Tells the crate which kernel half to embed: the one that `xtask` built, else the one in the repository.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=NEXENT_OBSERVER_BPF_OBJECT");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let object = env::var_os("NEXENT_OBSERVER_BPF_OBJECT").map_or_else(
        || {
            let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
            here.join("../nexent-observer-ebpf/prebuilt").join(format!("{arch}.o"))
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rustc-env=NEXENT_OBSERVER_BPF_OBJECT={}", object.display());
}
