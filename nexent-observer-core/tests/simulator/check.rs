//! Compares what came out with what was true.

use std::collections::HashMap;

use nexent_observer_core::{
    event::{ConnId, MonoNs},
    timing::{Exchange, Outcome},
};

use crate::{
    drive,
    wire::{Truth, Wire},
};

/// What one run showed.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) right: usize,
    /// On damaged connections: right, marked incomplete, not seen at all.
    pub(crate) damaged_right: usize,
    pub(crate) incomplete: usize,
    pub(crate) unseen: usize,
    /// Incomplete ones that join a request with the answer to another.
    pub(crate) mixed: usize,
    pub(crate) skipped: usize,
}

pub(crate) fn check(wires: &[Wire], out: &drive::Outcome) -> Result<Tally, String> {
    let mut tally = Tally { skipped: out.skipped, ..Tally::default() };
    let mut by_conn: HashMap<ConnId, Vec<&Exchange>> = HashMap::new();
    for x in &out.exchanges {
        by_conn.entry(x.id.conn).or_default().push(x);
    }
    for wire in wires {
        let conn = wire.rows[0].conn;
        let got = by_conn.remove(&conn).unwrap_or_default();
        let truths: Vec<&Truth> = wire.truths.iter().filter(|t| t.script.llm).collect();
        if !wire.damaged {
            if got.len() != truths.len() {
                let told = |x: &&Exchange| (x.id.no, x.request_start, x.end, x.outcome, x.response_id.clone());
                let got: Vec<_> = got.iter().map(told).collect();
                let want: Vec<_> = truths.iter().map(|t| (t.request_start, t.end, t.outcome, &t.script.id)).collect();
                return Err(format!("{conn:?}: got {got:#?}, want {want:#?}"));
            }
            for truth in truths {
                let x = got.iter().find(|x| x.request_start == Some(truth.request_start));
                let x = x.ok_or_else(|| format!("{conn:?}: none of {got:#?} began at {:?}", truth.request_start))?;
                right(x, truth, wire.capped).map_err(|e| format!("{conn:?} {}: {e}\n{x:#?}", truth.script.id))?;
                tally.right += 1;
            }
            continue;
        }
        let seen = tally.incomplete + tally.damaged_right;
        for x in got {
            let by_start = truths.iter().find(|t| x.request_start == Some(t.request_start));
            let by_id = truths.iter().find(|t| x.response_id.as_deref() == Some(&t.script.id));
            if x.outcome == Outcome::Incomplete {
                tally.incomplete += 1;
                if let (Some(a), Some(b)) = (by_start, by_id)
                    && a.script.id != b.script.id
                {
                    // The end of one answer and the next request were both lost: what comes then looks like the first
                    // answer. Nothing may be concluded from the two.
                    let claims = [x.first_byte, x.first_chunk, x.first_token].iter().any(Option::is_some);
                    if claims || x.decode_rate.is_some() || x.end_to_end_rate.is_some() {
                        let (a, b) = (&a.script.id, &b.script.id);
                        return Err(format!("{conn:?}: the request of {a} with the answer of {b}\n{x:#?}"));
                    }
                    tally.mixed += 1;
                    continue;
                }
                if let Some(truth) = by_id.or(by_start) {
                    not_wrong(x, truth).map_err(|e| format!("{conn:?} {}: {e}\n{x:#?}", truth.script.id))?;
                }
                continue;
            }
            let truth = by_start.ok_or_else(|| format!("{conn:?}: complete out of nothing\n{x:#?}"))?;
            right(x, truth, true).map_err(|e| format!("{conn:?} {} (damaged): {e}\n{x:#?}", truth.script.id))?;
            tally.damaged_right += 1;
        }
        tally.unseen += truths.len().saturating_sub(tally.incomplete + tally.damaged_right - seen);
    }
    if let Some((conn, _)) = by_conn.into_iter().next() {
        return Err(format!("{conn:?} does not exist"));
    }
    for (conn, turn) in &out.not_llm {
        let wire = &wires[conn.0 as usize - 1];
        if wire.truths.iter().all(|t| t.script.llm) {
            return Err(format!("{conn:?} turn {turn} was called not-LLM and has only LLM calls"));
        }
    }
    let mut verdicts = out.not_llm.clone();
    verdicts.sort_unstable();
    verdicts.dedup();
    if verdicts.len() != out.not_llm.len() {
        return Err("a verdict came twice".to_owned());
    }
    if (out.stats.connections_open, out.stats.exchanges_open) != (0, 0) {
        return Err(format!("left open: {:?}", out.stats));
    }
    Ok(tally)
}

#[expect(clippy::needless_pass_by_value, reason = "most of what is compared is Copy or made for it")]
fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Result<(), String> {
    if got == want { Ok(()) } else { Err(format!("{what}: got {got:?}, want {want:?}")) }
}

/// Every number is the true one.
fn right(x: &Exchange, t: &Truth, request_body_unknown: bool) -> Result<(), String> {
    let s = &t.script;
    same("outcome", x.outcome, t.outcome)?;
    same("error type", x.error_type.clone(), t.error_type.clone())?;
    same("request start", x.request_start, Some(t.request_start))?;
    if !request_body_unknown {
        same("request model", x.request.model.as_deref(), Some("gpt-4o-mini"))?;
        same("request written", x.request_written, Some(t.request_written))?;
        same("request sent", x.request_sent, t.request_sent)?;
    }
    same("tid", x.tid, Some(x.pid + 1))?;
    same("first byte", x.first_byte, t.first_byte)?;
    same("status", x.response.status, t.head_known.then_some(s.status))?;
    same("first chunk", x.first_chunk, t.first_chunk)?;
    same("first token", x.first_token, t.first_token)?;
    same("last token", x.last_token, t.last_token)?;
    same("end", x.end, Some(t.end))?;
    let mut last = None;
    let want: Vec<_> = t.chunks.iter().map(|&(at, tokens)| (at, tokens, last.replace(at) == Some(at))).collect();
    same("chunks", x.chunks.iter().map(|c| (c.at, c.tokens, c.coalesced)).collect(), want)?;
    same("usage", x.usage.output, t.output)?;
    same("text", x.output_text.clone().unwrap_or_default(), t.text.clone())?;
    same("bytes lost", x.bytes_lost, Some(0))
}

/// What it claims to know is true.
fn not_wrong(x: &Exchange, t: &Truth) -> Result<(), String> {
    fn claim(what: &str, got: Option<MonoNs>, want: Option<MonoNs>) -> Result<(), String> {
        if got.is_none() { Ok(()) } else { same(what, got, want) }
    }
    claim("request start", x.request_start, Some(t.request_start))?;
    claim("first byte", x.first_byte, t.first_byte)?;
    claim("first chunk", x.first_chunk, t.first_chunk)?;
    claim("first token", x.first_token, t.first_token)?;
    claim("last token", x.last_token, t.last_token)?;
    if x.usage.output.is_some() {
        same("usage", x.usage.output, t.output)?;
    }
    same("decode rate", x.decode_rate, None)
}
