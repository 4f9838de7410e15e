//! Processes that may become observable: when each is looked at again, and how many at once.

use std::collections::HashMap;

use nexent_observer_core::event::MonoNs;

use super::process::{FileId, Process};

const MS: u64 = 1_000_000;
/// Most candidates of one tick that are looked at because all processes are wanted: a look takes some 100 us.
const PER_TICK: usize = 8;
/// Most of them at all. Whoever finds no room is found by the next sweep.
const MOST: usize = 8192;
/// The longest time between two looks at a process without TLS, for a library that it may load late or a port that it may listen
/// on.
const SETTLED: u64 = 15_000 * MS;
/// A process is looked at in time in its first moments, when it loads its libraries.
const YOUNG: u64 = 2_000 * MS;
/// From this age on all of them together get twenty looks a second.
const GROWN: u64 = 5_000 * MS;
const EACH: u64 = 50 * MS;

/// Why a process is to be observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Named by pid: whatever it runs.
    Pid,
    /// A child of one that was named by pid, as long as it runs what its parent runs.
    Child,
    /// It runs this executable.
    Executable(FileId),
    /// All are wanted.
    All,
}

/// A process that may become observable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) reason: Reason,
    /// When it began to run what it runs, or was found.
    pub(super) since: MonoNs,
    pub(super) next: MonoNs,
    /// A process that ran the same program and was observed, for the libraries to expect.
    pub(super) sibling: Option<u32>,
    pub(super) warned: bool,
    /// `since` is the time of its exec.
    pub(super) executed: bool,
    /// What it had mapped when it was last looked at.
    pub(super) mapped: Option<u64>,
    /// It was named at the start, and what it has mapped could not be looked into then.
    pub(super) named: bool,
}

impl Candidate {
    pub(super) fn new(reason: Reason, since: MonoNs, delay: u64) -> Self {
        let next = MonoNs(since.0.saturating_add(delay));
        Self { reason, since, next, sibling: None, warned: false, executed: false, mapped: None, named: false }
    }
}

/// All candidates.
#[derive(Debug, Default)]
pub(super) struct Candidates(HashMap<u32, Candidate>);

impl Candidates {
    /// Adds one that is not among them.
    pub(super) fn add(&mut self, pid: u32, candidate: Candidate) {
        if candidate.reason != Reason::All || self.0.len() < MOST {
            self.0.entry(pid).or_insert(candidate);
        }
    }

    /// Sets when one is looked at next, and what is known of it.
    pub(super) fn put(&mut self, pid: u32, candidate: Candidate) {
        self.0.insert(pid, candidate);
    }

    pub(super) fn remove(&mut self, pid: u32) {
        self.0.remove(&pid);
    }

    pub(super) fn contains(&self, pid: u32) -> bool {
        self.0.contains_key(&pid)
    }

    pub(super) fn is_named(&self, pid: u32) -> bool {
        self.0.get(&pid).is_some_and(|candidate| candidate.named)
    }

