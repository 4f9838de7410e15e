//! What the observer reads in an answer against what the official SDK of its API reads in the same bytes.
//!
//! The SDKs' numbers stand in `tests/fixtures/sdk/`, written by `cargo xtask sdk-numbers`: lengths, counts, finish reasons,
//! names and versions of the SDKs. Where the observer means to differ, `differences.json` says from what, to what, and why.

use serde_json::{Value, json};

use super::{calls, fixture, llm_support::Seen};

fn file(name: &str) -> String {
    let path = format!("{}/tests/fixtures/sdk/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The numbers of one table, a row an answer.
pub(crate) fn rows(name: &str) -> Vec<Value> {
    file(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The same numbers as the observer has them. An SDK gives a whole answer out without events.
fn numbers(seen: &Seen, whole: bool) -> Value {
    let usage = seen.usage.unwrap_or_default();
    json!({
        "events": if whole { 0 } else { seen.chunks },
        "first": seen.first_token_chunk.filter(|_| !whole),
        "text": seen.text.chars().count(), "reasoning": seen.reasoning.chars().count(),
        "refusal": seen.refusal_chars, "arguments": seen.argument_chars, "tools": seen.tool_names,
        "input_tokens": usage.input, "output_tokens": usage.output,
        "cached_tokens": usage.cached_input, "reasoning_tokens": usage.reasoning,
        "finish": seen.finish, "error": seen.error.is_some(),
    })
}

/// One line about one exchange.
pub(crate) fn line(seen: &Seen) -> String {
    let shown = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let usage = seen.usage.unwrap_or_default();
    // Only the provider's own counts are known here; without them the tokens are counted by the timing stage.
    let source = if usage.output.is_some() { "usage" } else { "-" };
    let (call, request) = (seen.call.as_ref(), seen.request.as_ref());
    let model = seen.model.as_deref().or_else(|| request?.model.as_deref());
    let first = seen.first_token_chunk.map_or_else(|| "-".to_owned(), |n| n.to_string());
    format!(
        "{:<18} {:<16} {:<30} in {:>5} out {:>5} {source:<5} chunks {:>4} first token {first:>3} {:<16} {:<12}",
        call.and_then(|c| c.provider).or_else(|| seen.response.as_ref()?.provider).unwrap_or("-"),
        call.map_or("-", |c| c.operation),
        model.unwrap_or("-"),
        shown(usage.input),
        shown(usage.output),
        seen.chunks,
        seen.finish.join("+"),
        seen.error.as_deref().unwrap_or("-"),
    )
}

/// Where the observer means to differ from an SDK.
pub(crate) struct Differences {
    /// Those that are meant, and whether they were met.
    meant: Vec<(Value, bool)>,
    /// Those that are not.
    found: Vec<String>,
}

impl Differences {
    pub(crate) fn read() -> Self {
        let rows: Vec<Value> = serde_json::from_str(&file("differences.json")).unwrap();
        for row in &rows {
            assert!(row["why"].as_str().is_some_and(|why| why.len() > 20), "{row}: says why");
        }
        Self { meant: rows.into_iter().map(|row| (row, false)).collect(), found: Vec::new() }
    }

    /// Every number of `row` is the observer's, or a difference that is meant.
    pub(crate) fn check(&mut self, name: &str, row: &Value, seen: &Seen) {
        // In a stream that failed at once, and in a whole answer, the SDK gives out no event.
        let numbers = numbers(seen, row["events"] == 0);
        for (key, ours) in numbers.as_object().unwrap() {
            let theirs = if key == "error" { json!(!row["error"].is_null()) } else { row[key].clone() };
            // Tool arguments that came parsed have no length.
            if key == "arguments" && theirs.is_null() {
                continue;
            }
            let meant = self.meant.iter_mut().find(|(d, _)| d["of"] == name && d["what"] == key.as_str());
            let right = match meant {
                Some((difference, used)) => {
                    *used = true;
                    theirs != *ours && difference["observer"] == *ours
                }
                None => theirs == *ours,
            };
            if !right {
                self.found.push(format!("{name}: {key} is {theirs} for {}, {ours} here", row["sdk"]));
            }
        }
    }

    /// There are no other differences, and those that are meant of these names are there.
    pub(crate) fn close(mut self, prefix: &str) {
        let unmet = self
            .meant
            .iter()
            .filter(|(difference, met)| !met && difference["of"].as_str().unwrap().starts_with(prefix));
        self.found.extend(unmet.map(|(difference, _)| format!("{difference} is of nothing that was checked")));
        assert!(self.found.is_empty(), "{}", self.found.join("\n"));
    }
}

#[test]
fn fixtures_are_read_as_the_official_sdks_read_them() {
    let (rows, mut differences) = (rows("fixtures.jsonl"), Differences::read());
    let mut read = 0;
    for call in calls::all() {
        let seen = call
            .ask(|ask| ask.answered(call.status, call.kind(), &mut [fixture(&call.fixture).as_slice()].into_iter()).0);
        println!("{}  {}", line(&seen), call.fixture);
        if let Some(row) = rows.iter().find(|row| row["fixture"] == call.fixture.as_str()) {
            differences.check(&format!("fixture {}", call.fixture), row, &seen);
            read += 1;
        }
    }
    assert_eq!(read, rows.len(), "each row of numbers is of a fixture");
    differences.close("fixture ");
}

/// Whole, byte by byte and cut at every offset: always the same, and without a defect.
#[test]
fn every_fixture_is_read_the_same_in_every_cut() {
    for call in calls::all() {
        call.ask(|ask| ask.answer(call.status, call.kind(), &fixture(&call.fixture)));
    }
}
