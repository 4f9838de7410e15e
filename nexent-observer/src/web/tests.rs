//! The endpoint over real sockets.

use super::*;
use crate::{
    export::Caps,
    telemetry::{KernelCounts, Register},
};

const ANY: SocketAddr = SocketAddr::new(DEFAULT_LISTEN.ip(), 0);
const TOKEN: &str = "a-token-of-24-characters";

struct Served {
    server: Server,
    parts: Parts,
}

async fn try_start(addr: SocketAddr, page: Page) -> Result<Served, BindError> {
    let register = Register::default();
    let health = Arc::new(Health::new(&register).unwrap());
    let live = Arc::<Live>::default();
    let prometheus = Prometheus::new(&register, Arc::clone(&health), Arc::clone(&live), Caps::default()).unwrap();
    let parts = Parts { prometheus: Arc::new(prometheus), health, live, history: Arc::default() };
    Server::start(addr, parts.clone(), page).await.map(|server| Served { server, parts })
}

async fn start(page: Page) -> Served {
    try_start(ANY, page).await.unwrap()
}

fn token() -> Page {
    Page::Token(Secret::parse(TOKEN).unwrap())
}

fn client() -> reqwest::Client {
    crate::export::otlp::ensure_tls_provider();
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

impl Served {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.local_addr())
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let request = client().get(self.url(path));
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().await.unwrap()
    }

    async fn fetch(&self, path: &str) -> (u16, String) {
        let response = self.get(path, &[]).await;
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

fn header<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response.headers().get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn metrics_are_text_0_0_4_also_for_a_scraper_that_prefers_openmetrics() {
    let served = start(Page::Off).await;
    let response = served.get("/metrics", &[("accept", "application/openmetrics-text; version=1.0.0")]).await;
    assert_eq!(header(&response, "content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let text = response.text().await.unwrap();
    assert!(text.contains("nexent_observer_build_info{version=\""));
    assert!(!text.contains("# EOF"));
    assert_eq!(served.fetch("/nothing").await.0, 404);
    served.server.shutdown().await;
}

#[tokio::test]
async fn ready_follows_the_health() {
    let served = start(Page::Open).await;
    assert_eq!(served.fetch("/healthz").await.0, 200);
    assert_eq!(served.fetch("/readyz").await, (503, "not ready: no process is attached\n".into()));
    served.parts.health.kernel(KernelCounts { attached_processes: 1, ..KernelCounts::default() });
    assert_eq!(served.fetch("/readyz").await, (200, "ready\n".into()));
    let losing = KernelCounts { attached_processes: 1, lost_write_records: 1, ..KernelCounts::default() };
    served.parts.health.kernel(losing);
    let (status, text) = served.fetch("/readyz").await;
    assert_eq!(status, 503);
    assert!(text.starts_with("not ready: records or exchanges were lost"), "{text}");
    assert_eq!(served.fetch("/healthz").await.0, 200, "a loss is no reason to be started anew");
    served.server.shutdown().await;
}

#[tokio::test]
async fn a_busy_port_is_a_clear_error() {
    let first = start(Page::Open).await;
    let text = try_start(first.server.local_addr(), Page::Open).await.err().unwrap().to_string();
    assert!(text.contains(&first.server.local_addr().to_string()) && text.contains("--listen"), "{text}");
    assert!(text.contains("another process"), "{text}");
    first.server.shutdown().await;
}

#[tokio::test]
async fn after_shutdown_the_port_is_free_even_when_clients_stay_connected_and_follow() {
    let served = start(Page::Open).await;
    let addr = served.server.local_addr();
    let idle = tokio::net::TcpStream::connect(addr).await.unwrap();
    let mut following = served.get("/api/live", &[]).await;
    assert!(following.chunk().await.unwrap().unwrap().starts_with(b"event: whole\ndata: {"));
    served.server.shutdown().await;
    assert!(matches!(following.chunk().await, Ok(None) | Err(_)));
    assert!(try_start(addr, Page::Open).await.is_ok());
    drop(idle);
}

#[tokio::test]
async fn every_answer_has_a_strict_policy() {
    let served = start(token()).await;
    for path in ["/", "/login", "/assets/main.js", "/metrics", "/healthz", "/api/live", "/nothing"] {
        let response = served.get(path, &[]).await;
        let policy = header(&response, "content-security-policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(header(&response, "x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header(&response, "referrer-policy"), "no-referrer", "{path}");
    }
    served.server.shutdown().await;
}

#[tokio::test]
async fn another_name_for_loopback_is_refused() {
    let served = start(Page::Open).await;
    for path in ["/", "/api/live", "/api/snapshot", "/api/exchanges", "/metrics"] {
        assert_eq!(served.get(path, &[("host", "rebound.test")]).await.status(), 421, "{path}");
        assert_eq!(served.get(path, &[("host", "localhost:1")]).await.status(), 200, "{path}");
    }
    assert_eq!(served.get("/healthz", &[("host", "rebound.test")]).await.status(), 200);
    assert_eq!(served.get("/api/snapshot", &[("sec-fetch-site", "cross-site")]).await.status(), 403);
    served.server.shutdown().await;
}

#[tokio::test]
async fn with_a_token_nothing_but_metrics_and_states_is_for_everybody() {
    let served = start(token()).await;
    for path in ["/api/live", "/api/snapshot", "/api/exchanges", "/api/exchanges/1"] {
        let response = served.get(path, &[]).await;
        assert_eq!((response.status().as_u16(), header(&response, "www-authenticate")), (401, "Bearer"), "{path}");
    }
    let response = served.get("/", &[]).await;
    assert_eq!((response.status().as_u16(), header(&response, "location")), (303, "/login"));
    for path in ["/metrics", "/healthz", "/login"] {
        assert_eq!(served.get(path, &[]).await.status(), 200, "{path}");
    }
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(served.get("/api/snapshot", &[("authorization", &bearer)]).await.status(), 200);

    let login = async |token: &str| {
        let form = client().post(served.url("/login")).header("content-type", "application/x-www-form-urlencoded");
        form.body(format!("token={token}")).send().await.unwrap()
    };
    let refused = login("not-the-token-but-as-long").await;
    assert_eq!((refused.status().as_u16(), header(&refused, "set-cookie")), (401, ""));
    assert!(refused.text().await.unwrap().contains("not the token"));
    let accepted = login(TOKEN).await;
    assert_eq!((accepted.status().as_u16(), header(&accepted, "location")), (303, "/"));
    let cookie = header(&accepted, "set-cookie").split(';').next().unwrap().to_owned();
    assert_eq!(served.get("/", &[("cookie", &cookie)]).await.status(), 200);
    assert_eq!(served.get("/api/snapshot", &[("cookie", &cookie)]).await.status(), 200);
    served.server.shutdown().await;
}

#[tokio::test]
async fn without_a_token_other_hosts_get_no_page() {
    for page in [Page::Off, Page::Open] {
        let everywhere = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0);
        let served = try_start(everywhere, page).await.unwrap();
        let port = served.server.local_addr().port();
        for (path, status) in
            [("/api/live", 404), ("/api/snapshot", 404), ("/login", 404), ("/metrics", 200), ("/", 200)]
        {
            let response = client().get(format!("http://127.0.0.1:{port}{path}")).send().await.unwrap();
            assert_eq!(response.status(), status, "{path}");
        }
        served.server.shutdown().await;
    }
}

#[tokio::test]
async fn followers_are_counted_and_their_number_is_capped() {
    let served = start(Page::Open).await;
    let mut followers = Vec::new();
    for _ in 0..api::FOLLOWERS {
        followers.push(served.get("/api/live", &[]).await);
    }
    assert!(served.parts.live.is_watched());
    assert_eq!(served.get("/api/live", &[]).await.status(), 503);
    drop(followers);
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while served.parts.live.is_watched() {
        assert!(std::time::Instant::now() < until, "a follower that left is still counted");
        served.parts.live.set(crate::export::live::Snapshot::default());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(served.get("/api/live", &[]).await.status(), 200);
    served.server.shutdown().await;
}

#[tokio::test]
async fn odd_queries_are_refused_or_capped() {
    let served = start(Page::Open).await;
    for (path, status) in [
        ("/api/exchanges?limit=18446744073709551615&before=0", 200),
        ("/api/exchanges?limit=-1", 400),
        ("/api/exchanges?before=x", 400),
        ("/api/exchanges/x", 400),
        ("/api/exchanges/99999999999999999999999", 400),
        ("/api/exchanges/7", 404),
        ("/assets/..%2fmod.rs", 404),
        ("/assets/%2fetc%2fpasswd", 404),
    ] {
        assert_eq!(served.fetch(path).await.0, status, "{path}");
    }
    served.server.shutdown().await;
}
