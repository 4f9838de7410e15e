//! The image, the compose file and the script that drives it. There is no Docker daemon: the compose file is resolved by
//! docker-compose, the script runs against a docker that only notes what it was asked.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    checked,
    files::{Read, yaml},
    need,
};

/// What the observer may do, wherever it is deployed.
pub const CAPABILITIES: [&str; 3] = ["SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"];
/// Ports that the guide promises, on loopback, by service.
const PORTS: [(&str, &str); 4] = [
    ("grafana", "127.0.0.1:3005:3000"),
    ("jaeger", "127.0.0.1:16686:16686"),
    ("prometheus", "127.0.0.1:9090:9090"),
    ("nexent-observer", "127.0.0.1:${PROMETHEUS_PORT:-9464}:9464"),
];

/// Everything in `deploy/docker`; scratch files go to `dir`.
pub fn check(root: &Path, dir: &Path, read: &mut Read) -> Result<()> {
    let here = root.join("deploy/docker");
    let compose = here.join("docker-compose.yml");
    compose_file(root, &compose).context("docker-compose.yml")?;
    let image = here.join("Dockerfile");
    dockerfile(root, &image).context("Dockerfile")?;
    let script = here.join("start-monitoring.sh");
    start_script(&script, &yaml(&compose)?, dir).context("start-monitoring.sh")?;
    read.extend([compose, image, here.join("Dockerfile.dockerignore"), script]);
    Ok(())
}

