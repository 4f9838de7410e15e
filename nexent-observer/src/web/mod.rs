//! The HTTP endpoint: the live page with its API, `/metrics`, `/healthz`, `/readyz`.
//!
//! It listens on loopback unless told otherwise: service names and model names are nobody else's business ([`access`]).

mod access;
mod api;
mod assets;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Form, State},
    http::{
        StatusCode,
        header::{CONTENT_TYPE, SET_COOKIE},
    },
    middleware,
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinHandle,
};

use crate::{
    config::Secret,
    export::{
        history::History,
        live::Live,
        prometheus::{CONTENT_TYPE as METRICS_TYPE, Prometheus},
    },
    telemetry::{Health, Readiness},
};

/// Where the observer listens when nothing else is said.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9464);
/// Path under which processes are told that should be seen and are not.
pub const SILENT: &str = "/silent";
/// Scrapes that are rendered at once; more wait.
const RENDERS: usize = 2;
/// Open requests have so long to end at shutdown.
const GRACE: Duration = Duration::from_secs(1);

/// Where there is no page.
const INDEX: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>nexent-observer</title><h1>nexent-observer</h1>\
<p>The live page is not served here: set web_token_file to see it.\
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
    shared: Arc<Shared>,
    task: JoinHandle<io::Result<()>>,
}

/// What is served.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Metrics.
    pub prometheus: Arc<Prometheus>,
    /// The observer's state.
    pub health: Arc<Health>,
    /// Open streams.
    pub live: Arc<Live>,
    /// Ended ones.
    pub history: Arc<History>,
}

/// Whether there is a page, and for whom.
#[derive(Debug, Clone)]
pub enum Page {
    /// None, and no API.
    Off,
    /// For whoever reaches the address, which has to be a loopback one.
    Open,
    /// For who has the token.
    Token(Secret),
}

#[derive(Debug)]
struct Shared {
    prometheus: Arc<Prometheus>,
    health: Arc<Health>,
    live: Arc<Live>,
    history: Arc<History>,
    access: access::Access,
    renders: Semaphore,
    followers: Arc<Semaphore>,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Binds the address and serves until [`Self::shutdown`].
    pub async fn start(addr: SocketAddr, parts: Parts, page: Page) -> Result<Self, BindError> {
        let failed = |source: io::Error| BindError { addr, advice: advice(&source), source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let Parts { prometheus, health, live, history } = parts;
        let (served, token) = match page {
            Page::Off => (false, None),
            // The configuration does not let it come to this; should it all the same, there is no page.
            Page::Open => (addr.ip().is_loopback(), None),
            Page::Token(token) => (true, Some(token)),
        };
        let shared = Arc::new(Shared {
            prometheus,
            health,
            live,
            history,
            access: access::Access::new(addr, token),
            renders: Semaphore::new(RENDERS),
            followers: Arc::new(Semaphore::new(api::FOLLOWERS)),
            stop: watch::Sender::new(false),
        });
        let mut stop = shared.stop.subscribe();
        let serve = axum::serve(listener, router(&shared, served)).with_graceful_shutdown(async move {
            // An error says that the server handle was dropped: a stop too.
            stop.wait_for(|stop| *stop).await.map(drop).unwrap_or_default();
        });
        Ok(Self { addr, shared, task: tokio::spawn(async move { serve.await }) })
    }

    /// Where it listens; the port is the real one when 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no new connections and lets open requests end, for a second at most.
    pub async fn shutdown(self) {
        let Self { addr: _, shared, mut task } = self;
        shared.stop.send_replace(true);
        if tokio::time::timeout(GRACE, &mut task).await.is_err() {
            task.abort();
        }
    }
}

fn router(shared: &Arc<Shared>, page: bool) -> Router {
    let guarded = |router: Router<Arc<Shared>>| {
        router.route_layer(middleware::from_fn_with_state(Arc::clone(shared), access::guard_host))
    };
    let mut router = Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz));
    router = router.merge(guarded(Router::new().route("/metrics", get(metrics)).route(SILENT, get(silent))));
    if page {
        let api = Router::new()
            .route("/", get(|| async { assets::page() }))
            .route("/api/live", get(api::follow))
            .route("/api/snapshot", get(api::snapshot))
            .route("/api/exchanges", get(api::exchanges))
            .route("/api/exchanges/{seq}", get(api::exchange))
            .route_layer(middleware::from_fn_with_state(Arc::clone(shared), access::guard));
        // The form needs its style before there is a session; assets are the same for everybody.
        let open = Router::new().route("/assets/{name}", get(assets::asset)).route("/login", get(form).post(login));
        router = router.merge(api).merge(guarded(open));
    } else {
        router = router.merge(guarded(Router::new().route("/", get(|| async { Html(INDEX) }))));
    }
    router.layer(middleware::from_fn(access::harden)).with_state(Arc::clone(shared))
}

async fn form(State(shared): State<Arc<Shared>>) -> Response {
    if shared.access.has_token() { assets::login(false) } else { Redirect::to("/").into_response() }
}

#[derive(serde::Deserialize)]
struct Login {
    token: String,
}

async fn login(State(shared): State<Arc<Shared>>, Form(Login { token }): Form<Login>) -> Response {
    match shared.access.login(token.trim()).await {
        Some(cookie) => ([(SET_COOKIE, cookie)], Redirect::to("/")).into_response(),
        None => (StatusCode::UNAUTHORIZED, assets::login(true)).into_response(),
    }
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

/// Processes that should be seen and are not, for `doctor` and `targets`. Numbers of processes and files, as the metrics have services and
/// models.
async fn silent(State(shared): State<Arc<Shared>>) -> Response {
    axum::Json(&*shared.live.get().silent).into_response()
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
mod tests;
