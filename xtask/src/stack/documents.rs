//! The commands in the documents on monitoring: each is run, against stand-ins where it would start something, or held against the
//! files and ports that it names.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

use super::{checked, containers::DryRun, promql};

/// Documents whose commands people copy.
const DOCUMENTS: [&str; 2] = ["docs/monitoring.md", "docs/troubleshooting.md"];
/// Ports that something of the stack listens on, by default or in an example.
const PORTS: [&str; 5] = ["3005", "9090", "16686", "9464", "8000"];

/// A line of a code block, with the language that the block is in.
type Line = (String, String);

/// Every command of every document; `known` are the metrics that exist.
pub fn check(root: &Path, observer: &Path, dir: &Path, known: &BTreeSet<String>) -> Result<()> {
    let dry = DryRun::new(&root.join("deploy/docker/start-monitoring.sh"), dir)?;
    for name in DOCUMENTS {
        let text = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        let lines = code(&text);
        ensure!(!lines.is_empty(), "{name} has no commands");
        for (language, line) in lines {
            let done = match &*language {
                "bash" => command(root, observer, &dry, &line),
                "promql" => query(dir, &line, known),
                other => bail!("{name}: a block of {other:?}"),
            };
            done.with_context(|| format!("{name}: {line}"))?;
        }
    }
    Ok(())
}

/// Lines of fenced blocks.
fn code(text: &str) -> Vec<Line> {
    let mut inside: Option<String> = None;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        match (line.strip_prefix("```"), &inside) {
            (Some(_), Some(_)) => inside = None,
            (Some(language), None) => inside = Some(language.to_owned()),
            (None, Some(language)) if !line.is_empty() => found.push((language.clone(), line.to_owned())),
            (None, _) => {}
        }
    }
    found
}

fn command(root: &Path, observer: &Path, dry: &DryRun, line: &str) -> Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let count = words.iter().take_while(|word| word.contains('=') && !word.starts_with('-')).count();
    let (environment, words) = words.split_at(count);
    let environment: Vec<(&str, &str)> = environment.iter().filter_map(|word| word.split_once('=')).collect();
    let (&program, arguments) = words.split_first().context("no program")?;
    for path in words.iter().filter(|word| word.starts_with("deploy/") || word.starts_with("docs/")) {
        ensure!(root.join(path).exists(), "there is no {path}");
    }
    match program {
        "deploy/docker/start-monitoring.sh" => {
            let ran = dry.run(arguments, &environment)?;
            ensure!(ran.code == Some(0) && !ran.asked.is_empty(), "it ended with {:?}: {}", ran.code, ran.said);
        }
        "promtool" => drop(checked(Command::new(program).args(arguments).current_dir(root))?),
        "nexent-observer" => {
            // The same flags, without observing.
            let flags = arguments.get(1..).unwrap_or_default();
            ensure!(["run", "config"].contains(arguments.first().context("no command")?), "an unknown command");
            checked(Command::new(observer).arg("config").args(flags)).map(drop)?;
        }
        "curl" => {
            let url =
                arguments.first().and_then(|url| url.strip_prefix("http://localhost:")).context("not on localhost")?;
            let (port, path) = url.split_once('/').unwrap_or((url, ""));
            ensure!(PORTS.contains(&port) && ["metrics", "healthz", "readyz"].contains(&path), "nothing answers there");
        }
        "lsof" => {
            let ports = arguments.iter().filter_map(|word| word.strip_prefix(':'));
            ensure!(ports.clone().count() > 0 && ports.clone().all(|port| PORTS.contains(&port)), "other ports");
        }
        // These need a cluster; the chart, the manifest and every path in them are checked.
        "helm" => ensure!(arguments.contains(&"deploy/helm/nexent-observer"), "another chart"),
        "kubectl" => ensure!(arguments.contains(&"deploy/kubernetes/daemonset.yaml"), "another manifest"),
        "readlink" => ensure!(arguments == ["-f", "/proc/4242/exe"], "another file"),
        other => bail!("nobody checks {other}"),
    }
    Ok(())
}

/// An expression is PromQL (as a rule that promtool reads) and names metrics that exist.
fn query(dir: &Path, expr: &str, known: &BTreeSet<String>) -> Result<()> {
    let metrics = promql::metrics(expr);
    ensure!(!metrics.is_empty() && metrics.iter().all(|metric| known.contains(metric)), "metrics: {metrics:?}");
    let rule = serde_json::json!({"groups": [{"name": "document", "rules": [{"record": "a:b", "expr": expr}]}]});
    let path = dir.join("document.yml");
    fs::write(&path, rule.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    checked(Command::new("promtool").args(["check", "rules"]).arg(path)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn code_is_what_stands_between_fences() {
        let text = "a\n```bash\none\n\n  two\n```\nb `c`\n   ```promql\n   three\n   ```\n";
        let line = |language: &str, line: &str| (language.to_owned(), line.to_owned());
        assert_eq!(code(text), [line("bash", "one"), line("bash", "two"), line("promql", "three")]);
    }
}
