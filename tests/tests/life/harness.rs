//! What the cases share: a place for a test with processes of its own, and the observer with every flag it takes.

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use xtask::{
    process::Guarded,
    python,
    server::{Kind, LlmServer},
    sh,
};

/// Longest wait for anything that should come soon.
pub(crate) const SOON: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// Two cores and one kernel: side by side the cases would measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Waits until `what` gives a value; panics with `why` when it does not within [`SOON`].
pub(crate) fn until<T>(why: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(value) = what() {
            return value;
        }
        assert!(Instant::now() < end, "not within {SOON:?}: {why}");
        thread::sleep(POLL);
    }
}

/// The observer under test.
pub(crate) fn binary() -> PathBuf {
    let binary = sh::target_dir(&sh::root().unwrap()).join("release/nexent-observer");
    assert!(binary.exists(), "{} is missing: cargo xtask build", binary.display());
    binary
}

/// Sends a signal to a child that has not been waited for.
pub(crate) fn signal(pid: u32, number: i32) {
    // SAFETY: no memory is involved, and until a child is waited for nobody else has its pid.
    let sent = unsafe { libc::kill(pid as i32, number) };
    assert_eq!(sent, 0, "cannot signal process {pid}");
}

/// A test's own directory, interpreter and libssl. Copies, so that probes on them are this test's and no other's: executables
/// and libraries are told apart by file.
pub(crate) struct Place {
    /// Emptied when the test begins, kept for whoever wants to know why it failed.
    pub(crate) dir: PathBuf,
    /// The interpreter itself.
    pub(crate) exe: PathBuf,
    /// Runs the interpreter with this place's libssl.
    pub(crate) python: PathBuf,
    /// The copy of libssl.
    pub(crate) libssl: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    pub(crate) fn new(name: &str) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = sh::target_dir(&sh::root().unwrap()).join("life").join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).unwrap();
        }
        let env = dir.join("env");
        fs::create_dir_all(env.join("bin")).unwrap();
        fs::create_dir_all(env.join("ssl")).unwrap();
        let original = python::clients().unwrap();
        let original_env = original.ancestors().nth(2).unwrap();
        let exe = env.join("bin/python");
        fs::copy(&original, &exe).unwrap();
        fs::copy(original_env.join("pyvenv.cfg"), env.join("pyvenv.cfg")).unwrap();
        symlink(original_env.join("lib"), env.join("lib")).unwrap();
        let maps = "import ssl; print(*(l.split()[-1] for l in open('/proc/self/maps') if 'libssl' in l), sep='\\n')";
        let found = Command::new(&exe).args(["-c", maps]).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        let found = Path::new(found.lines().next().expect("an interpreter with a libssl of its own as a file"));
        let libssl = env.join("ssl").join(found.file_name().unwrap());
        fs::copy(found, &libssl).unwrap();
        let python = env.join("python.sh");
        let script = format!(
            "#!/bin/sh\nLD_LIBRARY_PATH={} exec {} \"$@\"\n",
            libssl.parent().unwrap().display(),
            exe.display()
        );
        fs::write(&python, script).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, exe, python, libssl, _alone: alone }
    }

    pub(crate) fn server(&self) -> LlmServer {
        LlmServer::start(Kind::Simulated, &self.dir, 1).unwrap()
    }

    /// One without TLS.
    pub(crate) fn plain_server(&self) -> LlmServer {
        LlmServer::start(Kind::Plain, &self.dir, 1).unwrap()
    }

    /// A client of the real SDK that does one thing at a time (`clients/scripted.py`).
    pub(crate) fn client(&self, server: &LlmServer, name: &str) -> Client {
        self.client_with(server, name, &[])
    }

    /// Likewise, with variables in its environment.
    pub(crate) fn client_with(&self, server: &LlmServer, name: &str, env: &[(&str, &str)]) -> Client {
        let mut command = Command::new(&self.python);
        command.arg(sh::fixture("clients/scripted.py").unwrap());
        command.args(["--base-url", &server.base_url]).arg("--log").arg(self.dir.join(format!("{name}.jsonl")));
        command.env("SSL_CERT_FILE", &server.certificate.cert).envs(env.iter().copied());
        command.stderr(fs::File::create(self.dir.join(format!("{name}.stderr"))).unwrap());
        let process = Guarded::talking(name, &mut command).unwrap();
        process.event("ready", SOON).unwrap();
        Client { process }
    }

    /// Starts the observer with these arguments, and its own port and JSON lines.
    pub(crate) fn observe(&self, name: &str, arguments: &[&str]) -> Observer {
        self.observe_with(name, arguments, &[])
    }

    /// Likewise, with variables in its environment.
    pub(crate) fn observe_with(&self, name: &str, arguments: &[&str], env: &[(&str, &str)]) -> Observer {
        self.observe_by(&binary(), name, arguments, env)
    }

    /// Likewise, by a program that becomes the observer.
    pub(crate) fn observe_by(&self, program: &Path, name: &str, arguments: &[&str], env: &[(&str, &str)]) -> Observer {
        let jsonl = self.dir.join(format!("{name}.jsonl"));
        let log = self.dir.join(format!("{name}.stderr"));
        let mut command = Command::new(program);
        command.arg("run").args(arguments).args(["--listen", "127.0.0.1:0", "--capture-content"]);
        if !arguments.contains(&"--jsonl") {
            command.arg("--jsonl").arg(&jsonl);
        }
        command.envs(env.iter().copied()).stderr(fs::File::create(&log).unwrap());
        let process = Guarded::spawn(name, &mut command).unwrap();
        let mut observer = Observer { jsonl, log, process, listen: None };
        let line = observer.says("Metrics are at http://");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
        observer.listen = Some(address.parse().unwrap());
        observer
    }
}

