//! A target whose TLS functions cost nothing, so that what a probe costs can be measured, and whose traffic can be made at any
//! rate. It has `SSL_read`, `SSL_write`, `SSL_new` and `SSL_free` with the beginning of a real one (`push`), and no TLS.
//!
//! Commands on stdin, one a line, answered by one line of JSON on stdout:
//! `time BATCHES CALLS` - time that many batches of so many 200-byte reads;
//! `load CONNECTIONS RATE SECONDS` - chat completions on so many connections, RATE chunks a second each;
//! `requests N BYTES` - N requests of so many bytes, each answered by a short stream;
//! `connections N RATE MODELS` - N short connections, RATE a second, each with one short stream; of one model (`one`) or each
//! of a model of its own whose name would colour a terminal (`each`);
//! `hostile CASE MB` - on one connection an answer that no server should give: `header` (one header line of so many MB), `line` (one
//! event of as many), `bomb` (a body of gzip that unpacks to as many);
//! `map PATH` - map a file, executable, as when a library is loaded.
//!
//! An answer says what was made and how many calls were made (`calls`), and of how many the result was another one than
//! the real function gave (`wrong`).

use std::{
    io::{BufRead, Write},
    os::fd::AsRawFd,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};

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

/// Calls of reads and writes that were checked, since the last command.
static CALLS: AtomicU64 = AtomicU64::new(0);
/// Of these, calls whose result was wrong.
static WRONG: AtomicU64 = AtomicU64::new(0);
/// Connections that were freed.
static CLOSED: AtomicU64 = AtomicU64::new(0);

/// Counts a call, and that it gave what it has to.
fn check(right: bool) {
    CALLS.fetch_add(1, Relaxed);
    if !right {
        WRONG.fetch_add(1, Relaxed);
    }
}

/// Pretends that these bytes were read.
fn read(ssl: u64, bytes: &[u8]) {
    check(read_unchecked(ssl, bytes) == bytes.len() as i32);
}

/// The call alone, to be timed.
fn read_unchecked(ssl: u64, bytes: &[u8]) -> i32 {
    // SAFETY: the function only returns its third argument.
    unsafe { SSL_read(ssl, bytes.as_ptr(), bytes.len() as i32) }
}

/// Pretends that these bytes were written.
fn write(ssl: u64, bytes: &[u8]) {
    // SAFETY: as above.
    let got = unsafe { SSL_write(ssl, bytes.as_ptr(), bytes.len() as i32) };
    check(got == bytes.len() as i32);
}

fn open(ssl: u64) {
    // SAFETY: the function returns its argument.
    let got = unsafe { SSL_new(ssl) };
    if got != ssl {
        WRONG.fetch_add(1, Relaxed);
    }
}

fn close(ssl: u64) {
    CLOSED.fetch_add(1, Relaxed);
    // SAFETY: the function does nothing.
    unsafe { SSL_free(ssl) };
}

/// The counts since the last command, as the end of a JSON object.
fn checked() -> String {
    let taken = |count: &AtomicU64| count.swap(0, Relaxed);
    format!("\"calls\":{},\"wrong\":{},\"closed\":{}}}", taken(&CALLS), taken(&WRONG), taken(&CLOSED))
}

fn request(body_bytes: usize) -> Vec<u8> {
    request_of("gpt-4o", body_bytes)
}

