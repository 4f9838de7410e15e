//! The machine for texts: what stays, what goes, and that the cut changes nothing.

use proptest::prelude::*;

use super::{
    json::Of,
    secret::Secret,
    text::{Tail, Text},
};

const SECRET: Secret = Secret::new([3; 16]);

/// What becomes of a text that comes in these pieces.
fn redacted(of: Of, pieces: &[&[u8]]) -> String {
    let mut text = Text::new(of, SECRET);
    let (mut out, mut taken) = (Vec::new(), 0);
    for piece in pieces {
        text.feed(piece, &mut out);
        taken += piece.len();
        assert!(out.len() <= taken);
    }
    text.finish(&mut out);
    assert_eq!(out.len(), taken, "every byte has its place");
    String::from_utf8(out).unwrap()
}

fn response(text: &str) -> String {
    let whole = redacted(Of::Response, &[text.as_bytes()]);
    for cut in 0..=text.len() {
        let (a, b) = text.as_bytes().split_at(cut);
        assert_eq!(redacted(Of::Response, &[a, b]), whole, "cut at {cut} of {text}");
    }
    whole
}

#[test]
fn events_keep_their_framing_and_lose_their_content() {
    for (given, kept) in [
        (
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi \\\"you\\\"\"}}]}\n\n",
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"xxxxxxxxxx\"}}]}\n\n",
        ),
        ("data: [DONE]\r\n\r\n", "data: [DONE]\r\n\r\n"),
        (": secret\n\n", ":xxxxxxx\n\n"),
        (
            "event: content_block_delta\nid: secret\nretry: 7\nsecret: 7\n\n",
            "event: content_block_delta\nid:xxxxxxx\nretry:xx\nxxxxxx: 1\n\n",
        ),
        ("event: secret\ndata: secret 42\n\n", "event:xxxxxxx\ndata: xxxxxx 10\n\n"),
        ("data\n\n", "data\n\n"),
        (
            "error: {\"error\":{\"code\":400,\"message\":\"no\"}}\n",
            "error: {\"error\":{\"code\":400,\"message\":\"xx\"}}\n",
        ),
    ] {
        assert_eq!(response(given), kept);
    }
}

