//! Table tests on virtual time, and properties.

mod counted;
mod sockets;

use proptest::prelude::*;

use super::*;
use crate::{
    conn::{CloseCause, GapCause},
    event::Stamp,
    http::AbortCause,
    limits::Limits,
    llm::{ErrorFacts, LlmEvent, LlmEventKind, Payload},
    stats::Stats,
};

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;
const ID: ExchangeId = ExchangeId { conn: ConnId(7), no: 3 };

/// A call that returned at `ms` and was entered a millisecond before.
fn at(ms: u64) -> Stamp {
    Stamp { entry: MonoNs((ms - 1) * MS), ret: MonoNs(ms * MS) }
}

fn ms(ms: u64) -> MonoNs {
    MonoNs(ms * MS)
}

fn usage(output: u64) -> Usage {
    Usage { output: Some(output), ..Usage::default() }
}

/// Plays one exchange; what it is told is what the stages below would say.
struct Play {
    timing: Timing,
    stats: Stats,
    progress: Progress,
}

impl Play {
    /// Nothing happened yet.
    fn fresh(options: &Options, limits: &Limits) -> Self {
        Self {
            timing: Timing::new(ID, 42, Some(43), options, limits),
            stats: Stats::default(),
            progress: Progress::Open,
        }
    }

    /// Request written from 1000 to 1002 ms, stream begun at 1100 ms.
    fn stream() -> Self {
        Self::begin(true, &Options::default(), &Limits::default())
    }

    /// The same, answered with a whole body.
    fn whole() -> Self {
        Self::begin(false, &Options::default(), &Limits::default())
    }

    fn begin(stream: bool, options: &Options, limits: &Limits) -> Self {
        let mut p = Self::fresh(options, limits);
        p.start(1000);
        let request = RequestFacts { stream: Some(stream), ..RequestFacts::default() };
        p.say(1002, LlmEventKind::Request(request)).say(1002, LlmEventKind::RequestEnd);
        p.response(1100, 200, stream);
        p
    }

    fn start(&mut self, entry_ms: u64) -> &mut Self {
        let call = Call { operation: "chat", ..Call::default() };
        self.say(entry_ms + 1, LlmEventKind::Start { first: at(entry_ms + 1), call })
    }

    fn response(&mut self, t: u64, status: u16, stream: bool) -> &mut Self {
        let facts = ResponseFacts { status: Some(status), stream, ..ResponseFacts::default() };
        self.say(t + 1, LlmEventKind::Response { first: at(t), facts })
    }

    fn say(&mut self, t: u64, kind: LlmEventKind<'_>) -> &mut Self {
        self.progress = self.timing.feed(&LlmEvent { at: at(t), kind });
        self
    }

    fn delta(&mut self, t: u64, payload: Payload, text: &str) -> &mut Self {
        self.say(t, LlmEventKind::Delta { payload, choice: 0, text })
    }

    /// One output chunk.
    fn token(&mut self, t: u64) -> &mut Self {
        self.say(t, LlmEventKind::Chunk).delta(t, Payload::Text, "a")
    }

    fn tokens(&mut self, times: &[u64]) -> &mut Self {
        for &t in times {
            self.token(t);
        }
        self
    }

    /// One output chunk with continuous usage.
    fn counted(&mut self, t: u64, output: u64) -> &mut Self {
        self.token(t).say(t, LlmEventKind::Usage(usage(output)))
    }

    fn finish_reason(&mut self, t: u64) -> &mut Self {
        self.say(t, LlmEventKind::Chunk).say(t, LlmEventKind::Finish { choice: 0, reason: "stop" })
    }

    fn gap(&mut self, t: u64, len: Option<u64>) -> &mut Self {
        self.say(t, LlmEventKind::Gap { len, cause: GapCause::Lost })
    }

    fn abort(&mut self, t: u64, cause: AbortCause) -> &mut Self {
        self.say(t, LlmEventKind::Abort(cause))
    }

    fn done(&mut self, t: u64) -> Exchange {
        self.say(t, LlmEventKind::Done).exchange()
    }

    fn exchange(&mut self) -> Exchange {
        assert_eq!(self.progress, Progress::Finished);
        self.timing.clone().finish(&mut self.stats)
    }
}

fn close(cause: CloseCause) -> AbortCause {
    AbortCause::Closed(cause)
}

