//! The request body: facts from its top-level members, however long it is and even if its middle is missing.

use super::{
    api::{Api, Member, RequestDraft},
    json_scan::{Scanner, scan_tail},
    members::Members,
};
use crate::{
    conn::GapCause,
    limits::{REQUEST_HEAD_BYTES, REQUEST_TAIL_BYTES},
};

/// A request body as it goes by. Its text is not kept: up to the first hole it is scanned as it comes, after it only the
/// last [`REQUEST_TAIL_BYTES`] (twice that while it moves) wait for the body's end, which alone shows their depth.
#[derive(Debug)]
pub(super) struct RequestBody {
    scanner: Scanner,
    /// Bytes since the last hole, the last ones only.
    tail: Vec<u8>,
    holed: bool,
    /// Of all bytes so far, and of the sizes of what was left uncopied; `None` once bytes were lost.
    digest: Option<u64>,
    taker: Taker,
}

/// Who takes the members.
#[derive(Debug)]
enum Taker {
    Known { api: &'static Api, draft: RequestDraft },
    Unknown(Members),
}

impl RequestBody {
    pub(super) fn new(api: Option<&'static Api>) -> Self {
        let taker = match api {
            Some(api) => Taker::Known { api, draft: RequestDraft::default() },
            None => Taker::Unknown(Members::default()),
        };
        Self { scanner: Scanner::new(), tail: Vec::new(), holed: false, digest: Some(FNV_OFFSET), taker }
    }

    /// The next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.digest = self.digest.map(|digest| fnv1a(digest, bytes));
        if !self.holed {
            let Self { scanner, taker, .. } = self;
            scanner.feed(bytes, &mut |member| take(taker, member));
            return;
        }
        let bytes = bytes.get(bytes.len().saturating_sub(REQUEST_TAIL_BYTES)..).unwrap_or_default();
        // Moved only when it has doubled, so that each byte is moved once on average.
        if self.tail.len() + bytes.len() > REQUEST_HEAD_BYTES + REQUEST_TAIL_BYTES {
            let keep = REQUEST_TAIL_BYTES.saturating_sub(bytes.len());
            self.tail.drain(..self.tail.len().saturating_sub(keep));
        }
        self.tail.extend_from_slice(bytes);
    }

    /// Bytes are missing here.
    pub(super) fn gap(&mut self, len: Option<u64>, cause: GapCause) {
        let same_next_time = len.filter(|_| matches!(cause, GapCause::Capped | GapCause::Skipped));
        self.digest = self.digest.zip(same_next_time).map(|(digest, len)| fnv1a(digest, &len.to_be_bytes()));
        self.holed = true;
        self.tail.clear();
    }

    /// The body is complete: what its tail says can be told.
    pub(super) fn end(&mut self) {
        let Self { tail, taker, .. } = self;
        scan_tail(tail, &mut |member| take(taker, member));
        self.tail = Vec::new();
    }

    /// Digest of the body so far, by which the same request is known again; `None` where bytes were lost, and of an empty body.
    /// It says as good as nothing about a text, but of a short one it can be searched for: it must not leave the core.
    pub(super) fn digest(&self) -> Option<u64> {
        self.digest.filter(|digest| *digest != FNV_OFFSET)
    }

    /// The body cannot be a call of any API.
    pub(super) fn is_hopeless(&self) -> bool {
        self.scanner.is_dead()
    }

    /// Whether the members seen so far look like a call of `api`.
    pub(super) fn looks_like(&self, api: &Api) -> bool {
        match &self.taker {
            Taker::Known { api: known, .. } => std::ptr::eq(*known, api),
            Taker::Unknown(members) => (api.request_shape)(members),
        }
    }

    /// Whether it is JSON-RPC 2.0. Known only while no API is.
    pub(super) fn is_json_rpc(&self) -> bool {
        matches!(&self.taker, Taker::Unknown(members) if members.text("jsonrpc") == Some("2.0"))
    }

    /// What is known so far, read the way of `api`.
    pub(super) fn draft(&self, api: &'static Api) -> RequestDraft {
        let mut draft = match &self.taker {
            Taker::Known { draft, .. } => draft.clone(),
            Taker::Unknown(kept) => {
                let mut draft = RequestDraft::default();
                for member in kept.iter() {
                    (api.request)(&mut draft, member);
                }
                draft
            }
        };
        draft.facts.truncated = self.holed;
        draft
    }

