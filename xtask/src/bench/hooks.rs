//! What the Python hooks cost the functions of a service: off, on with nobody there, and on with an observer that listens.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::{observer::Observer, process::Guarded, python, sh, truth};

use super::{
    Bench,
    figure::{Budget, Figure},
};

const PATIENCE: Duration = Duration::from_secs(180);

/// Runs `tests/fixtures/hooks/overhead.py`, without an observer and then with one.
pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let dir = bench.dir.join("hooks");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut command = Command::new(python::hooks()?);
    command.arg(sh::fixture("hooks/overhead.py")?).env_remove("ENABLE_TELEMETRY");
    let mut service = Guarded::talking("overhead.py", &mut command)?;
    let mut said = service.event("ready", PATIENCE)?;
    let targets: Vec<String> = ["--pid", &service.pid().to_string(), "--plain-http", "on"].map(str::to_owned).into();
    let mut observer = Observer::start(&bench.observer, &targets, &dir, truth::free_address()?, None)?;
    observer.attached(1, Duration::from_secs(30))?;
    service.say("go")?;
    said["listening"] = service.event("done", PATIENCE)?["listening"].take();
    // The service ends now, and the observer with the last process that it watches.
    drop(service);
    drop(observer);
    Ok(figures(&said))
}

fn figures(said: &Value) -> Vec<Figure> {
    let of = |when: &str, what: &str, kind: &str| said[when][what][kind].as_f64().unwrap_or(f64::NAN);
    let ratio = |when: &str, what: &str| of(when, what, "hooked") / of(when, what, "bare");
    let added = |when: &str, what: &str| of(when, what, "hooked") - of(when, what, "bare");
    let both = |when: &str, what: &str| {
        format!(
            "{:.0} ns a call with, {:.0} ns without: medians of 101 rounds in which all take turns, in one process, by its time on a CPU.",
            of(when, what, "hooked"),
            of(when, what, "bare"),
        )
    };
    let ns = |name, when: &str, what: &str| {
        Figure::judged(name, added(when, what), "ns more", Budget::AtMost(1000.0), both(when, what))
    };
    let times = |name, when: &str, what: &str| Figure::reported(name, ratio(when, what), "x without", both(when, what));
    let small = |name, when: &str, what: &str| {
        Figure::judged(name, ratio(when, what), "x without", Budget::AtMost(1.1), both(when, what))
    };
    vec![
        ns("hooks off, an empty function", "not_configured", "endpoint"),
        times("hooks off, an empty function, as a ratio", "not_configured", "endpoint"),
        times("hooks off, an empty LLM call, as a ratio", "not_configured", "llm_call"),
        times("hooks off, an empty coroutine, as a ratio", "not_configured", "coroutine"),
        times("hooks off, a generator, as a ratio", "not_configured", "generator"),
        small("hooks off, a function that makes a body", "not_configured", "work"),
        ns("hooks on, nobody listens, an empty function", "no_observer", "endpoint"),
        times("hooks on, nobody listens, as a ratio", "no_observer", "endpoint"),
        times("hooks on, nobody listens, a coroutine", "no_observer", "coroutine"),
        times("hooks on, nobody listens, a generator", "no_observer", "generator"),
        small("hooks on, nobody listens, making a body", "no_observer", "work"),
        times("hooks on, nobody listens, a send and recv", "no_observer", "send"),
        Figure::reported(
            "hooks heard, an empty function",
            added("listening", "endpoint") / 1e3,
            "us more",
            both("listening", "endpoint"),
        ),
        times("hooks heard, a function that makes a body", "listening", "work"),
        times("hooks heard, a send and recv", "listening", "send"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::figure::Verdict, *};

    fn with(hooked: f64) -> Vec<Figure> {
        let pair = json!({ "bare": 1000.0, "hooked": hooked });
        let all = json!({ "endpoint": pair, "work": pair });
        figures(&json!({ "not_configured": all, "no_observer": all, "listening": all }))
    }

    #[test]
    fn hooks_that_are_off_must_cost_next_to_nothing() {
        let over = |hooked| with(hooked).iter().filter(|figure| figure.verdict == Verdict::Over).count();
        assert_eq!((over(1100.0), over(1101.0), over(2001.0)), (0, 2, 4));
    }

    #[test]
    fn what_was_not_measured_holds_no_budget() {
        assert_eq!(figures(&json!({})).iter().filter(|figure| figure.verdict == Verdict::Over).count(), 4);
    }
}
