//! A great deal of something: streams, connections, models, bytes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{
    Bed, Figures, answers, ensure_unharmed, number,
    watched::{Start, Watched},
};
use crate::{fake_tls::FakeTls, sh};

/// Streams at once.
const STREAMS: u64 = 10_000;
/// Short connections (and models) for each second that a proof may take: what a busy machine of two cores makes, too.
const CONNECTIONS_PER_S: u64 = 3500;
/// Most of them.
const CONNECTIONS: u64 = 1_000_000;
/// What memory may grow by between the first tenth and the end, MiB: allocators keep some of what was freed.
const GROWTH_MIB: f64 = 16.0;
/// Most bytes of `/metrics` with as many values of labels as are kept.
const METRICS_BYTES: usize = 16 << 20;
/// Longest that a command of a target may take beyond what it should.
const LATE: Duration = Duration::from_secs(900);
/// Most memory that hostile bytes may make the observer take, MiB.
const HOSTILE_MIB: f64 = 200.0;

/// 10,000 streams at once.
pub(super) fn streams(bed: &Bed) -> Result<Figures> {
    let mut target = FakeTls::start(&bed.fake_tls)?;
    let pid = target.pid().to_string();
    let flags = ["--pid", &pid];
    let mut watched =
        Watched::start(&bed.observer, &bed.dir, 1, &Start { flags: &flags, lines: true, ..Start::default() })?;
    target.tell(&format!("load {STREAMS} 1 {}", bed.seconds))?;
    let open = watched.until("nexent_observer_open_exchanges", &[], |open| open >= STREAMS as f64)?;
    sh::say(&format!("{open} streams are open"));
    let said = target.done_within(Duration::from_secs(bed.seconds) + LATE)?;
    watched.settled()?;
    ensure_unharmed(&said)?;
    watched.until("nexent_observer_connections", &[], |left| left == 0.0)?;
    let taken = watched.taken()?;
    let answers = answers(&watched.stop()?)?;
    let (streams, chunks) = (number(&said, "exchanges"), number(&said, "chunks"));
    if taken.lost == 0.0 {
        ensure!(
            (answers.whole, answers.chunks) == (streams, chunks),
            "{streams} streams, {chunks} chunks: {answers:?}"
        );
    }
    Ok(Figures {
        done: format!("{STREAMS} connections, each with a stream of a chunk a second for {} s.", bed.seconds),
        seen: format!(
            "{open} streams open at once; {} of {streams} answers whole, with {} of {chunks} chunks.",
            answers.whole, answers.chunks
        ),
        streams,
        calls: Some(number(&said, "calls")),
        taken: Some(taken),
    })
}

/// As many short connections as the time allows, up to a million, each at an address of its own.
pub(super) fn connections(bed: &Bed) -> Result<Figures> {
    let n = CONNECTIONS.min(bed.seconds * CONNECTIONS_PER_S);
    let mut target = FakeTls::start(&bed.fake_tls)?;
    let pid = target.pid().to_string();
    // Where the end of a connection is lost with a full ring, silence ends it.
    let flags = ["--pid", &pid, "--connection-idle-seconds", "20"];
    let mut watched = Watched::start(&bed.observer, &bed.dir, 1, &Start { flags: &flags, ..Start::default() })?;
    let (mut made, mut calls, mut closed, mut rss) = (0, 0, 0, Vec::new());
    for _ in 0..10 {
        target.tell(&format!("connections {} 8000 one", n / 10))?;
        let said = target.done_within(LATE)?;
        ensure_unharmed(&said)?;
        (made, calls) = (made + number(&said, "exchanges"), calls + number(&said, "calls"));
        closed += number(&said, "closed");
        watched.settled()?;
        watched.until("nexent_observer_connections", &[], |left| left == 0.0)?;
        watched.until("nexent_observer_open_exchanges", &[], |left| left == 0.0)?;
        rss.push(watched.status_mib("VmRSS")?);
    }
    let taken = watched.taken()?;
    let requests = watched.sum("llm_requests", &[])?;
    let incomplete = watched.sum("nexent_observer_incomplete_exchanges_total", &[])?;
    let (records, lost) = (taken.records, taken.lost);
    ensure!(
        records + lost == (calls + closed) as f64,
        "{calls} calls, {closed} ends, {records} records and {lost} lost"
    );
    if lost == 0.0 {
        ensure!(
            (requests, incomplete) == (made as f64, 0.0),
            "{made} were made, {requests} seen, {incomplete} incomplete"
        );
    }
    let (first, last) = (rss.first().copied().context("no memory was seen")?, rss.last().copied().unwrap_or(f64::MAX));
    ensure!(last <= first + GROWTH_MIB, "memory grows: {rss:.1?} MiB");
    watched.stop()?;
    Ok(Figures {
        done: format!(
            "{made} connections one after the other, each at an address of its own, with one stream of three chunks."
        ),
        seen: format!(
            "{requests} requests seen, {incomplete} of them incomplete; no connection and no stream left; {first:.1} MiB after a tenth of them, {last:.1} at the end."
        ),
        streams: made,
        calls: Some(calls),
        taken: Some(taken),
    })
}