#[test]
fn times_of_a_plain_stream() {
    let x = Play::stream().say(1150, LlmEventKind::Chunk).tokens(&[1200, 1220, 1240]).finish_reason(1250).done(1260);
    assert_eq!(x.id, ID);
    assert_eq!((x.pid, x.tid), (42, Some(43)));
    assert_eq!(x.request_start, Some(ms(1000)), "entry of the write, not its return");
    assert_eq!(x.request_written, Some(ms(1002)), "return of the write with the last byte");
    assert_eq!(x.request_sent, None, "no socket said so");
    assert_eq!((x.read_delay, x.retransmits, x.first_token_cause), (None, None, None), "nor anything else");
    assert_eq!(x.first_byte, Some(ms(1100)), "first byte of the head, not its end");
    assert_eq!(x.first_chunk, Some(ms(1150)), "a role-only event is a chunk");
    assert_eq!(x.first_token, Some(ms(1200)), "and no token");
    assert_eq!(x.last_token, Some(ms(1240)), "nor is the finish reason");
    assert_eq!(x.end, Some(ms(1260)));
    assert_eq!(x.ttft_ns(), Some(200 * MS));
    assert_eq!(x.time_to_first_chunk_ns(), Some(150 * MS));
    assert_eq!(x.duration_ns(), Some(260 * MS));
    assert_eq!(x.outcome, Outcome::Completed);
    assert_eq!(x.finish_reasons, ["stop"]);
    assert_eq!(x.bytes_lost, Some(0));
    assert_eq!(x.inter_chunk_latencies_ns().collect::<Vec<_>>(), [20 * MS, 20 * MS]);
    assert!(x.streamed);
}

#[test]
fn every_kind_of_generated_payload_is_a_first_token_and_an_empty_one_is_not() {
    use Payload::{Audio, Reasoning, Refusal, Text, ToolArguments, ToolName};
    for payload in [Text, Reasoning, Refusal, ToolName, ToolArguments, Audio] {
        let mut p = Play::stream();
        p.say(1150, LlmEventKind::Chunk).delta(1150, payload, "");
        p.say(1200, LlmEventKind::Chunk).delta(1200, payload, "x");
        assert_eq!(p.done(1260).first_token, Some(ms(1200)), "{payload:?}");
    }
}

#[test]
fn an_event_with_several_deltas_is_one_output_chunk() {
    let mut p = Play::stream();
    p.token(1200).delta(1200, Payload::Text, "b").delta(1200, Payload::ToolName, "c").token(1300);
    let x = p.done(1310);
    assert_eq!(x.chunks.len(), 2);
}

#[test]
fn chunks_of_one_read_share_its_time_and_are_never_interpolated() {
    let x = Play::stream().tokens(&[1200, 1200, 1200, 1300, 1300, 1400]).done(1410);
    let got: Vec<_> = x.chunks.iter().map(|c| (c.at, c.coalesced)).collect();
    let want = [(1200, false), (1200, true), (1200, true), (1300, false), (1300, true), (1400, false)];
    assert_eq!(got, want.map(|(t, c)| (ms(t), c)));
    assert_eq!(x.inter_chunk_latencies_ns().collect::<Vec<_>>(), [100 * MS, 100 * MS], "one sample a read");
    // 6 chunks, 3 of them with the first time: 3 chunks in 200 ms.
    assert_eq!(x.decode_rate, Some(15.0));
}

#[test]
fn a_stamp_that_steps_back_is_coalesced_instead_of_going_back() {
    let x = Play::stream().tokens(&[1200, 1190, 1300]).done(1290);
    assert_eq!(x.chunks.iter().map(|c| c.at).collect::<Vec<_>>(), [ms(1200), ms(1200), ms(1300)]);
    assert_eq!(x.end, Some(ms(1300)), "the end is not before the last token");
}

