//! Who a process is: pid to service. Read once when it is attached; its environment and name are its own to choose, so all of
//! it is bounded and cleaned before it becomes a label or an attribute. The names of its container and pod may come later.

use std::path::Path;

pub mod cgroup;
pub mod engine;
pub mod filter;
pub mod kubernetes;
pub mod mounted;
pub mod names;
pub mod services;

use cgroup::Container;
use names::Naming;

/// A process as people know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// `service.name`.
    pub service: String,
    /// `service.namespace`, where the process says it.
    pub namespace: Option<String>,
    /// More resource attributes.
    pub attributes: Vec<(String, String)>,
}

/// Longest value taken over, in bytes.
const VALUE_BYTES: usize = 256;
/// Most attributes taken over from `OTEL_RESOURCE_ATTRIBUTES`.
const ATTRIBUTES: usize = 64;
/// Most labels taken over from a pod.
const LABELS: usize = 32;
/// Labels of a pod that name its application, the most telling first (Kubernetes, "Recommended Labels", and what came before).
const APP_LABELS: [&str; 3] = ["app.kubernetes.io/name", "app", "k8s-app"];

/// Identity of a process by its environment, its executable and its container. Its name is, first of what is set:
/// `OTEL_SERVICE_NAME`, `SERVICE_NAME` and `service.name` in `OTEL_RESOURCE_ATTRIBUTES` of its environment, then `default`, then
/// its pod's app label, its container's name, the file name of its executable.
#[must_use]
pub fn identity(
    environment: &[(String, String)],
    executable: Option<&Path>,
    default: Option<&str>,
    container: Option<(&Container, Option<&Naming>)>,
) -> Identity {
    let get = |wanted: &str| {
        let (_, value) = environment.iter().find(|(name, _)| name == wanted)?;
        clean(value)
    };
    let mut attributes = get("OTEL_RESOURCE_ATTRIBUTES").map(|list| resource_attributes(&list)).unwrap_or_default();
    let mut taken = |wanted: &str| {
        let at = attributes.iter().position(|(name, _)| name == wanted)?;
        Some(attributes.swap_remove(at).1)
    };
    let (named, namespace) = (taken("service.name"), taken("service.namespace"));
    let executable = executable
        .and_then(Path::file_name)
        .and_then(|name| clean(name.to_string_lossy().trim_end_matches(" (deleted)")));
    let service = get("OTEL_SERVICE_NAME")
        .or_else(|| get("SERVICE_NAME"))
        .or(named)
        .or_else(|| default.and_then(clean))
        .or_else(|| container.and_then(|(_, naming)| name_of(naming?)))
        .or_else(|| executable.clone())
        .unwrap_or_else(|| "unknown_service".to_owned());
    if let Some(executable) = executable {
        attributes.push(("process.executable.name".to_owned(), executable));
    }
    if let Some((container, naming)) = container {
        attributes.extend(of_container(container, naming, get));
    }
    Identity { service, namespace, attributes }
}

/// What a pod or a container calls its application.
fn name_of(naming: &Naming) -> Option<String> {
    let labels = naming.pod.as_ref().map(|pod| pod.labels.as_slice()).unwrap_or_default();
    let label = APP_LABELS.iter().find_map(|wanted| labels.iter().find(|(key, _)| key == wanted));
    label.map(|(_, value)| value.clone()).or_else(|| naming.container.clone())
}

/// Attributes by the names of OpenTelemetry's semantic conventions (resource: container, k8s).
fn of_container(
    container: &Container,
    naming: Option<&Naming>,
    environment: impl Fn(&str) -> Option<String>,
) -> Vec<(String, String)> {
    let Container { id, runtime, pod_uid } = container;
    let pod = naming.and_then(|naming| naming.pod.as_deref());
    let named = naming.and_then(|naming| naming.container.clone());
    let image = naming.and_then(|naming| naming.image.as_deref()).and_then(image_name);
    let mut out = vec![("container.id".to_owned(), id.clone())];
    let mut add = |name: &str, value: Option<String>| out.extend(value.map(|value| (name.to_owned(), value)));
    add("container.runtime", runtime.map(str::to_owned));
    add("container.image.name", image);
    let Some(uid) = pod_uid.clone().or_else(|| pod?.uid.clone()) else {
        add("container.name", named);
        return out;
    };
    // Pods that tell their containers such things do it under these names (Kubernetes, "Expose Pod Information Through
    // Environment Variables").
    let said =
        |known: Option<String>, names: &[&str]| known.or_else(|| names.iter().find_map(|name| environment(name)));
    add("k8s.pod.uid", Some(uid));
    add("k8s.pod.name", said(pod.and_then(|pod| pod.name.clone()), &["POD_NAME", "MY_POD_NAME"]));
    add("k8s.namespace.name", said(pod.and_then(|pod| pod.namespace.clone()), &["POD_NAMESPACE", "MY_POD_NAMESPACE"]));
    add("k8s.node.name", said(pod.and_then(|pod| pod.node.clone()), &["NODE_NAME", "MY_NODE_NAME"]));
    add("k8s.container.name", named);
    for (kind, name) in pod.map(|pod| pod.owners.as_slice()).unwrap_or_default() {
        add(&format!("k8s.{kind}.name"), Some(name.clone()));
    }
    for (key, value) in pod.map(|pod| pod.labels.as_slice()).unwrap_or_default() {
        add(&format!("k8s.pod.label.{key}"), Some(value.clone()));
    }
    out
}

