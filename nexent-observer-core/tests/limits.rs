//! Every cap of `src/limits.rs` has a test that goes over it. This one keeps the list whole: no cap without a test that exists.

use std::{fs, path::Path};

/// Cap, file and name of the test that proves it.
const PROVEN: [(&str, &str, &str); 53] = [
    ("HEAD_BYTES", "src/http/http1/tests/mod.rs", "endless_heads_are_cut_off_and_the_next_exchange_is_right"),
    ("HEAD_FIELDS", "src/http/http1/head.rs", "too_many_fields_are_a_defect_of_their_own"),
    ("HPACK_TABLE_BYTES", "src/http/http2/hpack/tests.rs", "no_block_whatsoever_does_harm"),
    ("FRAME_BYTES", "src/http/http2/tests/loss.rs", "a_frame_over_the_cap_is_no_frame_on_a_joined_connection"),
    ("CHUNK_LINE_BYTES", "src/http/http1/chunked.rs", "endless_lines_are_refused"),
    ("EVENT_BYTES", "src/llm/sse.rs", "an_event_over_the_cap_is_skipped_counted_once_and_the_next_one_is_right"),
    ("BODY_BYTES", "src/llm/body.rs", "a_whole_body_over_the_cap_is_let_go_and_counted_once"),
    ("REQUEST_HEAD_BYTES", "src/llm/request.rs", "a_long_body_after_a_hole_is_held_only_in_part"),
    ("REQUEST_TAIL_BYTES", "src/llm/request.rs", "a_long_body_after_a_hole_is_held_only_in_part"),
    ("RATE_LIMIT_HEADERS", "src/llm/response_head.rs", "response_facts_are_the_named_headers_only_and_capped"),
    ("NAME_BYTES", "src/llm/name.rs", "long_names_are_cut_between_characters"),
    ("HOLD_BYTES", "src/conn/tests.rs", "over_the_cap_held_reads_flow_without_their_write"),
    ("HOLD_NS", "src/conn/tests.rs", "a_read_whose_write_was_lost_flows_after_the_deadline_and_the_loss_shows_later"),
    ("FINISH_REASONS", "src/timing/tests.rs", "a_finish_reason_of_each_choice_is_kept_in_the_order_of_choices"),
    ("STALLS", "src/timing/tests.rs", "stalls_are_capped"),
    (
        "RETRANSMITS",
        "tests/pipeline_rules.rs",
        "retransmits_in_the_middle_of_a_write_count_for_the_request_that_it_carries",
    ),
    ("LATE_READS", "src/timing/phases.rs", "late_reads_are_kept_up_to_a_cap_and_gaps_behind_it_have_no_cause"),
    ("OUTPUTS", "src/pipeline/mod.rs", "outputs_that_nobody_takes_are_capped_and_the_oldest_go"),
    ("OPEN_EXCHANGES", "src/http/http1/tests/mod.rs", "too_many_open_exchanges_are_let_go"),
    ("OPEN_EXCHANGES", "src/http/http2/tests/mod.rs", "too_many_open_streams_cost_the_oldest_one"),
    ("CODINGS", "src/http/coding/tests.rs", "codings_are_read_as_rfc_9110_writes_them"),
    ("DECODED_BYTES", "src/http/coding/tests.rs", "a_body_has_a_cap_whatever_its_ratio"),
    ("DECODED_RATIO", "src/http/coding/tests.rs", "a_bomb_ends_at_the_cap"),
    ("DECODED_FREE_BYTES", "src/http/coding/tests.rs", "a_bomb_ends_at_the_cap"),
    ("DECODERS", "src/http/content/tests.rs", "only_so_many_bodies_are_decoded_at_once"),
    ("ZSTD_WINDOW_LOG", "src/http/coding/tests.rs", "a_zstd_window_over_the_cap_is_refused"),
    ("MESSAGE_BYTES", "src/http/websocket/tests.rs", "a_message_over_the_cap_is_cut_and_counted"),
    ("SOCKET_CALLS", "tests/pipeline_websocket.rs", "calls_that_are_never_answered_are_let_go_at_the_cap"),
    ("TAPE_ENTRY_BYTES", "tests/tape/files.rs", "an_entry_that_no_block_has_room_for_is_left_out"),
    (
        "TAPE_BLOCK_BYTES",
        "tests/tape/files.rs",
        "a_block_that_claims_to_be_longer_than_any_is_refused_before_its_bytes_come",
    ),
    ("REDACT_EVENTS", "tests/tape/files.rs", "events_wait_for_a_name_that_does_not_end_only_up_to_a_cap"),
    ("REDACT_BYTES", "tests/tape/files.rs", "events_wait_for_a_name_that_does_not_end_only_up_to_a_cap"),
    ("TOKENIZER_PENDING_BYTES", "src/timing/counting.rs", "a_text_without_borders_is_held_up_to_the_cap_only"),
    ("TOKENIZER_LANES", "src/timing/counting.rs", "lanes_are_capped_and_what_the_old_ones_hold_is_counted"),
    ("TOKENIZED_BYTES", "src/timing/counting.rs", "a_text_over_the_cap_has_no_count"),
    ("RETRIES", "src/timing/retries.rs", "failed_calls_are_remembered_up_to_the_cap_and_the_oldest_go"),
    ("RETRY_WINDOW_NS", "src/timing/retries.rs", "failed_calls_are_remembered_for_the_window_only"),
    ("SERVING_PROCESSES", "src/chain/tests.rs", "more_requests_than_are_followed_leave_only_what_was_said"),
    ("SERVED_OPEN", "src/chain/tests.rs", "more_requests_than_are_followed_leave_only_what_was_said"),
    ("CALLS_OPEN", "src/chain/tests.rs", "more_calls_than_are_followed_have_no_cause"),
    ("COMPARED_BYTES", "src/chain/content.rs", "a_body_waits_only_up_to_a_cap"),
    ("BLOCKS_OF_REQUEST", "src/chain/content.rs", "a_request_and_a_process_have_only_so_many_blocks"),
    ("BLOCKS", "src/chain/content.rs", "a_request_and_a_process_have_only_so_many_blocks"),
    (
        "STARTED_THREADS",
        "tests/pipeline_chain/threads.rs",
        "more_threads_than_are_remembered_prove_nothing_and_what_is_over_is_forgotten",
    ),
    (
        "THREAD_OUTLIVES_NS",
        "tests/pipeline_chain/threads.rs",
        "a_thread_that_makes_calls_and_outlives_its_request_discredits_those_of_its_process",
    ),
    ("CALLS_WAITING", "tests/pipeline_chain/threads.rs", "only_so_many_calls_wait_for_their_request_to_end"),
    ("CALLS_WAITING_BYTES", "tests/pipeline_chain/threads.rs", "only_so_many_bytes_of_calls_wait"),
    ("CALL_WAITS_NS", "tests/pipeline_chain/threads.rs", "a_call_waits_for_its_request_to_end_only_so_long"),
    ("TOOL_BODY_BYTES", "tests/pipeline_chain/main.rs", "calls_of_tools_are_told_with_their_names_and_joined"),
    ("connections", "src/conn/table.rs", "a_full_table_lets_the_one_silent_longest_go"),
    ("idle_ns", "src/conn/table.rs", "the_idle_go_in_the_order_of_their_silence"),
    (
        "timeline_bytes",
        "src/timing/timeline.rs",
        "a_full_timeline_says_truncated_keeps_its_beginning_and_never_passes_the_cap",
    ),
    (
        "content_bytes",
        "src/timing/tests.rs",
        "text_is_kept_only_when_asked_for_capped_on_a_character_and_marked_where_bytes_were_lost",
    ),
];

