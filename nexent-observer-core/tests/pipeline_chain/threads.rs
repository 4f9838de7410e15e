//! Threads that are started during a request: those of the request, and those of a pool that serves all.

use std::collections::HashMap;

use nexent_observer_core::{
    event::{ConnId, Direction, MonoNs, ThreadEvent, ThreadEventKind},
    limits::{CALL_WAITS_NS, CALLS_WAITING, CALLS_WAITING_BYTES, Limits, STARTED_THREADS, THREAD_OUTLIVES_NS},
    pipeline::{Output, Pipeline},
    timing::{CausedBy, Options, Rule},
};
use proptest::prelude::*;

use super::{PID, Play, by};

impl Play {
    fn thread(&mut self, tid: u32, kind: ThreadEventKind) {
        self.now += 1_000_000;
        self.pipeline.handle_thread(&ThreadEvent { at: MonoNs(self.now), pid: PID, tid, kind });
    }

    fn starts(&mut self, parent: u32, child: u32) {
        self.thread(parent, ThreadEventKind::Started { child });
    }

    fn ends(&mut self, tid: u32) {
        self.thread(tid, ThreadEventKind::Ended);
    }

    /// A call is made and answered.
    fn calls(&mut self, conn: u64, tid: u32) {
        self.write(conn, tid, &Self::call_text("x", ""));
        self.read(conn, tid, &Self::call_answer());
        self.drained();
    }

    /// Time passes, and both rings are drained meanwhile.
    fn passes(&mut self, ns: u64) {
        for _ in 0..10 {
            self.now += ns / 10;
            self.drained();
        }
    }

    /// What the calls that are told by now were joined to, by their connections.
    fn told(&mut self) -> HashMap<u64, Option<(Rule, Option<String>)>> {
        let calls = std::mem::take(&mut self.out).into_iter().filter_map(|output| match output {
            Output::Exchange(exchange) => {
                let endpoint = |cause: CausedBy| {
                    (cause.rule, cause.served.and_then(|served| served.endpoint.as_deref().map(str::to_owned)))
                };
                Some((exchange.id.conn.0, exchange.cause.map(endpoint)))
            }
            _ => None,
        });
        calls.collect()
    }
}

const SECOND: u64 = 1_000_000_000;

/// Two requests on two threads, of which the first one has started a thread.
fn two_requests() -> Play {
    let mut p = Play::new();
    p.asked(1, 10, "/a");
    p.asked(2, 11, "/b");
    p.starts(10, 20);
    p
}

#[test]
fn a_thread_that_is_started_and_ends_within_a_request_makes_its_calls_for_it() {
    let mut p = two_requests();
    p.calls(3, 20);
    assert_eq!(p.told(), HashMap::new(), "it is not known yet");
    p.ends(20);
    p.answered(1, 10);
    p.drained();
    assert_eq!(p.told(), HashMap::new(), "what was before may be told late");
    p.passes(SECOND);
    assert_eq!(p.told(), HashMap::from([(3, by(Rule::StartedThread, "GET /a"))]));
    // The thread's number is used again, by one of which nothing is known.
    p.asked(1, 10, "/c");
    p.calls(3, 20);
    assert_eq!(p.told(), HashMap::from([(3, None)]));
}

#[test]
fn a_thread_that_lives_on_may_be_one_of_a_pool() {
    let mut p = two_requests();
    // The work of the other request.
    p.calls(3, 20);
    p.answered(1, 10);
    p.passes(SECOND);
    assert_eq!(p.told(), HashMap::from([(3, None)]));
    p.asked(1, 10, "/c");
    p.calls(3, 20);
    assert_eq!(p.told(), HashMap::from([(3, None)]), "what it was started in is over");
}

#[test]
fn a_thread_that_ends_after_its_request_proves_nothing() {
    let mut p = two_requests();
    p.calls(3, 20);
    p.answered(1, 10);
    p.ends(20);
    p.passes(SECOND);
    assert_eq!(p.told(), HashMap::from([(3, None)]));
}

#[test]
fn a_thread_that_makes_calls_and_outlives_its_request_discredits_those_of_its_process() {
    for calls in [false, true] {
        let mut p = two_requests();
        if calls {
            p.calls(3, 20);
        }
        p.answered(1, 10);
        p.passes(THREAD_OUTLIVES_NS - SECOND);
        let within = |p: &mut Play, conn: u64| {
            p.asked(1, 10, "/c");
            p.starts(10, 21);
            p.calls(conn, 21);
            p.ends(21);
            p.answered(1, 10);
            p.passes(SECOND / 2);
            p.told().remove(&conn).flatten()
        };
        assert_eq!(within(&mut p, 4), by(Rule::StartedThread, "GET /c"), "it may be about to end");
        p.passes(SECOND);
        assert_eq!(within(&mut p, 5), if calls { None } else { by(Rule::StartedThread, "GET /c") });
    }
}

