//! The truth test: many real clients at once, and every number of the observer against what they logged.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    clients::Driver,
    compare::{self, Verdict},
    observer::Observer,
    server::{Kind, LlmServer},
};

/// From the last byte that a client reads to its record in the JSONL: a drain of the rings and a flush.
const SETTLE: Duration = Duration::from_millis(500);
/// Longest that a case's clients may take.
const LONGEST: Duration = Duration::from_secs(180);

/// How the observer is told what to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// `--pid` for every process of the driver.
    Pids,
    /// `--exe` with the driver's interpreter: workers that are forked later, too.
    Exe,
}

/// One load of clients.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Name.
    pub name: &'static str,
    script: &'static str,
    flags: &'static [&'static str],
    attach: Attach,
    server: Kind,
}

/// All loads. Each runs some seconds; their requests and answers are the same in every run.
pub const CASES: &[Case] = &[
    case("threads", "openai_sync.py", &["--workers", "8", "--requests", "14", "--plan", "cases"], Attach::Pids),
    case("async", "openai_async.py", &["--workers", "20", "--requests", "6", "--plan", "cases"], Attach::Pids),
    case(
        "uvloop",
        "openai_async.py",
        &["--uvloop", "--workers", "20", "--requests", "6", "--plan", "cases"],
        Attach::Pids,
    ),
    case("large-requests", "openai_big.py", &[], Attach::Pids),
    case("forked", "forked.py", &["--workers", "64"], Attach::Exe),
    // Workers get ready before they work; the observer attaches to a new process within 100 ms, 64 at once take longer.
    case("forked-later", "forked.py", &["--workers", "64", "--late-fork", "--settle-ms", "1000"], Attach::Exe),
    case("many-pids", "forked.py", &["--workers", "24"], Attach::Pids),
    case(
        "trouble-threads",
        "openai_sync.py",
        &["--workers", "4", "--requests", "14", "--plan", "trouble"],
        Attach::Pids,
    ),
    case(
        "trouble-async",
        "openai_async.py",
        &["--workers", "8", "--requests", "14", "--plan", "trouble"],
        Attach::Pids,
    ),
    plain("plain-threads", "openai_sync.py", &["--workers", "8", "--requests", "14", "--plan", "cases"]),
    plain("plain-async", "openai_async.py", &["--workers", "20", "--requests", "6", "--plan", "cases"]),
    plain("plain-uvloop", "openai_async.py", &["--uvloop", "--workers", "20", "--requests", "6", "--plan", "cases"]),
    plain("plain-large-requests", "openai_big.py", &[]),
    plain("plain-trouble", "openai_sync.py", &["--workers", "4", "--requests", "14", "--plan", "trouble"]),
];

const fn case(name: &'static str, script: &'static str, flags: &'static [&'static str], attach: Attach) -> Case {
    Case { name, script, flags, attach, server: Kind::Simulated }
}

const fn plain(name: &'static str, script: &'static str, flags: &'static [&'static str]) -> Case {
    Case { name, script, flags, attach: Attach::Pids, server: Kind::Plain }
}

/// Runs one case with the observer `binary` and the clients' interpreter `python`; all logs go to `dir`, which is emptied.
/// The table is printed.
pub fn run(case: &Case, binary: &Path, python: &Path, dir: &Path) -> Result<Verdict> {
    let start = |server: &LlmServer| Driver::start(python, case.script, case.name, server, dir, case.flags);
    run_driver(start, case.server, case.attach, binary, dir)
}

/// The same with any driver.
pub fn run_driver(
    start: impl FnOnce(&LlmServer) -> Result<Driver>,
    server_kind: Kind,
    attach: Attach,
    binary: &Path,
    dir: &Path,
) -> Result<Verdict> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let server = LlmServer::start(server_kind, dir, 1)?;
    let mut client = start(&server)?;
    let targets: Vec<String> = match attach {
        Attach::Pids => client.pids.iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]).collect(),
        Attach::Exe => vec!["--exe".to_owned(), executable(client.pids.last().copied())?],
    };
    let plain = (server_kind == Kind::Plain).then(|| ["--plain-http".to_owned(), "on".to_owned()]);
    let targets: Vec<String> = targets.into_iter().chain(plain.into_iter().flatten()).collect();
    let mut observer = Observer::start(binary, &targets, dir, free_address()?, None)?;
    let attached_ns = observer.attached(client.pids.len(), Duration::from_secs(30))?;
    client.go()?;
    let requests = client.done(LONGEST)?;
    ensure!(requests > 0, "the client made no request");
    thread::sleep(SETTLE);
    observer.check()?;
    observer.stop()?;
    compare::run(dir, &observer.jsonl, &server.log, &[client.log.clone()], attached_ns)
}

/// What a process runs: the environment's own copy of the interpreter, which nothing else on the machine runs.
pub fn executable(pid: Option<u32>) -> Result<String> {
    let pid = pid.context("the driver has no process")?;
    let path = fs::read_link(format!("/proc/{pid}/exe")).with_context(|| format!("cannot read /proc/{pid}/exe"))?;
    Ok(path.to_string_lossy().into_owned())
}

/// An address on loopback that nobody listens on.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot find a free port")?;
    listener.local_addr().context("cannot find a free port")
}
