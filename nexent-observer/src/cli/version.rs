//! What this executable is made of, for `--version`.

use sha2::{Digest, Sha256};

use crate::probe::kernel::OBJECT;

/// Version, commit, kernel half, compiler: what a report of a defect has to name.
///
/// The commit is known of what `cargo xtask dist` built. The kernel half is named by its SHA-256, which is that of
/// `nexent-observer-ebpf/prebuilt/ARCH.o` when it is the prebuilt one.
pub(super) fn long() -> String {
    let digest: String = Sha256::digest(OBJECT).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}\ncommit: {}\nkernel half: sha256 {digest} ({} bytes)\ntarget: {} ({}{})\ncompiler: {}",
        env!("CARGO_PKG_VERSION"),
        option_env!("NEXENT_OBSERVER_COMMIT").unwrap_or("unknown (not built by `cargo xtask dist`)"),
        OBJECT.len(),
        env!("NEXENT_OBSERVER_TARGET"),
        env!("NEXENT_OBSERVER_PROFILE"),
        if cfg!(target_feature = "crt-static") { ", static" } else { "" },
        env!("NEXENT_OBSERVER_RUSTC"),
    )
}
