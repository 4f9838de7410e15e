//! Whether files that probes are on are still what they were proven for. A probe belongs to a file, whatever is written there later: where
//! somebody copies a new version over the old one in place, the kernel would put the breakpoints of the old one into every process that
//! starts the new one, in the middle of its instructions. So the observer takes a lease on each file (fcntl(2), "Leases"): who opens it for writing
//! waits until the probes are gone, about half a second, and if the observer is stopped, for as long as the kernel allows
//! (`/proc/sys/fs/lease-break-time`). Until it has closed the file again, nothing is put there. Where there is no lease (overlay and network file systems, FUSE, another user's file without CAP_LEASE) writing is noticed when it happens (inotify(7)), and with
//! every look at a process, and the probes go then. Who replaces a file by renaming, as package managers do, makes another file of it, and
//! nothing of this matters.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use rustix::fs::inotify;

use super::{Attached, Attacher, Library};
use crate::probe::{
    kernel::{KernelError, Place},
    lease::{HookedFile, Lease},
    opener::{self, Opener, own_path},
    process::{FileId, FileStamp},
};

/// How much of the code at a probe is remembered, bytes.
const CODE: usize = 16;
/// Most states of one file that are watched: below an overlay file system it may be several files.
const STATES: usize = 8;
/// A file that is open for writing for so long is hooked all the same, without a lease.
const OPEN_FOR: Duration = Duration::from_secs(10);
/// Files that are opened for writing again and again are hooked again after this long at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After so long without it that is forgotten.
const CALM: Duration = Duration::from_secs(300);
/// How often files that are written to are read at most.
const READ_EVERY: Duration = Duration::from_millis(50);

/// A file whose probes were taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// Which.
    pub file: FileId,
    /// As its processes see it.
    pub path: PathBuf,
    /// Other code stands there; else somebody waits to write.
    pub changed: bool,
}

/// A file that is not hooked for a while.
#[derive(Debug)]
struct Barred {
    /// The files from which probes are being taken away: each probe holds its own.
    hooked: Vec<Weak<HookedFile>>,
    /// When that began, and how often in a row.
    at: Instant,
    times: u32,
    /// Since when it is open for writing.
    open_since: Option<Instant>,
}

impl Default for Barred {
    fn default() -> Self {
        Self { hooked: Vec::new(), at: Instant::now(), times: 0, open_since: None }
    }
}

impl Barred {
    /// Whether its old probes are gone, and it was left alone for long enough.
    fn is_over(&self) -> bool {
        let pause = match self.times {
            0 | 1 => Duration::ZERO,
            times => Duration::from_secs(1 << times.min(6)).min(LONGEST_PAUSE),
        };
        self.hooked.iter().all(|file| file.strong_count() == 0) && self.at.elapsed() >= pause
    }
}

/// One state of a file that probes were proven for.
#[derive(Debug)]
struct Proof {
    /// The very file, whatever its path leads to meanwhile. The lease ends when the last probe on it is gone.
    file: Arc<HookedFile>,
    /// A lease may be had later: it is open for writing now.
    leasable: bool,
    path: PathBuf,
    stamp: FileStamp,
    /// What stands where the probes are.
    code: Vec<(u64, [u8; CODE])>,
    /// None: the limit of watches is reached. Then it is noticed later.
    watch: Option<i32>,
    /// It may have changed, and could not be read.
    unread: bool,
}

impl Proof {
    /// Reads what stands in a file where probes are to be put. `lease`: it is leased before, so that this stays true.
    fn of(file: File, path: PathBuf, offsets: &[u64], lease: bool, watcher: Option<&OwnedFd>) -> io::Result<Self> {
        let read = file.try_clone()?;
        let (file, lease) = if lease { HookedFile::leased(file)? } else { (HookedFile::unleased(&file)?, Lease::None) };
        let stamp = FileStamp::of(&read)?;
        let watch = |fd| inotify::add_watch(fd, own_path(&read), inotify::WatchFlags::MODIFY);
        let watch = watcher.and_then(|fd| watch(fd).ok());
        let code = all_code_in(&read, offsets.iter().copied()).inspect_err(|_| {
            if let (Some(watcher), Some(watch)) = (watcher, watch) {
                inotify::remove_watch(watcher, watch).unwrap_or(());
            }
        })?;
        let (file, leasable) = (Arc::new(file), lease == Lease::Later);
        Ok(Self { file, leasable, path, stamp, code, watch, unread: false })
    }

