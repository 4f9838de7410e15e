//! What probes cost their target, as ratios to an empty pair of probes within one run.

use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use super::{
    Bench,
    figure::{Budget, Figure},
};

/// Runs `probe_bench`.
pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let said = super::json_of(Command::new(&bench.probe_bench).arg(&bench.fake_tls))?;
    Ok(figures(&said))
}

fn figures(said: &Value) -> Vec<Figure> {
    let value = |key: &str| said[key].as_f64().unwrap_or(f64::NAN);
    let ratio = "Median over 15 rounds of (read with this probe - bare read) / (read with an empty uprobe and uretprobe - bare read), all taken in the same round; 200-byte reads, the target's own clock.";
    vec![
        Figure::judged(
            "read, one process attached",
            value("one_process_ratio"),
            "x an empty pair",
            Budget::AtMost(2.0),
            ratio,
        ),
        Figure::judged(
            "read, one of 64 attached workers",
            value("workers_64_ratio"),
            "x an empty pair",
            Budget::AtMost(2.5),
            "The same, with 64 processes of one executable attached.",
        ),
        // 1.00 is meant; a bare read takes about a nanosecond and a half, which no clock gives to the last percent.
        Figure::judged(
            "read, process not attached to",
            value("not_attached_ratio"),
            "x bare",
            Budget::AtMost(1.05),
            "Median over the rounds of a read in a process of the same executable that is not attached to, over a read in one that nobody attached to. 1.00 is meant; 0.05 is left to noise.",
        ),
        Figure::reported("read, bare", value("bare_ns"), "ns", "Median over the rounds: a function that returns."),
        Figure::reported(
            "read, empty pair",
            value("empty_pair_ns"),
            "ns",
            "The same with a uprobe and a uretprobe that do nothing, on `push`.",
        ),
        Figure::reported(
            "read, one process attached, absolute",
            value("one_process_ns"),
            "ns",
            "The same with the observer's probes: 200 bytes copied and stamped.",
        ),
        Figure::reported(
            "read, one of 64, absolute",
            value("workers_64_ns"),
            "ns",
            "The same with 64 processes attached.",
        ),
        Figure::reported(
            "records lost in that run",
            value("lost"),
            "",
            "Back-to-back reads from one thread: no load that a client makes. A lost record costs the target less, so this has to be near none for the ratios to count.",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::figure::Verdict, *};

    #[test]
    fn a_figure_that_is_missing_is_over_its_budget() {
        let said = json!({"one_process_ratio": 1.5, "workers_64_ratio": 2.6});
        let verdicts: Vec<Verdict> = figures(&said).iter().take(3).map(|figure| figure.verdict).collect();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Over, Verdict::Over]);
    }
}