/// The name of an image without tag and digest; a bare digest is none.
fn image_name(image: &str) -> Option<String> {
    let name = image.split('@').next().unwrap_or_default();
    let name = match name.rsplit_once(':') {
        // A colon before the last slash belongs to a port.
        Some((before, after)) if !after.contains('/') => before,
        _ => name,
    };
    (!name.is_empty() && name != "sha256").then(|| name.to_owned())
}

/// `key=value` pairs separated by commas, values percent-encoded (OpenTelemetry resource SDK, W3C Baggage).
fn resource_attributes(list: &str) -> Vec<(String, String)> {
    list.split(',')
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            Some((clean(key)?, clean(&percent_decoded(value.trim()))?))
        })
        .take(ATTRIBUTES)
        .collect()
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A value without control characters, trimmed and bounded; `None` when nothing is left.
fn clean(text: &str) -> Option<String> {
    let mut out: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    if out.len() > VALUE_BYTES {
        let end = (0..=VALUE_BYTES).rev().find(|at| out.is_char_boundary(*at)).unwrap_or(0);
        out.truncate(end);
    }
    (!out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(pairs: &[(&str, &str)], default: Option<&str>) -> Identity {
        let environment: Vec<_> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        identity(&environment, Some(Path::new("/usr/bin/python3.11")), default, None)
    }

    #[test]
    fn the_target_names_itself_before_anyone_else_does() {
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=c,service.namespace=shop,team=a%2Cb,bad");
        let all = [("OTEL_SERVICE_NAME", "a"), ("SERVICE_NAME", "b"), attributes];
        assert_eq!(named(&all, Some("d")).service, "a");
        assert_eq!(named(&all[1..], Some("d")).service, "b");
        assert_eq!(named(&all[2..], Some("d")).service, "c");
        assert_eq!(named(&[], Some("d")).service, "d");
        assert_eq!(named(&[], None).service, "python3.11");
        assert_eq!(named(&[("SERVICE_NAME", "  ")], None).service, "python3.11", "empty is unset");
        let identity = named(&all[2..], None);
        assert_eq!(identity.namespace.as_deref(), Some("shop"));
        assert!(identity.attributes.contains(&("team".to_owned(), "a,b".to_owned())), "{identity:?}");
    }

    #[test]
    fn hostile_names_are_cleaned_and_bounded() {
        let long = "é".repeat(1000);
        let identity = named(&[("SERVICE_NAME", &long)], None);
        assert!(identity.service.len() <= VALUE_BYTES && identity.service.chars().all(|c| c == 'é'));
        assert_eq!(named(&[("SERVICE_NAME", "a\u{1b}[31m\nb")], None).service, "a[31mb");
        let many: String = (0..10_000).map(|i| format!("k{i}=%zz%4,")).collect();
        assert!(named(&[("OTEL_RESOURCE_ATTRIBUTES", &many)], None).attributes.len() <= ATTRIBUTES + 1);
    }

    #[test]
    fn containers_and_pods_name_a_process_that_does_not_name_itself() {
        let container =
            Container { id: "7b".repeat(32), runtime: Some("containerd"), pod_uid: Some("05fe".to_owned()) };
        let pod = kubernetes::Pod {
            name: Some("agent-0".to_owned()),
            namespace: Some("shop".to_owned()),
            labels: vec![("app".to_owned(), "agent".to_owned())],
            owners: vec![("statefulset".to_owned(), "agent".to_owned())],
            ..kubernetes::Pod::default()
        };
        let naming = Naming {
            container: Some("main".to_owned()),
            image: Some("registry:5000/shop/agent:1.4@sha256:00".to_owned()),
            pod: Some(pod.into()),
        };
        let python = Some(Path::new("/usr/bin/python3.11"));
        let of = |environment: &[(&str, &str)], default, naming| {
            let environment: Vec<_> = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            identity(&environment, python, default, Some((&container, naming)))
        };
        let found = of(&[], None, Some(&naming));
        assert_eq!(found.service, "agent");
        for (key, value) in [
            ("container.id", container.id.as_str()),
            ("container.runtime", "containerd"),
            ("container.image.name", "registry:5000/shop/agent"),
            ("k8s.pod.uid", "05fe"),
            ("k8s.pod.name", "agent-0"),
            ("k8s.namespace.name", "shop"),
            ("k8s.container.name", "main"),
            ("k8s.statefulset.name", "agent"),
            ("k8s.pod.label.app", "agent"),
        ] {
            assert!(found.attributes.contains(&(key.to_owned(), value.to_owned())), "{key}: {found:?}");
        }
        assert_eq!(of(&[("SERVICE_NAME", "own")], None, Some(&naming)).service, "own");
        assert_eq!(of(&[], Some("default"), Some(&naming)).service, "default");
        let unlabelled = Naming { pod: Some(kubernetes::Pod::default().into()), ..naming.clone() };
        assert_eq!(of(&[], None, Some(&unlabelled)).service, "main");
        let unknown = of(&[("POD_NAME", "agent-1"), ("POD_NAMESPACE", "shop")], None, None);
        assert_eq!(unknown.service, "python3.11");
        assert!(unknown.attributes.contains(&("k8s.pod.name".to_owned(), "agent-1".to_owned())), "{unknown:?}");
        let docker = Container { pod_uid: None, ..container.clone() };
        let bare = Naming { pod: None, ..naming };
        let found = identity(&[], python, None, Some((&docker, Some(&bare))));
        assert_eq!(found.service, "main");
        assert!(found.attributes.contains(&("container.name".to_owned(), "main".to_owned())), "{found:?}");
        assert!(!found.attributes.iter().any(|(key, _)| key.starts_with("k8s.")), "{found:?}");
        assert_eq!(image_name("sha256:0123"), None);
        assert_eq!(image_name("localhost/agent"), Some("localhost/agent".to_owned()));
    }
}
