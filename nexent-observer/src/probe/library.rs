//! What is known of each file that a process may have mapped: once per inode and content, whatever processes use it. A thread of its own
//! looks into files, which may take a second for the largest, so that the loop that drains the rings does not wait for it; another one takes
//! over where a file system does not answer.

use std::{
    collections::HashMap,
    fs::File,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::{
    cache::Cache,
    elf::{Elf, Reads},
    opener::{self, Opener},
    plan::Plan,
    process::{FileId, FileStamp, MappedFile},
};
use crate::{privileges, survey::marks};

/// A file with hook points.
#[derive(Debug, Clone)]
pub struct Library {
    /// Identity.
    pub id: FileId,
    /// Path as the first process that showed it sees it, for people.
    pub path: PathBuf,
    /// What it holds.
    pub plan: Arc<Plan>,
}

/// What is known of a file.
#[derive(Debug, Clone)]
enum Knowledge {
    /// The thread has it, since then.
    Searching(Instant),
    /// There was no room for it, or its file system does not answer: it is asked for again, from then on.
    Later(Instant),
    /// It cannot be opened: it is tried again, from then on.
    Unreadable(Instant),
    /// What it holds, if it is an ELF file of this machine.
    Known(Option<Arc<Plan>>),
}

/// A file to look into: it was found with the rights of the loop's thread; this one has none.
type Job = (FileId, FileStamp, File);

/// What a thread says of it.
type Answer = (FileId, FileStamp, io::Result<Option<Plan>>);

/// What the threads that look into files share.
#[derive(Debug)]
struct Desk {
    jobs: Mutex<mpsc::Receiver<Job>>,
    answers: mpsc::Sender<Answer>,
    opener: Opener,
    cache: OnceLock<Cache>,
    shift: Mutex<Shift>,
}

/// Which thread looks into files.
#[derive(Debug)]
struct Shift {
    /// Counted from the first.
    number: u32,
    /// The file that it has, and since when.
    has: Option<(FileId, Instant)>,
    /// Devices of the files in which others are stuck.
    stuck: Vec<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files looked into so far.
#[derive(Debug)]
pub struct Libraries {
    known: HashMap<FileId, (FileStamp, Knowledge)>,
    jobs: mpsc::Sender<Job>,
    answers: mpsc::Receiver<Answer>,
    desk: Arc<Desk>,
    /// Files that the threads have now.
    asked: usize,
    patience: Duration,
}

/// Most files remembered; over it all are forgotten and looked into again when met.
const KNOWN_FILES: usize = 65_536;
/// Most files that the thread has at a time: each is an open file.
const ASKED_FILES: usize = 64;
/// How long a caller waits for answers before the loop has begun.
const BEFORE_THE_LOOP: Duration = Duration::from_secs(30);
/// And in the loop: most files take less.
const IN_THE_LOOP: Duration = Duration::from_millis(5);
/// A file that was put off is asked for again after this long; one that is searched for longer is waited for no more in the loop.
const LATER: Duration = Duration::from_secs(1);
/// A thread that has had a file for so long is stuck in it, and another one takes over; the largest real program took a few seconds.
const STUCK: Duration = Duration::from_secs(30);
/// Most threads that are stuck: each holds what it has read of its file.
const STUCK_THREADS: usize = 3;

impl Libraries {
    /// Starts the threads.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start() -> io::Result<Self> {
        let (jobs, todo) = mpsc::channel();
        let (done, answers) = mpsc::channel();
        let desk = Arc::new(Desk {
            jobs: Mutex::new(todo),
            answers: done,
            opener: Opener::start()?,
            cache: OnceLock::new(),
            shift: Mutex::new(Shift { number: 1, has: None, stuck: Vec::new() }),
        });
        search(&desk, 1)?;
        Ok(Self { known: HashMap::new(), jobs, answers, desk, asked: 0, patience: BEFORE_THE_LOOP })
    }

    /// Keeps what is found on disk from now on.
    pub fn keep_in(&mut self, cache: Cache) {
        if self.desk.cache.set(cache).is_err() {
            tracing::error!("There is a folder for what is found already.");
        }
    }

    /// Opens what a process has mapped.
    #[must_use]
    pub fn opener(&self) -> &Opener {
        &self.desk.opener
    }

    /// From now on nobody waits longer for the thread than the loop can bear.
    pub fn hurry(&mut self) {
        self.patience = IN_THE_LOOP;
    }

    /// Those of `files` that have hook points, and whether that is known of all of them.
    pub fn hookable(&mut self, files: &[MappedFile]) -> (Vec<Library>, bool) {
        let until = Instant::now() + self.patience;
        self.relieve();
        for file in files {
            self.ask(file);
        }
        let longest = self.patience.max(LATER);
        let is_awaited = |known: Option<&(FileStamp, Knowledge)>| match known {
            Some((_, Knowledge::Searching(since))) => since.elapsed() < longest,
            _ => false,
        };
        while files.iter().any(|file| is_awaited(self.known.get(&file.id))) {
            match self.answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(answer) => self.learn(answer),
                Err(_) => break,
            }
            // There is room now for those that found none.
            for file in files {
                if matches!(self.known.get(&file.id), Some((_, Knowledge::Later(_)))) {
                    self.ask(file);
                }
            }
        }
        let is_complete = |file: &MappedFile| {
            !matches!(self.known.get(&file.id), Some((_, Knowledge::Searching(_) | Knowledge::Later(_))))
        };
        let complete = files.iter().all(is_complete);
        let hookable = files.iter().filter_map(|file| match self.known.get(&file.id) {
            Some((_, Knowledge::Known(Some(plan)))) if plan.is_hookable() => {
                Some(Library { id: file.id, path: file.path.clone(), plan: Arc::clone(plan) })
            }
            _ => None,
        });
        (hookable.collect(), complete)
    }

    /// What is known to be in a file.
    #[must_use]
    pub fn plan(&self, file: FileId) -> Option<&Arc<Plan>> {
        match self.known.get(&file) {
            Some((_, Knowledge::Known(plan))) => plan.as_ref(),
            _ => None,
        }
    }

    /// Whether what is known of a file is of this state of it.
    #[must_use]
    pub fn is_of(&self, file: FileId, stamp: FileStamp) -> bool {
        self.known.get(&file).is_some_and(|(known, _)| *known == stamp)
    }

    /// What was found in `files` and is not hooked, as the end of a half-sentence; empty: nothing.
    #[must_use]
    pub fn refused(&self, files: &[MappedFile]) -> String {
        let mut said = String::new();
        for file in files {
            let Some((_, Knowledge::Known(Some(plan)))) = self.known.get(&file.id) else { continue };
            for (family, why) in &plan.refused {
                said.push_str(&format!("; {} in {}: {why}", family, file.path.display()));
            }
            // The same words as those of `doctor`.
            if let (true, Some(unseen)) = (plan.refused.is_empty(), marks::of_library(&file.path)) {
                said.push_str(&format!("; {}: {}", unseen.what, unseen.why));
            }
        }
        said
    }

    /// Asks the thread about a file, unless that was done before and the file is the same.
    fn ask(&mut self, file: &MappedFile) {
        while let Ok(answer) = self.answers.try_recv() {
            self.learn(answer);
        }
        // Neither asks the file system.
        let Ok(found) = opener::find(&file.open) else { return };
        let Ok(stamp) = FileStamp::as_known(&found) else { return };
        match self.known.get(&file.id) {
            Some((_, Knowledge::Later(at) | Knowledge::Unreadable(at))) if Instant::now() < *at => return,
            Some((known, _)) if *known == stamp => return,
            _ => {}
        }
        if self.known.len() >= KNOWN_FILES {
            self.known.clear();
        }
        if !opener::is_regular(&found) {
            self.known.insert(file.id, (stamp, Knowledge::Known(None)));
            return;
        }
        if self.asked >= ASKED_FILES {
            // No room: asked again with the next look at the process, or the next answer.
            self.known.insert(file.id, (FileStamp::none(), Knowledge::Later(Instant::now())));
            return;
        }
        self.known.insert(file.id, (stamp, Knowledge::Searching(Instant::now())));
        self.asked += 1;
        // The other end is kept as long as this one.
        drop(self.jobs.send((file.id, stamp, found)));
    }

    fn learn(&mut self, (id, stamp, plan): Answer) {
        self.asked = self.asked.saturating_sub(1);
        // A file that has changed meanwhile was asked about again.
        if self.known.get(&id).is_some_and(|(known, _)| *known != stamp) {
            return;
        }
        match plan {
            Ok(plan) => drop(self.known.insert(id, (stamp, Knowledge::Known(plan.map(Arc::new))))),
            Err(error) if is_passing(&error) => {
                let later = Instant::now() + LATER;
                self.known.insert(id, (FileStamp::none(), Knowledge::Later(later)));
            }
            Err(error) => {
                tracing::debug!(?id, %error, "A mapped file cannot be opened.");
                self.known.insert(id, (FileStamp::none(), Knowledge::Unreadable(Instant::now() + LATER)));
            }
        }
    }

    /// Another thread takes over from one that is stuck.
    fn relieve(&mut self) {
        let mut shift = lock(&self.desk.shift);
        let Some((id, _)) = shift.has.filter(|(_, since)| since.elapsed() > STUCK) else { return };
        if shift.stuck.len() >= STUCK_THREADS {
            return;
        }
        let next = shift.number + 1;
        if let Err(error) = search(&self.desk, next) {
            tracing::warn!(%error, "No thread can be started to look into files.");
            return;
        }
        (shift.number, shift.has) = (next, None);
        shift.stuck.push(id.device);
        drop(shift);
        tracing::warn!(
            device = id.device,
            inode = id.inode,
            "A file is being searched for TLS for half a minute: its file system does not answer. Others are searched meanwhile."
        );
    }
}

