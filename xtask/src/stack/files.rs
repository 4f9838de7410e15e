//! Reads every file below `deploy/` with what it is written for, without running the stack.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{checked, containers, dashboards, documents, need, need_prometheus, promql, shown};
use crate::{python, sh};

/// Labels that Prometheus itself adds.
const OF_PROMETHEUS: [&str; 3] = ["job", "instance", "le"];

/// Keys that Grafana reads in provisioned data sources and providers, as far as they are used; others it passes over in silence.
const PROVISIONED: [&[&str]; 2] = [
    &["name", "uid", "type", "access", "url", "isDefault", "editable", "jsonData"],
    &["name", "folder", "type", "disableDeletion", "allowUiUpdates", "updateIntervalSeconds", "options"],
];

/// Files that a check has read.
pub type Read = BTreeSet<PathBuf>;

/// What is checked by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `deploy/prometheus` by promtool.
    Prometheus,
    /// Metrics and labels in rules and dashboards.
    Names,
    /// Links of the alerts into `docs/runbook.md`.
    Runbook,
    /// `deploy/grafana` by Grafana's models.
    Grafana,
    /// `deploy/kubernetes` and `deploy/helm` by Helm and Kubernetes' schemas.
    Kubernetes,
    /// `deploy/systemd` by systemd.
    Systemd,
    /// `deploy/docker` by docker-compose, and the script with a stand-in for docker.
    Docker,
    /// Commands in the documents.
    Documents,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Prometheus,
        Self::Names,
        Self::Runbook,
        Self::Grafana,
        Self::Kubernetes,
        Self::Systemd,
        Self::Docker,
        Self::Documents,
    ];
}

/// Every check; an error names the first that fails, or the files that no check has read. `observer` is its executable, `dir` is
/// for scratch files and is emptied.
pub fn check(root: &Path, observer: &Path, dir: &Path) -> Result<()> {
    let mut read = Read::new();
    for part in Part::ALL {
        read.append(&mut check_part(part, root, observer, dir)?);
    }
    let unread: Vec<String> = below(&root.join("deploy"))?.difference(&read).map(|path| shown(root, path)).collect();
    ensure!(unread.is_empty(), "no check reads {unread:?}");
    Ok(())
}

/// One part, as in [`check`]; the files that it has read.
pub fn check_part(part: Part, root: &Path, observer: &Path, dir: &Path) -> Result<Read> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut read = Read::new();
    match part {
        Part::Prometheus => prometheus(root, &mut read).context("deploy/prometheus"),
        Part::Names => names(root).context("metrics"),
        Part::Runbook => runbook(root).context("docs/runbook.md"),
        Part::Grafana => grafana(root, &mut read).context("deploy/grafana"),
        Part::Kubernetes => kubernetes(root, observer, dir, &mut read).context("deploy/kubernetes and deploy/helm"),
        Part::Systemd => systemd(root, observer, dir, &mut read).context("deploy/systemd"),
        Part::Docker => containers::check(root, dir, &mut read).context("deploy/docker"),
        Part::Documents => {
            documents::check(root, observer, dir, &documented(root)?.into_keys().collect()).context("docs")
        }
    }?;
    Ok(read)
}

/// All files below a folder.
fn below(dir: &Path) -> Result<Read> {
    let mut found = Read::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.append(&mut below(&path)?);
        } else {
            found.insert(path);
        }
    }
    Ok(found)
}

/// A YAML file.
pub fn yaml(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| path.display().to_string())
}

/// promtool on the configuration and the rules, and the rules' own test cases.
fn prometheus(root: &Path, read: &mut Read) -> Result<()> {
    need_prometheus()?;
    let dir = root.join("deploy/prometheus");
    checked(Command::new("promtool").args(["check", "config"]).arg(dir.join("prometheus.yml")))?;
    let (rules, tests) = (below(&dir.join("rules"))?, below(&dir.join("tests"))?);
    checked(Command::new("promtool").args(["check", "rules"]).args(&rules))?;
    checked(Command::new("promtool").args(["test", "rules"]).args(&tests))?;
    let mut cases: BTreeMap<String, [bool; 2]> = BTreeMap::new();
    for test in &tests {
        for case in yaml(test)?["tests"].as_array().into_iter().flatten() {
            for expected in case["alert_rule_test"].as_array().into_iter().flatten() {
                let name = expected["alertname"].as_str().unwrap_or_default().to_owned();
                let fires = expected["exp_alerts"].as_array().is_some_and(|alerts| !alerts.is_empty());
                if let Some(seen) = cases.entry(name).or_default().get_mut(usize::from(fires)) {
                    *seen = true;
                }
            }
        }
    }
    for (alert, _) in alerts(root)? {
        let seen = cases.get(&alert);
        ensure!(seen == Some(&[true, true]), "{alert}: a case that fires and one that does not are wanted");
    }
    read.insert(dir.join("prometheus.yml"));
    read.extend(rules.into_iter().chain(tests));
    Ok(())
}

