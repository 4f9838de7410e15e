//! Which processes are observed: those named by pid, all present and future ones of an executable, or all that talk to an LLM.
//! Follows forks, execs and exits, and tries again where a TLS library is loaded late.

mod named;

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use nexent_observer_core::event::{ConnId, MonoNs, Record, RecordFlags, RecordKind, Stamp};

pub use super::candidates::telemetry;
use super::{
    attach::{AttachError, AttachReport, Attacher, Loss, Manner, Rewritten},
    candidates::{Candidate, Candidates, Reason, is_ours},
    opener,
    plan::Family,
    process::{FileId, Process},
    silence::{Cause, Silences, Silent},
    trial::Trials,
};
use crate::{
    enrich::{
        filter::{Filter, Verdict},
        names::Names,
    },
    ring::{ProcessEvent, ProcessEventKind},
};

/// What changed.
#[derive(Debug)]
pub enum Change {
    /// A process is observed from now on, or more of it is.
    Attached {
        /// What was attached.
        report: AttachReport,
        /// How long after its exec, in ns, where that was seen.
        after_exec: Option<u64>,
    },
    /// A child of an observed process is observed since its first instruction.
    Adopted {
        /// The child.
        pid: u32,
        /// Its parent.
        parent: u32,
    },
    /// A process is not observed any more: it ended or became another program.
    Gone(Ended),
    /// A process that was found among all is not observed any more: it talks busily, and not to an LLM. It is looked at again.
    LetGo(Ended),
    /// A process that should be observed cannot be.
    Refused(AttachError),
    /// Probes were gone from the code of a process.
    Lost(Loss),
    /// A process moves bytes over TLS that none of its probes sees.
    Silent(Silent),
    /// A process asked to be left alone (`ENABLE_TELEMETRY=false` in its environment).
    OptedOut {
        /// Which.
        pid: u32,
    },
}

/// A process that is not observed any more.
#[derive(Debug)]
pub struct Ended {
    /// Which.
    pub pid: u32,
    /// Its connections that had not ended.
    pub open: Vec<OpenEnd>,
    /// It lives on as another program: its connections ended with the exec already.
    pub replaced: bool,
}

/// How far a connection was when its process was let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenEnd {
    conn: ConnId,
    read_end: u64,
    write_end: u64,
}

impl OpenEnd {
    /// The close record that the kernel half would have written.
    #[must_use]
    pub fn record(self, pid: u32, at: MonoNs) -> Record<'static> {
        let Self { conn, read_end, write_end } = self;
        let kind = RecordKind::Close { read_end, write_end, flags: RecordFlags::default() };
        Record { conn, pid, tid: pid, at: Stamp { entry: at, ret: at }, kind }
    }
}

/// Which processes are wanted.
#[derive(Debug)]
pub struct Selection {
    /// All present and future processes of these.
    pub executables: Vec<PathBuf>,
    /// All that talk to an LLM.
    pub all: bool,
    /// Of those that these two find.
    pub filter: Filter,
    /// Of these only the ones that ask for it.
    pub opt_in: bool,
    /// How long one that `all` found may talk without a call of an LLM.
    pub trial: Duration,
    /// Where the filter learns the names of containers and pods.
    pub names: Names,
}

/// Chooses and follows targets.
pub struct Targets {
    attacher: Attacher,
    executables: Vec<(PathBuf, FileId)>,
    selection: Selection,
    reasons: HashMap<u32, Reason>,
    candidates: Candidates,
    trials: Trials,
    silences: Silences,
    /// Executables that were found to call LLMs: their next processes are armed at their exec.
    learned: HashSet<FileId>,
    /// Files that were written over in place, and when that was noticed.
    rewritten: HashMap<FileId, MonoNs>,
    /// Libraries with probes that nobody uses, and since when.
    unused: HashMap<FileId, MonoNs>,
    suspects: HashMap<u32, MonoNs>,
    /// Processes that are not wanted, or do not want.
    left_alone: HashMap<u32, Process>,
    changes: Vec<Change>,
    next_sweep: MonoNs,
    sweeps: u32,
    /// Sweep after which a process was attached to last.
    attached_in: u32,
}

