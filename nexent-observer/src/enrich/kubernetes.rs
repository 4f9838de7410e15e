//! Kubernetes' word on the containers of this node: `/pods` of its kubelet, or the API server's list of the node's pods.
//!
//! Both answer with a `PodList` (Kubernetes API reference, core/v1); of it only what names a container is read.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use reqwest::{Certificate, Client, redirect};
use serde::Deserialize;

use super::{LABELS, clean};
use crate::{config::Endpoint, export::otlp::ensure_tls_provider};

/// Longest list that is read, in bytes: 250 pods are about 5 MB.
const LIST_BYTES: usize = 64 << 20;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most containers of one list.
const CONTAINERS: usize = 16_384;

/// A pod, as far as it names its processes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pod {
    /// `k8s.pod.name`.
    pub name: Option<String>,
    /// `k8s.namespace.name`.
    pub namespace: Option<String>,
    /// `k8s.pod.uid`.
    pub uid: Option<String>,
    /// `k8s.node.name`.
    pub node: Option<String>,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// What it belongs to, in lower case: `replicaset` and its name.
    pub owners: Vec<(String, String)>,
}

/// A container in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodContainer {
    /// `k8s.container.name`.
    pub name: Option<String>,
    /// Image as the pod wants it.
    pub image: Option<String>,
    /// Where it is.
    pub pod: Arc<Pod>,
}

/// All containers of a node.
#[derive(Debug, Clone, Default)]
pub struct Pods {
    by_container: HashMap<String, PodContainer>,
    by_uid: HashMap<String, Arc<Pod>>,
}

impl Pods {
    /// What is known of a container: by its id, else by its pod, when the kubelet has not heard of the container yet.
    #[must_use]
    pub fn find(&self, id: &str, pod_uid: Option<&str>) -> Option<PodContainer> {
        if let Some(found) = self.by_container.get(id) {
            return Some(found.clone());
        }
        let pod = self.by_uid.get(pod_uid?)?;
        Some(PodContainer { name: None, image: None, pod: Arc::clone(pod) })
    }

    /// Reads a `PodList`.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let PodList { items } = serde_json::from_slice(json)?;
        let mut pods = Self::default();
        for Item { metadata, spec, status } in items.unwrap_or_default() {
            let Metadata { name, namespace, uid, labels, annotations, owner_references } = metadata;
            let labels = labels.unwrap_or_default().into_iter();
            let pod = Arc::new(Pod {
                name: name.as_deref().and_then(clean),
                namespace: namespace.as_deref().and_then(clean),
                uid: uid.as_deref().and_then(clean),
                node: spec.unwrap_or_default().node_name.as_deref().and_then(clean),
                labels: labels.filter_map(|(k, v)| Some((clean(&k)?, clean(&v)?))).take(LABELS).collect(),
                owners: owner_references
                    .unwrap_or_default()
                    .into_iter()
                    .filter_map(|owner| Some((clean(&owner.kind)?.to_ascii_lowercase(), clean(&owner.name)?)))
                    .take(LABELS)
                    .collect(),
            });
            // The cgroups of a static pod have the hash of its file for a uid, and the list has it as an annotation.
            let hash = annotations.unwrap_or_default().remove("kubernetes.io/config.hash");
            for uid in uid.into_iter().chain(hash) {
                pods.by_uid.insert(uid, Arc::clone(&pod));
            }
            let Status { container_statuses, init_container_statuses, ephemeral_container_statuses } =
                status.unwrap_or_default();
            let all = [container_statuses, init_container_statuses, ephemeral_container_statuses];
            for container in all.into_iter().flatten().flatten() {
                // `containerd://ID`; absent before it was made.
                let Some((_, id)) = container.container_id.as_deref().and_then(|id| id.split_once("://")) else {
                    continue;
                };
                if pods.by_container.len() < CONTAINERS {
                    let found = PodContainer {
                        name: clean(&container.name),
                        image: container.image.as_deref().and_then(clean),
                        pod: Arc::clone(&pod),
                    };
                    pods.by_container.insert(id.to_owned(), found);
                }
            }
        }
        Ok(pods)
    }
}