#[test]
fn token_counts_come_from_usage_else_from_chunks() {
    let chunks = Play::stream().tokens(&[1200, 1300, 1400]).done(1410);
    assert_eq!((chunks.output_tokens, chunks.usage_source), (Some(3), TokenSource::Chunks));
    assert_eq!(chunks.decode_rate, Some(10.0));
    assert_eq!(chunks.end_to_end_rate, Some(7.5), "3 in 400 ms, from request start to last chunk");

    let mut p = Play::stream();
    p.tokens(&[1200, 1300, 1400]).say(1405, LlmEventKind::Chunk).say(1405, LlmEventKind::Usage(usage(6)));
    let reported = p.done(1410);
    assert_eq!((reported.output_tokens, reported.usage_source), (Some(6), TokenSource::Usage));
    assert_eq!(reported.decode_rate, Some(20.0), "a third of the tokens shares the first time: 4 in 200 ms");
    assert_eq!(reported.end_to_end_rate, Some(15.0));
    assert!(reported.chunks.iter().all(|c| c.tokens.is_none()), "not known chunk by chunk");
}

#[test]
fn continuous_usage_tells_the_tokens_of_each_chunk() {
    let x = Play::stream().counted(1200, 5).counted(1300, 6).counted(1400, 9).done(1410);
    assert_eq!(x.chunks.iter().map(|c| c.tokens).collect::<Vec<_>>(), [Some(5), Some(1), Some(3)]);
    assert_eq!(x.decode_rate, Some(20.0), "exactly 4 after the first time, not two thirds of 9");
}

#[test]
fn a_chunk_without_usage_leaves_its_own_and_the_next_count_unknown() {
    let x = Play::stream().counted(1200, 5).token(1300).counted(1400, 9).counted(1500, 10).done(1510);
    assert_eq!(x.chunks.iter().map(|c| c.tokens).collect::<Vec<_>>(), [Some(5), None, None, Some(1)]);
}

#[test]
fn usage_that_was_overtaken_by_more_output_is_no_count() {
    // Anthropic's message_start reports 1 output token; an abort never corrects it.
    let mut p = Play::stream();
    p.say(1150, LlmEventKind::Chunk);
    p.say(1150, LlmEventKind::Usage(Usage { input: Some(25), ..usage(1) }));
    let x = p.tokens(&[1200, 1300, 1400]).abort(1500, close(CloseCause::Freed)).exchange();
    assert_eq!((x.output_tokens, x.usage_source), (Some(3), TokenSource::Chunks));
    assert_eq!((x.usage.input, x.usage.output), (Some(25), None));
    // The last report of a finished stream does.
    let mut p = Play::stream();
    p.say(1150, LlmEventKind::Chunk).say(1150, LlmEventKind::Usage(usage(1)));
    p.tokens(&[1200, 1300, 1400]).say(1401, LlmEventKind::Chunk).say(1401, LlmEventKind::Usage(usage(15)));
    assert_eq!(p.done(1402).output_tokens, Some(15));
}

#[test]
fn reasoning_that_was_billed_but_not_streamed_does_not_count_as_decoded() {
    let play = |shown: bool| {
        let mut p = Play::stream();
        if shown {
            p.say(1200, LlmEventKind::Chunk).delta(1200, Payload::Reasoning, "hm");
        } else {
            p.token(1200);
        }
        p.tokens(&[1300, 1400]).say(1405, LlmEventKind::Chunk);
        p.say(1405, LlmEventKind::Usage(Usage { reasoning: Some(60), ..usage(66) }));
        p.done(1410)
    };
    assert_eq!(play(false).decode_rate, Some(20.0));
    assert_eq!(play(true).decode_rate, Some(220.0));
    assert_eq!(play(false).output_tokens, Some(66), "N itself keeps what was billed");
}

#[test]
fn no_decode_rate_without_two_times_or_with_a_span_under_10_ms() {
    for (times, rate) in [
        (&[][..], None),
        (&[1200], None),
        (&[1200, 1200, 1200], None),
        (&[1200, 1209], None),
        (&[1200, 1210], Some(100.0)),
    ] {
        assert_eq!(Play::stream().tokens(times).done(1300).decode_rate, rate, "{times:?}");
    }
}

#[test]
fn a_whole_body_has_duration_usage_and_end_to_end_rate_but_no_token_times() {
    let mut p = Play::whole();
    p.token(3000)
        .say(3000, LlmEventKind::Usage(usage(40)))
        .say(3000, LlmEventKind::Finish { choice: 0, reason: "stop" });
    let x = p.say(3000, LlmEventKind::End).exchange();
    assert_eq!(x.outcome, Outcome::Completed);
    assert_eq!(x.duration_ns(), Some(2 * S));
    assert_eq!(x.end_to_end_rate, Some(20.0));
    assert_eq!((x.first_chunk, x.first_token, x.last_token), (None, None, None));
    assert_eq!((x.ttft_ns(), x.decode_rate), (None, None));
    assert!(x.chunks.is_empty() && !x.streamed && !x.stalled_before_first_token);
    let silent = Play::whole().token(3000).say(3000, LlmEventKind::End).exchange();
    assert_eq!((silent.output_tokens, silent.end_to_end_rate), (None, None), "one body is not one token");
}

