//! Names from a real HTTP server that speaks as a kubelet does, from engines' state, and from neither.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, extract::State, http::HeaderMap, routing::get};

use super::*;
use crate::config::Endpoint;

const LIST: &str = include_str!("../../tests/fixtures/kubelet/pods.json");
const AGENT: &str = "7be92808767a667f35c8505cbf40d14e931ef6db5b0210329cf193b15ba9d605";
const UID: &str = "05fe8a4b-6f0c-4f5d-9e0b-1f2a3b4c5d6e";

fn container(id: &str, pod_uid: Option<&str>) -> Container {
    Container { id: id.to_owned(), runtime: None, pod_uid: pod_uid.map(str::to_owned) }
}

/// A kubelet that answers `401` without the token, and with an empty list the first `empty` times.
async fn kubelet(empty: usize) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let pods = move |State(counted): State<Arc<AtomicUsize>>, headers: HeaderMap| async move {
        if headers.get("authorization").is_none_or(|value| value != "Bearer t0ken") {
            return Err(axum::http::StatusCode::UNAUTHORIZED);
        }
        let before = counted.fetch_add(1, Ordering::Relaxed);
        Ok(if before < empty { r#"{"kind":"PodList","items":null}"# } else { LIST })
    };
    let app = Router::new().route("/pods", get(pods)).with_state(counted);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/pods", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, asked)
}

fn sources(name: &str, url: Option<&str>) -> Sources {
    let host_root = std::env::temp_dir().join(format!("nexent-observer-names-{}-{name}", std::process::id()));
    fs::create_dir_all(&host_root).unwrap();
    let token = host_root.join("token");
    fs::write(&token, "t0ken\n").unwrap();
    let api = url.map(|url| NodeApi { url: Endpoint::parse(url).unwrap(), token: Some(token), ca: None });
    Sources { host_root, api }
}

/// Asks until the answer is final.
async fn whole(names: &Names, container: &Container) -> Lookup {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = names.look_up(container, std::process::id());
        if answer.is_final() {
            return answer;
        }
        assert!(Instant::now() < end, "no answer for {container:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_kubelet_names_a_container_in_the_background_and_is_asked_once_for_many() {
    let (url, asked) = kubelet(0).await;
    let names = Names::start(sources("kubelet", Some(&url)));
    let before = names.generation();
    let agent = container(AGENT, Some(UID));
    assert_eq!(names.look_up(&agent, std::process::id()), Lookup::Partly(Arc::default()), "it does not wait");
    let Lookup::Known(naming) = whole(&names, &agent).await else { panic!("unknown") };
    assert_eq!(naming.container.as_deref(), Some("agent"));
    assert_eq!(naming.pod.as_ref().unwrap().namespace.as_deref(), Some("shop"));
    assert!(names.generation() > before);
    whole(&names, &container(&"1".repeat(64), Some(UID))).await;
    whole(&names, &container(&"2".repeat(64), None)).await;
    assert_eq!(asked.load(Ordering::Relaxed), 1, "the list names all of them, and what is in no pod is not asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_container_that_the_kubelet_hears_of_later_is_named_then() {
    let (url, asked) = kubelet(2).await;
    let names = Names::start(sources("late", Some(&url)));
    let Lookup::Known(naming) = whole(&names, &container(AGENT, Some(UID))).await else { panic!("unknown") };
    assert_eq!(naming.container.as_deref(), Some("agent"));
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_a_kubelet_the_engines_state_names_it() {
    for (name, url) in [("none", None), ("dead", Some("http://127.0.0.1:9/pods"))] {
        let sources = sources(name, url);
        let state = sources.host_root.join("run/containerd/io.containerd.runtime.v2.task/k8s.io").join(AGENT);
        fs::create_dir_all(&state).unwrap();
        let annotations = r#"{"annotations":{"io.kubernetes.cri.container-name":"agent","io.kubernetes.cri.sandbox-name":"agent-0"}}"#;
        fs::write(state.join("config.json"), annotations).unwrap();
        let names = Names::start(sources.clone());
        let agent = container(AGENT, Some(UID));
        let end = Instant::now() + Duration::from_secs(30);
        let naming = loop {
            let answer = names.look_up(&agent, std::process::id());
            if let Some(naming) = answer.naming().filter(|naming| naming.container.is_some()) {
                // As long as a kubelet may answer yet, more may be known.
                assert_eq!(answer.is_final(), url.is_none());
                break naming.clone();
            }
            assert!(Instant::now() < end, "{name}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(naming.pod.unwrap().name.as_deref(), Some("agent-0"));
        fs::remove_dir_all(sources.host_root).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_nobody_knows_is_unknown() {
    let names = Names::start(sources("unknown", None));
    assert_eq!(whole(&names, &container(&"3".repeat(64), None)).await, Lookup::Unknown);
    assert_eq!(Names::off().look_up(&container(AGENT, None), 1), Lookup::Unknown);
}

#[test]
fn what_the_better_source_says_wins_and_the_rest_is_filled_in() {
    let pod = |name: Option<&str>, namespace: Option<&str>| {
        Some(Arc::new(Pod { name: name.map(str::to_owned), namespace: namespace.map(str::to_owned), ..Pod::default() }))
    };
    let first = Naming { container: Some("a".into()), image: None, pod: pod(Some("p"), None) };
    let second = Naming { container: Some("b".into()), image: Some("i".into()), pod: pod(Some("q"), Some("n")) };
    let merged = merge(first, second);
    assert_eq!((merged.container.as_deref(), merged.image.as_deref()), (Some("a"), Some("i")));
    assert_eq!(merged.pod, pod(Some("p"), Some("n")));
}
