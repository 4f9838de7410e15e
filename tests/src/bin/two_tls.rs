//! A target with two implementations of TLS: rustls with ring, which nobody can hook and which all its traffic goes through, and
//! `SSL_read` and `SSL_write`, which are hooked, have no TLS in them and are called only when asked to.
//!
//! `two_tls ADDRESS CERTIFICATE`; commands on stdin, one a line, each answered by a line on stdout:
//! `ask BYTES` - a chat completion with a prompt of so many bytes, through rustls, on one connection that stays open;
//! `prelude` - the next connection says eight bytes in the clear first and waits for one, as Postgres's clients do;
//! `seen` - a request and an answer through the hooked functions.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

core::arch::global_asm!(
    ".macro moves name",
    ".globl \\name",
    ".type \\name,@function",
    "\\name:",
    "push rbp",
    "mov rbp, rsp",
    "mov eax, edx",
    "pop rbp",
    "ret",
    ".size \\name, .-\\name",
    ".endm",
    "moves SSL_read",
    "moves SSL_write",
);

unsafe extern "C" {
    fn SSL_read(ssl: u64, buf: *const u8, n: i32) -> i32;
    fn SSL_write(ssl: u64, buf: *const u8, n: i32) -> i32;
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

fn seen() {
    let request = b"GET /nothing HTTP/1.1\r\nHost: seen.local\r\n\r\n";
    let answer = b"HTTP/1.1 204 No Content\r\n\r\n";
    // SAFETY: the functions return their third argument and touch nothing.
    let moved = unsafe {
        SSL_write(0x1000, request.as_ptr(), request.len() as i32)
            + SSL_read(0x1000, answer.as_ptr(), answer.len() as i32)
    };
    assert_eq!(moved as usize, request.len() + answer.len());
}

fn connect(address: &str, config: &Arc<ClientConfig>, prelude: bool) -> io::Result<BufReader<Stream>> {
    let mut socket = TcpStream::connect(address)?;
    if prelude {
        // `SSLRequest` of Postgres.
        socket.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
        socket.read_exact(&mut [0])?;
    }
    let name = "localhost".try_into().map_err(io::Error::other)?;
    let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    Ok(BufReader::new(StreamOwned::new(connection, socket)))
}

/// One completion that is not streamed.
fn ask(stream: &mut BufReader<Stream>, bytes: usize) -> io::Result<()> {
    let prompt = "x".repeat(bytes);
    let body = format!(
        r#"{{"model":"sim-plain","messages":[{{"role":"user","content":"{prompt}"}}],"metadata":{{"scenario":"plain","seed":"1","chunks":"5"}}}}"#
    );
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sk-test\r\nContent-Type: application/json";
    write!(stream.get_mut(), "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    stream.get_mut().flush()?;
    let mut length = None;
    let mut first = String::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if first.is_empty() {
            first.clone_from(&line);
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse::<usize>().ok();
        }
        if line.is_empty() {
            break;
        }
    }
    assert!(first.starts_with("http/1.1 200"), "{first}");
    stream.read_exact(&mut vec![0; length.expect("an answer with its length")])
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, address, certificate] = arguments.as_slice() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).map_err(io::Error::other)?).map_err(io::Error::other)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    let (mut stream, mut prelude) = (None, false);
    let mut out = io::stdout();
    writeln!(out, "{{\"event\":\"ready\"}}")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ') {
            Some(("ask", bytes)) => {
                let bytes = bytes.parse().map_err(io::Error::other)?;
                let stream = match &mut stream {
                    Some(stream) => stream,
                    none => none.insert(connect(address, &config, prelude)?),
                };
                ask(stream, bytes)?;
            }
            None if line == "prelude" => prelude = true,
            None if line == "seen" => seen(),
            _ => return Err(io::Error::other(format!("no command: {line}"))),
        }
        writeln!(out, "{{\"event\":\"made\"}}")?;
        out.flush()?;
    }
    Ok(())
}