#[test]
fn several_events_make_a_stream_whatever_the_content_type_says() {
    let x = Play::whole().tokens(&[1200, 1300]).finish_reason(1300).say(1400, LlmEventKind::End).exchange();
    assert!(x.streamed);
    assert_eq!(x.first_token, Some(ms(1200)));
}

#[test]
fn stalls_are_longer_than_two_seconds_and_ten_medians() {
    // Gaps of 20 ms and one of 2001 ms.
    let x = Play::stream().tokens(&[1200, 1220, 1240, 3241, 3261]).done(3300);
    assert_eq!(x.stalls, [(ms(1240), ms(3241))]);
    // 2000 ms is not over 2 s.
    assert_eq!(Play::stream().tokens(&[1200, 1220, 1240, 3240, 3260]).done(3300).stalls, []);
    // A slow stream: median 300 ms, so 2.5 s is no stall and 3.1 s is.
    let slow = [1200, 1500, 1800, 2100, 4600, 4900, 5200, 8300, 8600];
    assert_eq!(Play::stream().tokens(&slow).done(9000).stalls, [(ms(5200), ms(8300))]);
}

#[test]
fn the_silence_before_an_abort_is_a_stall_and_before_a_late_close_is_not() {
    let mut p = Play::stream();
    let x = p.tokens(&[1200, 1220, 1240]).abort(61_240, close(CloseCause::Freed)).exchange();
    assert_eq!(x.stalls, [(ms(1240), ms(61_240))]);
    let mut p = Play::stream();
    let x = p.tokens(&[1200, 1220, 1240]).finish_reason(1241).abort(61_240, close(CloseCause::Freed)).exchange();
    assert_eq!((x.outcome, x.end, x.stalls), (Outcome::Completed, Some(ms(1241)), vec![]));
}

#[test]
fn the_wait_for_the_first_token_is_told_apart() {
    let late = Play::stream().tokens(&[3001, 3021]).done(3100);
    assert!(late.stalled_before_first_token);
    assert_eq!(late.stalls, []);
    assert!(!Play::stream().tokens(&[3000, 3020]).done(3100).stalled_before_first_token);
    // A stream of 300 ms a token may take 3 s to begin.
    assert!(!Play::stream().tokens(&[3900, 4200, 4500]).done(4600).stalled_before_first_token);
    // Given up before anything came: not even a response head.
    let mut p = Play::fresh(&Options::default(), &Limits::default());
    let request = RequestFacts { stream: Some(true), ..RequestFacts::default() };
    p.start(1000).say(1002, LlmEventKind::Request(request));
    assert!(p.abort(31_000, close(CloseCause::Freed)).exchange().stalled_before_first_token);
}

#[test]
fn stalls_and_rates_go_on_exactly_after_the_timeline_is_full() {
    let limits = Limits { timeline_bytes: 40, ..Limits::default() };
    let mut p = Play::begin(true, &Options::default(), &limits);
    let times: Vec<u64> = (0..50).map(|i| 1200 + 20 * i).chain((0..50).map(|i| 5200 + 20 * i)).collect();
    let x = p.tokens(&times).done(6300);
    assert!(x.chunks.truncated() && x.chunks.len() < 20);
    assert_eq!(x.last_token, Some(ms(6180)));
    assert_eq!(x.output_tokens, Some(100));
    assert_eq!(x.decode_rate, Some(99.0 / 4.98));
    assert_eq!(x.stalls, [(ms(2180), ms(5200))]);
}

#[test]
fn stalls_are_capped() {
    let mut p = Play::stream();
    // A stall after every three quick tokens, so that the median stays low.
    let times: Vec<u64> = (0..1200).map(|i| 1200 + 20 * (i % 4) + 3000 * (i / 4)).collect();
    let x = p.tokens(&times).abort(4_000_000, close(CloseCause::Freed)).exchange();
    assert_eq!((x.stalls.len(), x.output_tokens), (crate::limits::STALLS, Some(1200)));
}

