//! Either side ends, in every way, in the middle of streams.

use std::{
    collections::HashSet,
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    time::{Duration, Instant},
};

use aya::programs::loaded_programs;
use serde_json::{Value, json};
use xtask::{clients::Driver, server::LlmServer, soak};

use crate::harness::{Observer, Place, assert_right, by_request, lines, signal, until};

/// Ids of the programs that a process holds.
fn programs_of(pid: u32) -> HashSet<u32> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
    let texts = infos.filter_map(|info| fs::read_to_string(info.path()).ok());
    texts.filter_map(|text| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())).collect()
}

/// Waits until none of these programs is loaded any more: a probe would hold its program.
fn assert_unloaded(programs: &HashSet<u32>) {
    assert!(programs.len() >= 10, "seven probes and three tracepoints: {programs:?}");
    until("all programs of the observer are unloaded", || {
        let left: Vec<u32> =
            loaded_programs().flatten().map(|program| program.id()).filter(|id| programs.contains(id)).collect();
        left.is_empty().then_some(())
    });
}

/// Number of breakpoints in the code of a library in a process.
fn breakpoints(pid: u32, library: &Path) -> usize {
    soak::breakpoints(pid, library).unwrap()
}

/// A client of four threads that streams until it is told to stop.
fn busy(place: &Place, server: &LlmServer) -> Driver {
    let flags = [
        "--workers",
        "4",
        "--rounds",
        "0",
        "--requests",
        "4",
        "--plan",
        "quick",
        "--pause-ms",
        "4-12",
        "--stream-share",
        "1",
    ];
    let mut driver = Driver::start(&place.python, "openai_sync.py", "busy", server, &place.dir, &flags).unwrap();
    driver.go().unwrap();
    driver
}

/// Every request of the client ended well, with the text that the server sent.
fn assert_unharmed(driver: &Driver, server: &LlmServer, made: u64) {
    let served = lines(&server.log);
    let served = by_id(&served);
    let got = lines(&driver.log);
    assert_eq!(got.len() as u64, made);
    for one in &got {
        assert!(one["error"].is_null(), "{one}");
        let sent = served[one["request_id"].as_str().unwrap()];
        assert_eq!((&one["text"], &one["finish"]), (&sent["text"], &sent["finish"]), "{one}");
    }
}

fn by_id(served: &[Value]) -> std::collections::HashMap<&str, &Value> {
    served.iter().map(|entry| (entry["id"].as_str().unwrap(), entry)).collect()
}

fn pid_of(driver: &Driver) -> u32 {
    driver.pids[0]
}

/// Waits until the observer follows open streams.
fn in_the_middle(observer: &mut Observer, pid: u32) {
    observer.attached(pid);
    observer.until_metric("nexent_observer_open_exchanges", &[], |n| n >= 1.0);
}

#[test]
fn an_observer_that_is_killed_leaves_nothing_and_its_client_notices_nothing() {
    let place = Place::new("killed-observer");
    let server = place.server();
    let mut client = busy(&place, &server);
    let pid = pid_of(&client);
    let target = pid.to_string();
    until("libssl is mapped", || {
        fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().contains("libssl").then_some(())
    });
    assert_eq!(breakpoints(pid, &place.libssl), 0);
    for (number, name) in
        [(libc::SIGTERM, "term"), (libc::SIGINT, "int"), (libc::SIGKILL, "kill"), (libc::SIGKILL, "kill-2")]
    {
        let mut observer = place.observe(name, &["--pid", &target]);
        in_the_middle(&mut observer, pid);
        let programs = programs_of(observer.process.pid());
        let hooked = breakpoints(pid, &place.libssl);
        assert!(hooked >= 5, "read, write, new, free, clear: {hooked}");
        let began = Instant::now();
        let status = observer.end(number);
        let ended = began.elapsed();
        if number == libc::SIGKILL {
            assert_eq!(status.signal(), Some(libc::SIGKILL));
        } else {
            assert_eq!(status.code(), Some(0), "{}", observer.said());
        }
        assert_unloaded(&programs);
        until("no breakpoint is left", || (breakpoints(pid, &place.libssl) == 0).then_some(()));
        eprintln!(
            "{name}: {} programs, {hooked} breakpoints; ended after {ended:?}, all gone after {:?}",
            programs.len(),
            began.elapsed()
        );
    }
    // Another one attaches at once and gets everything right.
    let mut observer = place.observe("last", &["--pid", &target]);
    observer.attached(pid);
    let first_whole = lines(&server.log).len();
    observer.exchanges(12);
    client.check().unwrap();
    let exchanges = observer.finish();
    let made = client.finish(Duration::from_secs(30)).unwrap();
    assert!(first_whole > 0 && made > 0);
    assert_unharmed(&client, &server, made);
    let got = lines(&client.log);
    let mut compared = 0;
    for exchange in by_request(&exchanges).values().filter(|exchange| exchange["outcome"] == "completed") {
        let one = got.iter().find(|one| one["request_id"] == exchange["request_id"]).unwrap();
        assert_right(exchange, one, &server);
        compared += 1;
    }
    assert!(compared >= 8, "{compared} of {}", exchanges.len());
}

