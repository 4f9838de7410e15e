//! The observer's stamps against a clock that is read in the client, right at its TLS read.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::{
    python,
    truth::{self, CASES},
};

use super::{
    Bench,
    figure::{Budget, Figure},
};

/// Real clients of the `openai` SDK, each in 120 requests: threads and one event loop.
const WANTED: [&str; 2] = ["threads", "async"];

/// Runs two cases of the truth test.
pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let python = python::clients()?;
    let mut figures = Vec::new();
    for case in CASES.iter().filter(|case| WANTED.contains(&case.name)) {
        let dir = bench.dir.join(case.name);
        // Whether all numbers agree is the truth test's to say; here only the stamps are looked at.
        truth::run(case, &bench.observer, &python, &dir)?;
        let path = dir.join("summary.json");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let [p50, p99, compared] = of_summary(&serde_json::from_str(&text)?)?;
        let (name_50, name_99, what) = if case.name == "threads" {
            (
                "stamps against the client's clock, threads, p50",
                "stamps against the client's clock, threads, p99",
                "8 threads",
            )
        } else {
            (
                "stamps against the client's clock, asyncio, p50",
                "stamps against the client's clock, asyncio, p99",
                "20 streams on one event loop",
            )
        };
        let how = format!(
            "{compared} output chunks of an unmodified `openai` client over real TLS ({what}): the observer's time of the chunk against a clock read around the client's own call of the TLS read."
        );
        figures.push(Figure::judged(name_50, p50, "ms", Budget::Under(0.1), how));
        figures.push(Figure::judged(name_99, p99, "ms", Budget::Under(1.0), "The same."));
    }
    Ok(figures)
}

/// p50, p99 (ms) and the number of output chunks that were compared.
fn of_summary(summary: &Value) -> Result<[f64; 3]> {
    let checks = summary["checks"].as_array().context("the comparison has no checks")?;
    let stamps =
        checks.iter().find(|check| check["name"].as_str().is_some_and(|name| name.starts_with("stamp: output chunks")));
    let stamps = stamps.context("the comparison says nothing about stamps of output chunks")?;
    let value = |key: &str| stamps[key].as_f64().unwrap_or(f64::NAN);
    ensure!(value("compared") > 0.0, "no output chunk was compared");
    Ok([value("p50"), value("p99"), value("compared")])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::of_summary;

    #[test]
    fn stamps_that_nobody_compared_are_no_figure() {
        let of = |compared: u64| json!({"checks": [{"name": "stamp: output chunks (ms)", "compared": compared, "p50": 0.01, "p99": 0.2}]});
        assert_eq!(of_summary(&of(7)).unwrap(), [0.01, 0.2, 7.0]);
        assert!(of_summary(&of(0)).is_err());
        assert!(of_summary(&json!({"checks": []})).is_err());
    }
}
