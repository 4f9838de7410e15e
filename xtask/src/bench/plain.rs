//! What observing plain HTTP costs the rest of the host.

use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use super::{
    Bench,
    figure::{Budget, Figure},
};

/// Runs `plain_bench`.
pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let said = super::json_of(&mut Command::new(&bench.plain_bench))?;
    Ok(figures(&said))
}

fn figures(said: &Value) -> Vec<Figure> {
    let value = |key: &str| said[key].as_f64().unwrap_or(f64::NAN);
    let how = "Median over 7 rounds of the difference between with and without the tracepoints, both taken in the same round, in a process that is not observed.";
    vec![
        Figure::judged(
            "unrelated system call, plain HTTP on",
            value("call_added_ns"),
            "ns more",
            Budget::AtMost(30.0),
            how,
        ),
        Figure::reported(
            "unrelated system call, plain HTTP on, as a ratio",
            value("call_ratio"),
            "x without",
            "`getppid`, the cheapest there is.",
        ),
        Figure::reported(
            "socket call in another process, plain HTTP on",
            value("socket_added_ns"),
            "ns more",
            "A write or a read of 200 bytes on a pair of Unix sockets, the cheapest there are. Here the program runs, looks the process up and sends it away.",
        ),
        Figure::reported("socket call in another process, as a ratio", value("socket_ratio"), "x without", "The same."),
        Figure::reported(
            "call on a TCP socket in another process, phases on",
            value("phases_added_ns"),
            "ns more",
            "Half of a write and a read of 200 bytes over loopback, with the arrival between them: three programs look it up and send it away.",
        ),
        Figure::reported(
            "call on a TCP socket in another process, phases on, as a ratio",
            value("phases_ratio"),
            "x without",
            "The same.",
        ),
        Figure::reported("call on a TCP socket, without", value("tcp_ns"), "ns", "Median over the rounds."),
        Figure::reported("unrelated system call, without", value("call_ns"), "ns", "Median over the rounds."),
        Figure::reported("socket call, without", value("socket_ns"), "ns", "Median over the rounds."),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::figure::Verdict, *};

    #[test]
    fn more_than_thirty_nanoseconds_are_over_the_budget() {
        let verdict = |ns: f64| figures(&json!({ "call_added_ns": ns }))[0].verdict;
        assert_eq!((verdict(30.0), verdict(30.1)), (Verdict::Ok, Verdict::Over));
        assert_eq!(figures(&json!({}))[0].verdict, Verdict::Over, "a figure that is missing");
    }
}
