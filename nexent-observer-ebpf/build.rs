//! Lets the compiler know the cfg that chooses an argument layout. `xtask` sets it (`--cfg bpf_target_arch="..."`), for this
//! crate and for aya-ebpf alike.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(bpf_target_arch, values(\"x86_64\", \"aarch64\"))");
    println!("cargo::rerun-if-changed=build.rs");
}
