//! Dashboards and alerts against a running observer: real clients stream, a real Prometheus scrapes, every expression is executed,
//! headlines are held against what the clients read, and alerts fire and end.
//!
//! Every duration of configuration and rules is a thirtieth of what is deployed (5 m become 10 s), so that this takes a minute.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    alertmanager::Alertmanager, checked, dashboards, documents, files, need, need_prometheus, prometheus::Prometheus,
    script,
};
use crate::{
    clients::{Driver, clock_dir},
    observer::Observer,
    python,
    server::{Kind, LlmServer},
    sh, truth,
};

/// A thirtieth of a minute.
const MINUTE: Duration = Duration::from_secs(2);
/// Longest that an alert may take to fire or to end: its window of 10 s, its `for` and some evaluations.
const ALERT: Duration = Duration::from_secs(45);
/// Longest that clients may take.
const LONGEST: Duration = Duration::from_secs(120);
/// Headlines may be off by so much of what the clients read.
const TOLERANCE: f64 = 0.01;
/// Calls of the calm phase, whose numbers are compared: streams of all paces, with and without usage, and some errors.
const CALM: &[&str] = &[
    "--workers",
    "4",
    "--requests",
    "10",
    "--stream-share",
    "1",
    "--plan",
    "plain,steady,multi-token,slow-first,no-usage,reasoning,http-429,usage-always,tool,coalesced",
];
/// Streams at under 3 tokens/s that take over 10 s.
const SLOW: &[&str] = &[
    "--workers",
    "3",
    "--requests",
    "1",
    "--stream-share",
    "1",
    "--plan",
    "plain",
    "--chunks",
    "32",
    "--pause-ms",
    "350",
];
/// Streams with a silence of over 2 s.
const STALLING: &[&str] = &["--workers", "3", "--requests", "1", "--stream-share", "1", "--plan", "stall"];
/// Nothing but errors.
const FAILING: &[&str] = &["--workers", "4", "--requests", "4", "--stream-share", "1", "--plan", "http-429,http-500"];

/// Metrics that have no series before something went wrong that does not go wrong here.
const SILENT: &[&str] = &["nexent_observer_label_overflow_total"];

/// What was seen.
#[derive(Debug, Default)]
pub struct Report {
    /// Lines for a person.
    pub lines: Vec<String>,
}

/// Runs it with the observer `binary` and the clients' interpreter `python`; all logs go to `dir`, which is emptied.
pub fn run(root: &Path, binary: &Path, python: &Path, dir: &Path) -> Result<Report> {
    need_prometheus()?;
    need(&[("prometheus-alertmanager", "prometheus-alertmanager")], "it is told of the alerts")?;
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut report = Report::default();
    let server = LlmServer::start(Kind::Simulated, dir, 1)?;
    let mut calm = Driver::start(python, "openai_sync.py", "calm", &server, dir, CALM)?;
    let listen = truth::free_address()?;
    let executable = truth::executable(calm.pids.last().copied())?;
    let vocabulary = format!("sim-usage-always*={}", tokenizer(dir)?.display());
    let targets = ["--exe", &executable, "--service-name", "stack-test", "--tokenizer-files", &vocabulary];
    let targets = targets.map(str::to_owned);
    let mut observer = Observer::start(&confined(binary, dir)?, &targets, dir, listen, None)?;
    observer.attached(calm.pids.len(), Duration::from_secs(30))?;
    let began = Instant::now();
    let alertmanager = Alertmanager::start(dir, truth::free_address()?)?;
    let prometheus =
        Prometheus::start(&configuration(root, dir, listen, alertmanager.address)?, dir, truth::free_address()?)?;
    // From the second window on, the rules know that a new series really is one.
    thread::sleep(MINUTE * 6);

    calm.go()?;
    calm.done(LONGEST)?;
    thread::sleep(MINUTE);
    observer.check()?;
    let range = format!("{}s", began.elapsed().as_secs() + 5);
    headlines(root, &prometheus, dir, &range, &mut report)?;
    every_expression(root, &prometheus, &range, &mut report)?;
    let broken = prometheus.broken_rules()?;
    ensure!(broken.is_empty(), "rules that Prometheus cannot evaluate: {broken:#?}");

    // A thirtieth of the calm phase's errors may still be in the window: only what comes after its end counts.
    silent(&prometheus, &mut report)?;
    alertmanager.forget();
    for (name, flags, alerts) in [
        ("slow", SLOW, &["LLMSlowTokenRate", "LLMSlowRequests"][..]),
        ("stalling", STALLING, &["LLMStreamStalls"]),
        ("failing", FAILING, &["LLMHighErrorRate", "LLMRateLimited"]),
    ] {
        let mut client = Driver::start(python, "openai_sync.py", name, &server, dir, flags)?;
        observer.attached(1, Duration::from_secs(30))?;
        // The new process is found at its exec; its probes are there before it is through with its imports.
        client.go()?;
        if name == "slow" {
            moving(root, &prometheus, &mut report)?;
        }
        client.done(LONGEST)?;
        fire_and_end((&prometheus, &alertmanager), name, alerts, &mut report)?;
    }
    observer.check()?;
    fires(&prometheus, "NexentObserverNotAttached")?;
    observer.stop()?;
    fires(&prometheus, "NexentObserverDown")?;
    let answered = documents::addresses(root, binary, dir)?;
    let alone = "NexentObserverNotAttached fires without a client, NexentObserverDown without the observer";
    report.lines.extend([alone.to_owned(), answered]);
    Ok(report)
}

