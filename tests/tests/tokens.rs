//! Tokens and retries through real probes: the official SDK streams without usage, and what the observer counts is what OpenAI's and
//! Hugging Face's own libraries count; a call that is tried again is linked to the one before. Needs root, eBPF and `cargo xtask build`.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use xtask::{
    observer::Observer,
    process::Guarded,
    python,
    server::{Kind, LlmServer},
    sh, truth,
};

/// Longest wait for anything that should come soon, on a machine that does much else.
const SOON: Duration = Duration::from_secs(120);

/// Side by side they would take each other's interpreter away.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A server, a client of the SDK, and the observer on it.
struct Scene {
    dir: PathBuf,
    client: Guarded,
    observer: Observer,
    _server: LlmServer,
}

impl Scene {
    fn new(name: &str, flags: &[String]) -> Self {
        let target = sh::target_dir(&sh::root().unwrap());
        let dir = target.join("tokens").join(name);
        fs::create_dir_all(&dir).unwrap();
        for old in ["observer.jsonl", "server.jsonl"] {
            drop(fs::remove_file(dir.join(old)));
        }
        let server = LlmServer::start(Kind::Simulated, &dir, 1).unwrap();
        let mut command = Command::new(python::clients().unwrap());
        command.arg(sh::fixture("clients/tokens.py").unwrap()).args(["--base-url", &server.base_url]);
        command.env("SSL_CERT_FILE", &server.certificate.cert);
        command.stderr(fs::File::create(dir.join("client.stderr")).unwrap());
        let client = Guarded::talking("the client", &mut command).unwrap();
        client.event("ready", SOON).unwrap();
        let targets = [&["--pid".to_owned(), client.pid().to_string()], flags].concat();
        let binary = target.join("release/nexent-observer");
        let listen = truth::free_address().unwrap();
        let mut observer = Observer::start(&binary, &targets, &dir, listen, None).unwrap();
        observer.attached(1, SOON).unwrap();
        Self { dir, client, observer, _server: server }
    }

    /// Has the client do something; what it says of it.
    fn make(&mut self, command: &Value) -> Value {
        self.client.say(&command.to_string()).unwrap();
        self.client.event("done", SOON).unwrap()
    }

    /// The line of a call.
    fn line(&self, request_id: &Value) -> Value {
        let end = Instant::now() + SOON;
        loop {
            if let Some(line) = self.lines().into_iter().find(|line| line["request_id"] == *request_id) {
                return line;
            }
            assert!(Instant::now() < end, "{request_id} is not in {}", self.observer.jsonl.display());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.observer.jsonl).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Sum of a metric over its series.
    fn metric(&self, name: &str) -> f64 {
        let text = self.observer.metrics().unwrap();
        let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once(' '));
        values.map(|(_, value)| value.parse::<f64>().unwrap()).sum()
    }
}

/// The vocabulary that is built into the observer, in a folder as tiktoken keeps its downloads. It checks the hash of what it finds.
fn vocabulary(dir: &Path) -> PathBuf {
    let metadata =
        sh::cargo(&sh::root().unwrap()).args(["metadata", "--format-version", "1", "--locked"]).output().unwrap();
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let manifest = packages.iter().find(|package| package["name"] == "tiktoken-rs").unwrap()["manifest_path"].as_str();
    let asset = Path::new(manifest.unwrap()).with_file_name("assets").join("o200k_base.tiktoken");
    let cache = dir.join("tiktoken");
    fs::create_dir_all(&cache).unwrap();
    // SHA-1 of the address from which tiktoken would load it.
    fs::copy(asset, cache.join("fb374d419588a4632f3f557e76b4b70aebbca790")).unwrap();
    cache
}

/// What the official libraries count in each text: by o200k_base, and by the tokenizer of the file.
fn official(python: &Path, file: &Path, cache: &Path, texts: &[&str]) -> Vec<[u64; 2]> {
    let mut command = Command::new(python);
    command.arg(sh::fixture("tokens/tokens.py").unwrap()).arg("count").arg(file).arg(cache);
    let mut counter = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = counter.stdin.take().unwrap();
    for text in texts {
        writeln!(stdin, "{}", json!(text)).unwrap();
    }
    drop(stdin);
    let output = counter.wait_with_output().unwrap();
    assert!(output.status.success());
    let counts: Vec<[u64; 2]> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(counts.len(), texts.len());
    counts
}