/// Every rule: name (alert or record) and the rule.
fn rules(root: &Path) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for path in below(&root.join("deploy/prometheus/rules"))? {
        let file = yaml(&path)?;
        for rule in
            file["groups"].as_array().into_iter().flatten().flat_map(|group| group["rules"].as_array()).flatten()
        {
            let name = rule["alert"].as_str().or_else(|| rule["record"].as_str()).context("a rule without a name")?;
            found.push((name.to_owned(), rule.clone()));
        }
    }
    Ok(found)
}

/// Every alert with its rule.
pub fn alerts(root: &Path) -> Result<Vec<(String, Value)>> {
    Ok(rules(root)?.into_iter().filter(|(_, rule)| rule["alert"].is_string()).collect())
}

/// Metrics with their labels, as docs/metrics.md lists them (a test of the observer holds it against the code).
fn documented(root: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let text = fs::read_to_string(root.join("docs/metrics.md")).context("cannot read docs/metrics.md")?;
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, kind, labels, ..] = cells[..] else { continue };
        if !["counter", "gauge", "histogram"].contains(&kind) || name.contains('.') {
            continue;
        }
        let name = name.trim_matches('`');
        let labels: BTreeSet<String> = labels
            .split(',')
            .map(|label| label.trim().trim_matches('`').to_owned())
            .filter(|l| !l.is_empty())
            .collect();
        let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        found.extend(suffixes.iter().map(|suffix| (format!("{name}{suffix}"), labels.clone())));
    }
    ensure!(found.len() > 30, "docs/metrics.md has no tables of metrics");
    Ok(found)
}

/// Dashboards and rules name only metrics and labels that exist, and every metric is on a dashboard.
fn names(root: &Path) -> Result<()> {
    let mut known = documented(root)?;
    let metrics: BTreeSet<String> = known.keys().cloned().collect();
    let every: BTreeSet<String> = known.values().flatten().cloned().chain(OF_PROMETHEUS.map(str::to_owned)).collect();
    let mut expressions: Vec<(String, String)> = Vec::new();
    for (name, rule) in rules(root)? {
        if rule["record"].is_string() {
            known.insert(name.clone(), BTreeSet::new());
        }
        expressions.push((name, rule["expr"].as_str().unwrap_or_default().to_owned()));
    }
    let mut shown = BTreeSet::new();
    for board in dashboards::all(root)? {
        for query in board.queries().into_iter().chain(board.variables()?) {
            shown.extend(promql::metrics(&query.expr));
            expressions.push((query.place, query.expr));
        }
    }
    for (place, expr) in &expressions {
        for metric in promql::metrics(expr) {
            ensure!(known.contains_key(&metric), "{place}: there is no metric {metric}");
        }
        for label in promql::labels(expr) {
            ensure!(every.contains(&label), "{place}: no metric has a label {label}");
        }
    }
    let base = |name: &str| {
        let suffix = ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| name.strip_suffix(suffix));
        suffix.filter(|base| metrics.contains(&format!("{base}_bucket"))).unwrap_or(name).to_owned()
    };
    let shown: BTreeSet<String> = shown.iter().map(|name| base(name)).collect();
    let hidden: BTreeSet<String> = metrics.iter().map(|name| base(name)).filter(|name| !shown.contains(name)).collect();
    ensure!(hidden.is_empty(), "no dashboard shows {hidden:?}");
    Ok(())
}

/// Every alert has a summary, and a runbook link to a paragraph that is there.
fn runbook(root: &Path) -> Result<()> {
    let text = fs::read_to_string(root.join("docs/runbook.md")).context("cannot read it")?;
    let mut paragraphs: BTreeMap<String, usize> = BTreeMap::new();
    for section in text.split("\n## ").skip(1) {
        let (title, body) = section.split_once('\n').unwrap_or((section, ""));
        paragraphs.insert(title.trim().to_lowercase().replace(' ', "-"), body.split_whitespace().count());
    }
    for (alert, rule) in alerts(root)? {
        ensure!(rule["labels"]["severity"].is_string(), "{alert}: no severity");
        let of = |key: &str| rule["annotations"][key].as_str().filter(|text| !text.is_empty());
        ensure!(of("summary").is_some() && of("description").is_some(), "{alert}: no summary or no description");
        let link = of("runbook_url").with_context(|| format!("{alert}: no runbook_url"))?;
        let (page, anchor) = link.rsplit_once('#').context("a runbook_url without an anchor")?;
        ensure!(page.ends_with("/docs/runbook.md"), "{alert}: {page} is not the runbook");
        let words = paragraphs.get(anchor).with_context(|| format!("{alert}: there is no section #{anchor}"))?;
        ensure!(*words >= 30, "{alert}: its section says nothing");
    }
    Ok(())
}

