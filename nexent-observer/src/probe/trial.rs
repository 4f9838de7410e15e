//! What becomes of the processes that `--all` finds: kept once they have made a call of an LLM, let go while they talk busily to
//! something else, and looked at again later.
//!
//! What a process costs is what it says: one that is silent, or talks now and then, stays observed for next to nothing, so that a
//! call that it makes after hours is seen. A busy one costs it and us something with each call, and is let go.

use std::collections::HashMap;

use nexent_observer_core::event::MonoNs;

use super::process::{FileId, Process};

const SECOND: u64 = 1_000_000_000;
/// Records a second that make a process busy: at about 2 us each these are 40 us of its CPU.
const BUSY_RECORDS: u64 = 20;
/// New connections a second that make it busy: each has a request and an answer that are copied before they are judged.
const BUSY_CONNECTIONS: u64 = 1;
/// When a process that was let go is looked at again; each further time after twice as long.
const AGAIN: u64 = 60 * SECOND;
/// It is looked at again at least this often.
const AGAIN_AT_MOST: u64 = 600 * SECOND;
/// Most processes that are remembered as let go. Others are found by the sweep, as if they were new.
const PARKED: usize = 4096;

/// One process on trial.
#[derive(Debug, Clone, Copy, Default)]
struct Trial {
    /// Begin of the window in which is counted: its first record.
    since: Option<MonoNs>,
    records: u64,
    connections: u64,
    /// Connections are numbered upwards.
    newest: u64,
    /// How often it was let go before.
    times: u32,
    /// What it runs. It may be gone when its call is told.
    program: Option<FileId>,
}

/// What is known of one that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// What it ran when its trial began.
    pub program: Option<FileId>,
}

/// One that was let go.
#[derive(Debug, Clone, Copy)]
struct Parked {
    process: Process,
    until: MonoNs,
    times: u32,
}

/// All of them.
#[derive(Debug)]
pub struct Trials {
    window: u64,
    on: HashMap<u32, Trial>,
    parked: HashMap<u32, Parked>,
}

impl Trials {
    /// Nobody is on trial. A process may be busy for `window` ns.
    #[must_use]
    pub fn new(window: u64) -> Self {
        Self { window: window.max(SECOND), on: HashMap::new(), parked: HashMap::new() }
    }

    /// A process, which runs `program`, is observed from now on, for a trial.
    pub fn begin(&mut self, pid: u32, program: Option<FileId>) {
        let times = self.parked.remove(&pid).map_or(0, |parked| parked.times);
        self.on.insert(pid, Trial { times, program, ..Trial::default() });
    }

    /// A process said something.
    pub fn heard(&mut self, pid: u32, connection: u64, at: MonoNs) {
        let Some(trial) = self.on.get_mut(&pid) else { return };
        trial.since.get_or_insert(at);
        trial.records += 1;
        if connection > trial.newest {
            trial.newest = connection;
            trial.connections += 1;
        }
    }

    /// It made a call of an LLM, which ends its trial; `None`: it was on none.
    pub fn keep(&mut self, pid: u32) -> Option<Kept> {
        self.on.remove(&pid).map(|trial| Kept { program: trial.program })
    }

    /// What a process on trial runs.
    #[must_use]
    pub fn program(&self, pid: u32) -> Option<FileId> {
        self.on.get(&pid)?.program
    }

    /// Whether it is on trial.
    #[must_use]
    pub fn tries(&self, pid: u32) -> bool {
        self.on.contains_key(&pid)
    }

    /// Whether it was let go.
    #[must_use]
    pub fn is_parked(&self, pid: u32) -> bool {
        self.parked.contains_key(&pid)
    }

    /// It ended, or became another program.
    pub fn forget(&mut self, pid: u32) {
        self.on.remove(&pid);
        self.parked.remove(&pid);
    }

    /// Processes whose window is over and that were busy in it. The others begin a new one.
    pub fn convicted(&mut self, now: MonoNs) -> Vec<u32> {
        let window = self.window;
        let mut busy = Vec::new();
        for (pid, trial) in &mut self.on {
            let Some(since) = trial.since.filter(|since| now.since(*since) >= window) else { continue };
            let seconds = now.since(since) / SECOND;
            if trial.records >= BUSY_RECORDS * seconds || trial.connections >= BUSY_CONNECTIONS * seconds {
                busy.push(*pid);
            }
            let Trial { times, newest, program, .. } = *trial;
            *trial = Trial { times, newest, program, ..Trial::default() };
        }
        busy
    }

