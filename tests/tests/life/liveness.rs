//! Probes that vanish, and processes that should be seen and are not.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use xtask::{
    process::Guarded,
    server::{Kind, LlmServer},
};

use crate::harness::{Metrics, Place, SOON, assert_right, binary, by_request, until};

/// Libraries on an overlay file system; unmounted when dropped.
pub(crate) struct Overlay {
    base: PathBuf,
    merged: PathBuf,
}

impl Overlay {
    pub(crate) fn over(library: &Path) -> Self {
        let name = library.file_stem().unwrap().display();
        let base = std::env::temp_dir().join(format!("nexent-observer-overlay-{}-{name}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        mount(&["-t", "tmpfs", "tmpfs"], &base);
        let this = Self { merged: base.join("merged"), base };
        let parts = ["lower", "upper", "work", "merged"].map(|part| this.base.join(part));
        parts.iter().for_each(|part| fs::create_dir(part).unwrap());
        let [lower, upper, work, merged] = &parts;
        fs::copy(library, lower.join(library.file_name().unwrap())).unwrap();
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount(&["-t", "overlay", "overlay", "-o", &options], merged);
        this
    }

    /// Where the library is seen.
    pub(crate) fn merged(&self) -> &Path {
        &self.merged
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        for mounted in [&self.merged, &self.base] {
            drop(Command::new("umount").arg("--lazy").arg(mounted).status());
        }
        drop(fs::remove_dir(&self.base));
    }
}

fn mount(arguments: &[&str], at: &Path) {
    let status = Command::new("mount").args(arguments).arg(at).status().unwrap();
    assert!(status.success(), "mount {arguments:?} {}", at.display());
}

#[test]
fn probes_that_a_process_throws_away_with_its_code_are_put_back() {
    let place = Place::new("thrown-away");
    let server = place.server();
    let mut client = place.client(&server, "client");
    let mut observer = place.observe("observer", &["--pid", &client.pid()]);
    observer.attached(client.process.pid());
    let first = client.chat();
    observer.exchanges(1);
    client.tell(&json!({"do": "drop_code", "file": "libssl"}));
    let dropped = client.process.event("dropped", SOON).unwrap();
    assert!(dropped["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{dropped}");
    let said = observer.says("Probes were gone from the code of a process and are back");
    assert!(said.contains(&format!("pid={} ", client.pid())) && said.contains("anew=false"), "{said}");
    // On the connection of which bytes may have been missed one exchange tells that; the one after it is right.
    let next = client.chat();
    let last = client.chat();
    let metrics = observer.until_metric("llm_requests", &[], |n| n >= 3.0);
    assert_eq!(metrics.sum("nexent_observer_probe_losses_total", &["outcome=\"restored\""]), 1.0);
    assert_eq!(metrics.sum("nexent_observer_probe_losses_total", &[]), 1.0);
    assert_eq!(metrics.sum("nexent_observer_silent_processes", &[]), 0.0);
    let exchanges = observer.finish();
    let found = by_request(&exchanges);
    for made in [&first, &last] {
        assert_right(found[made["request_id"].as_str().unwrap()], made, &server);
    }
    let told = &found[next["request_id"].as_str().unwrap()]["output_text"];
    let text = told.as_str().unwrap().trim_start_matches(char::REPLACEMENT_CHARACTER);
    assert!(text == next["text"] && text != told, "{told}");
}

/// What is put back is gone again at once, so it looks as if the process ran another file. A second attachment would see the bytes of all others
/// twice.
#[test]
fn a_process_that_throws_its_code_away_again_and_again_harms_no_other() {
    let place = Place::new("again-and-again");
    let server = place.server();
    let (mut restless, mut other) = (place.client(&server, "restless"), place.client(&server, "other"));
    let mut observer = place.observe("observer", &["--exe", place.exe.to_str().unwrap()]);
    observer.attached(restless.process.pid());
    observer.attached(other.process.pid());
    // Until the observer has done what it can.
    let until = Instant::now() + SOON;
    let ended = |metrics: &Metrics| {
        let of = |outcome| metrics.sum("nexent_observer_probe_losses_total", &[outcome]);
        of("outcome=\"failed\"") + of("outcome=\"reattached\"") > 0.0
    };
    while !ended(&observer.metrics()) {
        assert!(Instant::now() < until, "nothing was missed");
        restless.tell(&json!({"do": "drop_code", "file": "libssl"}));
        restless.process.event("dropped", SOON).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    let made = [other.chat(), other.chat()];
    let metrics = observer.until_metric("llm_requests", &[], |n| n >= 2.0);
    assert_eq!(metrics.sum("nexent_observer_probe_losses_total", &["outcome=\"reattached\""]), 0.0);
    let exchanges = observer.finish();
    let found = by_request(&exchanges);
    for made in &made {
        assert_right(found[made["request_id"].as_str().unwrap()], made, &server);
    }
}

#[test]
fn a_library_that_an_overlay_file_system_has_copied_is_hooked_again_where_it_can_be() {
    let mut place = Place::new("copied-up");
    let server = place.server();
    let overlay = Overlay::over(&place.libssl);
    let library = overlay.merged.join(place.libssl.file_name().unwrap());
    let script =
        format!("#!/bin/sh\nLD_LIBRARY_PATH={} exec {} \"$@\"\n", overlay.merged.display(), place.exe.display());
    place.python = place.dir.join("overlaid.sh");
    fs::write(&place.python, script).unwrap();
    fs::set_permissions(&place.python, fs::Permissions::from_mode(0o755)).unwrap();
    let mut old = place.client(&server, "old");
    let mut observer = place.observe("observer", &["--exe", place.exe.to_str().unwrap()]);
    observer.attached(old.process.pid());
    let before = old.chat();
    // Opened for writing, it is copied: the same path, device and inode number are another file below from now on.
    drop(fs::OpenOptions::new().append(true).open(&library).unwrap());
    let mut new = place.client(&server, "new");
    observer.attached(new.process.pid());
    let said = observer.says("Probes were gone from the code of a process and are back");
    assert!(said.contains(&format!("pid={} ", new.pid())) && said.contains("anew=true"), "{said}");
    let (of_old, of_new) = (old.chat(), new.chat());
    let metrics = observer.until_metric("llm_requests", &[], |n| n >= 3.0);
    assert_eq!(metrics.sum("nexent_observer_probe_losses_total", &["outcome=\"reattached\""]), 1.0);
    assert_eq!(metrics.sum("nexent_observer_probe_losses_total", &[]), 1.0);
    assert_eq!(metrics.sum("nexent_observer_incomplete_exchanges_total", &[]), 0.0);
    let exchanges = observer.finish();
    assert_eq!(exchanges.len(), 3, "each once");
    let found = by_request(&exchanges);
    for made in [&before, &of_old, &of_new] {
        assert_right(found[made["request_id"].as_str().unwrap()], made, &server);
    }
    // The file that the old process runs has no path any more, so nothing can be attached to it.
    let mut late = place.observe("late", &["--pid", &old.pid()]);
    let said = late.says("Probes are gone from the code of a process");
    assert!(said.contains(&format!("pid={} ", old.pid())) && said.contains("restart the process"), "{said}");
    late.until_metric("nexent_observer_silent_processes", &["cause=\"probes_gone\""], |n| n == 1.0);
    assert_eq!(old.chat()["outcome"], before["outcome"], "it works as ever");
    let metrics = late.metrics();
    assert_eq!(metrics.sum("nexent_observer_probe_losses_total", &["outcome=\"failed\""]), 1.0);
    assert!(late.finish().is_empty());
}

/// A program whose traffic goes through a TLS that nobody can hook, and which has a hooked one besides.
struct TwoTls(Guarded);

impl TwoTls {
    fn start(name: &str, server: &LlmServer, port: u16) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_two_tls"));
        command.arg(format!("127.0.0.1:{port}")).arg(&server.certificate.cert);
        let process = Guarded::talking(name, &mut command).unwrap();
        process.event("ready", SOON).unwrap();
        Self(process)
    }

    fn does(&mut self, command: &str) {
        writeln!(self.0.stdin().unwrap(), "{command}").unwrap();
        self.0.event("made", SOON).unwrap();
    }
}

/// A command of the observer, as JSON.
fn json_of(arguments: &[&str]) -> Value {
    let output = Command::new(binary()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_process_whose_tls_no_probe_sees_is_told_until_something_is_seen() {
    let place = Place::new("silent");
    let server = place.server();
    let mut process = TwoTls::start("two_tls", &server, server.port);
    let pid = process.0.pid().to_string();
    let mut observer = place.observe("observer", &["--pid", &pid]);
    observer.attached(process.0.pid());
    let silent = &["cause=\"bytes_unseen\""];
    until("it is silent", || {
        process.does("ask 3000");
        thread::sleep(Duration::from_millis(100));
        (observer.metrics().sum("nexent_observer_silent_processes", silent) == 1.0).then_some(())
    });
    let said = observer.says("A process is not seen though it talks");
    assert!(said.contains(&format!("pid={pid}")) && said.contains("doctor --pid"), "{said}");
    let listen = observer.listen().to_string();
    let doctor = json_of(&["doctor", "--json", "--pid", &pid, "--listen", &listen]);
    let told = &doctor["processes"][0];
    assert_eq!((&told["silent"], &told["status"]), (&Value::from(true), &Value::from("tls")), "{told}");
    let unseen = told["unseen"].as_array().unwrap().iter().find(|unseen| unseen["what"] == "what it says now");
    let unseen = unseen.unwrap_or_else(|| panic!("{told}"));
    assert!(unseen["why"].as_str().is_some_and(|why| why.contains("none came through its probes")), "{unseen}");
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let of_exe = ["--only-exe", exe.to_str().unwrap(), "--listen", &listen];
    let targets = json_of(&[&["targets", "--json"], &of_exe[..]].concat());
    assert_eq!(targets["targets"][0]["silent"], true, "{targets}");
    let text = Command::new(binary()).arg("targets").args(of_exe).output().unwrap();
    assert!(String::from_utf8_lossy(&text.stdout).contains("SILENT"), "{text:?}");
    let unknown = json_of(&["doctor", "--json", "--pid", &pid, "--listen", "off"]);
    assert_eq!(unknown["processes"][0]["silent"], Value::Null, "nobody was asked");
    process.does("seen");
    process.does("ask 3000");
    observer.until_metric("nexent_observer_silent_processes", silent, |n| n == 0.0);
    let doctor = json_of(&["doctor", "--json", "--pid", &pid, "--listen", &listen]);
    assert_eq!(doctor["processes"][0]["silent"], false);
    observer.finish();
}

/// A server that answers eight bytes in the clear with one, and hands on what follows, as Postgres goes over to TLS.
fn behind_a_prelude(server: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        client.read_exact(&mut [0; 8]).unwrap();
        client.write_all(b"S").unwrap();
        let mut server = TcpStream::connect(("127.0.0.1", server)).unwrap();
        let (mut back, mut from) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let answers = thread::spawn(move || std::io::copy(&mut from, &mut back));
        // Until either end closes.
        drop(std::io::copy(&mut client, &mut server));
        drop(answers);
    });
    port
}

#[test]
fn plain_http_older_connections_preludes_and_tls_that_is_seen_make_nobody_silent() {
    let place = Place::new("not-silent");
    let of_plain = place.dir.join("plain");
    fs::create_dir(&of_plain).unwrap();
    let (server, plain) = (place.server(), LlmServer::start(Kind::Plain, &of_plain, 1).unwrap());
    let mut seen = place.client(&server, "seen");
    let mut in_the_clear = place.client(&plain, "in-the-clear");
    let idle = place.client(&server, "idle");
    let mut older = TwoTls::start("older", &server, server.port);
    older.does("ask 3000");
    let mut prelude = TwoTls::start("prelude", &server, behind_a_prelude(server.port));
    prelude.does("prelude");
    let pids = [&seen, &in_the_clear, &idle].map(|client| client.process.pid());
    let pids = pids.into_iter().chain([older.0.pid(), prelude.0.pid()]);
    let arguments: Vec<String> = pids.clone().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut observer = place.observe("observer", &arguments);
    pids.for_each(|pid| observer.attached(pid));
    // Long enough for one that is silent to be told, and with as many bytes.
    let (end, mut rounds) = (Instant::now() + Duration::from_secs(12), 0);
    while Instant::now() < end || rounds < 10 {
        seen.chat();
        in_the_clear.chat();
        older.does("ask 3000");
        prelude.does("ask 3000");
        rounds += 1;
        assert_eq!(observer.metrics().sum("nexent_observer_silent_processes", &[]), 0.0, "{}", observer.said());
    }
    assert!(!observer.said().contains("not seen though it talks"), "{}", observer.said());
    observer.exchanges(rounds);
    observer.finish();
}