/// Framings that each hold an event in a buffer of their own, under the same cap.
const EVENT_BUFFERS: [(&str, &str); 4] = [
    ("src/llm/sse.rs", "json_without_a_field_is_capped_too"),
    ("src/llm/ndjson.rs", "a_line_over_the_cap_is_skipped_counted_once_and_the_next_one_is_right"),
    ("src/llm/json_array.rs", "an_element_over_the_cap_is_skipped_counted_once_and_the_next_one_is_right"),
    ("src/llm/aws_events.rs", "a_frame_over_the_cap_is_skipped_counted_once_and_the_next_one_is_right"),
];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn every_cap_is_proven_by_a_test_that_exists() {
    let limits = read("src/limits.rs");
    let name = |line: &str| {
        let rest = line.trim().strip_prefix("pub ")?;
        let (name, _) = rest.strip_prefix("const ").unwrap_or(rest).split_once(':')?;
        Some(name.to_owned())
    };
    let caps: Vec<String> = limits.lines().filter_map(name).collect();
    assert!(caps.len() > 20, "{caps:?}");
    for cap in &caps {
        assert!(PROVEN.iter().any(|(proven, ..)| proven == cap), "{cap} has no test that goes over it");
    }
    let tests = PROVEN.iter().map(|(cap, file, test)| {
        assert!(caps.iter().any(|known| known == cap), "{cap} is no cap");
        (file, test)
    });
    for (file, test) in tests.chain(EVENT_BUFFERS.iter().map(|(file, test)| (file, test))) {
        let text = read(file);
        assert!(text.contains(&format!("fn {test}(")), "{file} has no test {test}");
    }
}
