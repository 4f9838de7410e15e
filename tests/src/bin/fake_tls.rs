//! A target whose TLS functions cost nothing, so that what a probe costs can be measured, and whose traffic can be made at any
//! rate. It has `SSL_read`, `SSL_write`, `SSL_new` and `SSL_free` with the beginning of a real one (`push`), and no TLS.
//!
//! Commands on stdin, one a line, answered by one line of JSON on stdout:
//! `time BATCHES CALLS` - time that many batches of so many 200-byte reads;
//! `load CONNECTIONS RATE SECONDS` - chat completions on so many connections, RATE chunks a second each;
//! `requests N BYTES` - N requests of so many bytes, each answered by a short stream.

use std::{
    io::{BufRead, Write},
    time::{Duration, Instant},
};

core::arch::global_asm!(
    ".globl SSL_read",
    ".type SSL_read,@function",
    "SSL_read:",
    "push rbp",
    "mov rbp, rsp",
    "mov eax, edx",
    "pop rbp",
    "ret",
    ".size SSL_read, .-SSL_read",
    ".globl SSL_write",
    ".type SSL_write,@function",
    "SSL_write:",
    "push rbp",
    "mov rbp, rsp",
    "mov eax, edx",
    "pop rbp",
    "ret",
    ".size SSL_write, .-SSL_write",
    ".globl SSL_new",
    ".type SSL_new,@function",
    "SSL_new:",
    "push rbp",
    "mov rbp, rsp",
    "mov rax, rdi",
    "pop rbp",
    "ret",
    ".size SSL_new, .-SSL_new",
    ".globl SSL_free",
    ".type SSL_free,@function",
    "SSL_free:",
    "push rbp",
    "mov rbp, rsp",
    "pop rbp",
    "ret",
    ".size SSL_free, .-SSL_free",
);

unsafe extern "C" {
    fn SSL_read(ssl: u64, buf: *const u8, n: i32) -> i32;
    fn SSL_write(ssl: u64, buf: *const u8, n: i32) -> i32;
    fn SSL_new(ssl: u64) -> u64;
    fn SSL_free(ssl: u64);
}

/// Pretends that these bytes were read.
fn read(ssl: u64, bytes: &[u8]) {
    // SAFETY: the function only returns its third argument.
    unsafe { SSL_read(ssl, bytes.as_ptr(), bytes.len() as i32) };
}

/// Pretends that these bytes were written.
fn write(ssl: u64, bytes: &[u8]) {
    // SAFETY: as above.
    unsafe { SSL_write(ssl, bytes.as_ptr(), bytes.len() as i32) };
}

fn open(ssl: u64) {
    // SAFETY: the function returns its argument.
    unsafe { SSL_new(ssl) };
}

fn close(ssl: u64) {
    // SAFETY: the function does nothing.
    unsafe { SSL_free(ssl) };
}

fn request(body_bytes: usize) -> Vec<u8> {
    let tail = r#""}],"model":"gpt-4o","stream":true,"stream_options":{"include_usage":true}}"#;
    let head = r#"{"messages":[{"role":"user","content":""#;
    let filler = "x".repeat(body_bytes.saturating_sub(head.len() + tail.len()));
    let body = format!("{head}{filler}{tail}");
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench.local\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn chunked(event: &str) -> Vec<u8> {
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn event(id: u64, content: &str) -> Vec<u8> {
    chunked(&format!(
        "data: {{\"id\":\"chatcmpl-bench-{id:012}\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
         \"model\":\"gpt-4o\",\"system_fingerprint\":\"fp_0123456789\",\"choices\":[{{\"index\":0,\
         \"delta\":{{\"content\":\"{content}\"}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
    ))
}

fn tail(id: u64, tokens: u64) -> Vec<u8> {
    let usage = chunked(&format!(
        "data: {{\"id\":\"chatcmpl-bench-{id:012}\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
         \"model\":\"gpt-4o\",\"choices\":[],\"usage\":{{\"prompt_tokens\":10,\"completion_tokens\":{tokens},\
         \"total_tokens\":{}}}}}\n\n",
        tokens + 10
    ));
    [usage, chunked("data: [DONE]\n\n"), b"0\r\n\r\n".to_vec()].concat()
}

/// Times batches of 200-byte reads; between batches it rests so that the rings are drained.
fn time(batches: u64, calls: u64) -> String {
    let bytes = [b'a'; 200];
    let ssl = 0x1000;
    open(ssl);
    write(ssl, &request(100));
    let mut per_call: Vec<f64> = (0..batches)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..calls {
                read(ssl, &bytes);
            }
            let ns = start.elapsed().as_nanos() as f64 / calls as f64;
            std::thread::sleep(Duration::from_millis(15));
            ns
        })
        .collect();
    close(ssl);
    per_call.sort_by(f64::total_cmp);
    let at = |q: f64| per_call.get((q * (per_call.len() - 1) as f64) as usize).copied().unwrap_or(f64::NAN);
    format!("{{\"event\":\"done\",\"min_ns\":{:.1},\"median_ns\":{:.1}}}", at(0.0), at(0.5))
}