/// The observer with the capabilities that it is deployed with, and no other.
fn confined(binary: &Path, dir: &Path) -> Result<PathBuf> {
    let capabilities: String =
        super::containers::CAPABILITIES.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
    let text = format!(
        "exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all{capabilities} '{}' \"$@\"\n",
        binary.display()
    );
    script(dir, "observer.sh", &text)
}

/// Configuration and rules of `deploy/prometheus`, with this observer and shorter times. The part on Alertmanager, which is
/// commented out there, is used.
fn configuration(root: &Path, dir: &Path, observer: SocketAddr, alertmanager: SocketAddr) -> Result<PathBuf> {
    let from = root.join("deploy/prometheus");
    let rules = dir.join("rules");
    fs::create_dir_all(&rules).with_context(|| format!("cannot make {}", rules.display()))?;
    for entry in fs::read_dir(from.join("rules")).context("no rules")? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(rules.join(path.file_name().context("no name")?), shortened(&text)).context("cannot write a rule")?;
    }
    let text = fs::read_to_string(from.join("prometheus.yml")).context("cannot read prometheus.yml")?;
    let mut here = text
        .replace("scrape_interval: 5s", "scrape_interval: 500ms")
        .replace("scrape_timeout: 4s", "scrape_timeout: 400ms")
        .replace("evaluation_interval: 15s", "evaluation_interval: 500ms")
        .replace("nexent-observer:9464", &observer.to_string());
    for line in ["alerting:", "  alertmanagers:", "    - static_configs:", "        - targets: [alertmanager:9093]"] {
        let commented = format!("\n# {line}\n");
        ensure!(here.contains(&commented), "prometheus.yml does not have {line:?} as a comment");
        here = here.replace(&commented, &format!("\n{line}\n"));
    }
    here = here.replace("alertmanager:9093", &alertmanager.to_string());
    // There is no Jaeger here, and this Prometheus has another port.
    here.truncate(here.find("\n  - job_name: prometheus").context("prometheus.yml has no job prometheus")?);
    ensure!(
        here.matches("00ms").count() == 3 && here.contains(&observer.to_string()),
        "prometheus.yml is not as known"
    );
    let path = dir.join("prometheus.yml");
    fs::write(&path, here).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// A text with every duration in minutes as a thirtieth of it; `5m` in a name or `5 min` in a sentence stay.
