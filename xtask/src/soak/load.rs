//! Losses: a ring that is too small, an observer that does not run.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{
    Bed, Figures, answers, ensure_unharmed, number,
    watched::{PATIENCE, Start, Watched},
};
use crate::{fake_tls::FakeTls, observer, sh};

/// Loads until one has overflowed the ring; the first is enough wherever the target can outrun the observer.
const MOST_LOADS: usize = 20;
/// Longest that the observer is stopped, s.
const STOPPED_S: u64 = 30;

/// Losses of an observer, from one scrape.
#[derive(Debug, Clone, Copy)]
struct Counts {
    records: f64,
    lost: f64,
    requests: f64,
    incomplete: f64,
    timed: f64,
    chunks: f64,
}

fn counts(watched: &Watched) -> Result<Counts> {
    let metrics = watched.metrics()?;
    let of = |name| observer::sum(&metrics, name, &[]);
    Ok(Counts {
        records: of("nexent_observer_records_total"),
        lost: of("nexent_observer_lost_records_total"),
        requests: of("llm_requests"),
        incomplete: of("nexent_observer_incomplete_exchanges_total"),
        timed: of("llm_request_duration_seconds_count"),
        chunks: of("nexent_observer_chunks_total"),
    })
}

/// Every call and every end of a connection became a record or is counted as lost, and what is incomplete was not timed.
fn ensure_accounted(counts: &Counts, said: &[Value]) -> Result<()> {
    let made: u64 = said.iter().map(|said| number(said, "calls") + number(said, "closed")).sum();
    let (records, lost) = (counts.records, counts.lost);
    ensure!(records + lost == made as f64, "{made} calls and ends, {records} records and {lost} lost");
    ensure!(counts.timed + counts.incomplete == counts.requests, "something incomplete was timed: {counts:?}");
    Ok(())
}

/// A ring of 64 KiB, looked at once a second.
pub(super) fn overflow(bed: &Bed) -> Result<Figures> {
    let mut target = FakeTls::start(&bed.fake_tls)?;
    let pid = target.pid().to_string();
    let flags =
        ["--pid", &pid, "--read-ring-bytes", "64KiB", "--write-ring-bytes", "64KiB", "--drain-interval-ms", "1000"];
    let mut watched =
        Watched::start(&bed.observer, &bed.dir, 1, &Start { flags: &flags, lines: true, ..Start::default() })?;
    let mut said: Vec<Value> = Vec::new();
    while said.len() < MOST_LOADS && (said.is_empty() || watched.sum("nexent_observer_lost_records_total", &[])? == 0.0)
    {
        target.tell(&format!("load 200 500 {}", bed.seconds))?;
        said.push(target.done_within(Duration::from_secs(bed.seconds) + PATIENCE)?);
        watched.settled()?;
    }
    said.iter().try_for_each(ensure_unharmed)?;
    let counts = counts(&watched)?;
    ensure!(counts.lost > 0.0, "the ring held everything: {counts:?}");
    ensure!(counts.incomplete > 0.0, "records were lost and nothing is incomplete: {counts:?}");
    ensure_accounted(&counts, &said)?;
    let taken = watched.taken()?;
    let answers = answers(&watched.stop()?)?;
    let streams: u64 = said.iter().map(|said| number(said, "exchanges")).sum();
    let calls: u64 = said.iter().map(|said| number(said, "calls")).sum();
    ensure!(answers.whole <= streams, "{streams} streams were made, {answers:?}");
    Ok(Figures {
        done: format!(
            "Rings of 64 KiB that are drained once a second and when they fill; {} times 200 streams of 500 chunks a second for {} s.",
            said.len(),
            bed.seconds
        ),
        seen: format!(
            "Records and losses are together what the target made. {} answers are told as incomplete, {} as whole, of which each has all its chunks; only the latter are in the histograms.",
            answers.incomplete, answers.whole
        ),
        streams,
        calls: Some(calls),
        taken: Some(taken),
    })
}

