//! Configuration in two stages: [`raw::RawConfig`] is what the sources say, [`Config`] is what it means.
//!
//! A flag wins over the environment, the environment over the file, the file over the default. Each value keeps its
//! origin, so that an error and `nexent-observer config` can name it.

mod env;
mod file;
pub mod keys;
mod otel;
pub mod raw;
mod resolve;
mod show;
mod value;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nexent_observer_core::limits::Limits;
use tracing::level_filters::LevelFilter;

pub use env::{CONFIG_VARIABLE, Environment};
pub use show::{write_json, write_yaml};
pub use value::{CacheDir, Endpoint, JsonlTarget, Kubelet, Listen, LogFormat, Secret, Semconv, WebPage};

use crate::{
    probe::{
        opener::{self, Opener},
        plain::PlainHttp,
    },
    tokens::ModelFile,
};
use keys::Key;
use raw::{Layer, RawConfig};

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// The flag of each key.
    pub keys: Layer,
}

/// Which processes are wanted; of each list that is not empty one entry has to fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Only {
    /// Patterns of executables.
    pub exes: Vec<String>,
    /// Users, by name or number.
    pub users: Vec<String>,
    /// Patterns of containers' names, or beginnings of their ids.
    pub containers: Vec<String>,
    /// Patterns of Kubernetes namespaces.
    pub namespaces: Vec<String>,
    /// Patterns of pods.
    pub pods: Vec<String>,
    /// Labels of pods, `key` or `key=pattern`.
    pub labels: Vec<String>,
}

/// The resolved configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Processes to observe, without repetition.
    pub pids: Vec<u32>,
    /// Executables to observe, absolute, without repetition.
    pub exes: Vec<PathBuf>,
    /// Observe every process that talks to an LLM.
    pub all: bool,
    /// Which of the processes that `all` and `exes` find.
    pub only: Only,
    /// Of these only the ones that ask for it.
    pub opt_in: bool,
    /// How long a process that `all` found may talk without a call of an LLM.
    pub trial: Duration,
    /// Where pods are listed.
    pub kubelet: Kubelet,
    /// Bearer token for it.
    pub kubelet_token_file: PathBuf,
    /// Certificates for it.
    pub kubelet_ca_file: PathBuf,
    /// Name of this node.
    pub node_name: Option<String>,
    /// Where the host's file system is seen.
    pub host_root: PathBuf,
    /// When HTTP without TLS is observed.
    pub plain_http: PlainHttp,
    /// Whether connections are followed into their sockets.
    pub phases: bool,
    /// Metrics endpoint, `prometheus_port` applied.
    pub listen: Listen,
    /// Whether the page is served.
    pub web_page: WebPage,
    /// Token of the page.
    pub web_token: Option<Secret>,
    /// File that holds it.
    pub web_token_file: Option<PathBuf>,
    /// OTLP endpoint; unset: what the `OTEL_*` variables say.
    pub otlp: Option<Endpoint>,
    /// Jaeger collector, as configured.
    pub jaeger_endpoint: Option<Endpoint>,
    /// Names in spans and OTLP metrics.
    pub semconv: Semconv,
    /// JSON lines.
    pub jsonl: Option<JsonlTarget>,
    /// Generated text may be kept and exported.
    pub capture_content: bool,
    /// Calls are joined to inbound requests by their content, too.
    pub join_by_content: bool,
    /// Service name of a target whose own environment names none.
    pub service_name: Option<String>,
    /// Observe at all.
    pub enable_telemetry: bool,
    /// Share of spans exported, 0 to 1.
    pub telemetry_sample_rate: f64,
    /// A longer call is slow, in seconds.
    pub slow_request_threshold_seconds: f64,
    /// A call with a lower decode rate is slow, in tokens per second.
    pub slow_token_rate_threshold: f64,
    /// Tokens of generated text are counted where the tokenizer of the model is known.
    pub tokenizer: bool,
    /// Tokenizers that the user names.
    pub tokenizer_files: Vec<ModelFile>,
    /// Read ring, in bytes; a power of two.
    pub read_ring_bytes: u32,
    /// Write ring, in bytes; a power of two.
    pub write_ring_bytes: u32,
    /// Bytes copied from the head of a written turn.
    pub write_head_bytes: u64,
    /// Bytes copied from the tail of each written call.
    pub write_tail_bytes: u64,
    /// Time between two drains of the rings.
    pub drain_interval: Duration,
    /// Caps of the core.
    pub limits: Limits,
    /// Distinct values of one metric label.
    pub max_label_values: usize,
    /// Processes of one library file with probes of their own.
    pub per_pid_attach_limit: usize,
    /// Where findings are kept.
    pub cache_dir: CacheDir,
    /// Least severe level logged.
    pub log_level: LevelFilter,
    /// Form of a log line.
    pub log_format: LogFormat,
    /// `OTEL_*` variables that were ignored, one sentence each.
    pub warnings: Vec<String>,
    settings: Vec<Setting>,
}

/// One resolved value and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Key.
    pub key: &'static Key,
    /// Value, secrets taken out; null when unset.
    pub value: serde_json::Value,
    /// Origin.
    pub origin: Origin,
}

impl Config {
    /// Reads the file if one is named and resolves all sources.
    pub fn load(flags: Flags, environment: &Environment) -> Result<Self, ConfigError> {
        let path = match flags.file {
            Some(path) => Some(path),
            None => environment.get(CONFIG_VARIABLE)?.map(PathBuf::from),
        };
        let file = path.map_or_else(|| Ok(Layer::default()), |path| file::read(&path))?;
        let mut variables = environment.layer()?;
        let warnings = otel::add(environment, &mut variables);
        let config = resolve::resolve(&RawConfig([flags.keys, variables, file]))?;
        Ok(Self { warnings, ..config })
    }

