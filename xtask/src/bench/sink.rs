//! A collector that takes every OTLP/HTTP request and keeps none.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};

/// The listening collector; it ends with this process.
pub(crate) struct Sink {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    spans: Arc<AtomicU64>,
}

impl Sink {
    /// Listens on loopback.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
        let address = listener.local_addr().context("cannot listen on loopback")?;
        let spans = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&spans);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let spans = Arc::clone(&counted);
                thread::spawn(move || serve(&stream, &spans));
            }
        });
        Ok(Self { address, spans })
    }

    /// Bytes of spans that it was sent.
    pub(crate) fn span_bytes(&self) -> u64 {
        self.spans.load(Ordering::Relaxed)
    }
}

/// Answers requests until the peer closes or says something that is none.
fn serve(stream: &TcpStream, spans: &AtomicU64) {
    let mut reader = BufReader::new(stream);
    while let Some((path, length)) = head(&mut reader) {
        let body = std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink());
        let mut writer = stream;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n";
        if body.is_err() || writer.write_all(answer).is_err() {
            return;
        }
        if path == "/v1/traces" {
            spans.fetch_add(length, Ordering::Relaxed);
        }
    }
}

/// Path and content length of the next request.
fn head(reader: &mut impl BufRead) -> Option<(String, u64)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split_whitespace().nth(1)?.to_owned();
    let mut length = 0;
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.trim().parse().ok()?,
            Some(_) => {}
            None => return Some((path, length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_requests_on_one_connection_are_answered_and_their_spans_counted() {
        let sink = Sink::start().unwrap();
        let mut stream = TcpStream::connect(sink.address).unwrap();
        for (path, body) in [("/v1/traces", "abcd"), ("/v1/metrics", "ef")] {
            write!(stream, "POST {path} HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
            let mut answer = [0; 15];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            // The rest of the answer: up to the empty line.
            let mut rest = Vec::new();
            while !rest.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                rest.extend(byte);
            }
        }
        assert_eq!(sink.span_bytes(), 4);
    }
}
