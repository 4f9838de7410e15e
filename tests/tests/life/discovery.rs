//! `--all`: what it finds, keeps and lets go; who opts in and out; containers, pods and their names. Every case asks for
//! `--opt-in` and executables of its own place, so that it leaves the other processes of this machine alone.

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use xtask::{process::Guarded, server::LlmServer, sh};

use crate::harness::{Observer, Place, SOON, assert_right, by_request, lines, until};

const OPT_IN: (&str, &str) = ("ENABLE_TELEMETRY", "true");

/// The observer with `--all` for what runs in this place.
fn observe(place: &Place, more: &[&str]) -> Observer {
    let own = format!("{}/*", place.dir.display());
    let arguments = [&["--all", "--opt-in", "--only-exe", &own], more].concat();
    place.observe("observer", &arguments)
}

/// A copy of a program in this place.
fn own(place: &Place, program: &str) -> Command {
    let copy = place.dir.join(program);
    if !copy.exists() {
        fs::copy(Path::new("/usr/bin").join(program), &copy).unwrap();
    }
    let mut command = Command::new(copy);
    command.env(OPT_IN.0, OPT_IN.1);
    command
}

/// `clients/bare.py` in a mode, by this place's interpreter.
fn bare(place: &Place, server: &LlmServer, name: &str, arguments: &[&str]) -> Guarded {
    let mut command = Command::new(&place.python);
    command.arg(sh::fixture("clients/bare.py").unwrap()).args(arguments).env(OPT_IN.0, OPT_IN.1);
    command.env("SSL_CERT_FILE", &server.certificate.cert);
    command.stderr(fs::File::create(place.dir.join(format!("{name}.stderr"))).unwrap());
    Guarded::talking(name, &mut command).unwrap()
}

/// Whether a line of the log names a process.
fn says_of(observer: &Observer, what: &str, pid: u32) -> bool {
    let said = observer.said();
    said.lines().any(|line| line.contains(what) && line.split_whitespace().any(|word| word == format!("pid={pid}")))
}

fn until_said(observer: &Observer, what: &str, pid: u32) {
    until(&format!("{what:?} of {pid} in {}", observer.log.display()), || says_of(observer, what, pid).then_some(()));
}

#[test]
fn of_all_processes_the_one_that_calls_an_llm_is_kept_and_busy_others_are_let_go() {
    let place = Place::new("all-mix");
    let server = place.server();
    // All of them are there before the observer.
    let mut client = place.client_with(&server, "client", &[OPT_IN]);
    let silent = place.client_with(&server, "silent", &[OPT_IN]);
    let out = place.client_with(&server, "out", &[("ENABLE_TELEMETRY", "false")]);
    let (cert, key) = (server.certificate.cert.to_str().unwrap(), server.certificate.key.to_str().unwrap());
    let echo = bare(&place, &server, "echo", &["serve", cert, key]);
    let port = echo.event("serving", SOON).unwrap()["port"].to_string();
    let mut busy = bare(&place, &server, "busy", &["busy", &port, &server.base_url]);
    busy.event("busy", SOON).unwrap();
    let mut curl = own(&place, "curl");
    let url = format!("{}/models?[1-1000000]", server.base_url);
    curl.args(["-s", "--http1.1", "--rate", "100/s", "--cacert", cert, &url]);
    let curl = Guarded::spawn("curl", curl.stdout(Stdio::null())).unwrap();
    let sleep = Guarded::spawn("sleep", own(&place, "sleep").arg("300")).unwrap();
    let mut observer = observe(&place, &["--trial-seconds", "2"]);
    for pid in [client.process.pid(), silent.process.pid(), busy.pid(), curl.pid()] {
        observer.attached(pid);
    }
    let mut made = vec![client.chat(), client.chat()];
    for pid in [busy.pid(), curl.pid()] {
        until_said(&observer, "A process is let go", pid);
    }
    // One that was let go can have a worker that is not like it.
    busy.say("fork").unwrap();
    let forked = busy.event("chat", SOON).unwrap();
    made.extend([client.chat(), client.chat()]);
    observer.until_metric("nexent_observer_found_processes", &["state=\"let_go\""], |n| n >= 2.0);
    let exchanges = observer.exchanges(made.len() + 1);
    let found = by_request(&exchanges);
    for one in &made {
        assert_right(found[one["request_id"].as_str().unwrap()], one, &server);
    }
    let worker = found[forked["request_id"].as_str().unwrap()];
    assert_eq!((&worker["output_text"], &worker["pid"]), (&forked["text"], &forked["pid"]), "{worker}");
    assert_eq!(exchanges.len(), made.len() + 1, "nothing double, nothing of those that were let go");
    for pid in [client.process.pid(), silent.process.pid()] {
        assert!(!says_of(&observer, "A process is let go", pid), "{}", observer.said());
    }
    for pid in [out.process.pid(), sleep.pid(), server.pid(), observer.process.pid()] {
        assert!(!says_of(&observer, "Attached.", pid), "{}", observer.said());
    }
    assert!(says_of(&observer, "ENABLE_TELEMETRY=false", out.process.pid()), "{}", observer.said());
    observer.finish();
}