#[derive(Deserialize)]
struct PodList {
    items: Option<Vec<Item>>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Metadata,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    labels: Option<HashMap<String, String>>,
    annotations: Option<HashMap<String, String>>,
    owner_references: Option<Vec<Owner>>,
}

#[derive(Deserialize)]
struct Owner {
    kind: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Status {
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    image: Option<String>,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

/// Where a node's pods are listed, and what it takes to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeApi {
    /// The list itself.
    pub url: Endpoint,
    /// File with a bearer token; read anew each time, for it is replaced.
    pub token: Option<PathBuf>,
    /// File with the certificates that the server is proven by; unset: those of the system.
    pub ca: Option<PathBuf>,
}

/// Why a node's pods are not known.
#[derive(Debug, thiserror::Error)]
pub enum NodeApiError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No answer.
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    /// Refused.
    #[error("HTTP status {0}; the account needs `nodes/proxy` (kubelet) or `pods` list (API server)")]
    Status(u16),
    /// Too long an answer.
    #[error("the answer is longer than {LIST_BYTES} bytes")]
    Long,
    /// Not a list of pods.
    #[error("the answer is no list of pods: {0}")]
    Json(#[from] serde_json::Error),
}

impl NodeApi {
    /// The list of pods of a kubelet, or the URL itself where it names more than a host.
    #[must_use]
    pub fn list_of(url: &Endpoint) -> Option<Endpoint> {
        let text = url.expose();
        let path = text.split_once("://")?.1.split_once('/').map_or("", |(_, path)| path);
        if path.is_empty() {
            Endpoint::parse(&format!("{}/pods", text.trim_end_matches('/')))
        } else {
            Some(url.clone())
        }
    }

    /// The API server's list of the pods of a node, for a pod (Kubernetes, "Accessing the API from a Pod").
    #[must_use]
    pub fn in_cluster(environment: impl Fn(&str) -> Option<String>, node: Option<&str>) -> Option<Endpoint> {
        let (host, node) = (environment("KUBERNETES_SERVICE_HOST")?, node?);
        let port = environment("KUBERNETES_SERVICE_PORT_HTTPS").unwrap_or_else(|| "443".to_owned());
        // An address of IPv6 wants brackets.
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Endpoint::parse(&format!("https://{host}:{port}/api/v1/pods?fieldSelector=spec.nodeName%3D{node}"))
    }

