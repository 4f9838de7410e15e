//! Stage 1, kernel half. What one read or write costs the observed process is decided here; see docs/overhead.md.
//!
//! A hooked call is kept at its entry ([`inflight`]) and, if it moved bytes, becomes records at its return ([`emit`]) under the
//! connection's number and byte offset ([`conn`]). Nothing wakes user space but a ring that fills up.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod aead;
mod conn;
mod emit;
mod flow;
mod gnutls;
mod go;
mod hooks;
mod inflight;
mod maps;
mod openssl;
mod process;
mod socket;
mod syscalls;
mod yardstick;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses programs that can get here; nothing in this crate panics.
    loop {}
}

/// `bpf_probe_read_user` and other GPL-only helpers ask for a compatible licence string (kernel/bpf/core.c).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