/// Milliseconds from exec to attachment, as the log has them.
fn after_exec(observer: &Observer) -> HashMap<String, u64> {
    let said = observer.said();
    let attached = said.lines().filter(|line| line.contains("Attached."));
    let word =
        |line: &str, name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name).map(str::to_owned));
    attached.filter_map(|line| Some((word(line, "pid=")?, word(line, "after_exec_ms=")?.parse().ok()?))).collect()
}

#[test]
fn a_process_that_is_born_later_is_attached_before_it_makes_its_first_request() {
    let place = Place::new("all-born-later");
    let server = place.server();
    let mut observer = observe(&place, &[]);
    observer.says("Capabilities:");
    let chat = |number: usize, wait_ms: &str| {
        let mut one = bare(&place, &server, &format!("late{number}"), &["chat", &server.base_url, wait_ms]);
        let said = one.event("chat", SOON).unwrap();
        assert!(one.wait(SOON).unwrap().success());
        said
    };
    let seen = |said: &Value| {
        let id = &said["request_id"];
        lines(&observer.jsonl).iter().any(|one| one["request_id"] == *id && one["output_text"] == said["text"])
    };
    // 300 ms are plenty on an idle machine. On one that is not, the interpreter alone takes longer: then the wait has to be.
    let seen_soon = |said: &Value| {
        (0..100).any(|_| {
            seen(said) || {
                thread::sleep(Duration::from_millis(20));
                false
            }
        })
    };
    let mut waits = ["300", "300", "1000", "3000", "10000"].into_iter().enumerate();
    let enough = waits.find(|(number, wait)| seen_soon(&chat(*number, wait)));
    eprintln!("the first request is seen (attempt, ms after exec): {enough:?}");
    assert!(enough.is_some(), "no first request was seen:\n{}", observer.said());
    // From now on its executable is known to call LLMs: no time is needed.
    let later: Vec<Value> = (5..10).map(|number| chat(number, "0")).collect();
    until("all further requests", || later.iter().all(seen).then_some(()));
    let mut taken: Vec<u64> = after_exec(&observer).into_values().collect();
    taken.sort_unstable();
    eprintln!("ms from exec to attachment, the interpreter's start and `import ssl` included: {taken:?}");
    // curl has its libssl mapped when it begins: nothing but the observer takes time.
    let body = json!({"model": "sim-no-done", "stream": true, "messages": [{"role": "user", "content": "A story."}],
        "metadata": {"scenario": "no-done", "seed": "1", "chunks": "40", "pause_ms": "50"}});
    let curls: Vec<Guarded> = (0..5)
        .map(|number| {
            let mut curl = own(&place, "curl");
            curl.args(["-sN", "--cacert", server.certificate.cert.to_str().unwrap(), "-d", &body.to_string()]);
            curl.args(["-H", "Content-Type: application/json", &format!("{}/chat/completions", server.base_url)]);
            curl.stdout(Stdio::null());
            let curl = Guarded::spawn(&format!("curl{number}"), &mut curl).unwrap();
            observer.attached(curl.pid());
            curl
        })
        .collect();
    let after = after_exec(&observer);
    let taken: Vec<Option<&u64>> = curls.iter().map(|curl| after.get(&curl.pid().to_string())).collect();
    eprintln!("ms from exec to attachment of curl, the first one with a library that was not known: {taken:?}");
    observer.finish();
}

