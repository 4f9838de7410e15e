//! What container engines write down of their containers: Docker, podman and CRI-O, containerd. Read from their state, so no
//! socket of theirs is needed, which would be as good as root.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

use super::{LABELS, cgroup::Container, clean, kubernetes::Pod, names::Naming};

/// Longest file that is read, in bytes.
const FILE_BYTES: u64 = 8 << 20;
/// containerd's namespaces: Kubernetes', Docker's, and that of nerdctl and ctr.
const NAMESPACES: [&str; 3] = ["k8s.io", "moby", "default"];
/// Stores of containers/storage (podman, CRI-O), by driver.
const DRIVERS: [&str; 3] = ["overlay-containers", "vfs-containers", "btrfs-containers"];

/// What the engines say of a container. `root` is where the host's file system is seen.
#[must_use]
pub fn look_up(root: &Path, container: &Container) -> Option<Naming> {
    // The id comes from a path that a process could choose: nothing but its closed alphabet may reach a path here.
    if !container.id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return None;
    }
    docker(root, &container.id).or_else(|| storage(root, &container.id)).or_else(|| containerd(root, &container.id))
}

/// Docker's `config.v2.json`.
fn docker(root: &Path, id: &str) -> Option<Naming> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Config {
        name: String,
        config: Option<Inner>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        image: Option<String>,
        labels: Option<HashMap<String, String>>,
    }
    let file = root.join("var/lib/docker/containers").join(id).join("config.v2.json");
    let Config { name, config } = serde_json::from_slice(&read(&file)?).ok()?;
    let (image, labels) = config.map_or((None, None), |inner| (inner.image, inner.labels));
    Some(naming(name.trim_start_matches('/'), image.as_deref(), labels.unwrap_or_default()))
}

/// `containers.json` of containers/storage.
fn storage(root: &Path, id: &str) -> Option<Naming> {
    #[derive(Deserialize)]
    struct Entry {
        id: String,
        names: Option<Vec<String>>,
        metadata: Option<String>,
    }
    #[derive(Deserialize, Default)]
    struct Metadata {
        #[serde(rename = "image-name")]
        image: Option<String>,
    }
    let files =
        DRIVERS.iter().map(|driver| root.join("var/lib/containers/storage").join(driver).join("containers.json"));
    files.into_iter().find_map(|file| {
        let entries: Vec<Entry> = serde_json::from_slice(&read(&file)?).ok()?;
        let entry = entries.into_iter().find(|entry| entry.id == id)?;
        let metadata: Metadata = entry.metadata.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let name = entry.names.and_then(|names| names.into_iter().next())?;
        Some(naming(&name, metadata.image.as_deref(), HashMap::new()))
    })
}

/// The annotations that containerd's CRI plugin puts into the OCI specification of a container
/// (containerd, `pkg/cri/annotations`).
fn containerd(root: &Path, id: &str) -> Option<Naming> {
    #[derive(Deserialize)]
    struct Spec {
        annotations: Option<HashMap<String, String>>,
    }
    let tasks = root.join("run/containerd/io.containerd.runtime.v2.task");
    NAMESPACES.iter().find_map(|namespace| {
        let file = tasks.join(namespace).join(id).join("config.json");
        let Spec { annotations } = serde_json::from_slice(&read(&file)?).ok()?;
        let annotations = annotations?;
        let get = |name: &str| clean(annotations.get(&format!("io.kubernetes.cri.{name}"))?);
        let pod = Pod {
            name: get("sandbox-name"),
            namespace: get("sandbox-namespace"),
            uid: get("sandbox-uid"),
            ..Pod::default()
        };
        let name = get("container-name");
        name.is_some().then(|| Naming { container: name, image: get("image-name"), pod: Some(Arc::new(pod)) })
    })
}

