//! Rule `links`: a relative link in a Markdown file leads to a file or folder of the checkout.

use anyhow::Result;

use super::{
    report::{Outcome, Problem},
    tree::Tree,
};

/// The rule over the checkout.
pub(super) fn rule(tree: &Tree) -> Result<Outcome> {
    let check = |(path, text)| broken(path, text, |target| tree.exists(target));
    Ok(Outcome::Checked(tree.with_extension(&["md"]).flat_map(check).collect()))
}

/// Links of one file that lead nowhere.
fn broken(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Problem> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let breach = |(line, link): (usize, String)| {
        let place = format!("{path}:{line}");
        match resolved(folder, &link) {
            Some(target) if exists(&target) => None,
            Some(target) => {
                Some(Problem::new(place, format!("links to {link}, but there is no {target}"), "mend the link"))
            }
            None => {
                Some(Problem::new(place, format!("links to {link}, outside of the checkout"), "link to what is in it"))
            }
        }
    };
    relative_links(text).into_iter().filter_map(breach).collect()
}

/// Relative link targets with their lines, without fragments. Code is skipped.
fn relative_links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_fence = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_fence = !in_fence;
        }
        if in_fence {
            continue;
        }
        let line = without_code(line);
        let inline = line.match_indices("](").filter_map(|(at, open)| line.get(at + open.len()..)?.split(')').next());
        // `[name]: target`
        let definition = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target);
        for link in inline.chain(definition) {
            let bare = link.split_whitespace().next().unwrap_or_default().trim_matches(['<', '>']);
            let file = bare.split('#').next().unwrap_or_default();
            let has_scheme = bare.split(['/', '#']).next().is_some_and(|start| start.contains(':'));
            if !file.is_empty() && !has_scheme {
                found.push((number, file.to_owned()));
            }
        }
    }
    found
}

/// The line with inline code taken out: every second part between backquotes.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// Where a link leads, relative to the root; `None` when out of the checkout.
fn resolved(folder: &str, link: &str) -> Option<String> {
    let from = if link.starts_with('/') { "" } else { folder };
    let mut parts: Vec<&str> = Vec::new();
    for part in from.split('/').chain(link.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::broken;

    fn in_docs(text: &str) -> Vec<String> {
        let there = ["README.md", "docs/metrics.md", "docs", "a b.md"];
        broken("docs/config.md", text, |path| there.contains(&path)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_link_to_nothing_is_found_with_its_line() {
        let found = in_docs("# Title\n\nSee [this](../gone.md) and [that](metrics.md).\n[x]: nowhere.md\n");
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("docs/config.md:3: links to ../gone.md, but there is no gone.md"), "{found:?}");
        assert!(found[1].starts_with("docs/config.md:4: "), "{found:?}");
    }

    #[test]
    fn good_links_web_links_fragments_and_code_pass() {
        let text = "[a](metrics.md#names) [b](../README.md \"title\") [c](https://example.org/x) [d](#here) [e](/docs/)\n\
                    `[f](gone.md)` [g](mailto:a@example.org)\n```\n[h](gone.md)\n```\n[i]: https://example.org\n";
        assert_eq!(in_docs(text), Vec::<String>::new());
    }

    #[test]
    fn a_link_out_of_the_checkout_is_refused() {
        assert!(in_docs("[a](../../secret.md)")[0].contains("outside of the checkout"));
    }
}
