//! What it costs to observe the requests that a process serves and to join its calls to them: the core from memory, and a real backend.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::{
    process::Guarded,
    python,
    server::{Kind, LlmServer},
    sh,
};

use super::{
    Bench,
    figure::Figure,
    sink::Sink,
    watched::{Watcher, cpu_ns},
};

const PATIENCE: Duration = Duration::from_secs(180);
/// Rounds in which all ways take turns; the median counts.
const ROUNDS: usize = 5;
const REQUESTS: usize = 60;
/// The ways to observe the backend; the first one is none.
const WAYS: [Option<&[&str]>; 4] = [
    None,
    Some(&["--plain-http", "off"]),
    Some(&["--plain-http", "on"]),
    Some(&["--plain-http", "on", "--join-by-content"]),
];

/// Microseconds of CPU for a request and its calls.
#[derive(Debug, Clone, Copy)]
struct Cost {
    backend: f64,
    observer: f64,
}

/// Runs the core's example, then a backend under each way.
pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let mut figures = from_memory(&core(bench)?);
    figures.extend(with_backend(&backend(bench)?));
    Ok(figures)
}

fn core(bench: &Bench) -> Result<Value> {
    sh::run(sh::cargo(&bench.root).args([
        "build",
        "--release",
        "--locked",
        "--package",
        "nexent-observer-core",
        "--example",
        "chain_speed",
    ]))?;
    super::json_of(&mut Command::new(sh::target_dir(&bench.root).join("release/examples/chain_speed")))
}

fn from_memory(said: &Value) -> Vec<Figure> {
    let of = |way: &str| said[way].as_f64().unwrap_or(f64::NAN);
    let apart = of("apart");
    let times = |name, way: &str, what: &str| {
        let how = format!(
            "{:.1} us for a request of 2 KB and its two calls of 20 chunks {what}, {apart:.1} us with the calls in another process: medians of 9 turns, by time on a CPU (examples/chain_speed).",
            of(way)
        );
        Figure::reported(name, of(way) / apart, "x not joined", how)
    };
    vec![
        times("core, joining by threads", "joined", "joined by their thread"),
        times("core, joining by started threads", "threads", "of threads that are started for each"),
        times("core, joining by content", "content", "joined by content"),
    ]
}

/// Costs of each way, in its order.
fn backend(bench: &Bench) -> Result<Vec<Cost>> {
    let dir = bench.dir.join("chain");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let server = LlmServer::start(Kind::Simulated, &dir, 1)?;
    let mut command = Command::new(python::chain()?);
    command.arg(sh::fixture("chain/backend.py")?).args(["--shape", "flask", "--base-url", &server.base_url]);
    command.env("SSL_CERT_FILE", &server.certificate.cert);
    command.stderr(fs::File::create(dir.join("backend.stderr")).context("cannot write the backend's log")?);
    let backend = Guarded::talking("the backend", &mut command)?;
    let ready = backend.event("ready", Duration::from_secs(60))?;
    let (pid, port) = (ready["pid"].to_string(), ready["port"].to_string());
    let number = pid.parse().context("the backend has no pid")?;
    let sink = Sink::start()?;
    load(&port)?; // what it does only once
    let mut costs: [Vec<Cost>; WAYS.len()] = Default::default();
    for _ in 0..ROUNDS {
        for (way, costs) in WAYS.iter().zip(&mut costs) {
            let targets = way.map(|flags| [&["--pid", &pid], flags].concat());
            let watcher = targets.map(|targets| Watcher::start(&bench.observer, &targets, &dir, &sink)).transpose()?;
            let of_observer = || watcher.as_ref().map_or(Ok(0.0), Watcher::cpu_ns);
            let (backend_from, observer_from) = (cpu_ns(number)?, of_observer()?);
            load(&port)?;
            let each = |ns: f64| ns / 1e3 / REQUESTS as f64;
            let cost =
                Cost { backend: each(cpu_ns(number)? - backend_from), observer: each(of_observer()? - observer_from) };
            costs.push(cost);
            if let Some(watcher) = watcher {
                let lines = watcher.stop()?;
                let joined = lines.iter().filter(|line| !line["parent_rule"].is_null()).count();
                let served = sees_requests(*way);
                ensure!(
                    lines.len() >= REQUESTS && (joined > 0) == served,
                    "{joined} of {} calls are joined",
                    lines.len()
                );
            }
        }
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let of_way = |costs: Vec<Cost>| Cost {
        backend: median(costs.iter().map(|cost| cost.backend).collect()),
        observer: median(costs.iter().map(|cost| cost.observer).collect()),
    };
    Ok(costs.into_iter().map(of_way).collect())
}

/// Whether requests are seen, so that calls can be joined to them.
fn sees_requests(way: Option<&[&str]>) -> bool {
    way.is_some_and(|flags| flags.contains(&"on"))
}

/// Lets the backend serve, eight requests at a time.
fn load(port: &str) -> Result<()> {
    let mut command = Command::new("python3");
    command.arg(sh::fixture("chain/load.py")?).args(["--port", port, "--concurrency", "8"]);
    command.args(["--requests", &REQUESTS.to_string()]);
    let done = Guarded::talking("the load", &mut command)?.event("done", PATIENCE)?;
    ensure!(done["failed"].as_array().is_some_and(Vec::is_empty), "requests failed: {done}");
    Ok(())
}

fn with_backend(costs: &[Cost]) -> Vec<Figure> {
    let [alone, calls, inbound, content] = costs else { return Vec::new() };
    let how = |cost: &Cost, than: &Cost| {
        format!(
            "Flask with threads, 2 calls on average and one of a tool a request: {:.0} us of CPU a request against {:.0}; the observer's own {:.0} against {:.0}. Medians of {ROUNDS} rounds of {REQUESTS} requests, the ways in turn.",
            cost.backend, than.backend, cost.observer, than.observer
        )
    };
    let target = |name, cost: &Cost, than: &Cost, unit| {
        Figure::reported(name, cost.backend / than.backend, unit, how(cost, than))
    };
    let own = |name, cost: &Cost, than: &Cost, unit| {
        Figure::reported(name, cost.observer / than.observer, unit, how(cost, than))
    };
    vec![
        target("backend, only its calls observed", calls, alone, "x alone"),
        target("backend, its requests observed, too", inbound, alone, "x alone"),
        target("backend, its requests, too, by content", content, alone, "x alone"),
        own("observer, requests and joining", inbound, calls, "x calls only"),
        own("observer, joining by content", content, inbound, "x without"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ratios_are_of_one_run_and_what_was_not_measured_is_no_number() {
        let figures = from_memory(&json!({ "apart": 100.0, "joined": 110.0, "content": 200.0 }));
        assert_eq!(figures.iter().map(|figure| figure.value.is_nan()).collect::<Vec<_>>(), [false, true, false]);
        assert!((figures[2].value - 2.0).abs() < 1e-9);
        let cost = |backend, observer| Cost { backend, observer };
        let costs = [cost(1000.0, 0.0), cost(1100.0, 50.0), cost(1200.0, 100.0), cost(1300.0, 150.0)];
        let values: Vec<f64> = with_backend(&costs).iter().map(|figure| figure.value).collect();
        for (value, want) in values.into_iter().zip([1.1, 1.2, 1.3, 2.0, 1.5]) {
            assert!((value - want).abs() < 1e-9, "{value} {want}");
        }
    }
}
