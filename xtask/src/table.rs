//! The live table of finished streams, one row each, and the line of totals below it on a terminal.
#![expect(clippy::print_stdout, reason = "the table is what this command is for")]

use std::{
    fs::File,
    io::{IsTerminal, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::Value;

/// Follows the observer's JSONL as it grows.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
}

impl Tail {
    /// Follows `path`, which need not exist yet.
    #[must_use]
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, rest: Vec::new() }
    }

    /// The records that were added since the last call.
    pub(crate) fn read(&mut self) -> Result<Vec<Value>> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return Ok(Vec::new()) };
        file.read_to_end(&mut self.rest).with_context(|| format!("cannot read {}", self.path.display()))?;
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else { return Ok(Vec::new()) };
        let later = self.rest.split_off(end + 1);
        let lines = std::mem::replace(&mut self.rest, later);
        let lines = lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).context("a line of the JSONL is no JSON")).collect()
    }
}

/// Prints streams as they end.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: u64,
    tokens: u64,
    failed: u64,
    terminal: bool,
}

impl Table {
    /// Prints the head.
    #[must_use]
    pub(crate) fn start() -> Self {
        println!(
            "{:>7}  {:<28} {:>9} {:>10} {:>7} {:>7} {:>7}  outcome",
            "pid", "model", "TTFT", "tokens/s", "tokens", "chunks", "time"
        );
        Self { terminal: std::io::stdout().is_terminal(), ..Self::default() }
    }

    /// Adds a row for each record.
    pub(crate) fn add(&mut self, records: &[Value]) {
        if records.is_empty() {
            return;
        }
        self.erase();
        for record in records {
            println!("{}", row(record));
            self.rows += 1;
            self.tokens += record["usage"]["output"].as_u64().unwrap_or(0);
            self.failed += u64::from(record["outcome"] != "completed");
        }
        if self.terminal {
            print!("        {} streams, {} tokens, {} not completed; Ctrl-C ends", self.rows, self.tokens, self.failed);
            drop(std::io::stdout().flush());
        }
    }

    /// Takes the line of totals away.
    pub(crate) fn erase(&self) {
        if self.terminal {
            print!("\r\x1b[K");
        }
    }
}

fn row(record: &Value) -> String {
    // What was not seen is shown as such, never as zero.
    let number = |key: &str, scale: f64, digits: usize, unit: &str| {
        record[key].as_f64().map_or_else(|| "-".to_owned(), |v| format!("{:.digits$}{unit}", v * scale))
    };
    let tokens = record["usage"]["output"].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
    let model = record["model"].as_str().unwrap_or("-");
    let model: String = model.chars().filter(|c| !c.is_control()).take(28).collect();
    let mut outcome = record["outcome"].as_str().unwrap_or("-").to_owned();
    if let Some(kind) = record["error_type"].as_str() {
        outcome = format!("{outcome} ({kind})");
    }
    format!(
        "{:>7}  {model:<28} {:>9} {:>10} {tokens:>7} {:>7} {:>7}  {outcome}",
        record["pid"],
        number("ttft_s", 1000.0, 1, " ms"),
        number("decode_tokens_per_s", 1.0, 1, ""),
        record["chunks"].as_array().map_or(0, Vec::len),
        number("duration_s", 1.0, 2, " s"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_shows_what_was_not_seen_as_a_dash() {
        let seen =
            row(&json!({"pid": 7, "model": "m", "ttft_s": 0.1234, "decode_tokens_per_s": 50.0, "usage": {"output": 9},
            "chunks": [[1, null, false]], "duration_s": 1.5, "outcome": "error", "error_type": "overloaded"}));
        assert!(
            seen.contains("123.4 ms") && seen.contains(" 50.0 ") && seen.ends_with("1.50 s  error (overloaded)"),
            "{seen}"
        );
        let unseen = row(&json!({"pid": 7, "ttft_s": null, "usage": null, "outcome": "incomplete"}));
        assert_eq!(unseen.split_whitespace().collect::<Vec<_>>(), ["7", "-", "-", "-", "-", "0", "-", "incomplete"]);
    }

    #[test]
    fn the_tail_gives_whole_lines_only_and_each_once() {
        let path = std::env::temp_dir().join(format!("xtask-tail-{}", std::process::id()));
        let mut tail = Tail::new(&path);
        assert!(tail.read().unwrap().is_empty());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"{\"a\":1}\n{\"a\"").unwrap();
        assert_eq!(tail.read().unwrap(), [json!({"a": 1})]);
        file.write_all(b":2}\n").unwrap();
        assert_eq!(tail.read().unwrap(), [json!({"a": 2})]);
        assert!(tail.read().unwrap().is_empty());
        std::fs::remove_file(&path).unwrap();
    }
}
