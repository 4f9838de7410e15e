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

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::{
    clients::clock_dir,
    compare::Verdict,
    golang::{Link, Toolchain},
    observer::Observer,
    process::Guarded,
    runtime::{Runtime, Setup},
    rust::Tls,
    server::{Kind, LlmServer},
    sh,
    truth::free_address,
};

/// From the last byte that a client reads to its record in the JSONL: a drain of the rings and a flush.
const SETTLE: Duration = Duration::from_millis(500);
/// Longest that importing a client takes while all the others do.
const IMPORT: Duration = Duration::from_secs(120);
/// Longest that the observer takes to search all their files and to attach: the largest have 315 and 402 MB.
const ATTACH: Duration = Duration::from_secs(60);
/// Longest that a client's requests take.
const LONGEST: Duration = Duration::from_secs(90);

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
    /// Part of what the observer says of the hook: of the library's path or of its kind.
    hook: &'static str,
    /// It notes the time of its own reads and writes; else the server's times are the ground, with more tolerance.
    clock: bool,
    /// More is downloaded for it than CI should wait for (over 100 MB): `cargo xtask matrix` runs it, the tests do not.
    pub heavy: bool,
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
    // The other places where TLS lives: in wheels, in runtimes, in programs without symbols, in another library.
    python("pycurl", "all", "pycurl_by_hand.py", &[]).hooked_at("libssl-").without_clock(),
    python("pycurl-h2", "all", "pycurl_by_hand.py", &["--http2"]).over(Http::H2).hooked_at("libssl-").without_clock(),
    python("curl_cffi", "all", "curl_cffi_sdk.py", &[]).hooked_at("_wrapper.abi3.so").without_clock(),
    python("curl_cffi-h2", "all", "curl_cffi_sdk.py", &["--http2"])
        .over(Http::H2)
        .hooked_at("_wrapper.abi3.so")
        .without_clock(),
    javascript("node", Runtime::Node, "tls=OpenSSL"),
    javascript("bun", Runtime::Bun, "tls=BoringSSL without symbols"),
    native("static-openssl", Runtime::StaticOpenSsl, "tls=OpenSSL without symbols"),
    // The file that it runs is another one by the time the observer comes.
    native("upgraded", Runtime::UpgradedOpenSsl, "tls=OpenSSL without symbols"),
    native("gnutls", Runtime::GnuTls, "tls=GnuTLS"),
    python("pycurl-gnutls", "all", "pycurl_by_hand.py", &[])
        .run_by(Runtime::DebianPython)
        .hooked_at("tls=GnuTLS")
        .without_clock(),
    fetcher("reqwest", Runtime::Reqwest(Tls::AwsLc), &[]),
    fetcher("reqwest-h2", Runtime::Reqwest(Tls::AwsLc), &["--http2", "--at-once", "6"]).over(Http::H2),
    fetcher("reqwest-stripped", Runtime::Reqwest(Tls::AwsLcStripped), &["--at-once", "4"]),
    fetcher("reqwest-tls12", Runtime::Reqwest(Tls::AwsLc), &["--tls12"]),
    fetcher("reqwest-native", Runtime::Reqwest(Tls::Native), &[]).hooked_at("libssl"),
    fetcher("deno", Runtime::Deno, &["--at-once", "3"]),
    fetcher("deno-h2", Runtime::Deno, &["--http2", "--at-once", "6"]).over(Http::H2),
    fetcher("go", Runtime::Go(Toolchain::Current, Link::Plain), &["--at-once", "3"]).hooked_at("tls=Go"),
    fetcher("go-h2", Runtime::Go(Toolchain::Current, Link::Plain), &["--http2", "--at-once", "6"])
        .over(Http::H2)
        .hooked_at("tls=Go"),
    fetcher("go-stripped", Runtime::Go(Toolchain::Current, Link::Stripped), &["--at-once", "3"]).hooked_at("tls=Go"),
    fetcher("go-1.19", Runtime::Go(Toolchain::Debian, Link::Stripped), &["--at-once", "3"]).hooked_at("tls=Go"),
    fetcher("ruby", Runtime::Ruby, &[]).hooked_at("libssl"),
    fetcher("php", Runtime::Php, &[]).hooked_at("libssl"),
    agent("codex", "OpenAI", "codex_cli.py", Runtime::Codex).over(Http::H2).hooked_at("tls=rustls"),
    agent("claude-code", "Anthropic", "claude_code.py", Runtime::ClaudeCode).hooked_at("tls=BoringSSL without symbols"),
];

