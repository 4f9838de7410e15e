//! A server of one recorded answer: the same status, sizes and silences, whoever asks. So a stall can be seen again with `curl -N`.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nexent_observer_core::{
    event::{ConnId, MonoNs},
    http::{Head, HttpEventKind, Side},
    limits::Limits,
    pipeline::{Output, Tap, Tapped},
    tape::entry::Entry,
    timing::{self, Exchange, ExchangeId},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    time::{Instant, sleep_until, timeout},
};

use super::{
    info::Info,
    replay::Core,
    source::{self, Ending},
};
use crate::{error::RunError, privileges};

/// Longest answer that is served, in bytes.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Longest request head that is taken.
const REQUEST_BYTES: usize = 64 * 1024;
/// Longest wait for a request.
const REQUEST_TIME: Duration = Duration::from_secs(30);

/// A recorded answer.
#[derive(Debug, Default, Clone, PartialEq)]
struct Answer {
    status: Option<u16>,
    content_type: Option<String>,
    /// When the request was sent, as far as it was seen.
    asked: Option<MonoNs>,
    head: Option<MonoNs>,
    /// When they came, and what.
    pieces: VecDeque<(MonoNs, Vec<u8>)>,
    /// When it was complete, or broke off.
    end: Option<(MonoNs, bool)>,
    bytes: usize,
    /// Bytes are missing in it, or it was too long.
    holes: bool,
    /// Of a WebSocket.
    messages: bool,
}

/// Picks one answer out of what a tap is shown.
#[derive(Debug, Clone)]
struct Pick {
    wanted: ExchangeId,
    answer: Arc<Mutex<Answer>>,
}

impl Tap for Pick {
    fn take(&mut self, conn: ConnId, tapped: Tapped<'_>) {
        let Tapped::Http(event) = tapped else { return };
        if conn != self.wanted.conn || event.exchange.0 != self.wanted.no {
            return;
        }
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        let at = event.at.ret;
        match (event.side, event.kind) {
            (Side::Request, HttpEventKind::Head { first, .. }) => answer.asked = Some(first.entry),
            (Side::Request, HttpEventKind::End) if answer.head.is_none() => answer.asked = Some(at),
            (Side::Response, HttpEventKind::Head { head, .. }) => {
                answer.head = Some(at);
                if let Head::Response(head) = head {
                    answer.status = head.status;
                    answer.content_type = head.headers.get("content-type").map(str::to_owned);
                }
            }
            (Side::Response, HttpEventKind::Body(bytes)) => {
                answer.bytes = answer.bytes.saturating_add(bytes.len());
                if answer.bytes > ANSWER_BYTES {
                    answer.holes = true;
                } else {
                    answer.pieces.push_back((at, bytes.to_vec()));
                }
            }
            (Side::Response, HttpEventKind::Gap { .. }) => answer.holes = true,
            (Side::Response, HttpEventKind::End) => answer.end = Some((at, true)),
            (_, HttpEventKind::Abort(_)) => answer.end = Some((at, false)),
            (_, HttpEventKind::Message(_)) => answer.messages = true,
            (Side::Request, _) => {}
        }
    }
}

/// Serves an exchange of a recording until interrupted.
///
/// # Errors
/// The file cannot be read, has no such exchange, or the address cannot be listened on.
pub(super) fn run(file: &Path, address: SocketAddr, wanted: Option<ExchangeId>) -> Result<(), RunError> {
    let wanted = match wanted {
        Some(wanted) => wanted,
        None => choose(file)?,
    };
    let answer = pick(file, wanted)?;
    let failed = |what: &str, error| RunError::caused(format!("cannot {what}"), error);
    privileges::shed();
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| failed("start", error))?;
    runtime.block_on(async {
        let listener =
            TcpListener::bind(address).await.map_err(|error| failed(&format!("listen on {address}"), error))?;
        let address = listener.local_addr().map_err(|error| failed("listen", error))?;
        tracing::info!("Exchange {}-{} is served at http://{address}/.", wanted.conn.0, wanted.no);
        serve(listener, Arc::new(answer)).await.map_err(|error| failed("serve", error))
    })
}

/// The exchange that is shown when none is named: the one with the longest stall, else the longest stream.
fn choose(file: &Path) -> Result<ExchangeId, RunError> {
    let mut best: Option<((u64, usize), ExchangeId)> = None;
    let mut consider = |exchange: &Exchange| {
        let stall = exchange.stalls.iter().map(|(from, to)| to.since(*from)).max().unwrap_or(0);
        let rank = (stall, exchange.chunks.len());
        if exchange.streamed && best.is_none_or(|(other, _)| rank > other) {
            best = Some((rank, exchange.id));
        }
    };
    through(file, None, &mut consider)?;
    let none = || RunError::runtime(format!("{} has no streamed exchange that ended", file.display()));
    best.map(|(_, id)| id).ok_or_else(none)
}