/// A container's name and what is in it: engines under Kubernetes call it `k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT`.
fn naming(name: &str, image: Option<&str>, labels: HashMap<String, String>) -> Naming {
    let image = image.and_then(clean);
    let parts: Vec<&str> = name.split('_').collect();
    if let ["k8s", container, pod, namespace, uid, _attempt] = parts.as_slice() {
        let labels =
            labels.into_iter().filter(|(key, _)| !key.starts_with("io.kubernetes.") && !key.starts_with("annotation."));
        let pod = Pod {
            name: clean(pod),
            namespace: clean(namespace),
            uid: clean(uid),
            labels: labels.filter_map(|(k, v)| Some((clean(&k)?, clean(&v)?))).take(LABELS).collect(),
            ..Pod::default()
        };
        return Naming { container: clean(container), image, pod: Some(Arc::new(pod)) };
    }
    Naming { container: clean(name), image, pod: None }
}

fn read(path: &PathBuf) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn root(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("nexent-observer-engine-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&root));
        root
    }

    fn write(root: &Path, file: &str, text: &str) {
        let file = root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    fn container(digit: char) -> Container {
        Container { id: digit.to_string().repeat(64), runtime: None, pod_uid: None }
    }

    #[test]
    fn each_engines_own_files_name_its_containers() {
        let root = root("all");
        let id = |digit: char| container(digit).id;
        write(
            &root,
            &format!("var/lib/docker/containers/{}/config.v2.json", id('1')),
            r#"{"State":{"Pid":7},"Name":"/shop-web-1","Config":{"Image":"shop/web:2","Labels":{"com.docker.compose.service":"web"}}}"#,
        );
        write(
            &root,
            &format!("var/lib/docker/containers/{}/config.v2.json", id('2')),
            r#"{"Name":"/k8s_agent_agent-0_shop_05fe8a4b-6f0c-4f5d-9e0b-1f2a3b4c5d6e_3","Config":{"Image":"sha256:00","Labels":{"app":"agent","io.kubernetes.pod.name":"agent-0"}}}"#,
        );
        write(
            &root,
            "var/lib/containers/storage/overlay-containers/containers.json",
            &format!(
                r#"[{{"id":"{}","names":["quirky_bell"],"metadata":"{{\"image-name\":\"docker.io/library/python:3.12\",\"name\":\"quirky_bell\"}}"}}]"#,
                id('3')
            ),
        );
        write(
            &root,
            &format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{}/config.json", id('4')),
            r#"{"ociVersion":"1.1.0","annotations":{"io.kubernetes.cri.container-name":"agent","io.kubernetes.cri.container-type":"container","io.kubernetes.cri.image-name":"registry.example/agent:1","io.kubernetes.cri.sandbox-name":"agent-0","io.kubernetes.cri.sandbox-namespace":"shop","io.kubernetes.cri.sandbox-uid":"05fe8a4b-6f0c-4f5d-9e0b-1f2a3b4c5d6e"}}"#,
        );
        let found = |digit| look_up(&root, &container(digit)).unwrap();
        let one = found('1');
        assert_eq!((one.container.as_deref(), one.image.as_deref()), (Some("shop-web-1"), Some("shop/web:2")));
        let two = found('2');
        let pod = two.pod.unwrap();
        assert_eq!((two.container.as_deref(), pod.name.as_deref()), (Some("agent"), Some("agent-0")));
        assert_eq!(pod.namespace.as_deref(), Some("shop"));
        assert_eq!(pod.labels, [("app".to_owned(), "agent".to_owned())]);
        let three = found('3');
        assert_eq!(three.container.as_deref(), Some("quirky_bell"));
        assert_eq!(three.image.as_deref(), Some("docker.io/library/python:3.12"));
        let four = found('4');
        assert_eq!(four.container.as_deref(), Some("agent"));
        assert_eq!(four.pod.unwrap().name.as_deref(), Some("agent-0"));
        assert_eq!(look_up(&root, &container('5')), None);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn damaged_state_and_ids_that_are_paths_name_nothing() {
        let root = root("odd");
        write(&root, &format!("var/lib/docker/containers/{}/config.v2.json", container('1').id), "{\"Name\":");
        write(&root, "var/lib/containers/storage/overlay-containers/containers.json", "null");
        assert_eq!(look_up(&root, &container('1')), None);
        write(&root, "secret/config.v2.json", r#"{"Name":"/secret"}"#);
        let id = "../../../../secret".to_owned();
        assert_eq!(look_up(&root, &Container { id, runtime: None, pod_uid: None }), None);
        fs::remove_dir_all(root).unwrap();
    }
}
