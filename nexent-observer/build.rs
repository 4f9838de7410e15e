//! Tells the crate which kernel half to embed (the one that `xtask` built, else the one in the repository), and what it is built by.

use std::{env, path::PathBuf, process::Command};

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
    for name in ["TARGET", "PROFILE"] {
        println!("cargo::rustc-env=NEXENT_OBSERVER_{name}={}", env::var(name).unwrap_or_default());
    }
    let rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("--version").output();
    let rustc = rustc.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    println!("cargo::rustc-env=NEXENT_OBSERVER_RUSTC={rustc}");
}