/// How many processes are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Census {
    /// Observed on trial.
    pub on_trial: usize,
    /// Let go, and looked at again later.
    pub let_go: usize,
    /// Not observed, and looked at now and then.
    pub candidates: usize,
    /// Opted out, not opted in, not wanted by a filter, or refused by the kernel.
    pub left_alone: usize,
}

const MS: u64 = 1_000_000;
/// A fork is looked at only after this long: a child that execs at once is no worker.
const FORK_SETTLES: u64 = 10 * MS;
/// How often everything is looked over, whatever the kernel half reported.
const SWEEP: u64 = 1_000 * MS;
/// Every how many of these it is looked whether a process listens now: a server begins to soon after its start. The kernel walks
/// through all connections of the host for the answer, so later it is asked for seldom.
const LOOK_FOR_PLAIN: u32 = 4;
/// The same, when no process was attached to for [`YOUNG`] sweeps.
const LOOK_FOR_PLAIN_LATER: u32 = 32;
/// For so many sweeps the last process that was attached to may be about to listen.
const YOUNG: u32 = 60;
/// How soon a process is looked at again of which a file is being searched.
const SEARCHED_AGAIN: u64 = 20 * MS;
/// A Unix socket silent for so long is forgotten, as a connection of the core is by default.
const UNIX_IDLE: u64 = 900_000 * MS;
/// How long after its leader's exit a process is looked at closely.
const SUSPECT_FOR: u64 = 500 * MS;
/// A candidate without TLS after this long is worth a line in the log.
const WARN_AFTER: u64 = 30_000 * MS;
/// Between two looks at what is found unchanged, a process is attached to anew all the same after this age.
const UNCHANGED_UNTIL: u64 = 4_000 * MS;
/// How soon a filter is asked again whose names are not known yet.
const NAMES_COME: u64 = 50 * MS;
/// Most executables that are armed in the kernel because they were found to call LLMs.
const LEARNED: usize = 256;
/// Shared probes that nobody uses go after this long, where they were put in only because all processes are looked at.
const UNUSED_FOR: u64 = 60_000 * MS;
/// A file that is written to is asked for again after this long, and at the start waited for no longer than that: by then it is hooked whoever has it open.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const PASSES_WITHIN: Duration = Duration::from_secs(15);
/// How long after a change an executable is hooked again before it runs: most are written by then.
const WRITTEN_FOR: u64 = 2_000 * MS;
/// Every how many sweeps what ended unnoticed is forgotten.
const FORGET: u32 = 8;

impl Targets {
    /// Takes over the attacher. Executables are compared by file, so links and venvs of one interpreter count as one.
    ///
    /// # Errors
    /// When an executable does not exist.
    pub fn new(mut attacher: Attacher, selection: Selection) -> io::Result<Self> {
        let paths = selection.executables.iter();
        let identity = |path: &PathBuf| FileId::of_file(&attacher.found(path, opener::PATIENT)?);
        let executables = paths.map(|path| Ok((path.clone(), identity(path)?))).collect::<io::Result<Vec<_>>>()?;
        let mut rewritten = HashMap::new();
        for (path, file) in &executables {
            if let Err(error) = attacher.expect_executable(*file) {
                tracing::warn!(path = %path.display(), %error, "Its processes are observed only from some milliseconds on.");
            }
            if !attacher.prepare(path, *file, opener::PATIENT) {
                rewritten.insert(*file, MonoNs(0));
            }
        }
        let trials = Trials::new(u64::try_from(selection.trial.as_nanos()).unwrap_or(u64::MAX));
        Ok(Self {
            attacher,
            executables,
            selection,
            reasons: HashMap::new(),
            candidates: Candidates::default(),
            trials,
            silences: Silences::default(),
            learned: HashSet::new(),
            rewritten,
            unused: HashMap::new(),
            suspects: HashMap::new(),
            left_alone: HashMap::new(),
            changes: Vec::new(),
            next_sweep: MonoNs(0),
            sweeps: 0,
            attached_in: 0,
        })
    }

