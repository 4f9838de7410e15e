//! The observer comes and goes, in order or killed, while real clients work: nothing that they get may change.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    clients::clock_dir,
    compare::Verdict,
    matrix::{CLIENTS, Client, Running, compare},
    observer::Observer,
    server::{Kind, LlmServer},
    sh,
    truth::free_address,
};

/// A client of each way in which TLS is hooked.
pub const BUSY: [&str; 10] = [
    "openai-async-h2",
    "requests",
    "curl_cffi-h2",
    "pycurl",
    "node",
    "bun",
    "static-openssl",
    "gnutls",
    "reqwest",
    "go-stripped",
];

/// Observers at a time: taking a probe away is mostly waiting.
const LANES: u32 = 2;
/// Longest that one may take until it is attached.
const LONGEST: Duration = Duration::from_secs(120);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cycles {
    /// How often the observer came and went.
    pub cycles: u32,
    /// How often of these it was killed.
    pub killed: u32,
    /// How often a process was attached to and left: as many a cycle as there are clients, or fewer where the observer was killed first.
    pub attachments: usize,
    /// What the clients say.
    pub verdict: Verdict,
}

/// Lets the observer `binary` attach to all the clients and leave them `cycles` times; all logs go to `dir`, which is emptied.
pub fn run(cycles: u32, binary: &Path, dir: &Path) -> Result<Cycles> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    let clock = clock_dir(dir);
    fs::create_dir_all(&clock).with_context(|| format!("cannot make {}", clock.display()))?;
    let clients: Vec<Client> = CLIENTS.iter().copied().filter(|client| BUSY.contains(&client.name)).collect();
    ensure!(clients.len() == BUSY.len(), "a busy client is not in the matrix");
    let mut server = LlmServer::start(Kind::Dialects, dir, 1)?;
    let mut running = Vec::new();
    for client in &clients {
        running.push(Running::start(client, &server, dir, &["--until-eof"])?);
    }
    for one in &mut running {
        one.ready()?;
    }
    for one in &mut running {
        one.process.say("go").with_context(|| format!("{} is gone", one.client.name))?;
    }
    let pids: Vec<u64> = running.iter().flat_map(|one| one.pids.iter().copied()).collect();
    let targets: Vec<String> = pids.iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]).collect();
    let count = Count::default();
    let (count, targets, pids) = (&count, targets.as_slice(), pids.as_slice());
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|lane| {
                let dir = dir.join(format!("lane-{lane}"));
                scope.spawn(move || one_after_the_other(count, cycles, targets, pids, binary, &dir))
            })
            .collect();
        while !lanes.iter().all(thread::ScopedJoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(100));
            for one in &mut running {
                if let Some(status) = one.process.ended()? {
                    count.next.store(cycles, Ordering::Relaxed);
                    bail!("{} ended: {status}; see {}", one.client.name, dir.display());
                }
            }
        }
        lanes.into_iter().try_for_each(|lane| lane.join().map_err(|_| anyhow::anyhow!("a lane panicked"))?)
    })?;
    let (killed, attachments) = (count.killed.load(Ordering::Relaxed), count.attachments.load(Ordering::Relaxed));
    sh::say(&format!(
        "{cycles} observers have come and gone, {killed} of them killed: {attachments} attachments to {} busy processes",
        BUSY.len()
    ));
    for one in &mut running {
        one.process.close_stdin();
    }
    let facts = running.into_iter().map(Running::done).collect::<Result<Vec<Value>>>()?;
    server.stop()?;
    let nothing = dir.join("nothing.jsonl");
    fs::write(&nothing, "").context("cannot write an empty log")?;
    let verdict = compare(dir, &nothing, &server.log, &Value::from(facts), &["--clients-only"])?;
    Ok(Cycles { cycles, killed, attachments, verdict })
}

/// What all lanes count.
#[derive(Debug, Default)]
struct Count {
    next: AtomicU32,
    killed: AtomicU32,
    attachments: AtomicUsize,
}

/// Lets one observer after the other come and go, until all have been.
fn one_after_the_other(
    count: &Count,
    cycles: u32,
    targets: &[String],
    pids: &[u64],
    binary: &Path,
    dir: &Path,
) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    loop {
        let cycle = count.next.fetch_add(1, Ordering::Relaxed);
        if cycle >= cycles {
            return Ok(());
        }
        let mut observer = Observer::start(binary, targets, dir, free_address()?, None)?;
        // Every fourth is killed: half of these while attached, half at some point of its start.
        let in_order = cycle % 4 != 3;
        if in_order || cycle % 8 == 7 {
            observer.attached(BUSY.len(), LONGEST)?;
        }
        thread::sleep(Duration::from_millis(u64::from(cycle * 37 % 300)));
        if in_order {
            observer.stop()?;
        } else {
            observer.kill()?;
            count.killed.fetch_add(1, Ordering::Relaxed);
        }
        let attached = pids.iter().filter(|&&pid| !observer.hooks(pid).is_empty()).count();
        count.attachments.fetch_add(attached, Ordering::Relaxed);
        if cycle % 20 == 19 {
            sh::say(&format!("{} of {cycles} observers have come and gone", cycle + 1));
        }
    }
}