#[test]
fn members_stay_by_their_place() {
    for (given, kept) in [
        (r#"{"type":"response.created","type":"secret"}"#, r#"{"type":"response.created","type":"xxxxxx"}"#),
        (r#"{"model":"gpt-4o","x":{"model":"secret"}}"#, r#"{"model":"gpt-4o","x":{"model":"xxxxxx"}}"#),
        (r#"{"message":{"model":"claude"},"secret":1}"#, r#"{"message":{"model":"claude"},"xxxxxx":1}"#),
        (r#"[{"modelVersion":"gemini-2"}]"#, r#"[{"modelVersion":"gemini-2"}]"#),
        (r#"{"finish_reason":"tool_calls","a":"stop"}"#, r#"{"finish_reason":"tool_calls","x":"xxxx"}"#),
        (
            r#"{"error":{"code":"quota_x","type":null,"message":"m"}}"#,
            r#"{"error":{"code":"quota_x","type":null,"message":"x"}}"#,
        ),
        (r#"{"code":"secret()","error":"not found"}"#, r#"{"code":" x x x x","error":" x x x x "}"#),
        (
            r#"{"usage":{"total_tokens":42},"embedding":[0.25,-3e7,12]}"#,
            r#"{"usage":{"total_tokens":42},"embedding":[0.00,-1e0,10]}"#,
        ),
        (
            r#"{"name":"get_secret","input":{"type":"text","index":42,"secret":[true,null]}}"#,
            r#"{"name":"xxxxxxxxxx","input":{"xxxx":"xxxx","xxxxx":10,"xxxxxx":[true,null]}}"#,
        ),
        (r#"{"arguments":{"model":"secret","id":"secret"}}"#, r#"{"arguments":{"xxxxx":"xxxxxx","xx":"xxxxxx"}}"#),
    ] {
        assert_eq!(response(given), kept);
    }
}

#[test]
fn an_id_becomes_another_one_and_the_same_for_the_same() {
    let given = r#"{"id":"resp_123","response_id":"resp_123","item_id":"resp_124","id":""}"#;
    let kept = response(given);
    let id = |at: usize| kept.split('"').nth(at).unwrap();
    assert_eq!((id(3), id(3).len()), (id(7), 8));
    assert_ne!(id(3), id(11));
    assert_ne!(id(3), "resp_123");
    assert_eq!(id(15), "");
}

#[test]
fn of_a_request_only_the_top_stays() {
    let given = r#"{"model":"m","max_tokens":5,"stream":true,"messages":[{"role":"user","content":"secret"}],"metadata":{"secret":"x"},"generationConfig":{"maxOutputTokens":9,"secret":7},"tools":[{"type":"function"}]}"#;
    let kept = r#"{"model":"m","max_tokens":5,"stream":true,"messages":[{"xxxx":"xxxx","xxxxxxx":"xxxxxx"}],"metadata":{"xxxxxx":"x"},"generationConfig":{"maxOutputTokens":9,"xxxxxx":1},"tools":[{"xxxx":"xxxxxxxx"}]}"#;
    assert_eq!(redacted(Of::Request, &[given.as_bytes()]), kept);
    // With a hole anywhere, what comes after it reads the same.
    for from in 0..=given.len() {
        let mut tail = Tail::new(SECRET);
        let mut out = Vec::new();
        tail.feed(&given.as_bytes()[from..], &mut out);
        tail.finish(true, &mut out);
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out.len(), given.len() - from);
        assert!(!out.contains("secret"), "{out}");
        // From the next member of the top on it is the same as without the hole.
        if let Some(at) = given[from..].find("\"generationConfig\"") {
            assert_eq!(&out[at..], &kept[from + at..], "from {from}");
        }
        let mut lost = Vec::new();
        let mut tail = Tail::new(SECRET);
        tail.feed(&given.as_bytes()[from..], &mut lost);
        tail.finish(false, &mut lost);
        assert!(lost.iter().all(|b| *b == b'x'));
    }
}

#[test]
fn texts_that_may_repeat_each_other_still_do_and_others_still_do_not() {
    let redact = |text: &str| {
        let mut machine = Text::new(Of::Response, SECRET).cumulative(true);
        let mut out = Vec::new();
        machine.feed(format!("{{\"text\":\"{text}\"}}").as_bytes(), &mut out);
        String::from_utf8(out).unwrap().split('"').nth(3).unwrap().to_owned()
    };
    assert!(redact("Grey skies").starts_with(&redact("Grey")));
    assert!(!redact("skies are").starts_with(&redact("Grey s")));
    assert!(!redact("Grey").contains("Gre"));
}

#[test]
fn after_a_hole_only_a_line_that_is_known_to_begin_is_read() {
    let mut text = Text::new(Of::Response, SECRET);
    let mut out = Vec::new();
    text.feed(b"data: {\"type\":\"te", &mut out);
    text.gap(&mut out);
    text.feed(b"secret\"}\n\ndata: {\"type\":\"text\"}\n\n", &mut out);
    text.gap(&mut out);
    text.feed(b"data: {\"type\":\"text\"}\n", &mut out);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "data: {\"type\":\"xxxxxxxxxx\n\ndata: {\"type\":\"text\"}\n\ndata: {\"type\":\"text\"}\n"
    );
}

proptest! {
    #[test]
    fn whatever_comes_keeps_its_length_and_is_the_same_in_every_cut(
        bytes in proptest::collection::vec(prop_oneof![
            Just(b'"'), Just(b'\\'), Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b','), Just(b':'), Just(b'\n'), Just(b'\r'),
            Just(b' '), Just(b'd'), Just(b'a'), Just(b't'), Just(b'i'), Just(b'0'), Just(b'-'), Just(b'.'), any::<u8>(),
        ], 0..200),
        cut in 0_usize..200,
        request: bool,
    ) {
        let of = if request { Of::Request } else { Of::Response };
        let run = |pieces: &[&[u8]]| {
            let mut text = Text::new(of, SECRET);
            let mut out = Vec::new();
            for piece in pieces {
                text.feed(piece, &mut out);
            }
            text.finish(&mut out);
            out
        };
        let whole = run(&[&bytes]);
        prop_assert_eq!(whole.len(), bytes.len());
        let (a, b) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(run(&[a, b]), whole);
    }
}