/// Short connections, made and ended while the observer is stopped and its ring is full.
pub(super) fn lost_ends(bed: &Bed) -> Result<Figures> {
    let mut target = FakeTls::start(&bed.fake_tls)?;
    let pid = target.pid().to_string();
    let flags = ["--pid", &pid, "--read-ring-bytes", "64KiB"];
    let mut watched = Watched::start(&bed.observer, &bed.dir, 1, &Start { flags: &flags, ..Start::default() })?;
    // So slow that it is stopped in the middle: of some connections the beginning is seen, and not the end.
    let n = 1000 * bed.seconds;
    target.tell(&format!("connections {n} 1000 one"))?;
    thread::sleep(Duration::from_millis(700));
    let mut left: f64 = 0.0;
    for _ in 0..bed.seconds {
        watched.signal(Signal::STOP);
        thread::sleep(Duration::from_millis(500));
        watched.signal(Signal::CONT);
        thread::sleep(Duration::from_millis(300));
        left = left.max(watched.sum("nexent_observer_connections", &[])?);
    }
    let said = target.done_within(Duration::from_secs(bed.seconds) + PATIENCE)?;
    watched.settled()?;
    ensure_unharmed(&said)?;
    let lost = watched.sum("nexent_observer_lost_records_total", &[])?;
    ensure!(lost > 0.0, "nothing was lost");
    left = left.max(watched.sum("nexent_observer_connections", &[])?);
    ensure!(left > 0.0, "no end of a connection was lost");
    // Idle they are after minutes; the process lives, and its addresses are not used again.
    watched.until("nexent_observer_connections", &[], |left| left == 0.0)?;
    watched.until("nexent_observer_open_exchanges", &[], |left| left == 0.0)?;
    let idle = watched.sum("nexent_observer_drops_total", &["reason=\"idle\""])?;
    ensure!(idle == 0.0, "{idle} connections ended by silence");
    target.tell("load 50 20 3")?;
    let next = target.done()?;
    watched.settled()?;
    let requests = watched.sum("llm_requests", &[])?;
    let made = number(&said, "exchanges");
    let streams = number(&next, "exchanges");
    let incomplete = watched.sum("nexent_observer_incomplete_exchanges_total", &[])?;
    ensure!(requests >= streams as f64 && requests - incomplete <= (made + streams) as f64, "{requests} requests");
    let taken = watched.taken()?;
    watched.stop()?;
    Ok(Figures {
        done: format!(
            "{n} connections one after the other, 1000 a second; the observer, with a ring of 64 KiB, stopped for half a second again and again."
        ),
        seen: format!(
            "{left} connections at once whose end was lost; seconds later none was left, and none of them had ended by silence."
        ),
        streams: made + streams,
        calls: Some(number(&said, "calls") + number(&next, "calls")),
        taken: Some(taken),
    })
}

/// SIGSTOP in the middle of a load, SIGCONT, and another load.
pub(super) fn stopped(bed: &Bed) -> Result<Figures> {
    let mut target = FakeTls::start(&bed.fake_tls)?;
    let pid = target.pid().to_string();
    let flags = ["--pid", &pid];
    let mut watched =
        Watched::start(&bed.observer, &bed.dir, 1, &Start { flags: &flags, lines: true, ..Start::default() })?;
    let pause = STOPPED_S.min(bed.seconds);
    let seconds = pause + 4;
    target.tell(&format!("load 200 200 {seconds}"))?;
    thread::sleep(Duration::from_secs(2));
    watched.signal(Signal::STOP);
    thread::sleep(Duration::from_secs(pause));
    watched.signal(Signal::CONT);
    let said = target.done_within(Duration::from_secs(seconds) + PATIENCE)?;
    watched.settled()?;
    ensure_unharmed(&said)?;
    let during = counts(&watched)?;
    ensure!(during.lost > 0.0, "nothing was lost in {pause} s: {during:?}");
    ensure!(during.incomplete > 0.0, "records were lost and nothing is incomplete: {during:?}");
    ensure_accounted(&during, std::slice::from_ref(&said))?;
    sh::say(&format!("stopped for {pause} s: {during:?}"));
    target.tell("load 50 20 3")?;
    let next = target.done()?;
    watched.settled()?;
    let after = counts(&watched)?;
    ensure!(after.lost == during.lost, "records are still being lost: {after:?}");
    let (streams, chunks) = (number(&next, "exchanges"), number(&next, "chunks"));
    ensure!(
        after.requests - during.requests == streams as f64,
        "{streams} streams were made afterwards: {during:?} {after:?}"
    );
    ensure!(
        after.chunks - during.chunks == chunks as f64,
        "{chunks} chunks were made afterwards: {during:?} {after:?}"
    );
    ensure!(after.incomplete == during.incomplete, "something is incomplete afterwards: {during:?} {after:?}");
    let taken = watched.taken()?;
    let answers = answers(&watched.stop()?)?;
    Ok(Figures {
        done: format!(
            "200 streams of 200 chunks a second, the observer stopped for {pause} s in the middle; then 50 of 20 for 3 s."
        ),
        seen: format!(
            "Records and losses are together what the target made; {} answers are told as incomplete, {} as whole, of which each has all its chunks. Afterwards all {streams} streams and {chunks} chunks.",
            answers.incomplete, answers.whole
        ),
        streams: number(&said, "exchanges") + streams,
        calls: Some(number(&said, "calls") + number(&next, "calls")),
        taken: Some(taken),
    })
}
