//! The commands in the documents on monitoring: each is run, against stand-ins where it would start something, or held against the
//! files and ports that it names. What `curl` asks is answered by a real observer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::{checked, containers::DryRun, need, promql, script};

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

/// Runs the documents' `curl` lines as they stand there, against an observer on the port that each names: its own, or the one that
/// `PROMETHEUS_PORT` gives it. In a network namespace of its own, where every port is free. Needs root and eBPF.
pub fn addresses(root: &Path, observer: &Path, dir: &Path) -> Result<String> {
    need(&[("curl", "curl"), ("unshare", "util-linux")], "the documents' commands are run")?;
    let mut by_port: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for name in DOCUMENTS {
        let text = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        for (_, line) in code(&text).into_iter().filter(|(_, line)| line.starts_with("curl http://localhost:")) {
            let port = line.split(['/', ':']).find(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
            by_port.entry(port.context("no port")?.to_owned()).or_default().insert(line);
        }
    }
    ensure!(by_port.contains_key("8000") && by_port.contains_key("9464"), "the documents ask {:?}", by_port.keys());
    let mut asked = 0;
    for (port, lines) in by_port {
        let variable = if port == "9464" { String::new() } else { format!("PROMETHEUS_PORT={port} ") };
        let mut text = format!(
            "set -eu\n{LOOPBACK_UP}\n{variable}'{}' run --exe /bin/sh 2>observer-{port}.stderr &\nobserver=$!\n\
             trap 'kill $observer' EXIT\n\
             for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do curl -s -o answer-{port} http://localhost:{port}/healthz && break; sleep 1; done\n",
            observer.display()
        );
        for line in &lines {
            // Shown, so that an answer of the wrong kind is seen.
            text += &format!("{line} --silent --show-error >answer-{port}\ntest -s answer-{port}\n");
            if line.ends_with("/metrics") {
                text += &format!("grep -q '^nexent_observer_attached_processes ' answer-{port}\n");
            }
        }
        let path = script(dir, &format!("curl-{port}.sh"), &text)?;
        checked(Command::new("unshare").arg("--net").arg(path).current_dir(dir))?;
        asked += lines.len();
    }
    Ok(format!(
        "{asked} curl commands of the documents were answered, those with port 8000 because of PROMETHEUS_PORT=8000"
    ))
}

/// Brings up the loopback device of a new network namespace: SIOCSIFFLAGS with IFF_UP.
const LOOPBACK_UP: &str = "python3 -c 'import fcntl, socket, struct; \
     fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, struct.pack(\"16sh\", b\"lo\", 1))'";

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
            let words: Vec<&str> = arguments.iter().copied().take_while(|word| *word != "#").collect();
            let (name, flags) = words.split_first().context("no command")?;
            // The same flags, without observing: they are parsed up to the last one, which says that nothing is to be done.
            match *name {
                "run" | "config" => checked(Command::new(observer).arg("config").args(flags)).map(drop)?,
                other => checked(Command::new(observer).arg(other).args(flags).arg("--help")).map(drop)?,
            }
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
