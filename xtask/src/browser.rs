//! A headless Chromium, driven over its DevTools protocol: <https://chromedevtools.github.io/devtools-protocol/>.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::{process::Guarded, sh};

/// Longest wait for anything that should come soon.
const SOON: Duration = Duration::from_secs(30);
/// Written into every page before its own scripts: remembers what the policy forbade.
const WATCH: &str = "globalThis.forbidden = []; document.addEventListener('securitypolicyviolation', \
                     (e) => forbidden.push(`${e.violatedDirective} ${e.blockedURI}`));";

/// A browser with one page; ended when dropped.
#[derive(Debug)]
pub struct Browser {
    socket: WebSocket<TcpStream>,
    session: Option<String>,
    last_id: u64,
    said: Vec<String>,
    _process: Guarded,
}

impl Browser {
    /// Starts one with a new profile in `dir`; installs the Debian package where it is missing.
    pub fn start(dir: &Path) -> Result<Self> {
        if !sh::succeeds(Command::new("chromium").arg("--version")) {
            sh::say("installing the Debian package chromium: the page is looked at with it");
            sh::apt_install(&["chromium"])?;
        }
        let profile = dir.join("chromium");
        if profile.exists() {
            fs::remove_dir_all(&profile)?;
        }
        fs::create_dir_all(&profile)?;
        let log = fs::File::create(dir.join("chromium.stderr")).context("cannot write the browser's log")?;
        let mut command = Command::new("chromium");
        command.args([
            "--headless",
            "--no-sandbox", // of root's browser, which sees loopback only
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--remote-debugging-port=0",
        ]);
        command.arg(format!("--user-data-dir={}", profile.display())).arg("about:blank");
        let process = Guarded::spawn("chromium", command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log))?;
        let port_file = profile.join("DevToolsActivePort");
        let found =
            wait("the browser's port", || Ok(fs::read_to_string(&port_file).ok().filter(|t| t.lines().count() > 1)))?;
        let (port, path) = found.split_once('\n').context("no port")?;
        let stream = TcpStream::connect(("127.0.0.1", port.parse()?))?;
        stream.set_read_timeout(Some(SOON))?;
        let (socket, _) = tungstenite::client(format!("ws://127.0.0.1:{port}{}", path.trim()), stream)
            .map_err(|error| anyhow::anyhow!("no DevTools connection: {error}"))?;
        let mut this = Self { socket, session: None, last_id: 0, said: Vec::new(), _process: process };
        let target = this.call("Target.createTarget", &json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = this.call("Target.attachToTarget", &attach)?;
        this.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            this.call(domain, &json!({}))?;
        }
        this.call("Page.addScriptToEvaluateOnNewDocument", &json!({"source": WATCH}))?;
        Ok(this)
    }

    /// Sets the size of the window in CSS pixels.
    pub fn resize(&mut self, width: u32, height: u32) -> Result<()> {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", &size).map(drop)
    }

    /// What the system prefers: `dark` or `light`.
    pub fn prefer(&mut self, scheme: &str) -> Result<()> {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &features).map(drop)
    }

    /// Opens an address.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let opened = self.call("Page.navigate", &json!({"url": url}))?;
        ensure!(opened["errorText"].is_null(), "{url}: {}", opened["errorText"]);
        self.until("document.readyState === 'complete'").map(drop)
    }

    /// Value of an expression, a promise awaited.
    pub fn eval(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.call("Runtime.evaluate", &asked)?;
        ensure!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]["exception"]);
        Ok(answer["result"]["value"].take())
    }

    /// Waits until an expression is true; an exception counts as not yet.
    pub fn until(&mut self, expression: &str) -> Result<Value> {
        let end = Instant::now() + SOON;
        loop {
            let value = self.eval(expression);
            match &value {
                Ok(Value::Null | Value::Bool(false)) | Err(_) => {}
                Ok(_) => return value,
            }
            if Instant::now() >= end {
                let text = self.eval("document.body.innerText").unwrap_or_default();
                bail!(
                    "not within {SOON:?}: {expression} ({value:?}); the page says:\n{}",
                    text.as_str().unwrap_or_default()
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses and releases a key, named as in `KeyboardEvent.key`.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let text = match key {
            "Enter" => Some("\r"),
            one if one.chars().count() == 1 => Some(one),
            _ => None,
        };
        let code = match key {
            "Tab" => 9,
            "Enter" => 13,
            "Escape" => 27,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            _ => 0,
        };
        let mut event = json!({"type": if text.is_some() { "keyDown" } else { "rawKeyDown" }, "key": key, "windowsVirtualKeyCode": code});
        if let Some(text) = text {
            event["text"] = json!(text);
        }
        self.call("Input.dispatchKeyEvent", &event)?;
        event["type"] = json!("keyUp");
        self.call("Input.dispatchKeyEvent", &event).map(drop)
    }

    /// Types a text into what has the focus.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        self.call("Input.insertText", &json!({"text": text})).map(drop)
    }

    /// Writes what the window shows as PNG.
    pub fn screenshot(&mut self, path: &Path) -> Result<()> {
        let shot = self.call("Page.captureScreenshot", &json!({"format": "png", "optimizeForSpeed": false}))?;
        let png = from_base64(shot["data"].as_str().context("no picture")?).context("not base64")?;
        fs::write(path, png).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Errors on the console, exceptions, and what the policy forbade, since the start.
    pub fn problems(&mut self) -> Result<Vec<String>> {
        let forbidden = self.eval("globalThis.forbidden ?? []")?;
        let mut all = self.said.clone();
        all.extend(forbidden.as_array().into_iter().flatten().map(|one| format!("forbidden: {one}")));
        Ok(all)
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.socket.send(Message::text(message.to_string())).with_context(|| method.to_owned())?;
        loop {
            let Message::Text(text) = self.socket.read().with_context(|| format!("{method}: no answer"))? else {
                continue;
            };
            let mut answer: Value = serde_json::from_str(&text)?;
            if answer["id"] == id {
                ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return Ok(answer["result"].take());
            }
            self.listen(&answer);
        }
    }

    fn listen(&mut self, event: &Value) {
        let parameters = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.said.push(format!("exception: {}", parameters["exceptionDetails"])),
            Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => {
                self.said.push(format!("error: {}", parameters["entry"]["text"]));
            }
            Some("Runtime.consoleAPICalled") if parameters["type"] == "error" => {
                self.said.push(format!("console: {}", parameters["args"]));
            }
            _ => {}
        }
    }
}

fn wait<T>(what: &str, mut get: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + SOON;
    loop {
        if let Some(value) = get()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("not within {SOON:?}: {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Base64 of RFC 4648, section 4, with its padding.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(u32::from(byte - b'A')),
        b'a'..=b'z' => Some(u32::from(byte - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(byte - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut bits = 0;
        for byte in group {
            bits = bits << 6 | digit(*byte)?;
        }
        bits <<= 6 * (4 - group.len());
        let [_, bytes @ ..] = bits.to_be_bytes();
        out.extend_from_slice(bytes.get(..group.len().checked_sub(1)?)?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_length_is_read() {
        for (text, want) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmE=", "fooba")] {
            assert_eq!(from_base64(text).unwrap(), want.as_bytes(), "{text}");
        }
        assert_eq!(from_base64("Zm9*"), None);
    }
}