    /// All values with their origins, in the order of [`keys::KEYS`].
    #[must_use]
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Where the value of `key` came from.
    #[must_use]
    pub fn origin(&self, key: &Key) -> Origin {
        self.settings.iter().find(|s| s.key == key).map_or(Origin::Default, |s| s.origin.clone())
    }

    /// Whether the page is to be served: never without a token where another host may reach it.
    pub fn serves_page(&self) -> Result<bool, ConfigError> {
        let Listen::On(address) = self.listen else { return Ok(false) };
        let guarded = address.ip().is_loopback() || self.web_token.is_some() || self.web_token_file.is_some();
        match self.web_page {
            WebPage::Off => Ok(false),
            WebPage::Auto => Ok(guarded),
            WebPage::On if guarded => Ok(true),
            WebPage::On => Err(ConfigError::PageWithoutToken { origin: self.origin(&keys::WEB_PAGE), address }),
        }
    }

    /// Checks that there is something to observe: at least one process or all, and executables that exist.
    pub fn check_targets(&self) -> Result<(), ConfigError> {
        if self.pids.is_empty() && self.exes.is_empty() && !self.all {
            return Err(ConfigError::NoTarget);
        }
        if self.exes.is_empty() {
            return Ok(());
        }
        let opener = Opener::start();
        for exe in &self.exes {
            let found = match &opener {
                Ok(opener) => opener.find(exe, opener::PATIENT),
                Err(_) => opener::find(exe), // no thread can be had: then it is waited for
            };
            let reason = match found {
                Ok(found) if opener::is_regular(&found) => continue,
                Ok(_) => "is not a file".to_owned(),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    "cannot be looked at: its file system does not answer".to_owned()
                }
                Err(error) => format!("cannot be found: {error}"),
            };
            return Err(ConfigError::Exe { path: exe.clone(), origin: self.origin(&keys::EXE), reason });
        }
        Ok(())
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// No source sets it.
    Default,
    /// The configuration file.
    File {
        /// As named by the user.
        path: PathBuf,
        /// Line of the value, from 1; 0 for the file as a whole.
        line: u64,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        name: String,
    },
    /// The command line.
    Flag {
        /// With its dashes.
        name: String,
    },
}

impl Origin {
    fn file(path: &Path) -> Self {
        Self::File { path: path.to_owned(), line: 0 }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: 0 } => write!(f, "file {}", path.display()),
            Self::File { path, line } => write!(f, "file {}, line {line}", path.display()),
            Self::Environment { name } => write!(f, "environment variable {name}"),
            Self::Flag { name } => write!(f, "flag {name}"),
        }
    }
}

/// Why there is no configuration. Each message is one line and says what to do or what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A source cannot be read or parsed.
    #[error("cannot read {origin}: {reason}")]
    Unreadable {
        /// Which.
        origin: Origin,
        /// Why.
        reason: String,
    },
    /// A name that no key has.
    #[error("{}", unknown_key(key, origin, hint.as_deref()))]
    UnknownKey {
        /// As written.
        key: String,
        /// Where.
        origin: Origin,
        /// What may have been meant.
        hint: Option<String>,
    },
    /// A value that is not allowed.
    #[error("{key} in {origin} is {value}; expected {allowed}")]
    Value {
        /// Name of the key.
        key: &'static str,
        /// Where.
        origin: Origin,
        /// What it is, secrets taken out.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// An executable that cannot be observed.
    #[error("exe in {origin}: {} {reason}", path.display())]
    Exe {
        /// Which.
        path: PathBuf,
        /// Where.
        origin: Origin,
        /// Why.
        reason: String,
    },
    /// Anybody who reaches the address would see the page.
    #[error("web_page in {origin} is on, and {address} is not a loopback address: set web_token_file")]
    PageWithoutToken {
        /// Of `web_page`.
        origin: Origin,
        /// What is listened on.
        address: std::net::SocketAddr,
    },
    /// Neither a process nor an executable is named, nor all are wanted.
    #[error("nothing to observe: name at least one process with --pid PID or --exe PATH, or take --all")]
    NoTarget,
}

impl ConfigError {
    fn value(key: &Key, origin: Origin, value: impl Into<String>) -> Self {
        Self::Value { key: key.name, origin, value: value.into(), allowed: key.allowed }
    }

    /// 64 (EX_USAGE) when the command line is at fault, else 78 (EX_CONFIG); the numbers of sysexits.h.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoTarget => 64,
            Self::Unreadable { origin, .. }
            | Self::UnknownKey { origin, .. }
            | Self::Value { origin, .. }
            | Self::PageWithoutToken { origin, .. }
            | Self::Exe { origin, .. } => match origin {
                Origin::Flag { .. } => 64,
                Origin::Default | Origin::File { .. } | Origin::Environment { .. } => 78,
            },
        }
    }
}

fn unknown_key(key: &str, origin: &Origin, hint: Option<&str>) -> String {
    let what = match origin {
        Origin::Environment { .. } => format!("unknown variable {key} in the environment"),
        Origin::Default | Origin::File { .. } | Origin::Flag { .. } => format!("unknown key {key} in {origin}"),
    };
    match hint {
        Some(hint) => format!("{what}; did you mean {hint}?"),
        None => what,
    }
}
