//! A target whose TLS functions begin with `sub rsp`, as Debian's do, but whose plain and `_ex` variants lead to different inner
//! functions: no inner function can be proven, so only the public entries may be hooked. There is no TLS in it.
//!
//! Each line on stdin, `plain` or `extended`, makes one streamed completion through that pair of functions on a connection that
//! stays open; it is answered by a line on stdout.

use std::io::{BufRead, Write};

core::arch::global_asm!(
    ".macro function name",
    ".globl \\name",
    ".type \\name,@function",
    "\\name:",
    ".endm",
    ".macro plain name, inner",
    "function \\name",
    "sub rsp, 24",
    "lea rcx, [rsp + 8]",
    "call \\inner",
    "add rsp, 24",
    "ret",
    ".size \\name, .-\\name",
    ".endm",
    ".macro extended name, inner",
    "function \\name",
    "sub rsp, 8",
    "call \\inner",
    "add rsp, 8",
    "ret",
    ".size \\name, .-\\name",
    ".endm",
    // All bytes are moved at once: the length goes through the pointer, and is returned or 1 is.
    ".macro inner name, returned:vararg",
    "function \\name",
    "push rbp",
    "mov rbp, rsp",
    "mov [rcx], rdx",
    "mov \\returned",
    "pop rbp",
    "ret",
    ".size \\name, .-\\name",
    ".endm",
    "plain SSL_read, odd_read",
    "plain SSL_write, odd_write",
    "extended SSL_read_ex, odd_read_ex",
    "extended SSL_write_ex, odd_write_ex",
    "inner odd_read, eax, edx",
    "inner odd_write, eax, edx",
    "inner odd_read_ex, eax, 1",
    "inner odd_write_ex, eax, 1",
);

unsafe extern "C" {
    fn SSL_read(ssl: u64, buf: *const u8, n: i32) -> i32;
    fn SSL_write(ssl: u64, buf: *const u8, n: i32) -> i32;
    fn SSL_read_ex(ssl: u64, buf: *const u8, n: usize, moved: *mut usize) -> i32;
    fn SSL_write_ex(ssl: u64, buf: *const u8, n: usize, moved: *mut usize) -> i32;
}

const BODY: &str = r#"{"model":"odd-model","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

fn read(extended: bool, ssl: u64, bytes: &[u8]) {
    let mut moved = 0;
    // SAFETY: the functions touch nothing but `moved`.
    unsafe {
        if extended {
            SSL_read_ex(ssl, bytes.as_ptr(), bytes.len(), &raw mut moved);
        } else {
            SSL_read(ssl, bytes.as_ptr(), bytes.len() as i32);
        }
    }
}

fn write(extended: bool, ssl: u64, bytes: &[u8]) {
    let mut moved = 0;
    // SAFETY: as above.
    unsafe {
        if extended {
            SSL_write_ex(ssl, bytes.as_ptr(), bytes.len(), &raw mut moved);
        } else {
            SSL_write(ssl, bytes.as_ptr(), bytes.len() as i32);
        }
    }
}

fn chunk(event: &str) -> Vec<u8> {
    let data = format!("data: {event}\n\n");
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

fn exchange(extended: bool) {
    let ssl = if extended { 0x2000 } else { 0x1000 };
    let length = BODY.len();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: odd.local\r\nContent-Type: application/json\r\n";
    write(extended, ssl, format!("{head}Content-Length: {length}\r\n\r\n{BODY}").as_bytes());
    read(extended, ssl, HEAD);
    for text in ["one", " two", " three"] {
        let choice = format!(r#"{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}"#);
        let event =
            format!(r#"{{"id":"c","object":"chat.completion.chunk","model":"odd-model","choices":[{choice}]}}"#);
        read(extended, ssl, &chunk(&event));
    }
    read(extended, ssl, &[chunk("[DONE]"), b"0\r\n\r\n".to_vec()].concat());
}

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{{\"event\":\"ready\"}}")?;
    for line in std::io::stdin().lock().lines() {
        exchange(line? == "extended");
        writeln!(out, "{{\"event\":\"made\"}}")?;
        out.flush()?;
    }
    Ok(())
}