    /// The attacher.
    pub fn attacher(&mut self) -> &mut Attacher {
        &mut self.attacher
    }

    /// Number of observed processes.
    #[must_use]
    pub fn observed(&self) -> usize {
        self.attacher.pids().count()
    }

    /// How many are in which state.
    #[must_use]
    pub fn census(&self) -> Census {
        let (on_trial, let_go) = self.trials.counts();
        Census { on_trial, let_go, candidates: self.candidates.len(), left_alone: self.left_alone.len() }
    }

    /// A process said something: counts for those on trial.
    pub fn heard(&mut self, record: &Record<'_>) {
        self.trials.heard(record.pid, record.conn.0, record.at.ret);
    }

    /// A process makes a call of an LLM: it is kept, and so are the next ones of its executable from their first instruction.
    pub fn calls_llm(&mut self, pid: u32) {
        let Some(kept) = self.trials.keep(pid).filter(|_| self.learned.len() < LEARNED) else { return };
        let Some(file) = kept.program.or_else(|| Process::executable(pid).ok()) else { return };
        if self.learned.insert(file)
            && let Err(error) = self.attacher.expect_executable(file)
        {
            tracing::debug!(pid, %error, "Further processes of its executable are observed only from some milliseconds on.");
        }
    }

    /// Takes in what the kernel half saw of a process.
    pub fn handle_event(&mut self, event: ProcessEvent) {
        let ProcessEvent { at, pid, kind } = event;
        match kind {
            ProcessEventKind::Fork { child } => {
                let reason = match self.reasons.get(&pid) {
                    Some(Reason::Pid) => Reason::Child,
                    Some(reason) => *reason,
                    None if self.selection.all => Reason::All,
                    None => return,
                };
                if self.attacher.adopt(pid, child) {
                    self.reasons.insert(child, reason);
                    if self.trials.tries(pid) {
                        self.trials.begin(child, self.trials.program(pid));
                    }
                    self.changes.push(Change::Adopted { pid: child, parent: pid });
                } else {
                    let sibling = self.reasons.contains_key(&pid).then_some(pid);
                    self.candidates.add(child, Candidate { sibling, ..Candidate::new(reason, at, FORK_SETTLES) });
                }
            }
            ProcessEventKind::Exec => self.executed(pid, at),
            ProcessEventKind::Exit => {
                self.suspects.insert(pid, at);
            }
        }
    }

    /// Does what is due. Call it at every tick; gives what changed since the last call.
    pub fn poll(&mut self, now: MonoNs) -> Vec<Change> {
        for Rewritten { file, path, changed } in self.attacher.drop_rewritten(now >= self.next_sweep) {
            let path = path.display();
            if changed {
                tracing::warn!(%path, "A file that is hooked was written over in place: its probes are taken away, and what it holds now is \
                    looked into. Replace files by renaming.");
            } else {
                tracing::warn!(%path, "A file that is hooked is opened for writing, which waits until its probes are taken away. It is hooked again \
                    when it is closed. Replace files by renaming.");
            }
            self.rewritten.insert(file, now);
        }
        self.bury_suspects(now);
        self.try_candidates(now);
        if now >= self.next_sweep {
            self.next_sweep = MonoNs(now.0 + SWEEP);
            self.sweep(now);
        }
        std::mem::take(&mut self.changes)
    }

