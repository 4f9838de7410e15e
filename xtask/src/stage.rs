//! A whole scene for what looks at a running observer: a server, a real client, the observer beside it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    process::Guarded,
    python,
    server::{Kind, LlmServer},
    sh,
};

/// Longest wait for anything that should come soon.
const SOON: Duration = Duration::from_secs(30);

/// Everything that runs; ended when dropped.
#[derive(Debug)]
pub struct Stage {
    /// Where logs go.
    pub dir: PathBuf,
    /// Where the observer serves its page.
    pub address: SocketAddr,
    /// The observer.
    pub observer: Guarded,
    /// A client of the real SDK that does what it is told (`clients/scripted.py`).
    pub client: Guarded,
    log: PathBuf,
    _server: LlmServer,
}

impl Stage {
    /// Starts everything in `dir`, which is emptied. `arguments` are more flags of the observer; without `--exe` among them it
    /// is told the client's pid, and attached when this returns.
    pub fn set(binary: &Path, dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let server = LlmServer::start(Kind::Simulated, dir, 1)?;
        let mut command = Command::new(python::clients()?);
        command.arg(sh::fixture("clients/scripted.py")?).args(["--base-url", &server.base_url]);
        command.arg("--log").arg(dir.join("client.jsonl")).env("SSL_CERT_FILE", &server.certificate.cert);
        command.env("SERVICE_NAME", "shop-assistant").stderr(fs::File::create(dir.join("client.stderr"))?);
        let client = Guarded::talking("the client", &mut command)?;
        client.event("ready", SOON)?;

        let log = dir.join("observer.stderr");
        let mut command = Command::new(binary);
        command.args(["run", "--listen", "127.0.0.1:0", "--jsonl"]).arg(dir.join("observer.jsonl")).args(arguments);
        let by_pid = !arguments.contains(&"--exe");
        if by_pid {
            command.args(["--pid", &client.pid().to_string()]);
        }
        command.envs(environment.iter().copied()).stderr(fs::File::create(&log)?);
        let observer = Guarded::spawn("the observer", &mut command)?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut this = Self { dir: dir.to_owned(), address: any, observer, client, log, _server: server };
        let line = this.says("The live page is at http://")?;
        let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        this.address = address.context("no address")?.parse()?;
        if by_pid {
            this.says("Attached.")?;
        }
        Ok(this)
    }

    /// Address of the page.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Gives the client a command.
    pub fn tell(&mut self, command: &Value) -> Result<()> {
        self.client.say(&command.to_string())
    }

    /// Waits for a line of the observer's log.
    pub fn says(&mut self, text: &str) -> Result<String> {
        let end = Instant::now() + SOON;
        loop {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            if let Some(line) = said.lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if let Some(status) = self.observer.ended()? {
                bail!("the observer ended: {status}\n{said}");
            }
            if Instant::now() >= end {
                bail!("the observer did not say {text:?} within {SOON:?}\n{said}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}
