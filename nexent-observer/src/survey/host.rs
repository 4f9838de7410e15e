//! Whether this host can run the observer: the kernel, what it shows of itself, rights, locks, memory.

use std::{fs, io};

use memchr::memmem;
use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};
use serde::Serialize;

use crate::{
    config::Config,
    probe::{
        attach::kills_under_seccomp,
        btf::{self, Members},
        kernel::{KernelHalf, KernelOptions},
        plain::PlainHttp,
    },
};

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// The observer runs, and something of it does not.
    Warning,
    /// The observer does not run.
    Failed,
    /// It could not be looked at.
    Unknown,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name; tracepoints have one each.
    pub name: String,
    /// What it came to.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do.
    pub advice: Option<String>,
}

impl Check {
    fn new(name: &str, state: State, found: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state, found: found.into(), advice: None }
    }

    fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// Whether the observer runs.
#[must_use]
pub fn can_run(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.state != State::Failed)
}

/// Files of the kernel, so that a test can show others.
type See<'a> = &'a dyn Fn(&str) -> io::Result<Vec<u8>>;

const RELEASE: &str = "/proc/sys/kernel/osrelease";
/// Tracepoints that follow processes.
const PROCESSES: [&str; 3] = ["sched_process_fork", "sched_process_exec", "sched_process_exit"];
/// Those of plain HTTP (`probe/plain.rs`), and since which kernel they exist.
const PLAIN: [(&str, &str); 4] = [
    ("inet_sock_set_state", "4.16"),
    ("tcp_destroy_sock", "4.15"),
    ("sock_send_length", "6.3"),
    ("sock_recv_length", "6.3"),
];
/// Members of the kernel's structures without which nothing is loaded.
const MEMBERS: [(&str, &str); 6] = [
    ("task_struct", "tgid"),
    ("linux_binprm", "file"),
    ("sock_common", "skc_family"),
    ("sock_common", "skc_daddr"),
    ("sock", "sk_type"),
    ("super_block", "s_dev"),
];

/// Looks.
#[must_use]
pub fn look(config: &Config) -> Vec<Check> {
    let mut checks = checks(&|path| fs::read(path), config);
    checks.push(rights());
    checks.push(memlock());
    let loads = if can_run(&checks) {
        let options = KernelOptions {
            read_ring_bytes: config.read_ring_bytes,
            write_ring_bytes: config.write_ring_bytes,
            write_head_bytes: config.write_head_bytes,
            write_tail_bytes: config.write_tail_bytes,
            report_all_execs: false,
            phases: config.phases,
        };
        // The proof of the rest: nothing is attached to a process by it, and it is gone with the result.
        match KernelHalf::load(options) {
            Ok(_) => Check::new("kernel_half", State::Ok, "the verifier takes it"),
            Err(error) => Check::new("kernel_half", State::Failed, error.to_string())
                .advise("report it with the kernel's release and this output"),
        }
    } else {
        Check::new("kernel_half", State::Unknown, "not tried: something before it has failed")
    };
    checks.push(loads);
    checks
}

fn checks(see: See<'_>, config: &Config) -> Vec<Check> {
    let text = |path: &str| see(path).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    let release = text(RELEASE).unwrap_or_default();
    let mut out = vec![kernel(&release), seccomp(&release)];
    out.extend(types(see, config.plain_http));
    out.push(match text("/sys/bus/event_source/devices/uprobe/type") {
        Ok(_) => Check::new("uprobes", State::Ok, "the kernel has them"),
        Err(error) => Check::new("uprobes", State::Failed, format!("no event source `uprobe`: {error}"))
            .advise("a kernel with CONFIG_UPROBE_EVENTS=y is needed, and /sys has to be mounted"),
    });
    out.push(lockdown(&text("/sys/kernel/security/lockdown")));
    out.push(modules(&text));
    out.push(namespace(fs::read_link("/proc/self/ns/pid")));
    out.push(rings(config, text("/proc/meminfo").ok().as_deref()));
    out
}

