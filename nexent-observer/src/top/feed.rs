//! Follows `/api/live` on a thread of its own, and comes back when the observer does.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use reqwest::{Client, Response, StatusCode};
use tokio::signal::unix::{SignalKind, signal};

use super::{Options, frame::Frame};
use crate::{error::RunError, export::otlp::ensure_tls_provider};

/// Events that may wait to be shown.
const WAITING: usize = 64;
/// Longest event that is taken: the API's first one has under 1 MiB.
const EVENT_BYTES: usize = 16 << 20;
/// Between two attempts.
const RETRY: Duration = Duration::from_secs(1);
/// The API speaks at least every 5 s.
const SILENCE: Duration = Duration::from_secs(15);

/// What came.
#[derive(Debug)]
pub(super) enum Message {
    /// An event.
    Frame(Box<Frame>),
    /// The observer cannot be followed at present; one sentence.
    Lost(String),
    /// A signal asks to end.
    Stop,
}

/// What comes.
#[derive(Debug)]
pub(super) struct Feed(Receiver<Message>);

impl Feed {
    /// Starts to follow.
    pub(super) fn start(options: &Options) -> Result<Self, RunError> {
        ensure_tls_provider();
        let unusable = |error| RunError::caused("a connection cannot be prepared", error);
        let client = Client::builder().no_proxy().connect_timeout(Duration::from_secs(5)).build().map_err(unusable)?;
        let base = options.url.trim_end_matches('/');
        let live = if options.once { "/api/snapshot" } else { "/api/live" };
        let (to, messages) = sync_channel(WAITING);
        let follower = Follower { client, base: base.to_owned(), live, token: options.token.clone(), to };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| RunError::caused("a thread cannot be prepared", error))?;
        thread::Builder::new()
            .name("feed".into())
            .spawn(move || runtime.block_on(follower.run()))
            .map_err(|error| RunError::caused("a thread cannot be started", error))?;
        Ok(Self(messages))
    }

    /// Waits for what comes next, at most until then.
    pub(super) fn next(&self, until: Option<Instant>) -> Option<Message> {
        match until {
            None => Some(self.0.recv().unwrap_or(Message::Stop)),
            Some(until) => match self.0.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Message::Stop),
            },
        }
    }

    /// What has come.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Message> + '_ {
        self.0.try_iter().take(WAITING)
    }
}

struct Follower {
    client: Client,
    base: String,
    live: &'static str,
    token: Option<String>,
    to: SyncSender<Message>,
}

impl Follower {
    async fn run(self) {
        let stop = async {
            let (Ok(mut end), Ok(mut hang_up)) = (signal(SignalKind::terminate()), signal(SignalKind::hangup())) else {
                return std::future::pending().await;
            };
            tokio::select! { _ = end.recv() => {}, _ = hang_up.recv() => {} }
        };
        tokio::select! {
            () = stop => drop(self.to.send(Message::Stop)),
            () = self.follow() => {}
        }
    }

    /// Until nobody listens any more.
    async fn follow(&self) {
        loop {
            let why = match self.events().await {
                Ok(()) => format!("{} ended the stream; trying again", self.base),
                Err(why) => why,
            };
            if self.to.send(Message::Lost(why)).is_err() {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn events(&self) -> Result<(), String> {
        let mut response = self.ask().await?;
        let mut events = Events::default();
        if self.live == "/api/snapshot" {
            let text = response.text().await.map_err(|error| self.lost(&error))?;
            return self.deliver(&text);
        }
        loop {
            let chunk = tokio::time::timeout(SILENCE, response.chunk()).await;
            match chunk.map_err(|_| format!("{} has been silent for {} s", self.base, SILENCE.as_secs()))? {
                Ok(Some(bytes)) => {
                    for data in events.add(&bytes).ok_or("an event is too long")? {
                        self.deliver(&data)?;
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.lost(&error)),
            }
        }
    }

    async fn ask(&self) -> Result<Response, String> {
        let request = self.client.get(format!("{}{}", self.base, self.live));
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let response = request.send().await.map_err(|error| self.lost(&error))?;
        let base = &self.base;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::UNAUTHORIZED if self.token.is_some() => Err(format!("{base} refuses the token")),
            StatusCode::UNAUTHORIZED => Err(format!("{base} wants a token: set NEXENT_OBSERVER_WEB_TOKEN")),
            StatusCode::NOT_FOUND => {
                Err(format!("{base} has no page and no API: start the observer with web_token_file, or on loopback"))
            }
            status => Err(format!("{base} answers {status}")),
        }
    }

    fn deliver(&self, json: &str) -> Result<(), String> {
        let frame: Frame = serde_json::from_str(json)
            .map_err(|error| format!("{} speaks another version of the API: {error}", self.base))?;
        self.to.send(Message::Frame(Box::new(frame))).map_err(|_| "nobody listens".to_owned())
    }

    fn lost(&self, error: &reqwest::Error) -> String {
        if error.is_connect() {
            format!("no observer answers at {}: start one with `nexent-observer run`, or name it with --url", self.base)
        } else {
            format!("the connection to {} broke: {}", self.base, error.without_url_text())
        }
    }
}

/// The error's own words; its URL may hold a password.
trait WithoutUrl {
    fn without_url_text(&self) -> String;
}

impl WithoutUrl for reqwest::Error {
    fn without_url_text(&self) -> String {
        std::error::Error::source(self).map_or_else(|| "no reason given".to_owned(), ToString::to_string)
    }
}

/// Cuts a stream of Server-Sent Events into their data.
#[derive(Debug, Default)]
struct Events {
    line: Vec<u8>,
    data: String,
}

impl Events {
    /// The data of the events that these bytes complete; `None` when one is too long.
    fn add(&mut self, bytes: &[u8]) -> Option<Vec<String>> {
        let mut complete = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() + self.data.len() > EVENT_BYTES {
                return None;
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                let line = String::from_utf8_lossy(&line);
                match line.trim_end_matches(['\r', '\n']) {
                    "" if self.data.is_empty() => {}
                    "" => complete.push(std::mem::take(&mut self.data)),
                    line => self.data.push_str(line.strip_prefix("data:").map_or("", str::trim_start)),
                }
            }
        }
        Some(complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_wherever_the_bytes_are_cut() {
        let text = "event: whole\ndata: {\"a\":1}\n\n: comment\n\ndata: {\"é\":2}\r\n\r\n";
        for at in 0..text.len() {
            let mut events = Events::default();
            let (a, b) = text.as_bytes().split_at(at);
            let found = [events.add(a).unwrap(), events.add(b).unwrap()].concat();
            assert_eq!(found, ["{\"a\":1}", "{\"é\":2}"], "cut at {at}");
        }
    }

    #[test]
    fn an_event_without_end_is_given_up() {
        let mut events = Events::default();
        let megabyte = vec![b'x'; 1 << 20];
        assert!((0..16).all(|_| events.add(&megabyte).is_some()));
        assert!(events.add(&megabyte).is_none());
    }
}