    /// Whether something else stands now where the probes are (`true`), or somebody waits to write (`false`). `written`: it may have been, though
    /// its stamp be the same, which counts in steps of some milliseconds.
    fn broken(&mut self, written: bool, opener: &Opener) -> Option<bool> {
        if self.file.is_awaited() {
            return Some(false);
        }
        // It cannot be looked at any more, on a network file system: whatever it says, nothing was seen to change.
        let stamp = FileStamp::as_known(self.file.file()).ok()?;
        if stamp == self.stamp && !written && !self.unread {
            return None;
        }
        let offsets: Vec<u64> = self.code.iter().map(|(offset, _)| *offset).collect();
        let now = opener.with(self.file.file(), opener::IN_THE_LOOP, move |file| all_code_in(&file, offsets));
        let changed = match now {
            Ok(now) => {
                (self.stamp, self.unread) = (stamp, false);
                now != self.code
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => true,
            // For whatever reason: it is tried again.
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "A hooked file may have changed and cannot be read.");
                self.unread = true;
                false
            }
        };
        changed.then_some(true)
    }

    /// Takes a lease that could not be had before.
    fn lease_later(&mut self, opener: &Opener) {
        // Its threads have the right to, also for files of other users.
        let file = Arc::clone(&self.file);
        let lease = opener.of(self.file.file(), opener::IN_THE_LOOP, move || Ok(file.lease()));
        self.leasable = lease.unwrap_or(Lease::Later) == Lease::Later;
    }
}

/// What stands at each of these offsets of a file.
fn all_code_in(file: &File, offsets: impl IntoIterator<Item = u64>) -> io::Result<Vec<(u64, [u8; CODE])>> {
    offsets.into_iter().map(|offset| Ok((offset, code_in(file, offset)?))).collect()
}

/// What is wrong with a file, and its path.
fn broken(file: FileId, states: &mut [Proof], written: &HashSet<i32>, opener: &Opener) -> Option<Rewritten> {
    let mut found = None;
    for proof in states {
        let was_written = proof.watch.is_some_and(|watch| written.contains(&watch));
        if let Some(changed) = proof.broken(was_written, opener) {
            found = Some(Rewritten { file, path: proof.path.clone(), changed });
        }
    }
    found
}

/// Bytes at an offset of a file; zeros behind its end, if at least one is there.
fn code_in(file: &File, offset: u64) -> io::Result<[u8; CODE]> {
    let mut code = [0; CODE];
    match file.read_at(&mut code, offset)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(code),
    }
}

