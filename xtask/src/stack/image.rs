//! The image in a container runtime: podman builds it from the Dockerfile, runs it with the compose file's privileges, and it
//! observes curl in another container and a Python of the host.
//!
//! No registry of images is asked. The image's base is made by debootstrap from Debian's packages, as Debian's own image is, and
//! the Dockerfile's first stage, which compiles, is replaced by the executable that is already there, or, slowly, runs on a stand-in
//! for the image of Rust: the same base with Debian's gcc and this machine's toolchain.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{checked, containers::CAPABILITIES, files::yaml, need};
use crate::{
    clients::Driver,
    observer,
    process::Guarded,
    server::{Kind, LlmServer},
    sh, truth,
};

/// Containers and images of the test.
const OBSERVER: &str = "nexent-stack-observer";
const CLIENT: &str = "nexent-stack-client";
/// Calls of curl.
const CALLS: [(&str, &str); 3] = [("plain", "1"), ("steady", "2"), ("multi-token", "3")];
/// Calls of the host's client.
const ON_HOST: &[&str] = &["--workers", "2", "--requests", "2", "--stream-share", "1", "--plan", "plain"];
const ON_HOST_CALLS: u64 = 4;
/// Numbers of capabilities (linux/capability.h).
const NUMBERS: [(&str, u32); 3] = [("DAC_READ_SEARCH", 2), ("SYS_PTRACE", 19), ("SYS_ADMIN", 21)];

/// Whether containers can be run here; why not, otherwise. Installs what is missing.
pub fn unavailable(dir: &Path) -> Result<Option<String>> {
    let programs = [("podman", "podman"), ("runc", "runc"), ("debootstrap", "debootstrap")];
    if let Err(error) = need(&programs, "the image is built and run with it") {
        return Ok(Some(format!("{error:#}")));
    }
    let podman = Podman::new(dir)?;
    Ok(checked(podman.command(&["info"]).stdout(Stdio::null())).err().map(|error| format!("{error:#}")))
}

/// Runs it; logs go to `dir`, which is emptied, images and containers to `store`. What was seen, as lines.
pub fn run(root: &Path, binary: &Path, python: &Path, dir: &Path, store: &Path) -> Result<Vec<String>> {
    empty(dir)?;
    let podman = Podman::new(store)?;
    let image = podman.image(root, binary, dir)?;
    let mut seen = vec![
        "podman built the image from the Dockerfile, on a base by debootstrap, around the executable that is tested"
            .to_owned(),
    ];
    seen.extend(observe(root, &podman, &image, python, dir)?);
    Ok(seen)
}

/// The same with an image from `context`, a directory with a Dockerfile and everything that it wants, as a release has one.
pub fn run_context(root: &Path, context: &Path, python: &Path, dir: &Path, store: &Path) -> Result<Vec<String>> {
    empty(dir)?;
    let podman = Podman::new(store)?;
    podman.base(&context.join("Dockerfile"))?;
    let image = "localhost/nexent-release:1";
    let mut build =
        podman.command(&["build", "--pull=never", "--isolation", "chroot", "--layers=false", "--tag", image]);
    checked(build.arg(context))?;
    let mut seen = vec!["podman built the image from the release's context, on a base by debootstrap".to_owned()];
    seen.extend(observe(root, &podman, image, python, dir)?);
    Ok(seen)
}