fn kernel(release: &str) -> Check {
    let found = format!("{release}, {}", std::env::consts::ARCH);
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if release.is_empty() {
        Check::new("kernel", State::Unknown, "its release cannot be read")
    } else if version < (5, 15) {
        Check::new("kernel", State::Failed, found).advise("Linux 5.15 or later is needed")
    } else if !cfg!(target_arch = "x86_64") {
        Check::new("kernel", State::Warning, found).advise("this architecture is not tested")
    } else {
        Check::new("kernel", State::Ok, found)
    }
}

fn seccomp(release: &str) -> Check {
    if kills_under_seccomp(release) {
        Check::new(
            "seccomp",
            State::Warning,
            "this kernel kills a process under seccomp at a return probe (6.11 to 6.13)",
        )
        .advise(
            "processes under seccomp are not observed here (most in containers are under it); update to 6.14 or later",
        )
    } else {
        Check::new("seccomp", State::Ok, "return probes are safe under seccomp")
    }
}

/// Type information, and what is looked for in it.
fn types(see: See<'_>, plain_http: PlainHttp) -> Vec<Check> {
    let bytes = match see(btf::KERNEL_BTF) {
        Ok(bytes) => bytes,
        Err(error) => {
            return vec![
                Check::new("btf", State::Failed, format!("{}: {error}", btf::KERNEL_BTF))
                    .advise("a kernel with CONFIG_DEBUG_INFO_BTF=y is needed, and /sys has to be mounted"),
            ];
        }
    };
    let members = match Members::parse(&bytes) {
        Ok(members) => members,
        Err(error) => return vec![Check::new("btf", State::Failed, error.to_string())],
    };
    let missing: Vec<String> = MEMBERS
        .iter()
        .filter(|(name, member)| members.offset(name, member).is_err())
        .map(|(name, member)| format!("{name}.{member}"))
        .collect();
    let mut out = vec![if missing.is_empty() {
        Check::new("btf", State::Ok, format!("{} KiB, with all that is needed", bytes.len() >> 10))
    } else {
        Check::new("btf", State::Failed, format!("lacks {}", missing.join(", ")))
            .advise("this kernel is too old or too new; report it with its release")
    }];
    // A tracepoint with type information has a type of this name (include/trace/bpf_probe.h).
    let has = |event: &str| memmem::find(&bytes, format!("\0btf_trace_{event}\0").as_bytes()).is_some();
    let name = |event: &str| format!("tracepoint {event}");
    for event in PROCESSES {
        out.push(if has(event) {
            Check::new(&name(event), State::Ok, "there")
        } else {
            Check::new(&name(event), State::Failed, "not there").advise("a kernel with CONFIG_TRACEPOINTS=y is needed")
        });
    }
    for (event, since) in PLAIN {
        out.push(match (has(event), plain_http) {
            (true, _) => Check::new(&name(event), State::Ok, "there"),
            (false, PlainHttp::Off) => Check::new(&name(event), State::Ok, "not there; plain_http is off"),
            (false, _) => Check::new(&name(event), State::Warning, format!("not there; Linux {since} has it"))
                .advise("plain HTTP cannot be observed; TLS can"),
        });
    }
    let sending = "tcp_sendmsg_locked";
    out.push(if has(sending) {
        Check::new(&name(sending), State::Ok, "there")
    } else {
        Check::new(&name(sending), State::Ok, "not there; Linux 6.16 has it")
            .advise("plain HTTP uses tracepoints of system calls instead, which cost every such call of the host a little (docs/overhead.md)")
    });
    out
}

fn lockdown(text: &io::Result<String>) -> Check {
    // `none [integrity] confidentiality`: the one in brackets is in force (kernel_lockdown(7)).
    match text.as_deref() {
        Ok(text) if text.contains("[confidentiality]") => Check::new("lockdown", State::Failed, "confidentiality")
            .advise("it forbids reading memory by BPF and perf events; boot with lockdown=integrity or without"),
        Ok(text) => {
            let mode = text.split('[').nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("none");
            Check::new("lockdown", State::Ok, mode)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check::new("lockdown", State::Ok, "not in this kernel")
        }
        Err(error) => Check::new("lockdown", State::Unknown, error.to_string()),
    }
}