    /// A process runs another program now: what it was is over, what it is has to be looked at.
    fn executed(&mut self, pid: u32, at: MonoNs) {
        let named = || self.candidates.is_named(pid).then_some(Reason::Pid);
        let before = self.reasons.get(&pid).copied().or_else(named);
        let runs = Process::executable(pid).ok();
        let matching = runs.filter(|file| self.executables.iter().any(|(_, wanted)| wanted == file));
        let reason = match (before, matching) {
            (_, Some(file)) => Some(Reason::Executable(file)),
            (Some(Reason::Pid), None) => Some(Reason::Pid),
            _ => (self.selection.all && !is_ours(pid)).then_some(Reason::All),
        };
        if self.attacher.observes(pid) {
            self.release(pid, true);
        }
        self.candidates.remove(pid);
        self.trials.forget(pid);
        self.left_alone.remove(&pid);
        if let Some(reason) = reason {
            if self.judge(pid, reason) == Verdict::Unwanted {
                return self.leave_alone(pid);
            }
            let sibling = self.sibling(reason);
            self.candidates.add(pid, Candidate { sibling, executed: true, ..Candidate::new(reason, at, 0) });
        }
    }

    /// Whether a process is wanted, and wants. Its environment is what it was at exec.
    fn judge(&self, pid: u32, reason: Reason) -> Verdict {
        let says = telemetry(pid);
        let Selection { opt_in, filter, names, .. } = &self.selection;
        let found = matches!(reason, Reason::Executable(_) | Reason::All);
        if says == Some(false) || (found && *opt_in && says.is_none()) {
            return Verdict::Unwanted;
        }
        if found { filter.judge(pid, names) } else { Verdict::Wanted }
    }

    /// An observed process that runs the same executable.
    fn sibling(&self, reason: Reason) -> Option<u32> {
        if !matches!(reason, Reason::Executable(_)) {
            return None;
        }
        let fits = |pid: &u32| self.attacher.observes(*pid) && !self.suspects.contains_key(pid);
        self.reasons.iter().find(|(pid, other)| **other == reason && fits(pid)).map(|(pid, _)| *pid)
    }

    /// Whether a process is to be looked at again before `until`: then [`Self::poll`] should not wait longer. Old ones among all
    /// are looked at when there is time.
    #[must_use]
    pub fn is_due(&self, until: MonoNs) -> bool {
        !self.suspects.is_empty() || self.candidates.is_urgent(until)
    }

    fn release(&mut self, pid: u32, replaced: bool) {
        let ended = self.detach(pid, replaced);
        self.changes.push(Change::Gone(ended));
    }

    fn detach(&mut self, pid: u32, replaced: bool) -> Ended {
        let open = self.attacher.detach(pid);
        self.reasons.remove(&pid);
        let open = open
            .into_iter()
            .filter(|conn| conn.read_offset > 0 || conn.write_offset > 0)
            .map(|conn| OpenEnd { conn: ConnId(conn.id), read_end: conn.read_offset, write_end: conn.write_offset })
            .collect();
        Ended { pid, open, replaced }
    }

    /// Lets go of those that talk busily and not to an LLM.
    fn let_go(&mut self, now: MonoNs) {
        for pid in self.trials.convicted(now) {
            let Ok(process) = Process::find(pid) else { continue };
            let ended = self.detach(pid, false);
            self.trials.park(process, now);
            // Its workers may be others than it.
            if let Err(error) = self.attacher.kernel().park(pid) {
                tracing::debug!(pid, %error, "The forks of a process that was let go are found only later.");
            }
            self.changes.push(Change::LetGo(ended));
        }
        for pid in self.trials.due(now) {
            if !self.attacher.observes(pid) {
                self.candidates.add(pid, Candidate::new(Reason::All, now, 0));
            }
        }
    }

    fn bury_suspects(&mut self, now: MonoNs) {
        if self.suspects.is_empty() {
            return;
        }
        let suspects: Vec<(u32, MonoNs)> = self.suspects.iter().map(|(pid, at)| (*pid, *at)).collect();
        for (pid, at) in suspects {
            let ended = Process::find(pid).is_err();
            if ended && self.attacher.observes(pid) {
                self.release(pid, false);
            }
            if ended {
                self.forget(pid);
            }
            if ended || now.since(at) > SUSPECT_FOR {
                self.suspects.remove(&pid);
            }
        }
    }

