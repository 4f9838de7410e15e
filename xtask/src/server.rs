//! The local LLM server and its certificate.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{process::Guarded, python, sh};

/// Names that the certificate is for: some clients believe that they talk to a provider, whose name leads them to loopback.
const NAMES: [&str; 6] = [
    "localhost",
    "api.openai.com",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "api.mistral.ai",
    "api.cohere.com",
];

/// A certificate for localhost that signs itself; clients trust it by `SSL_CERT_FILE`.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// PEM of the certificate.
    pub cert: PathBuf,
    /// PEM of the key.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one in `dir`.
    pub fn make(dir: &Path) -> Result<Self> {
        let this = Self { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
        if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
            sh::say("installing the Debian package openssl: the local server needs a certificate");
            sh::apt_install(&["openssl"])?;
        }
        let names: Vec<String> = NAMES.iter().map(|name| format!("DNS:{name}")).collect();
        let names = names.join(",");
        sh::run(
            Command::new("openssl")
                .args([
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                    "-days",
                    "2",
                ])
                .args(["-subj", "/CN=localhost", "-addext", &format!("subjectAltName={names},IP:127.0.0.1")])
                // rustls takes no authority for a server.
                .args(["-addext", "basicConstraints=critical,CA:FALSE"])
                .arg("-keyout")
                .arg(&this.key)
                .arg("-out")
                .arg(&this.cert)
                .stderr(Stdio::null()),
        )?;
        Ok(this)
    }
}

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Simulated answers in every shape (`llm_server.py`).
    Simulated,
    /// The same without TLS.
    Plain,
    /// A real small model (`real_model_server.py`).
    RealModel,
    /// Every dialect, HTTP/1.1 and HTTP/2 (`dialects/server.py`).
    Dialects,
}

/// A running server; ended when dropped.
#[derive(Debug)]
pub struct LlmServer {
    /// Where it listens on loopback.
    pub port: u16,
    /// `https://localhost:PORT/v1`, or `http://`.
    pub base_url: String,
    /// Its own log: one JSON line per request.
    pub log: PathBuf,
    /// Its certificate.
    pub certificate: Certificate,
    process: Guarded,
}

impl LlmServer {
    /// Starts it on a free port; certificate, log and its standard error go to `dir`.
    pub fn start(kind: Kind, dir: &Path, seed: u64) -> Result<Self> {
        let certificate = Certificate::make(dir)?;
        let log = dir.join("server.jsonl");
        let (python, script) = match kind {
            // The standard library is all it needs, so any interpreter will do.
            Kind::Simulated | Kind::Plain => (PathBuf::from("python3"), "server/llm_server.py"),
            Kind::RealModel => (python::model()?, "server/real_model_server.py"),
            Kind::Dialects => (python::dialects()?, "dialects/server.py"),
        };
        let errors = fs::File::create(dir.join("server.stderr")).context("cannot write the server's log")?;
        let mut command = Command::new(python);
        command.arg(sh::fixture(script)?).args(["--until-eof", "--seed", &seed.to_string()]);
        if kind != Kind::Plain {
            command.arg("--cert").arg(&certificate.cert).arg("--key").arg(&certificate.key);
        }
        let process = Guarded::talking("the LLM server", command.arg("--log").arg(&log).stderr(errors))?;
        let listening = process.event("listening", Duration::from_secs(60))?;
        let port = listening["port"].as_u64().and_then(|port| port.try_into().ok());
        let port: u16 = port.context("the server did not say its port")?;
        let base_url = match kind {
            // By address: `localhost` may be [::1] first, where it does not listen.
            Kind::Plain => format!("http://127.0.0.1:{port}/v1"),
            Kind::Simulated | Kind::RealModel | Kind::Dialects => format!("https://localhost:{port}/v1"),
        };
        Ok(Self { port, base_url, log, certificate, process })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Asks it to end, so that its log is complete: of the connections that are still open, too.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.interrupt()?;
        anyhow::ensure!(status.success(), "the LLM server ended with {status}");
        Ok(())
    }
}
