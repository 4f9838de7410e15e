//! A recording in memory, and the exchanges that a replay of it gives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nexent_observer_core::{
    event::ConnId,
    limits::Limits,
    pipeline::{Output, Replay, Tap, Tapped},
    tape::{
        Redactor, Secret,
        entry::{self, Entry},
    },
    timing::{Exchange, Options, Rule, Tokenizer, Tokenizers},
};

/// A word with the space before it is a token; of models with this in their names.
#[derive(Debug)]
struct Words(&'static str);

impl Tokenizers for Words {
    fn of_model(&self, model: &str) -> Option<Arc<dyn Tokenizer>> {
        model.contains(self.0).then(|| Arc::new(Self(self.0)) as Arc<dyn Tokenizer>)
    }
}

impl Tokenizer for Words {
    fn settled(&self, text: &str, from: usize) -> usize {
        text.rfind(' ').filter(|&at| at >= from).unwrap_or(0)
    }

    fn count(&self, text: &str, _begins: bool) -> Option<u64> {
        Some(text.split_whitespace().count() as u64)
    }
}

/// With content, and with a tokenizer of words for models that have `models` in their names.
pub(crate) fn counting(models: &'static str) -> Options {
    Options { capture_content: true, tokenizers: Some(Arc::new(Words(models))) }
}

/// Entries of a redacted recording.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tape(pub(crate) Arc<Mutex<Vec<Vec<u8>>>>);

/// Redacts what it is shown and writes it to a [`Tape`].
#[derive(Debug)]
struct Recording {
    redactor: Redactor,
    tape: Tape,
}

impl Tap for Recording {
    fn take(&mut self, conn: ConnId, tapped: Tapped<'_>) {
        let Self { redactor, tape } = self;
        redactor.take(conn, &tapped, &mut |entry| tape.entries().push(entry.to_vec()));
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let Self { redactor, tape } = self;
        redactor.finish(&mut |entry| tape.entries().push(entry.to_vec()));
        assert_eq!(redactor.forced, 0, "nothing had to be given up");
    }
}

impl Tape {
    /// What a pipeline is to be tapped with.
    pub(crate) fn tap(&self) -> Box<dyn Tap> {
        Box::new(Recording { redactor: Redactor::new(Secret::new([9; 16])), tape: self.clone() })
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Exchanges of a replay.
    pub(crate) fn replay(&self, limits: Limits) -> Vec<Exchange> {
        // What a replay could count itself is filler, and must not be.
        let mut replay = Replay::new(limits, &counting(""));
        let mut exchanges = Vec::new();
        for bytes in self.entries().iter() {
            let tapped = entry::read(bytes, |entry| {
                let Entry::Tapped(conn, tapped) = entry else { panic!("{entry:?}") };
                replay.handle(conn, &tapped);
            });
            assert_eq!(tapped, Ok(()));
            while let Some(Output::Exchange(exchange)) = replay.poll_output() {
                exchanges.push(*exchange);
            }
        }
        exchanges
    }
}

/// An exchange without what is not kept by intention: ids, text, served requests, and in the path what is none of an API.
pub(crate) fn numbers(exchange: &Exchange) -> Exchange {
    let mut exchange = exchange.clone();
    let hide = |text: &mut String| *text = "x".repeat(text.len());
    exchange.response_id.iter_mut().for_each(hide);
    exchange.response.request_id.iter_mut().for_each(hide);
    hide(&mut exchange.call.path);
    exchange.output_text = None;
    // Of other requests nothing is kept: what is known of a cause is what the call itself tells.
    exchange.cause = exchange.cause.filter(|cause| matches!(cause.rule, Rule::Hook | Rule::Traceparent));
    exchange.cause.iter_mut().for_each(|cause| cause.served = None);
    exchange
}

/// Panics unless a replay gives the same numbers, whatever the order.
pub(crate) fn assert_replays(tape: &Tape, live: &[Exchange], limits: Limits) {
    let mut live = live.to_vec();
    let mut replayed = tape.replay(limits);
    // What ends at one moment (a process's connections) does so in no order.
    live.sort_by_key(|exchange| exchange.id);
    replayed.sort_by_key(|exchange| exchange.id);
    for (live, replayed) in live.iter().zip(&replayed) {
        assert_eq!(numbers(live), numbers(replayed));
    }
    assert_eq!(live.len(), replayed.len());
}
