//! The dashboards of `deploy/grafana/dashboards`: what their panels ask for and where their links lead.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::promql;

/// Data sources that are provisioned, by uid.
const DATA_SOURCES: [&str; 2] = ["prometheus", "jaeger"];

/// One query of a panel.
#[derive(Debug, Clone)]
pub struct Query {
    /// `dashboard: panel`.
    pub place: String,
    /// PromQL with Grafana's variables.
    pub expr: String,
}

/// One dashboard.
#[derive(Debug)]
pub struct Dashboard {
    /// Where it is.
    pub path: PathBuf,
    json: Value,
}

/// All dashboards, by path.
pub fn all(root: &Path) -> Result<Vec<Dashboard>> {
    let dir = root.join("deploy/grafana/dashboards");
    let mut paths = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        paths.push(entry?.path());
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Dashboard { json: serde_json::from_str(&text).with_context(|| path.display().to_string())?, path })
    };
    paths.into_iter().map(read).collect()
}

impl Dashboard {
    fn title(&self) -> &str {
        self.json["title"].as_str().unwrap_or_default()
    }

    fn panels(&self) -> impl Iterator<Item = &Value> {
        self.json["panels"].as_array().into_iter().flatten()
    }

    /// Every query of every panel.
    #[must_use]
    pub fn queries(&self) -> Vec<Query> {
        let of_panel = |panel: &Value| {
            let place = format!("{}: {}", self.title(), panel["title"].as_str().unwrap_or_default());
            let targets = panel["targets"].as_array().cloned().unwrap_or_default();
            targets.into_iter().map(move |target| Query {
                place: place.clone(),
                expr: target["expr"].as_str().unwrap_or_default().to_owned(),
            })
        };
        self.panels().flat_map(of_panel).collect()
    }

    /// The query of a panel, the first by default.
    #[must_use]
    pub fn query(&self, panel: &str, number: usize) -> Option<String> {
        let panel = self.panels().find(|candidate| candidate["title"] == panel)?;
        Some(panel["targets"].as_array()?.get(number)?["expr"].as_str()?.to_owned())
    }

    /// Queries of the variables as PromQL: which values each label has.
    pub fn variables(&self) -> Result<Vec<Query>> {
        let mut found = Vec::new();
        for variable in self.json["templating"]["list"].as_array().into_iter().flatten() {
            let text = variable["query"]["query"].as_str().context("a variable has no query")?;
            let inside = text.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
            let (selector, label) = inside.and_then(|rest| rest.rsplit_once(", ")).context("not label_values(a, b)")?;
            ensure!(variable["name"] == label, "variable {} has the values of {label}", variable["name"]);
            let place = format!("{}: variable {label}", self.title());
            found.push(Query { place, expr: format!("group by ({label}) ({selector})") });
        }
        Ok(found)
    }

    /// What can be seen without Grafana: data sources that exist, places that do not overlap, legends and links that name labels
    /// which the query gives.
    pub fn check(&self) -> Result<()> {
        let mut ids = BTreeSet::new();
        let mut taken: BTreeMap<(u64, u64), String> = BTreeMap::new();
        for panel in self.panels() {
            let title = panel["title"].as_str().unwrap_or_default().to_owned();
            let place = format!("{} ({title})", self.title());
            ensure!(ids.insert(panel["id"].to_string()), "{place}: its id is not its own");
            let number = |key: &str| panel["gridPos"][key].as_u64().context("no gridPos");
            let (x, y, w, h) = (number("x")?, number("y")?, number("w")?, number("h")?);
            ensure!(x + w <= 24, "{place}: wider than the page");
            for cell in (y..y + h).flat_map(|row| (x..x + w).map(move |column| (row, column))) {
                if let Some(other) = taken.insert(cell, title.clone()) {
                    bail!("{place}: lies over {other}");
                }
            }
            if panel["type"] == "row" {
                continue;
            }
            for target in panel["targets"].as_array().into_iter().flatten() {
                let uid = target["datasource"]["uid"].as_str().unwrap_or_default();
                ensure!(uid == "prometheus", "{place}: data source {uid:?}");
                let given = promql::grouping(target["expr"].as_str().unwrap_or_default());
                for label in braced(target["legendFormat"].as_str().unwrap_or_default(), "{{", "}}") {
                    ensure!(given.contains(label), "{place}: the legend names {label}, the query gives {given:?}");
                }
                for link in panel["fieldConfig"]["defaults"]["links"].as_array().into_iter().flatten() {
                    link_leads_to_traces(link["url"].as_str().unwrap_or_default(), &given)
                        .with_context(|| format!("{place}: link"))?;
                }
            }
        }
        Ok(())
    }
}