    /// Asks.
    ///
    /// # Errors
    /// [`NodeApiError`].
    pub async fn pods(&self) -> Result<Pods, NodeApiError> {
        ensure_tls_provider();
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|source| NodeApiError::File { path: path.clone(), source });
        let mut builder = Client::builder().timeout(PATIENCE).redirect(redirect::Policy::none()).no_proxy();
        if let Some(path) = &self.ca {
            builder = builder.tls_certs_only(Certificate::from_pem_bundle(&read(path)?)?);
        }
        let mut request = builder.build()?.get(self.url.expose());
        if let Some(path) = &self.token {
            request = request.bearer_auth(String::from_utf8_lossy(&read(path)?).trim());
        }
        // The URL may hold a password, and an error would show it.
        let mut response = request.send().await.map_err(reqwest::Error::without_url)?;
        if !response.status().is_success() {
            return Err(NodeApiError::Status(response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
            if body.len() + chunk.len() > LIST_BYTES {
                return Err(NodeApiError::Long);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Pods::parse(&body)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a kubelet 1.30 answers, shortened.
    const LIST: &str = include_str!("../../tests/fixtures/kubelet/pods.json");

    #[test]
    fn a_kubelets_list_names_containers_by_their_ids() {
        let pods = Pods::parse(LIST.as_bytes()).unwrap();
        let found = pods.find("7be92808767a667f35c8505cbf40d14e931ef6db5b0210329cf193b15ba9d605", None).unwrap();
        assert_eq!(found.name.as_deref(), Some("agent"));
        assert_eq!(found.image.as_deref(), Some("registry.example/shop/agent:1.4"));
        assert_eq!(found.pod.name.as_deref(), Some("agent-6d5f7c9b8-x2x7k"));
        assert_eq!(found.pod.namespace.as_deref(), Some("shop"));
        assert_eq!(found.pod.node.as_deref(), Some("node-1"));
        assert!(found.pod.labels.contains(&("app.kubernetes.io/name".to_owned(), "shop-agent".to_owned())));
        assert_eq!(found.pod.owners, [("replicaset".to_owned(), "agent-6d5f7c9b8".to_owned())]);
        let init = pods.find("1111111111111111111111111111111111111111111111111111111111111111", None).unwrap();
        assert_eq!(init.name.as_deref(), Some("migrate"));
    }

    #[test]
    fn a_container_that_the_kubelet_has_not_heard_of_is_named_by_its_pod() {
        let pods = Pods::parse(LIST.as_bytes()).unwrap();
        let found = pods.find("f".repeat(64).as_str(), Some("05fe8a4b-6f0c-4f5d-9e0b-1f2a3b4c5d6e")).unwrap();
        assert_eq!((found.name, found.pod.namespace.as_deref()), (None, Some("shop")));
        let mirror = pods.find("f".repeat(64).as_str(), Some("3f1f4a2b5c6d7e8f90a1b2c3d4e5f607")).unwrap();
        assert_eq!(mirror.pod.name.as_deref(), Some("kube-proxy-node-1"), "a static pod, by the hash in its cgroups");
        assert_eq!(pods.find("f".repeat(64).as_str(), Some("other")), None);
    }

    #[test]
    fn the_list_is_where_the_configuration_or_the_cluster_says() {
        for (url, list) in [
            ("https://node:10250", "https://node:10250/pods"),
            ("https://node:10250/", "https://node:10250/pods"),
            ("http://127.0.0.1:8001/api/v1/nodes/n/proxy/pods", "http://127.0.0.1:8001/api/v1/nodes/n/proxy/pods"),
        ] {
            assert_eq!(NodeApi::list_of(&Endpoint::parse(url).unwrap()).unwrap().expose(), list);
        }
        let environment = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            _ => None,
        };
        let found = NodeApi::in_cluster(environment, Some("node-1")).unwrap();
        assert_eq!(found.expose(), "https://[fd00::1]:443/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1");
        assert_eq!(NodeApi::in_cluster(environment, None), None, "not the pods of the whole cluster");
        assert_eq!(NodeApi::in_cluster(|_| None, Some("node-1")), None);
    }

    #[test]
    fn what_is_missing_or_odd_is_left_out() {
        for json in [r#"{"items":null}"#, r#"{"items":[]}"#, r#"{"kind":"PodList","items":[{"metadata":{}}]}"#] {
            assert_eq!(Pods::parse(json.as_bytes()).unwrap().find("x", Some("x")), None, "{json}");
        }
        for json in ["", "[]", r#"{"items":7}"#, "Unauthorized"] {
            assert!(Pods::parse(json.as_bytes()).is_err(), "{json}");
        }
        let many: Vec<String> = (0..1000).map(|n| format!(r#""l{n}":"v\u0007""#)).collect();
        let json = format!(r#"{{"items":[{{"metadata":{{"uid":"u","labels":{{{}}}}}}}]}}"#, many.join(","));
        let pod = Pods::parse(json.as_bytes()).unwrap().find("x", Some("u")).unwrap().pod;
        assert_eq!(pod.labels.len(), LABELS);
        assert!(pod.labels.iter().all(|(_, value)| value == "v"));
    }
}
