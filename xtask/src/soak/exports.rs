//! Receivers that do not take what they are sent.

use std::{
    fs::{self, OpenOptions},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Bed, Figures,
    collector::{Collector, Mood},
    ensure_unharmed, number,
    watched::{PATIENCE, Start, Watched},
};
use crate::{fake_tls::FakeTls, observer, sh};

/// Calls a second.
const RATE: u64 = 300;
/// What memory may grow by while nobody takes spans, MiB: a full queue of them, and batches under way.
const QUEUED_MIB: f64 = 64.0;

/// Well, slow, refusing, dead, and well again.
pub(super) fn collector(bed: &Bed) -> Result<Figures> {
    let phase = Duration::from_secs(bed.seconds) / 5;
    let well = Collector::listen(None)?;
    let address = well.address;
    let mut target = FakeTls::start(&bed.fake_tls)?;
    let pid = target.pid().to_string();
    let otlp = format!("http://{address}");
    let flags = ["--pid", &pid, "--otlp", &otlp];
    let env = [
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "2000"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "512"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "128"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
    ];
    let start = Start { flags: &flags, env: &env, ..Start::default() };
    let mut watched = Watched::start(&bed.observer, &bed.dir, 1, &start)?;
    let of = ["exporter=\"otlp\"", "signal=\"spans\""];
    let depth = |watched: &Watched| watched.sum("nexent_observer_queue_depth", &of);
    target.tell(&format!("connections {} {RATE} one", bed.seconds * RATE))?;
    thread::sleep(phase);
    let first = watched.until("nexent_observer_exported_total", &of, |n| n > 0.0)?;
    well.be(Mood::Slow(Duration::from_millis(1000)));
    thread::sleep(phase);
    well.be(Mood::Refusing);
    thread::sleep(phase);
    let deepest = depth(&watched)?;
    let taken_before = well.spans();
    drop(well);
    thread::sleep(phase);
    let deepest = depth(&watched)?.max(deepest);
    ensure!(deepest <= 512.0 + 2.0 * 128.0, "{deepest} spans wait where 512 may");
    let failures = watched.until("nexent_observer_export_failures_total", &of, |n| n > 0.0)?;
    let before = watched.sum("nexent_observer_exported_total", &of)?;
    let again = Collector::listen(Some(address))?;
    let said = target.done_within(Duration::from_secs(bed.seconds) + PATIENCE)?;
    ensure_unharmed(&said)?;
    // The load may have been over when the collector came back.
    target.tell("connections 32 1000 one")?;
    let next = target.done()?;
    watched.settled()?;
    let end = Instant::now() + PATIENCE;
    while depth(&watched)? > 0.0 {
        ensure!(Instant::now() < end, "spans still wait");
        thread::sleep(Duration::from_millis(100));
    }
    let metrics = watched.metrics()?;
    let exported = observer::sum(&metrics, "nexent_observer_exported_total", &of);
    let dropped = observer::sum(&metrics, "nexent_observer_export_dropped_total", &of);
    let (requests, sent) =
        (observer::sum(&metrics, "llm_requests", &[]), number(&said, "exchanges") + number(&next, "exchanges"));
    ensure!(exported + dropped == requests, "{requests} calls, {exported} spans delivered and {dropped} given up");
    ensure!(dropped > 0.0, "nothing was given up: the collector was never away");
    ensure!(exported > before && again.spans() > 0, "nothing is delivered after the collector came back");
    let took = (taken_before + again.spans()) as f64;
    // What was answered too late was taken, and is sent again.
    ensure!(took >= exported, "{exported} are said to be delivered, {took} were");
    let taken = watched.taken()?;
    if taken.lost == 0.0 {
        ensure!(requests == sent as f64, "{sent} calls were made, {requests} seen");
    }
    ensure!(taken.rss_mib[1] <= taken.rss_mib[0] + QUEUED_MIB, "memory grew: {:?} MiB", taken.rss_mib);
    watched.stop()?;
    sh::say(&format!("{first} spans at first, {exported} in all, {dropped} given up"));
    Ok(Figures {
        done: format!(
            "{RATE} calls a second; a collector that takes spans for {0:.0} s, answers after a second for {0:.0} s, says 503 for {0:.0} s, does not listen for {0:.0} s, and is back. Queue of 512 spans, 2 s for each batch.",
            phase.as_secs_f64()
        ),
        seen: format!(
            "{exported} spans delivered and {dropped} given up, of {requests} calls; {failures} attempts failed before it was back; at most {deepest} spans waited when it was looked at."
        ),
        streams: sent,
        calls: Some(number(&said, "calls") + number(&next, "calls")),
        taken: Some(taken),
    })
}