fn pick(file: &Path, wanted: ExchangeId) -> Result<Answer, RunError> {
    let pick = Pick { wanted, answer: Arc::default() };
    through(file, Some(pick.clone()), &mut |_| {})?;
    let answer = pick.answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let name = format!("{}-{}", wanted.conn.0, wanted.no);
    if answer.messages || wanted.no >= 1 << 31 {
        return Err(RunError::runtime(format!("exchange {name} is of a WebSocket, which is not served")));
    }
    if answer.head.is_none() && answer.pieces.is_empty() {
        return Err(RunError::runtime(format!("{} has no answer of exchange {name}", file.display())));
    }
    if answer.holes {
        tracing::warn!("Bytes are missing in that answer; what is known of it is served.");
    }
    Ok(answer)
}

/// Takes the exchanges that ended out of the core.
fn ended(core: &mut Core, each: &mut dyn FnMut(&Exchange)) {
    while let Some(output) = core.next() {
        if let Output::Exchange(exchange) = output {
            each(&exchange);
        }
    }
}

/// Reads a recording to its end.
fn through(file: &Path, mut pick: Option<Pick>, each: &mut dyn FnMut(&Exchange)) -> Result<(), RunError> {
    let mut core = Core::None;
    let report = source::read(file, |kind, entry| {
        if let Entry::Info(json) = entry {
            let limits =
                serde_json::from_slice::<Info>(json).map_or_else(|_| Limits::default(), |info| info.limits.limits());
            // What caused a call does not matter here.
            core = Core::new(kind, limits, timing::Options::default(), false);
            if let (Core::Pipeline(pipeline), Some(pick)) = (&mut core, &pick) {
                pipeline.set_tap(Box::new(pick.clone()));
            }
        }
        if let (Entry::Tapped(conn, tapped), Some(pick)) = (&entry, &mut pick) {
            pick.take(*conn, *tapped);
        }
        core.take(&entry);
        ended(&mut core, each);
        true
    })?;
    core.end();
    ended(&mut core, each);
    if report.ending != Ending::Whole {
        tracing::warn!("The recording is not whole; what comes before its end is used.");
    }
    Ok(())
}

async fn serve(listener: TcpListener, answer: Arc<Answer>) -> io::Result<()> {
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    // Out of descriptors, say: it passes.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    // A client that goes away is no failure of the server.
                    if let Err(error) = answer_to(stream, &answer).await {
                        tracing::debug!(%error, "A client was not served to the end.");
                    }
                });
            }
        }
    }
}

/// Serves one request, whatever it asks for.
async fn answer_to(mut stream: TcpStream, answer: &Answer) -> io::Result<()> {
    stream.set_nodelay(true)?;
    timeout(REQUEST_TIME, read_request(&mut stream)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let began = Instant::now();
    let first = answer.asked.or(answer.head).or_else(|| answer.pieces.front().map(|(at, _)| *at)).unwrap_or_default();
    let due = |at: MonoNs| began + Duration::from_nanos(at.since(first));
    sleep_until(due(answer.head.unwrap_or(first))).await;
    let status = answer.status.unwrap_or(200);
    let kind = answer.content_type.as_deref().filter(|kind| kind.bytes().all(|b| (b' '..0x7f).contains(&b)));
    let head = format!(
        "HTTP/1.1 {status} Recorded\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        kind.unwrap_or("text/event-stream")
    );
    stream.write_all(head.as_bytes()).await?;
    for (at, bytes) in &answer.pieces {
        sleep_until(due(*at)).await;
        let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        stream.write_all(&chunk).await?;
    }
    if let Some((at, complete)) = answer.end {
        sleep_until(due(at)).await;
        if complete {
            stream.write_all(b"0\r\n\r\n").await?;
        }
    }
    stream.shutdown().await
}

/// Reads a request head, and as much of a body as it says comes.
async fn read_request(stream: &mut TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    let (end, length) = loop {
        let got = stream.read(&mut buffer).await?;
        if got == 0 || head.len() + got > REQUEST_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend_from_slice(buffer.get(..got).unwrap_or_default());
        if let Some(end) = memchr::memmem::find(&head, b"\r\n\r\n") {
            let text = String::from_utf8_lossy(head.get(..end).unwrap_or_default()).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
            break (end + 4, length.and_then(|length| length.trim().parse::<u64>().ok()).unwrap_or(0));
        }
    };
    let mut left = length.saturating_sub((head.len() - end) as u64);
    while left > 0 {
        let got = stream.read(&mut buffer).await?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(got as u64);
    }
    Ok(())
}

/// Reads the id of an exchange as the JSON lines have it: `CONNECTION-NUMBER`.
///
/// # Errors
/// A sentence that says what is expected.
pub fn parse_id(text: &str) -> Result<ExchangeId, String> {
    let parsed = text
        .split_once('-')
        .and_then(|(conn, no)| Some(ExchangeId { conn: ConnId(conn.parse().ok()?), no: no.parse().ok()? }));
    parsed.ok_or_else(|| "the id of an exchange, as the JSON lines have it: two numbers with - between".to_owned())
}
