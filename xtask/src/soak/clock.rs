//! A wall clock that is stepped while streams are open.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Bed, Figures, answers,
    collector::Collector,
    ensure_unharmed, number,
    watched::{PATIENCE, Start, Watched},
};
use crate::{fake_tls::FakeTls, observer, sh};

/// Where the clock is set to in turn, against the right time, s: an hour ahead, right again, two hours back, a second ahead.
const STEPS: [i64; 4] = [3600, 0, -7200, 1];
/// Pause between two steps: a stream of 2 s sees several.
const PAUSE: Duration = Duration::from_millis(700);
/// Streams at once, and chunks a second of each; an answer has 500.
const LOAD: (u64, u64) = (20, 250);
/// By so much the start of a span may be off the clock of some moment, ns: two clocks are not read at once.
const OFF: i64 = 20_000_000;

/// What the collector was told of a span.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: i64,
    end: i64,
}

/// Steps of an hour and more, forth and back, seen by the observer alone.
pub(super) fn steps(bed: &Bed) -> Result<Figures> {
    let library = shim(bed)?;
    let path = bed.dir.join("step");
    fs::write(&path, 0i64.to_ne_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    let file = File::options().write(true).open(&path).context("the step cannot be written")?;
    let collector = Collector::keeping()?;
    let mut target = FakeTls::start(&bed.fake_tls)?;
    let pid = target.pid().to_string();
    let otlp = format!("http://{}", collector.address);
    let step = path.to_string_lossy();
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("STEP_CLOCK_FILE", &step),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
    ];
    let flags = ["--pid", &pid, "--otlp", &otlp];
    let start = Start { flags: &flags, env: &env, lines: true, ..Start::default() };
    let mut watched = Watched::start(&bed.observer, &bed.dir, 1, &start)?;
    let seconds = bed.seconds.max(4);
    target.tell(&format!("load {} {} {seconds}", LOAD.0, LOAD.1))?;
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut steps = 0;
    for to in STEPS.iter().cycle() {
        thread::sleep(PAUSE);
        if Instant::now() >= end {
            break;
        }
        file.write_all_at(&(to * 1_000_000_000).to_ne_bytes(), 0).context("the step cannot be written")?;
        steps += 1;
    }
    let said = target.done_within(Duration::from_secs(seconds) + PATIENCE)?;
    ensure_unharmed(&said)?;
    watched.settled()?;
    let metrics = watched.metrics()?;
    let taken = watched.taken()?;
    let lines = watched.stop()?;
    let counted = answers(&lines)?;
    ensure!(taken.lost == 0.0 && counted.incomplete == 0, "records were lost: nothing is shown");
    ensure!(counted.whole == number(&said, "exchanges"), "{} answers were made, {counted:?} seen", said["exchanges"]);
    let timed = observer::sum(&metrics, "llm_request_duration_seconds_sum", &[]);
    let told: f64 = lines.iter().filter_map(|line| line["duration_s"].as_f64()).sum();
    ensure!((timed - told).abs() < 1e-6 * told, "lines tell of {told} s, the histogram of {timed} s");
    let seen = compare(&lines, &spans(&collector.kept())?)?;
    Ok(Figures {
        done: format!(
            "{} streams of {} chunks a second for {seconds} s; the observer's wall clock set an hour ahead, right, two hours back and a second ahead in turn, {steps} times.",
            LOAD.0, LOAD.1
        ),
        seen: format!(
            "{} calls, each whole; the span of each lasts, to the nanosecond, what the monotonic clock says, and begins where one of the clocks stood: {} right, {} ahead, {} back, {} a second ahead.",
            counted.whole, seen[1], seen[0], seen[2], seen[3]
        ),
        streams: counted.whole,
        calls: Some(number(&said, "calls")),
        taken: Some(taken),
    })
}

