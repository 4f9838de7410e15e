//! What the observer may still do once it runs, as the kernel says it, and that this is enough.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use xtask::process::Guarded;

use crate::harness::{Client, Observer, Place, SOON, assert_right, binary, until};
use xtask::{server::LlmServer, sh};

const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const LEASE: u64 = 1 << 28;
const DEPLOYED: &str = "-all,+sys_admin,+sys_ptrace,+dac_read_search";

/// The lines `Cap*` and `NoNewPrivs` of a status file (proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Caps {
    inheritable: u64,
    permitted: u64,
    effective: u64,
    bounding: u64,
    ambient: u64,
    no_new_privs: bool,
}

fn caps(task: &Path) -> Option<Caps> {
    let status = fs::read_to_string(task.join("status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let set = |name| u64::from_str_radix(field(name)?, 16).ok();
    Some(Caps {
        inheritable: set("CapInh")?,
        permitted: set("CapPrm")?,
        effective: set("CapEff")?,
        bounding: set("CapBnd")?,
        ambient: set("CapAmb")?,
        no_new_privs: field("NoNewPrivs")? == "1",
    })
}

/// Capabilities of the loop's thread, and of the others.
fn of_process(pid: u32) -> (Caps, Vec<Caps>) {
    let tasks: Vec<PathBuf> =
        fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().map(|task| task.path()).collect();
    let (leader, others): (Vec<_>, Vec<_>) = tasks.iter().partition(|task| task.ends_with(pid.to_string()));
    (caps(leader[0]).unwrap(), others.into_iter().filter_map(|task| caps(task)).collect())
}

/// What is left beside this bounding set, and that the log and the metrics say the same.
fn assert_confined(observer: &mut Observer, bounding: u64) {
    let pid = observer.process.pid();
    let wanted = Caps {
        inheritable: 0,
        permitted: SYS_ADMIN | SYS_PTRACE | DAC_READ_SEARCH,
        effective: SYS_PTRACE | DAC_READ_SEARCH,
        bounding,
        ambient: 0,
        no_new_privs: true,
    };
    // While it attaches CAP_SYS_ADMIN is in effect, for some milliseconds.
    until(&format!("{wanted:?}, not {:?}", of_process(pid).0), || (of_process(pid).0 == wanted).then_some(()));
    let others = of_process(pid).1;
    assert!(others.len() >= 3, "the endpoint, the lines, the detaching: {others:?}");
    let nothing = Caps { permitted: 0, effective: 0, ..wanted };
    // What it was started with, of what opening takes: all, where it could empty its bounding set.
    let reading = DAC_READ_SEARCH | SYS_PTRACE;
    let opens = if bounding == 0 { reading | LEASE } else { reading };
    let opening = Caps { permitted: opens, effective: opens, ..wanted };
    assert_eq!(others.iter().filter(|task| **task == opening).count(), 4, "those that open files: {others:?}");
    assert!(others.iter().all(|task| *task == nothing || *task == opening), "{others:?}");
    let line = observer.says("Capabilities: ");
    for words in [
        "always CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE;",
        "while attaching CAP_SYS_ADMIN;",
        "in other threads none, or of CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE and CAP_LEASE what is given, to open files;",
    ] {
        assert!(line.contains(words), "{words}: {line}");
    }
    let metrics = observer.metrics();
    let held = |labels: &[&str]| metrics.sum("nexent_observer_held_capabilities", labels);
    assert_eq!(held(&[]), 3.0);
    assert_eq!(held(&["capability=\"CAP_SYS_ADMIN\"", "in_effect=\"attaching\""]), 1.0);
}

/// A client that runs as another user, in a folder that it may enter.
fn as_nobody(place: &Place, server: &LlmServer, name: &str, env: &[(&str, &str)]) -> Client {
    let log = place.dir.join(format!("{name}.jsonl"));
    fs::write(&log, "").unwrap();
    std::os::unix::fs::chown(&log, Some(65_534), Some(65_534)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&place.python);
    command.arg(sh::fixture("clients/scripted.py").unwrap());
    command.args(["--base-url", &server.base_url]).arg("--log").arg(&log);
    command.env("SSL_CERT_FILE", &server.certificate.cert).envs(env.iter().copied());
    command.stderr(fs::File::create(place.dir.join(format!("{name}.stderr"))).unwrap());
    let process = Guarded::talking(name, &mut command).unwrap();
    process.event("ready", SOON).unwrap();
    Client { process }
}

#[test]
fn as_root_it_keeps_three_capabilities_and_still_finds_new_processes_of_other_users() {
    let place = Place::new("confined");
    let server = place.server();
    let exe = place.exe.to_str().unwrap().to_owned();
    let mut observer = place.observe("observer", &["--exe", &exe]);
    assert_confined(&mut observer, 0);
    // Both come after the drop: their maps, environment, probes and lines are all of them later.
    let mut own = place.client_with(&server, "own", &[("SERVICE_NAME", "own")]);
    let mut nobody = as_nobody(&place, &server, "nobody", &[("SERVICE_NAME", "nobody")]);
    for client in [&mut own, &mut nobody] {
        observer.attached(client.process.pid());
        let answer = client.chat();
        assert!(answer["error"].is_null(), "{answer}");
        let seen = until("its exchange", || {
            let all = observer.exchanges(1);
            all.into_iter().find(|seen| seen["request_id"] == answer["request_id"])
        });
        assert_right(&seen, &answer, &server);
        assert_eq!(seen["pid"], client.process.pid());
    }
    assert_confined(&mut observer, 0);
    let services: Vec<_> = observer.finish().iter().map(|seen| seen["service"].as_str().unwrap().to_owned()).collect();
    assert_eq!(services, ["own", "nobody"]);
}

#[test]
fn with_nothing_but_the_capabilities_of_the_deployment_files_it_does_the_same() {
    let place = Place::new("deployed");
    let server = place.server();
    let client = as_nobody(&place, &server, "client", &[("SERVICE_NAME", "first")]);
    // As Kubernetes starts it: no new privileges are not asked for there, and CAP_SETPCAP is not given.
    let wrapper = place.dir.join("observer.sh");
    let script = format!(
        "#!/bin/sh\nexec setpriv --inh-caps=-all --ambient-caps=-all --bounding-set={DEPLOYED} '{}' \"$@\"\n",
        binary().display()
    );
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let mut observer = place.observe_by(&wrapper, "observer", &["--pid", &client.pid()], &[]);
    let mut client = client;
    observer.attached(client.process.pid());
    assert_confined(&mut observer, SYS_ADMIN | SYS_PTRACE | DAC_READ_SEARCH);
    let answer = client.chat();
    let seen = observer.exchanges(1).remove(0);
    assert_right(&seen, &answer, &server);
    assert_eq!(seen["service"], "first", "its environment can be read");
    assert_eq!(observer.finish().len(), 1);
}

#[test]
fn a_file_of_generated_text_is_its_owners_alone() {
    let place = Place::new("content-mode");
    let server = place.server();
    let mut client = place.client(&server, "client");
    let mut observer = place.observe("observer", &["--pid", &client.pid()]);
    observer.attached(client.process.pid());
    client.chat();
    observer.exchanges(1);
    let mode = fs::metadata(&observer.jsonl).unwrap().permissions().mode() & 0o777;
    assert_eq!(format!("{mode:o}"), "600");
}
