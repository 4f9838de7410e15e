//! Whether files that probes are on are still what they were proven for. A probe belongs to a file, whatever is written there later: where
//! somebody copies a new version over the old one in place, the kernel would put the breakpoints of the old one into every process that
//! starts the new one, in the middle of its instructions. So the observer takes a lease on each file (fcntl(2), "Leases"): who opens it for writing
//! waits until the probes are gone, about half a second, and if the observer is stopped, for as long as the kernel allows
//! (`/proc/sys/fs/lease-break-time`). Where there is no lease (another user's file, overlay and network file systems) writing is noticed when it happens (inotify(7)), and with
//! every look at a process, and the probes go then. Who replaces a file by renaming, as package managers do, makes another file of it, and
//! nothing of this matters.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::inotify;

use super::{Attached, Attacher, Library};
use crate::probe::{
    kernel::KernelError,
    process::{FileId, FileStamp},
};

/// How much of the code at a probe is remembered, bytes.
const CODE: usize = 16;
/// Most states of one file that are watched: below an overlay file system it may be several files.
const STATES: usize = 8;

/// One state of a file that probes were proven for.
#[derive(Debug)]
struct Proof {
    /// The very file, whatever its path leads to meanwhile. The lease ends when it is closed.
    file: Arc<File>,
    leased: bool,
    path: PathBuf,
    stamp: FileStamp,
    /// What stands where the probes are.
    code: Vec<(u64, [u8; CODE])>,
    /// None: the limit of watches is reached. Then it is noticed later.
    watch: Option<i32>,
}

impl Proof {
    fn of(library: &Library, open: &Path) -> io::Result<Self> {
        let file = File::open(open)?;
        let stamp = FileStamp::of(&file)?;
        let hooks = library.plan.implementations.iter().flat_map(|plan| &plan.hooks);
        let code = hooks.map(|hook| Ok((hook.offset, code_in(&file, hook.offset)?))).collect::<io::Result<_>>()?;
        Ok(Self { file: Arc::new(file), leased: false, path: library.path.clone(), stamp, code, watch: None })
    }

    /// Whether something else stands now where the probes are. `written`: it may have been, though its stamp be the same, which counts in steps of
    /// some milliseconds.
    fn is_broken(&mut self, written: bool) -> bool {
        if self.leased && !has_lease(&self.file) {
            return true; // somebody is about to write
        }
        // It cannot be looked at any more, on a network file system: whatever it says, nothing was seen to change.
        let Ok(stamp) = FileStamp::as_known(&self.file) else { return false };
        if stamp == self.stamp && !written {
            return false;
        }
        self.stamp = stamp;
        self.code.iter().any(|(offset, code)| code_in(&self.file, *offset).ok().as_ref() != Some(code))
    }
}

/// The path of a file of which something else stands where the probes are.
fn broken(states: &mut [Proof], written: bool) -> Option<PathBuf> {
    let mut path = None;
    for proof in states {
        if proof.is_broken(written) {
            path = Some(proof.path.clone());
        }
    }
    path
}

/// Bytes at an offset of a file; zeros behind its end, if at least one is there.
fn code_in(file: &File, offset: u64) -> io::Result<[u8; CODE]> {
    let mut code = [0; CODE];
    match file.read_at(&mut code, offset)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(code),
    }
}

/// `OVERLAYFS_SUPER_MAGIC` (include/uapi/linux/magic.h).
const OVERLAY: u64 = 0x794c_7630;