fn modules(text: &dyn Fn(&str) -> io::Result<String>) -> Check {
    let list = text("/sys/kernel/security/lsm").unwrap_or_default();
    let profile = text("/proc/self/attr/current").unwrap_or_default();
    let profile = profile.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    let confined = profile.ends_with("(enforce)");
    let enforcing = text("/sys/fs/selinux/enforce").is_ok_and(|value| value == "1");
    let found = match (list.as_str(), profile) {
        ("", "") => "none is seen".to_owned(),
        (list, "") => list.to_owned(),
        (list, profile) => format!("{list}; this process: {profile}"),
    };
    if confined || enforcing {
        return Check::new("security_modules", State::Warning, found).advise(
            "a policy may forbid bpf, perf_event_open or reading /proc of others: run unconfined (docker: --security-opt apparmor=unconfined; \
             SELinux: a domain such as spc_t) if attaching is refused",
        );
    }
    Check::new("security_modules", State::Ok, found)
}

fn namespace(link: io::Result<std::path::PathBuf>) -> Check {
    // The first pid namespace has this inode (include/linux/proc_ns.h, PROC_PID_INIT_INO).
    match link {
        Ok(link) if link.to_string_lossy() == "pid:[4026531836]" => {
            Check::new("pid_namespace", State::Ok, "the host's")
        }
        Ok(_) => Check::new("pid_namespace", State::Warning, "not the host's")
            .advise("processes of the host and of other containers are not seen: hostPID, or `docker run --pid=host`"),
        Err(error) => Check::new("pid_namespace", State::Unknown, error.to_string()),
    }
}

fn rings(config: &Config, meminfo: Option<&str>) -> Check {
    let wanted = u64::from(config.read_ring_bytes) + u64::from(config.write_ring_bytes);
    let mib = wanted >> 20;
    let available = meminfo.and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    });
    match available {
        None => Check::new("rings", State::Unknown, format!("{mib} MiB; free memory is not known")),
        Some(available) if wanted > available / 4 => {
            Check::new("rings", State::Warning, format!("{mib} MiB of {} MiB that are available", available >> 20))
                .advise("set read_ring_bytes and write_ring_bytes smaller")
        }
        Some(available) => {
            Check::new("rings", State::Ok, format!("{mib} MiB of {} MiB that are available", available >> 20))
        }
    }
}

fn rights() -> Check {
    let Ok(sets) = capabilities(None) else {
        return Check::new("capabilities", State::Unknown, "cannot be read");
    };
    rights_of(sets.effective)
}