/// A request of a model, whose name is written as JSON has it.
fn request_of(model: &str, body_bytes: usize) -> Vec<u8> {
    let tail = format!(r#""}}],"model":"{model}","stream":true,"stream_options":{{"include_usage":true}}}}"#);
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
    event_of("gpt-4o", id, content)
}

fn event_of(model: &str, id: u64, content: &str) -> Vec<u8> {
    chunked(&format!(
        "data: {{\"id\":\"chatcmpl-bench-{id:012}\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
         \"model\":\"{model}\",\"system_fingerprint\":\"fp_0123456789\",\"choices\":[{{\"index\":0,\
         \"delta\":{{\"content\":\"{content}\"}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
    ))
}

fn tail(id: u64, tokens: u64) -> Vec<u8> {
    tail_of("gpt-4o", id, tokens)
}

fn tail_of(model: &str, id: u64, tokens: u64) -> Vec<u8> {
    let usage = chunked(&format!(
        "data: {{\"id\":\"chatcmpl-bench-{id:012}\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
         \"model\":\"{model}\",\"choices\":[],\"usage\":{{\"prompt_tokens\":10,\"completion_tokens\":{tokens},\
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
                read_unchecked(ssl, &bytes);
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
    /// Connections that begin or end together; thousands at once would be a burst that no host of so many makes.
    const TOGETHER: u64 = 256;
    let rest = |i: u64| {
        if i % TOGETHER == TOGETHER - 1 {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
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
    (0..connections).for_each(|i| {
        begin(0x10_0000 + i * 64);
        rest(i);
    });
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
        rest(i as u64);
    }
    let checked = checked();
    format!("{{\"event\":\"done\",\"chunks\":{chunks},\"exchanges\":{exchanges},\"seconds\":{late:.3},{checked}")
}

/// Short connections, one after the other, each at an address of its own: three chunks, and the end.
fn connections(n: u64, rate: u64, each: bool) -> String {
    const CHUNKS: u64 = 3;
    /// Those made without a pause.
    const TOGETHER: u64 = 16;
    let start = Instant::now();
    let mut next = start;
    let pause = Duration::from_secs_f64(TOGETHER as f64 / rate.max(1) as f64);
    for i in 0..n {
        let model = if each { format!("model-{i}\\u001b[31m<b>") } else { "gpt-4o".to_owned() };
        let ssl = 0x1_0000_0000 + i * 64;
        open(ssl);
        write(ssl, &request_of(&model, 200));
        read(ssl, HEAD);
        (0..CHUNKS).for_each(|_| read(ssl, &event_of(&model, i, " token")));
        read(ssl, &tail_of(&model, i, CHUNKS));
        close(ssl);
        if i % TOGETHER == TOGETHER - 1 {
            // What was missed is not made up for, as above.
            next = (next + pause).max(Instant::now());
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
    let (seconds, chunks) = (start.elapsed().as_secs_f64(), n * CHUNKS);
    let checked = checked();
    format!("{{\"event\":\"done\",\"chunks\":{chunks},\"exchanges\":{n},\"seconds\":{seconds:.3},{checked}")
}

/// An answer that no server should give, of `mb` MB, in pieces of 16 KB as TLS has them.
fn hostile(case: &str, mb: u64) -> std::io::Result<String> {
    const PIECE: usize = 16 << 10;
    /// Pieces between two rests, so that the ring holds them.
    const TOGETHER: u64 = 64;
    let ssl = 0x3000;
    let bytes = mb << 20;
    open(ssl);
    write(ssl, &request(100));
    let piece = vec![b'a'; PIECE];
    let mut made = 0u64;
    let mut send = |bytes: &[u8]| {
        for piece in bytes.chunks(PIECE) {
            read(ssl, piece);
            made += 1;
            if made.is_multiple_of(TOGETHER) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    };
    match case {
        "header" => {
            send(b"HTTP/1.1 200 OK\r\nx-long: ");
            (0..bytes / PIECE as u64).for_each(|_| send(&piece));
            send(b"\r\n\r\n");
        }
        "line" => {
            send(HEAD);
            send(&event(0, " token"));
            send(format!("{:x}\r\ndata: ", bytes + 8).as_bytes());
            (0..bytes / PIECE as u64).for_each(|_| send(&piece));
            send(b"\n\n\r\n");
            send(&tail(0, 1));
        }
        _ => {
            let mut body = GzEncoder::new(Vec::new(), Compression::best());
            for _ in 0..bytes / PIECE as u64 {
                body.write_all(&piece)?;
            }
            let body = body.finish()?;
            send(
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                )
                .as_bytes(),
            );
            send(&body);
        }
    }
    close(ssl);
    Ok(format!("{{\"event\":\"done\",\"chunks\":0,\"exchanges\":1,{}", checked()))
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
    let (bytes, checked) = (body.len() as u64 * n, checked());
    format!("{{\"event\":\"done\",\"exchanges\":{n},\"chunks\":{n},\"bytes\":{bytes},{checked}")
}

/// Maps a whole file until the end.
fn map(path: &str) -> std::io::Result<String> {
    let file = std::fs::File::open(path)?;
    let bytes = file.metadata()?.len() as usize;
    let access = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: where it is mapped is left to the kernel, and nobody uses it.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    Ok(format!("{{\"event\":\"done\",\"bytes\":{bytes}}}"))
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
            Some(&"connections") => connections(number(1), number(2), words.get(3) == Some(&"each")),
            Some(&"hostile") => hostile(words.get(1).copied().unwrap_or_default(), number(2))?,
            Some(&"map") => map(words.get(1).copied().unwrap_or_default())?,
            _ => "{\"error\":\"unknown command\"}".to_owned(),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