#[test]
fn a_loop_that_serves_several_requests_starts_threads_for_nobody_knows_which() {
    // One open request while the thread is started, but not always.
    let mut p = Play::new();
    p.asked(1, 10, "/a");
    p.starts(10, 20);
    p.asked(2, 10, "/b");
    p.calls(3, 20);
    p.ends(20);
    p.answered(1, 10);
    p.passes(SECOND);
    assert_eq!(p.told(), HashMap::from([(3, None)]));
    // Two while it is started; threads are believed until one of them is over.
    let mut p = Play::new();
    p.asked(1, 10, "/a");
    p.asked(2, 10, "/b");
    p.starts(10, 20);
    p.calls(3, 20);
    assert_eq!(p.told(), HashMap::from([(3, None)]));
}

#[test]
fn a_request_that_is_told_after_the_thread_that_it_started_counts_all_the_same() {
    for second in [false, true] {
        let mut p = Play::new();
        p.asked(1, 11, "/b");
        if second {
            p.asked(4, 10, "/x");
        }
        let read = p.now + 10;
        p.now += 1000;
        p.starts(10, 20);
        p.at(2, 10, Direction::Read, "GET /a HTTP/1.1\r\nHost: h\r\n\r\n", read);
        p.calls(3, 20);
        p.ends(20);
        p.answered(2, 10);
        p.passes(SECOND);
        let want = if second { None } else { by(Rule::StartedThread, "GET /a") };
        assert_eq!(p.told(), HashMap::from([(3, want)]));
    }
}

#[test]
fn a_thread_that_reads_requests_itself_works_for_those() {
    let mut p = two_requests();
    p.asked(4, 20, "/own");
    p.calls(3, 20);
    assert_eq!(p.told(), HashMap::from([(3, by(Rule::Thread, "GET /own"))]));
}

#[test]
fn requests_that_break_off_and_processes_that_end_prove_nothing() {
    let mut p = two_requests();
    p.calls(3, 20);
    p.ends(20);
    p.pipeline.process_exit(PID, MonoNs(p.now));
    p.drained();
    assert_eq!(p.told(), HashMap::from([(3, None)]));
}

#[test]
fn a_call_waits_for_its_request_to_end_only_so_long() {
    let mut p = two_requests();
    p.calls(3, 20);
    p.passes(CALL_WAITS_NS - SECOND);
    assert_eq!(p.told(), HashMap::new());
    p.passes(2 * SECOND);
    assert_eq!(p.told(), HashMap::from([(3, None)]));
    // Nor does it wait when the observer ends.
    p.calls(3, 20);
    assert_eq!(p.told(), HashMap::new());
    p.pipeline.stop();
    p.out.extend(std::iter::from_fn(|| p.pipeline.poll_output()));
    assert_eq!(p.told(), HashMap::from([(3, None)]));
}

#[test]
fn only_so_many_calls_wait_for_their_request_to_end() {
    let mut p = two_requests();
    for _ in 0..CALLS_WAITING {
        p.calls(3, 20);
    }
    assert_eq!(p.told(), HashMap::new());
    p.calls(4, 20);
    assert_eq!(p.told(), HashMap::from([(4, None)]));
}

#[test]
fn only_so_many_bytes_of_calls_wait() {
    const TEXT: usize = 256 * 1024;
    let mut p = two_requests();
    p.pipeline = Pipeline::new(Limits::default(), Options { capture_content: true, ..Options::default() });
    p.conns.clear();
    p.asked(1, 10, "/a");
    p.asked(2, 11, "/b");
    p.starts(10, 20);
    let message = format!("{{\"content\":\"{}\"}}", "x".repeat(TEXT));
    let body =
        format!("{{\"model\":\"m\",\"choices\":[{{\"index\":0,\"message\":{message},\"finish_reason\":\"stop\"}}]}}");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut waiting = 0;
    loop {
        p.write(3, 20, &Play::call_text("x", ""));
        p.read(3, 20, &(head.clone() + &body));
        p.drained();
        if !p.told().is_empty() {
            break;
        }
        waiting += 1;
        assert!(waiting * TEXT <= CALLS_WAITING_BYTES, "{waiting} calls wait");
    }
    assert!(waiting * 4 * TEXT >= CALLS_WAITING_BYTES, "only {waiting} calls waited");
    // Those that are joined make room.
    p.ends(20);
    p.answered(1, 10);
    p.passes(SECOND);
    assert!(!p.told().is_empty());
    p.asked(1, 10, "/c");
    p.starts(10, 21);
    p.calls(4, 21);
    assert_eq!(p.told(), HashMap::new());
}

/// An exec of any process of the host is told as the end of what it was.
#[test]
fn the_end_of_another_process_makes_no_call_known_before_its_time() {
    let mut p = two_requests();
    p.write(3, 20, &Play::call_text("x", ""));
    p.read(3, 20, &Play::call_answer());
    p.pipeline.process_exit(PID + 1, MonoNs(p.now));
    p.drained();
    p.ends(20);
    p.answered(1, 10);
    p.passes(SECOND);
    assert_eq!(p.told(), HashMap::from([(3, by(Rule::StartedThread, "GET /a"))]));
}