fn empty(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// An observer in a container of `image` beside a client in another container and one on the host. What was seen, as lines.
fn observe(root: &Path, podman: &Podman, image: &str, python: &Path, dir: &Path) -> Result<Vec<String>> {
    let client_image = podman.client_image(root, dir)?;
    let server = LlmServer::start(Kind::Simulated, dir, 1)?;

    let answers = dir.join("answers.txt");
    let certificate = format!("{}:/cert.pem:ro", server.certificate.cert.display());
    let mut client = podman.container(CLIENT);
    client.args([
        "--interactive",
        "--network",
        "host",
        "--volume",
        &certificate,
        &client_image,
        "curl",
        "--config",
        "-",
    ]);
    client
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&answers)?)
        .stderr(fs::File::create(dir.join("client.stderr"))?);
    let mut client = Running { process: Guarded::spawn("curl in a container", &mut client)?, podman, name: CLIENT };
    let curl = client.pid("curl")?;

    let mut host = Driver::start(python, "openai_sync.py", "host", &server, dir, ON_HOST)?;
    // By path, as the guide says it for files of the host: below the root of its first process, or, where not even the host's
    // root may look into that one, of this process.
    let of_host = if fs::read_link("/proc/1/root").is_ok() { 1 } else { std::process::id() };
    let executable = format!("/proc/{of_host}/root{}", truth::executable(host.pids.last().copied())?);

    let listen = truth::free_address()?;
    let mut observing = podman.container(OBSERVER);
    observing.args(privileges(root)?).args(["--network", "host", "--env", &format!("NEXENT_OBSERVER_LISTEN={listen}")]);
    observing.args([image, "run", "--pid", &curl.to_string(), "--exe", &executable]).stdin(Stdio::null());
    observing
        .stdout(fs::File::create(dir.join("observer.stdout"))?)
        .stderr(fs::File::create(dir.join("observer.stderr"))?);
    let process = Guarded::spawn("the observer in a container", &mut observing)?;
    let mut observing = Running { process, podman, name: OBSERVER };
    let pid = observing.pid("nexent-observer")?;
    let confined = confinement(pid)?;
    ready(&mut observing, listen, dir)?;

    let stdin = client.process.stdin().context("curl's input is gone")?;
    stdin.write_all(requests(&server.base_url).as_bytes()).context("curl does not read")?;
    client.process.close_stdin();
    let status = client.process.wait(Duration::from_secs(60))?;
    ensure!(status.success(), "curl: {status}; see {}", dir.display());
    host.go()?;
    host.done(Duration::from_secs(60))?;
    let seen = same(listen, &answers, &host.log)?;
    let status = observing.process.interrupt().context("the observer does not end")?;
    ensure!(status.success(), "the observer ended with {status}; see {}", dir.display());
    Ok(vec![confined, seen])
}

/// Builds the image with all stages of the Dockerfile, unoptimised, and asks the result for its configuration. Minutes.
pub fn compile(root: &Path, dir: &Path, store: &Path) -> Result<String> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let podman = Podman::new(store)?;
    let file = root.join("deploy/docker/Dockerfile");
    podman.base(&file)?;
    let rust = podman.rust_image(&file, dir)?;
    let tag = "localhost/nexent-stack-compiled:1";
    let mut build = podman.command(&["build", "--pull=never", "--isolation", "chroot", "--layers=false", "--tag", tag]);
    build.arg("--file").arg(&file).arg("--ignorefile").arg(file.with_extension("dockerignore")).arg(root);
    checked(&mut build)?;
    let said = checked(podman.container("nexent-stack-compiled").args([tag, "config"]))?;
    ensure!(said.contains("0.0.0.0:9464"), "its configuration is not the image's: {said}");
    Ok(format!(
        "podman built all stages of the Dockerfile, on {rust} made here, and the image prints its configuration"
    ))
}

/// podman with its storage below the target directory.
#[derive(Debug)]
struct Podman {
    store: PathBuf,
}

