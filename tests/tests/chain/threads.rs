//! Threads that handlers start: those of a request, and those of a pool that all requests share.

use super::{Run, below_its_request, by_route};

fn run<'a>(name: &'a str, shape: &'a str) -> Run<'a> {
    Run { name, shape, flags: &[], observer: &[], requests: 120, concurrency: 12, front: None }
}

#[test]
fn calls_of_threads_that_are_made_for_a_request_are_joined_to_it_or_to_none() {
    let seen = run("flask-threads", "flask-threads").seen();
    let (right, unknown) = seen.judge(by_route);
    assert_eq!(right + unknown, seen.calls.len());
    let started = seen.calls.iter().filter(|(_, line)| line["parent_rule"] == "started_thread").count();
    // Python tells that a thread is over before it has quite ended: one that is late is not believed.
    assert!(started > 0 && right * 2 > seen.calls.len(), "{right} of {}, {started} by their thread", seen.calls.len());
    seen.trees(below_its_request);
}

#[test]
fn calls_of_a_pool_that_all_requests_share_are_never_joined_to_the_request_that_started_its_thread() {
    let seen = run("flask-pool", "flask-pool").seen();
    let (right, unknown) = seen.judge(by_route);
    assert_eq!(right + unknown, seen.calls.len());
    assert!(!seen.calls.iter().any(|(_, line)| line["parent_rule"] == "started_thread"));
    seen.trees(below_its_request);
}