#[test]
fn forked_workers_of_a_process_among_all_are_observed_from_their_first_request() {
    let place = Place::new("all-prefork");
    let server = place.server();
    let mut observer = observe(&place, &[]);
    let mut parent = place.client_with(&server, "parent", &[OPT_IN]);
    observer.attached(parent.process.pid());
    // As gunicorn does: the parent itself calls nothing.
    parent.tell(&json!({"do": "fork", "workers": 4, "requests": 6, "every_ms": 20}));
    let ended = parent.process.event("workers", Duration::from_secs(60)).unwrap();
    assert_eq!(ended["failed"], 0);
    let made = lines(&place.dir.join("parent.jsonl"));
    assert_eq!(made.len(), 24);
    observer.exchanges(made.len());
    let exchanges = observer.finish();
    assert_eq!(exchanges.len(), made.len(), "nothing lost, nothing double");
    let found = by_request(&exchanges);
    for one in &made {
        assert_right(found[one["request_id"].as_str().unwrap()], one, &server);
    }
}

/// A control group of version 1 with a container's name; removed when dropped.
struct Group(PathBuf);

impl Group {
    fn new(path: &str) -> Self {
        let group = Path::new("/sys/fs/cgroup/pids").join(path);
        fs::create_dir_all(&group).unwrap();
        Self(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Up to the hierarchy itself; what others use stays, because it is not empty.
        for group in self.0.ancestors().take_while(|path| *path != Path::new("/sys/fs/cgroup/pids")) {
            for _ in 0..100 {
                if fs::remove_dir(group).is_ok() || !group.exists() {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// A scripted client in a control group and in mount and pid namespaces of its own, and its pid out here.
fn contained(place: &Place, server: &LlmServer, name: &str, group: &Group) -> (Guarded, u32) {
    let mut command = Command::new("sh");
    let enter = "echo $$ > \"$0/cgroup.procs\" && exec unshare --mount --pid --fork --kill-child \"$@\"";
    command.args(["-c", enter]).arg(&group.0).arg(&place.python);
    command.arg(sh::fixture("clients/scripted.py").unwrap()).args(["--base-url", &server.base_url]);
    command.arg("--log").arg(place.dir.join(format!("{name}.jsonl")));
    command.env("SSL_CERT_FILE", &server.certificate.cert).env(OPT_IN.0, OPT_IN.1);
    command.stderr(fs::File::create(place.dir.join(format!("{name}.stderr"))).unwrap());
    let process = Guarded::talking(name, &mut command).unwrap();
    let ready = process.event("ready", SOON).unwrap();
    assert_eq!(ready["pid"], 1, "a pid namespace of its own");
    let outside = process.pid();
    let children = fs::read_to_string(format!("/proc/{outside}/task/{outside}/children")).unwrap();
    (process, children.trim().parse().unwrap())
}

fn chat(client: &mut Guarded) -> Value {
    client.say(&json!({"do": "chat", "scenario": "no-done", "chunks": 8, "pause_ms": 5}).to_string()).unwrap();
    client.event("chat", SOON).unwrap()["exchange"].take()
}

#[test]
fn a_process_in_a_container_is_seen_and_named_by_its_engine_and_filters_tell_containers_apart() {
    let place = Place::new("all-container");
    let server = place.server();
    // Ids that no other run has at this time.
    let id = |digit: char| format!("{:0>64}", format!("{digit}{:x}", std::process::id()));
    let (web, other) = (Group::new(&format!("docker/{}", id('a'))), Group::new(&format!("docker/{}", id('b'))));
    let host = place.dir.join("host");
    for (digit, name) in [('a', "shop-web-1"), ('b', "shop-db-1")] {
        let state = host.join("var/lib/docker/containers").join(id(digit));
        fs::create_dir_all(&state).unwrap();
        let config = json!({"Name": format!("/{name}"), "Config": {"Image": "shop/web:2"}});
        fs::write(state.join("config.v2.json"), config.to_string()).unwrap();
    }
    let (mut client, pid) = contained(&place, &server, "web", &web);
    let (mut unwanted, unwanted_pid) = contained(&place, &server, "db", &other);
    let host = host.to_str().unwrap();
    let mut observer = observe(&place, &["--host-root", host, "--only-container", "shop-web-*"]);
    observer.attached(pid);
    chat(&mut unwanted);
    let made = chat(&mut client);
    let exchanges = observer.exchanges(1);
    assert_eq!(exchanges.len(), 1, "the other container is left alone");
    assert_right(&exchanges[0], &made, &server);
    assert_eq!((&exchanges[0]["service"], &exchanges[0]["pid"]), (&json!("shop-web-1"), &json!(pid)));
    assert!(!says_of(&observer, "Attached.", unwanted_pid), "{}", observer.said());
    observer.finish();
    let doctor = Command::new(crate::harness::binary())
        .args(["doctor", "--json", "--host-root", host, "--pid", &pid.to_string()])
        .output()
        .unwrap();
    let doctor: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let attributes = &doctor["processes"][0]["attributes"];
    assert_eq!((&attributes["container.id"], &attributes["container.name"]), (&json!(id('a')), &json!("shop-web-1")));
    assert_eq!(attributes["container.image.name"], "shop/web");
}

/// Answers every request as a kubelet does, with a list in which a container has this id.
fn kubelet(id: &str, uid: &str) -> u16 {
    let file = sh::root().unwrap().join("nexent-observer/tests/fixtures/kubelet/pods.json");
    let list = fs::read_to_string(file).unwrap();
    let list = list
        .replace("7be92808767a667f35c8505cbf40d14e931ef6db5b0210329cf193b15ba9d605", id)
        .replace("05fe8a4b-6f0c-4f5d-9e0b-1f2a3b4c5d6e", uid);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if !stream.read(&mut byte).is_ok_and(|n| n == 1) {
                    break;
                }
                request.extend(byte);
            }
            let ok = request.starts_with(b"GET /pods HTTP/1.1");
            let status = if ok { "200 OK" } else { "404 Not Found" };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                list.len()
            );
            drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(list.as_bytes())));
        }
    });
    port
}

