//! Observers that come and go.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    Bed, Figures, breakpoints, ensure_unharmed, number,
    watched::{PATIENCE, Start, Watched},
};
use crate::{compare::Verdict, cycles as clients, fake_tls::FakeTls, sh};

/// Where the random moments begin; the same each time, so that a run can be repeated.
const SEED: u64 = 0x5eed_0b5e_7e57_ab1e;
/// Latest moment at which an observer is killed, ms after its start or after its first probe.
const LATEST_MS: u64 = 1500;
/// So long takes an observer that attaches to all clients and leaves them, s: 40 to 60 of them in nine minutes, two at a time (seen on two cores).
const SECONDS_PER_CYCLE: u64 = 12;

/// Marsaglia's xorshift64; the state is never 0.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// SIGKILL at random moments of an observer's life, from its first instruction on.
pub(super) fn killed(bed: &Bed) -> Result<Figures> {
    let mut target = FakeTls::start(&bed.fake_tls)?;
    let pid = target.pid().to_string();
    let flags = ["--pid", &pid];
    let (mut state, mut kills, mut hooked) = (SEED, 0, 0);
    let (mut streams, mut calls) = (0, 0);
    ensure!(breakpoints(target.pid(), &bed.fake_tls)? == 0, "somebody else's probe is in the way");
    let began = Instant::now();
    while began.elapsed().as_secs() < bed.seconds || kills < 3 {
        // Each kill in the middle of a load, which is then checked.
        target.tell("load 100 100 6")?;
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            let start = Start { flags: &flags, lines: true, ..Start::default() };
            let watched = Watched::start_only(&bed.observer, &bed.dir, &start)?;
            // Every other one is given the time to attach, however long this machine takes for that.
            let waits = Instant::now() + PATIENCE;
            while kills % 2 == 1 && breakpoints(target.pid(), &bed.fake_tls)? == 0 {
                ensure!(Instant::now() < waits, "an observer does not attach; see {}", bed.dir.display());
                thread::sleep(Duration::from_millis(10));
            }
            thread::sleep(Duration::from_millis(random(&mut state) % LATEST_MS));
            hooked += u32::from(breakpoints(target.pid(), &bed.fake_tls)? > 0);
            watched.kill()?;
            kills += 1;
            let gone = Instant::now() + PATIENCE;
            while breakpoints(target.pid(), &bed.fake_tls)? > 0 {
                ensure!(Instant::now() < gone, "breakpoints are left after kill {kills}");
                thread::sleep(Duration::from_millis(10));
            }
        }
        let said = target.done_within(PATIENCE)?;
        ensure_unharmed(&said)?;
        (streams, calls) = (streams + number(&said, "exchanges"), calls + number(&said, "calls"));
    }
    ensure!(hooked > 0, "no observer lived until it had attached");
    let start = Start { flags: &flags, lines: true, ..Start::default() };
    let mut watched = Watched::start(&bed.observer, &bed.dir, 1, &start)?;
    target.tell("load 50 20 2")?;
    let said = target.done()?;
    watched.settled()?;
    let taken = watched.taken()?;
    let answers = super::answers(&watched.stop()?)?;
    let (last, chunks) = (number(&said, "exchanges"), number(&said, "chunks"));
    if taken.lost == 0.0 {
        ensure!((answers.whole, answers.chunks) == (last, chunks), "{last} streams, {chunks} chunks: {answers:?}");
    }
    sh::say(&format!("{kills} killed, {hooked} of them attached"));
    Ok(Figures {
        done: format!(
            "{kills} observers of a target with 100 streams of 100 chunks a second, killed at a random moment of {LATEST_MS} ms after their start or, every other one, after their first probe (seed {SEED:#x}); then one that is left alone."
        ),
        seen: format!(
            "{hooked} had probes in the target when they were killed; no breakpoint was left after any; no call gave anything else; the last one saw {} of {last} streams and {} of {chunks} chunks.",
            answers.whole, answers.chunks
        ),
        streams: streams + last,
        calls: Some(calls + number(&said, "calls")),
        taken: Some(taken),
    })
}

/// Observers on real, busy clients, one for each way in which TLS is hooked.
pub(super) fn cycles(bed: &Bed) -> Result<Figures> {
    let wanted = u32::try_from((bed.seconds / SECONDS_PER_CYCLE).max(20))?;
    let began = Instant::now();
    let done = clients::run(wanted, &bed.observer, &bed.dir.join("clients"))?;
    ensure!(done.verdict == Verdict::Agree, "clients and server differ; see the checks above");
    Ok(Figures {
        done: format!(
            "{} observers, two at a time, each on {} busy clients ({}): {} attachments; {} observers were killed.",
            done.cycles,
            clients::BUSY.len(),
            clients::BUSY.join(", "),
            done.attachments,
            done.killed
        ),
        seen: format!(
            "Everything that the clients got is what the server sent, in {:.0} s.",
            began.elapsed().as_secs_f64()
        ),
        ..Figures::default()
    })
}