    /// Forgets what is known of a process that ended.
    fn forget(&mut self, pid: u32) {
        self.trials.forget(pid);
        self.candidates.remove(pid);
        self.left_alone.remove(&pid);
        if !self.attacher.observes(pid) {
            self.unarm(pid);
        }
    }

    fn try_candidates(&mut self, now: MonoNs) {
        for (pid, candidate) in self.candidates.due(now) {
            match self.judge(pid, candidate.reason) {
                Verdict::Wanted => self.try_one(pid, candidate, now),
                Verdict::Unwanted if Process::find(pid).is_err() => self.forget(pid),
                Verdict::Unwanted => self.leave_alone(pid),
                Verdict::NotYet => {
                    // The kernel half may have armed it at its exec.
                    self.unarm(pid);
                    self.candidates.put(pid, Candidate { next: MonoNs(now.0 + NAMES_COME), ..candidate });
                }
            }
        }
    }

    fn try_one(&mut self, pid: u32, mut candidate: Candidate, now: MonoNs) {
        let reason = candidate.reason;
        let age = now.since(candidate.since);
        candidate.next = MonoNs(now.0.saturating_add(self.candidates.retry_after(reason, age)));
        if reason == Reason::All {
            // A look at what has not changed is the cheap case, and the common one.
            let mapped = Process::mapped_hash(pid);
            if candidate.mapped.is_some() && candidate.mapped == mapped && age < UNCHANGED_UNTIL {
                return self.candidates.put(pid, candidate);
            }
            candidate.mapped = mapped;
        }
        // Workers and processes of an executable share their probes: attaching to and detaching from each of them by itself
        // was seen to hold up forks for seconds.
        let manner = match reason {
            Reason::Pid => Manner::Own,
            Reason::Child | Reason::Executable(_) => Manner::Shared,
            Reason::All => Manner::Found,
        };
        // One that has ended since has no libraries any more.
        let lives = |sibling: &u32| self.attacher.observes(*sibling) && !self.suspects.contains_key(sibling);
        candidate.sibling = candidate.sibling.filter(lives).or_else(|| self.sibling(reason));
        let attached = self.attacher.attach(pid, manner, candidate.sibling);
        let passing = |error: &AttachError| matches!(error, AttachError::Searching { .. }) || error.is_passing();
        candidate.named &= attached.as_ref().is_err_and(passing);
        match attached {
            Ok(report) => {
                if report.hooked.iter().all(|hooked| hooked.plan.family == Family::Hooks) && age < WARN_AFTER {
                    // It may load a TLS library yet: an interpreter does so within its first second.
                    self.candidates.put(pid, candidate);
                } else {
                    self.candidates.remove(pid);
                }
                if reason == Reason::All && !self.reasons.contains_key(&pid) {
                    self.trials.begin(pid, Process::executable(pid).ok());
                }
                self.reasons.insert(pid, reason);
                if report.news {
                    self.attached_in = self.sweeps;
                    let after_exec = candidate.executed.then_some(age);
                    self.changes.push(Change::Attached { report, after_exec });
                }
            }
            Err(AttachError::NoProcess { .. } | AttachError::Itself { .. }) => self.forget(pid),
            Err(AttachError::Searching { .. }) => {
                // What it has mapped was not looked into yet, so the next look is none at something unchanged.
                candidate.mapped = None;
                let after = if age > WARN_AFTER { SWEEP } else { SEARCHED_AGAIN };
                candidate.next = MonoNs(now.0.saturating_add(after));
                self.candidates.put(pid, candidate);
            }
            Err(error) if error.is_passing() => {
                tracing::debug!(pid, %error, "A process is attached to later.");
                candidate.mapped = None;
                candidate.next = MonoNs(now.0.saturating_add(LOOK_AGAIN.as_nanos() as u64));
                self.candidates.put(pid, candidate);
            }
            Err(error @ AttachError::NoTls { .. }) => {
                if age > WARN_AFTER && !candidate.warned && reason != Reason::All {
                    candidate.warned = true;
                    self.changes.push(Change::Refused(error));
                }
                if age > WARN_AFTER && reason == Reason::All {
                    self.unarm(pid); // an old process without TLS: most of a host
                }
                self.candidates.put(pid, candidate);
            }
            Err(_) if Process::find(pid).is_err() => self.forget(pid), // it ended meanwhile
            Err(error) => {
                self.candidates.remove(pid);
                // One line, not one with every sweep.
                self.remember_left_alone(pid);
                self.changes.push(Change::Refused(error));
            }
        }
    }