    /// A convicted process is not observed any more.
    pub fn park(&mut self, process: Process, now: MonoNs) {
        let times = self.on.remove(&process.pid).map_or(0, |trial| trial.times);
        if self.parked.len() >= PARKED {
            return;
        }
        let wait = AGAIN.saturating_mul(1 << times.min(16)).min(AGAIN_AT_MOST);
        let parked = Parked { process, until: MonoNs(now.0.saturating_add(wait)), times: times + 1 };
        self.parked.insert(process.pid, parked);
    }

    /// Processes that are to be looked at again. Each is given once: then it is parked for another while, unless it is observed.
    pub fn due(&mut self, now: MonoNs) -> Vec<u32> {
        let due = self.parked.iter_mut().filter(|(_, parked)| parked.until <= now);
        due.map(|(pid, parked)| {
            parked.until = MonoNs(now.0.saturating_add(AGAIN_AT_MOST));
            *pid
        })
        .collect()
    }

    /// Forgets those that ended unnoticed.
    pub fn tidy(&mut self) {
        self.parked.retain(|_, parked| parked.process.is_alive());
    }

    /// How many are on trial, and how many were let go.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.on.len(), self.parked.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: u32 = 7;

    fn at(seconds: u64) -> MonoNs {
        MonoNs(1_000 * SECOND + seconds * SECOND)
    }

    fn process(pid: u32) -> Process {
        Process { pid, start_ticks: 1 }
    }

    /// `records` a second on `connections` new connections a second, for ten seconds.
    fn talk(trials: &mut Trials, from: u64, records: u64, connections: u64) {
        for second in from..from + 10 {
            for n in 0..records {
                let connection = 1 + second * connections + n % connections.max(1);
                trials.heard(PID, if connections == 0 { 1 } else { connection }, at(second));
            }
        }
    }

    #[test]
    fn a_busy_talker_is_let_go_and_a_silent_or_rare_one_is_not() {
        for (records, connections, busy) in [(0, 0, false), (5, 0, false), (50, 0, true), (5, 3, true), (19, 0, false)]
        {
            let mut trials = Trials::new(10 * SECOND);
            trials.begin(PID, None);
            talk(&mut trials, 0, records, connections);
            assert!(trials.convicted(at(9)).is_empty(), "not before the window is over");
            let found = trials.convicted(at(10));
            assert_eq!(found, if busy { vec![PID] } else { vec![] }, "{records} {connections}");
        }
    }

    #[test]
    fn one_call_of_an_llm_ends_the_trial_for_good() {
        let mut trials = Trials::new(10 * SECOND);
        trials.begin(PID, None);
        talk(&mut trials, 0, 100, 1);
        let program = Some(FileId { device: 1, inode: 2 });
        trials.begin(PID, program);
        assert!(trials.convicted(MonoNs(9 * SECOND)).is_empty());
        assert_eq!((trials.program(PID), trials.keep(PID)), (program, Some(Kept { program })));
        assert_eq!(trials.keep(PID), None, "it ended before");
        talk(&mut trials, 10, 100, 1);
        assert!(trials.convicted(at(30)).is_empty());
        assert_eq!(trials.counts(), (0, 0));
    }

    #[test]
    fn who_was_let_go_is_looked_at_again_later_and_later() {
        let mut trials = Trials::new(10 * SECOND);
        let mut now = 0;
        for wait in [60, 120, 240, 480, 600, 600] {
            trials.begin(PID, None);
            trials.park(process(PID), at(now));
            assert!(trials.is_parked(PID) && !trials.tries(PID));
            assert!(trials.due(at(now + wait - 1)).is_empty(), "{wait}");
            assert_eq!(trials.due(at(now + wait)), [PID], "{wait}");
            assert!(trials.due(at(now + wait)).is_empty(), "once");
            now += wait;
        }
        trials.forget(PID);
        trials.begin(PID, None);
        trials.park(process(PID), at(now));
        assert_eq!(trials.due(at(now + 60)), [PID], "another program begins anew");
    }

    #[test]
    fn a_busy_time_long_ago_is_not_held_against_it() {
        let mut trials = Trials::new(10 * SECOND);
        trials.begin(PID, None);
        talk(&mut trials, 0, 25, 0);
        // Nobody looked for a long time: what counts is the rate over all of it.
        assert!(trials.convicted(at(100)).is_empty());
        talk(&mut trials, 200, 50, 0);
        assert_eq!(trials.convicted(at(210)), [PID]);
    }

    #[test]
    fn the_memory_of_processes_let_go_is_bounded() {
        let mut trials = Trials::new(SECOND);
        for pid in 1..=2 * PARKED as u32 {
            trials.begin(pid, None);
            trials.park(process(pid), at(0));
        }
        assert_eq!(trials.counts(), (0, PARKED));
        trials.tidy();
        assert!(trials.counts().1 < PARKED, "none of these lives with such a start");
    }
}
