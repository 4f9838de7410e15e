//! Plays the rings into the pipeline as the process does: every 10 ms all that was read, then all that was written.

use std::collections::HashMap;

use nexent_observer_core::{
    event::{ConnId, Direction, MonoNs},
    limits::Limits,
    pipeline::{Output, Pipeline},
    stats::Stats,
    timing::Exchange,
};

use crate::{
    tape_support::{Tape, assert_replays, counting},
    wire::{Row, RowKind, Wire},
};

const DRAIN_NS: u64 = 10_000_000;

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) exchanges: Vec<Exchange>,
    /// Connections and turns that the pipeline called not-LLM.
    pub(crate) not_llm: Vec<(ConnId, u32)>,
    /// Records that were then left out.
    pub(crate) skipped: usize,
    pub(crate) stats: Stats,
    /// Most outputs that ever waited.
    pub(crate) most_waiting: usize,
}

pub(crate) fn drive(wires: &[Wire]) -> Outcome {
    let mut rows: Vec<Row> = wires.iter().flat_map(|w| w.rows.iter().cloned()).collect();
    rows.sort_by_key(|r| r.at.ret);
    let mut pipeline = Pipeline::new(Limits::default(), counting("counted"));
    let tape = Tape::default();
    pipeline.set_tap(tape.tap());
    let mut out = Outcome { exchanges: vec![], not_llm: vec![], skipped: 0, stats: Stats::default(), most_waiting: 0 };
    let mut verdicts: HashMap<ConnId, u32> = HashMap::new();
    // Whether one of the records left out would have told of a loss of unknown size: the next one has to.
    let mut left_out: HashMap<ConnId, bool> = HashMap::new();
    let mut rest = rows.as_mut_slice();
    let mut now = 0;
    while !rest.is_empty() {
        now = rest[0].at.ret.0.next_multiple_of(DRAIN_NS).max(now + DRAIN_NS);
        let (tick, later) = rest.split_at_mut(rest.partition_point(|r| r.at.ret.0 <= now));
        rest = later;
        // The kernel half, in the order of time: a verdict holds until the process writes again.
        let mut emitted = Vec::new();
        for row in tick {
            match &mut row.kind {
                RowKind::Data { dir: Direction::Write, .. } => {
                    verdicts.remove(&row.conn);
                }
                RowKind::Data { turn, flags, .. } if verdicts.get(&row.conn) == Some(turn) => {
                    *left_out.entry(row.conn).or_default() |= flags.after_unknown_loss;
                    out.skipped += 1;
                    continue;
                }
                RowKind::Data { flags, .. } | RowKind::Close { flags, .. } => {
                    let skipped = left_out.remove(&row.conn);
                    flags.after_skip = skipped.is_some();
                    flags.after_unknown_loss |= skipped == Some(true);
                }
                RowKind::Sent(_) | RowKind::Exit => {}
            }
            emitted.push(row);
        }
        let (writes, reads): (Vec<_>, Vec<_>) = emitted.into_iter().partition(|r| r.is_write());
        let exits = reads.iter().filter(|r| r.record().is_none()).map(|r| (r.pid, r.at.ret)).collect::<Vec<_>>();
        for record in reads.iter().chain(&writes).filter_map(|r| r.record()) {
            pipeline.handle_event(&record);
            take(&mut pipeline, &mut out, &mut verdicts);
        }
        for (pid, at) in exits {
            pipeline.process_exit(pid, at);
            take(&mut pipeline, &mut out, &mut verdicts);
        }
        if pipeline.poll_timeout().is_some_and(|at| at.0 <= now) {
            pipeline.handle_timeout(MonoNs(now));
            take(&mut pipeline, &mut out, &mut verdicts);
        }
    }
    // Closes that wait for a lost write.
    while let Some(at) = pipeline.poll_timeout().filter(|_| pipeline.stats().connections_open > 0) {
        pipeline.handle_timeout(at);
        take(&mut pipeline, &mut out, &mut verdicts);
    }
    assert_eq!(pipeline.active().count(), 0, "nothing may stay behind");
    out.stats = pipeline.stats();
    drop(pipeline);
    // What the tap was shown gives the same numbers, after all that happened on the way.
    assert_replays(&tape, &out.exchanges, Limits::default());
    out
}

fn take(pipeline: &mut Pipeline, out: &mut Outcome, verdicts: &mut HashMap<ConnId, u32>) {
    let mut waiting = 0;
    while let Some(output) = pipeline.poll_output() {
        waiting += 1;
        match output {
            Output::Exchange(x) => out.exchanges.push(*x),
            Output::Inbound(_) | Output::Tool(_) => {}
            Output::NotLlm { conn, turn } => {
                out.not_llm.push((conn, turn));
                verdicts.insert(conn, turn);
            }
        }
    }
    out.most_waiting = out.most_waiting.max(waiting);
}
