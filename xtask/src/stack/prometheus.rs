//! A real Prometheus for a test: on a free port of loopback, with its data in a scratch directory, ended when dropped.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process::Guarded;

/// One series of an answer.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Its labels.
    pub labels: Value,
    /// Its value now.
    pub value: f64,
}

/// A running server.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    process: Guarded,
}

impl Prometheus {
    /// Starts it with a configuration; its data and its log go to `dir`.
    pub fn start(config: &Path, dir: &Path, address: SocketAddr) -> Result<Self> {
        let log = fs::File::create(dir.join("prometheus.log")).context("cannot write the log of Prometheus")?;
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()));
        command.arg(format!("--web.listen-address={address}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut this = Self { address, process: Guarded::spawn("Prometheus", &mut command)? };
        let until = Instant::now() + Duration::from_secs(30);
        while this.get("/-/ready", "").is_err() {
            if let Some(status) = this.process.ended()? {
                bail!("Prometheus ended: {status}; see {}", dir.join("prometheus.log").display());
            }
            ensure!(Instant::now() < until, "Prometheus is not ready after 30 s");
            thread::sleep(Duration::from_millis(100));
        }
        Ok(this)
    }

    /// Evaluates an expression now. What Prometheus says is the error when it is no PromQL.
    pub fn query(&self, expr: &str) -> Result<Vec<Sample>> {
        let answer = self.get("/api/v1/query", &format!("query={}", encoded(expr)))?;
        let answer: Value = serde_json::from_str(&answer).context("Prometheus' answer is no JSON")?;
        ensure!(answer["status"] == "success", "{expr}: {}", answer["error"]);
        let of = |series: &Value| -> Result<Sample> {
            let value = series["value"][1].as_str().context("no value")?;
            Ok(Sample { labels: series["metric"].clone(), value: value.parse().context("no number")? })
        };
        answer["data"]["result"].as_array().context("no vector")?.iter().map(of).collect()
    }

    /// The only value of an expression.
    pub fn value(&self, expr: &str) -> Result<f64> {
        match &self.query(expr)?[..] {
            [one] => Ok(one.value),
            more => bail!("{} series, not one: {expr}", more.len()),
        }
    }

    /// Names of the alerts that fire now.
    pub fn firing(&self) -> Result<Vec<String>> {
        let answer: Value = serde_json::from_str(&self.get("/api/v1/alerts", "")?).context("no JSON")?;
        let alerts = answer["data"]["alerts"].as_array().context("no alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        Ok(firing.filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned())).collect())
    }

    /// Every rule that could not be evaluated, with Prometheus' reason.
    pub fn broken_rules(&self) -> Result<Vec<String>> {
        let answer: Value = serde_json::from_str(&self.get("/api/v1/rules", "")?).context("no JSON")?;
        let groups = answer["data"]["groups"].as_array().context("no groups")?;
        let rules = groups.iter().filter_map(|group| group["rules"].as_array()).flatten();
        Ok(rules
            .filter(|rule| rule["health"] != "ok")
            .map(|rule| format!("{}: {}", rule["name"], rule["lastError"]))
            .collect())
    }

    /// POST where there is a body, else GET. HTTP/1.0, so that the answer ends with the connection.
    fn get(&self, path: &str, body: &str) -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let method = if body.is_empty() { "GET" } else { "POST" };
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        // A refused expression has a body that says why.
        ensure!(status.starts_with('2') || body.starts_with('{'), "{path}: {status}");
        Ok(body.to_owned())
    }
}

/// Percent-encoding of a form's value.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| {
        if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::encoded;

    #[test]
    fn everything_but_letters_and_digits_is_encoded() {
        assert_eq!(encoded("a{b=~\"é\"} + 1"), "a%7Bb%3D%7E%22%C3%A9%22%7D%20%2B%201");
    }
}
