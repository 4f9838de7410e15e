//! A collector of OTLP over HTTP that can be slow, refuse, be dead and come back.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

/// What each span of `fake_tls` has in it once, as protobuf has strings: as they are.
const MARK: &[u8] = b"chatcmpl-bench-";

/// What it does with a request, where it does not just take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// Takes it after this long.
    Slow(Duration),
    /// Says 503.
    Refusing,
}

#[derive(Debug, Default)]
struct Shared {
    /// Milliseconds until it answers.
    slow_ms: AtomicU64,
    refuses: AtomicBool,
    ends: AtomicBool,
    spans: AtomicU64,
    /// What it was sent, where it keeps that.
    kept: Option<Mutex<Vec<Vec<u8>>>>,
}

/// A listening collector; when it is dropped, it is dead: connections are closed and the port refuses new ones.
#[derive(Debug)]
pub(super) struct Collector {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Listens on loopback, at a port of its own or where one listened before.
    pub(super) fn listen(address: Option<SocketAddr>) -> Result<Self> {
        Self::make(address, Shared::default())
    }

    /// One that keeps what it is sent.
    pub(super) fn keeping() -> Result<Self> {
        Self::make(None, Shared { kept: Some(Mutex::default()), ..Shared::default() })
    }

    fn make(address: Option<SocketAddr>, shared: Shared) -> Result<Self> {
        let listener = TcpListener::bind(address.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 0).into()));
        let listener = listener.context("the collector cannot listen")?;
        let address = listener.local_addr().context("the collector cannot listen")?;
        let shared = Arc::new(shared);
        let theirs = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let mut open: Vec<TcpStream> = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                if theirs.ends.load(SeqCst) {
                    break;
                }
                open.extend(stream.try_clone());
                let shared = Arc::clone(&theirs);
                thread::spawn(move || serve(&stream, &shared));
            }
            for stream in open {
                // One that has ended already is closed all the same.
                drop(stream.shutdown(std::net::Shutdown::Both));
            }
        });
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// From now on it does so.
    pub(super) fn be(&self, mood: Mood) {
        let slow = if let Mood::Slow(pause) = mood { pause } else { Duration::ZERO };
        self.shared.slow_ms.store(slow.as_millis() as u64, SeqCst);
        self.shared.refuses.store(mood == Mood::Refusing, SeqCst);
    }

    /// Bodies of the requests for spans and metrics that it took, if it keeps them.
    pub(super) fn kept(&self) -> Vec<Vec<u8>> {
        let kept = self.shared.kept.as_ref().map(|kept| kept.lock().unwrap_or_else(PoisonError::into_inner).clone());
        kept.unwrap_or_default()
    }

    /// Spans that it took.
    pub(super) fn spans(&self) -> u64 {
        self.shared.spans.load(SeqCst)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.shared.ends.store(true, SeqCst);
        // Wakes the thread that accepts.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(stream: &TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream);
    while let Some(body) = body(&mut reader) {
        thread::sleep(Duration::from_millis(shared.slow_ms.load(SeqCst)));
        let refuses = shared.refuses.load(SeqCst);
        let status = if refuses { "503 Service Unavailable" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n");
        if shared.ends.load(SeqCst) || (&*stream).write_all(answer.as_bytes()).is_err() {
            return;
        }
        if !refuses {
            shared.spans.fetch_add(marks(&body), SeqCst);
            if let Some(kept) = &shared.kept {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(body);
            }
        }
    }
}

/// Body of the next request; `None` at the end of the connection.
fn body(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body).ok()?;
    Some(body)
}

fn marks(body: &[u8]) -> u64 {
    body.windows(MARK.len()).filter(|window| *window == MARK).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(stream: &mut TcpStream) -> String {
        write!(stream, "POST / HTTP/1.1\r\ncontent-length: 34\r\n\r\nxchatcmpl-bench-1 chatcmpl-bench-2").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        let mut rest = Vec::new();
        while !rest.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            rest.extend(byte);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[test]
    fn it_takes_refuses_dies_and_comes_back() {
        let collector = Collector::listen(None).unwrap();
        let address = collector.address;
        let mut stream = TcpStream::connect(address).unwrap();
        assert_eq!(post(&mut stream), "HTTP/1.1 200");
        collector.be(Mood::Refusing);
        assert_eq!(post(&mut stream), "HTTP/1.1 503");
        assert_eq!(collector.spans(), 2);
        drop(collector);
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "open connections are closed");
        assert!(TcpStream::connect(address).is_err());
        let again = Collector::listen(Some(address)).unwrap();
        assert_eq!(post(&mut TcpStream::connect(address).unwrap()), "HTTP/1.1 200");
        drop(again);
    }
}
