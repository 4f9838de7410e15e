//! The HTTP endpoint: `/metrics`, `/healthz`, `/readyz`, and a page of links.
//!
//! It listens on loopback unless told otherwise: service names and model names are nobody else's business.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
    task::JoinHandle,
};

use crate::{
    export::prometheus::{CONTENT_TYPE as METRICS_TYPE, Prometheus},
    telemetry::{Health, Readiness},
};

/// Where the observer listens when nothing else is said.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9464);
/// Scrapes that are rendered at once; more wait.
const RENDERS: usize = 2;
/// Open requests have so long to end at shutdown.
const GRACE: Duration = Duration::from_secs(1);

const INDEX: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>nexent-observer</title><h1>nexent-observer</h1>\
<ul><li><a href=/metrics>/metrics</a> for Prometheus<li><a href=/healthz>/healthz</a> whether it runs\
<li><a href=/readyz>/readyz</a> whether it is attached and loses nothing</ul></html>\n";

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}: {source}; {advice}")]
pub struct BindError {
    /// The address.
    pub addr: SocketAddr,
    advice: &'static str,
    source: io::Error,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

#[derive(Debug)]
struct Shared {
    prometheus: Arc<Prometheus>,
    health: Arc<Health>,
    renders: Semaphore,
}

impl Server {
    /// Binds the address and serves until [`Self::shutdown`].
    pub async fn start(addr: SocketAddr, prometheus: Arc<Prometheus>, health: Arc<Health>) -> Result<Self, BindError> {
        let failed = |source: io::Error| BindError { addr, advice: advice(&source), source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let shared = Arc::new(Shared { prometheus, health, renders: Semaphore::new(RENDERS) });
        let serve = axum::serve(listener, router(shared)).with_graceful_shutdown(async move {
            // An error says that the server handle was dropped: a stop too.
            stopped.await.unwrap_or_default();
        });
        Ok(Self { addr, stop, task: tokio::spawn(async move { serve.await }) })
    }

    /// Where it listens; the port is the real one when 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no new connections and lets open requests end, for a second at most.
    pub async fn shutdown(self) {
        let Self { addr: _, stop, mut task } = self;
        drop(stop);
        if tokio::time::timeout(GRACE, &mut task).await.is_err() {
            task.abort();
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(|| async { Html(INDEX) }))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shared)
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    // The semaphore is never closed.
    let _permit = shared.renders.acquire().await;
    let prometheus = Arc::clone(&shared.prometheus);
    match tokio::task::spawn_blocking(move || prometheus.render()).await {
        Ok(Ok(text)) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn healthz(State(shared): State<Arc<Shared>>) -> Response {
    match shared.health.stuck_for() {
        None => "ok\n".into_response(),
        Some(silent) => {
            let text = format!("the event loop has not moved for {} s\n", silent.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let readiness = shared.health.readiness();
    let status = if readiness == Readiness::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{readiness}\n")).into_response()
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process (a second observer?) has that port: stop it, or choose another with --listen"
        }
        io::ErrorKind::PermissionDenied => "choose a port from 1024 up with --listen",
        io::ErrorKind::AddrNotAvailable => "that address is not one of this host; choose another with --listen",
        _ => "choose another address with --listen",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        export::{Caps, live::Live},
        telemetry::{KernelCounts, Register},
    };

    const ANY: SocketAddr = SocketAddr::new(DEFAULT_LISTEN.ip(), 0);

    async fn start(addr: SocketAddr) -> (Result<Server, BindError>, Arc<Health>) {
        let register = Register::default();
        let health = Arc::new(Health::new(&register).unwrap());
        let prometheus = Prometheus::new(&register, Arc::clone(&health), Arc::new(Live::default()), Caps::default());
        (Server::start(addr, Arc::new(prometheus.unwrap()), Arc::clone(&health)).await, health)
    }

    async fn fetch(server: &Server, path: &str) -> (u16, String, String) {
        crate::export::otlp::ensure_tls_provider();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.get(format!("http://{}{path}", server.local_addr()));
        let response = request.header("accept", "application/openmetrics-text; version=1.0.0").send().await.unwrap();
        let kind = response.headers().get(CONTENT_TYPE).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        (response.status().as_u16(), kind, response.text().await.unwrap())
    }

    #[tokio::test]
    async fn metrics_are_text_0_0_4_also_for_a_scraper_that_prefers_openmetrics() {
        let (server, _) = start(ANY).await;
        let server = server.unwrap();
        let (status, kind, text) = fetch(&server, "/metrics").await;
        assert_eq!((status, kind.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
        assert!(text.contains("nexent_observer_build_info{version=\""));
        assert!(!text.contains("# EOF"));
        let (status, _, text) = fetch(&server, "/").await;
        assert!(status == 200 && text.contains("href=/metrics"));
        assert_eq!(fetch(&server, "/nothing").await.0, 404);
        server.shutdown().await;
    }

    #[tokio::test]
    async fn ready_follows_the_health() {
        let (server, health) = start(ANY).await;
        let server = server.unwrap();
        assert_eq!(fetch(&server, "/healthz").await.0, 200);
        let (status, _, text) = fetch(&server, "/readyz").await;
        assert_eq!((status, text.as_str()), (503, "not ready: no process is attached\n"));
        health.kernel(KernelCounts { attached_processes: 1, ..KernelCounts::default() });
        let (status, _, text) = fetch(&server, "/readyz").await;
        assert_eq!((status, text.as_str()), (200, "ready\n"));
        let losing = KernelCounts { attached_processes: 1, lost_write_records: 1, ..KernelCounts::default() };
        health.kernel(losing);
        let (status, _, text) = fetch(&server, "/readyz").await;
        assert_eq!(status, 503);
        assert!(text.starts_with("not ready: records or exchanges were lost"), "{text}");
        assert_eq!(fetch(&server, "/healthz").await.0, 200, "a loss is no reason to be started anew");
        server.shutdown().await;
    }

    #[tokio::test]
    async fn a_busy_port_is_a_clear_error() {
        let (first, _) = start(ANY).await;
        let first = first.unwrap();
        let (second, _) = start(first.local_addr()).await;
        let text = second.unwrap_err().to_string();
        assert!(text.contains(&first.local_addr().to_string()) && text.contains("--listen"), "{text}");
        assert!(text.contains("another process"), "{text}");
        first.shutdown().await;
    }

    #[tokio::test]
    async fn after_shutdown_the_port_is_free_even_when_a_client_stays_connected() {
        let (server, _) = start(ANY).await;
        let server = server.unwrap();
        let addr = server.local_addr();
        let idle = tokio::net::TcpStream::connect(addr).await.unwrap();
        fetch(&server, "/metrics").await;
        let began = std::time::Instant::now();
        server.shutdown().await;
        assert!(began.elapsed() < Duration::from_secs(3));
        assert!(start(addr).await.0.is_ok());
        drop(idle);
    }
}