/// An answer under way: its id is the same in all of its chunks, as providers have it.
struct Answer {
    id: u64,
    /// Where in it its first chunk is, and where it is now.
    began: u64,
    at: u64,
}

/// Streams on `connections` connections, each `rate` chunks a second, a new exchange after 500 chunks.
fn load(connections: u64, rate: u64, seconds: u64) -> String {
    const CHUNKS: u64 = 500;
    /// Parts of a second that it may be behind: 10 ms.
    const MOST_BEHIND: u64 = 100;
    let begin = |ssl: u64| {
        open(ssl);
        write(ssl, &request(600));
        read(ssl, HEAD);
    };
    // The first answers are shorter, so that they do not all end at the same time.
    let begins = |i| i * CHUNKS / connections;
    let mut answers: Vec<Answer> =
        (0..connections).map(|i| Answer { id: i, began: begins(i), at: begins(i) }).collect();
    let mut exchanges = 0u64;
    let mut chunks = 0u64;
    (0..connections).for_each(|i| begin(0x10_0000 + i * 64));
    let start = Instant::now();
    let total_rate = connections * rate;
    let (mut made, mut forgiven) = (0u64, 0u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        let due = (start.elapsed().as_secs_f64() * total_rate as f64) as u64;
        // What was missed while others had the CPU is not made up for: that would be a burst far above the rate asked for.
        forgiven = forgiven.max(due.saturating_sub(made + total_rate / MOST_BEHIND));
        while made + forgiven < due {
            let i = made % connections;
            let ssl = 0x10_0000 + i * 64;
            if let Some(answer) = answers.get_mut(i as usize) {
                read(ssl, &event(answer.id, " token"));
                answer.at += 1;
                chunks += 1;
                if answer.at == CHUNKS {
                    read(ssl, &tail(answer.id, CHUNKS - answer.began));
                    exchanges += 1;
                    *answer = Answer { id: answer.id + connections, began: 0, at: 0 };
                    write(ssl, &request(600));
                    read(ssl, HEAD);
                }
            }
            made += 1;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    let late = start.elapsed().as_secs_f64();
    for (i, answer) in answers.iter().enumerate() {
        let ssl = 0x10_0000 + i as u64 * 64;
        read(ssl, &tail(answer.id, answer.at - answer.began));
        exchanges += 1;
        close(ssl);
    }
    format!("{{\"event\":\"done\",\"chunks\":{chunks},\"exchanges\":{exchanges},\"seconds\":{late:.3}}}")
}

/// Large requests, all connections at once.
fn requests(n: u64, bytes: usize) -> String {
    let body = request(bytes);
    (0..n).for_each(|i| open(0x20_0000 + i * 64));
    (0..n).for_each(|i| write(0x20_0000 + i * 64, &body));
    for i in 0..n {
        let ssl = 0x20_0000 + i * 64;
        read(ssl, HEAD);
        read(ssl, &event(i, "a"));
        read(ssl, &tail(i, 1));
        close(ssl);
    }
    format!("{{\"event\":\"done\",\"exchanges\":{n},\"chunks\":{n},\"bytes\":{}}}", body.len() as u64 * n)
}

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{{\"event\":\"ready\",\"pid\":{}}}", std::process::id())?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        let answer = match words.first() {
            Some(&"time") => time(number(1), number(2)),
            Some(&"load") => load(number(1).max(1), number(2), number(3)),
            Some(&"requests") => requests(number(1), number(2) as usize),
            _ => "{\"error\":\"unknown command\"}".to_owned(),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