/// Structure, pins, ports and mounts; then docker-compose's own schema.
fn compose_file(root: &Path, path: &Path) -> Result<()> {
    let file = yaml(path)?;
    let services = file["services"].as_object().context("no services")?;
    for (name, service) in services {
        let image = service["image"].as_str().with_context(|| format!("{name}: no image"))?;
        ensure!(is_pinned(image), "{name}: {image} is not pinned");
        for port in service["ports"].as_array().into_iter().flatten() {
            ensure!(port.as_str().is_some_and(|port| port.starts_with("127.0.0.1:")), "{name}: {port} is open to all");
        }
        for volume in service["volumes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let source = volume.split(':').next().unwrap_or_default();
            let there = if source.starts_with('.') {
                ensure!(volume.ends_with(":ro"), "{name}: {source} could be written to");
                path.with_file_name(source).exists()
            } else {
                file["volumes"].get(source).is_some()
            };
            ensure!(there, "{name}: {source} is not there");
        }
    }
    for (service, port) in PORTS {
        let ports =
            services.get(service).and_then(|s| s["ports"].as_array()).with_context(|| format!("no {service}"))?;
        ensure!(ports.iter().any(|candidate| candidate == port), "{service}: {port} is not published");
    }
    let observer = &services["nexent-observer"];
    let names = |key: &str| -> BTreeSet<&str> {
        observer[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    ensure!(names("cap_drop") == ["ALL"].into() && names("cap_add") == CAPABILITIES.into(), "capabilities");
    ensure!(observer["pid"] == "host" && observer["read_only"] == true, "it wants the host's processes, read-only");
    // What is scraped is what is started.
    for job in yaml(&root.join("deploy/prometheus/prometheus.yml"))?["scrape_configs"].as_array().into_iter().flatten()
    {
        let target = job["static_configs"][0]["targets"][0].as_str().context("a job without a target")?;
        let host = target.split(':').next().unwrap_or_default();
        ensure!(host == "localhost" || services.contains_key(host), "prometheus.yml: there is no service {host}");
    }
    need(&[("docker-compose", "docker-compose")], "it resolves the compose file")?;
    checked(Command::new("docker-compose").arg("--file").arg(path).args(["config", "--quiet"])).map(drop)
}

/// A tag with a number that is no range of versions of its own accord.
fn is_pinned(image: &str) -> bool {
    let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
    let version = tag.trim_start_matches('v').split('-').next().unwrap_or_default();
    let parts: Vec<&str> = version.split('.').collect();
    parts.len() >= 2 && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

/// Every image is pinned, every file that is copied exists and gets past the ignore file.
fn dockerfile(root: &Path, path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).context("cannot read it")?;
    let ignore = fs::read_to_string(path.with_extension("dockerignore")).context("cannot read its ignore file")?;
    let mut lines = ignore.lines().filter(|line| !line.starts_with('#'));
    ensure!(lines.next() == Some("*"), "the ignore file lets everything in");
    let allowed: Vec<&str> = lines.filter_map(|line| line.strip_prefix('!')).collect();
    for name in allowed.iter().filter(|name| !name.contains('*')) {
        ensure!(root.join(name).exists(), "the ignore file names {name}, which is not there");
    }
    let (mut stages, mut user) = (Vec::new(), false);
    for line in instructions(&text) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["FROM", image, "AS", name] => {
                ensure!(is_pinned(image), "{image} is not pinned");
                stages.push(name.to_owned());
            }
            ["FROM", image] => ensure!(is_pinned(image), "{image} is not pinned"),
            ["COPY", from, ..] if from.starts_with("--from=") => {
                let name = from.trim_start_matches("--from=");
                ensure!(stages.iter().any(|stage| stage == name), "there is no stage {name}");
            }
            ["COPY", ".", _] => {}
            ["COPY", ref sources @ .., _] => {
                for source in sources {
                    ensure!(root.join(source).exists(), "{source} is not there");
                }
            }
            ["ENTRYPOINT" | "CMD", ..] => {
                let list = line.split_once(' ').map_or("", |(_, list)| list);
                let list: Vec<String> = serde_json::from_str(list).with_context(|| format!("{line} is no list"))?;
                user |= list.first().is_some_and(|program| program == "/usr/bin/nexent-observer");
            }
            ["WORKDIR" | "RUN" | "ENV" | "EXPOSE", _, ..] => {}
            _ => bail!("{line:?} is not understood"),
        }
    }
    // Cargo wants every member of the workspace to be there.
    let workspace = fs::read_to_string(root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let members = workspace.split("\nmembers = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap_or_default();
    for member in members.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty()) {
        let in_context = |what: &str| allowed.iter().any(|name| *name == member || *name == format!("{member}/{what}"));
        ensure!(in_context("Cargo.toml") && in_context("src"), "{member} does not get into the image's build");
    }
    ensure!(user && text.contains("--locked"), "it starts something else, or builds other versions than Cargo.lock's");
    Ok(())
}

/// Instructions without comments, continued lines joined.
fn instructions(text: &str) -> Vec<String> {
    let joined = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    let joined = joined.replace("\\\n", " ");
    joined.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// A PATH on which `docker` and `curl` only note what they were asked.
#[derive(Debug)]
pub struct DryRun {
    script: PathBuf,
    path: String,
    log: PathBuf,
}

/// What the script did: exit code, output, and what it asked docker for, one line a call.
#[derive(Debug)]
pub struct Ran {
    /// Exit code.
    pub code: Option<i32>,
    /// Both outputs.
    pub said: String,
    /// Calls of docker.
    pub asked: Vec<String>,
}

impl DryRun {
    /// Puts the stand-ins into `dir`.
    pub fn new(script: &Path, dir: &Path) -> Result<Self> {
        let (bin, log) = (dir.join("bin"), dir.join("docker.log"));
        fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
        let docker = "if [ -n \"$DOCKER_IS_DOWN\" ]; then exit 1; fi\n\
             echo \"pid=$NEXENT_OBSERVER_PID exe=$NEXENT_OBSERVER_EXE $*\" >>\"$DOCKER_LOG\"\n\
             case \"$*\" in *--quiet*) echo 0123456789ab ;; esac\n";
        let curl = "case \"$*\" in *\"${CURL_FAILS:-nothing fails}\"*) exit 7 ;; esac\n";
        for (name, text) in [("docker", docker), ("curl", curl)] {
            super::script(&bin, name, text)?;
        }
        let path = format!("{}:{}", bin.display(), env::var("PATH").unwrap_or_default());
        Ok(Self { script: script.to_owned(), path, log })
    }

    /// Runs the script.
    pub fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Ran> {
        fs::write(&self.log, "").context("cannot empty the log")?;
        let output = Command::new("bash")
            .arg(&self.script)
            .args(arguments)
            .env("PATH", &self.path)
            .env("DOCKER_LOG", &self.log)
            .env_remove("NEXENT_OBSERVER_PID")
            .env_remove("NEXENT_OBSERVER_EXE")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .context("cannot run bash")?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let asked = fs::read_to_string(&self.log).context("cannot read the log")?;
        // These only ask whether docker works.
        let real = |line: &&str| !line.ends_with(" info") && !line.ends_with(" compose version");
        Ok(Ran { code: output.status.code(), said, asked: asked.lines().filter(real).map(str::to_owned).collect() })
    }
}

/// The script parses, and does what it says.
fn start_script(script: &Path, compose: &Value, dir: &Path) -> Result<()> {
    checked(Command::new("bash").arg("-n").arg(script))?;
    let dry = DryRun::new(script, dir)?;
    let expect = |arguments: &[&str], environment: &[(&str, &str)], code: i32, wanted: &[&str]| -> Result<String> {
        let ran = dry.run(arguments, environment)?;
        ensure!(ran.code == Some(code), "{arguments:?} ended with {:?}, not {code}\n{}", ran.code, ran.said);
        ensure!(ran.asked.len() == wanted.len(), "{arguments:?} asked docker for {:#?}", ran.asked);
        for (line, wanted) in ran.asked.iter().zip(wanted) {
            ensure!(line.contains(wanted), "{arguments:?} asked docker for {line}, not {wanted}");
        }
        Ok(ran.said)
    };
    let project = "compose --project-name nexent-monitoring";
    let up = ["up", "--exe", "/usr/bin/python3.11", "--pid", "42", "--exe", "/usr/bin/curl"];
    let said = expect(
        &up,
        &[],
        0,
        &["pid=42 exe=/proc/1/root/usr/bin/python3.11:/proc/1/root/usr/bin/curl compose --project-name"],
    )?;
    for url in ["http://localhost:3005", "http://localhost:16686", "http://localhost:9090", "http://localhost:9464"] {
        ensure!(said.contains(url), "up does not name {url}");
    }
    let port =
        expect(&["up"], &[("NEXENT_OBSERVER_PID", "7"), ("PROMETHEUS_PORT", "8000")], 0, &["up --detach --build"])?;
    ensure!(port.contains("http://localhost:8000/metrics"), "PROMETHEUS_PORT is not heard");
    for wrong in
        [&["up"][..], &["up", "--pid", "x"], &["up", "--exe", "python3"], &["up", "all"], &["clean"], &[], &["x"]]
    {
        expect(wrong, &[], 64, &[])?;
    }
    expect(&["status"], &[], 0, &[&format!("{project} --file")])?;
    let said = expect(&["status"], &[("CURL_FAILS", ":9090")], 1, &["ps"])?;
    ensure!(said.contains("no answer  Prometheus"), "status does not say what is silent: {said}");
    expect(&["down"], &[], 0, &["down"])?;
    expect(&["logs", "jaeger"], &[], 0, &["logs --tail 100 jaeger"])?;
    for (service, volume) in [("prometheus", "prometheus-data"), ("grafana", "grafana-data")] {
        ensure!(compose["volumes"].get(volume).is_some(), "there is no volume {volume}");
        let (gone, back) = (format!("rm --stop --force {service}"), format!("up --detach --no-deps {service}"));
        let (look, drop) =
            (format!("volume inspect nexent-monitoring_{volume}"), format!("volume rm nexent-monitoring_{volume}"));
        expect(&["clean", service], &[], 0, &["ps --quiet", &gone, &look, &drop, &back])?;
    }
    expect(&["clean", "jaeger"], &[], 0, &["ps --quiet", "rm --stop --force jaeger", "up --detach --no-deps jaeger"])?;
    let said = expect(&["status"], &[("DOCKER_IS_DOWN", "1")], 1, &[])?;
    ensure!(said.contains("does not answer"), "a daemon that is down is not named: {said}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{instructions, is_pinned};

    #[test]
    fn an_image_is_pinned_by_a_version_with_at_least_two_numbers() {
        for image in ["a/b:v3.5.0", "debian:12.12-slim", "localhost:5000/a:0.1.0", "rust:1.95.0-slim-bookworm"] {
            assert!(is_pinned(image), "{image}");
        }
        for image in ["a", "a:latest", "a:3", "a:3.x", "localhost:5000/a", "a:v", "a:"] {
            assert!(!is_pinned(image), "{image}");
        }
    }

    #[test]
    fn continued_lines_are_one_instruction() {
        assert_eq!(instructions("# a\nRUN a \\\n    && b\n\nCMD [\"x\"]\n"), ["RUN a      && b", "CMD [\"x\"]"]);
    }
}