#[test]
fn streams_without_usage_are_counted_as_the_official_tokenizers_count() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let python = python::tokens().unwrap();
    let dir = sh::target_dir(&sh::root().unwrap()).join("tokens");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("tokenizer.json");
    let script = sh::fixture("tokens/tokens.py").unwrap();
    sh::run(Command::new(&python).arg(script).arg("train").arg(&file)).unwrap();
    let flag = format!("local-*={}", file.display());
    let mut scene = Scene::new("streams", &["--tokenizer-files".to_owned(), flag]);
    let mut seed = 0;
    let mut stream = |scene: &mut Scene, model: &str, more: Value| {
        seed += 1;
        let mut command = json!({"do": "stream", "model": model, "seed": seed});
        command.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let done = scene.make(&command);
        (scene.line(&done["request_id"]), done)
    };
    // The encoding is made ready when the first model wants it; a stream that is faster is counted by its chunks.
    let end = Instant::now() + SOON;
    while stream(&mut scene, "gpt-4o", json!({})).0["usage"]["source"] != "tokenizer" {
        assert!(Instant::now() < end, "the encoding was never ready");
    }
    let mut calls = Vec::new();
    for _ in 0..8 {
        calls.push((0, stream(&mut scene, "gpt-4o", json!({}))));
        calls.push((1, stream(&mut scene, "local-model", json!({}))));
    }
    calls.push((0, stream(&mut scene, "gpt-4o", json!({"leave_after": 12}))));
    calls.push((0, stream(&mut scene, "gpt-4o", json!({"scenario": "usage-always"}))));
    let texts: Vec<&str> = calls.iter().map(|(_, (line, _))| line["output_text"].as_str().unwrap()).collect();
    let counts = official(&python, &file, &vocabulary(&dir), &texts);
    for ((which, (line, done)), counts) in calls.iter().zip(counts) {
        assert_eq!(line["usage"]["counted"], counts[*which], "{line}");
        if line["outcome"] == "completed" {
            assert_eq!(line["output_text"], done["text"]);
        }
        let of_chunks = line["chunks"].as_array().unwrap().iter().map(|chunk| chunk[1].as_u64().unwrap()).sum::<u64>();
        if line["usage"]["source"] == "tokenizer" {
            assert_eq!(line["usage"]["output"], counts[*which], "{line}");
            assert_eq!(of_chunks, counts[*which], "{line}");
        }
    }
    let (with_usage, left) = (&calls[calls.len() - 1].1.0, &calls[calls.len() - 2].1.0);
    assert_eq!(calls.iter().filter(|(_, (line, _))| line["usage"]["source"] == "tokenizer").count(), calls.len() - 1);
    assert_eq!((&left["outcome"], &with_usage["usage"]["source"]), (&json!("client_abort"), &json!("usage")));
    // Counting by chunks gives other numbers: this test would see it.
    assert!(calls.iter().any(|(_, (line, _))| line["usage"]["output"] != line["chunks"].as_array().unwrap().len()));
    assert_eq!(scene.metric("llm_token_count_ratio_count"), 1.0);
    scene.observer.stop().unwrap();
}

#[test]
fn a_call_that_is_tried_again_is_linked_to_the_one_before() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut scene = Scene::new("retries", &[]);
    let model = "gpt-4o-mini";
    let done = scene.make(&json!({"do": "retry", "model": model, "seed": 1}));
    let second = scene.line(&done["request_id"]);
    let lines = scene.lines();
    assert_eq!(lines.len(), 2, "{}", scene.dir.display());
    let first = &lines[0];
    assert_eq!(
        (&first["http_status"], &first["outcome"], &first["retry_of"]),
        (&json!(429), &json!("error"), &Value::Null)
    );
    assert_eq!((&second["http_status"], &second["retry_count"]), (&json!(200), &json!(1)));
    assert_eq!(second["retry_of"], first["id"], "the SDK says that it tries again; the body says what");
    assert_eq!(first["retry_count"].as_u64().unwrap_or(0), 0, "{first}");

    // By hand: nothing but the body says so.
    let done = scene.make(&json!({"do": "again", "model": model, "seed": 2}));
    let [first, second] = [0, 1].map(|no| scene.line(&done["request_ids"][no]));
    assert_eq!((&first["retry_of"], &first["retry_count"]), (&Value::Null, &Value::Null));
    assert_eq!((&second["retry_of"], &second["retry_count"]), (&first["id"], &json!(1)));
    // The same once more is no retry: the one before did not fail.
    let done = scene.make(&json!({"do": "again", "model": model, "seed": 2}));
    let [first, second] = [0, 1].map(|no| scene.line(&done["request_ids"][no]));
    assert_eq!((&first["retry_of"], &second["retry_of"]), (&Value::Null, &first["id"]));
    assert_eq!((scene.metric("llm_requests"), scene.metric("llm_retries")), (6.0, 3.0));
    scene.observer.stop().unwrap();
}
