//! Files with probes on them, leased where that can be: who opens one for writing waits until the probes are gone (fcntl(2), "Leases").

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use super::opener::{self, own_path};

/// Local file systems, by their magic numbers (include/uapi/linux/magic.h): ext2 to ext4, XFS, Btrfs, tmpfs, ramfs, F2FS, bcachefs, ZFS.
const LOCAL: [u64; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x8584_58f6, 0xf2f5_2010, 0xca45_1a4e, 0x2fc1_2fc1];

/// A file. Each probe on it holds it, so that its lease ends when the last of them is gone, and not before.
#[derive(Debug)]
pub struct HookedFile {
    /// Opened for reading while it is leased or may be; else only found.
    file: File,
    leased: AtomicBool,
}

/// How taking a lease went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Whoever opens the file for writing waits.
    Taken,
    /// It is open for writing: one may be had later.
    Later,
    /// There is none.
    None,
}

impl HookedFile {
    /// Without a lease. Of the file that is given nothing is kept but what it is: closing it may ask the file system, and that in whatever
    /// thread lets go of the last probe.
    ///
    /// # Errors
    /// As the kernel gives them.
    pub fn unleased(file: &File) -> io::Result<Self> {
        let file = opener::find(Path::new(&own_path(file)))?;
        Ok(Self { file, leased: AtomicBool::new(false) })
    }

    /// With a read lease if there can be one: whoever opens the file for writing waits until it ends, and SIGIO tells. Only on local file
    /// systems. None below an overlay one: opened for writing for the first time, a file of an image becomes another one there, and the probes
    /// on the old one, which old processes run, are in nobody's way. None on network ones and FUSE, which ask their server when the file is
    /// closed. It asks the file system.
    ///
    /// # Errors
    /// As the kernel gives them.
    pub fn leased(file: File) -> io::Result<(Self, Lease)> {
        if !LOCAL.contains(&rustix::fs::fstatfs(&file)?.f_type.cast_unsigned()) {
            return Ok((Self::unleased(&file)?, Lease::None));
        }
        let this = Self { file, leased: AtomicBool::new(false) };
        match this.lease() {
            Lease::None => Ok((Self::unleased(&this.file)?, Lease::None)),
            lease => Ok((this, lease)),
        }
    }

    /// The file, to be found or opened by.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Takes the lease that could not be had before.
    pub fn lease(&self) -> Lease {
        // SAFETY: a plain call with an open descriptor.
        if unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) } == 0 {
            self.leased.store(true, Ordering::Relaxed);
            return Lease::Taken;
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::WouldBlock {
            return Lease::Later;
        }
        tracing::debug!(%error, "A hooked file is not leased.");
        Lease::None
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
