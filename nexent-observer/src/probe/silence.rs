//! Which processes talk over TLS that none of their probes sees. The kernel half counts what moves on TCP connections that were made, and
//! began with a ClientHello, while their process was observed, and on which no connection of TLS is known, from
//! [`nexent_observer_common::state::MORE_THAN_A_HANDSHAKE`] bytes sent on. A process is silent when [`ENOUGH`] such bytes have come and, for
//! [`PATIENCE`] until then, not one byte through its probes: so neither plain HTTP, nor TLS that is seen, whatever it talks to, nor a
//! connection that is older than the observer, nor a handshake makes one.

use std::collections::HashMap;

use nexent_observer_common::state::Unseen;
use nexent_observer_core::event::MonoNs;
use serde::{Deserialize, Serialize};

/// Bytes that the probes have to have missed.
const ENOUGH: u64 = 4096;
/// For so long nothing came through the probes, ns.
const PATIENCE: u64 = 5_000_000_000;
/// A process that has moved nothing more for so long is not called silent any more, ns.
const REMEMBERED: u64 = 300_000_000_000;

/// A process that should be seen now and is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silent {
    /// Which.
    pub pid: u32,
    /// Why.
    pub cause: Cause,
    /// What was found, in one sentence without its full stop.
    pub why: String,
    /// What to do, likewise.
    pub advice: String,
}

/// Why a process is not seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Its probes are gone from its code and cannot be put back.
    ProbesGone,
    /// It moves bytes over TLS that none of its probes sees.
    BytesUnseen,
}

impl Cause {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ProbesGone, Self::BytesUnseen];

    /// Label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProbesGone => "probes_gone",
            Self::BytesUnseen => "bytes_unseen",
        }
    }
}

/// What is known of one process.
#[derive(Debug, Clone, Copy)]
struct Watch {
    /// As it was read last.
    unseen: Unseen,
    /// Bytes on its open connections of TLS, as they were read last.
    open: u64,
    /// When something came through its probes last, or it was first looked at.
    seen_at: MonoNs,
    /// Bytes that had been missed by then.
    missed_then: u64,
    /// When bytes were missed last.
    missed_at: MonoNs,
    silent: bool,
}

/// Processes of which bytes were missed.
#[derive(Debug, Default)]
pub struct Silences(HashMap<u32, Watch>);

impl Silences {
    /// Those that have to be looked at: bytes were missed since the last look, or they are silent.
    #[must_use]
    pub fn suspects(&self, readings: &[(u32, Unseen)]) -> Vec<u32> {
        let suspect = |&(pid, unseen): &(u32, Unseen)| {
            let known = self.0.get(&pid);
            known.is_none_or(|watch| watch.silent || watch.unseen.bytes != unseen.bytes).then_some(pid)
        };
        readings.iter().filter_map(suspect).collect()
    }

    /// Takes in what was read of the suspects, with the bytes on their open connections of TLS. Gives those that are silent from now on, and
    /// those of which nothing has to be kept any more.
    pub fn look(
        &mut self,
        now: MonoNs,
        readings: &[(u32, Unseen)],
        open: &HashMap<u32, u64>,
    ) -> (Vec<Silent>, Vec<u32>) {
        let mut fresh = Vec::new();
        self.0.retain(|pid, _| readings.iter().any(|(read, _)| read == pid));
        for &(pid, unseen) in readings {
            let Some(&open) = open.get(&pid) else { continue };
            let seen_before = unseen.ended > 0 || open > 0;
            let watch = self.0.entry(pid).or_insert_with(|| Watch {
                unseen: Unseen { ended: unseen.ended, ..Unseen::default() },
                open,
                seen_at: now,
                missed_then: if seen_before { unseen.bytes } else { 0 },
                missed_at: now,
                silent: false,
            });
            if (watch.unseen.ended, watch.open) != (unseen.ended, open) {
                (watch.seen_at, watch.missed_then, watch.silent) = (now, unseen.bytes, false);
            }
            if watch.unseen.bytes != unseen.bytes {
                watch.missed_at = now;
            }
            (watch.unseen, watch.open) = (unseen, open);
            let missed = unseen.bytes.saturating_sub(watch.missed_then);
            if !watch.silent && missed >= ENOUGH && watch.missed_at.since(watch.seen_at) >= PATIENCE {
                watch.silent = true;
                fresh.push(silent(pid, missed));
            }
        }
        let old = |watch: &Watch| now.since(watch.missed_at) > REMEMBERED;
        let forgotten: Vec<u32> = self.0.iter().filter(|(_, watch)| old(watch)).map(|(pid, _)| *pid).collect();
        self.0.retain(|_, watch| !old(watch));
        (fresh, forgotten)
    }

