//! `cargo xtask demo`: a local LLM server, two unmodified clients that stream from it, and the observer attached to them
//! while they run; at the end, its numbers beside what the client and the server logged.
#![expect(clippy::print_stdout, reason = "the table is what this command is for")]

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use xtask::{
    clients::Driver,
    compare::{self, Verdict},
    observer::Observer,
    python,
    server::{Kind, LlmServer},
    sh,
};

use crate::{
    build::{self, Source},
    table::{Table, Tail},
};

/// How long the clients stream before the observer is attached: it must find connections in the middle of their life.
const HEAD_START: Duration = Duration::from_secs(1);
/// Longest request that is under way when the clients are told to stop.
const LAST_REQUESTS: Duration = Duration::from_secs(60);
/// From the last byte that a client reads to its record in the JSONL: a drain of the rings and a flush.
const SETTLE: Duration = Duration::from_millis(500);

/// Flags of the demo.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// End after this many seconds; without it, Ctrl-C ends
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Serve a real small model (SmolLM2-135M from PyPI) instead of simulated answers
    #[arg(long)]
    real_model: bool,
    /// Where the observer serves /metrics
    #[arg(long, default_value = "127.0.0.1:9464")]
    listen: SocketAddr,
    /// Use this executable instead of building one
    #[arg(long, value_name = "PATH")]
    observer: Option<PathBuf>,
    /// Make the observer do something wrong, which the summary has to find: shift=5ms, drop-one
    #[arg(long, value_parser = fault, hide = true)]
    fault: Option<String>,
}

/// Runs the demo; an error when the numbers disagree.
pub(crate) fn run(root: &Path, args: &Options) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop)).context("cannot handle signals")?;
        flag::register(signal, Arc::clone(&stop)).context("cannot handle signals")?;
    }
    let binary = args.observer.clone().map_or_else(|| build::all(root, Source::Auto), Ok)?;
    let python = python::clients()?;
    let dir = sh::target_dir(root).join("demo");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;

    let kind = if args.real_model { Kind::RealModel } else { Kind::Simulated };
    let server = LlmServer::start(kind, &dir, 1)?;
    println!("LLM server     {} (pid {})", server.base_url, server.pid());
    let mut clients = Vec::new();
    for (script, name, workers) in [("openai_sync.py", "openai-sync", "2"), ("openai_async.py", "openai-async", "3")] {
        let mut flags = vec!["--rounds", "0", "--plan", "demo", "--workers", workers, "--stream-share", "1"];
        if args.real_model {
            flags.extend(["--max-tokens", "80"]);
        }
        let mut client = Driver::start(&python, script, name, &server, &dir, &flags)?;
        client.go()?;
        println!(
            "client         {name}, {workers} streams at a time, the SDK as it comes from PyPI (pids {:?})",
            client.pids
        );
        clients.push(client);
    }
    thread::sleep(HEAD_START);

    let pids: Vec<u32> = clients.iter().flat_map(|client| client.pids.clone()).collect();
    let targets: Vec<String> = pids.iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]).collect();
    let mut observer = Observer::start(&binary, &targets, &dir, args.listen, args.fault.as_deref())?;
    let attached_ns = observer.attached(pids.len(), Duration::from_secs(20))?;
    println!("observer       attached to {pids:?} while they run; metrics: http://{}/metrics\n", observer.listen);

    let table = watch(args.seconds, &stop, &mut observer, &mut clients)?;
    table.erase();
    println!("\nending: the clients finish the streams under way");
    for client in &mut clients {
        client.finish(LAST_REQUESTS)?;
    }
    thread::sleep(SETTLE);
    observer.stop()?;

    let logs: Vec<PathBuf> = clients.iter().map(|client| client.log.clone()).collect();
    println!("the observer's numbers beside what client and server logged (all logs: {}):\n", dir.display());
    match compare::run(&dir, &observer.jsonl, &server.log, &logs, attached_ns)? {
        Verdict::Agree => Ok(()),
        Verdict::Disagree => {
            bail!("the observer disagrees with the client or the server: see the violated checks above")
        }
    }
}

/// Shows streams until it is time to end.
fn watch(seconds: Option<u64>, stop: &AtomicBool, observer: &mut Observer, clients: &mut [Driver]) -> Result<Table> {
    let until = seconds.map(|n| Instant::now() + Duration::from_secs(n));
    let mut tail = Tail::new(&observer.jsonl);
    let mut table = Table::start();
    while !stop.load(Ordering::Relaxed) && until.is_none_or(|until| Instant::now() < until) {
        table.add(&tail.read()?);
        observer.check()?;
        for client in &mut *clients {
            client.check()?;
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(table)
}

/// What the observer is to do wrong, in its own words (`NEXENT_OBSERVER_TEST_FAULT`).
fn fault(text: &str) -> Result<String, String> {
    if text == "drop-one" {
        // Some seconds in: the first reads belong to streams that the observer sees from the middle and calls incomplete.
        return Ok("drop_record:1000".to_owned());
    }
    let shift =
        text.strip_prefix("shift=").and_then(|text| text.strip_suffix("ms")).and_then(|ms| ms.parse::<i64>().ok());
    let shift = shift.and_then(|ms| ms.checked_mul(1_000_000)).ok_or("one of: shift=5ms, drop-one")?;
    Ok(format!("shift_ns:{shift}"))
}

#[cfg(test)]
mod tests {
    use super::fault;

    #[test]
    fn faults_are_said_in_the_observers_words() {
        assert_eq!(fault("shift=5ms").unwrap(), "shift_ns:5000000");
        assert_eq!(fault("drop-one").unwrap(), "drop_record:1000");
        for wrong in ["", "shift", "shift=5", "shift=xms", "shift=9223372036854775807ms"] {
            assert!(fault(wrong).is_err(), "{wrong}");
        }
    }
}