const fn python(
    name: &'static str,
    dialects: &'static str,
    script: &'static str,
    flags: &'static [&'static str],
) -> Client {
    let (runtime, http, host, hook, clock) = (Runtime::Python, Http::H1, "localhost", "libssl", true);
    Client { name, dialects, runtime, script, flags, http, host, hook, clock, heavy: false }
}

const fn curl(name: &'static str, flags: &'static [&'static str]) -> Client {
    Client { runtime: Runtime::Curl, clock: false, ..python(name, "all", "curl_cli.py", flags) }
}

const fn javascript(name: &'static str, runtime: Runtime, hook: &'static str) -> Client {
    python(name, "OpenAI", "openai_node.mjs", &[]).run_by(runtime).hooked_at(hook).without_clock()
}

const fn native(name: &'static str, runtime: Runtime, hook: &'static str) -> Client {
    python(name, "all", "native_tls.py", &[]).run_by(runtime).hooked_at(hook)
}

const fn fetcher(name: &'static str, runtime: Runtime, flags: &'static [&'static str]) -> Client {
    python(name, "all", "fetcher.py", flags).run_by(runtime).hooked_at("tls=rustls").without_clock()
}

const fn agent(name: &'static str, dialects: &'static str, script: &'static str, runtime: Runtime) -> Client {
    Client { heavy: true, ..python(name, dialects, script, &[]).run_by(runtime).without_clock() }
}

impl Client {
    const fn run_by(self, runtime: Runtime) -> Self {
        Self { runtime, ..self }
    }

    const fn hooked_at(self, hook: &'static str) -> Self {
        Self { hook, ..self }
    }

    const fn without_clock(self) -> Self {
        Self { clock: false, ..self }
    }

    const fn over(self, http: Http) -> Self {
        Self { http, ..self }
    }

    const fn at(self, host: &'static str) -> Self {
        Self { host, ..self }
    }
}

/// A client that runs.
pub(crate) struct Running<'a> {
    pub(crate) client: &'a Client,
    log: PathBuf,
    /// The processes to observe: the program itself, or what it started.
    pub(crate) pids: Vec<u64>,
    versions: Value,
    /// Where the observer says to be hooked, of all places the one that is wanted.
    hooked: String,
    /// The file that is replaced when it runs.
    upgraded: Option<PathBuf>,
    pub(crate) process: Guarded,
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
        running.push(Running::start(client, &server, dir, &[])?);
    }
    for one in &mut running {
        one.ready()?;
    }
    let pids: Vec<u64> = running.iter().flat_map(|one| one.pids.iter().copied()).collect();
    let targets: Vec<String> = pids.iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]).collect();
    let mut observer = Observer::start(binary, &targets, dir, free_address()?, fault)?;
    observer.attached(pids.len(), ATTACH)?;
    let mut facts = Vec::new();
    for mut one in running {
        let name = one.client.name;
        for pid in &one.pids {
            let hooks = observer.hooks(*pid);
            let Some(hook) = hooks.iter().find(|line| line.contains(one.client.hook)) else {
                bail!("{name} is not hooked at {}: {hooks:?}", one.client.hook);
            };
            one.hooked = hooked(hook).with_context(|| format!("what is hooked? {hook}"))?;
        }
        one.process.say("go").with_context(|| format!("{name} is gone"))?;
        facts.push(one.done()?);
    }
    thread::sleep(SETTLE);
    observer.stop()?;
    server.stop()?;
    let table = table(dir).into_os_string().into_string().map_err(|path| anyhow!("{path:?} is no UTF-8"))?;
    compare(dir, &observer.jsonl, &server.log, &Value::from(facts), &["--markdown", &table])
}