/// The clock of the process, made here.
fn shim(bed: &Bed) -> Result<String> {
    sh::have("gcc", &["gcc", "libc6-dev"])?;
    let library = bed.dir.join("step_clock.so");
    let source = sh::fixture("soak/step_clock.c")?;
    sh::run(
        Command::new("gcc").args(["-O2", "-Wall", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl"),
    )?;
    Ok(library.to_string_lossy().into_owned())
}

/// Holds every line against its span; how many calls began by which step.
fn compare(lines: &[Value], spans: &HashMap<String, Span>) -> Result<[u64; STEPS.len()]> {
    let mut offsets = Vec::with_capacity(lines.len());
    for line in lines {
        let id = line["span_id"].as_str().context("a line without a span")?;
        let span = spans.get(id).with_context(|| format!("the span of {line} did not come"))?;
        let at = |key: &str| line[key].as_i64().with_context(|| format!("no {key}: {line}"));
        let (start, end) = (at("request_start_ns")?, at("end_ns")?);
        ensure!(span.end - span.start == end - start, "{span:?} lasts another time than {line}");
        offsets.push(span.start - start);
    }
    // What the right clock is ahead of the monotonic one: the steps are far from each other, so only one of them fits.
    let first = *offsets.first().context("no call was seen")?;
    let near = |offset: i64, right: i64, to: i64| (offset - right - to * 1_000_000_000).abs() <= OFF;
    let fits = |right: i64| offsets.iter().filter(|&&offset| STEPS.iter().any(|&to| near(offset, right, to))).count();
    let right = STEPS.iter().map(|to| first - to * 1_000_000_000).max_by_key(|&right| fits(right)).unwrap_or(first);
    let mut seen = [0; STEPS.len()];
    for offset in &offsets {
        let step = STEPS.iter().position(|&to| near(*offset, right, to));
        let step = step.with_context(|| format!("a span began {} s off", (offset - right) as f64 / 1e9))?;
        if let Some(n) = seen.get_mut(step) {
            *n += 1;
        }
    }
    ensure!(seen.iter().filter(|n| **n > 0).count() >= 2, "the clock of the observer was not stepped: {seen:?}");
    Ok(seen)
}

/// Spans by their id, of requests in JSON.
fn spans(bodies: &[Vec<u8>]) -> Result<HashMap<String, Span>> {
    let mut found = HashMap::new();
    for body in bodies {
        let body: Value = serde_json::from_slice(body).context("the collector got no JSON")?;
        let inner = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
        let scopes = inner(&body, "resourceSpans").into_iter().flat_map(|resource| inner(&resource, "scopeSpans"));
        for span in scopes.flat_map(|scope| inner(&scope, "spans")) {
            let at = |key: &str| span[key].as_str().and_then(|ns| ns.parse().ok()).context("a span without times");
            let id = span["spanId"].as_str().context("a span without an id")?;
            found.insert(id.to_owned(), Span { start: at("startTimeUnixNano")?, end: at("endTimeUnixNano")? });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn seen(offsets: &[i64], lasts: i64) -> Result<[u64; STEPS.len()]> {
        let name = |n: usize| format!("{n:016x}");
        let line =
            |n| json!({"span_id": name(n), "request_start_ns": n as i64 * SECOND, "end_ns": n as i64 * SECOND + 7});
        let span = |(n, offset): (usize, &i64)| {
            let start = n as i64 * SECOND + offset;
            (name(n), Span { start, end: start + lasts })
        };
        let lines: Vec<Value> = (0..offsets.len()).map(line).collect();
        compare(&lines, &offsets.iter().enumerate().map(span).collect())
    }

    #[test]
    fn spans_are_told_by_the_step_in_which_they_began_and_may_be_no_longer_than_they_are() {
        let right = 1_700_000_000 * SECOND;
        let at = |to: i64| right + to * SECOND;
        assert_eq!(seen(&[at(3600), at(0), at(0), at(-7200), at(1) + OFF], 7).unwrap(), [1, 2, 1, 1]);
        assert_eq!(seen(&[at(0), at(-7200)], 7).unwrap()[2], 1);
        assert!(seen(&[at(0), at(3600)], 8).is_err(), "it lasts another time");
        assert!(seen(&[at(0), at(3600), at(30)], 7).is_err(), "no clock stood there");
        assert!(seen(&[at(0), at(0)], 7).is_err(), "nothing was stepped");
        assert!(seen(&[], 7).is_err());
    }

    #[test]
    fn spans_are_read_from_json() {
        let span = json!({"spanId": "ab", "startTimeUnixNano": "5", "endTimeUnixNano": "7"});
        let body = json!({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).to_string().into_bytes();
        let found = spans(&[body, b"{}".to_vec()]).unwrap();
        assert_eq!((found.len(), found["ab"].start, found["ab"].end), (1, 5, 7));
        assert!(spans(&[b"x".to_vec()]).is_err());
    }
}