#[test]
fn done_ends_the_exchange_and_what_follows_is_ignored() {
    let mut p = Play::stream();
    let x = p.token(1200).done(1300);
    // The openai SDK closes right after `[DONE]`, without reading the last HTTP chunk.
    let after = p.abort(1301, close(CloseCause::Freed)).exchange();
    assert_eq!(x, after);
    assert_eq!((x.outcome, x.end), (Outcome::Completed, Some(ms(1300))));
}

#[test]
fn a_stream_whose_message_ends_without_its_own_end_was_truncated_by_the_server() {
    let x = Play::stream().token(1200).say(1300, LlmEventKind::End).exchange();
    assert_eq!((x.outcome, x.error_type.as_deref()), (Outcome::ServerAbort, Some("stream_truncated")));
    let x = Play::stream().token(1200).finish_reason(1250).say(1300, LlmEventKind::End).exchange();
    assert_eq!((x.outcome, x.error_type.as_deref()), (Outcome::Completed, None));
}

#[test]
fn the_error_type_is_what_the_provider_said_else_the_status() {
    let error = || LlmEventKind::Error(ErrorFacts { error_type: "rate_limit_exceeded".into() });
    let refused = || {
        let mut p = Play::fresh(&Options::default(), &Limits::default());
        p.start(1000).response(1100, 429, false);
        p
    };
    let said = refused().say(1100, error()).say(1101, LlmEventKind::End).exchange();
    assert_eq!((said.outcome, said.error_type.as_deref()), (Outcome::Error, Some("rate_limit_exceeded")));
    let status = refused().say(1101, LlmEventKind::End).exchange();
    assert_eq!((status.outcome, status.error_type.as_deref()), (Outcome::Error, Some("429")));
    let mid_stream = Play::stream().token(1200).say(1300, error()).say(1301, LlmEventKind::End).exchange();
    assert_eq!((mid_stream.outcome, mid_stream.error_type), (Outcome::Error, said.error_type));
    let lost = refused().gap(1100, Some(20)).say(1101, LlmEventKind::End).exchange();
    assert_eq!((lost.outcome, lost.error_type.as_deref()), (Outcome::Incomplete, Some("429")));
}

#[test]
fn a_finish_reason_of_each_choice_is_kept_in_the_order_of_choices() {
    let mut p = Play::stream();
    for (choice, reason) in [(1, "length"), (0, "stop"), (0, "stop")] {
        p.say(1300, LlmEventKind::Chunk).say(1300, LlmEventKind::Finish { choice, reason });
    }
    for choice in 2..1000 {
        p.say(1300, LlmEventKind::Finish { choice, reason: "stop" });
    }
    let x = p.done(1400);
    assert_eq!(x.finish_reasons[..2], ["stop", "length"]);
    assert_eq!(x.finish_reasons.len(), crate::limits::FINISH_REASONS);
}

#[test]
fn a_loss_before_the_first_token_takes_the_ttft_and_the_rates() {
    let x = Play::stream().gap(1120, Some(1)).token(1200).done(1300);
    assert_eq!((x.first_byte, x.first_chunk), (None, None), "the head may be that of another response");
    let mut p = Play::stream();
    p.say(1150, LlmEventKind::Chunk).gap(1180, Some(100)).tokens(&[1200, 1300]);
    p.say(1310, LlmEventKind::Chunk).say(1310, LlmEventKind::Usage(usage(12)));
    let x = p.done(1310);
    assert_eq!((x.outcome, x.bytes_lost), (Outcome::Incomplete, Some(100)));
    assert_eq!((x.first_chunk, x.first_token, x.last_token), (Some(ms(1150)), None, Some(ms(1300))));
    assert_eq!((x.ttft_ns(), x.decode_rate, x.end_to_end_rate), (None, None, None));
    assert_eq!(x.output_tokens, Some(12), "reported by the provider after the loss");
    assert_eq!(x.chunks.len(), 2, "what is known stays");
}