/// Grafana's own models read the dashboards; data sources and provider agree with them and with the compose file.
fn grafana(root: &Path, read: &mut Read) -> Result<()> {
    let boards = dashboards::all(root)?;
    ensure!(boards.len() >= 3, "dashboards are missing");
    for board in &boards {
        board.check()?;
    }
    checked(
        Command::new(python::stack()?)
            .arg(sh::fixture("stack/dashboards.py")?)
            .args(boards.iter().map(|board| &board.path)),
    )?;
    let dir = root.join("deploy/grafana/provisioning");
    let (sources, providers) = (dir.join("datasources/datasources.yaml"), dir.join("dashboards/dashboards.yaml"));
    let compose = yaml(&root.join("deploy/docker/docker-compose.yml"))?;
    for (path, list, known) in [(&sources, "datasources", PROVISIONED[0]), (&providers, "providers", PROVISIONED[1])] {
        let file = yaml(path)?;
        let top = file.as_object().into_iter().flatten().map(|(key, _)| key);
        let inner =
            file[list].as_array().into_iter().flatten().filter_map(Value::as_object).flatten().map(|(key, _)| key);
        let unknown: Vec<&String> = top
            .filter(|key| *key != "apiVersion" && *key != list)
            .chain(inner.filter(|key| !known.contains(&key.as_str())))
            .collect();
        ensure!(unknown.is_empty() && file["apiVersion"] == 1, "{}: {unknown:?} is not known", shown(root, path));
    }
    let mut uids = BTreeSet::new();
    for source in yaml(&sources)?["datasources"].as_array().into_iter().flatten() {
        let uid = source["uid"].as_str().context("a data source without a uid")?;
        ensure!(source["type"] == uid, "data source {uid} is of type {}", source["type"]);
        let host = source["url"].as_str().and_then(|url| url.strip_prefix("http://")).and_then(|u| u.split(':').next());
        let service = host.context("a data source without a URL")?;
        ensure!(compose["services"][service].is_object(), "data source {uid}: there is no service {service}");
        uids.insert(uid.to_owned());
    }
    ensure!(uids.contains("prometheus") && uids.contains("jaeger"), "data sources: {uids:?}");
    let provider = &yaml(&providers)?["providers"][0];
    let path = provider["options"]["path"].as_str().context("the provider has no path")?;
    let mounts = compose["services"]["grafana"]["volumes"].to_string();
    ensure!(provider["type"] == "file" && mounts.contains(&format!("dashboards:{path}:ro")), "{path} is not mounted");
    read.extend(boards.into_iter().map(|board| board.path).chain([sources, providers]));
    Ok(())
}

/// The chart rendered, all manifests against Kubernetes' schemas, and the observer on the configurations in them.
fn kubernetes(root: &Path, observer: &Path, dir: &Path, read: &mut Read) -> Result<()> {
    let (manifests, chart) = (below(&root.join("deploy/kubernetes"))?, root.join("deploy/helm/nexent-observer"));
    let configs = dir.join("configs");
    fs::create_dir_all(&configs).with_context(|| format!("cannot make {}", configs.display()))?;
    let mut command = Command::new(python::stack()?);
    command.arg(sh::fixture("stack/manifests.py")?).arg("--configs").arg(&configs).arg("--chart").arg(&chart);
    for manifest in &manifests {
        command.arg("--manifest").arg(manifest);
    }
    checked(&mut command)?;
    let written = below(&configs)?;
    ensure!(written.len() > manifests.len(), "no configuration was found");
    for config in written {
        observer_reads(observer, &config)?;
    }
    read.extend(manifests.into_iter().chain(below(&chart)?));
    Ok(())
}

/// Whether the observer takes a configuration.
fn observer_reads(observer: &Path, config: &Path) -> Result<()> {
    checked(Command::new(observer).arg("config").arg("--config").arg(config)).map(drop)
}

/// systemd's own check of the unit, and the observer's of its configuration.
fn systemd(root: &Path, observer: &Path, dir: &Path, read: &mut Read) -> Result<()> {
    need(&[("systemd-analyze", "systemd")], "the unit is checked with it")?;
    let (unit, config) = (root.join("deploy/systemd/nexent-observer.service"), root.join("deploy/systemd/config.yaml"));
    let text = fs::read_to_string(&unit).context("cannot read the unit")?;
    let here = text.replace("ExecStart=/usr/bin/nexent-observer ", &format!("ExecStart={} ", observer.display()));
    ensure!(here != text, "the unit does not start /usr/bin/nexent-observer");
    let copy = dir.join("nexent-observer.service");
    fs::write(&copy, here).context("cannot write a copy of the unit")?;
    let said = checked(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy))?;
    // It only warns of a key or a value that it does not know.
    if let Some(line) = said.lines().find(|line| line.contains("nexent-observer.service")) {
        bail!("systemd-analyze: {line}");
    }
    let bounded = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap_or_default();
    let bounded: BTreeSet<&str> = bounded.split(' ').filter_map(|name| name.strip_prefix("CAP_")).collect();
    ensure!(bounded == containers::CAPABILITIES.into(), "capabilities: {bounded:?}");
    observer_reads(observer, &config)?;
    read.extend([unit, config]);
    Ok(())
}
