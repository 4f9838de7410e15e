//! Opens files of processes without waiting for ever. A network file system whose server is gone does not answer, nor does one that a process
//! serves itself (FUSE) when it does not want to: who opens a file there, or asks for its size, waits as long as it takes. So the loop only
//! finds files ([`find`], which asks nobody), and threads that do nothing else open them. While a device keeps one of them waiting, nothing
//! else is opened on it.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel, sync_channel},
    },
    thread,
    time::Duration,
};

use crate::privileges;

/// Threads: as many devices may keep one waiting before others suffer.
const THREADS: usize = 4;
/// Most openings that may be waited for in vain.
const LATE: u32 = 64;

/// How long the loop waits. Even on a busy machine a thread's turn comes within that.
pub const IN_THE_LOOP: Duration = Duration::from_millis(100);
/// How long others do.
pub const PATIENT: Duration = Duration::from_secs(2);

/// Finds a file without opening it (`O_PATH`): nothing can be read from it. For the links of `/proc/PID/map_files` and `/proc/PID/fd`
/// no file system is asked for it; for other paths it may be.
///
/// # Errors
/// As the kernel gives them.
pub fn find(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)
}

/// Opens a file, does with it what was asked for, and tells who waits.
type Job = Box<dyn FnOnce(&Mutex<HashMap<u64, u32>>) + Send>;

/// Openings that were waited for in vain and are still going on, by device.
type Late = Arc<Mutex<HashMap<u64, u32>>>;

/// The threads. Clones share them.
#[derive(Debug, Clone)]
pub struct Opener {
    jobs: Sender<Job>,
    late: Late,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Opener {
    /// Starts the threads. They keep the right to open other users' files.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let (jobs, coming) = channel::<Job>();
        let (coming, late) = (Arc::new(Mutex::new(coming)), Late::default());
        for _ in 0..THREADS {
            let (coming, late) = (Arc::clone(&coming), Arc::clone(&late));
            thread::Builder::new().name("open".to_owned()).spawn(move || {
                privileges::keep_opening();
                loop {
                    // The lock is given back before the file is opened.
                    let next = lock(&coming).recv();
                    match next {
                        Ok(job) => job(&late),
                        Err(_) => return,
                    }
                }
            })?;
        }
        Ok(Self { jobs, late })
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
    /// `TimedOut` when the file system has not answered until then, or keeps somebody else waiting; else those of opening and of `work`.
    pub fn with<T: Send + 'static>(
        &self,
        found: &File,
        patience: Duration,
        work: impl FnOnce(File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let device = device_of(found)?;
        {
            let late = lock(&self.late);
            if late.contains_key(&device) || late.values().sum::<u32>() >= LATE {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        let (answer, done) = sync_channel(1);
        // Written and read under the lock of all that are late.
        let late = Arc::new(AtomicBool::new(false));
        let (given_up, found_too) = (Arc::clone(&late), found.try_clone()?);
        let job: Job = Box::new(move |all| {
            let result = File::open(own_path(&found_too)).and_then(work);
            let mut all = lock(all);
            if !given_up.load(Ordering::Relaxed) {
                // Under the lock: who stops waiting finds the answer, or is found here.
                drop(answer.try_send(result));
            } else if let Some(others) = all.get_mut(&device) {
                *others -= 1;
                if *others == 0 {
                    all.remove(&device);
                    tracing::info!("A file system answers again.");
                }
            }
        });
        self.jobs.send(job).map_err(|_| io::ErrorKind::BrokenPipe)?;
        if let Ok(answer) = done.recv_timeout(patience) {
            return answer;
        }
        let mut all = lock(&self.late);
        // It may have come since.
        if let Ok(answer) = done.try_recv() {
            return answer;
        }
        late.store(true, Ordering::Relaxed);
        let others = all.entry(device).or_default();
        *others += 1;
        if *others == 1 {
            let path = std::fs::read_link(own_path(found)).unwrap_or_default();
            tracing::warn!(
                path = %path.display(),
                "The file system of a mapped file does not answer: nothing on it is looked into until it does."
            );
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// A path to an open file, for calls of this process.
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
    use std::{io::Read, time::Instant};

    use super::*;

    #[test]
    fn what_was_found_is_opened_whatever_its_path_leads_to_by_then() {
        let path = std::env::temp_dir().join(format!("nexent-observer-opener-{}", std::process::id()));
        std::fs::write(&path, "one").unwrap();
        let found = find(&path).unwrap();
        assert!((&found).read(&mut [0; 4]).is_err(), "nothing can be read from it");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another").unwrap();
        let mut text = String::new();
        Opener::start().unwrap().open(&found, PATIENT).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "one");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn who_does_not_answer_is_waited_for_once_and_holds_up_nobody_else() {
        // A pipe is opened for reading when somebody opens it for writing.
        let path = std::env::temp_dir().join(format!("nexent-observer-pipe-{}", std::process::id()));
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a path that ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let (opener, found) = (Opener::start().unwrap(), find(&path).unwrap());
        let late = |patience| opener.open(&found, patience).is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
        assert!(late(Duration::from_millis(20)));
        let again = Instant::now();
        assert!(late(Duration::from_secs(60)) && again.elapsed() < Duration::from_secs(30), "its device is known");
        let other = opener.open(&find(Path::new("/proc/self/maps")).unwrap(), PATIENT);
        assert!(other.is_ok(), "{other:?}");
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while opener.open(&found, PATIENT).is_err() {
            assert!(Instant::now() < until, "it answers again");
        }
        drop(writer);
        std::fs::remove_file(&path).unwrap();
    }
}
