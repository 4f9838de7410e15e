//! Which count an exchange has: the provider's, a tokenizer's, or that of its chunks.

use super::*;

/// A word with the space before it is a token; only the model `known` has such.
#[derive(Debug)]
struct Words;

impl Tokenizers for Words {
    fn of_model(&self, model: &str) -> Option<Arc<dyn Tokenizer>> {
        (model == "known").then(|| Arc::new(Self) as Arc<dyn Tokenizer>)
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

/// A stream of a model with a tokenizer: four words in three chunks, the first two in one read.
fn words(model: &str) -> Play {
    let options = Options { tokenizers: Some(Arc::new(Words)), ..Options::default() };
    let mut p = Play::begin(true, &options, &Limits::default());
    p.say(1150, LlmEventKind::Identity { model: Some(model), id: None });
    for (t, text) in [(1200, "one"), (1200, " two three"), (1300, " four")] {
        p.say(t, LlmEventKind::Chunk).delta(t, Payload::Text, text);
    }
    p
}

#[test]
fn without_usage_a_tokenizer_counts_and_without_that_chunks_do() {
    let x = words("known").done(1400);
    assert_eq!((x.output_tokens, x.usage_source, x.counted_tokens), (Some(4), TokenSource::Tokenizer, Some(4)));
    assert_eq!(x.chunks.iter().map(|c| c.tokens).collect::<Vec<_>>(), [Some(1), Some(2), Some(1)]);
    assert_eq!(x.decode_rate, Some(10.0), "one token in 100 ms after those that share the first time");
    assert_eq!((x.usage, x.token_count_ratio), (Usage::default(), None));
    let x = words("unknown").done(1400);
    assert_eq!((x.output_tokens, x.usage_source, x.counted_tokens), (Some(3), TokenSource::Chunks, None));
    assert!(x.chunks.iter().all(|c| c.tokens.is_none()));
}

#[test]
fn tokens_that_show_at_the_end_of_the_text_are_the_last_chunks() {
    let mut p = words("known");
    p.say(1310, LlmEventKind::Chunk).delta(1310, Payload::Text, "\tfive\tsix").finish_reason(1320);
    let x = p.done(1400);
    assert_eq!(x.counted_tokens, Some(6));
    assert_eq!(x.chunks.iter().map(|c| c.tokens).collect::<Vec<_>>(), [Some(1), Some(2), Some(1), Some(2)]);
}

#[test]
fn the_providers_count_goes_before_a_tokenizers_and_their_ratio_is_told() {
    let x = words("known").say(1390, LlmEventKind::Usage(usage(5))).done(1400);
    assert_eq!((x.output_tokens, x.usage_source, x.counted_tokens), (Some(5), TokenSource::Usage, Some(4)));
    assert_eq!(x.token_count_ratio, Some(0.8));
    let hidden = Usage { output: Some(8), reasoning: Some(4), ..Usage::default() };
    assert_eq!(words("known").say(1390, LlmEventKind::Usage(hidden)).done(1400).token_count_ratio, Some(1.0));
    let zero = words("known").say(1390, LlmEventKind::Usage(usage(0))).done(1400);
    assert_eq!(zero.token_count_ratio, None);
}

#[test]
fn an_aborted_or_holed_stream_counts_what_was_delivered_and_compares_nothing() {
    let x = words("known").abort(1400, close(CloseCause::Freed)).exchange();
    assert_eq!((x.outcome, x.output_tokens, x.usage_source), (Outcome::ClientAbort, Some(4), TokenSource::Tokenizer));
    // A report of the beginning is no report of what was delivered.
    let mut p = words("known");
    p.say(1310, LlmEventKind::Usage(usage(1))).say(1320, LlmEventKind::Chunk).delta(1320, Payload::Text, " five");
    let x = p.abort(1400, close(CloseCause::Freed)).exchange();
    assert_eq!((x.output_tokens, x.usage_source, x.token_count_ratio), (Some(5), TokenSource::Tokenizer, None));
    let mut p = words("known");
    p.gap(1310, Some(9)).say(1320, LlmEventKind::Chunk).delta(1320, Payload::Text, "five");
    let x = p.say(1390, LlmEventKind::Usage(usage(9))).done(1400);
    assert_eq!((x.counted_tokens, x.output_tokens, x.token_count_ratio), (Some(5), Some(9), None));
}

#[test]
fn a_whole_answer_without_usage_is_counted_too() {
    let options = Options { tokenizers: Some(Arc::new(Words)), ..Options::default() };
    let mut p = Play::begin(false, &options, &Limits::default());
    p.say(1200, LlmEventKind::Identity { model: Some("known"), id: None }).say(1200, LlmEventKind::Chunk);
    let x = p.delta(1200, Payload::Text, "one two").say(1210, LlmEventKind::End).exchange();
    assert_eq!((x.output_tokens, x.usage_source), (Some(2), TokenSource::Tokenizer));
}