    /// Finds what no event told: processes that run already, ends that were missed, late libraries.
    fn sweep(&mut self, now: MonoNs) {
        for pid in self.attacher.ended() {
            self.release(pid, false);
            self.forget(pid);
        }
        self.attacher.tidy();
        self.prepare_again(now);
        self.let_go(now);
        self.listen_for_silence(now);
        let (mut changed, losses) = self.attacher.look_over();
        self.changes.extend(losses.into_iter().map(Change::Lost));
        self.sweeps = self.sweeps.wrapping_add(1);
        let young = self.sweeps.wrapping_sub(self.attached_in) < YOUNG;
        if self.sweeps.is_multiple_of(if young { LOOK_FOR_PLAIN } else { LOOK_FOR_PLAIN_LATER }) {
            changed.extend(self.attacher.wanting_plain());
            self.attacher.kernel().forget_idle_unix(now.0.saturating_sub(UNIX_IDLE));
        }
        for pid in changed {
            let manner = if self.reasons.get(&pid) == Some(&Reason::All) { Manner::Found } else { Manner::Own };
            match self.attacher.attach(pid, manner, None) {
                Ok(report) if report.news => self.changes.push(Change::Attached { report, after_exec: None }),
                Ok(_) => {}
                Err(error) if error.is_passing() => {
                    tracing::debug!(pid, %error, "A library of a process is hooked again later.");
                }
                Err(error) => self.changes.push(Change::Refused(error)),
            }
        }
        if self.executables.is_empty() && !self.selection.all {
            return;
        }
        if self.sweeps.is_multiple_of(FORGET) {
            self.left_alone.retain(|_, process| process.is_alive());
            self.trials.tidy();
        }
        for pid in Process::all() {
            let known = self.attacher.observes(pid) || self.candidates.contains(pid) || self.trials.is_parked(pid);
            if known || self.is_left_alone(pid) {
                continue;
            }
            // Threads of the kernel have none.
            let Ok(file) = Process::executable(pid) else { continue };
            let reason = if self.executables.iter().any(|(_, wanted)| *wanted == file) {
                Reason::Executable(file)
            } else if self.selection.all {
                Reason::All
            } else {
                continue;
            };
            if is_ours(pid) {
                continue;
            }
            let Ok(process) = Process::find(pid) else { continue };
            let age = u64::try_from(process.age().as_nanos()).unwrap_or(u64::MAX);
            // An old process among all has loaded what it loads.
            let since = if reason == Reason::All { MonoNs(now.0.saturating_sub(age)) } else { now };
            let sibling = self.sibling(reason);
            self.candidates.add(pid, Candidate { sibling, next: now, ..Candidate::new(reason, since, 0) });
        }
        self.release_unused(now);
    }

    /// Looks again into executables that were written over, when that is through.
    fn prepare_again(&mut self, now: MonoNs) {
        let quiet = self.rewritten.extract_if(|_, since| now.since(*since) > WRITTEN_FOR);
        let quiet: HashSet<FileId> = quiet.map(|(file, _)| file).collect();
        let again = self.executables.iter().filter(|(_, file)| quiet.contains(file));
        for (path, file) in again {
            let found = self.attacher.found(path, opener::IN_THE_LOOP).and_then(|found| FileId::of_file(&found));
            let passing = found.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
            if found.is_ok_and(|id| id != *file) {
                continue; // another one has taken its place
            }
            if passing || !self.attacher.prepare(path, *file, opener::IN_THE_LOOP) {
                self.rewritten.insert(*file, now);
            }
        }
    }