/// As many models as connections.
pub(super) fn labels(bed: &Bed) -> Result<Figures> {
    let n = CONNECTIONS.min(bed.seconds * CONNECTIONS_PER_S);
    let mut target = FakeTls::start(&bed.fake_tls)?;
    let pid = target.pid().to_string();
    let flags = ["--pid", &pid];
    let mut watched = Watched::start(&bed.observer, &bed.dir, 1, &Start { flags: &flags, ..Start::default() })?;
    target.tell(&format!("connections {n} 10000 each"))?;
    let said = target.done_within(LATE)?;
    ensure_unharmed(&said)?;
    watched.settled()?;
    let metrics = watched.metrics()?;
    let (bytes, series) = (metrics.len(), metrics.lines().filter(|line| !line.starts_with('#')).count());
    ensure!(!metrics.contains('\u{1b}') && !watched.said().contains('\u{1b}'), "an escape character gets out");
    ensure!(bytes <= METRICS_BYTES, "/metrics has {bytes} bytes");
    let models: std::collections::BTreeSet<&str> =
        metrics.lines().filter_map(|line| line.split_once("model=\"")?.1.split('"').next()).collect();
    // 200 of them, the empty one, and `other`.
    ensure!(models.len() > 100 && models.len() <= 202, "{} models in /metrics", models.len());
    let requests = watched.sum("llm_requests", &[])?;
    let overflown = watched.sum("nexent_observer_label_overflow_total", &[])?;
    ensure!(overflown > 0.0, "no value of a label was replaced");
    let taken = watched.taken()?;
    if taken.lost == 0.0 {
        ensure!(requests == n as f64, "{n} were made, {requests} are in the metrics");
    }
    watched.stop()?;
    Ok(Figures {
        done: format!(
            "{n} calls, each of a model of its own, whose name has an escape sequence and a tag of HTML in it."
        ),
        seen: format!(
            "{requests} requests in the metrics, under {} models; {series} lines in /metrics ({bytes} bytes), no escape character among them or in the log.",
            models.len()
        ),
        streams: number(&said, "exchanges"),
        calls: Some(number(&said, "calls")),
        taken: Some(taken),
    })
}

/// Answers that do not end.
pub(super) fn hostile(bed: &Bed) -> Result<Figures> {
    let mb = (bed.seconds * 8).min(1024);
    let mut target = FakeTls::start(&bed.fake_tls)?;
    let pid = target.pid().to_string();
    let flags = ["--pid", &pid];
    let mut watched =
        Watched::start(&bed.observer, &bed.dir, 1, &Start { flags: &flags, lines: true, ..Start::default() })?;
    let mut figures = Figures::default();
    let (mut calls, mut told) = (0, Vec::new());
    for case in ["header", "line", "bomb"] {
        let began = Instant::now();
        let drops = watched.sum("nexent_observer_drops_total", &[])?;
        target.tell(&format!("hostile {case} {mb}"))?;
        let said = target.done_within(LATE)?;
        ensure_unharmed(&said)?;
        watched.settled()?;
        let counted = watched.sum("nexent_observer_drops_total", &[])? - drops;
        ensure!(counted > 0.0, "{case} was not counted");
        let before =
            [watched.sum("llm_requests", &[])?, watched.sum("nexent_observer_incomplete_exchanges_total", &[])?];
        let lost = watched.taken()?.lost;
        target.tell("connections 16 1000 one")?;
        let next = target.done_within(LATE)?;
        watched.settled()?;
        let after =
            [watched.sum("llm_requests", &[])?, watched.sum("nexent_observer_incomplete_exchanges_total", &[])?];
        if watched.taken()?.lost == lost {
            ensure!(after == [before[0] + 16.0, before[1]], "after {case}: {before:?}, then {after:?}");
        }
        figures.streams += 1 + number(&next, "exchanges");
        calls += number(&said, "calls") + number(&next, "calls");
        told.push(format!("{case}: {counted} drops counted in {:.1} s", began.elapsed().as_secs_f64()));
    }
    let taken = watched.taken()?;
    ensure!(taken.rss_mib[1] < HOSTILE_MIB, "{:.0} MiB of memory", taken.rss_mib[1]);
    answers(&watched.stop()?)?;
    figures.done = format!(
        "A header line of {mb} MB, an event of {mb} MB, a body of gzip that unpacks to {mb} MB; after each 16 calls."
    );
    figures.seen = format!("{}. All calls after them are right.", told.join("; "));
    (figures.calls, figures.taken) = (Some(calls), Some(taken));
    Ok(figures)
}
