//! What the API says, as far as it is shown here, and what is kept of it.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use serde::Deserialize;

/// Ticks kept of one stream.
pub(super) const TICKS: usize = 64;
/// Calls kept.
const CALLS: usize = 200;

/// One event. A field that is not there is unknown: an older or newer observer may answer.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Frame {
    /// Everything, or what is new.
    pub(super) whole: bool,
    pub(super) health: Health,
    pub(super) streams: Vec<Stream>,
    pub(super) streams_total: usize,
    #[serde(default)]
    pub(super) seconds: Vec<[u64; 6]>,
    #[serde(default)]
    pub(super) exchanges: Vec<Call>,
    #[serde(default)]
    pub(super) recent: Option<Recent>,
}

/// The observer's state.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Health {
    pub(super) state: String,
    pub(super) uptime_s: f64,
    pub(super) processes: u64,
    pub(super) probes: u64,
    pub(super) lost_records: u64,
    pub(super) llm_exchanges: u64,
    pub(super) incomplete: u64,
}

/// An open stream.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stream {
    pub(super) id: String,
    pub(super) service: String,
    pub(super) pid: u32,
    pub(super) model: Option<String>,
    pub(super) elapsed_s: Option<f64>,
    pub(super) ttft_s: Option<f64>,
    pub(super) silent_s: Option<f64>,
    pub(super) chunks: u64,
    pub(super) tokens_per_s: Option<f64>,
    pub(super) ticks_ms_ago: Vec<u64>,
}

/// A call that ended.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Call {
    pub(super) seq: u64,
    pub(super) end_unix_ms: Option<u64>,
    pub(super) service: String,
    pub(super) model: Option<String>,
    pub(super) outcome: String,
    pub(super) error_type: Option<String>,
    pub(super) ttft_s: Option<f64>,
    pub(super) duration_s: Option<f64>,
    pub(super) decode_tokens_per_s: Option<f64>,
    pub(super) tokens: Tokens,
    pub(super) stalls: Vec<(f64, f64)>,
    pub(super) stalled_before_first_token: bool,
}

/// Token counts of a call.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tokens {
    pub(super) output: Option<u64>,
}

/// Figures over the last calls.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Recent {
    pub(super) all: Figures,
}

/// Figures of a group of calls.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Figures {
    pub(super) calls: usize,
    pub(super) failed: usize,
    pub(super) stalled: usize,
    pub(super) ttft_p50_s: Option<f64>,
    pub(super) ttft_p95_s: Option<f64>,
    pub(super) decode_p50_tokens_per_s: Option<f64>,
}

/// A stream and what is remembered of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Row {
    pub(super) stream: Stream,
    /// When it was heard of last.
    pub(super) heard: Option<Instant>,
    /// Gaps between its ticks, the newest last.
    pub(super) gaps: VecDeque<Duration>,
    pub(super) last_tick: Option<Instant>,
}

impl Row {
    /// Seconds of silence at `now`.
    pub(super) fn silent(&self, now: Instant) -> Option<f64> {
        let since = self.heard.map_or(0.0, |heard| now.saturating_duration_since(heard).as_secs_f64());
        self.stream.silent_s.map(|silent| silent + since)
    }

    fn update(&mut self, stream: Stream, now: Instant) {
        for ago in &stream.ticks_ms_ago {
            let Some(at) = now.checked_sub(Duration::from_millis(*ago)) else { continue };
            if let Some(gap) = self.last_tick.and_then(|last| at.checked_duration_since(last)) {
                if self.gaps.len() >= TICKS {
                    self.gaps.pop_front();
                }
                self.gaps.push_back(gap);
            }
            self.last_tick = Some(at);
        }
        self.heard = Some(now);
        self.stream = stream;
    }
}

/// Everything that is known.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) health: Health,
    pub(super) rows: HashMap<String, Row>,
    pub(super) streams_total: usize,
    pub(super) recent: Recent,
    /// Output chunks/s over the last 5 s.
    pub(super) rate: Option<f64>,
    /// The newest first.
    pub(super) calls: VecDeque<Call>,
    seconds: VecDeque<u64>,
}

impl State {
    /// Takes an event.
    pub(super) fn take(&mut self, frame: Frame) {
        let now = Instant::now();
        if frame.whole {
            *self = Self::default();
        }
        let mut rows = std::mem::take(&mut self.rows);
        for stream in frame.streams {
            let id = stream.id.clone();
            let mut row = rows.remove(&id).unwrap_or_default();
            row.update(stream, now);
            self.rows.insert(id, row);
        }
        for second in frame.seconds {
            if self.seconds.len() >= 5 {
                self.seconds.pop_front();
            }
            self.seconds.push_back(second[1]);
        }
        let seconds = self.seconds.len();
        self.rate = (seconds > 0).then(|| self.seconds.iter().sum::<u64>() as f64 / seconds as f64);
        let newest = self.newest();
        for call in frame.exchanges.into_iter().rev().filter(|call| call.seq > newest) {
            self.calls.push_front(call);
        }
        self.calls.truncate(CALLS);
        self.recent = frame.recent.unwrap_or_else(|| std::mem::take(&mut self.recent));
        self.health = frame.health;
        self.streams_total = frame.streams_total;
    }

    /// Number of the newest call; 0 before the first.
    pub(super) fn newest(&self) -> u64 {
        self.calls.front().map_or(0, |call| call.seq)
    }

    /// Calls after a number, the oldest first.
    pub(super) fn calls_after(&self, seq: u64) -> impl Iterator<Item = &Call> {
        let new = self.calls.iter().take_while(move |call| call.seq > seq).count();
        self.calls.iter().take(new).rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(json: &str) -> Frame {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_stream_keeps_its_gaps_from_event_to_event_and_goes_when_it_is_not_named() {
        let mut state = State::default();
        state.take(frame(
            r#"{"whole":true,"health":{},"streams_total":1,"streams":[{"id":"1-0","ticks_ms_ago":[300,200,50]}]}"#,
        ));
        let gaps: Vec<u128> = state.rows["1-0"].gaps.iter().map(Duration::as_millis).collect();
        assert_eq!(gaps, [100, 150]);
        state.take(frame(
            r#"{"whole":false,"health":{},"streams_total":1,"streams":[{"id":"1-0","ticks_ms_ago":[0]}]}"#,
        ));
        assert_eq!(state.rows["1-0"].gaps.len(), 3);
        state.take(frame(r#"{"whole":false,"health":{},"streams_total":0,"streams":[]}"#));
        assert!(state.rows.is_empty());
    }

    #[test]
    fn a_call_is_taken_once_and_what_is_unknown_stays_so() {
        let mut state = State::default();
        let event = r#"{"whole":false,"health":{"state":"ready"},"streams":[],"streams_total":0,"seconds":[[1,10,0,0,0,0],[2,20,0,0,0,0]],
            "exchanges":[{"seq":2,"tokens":{"output":null},"ttft_s":null,"new_field":[1]},{"seq":1}]}"#;
        state.take(frame(event));
        state.take(frame(event));
        assert_eq!(state.calls_after(0).map(|call| call.seq).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(state.calls_after(1).map(|call| call.ttft_s).collect::<Vec<_>>(), [None]);
        assert_eq!(state.rate, Some(15.0));
    }
}