#[test]
fn a_process_in_a_pod_is_named_by_its_app_label_and_found_by_namespace_and_label() {
    let place = Place::new("all-pod");
    let server = place.server();
    let id = format!("{:0>64}", format!("c{:x}", std::process::id()));
    let uid = format!("00000000-0000-4000-8000-{:012x}", std::process::id());
    let group = Group::new(&format!("kubepods/burstable/pod{uid}/{id}"));
    let (mut client, pid) = contained(&place, &server, "agent", &group);
    let mut elsewhere = place.client_with(&server, "elsewhere", &[OPT_IN]);
    let url = format!("http://127.0.0.1:{}", kubelet(&id, &uid));
    let host = place.dir.to_str().unwrap();
    let mut arguments =
        vec!["--all", "--opt-in", "--kubelet-url", &url, "--host-root", host, "--only-namespace", "sh?p"];
    arguments.extend(["--only-label", "app.kubernetes.io/name=shop-*"]);
    let mut observer = place.observe("observer", &arguments);
    observer.attached(pid);
    elsewhere.chat();
    let made = chat(&mut client);
    let exchanges = observer.exchanges(1);
    assert_eq!(exchanges.len(), 1, "what is in no pod is left alone");
    assert_right(&exchanges[0], &made, &server);
    assert_eq!(exchanges[0]["service"], "shop-agent");
    observer.finish();
}
