//! A real Alertmanager for a test, and somebody whom it notifies.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::process::Guarded;

/// Longest notification.
const LONGEST: u64 = 1 << 20;

/// What was said of an alert: its name, and whether it fires (else it is resolved).
type Notice = (String, bool);

/// A running Alertmanager.
#[derive(Debug)]
pub struct Alertmanager {
    /// Where Prometheus sends alerts.
    pub address: SocketAddr,
    notices: Arc<Mutex<Vec<Notice>>>,
    _process: Guarded,
}

impl Alertmanager {
    /// Starts it on `address`; configuration, data and log go to `dir`.
    pub fn start(dir: &Path, address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen for notifications")?;
        let url = format!("http://{}/", listener.local_addr()?);
        let config = json!({
            "route": {
                "receiver": "test", "group_by": ["alertname"], "group_wait": "100ms", "group_interval": "500ms", "repeat_interval": "1h",
            },
            "receivers": [{"name": "test", "webhook_configs": [{"url": url, "send_resolved": true}]}],
        });
        let path = dir.join("alertmanager.yml");
        fs::write(&path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        let notices = Arc::default();
        let kept = Arc::clone(&notices);
        thread::spawn(move || listener.incoming().flatten().try_for_each(|stream| take(stream, &kept)));

        let log = fs::File::create(dir.join("alertmanager.log")).context("cannot write the log of Alertmanager")?;
        let mut command = Command::new("prometheus-alertmanager");
        command.arg(format!("--config.file={}", path.display()));
        command.arg(format!("--storage.path={}", dir.join("alertmanager").display()));
        command.arg(format!("--web.listen-address={address}")).arg("--cluster.listen-address=");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut process = Guarded::spawn("Alertmanager", &mut command)?;
        let until = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            let ended = process.ended()?;
            ensure!(ended.is_none(), "Alertmanager ended: {ended:?}; see {}", dir.join("alertmanager.log").display());
            ensure!(Instant::now() < until, "Alertmanager does not listen after 30 s");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(Self { address, notices, _process: process })
    }

    /// Forgets what it has been told.
    pub fn forget(&self) {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Alerts of which it was told that they fire, and afterwards that they do not.
    #[must_use]
    pub fn fired_and_resolved(&self) -> BTreeSet<String> {
        came_and_went(&self.notices.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Names that fired and then were resolved.
fn came_and_went(notices: &[Notice]) -> BTreeSet<String> {
    let mut fired = BTreeSet::new();
    let mut gone = BTreeSet::new();
    for (name, fires) in notices {
        if *fires {
            fired.insert(name);
        } else if fired.contains(name) {
            gone.insert(name.clone());
        }
    }
    gone
}

/// One connection with one notification; `None` only when nobody wants notices any more.
fn take(stream: TcpStream, notices: &Arc<Mutex<Vec<Notice>>>) -> Option<()> {
    if Arc::strong_count(notices) == 1 {
        return None;
    }
    // What is not understood is missing where it is waited for.
    if let Ok(body) = body(stream) {
        let alerts = body["alerts"].as_array().into_iter().flatten();
        let of = |alert: &Value| Some((alert["labels"]["alertname"].as_str()?.to_owned(), alert["status"] == "firing"));
        notices.lock().unwrap_or_else(PoisonError::into_inner).extend(alerts.filter_map(of));
    }
    Some(())
}

/// Body of a request, which is answered.
fn body(stream: TcpStream) -> Result<Value> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream.try_clone()?.take(LONGEST));
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.trim().parse()?,
            None if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    let mut text = String::new();
    reader.take(length).read_to_string(&mut text)?;
    let mut stream = stream;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_over_when_it_was_resolved_after_it_fired() {
        let said = |list: &[(&str, bool)]| -> Vec<Notice> { list.iter().map(|(n, f)| ((*n).to_owned(), *f)).collect() };
        assert_eq!(came_and_went(&said(&[("a", true), ("b", false), ("a", false)])), BTreeSet::from(["a".to_owned()]));
        assert_eq!(came_and_went(&said(&[("a", false), ("a", true)])), BTreeSet::new());
    }

    #[test]
    fn a_notification_is_read_and_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n{\"a\": 77}").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert_eq!(body(listener.accept().unwrap().0).unwrap(), json!({"a": 77}));
        assert!(client.join().unwrap().starts_with("HTTP/1.1 200"));
    }
}
