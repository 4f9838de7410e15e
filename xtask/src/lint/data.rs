//! Rules `yaml` and `json`: what is meant to be read by other programs can be read.

use anyhow::Result;

use super::{
    report::{Outcome, Problem},
    tree::Tree,
};

/// Rule `yaml`. Templates of Helm charts are no YAML before they are rendered.
pub(super) fn yaml(tree: &Tree) -> Result<Outcome> {
    let files = tree.with_extension(&["yaml", "yml"]).filter(|(path, _)| !path.contains("/templates/"));
    Ok(Outcome::Checked(files.filter_map(|(path, text)| bad_yaml(path, text)).collect()))
}

fn bad_yaml(path: &str, text: &str) -> Option<Problem> {
    let error = serde_saphyr::from_multiple::<serde_json::Value>(text).err()?;
    Some(unreadable(path, "YAML", &error.to_string()))
}

/// Rule `json`.
pub(super) fn json(tree: &Tree) -> Result<Outcome> {
    Ok(Outcome::Checked(tree.with_extension(&["json"]).filter_map(|(path, text)| bad_json(path, text)).collect()))
}

fn bad_json(path: &str, text: &str) -> Option<Problem> {
    let error = serde_json::from_str::<serde::de::IgnoredAny>(text).err()?;
    Some(unreadable(path, "JSON", &error.to_string()))
}

fn unreadable(path: &str, format: &str, error: &str) -> Problem {
    let first = error.lines().next().unwrap_or_default();
    Problem::new(path, format!("is no {format}: {first}"), "mend it")
}

#[cfg(test)]
mod tests {
    use super::{bad_json, bad_yaml};

    #[test]
    fn yaml_with_several_documents_passes() {
        assert_eq!(bad_yaml("a.yaml", "# nothing\n"), None);
        assert_eq!(
            bad_yaml("a.yaml", "a: 1\nb: [x, {y: z}]\n---\n- on: push\n- 'k': |\n    text\n- 1: {true: null}\n"),
            None
        );
    }

    #[test]
    fn broken_yaml_and_a_key_given_twice_are_refused() {
        for text in ["a: [1", "a: 1\n  b: 2\n", "a: 1\na: 2\n", "a: 1\n---\nb: {", "a:\n\tb: 1"] {
            assert!(bad_yaml("a.yaml", text).is_some(), "{text:?}");
        }
    }

    #[test]
    fn broken_json_is_refused() {
        assert_eq!(bad_json("a.json", "{\"a\": [1]}\n"), None);
        assert!(bad_json("a.json", "{\"a\": [1,]}").is_some());
        assert!(bad_json("a.json", "").is_some());
    }
}
