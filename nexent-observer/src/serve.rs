//! Everything that may block, on threads of its own: the endpoint, the exporters' connections, the signals.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mio::Waker;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

use crate::{
    config::{Config, Environment, JsonlTarget, Listen, Secret, Semconv},
    enrich::names::{self, Sources},
    error::RunError,
    export::{
        Caps, Exports,
        clock::WallClock,
        history::History,
        ids::FailedSpans,
        jsonl::{self, Jsonl},
        live::Live,
        otlp::{self, Names, Otlp, OtlpConfig},
        policy::Policy,
        prometheus::Prometheus,
    },
    privileges,
    telemetry::{Health, Register},
    web::{Page, Parts, Server},
};

/// How long exporters may take to deliver what is queued when the observer ends.
const LAST_DELIVERY: Duration = Duration::from_secs(5);

/// The running outside.
pub struct Outside {
    runtime: Runtime,
    server: Option<Server>,
    names: names::Names,
}

impl Outside {
    /// Opens files and ports and starts the exporters. Nothing here touches an observed process.
    ///
    /// # Errors
    /// One sentence on what cannot be opened and what to do.
    pub fn start(config: &Config) -> Result<(Self, Exports), RunError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(4)
            .thread_name("outside")
            // These threads face the network. Files and ports are opened by the thread that starts them.
            .on_thread_start(privileges::shed)
            .enable_all()
            .build()
            .map_err(|error| RunError::caused("threads cannot be started", error))?;
        let _inside = runtime.enter();
        let register = Register::default();
        let metrics = |error| RunError::caused("the metrics cannot be set up", error);
        let health = Arc::new(Health::new(&register).map_err(metrics)?);
        let live = Arc::new(Live::default());
        let history = Arc::new(History::default());
        let caps = Caps::of_each_label(config.max_label_values);
        let prometheus =
            Arc::new(Prometheus::new(&register, Arc::clone(&health), Arc::clone(&live), caps).map_err(metrics)?);
        let server = match config.listen {
            Listen::Off => None,
            Listen::On(address) => {
                let parts = Parts {
                    prometheus: Arc::clone(&prometheus),
                    health: Arc::clone(&health),
                    live: Arc::clone(&live),
                    history: Arc::clone(&history),
                };
                let server = Server::start(address, parts, page(config)?);
                Some(runtime.block_on(server).map_err(|error| RunError::runtime(error.to_string()))?)
            }
        };
        let exports = Exports {
            policy: Policy {
                slow_request_seconds: config.slow_request_threshold_seconds,
                slow_token_rate: config.slow_token_rate_threshold,
                sample_rate: config.telemetry_sample_rate,
            },
            prometheus,
            failed: FailedSpans::default(),
            jsonl: open_jsonl(config, &health)?,
            otlp: start_otlp(config, &health)?,
            health,
            live,
            history,
            clock: WallClock::default(),
        };
        if let Some(server) = &server {
            tracing::info!("Metrics are at http://{}/metrics.", server.local_addr());
            if config.serves_page()? {
                tracing::info!("The live page is at http://{}/.", server.local_addr());
            }
        }
        let names = names::Names::start(Sources::of(config, |variable| std::env::var(variable).ok()));
        Ok((Self { runtime, server, names }, exports))
    }

    /// The names of containers and pods.
    #[must_use]
    pub fn names(&self) -> names::Names {
        self.names.clone()
    }

    /// Sets the flag that it gives and wakes the loop when the user wants the observer to end (SIGINT, SIGTERM).
    pub fn on_stop(&self, waker: Waker) -> Arc<AtomicBool> {
        let stop = Arc::new(AtomicBool::new(false));
        let set = Arc::clone(&stop);
        self.runtime.spawn(async move {
            if let Err(error) = asked_to_stop().await {
                tracing::error!(%error, "Signals cannot be received; end the observer with SIGKILL.");
                return;
            }
            set.store(true, Ordering::Relaxed);
            if let Err(error) = waker.wake() {
                tracing::debug!(%error, "The loop is not woken; it looks by itself.");
            }
        });
        stop
    }

    /// Delivers what is queued, within [`LAST_DELIVERY`], and ends.
    pub fn stop(self, exports: Exports) {
        let Self { runtime, server, .. } = self;
        runtime.block_on(async {
            exports.shutdown(LAST_DELIVERY).await;
            if let Some(server) = server {
                server.shutdown().await;
            }
        });
        runtime.shutdown_timeout(Duration::from_millis(500));
    }
}

async fn asked_to_stop() -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Whether there is a page, and its token from where it stands.
fn page(config: &Config) -> Result<Page, RunError> {
    if !config.serves_page()? {
        return Ok(Page::Off);
    }
    if let Some(token) = &config.web_token {
        return Ok(Page::Token(token.clone()));
    }
    let Some(path) = &config.web_token_file else { return Ok(Page::Open) };
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| RunError::caused(format!("web_token_file {shown} cannot be read"), error))?;
    let token = Secret::parse(text.lines().next().unwrap_or_default().trim());
    token.map(Page::Token).ok_or_else(|| {
        RunError::runtime(format!(
            "the first line of web_token_file {shown} is no token: expected {}",
            crate::config::keys::WEB_TOKEN.allowed
        ))
    })
}

fn open_jsonl(config: &Config, health: &Health) -> Result<Option<Jsonl>, RunError> {
    let target = match &config.jsonl {
        None => return Ok(None),
        Some(JsonlTarget::Stdout) => jsonl::Target::Stdout,
        Some(JsonlTarget::File(path)) => jsonl::Target::File(path.clone()),
    };
    Jsonl::open(&target, config.capture_content, health).map(Some).map_err(|error| RunError::runtime(error.to_string()))
}

fn start_otlp(config: &Config, health: &Health) -> Result<Option<Otlp>, RunError> {
    let environment = Environment::of_this_process();
    let mut variables: HashMap<String, String> =
        environment.otel().map(|(name, value)| (name.to_owned(), value)).collect();
    if let Some(url) = &config.jaeger_endpoint {
        variables.insert("JAEGER_ENDPOINT".to_owned(), url.expose().to_owned());
    }
    let url = config.otlp.as_ref().map(|endpoint| endpoint.expose().to_owned());
    let names = match config.semconv {
        Semconv::V1_41 => Names::V1_41,
        Semconv::V2026 => Names::V2026,
        Semconv::Both => Names::Both,
    };
    let otlp::Loaded { config, warnings } = otlp::load(&variables, url.as_deref());
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    config
        .map(|config| Otlp::start(&OtlpConfig { names, ..config }, health))
        .transpose()
        .map_err(|error| RunError::runtime(error.to_string()))
}