/// Starts a thread that looks into files until another one takes over, or nobody asks.
fn search(desk: &Arc<Desk>, number: u32) -> io::Result<()> {
    let desk = Arc::clone(desk);
    let work = move || {
        privileges::shed();
        loop {
            // The lock is given back before it looks.
            let next = lock(&desk.jobs).recv();
            let Ok((id, stamp, found)) = next else { return };
            {
                let mut shift = lock(&desk.shift);
                if shift.stuck.contains(&id.device) {
                    drop(shift);
                    drop(desk.answers.send((id, stamp, Err(io::ErrorKind::TimedOut.into()))));
                    continue;
                }
                shift.has = Some((id, Instant::now()));
            }
            let look = || desk.opener.open(&found, opener::PATIENT).map(|file| look_into(file, desk.cache.get()));
            let plan = catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|_| {
                tracing::error!(?id, "Looking into a file has failed: nothing of it is hooked.");
                Ok(None)
            });
            let is_relieved = {
                let mut shift = lock(&desk.shift);
                let is_relieved = shift.number != number;
                if is_relieved {
                    let at = shift.stuck.iter().position(|device| *device == id.device);
                    if let Some(at) = at {
                        shift.stuck.swap_remove(at);
                    }
                } else {
                    shift.has = None;
                }
                is_relieved
            };
            if desk.answers.send((id, stamp, plan)).is_err() || is_relieved {
                return;
            }
        }
    };
    thread::Builder::new().name("search".to_owned()).spawn(work).map(drop)
}

/// Whether a file that cannot be opened now may be opened later.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{OutOfMemory, TimedOut, WouldBlock};
    matches!(error.kind(), TimedOut | WouldBlock | OutOfMemory)
        || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// What an opened file holds, if it is an ELF file.
fn look_into(file: File, cache: Option<&Cache>) -> Option<Plan> {
    let raw = file.try_clone().ok()?;
    let size = file.metadata().ok()?.len();
    let reads = Reads::of(file);
    let elf = Elf::parse(&reads).ok()?.with_raw(raw);
    Some(match cache {
        Some(cache) => cache.plan(&elf, size),
        None => Plan::of(&elf),
    })
}

/// What an opened file holds; `None` if it is no ELF file of this machine.
#[must_use]
pub fn plan_of(file: File) -> Option<Plan> {
    look_into(file, None)
}

/// What a file by path holds, with what is known on disk; `None` if it is no ELF file of this machine.
///
/// # Errors
/// As opening the file gives them.
pub fn plan_of_path(path: &Path, cache: Option<&Cache>) -> io::Result<Option<Plan>> {
    Ok(look_into(File::open(path)?, cache))
}