/// A link to the traces in Grafana's Explore names a data source that exists, and labels that the query gives.
fn link_leads_to_traces(url: &str, given: &BTreeSet<String>) -> Result<()> {
    for variable in braced(url, "${", "}") {
        let known = match variable.rsplit_once('.') {
            Some(("__field.labels" | "__data.fields", label)) => given.contains(label),
            _ => ["__from", "__to"].contains(&variable),
        };
        ensure!(known, "{variable} has no value");
    }
    let panes = url.strip_prefix("/explore?schemaVersion=1&panes=").context("does not lead to Explore")?;
    let panes: Value = serde_json::from_str(panes).context("its panes are no JSON")?;
    for pane in panes.as_object().context("no panes")?.values() {
        let uid = pane["datasource"].as_str().unwrap_or_default();
        ensure!(uid == "jaeger" && DATA_SOURCES.contains(&uid), "data source {uid:?}");
        let query = &pane["queries"][0];
        ensure!(query["datasource"]["uid"] == uid && query["queryType"] == "search", "not a search in {uid}");
        ensure!(query["service"].as_str().is_some_and(|service| !service.is_empty()), "a search without a service");
        ensure!(pane["range"]["from"] == "${__from}" && pane["range"]["to"] == "${__to}", "not the dashboard's range");
    }
    Ok(())
}

/// What stands between an opening and a closing.
fn braced<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    text.split(open).skip(1).filter_map(|rest| Some(rest.split_once(close)?.0.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> BTreeSet<String> {
        BTreeSet::from(["service".to_owned()])
    }

    #[test]
    fn a_link_must_name_a_data_source_and_labels_that_exist() {
        let link = |source: &str, label: &str| {
            format!(
                "/explore?schemaVersion=1&panes={{\"t\":{{\"datasource\":\"{source}\",\"queries\":[{{\"datasource\":{{\"uid\":\"{source}\"}},\
                 \"queryType\":\"search\",\"service\":\"${{__field.labels.{label}}}\"}}],\"range\":{{\"from\":\"${{__from}}\",\"to\":\"${{__to}}\"}}}}}}"
            )
        };
        link_leads_to_traces(&link("jaeger", "service"), &given()).unwrap();
        for (source, label) in [("tempo", "service"), ("prometheus", "service"), ("jaeger", "model")] {
            assert!(link_leads_to_traces(&link(source, label), &given()).is_err(), "{source} {label}");
        }
        assert!(link_leads_to_traces("http://localhost:16686", &given()).is_err());
    }

    #[test]
    fn panels_that_overlap_and_legends_without_a_label_are_refused() {
        let board = |json: &str| Dashboard { path: PathBuf::new(), json: serde_json::from_str(json).unwrap() };
        let panel = |id: u32, x: u32, legend: &str| {
            format!(
                "{{\"id\":{id},\"gridPos\":{{\"x\":{x},\"y\":0,\"w\":4,\"h\":2}},\"targets\":[{{\"datasource\":{{\"uid\":\"prometheus\"}},\
                 \"expr\":\"sum by (model) (a)\",\"legendFormat\":\"{legend}\"}}]}}"
            )
        };
        let two = |a: String, b: String| board(&format!("{{\"panels\":[{a},{b}]}}")).check();
        two(panel(1, 0, "{{model}}"), panel(2, 4, "x")).unwrap();
        assert!(two(panel(1, 0, ""), panel(2, 3, "")).is_err(), "overlap");
        assert!(two(panel(1, 0, ""), panel(1, 4, "")).is_err(), "id");
        assert!(two(panel(1, 0, "{{service}}"), panel(2, 4, "")).is_err(), "legend");
    }
}
