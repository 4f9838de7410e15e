//! As much of PromQL as is needed to say which metrics and labels an expression names. Whether it is PromQL is Prometheus' to say.

use std::collections::BTreeSet;

/// Names of our metrics and of recorded series in an expression.
#[must_use]
pub fn metrics(expr: &str) -> BTreeSet<String> {
    let ours = |word: &&str| ["llm_", "llm:", "nexent_observer_"].iter().any(|start| word.starts_with(start));
    words(expr).into_iter().filter(ours).map(str::to_owned).collect()
}

/// Labels that every result of an aggregation carries: those named by its first, outermost `by (...)`.
#[must_use]
pub fn grouping(expr: &str) -> BTreeSet<String> {
    let list = expr.split_once(" by (").and_then(|(_, rest)| rest.split_once(')')).map_or("", |(list, _)| list);
    list.split(',').map(str::trim).filter(|label| !label.is_empty()).map(str::to_owned).collect()
}

/// Labels named in matchers and groupings.
#[must_use]
pub fn labels(expr: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for part in expr.split('{').skip(1) {
        let matchers = part.split('}').next().unwrap_or_default();
        let names = without_strings(matchers);
        found.extend(names.split(',').filter_map(|m| Some(m.split(['=', '!']).next()?.trim().to_owned())));
    }
    for opening in ["by (", "on ("] {
        for part in expr.split(opening).skip(1) {
            let list = part.split(')').next().unwrap_or_default();
            found.extend(list.split(',').map(|label| label.trim().to_owned()));
        }
    }
    found.retain(|label| !label.is_empty());
    found
}

/// An expression with Grafana's variables filled in: every value of a filter, and the two windows.
#[must_use]
pub fn filled(expr: &str, rate_interval: &str, range: &str) -> String {
    let mut text = expr.replace("$__rate_interval", rate_interval).replace("$__range", range);
    for name in ["service", "provider", "model", "endpoint", "instance"] {
        text = text.replace(&format!("\"${name}\""), "\".*\"");
    }
    text
}

/// Words outside of strings.
fn words(expr: &str) -> Vec<&str> {
    let quoted = |(at, part)| (at % 2 == 0).then_some(part);
    let outside = expr.split('"').enumerate().filter_map(quoted);
    outside.flat_map(|part: &str| part.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))).collect()
}

fn without_strings(text: &str) -> String {
    text.split('"').step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    const EXPR: &str =
        "sum by (service, le) (rate(llm_a_bucket{model=~\"llm_x, y=z\",le!=\"1\"}[5m])) / on (job) llm:b:increase5m";

    #[test]
    fn metrics_are_found_outside_of_strings() {
        assert_eq!(metrics(EXPR), set(&["llm_a_bucket", "llm:b:increase5m"]));
    }

    #[test]
    fn labels_are_those_of_matchers_and_groupings() {
        assert_eq!(labels(EXPR), set(&["service", "le", "model", "job"]));
        assert_eq!(grouping(EXPR), set(&["service", "le"]));
        assert_eq!(grouping("sum (up)"), set(&[]));
    }

    #[test]
    fn variables_are_filled_in() {
        assert_eq!(filled("a{model=~\"$model\"}[$__range]", "5s", "60s"), "a{model=~\".*\"}[60s]");
    }
}