fn shortened(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, after) = rest.split_at(at);
        let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        let (digits, tail) = after.split_at(end);
        let in_a_word = before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.');
        let unit = tail.strip_prefix('m').filter(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'));
        out.push_str(before);
        match (unit, digits.parse::<u64>()) {
            (Some(rest_of_it), Ok(minutes)) if !in_a_word => {
                out.push_str(&format!("{}s", minutes * MINUTE.as_secs()));
                rest = rest_of_it;
            }
            _ => {
                out.push_str(digits);
                rest = tail;
            }
        }
    }
    out.push_str(rest);
    out
}

/// The stat panels of the first dashboard against the clients' own logs.
fn headlines(root: &Path, prometheus: &Prometheus, dir: &Path, range: &str, report: &mut Report) -> Result<()> {
    let said = checked(Command::new("python3").arg(sh::fixture("stack/headline.py")?).arg(clock_dir(dir)))?;
    let truth: Value = serde_json::from_str(said.trim()).context("headline.py printed no JSON")?;
    let boards = dashboards::all(root)?;
    let performance =
        boards.iter().find(|board| board.path.ends_with("llm-performance.json")).context("no dashboard")?;
    let was = |key: &str| truth[key].as_f64().with_context(|| format!("the clients have no {key}"));
    let share = was("errors")? / was("calls")?;
    for (panel, was) in [
        ("Calls", was("calls")?),
        ("Mean token rate", was("tokens_per_s")?),
        ("Mean TTFT", was("ttft_s")?),
        ("Tokens", was("input_tokens")? + was("output_tokens")?),
        ("Error share", share),
    ] {
        let expr = performance.query(panel, 0).with_context(|| format!("there is no panel {panel}"))?;
        let seen = prometheus.value(&super::promql::filled(&expr, "10s", range))?;
        ensure!(was > 0.0 && (seen / was - 1.0).abs() <= TOLERANCE, "{panel}: {seen}, the clients read {was}");
        report.lines.push(format!("{panel}: {seen:.4}, the clients read {was:.4}"));
    }
    Ok(())
}

/// The panels that move while streams are open, during the slow phase: three streams with a chunk every 350 ms.
fn moving(root: &Path, prometheus: &Prometheus, report: &mut Report) -> Result<()> {
    let boards = dashboards::all(root)?;
    let performance =
        boards.iter().find(|board| board.path.ends_with("llm-performance.json")).context("no dashboard")?;
    let value = |panel: &str| -> Result<f64> {
        let expr = performance.query(panel, 0).with_context(|| format!("there is no panel {panel}"))?;
        prometheus.value(&format!("sum ({})", super::promql::filled(&expr, "10s", "10s")))
    };
    let until = Instant::now() + Duration::from_secs(8);
    loop {
        let (active, rate) = (value("Active streams")?, value("Live token rate")?);
        // 3 / 0.35 s, give or take a chunk at the edges of the window that the rate is of.
        if active == 3.0 && (6.0..=11.0).contains(&rate) {
            report.lines.push(format!(
                "while 3 slow streams of 8.6 chunks/s are open: {active} active, {rate:.1} tokens/s live"
            ));
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "3 streams of 8.6 chunks/s are open; the panels say {active} and {rate} tokens/s"
        );
        thread::sleep(Duration::from_millis(250));
    }
}

