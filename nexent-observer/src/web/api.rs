//! What the page and `nexent-observer top` read. The shapes stand in docs/page.md and begin with `version`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use nexent_observer_core::event::MonoNs;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::Shared;
use crate::{
    export::{
        history::{Entry, History, Second, Tick},
        live::{self, LiveStream, STRIPS, Snapshot, Watcher},
    },
    telemetry::HealthSummary,
};

/// Version of the shapes; a field may be added without a new one.
const VERSION: u32 = 1;
/// Exchanges in the first event, and at most in one answer.
const LISTED: usize = 200;
/// Rows of the comparison of models.
const MODELS: usize = 50;
/// Those who follow live at once.
pub(super) const FOLLOWERS: usize = 16;
/// An event is sent at the latest after this time, so that a loop that is stuck shows.
const SILENCE: Duration = Duration::from_secs(5);

/// One event of `/api/live`, and the answer of `/api/snapshot`.
#[derive(Debug, Serialize)]
struct Frame<'a> {
    version: u32,
    /// Everything, in the place of what was known; else what is new since the event before (streams are always all).
    whole: bool,
    unix_ms: u64,
    observer: &'static str,
    health: HealthSummary,
    processes: Vec<Process<'a>>,
    processes_total: usize,
    streams: Vec<Stream<'a>>,
    streams_total: usize,
    /// `[unix_s, output chunks, open streams, ended, failed, stalled]`.
    seconds: Vec<[u64; 6]>,
    /// The newest first.
    exchanges: Vec<&'a Entry>,
    /// Only when an exchange ended, and in the first event.
    recent: Option<Recent<'a>>,
}

#[derive(Debug, Serialize)]
struct Process<'a> {
    pid: u32,
    service: &'a str,
}

#[derive(Debug, Serialize)]
struct Stream<'a> {
    id: String,
    service: &'a str,
    pid: u32,
    provider: Option<&'a str>,
    model: Option<&'a str>,
    operation: &'a str,
    elapsed_s: Option<f64>,
    ttft_s: Option<f64>,
    silent_s: Option<f64>,
    chunks: u64,
    tokens_per_s: Option<f64>,
    /// Ages of the ticks at `unix_ms`, in ms, the oldest first.
    ticks_ms_ago: Vec<u64>,
}

/// Figures over the exchanges that are kept.
#[derive(Debug, Default, Serialize)]
struct Recent<'a> {
    /// Exchanges that are kept, and those that ended since the start.
    kept: usize,
    ended: u64,
    all: Figures,
    models: Vec<Model<'a>>,
    /// Models left out.
    more_models: usize,
}

#[derive(Debug, Serialize)]
struct Model<'a> {
    provider: Option<&'a str>,
    model: Option<&'a str>,
    #[serde(flatten)]
    figures: Figures,
}

/// Percentiles are of the nearest rank; null without a value. Incomplete exchanges are counted, and in no percentile.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Figures {
    calls: usize,
    failed: usize,
    stalled: usize,
    incomplete: usize,
    ttft_p50_s: Option<f64>,
    ttft_p95_s: Option<f64>,
    duration_p50_s: Option<f64>,
    duration_p95_s: Option<f64>,
    decode_p50_tokens_per_s: Option<f64>,
    /// Of the calls that told it; null when none did.
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

/// How far a follower is.
#[derive(Debug, Clone, Copy, Default)]
struct Position {
    begun: bool,
    at: MonoNs,
    seq: u64,
    unix_s: u64,
}

impl Position {
    /// What is new since this position, which moves on; all of it at the beginning.
    fn next(&mut self, snapshot: &Snapshot, history: &History, health: HealthSummary) -> serde_json::Result<String> {
        let whole = !self.begun;
        let exchanges = if whole { history.newest(u64::MAX, LISTED) } else { history.since(self.seq) };
        let all = if whole || !exchanges.is_empty() { history.newest(u64::MAX, usize::MAX) } else { Vec::new() };
        let recent = (whole || !exchanges.is_empty()).then(|| Recent::of(&all, history.ended()));
        let seconds = history.seconds_since(self.unix_s);
        let since = self.at;
        self.begun = true;
        self.at = snapshot.at;
        self.seq = exchanges.first().map_or(self.seq, |newest| newest.seq);
        self.unix_s = seconds.last().map_or(self.unix_s, |last| last.unix_s);
        serde_json::to_string(&Frame {
            version: VERSION,
            whole,
            unix_ms: snapshot.unix_ms,
            observer: env!("CARGO_PKG_VERSION"),
            health,
            processes: snapshot.processes.iter().map(|p| Process { pid: p.pid, service: &p.name }).collect(),
            processes_total: snapshot.processes_total,
            streams: streams(snapshot, since),
            streams_total: snapshot.streams.len(),
            seconds: seconds
                .iter()
                .map(|Second { unix_s, chunks, open, ended, errors, stalled }| {
                    [*unix_s, *chunks, *open, *ended, *errors, *stalled]
                })
                .collect(),
            exchanges: exchanges.iter().map(|entry| &**entry).collect(),
            recent,
        })
    }
}