/// A scripted client.
pub(crate) struct Client {
    pub(crate) process: Guarded,
}

impl Client {
    pub(crate) fn pid(&self) -> String {
        self.process.pid().to_string()
    }

    /// Gives a command and does not wait.
    pub(crate) fn tell(&mut self, command: &Value) {
        let stdin = self.process.stdin().expect("a client that listens");
        writeln!(stdin, "{command}").and_then(|()| stdin.flush()).unwrap();
    }

    /// A short streamed completion; what the SDK gave. Without `[DONE]` in it: there the SDK stops reading, before the end
    /// of the body, and the connection would not be used again.
    pub(crate) fn chat(&mut self) -> Value {
        self.tell(&serde_json::json!({"do": "chat", "scenario": "no-done", "chunks": 8, "pause_ms": 5}));
        self.chatted()
    }

    /// Waits for the end of a completion.
    pub(crate) fn chatted(&self) -> Value {
        let mut answer = self.process.event("chat", SOON).unwrap();
        answer["exchange"].take()
    }

    /// Begins a stream of `chunks` chunks, one each `pause_ms`, and waits for the third.
    pub(crate) fn begin_stream(&mut self, chunks: u32, pause_ms: u32) {
        let command = serde_json::json!({"do": "chat", "scenario": "no-done", "chunks": chunks, "pause_ms": pause_ms, "background": true});
        self.tell(&command);
        self.process.event("streaming", SOON).unwrap();
    }
}

/// A running observer; ended when dropped.
pub(crate) struct Observer {
    pub(crate) jsonl: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) process: Guarded,
    listen: Option<SocketAddr>,
}

