//! Every API from HTTP events to LLM events: fixtures written by hand after its documentation, whole, byte by byte and cut
//! at every offset; and the recorded exchanges where they are present.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod anthropic;
mod bedrock;
mod calls;
mod cohere;
mod corpus;
mod dashscope;
mod gemini;
mod hostile;
#[path = "../llm_support/mod.rs"]
mod llm_support;
mod mcp;
mod native;
mod ollama;
mod openai;
mod sdk;

use llm_support::{Bench, Fields, Seen};
use nexent_observer_core::{
    llm::Usage,
    stats::{DropReason, Stats},
};

/// A call under test.
#[derive(Clone, Copy)]
struct Ask<'a> {
    path: &'a str,
    host: &'a str,
    /// Header fields of the request beside its content type.
    headers: Fields<'a>,
    body: &'a [u8],
}

impl<'a> Ask<'a> {
    const fn new(host: &'a str, path: &'a str, body: &'a [u8]) -> Self {
        Self { path, host, headers: &[], body }
    }

    fn answered(self, status: u16, headers: Fields<'_>, pieces: &mut dyn Iterator<Item = &[u8]>) -> (Seen, Stats) {
        let mut bench = Bench::default();
        bench.ask(self.path, self.host, self.headers, self.body);
        bench.response_head(status, headers);
        pieces.for_each(|piece| bench.body(piece));
        bench.end();
        // Stamps differ with the cuts by their nature; they have their own tests.
        (Seen { stamps: Vec::new(), ..bench.seen }, bench.stats)
    }

    /// The answer whole, byte by byte and cut at every offset: always the same, and without a defect.
    fn answer(self, status: u16, headers: Fields<'_>, body: &[u8]) -> Seen {
        let whole = self.answered(status, headers, &mut [body].into_iter());
        assert_eq!(self.answered(status, headers, &mut body.chunks(1)), whole, "byte by byte");
        for cut in 0..=body.len() {
            let (a, b) = body.split_at(cut);
            assert_eq!(self.answered(status, headers, &mut [a, b].into_iter()), whole, "cut at {cut}");
        }
        let (seen, stats) = whole;
        for reason in DropReason::ALL {
            assert_eq!(stats.drops(reason), 0, "{}", reason.as_str());
        }
        assert!(!format!("{seen:?}").contains("secret"), "no message text, no key is kept: {seen:?}");
        seen
    }

    /// A 200 whose body is this fixture.
    fn fixture(self, headers: Fields<'_>, name: &str) -> Seen {
        self.answer(200, headers, &fixture(name))
    }

    /// Cut off after every byte: nothing is counted as a defect, nothing more than in the whole is told.
    fn truncated(self, headers: Fields<'_>, body: &[u8]) {
        let (whole, _) = self.answered(200, headers, &mut [body].into_iter());
        for end in (0..body.len()).step_by(3) {
            let (seen, stats) = self.answered(200, headers, &mut [&body[..end]].into_iter());
            assert!(whole.text.starts_with(&seen.text), "{:?} of {:?}", seen.text, whole.text);
            assert!(seen.chunks <= whole.chunks);
            assert_eq!(stats.drops(DropReason::Utf8Invalid), 0, "cut off at {end}");
        }
    }
}

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/llm/{name}", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    if name.ends_with(".events") { bedrock::frames(&bytes) } else { bytes }
}

fn usage(input: u64, output: u64, cached_input: Option<u64>, reasoning: Option<u64>) -> Option<Usage> {
    Some(Usage { input: Some(input), output: Some(output), cached_input, reasoning })
}