/// What probes were proven for.
#[derive(Debug)]
pub(super) struct Proofs {
    of: HashMap<FileId, Vec<Proof>>,
    watcher: Option<OwnedFd>,
    /// A byte comes when somebody waits for a lease to end.
    asked: Option<UnixStream>,
    /// Files whose probes are gone because of it, not asked for yet.
    broken: Vec<Rewritten>,
    /// Those that are not hooked for a while.
    barred: HashMap<FileId, Barred>,
    /// When files that were written to were read last.
    read: Option<Instant>,
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
        Self {
            of: HashMap::new(),
            watcher: watcher.ok(),
            asked: asked.ok(),
            broken: Vec::new(),
            barred: HashMap::new(),
            read: None,
            count: 0,
        }
    }

    /// Takes in a proof. Gives where to put the probes; `None`: the file is open for writing now, nothing is to be hooked there.
    fn add(&mut self, id: FileId, proof: Proof) -> Option<Place> {
        let file = Arc::clone(&proof.file);
        let same = |known: &&Proof| known.stamp == proof.stamp && known.code == proof.code;
        if let Some(known) = self.of.get(&id).and_then(|states| states.iter().find(same)) {
            let held = Arc::clone(&known.file);
            self.unwatch(&[proof]);
            return Some(Place { file, held });
        }
        if proof.leasable {
            let barred = self.barred.entry(id).or_default();
            if barred.open_since.get_or_insert_with(Instant::now).elapsed() < OPEN_FOR {
                self.unwatch(&[proof]);
                return None;
            }
            let path = proof.path.display();
            tracing::warn!(%path, "A file is open for writing all the time. It is hooked all the same: do not write to it while it is.");
        }
        if let Some(barred) = self.barred.get_mut(&id) {
            barred.open_since = None;
        }
        let states = self.of.entry(id).or_default();
        if states.len() >= STATES {
            // One on which no probe is any more. Nobody would look at one with probes then.
            let Some(unused) = states.iter().position(|known| Arc::strong_count(&known.file) == 1) else {
                self.unwatch(&[proof]);
                return None;
            };
            let unused = states.remove(unused);
            states.push(proof);
            self.unwatch(&[unused]);
        } else {
            states.push(proof);
        }
        Some(Place { held: Arc::clone(&file), file })
    }

    /// Tries again where a file was open for writing.
    fn lease_more(&mut self, opener: &Opener) {
        for proof in self.of.values_mut().flatten().filter(|proof| proof.leasable) {
            proof.lease_later(opener);
        }
    }

    /// Ends the watches of these, but for those of files that are hooked.
    fn unwatch(&self, gone: &[Proof]) {
        let watched: HashSet<i32> = self.of.values().flatten().filter_map(|proof| proof.watch).collect();
        for watch in gone.iter().filter_map(|proof| proof.watch).filter(|watch| !watched.contains(watch)) {
            if let Some(watcher) = &self.watcher
                && let Err(error) = inotify::remove_watch(watcher, watch)
            {
                tracing::debug!(%error, "A watch was gone already: its file is.");
            }
        }
    }

    /// The file that is leased for this state of it; else this one itself.
    pub(super) fn held_for(&self, id: FileId, opened: &Arc<HookedFile>) -> Arc<HookedFile> {
        let stamp = FileStamp::as_known(opened.file()).ok();
        let same = |known: &&Proof| Some(known.stamp) == stamp;
        let known = self.of.get(&id).and_then(|states| states.iter().find(same));
        Arc::clone(known.map_or(opened, |known| &known.file))
    }

    /// Whether nothing stands against hooking a file.
    fn is_free(&self, id: FileId) -> bool {
        self.barred.get(&id).is_none_or(Barred::is_over)
    }

    /// Probes are being taken away from a file; it is forgotten.
    fn bar(&mut self, id: FileId) {
        let hooked = self.keep(|other| other != id).iter().map(Arc::downgrade).collect();
        let barred = self.barred.entry(id).or_default();
        let times = if barred.at.elapsed() < CALM { barred.times.saturating_add(1) } else { 1 };
        *barred = Barred { hooked, times, ..Barred::default() };
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

    /// Watches of files that were written to since the last call.
    fn were_written(&mut self) -> HashSet<i32> {
        let mut written = HashSet::new();
        // Until it is read, one event stands for all that follow.
        let Some(watcher) = self.watcher.as_ref().filter(|_| self.read.is_none_or(|at| at.elapsed() > READ_EVERY))
        else {
            return written;
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(watcher, &mut buffer);
        // One buffer at a time is enough: more comes with the next tick.
        while let Ok(event) = events.next() {
            if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                written.extend(self.of.values().flatten().filter_map(|proof| proof.watch));
            } else if !event.events().contains(inotify::ReadFlags::IGNORED) {
                written.insert(event.wd());
            }
            if events.is_buffer_empty() {
                break;
            }
        }
        if !written.is_empty() {
            self.read = Some(Instant::now());
        }
        written
    }

    /// Forgets files without probes. Gives these; probes that are being taken away hold theirs.
    pub(super) fn keep(&mut self, hooked: impl Fn(FileId) -> bool) -> Vec<Arc<HookedFile>> {
        let gone: Vec<FileId> = self.of.keys().copied().filter(|id| !hooked(*id)).collect();
        let gone: Vec<Proof> = gone.iter().filter_map(|id| self.of.remove(id)).flatten().collect();
        self.unwatch(&gone);
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

    /// Takes the probes away from files that somebody is about to write to, or has. Gives these, since the last call. `look`: at all of them, not only
    /// when something was heard of one.
    pub fn drop_rewritten(&mut self, look: bool) -> Vec<Rewritten> {
        let (asked, written) = (self.proofs.are_asked_for(), self.proofs.were_written());
        if asked || !written.is_empty() || look {
            self.check_proofs(&written, |_| true);
        }
        if look {
            self.proofs.lease_more(self.libraries.opener());
        }
        std::mem::take(&mut self.proofs.broken)
    }

    /// Holds what is hooked in these files against what they hold now.
    pub(super) fn check_proofs(&mut self, written: &HashSet<i32>, of: impl Fn(FileId) -> bool) {
        let opener = self.libraries.opener().clone();
        let states = self.proofs.of.iter_mut().filter(|(id, _)| of(**id));
        let found: Vec<Rewritten> = states.filter_map(|(id, states)| broken(*id, states, written, &opener)).collect();
        for rewritten in found {
            let id = rewritten.file;
            // Who waits for a lease goes on when the last probe is gone.
            self.proofs.bar(id);
            let mut probes: Vec<Attached> = self.filtered.remove(&id).into_iter().flatten().flatten().collect();
            let mut unseen = Vec::new();
            for (pid, observed) in &mut self.observed {
                let Some(own) = observed.libraries.remove(&id) else { continue };
                unseen.push(*pid);
                probes.extend(own);
                // What it runs now is looked at again.
                (observed.files, observed.code, observed.missed) = (usize::MAX, None, true);
                observed.hooked.retain(|file| file.id != id);
            }
            // Of these it is not known which file they are on.
            for leaving in std::mem::take(&mut self.leaving) {
                unseen.push(leaving.pid);
                probes.extend(leaving.probes);
            }
            self.bury(probes);
            unseen.into_iter().for_each(|pid| self.kernel.mark_unseen(pid));
            self.presence.forget(id);
            self.proofs.count += 1;
            self.proofs.broken.push(rewritten);
        }
    }

    /// Remembers what stands in a file where probes are about to be put.
    ///
    /// # Errors
    /// [`KernelError::Rewritten`] when it is not what was looked into, is being written to, or cannot be read: it can be hooked later.
    pub(super) fn prove(&mut self, library: &Library, open: &Path) -> Result<Place, KernelError> {
        let rewritten = || KernelError::Rewritten { path: library.path.clone() };
        if !self.proofs.is_free(library.id) {
            return Err(rewritten());
        }
        let hooks = library.plan.implementations.iter().flat_map(|plan| &plan.hooks);
        let (offsets, path): (Vec<u64>, _) = (hooks.map(|hook| hook.offset).collect(), library.path.clone());
        // Without somebody who hears it, SIGIO would end the observer.
        let (opener, lease) = (self.libraries.opener(), self.proofs.asked.is_some());
        let watcher = self.proofs.watcher.as_ref().and_then(|watcher| watcher.try_clone().ok());
        let proof = opener::find(open).and_then(|found| {
            opener
                .with(&found, opener::IN_THE_LOOP, move |file| Proof::of(file, path, &offsets, lease, watcher.as_ref()))
        });
        let proof = proof.map_err(|_| rewritten())?;
        if !self.libraries.is_of(library.id, proof.stamp) {
            self.proofs.unwatch(&[proof]);
            return Err(rewritten());
        }
        self.proofs.add(library.id, proof).ok_or_else(rewritten)
    }

    /// Forgets what was proven of files on which there is no probe any more.
    pub(super) fn tidy_proofs(&mut self) {
        let Self { proofs, filtered, observed, .. } = self;
        let own = |id| observed.values().any(|it| it.libraries.get(&id).is_some_and(|probes| !probes.is_empty()));
        drop(proofs.keep(|id| filtered.contains_key(&id) || own(id)));
        proofs.barred.retain(|_, barred| barred.at.elapsed() < CALM || !barred.is_over());
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    fn library(proofs: &Proofs, path: &Path, code: Vec<(u64, [u8; CODE])>, lease: bool) -> Proof {
        let offsets: Vec<u64> = code.iter().map(|(offset, _)| *offset).collect();
        let file = File::open(path).unwrap();
        Proof { code, ..Proof::of(file, path.to_owned(), &offsets, lease, proofs.watcher.as_ref()).unwrap() }
    }

    #[test]
    fn writing_in_place_is_noticed_where_it_changes_what_is_hooked_and_renaming_is_none_of_it() {
        let dir = std::env::temp_dir().join(format!("nexent-observer-proof-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("lib.so");
        fs::write(&path, [[1_u8; 64], [2; 64]].concat()).unwrap();
        let opener = Opener::start().unwrap();
        let mut proofs = Proofs::new();
        let id = FileId { device: 1, inode: 2 };
        let add = |proofs: &mut Proofs, code: Vec<(u64, [u8; CODE])>, lease| {
            let proof = library(proofs, &path, code, lease);
            proofs.add(id, proof)
        };
        assert!(add(&mut proofs, vec![(64, [2; CODE])], false).is_some());
        assert!(proofs.were_written().is_empty());
        let proof =
            |proofs: &mut Proofs, written| proofs.of.get_mut(&id).unwrap()[0].broken(written, &opener) == Some(true);
        // Elsewhere, and without a change.
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(&[7; 8]).unwrap();
        let watch = proofs.of[&id][0].watch.unwrap();
        assert_eq!(proofs.were_written(), HashSet::from([watch]));
        assert!(proofs.were_written().is_empty(), "once");
        proofs.read = None;
        assert!(!proof(&mut proofs, true) && !proof(&mut proofs, false));
        // Another file under its name.
        let other = dir.join("other");
        fs::write(&other, [9; 128]).unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(proofs.were_written().is_empty() && !proof(&mut proofs, true));
        drop(proofs);
        // The other one is cut short and written anew.
        let mut proofs = Proofs::new();
        assert!(add(&mut proofs, vec![(64, [9; CODE])], false).is_some());
        drop(File::create(&path).unwrap());
        assert!(!proofs.were_written().is_empty() && proof(&mut proofs, true), "nothing is there");
        let mut proofs = Proofs::new();
        fs::write(&path, [9; 128]).unwrap();
        assert!(add(&mut proofs, vec![(64, [9; CODE])], false).is_some());
        std::thread::sleep(Duration::from_millis(20));
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
        let add = |proofs: &mut Proofs, code: Vec<(u64, [u8; CODE])>, lease| {
            let proof = library(proofs, &path, code, lease);
            proofs.add(id, proof)
        };
        let place = add(&mut proofs, vec![(0, [1; CODE])], true).unwrap();
        let again = add(&mut proofs, vec![(0, [1; CODE])], true).unwrap();
        assert!(Arc::ptr_eq(&again.held, &place.held) && !Arc::ptr_eq(&again.file, &place.file));
        assert!(place.held.is_leased(), "the temporary directory's file system has no leases");
        assert!(File::open(&path).is_ok() && !proofs.are_asked_for(), "reading is free");
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || fs::write(path, [2_u8; 64]).unwrap())
        };
        let until = Instant::now() + Duration::from_secs(20);
        while !proofs.are_asked_for() {
            assert!(Instant::now() < until, "nobody said so");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!writer.is_finished() && fs::read(&path).unwrap() == [1; 64]);
        let opener = Opener::start().unwrap();
        let found = broken(id, proofs.of.get_mut(&id).unwrap(), &HashSet::new(), &opener);
        assert!(found.is_some_and(|rewritten| !rewritten.changed));
        proofs.bar(id);
        assert!(!writer.is_finished() && !proofs.is_free(id), "nothing is hooked there meanwhile");
        drop(again);
        assert!(!proofs.is_free(id), "a probe is there");
        drop(place);
        writer.join().unwrap();
        assert_eq!(fs::read(&path).unwrap(), [2; 64]);
        assert!(proofs.is_free(id));
        // While it is open for writing no lease can be had, and nothing is hooked; for ever that would be too long.
        let open = fs::OpenOptions::new().append(true).open(&path).unwrap();
        assert!(add(&mut proofs, vec![(0, [2; CODE])], true).is_none() && proofs.of.is_empty());
        proofs.barred.get_mut(&id).unwrap().open_since = Instant::now().checked_sub(2 * OPEN_FOR);
        let place = add(&mut proofs, vec![(0, [2; CODE])], true).unwrap();
        proofs.lease_more(&opener);
        assert!(!place.held.is_leased());
        drop(open);
        proofs.lease_more(&opener);
        assert!(place.held.is_leased());
        drop(place);
        // Again and again: longer and longer.
        for times in 2..=8 {
            proofs.bar(id);
            assert!(!proofs.is_free(id));
            let barred = proofs.barred.get_mut(&id).unwrap();
            assert_eq!(barred.times, times);
            let pause = Duration::from_secs([0, 0, 4, 8, 16, 32, 60, 60, 60][times as usize]);
            barred.at = Instant::now().checked_sub(pause).unwrap();
            assert!(proofs.is_free(id));
        }
        fs::remove_file(&path).unwrap();
    }
}
