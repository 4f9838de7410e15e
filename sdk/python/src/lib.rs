//! The probe point of the Python hooks.
//!
//! [`nexent_observer_announce`] does nothing. The observer puts a uprobe on it and reads its arguments; see docs/hooks.md for what
//! they say. It begins with a one-byte `nop`, which the kernel emulates (docs/overhead.md), and whether a probe is there can be
//! seen at that very byte, so nothing is even prepared while nobody listens.

use std::arch::naked_asm;

use pyo3::prelude::*;

/// Tells the observer `len` bytes of JSON at `text`.
///
/// # Safety
/// None is needed: nothing is read here.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nexent_observer_announce(text: *const u8, len: usize) {
    naked_asm!("nop", "ret")
}

/// As on x86_64.
///
/// # Safety
/// As on x86_64.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nexent_observer_announce(text: *const u8, len: usize) {
    naked_asm!("nop", "ret")
}

/// First byte of the function without a probe: `nop`, as the compiler above was told.
#[cfg(target_arch = "x86_64")]
const UNTOUCHED: u8 = 0x90;
/// First byte of `nop` (0xd503201f), little-endian.
#[cfg(target_arch = "aarch64")]
const UNTOUCHED: u8 = 0x1f;

fn is_probed() -> bool {
    let first = nexent_observer_announce as *const () as *const u8;
    // SAFETY: the first byte of a function of this library. Volatile, because the kernel changes it behind the compiler's back.
    unsafe { first.read_volatile() != UNTOUCHED }
}

/// Whether a probe is on the function now.
#[pyfunction]
fn listening() -> bool {
    is_probed()
}

/// Tells the observer, if it listens.
#[pyfunction]
fn announce(text: &[u8]) {
    if is_probed() {
        // SAFETY: the function reads nothing; the bytes live during the call.
        unsafe { nexent_observer_announce(text.as_ptr(), text.len()) };
    }
}

#[pymodule]
mod _probe {
    #[pymodule_export]
    use super::{announce, listening};
}
