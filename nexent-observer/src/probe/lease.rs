//! Files with probes on them, leased where that can be: who opens one for writing waits until the probes are gone (fcntl(2), "Leases").

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
};

/// `OVERLAYFS_SUPER_MAGIC` (include/uapi/linux/magic.h).
const OVERLAY: u64 = 0x794c_7630;

/// A file. Each probe on it holds it, so that its lease ends when the last of them is gone, and not before.
#[derive(Debug)]
pub struct HookedFile {
    file: File,
    below_overlay: bool,
    leased: AtomicBool,
}

impl HookedFile {
    /// Without a lease. It asks the file system.
    ///
    /// # Errors
    /// The error of `fstatfs`.
    pub fn new(file: File) -> io::Result<Self> {
        let below_overlay = rustix::fs::fstatfs(&file)?.f_type.cast_unsigned() == OVERLAY;
        Ok(Self { file, below_overlay, leased: AtomicBool::new(false) })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Takes a read lease: whoever opens the file for writing waits until it ends, and SIGIO tells. None below an overlay file system:
    /// opened for writing for the first time, a file of an image becomes another one there, and the probes on the old one, which old
    /// processes run, are in nobody's way.
    ///
    /// # Errors
    /// `WouldBlock` while it is open for writing; else there can be none.
    pub fn lease(&self) -> io::Result<()> {
        if self.below_overlay {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // SAFETY: a plain call with an open descriptor.
        if unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        self.leased.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether it was ever leased.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        self.leased.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for the end of its lease.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        // SAFETY: as above.
        self.is_leased() && unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_GETLEASE) } != libc::F_RDLCK
    }
}