/// Takes a read lease: whoever opens the file for writing waits until it ends, and SIGIO tells. None below an overlay file system: opened for writing
/// the file becomes another one, and the probes on the old one are in nobody's way.
fn lease(file: &File) -> io::Result<()> {
    if rustix::fs::fstatfs(file)?.f_type.cast_unsigned() == OVERLAY {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: a plain call with an open descriptor.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether nobody waits for the end of a lease that was taken.
fn has_lease(file: &File) -> bool {
    // SAFETY: as above.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) == libc::F_RDLCK }
}

/// What probes were proven for.
#[derive(Debug)]
pub(super) struct Proofs {
    of: HashMap<FileId, Vec<Proof>>,
    watcher: Option<OwnedFd>,
    /// A byte comes when somebody waits for a lease to end.
    asked: Option<UnixStream>,
    /// Files whose probes are gone because of it, not asked for yet.
    broken: Vec<(FileId, PathBuf)>,
    /// Number of them since the start.
    pub(super) count: u64,
}

impl Proofs {
    /// None yet.
    pub(super) fn new() -> Self {
        let watcher = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC);
        let watcher = watcher.inspect_err(|error| {
            tracing::warn!(%error, "That a hooked file is written to is noticed only within a second.");
        });
        let asked = hear_sigio();
        let asked = asked.inspect_err(|error| tracing::warn!(%error, "Hooked files are not leased."));
        Self { of: HashMap::new(), watcher: watcher.ok(), asked: asked.ok(), broken: Vec::new(), count: 0 }
    }

    fn add(&mut self, id: FileId, mut proof: Proof) {
        let states = self.of.entry(id).or_default();
        if states.iter().any(|known| known.stamp == proof.stamp && known.code == proof.code) {
            return;
        }
        let path = format!("/proc/self/fd/{}", proof.file.as_raw_fd());
        let watch = |fd| inotify::add_watch(fd, path, inotify::WatchFlags::MODIFY);
        proof.watch = self.watcher.as_ref().and_then(|fd| watch(fd).ok());
        // Without somebody who hears it, SIGIO would end the observer.
        if self.asked.is_some() {
            let leased = lease(&proof.file);
            if let Err(error) = &leased {
                tracing::debug!(path = %proof.path.display(), %error, "A hooked file is not leased.");
            }
            proof.leased = leased.is_ok();
        }
        states.push(proof);
        if states.len() > STATES {
            drop(states.remove(0));
        }
    }

    /// Whether somebody waits for the end of a lease, since the last call.
    fn are_asked_for(&mut self) -> bool {
        let Some(asked) = &mut self.asked else { return false };
        let mut any = false;
        while asked.read(&mut [0; 64]).is_ok_and(|n| n > 0) {
            any = true;
        }
        any
    }

    /// Whether a watched file was written to since the last call.
    fn were_written(&self) -> bool {
        let Some(watcher) = &self.watcher else { return false };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(watcher, &mut buffer);
        let mut any = false;
        // One buffer at a time is enough: what it says matters to nobody, and more comes with the next tick.
        while let Ok(event) = events.next() {
            any |= !event.events().contains(inotify::ReadFlags::IGNORED);
            if events.is_buffer_empty() {
                break;
            }
        }
        any
    }

    /// Forgets files without probes. Gives these, which are leased until they are closed.
    pub(super) fn keep(&mut self, hooked: impl Fn(FileId) -> bool) -> Arc<[Arc<File>]> {
        let gone: Vec<FileId> = self.of.keys().copied().filter(|id| !hooked(*id)).collect();
        let gone: Vec<Proof> = gone.iter().filter_map(|id| self.of.remove(id)).flatten().collect();
        let watched: HashSet<i32> = self.of.values().flatten().filter_map(|proof| proof.watch).collect();
        for watch in gone.iter().filter_map(|proof| proof.watch).filter(|watch| !watched.contains(watch)) {
            if let Some(watcher) = &self.watcher
                && let Err(error) = inotify::remove_watch(watcher, watch)
            {
                tracing::debug!(%error, "A watch was gone already: its file is.");
            }
        }
        gone.into_iter().map(|proof| proof.file).collect()
    }
}

/// From now on SIGIO ends nobody, and makes what is returned readable.
fn hear_sigio() -> io::Result<UnixStream> {
    let (hears, tells) = UnixStream::pair()?;
    hears.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(libc::SIGIO, tells)?;
    Ok(hears)
}

impl Attacher {
    /// Readable when somebody is about to write to a hooked file, or has.
    pub fn file_watchers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let Proofs { watcher, asked, .. } = &self.proofs;
        watcher.as_ref().map(AsFd::as_fd).into_iter().chain(asked.as_ref().map(AsFd::as_fd))
    }

    /// Takes the probes away from files in which something else stands by now where they are. Gives these files, since the last call.
    /// `look`: at all of them, not only when one was seen to be written to.
    pub fn drop_rewritten(&mut self, look: bool) -> Vec<(FileId, PathBuf)> {
        let (asked, written) = (self.proofs.are_asked_for(), self.proofs.were_written());
        if asked || written || look {
            self.check_proofs(written);
        }
        std::mem::take(&mut self.proofs.broken)
    }

    /// Holds all that is hooked against what its files hold now.
    pub(super) fn check_proofs(&mut self, written: bool) {
        let broken: Vec<(FileId, PathBuf)> =
            self.proofs.of.iter_mut().filter_map(|(id, states)| Some((*id, broken(states, written)?))).collect();
        for (id, path) in broken {
            // Who waits for a lease goes on when the last probe is gone.
            let leases = self.proofs.keep(|hooked| hooked != id);
            let mut probes: Vec<Attached> = self.filtered.remove(&id).into_iter().flatten().flatten().collect();
            let mut users = Vec::new();
            for (pid, observed) in &mut self.observed {
                let Some(own) = observed.libraries.remove(&id) else { continue };
                users.push(*pid);
                probes.extend(own);
                // What it runs now is looked at again.
                (observed.files, observed.code) = (usize::MAX, None);
                observed.hooked.retain(|file| file.id != id);
            }
            // Of these it is not known which file they are on.
            probes.extend(std::mem::take(&mut self.leaving).into_iter().flat_map(|leaving| leaving.probes));
            for probe in probes {
                self.undertaker.bury((probe, Arc::clone(&leases)));
            }
            users.into_iter().for_each(|pid| self.kernel.mark_unseen(pid));
            self.presence.forget(id);
            self.proofs.count += 1;
            self.proofs.broken.push((id, path));
        }
    }

    /// Remembers what stands in a file where probes are about to be put.
    ///
    /// # Errors
    /// [`KernelError::Rewritten`] when it is not what was looked into, or cannot be read.
    pub(super) fn prove(&mut self, library: &Library, open: &Path) -> Result<(), KernelError> {
        let rewritten = || KernelError::Rewritten { path: library.path.clone() };
        let proof = Proof::of(library, open).map_err(|_| rewritten())?;
        if !self.libraries.is_of(library.id, proof.stamp) {
            return Err(rewritten());
        }
        self.proofs.add(library.id, proof);
        Ok(())
    }

    /// Forgets what was proven of files on which there is no probe any more.
    pub(super) fn tidy_proofs(&mut self) {
        let Self { proofs, filtered, observed, .. } = self;
        let own = |id| observed.values().any(|it| it.libraries.get(&id).is_some_and(|probes| !probes.is_empty()));
        drop(proofs.keep(|id| filtered.contains_key(&id) || own(id)));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    fn library(path: &Path, code: Vec<(u64, [u8; CODE])>) -> Proof {
        let file = File::open(path).unwrap();
        let stamp = FileStamp::of(&file).unwrap();
        Proof { file: Arc::new(file), leased: false, path: path.to_owned(), stamp, code, watch: None }
    }

    #[test]
    fn writing_in_place_is_noticed_where_it_changes_what_is_hooked_and_renaming_is_none_of_it() {
        let dir = std::env::temp_dir().join(format!("nexent-observer-proof-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("lib.so");
        fs::write(&path, [[1_u8; 64], [2; 64]].concat()).unwrap();
        let unleased = || Proofs { asked: None, ..Proofs::new() };
        let mut proofs = unleased();
        let id = FileId { device: 1, inode: 2 };
        proofs.add(id, library(&path, vec![(64, [2; CODE])]));
        assert!(!proofs.were_written());
        let proof = |proofs: &mut Proofs, written| proofs.of.get_mut(&id).unwrap()[0].is_broken(written);
        // Elsewhere, and without a change.
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(&[7; 8]).unwrap();
        assert!(proofs.were_written() && !proofs.were_written(), "once");
        assert!(!proof(&mut proofs, true) && !proof(&mut proofs, false));
        // Another file under its name.
        let other = dir.join("other");
        fs::write(&other, [9; 128]).unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(!proofs.were_written() && !proof(&mut proofs, true));
        drop(proofs);
        // The other one is cut short and written anew.
        let mut proofs = unleased();
        proofs.add(id, library(&path, vec![(64, [9; CODE])]));
        drop(File::create(&path).unwrap());
        assert!(proofs.were_written() && proof(&mut proofs, true), "nothing is there");
        let mut proofs = unleased();
        fs::write(&path, [9; 128]).unwrap();
        proofs.add(id, library(&path, vec![(64, [9; CODE])]));
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[8], 79).unwrap();
        assert!(proof(&mut proofs, false), "also without a watch");
        drop(proofs.keep(|_| false));
        assert!(proofs.of.is_empty());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn who_opens_a_leased_file_for_writing_waits_until_it_is_let_go() {
        let path = std::env::temp_dir().join(format!("nexent-observer-lease-{}", std::process::id()));
        fs::write(&path, [1_u8; 64]).unwrap();
        let mut proofs = Proofs::new();
        let id = FileId { device: 1, inode: 3 };
        proofs.add(id, library(&path, vec![(0, [1; CODE])]));
        assert!(proofs.of[&id][0].leased, "the temporary directory's file system has no leases");
        assert!(File::open(&path).is_ok() && !proofs.are_asked_for(), "reading is free");
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || fs::write(path, [2_u8; 64]).unwrap())
        };
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !proofs.are_asked_for() {
            assert!(std::time::Instant::now() < until, "nobody said so");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!writer.is_finished() && fs::read(&path).unwrap() == [1; 64]);
        assert!(broken(proofs.of.get_mut(&id).unwrap(), false).is_some());
        let leases = proofs.keep(|_| false);
        assert!(!writer.is_finished());
        drop(leases);
        writer.join().unwrap();
        assert_eq!(fs::read(&path).unwrap(), [2; 64]);
        fs::remove_file(&path).unwrap();
    }
}
