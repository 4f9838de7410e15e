//! Spans and metrics by OTLP: two services that trace themselves call, a real backend receives what the observer says of it, and
//! what it gives back is held against the clients' logs: parent links, one resource per service, attributes, events.
//!
//! Two backends: rotel, a collector that forwards what it took to a reader of our own (seconds; resources and metrics, too), and
//! Arize Phoenix, which stores spans and is asked through its query API (a minute, and 850 MB to install).

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{checked, script};
use crate::{
    clients::Driver,
    observer::Observer,
    process::Guarded,
    python,
    server::{Kind, LlmServer},
    sh, truth,
};

/// Calls of one service, every second one below a span of its own: a stream with a silence, a refused one, with and without usage.
const CALLS: &[&str] = &["--requests", "8", "--plan", "plain,stall,http-429,no-usage,multi-token,tool,stall,http-500"];
/// Spans of both services.
const SPANS: usize = 16;
/// The services by the names that they have in their own environment.
const SERVICES: [&str; 2] = ["shop", "search"];
/// An address of loopback where nobody else uses OTLP's ports, which the variable of old deployments implies.
const OLD_COLLECTOR: &str = "127.0.0.77";

/// Who receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// rotel; spans come by HTTP because of `JAEGER_ENDPOINT`, metrics by gRPC.
    Rotel,
    /// Arize Phoenix; by HTTP.
    Phoenix,
}

/// Runs it; logs go to `dir`, which is emptied. What was seen, in one line.
pub fn run(root: &Path, binary: &Path, python: &Path, dir: &Path, backend: Backend) -> Result<String> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let receiver = match backend {
        Backend::Rotel => Receiver::rotel(dir)?,
        Backend::Phoenix => Receiver::phoenix(root, dir)?,
    };
    let server = LlmServer::start(Kind::Simulated, dir, 1)?;
    let observer_with: String =
        receiver.variables.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    let start = script(dir, "observer.sh", &format!("{observer_with}exec '{}' \"$@\"\n", binary.display()))?;

    let mut drivers = Vec::new();
    for name in SERVICES {
        let attributes = format!("deployment.environment.name=test-of-{name}");
        let text = format!(
            "export OTEL_SERVICE_NAME={name} OTEL_RESOURCE_ATTRIBUTES={attributes}\nexec '{}' \"$@\"\n",
            python.display()
        );
        let service = script(dir, &format!("{name}.sh"), &text)?;
        drivers.push(Driver::start(&service, "../stack/traced.py", name, &server, dir, CALLS)?);
    }
    let pids: Vec<u32> = drivers.iter().flat_map(|driver| driver.pids.iter().copied()).collect();
    let targets: Vec<String> = pids.iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]).collect();
    let mut observer = Observer::start(&start, &targets, dir, truth::free_address()?, None)?;
    observer.attached(pids.len(), Duration::from_secs(30))?;
    for driver in &mut drivers {
        driver.go()?;
    }
    for driver in &mut drivers {
        driver.done(Duration::from_secs(60))?;
    }
    // Ending it sends what is left.
    observer.stop()?;
    let spans = receiver.spans(dir)?;
    compare(dir, backend, &spans)
}

/// Holds spans against the logs of the clients of a run in `dir`. What was seen, in one line; the error says what does not agree.
pub fn compare(dir: &Path, backend: Backend, spans: &Path) -> Result<String> {
    let mut compare = Command::new(python::stack()?);
    compare.arg(sh::fixture("stack/spans.py")?).arg("--spans").arg(spans);
    if backend == Backend::Phoenix {
        compare.arg("--no-resources");
    }
    for name in SERVICES {
        compare.arg("--calls").arg(dir.join(format!("{name}.jsonl")));
    }
    Ok(format!("{backend:?}: {}", checked(&mut compare)?.trim()))
}

/// A running backend.
#[derive(Debug)]
pub struct Receiver {
    backend: Backend,
    address: SocketAddr,
    /// Environment of the observer that sends to it.
    variables: Vec<(&'static str, String)>,
    /// In the order in which they are to end.
    _processes: Vec<Guarded>,
}

impl Receiver {
    /// rotel where the variables of old deployments say it is.
    fn rotel(dir: &Path) -> Result<Self> {
        let (http, grpc): (SocketAddr, SocketAddr) =
            (format!("{OLD_COLLECTOR}:4318").parse()?, format!("{OLD_COLLECTOR}:4317").parse()?);
        let variables = vec![
            ("JAEGER_ENDPOINT", format!("http://{OLD_COLLECTOR}:14268/api/traces")),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", format!("http://{grpc}")),
            ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc".to_owned()),
            ("OTEL_METRIC_EXPORT_INTERVAL", "1000".to_owned()),
        ];
        Self::rotel_at(dir, http, grpc, variables)
    }