#[test]
fn a_loss_between_tokens_keeps_both_ends_and_is_no_sample_and_no_stall() {
    let mut p = Play::stream();
    p.tokens(&[1200, 1220]).gap(5000, Some(300)).gap(5001, Some(1)).tokens(&[5020, 5040]);
    let x = p.done(5100);
    assert_eq!((x.first_token, x.last_token, x.bytes_lost), (Some(ms(1200)), Some(ms(5040)), Some(301)));
    assert_eq!(x.inter_chunk_latencies_ns().collect::<Vec<_>>(), [20 * MS, 20 * MS]);
    assert_eq!(x.stalls, []);
    assert_eq!((x.decode_rate, x.end_to_end_rate), (None, None), "chunks in the hole are not counted");
    assert_eq!(x.output_tokens, Some(4), "a lower bound");
    let mut p = Play::stream();
    p.token(1200).gap(1250, Some(9)).counted(1500, 20);
    assert_eq!(p.done(1510).end_to_end_rate, Some(40.0), "usage and both of its times are known");
}

#[test]
fn a_loss_after_the_last_token_takes_it() {
    let x = Play::stream().tokens(&[1200, 1220]).gap(1300, None).done(1400);
    assert_eq!((x.first_token, x.last_token, x.bytes_lost), (Some(ms(1200)), None, None));
    assert_eq!((x.ttft_ns(), x.end_to_end_rate), (Some(200 * MS), None));
}

#[test]
fn another_answer_that_shows_after_a_loss_is_not_taken_for_this_one() {
    let id = |id| LlmEventKind::Identity { model: None, id: Some(id) };
    let mut p = Play::stream();
    p.token(1200).say(1200, id("a")).gap(1250, Some(900)).counted(1500, 20).say(1500, id("b"));
    let x = p.counted(1600, 30).done(1700);
    assert_eq!((x.response_id.as_deref(), x.first_token), (Some("a"), Some(ms(1200))));
    assert_eq!((x.last_token, x.usage.output, x.end_to_end_rate), (None, None, None));
}

#[test]
fn usage_before_a_loss_is_no_count_and_after_it_is() {
    let x = Play::stream().counted(1200, 5).gap(1250, Some(9)).done(1300);
    assert_eq!((x.usage.output, x.usage_source), (None, TokenSource::Chunks));
    let x = Play::stream().counted(1200, 5).gap(1250, Some(9)).counted(1290, 50).done(1300);
    assert_eq!((x.usage.output, x.usage_source), (Some(50), TokenSource::Usage));
    assert_eq!(x.chunks.iter().map(|c| c.tokens).collect::<Vec<_>>(), [Some(5), None]);
}

#[test]
fn what_was_left_out_on_purpose_is_no_loss_of_bytes() {
    let mut p = Play::stream();
    p.token(1200).say(1250, LlmEventKind::Gap { len: Some(10), cause: GapCause::Skipped });
    let x = p.done(1300);
    assert_eq!((x.bytes_lost, x.outcome), (Some(0), Outcome::Incomplete), "but the answer is not known either");
}

#[test]
fn an_exchange_joined_midway_is_incomplete_and_has_no_ttft() {
    let mut p = Play::fresh(&Options::default(), &Limits::default());
    p.say(1200, LlmEventKind::Joined).tokens(&[1200, 1300]).finish_reason(1301);
    let x = p.done(1302);
    assert_eq!(x.outcome, Outcome::Incomplete);
    assert_eq!((x.request_start, x.first_byte, x.first_chunk, x.first_token), (None, None, None, None));
    assert_eq!(x.last_token, Some(ms(1300)));
    assert_eq!((x.duration_ns(), x.end_to_end_rate, x.decode_rate), (None, None, None));
}

#[test]
fn a_time_that_contradicts_the_request_start_is_unknown_not_zero() {
    let mut p = Play::fresh(&Options::default(), &Limits::default());
    p.start(2000).response(1100, 200, true);
    let x = p.tokens(&[1200, 1300]).done(1400);
    assert_eq!((x.ttft_ns(), x.duration_ns(), x.end_to_end_rate), (None, None, None));
}

#[test]
fn text_is_kept_only_when_asked_for_capped_on_a_character_and_marked_where_bytes_were_lost() {
    let limits = Limits { content_bytes: 10, ..Limits::default() };
    let play = |capture_content| {
        let mut p = Play::begin(true, &Options { capture_content, ..Options::default() }, &limits);
        p.say(1200, LlmEventKind::Chunk).delta(1200, Payload::Text, "é").delta(1200, Payload::Reasoning, "no");
        p.say(1200, LlmEventKind::Delta { payload: Payload::Text, choice: 1, text: "other choice" });
        p.gap(1201, Some(3)).delta(1202, Payload::Text, "wörld").delta(1203, Payload::Text, "!").done(1300).output_text
    };
    assert_eq!(play(false), None);
    assert_eq!(play(true).as_deref(), Some("é\u{fffd}wörl"));
}

