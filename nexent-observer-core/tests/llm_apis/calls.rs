//! The table of fixtures, `tests/fixtures/llm/calls.json`: which call each answers. Fed in every cut, damaged, read by the
//! official SDKs: all of it goes by this table.

use serde_json::Value;

use super::{
    Ask, fixture,
    llm_support::{Fields, JSON, SSE},
};

pub(crate) const LINES: Fields<'_> = &[("content-type", b"application/x-ndjson")];
pub(crate) const EVENTS: Fields<'_> = &[("content-type", b"application/vnd.amazon.eventstream")];

/// One row.
pub(crate) struct Call {
    pub(crate) fixture: String,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

/// All rows.
pub(crate) fn all() -> Vec<Call> {
    let table: Vec<Value> = serde_json::from_slice(&fixture("calls.json")).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let row = |row: &Value| Call {
        fixture: text(&row["fixture"]),
        host: text(&row["host"]),
        path: text(&row["path"]),
        status: row["status"].as_u64().map_or(200, |status| status as u16),
        headers: row["headers"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.clone(), text(value)))
            .collect(),
        body: if row["body"].is_null() {
            r#"{"model":"m","messages":[],"input":"x"}"#.to_owned()
        } else {
            row["body"].to_string()
        },
    };
    table.iter().map(row).collect()
}

impl Call {
    /// Header fields of the answer.
    pub(crate) fn kind(&self) -> Fields<'static> {
        match self.fixture.rsplit_once('.').unwrap().1 {
            "sse" => SSE,
            "ndjson" => LINES,
            "events" => EVENTS,
            _ => JSON,
        }
    }

    /// Its call, handed to `with`.
    pub(crate) fn ask<T>(&self, with: impl FnOnce(Ask<'_>) -> T) -> T {
        let headers: Vec<(&str, &[u8])> = self.headers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
        with(Ask { path: &self.path, host: &self.host, headers: &headers, body: self.body.as_bytes() })
    }
}

/// Every file of the folder but the table itself has a row, and a row a file.
#[test]
fn every_fixture_is_in_the_table() {
    let root = std::path::PathBuf::from(format!("{}/tests/fixtures/llm", env!("CARGO_MANIFEST_DIR")));
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path.strip_prefix(&root).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    files.retain(|file| file != "calls.json" && file != ".gitattributes");
    files.sort_unstable();
    let mut rows: Vec<String> = all().into_iter().map(|call| call.fixture).collect();
    rows.sort_unstable();
    assert_eq!(files, rows);
}
