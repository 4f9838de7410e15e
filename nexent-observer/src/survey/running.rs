//! Asks the observer that runs here which processes it should see and does not: only it has the probes.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::{config::Listen, probe::silence::Silent, web};

/// Longest wait for each step: the connection, the request, the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most bytes of an answer.
const ANSWER_BYTES: usize = 1 << 20;

/// What it says; `None`: none answers where this configuration has it listen.
pub(super) fn ask(listen: Listen) -> Option<Vec<Silent>> {
    let Listen::On(address) = listen else { return None };
    // One that listens on all addresses is asked on loopback.
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let answer = get(SocketAddr::new(ip, address.port())).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let ok = head.split_ascii_whitespace().nth(1) == Some("200");
    ok.then(|| serde_json::from_str(body).ok()).flatten()
}

fn get(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer comes whole and ends with the connection.
    write!(stream, "GET {} HTTP/1.0\r\nHost: {address}\r\n\r\n", web::SILENT)?;
    let until = Instant::now() + PATIENCE;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while answer.len() < ANSWER_BYTES {
        // All of it in that time, not each part: who listens there may be anybody.
        let left = until.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut part)? {
            0 => break,
            _ if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            n => answer.extend_from_slice(part.get(..n).unwrap_or_default()),
        }
    }
    String::from_utf8(answer).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;
    use crate::probe::silence::Cause;

    /// What is made of this answer.
    fn answered(answer: &'static str) -> Option<Vec<Silent>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let n = stream.read(&mut request).unwrap();
            assert!(request[..n].starts_with(b"GET /silent HTTP/1.0\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let found = ask(Listen::On(address));
        server.join().unwrap();
        found
    }

    #[test]
    fn only_an_observer_counts_as_an_answer() {
        let silent = r#"[{"pid":7,"cause":"bytes_unseen","why":"w","advice":"a"}]"#;
        let head = "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n";
        let answer: &'static str = Box::leak(format!("{head}{silent}").into_boxed_str());
        let found = answered(answer).unwrap();
        assert_eq!((found[0].pid, found[0].cause), (7, Cause::BytesUnseen));
        assert_eq!(answered("HTTP/1.0 200 OK\r\n\r\n[]"), Some(Vec::new()));
        for other in ["HTTP/1.0 404 Not Found\r\n\r\n[]", "HTTP/1.0 200 OK\r\n\r\n<html>", "", "[]"] {
            assert_eq!(answered(other), None, "{other}");
        }
        assert_eq!(ask(Listen::Off), None);
    }
}