    pub(super) fn awaits_named(&self) -> bool {
        self.0.values().any(|candidate| candidate.named)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Those whose time has come: all that were asked for, and of the others those that wait longest.
    pub(super) fn due(&self, now: MonoNs) -> Vec<(u32, Candidate)> {
        let mut due: Vec<(u32, Candidate)> =
            self.0.iter().filter(|(_, c)| c.next <= now).map(|(pid, c)| (*pid, *c)).collect();
        due.sort_by_key(|(pid, candidate)| (candidate.reason == Reason::All, candidate.next, *pid));
        let asked_for = due.iter().take_while(|(_, candidate)| candidate.reason != Reason::All).count();
        due.truncate(asked_for + PER_TICK);
        due
    }

    /// Whether one is to be looked at before `until` that was asked for, or is young.
    pub(super) fn is_urgent(&self, until: MonoNs) -> bool {
        let young = |candidate: &Candidate| candidate.next.since(candidate.since) < YOUNG;
        self.0.values().any(|it| it.next < until && (it.reason != Reason::All || young(it)))
    }

    /// How long to wait before looking again whether a process has loaded a TLS library, by how long it has been looked at: an
    /// interpreter loads one within its first second, or late.
    pub(super) fn retry_after(&self, reason: Reason, age: u64) -> u64 {
        if reason == Reason::All {
            // An eighth of its age: within 100 ms in its first 800.
            let turn = EACH.saturating_mul(self.0.len() as u64);
            let least = if age < GROWN { 10 * MS } else { turn.max(10 * MS) };
            return (age / 8).clamp(least, SETTLED.max(turn));
        }
        match age / MS {
            0..2_000 => 10 * MS,
            2_000..30_000 => 100 * MS,
            _ => 1_000 * MS,
        }
    }
}

/// What a process says in its environment of being observed (`ENABLE_TELEMETRY`).
#[must_use]
pub fn telemetry(pid: u32) -> Option<bool> {
    let environment = Process::environment(pid);
    let (_, value) = environment.iter().find(|(name, _)| name == "ENABLE_TELEMETRY")?;
    match value.trim().to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// Whether a process is this one, or a child of it.
pub(super) fn is_ours(pid: u32) -> bool {
    let me = std::process::id();
    pid == me || Process::parent(pid) == Some(me)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_at_once_and_the_longest_waiting_first_but_all_that_were_asked_for() {
        let mut candidates = Candidates::default();
        for pid in 1..=100 {
            candidates.add(pid, Candidate::new(Reason::All, MonoNs(1000 - u64::from(pid)), 0));
        }
        for pid in 101..=120 {
            candidates.add(pid, Candidate::new(Reason::Pid, MonoNs(2000), 0));
        }
        let due: Vec<u32> = candidates.due(MonoNs(3000)).into_iter().map(|(pid, _)| pid).collect();
        assert_eq!(due[..20], (101..=120).collect::<Vec<_>>());
        assert_eq!(due[20..], [100, 99, 98, 97, 96, 95, 94, 93]);
        assert!(candidates.due(MonoNs(0)).is_empty());
    }

    #[test]
    fn young_processes_hurry_and_old_ones_do_not() {
        let mut candidates = Candidates::default();
        let now = MonoNs(100_000 * MS);
        let due = |since: u64, reason| Candidate { next: now, ..Candidate::new(reason, MonoNs(since * MS), 0) };
        candidates.add(1, due(10_000, Reason::All));
        assert!(!candidates.is_urgent(MonoNs(now.0 + 1)));
        candidates.add(2, due(99_000, Reason::All));
        assert!(candidates.is_urgent(MonoNs(now.0 + 1)) && !candidates.is_urgent(now));
        candidates.remove(2);
        candidates.add(3, due(10_000, Reason::Child));
        assert!(candidates.is_urgent(MonoNs(now.0 + 1)), "it was asked for");
    }

    #[test]
    fn a_new_process_is_looked_at_often_and_an_old_one_rarely() {
        let mut candidates = Candidates::default();
        let after = |candidates: &Candidates, age: u64| candidates.retry_after(Reason::All, age * MS) / MS;
        assert_eq!([0, 40, 400, 2_000, 600_000].map(|age| after(&candidates, age)), [10, 10, 50, 250, 15_000]);
        for pid in 0..2 * MOST as u32 {
            candidates.add(pid, Candidate::new(Reason::All, MonoNs(0), 0));
        }
        assert_eq!(candidates.len(), MOST);
        assert_eq!(after(&candidates, 10_000_000), MOST as u64 * 50);
        assert_eq!(after(&candidates, 5_000), MOST as u64 * 50, "grown ones wait their turn");
        assert_eq!(after(&candidates, 400), 50, "young ones do not");
        candidates.add(u32::MAX, Candidate::new(Reason::Child, MonoNs(0), 0));
        assert!(candidates.contains(u32::MAX), "what was asked for always finds room");
    }
}