    /// Those that are silent.
    pub fn silent(&self) -> impl Iterator<Item = Silent> + '_ {
        let silents = self.0.iter().filter(|(_, watch)| watch.silent);
        silents.map(|(pid, watch)| silent(*pid, watch.unseen.bytes.saturating_sub(watch.missed_then)))
    }
}

fn silent(pid: u32, missed: u64) -> Silent {
    Silent {
        pid,
        cause: Cause::BytesUnseen,
        why: format!(
            "{missed} bytes moved over TLS on connections that were made while it was observed, and none came through its probes"
        ),
        advice: format!(
            "it has a TLS that is not hooked, or hands on what others have encrypted: `nexent-observer doctor --pid {pid}` says what was found in it and what is left alone"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// One process, looked at once a second.
    #[derive(Default)]
    struct Bench {
        silences: Silences,
        second: u64,
    }

    impl Bench {
        fn look(&mut self, bytes: u64, ended: u64, open: u64) -> bool {
            self.second += 1;
            let readings = [(7, Unseen { bytes, ended })];
            let open = self.silences.suspects(&readings).into_iter().map(|pid| (pid, open)).collect();
            self.silences.look(MonoNs(self.second * SECOND), &readings, &open);
            self.silences.silent().count() == 1
        }
    }

    #[test]
    fn one_that_moves_bytes_that_nobody_sees_is_silent_until_something_is_seen() {
        let mut bench = Bench::default();
        let found: Vec<bool> = (1..=8).map(|n| bench.look(n * 2000, 0, 0)).collect();
        assert_eq!(found, [false, false, false, false, false, true, true, true]);
        assert!(bench.look(16_000, 0, 0), "it stays so while nothing moves");
        assert!(!bench.look(16_000, 0, 1), "a byte on a connection that is open");
        assert!(!bench.look(17_000, 0, 1));
        for n in 0..7 {
            assert!(!bench.look(18_000 + n, 1 + n, 0), "connections that come and go");
        }
        let silent = (1..=6).map(|n| bench.look(20_000 + n * 3000, 7, 0)).last();
        assert_eq!(silent, Some(true), "and again when its probes see nothing any more");
    }

    #[test]
    fn a_little_or_long_ago_is_not_silent() {
        let mut bench = Bench::default();
        assert!((1..=20).all(|n| !bench.look(n * 200, 0, 0)), "under 4096 bytes");
        let mut bench = Bench::default();
        assert!((1..=20).all(|_| !bench.look(9000, 0, 0)), "once, and nothing since");
        let mut bench = Bench::default();
        // It was seen before, so what was missed until then may be as old.
        assert!((1..=5).all(|n| !bench.look(9000 + n, 3, 4000)));
        let mut bench = Bench::default();
        assert_eq!((1..=8).map(|n| bench.look(n * 2000, 0, 0)).last(), Some(true));
        assert!((1..=300).all(|_| bench.look(16_000, 0, 0)));
        assert!(!bench.look(16_000, 0, 0), "after five minutes without a byte");
    }

    #[test]
    fn one_that_is_not_read_any_more_is_forgotten() {
        let mut bench = Bench::default();
        assert_eq!((1..=8).map(|n| bench.look(n * 2000, 0, 0)).last(), Some(true));
        bench.silences.look(MonoNs(9 * SECOND), &[], &HashMap::new());
        assert_eq!(bench.silences.silent().count(), 0);
    }
}
