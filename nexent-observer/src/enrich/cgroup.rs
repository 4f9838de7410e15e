//! Which container and which pod a process is in, by the paths of its cgroups: no runtime has to be asked.
//!
//! Who writes these paths: Docker and runc (`/docker/ID`, `docker-ID.scope`), the kubelet's cgroup managers
//! (`kubepods/burstable/podUID/ID`, `kubepods-burstable-podUID.slice/cri-containerd-ID.scope`), containerd's and CRI-O's CRI
//! plugins, podman (`libpod-ID.scope`). A process inside a container can make cgroups below its own, where it may write: so the
//! names are bounded and of a closed alphabet, and what is nested counts as what is nested deepest, as with kind.

use std::{fs::File, io::Read};

/// Longest `/proc/PID/cgroup` that is read, in bytes.
const CGROUP_BYTES: u64 = 64 << 10;

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Container {
    /// Its id as the runtime gives it: 64 hexadecimal digits, of Fargate 32 and a number.
    pub id: String,
    /// Which runtime, where the path says it: `docker`, `containerd`, `cri-o` or `podman`.
    pub runtime: Option<&'static str>,
    /// Uid of its Kubernetes pod.
    pub pod_uid: Option<String>,
}

/// What runtimes put before the id in the name of a scope.
const PREFIXES: [(&str, &str); 5] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("nerdctl-", "containerd"),
    ("crio-", "cri-o"),
    ("libpod-", "podman"),
];

/// Names that stand somewhere above a bare id.
const PARENTS: [(&str, &str); 4] =
    [("docker", "docker"), ("libpod_parent", "podman"), ("crio", "cri-o"), ("containerd.service", "containerd")];

/// The container that a process is in; `None` on the host itself, or when that cannot be read.
#[must_use]
pub fn of_process(pid: u32) -> Option<Container> {
    let mut text = Vec::new();
    File::open(format!("/proc/{pid}/cgroup")).ok()?.take(CGROUP_BYTES).read_to_end(&mut text).ok()?;
    parse(&String::from_utf8_lossy(&text))
}

/// The container that a `/proc/PID/cgroup` (cgroups(7)) speaks of. With version 1 each hierarchy has a line, and some may lie
/// elsewhere: a line that knows the pod wins.
#[must_use]
pub fn parse(text: &str) -> Option<Container> {
    let of_line = |line: &str| of_path(line.splitn(3, ':').nth(2)?);
    let found: Vec<Container> = text.lines().filter_map(of_line).collect();
    found.iter().find(|container| container.pod_uid.is_some()).or_else(|| found.first()).cloned()
}

/// The deepest container of one path, with the pod around it.
fn of_path(path: &str) -> Option<Container> {
    let mut runtime = None;
    let mut pod_uid = None;
    let mut found: Option<Container> = None;
    for component in path.split('/') {
        // containerd with its cgroupfs driver in a systemd unit: `kubepods-burstable-podUID.slice:cri-containerd:ID`.
        for part in component.split(':') {
            if let Some((_, name)) = PARENTS.iter().find(|(parent, _)| *parent == part) {
                runtime = Some(*name);
            }
            if part == "cri-containerd" {
                runtime = Some("containerd");
            }
            if let Some(uid) = pod_of(part) {
                // Whatever is around the pod is its node, as with kind.
                (pod_uid, runtime) = (Some(uid), None);
            }
            if let Some((id, by)) = id_of(part) {
                found = Some(Container { id: id.to_owned(), runtime: by.or(runtime), pod_uid: pod_uid.clone() });
            }
        }
    }
    found
}

/// The id in a component, and the runtime if its name says it.
fn id_of(component: &str) -> Option<(&str, Option<&'static str>)> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    if is_id(name) {
        return Some((name, None));
    }
    PREFIXES.iter().find_map(|(prefix, runtime)| {
        let id = name.strip_prefix(prefix).filter(|id| is_id(id))?;
        Some((id, Some(*runtime)))
    })
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_id(text: &str) -> bool {
    if text.len() == 64 {
        return is_hex(text);
    }
    // Fargate: the task's id and a number.
    text.split_once('-').is_some_and(|(task, number)| {
        task.len() == 32
            && is_hex(task)
            && (1..=20).contains(&number.len())
            && number.bytes().all(|b| b.is_ascii_digit())
    })
}