    /// Finds processes that move bytes over TLS that none of their probes sees.
    fn listen_for_silence(&mut self, now: MonoNs) {
        let mut readings = self.attacher.kernel().unseen();
        // Of all processes only those whose TLS is hooked: that others cannot be seen is no news.
        let expected = |pid: u32| {
            let named = self.reasons.get(&pid).is_some_and(|reason| *reason != Reason::All);
            self.attacher.observes(pid) && (named || !self.attacher.libraries_of(pid).is_empty())
        };
        let others: Vec<u32> = readings.iter().map(|(pid, _)| *pid).filter(|pid| !expected(*pid)).collect();
        readings.retain(|(pid, _)| !others.contains(pid));
        let suspects = self.silences.suspects(&readings);
        let kernel = self.attacher.kernel();
        let open = kernel.bytes_on_tls(&suspects);
        let (fresh, forgotten) = self.silences.look(now, &readings, &open);
        others.into_iter().chain(forgotten).for_each(|pid| kernel.forget_unseen(pid));
        self.changes.extend(fresh.into_iter().map(Change::Silent));
    }

    /// Processes that should be seen now and are not.
    #[must_use]
    pub fn silent(&self) -> Vec<Silent> {
        let gone = self.attacher.without_probes().map(|(pid, library, why)| Silent {
            pid,
            cause: Cause::ProbesGone,
            why: format!("its probes are gone from the code of {}", library.display()),
            advice: why.to_owned(),
        });
        gone.chain(self.silences.silent()).collect()
    }

    /// Takes out shared probes that nobody needs any more: they cost whoever uses the library.
    fn release_unused(&mut self, now: MonoNs) {
        if !self.executables.is_empty() {
            return; // they are there for the next process of these, from its first byte on
        }
        let unused = self.attacher.unused_shared();
        self.unused.retain(|library, _| unused.contains(library));
        for library in unused {
            let since = *self.unused.entry(library).or_insert(now);
            if now.since(since) > UNUSED_FOR {
                self.unused.remove(&library);
                self.attacher.release_shared(library);
            }
        }
    }

    /// Lets go of a process that is not wanted or does not want; the kernel half may have armed it at its exec.
    fn leave_alone(&mut self, pid: u32) {
        self.candidates.remove(pid);
        if self.unarm(pid)
            && let Err(error) = self.attacher.kernel().disarm(pid)
        {
            tracing::warn!(pid, %error, "What is known of a process could not be forgotten.");
        }
        let says_no = telemetry(pid) == Some(false);
        if self.remember_left_alone(pid) && says_no {
            self.changes.push(Change::OptedOut { pid });
        }
    }

    /// Whether it was armed.
    fn unarm(&mut self, pid: u32) -> bool {
        self.attacher.kernel().unarm(pid).unwrap_or_else(|error| {
            tracing::warn!(pid, %error, "A process could not be disarmed.");
            true
        })
    }

    /// Whether that is new.
    fn remember_left_alone(&mut self, pid: u32) -> bool {
        Process::find(pid).is_ok_and(|process| self.left_alone.insert(pid, process) != Some(process))
    }

    /// Whether a process is not wanted, or does not want: what is in the rings of it is to be thrown away.
    #[must_use]
    pub fn is_left_alone(&self, pid: u32) -> bool {
        self.left_alone.contains_key(&pid)
    }

    /// Executables that are looked for, for messages.
    #[must_use]
    pub fn executables(&self) -> Vec<&Path> {
        self.executables.iter().map(|(path, _)| path.as_path()).collect()
    }
}
