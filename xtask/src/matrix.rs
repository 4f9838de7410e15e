//! The matrix: one real client of every kind against a server of every dialect, all observed, and every number compared.
//!
//! A client is a row of [`CLIENTS`]. A new one is a row, a program that speaks the protocol of `tests/fixtures/sdks/session.py`, and
//! where its runtime is new, a [`Runtime`].

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    clients::clock_dir,
    compare::Verdict,
    observer::Observer,
    process::Guarded,
    python,
    server::{Kind, LlmServer},
    sh,
    truth::free_address,
};

/// From the last byte that a client reads to its record in the JSONL: a drain of the rings and a flush.
const SETTLE: Duration = Duration::from_millis(500);
/// Longest that importing a client takes while all the others do.
const IMPORT: Duration = Duration::from_secs(120);
/// Longest that a client's requests take.
const LONGEST: Duration = Duration::from_secs(90);

/// What runs a client's program, and how it is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// CPython with the packages of `tests/fixtures/sdks/requirements.txt`.
    Python,
}

impl Runtime {
    /// Installs it if it is not there; the program to run.
    fn install(self) -> Result<PathBuf> {
        match self {
            Self::Python => python::sdks(),
        }
    }
}

/// A protocol below the dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http {
    /// HTTP/1.1, connections kept.
    H1,
    /// HTTP/2, streams interleaved.
    H2,
}

impl Http {
    /// Its name in the server's log.
    const fn name(self) -> &'static str {
        match self {
            Self::H1 => "http/1.1",
            Self::H2 => "h2",
        }
    }
}

/// One client of the matrix.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// Name.
    pub name: &'static str,
    /// What it speaks, for a person; the server goes by the paths.
    pub dialects: &'static str,
    runtime: Runtime,
    script: &'static str,
    flags: &'static [&'static str],
    http: Http,
    /// Part of the name of the library that must be hooked.
    hook: &'static str,
    /// It notes the time of its own reads and writes; else the server's times are the ground, with more tolerance.
    clock: bool,
}

/// All clients. Each makes every kind of call that it has, again and again over connections that it keeps.
pub const CLIENTS: &[Client] = &[
    python("openai", "OpenAI", "openai_sdk.py", &[], Http::H1),
    python("openai-async", "OpenAI", "openai_sdk.py", &["--async"], Http::H1),
    python("openai-h2", "OpenAI", "openai_sdk.py", &["--http2"], Http::H2),
    // Ten streams at a time, interleaved on one connection.
    python("openai-async-h2", "OpenAI", "openai_sdk.py", &["--async", "--http2", "--at-once", "10"], Http::H2),
    python("anthropic", "Anthropic", "anthropic_sdk.py", &[], Http::H1),
    python("anthropic-async", "Anthropic", "anthropic_sdk.py", &["--async"], Http::H1),
    python("google-genai", "Gemini", "genai_sdk.py", &[], Http::H1),
    python("google-genai-async", "Gemini", "genai_sdk.py", &["--async"], Http::H1),
    python("ollama", "Ollama", "ollama_sdk.py", &[], Http::H1),
    python("ollama-async", "Ollama", "ollama_sdk.py", &["--async"], Http::H1),
    python("mistralai", "Mistral", "mistral_sdk.py", &[], Http::H1),
    python("mistralai-async", "Mistral", "mistral_sdk.py", &["--async"], Http::H1),
    python("cohere", "Cohere", "cohere_sdk.py", &[], Http::H1),
    python("cohere-async", "Cohere", "cohere_sdk.py", &["--async"], Http::H1),
    python("requests", "all", "by_hand.py", &[], Http::H1),
    python("aiohttp", "all", "by_hand.py", &["--async"], Http::H1),
];

const fn python(
    name: &'static str,
    dialects: &'static str,
    script: &'static str,
    flags: &'static [&'static str],
    http: Http,
) -> Client {
    Client { name, dialects, runtime: Runtime::Python, script, flags, http, hook: "libssl", clock: true }
}

