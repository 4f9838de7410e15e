//! A target in which one implementation of TLS is made of another one, so that two hooked functions move the same bytes, one inside the
//! other: `gnutls_record_recv` and `gnutls_record_send` hand all they get to `SSL_read` and `SSL_write`. There is no TLS in it.
//!
//! Each line on stdin makes one streamed completion, on a connection that stays open, and is answered by a line on stdout.

use std::io::{BufRead, Write};

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
    ".macro hands name, inner",
    ".globl \\name",
    ".type \\name,@function",
    "\\name:",
    "push rbp",
    "mov rbp, rsp",
    "call \\inner",
    "pop rbp",
    "ret",
    ".size \\name, .-\\name",
    ".endm",
    "moves SSL_read",
    "moves SSL_write",
    "hands gnutls_record_recv, SSL_read",
    "hands gnutls_record_send, SSL_write",
);

unsafe extern "C" {
    fn gnutls_record_recv(session: u64, buf: *const u8, n: usize) -> i32;
    fn gnutls_record_send(session: u64, buf: *const u8, n: usize) -> i32;
}

const SESSION: u64 = 0x3000;
const BODY: &str = r#"{"model":"nested-model","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

fn read(bytes: &[u8]) {
    // SAFETY: the function returns its third argument and touches nothing.
    let got = unsafe { gnutls_record_recv(SESSION, bytes.as_ptr(), bytes.len()) };
    assert_eq!(got, bytes.len() as i32);
}

fn chunk(event: &str) -> Vec<u8> {
    let data = format!("data: {event}\n\n");
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

fn exchange() {
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: nested.local\r\nContent-Type: application/json\r\n";
    let request = format!("{head}Content-Length: {}\r\n\r\n{BODY}", BODY.len());
    // SAFETY: as above.
    let got = unsafe { gnutls_record_send(SESSION, request.as_ptr(), request.len()) };
    assert_eq!(got, request.len() as i32);
    read(HEAD);
    for text in ["one", " two", " three"] {
        let choice = format!(r#"{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}"#);
        read(&chunk(&format!(
            r#"{{"id":"c","object":"chat.completion.chunk","model":"nested-model","choices":[{choice}]}}"#
        )));
    }
    read(&[chunk("[DONE]"), b"0\r\n\r\n".to_vec()].concat());
}

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{{\"event\":\"ready\"}}")?;
    for line in std::io::stdin().lock().lines() {
        line?;
        exchange();
        writeln!(out, "{{\"event\":\"made\"}}")?;
        out.flush()?;
    }
    Ok(())
}
