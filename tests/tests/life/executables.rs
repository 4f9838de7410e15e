//! `--exe`: processes that were there before, that come later, and their forked workers.

use std::{
    collections::HashSet,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{Place, assert_right, by_request, lines, until};

#[test]
fn processes_of_an_executable_are_observed_whether_they_came_before_or_after() {
    let place = Place::new("exe");
    let server = place.server();
    let mut early = place.client(&server, "early");
    let mut observer = place.observe("observer", &["--exe", place.exe.to_str().unwrap()]);
    observer.attached(early.process.pid());
    let mut made = vec![early.chat(), early.chat()];
    let mut late = place.client(&server, "late");
    observer.attached(late.process.pid());
    made.extend([late.chat(), early.chat(), late.chat()]);
    observer.exchanges(made.len());
    let exchanges = observer.finish();
    assert_eq!(exchanges.len(), made.len(), "nothing lost, nothing double");
    let found = by_request(&exchanges);
    for one in &made {
        assert_right(found[one["request_id"].as_str().unwrap()], one, &server);
    }
}

#[test]
fn a_process_of_a_known_library_is_attached_soon_after_its_exec() {
    let place = Place::new("exec-to-attach");
    let server = place.server();
    let sibling = place.client(&server, "sibling");
    let mut observer = place.observe("observer", &["--exe", place.exe.to_str().unwrap()]);
    observer.attached(sibling.process.pid());
    let mut taken: Vec<Duration> = (0..5)
        .map(|_| {
            let began = Instant::now();
            let mut command = Command::new(&place.exe);
            command.args(["-c", "import sys; sys.stdin.read()"]).stdin(std::process::Stdio::piped());
            let late = xtask::process::Guarded::spawn("late", &mut command).unwrap();
            observer.attached(late.pid());
            began.elapsed()
        })
        .collect();
    taken.sort();
    eprintln!("from before exec to the line in the log: median {:?}, longest {:?}", taken[2], taken[4]);
    assert!(taken[2] < Duration::from_secs(1), "{taken:?}");
    observer.finish();
}

#[test]
fn twelve_workers_forked_under_traffic_are_all_observed_and_none_twice() {
    let place = Place::new("prefork");
    let server = place.server();
    let mut parent = place.client(&server, "parent");
    let mut observer = place.observe("observer", &["--exe", place.exe.to_str().unwrap()]);
    observer.attached(parent.process.pid());
    let requests = 8;
    parent.tell(&json!({"do": "fork", "workers": 12, "requests": requests, "every_ms": 60}));
    let forked = parent.process.event("forked", Duration::from_secs(30)).unwrap();
    let ended = parent.process.event("workers", Duration::from_secs(60)).unwrap();
    assert_eq!(ended["failed"], 0);
    let made = lines(&place.dir.join("parent.jsonl"));
    assert_eq!(made.len(), 12 * requests);
    observer.exchanges(made.len());
    let metrics = observer.metrics();
    assert_eq!(metrics.sum("nexent_observer_lost_records_total", &[]), 0.0);
    let exchanges = observer.finish();
    let found = by_request(&exchanges);
    assert_eq!(exchanges.len(), made.len(), "nothing lost, nothing double");
    for one in &made {
        assert_right(found[one["request_id"].as_str().unwrap()], one, &server);
    }
    let workers: HashSet<&Value> = exchanges.iter().map(|exchange| &exchange["pid"]).collect();
    assert_eq!(workers, forked["pids"].as_array().unwrap().iter().collect());
    let pids = &forked["pids"];
    let of = |number: usize| made.iter().filter(move |one| one["pid"] == pids[number]);
    let last_came = of(8).filter_map(|one| one["create_ns"].as_u64()).min().unwrap();
    let streams = |one: &Value| one["create_ns"].as_u64() < Some(last_came) && one["end_ns"].as_u64() > Some(last_came);
    assert!((0..8).any(|number| of(number).any(streams)), "an early worker streamed while the ninth began");
}

#[test]
fn a_process_named_by_pid_that_forks_while_it_streams_loses_nothing_and_its_workers_are_observed() {
    let place = Place::new("pid-workers");
    let server = place.server();
    let mut parent = place.client(&server, "parent");
    let mut observer = place.observe("observer", &["--pid", &parent.pid()]);
    observer.attached(parent.process.pid());
    // It has probes of its own; for the first worker all move to probes that they share, while a stream is under way.
    assert!(observer.said().contains("shared=false"), "{}", observer.said());
    parent.begin_stream(150, 20);
    // Close to each other, so that some are forked between the first one's fork and its attachment.
    parent.tell(&json!({"do": "fork", "workers": 8, "requests": 12, "every_ms": 3}));
    observer.says("shared=true");
    let whole = parent.chatted();
    until("all requests are made", || (lines(&place.dir.join("parent.jsonl")).len() == 1 + 8 * 12).then_some(()));
    let made = lines(&place.dir.join("parent.jsonl"));
    let last = by_request(&made)[made.last().unwrap()["request_id"].as_str().unwrap()];
    until("the last exchange", || {
        lines(&observer.jsonl).iter().any(|seen| seen["request_id"] == last["request_id"]).then_some(())
    });
    let exchanges = observer.finish();
    let found = by_request(&exchanges);
    assert_right(found[whole["request_id"].as_str().unwrap()], &whole, &server);
    // Until its first worker is attached, a process named by pid has no probes that a child inherits.
    let missed = made.iter().filter(|one| !found.contains_key(one["request_id"].as_str().unwrap())).count();
    eprintln!("{missed} of {} requests came before the workers were observed", made.len());
    let workers: HashSet<&Value> = made.iter().map(|one| &one["pid"]).filter(|pid| **pid != whole["pid"]).collect();
    assert_eq!(workers.len(), 8);
    for worker in workers {
        let of_worker: Vec<&Value> = made.iter().filter(|one| one["pid"] == *worker).collect();
        let seen = |one: &&&Value| found.contains_key(one["request_id"].as_str().unwrap());
        let first = of_worker.iter().take_while(|one| !seen(one)).count();
        assert!(first < of_worker.len() / 2, "worker {worker}: {first} of {} missed", of_worker.len());
        // A request that was under way is incomplete; from the next one on nothing is missing or wrong.
        for one in of_worker.iter().skip(first + 1) {
            assert_right(found[one["request_id"].as_str().unwrap()], one, &server);
        }
    }
}

#[test]
fn a_child_that_runs_something_else_is_not_observed() {
    let place = Place::new("other-child");
    let server = place.server();
    let parent = place.client(&server, "parent");
    let mut observer = place.observe("observer", &["--exe", place.exe.to_str().unwrap()]);
    observer.attached(parent.process.pid());
    // The same bytes under another inode are another executable.
    let other = place.dir.join("env/bin/other");
    fs::copy(&place.exe, &other).unwrap();
    let mut command = Command::new(&place.exe);
    let script = format!(
        "import os, ssl; os.execv({:?}, [{:?}, '-c', 'import ssl, sys; print(1, flush=True); sys.stdin.read()'])",
        other, other
    );
    command.args(["-c", &script]);
    let child = xtask::process::Guarded::talking("child", &mut command).unwrap();
    until("the child runs the other executable", || {
        let exe = fs::read_link(format!("/proc/{}/exe", child.pid())).ok()?;
        (exe == other).then_some(())
    });
    observer.until_metric("nexent_observer_attached_processes", &[], |n| n == 1.0);
    observer.finish();
}
