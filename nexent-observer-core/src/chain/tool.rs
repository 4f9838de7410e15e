//! One call of the Model Context Protocol over streamable HTTP, which the process makes: of a tool, or for the session.

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::{fmt, sync::Arc};

use crate::{
    event::{MonoNs, Peer, Said},
    http::{Head, HttpEvent, HttpEventKind, RequestHead, Side},
    limits::{NAME_BYTES, TOOL_BODY_BYTES},
    timing::{CausedBy, ExchangeId},
};

use super::{Ended, serving::cleaned};

/// A call of the Model Context Protocol that is over. Arguments and results are not kept.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Connection and exchange on it.
    pub id: ExchangeId,
    /// Process (tgid in the initial pid namespace).
    pub pid: u32,
    /// Thread that wrote its head.
    pub tid: Option<u32>,
    /// The two ends of the connection, where they were seen.
    pub peer: Option<Peer>,
    /// `Host` as sent, port included.
    pub host: Option<String>,
    /// Method of the protocol (`tools/call`); `None` when the body did not show it.
    pub method: Option<String>,
    /// The tool, of `tools/call`.
    pub tool: Option<String>,
    /// `traceparent` of the request, as sent.
    pub traceparent: Option<String>,
    /// HTTP status of the answer.
    pub status: Option<u16>,
    /// Entry of the write that carries the first byte of the request head.
    pub start: MonoNs,
    /// Return of the read that carries the first byte of the answer.
    pub first_byte: Option<MonoNs>,
    /// Return of the read that carries the last byte of the answer, or when it broke off.
    pub end: MonoNs,
    /// How it ended.
    pub ended: Ended,
    /// What a hook in the process said of it.
    pub said: Option<Arc<Said>>,
    /// What caused it, where that is known.
    pub cause: Option<CausedBy>,
}

/// Follows what may be such a call.
#[derive(Debug)]
pub struct ToolDraft {
    call: Box<ToolCall>,
    body: Vec<u8>,
    /// It is one.
    confirmed: bool,
}

impl ToolDraft {
    /// A request that may be one begins. `None`: its head says that it is none.
    #[must_use]
    pub fn begin(
        id: ExchangeId,
        (pid, tid): (u32, Option<u32>),
        peer: Option<Peer>,
        event: &HttpEvent<'_>,
    ) -> Option<Self> {
        let HttpEventKind::Head { first, head: Head::Request(head) } = event.kind else { return None };
        if !may_be(&head) {
            return None;
        }
        let field = |name| head.headers.get(name).map(short);
        let call = ToolCall {
            id,
            pid,
            tid,
            peer,
            host: head.host.map(cleaned),
            method: field("mcp-method"),
            tool: field("mcp-name"),
            traceparent: field("traceparent"),
            status: None,
            start: first.entry,
            first_byte: None,
            end: first.entry,
            ended: Ended::Broken,
            said: None,
            cause: None,
        };
        Some(Self { call: Box::new(call), body: Vec::new(), confirmed: false })
    }

    /// Which exchange.
    #[must_use]
    pub fn id(&self) -> ExchangeId {
        self.call.id
    }

    /// It is such a call indeed.
    pub fn confirm(&mut self) {
        self.confirmed = true;
    }

    /// Takes an event of this exchange; whether it is over.
    pub fn feed(&mut self, event: &HttpEvent<'_>) -> bool {
        let call = &mut self.call;
        match (event.side, event.kind) {
            (_, HttpEventKind::Abort(_)) => {
                call.end = event.at.ret;
                return true;
            }
            (Side::Response, HttpEventKind::End) => {
                (call.end, call.ended) = (event.at.ret, Ended::Completed);
                return true;
            }
            (Side::Response, HttpEventKind::Head { first, head }) => {
                call.first_byte = Some(first.ret);
                if let Head::Response(head) = head {
                    call.status = head.status;
                }
            }
            (Side::Request, HttpEventKind::Body(bytes)) => {
                let room = TOOL_BODY_BYTES.saturating_sub(self.body.len());
                self.body.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
            }
            (Side::Request, HttpEventKind::End) => self.read_body(),
            _ => {}
        }
        false
    }

    /// The call, if it is one.
    #[must_use]
    pub fn finish(mut self) -> Option<Box<ToolCall>> {
        self.read_body();
        let Self { mut call, confirmed, .. } = self;
        call.tool = call.tool.filter(|_| call.method.as_deref() == Some("tools/call"));
        confirmed.then_some(call)
    }

    fn read_body(&mut self) {
        let body = std::mem::take(&mut self.body);
        let mut said = Names::default();
        // A body that is cut off, or is none, has said what it has said.
        drop(Level { depth: 0, said: &mut said }.deserialize(&mut serde_json::Deserializer::from_slice(&body)));
        self.call.method = self.call.method.take().or(said.method);
        self.call.tool = self.call.tool.take().or(said.tool);
    }
}

/// Whether a request may be one by its head: a session's, or one that accepts answers as clients of the protocol must (its
/// specification, "Streamable HTTP").
fn may_be(head: &RequestHead<'_>) -> bool {
    let accept = head.headers.get("accept").unwrap_or_default();
    let fields = ["mcp-protocol-version", "mcp-session-id", "mcp-method"];
    head.method == "POST"
        && (accept.contains("application/json") && accept.contains("text/event-stream")
            || fields.iter().any(|name| head.headers.get(name).is_some()))
}

fn short(text: &str) -> String {
    let text = text.get(..text.floor_char_boundary(NAME_BYTES)).unwrap_or(text);
    text.chars().map(|c| if c.is_control() { '_' } else { c }).collect()
}

#[derive(Debug, Default)]
struct Names {
    method: Option<String>,
    tool: Option<String>,
}

/// Reads `method` of the outermost object and `name` of its `params`.
struct Level<'a> {
    depth: u8,
    said: &'a mut Names,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match (self.depth, &*key) {
                (0, "method") => self.said.method = Some(short(&map.next_value::<String>()?)),
                (1, "name") => self.said.tool = Some(short(&map.next_value::<String>()?)),
                (0, "params") => map.next_value_seed(Level { depth: 1, said: self.said })?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}