/// The streams that are shown: all, or of very many those that have been silent longest. In the order of their numbers.
fn streams(snapshot: &Snapshot, since: MonoNs) -> Vec<Stream<'_>> {
    let mut shown: Vec<&LiveStream> = snapshot.streams.iter().collect();
    if shown.len() > STRIPS {
        shown.sort_unstable_by_key(|stream| (std::cmp::Reverse(stream.silent_ns), stream.id));
        shown.truncate(STRIPS);
    }
    shown.sort_unstable_by_key(|stream| stream.id);
    let seconds = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e9);
    let stream = |stream: &'_ LiveStream| {
        let new = stream.ticks.iter().filter(|at| **at > since);
        (live::name(stream.id), new.map(|at| snapshot.at.since(*at) / 1_000_000).collect())
    };
    let shown = shown.into_iter().map(|it| {
        let (id, ticks_ms_ago) = stream(it);
        Stream {
            id,
            service: &it.service.name,
            pid: it.service.pid,
            provider: it.provider,
            model: it.model.as_deref(),
            operation: it.operation,
            elapsed_s: seconds(it.elapsed_ns),
            ttft_s: seconds(it.ttft_ns),
            silent_s: seconds(it.silent_ns),
            chunks: it.chunks,
            tokens_per_s: it.tokens_per_second,
            ticks_ms_ago,
        }
    });
    shown.collect()
}

impl<'a> Recent<'a> {
    fn of(entries: &'a [Arc<Entry>], ended: u64) -> Self {
        let mut by_model: BTreeMap<(Option<&str>, Option<&str>), Vec<&Entry>> = BTreeMap::new();
        for entry in entries {
            by_model.entry((entry.provider, entry.model.as_deref())).or_default().push(entry);
        }
        let mut models: Vec<Model<'a>> = by_model
            .into_iter()
            .map(|((provider, model), entries)| Model { provider, model, figures: Figures::of(&entries) })
            .collect();
        models.sort_by_key(|model| std::cmp::Reverse(model.figures.calls));
        let more_models = models.len().saturating_sub(MODELS);
        models.truncate(MODELS);
        let all = Figures::of(&entries.iter().map(|entry| &**entry).collect::<Vec<_>>());
        Self { kept: entries.len(), ended, all, models, more_models }
    }
}

impl Figures {
    fn of(entries: &[&Entry]) -> Self {
        let count = |holds: fn(&Entry) -> bool| entries.iter().filter(|entry| holds(entry)).count();
        let sum = |of: fn(&Entry) -> Option<u64>| entries.iter().filter_map(|e| of(e)).reduce(u64::saturating_add);
        let sorted = |of: fn(&Entry) -> Option<f64>| {
            let whole = entries.iter().filter(|entry| entry.outcome != "incomplete");
            let mut values: Vec<f64> = whole.filter_map(|entry| of(entry)).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let (ttft, duration) = (sorted(|e| e.ttft_s), sorted(|e| e.duration_s));
        Self {
            calls: entries.len(),
            failed: count(Entry::is_failed),
            stalled: count(Entry::is_stalled),
            incomplete: count(|entry| entry.outcome == "incomplete"),
            ttft_p50_s: percentile(&ttft, 50),
            ttft_p95_s: percentile(&ttft, 95),
            duration_p50_s: percentile(&duration, 50),
            duration_p95_s: percentile(&duration, 95),
            decode_p50_tokens_per_s: percentile(&sorted(|e| e.decode_tokens_per_s), 50),
            input_tokens: sum(|e| e.tokens.input),
            output_tokens: sum(|e| e.tokens.output),
        }
    }
}

/// Nearest rank in sorted values.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

/// `GET /api/snapshot`: everything, once.
pub(super) async fn snapshot(State(shared): State<Arc<Shared>>) -> Response {
    match Position::default().next(&shared.live.get(), &shared.history, shared.health.summary()) {
        Ok(json) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

struct Follower {
    shared: Arc<Shared>,
    watcher: Watcher,
    stop: watch::Receiver<bool>,
    position: Position,
    _place: OwnedSemaphorePermit,
}

/// `GET /api/live`: Server-Sent Events, the first with everything, each later one with what is new.
pub(super) async fn follow(State(shared): State<Arc<Shared>>) -> Response {
    let Ok(place) = Arc::clone(&shared.followers).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "Too many follow already.\n").into_response();
    };
    let (watcher, stop) = (shared.live.watch(), shared.stop.subscribe());
    let follower = Follower { shared, watcher, stop, position: Position::default(), _place: place };
    let events = futures_util::stream::unfold(follower, |mut follower| async move {
        let event = follower.event().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(event)), follower))
    });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

