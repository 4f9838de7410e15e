//! Holds docs/metrics.md to the code: blocks between markers are compared with what the tables say.

use std::{fmt::Write, path::PathBuf};

use nexent_observer_core::stats::DropReason;

use super::{Kind, Metric};

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md")
}

pub(crate) fn text() -> String {
    std::fs::read_to_string(path()).unwrap()
}

/// Compares the block `name` of docs/metrics.md with `want`; with `UPDATE_GOLDEN=1` writes it there instead.
pub(crate) fn check(name: &str, want: &str) {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let text = text();
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("docs/metrics.md lacks {begin}"));
    let (block, after) = rest.split_once(&end).unwrap_or_else(|| panic!("docs/metrics.md lacks {end}"));
    // The head of a table, its first two lines, belongs to the document.
    let is_table = block.starts_with('|');
    let split = if is_table { block.match_indices('\n').nth(1).map_or(block.len(), |(at, _)| at + 1) } else { 0 };
    let (head, rows) = block.split_at(split);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path(), format!("{before}{begin}{head}{want}{end}{after}")).unwrap();
        return;
    }
    assert_eq!(rows, want, "docs/metrics.md, block {name}, differs from the code; UPDATE_GOLDEN=1 rewrites it");
}

#[test]
fn the_document_lists_every_metric_with_type_labels_and_help() {
    for (block, own) in [("llm metrics", false), ("own metrics", true)] {
        let rows = Metric::ALL.iter().map(|metric| metric.def()).filter(|def| def.name.starts_with("nexent_") == own);
        let rows = rows.fold(String::new(), |mut rows, def| {
            let labels: Vec<_> = def.labels.iter().map(|label| format!("`{label}`")).collect();
            writeln!(rows, "| `{}` | {} | {} | {} |", def.name, def.kind.as_str(), labels.join(", "), def.help)
                .unwrap();
            rows
        });
        check(block, &rows);
    }
    let buckets = Metric::ALL.iter().map(|metric| metric.def()).filter(|def| def.kind == Kind::Histogram);
    let rows = buckets.fold(String::new(), |mut rows, def| {
        let bounds: Vec<_> = def.buckets.iter().map(ToString::to_string).collect();
        writeln!(rows, "| `{}` | {} |", def.name, bounds.join(", ")).unwrap();
        rows
    });
    check("buckets", &rows);
    let reasons: Vec<_> = DropReason::ALL.iter().map(|reason| format!("`{}`", reason.as_str())).collect();
    check("drop reasons", &format!("{}.\n", reasons.join(", ")));
}