/// The pod's uid in a component: `podUID`, or `...-podUID.slice` with `_` for `-`, as systemd wants it. The uid of a static pod
/// is a hash without dashes.
fn pod_of(component: &str) -> Option<String> {
    let name = component.strip_suffix(".slice").unwrap_or(component);
    let uid = name.strip_prefix("pod").or_else(|| name.rsplit_once("-pod").map(|(_, uid)| uid))?;
    let uid = uid.replace('_', "-");
    let dashes: Vec<usize> = uid.bytes().enumerate().filter(|(_, byte)| *byte == b'-').map(|(at, _)| at).collect();
    let is_uid = match uid.len() {
        36 => dashes == [8, 13, 18, 23],
        32 => dashes.is_empty(),
        _ => false,
    };
    (is_uid && is_hex(&uid.replace('-', ""))).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "7be92808767a667f35c8505cbf40d14e931ef6db5b0210329cf193b15ba9d605";
    const B: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";
    const UID: &str = "05fe8a4b-6f0c-4f5d-9e0b-1f2a3b4c5d6e";
    const UID_: &str = "05fe8a4b_6f0c_4f5d_9e0b_1f2a3b4c5d6e";
    const HASH: &str = "3f1f4a2b5c6d7e8f90a1b2c3d4e5f607";

    /// A whole `/proc/PID/cgroup` of version 2.
    fn v2(path: &str) -> String {
        format!("0::{path}\n")
    }

    /// Likewise of version 1, as on a host with both.
    fn v1(path: &str) -> String {
        format!(
            "12:memory:{path}\n11:pids:{path}\n3:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::/system.slice/x.service\n"
        )
    }

    #[test]
    fn every_runtime_and_driver_is_known_in_both_versions() {
        let none = None;
        let uid = Some(UID);
        for (path, runtime, pod) in [
            (format!("/docker/{A}"), Some("docker"), none),
            (format!("/system.slice/docker-{A}.scope"), Some("docker"), none),
            (format!("/docker/{A}/init.scope"), Some("docker"), none),
            (format!("/docker/{A}/system.slice/nginx.service"), Some("docker"), none),
            (
                format!("/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope"),
                Some("docker"),
                none,
            ),
            (format!("/docker/{B}/docker/{A}"), Some("docker"), none),
            (format!("/machine.slice/libpod-{A}.scope"), Some("podman"), none),
            (format!("/machine.slice/libpod-{A}.scope/container"), Some("podman"), none),
            (format!("/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope"), Some("podman"), none),
            (
                format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container"),
                Some("podman"),
                none,
            ),
            (format!("/libpod_parent/libpod-{A}"), Some("podman"), none),
            (format!("/system.slice/nerdctl-{A}.scope"), Some("containerd"), none),
            (format!("/default/{A}"), none, none),
            (format!("/ecs/{HASH}/{A}"), none, none),
            (format!("/../../system.slice/docker-{A}.scope"), Some("docker"), none),
            (format!("/kubepods/pod{UID}/{A}"), none, uid),
            (format!("/kubepods/besteffort/pod{UID}/{A}"), none, uid),
            (format!("/kubepods/burstable/pod{UID}/crio-{A}"), Some("cri-o"), uid),
            (format!("/kubepods.slice/kubepods-pod{UID_}.slice/docker-{A}.scope"), Some("docker"), uid),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/cri-containerd-{A}.scope"
                ),
                Some("containerd"),
                uid,
            ),
            (
                format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-{A}.scope"),
                Some("cri-o"),
                uid,
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-{A}.scope/container"
                ),
                Some("cri-o"),
                uid,
            ),
            (
                format!("/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{A}"),
                Some("containerd"),
                uid,
            ),
            (format!("/kubepods-burstable-pod{UID_}.slice:cri-containerd:{A}"), Some("containerd"), uid),
            // kind: the node itself is a container of Docker's.
            (format!("/docker/{B}/kubelet/kubepods/burstable/pod{UID}/{A}"), none, uid),
            (
                format!(
                    "/system.slice/docker-{B}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                     kubelet-kubepods-burstable-pod{UID_}.slice/cri-containerd-{A}.scope"
                ),
                Some("containerd"),
                uid,
            ),
            // A static pod.
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice/cri-containerd-{A}.scope"
                ),
                Some("containerd"),
                Some(HASH),
            ),
        ] {
            let want = Container { id: A.to_owned(), runtime, pod_uid: pod.map(str::to_owned) };
            assert_eq!(parse(&v2(&path)), Some(want.clone()), "{path}");
            assert_eq!(parse(&v1(&path)), Some(want), "{path}");
        }
        let fargate = format!("{HASH}-2531612879");
        assert_eq!(parse(&v2(&format!("/ecs/{HASH}/{fargate}"))).map(|c| c.id), Some(fargate));
    }

    #[test]
    fn hosts_monitors_and_nonsense_are_no_containers() {
        let long = "a".repeat(1 << 16);
        for path in [
            "/",
            "/init.scope",
            "/system.slice/docker.service",
            "/system.slice/containerd.service",
            "/user.slice/user-1000.slice/session-3.scope",
            "/system.slice/docker-.scope",
            &format!("/system.slice/docker-{}.scope", &A[1..]),
            &format!("/machine.slice/libpod-conmon-{A}.scope"),
            &format!("/system.slice/crio-conmon-{A}.scope"),
            &format!("/docker/{}", A.to_uppercase()),
            &format!("/kubepods/burstable/pod{UID}"),
            &format!("/{long}"),
            "",
            "::::",
        ] {
            assert_eq!(parse(&v2(path)), None, "{path}");
        }
        for text in ["", "0", "0::", "\u{0}\n::\n:", "garbage"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_line_that_knows_the_pod_wins() {
        let text = format!("5:devices:/docker/{B}\n4:memory:/kubepods/pod{UID}/{A}\n");
        let found = parse(&text).unwrap();
        assert_eq!((found.id.as_str(), found.pod_uid.as_deref()), (A, Some(UID)));
        assert_eq!(pod_of(&format!("pod{}", &UID[1..])), None);
        assert_eq!(pod_of("podium"), None);
    }

    #[test]
    fn this_process_can_be_asked() {
        // What it is in is not for the test to say; that it is read, is.
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        assert_eq!(of_process(std::process::id()), parse(&own));
        assert_eq!(of_process(u32::MAX), None);
    }
}