#[test]
fn twenty_observers_one_after_the_other_on_a_busy_client() {
    let place = Place::new("cycles");
    let server = place.server();
    let mut client = busy(&place, &server);
    let pid = pid_of(&client);
    let target = pid.to_string();
    let began = Instant::now();
    for cycle in 0..20 {
        let mut observer = place.observe("cycle", &["--pid", &target]);
        observer.attached(pid);
        observer.until_metric("nexent_observer_records_total", &[], |n| n > 0.0);
        let number = if cycle % 2 == 0 { libc::SIGTERM } else { libc::SIGKILL };
        let programs = programs_of(observer.process.pid());
        observer.end(number);
        assert_unloaded(&programs);
        client.check().unwrap();
    }
    eprintln!("20 cycles in {:?}", began.elapsed());
    until("no breakpoint is left", || (breakpoints(pid, &place.libssl) == 0).then_some(()));
    let made = client.finish(Duration::from_secs(30)).unwrap();
    assert!(made > 20, "{made}");
    assert_unharmed(&client, &server, made);
}

/// A target ends in the middle of a stream while another one goes on.
fn one_of_two_ends(name: &str, end: impl FnOnce(&mut crate::harness::Client)) {
    let place = Place::new(name);
    let server = place.server();
    let mut ending = place.client(&server, "ending");
    let mut staying = place.client(&server, "staying");
    let mut observer = place.observe("observer", &["--pid", &ending.pid(), "--pid", &staying.pid()]);
    observer.attached(ending.process.pid());
    observer.attached(staying.process.pid());
    let whole = ending.chat();
    staying.begin_stream(40, 20);
    ending.begin_stream(400, 20);
    let pid = ending.process.pid();
    end(&mut ending);
    ending.process.wait(Duration::from_secs(10)).unwrap();
    let through = staying.chatted();
    let after = staying.chat();
    observer.exchanges(4);
    observer.until_metric("llm_requests", &[], |n| n >= 4.0);
    observer.until_metric("llm_active_streams", &[], |n| n == 0.0);
    observer.until_metric("nexent_observer_attached_processes", &[], |n| n == 1.0);
    let exchanges = observer.finish();
    let (ended, lived): (Vec<&Value>, Vec<&Value>) = exchanges.iter().partition(|exchange| exchange["pid"] == pid);
    assert_eq!((ended.len(), lived.len()), (2, 2), "{exchanges:?}");
    let found = by_request(&exchanges);
    for one in [&whole, &through, &after] {
        assert_right(found[one["request_id"].as_str().unwrap()], one, &server);
    }
    let cut = ended[1];
    assert!(cut["outcome"] == "client_abort" || cut["outcome"] == "incomplete", "{cut}");
    assert!(cut["first_token_ns"].as_u64() > cut["request_start_ns"].as_u64(), "what was seen is kept: {cut}");
    assert!(cut["chunks"].as_array().is_some_and(|chunks| chunks.len() >= 3 && chunks.len() < 400), "{cut}");
    eprintln!("{name}: {} after {} chunks", cut["outcome"], cut["chunks"].as_array().map_or(0, Vec::len));
}

#[test]
fn a_target_that_exits_in_the_middle_of_a_stream() {
    one_of_two_ends("target-exits", |client| client.tell(&json!({"do": "exit"})));
}

#[test]
fn a_target_that_is_killed_in_the_middle_of_a_stream() {
    one_of_two_ends("target-killed", |client| signal(client.process.pid(), libc::SIGKILL));
}

#[test]
fn the_observer_ends_with_its_last_target() {
    for (name, number) in [("last-exits", None), ("last-killed", Some(libc::SIGKILL))] {
        let place = Place::new(name);
        let server = place.server();
        let mut client = place.client(&server, "client");
        let mut observer = place.observe("observer", &["--pid", &client.pid()]);
        observer.attached(client.process.pid());
        let programs = programs_of(observer.process.pid());
        let whole = client.chat();
        client.begin_stream(400, 20);
        match number {
            None => client.tell(&json!({"do": "exit"})),
            Some(number) => signal(client.process.pid(), number),
        }
        client.process.wait(Duration::from_secs(10)).unwrap();
        let status = observer.process.wait(Duration::from_secs(10)).unwrap();
        assert_eq!(status.code(), Some(0), "{}", observer.said());
        assert_unloaded(&programs);
        let exchanges = lines(&observer.jsonl);
        assert_eq!(exchanges.len(), 2, "{exchanges:?}");
        assert_right(&exchanges[0], &whole, &server);
        let cut = &exchanges[1]["outcome"];
        assert!(cut == "client_abort" || cut == "incomplete", "{cut}");
    }
}