impl Podman {
    fn new(store: &Path) -> Result<Self> {
        fs::create_dir_all(store).with_context(|| format!("cannot make {}", store.display()))?;
        Ok(Self { store: store.to_owned() })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.store.join("storage")).arg("--runroot").arg(self.store.join("run"));
        // crun, Debian's default, does not start where cgroups are of both versions; journald need not be there.
        command.args(["--runtime", "/usr/sbin/runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// `podman run` of a container that nothing of an earlier run is in the way of.
    fn container(&self, name: &str) -> Command {
        self.remove(name);
        // Its own limits are higher than a container's root may set where the host's root has lower ones.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        let mut command = self.command(&["run", "--rm", "--name", name]);
        command.args(limits);
        command
    }

    fn remove(&self, name: &str) {
        sh::succeeds(&mut self.command(&["rm", "--force", "--ignore", "--time", "1", name]));
    }

    /// The image of the Dockerfile, by its name in the compose file.
    fn image(&self, root: &Path, binary: &Path, dir: &Path) -> Result<String> {
        let file = root.join("deploy/docker/Dockerfile");
        self.base(&file)?;
        let context = dir.join("stage");
        fs::create_dir_all(context.join("out")).context("cannot make a folder for the executable")?;
        fs::copy(binary, context.join("out/nexent-observer")).with_context(|| format!("no {}", binary.display()))?;
        let compose = yaml(&root.join("deploy/docker/docker-compose.yml"))?;
        let tag = compose["services"]["nexent-observer"]["image"].as_str().context("no image")?.to_owned();
        let mut build =
            self.command(&["build", "--pull=never", "--isolation", "chroot", "--layers=false", "--tag", &tag]);
        build.arg("--build-context").arg(format!("build={}", context.display())).arg("--file").arg(&file);
        build.arg("--ignorefile").arg(file.with_extension("dockerignore")).arg(root);
        checked(&mut build)?;
        Ok(tag)
    }

    /// An image with curl, on the same base.
    fn client_image(&self, root: &Path, dir: &Path) -> Result<String> {
        let tag = format!("localhost/{CLIENT}:1");
        if sh::succeeds(&mut self.command(&["image", "exists", &tag])) {
            return Ok(tag);
        }
        let base = self.base(&root.join("deploy/docker/Dockerfile"))?;
        let file = dir.join("client.Dockerfile");
        let text = format!("FROM {base}\nRUN apt-get update && apt-get install --yes --no-install-recommends curl\n");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        sh::say("making an image with curl (Debian)");
        let mut build =
            self.command(&["build", "--pull=never", "--isolation", "chroot", "--layers=false", "--tag", &tag]);
        checked(build.arg("--file").arg(&file).arg(dir))?;
        Ok(tag)
    }

    /// The base with Debian's gcc and this machine's Rust, under the name that the Dockerfile's first stage has it by; the name.
    fn rust_image(&self, dockerfile: &Path, dir: &Path) -> Result<String> {
        let text = fs::read_to_string(dockerfile).context("cannot read the Dockerfile")?;
        let first = text.lines().find_map(|line| line.strip_prefix("FROM ")).context("no FROM")?;
        let first = first.split(' ').next().unwrap_or_default();
        let version = first.strip_prefix("rust:").and_then(|tag| tag.split('-').next()).context("no image of Rust")?;
        let said = checked(Command::new("rustc").arg("--version"))?;
        ensure!(said.starts_with(&format!("rustc {version} ")), "the Dockerfile wants Rust {version}, here is {said}");
        let name = format!("docker.io/library/{first}");
        if sh::succeeds(&mut self.command(&["image", "exists", &name])) {
            return Ok(first.to_owned());
        }
        let sysroot = checked(Command::new("rustc").args(["--print", "sysroot"]))?;
        let file = dir.join("rust.Dockerfile");
        // This machine's certificates: it may reach crates.io through a proxy with one of its own.
        let text = format!(
            "FROM {}\nRUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev\n\
             COPY --from=toolchain bin /usr/local/bin\nCOPY --from=toolchain lib /usr/local/lib\n\
             COPY --from=certificates ca-certificates.crt /etc/ssl/certs/ca-certificates.crt\n\
             ENV CARGO_HOME=/usr/local/cargo CARGO_HTTP_CAINFO=/etc/ssl/certs/ca-certificates.crt\n\
             ENV CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_DEBUG=0\n",
            self.base(dockerfile)?
        );
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        let mut build =
            self.command(&["build", "--pull=never", "--isolation", "chroot", "--layers=false", "--tag", &name]);
        build.args([
            "--build-context",
            &format!("toolchain={}", sysroot.trim()),
            "--build-context",
            "certificates=/etc/ssl/certs",
        ]);
        checked(build.arg("--file").arg(&file).arg(dir))?;
        Ok(first.to_owned())
    }

    /// Debian under the name that the Dockerfile's last stage has it by; the name.
    fn base(&self, dockerfile: &Path) -> Result<String> {
        let text = fs::read_to_string(dockerfile).context("cannot read the Dockerfile")?;
        let last = text.lines().filter_map(|line| line.strip_prefix("FROM ")).next_back().context("no FROM")?;
        let name = format!("docker.io/library/{}", last.trim());
        ensure!(last.starts_with("debian:12."), "its base is {last}, not Debian 12");
        if sh::succeeds(&mut self.command(&["image", "exists", &name])) {
            return Ok(name);
        }
        let cache = sh::cache_dir()?;
        let archive = cache.join("debian-bookworm-minbase.tar");
        if !archive.exists() {
            fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
            sh::say(&format!("making a minimal Debian with debootstrap, kept as {}", archive.display()));
            let tree = self.store.join("debian");
            sh::succeeds(Command::new("rm").arg("-rf").arg(&tree));
            checked(Command::new("debootstrap").args(["--variant=minbase", "bookworm"]).arg(&tree))?;
            let part = archive.with_extension("part");
            checked(Command::new("tar").args(["--numeric-owner", "-cf"]).arg(&part).arg("-C").arg(&tree).arg("."))?;
            fs::rename(&part, &archive).context("cannot keep the archive")?;
            sh::succeeds(Command::new("rm").arg("-rf").arg(&tree));
        }
        checked(self.command(&["import", "--quiet"]).arg(&archive).arg(&name))?;
        Ok(name)
    }
}

/// A container that runs; removed when dropped.
#[derive(Debug)]
struct Running<'a> {
    process: Guarded,
    podman: &'a Podman,
    name: &'static str,
}

impl Running<'_> {
    /// Number of its first process on the host, once that is `program`.
    fn pid(&mut self, program: &str) -> Result<u32> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let mut inspect = self.podman.command(&["inspect", "--format", "{{.State.Pid}}", self.name]);
            let said = inspect.stderr(Stdio::null()).output().map(|output| output.stdout).unwrap_or_default();
            let pid = String::from_utf8_lossy(&said).trim().parse().unwrap_or(0);
            if pid > 0 && fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with(program)) {
                return Ok(pid);
            }
            let ended = self.process.ended()?;
            ensure!(ended.is_none(), "the container {} ended: {ended:?}", self.name);
            ensure!(Instant::now() < until, "the container {} does not run {program}", self.name);
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.podman.remove(self.name);
    }
}

