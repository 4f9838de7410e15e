//! Opens files of processes without waiting for ever. A network file system whose server is gone does not answer, nor does one that a process
//! serves itself (FUSE) when it does not want to: who opens a file there, or asks for its size, waits as long as it takes. So the loop only
//! finds files ([`find`]), and threads that do nothing else open them and read what stands at a hook. While a device keeps one of them
//! waiting, nothing else is asked of it.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{RecvTimeoutError, Sender, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use crate::privileges;

/// Threads: so many may be kept waiting before others suffer.
const THREADS: usize = 4;
/// Most that wait for a thread.
const QUEUED: u32 = 64;

/// How long the loop waits. Even on a busy machine a thread's turn comes within that.
pub const IN_THE_LOOP: Duration = Duration::from_millis(100);
/// How long others do. Who has not answered by then is told of.
pub const PATIENT: Duration = Duration::from_secs(2);

/// Finds a file without opening it (`O_PATH`): nothing can be read from it. For the links of `/proc/PID/map_files` and `/proc/PID/fd`
/// local, NFS and FUSE file systems are not asked; for other paths they may be.
///
/// # Errors
/// As the kernel gives them.
pub fn find(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)
}

/// Does what was asked for, and tells who waits.
type Job = Box<dyn FnOnce(&Mutex<Asked>) + Send>;

/// Whose answer is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Whose {
    /// A device's, by number.
    Device(u64),
    /// That of whoever has to be asked on the way to some file.
    Path,
}

/// Somebody who keeps threads waiting, after the wait for them was given up.
#[derive(Debug)]
struct Lateness {
    /// How many.
    threads: u32,
    since: Instant,
    told: bool,
}

/// What is asked for now.
#[derive(Debug, Default)]
struct Asked {
    late: HashMap<Whose, Lateness>,
    /// Jobs that no thread has begun.
    queued: u32,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Queued,
    Begun,
    GivenUp,
}

/// The threads. Clones share them.
#[derive(Debug, Clone)]
pub struct Opener {
    jobs: Sender<Job>,
    asked: Arc<Mutex<Asked>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Opener {
    /// Starts the threads. They keep the rights to open and to lease other users' files.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let (jobs, coming) = channel::<Job>();
        let (coming, asked) = (Arc::new(Mutex::new(coming)), Arc::<Mutex<Asked>>::default());
        for _ in 0..THREADS {
            let (coming, asked) = (Arc::clone(&coming), Arc::clone(&asked));
            thread::Builder::new().name("open".to_owned()).spawn(move || {
                privileges::keep_opening();
                loop {
                    // The lock is given back before the job is done.
                    let next = lock(&coming).recv();
                    match next {
                        Ok(job) => job(&asked),
                        Err(_) => return,
                    }
                }
            })?;
        }
        Ok(Self { jobs, asked })
    }

    /// Finds a file by a path of which each directory may have to be asked for; see [`find`].
    ///
    /// # Errors
    /// `TimedOut` when one has not answered until then; else as the kernel gives them.
    pub fn find(&self, path: &Path, patience: Duration) -> io::Result<File> {
        let wanted = path.to_owned();
        self.run(Whose::Path, path, patience, move || find(&wanted))
    }

    /// Opens for reading what was found.
    ///
    /// # Errors
    /// As [`Opener::with`] gives them.
    pub fn open(&self, found: &File, patience: Duration) -> io::Result<File> {
        self.with(found, patience, Ok)
    }

    /// Opens for reading what was found, and does something short with it that may have to wait for the file system as well.
    ///
    /// # Errors
    /// As [`Opener::of`] gives them; `WouldBlock` where somebody has a write lease on it; else those of opening and of `work`.
    pub fn with<T: Send + 'static>(
        &self,
        found: &File,
        patience: Duration,
        work: impl FnOnce(File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let kept = found.try_clone()?;
        self.of(found, patience, move || {
            // Who leases his own file could keep us waiting for the kernel's 45 s otherwise (fcntl(2), "Leases").
            let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(own_path(&kept));
            opened.and_then(work)
        })
    }