#[test]
fn live_view_shows_what_is_known_so_far() {
    let mut p = Play::fresh(&Options::default(), &Limits::default());
    assert_eq!(p.timing.active().request_start, None);
    p.start(1000).response(1100, 200, true).tokens(&[1200, 1300]);
    let live = p.timing.active();
    assert_eq!((live.id, live.pid, live.call.operation), (ID, 42, "chat"));
    assert_eq!((live.first_token, live.last_token, live.chunks), (Some(ms(1200)), Some(ms(1300)), 2));
    assert_eq!(ms(9300).since(live.last_token.unwrap_or_default()), 8 * S, "the silence of the stream");
}

#[test]
fn a_not_llm_verdict_lets_go() {
    let mut p = Play::fresh(&Options::default(), &Limits::default());
    p.start(1000).say(1100, LlmEventKind::NotLlm(crate::llm::NotLlm::Answer));
    assert_eq!(p.progress, Progress::NotLlm);
}

#[test]
fn an_exchange_whose_end_was_never_seen_is_incomplete() {
    let mut p = Play::stream();
    p.token(1200);
    let x = p.timing.finish(&mut p.stats);
    assert_eq!((x.outcome, x.end, x.duration_ns()), (Outcome::Incomplete, None, None));
    assert_eq!(p.stats.llm_exchanges, 1);
}

#[test]
fn it_stays_small_when_thousands_are_open() {
    assert!(size_of::<Timing>() <= 1024, "{}", size_of::<Timing>());
}

/// What may come between the response head and the end, by time since the event before.
#[derive(Debug, Clone)]
enum Step {
    Empty(u64),
    Token(u64),
    Counted(u64, u64),
    Lost(Option<u64>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0..50u64).prop_map(Step::Empty),
        8 => (0..4000u64).prop_map(Step::Token),
        2 => (0..50u64, 0..1000u64).prop_map(|(t, n)| Step::Counted(t, n)),
        1 => proptest::option::of(1..500u64).prop_map(Step::Lost),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn times_are_in_order_and_a_loss_never_yields_a_number_it_could_have_changed(steps in steps(), tail in 0..100u64) {
        let mut p = Play::stream();
        let mut now = 1101;
        let mut lost_before_token = false;
        let mut lost = false;
        let mut any_token = false;
        for step in &steps {
            match *step {
                Step::Empty(dt) => { now += dt; p.say(now, LlmEventKind::Chunk); }
                Step::Token(dt) => { now += dt; p.token(now); any_token = true; }
                Step::Counted(dt, n) => { now += dt; p.counted(now, n); any_token = true; }
                Step::Lost(len) => { p.gap(now, len); lost = true; lost_before_token |= !any_token; }
            }
        }
        let x = p.done(now + tail);
        if let Some(byte) = x.first_byte { prop_assert!(x.request_start < Some(byte)); }
        if let (Some(chunk), Some(token)) = (x.first_chunk, x.first_token) { prop_assert!(chunk <= token); }
        if let (Some(first), Some(last)) = (x.first_token, x.last_token) { prop_assert!(first <= last); }
        if let Some(last) = x.last_token { prop_assert!(Some(last) <= x.end); }
        prop_assert!(x.chunks.iter().is_sorted_by_key(|c| c.at));
        prop_assert_eq!(x.first_token.is_some(), any_token && !lost_before_token);
        prop_assert_eq!(x.outcome == Outcome::Incomplete, lost);
        if lost {
            prop_assert_eq!(x.decode_rate, None);
        } else {
            let span = x.last_token.zip(x.first_token).map_or(0, |(l, f)| l.since(f));
            prop_assert_eq!(x.inter_chunk_latencies_ns().sum::<u64>(), span);
        }
        for rate in [x.decode_rate, x.end_to_end_rate].into_iter().flatten() {
            prop_assert!(rate.is_finite() && rate > 0.0);
        }
        for (from, to) in &x.stalls {
            prop_assert!(to.since(*from) > STALL_MIN_NS);
        }
    }
}
