//! Which processes are observed: those named by pid, and all present and future ones of an executable. Follows forks, execs
//! and exits, and tries again where a TLS library is loaded late.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
};

use nexent_observer_core::event::{ConnId, MonoNs, Record, RecordFlags, RecordKind, Stamp};

use super::{
    attach::{AttachError, AttachReport, Attacher},
    plan::Family,
    process::{FileId, Process},
};
use crate::ring::{ProcessEvent, ProcessEventKind};

/// What changed.
#[derive(Debug)]
pub enum Change {
    /// A process is observed from now on, or more of it is.
    Attached(AttachReport),
    /// A child of an observed process is observed since its first instruction.
    Adopted {
        /// The child.
        pid: u32,
        /// Its parent.
        parent: u32,
    },
    /// A process is not observed any more: it ended or became another program.
    Gone(Ended),
    /// A process that should be observed cannot be.
    Refused(AttachError),
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

/// Why a process is to be observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// Named by pid: whatever it runs.
    Pid,
    /// A child of one that was named by pid, as long as it runs what its parent runs.
    Child,
    /// It runs this executable.
    Executable(FileId),
}

/// A process that may become observable.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    reason: Reason,
    since: MonoNs,
    next: MonoNs,
    /// A process that ran the same program and was observed, for the libraries to expect.
    sibling: Option<u32>,
    warned: bool,
}