fn rights_of(effective: CapabilitySet) -> Check {
    let names = |set: CapabilitySet| {
        let names: Vec<String> = set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
    let useful = CapabilitySet::DAC_READ_SEARCH;
    let missing = needed - effective;
    if !missing.is_empty() {
        return Check::new("capabilities", State::Failed, format!("{} missing", names(missing))).advise(
            "run as root, with `docker run --privileged`, or with `capabilities: add: [SYS_ADMIN, SYS_PTRACE, DAC_READ_SEARCH]`",
        );
    }
    if !effective.contains(useful) {
        return Check::new("capabilities", State::Warning, format!("{} missing", names(useful)))
            .advise("executables and libraries that only their owner may read, and environments, are not seen");
    }
    Check::new("capabilities", State::Ok, format!("{} in effect", names(needed | useful)))
}

fn memlock() -> Check {
    let limit = getrlimit(Resource::Memlock);
    // Since 5.11 maps are charged to the control group; before, root raises the limit by itself.
    let found = limit.current.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
    Check::new(
        "memlock",
        State::Ok,
        format!("{found}; counts on kernels before 5.11 only, where root is not held by it"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    fn config() -> Config {
        Config::load(Flags::default(), &crate::config::Environment::default()).unwrap()
    }

    fn named<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}: {checks:#?}"))
    }

    #[test]
    fn this_host_is_looked_at_with_and_without_rights() {
        let checks = look(&config());
        assert!(checks.iter().all(|check| !check.found.is_empty()), "{checks:#?}");
        for name in ["kernel", "btf", "tracepoint sched_process_exec", "capabilities", "rings", "kernel_half"] {
            named(&checks, name);
        }
        for check in &checks {
            let hopeless = matches!(check.state, State::Failed | State::Warning);
            assert!(!hopeless || check.advice.is_some() || check.name == "btf", "what to do? {check:?}");
        }
    }

    #[test]
    fn a_host_that_shows_nothing_cannot_run_it_and_is_told_why() {
        let nothing = |_: &str| Err(io::Error::from(io::ErrorKind::NotFound));
        let checks = checks(&nothing, &config());
        assert!(!can_run(&checks));
        for (name, state) in
            [("kernel", State::Unknown), ("btf", State::Failed), ("uprobes", State::Failed), ("rings", State::Unknown)]
        {
            assert_eq!(named(&checks, name).state, state, "{name}");
        }
    }

    #[test]
    fn kernels_locks_and_rights_are_judged() {
        for (release, state) in
            [("5.4.0-1", State::Failed), ("5.15.0-91-generic", State::Ok), ("6.18.44", State::Ok), ("", State::Unknown)]
        {
            let found = kernel(release).state;
            assert!(found == state || !cfg!(target_arch = "x86_64"), "{release}: {found:?}");
        }
        assert_eq!(seccomp("6.12.1").state, State::Warning);
        for (text, state) in [
            ("none integrity [confidentiality]", State::Failed),
            ("none [integrity] confidentiality", State::Ok),
            ("[none] integrity confidentiality", State::Ok),
        ] {
            assert_eq!(lockdown(&Ok(text.to_owned())).state, state, "{text}");
        }
        assert_eq!(lockdown(&Err(io::ErrorKind::PermissionDenied.into())).state, State::Unknown);
        assert_eq!(rights_of(CapabilitySet::empty()).state, State::Failed);
        assert_eq!(rights_of(CapabilitySet::SYS_ADMIN).state, State::Failed);
        assert_eq!(rights_of(CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE).state, State::Warning);
        assert_eq!(rights_of(CapabilitySet::all()).state, State::Ok);
        assert_eq!(rings(&config(), Some("MemAvailable:   20480 kB\n")).state, State::Warning);
        assert_eq!(rings(&config(), Some("MemAvailable: 20480000 kB\n")).state, State::Ok);
        let apparmor = |path: &str| match path {
            "/proc/self/attr/current" => Ok("docker-default (enforce)".to_owned()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        assert_eq!(modules(&apparmor).state, State::Warning);
    }

    #[test]
    fn a_kernel_without_the_newer_tracepoints_still_runs_it() {
        let Ok(real) = fs::read(btf::KERNEL_BTF) else { panic!("this kernel shows no types") };
        let mut old = real.clone();
        for event in ["sock_send_length", "tcp_sendmsg_locked"] {
            let name = format!("\0btf_trace_{event}\0");
            while let Some(at) = memmem::find(&old, name.as_bytes()) {
                old[at + 1] = b'x';
            }
        }
        let see = |path: &str| if path == btf::KERNEL_BTF { Ok(old.clone()) } else { fs::read(path) };
        let checks = types(&see, PlainHttp::Auto);
        assert!(can_run(&checks), "{checks:#?}");
        assert_eq!(named(&checks, "tracepoint sock_send_length").state, State::Warning);
        assert!(named(&checks, "tracepoint tcp_sendmsg_locked").advice.is_some());
        let cut = |_: &str| Ok(real[..100].to_vec());
        assert!(!can_run(&types(&cut, PlainHttp::Auto)));
    }
}
