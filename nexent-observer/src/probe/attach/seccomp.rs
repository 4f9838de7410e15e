//! Kernels on which a return probe kills a process.

use super::{AttachError, Process, prepare::release};

/// Kernels from 6.11 up to the fix in 6.14 kill a process under seccomp at a return probe (the uretprobe system call is not in
/// its filter).
pub(super) fn check(pid: u32) -> Result<(), AttachError> {
    if Process::seccomp(pid) == 0 {
        return Ok(());
    }
    let kernel = release();
    if kills_under_seccomp(&kernel) { Err(AttachError::Seccomp { pid, kernel }) } else { Ok(()) }
}

pub(crate) fn kills_under_seccomp(release: &str) -> bool {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    ((6, 11)..(6, 14)).contains(&version)
}

#[cfg(test)]
mod tests {
    use super::kills_under_seccomp;

    #[test]
    fn kernels_that_kill_at_a_return_probe_are_known() {
        for release in ["6.11.0", "6.12.48+deb13-amd64", "6.13.7-arch1"] {
            assert!(kills_under_seccomp(release), "{release}");
        }
        for release in ["5.15.0-91-generic", "6.1.0-28-amd64", "6.10.9", "6.14.0", "6.18.44-fc", "7.0.1", ""] {
            assert!(!kills_under_seccomp(release), "{release}");
        }
    }
}