/// The compose file's privileges as podman's flags.
fn privileges(root: &Path) -> Result<Vec<String>> {
    let compose = yaml(&root.join("deploy/docker/docker-compose.yml"))?;
    let service = &compose["services"]["nexent-observer"];
    let mut flags = vec![format!("--pid={}", service["pid"].as_str().context("no pid")?)];
    for (key, flag) in [("cap_drop", "--cap-drop"), ("cap_add", "--cap-add"), ("security_opt", "--security-opt")] {
        let values = service[key].as_array().with_context(|| format!("no {key}"))?;
        flags.extend(
            values.iter().filter_map(Value::as_str).map(|value| format!("{flag}={}", value.replace(":true", ""))),
        );
    }
    if service["read_only"] == true {
        // As Docker does it: nothing is writable, /tmp neither.
        flags.extend(["--read-only".to_owned(), "--read-only-tmpfs=false".to_owned()]);
    }
    Ok(flags)
}

/// What the observer may do, as the kernel says it.
fn confinement(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("cannot read its status")?;
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    let known = CAPABILITIES.iter().filter_map(|name| NUMBERS.iter().find(|(known, _)| known == name));
    let mask = known.clone().fold(0u64, |mask, (_, number)| mask | 1 << number);
    ensure!(known.count() == CAPABILITIES.len(), "{CAPABILITIES:?} are not all in the table of numbers");
    let bounding = u64::from_str_radix(&field("CapBnd:"), 16).context("no CapBnd")?;
    ensure!(bounding == mask, "its capabilities are bounded by {bounding:x}, not {mask:x}");
    ensure!(field("NoNewPrivs:") == "1" && field("Seccomp:") == "2", "it may gain privileges, or any system call");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).context("cannot read its mounts")?;
    let is_root = |line: &&str| line.split(' ').nth(4) == Some("/");
    let options = mounts.lines().find(is_root).and_then(|line| line.split(' ').nth(5)).context("no root")?;
    ensure!(options.split(',').any(|option| option == "ro"), "its root is {options}");
    let namespace = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).context("no namespace");
    let (own, host) = (pid.to_string(), "self");
    ensure!(namespace(&own, "pid")? == namespace(host, "pid")?, "it does not see the host's processes");
    ensure!(namespace(&own, "mnt")? != namespace(host, "mnt")?, "it is in no container");
    Ok(format!(
        "runc ran it with {CAPABILITIES:?} alone, a seccomp filter, no new privileges, a read-only root, the host's processes"
    ))
}