    /// Bytes held in buffers.
    #[cfg(test)]
    fn buffered(&self) -> usize {
        self.tail.capacity()
    }
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a with 64 bits (the draft "The FNV Non-Cryptographic Hash Algorithm"), continued from `digest`.
fn fnv1a(digest: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(digest, |digest, byte| (digest ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn take(taker: &mut Taker, member: Member<'_>) {
    match taker {
        Taker::Known { api, draft } => (api.request)(draft, member),
        Taker::Unknown(kept) => kept.push(member),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::{RequestFacts, openai_chat};

    fn facts(pieces: &[Option<&[u8]>]) -> RequestFacts {
        let mut known = RequestBody::new(Some(&openai_chat::API));
        let mut unknown = RequestBody::new(None);
        for body in [&mut known, &mut unknown] {
            for piece in pieces {
                match piece {
                    Some(bytes) => body.feed(bytes),
                    None => body.gap(None, GapCause::Lost),
                }
            }
            body.end();
        }
        let facts = known.draft(&openai_chat::API).facts;
        assert_eq!(facts, unknown.draft(&openai_chat::API).facts, "the same whether the path told the API or not");
        facts
    }

    #[test]
    fn a_body_without_its_middle_still_tells_its_facts() {
        let prompt = r#"{\"model\":\"evil\"},\",\"model\":\"evil\",\"stream\":true}"#.repeat(20_000);
        let body = format!(
            r#"{{"n":2,"messages":[{{"role":"user","content":"{prompt}"}}],"model":"gpt-4o-mini","stream":true,"stream_options":{{"include_usage":true}},"temperature":0.2,"top_p":0.9,"max_tokens":5,"max_completion_tokens":7,"tools":[{{"type":"function"}}]}}"#
        );
        let bytes = body.as_bytes();
        let want = RequestFacts {
            model: Some("gpt-4o-mini".into()),
            stream: Some(true),
            max_tokens: Some(7),
            temperature: Some(0.2),
            top_p: Some(0.9),
            choices: Some(2),
            truncated: false,
        };
        assert_eq!(facts(&[Some(bytes)]), want);
        let holed = RequestFacts { truncated: true, ..want };
        for hole in [40..bytes.len() - 4000, 40..bytes.len() - 4001, 40..bytes.len() - 4002, 4000..bytes.len() - 64_000]
        {
            assert_eq!(facts(&[Some(&bytes[..hole.start]), None, Some(&bytes[hole.end..])]), holed, "{hole:?}");
        }
        // A hole inside the tail: what lies before it is not claimed.
        let at = body.rfind("\"temperature\"").unwrap();
        let got = facts(&[Some(&bytes[..40]), None, Some(&bytes[at - 900..at]), None, Some(&bytes[at..])]);
        assert_eq!((got.model, got.temperature, got.choices), (None, None, Some(2)));
        assert_eq!(got.top_p, Some(0.9));
    }

    #[test]
    fn a_long_body_after_a_hole_is_held_only_in_part() {
        let mut body = RequestBody::new(Some(&openai_chat::API));
        body.feed(b"{\"messages\":[\"");
        body.gap(None, GapCause::Lost);
        for _ in 0..1000 {
            body.feed(&[b'x'; 10_000]);
            assert!(body.buffered() <= 2 * (REQUEST_HEAD_BYTES + REQUEST_TAIL_BYTES));
        }
        body.feed(&vec![b'x'; 1_000_000]);
        body.feed(b"\"],\"model\":\"m\"}");
        body.end();
        assert_eq!(body.draft(&openai_chat::API).facts.model.as_deref(), Some("m"));
    }

    #[test]
    fn a_digest_is_the_same_however_the_body_is_cut_and_another_for_every_other_body() {
        let digest = |pieces: &[Option<&[u8]>], gap: (Option<u64>, GapCause)| {
            let mut body = RequestBody::new(None);
            for piece in pieces {
                match piece {
                    Some(bytes) => body.feed(bytes),
                    None => body.gap(gap.0, gap.1),
                }
            }
            body.digest()
        };
        let (text, skipped) = (br#"{"model":"m","n":1}"#.as_slice(), (Some(7), GapCause::Capped));
        let whole = digest(&[Some(text)], skipped);
        assert!(whole.is_some());
        for at in 0..=text.len() {
            assert_eq!(digest(&[Some(&text[..at]), Some(&text[at..])], skipped), whole);
            let mut other = text.to_vec();
            if let Some(byte) = other.get_mut(at) {
                *byte ^= 1;
                assert_ne!(digest(&[Some(&other)], skipped), whole);
            }
        }
        let holed = digest(&[Some(text), None, Some(text)], skipped);
        assert_eq!(digest(&[Some(&text[..4]), Some(&text[4..]), None, Some(text)], skipped), holed);
        assert_ne!(digest(&[Some(text), None, Some(text)], (Some(8), GapCause::Capped)), holed);
        assert_eq!(
            digest(&[Some(text), None, Some(text)], (Some(7), GapCause::Lost)),
            None,
            "nobody knows what was lost"
        );
        assert_eq!(digest(&[], skipped), None);
    }

    #[test]
    fn a_body_whose_end_is_missing_claims_nothing_of_its_tail() {
        let got = facts(&[Some(b"{\"model\":\"a\",\"messages\":[\""), None, Some(b"x\",{\"model\":\"b\"}"), None]);
        assert_eq!(got.model.as_deref(), Some("a"));
    }
}