/// A client that runs.
struct Running<'a> {
    client: &'a Client,
    log: PathBuf,
    versions: Value,
    process: Guarded,
}

/// Runs `clients` one after the other, all with one observer `binary`; all logs go to `dir`, which is emptied. The matrix is printed.
pub fn run(clients: &[Client], binary: &Path, dir: &Path) -> Result<Verdict> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    let clock = clock_dir(dir);
    fs::create_dir_all(&clock).with_context(|| format!("cannot make {}", clock.display()))?;
    let mut server = LlmServer::start(Kind::Dialects, dir, 1)?;
    // All import at the same time, and none while another one is measured.
    let mut running = Vec::new();
    for client in clients {
        running.push(Running::start(client, &server, dir)?);
    }
    for one in &mut running {
        one.versions = one.process.event("ready", IMPORT)?["versions"].take();
    }
    let targets: Vec<String> =
        running.iter().flat_map(|one| ["--pid".to_owned(), one.process.pid().to_string()]).collect();
    let mut observer = Observer::start(binary, &targets, dir, free_address()?, None)?;
    observer.attached(running.len(), Duration::from_secs(30))?;
    let mut facts = Vec::new();
    for mut one in running {
        let name = one.client.name;
        let pid = one.process.pid();
        let hooks = observer.hooks(pid);
        ensure!(
            hooks.iter().any(|line| line.contains(one.client.hook)),
            "{name} is not hooked at {}: {hooks:?}",
            one.client.hook
        );
        one.process.say("go").with_context(|| format!("{name} is gone"))?;
        let done = one.process.event("done", LONGEST);
        let status = one.process.wait(LONGEST)?;
        let requests = done.ok().and_then(|done| done["exchanges"].as_u64());
        let (true, Some(requests)) = (status.success(), requests) else {
            bail!("{name} failed: {status}; see {}", one.log.with_extension("stderr").display());
        };
        facts.push(json!({
            "name": name, "http": one.client.http.name(), "hook": one.client.hook, "clock": one.client.clock,
            "pids": [pid], "log": one.log, "versions": one.versions, "requests": requests,
        }));
    }
    thread::sleep(SETTLE);
    observer.stop()?;
    server.stop()?;
    compare(dir, &observer.jsonl, &server.log, &Value::from(facts))
}

impl<'a> Running<'a> {
    /// Starts its program, which waits at its gate.
    fn start(client: &'a Client, server: &LlmServer, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{}.jsonl", client.name));
        let errors = fs::File::create(log.with_extension("stderr")).context("cannot write the client's log")?;
        let mut command = Command::new(client.runtime.install()?);
        command.arg(sh::fixture("sdks")?.join(client.script)).args(client.flags);
        command.args(["--base-url", &server.origin, "--name", client.name]).arg("--log").arg(&log);
        if client.clock {
            command.arg("--clock-dir").arg(clock_dir(dir));
        }
        for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"] {
            command.env(variable, &server.certificate.cert);
        }
        let process = Guarded::talking(client.name, command.stderr(errors))?;
        Ok(Self { client, log, versions: Value::Null, process })
    }
}

/// Runs `tests/fixtures/matrix.py`.
fn compare(dir: &Path, observer_jsonl: &Path, server_log: &Path, clients: &Value) -> Result<Verdict> {
    let file = dir.join("clients.json");
    fs::write(&file, clients.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
    let status = Command::new("python3")
        .arg(sh::fixture("matrix.py")?)
        .arg("--observer")
        .arg(observer_jsonl)
        .arg("--clock-dir")
        .arg(clock_dir(dir))
        .arg("--server-log")
        .arg(server_log)
        .arg("--clients")
        .arg(&file)
        .status()
        .context("cannot run python3")?;
    match status.code() {
        Some(0) => Ok(Verdict::Agree),
        Some(1) => Ok(Verdict::Disagree),
        _ => bail!("the comparison itself failed: {status}"),
    }
}