/// Waits until it says that it is ready.
fn ready(observing: &mut Running<'_>, listen: SocketAddr, dir: &Path) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    while !observer::metrics(listen).is_ok_and(|text| text.contains("\nnexent_observer_attached_processes 2\n")) {
        let ended = observing.process.ended()?;
        let log = || fs::read_to_string(dir.join("observer.stderr")).unwrap_or_default();
        ensure!(ended.is_none(), "the observer ended: {ended:?}\n{}", log());
        ensure!(Instant::now() < until, "the observer does not attach to both clients\n{}", log());
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// What curl is to do, in the language of its configuration files.
fn requests(base_url: &str) -> String {
    let one = |(scenario, seed): &(&str, &str)| {
        let body = json!({
            "model": format!("sim-{scenario}"), "messages": [{"role": "user", "content": "Hello"}],
            "stream": true, "stream_options": {"include_usage": true}, "metadata": {"scenario": scenario, "seed": seed},
        });
        let body = body.to_string().replace('\\', "\\\\").replace('"', "\\\"");
        format!(
            "url = \"{base_url}/chat/completions\"\ncacert = \"/cert.pem\"\nsilent\nshow-error\nfail\nno-buffer\n\
             header = \"content-type: application/json\"\nheader = \"authorization: Bearer sk-test\"\ndata = \"{body}\"\n"
        )
    };
    CALLS.iter().map(one).collect::<Vec<_>>().join("next\n")
}

/// The observer's metrics against what curl printed and what the host's client logged.
fn same(listen: SocketAddr, answers: &Path, log: &Path) -> Result<String> {
    let lines = |path: &Path, prefix: &str| -> Result<Vec<Value>> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix(prefix)?).ok()).collect())
    };
    let of = |lines: &[Value]| -> (u64, u64) {
        let usage: Vec<u64> = lines.iter().filter_map(|line| line["usage"]["completion_tokens"].as_u64()).collect();
        (usage.len() as u64, usage.iter().sum())
    };
    let curl = of(&lines(answers, "data: ")?);
    let host_lines = lines(log, "")?;
    ensure!(curl.0 == CALLS.len() as u64, "curl got {} answers", curl.0);
    ensure!(host_lines.len() as u64 == ON_HOST_CALLS, "the host's client got {} answers", host_lines.len());
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let text = observer::metrics(listen)?;
        let calls = |inside: &str| sum(&text, "llm_requests", &[inside]) as u64;
        let tokens =
            |inside: &str| sum(&text, "llm_total_tokens", &["type=\"output\"", "source=\"usage\"", inside]) as u64;
        let (all, in_container) = ((calls(""), tokens("")), (calls("service=\"curl\""), tokens("service=\"curl\"")));
        let wanted = (curl.0 + ON_HOST_CALLS, curl.1 + of(&host_lines).1);
        if in_container == curl && all == wanted {
            return Ok(format!(
                "it saw {} calls and {} tokens of curl in another container and {} calls of a Python on the host, as these did",
                curl.0, curl.1, ON_HOST_CALLS
            ));
        }
        ensure!(
            Instant::now() < until,
            "curl had (calls, tokens) {curl:?}, both clients {wanted:?}; the metrics have {in_container:?} and {all:?}"
        );
        thread::sleep(Duration::from_millis(200));
    }
}

/// Sum over the series of a metric that have these labels.
fn sum(text: &str, metric: &str, labels: &[&str]) -> f64 {
    let of = |line: &str| {
        let (series, value) = line.strip_prefix(metric)?.strip_prefix('{')?.split_once("} ")?;
        labels.iter().all(|label| series.contains(label)).then(|| value.trim().parse::<f64>().ok())?
    };
    text.lines().filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn series_are_added_up_by_their_labels() {
        let text = "# HELP a b\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\na_b{x=\"1\"} 9\n";
        assert_eq!(sum(text, "a", &[]), 7.0);
        assert_eq!(sum(text, "a", &["y=\"3\""]), 4.0);
        assert_eq!(sum(text, "b", &[]), 0.0);
    }
}
