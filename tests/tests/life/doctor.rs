//! `doctor` and `targets` on real processes: what they find, where hooks would sit, what cannot be seen; and without rights.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;
use xtask::{
    golang::{self, Link, Toolchain},
    process::Guarded,
    sh,
};

use crate::harness::{Place, binary, until};

/// `doctor --json` of one process, when `ready` says that it has got as far as it should.
fn doctor(pid: u32, ready: impl Fn(&Value) -> bool) -> Value {
    until(&format!("doctor says what it should of {pid}"), || {
        let output = Command::new(binary()).args(["doctor", "--json", "--pid", &pid.to_string()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&found["schema"], &found["can_run"]), (&Value::from(1), &Value::from(true)));
        Some(found["processes"][0].clone()).filter(|process| ready(process))
    })
}

fn unseen<'a>(process: &'a Value, what: &str) -> Option<&'a Value> {
    process["unseen"].as_array()?.iter().find(|unseen| unseen["what"] == what)
}

#[test]
fn a_python_process_is_told_with_its_library_its_hooks_and_what_they_cost() {
    let place = Place::new("doctor-python");
    let server = place.server();
    let client = place.client_with(&server, "client", &[("SERVICE_NAME", "shop")]);
    let process = doctor(client.process.pid(), |process| process["status"] == "tls");
    assert_eq!(process["service"], "shop");
    assert_eq!(process["executable"], place.exe.to_str().unwrap());
    let libraries = process["libraries"].as_array().unwrap();
    let libssl = libraries.iter().find(|library| library["path"] == place.libssl.to_str().unwrap()).unwrap();
    assert!(libssl["build_id"].as_str().is_some_and(|id| id.len() >= 16), "{libssl}");
    assert!(libssl["version"].as_str().is_some_and(|version| version.starts_with("OpenSSL ")), "{libssl}");
    let hooks = libssl["implementations"][0]["hooks"].as_array().unwrap();
    for name in ["read", "write"] {
        let hook = hooks.iter().find(|hook| hook["hook"] == name).unwrap();
        assert!(hook["offset"].as_u64().is_some_and(|offset| offset > 0), "{hook}");
        assert!(hook["cost_us"].as_f64().is_some_and(|cost| cost > 0.0), "{hook}");
        assert!(hook["function"].as_str().is_some_and(|name| name.starts_with("SSL_")), "{hook}");
    }
    let text = Command::new(binary()).args(["doctor", "--pid", &client.pid()]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    for part in ["The observer can run here.", "status      tls", "SSL_read", "us a hit", "build id "] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let targets =
        Command::new(binary()).args(["targets", "--json", "--only-exe", place.exe.to_str().unwrap()]).output().unwrap();
    let targets: Value = serde_json::from_slice(&targets.stdout).unwrap();
    let pids: Vec<&Value> = targets["targets"].as_array().unwrap().iter().map(|target| &target["pid"]).collect();
    assert_eq!(pids, [&Value::from(client.process.pid())], "the filter leaves out all others");
}

#[test]
fn what_cannot_be_seen_is_said_with_its_reason_and_what_to_do() {
    let sleep = Guarded::spawn("sleep", Command::new("sleep").arg("300")).unwrap();
    let process =
        doctor(sleep.pid(), |process| process["executable"].as_str().is_some_and(|exe| exe.ends_with("sleep")));
    assert!(unseen(&process, "TLS").is_some_and(|unseen| unseen["advice"].as_str().is_some()), "{process}");
    assert_eq!(process["libraries"], Value::Array(Vec::new()));
    // A program with what rustls and ring leave in one.
    let rusty = std::env::temp_dir().join(format!("nexent-observer-rusty-{}", std::process::id()));
    fs::copy("/bin/sleep", &rusty).unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(&rusty).unwrap();
    file.write_all(b"/registry/src/rustls-0.23.12/src/conn.rs\0/registry/src/ring-0.17.8/src/aead.rs\0").unwrap();
    drop(file);
    let process = Guarded::spawn("rusty", Command::new(&rusty).arg("300")).unwrap();
    let process = doctor(process.pid(), |process| unseen(process, "rustls with ring").is_some());
    assert_eq!(
        (&process["libraries"], &process["service"]),
        (&Value::Array(Vec::new()), &process["attributes"]["process.executable.name"])
    );
    fs::remove_file(rusty).unwrap();
}

#[test]
fn java_is_refused_by_the_observer_with_the_words_of_doctor() {
    if !sh::succeeds(Command::new("java").arg("-version")) {
        sh::say(
            "installing the Debian package default-jre-headless (50 MB): Java's TLS cannot be seen, and that has to be said",
        );
        sh::apt_install(&["default-jre-headless"]).unwrap();
    }
    // It waits for a debugger before it looks for a class: no compiler is needed, and nothing but the loopback is listened on.
    let mut command = Command::new(fs::canonicalize("/usr/bin/java").unwrap());
    command.arg("-agentlib:jdwp=transport=dt_socket,server=y,suspend=y,address=127.0.0.1:0").arg("Nothing");
    let java = Guarded::spawn("java", command.stdin(Stdio::null()).stdout(Stdio::null())).unwrap();
    let process = doctor(java.pid(), |process| unseen(process, "Java's JSSE").is_some());
    assert_ne!(process["status"], "tls", "{process}");
    let why = unseen(&process, "Java's JSSE").unwrap()["why"].as_str().unwrap();
    let output = Command::new(binary())
        .args(["run", "--pid", &java.pid().to_string(), "--plain-http", "off", "--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains(&format!("Java's JSSE: {why}")), "{why}: {said}");
}

#[test]
fn without_rights_it_says_what_it_could_not_look_at_and_that_the_observer_cannot_run() {
    let program = std::env::temp_dir().join(format!("nexent-observer-nobody-{}", std::process::id()));
    fs::copy(binary(), &program).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(arguments);
        command.output().unwrap()
    };
    let output = run(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("this host cannot run the observer: capabilities"), "{error}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["can_run"], false);
    assert!(found["others"]["unreadable"].as_u64().is_some_and(|count| count > 0), "{found}");
    let output = run(&["targets"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("could not be looked at"), "{output:?}");
    let output = run(&["doctor", "--pid", "4194304"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no process with pid 4194304"));
    fs::remove_file(program).unwrap();
}

#[test]
fn a_stripped_go_program_is_told_with_its_version_and_its_hooks() {
    let place = Place::new("doctor-go");
    let server = place.server();
    let program = golang::driver(Toolchain::Current, Link::Stripped).unwrap();
    let mut command = Command::new(program);
    command.args(["--base-url", &server.base_url]).env("SSL_CERT_FILE", &server.certificate.cert);
    command.arg("--log").arg(place.dir.join("go.jsonl"));
    let program = Guarded::talking("go", &mut command).unwrap();
    let process = doctor(program.pid(), |process| process["status"] == "tls");
    let library = &process["libraries"][0];
    assert_eq!(library["implementations"][0]["family"], "Go crypto/tls", "{process}");
    assert!(library["version"].as_str().is_some_and(|version| version.starts_with("go1.")), "{library}");
}