impl Follower {
    /// The next event; `None` ends the stream.
    async fn event(&mut self) -> Option<String> {
        let Self { shared, watcher, stop, position, _place } = self;
        let kind = if position.begun { "more" } else { "whole" };
        if position.begun {
            tokio::select! {
                changed = tokio::time::timeout(SILENCE, watcher.changed()) => {
                    if changed == Ok(false) {
                        return None;
                    }
                }
                _ = stop.wait_for(|stop| *stop) => return None,
            }
        }
        let json = position.next(&watcher.get(), &shared.history, shared.health.summary()).ok()?;
        Some(format!("event: {kind}\ndata: {json}\n\n"))
    }
}

/// Query of the list.
#[derive(Debug, Deserialize)]
pub(super) struct Listed {
    before: Option<u64>,
    limit: Option<usize>,
}

/// `GET /api/exchanges?before=SEQ&limit=N`: the newest first.
pub(super) async fn exchanges(State(shared): State<Arc<Shared>>, Query(query): Query<Listed>) -> Response {
    #[derive(Serialize)]
    struct List<'a> {
        version: u32,
        exchanges: Vec<&'a Entry>,
    }
    let limit = query.limit.unwrap_or(LISTED).min(LISTED);
    let found = shared.history.newest(query.before.unwrap_or(u64::MAX), limit);
    Json(List { version: VERSION, exchanges: found.iter().map(|entry| &**entry).collect() }).into_response()
}