    /// Does something short for which the file system of this file may have to be waited for.
    ///
    /// # Errors
    /// `TimedOut` when it was not done until then, or the file system keeps somebody else waiting; else those of `work`.
    pub fn of<T: Send + 'static>(
        &self,
        file: &File,
        patience: Duration,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let whose = Whose::Device(device_of(file)?);
        let path = std::fs::read_link(own_path(file)).unwrap_or_default();
        self.run(whose, &path, patience, work)
    }

    fn run<T: Send + 'static>(
        &self,
        whose: Whose,
        path: &Path,
        patience: Duration,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        {
            let mut asked = lock(&self.asked);
            if let Some(lateness) = asked.late.get_mut(&whose) {
                lateness.tell(path);
                return Err(io::ErrorKind::TimedOut.into());
            }
            if asked.queued >= QUEUED {
                return Err(io::ErrorKind::TimedOut.into());
            }
            asked.queued += 1;
        }
        let began = Instant::now();
        let (answer, done) = sync_channel(1);
        // Written and read under the lock of all that is asked.
        let stage = Arc::new(Mutex::new(Stage::Queued));
        let (its_stage, of) = (Arc::clone(&stage), whose);
        let job: Job = Box::new(move |asked| {
            {
                let mut asked = lock(asked);
                asked.queued = asked.queued.saturating_sub(1);
                let mut stage = lock(&its_stage);
                if *stage == Stage::GivenUp {
                    return;
                }
                *stage = Stage::Begun;
            }
            // One that fails is over as well.
            let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
            let mut asked = lock(asked);
            if *lock(&its_stage) == Stage::Begun {
                // Under the lock: who stops waiting finds the answer, or is found here.
                drop(answer.try_send(result));
            } else {
                asked.end(&of);
            }
        });
        self.jobs.send(job).map_err(|_| io::ErrorKind::BrokenPipe)?;
        match done.recv_timeout(patience) {
            Ok(answer) => return answer,
            Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let mut asked = lock(&self.asked);
        // It may have come since.
        if let Ok(answer) = done.try_recv() {
            return answer;
        }
        let before = std::mem::replace(&mut *lock(&stage), Stage::GivenUp);
        // One that no thread has begun yet waits for somebody else.
        if before == Stage::Begun {
            let lateness = asked.late.entry(whose).or_insert(Lateness { threads: 0, since: began, told: false });
            lateness.threads += 1;
            lateness.tell(path);
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl Lateness {
    /// Says so once, when it has lasted.
    fn tell(&mut self, path: &Path) {
        if self.told || self.since.elapsed() < PATIENT {
            return;
        }
        self.told = true;
        let path = path.display();
        tracing::warn!(%path, "The file system of a file does not answer: nothing on it is looked into until it does.");
    }
}

impl Asked {
    /// A thread that was kept waiting is not any more.
    fn end(&mut self, whose: &Whose) {
        let Some(lateness) = self.late.get_mut(whose) else { return };
        lateness.threads = lateness.threads.saturating_sub(1);
        if lateness.threads == 0 {
            if lateness.told {
                tracing::info!("A file system that did not answer does again.");
            }
            self.late.remove(whose);
        }
    }
}

/// A path to an open file, for calls of this process.
#[must_use]
pub fn own_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Number of the device that a file is on, without asking a server.
fn device_of(file: &File) -> io::Result<u64> {
    let meta = known_of(file)?;
    Ok(rustix::fs::makedev(meta.stx_dev_major, meta.stx_dev_minor))
}

/// Whether this is a file with content, and no device or pipe, which opening may change.
#[must_use]
pub fn is_regular(found: &File) -> bool {
    known_of(found).is_ok_and(|meta| rustix::fs::FileType::from_raw_mode(meta.stx_mode.into()).is_file())
}

fn known_of(file: &File) -> io::Result<rustix::fs::Statx> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    Ok(statx(file, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, path::PathBuf};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn is_late<T>(result: &io::Result<T>) -> bool {
        result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
    }

    #[test]
    fn what_was_found_is_opened_whatever_its_path_leads_to_by_then() {
        let path = std::env::temp_dir().join(format!("nexent-observer-opener-{}", std::process::id()));
        std::fs::write(&path, "one").unwrap();
        let found = find(&path).unwrap();
        assert!((&found).read(&mut [0; 4]).is_err() && is_regular(&found), "nothing can be read from it");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another").unwrap();
        let mut text = String::new();
        Opener::start().unwrap().open(&found, SOON).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "one");
        std::fs::remove_file(&path).unwrap();
        assert!(!is_regular(&find(Path::new("/dev/null")).unwrap()));
    }

    #[test]
    fn who_does_not_answer_is_waited_for_once_and_holds_up_nobody_else() {
        let opener = Opener::start().unwrap();
        let [one, other] = ["/proc/self/maps", "/"].map(|path| find(Path::new(path)).unwrap());
        let (answers, waits) = channel::<()>();
        let work = move || Ok(waits.recv().is_ok());
        assert!(is_late(&opener.of(&one, Duration::from_millis(20), work)));
        let again = Instant::now();
        assert!(is_late(&opener.open(&one, Duration::from_secs(60))) && again.elapsed() < SOON, "its device is known");
        assert_eq!(opener.of(&other, SOON, || Ok(7)).unwrap(), 7);
        answers.send(()).unwrap();
        let until = Instant::now() + SOON;
        while is_late(&opener.open(&one, SOON)) {
            assert!(Instant::now() < until, "it answers again");
        }
        assert!(lock(&opener.asked).late.is_empty() && lock(&opener.asked).queued == 0);
    }

    #[test]
    fn what_no_thread_has_begun_is_forgotten_and_nobody_is_blamed_for_it() {
        let opener = Opener::start().unwrap();
        let free = find(Path::new("/")).unwrap();
        let mut ends = Vec::new();
        for number in 0..THREADS as u64 {
            let (end, waits) = channel::<()>();
            let (whose, path) = (Whose::Device(u64::MAX - number), PathBuf::from(number.to_string()));
            let work = move || Ok(waits.recv().is_ok());
            assert!(is_late(&opener.run(whose, &path, Duration::from_millis(200), work)));
            ends.push(end);
        }
        let done = Arc::new(Mutex::new(false));
        for _ in 0..2 * QUEUED {
            let done = Arc::clone(&done);
            let work = move || {
                *lock(&done) = true;
                Ok(())
            };
            assert!(is_late(&opener.of(&free, Duration::from_millis(1), work)));
        }
        assert!(lock(&opener.asked).late.len() == THREADS && lock(&opener.asked).queued == QUEUED);
        drop(ends);
        let until = Instant::now() + SOON;
        while !opener.of(&free, SOON, || Ok(true)).unwrap_or(false) {
            assert!(Instant::now() < until);
        }
        assert!(!*lock(&done) && lock(&opener.asked).late.is_empty());
    }

    #[test]
    fn a_job_that_fails_costs_no_thread() {
        let opener = Opener::start().unwrap();
        let file = find(Path::new("/")).unwrap();
        for _ in 0..2 * THREADS {
            let failed = opener.of(&file, SOON, || -> io::Result<()> { panic!("on purpose") });
            assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::Other);
        }
        assert!(opener.of(&file, SOON, || Ok(())).is_ok());
    }

    #[test]
    fn who_leases_his_own_file_keeps_nobody_waiting() {
        let path = std::env::temp_dir().join(format!("nexent-observer-leased-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        let owner = File::open(&path).unwrap();
        // A lease that ends is told by a signal, which would end this process.
        drop(signal_hook::low_level::pipe::register(libc::SIGIO, std::os::unix::net::UnixStream::pair().unwrap().0));
        // SAFETY: a plain call with an open descriptor.
        assert_eq!(unsafe { libc::fcntl(owner.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) }, 0);
        let opened = Opener::start().unwrap().open(&find(&path).unwrap(), SOON);
        assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        std::fs::remove_file(&path).unwrap();
    }
}
