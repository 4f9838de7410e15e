//! What is known of each file that a process may have mapped: once per inode and content, whatever processes use it. A thread of its own
//! looks into files, which may take a second for the largest, so that the loop that drains the rings does not wait for it.

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::{
    cache::Cache,
    elf::{Elf, Reads},
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
    /// The thread has it.
    Searching,
    /// What it holds, if it is an ELF file of this machine.
    Known(Option<Arc<Plan>>),
}

/// What the thread is told.
enum Job {
    /// Look into a file. It was opened with the rights of the loop's thread; this one has none.
    Look(FileId, FileStamp, File),
    /// Keep what is found on disk from now on.
    Keep(Cache),
}

type Answer = (FileId, FileStamp, Option<Plan>);

/// Files looked into so far.
#[derive(Debug)]
pub struct Libraries {
    known: HashMap<FileId, (FileStamp, Knowledge)>,
    jobs: mpsc::Sender<Job>,
    answers: mpsc::Receiver<Answer>,
    /// Files that the thread has now.
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

impl Libraries {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start() -> io::Result<Self> {
        let (jobs, todo) = mpsc::channel();
        let (done, answers) = mpsc::channel();
        thread::Builder::new().name("search".to_owned()).spawn(move || {
            privileges::shed();
            let mut cache = None;
            while let Ok(job) = todo.recv() {
                match job {
                    Job::Keep(kept) => cache = Some(kept),
                    Job::Look(id, stamp, file) => {
                        if done.send((id, stamp, look_into(file, cache.as_ref()))).is_err() {
                            return;
                        }
                    }
                }
            }
        })?;
        Ok(Self { known: HashMap::new(), jobs, answers, asked: 0, patience: BEFORE_THE_LOOP })
    }

    /// Keeps what is found on disk from now on.
    pub fn keep_in(&mut self, cache: Cache) {
        self.tell(Job::Keep(cache));
    }

    /// From now on nobody waits longer for the thread than the loop can bear.
    pub fn hurry(&mut self) {
        self.patience = IN_THE_LOOP;
    }

    /// Those of `files` that have hook points, and whether that is known of all of them.
    pub fn hookable(&mut self, files: &[MappedFile]) -> (Vec<Library>, bool) {
        let until = Instant::now() + self.patience;
        for file in files {
            self.ask(file);
        }
        while files.iter().any(|file| matches!(self.known.get(&file.id), Some((_, Knowledge::Searching)))) {
            match self.answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(answer) => self.learn(answer),
                Err(_) => break,
            }
            // There is room now for those that found none.
            for file in files {
                if self.known.get(&file.id).is_none_or(|(stamp, _)| *stamp == FileStamp::none()) {
                    self.ask(file);
                }
            }
        }
        let complete = files.iter().all(|file| !matches!(self.known.get(&file.id), Some((_, Knowledge::Searching))));
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
        let Ok(opened) = File::open(&file.open) else { return };
        let Ok(stamp) = FileStamp::of(&opened) else { return };
        if self.known.get(&file.id).is_some_and(|(known, _)| *known == stamp) {
            return;
        }
        if self.known.len() >= KNOWN_FILES {
            self.known.clear();
        }
        if self.asked >= ASKED_FILES {
            // No room: asked again with the next look at the process.
            self.known.insert(file.id, (FileStamp::none(), Knowledge::Searching));
            return;
        }
        self.known.insert(file.id, (stamp, Knowledge::Searching));
        self.asked += 1;
        self.tell(Job::Look(file.id, stamp, opened));
    }

    fn learn(&mut self, (id, stamp, plan): Answer) {
        self.asked = self.asked.saturating_sub(1);
        // A file that has changed meanwhile was asked about again.
        if self.known.get(&id).is_none_or(|(known, _)| *known == stamp) {
            self.known.insert(id, (stamp, Knowledge::Known(plan.map(Arc::new))));
        }
    }

    fn tell(&mut self, job: Job) {
        if let Err(mpsc::SendError(job)) = self.jobs.send(job) {
            // The thread is gone, by a defect of this program. Nothing is hooked that was not known before.
            tracing::error!("The thread that looks into files has ended.");
            if let Job::Look(id, stamp, _) = job {
                self.learn((id, stamp, None));
            }
        }
    }
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

/// What a file by path holds, with what is known on disk; `None` if it is no ELF file of this machine.
///
/// # Errors
/// As opening the file gives them.
pub fn plan_of_path(path: &Path, cache: Option<&Cache>) -> io::Result<Option<Plan>> {
    Ok(look_into(File::open(path)?, cache))
}
