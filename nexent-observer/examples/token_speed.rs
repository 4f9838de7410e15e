//! What counting tokens costs per chunk: `cargo run --release -p nexent-observer --example token_speed`.
//!
//! Feeds stage 6 with the chunks of an English answer, one token each, with a tokenizer and without, and with pieces of Chinese and
//! of code; prints one JSON line, in ns per chunk.
#![expect(clippy::print_stdout, reason = "the line is what this program is for")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nexent_observer::tokens::Known;
use nexent_observer_core::{
    event::{ConnId, MonoNs, Stamp},
    limits::Limits,
    llm::{LlmEvent, LlmEventKind, Payload},
    stats::Stats,
    timing::{ExchangeId, Options, Progress, Timing, Tokenizers},
};

const STREAM: usize = 500;
const ROUNDS: usize = 400;

const ENGLISH: [&str; 24] = [
    "The",
    " answer",
    " to",
    " your",
    " question",
    " is",
    " that",
    " tokens",
    " are",
    " counted",
    " as",
    " they",
    " come",
    ",",
    " and",
    " each",
    " word",
    " is",
    " looked",
    " up",
    " once",
    ".",
    "\n\n",
    "It",
];
const CHINESE: [&str; 10] = ["今天", "的", "天气", "很好", "，", "我们", "去", "公园", "散步", "。"];
const CODE: [&str; 14] =
    ["def", " fib", "(n", "):\n", "   ", " return", " n", " if", " n", " <", " ", "2", " else", " fib"];

fn main() {
    let known: Arc<dyn Tokenizers> = match Known::load(&[]) {
        Ok(known) => Arc::new(known),
        Err(error) => return println!("{error}"),
    };
    let ready = || known.of_model("gpt-4o").is_some_and(|tokenizer| tokenizer.count("x", true).is_some());
    let begin = Instant::now();
    while !ready() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let ready_ms = begin.elapsed().as_secs_f64() * 1e3;
    let off = Options::default();
    let on = Options { tokenizers: Some(known), ..Options::default() };
    let cost = |words: &[&str], options: &Options| ns_per_chunk(words, options);
    println!(
        "{{\"ready_ms\":{ready_ms:.0},\"off\":{:.0},\"english\":{:.0},\"chinese\":{:.0},\"code\":{:.0}}}",
        cost(&ENGLISH, &off),
        cost(&ENGLISH, &on),
        cost(&CHINESE, &on),
        cost(&CODE, &on)
    );
}

/// The best of some rounds: others run on the machine too.
fn ns_per_chunk(words: &[&str], options: &Options) -> f64 {
    let round = |_| {
        let begin = Instant::now();
        stream(words, options);
        begin.elapsed().as_nanos() as f64 / STREAM as f64
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

fn stream(words: &[&str], options: &Options) {
    let id = ExchangeId { conn: ConnId(1), no: 0 };
    let mut timing = Timing::new(id, 1, None, options, &Limits::default());
    let mut feed = |ns: u64, kind| {
        let at = Stamp { entry: MonoNs(ns), ret: MonoNs(ns) };
        assert_eq!(timing.feed(&LlmEvent { at, kind }), Progress::Open);
    };
    feed(1, LlmEventKind::Identity { model: Some("gpt-4o-2024-08-06"), id: None });
    for (ns, text) in (1000..).step_by(1_000_000).zip(words.iter().cycle().take(STREAM)) {
        feed(ns, LlmEventKind::Chunk);
        feed(ns, LlmEventKind::Delta { payload: Payload::Text, choice: 0, text });
    }
    std::hint::black_box(timing.finish(&mut Stats::default()));
}