/// Where a run with logs in `dir` leaves its table, as Markdown.
#[must_use]
pub fn table(dir: &Path) -> PathBuf {
    dir.join("matrix.md")
}

/// From a line of the observer's log, the kind of TLS and the file that it is in.
fn hooked(line: &str) -> Option<String> {
    let (library, tls) = line.split_once(" library=")?.1.split_once(" probes=")?.0.split_once(" tls=")?;
    Some(format!("{tls} in {}", library.rsplit('/').next()?))
}

impl<'a> Running<'a> {
    /// Starts its program, which waits at its gate.
    pub(crate) fn start(client: &'a Client, server: &LlmServer, dir: &Path, flags: &[&str]) -> Result<Self> {
        let log = dir.join(format!("{}.jsonl", client.name));
        let errors = fs::File::create(log.with_extension("stderr")).context("cannot write the client's log")?;
        let Setup { program, environment, upgraded, arguments } = client.runtime.install()?;
        let mut command = Command::new(program);
        command.envs(environment).arg(sh::fixture("sdks")?.join(client.script)).args(client.flags);
        command.args(["--base-url", &format!("https://{}:{}", client.host, server.port), "--name", client.name]);
        command.arg("--gzip").args(flags).arg("--log").arg(&log);
        if client.host != "localhost" {
            command.arg("--all-names-here");
        }
        if client.clock {
            command.arg("--clock-dir").arg(clock_dir(dir));
        }
        if !arguments.is_empty() {
            command.arg("--").args(&arguments);
        }
        for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "DENO_CERT"] {
            command.env(variable, &server.certificate.cert);
        }
        let process = Guarded::talking(client.name, command.stderr(errors))?;
        Ok(Self { client, log, pids: Vec::new(), versions: Value::Null, hooked: String::new(), upgraded, process })
    }

    /// Waits until it stands at its gate.
    pub(crate) fn ready(&mut self) -> Result<()> {
        let mut ready = self.process.event("ready", IMPORT)?;
        self.pids = ready["pids"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        ensure!(!self.pids.is_empty(), "the client did not say its pid");
        self.versions = ready["versions"].take();
        if let Some(file) = &self.upgraded {
            // As a package manager does it: under another name first, and then in the old one's place.
            let fresh = file.with_extension("new");
            fs::copy("/bin/true", &fresh)
                .and_then(|_| fs::rename(&fresh, file))
                .context("cannot upgrade the client")?;
        }
        Ok(())
    }

    /// Waits for its end; what the comparison wants to know of it.
    pub(crate) fn done(mut self) -> Result<Value> {
        let done = self.process.event("done", LONGEST);
        let status = self.process.wait(LONGEST)?;
        let requests = done.ok().and_then(|done| done["exchanges"].as_u64());
        let (true, Some(requests)) = (status.success(), requests) else {
            bail!("{} failed: {status}; see {}", self.client.name, self.log.with_extension("stderr").display());
        };
        let Client { name, dialects, http, clock, .. } = self.client;
        Ok(json!({
            "name": name, "dialects": dialects, "http": http.name(), "hook": self.hooked, "clock": clock, "pids": self.pids, "log": self.log,
            "versions": self.versions, "requests": requests,
        }))
    }
}

/// Runs `tests/fixtures/matrix.py`.
pub(crate) fn compare(
    dir: &Path,
    observer_jsonl: &Path,
    server_log: &Path,
    clients: &Value,
    flags: &[&str],
) -> Result<Verdict> {
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
        .args(flags)
        .status()
        .context("cannot run python3")?;
    match status.code() {
        Some(0) => Ok(Verdict::Agree),
        Some(1) => Ok(Verdict::Disagree),
        _ => bail!("the comparison itself failed: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hook_is_read_from_the_log() {
        let line =
            "Attached. pid=7 service=\"bun\" library=/a/b/bun tls=BoringSSL without symbols probes=3 shared=false";
        assert_eq!(hooked(line).as_deref(), Some("BoringSSL without symbols in bun"));
        assert_eq!(hooked("Attached."), None);
    }
}