    /// rotel on ports that are free, for spans only. The endpoint for `--otlp` comes with it.
    pub fn collector(dir: &Path) -> Result<(Self, String)> {
        let (http, grpc) = (truth::free_address()?, truth::free_address()?);
        Ok((Self::rotel_at(dir, http, grpc, Vec::new())?, format!("http://{http}")))
    }

    fn rotel_at(
        dir: &Path,
        http: SocketAddr,
        grpc: SocketAddr,
        variables: Vec<(&'static str, String)>,
    ) -> Result<Self> {
        let python = python::stack()?;
        let log = dir.join("spans.jsonl");
        let sink = Guarded::talking(
            "the reader behind the collector",
            Command::new(&python)
                .arg(sh::fixture("stack/otlp_sink.py")?)
                .arg("--log")
                .arg(&log)
                .stderr(errors(dir, "sink")?),
        )?;
        let listening = sink.event("listening", Duration::from_secs(30))?;
        let port = listening["port"].as_u64().context("the reader did not say its port")?;
        let said = checked(Command::new(&python).args(["-c", "import rotel; print(rotel.__path__[0])"]))?;
        let mut command = Command::new(Path::new(said.trim()).join("rotel-agent"));
        command.arg("start").args([
            "--otlp-http-endpoint",
            &http.to_string(),
            "--otlp-grpc-endpoint",
            &grpc.to_string(),
        ]);
        command.args(["--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-compression", "none"]);
        command.args(["--otlp-exporter-endpoint", &format!("http://127.0.0.1:{port}")]);
        command.arg("--pid-file").arg(dir.join("rotel.pid")).arg("--log-file").arg(dir.join("rotel.log"));
        let mut rotel = Guarded::spawn(
            "rotel",
            command.stdin(Stdio::null()).stdout(errors(dir, "rotel")?).stderr(errors(dir, "rotel")?),
        )?;
        wait_for(http, &mut rotel, Duration::from_secs(30))?;
        Ok(Self { backend: Backend::Rotel, address: http, variables, _processes: vec![rotel, sink] })
    }

    fn phoenix(root: &Path, dir: &Path) -> Result<Self> {
        let python = python::phoenix()?;
        let (address, grpc) = (truth::free_address()?, truth::free_address()?);
        let mut command = Command::new(python);
        command.args(["-m", "phoenix.server.main", "serve"]).current_dir(root);
        command.env("PHOENIX_WORKING_DIR", dir.join("phoenix")).env("PHOENIX_HOST", "127.0.0.1");
        command.env("PHOENIX_PORT", address.port().to_string()).env("PHOENIX_GRPC_PORT", grpc.port().to_string());
        command.env("PHOENIX_TELEMETRY_ENABLED", "false");
        let mut phoenix = Guarded::spawn(
            "Phoenix",
            command.stdin(Stdio::null()).stdout(errors(dir, "phoenix")?).stderr(errors(dir, "phoenix")?),
        )?;
        wait_for(address, &mut phoenix, Duration::from_secs(180))?;
        let variables =
            vec![("NEXENT_OBSERVER_OTLP", format!("http://{address}")), ("OTEL_METRICS_EXPORTER", "none".to_owned())];
        Ok(Self { backend: Backend::Phoenix, address, variables, _processes: vec![phoenix] })
    }

    fn spans(&self, dir: &Path) -> Result<PathBuf> {
        self.spans_from(dir, SPANS)
    }

    /// What it has received, once at least `wanted` spans are there: a file of one line a span.
    pub fn spans_from(&self, dir: &Path, wanted: usize) -> Result<PathBuf> {
        let path = dir.join("spans.jsonl");
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            if self.backend == Backend::Phoenix {
                let url = format!("http://{}", self.address);
                let said = checked(Command::new("python3").arg(sh::fixture("stack/phoenix.py")?).arg(url))?;
                fs::write(&path, said).with_context(|| format!("cannot write {}", path.display()))?;
            }
            let count = fs::read_to_string(&path).unwrap_or_default().matches("\"t\": \"span\"").count();
            if count >= wanted {
                // What should not come has its chance to.
                thread::sleep(Duration::from_secs(1));
                return Ok(path);
            }
            ensure!(
                Instant::now() < until,
                "{:?} has {count} spans, not {wanted}; logs: {}",
                self.backend,
                dir.display()
            );
            thread::sleep(Duration::from_millis(500));
        }
    }
}

/// A file for what a process says.
fn errors(dir: &Path, name: &str) -> Result<fs::File> {
    let path = dir.join(format!("{name}.stderr"));
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Waits until something listens.
fn wait_for(address: SocketAddr, process: &mut Guarded, timeout: Duration) -> Result<()> {
    let until = Instant::now() + timeout;
    while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
        let ended = process.ended()?;
        ensure!(ended.is_none(), "nothing listens on {address}: {ended:?}");
        ensure!(Instant::now() < until, "nothing listens on {address} after {timeout:?}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
