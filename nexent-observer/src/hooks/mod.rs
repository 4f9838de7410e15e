//! What in-process hooks say (docs/hooks.md): which endpoint the next write of a thread is for, and what spans there are.

pub mod message;
pub mod spans;

use std::sync::Arc;

use nexent_observer_core::{event, pipeline::Pipeline};

use crate::ring::Announcement;
use message::{Kind, Message};
use spans::Spans;

/// To what the next write of a thread belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Thread.
    pub tid: u32,
    /// What a hook said of it; `None`: it belongs to no span.
    pub said: Option<Arc<event::Said>>,
}

/// Listens to all hooks.
#[derive(Debug, Default)]
pub struct Hooks {
    /// Announcements that were understood.
    pub heard: u64,
    /// Announcements that were not: too long, unreadable, no JSON, or of another version.
    pub not_understood: u64,
    /// The spans that hooks begin and end.
    pub spans: Spans,
}

impl Hooks {
    /// Takes in one announcement; gives what the core has to know of it.
    pub fn take(&mut self, announcement: &Announcement<'_>, pipeline: &Pipeline) -> Option<Said> {
        let Some(message) = message::parse(announcement.text) else {
            self.not_understood += 1;
            return None;
        };
        self.heard += 1;
        match message.k {
            Kind::Write => Some(Said { tid: announcement.tid, said: said(&message) }),
            Kind::Begin | Kind::Set | Kind::Event | Kind::End => {
                self.spans.hear(announcement, &message, pipeline);
                None
            }
        }
    }
}

fn said(message: &Message<'_>) -> Option<Arc<event::Said>> {
    let (span_id, trace_id) = (message.s?, message.t?);
    let endpoint = message.n.as_deref().map(message::name).filter(|name| !name.is_empty()).map(Arc::from);
    Some(Arc::new(event::Said { trace_id, span_id, endpoint }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexent_observer_core::{event::MonoNs, limits::Limits, timing::Options};

    fn take(text: &str) -> (Option<Said>, u64, u64) {
        let mut hooks = Hooks::default();
        let announcement = Announcement { at: MonoNs(5), pid: 7, tid: 8, text: text.as_bytes() };
        let pipeline = Pipeline::new(Limits::default(), Options::default());
        let said = hooks.take(&announcement, &pipeline);
        (said, hooks.heard, hooks.not_understood)
    }

    #[test]
    fn a_write_says_to_which_span_it_belongs() {
        let text = r#"{"v":1,"k":"write","s":"00f067aa0ba902b7","t":"4bf92f3577b34da6a3ce929d0e0e4736","n":"POST /agent/run","x":[1]}"#;
        let said = event::Said {
            trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
            span_id: 0x00f0_67aa_0ba9_02b7,
            endpoint: Some("POST /agent/run".into()),
        };
        assert_eq!(take(text), (Some(Said { tid: 8, said: Some(Arc::new(said)) }), 1, 0));
    }

    #[test]
    fn a_write_without_a_span_belongs_to_none() {
        for text in [
            r#"{"v":1,"k":"write"}"#,
            r#"{"v":1,"k":"write","s":"00f067aa0ba902b7"}"#,
            r#"{"v":1,"k":"write","s":"short","t":"4bf92f3577b34da6a3ce929d0e0e4736"}"#,
            r#"{"v":1,"k":"write","s":"0000000000000000","t":"4bf92f3577b34da6a3ce929d0e0e4736"}"#,
            r#"{"v":1,"k":"write","s":"zzzzzzzzzzzzzzzz","t":"4bf92f3577b34da6a3ce929d0e0e4736"}"#,
        ] {
            assert_eq!(take(text), (Some(Said { tid: 8, said: None }), 1, 0), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_counted_and_does_nothing() {
        for text in
            ["", "{", "[]", "null", r#"{"v":2,"k":"write"}"#, r#"{"v":1,"k":"jump"}"#, r#"{"v":1,"k":"write","s":7}"#]
        {
            assert_eq!(take(text), (None, 0, 1), "{text}");
        }
    }

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        let long = "é".repeat(300);
        assert_eq!(message::name(&long).chars().count(), message::MAX_NAME);
        assert_eq!(message::name("short"), "short");
    }
}