#[test]
fn more_threads_than_are_remembered_prove_nothing_and_what_is_over_is_forgotten() {
    let mut p = two_requests();
    for n in 1..=STARTED_THREADS as u32 {
        p.starts(10, 100 + n);
    }
    let last = 100 + STARTED_THREADS as u32;
    p.calls(3, last);
    assert_eq!(p.told(), HashMap::from([(3, None)]));
    p.calls(4, last - 1);
    (1..=last).for_each(|tid| p.ends(tid));
    p.answered(1, 10);
    p.passes(THREAD_OUTLIVES_NS + SECOND);
    assert_eq!(p.told(), HashMap::from([(4, by(Rule::StartedThread, "GET /a"))]));
    p.asked(1, 10, "/c");
    p.starts(10, last);
    p.calls(3, last);
    p.ends(last);
    p.answered(1, 10);
    p.passes(SECOND);
    assert_eq!(p.told(), HashMap::from([(3, by(Rule::StartedThread, "GET /c"))]));
}

/// What a server with a thread for each request does next; the number is the thread's.
#[derive(Debug, Clone, Copy)]
enum Step {
    Ask(u32),
    /// Starts a thread for the request.
    Start(u32),
    /// Such a thread begins a call, and ends it.
    Call(u32),
    /// All of the request's threads end, and it is answered.
    Answer(u32),
    /// A pool of all requests does its work: on that thread of the pool, which may have to be started.
    Pool(u32, u32),
    Drain(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let handler = 0..4_u32;
    prop_oneof![
        handler.clone().prop_map(Step::Ask),
        handler.clone().prop_map(Step::Start),
        handler.clone().prop_map(Step::Call),
        handler.clone().prop_map(Step::Answer),
        (handler, 0..3_u32).prop_map(|(handler, worker)| Step::Pool(handler, worker)),
        (1..400_u64).prop_map(|ms| Step::Drain(ms * 1_000_000)),
    ]
}

fn name(number: usize) -> String {
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    format!("/job_{}{}", letter(number / 26), letter(number))
}

proptest! {
    #[test]
    fn no_schedule_of_threads_and_pools_joins_a_call_to_another_request(
        steps in proptest::collection::vec(step(), 1..120), pools: bool,
    ) {
        let mut p = Play::new();
        // Of each handler: its request, and the threads of that. Of a pool: its threads.
        let mut open: [Option<(String, Vec<u32>)>; 4] = Default::default();
        let mut pool = [None; 3];
        let mut of_calls: HashMap<u64, (String, bool)> = HashMap::new();
        let (mut requests, mut tids) = (0, 100);
        let answer = |p: &mut Play, handler: usize, threads: Vec<u32>| {
            threads.into_iter().for_each(|tid| p.ends(tid));
            p.answered(1 + handler as u64, 10 + handler as u32);
        };
        for step in steps {
            let of = |handler: u32| (handler as usize, 10 + handler);
            match step {
                Step::Ask(handler) => {
                    let (at, tid) = of(handler);
                    if open[at].is_none() {
                        p.asked(1 + u64::from(handler), tid, &name(requests));
                        open[at] = Some((name(requests), Vec::new()));
                        requests += 1;
                    }
                }
                Step::Start(handler) => {
                    let (at, tid) = of(handler);
                    if let Some((_, threads)) = &mut open[at] {
                        tids += 1;
                        p.starts(tid, tids);
                        threads.push(tids);
                    }
                }
                Step::Call(handler) => {
                    if let Some((name, threads)) = &open[of(handler).0]
                        && let Some(tid) = threads.last()
                    {
                        let conn = 1000 + of_calls.len() as u64;
                        of_calls.insert(conn, (name.clone(), true));
                        p.calls(conn, *tid);
                    }
                }
                Step::Answer(handler) => {
                    let (at, _) = of(handler);
                    if let Some((_, threads)) = open[at].take() {
                        answer(&mut p, at, threads);
                    }
                }
                Step::Pool(handler, worker) if pools => {
                    let (at, tid) = of(handler);
                    if let Some((name, _)) = &open[at] {
                        let worker = *pool[worker as usize].get_or_insert_with(|| {
                            tids += 1;
                            p.starts(tid, tids);
                            tids
                        });
                        let conn = 1000 + of_calls.len() as u64;
                        of_calls.insert(conn, (name.clone(), false));
                        p.calls(conn, worker);
                    }
                }
                Step::Pool(..) => {}
                Step::Drain(ns) => p.passes(ns),
            }
        }
        for (at, open) in open.into_iter().enumerate() {
            if let Some((_, threads)) = open {
                answer(&mut p, at, threads);
            }
        }
        p.passes(SECOND);
        let told = p.told();
        prop_assert_eq!(told.len(), of_calls.len(), "each call is told once");
        for (conn, (name, scoped)) in of_calls {
            match told.get(&conn).cloned().flatten() {
                Some((_, endpoint)) => prop_assert_eq!(endpoint, Some(format!("GET {name}")), "{:?}", ConnId(conn)),
                None => prop_assert!(pools || !scoped, "nothing speaks against it"),
            }
        }
    }
}
