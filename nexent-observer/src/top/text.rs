//! Words and numbers, for the screen and for lines of plain text.

use std::{
    io::{self, Write},
    time::Instant,
};

use unicode_width::UnicodeWidthStr;

use super::frame::{Call, Row, State};
use crate::cli::printable;

/// What stands for something unknown.
const UNKNOWN: &str = "-";

pub(super) fn seconds(value: Option<f64>) -> String {
    match value {
        None => UNKNOWN.to_owned(),
        Some(s) if s < 1.0 => format!("{:.0} ms", s * 1e3),
        Some(s) if s < 100.0 => format!("{s:.1} s"),
        Some(s) if s < 6000.0 => format!("{:.0} min", s / 60.0),
        Some(s) => format!("{:.1} h", s / 3600.0),
    }
}

pub(super) fn rate(value: Option<f64>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |rate| format!("{rate:.1}"))
}

pub(super) fn count(value: Option<u64>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |count| count.to_string())
}

/// A name of a stream, made harmless.
pub(super) fn name(text: Option<&str>, chars: usize) -> String {
    text.filter(|text| !text.is_empty()).map_or_else(|| UNKNOWN.to_owned(), |text| printable(text, chars))
}

/// Time of day, UTC: a terminal over ssh has whatever zone it has.
pub(super) fn time_of_day(unix_ms: Option<u64>) -> String {
    unix_ms.map_or_else(
        || UNKNOWN.to_owned(),
        |ms| {
            let s = ms / 1000 % 86_400;
            format!("{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
        },
    )
}

/// How a call ended, in a word.
pub(super) fn ending(call: &Call) -> String {
    match &call.error_type {
        Some(error) => format!("{} {}", printable(&call.outcome, 20), printable(error, 40)),
        None => printable(&call.outcome, 20),
    }
}

/// One line of totals.
pub(super) fn totals(state: &State, out: &mut impl Write) -> io::Result<()> {
    let (health, all) = (&state.health, &state.recent.all);
    writeln!(
        out,
        "state={} processes={} probes={} open={} chunks_per_s={} calls={} failed={} stalled={} ttft_p50={} ttft_p95={} lost_records={}",
        printable(&health.state, 20),
        health.processes,
        health.probes,
        state.streams_total,
        rate(state.rate),
        health.llm_exchanges,
        all.failed,
        all.stalled,
        compact(all.ttft_p50_s),
        compact(all.ttft_p95_s),
        health.lost_records,
    )
}

/// One line of a call that ended.
pub(super) fn call(call: &Call, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{} {} model={} service={} ttft={} duration={} tokens_per_s={} tokens={} stalls={}",
        time_of_day(call.end_unix_ms),
        ending(call),
        quoted(call.model.as_deref()),
        quoted(Some(&call.service)),
        compact(call.ttft_s),
        compact(call.duration_s),
        rate(call.decode_tokens_per_s),
        count(call.tokens.output),
        call.stalls.len() + usize::from(call.stalled_before_first_token),
    )
}

fn compact(value: Option<f64>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |s| format!("{s:.3}s"))
}

/// A value that stays one word of a line.
fn quoted(text: Option<&str>) -> String {
    let name = name(text, 80);
    if name.contains([' ', '"', '=']) { format!("\"{}\"", name.replace('"', "'")) } else { name }
}

/// Totals and the open streams, once.
pub(super) fn table(state: &State, out: &mut impl Write) -> io::Result<()> {
    totals(state, out)?;
    let now = Instant::now();
    let mut rows: Vec<&Row> = state.rows.values().collect();
    rows.sort_by(|a, b| a.stream.id.cmp(&b.stream.id));
    let head = ["MODEL", "SERVICE", "PID", "OPEN FOR", "TTFT", "SILENT", "CHUNKS", "CHUNKS/S"].map(str::to_owned);
    let lines = rows.into_iter().map(|row| {
        let stream = &row.stream;
        [
            name(stream.model.as_deref(), 40),
            name(Some(&stream.service), 24),
            stream.pid.to_string(),
            seconds(stream.elapsed_s),
            seconds(stream.ttft_s),
            seconds(row.silent(now)),
            stream.chunks.to_string(),
            rate(stream.tokens_per_s),
        ]
    });
    let lines: Vec<_> = std::iter::once(head).chain(lines).collect();
    let widths: Vec<usize> = (0..8)
        .map(|i| lines.iter().filter_map(|line| line.get(i)).map(|cell| cell.width()).max().unwrap_or(0))
        .collect();
    for line in &lines {
        let mut shown = String::new();
        for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width.saturating_sub(cell.width()));
            // Names to the left, numbers to the right.
            shown += &if i < 2 { format!("{cell}{pad}  ") } else { format!("{pad}{cell}  ") };
        }
        writeln!(out, "{}", shown.trim_end())?;
    }
    if lines.len() == 1 {
        writeln!(out, "no stream is open")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::frame::Stream;

    fn state(model: &str) -> State {
        let mut state = State::default();
        let stream = Stream { id: "1-0".into(), model: Some(model.into()), service: "s".into(), ..Stream::default() };
        state.rows.insert("1-0".into(), Row { stream, ..Row::default() });
        state
    }

    #[test]
    fn a_hostile_name_writes_no_escape_and_no_line_of_its_own() {
        let mut out = Vec::new();
        let model = "\u{1b}]0;owned\u{7}\u{1b}[2J\nfake line\u{202e}";
        table(&state(model), &mut out).unwrap();
        let ended = Call {
            model: Some(model.into()),
            error_type: Some(model.into()),
            service: model.into(),
            ..Call::default()
        };
        call(&ended, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 4, "{text:?}");
        assert!(text.lines().all(|line| !line.contains(char::is_control) && !line.contains('\u{202e}')), "{text:?}");
    }

    #[test]
    fn columns_stand_under_each_other_also_with_wide_characters() {
        let mut out = Vec::new();
        table(&state("模型"), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let [_, head, row] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        assert_eq!(head.find("SERVICE").map(|at| head[..at].width()), row.find('s').map(|at| row[..at].width()));
        assert!(row.contains(" - "), "unknown is not zero: {row}");
    }
}
