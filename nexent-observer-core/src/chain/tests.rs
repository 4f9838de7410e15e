//! Caps of the chain. What it joins is in `tests/pipeline_chain/main.rs`.

use super::*;
use crate::event::ConnId;

const PID: u32 = 7;

#[test]
fn more_requests_than_are_followed_leave_only_what_was_said() {
    let mut chain = Chain::default();
    let mut stats = Stats::default();
    let served = |no: u32| {
        let id = ExchangeId { conn: ConnId(1), no };
        Arc::new(Served { id, endpoint: None, peer: None, start: MonoNs(5), traceparent: None })
    };
    for no in 0..SERVED_OPEN as u32 {
        assert!(chain.begin(PID, served(no), Some(no), false, &mut stats));
    }
    assert!(!chain.begin(PID, served(u32::MAX), Some(9), false, &mut stats));
    assert_eq!(stats.drops(DropReason::ServedFull), 1);
    let cause = |chain: &mut Chain, tid: u32| {
        let id = ExchangeId { conn: ConnId(2), no: 0 };
        assert!(chain.call(PID, id, Some(tid), MonoNs(9), None));
        chain.cause(PID, id, false, None, Some(tid)).map(|cause| cause.rule)
    };
    assert_eq!((cause(&mut chain, 3), chain.serving(PID, 3)), (None, None), "one is not followed");
    chain.end(PID, served(u32::MAX).id, (MonoNs(9), Ended::Completed), false);
    assert_eq!(cause(&mut chain, 3), Some(Rule::Thread));
    for pid in 0..SERVING_PROCESSES as u32 + 9 {
        let told = chain.begin(1000 + pid, served(0), None, false, &mut stats);
        assert_eq!(told, pid < SERVING_PROCESSES as u32 - 1);
    }
    assert_eq!(chain.processes.len(), SERVING_PROCESSES);
}

#[test]
fn more_calls_than_are_followed_have_no_cause() {
    let mut chain = Chain::default();
    let id = |no: u32| ExchangeId { conn: ConnId(1), no };
    assert!(!chain.call(PID, id(0), Some(1), MonoNs(1), None), "a process that serves nothing costs nothing");
    let served = Arc::new(Served { id: id(0), endpoint: None, peer: None, start: MonoNs(1), traceparent: None });
    chain.begin(PID, served, Some(1), false, &mut Stats::default());
    for no in 1..=CALLS_OPEN as u32 {
        assert!(chain.call(PID, id(no), Some(1), MonoNs(1), None));
    }
    assert!(!chain.call(PID, id(u32::MAX), Some(1), MonoNs(1), None));
    chain.forget(PID, id(1));
    assert!(chain.call(PID, id(u32::MAX), Some(1), MonoNs(1), None));
    assert_eq!(chain.processes[&PID].fresh.len(), CALLS_OPEN);
    // Longer than that ago, but both rings may not have been drained since.
    for no in [2, 4] {
        chain.forget(PID, id(no));
        assert!(chain.call(PID, id(u32::MAX - no), Some(1), MonoNs(FRESH_NS + 2), None));
    }
    assert_eq!(chain.processes[&PID].fresh.len(), CALLS_OPEN);
    assert_eq!(chain.cause(PID, id(3), false, None, Some(1)), None, "it would not hear of what is told late");
    (0..=FRESH_DRAINS).for_each(|_| chain.drained(MonoNs(0)));
    assert!(chain.call(PID, id(3), Some(1), MonoNs(2 * FRESH_NS + 9), None));
    assert_eq!(chain.processes[&PID].fresh.len(), 1);
    assert_eq!(chain.cause(PID, id(7), false, None, Some(1)).map(|cause| cause.rule), Some(Rule::Thread));
}
