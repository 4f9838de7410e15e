//! The monitoring stack: everything below `deploy/` is valid, a mistake in it is found, and dashboards and alerts tell what happened.
//! Needs root, eBPF and `cargo xtask build`.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use xtask::{
    python, sh,
    stack::{
        files::{self, Part},
        image, live,
        traces::{self, Backend},
    },
};

fn observer() -> PathBuf {
    let binary = sh::target_dir(&sh::root().unwrap()).join("release/nexent-observer");
    assert!(binary.exists(), "{} is missing: cargo xtask build", binary.display());
    binary
}

fn scratch(name: &str) -> PathBuf {
    sh::target_dir(&sh::root().unwrap()).join("stack-tests").join(name)
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Who finds it, file, what stands in it, what is put there, what the error has to name.
const MISTAKES: &[(Part, [&str; 4])] = &[
    (Part::Prometheus, ["deploy/prometheus/prometheus.yml", "scrape_configs:", "scrape_config:", "promtool"]),
    (
        Part::Docker,
        ["deploy/prometheus/prometheus.yml", "nexent-observer:9464", "observer:9464", "no service observer"],
    ),
    (Part::Prometheus, ["deploy/prometheus/rules/llm-alerts.yml", "> 0.1", "> 0.5", "promtool"]),
    (
        Part::Prometheus,
        [
            "deploy/prometheus/rules/llm-recording.yml",
            "llm_error_count unless llm_error_count",
            "llm_error_count_total unless llm_error_count_total",
            "promtool",
        ],
    ),
    (
        Part::Prometheus,
        [
            "deploy/prometheus/rules/observer-alerts.yml",
            "runbook.md#nexentobserverdown",
            "runbook.md#nowhere",
            "promtool",
        ],
    ),
    (Part::Runbook, ["docs/runbook.md", "## LLMRateLimited", "## Limits", "#llmratelimited"]),
    (
        Part::Names,
        ["deploy/grafana/dashboards/llm-performance.json", "llm_stream_stalls{", "llm_stalls{", "no metric llm_stalls"],
    ),
    (
        Part::Names,
        [
            "deploy/grafana/dashboards/llm-performance.json",
            "sum by (type) (rate",
            "sum by (kind) (rate",
            "no metric has a label kind",
        ],
    ),
    (
        Part::Grafana,
        [
            "deploy/grafana/dashboards/llm-performance.json",
            "\"reduceOptions\"",
            "\"reduceOption\"",
            "reduceOption is unknown",
        ],
    ),
    (
        Part::Grafana,
        [
            "deploy/grafana/dashboards/llm-performance.json",
            "\"queryType\\\":\\\"search\\\",\\\"service\\\":\\\"${__field.labels.service}",
            "\"queryType\\\":\\\"search\\\",\\\"service\\\":\\\"${__field.labels.host}",
            "host has no value",
        ],
    ),
    (
        Part::Names,
        [
            "deploy/grafana/dashboards/observer-health.json",
            "nexent_observer_gaps_total",
            "nexent_observer_lost_bytes_total",
            "no dashboard shows",
        ],
    ),
    (
        Part::Grafana,
        [
            "deploy/grafana/provisioning/datasources/datasources.yaml",
            "uid: jaeger",
            "uid: traces",
            "data source traces",
        ],
    ),
    (
        Part::Grafana,
        [
            "deploy/grafana/provisioning/dashboards/dashboards.yaml",
            "/var/lib/grafana/dashboards",
            "/dashboards",
            "is not mounted",
        ],
    ),
    (Part::Grafana, ["deploy/grafana/provisioning/datasources/datasources.yaml", "isDefault:", "default:", "default"]),
    (Part::Kubernetes, ["deploy/kubernetes/daemonset.yaml", "hostPID: true", "hostPid: true", "hostPid"]),
    (Part::Kubernetes, ["deploy/kubernetes/daemonset.yaml", "path: /readyz", "path: /ready", "readinessProbe"]),
    (
        Part::Kubernetes,
        ["deploy/kubernetes/daemonset.yaml", "listen: 0.0.0.0:9464", "listen: 0.0.0.0:9000", "listens on"],
    ),
    (Part::Kubernetes, ["deploy/kubernetes/daemonset.yaml", "log_format: json", "log_form: json", "log_form"]),
    (
        Part::Kubernetes,
        [
            "deploy/helm/nexent-observer/templates/daemonset.yaml",
            "toYaml .Values.resources",
            "toYaml .Values.resource.none",
            "daemonset",
        ],
    ),
    (Part::Kubernetes, ["deploy/helm/nexent-observer/values.yaml", "DAC_READ_SEARCH]", "SYS_MODULE]", "capabilities"]),
    (Part::Systemd, ["deploy/systemd/nexent-observer.service", "RestartSec=5", "RestartSeconds=5", "systemd-analyze"]),
    (Part::Systemd, ["deploy/systemd/config.yaml", "listen:", "listens:", "listens"]),
    (
        Part::Docker,
        ["deploy/docker/docker-compose.yml", "grafana/grafana:12.2.0", "grafana/grafana:latest", "not pinned"],
    ),
    (Part::Docker, ["deploy/docker/docker-compose.yml", "read_only: true", "readonly: true", "read-only"]),
    (
        Part::Docker,
        [
            "deploy/docker/docker-compose.yml",
            "restart: unless-stopped\n    # Probes",
            "restarts: never\n    # Probes",
            "docker-compose",
        ],
    ),
    (Part::Docker, ["deploy/docker/docker-compose.yml", "../prometheus/rules:", "../prometheus/rule:", "is not there"]),
    (Part::Docker, ["deploy/docker/docker-compose.yml", "127.0.0.1:3005", "0.0.0.0:3005", "open to all"]),
    (Part::Docker, ["deploy/docker/Dockerfile", "rust:1.95.0-slim-bookworm", "rust:slim", "not pinned"]),
    (Part::Docker, ["deploy/docker/Dockerfile", "COPY LICENSE-APACHE", "COPY LICENCE", "LICENCE is not there"]),
    (Part::Docker, ["deploy/docker/Dockerfile.dockerignore", "!nexent-observer-core\n", "", "nexent-observer-core"]),
    (Part::Docker, ["deploy/docker/start-monitoring.sh", "/proc/1/root$2", "$2", "start-monitoring.sh"]),
    (
        Part::Docker,
        ["deploy/docker/start-monitoring.sh", "${project}_grafana-data", "docker_grafana_data", "start-monitoring.sh"],
    ),
    (
        Part::Documents,
        [
            "docs/troubleshooting.md",
            "start-monitoring.sh clean grafana",
            "start-monitoring.sh clean everything",
            "clean everything",
        ],
    ),
    (
        Part::Documents,
        [
            "docs/troubleshooting.md",
            "rate(llm_error_count[5m])",
            "rate(llm_error_count_total[5m])",
            "llm_error_count_total",
        ],
    ),
    (Part::Documents, ["docs/monitoring.md", "--jaeger-endpoint http", "--jaeger http", "--jaeger"]),
];

#[test]
fn every_file_below_deploy_is_read_and_a_mistake_in_it_is_found() {
    let (root, observer) = (sh::root().unwrap(), observer());
    let dir = scratch("files");
    let copied = scratch("copy");
    if copied.exists() {
        fs::remove_dir_all(&copied).unwrap();
    }
    for folder in ["deploy", "docs"] {
        copy(&root.join(folder), &copied.join(folder));
    }
    for entry in fs::read_dir(&root).unwrap().map(Result::unwrap) {
        let link = copied.join(entry.file_name());
        if !link.exists() && entry.file_name() != "target" {
            symlink(entry.path(), link).unwrap();
        }
    }
    files::check(&copied, &observer, &dir).unwrap_or_else(|error| panic!("{error:#}"));
    for (part, [file, from, to, named]) in MISTAKES {
        let path = copied.join(file);
        let right = fs::read_to_string(&path).unwrap();
        assert!(right.contains(from), "{file} does not have {from}");
        fs::write(&path, right.replace(from, to)).unwrap();
        let found = files::check_part(*part, &copied, &observer, &dir);
        let error = format!("{:#}", found.expect_err(&format!("{file}: {to} is not found")));
        assert!(error.contains(named), "{file}: {to} is found as {error}");
        fs::write(&path, right).unwrap();
    }
    fs::write(copied.join("deploy/docker/more.yml"), "").unwrap();
    let error = files::check(&copied, &observer, &dir).expect_err("a file that nothing reads is not found");
    assert!(error.to_string().contains("deploy/docker/more.yml"), "{error:#}");
}

#[test]
fn dashboards_and_alerts_tell_what_the_clients_read() {
    let python = python::clients().unwrap();
    let report = live::run(&sh::root().unwrap(), &observer(), &python, &scratch("live"));
    report.unwrap_or_else(|error| panic!("{error:#}"));
}

/// What stands in the spans that came back, what is put there, what the error has to name.
const FALSE_SPANS: &[[&str; 3]] = &[
    [
        "\"parent_span_id\": null",
        "\"parent_span_id\": \"00f067aa0ba902b7\"",
        "its parent is 00f067aa0ba902b7, not None",
    ],
    ["\"service.name\": \"shop\"", "\"service.name\": \"search\"", "its resource is"],
    [
        "\"gen_ai.request.model\": \"sim-tool\"",
        "\"gen_ai.request.model\": \"sim-plain\"",
        "gen_ai.request.model is 'sim-plain'",
    ],
    ["\"nexent.stall\"", "\"nexent.pause\"", "it has 0 stalls"],
    ["\"status\": \"ERROR\"", "\"status\": \"UNSET\"", "its status is UNSET"],
    [
        "\"name\": \"gen_ai.client.token.usage\"",
        "\"name\": \"gen_ai.client.tokens\"",
        "the metrics have 0 input tokens",
    ],
];

#[test]
fn a_collector_receives_spans_and_metrics_that_say_what_the_clients_did() {
    let (root, dir) = (sh::root().unwrap(), scratch("rotel"));
    let python = python::clients().unwrap();
    traces::run(&root, &observer(), &python, &dir, Backend::Rotel).unwrap_or_else(|error| panic!("{error:#}"));
    let spans = fs::read_to_string(dir.join("spans.jsonl")).unwrap();
    let altered = dir.join("altered.jsonl");
    for [from, to, named] in FALSE_SPANS {
        assert!(spans.contains(from), "no span has {from}");
        fs::write(&altered, spans.replace(from, to)).unwrap();
        let error = traces::compare(&dir, Backend::Rotel, &altered).expect_err(&format!("{to} is not found"));
        assert!(format!("{error:#}").contains(named), "{to} is found as {error:#}");
    }
    // Spans without their end are too few.
    let lines: Vec<&str> = spans.lines().filter(|line| line.contains("\"t\": \"span\"")).skip(1).collect();
    fs::write(&altered, lines.join("\n")).unwrap();
    assert!(traces::compare(&dir, Backend::Rotel, &altered).is_err(), "a span that is missing is not found");
}

#[test]
fn the_image_runs_confined_and_observes_a_container_and_the_host() {
    let store = scratch("containers");
    assert_eq!(image::unavailable(&store).unwrap(), None, "no containers can be run here");
    let python = python::clients().unwrap();
    let seen = image::run(&sh::root().unwrap(), &observer(), &python, &scratch("image"), &store);
    seen.unwrap_or_else(|error| panic!("{error:#}"));
}