/// `GET /api/exchanges/SEQ`: one, with its timeline.
pub(super) async fn exchange(State(shared): State<Arc<Shared>>, Path(seq): Path<u64>) -> Response {
    #[derive(Serialize)]
    struct One<'a> {
        version: u32,
        exchange: &'a Entry,
        timeline: Vec<Tick>,
    }
    match shared.history.get(seq) {
        Some(entry) => Json(One { version: VERSION, exchange: &entry, timeline: entry.timeline() }).into_response(),
        None => (StatusCode::NOT_FOUND, "Not kept (any more).\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use nexent_observer_core::{
        event::ConnId,
        timing::{Exchange, ExchangeId},
    };
    use serde_json::Value;

    use super::*;
    use crate::{
        export::{clock::Offset, fixture, ids::SpanIds, policy::Slow},
        telemetry::{Health, Register},
    };

    fn add(history: &History, exchange: Exchange) {
        let ids = SpanIds::of_exchange(&exchange, None);
        history.add(&fixture::observed(exchange), Slow::default(), &ids, Offset(0));
    }

    fn stream(no: u32, silent_ms: u64, ticks: &[u64]) -> LiveStream {
        LiveStream {
            id: ExchangeId { conn: ConnId(7), no },
            service: fixture::service(),
            provider: Some("openai"),
            model: Some("<img src=x>".into()),
            operation: "chat",
            elapsed_ns: Some(2_000_000_000),
            ttft_ns: None,
            silent_ns: Some(silent_ms * 1_000_000),
            chunks: 3,
            tokens: None,
            tokens_per_second: None,
            ticks: ticks.iter().map(|ms| MonoNs(ms * 1_000_000)).collect(),
        }
    }

    fn next(position: &mut Position, snapshot: &Snapshot, history: &History) -> Value {
        let health = Health::new(&Register::default()).unwrap().summary();
        serde_json::from_str(&position.next(snapshot, history, health).unwrap()).unwrap()
    }

    #[test]
    fn a_follower_gets_everything_once_and_then_what_is_new() {
        let history = History::default();
        add(&history, fixture::completed());
        history.second(100, 0, 0);
        let mut position = Position::default();
        let snapshot = |at: u64, ticks: &[u64]| Snapshot {
            at: MonoNs(at * 1_000_000),
            streams: vec![stream(1, 5, ticks)],
            ..Snapshot::default()
        };
        let first = next(&mut position, &snapshot(1000, &[900, 950]), &history);
        assert_eq!((&first["whole"], &first["version"]), (&Value::from(true), &Value::from(1)));
        assert_eq!(first["exchanges"][0]["seq"], 1);
        assert_eq!(first["streams"][0]["ticks_ms_ago"], serde_json::json!([100, 50]));
        assert_eq!(first["recent"]["models"][0]["calls"], 1);
        let second = next(&mut position, &snapshot(1250, &[900, 950, 1100]), &history);
        assert_eq!(second["whole"], false);
        assert_eq!(second["streams"][0]["ticks_ms_ago"], serde_json::json!([150]));
        assert!(second["exchanges"].as_array().unwrap().is_empty() && second["recent"].is_null());
        assert!(second["seconds"].as_array().unwrap().is_empty());
        add(&history, fixture::failed());
        history.second(101, 9, 0);
        let third = next(&mut position, &snapshot(1500, &[]), &history);
        assert_eq!(third["exchanges"].as_array().unwrap().len(), 1);
        assert_eq!(third["exchanges"][0]["seq"], 2);
        assert_eq!(third["seconds"], serde_json::json!([[101, 9, 0, 1, 1, 0]]));
        assert_eq!(third["recent"]["all"]["failed"], 1);
    }

    #[test]
    fn of_very_many_streams_the_most_silent_are_shown_and_all_are_counted() {
        let streams = (0..5000).map(|no| stream(no, u64::from(no), &[])).collect();
        let snapshot = Snapshot { streams, ..Snapshot::default() };
        let json = next(&mut Position::default(), &snapshot, &History::default());
        let shown = json["streams"].as_array().unwrap();
        assert_eq!((shown.len(), &json["streams_total"]), (STRIPS, &Value::from(5000)));
        assert_eq!(shown[0]["id"], "7-4800");
    }

    #[test]
    fn a_full_history_of_hostile_names_stays_bounded_and_is_text_in_json() {
        let history = History::default();
        for n in 0..600 {
            let mut exchange = fixture::completed();
            exchange.request.model = Some(format!("{n}<script>\u{1b}[31m\u{202e}\n\"{}", "x".repeat(100_000)));
            add(&history, exchange);
        }
        let health = Health::new(&Register::default()).unwrap().summary();
        let text = Position::default().next(&Snapshot::default(), &history, health).unwrap();
        assert!(text.len() < 600_000 && !text.contains('\n') && !text.contains('\u{1b}'), "{}", text.len());
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["exchanges"].as_array().unwrap().len(), LISTED);
        assert_eq!(json["recent"]["models"].as_array().unwrap().len(), MODELS);
        assert_eq!(json["recent"]["more_models"], 450);
    }

    #[test]
    fn unknown_is_null_and_incomplete_exchanges_are_in_no_percentile() {
        let history = History::default();
        let mut incomplete = fixture::joined();
        incomplete.request_start = Some(MonoNs(fixture::START));
        incomplete.first_token = Some(MonoNs(fixture::START + 90_000_000_000));
        add(&history, incomplete);
        let json = next(&mut Position::default(), &Snapshot::default(), &history);
        assert_eq!(json["recent"]["all"]["incomplete"], 1);
        for unknown in ["ttft_p50_s", "input_tokens"] {
            assert_eq!(json["recent"]["all"][unknown], Value::Null, "{unknown}");
        }
        assert_eq!(json["recent"]["all"]["output_tokens"], 5);
        assert_eq!(json["exchanges"][0]["phases"]["connect"], Value::Null);
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 95)), (Some(10.0), Some(19.0)));
        assert_eq!((percentile(&[7.0], 95), percentile(&[], 50)), (Some(7.0), None));
    }
}