/// Chooses and follows targets.
pub struct Targets {
    attacher: Attacher,
    executables: Vec<(PathBuf, FileId)>,
    reasons: HashMap<u32, Reason>,
    candidates: HashMap<u32, Candidate>,
    suspects: HashMap<u32, MonoNs>,
    opted_out: HashSet<Process>,
    changes: Vec<Change>,
    next_sweep: MonoNs,
    sweeps: u32,
    /// Sweep after which a process was attached to last.
    attached_in: u32,
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
/// A Unix socket silent for so long is forgotten, as a connection of the core is by default.
const UNIX_IDLE: u64 = 900_000 * MS;
/// How long after its leader's exit a process is looked at closely.
const SUSPECT_FOR: u64 = 500 * MS;
/// A candidate without TLS after this long is worth a line in the log.
const WARN_AFTER: u64 = 30_000 * MS;

impl Targets {
    /// Takes over the attacher. Executables are compared by file, so links and venvs of one interpreter count as one.
    ///
    /// # Errors
    /// When an executable does not exist.
    pub fn new(mut attacher: Attacher, executables: &[PathBuf]) -> io::Result<Self> {
        let executables =
            executables.iter().map(|path| Ok((path.clone(), FileId::of(path)?))).collect::<io::Result<Vec<_>>>()?;
        for (path, file) in &executables {
            if let Err(error) = attacher.expect_executable(*file) {
                tracing::warn!(path = %path.display(), %error, "Its processes are observed only from some milliseconds on.");
            }
        }
        Ok(Self {
            attacher,
            executables,
            reasons: HashMap::new(),
            candidates: HashMap::new(),
            suspects: HashMap::new(),
            opted_out: HashSet::new(),
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

    /// Attaches to a process named by pid.
    ///
    /// # Errors
    /// [`AttachError`]; nothing is attached then.
    pub fn add_pid(&mut self, pid: u32) -> Result<(), AttachError> {
        if self.opts_out(pid) {
            self.changes.push(Change::OptedOut { pid });
            return Ok(());
        }
        let report = self.attacher.attach(pid, false, None)?;
        self.reasons.insert(pid, Reason::Pid);
        self.changes.push(Change::Attached(report));
        Ok(())
    }

    /// Takes in what the kernel half saw of a process.
    pub fn handle_event(&mut self, event: ProcessEvent) {
        let ProcessEvent { at, pid, kind } = event;
        match kind {
            ProcessEventKind::Fork { child } => {
                let Some(reason) = self.reasons.get(&pid).copied() else { return };
                let reason = if reason == Reason::Pid { Reason::Child } else { reason };
                if self.attacher.adopt(pid, child) {
                    self.reasons.insert(child, reason);
                    self.changes.push(Change::Adopted { pid: child, parent: pid });
                } else {
                    self.consider(child, reason, at, FORK_SETTLES, Some(pid));
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
        let before = self.reasons.get(&pid).copied();
        let runs = Process::executable(pid).ok();
        let matching = runs.filter(|file| self.executables.iter().any(|(_, wanted)| wanted == file));
        let reason = match (before, matching) {
            (_, Some(file)) => Some(Reason::Executable(file)),
            (Some(Reason::Pid), None) => Some(Reason::Pid),
            _ => None,
        };
        if self.attacher.observes(pid) {
            self.release(pid, true);
        }
        self.candidates.remove(&pid);
        if let Some(reason) = reason {
            if self.opts_out(pid) {
                return self.leave_alone(pid);
            }
            let sibling = self.sibling(reason);
            self.consider(pid, reason, at, 0, sibling);
        }
    }

    /// An observed process that runs the same executable.
    fn sibling(&self, reason: Reason) -> Option<u32> {
        if !matches!(reason, Reason::Executable(_)) {
            return None;
        }
        self.reasons.iter().find(|(pid, other)| **other == reason && self.attacher.observes(**pid)).map(|(pid, _)| *pid)
    }

    fn consider(&mut self, pid: u32, reason: Reason, at: MonoNs, delay: u64, sibling: Option<u32>) {
        let candidate = Candidate { reason, since: at, next: MonoNs(at.0 + delay), sibling, warned: false };
        self.candidates.entry(pid).or_insert(candidate);
    }

    /// Whether a process is to be looked at again before `until`: then [`Self::poll`] should not wait longer.
    #[must_use]
    pub fn is_due(&self, until: MonoNs) -> bool {
        !self.suspects.is_empty() || self.candidates.values().any(|candidate| candidate.next < until)
    }

    fn release(&mut self, pid: u32, replaced: bool) {
        let open = self.attacher.detach(pid);
        self.reasons.remove(&pid);
        let open = open
            .into_iter()
            .filter(|conn| conn.read_offset > 0 || conn.write_offset > 0)
            .map(|conn| OpenEnd { conn: ConnId(conn.id), read_end: conn.read_offset, write_end: conn.write_offset })
            .collect();
        self.changes.push(Change::Gone(Ended { pid, open, replaced }));
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
            if ended || now.since(at) > SUSPECT_FOR {
                self.suspects.remove(&pid);
            }
        }
    }

    fn try_candidates(&mut self, now: MonoNs) {
        let due: Vec<(u32, Candidate)> =
            self.candidates.iter().filter(|(_, c)| c.next <= now).map(|(pid, c)| (*pid, *c)).collect();
        for (pid, mut candidate) in due {
            if self.opts_out(pid) {
                self.leave_alone(pid);
                continue;
            }
            // Workers and processes of an executable share their probes: attaching to and detaching from each of them by itself
            // was seen to hold up forks for seconds.
            let share = candidate.reason != Reason::Pid;
            match self.attacher.attach(pid, share, candidate.sibling) {
                Ok(report) => {
                    let age = now.since(candidate.since);
                    if report.hooked.iter().all(|hooked| hooked.plan.family == Family::Hooks) && age < WARN_AFTER {
                        // It may load a TLS library yet: an interpreter does so within its first second.
                        candidate.next = MonoNs(now.0 + retry_after(age));
                        self.candidates.insert(pid, candidate);
                    } else {
                        self.candidates.remove(&pid);
                    }
                    self.reasons.insert(pid, candidate.reason);
                    if report.news {
                        self.attached_in = self.sweeps;
                        self.changes.push(Change::Attached(report));
                    }
                }
                Err(AttachError::NoProcess { .. } | AttachError::Itself { .. }) => {
                    self.candidates.remove(&pid);
                }
                Err(AttachError::Searching { .. }) => {
                    candidate.next = MonoNs(now.0 + retry_after(0));
                    self.candidates.insert(pid, candidate);
                }
                Err(error @ AttachError::NoTls { .. }) => {
                    let age = now.since(candidate.since);
                    candidate.next = MonoNs(now.0 + retry_after(age));
                    if age > WARN_AFTER && !candidate.warned {
                        candidate.warned = true;
                        self.changes.push(Change::Refused(error));
                    }
                    self.candidates.insert(pid, candidate);
                }
                Err(error) => {
                    self.candidates.remove(&pid);
                    self.changes.push(Change::Refused(error));
                }
            }
        }
    }

    /// Finds what no event told: processes of the executables that run already, ends that were missed, late libraries.
    fn sweep(&mut self, now: MonoNs) {
        for pid in self.attacher.ended() {
            self.release(pid, false);
        }
        self.attacher.tidy();
        let mut changed = self.attacher.outgrown();
        self.sweeps = self.sweeps.wrapping_add(1);
        let young = self.sweeps.wrapping_sub(self.attached_in) < YOUNG;
        if self.sweeps.is_multiple_of(if young { LOOK_FOR_PLAIN } else { LOOK_FOR_PLAIN_LATER }) {
            changed.extend(self.attacher.wanting_plain());
            self.attacher.kernel().forget_idle_unix(now.0.saturating_sub(UNIX_IDLE));
        }
        for pid in changed {
            match self.attacher.attach(pid, false, None) {
                Ok(report) if report.news => self.changes.push(Change::Attached(report)),
                Ok(_) => {}
                Err(error) => self.changes.push(Change::Refused(error)),
            }
        }
        if self.executables.is_empty() {
            return;
        }
        self.opted_out.retain(|process| process.is_alive());
        for pid in Process::all() {
            if self.attacher.observes(pid) || self.candidates.contains_key(&pid) || pid == std::process::id() {
                continue;
            }
            let Ok(file) = Process::executable(pid) else { continue };
            if !self.executables.iter().any(|(_, wanted)| *wanted == file) {
                continue;
            }
            if Process::find(pid).is_ok_and(|process| self.opted_out.contains(&process)) {
                continue;
            }
            let reason = Reason::Executable(file);
            let sibling = self.sibling(reason);
            self.consider(pid, reason, now, 0, sibling);
        }
    }

    /// Lets go of a process that does not want to be observed; the kernel half may have armed it at its exec.
    fn leave_alone(&mut self, pid: u32) {
        self.candidates.remove(&pid);
        if let Err(error) = self.attacher.kernel().disarm(pid) {
            tracing::warn!(pid, %error, "A process could not be disarmed.");
        }
        if let Ok(process) = Process::find(pid)
            && self.opted_out.insert(process)
        {
            self.changes.push(Change::OptedOut { pid });
        }
    }

    /// Whether a process has said that it does not want to be observed: what is in the rings of it is to be thrown away.
    #[must_use]
    pub fn is_left_alone(&self, pid: u32) -> bool {
        !self.opted_out.is_empty() && self.opted_out.iter().any(|process| process.pid == pid)
    }

    /// Whether a process says that it does not want to be observed. Its environment is what it was at exec.
    fn opts_out(&self, pid: u32) -> bool {
        Process::environment(pid)
            .iter()
            .any(|(name, value)| name == "ENABLE_TELEMETRY" && value.trim().eq_ignore_ascii_case("false"))
    }

    /// Executables that are looked for, for messages.
    #[must_use]
    pub fn executables(&self) -> Vec<&Path> {
        self.executables.iter().map(|(path, _)| path.as_path()).collect()
    }
}

/// How long to wait before looking again whether a process has loaded a TLS library, by how long it has been looked at: an
/// interpreter loads one within its first second, or late.
fn retry_after(age: u64) -> u64 {
    match age / MS {
        0..2_000 => 10 * MS,
        2_000..30_000 => 100 * MS,
        _ => 1_000 * MS,
    }
}
