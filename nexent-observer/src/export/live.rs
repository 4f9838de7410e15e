//! The streams that are open now: for the gauges, the page and the terminal.

use std::sync::{Arc, Mutex, PoisonError};

use super::Service;

/// One open LLM call. Times in ns; what is not known yet is `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveStream {
    /// Who made the call.
    pub service: Arc<Service>,
    /// `gen_ai.provider.name`.
    pub provider: Option<&'static str>,
    /// Model asked for.
    pub model: Option<String>,
    /// `gen_ai.operation.name`.
    pub operation: &'static str,
    /// Since the request start.
    pub elapsed_ns: Option<u64>,
    /// Time to first token.
    pub ttft_ns: Option<u64>,
    /// Since the last output chunk (before the first one: since the request start).
    pub silent_ns: Option<u64>,
    /// Output chunks so far.
    pub chunks: u64,
    /// Output tokens so far, where the provider reports them as it goes.
    pub tokens: Option<u64>,
    /// Present token rate, tokens/s.
    pub tokens_per_second: Option<f64>,
}

/// The last snapshot of open streams. The event loop replaces it; readers get the whole of one moment.
#[derive(Debug, Default)]
pub struct Live {
    streams: Mutex<Arc<[LiveStream]>>,
}

impl Live {
    /// Replaces the snapshot.
    pub fn set(&self, streams: Vec<LiveStream>) {
        let new: Arc<[LiveStream]> = streams.into();
        let mut held = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *held, new);
        drop(held);
        drop(old); // thousands of streams are freed outside the lock
    }

    /// The snapshot.
    #[must_use]
    pub fn get(&self) -> Arc<[LiveStream]> {
        Arc::clone(&self.streams.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