impl Observer {
    /// Its whole log.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line that contains `text`.
    pub(crate) fn says(&mut self, text: &str) -> String {
        let log = self.log.clone();
        until(&format!("{text:?} in {}", log.display()), || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let line = said.lines().find(|line| line.contains(text)).map(str::to_owned);
            assert!(line.is_some() || self.process.ended().unwrap().is_none(), "the observer ended:\n{said}");
            line
        })
    }

    /// Waits until it has attached to a process.
    pub(crate) fn attached(&mut self, pid: u32) {
        let wanted = format!(" pid={pid} ");
        let log = self.log.clone();
        until(&format!("process {pid} attached; see {}", log.display()), || {
            assert!(self.process.ended().unwrap().is_none(), "the observer ended:\n{}", self.said());
            self.said().lines().any(|line| line.contains("Attached.") && line.contains(&wanted)).then_some(())
        });
    }

    /// Waits until the sockets of a process are looked at.
    pub(crate) fn plain(&mut self, pid: u32) {
        self.says(&format!("Its sockets are observed for plain HTTP. pid={pid} "));
    }

    /// Where it listens.
    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen.expect("its address is known")
    }

    /// What `/metrics` gives.
    pub(crate) fn metrics(&self) -> Metrics {
        let address = self.listen();
        let mut stream = TcpStream::connect_timeout(&address, SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        Metrics(text)
    }

    /// Waits until a sum of metrics satisfies `wanted`; the metrics of that moment.
    pub(crate) fn until_metric(&self, name: &str, labels: &[&str], wanted: impl Fn(f64) -> bool) -> Metrics {
        let mut last = f64::NAN;
        until(&format!("{name}{labels:?}; see {}", self.log.display()), || {
            let metrics = self.metrics();
            last = metrics.sum(name, labels);
            wanted(last).then_some(metrics)
        })
    }

    /// Waits for this many exchanges; all that are there then.
    pub(crate) fn exchanges(&self, at_least: usize) -> Vec<Value> {
        until(&format!("{at_least} exchanges in {}", self.jsonl.display()), || {
            let found = lines(&self.jsonl);
            (found.len() >= at_least).then_some(found)
        })
    }

    /// Ends it with a signal.
    pub(crate) fn end(&mut self, number: i32) -> ExitStatus {
        signal(self.process.pid(), number);
        self.process.wait(SOON).unwrap()
    }

    /// Ends it as Ctrl-C does and gives all exchanges.
    pub(crate) fn finish(&mut self) -> Vec<Value> {
        let status = self.end(libc::SIGINT);
        assert!(status.success(), "{status}\n{}", self.said());
        lines(&self.jsonl)
    }
}

/// A scrape.
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// Sum over the series of a name whose labels contain all of `labels` (`reason="x"`).
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let series = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (series, value) = rest.rsplit_once(' ')?;
            let of_this_name = series.is_empty() || series.starts_with('{');
            (of_this_name && labels.iter().all(|label| series.contains(label))).then(|| value.parse::<f64>().unwrap())
        });
        series.sum()
    }
}

/// Objects of a JSONL file; a last line that is still being written is left out.
pub(crate) fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// By request id, each once.
pub(crate) fn by_request(exchanges: &[Value]) -> HashMap<String, &Value> {
    let mut found = HashMap::new();
    for exchange in exchanges {
        if let Some(id) = exchange["request_id"].as_str() {
            assert!(found.insert(id.to_owned(), exchange).is_none(), "exchange {id} was reported twice");
        }
    }
    found
}

/// The server's entry of a request. It writes it after the last byte, so the client may be faster.
pub(crate) fn served(server: &LlmServer, client: &Value) -> Value {
    let id = &client["request_id"];
    until(&format!("{id} in the server's log"), || lines(&server.log).into_iter().find(|entry| entry["id"] == *id))
}

/// An exchange of the observer is complete and says what the client got, and each stamp lies between what client and server saw
/// before and after it: all of them read the same clock.
pub(crate) fn assert_right(observed: &Value, client: &Value, server: &LlmServer) {
    let ns = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no time: {value}\n{observed}\n{client}"));
    let served = served(server, client);
    assert_eq!(observed["outcome"], "completed", "{observed}");
    assert_eq!(observed["output_text"], client["text"], "{observed}");
    assert_eq!(observed["bytes_lost"], 0, "{observed}");
    if !client["usage"].is_null() {
        assert_eq!(observed["usage"]["output"], client["usage"]["completion_tokens"], "{observed}");
    }
    assert_eq!(observed["chunks"].as_array().map(Vec::len), client["output_chunks"].as_u64().map(|n| n as usize));
    let first_written = ns(&served["writes"][0][0]);
    let order = [
        ("client calls", ns(&client["create_ns"])),
        ("request start", ns(&observed["request_start_ns"])),
        ("server has the head", ns(&served["head_ns"])),
        ("server writes", first_written),
        ("first byte", ns(&observed["first_byte_ns"])),
        ("first token", ns(&observed["first_token_ns"])),
        ("client has the first token", ns(&client["first_ns"])),
    ];
    for pair in order.windows(2) {
        assert!(pair[0].1 <= pair[1].1, "{} comes after {}: {order:?}", pair[0].0, pair[1].0);
    }
    assert!(ns(&observed["last_token_ns"]) <= ns(&client["last_ns"]), "{observed}");
    assert!(observed["ttft_s"].as_f64().is_some_and(|s| s > 0.0), "{observed}");
}
