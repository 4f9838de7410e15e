//! Bad starts: one sentence, the right exit code, nothing attached.

use std::{
    collections::HashSet,
    fs,
    net::TcpListener,
    process::{Command, Stdio},
};

use aya::programs::loaded_programs;
use xtask::process::Guarded;

use crate::harness::{Place, binary};

/// The observer ends by itself with this code and says one line that contains all of `words`; no program of it stays loaded.
fn refused(command: &mut Command, code: i32, words: &[&str]) {
    let before: HashSet<u32> = loaded_programs().flatten().map(|program| program.id()).collect();
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{said}");
    // Log lines begin with a time; the sentence with the program's name.
    let sentences: Vec<&str> = said.lines().filter(|line| line.starts_with("nexent-observer: error: ")).collect();
    assert_eq!(sentences.len(), 1, "one sentence: {said}");
    assert!(said.ends_with(&format!("{}\n", sentences[0])), "and nothing after it: {said}");
    assert!(words.iter().all(|word| sentences[0].contains(word)), "{words:?}: {said}");
    eprintln!("{code}: {}", sentences[0]);
    let ours = |name: &str| name.starts_with("tls_");
    crate::harness::until("no new program is loaded", || {
        let new = loaded_programs().flatten().filter(|program| !before.contains(&program.id()));
        // Other observers of this machine may start meanwhile, and those live: these programs have no process.
        let orphans =
            new.filter(|program| program.name_as_str().is_some_and(ours)).filter(|it| !is_held(it.id())).count();
        (orphans == 0).then_some(())
    });
}

/// Whether some process has a descriptor of this program.
fn is_held(program: u32) -> bool {
    let line = format!("prog_id:\t{program}");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let infos = processes.filter_map(|process| fs::read_dir(process.path().join("fdinfo")).ok()).flatten().flatten();
    infos.filter_map(|info| fs::read_to_string(info.path()).ok()).any(|text| text.lines().any(|found| found == line))
}

fn observer(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("run").args(arguments);
    command
}

#[test]
fn a_bad_start_says_one_sentence_and_attaches_nothing() {
    let place = Place::new("bad-start");
    let server = place.server();
    let mut client = place.client(&server, "client");
    client.chat();
    let pid = client.pid();
    let free = ["--listen", "127.0.0.1:0"];
    let with = |arguments: &[&str]| {
        let mut command = observer(arguments);
        command.args(free);
        command
    };

    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    refused(&mut observer(&["--pid", &pid, "--listen", &address]), 1, &[&address, "in use"]);

    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let gone = gone.id().to_string();
    refused(&mut with(&["--pid", &gone]), 1, &["no process with pid", &gone]);
    // One good target does not make up for a bad one: nothing is half attached.
    refused(&mut with(&["--pid", &pid, "--pid", &gone]), 1, &["no process with pid", &gone]);

    let sleep = Guarded::spawn("sleep", Command::new("sleep").arg("60")).unwrap();
    let sleeping = sleep.pid().to_string();
    // Without TLS a process is observed for plain HTTP, unless that is switched off.
    let plainly = ["--pid", &sleeping, "--plain-http", "off"];
    refused(&mut with(&plainly), 1, &[&sleeping, "no TLS library that can be hooked"]);

    refused(&mut with(&["--pid", "0"]), 64, &["pid", "--pid", "is \"0\""]);
    refused(&mut with(&["--pid", "x"]), 64, &["pid", "--pid"]);
    refused(&mut with(&[]), 64, &["--pid PID or --exe PATH"]);
    refused(&mut with(&["--exe", "bin/python"]), 64, &["exe", "bin/python"]);
    refused(&mut with(&["--exe", "/nowhere/python"]), 64, &["exe", "/nowhere/python"]);

    let file = |name: &str, text: &str| {
        let path = place.dir.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let unknown = file("unknown.yaml", "pid: 1\nlisten_on: 127.0.0.1:0\n");
    refused(&mut with(&["--config", &unknown]), 78, &["listen_on", "line 2"]);
    let broken = file("broken.yaml", "pid: [1\n");
    refused(&mut with(&["--config", &broken, "--pid", &pid]), 78, &["broken.yaml"]);
    let zero = file("zero.yaml", "pid: 0\n");
    refused(&mut with(&["--config", &zero]), 78, &["pid", "zero.yaml"]);
    refused(&mut with(&["--config", "/nowhere/observer.yaml", "--pid", &pid]), 78, &["/nowhere/observer.yaml"]);
    let mut by_variable = with(&["--pid", &pid]);
    by_variable.env("NEXENT_OBSERVER_CONFIG", place.dir.as_os_str());
    refused(&mut by_variable, 78, &["cannot read"]);

    refused(&mut with(&["--pid", &pid, "--jsonl", "/nowhere/lines.jsonl"]), 1, &["/nowhere/lines.jsonl"]);

    // The client was a target of most of these and noticed nothing.
    assert!(client.chat()["error"].is_null());
    drop(sleep);
}

#[test]
fn without_its_capabilities_it_says_which_one_is_missing() {
    let place = Place::new("capabilities");
    let server = place.server();
    let mut client = place.client(&server, "client");
    let pid = client.pid();
    let observer_under = |wrapper: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(wrapper).arg(binary()).args(["run", "--pid", &pid, "--listen", "127.0.0.1:0"]);
        command
    };
    for name in ["sys_admin", "sys_ptrace"] {
        let without = format!("-{name}");
        let caps = ["--bounding-set", &without, "--inh-caps", &without];
        let upper = format!("CAP_{}", name.to_uppercase());
        refused(&mut observer_under(&caps), 1, &["missing capability", &upper]);
    }
    // What any other user has: none at all.
    let none = ["--bounding-set", "-all", "--inh-caps", "-all"];
    refused(&mut observer_under(&none), 1, &["missing capability", "run as root"]);
    assert!(client.chat()["error"].is_null());
}