/// A file system of 256 KiB, in a mount namespace of the observer's own: full, emptied, and full again.
pub(super) fn full_disk(bed: &Bed) -> Result<Figures> {
    let disk = bed.dir.join("disk");
    fs::create_dir_all(&disk).with_context(|| format!("cannot make {}", disk.display()))?;
    let (disk, lines) = (disk.to_string_lossy().into_owned(), disk.join("lines.jsonl"));
    let mut target = FakeTls::start(&bed.fake_tls)?;
    let pid = target.pid().to_string();
    let jsonl = lines.to_string_lossy().into_owned();
    let flags = ["--pid", &pid, "--jsonl", &jsonl];
    let script = "disk=$1; shift; mount -t tmpfs -o size=256k none \"$disk\" && exec \"$@\"";
    let by = ["unshare", "--mount", "sh", "-c", script, "sh", &disk];
    let mut watched =
        Watched::start(&bed.observer, &bed.dir, 1, &Start { flags: &flags, by: &by, ..Start::default() })?;
    let seen_there = format!("/proc/{}/root{}", watched.pid(), lines.display());
    let of = ["exporter=\"jsonl\"", "signal=\"lines\""];
    let (mut made, mut calls, mut whole, mut torn) = (0, 0, 0, 0);
    let rounds = (bed.seconds / 2).max(2);
    for _ in 0..rounds {
        let failures = watched.sum("nexent_observer_export_dropped_total", &of)?;
        target.tell("connections 640 1000 one")?;
        let said = target.done()?;
        ensure_unharmed(&said)?;
        (made, calls) = (made + number(&said, "exchanges"), calls + number(&said, "calls"));
        watched.settled()?;
        watched.until("nexent_observer_export_dropped_total", &of, |n| n > failures)?;
        let text = fs::read_to_string(&seen_there).with_context(|| format!("cannot read {seen_there}"))?;
        for line in text.lines().filter(|line| !line.is_empty()) {
            if serde_json::from_str::<Value>(line).is_ok() { whole += 1 } else { torn += 1 }
        }
        // Room again, as logrotate's copytruncate makes it.
        OpenOptions::new().write(true).open(&seen_there)?.set_len(0)?;
    }
    let metrics = watched.metrics()?;
    let requests = observer::sum(&metrics, "llm_requests", &[]);
    let exported = observer::sum(&metrics, "nexent_observer_exported_total", &of);
    let dropped = observer::sum(&metrics, "nexent_observer_export_dropped_total", &of);
    ensure!(exported + dropped == requests, "{requests} calls, {exported} lines written and {dropped} dropped");
    ensure!(f64::from(whole) == exported, "{exported} lines are said to be written, {whole} are there");
    ensure!(u64::from(torn as u32) <= rounds, "{torn} broken lines where the disk was full {rounds} times");
    let failed = watched.said().matches("JSON lines cannot be written").count();
    ensure!(failed as u64 <= rounds, "the log repeats itself: {failed} times");
    let taken = watched.taken()?;
    watched.stop()?;
    Ok(Figures {
        done: format!("JSON lines to a file system of 256 KiB, emptied {rounds} times; 640 calls each time."),
        seen: format!(
            "{exported} lines written and {dropped} counted as dropped, of {requests} calls; {torn} cut off where the disk was full, all others whole; said {failed} times in the log."
        ),
        streams: made,
        calls: Some(calls),
        taken: Some(taken),
    })
}
