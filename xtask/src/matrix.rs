//! The matrix: one real client of every kind against a server of every dialect, all observed, and every number compared.
//!
//! A client is a row of [`CLIENTS`]. A new one is a row, a program that speaks the protocol of `tests/fixtures/sdks/session.py`, and
//! where its runtime is new, a [`Runtime`].

use std::{
    ffi::OsString,
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
    rust::{self, Tls},
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
    /// The system's `curl`; any interpreter runs the program that starts it.
    Curl,
    /// reqwest; likewise.
    Reqwest(Tls),
    /// Deno; likewise.
    Deno,
}

impl Runtime {
    /// Installs it if it is not there; what runs the client's script.
    fn install(self) -> Result<PathBuf> {
        match self {
            Self::Python => python::sdks(),
            Self::Curl => {
                if !sh::succeeds(Command::new("curl").arg("--version")) {
                    sh::say("installing the Debian package curl: it is one of the clients");
                    sh::apt_install(&["curl"])?;
                }
                Ok(PathBuf::from("python3"))
            }
            Self::Reqwest(_) | Self::Deno => Ok(PathBuf::from("python3")),
        }
    }

    /// The program that the script starts, where it is told so behind `--`.
    fn program(self) -> Result<Vec<OsString>> {
        match self {
            Self::Python | Self::Curl => Ok(Vec::new()),
            Self::Reqwest(tls) => Ok(vec![rust::fetcher(tls)?.into()]),
            Self::Deno => Ok(vec![
                rust::program("deno")?.into(),
                "run".into(),
                "--quiet".into(),
                "--no-config".into(),
                "--unstable-http".into(),
                "--allow-net=localhost".into(),
                "--allow-write".into(),
                "--allow-env".into(),
                sh::fixture("sdks/fetcher.ts")?.into(),
            ]),
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
    /// Whom it believes to talk to: all names lead it to the local server. `localhost` tells nothing of the provider.
    host: &'static str,
    /// Part of the name of the library that must be hooked.
    hook: &'static str,
    /// It notes the time of its own reads and writes; else the server's times are the ground, with more tolerance.
    clock: bool,
}

/// All clients. Each makes every kind of call that it has, again and again over connections that it keeps.
pub const CLIENTS: &[Client] = &[
    python("openai", "OpenAI", "openai_sdk.py", &[]),
    python("openai-async", "OpenAI", "openai_sdk.py", &["--async"]).at("api.openai.com"),
    python("openai-h2", "OpenAI", "openai_sdk.py", &["--http2"]).over(Http::H2).at("api.openai.com"),
    // Ten streams at a time, interleaved on one connection.
    python("openai-async-h2", "OpenAI", "openai_sdk.py", &["--async", "--http2", "--at-once", "10"]).over(Http::H2),
    python("anthropic", "Anthropic", "anthropic_sdk.py", &[]),
    python("anthropic-async", "Anthropic", "anthropic_sdk.py", &["--async", "--at-once", "3"]).at("api.anthropic.com"),
    python("google-genai", "Gemini", "genai_sdk.py", &[]),
    python("google-genai-async", "Gemini", "genai_sdk.py", &["--async"]).at("generativelanguage.googleapis.com"),
    python("ollama", "Ollama", "ollama_sdk.py", &[]),
    python("ollama-async", "Ollama", "ollama_sdk.py", &["--async"]),
    python("mistralai", "Mistral", "mistral_sdk.py", &[]),
    python("mistralai-async", "Mistral", "mistral_sdk.py", &["--async"]).at("api.mistral.ai"),
    python("cohere", "Cohere", "cohere_sdk.py", &[]),
    python("cohere-async", "Cohere", "cohere_sdk.py", &["--async"]).at("api.cohere.com"),
    python("requests", "all", "by_hand.py", &[]),
    python("aiohttp", "all", "by_hand.py", &["--async", "--at-once", "4"]),
    python("h2", "all", "h2_by_hand.py", &[]).over(Http::H2),
    curl("curl", &[]),
    curl("curl-h2", &["--http2"]).over(Http::H2),
    fetcher("reqwest", Runtime::Reqwest(Tls::AwsLc), &[]),
    fetcher("reqwest-h2", Runtime::Reqwest(Tls::AwsLc), &["--http2", "--at-once", "6"]).over(Http::H2),
    fetcher("reqwest-stripped", Runtime::Reqwest(Tls::AwsLcStripped), &["--at-once", "4"]),
    fetcher("reqwest-tls12", Runtime::Reqwest(Tls::AwsLc), &["--tls12"]),
    Client { hook: "libssl", ..fetcher("reqwest-native", Runtime::Reqwest(Tls::Native), &[]) },
    fetcher("deno", Runtime::Deno, &["--at-once", "3"]),
    fetcher("deno-h2", Runtime::Deno, &["--http2", "--at-once", "6"]).over(Http::H2),
];

const fn python(
    name: &'static str,
    dialects: &'static str,
    script: &'static str,
    flags: &'static [&'static str],
) -> Client {
    let (runtime, http, host, hook, clock) = (Runtime::Python, Http::H1, "localhost", "libssl", true);
    Client { name, dialects, runtime, script, flags, http, host, hook, clock }
}

const fn curl(name: &'static str, flags: &'static [&'static str]) -> Client {
    Client { runtime: Runtime::Curl, clock: false, ..python(name, "all", "curl_cli.py", flags) }
}

const fn fetcher(name: &'static str, runtime: Runtime, flags: &'static [&'static str]) -> Client {
    let (script, hook) = ("fetcher.py", "tls=rustls");
    Client { runtime, script, hook, clock: false, ..python(name, "all", script, flags) }
}

impl Client {
    const fn over(self, http: Http) -> Self {
        Self { http, ..self }
    }

    const fn at(self, host: &'static str) -> Self {
        Self { host, ..self }
    }
}

/// A client that runs.
struct Running<'a> {
    client: &'a Client,
    log: PathBuf,
    /// The process to observe: the program itself, or what it started.
    pid: u64,
    versions: Value,
    process: Guarded,
}

/// Runs `clients` one after the other, all with one observer `binary`; all logs go to `dir`, which is emptied. The matrix is printed.
/// `fault` is what the observer is to do wrong, for a test that must see that.
pub fn run(clients: &[Client], binary: &Path, dir: &Path, fault: Option<&str>) -> Result<Verdict> {
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
        let mut ready = one.process.event("ready", IMPORT)?;
        one.pid = ready["pid"].as_u64().context("the client did not say its pid")?;
        one.versions = ready["versions"].take();
    }
    let targets: Vec<String> = running.iter().flat_map(|one| ["--pid".to_owned(), one.pid.to_string()]).collect();
    let mut observer = Observer::start(binary, &targets, dir, free_address()?, fault)?;
    observer.attached(running.len(), Duration::from_secs(30))?;
    let mut facts = Vec::new();
    for mut one in running {
        let name = one.client.name;
        let hooks = observer.hooks(one.pid);
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
            "pids": [one.pid], "log": one.log, "versions": one.versions, "requests": requests,
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
        command.args(["--base-url", &format!("https://{}:{}", client.host, server.port), "--name", client.name]);
        command.arg("--gzip").arg("--log").arg(&log);
        if client.host != "localhost" {
            command.arg("--all-names-here");
        }
        if client.clock {
            command.arg("--clock-dir").arg(clock_dir(dir));
        }
        let program = client.runtime.program()?;
        if !program.is_empty() {
            command.arg("--").args(program);
        }
        for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "DENO_CERT"] {
            command.env(variable, &server.certificate.cert);
        }
        let process = Guarded::talking(client.name, command.stderr(errors))?;
        Ok(Self { client, log, pid: 0, versions: Value::Null, process })
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