/// Every expression of every dashboard has a series; every metric of every alert, too (an alert itself is empty while it is silent).
fn every_expression(root: &Path, prometheus: &Prometheus, range: &str, report: &mut Report) -> Result<()> {
    let mut empty = Vec::new();
    let mut count = 0;
    for board in dashboards::all(root)? {
        for query in board.queries().into_iter().chain(board.variables()?) {
            let expr = super::promql::filled(&query.expr, range, range);
            let found = prometheus.query(&expr).with_context(|| query.place.clone())?;
            count += 1;
            let silent = SILENT.iter().any(|metric| expr.contains(metric));
            if found.is_empty() && !silent {
                empty.push(format!("{}: {expr}", query.place));
            } else {
                let bad = found.iter().find(|sample| sample.value.is_infinite());
                ensure!(
                    bad.is_none(),
                    "{}: {expr} is infinite for {}",
                    query.place,
                    bad.map_or(&Value::Null, |s| &s.labels)
                );
            }
        }
    }
    for (name, rule) in files::alerts(root)? {
        let expr = shortened(rule["expr"].as_str().unwrap_or_default());
        prometheus.query(&expr).with_context(|| name.clone())?;
        count += 1;
        for metric in super::promql::metrics(&expr) {
            if prometheus.query(&format!("count({metric})"))?.is_empty() {
                empty.push(format!("{name}: {metric}"));
            }
        }
    }
    ensure!(empty.is_empty(), "nothing comes of {empty:#?}");
    report.lines.push(format!(
        "{count} expressions of dashboards and alerts executed; all have series but those of {SILENT:?}"
    ));
    Ok(())
}

/// A tokenizer of the tests, for streams whose provider reports tokens, too.
fn tokenizer(dir: &Path) -> Result<PathBuf> {
    let file = dir.join("tokenizer.json");
    sh::run(Command::new(python::tokens()?).arg(sh::fixture("tokens/tokens.py")?).arg("train").arg(&file))?;
    Ok(file)
}

/// Names of the alerts on calls that fire. Between two clients the observer has nothing to watch, and may say so.
fn on_calls(prometheus: &Prometheus) -> Result<Vec<String>> {
    Ok(prometheus.firing()?.into_iter().filter(|name| name.starts_with("LLM")).collect())
}

/// Waits until no alert on calls fires.
fn silent(prometheus: &Prometheus, report: &mut Report) -> Result<()> {
    let until = Instant::now() + ALERT;
    loop {
        let firing = on_calls(prometheus)?;
        if firing.is_empty() {
            report.lines.push("no alert fires on the calm streams".to_owned());
            return Ok(());
        }
        ensure!(Instant::now() < until, "{firing:?} fire without a reason");
        thread::sleep(Duration::from_millis(250));
    }
}

/// Waits until all of `alerts` have fired and none fires any more, in Prometheus and to whom Alertmanager told it.
fn fire_and_end(
    (prometheus, alertmanager): (&Prometheus, &Alertmanager),
    phase: &str,
    alerts: &[&str],
    report: &mut Report,
) -> Result<()> {
    let began = Instant::now();
    let mut fired = BTreeSet::new();
    loop {
        let firing = on_calls(prometheus)?;
        fired.extend(firing.iter().cloned());
        let told = alertmanager.fired_and_resolved();
        if alerts.iter().all(|alert| fired.contains(*alert) && told.contains(*alert)) && firing.is_empty() {
            break;
        }
        ensure!(
            began.elapsed() < ALERT,
            "{phase}: {alerts:?} should fire and end; {fired:?} fired, {firing:?} fire still; Alertmanager told of {told:?}"
        );
        thread::sleep(Duration::from_millis(250));
    }
    report.lines.push(format!("{phase}: {fired:?} fired and ended, and Alertmanager told so"));
    alertmanager.forget();
    Ok(())
}

/// Waits until an alert fires.
fn fires(prometheus: &Prometheus, alert: &str) -> Result<()> {
    let until = Instant::now() + ALERT;
    while !prometheus.firing()?.iter().any(|name| name == alert) {
        ensure!(Instant::now() < until, "{alert} does not fire");
        thread::sleep(Duration::from_millis(250));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn durations_are_shortened_and_names_are_not() {
        let text = "record: a:increase5m\nexpr: rate(a[15m]) offset 5m > 0.5\nfor: 2m # in 5 min, 5ms, x5m";
        assert_eq!(
            shortened(text),
            "record: a:increase5m\nexpr: rate(a[30s]) offset 10s > 0.5\nfor: 4s # in 5 min, 5ms, x5m"
        );
    }
}
