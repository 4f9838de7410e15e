//! What Kubernetes mounts into a container about itself: the namespace beside the service account's token, and the files of
//! the downward API where the pod asks for them in the place that the documentation shows (`/etc/podinfo`).
//!
//! All of it lies in the target's file system, so it is the target's to choose: paths are resolved inside its root, nothing but
//! regular files is read, and reading is bounded.

use std::{fs::File, io::Read, sync::Arc};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::{LABELS, clean, kubernetes::Pod, names::Naming};

/// Longest file that is read, in bytes.
const FILE_BYTES: u64 = 64 << 10;

/// Reads them under the root of a process. May block where the target serves a file system: not for the loop.
#[must_use]
pub fn read(root: &File) -> Naming {
    let one = |path: &str| content(root, path).as_deref().and_then(clean);
    let pod = Pod {
        name: one("etc/podinfo/name").or_else(|| one("etc/podinfo/podname")),
        namespace: one("etc/podinfo/namespace")
            .or_else(|| one("var/run/secrets/kubernetes.io/serviceaccount/namespace")),
        labels: content(root, "etc/podinfo/labels").map(|text| labels(&text)).unwrap_or_default(),
        ..Pod::default()
    };
    Naming { pod: (pod != Pod::default()).then(|| Arc::new(pod)), ..Naming::default() }
}

fn content(root: &File, path: &str) -> Option<String> {
    // A link may lead anywhere in the container and nowhere else; a pipe must not keep us.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // First only its path: opening a device can do something.
    let found = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).ok()?;
    if !File::from(found).metadata().ok()?.is_file() {
        return None;
    }
    let file = File::from(openat2(root, path, flags, Mode::empty(), resolve).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// `key="value"`, one a line, the value quoted as Go does (downward API).
fn labels(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once('=')?;
            // Values of labels hold no character that would be escaped (Kubernetes, label syntax).
            let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
            Some((clean(key)?, clean(value)?))
        })
        .take(LABELS)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::PathBuf};

    use super::*;

    fn root(name: &str) -> (PathBuf, File) {
        let path = std::env::temp_dir().join(format!("nexent-observer-mounted-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(path.join("etc/podinfo/..data")).unwrap();
        fs::create_dir_all(path.join("var/run/secrets/kubernetes.io/serviceaccount/..data")).unwrap();
        let root = File::open(&path).unwrap();
        (path, root)
    }

    #[test]
    fn a_pod_is_named_by_what_is_mounted_into_it() {
        let (path, root) = root("pod");
        let account = path.join("var/run/secrets/kubernetes.io/serviceaccount");
        fs::write(account.join("..data/namespace"), "shop").unwrap();
        // As the kubelet writes them: links that are replaced as one.
        symlink("..data/namespace", account.join("namespace")).unwrap();
        assert_eq!(read(&root).pod.unwrap().namespace.as_deref(), Some("shop"));
        fs::write(path.join("etc/podinfo/..data/labels"), "app=\"agent\"\ntier=\"backend\"\nbroken\n").unwrap();
        symlink("/etc/podinfo/..data/labels", path.join("etc/podinfo/labels")).unwrap();
        fs::write(path.join("etc/podinfo/name"), "agent-0\n").unwrap();
        let pod = read(&root).pod.unwrap();
        assert_eq!(pod.name.as_deref(), Some("agent-0"));
        assert_eq!(
            pod.labels,
            [("app".to_owned(), "agent".to_owned()), ("tier".to_owned(), "backend".to_owned())],
            "an absolute link leads into the container"
        );
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn nothing_leads_out_of_the_container_and_nothing_but_files_is_read() {
        let (path, root) = root("hostile");
        symlink("/etc/passwd", path.join("etc/podinfo/name")).unwrap();
        symlink("../../../../../../../../etc/passwd", path.join("etc/podinfo/namespace")).unwrap();
        symlink("/proc/self/environ", path.join("etc/podinfo/labels")).unwrap();
        fs::create_dir_all(path.join("etc/podinfo/podname")).unwrap();
        let pipe = path.join("var/run/secrets/kubernetes.io/serviceaccount/namespace");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert_eq!(read(&root), Naming::default());
        fs::remove_file(&pipe).unwrap();
        fs::write(&pipe, "x".repeat(1 << 20)).unwrap();
        assert!(read(&root).pod.unwrap().namespace.as_ref().unwrap().len() <= 256);
        fs::remove_dir_all(path).unwrap();
    }
}
