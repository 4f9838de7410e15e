//! Entries of a recording.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::wire::{self, Reader};
use crate::{
    conn::{CloseCause, GapCause},
    event::{
        Address, ConnId, Direction, Found, MonoNs, Peer, Record, RecordFlags, RecordKind, Role, Said, Stamp,
        ThreadEvent, ThreadEventKind,
    },
    http::{
        AbortCause, ExchangeNo, Head, Headers, HttpEvent, HttpEventKind, Message, MessageKind, RequestHead,
        ResponseHead, Side,
    },
    limits::HEAD_FIELDS,
    pipeline::{Counted, SocketTold, Tapped},
};

/// An entry that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an entry that cannot be read")]
pub struct Malformed;

/// One entry.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry<'a> {
    /// About the recording: a JSON object. Comes first.
    Info(&'a [u8]),
    /// About a process: a JSON object. Comes before its first exchange ends.
    Service(&'a [u8]),
    /// `CLOCK_REALTIME` minus `CLOCK_MONOTONIC` from here on, in ns.
    Clock(i64),
    /// So many entries are missing here: the recording could not keep up.
    Lost(u64),
    /// With content: a record went into the pipeline.
    Record(Record<'a>),
    /// With content: what a hook said went into the pipeline.
    Said {
        /// Thread.
        tid: u32,
        /// What it said.
        said: Option<Arc<Said>>,
    },
    /// With content: a process was gone.
    Exit {
        /// Process.
        pid: u32,
        /// When.
        at: MonoNs,
    },
    /// With content: what happened to a thread went into the pipeline.
    Thread(ThreadEvent),
    /// With content: time passed, and something was due.
    Timeout(MonoNs),
    /// Without content: a tap was shown something.
    Tapped(ConnId, Tapped<'a>),
    /// Of a kind that a later version knows.
    Unknown,
}

mod tag {
    pub(super) const INFO: u8 = 1;
    pub(super) const SERVICE: u8 = 2;
    pub(super) const CLOCK: u8 = 3;
    pub(super) const LOST: u8 = 4;
    pub(super) const DATA: u8 = 16;
    pub(super) const PEER: u8 = 17;
    pub(super) const CLOSE: u8 = 18;
    pub(super) const SAID: u8 = 19;
    pub(super) const EXIT: u8 = 20;
    pub(super) const TIMEOUT: u8 = 21;
    pub(super) const SENT: u8 = 22;
    pub(super) const LATE: u8 = 23;
    pub(super) const RETRANSMIT: u8 = 24;
    pub(super) const THREAD_STARTED: u8 = 25;
    pub(super) const THREAD_ENDED: u8 = 26;
    pub(super) const CONNECTION: u8 = 32;
    pub(super) const BEGIN: u8 = 33;
    pub(super) const UNSAID: u8 = 34;
    pub(super) const DISMISSED: u8 = 35;
    pub(super) const OVER: u8 = 36;
    pub(super) const SOCKET: u8 = 37;
    pub(super) const ASKED: u8 = 38;
    pub(super) const COUNTED: u8 = 39;
    pub(super) const REQUEST: u8 = 40;
    pub(super) const RESPONSE: u8 = 41;
    pub(super) const UNSEEN: u8 = 42;
    pub(super) const BODY: u8 = 43;
    pub(super) const MESSAGE: u8 = 44;
    pub(super) const GAP: u8 = 45;
    pub(super) const END: u8 = 46;
    pub(super) const ABORT: u8 = 47;
}

/// Appends an [`Entry::Info`].
pub fn info(out: &mut Vec<u8>, json: &[u8]) {
    out.push(tag::INFO);
    out.extend_from_slice(json);
}

/// Appends an [`Entry::Service`].
pub fn service(out: &mut Vec<u8>, json: &[u8]) {
    out.push(tag::SERVICE);
    out.extend_from_slice(json);
}

/// Appends an [`Entry::Clock`].
pub fn clock(out: &mut Vec<u8>, offset: i64) {
    out.push(tag::CLOCK);
    out.extend_from_slice(&offset.to_le_bytes());
}

/// Appends an [`Entry::Lost`].
pub fn lost(out: &mut Vec<u8>, entries: u64) {
    out.push(tag::LOST);
    wire::number(out, entries);
}

/// Appends an [`Entry::Said`].
pub fn said(out: &mut Vec<u8>, tid: u32, said: Option<&Arc<Said>>) {
    out.push(tag::SAID);
    wire::number(out, tid.into());
    put_said(out, said);
}

/// Appends an [`Entry::Exit`].
pub fn exit(out: &mut Vec<u8>, pid: u32, at: MonoNs) {
    out.push(tag::EXIT);
    wire::number(out, pid.into());
    wire::number(out, at.0);
}

/// Appends an [`Entry::Thread`].
pub fn thread(out: &mut Vec<u8>, event: &ThreadEvent) {
    let ThreadEvent { at, pid, tid, kind } = *event;
    out.push(match kind {
        ThreadEventKind::Started { .. } => tag::THREAD_STARTED,
        ThreadEventKind::Ended => tag::THREAD_ENDED,
    });
    wire::number(out, pid.into());
    wire::number(out, tid.into());
    wire::number(out, at.0);
    if let ThreadEventKind::Started { child } = kind {
        wire::number(out, child.into());
    }
}

/// Appends an [`Entry::Timeout`].
pub fn timeout(out: &mut Vec<u8>, now: MonoNs) {
    out.push(tag::TIMEOUT);
    wire::number(out, now.0);
}

/// Appends an [`Entry::Record`].
pub fn record(out: &mut Vec<u8>, record: &Record<'_>) {
    let Record { conn, pid, tid, at, kind } = *record;
    out.push(match kind {
        RecordKind::Data { .. } => tag::DATA,
        RecordKind::Peer(_) => tag::PEER,
        RecordKind::Close { .. } => tag::CLOSE,
        RecordKind::Sent { .. } => tag::SENT,
        RecordKind::Late { .. } => tag::LATE,
        RecordKind::Retransmit => tag::RETRANSMIT,
    });
    wire::number(out, conn.0);
    wire::number(out, pid.into());
    wire::number(out, tid.into());
    put_stamp(out, at);
    match kind {
        RecordKind::Data { dir, offset, turn, payload, len, flags } => {
            out.push(u8::from(dir == Direction::Write));
            out.push(flag_bits(flags));
            for n in [offset, turn.into(), len] {
                wire::number(out, n);
            }
            wire::bytes(out, payload);
        }
        RecordKind::Peer(peer) => put_peer(out, Some(peer)),
        RecordKind::Sent { until } => wire::number(out, until.0),
        RecordKind::Late { arrived } => wire::number(out, arrived.0),
        RecordKind::Retransmit => {}
        RecordKind::Close { read_end, write_end, flags } => {
            out.push(flag_bits(flags));
            wire::number(out, read_end);
            wire::number(out, write_end);
        }
    }
}

/// An [`Entry::Tapped`].
#[must_use]
pub fn tapped(conn: ConnId, tapped: &Tapped<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let out = &mut bytes;
    let begin = |out: &mut Vec<u8>, tag| {
        out.push(tag);
        wire::number(out, conn.0);
    };
    match *tapped {
        Tapped::Connection { pid, role, peer, watched_since } => {
            begin(out, tag::CONNECTION);
            wire::number(out, pid.into());
            out.push(u8::from(role == Role::Server));
            put_peer(out, peer);
            wire::maybe(out, watched_since.map(|since| since.0));
        }
        Tapped::Socket(told) => {
            begin(out, tag::SOCKET);
            let (kind, at, other) = match told {
                SocketTold::Sent { until, at } => (0, at, Some(until)),
                SocketTold::Late { arrived, at } => (1, at, Some(arrived)),
                SocketTold::Retransmit { at } => (2, at, None),
            };
            out.push(kind);
            wire::number(out, at.0);
            if let Some(other) = other {
                wire::number(out, other.0);
            }
        }
        Tapped::Asked { exchange, digest } => {
            begin(out, tag::ASKED);
            wire::number(out, exchange.0.into());
            out.extend_from_slice(&digest.to_le_bytes());
        }
        Tapped::Counted(counted) => {
            begin(out, tag::COUNTED);
            wire::number(out, counted.len() as u64);
            for Counted { no, tokens, told } in counted {
                wire::number(out, (*no).into());
                wire::maybe(out, *tokens);
                wire::number(out, told.len() as u64);
                for tokens in told {
                    // One more than it is, or 0.
                    wire::number(out, tokens.map_or(0, |tokens| u64::from(tokens) + 1));
                }
            }
        }
        Tapped::Begin { exchange, tid, said } => {
            begin(out, tag::BEGIN);
            wire::number(out, exchange.0.into());
            wire::maybe(out, tid.map(u64::from));
            put_said(out, said);
        }
        Tapped::Unsaid { exchange } => {
            begin(out, tag::UNSAID);
            wire::number(out, exchange.0.into());
        }
        Tapped::Dismissed { exchange } => {
            begin(out, tag::DISMISSED);
            wire::number(out, exchange.0.into());
        }
        Tapped::Over => begin(out, tag::OVER),
        Tapped::Http(event) => {
            begin(out, tag_of(&event.kind));
            wire::number(out, event.exchange.0.into());
            out.push(u8::from(event.side == Side::Response));
            put_stamp(out, event.at);
            put_kind(out, &event.kind);
        }
    }
    bytes
}

fn tag_of(kind: &HttpEventKind<'_>) -> u8 {
    match kind {
        HttpEventKind::Head { head: Head::Request(_), .. } => tag::REQUEST,
        HttpEventKind::Head { head: Head::Response(_), .. } => tag::RESPONSE,
        HttpEventKind::Head { head: Head::Unseen, .. } => tag::UNSEEN,
        HttpEventKind::Body(_) => tag::BODY,
        HttpEventKind::Message(_) => tag::MESSAGE,
        HttpEventKind::Gap { .. } => tag::GAP,
        HttpEventKind::End => tag::END,
        HttpEventKind::Abort(_) => tag::ABORT,
    }
}

fn put_kind(out: &mut Vec<u8>, kind: &HttpEventKind<'_>) {
    let fields = |out: &mut Vec<u8>, headers: &Headers<'_>| {
        wire::number(out, headers.0.len() as u64);
        for (name, value) in headers.0 {
            wire::bytes(out, name.as_bytes());
            wire::bytes(out, value);
        }
    };
    match *kind {
        HttpEventKind::Head { first, head } => {
            put_stamp(out, first);
            match head {
                Head::Request(RequestHead { method, path, host, headers }) => {
                    wire::bytes(out, method.as_bytes());
                    wire::bytes(out, path.as_bytes());
                    out.push(u8::from(host.is_some()));
                    wire::bytes(out, host.unwrap_or_default().as_bytes());
                    fields(out, &headers);
                }
                Head::Response(ResponseHead { status, headers }) => {
                    wire::maybe(out, status.map(u64::from));
                    fields(out, &headers);
                }
                Head::Unseen => {}
            }
        }
        HttpEventKind::Body(bytes) => out.extend_from_slice(bytes),
        HttpEventKind::Message(Message { kind, first, len, bytes }) => {
            let (kind, code) = match kind {
                MessageKind::Text => (0, None),
                MessageKind::Binary => (1, None),
                MessageKind::Close(code) => (2, code),
            };
            out.push(kind);
            wire::maybe(out, code.map(u64::from));
            put_stamp(out, first);
            wire::number(out, len);
            out.extend_from_slice(bytes);
        }
        HttpEventKind::Gap { len, cause } => {
            wire::maybe(out, len);
            out.push(match cause {
                GapCause::Lost => 0,
                GapCause::Capped => 1,
                GapCause::Fault => 2,
                GapCause::Skipped => 3,
                GapCause::Undecoded => 4,
            });
        }
        HttpEventKind::End => {}
        HttpEventKind::Abort(cause) => {
            let (cause, code) = match cause {
                AbortCause::Closed(CloseCause::Freed) => (0, 0),
                AbortCause::Closed(CloseCause::ProcessExit) => (1, 0),
                AbortCause::Closed(CloseCause::Evicted) => (2, 0),
                AbortCause::Reset { by_peer: false, code } => (3, code),
                AbortCause::Reset { by_peer: true, code } => (4, code),
                AbortCause::Desync => (5, 0),
                AbortCause::GoAway => (6, 0),
                AbortCause::Evicted => (7, 0),
            };
            out.push(cause);
            wire::number(out, code.into());
        }
    }
}

fn put_stamp(out: &mut Vec<u8>, Stamp { entry, ret }: Stamp) {
    wire::number(out, entry.0);
    // A call returns after its entry; what says otherwise is kept all the same.
    wire::number(out, ret.0.wrapping_sub(entry.0));
}

fn put_said(out: &mut Vec<u8>, said: Option<&Arc<Said>>) {
    out.push(u8::from(said.is_some()));
    let Some(Said { trace_id, span_id, endpoint }) = said.map(|said| &**said) else { return };
    out.extend_from_slice(&trace_id.to_le_bytes());
    out.extend_from_slice(&span_id.to_le_bytes());
    out.push(u8::from(endpoint.is_some()));
    wire::bytes(out, endpoint.as_deref().unwrap_or_default().as_bytes());
}

fn put_peer(out: &mut Vec<u8>, peer: Option<Peer>) {
    out.push(u8::from(peer.is_some()));
    let Some(Peer { local, remote, connect_ns, tls_ns, socket, retransmits }) = peer else { return };
    for address in [local, remote] {
        match address {
            Address::Unix => out.push(0),
            Address::Inet(address) => {
                match address.ip() {
                    IpAddr::V4(ip) => {
                        out.push(4);
                        out.extend_from_slice(&ip.octets());
                    }
                    IpAddr::V6(ip) => {
                        out.push(6);
                        out.extend_from_slice(&ip.octets());
                    }
                }
                wire::number(out, address.port().into());
            }
        }
    }
    wire::maybe(out, connect_ns);
    wire::maybe(out, tls_ns);
    out.push(match socket {
        None => 0,
        Some(Found::Itself) => 1,
        Some(Found::InsideWrite) => 2,
        Some(Found::NextSend) => 3,
    });
    wire::number(out, retransmits.into());
}

fn flag_bits(flags: RecordFlags) -> u8 {
    let RecordFlags { from_start, capped, fault, after_skip, after_unknown_loss, sent } = flags;
    [from_start, capped, fault, after_skip, after_unknown_loss, sent]
        .into_iter()
        .enumerate()
        .fold(0, |bits, (n, set)| bits | u8::from(set) << n)
}

/// Reads one entry and hands it to `with`.
///
/// # Errors
/// [`Malformed`].
pub fn read<R>(bytes: &[u8], with: impl FnOnce(Entry<'_>) -> R) -> Result<R, Malformed> {
    let mut from = Reader(bytes);
    let tag = from.byte()?;
    let entry = match tag {
        tag::INFO => Entry::Info(from.0),
        tag::SERVICE => Entry::Service(from.0),
        tag::CLOCK => {
            let offset = i64::from_le_bytes(from.array()?);
            from.end()?;
            Entry::Clock(offset)
        }
        tag::LOST => {
            let entries = from.number()?;
            from.end()?;
            Entry::Lost(entries)
        }
        tag::SAID => {
            let (tid, said) = (from.small()?, get_said(&mut from)?);
            from.end()?;
            Entry::Said { tid, said }
        }
        tag::EXIT => {
            let (pid, at) = (from.small()?, MonoNs(from.number()?));
            from.end()?;
            Entry::Exit { pid, at }
        }
        tag::THREAD_STARTED | tag::THREAD_ENDED => {
            let (pid, tid, at) = (from.small()?, from.small()?, MonoNs(from.number()?));
            let kind = match tag {
                tag::THREAD_STARTED => ThreadEventKind::Started { child: from.small()? },
                _ => ThreadEventKind::Ended,
            };
            from.end()?;
            Entry::Thread(ThreadEvent { at, pid, tid, kind })
        }
        tag::TIMEOUT => {
            let now = MonoNs(from.number()?);
            from.end()?;
            Entry::Timeout(now)
        }
        tag::DATA | tag::PEER | tag::CLOSE | tag::SENT | tag::LATE | tag::RETRANSMIT => {
            Entry::Record(get_record(tag, &mut from)?)
        }
        tag::CONNECTION..=tag::COUNTED => {
            let conn = ConnId(from.number()?);
            return get_tapped(tag, conn, &mut from, with);
        }
        tag::REQUEST..=tag::ABORT => {
            let conn = ConnId(from.number()?);
            let exchange = ExchangeNo(from.small()?);
            let side = if from.flag()? { Side::Response } else { Side::Request };
            let at = get_stamp(&mut from)?;
            let mut fields = Vec::new();
            let kind = get_kind(tag, &mut from, &mut fields)?;
            let event = HttpEvent { exchange, side, at, kind };
            return Ok(with(Entry::Tapped(conn, Tapped::Http(&event))));
        }
        _ => Entry::Unknown,
    };
    Ok(with(entry))
}

fn get_tapped<R>(
    tag: u8,
    conn: ConnId,
    from: &mut Reader<'_>,
    with: impl FnOnce(Entry<'_>) -> R,
) -> Result<R, Malformed> {
    let tapped = match tag {
        tag::CONNECTION => {
            let pid = from.small()?;
            let role = if from.flag()? { Role::Server } else { Role::Client };
            let (peer, watched_since) = (get_peer(from)?, from.maybe()?.map(MonoNs));
            Tapped::Connection { pid, role, peer, watched_since }
        }
        tag::BEGIN => {
            let exchange = ExchangeNo(from.small()?);
            let tid = from.maybe()?.map(u32::try_from).transpose().map_err(|_| Malformed)?;
            let said = get_said(from)?;
            from.end()?;
            return Ok(with(Entry::Tapped(conn, Tapped::Begin { exchange, tid, said: said.as_ref() })));
        }
        tag::UNSAID => Tapped::Unsaid { exchange: ExchangeNo(from.small()?) },
        tag::DISMISSED => Tapped::Dismissed { exchange: ExchangeNo(from.small()?) },
        tag::SOCKET => {
            let (kind, at) = (from.byte()?, MonoNs(from.number()?));
            Tapped::Socket(match kind {
                0 => SocketTold::Sent { until: MonoNs(from.number()?), at },
                1 => SocketTold::Late { arrived: MonoNs(from.number()?), at },
                2 => SocketTold::Retransmit { at },
                _ => return Err(Malformed),
            })
        }
        tag::ASKED => {
            let exchange = ExchangeNo(from.small()?);
            Tapped::Asked { exchange, digest: u64::from_le_bytes(from.array()?) }
        }
        tag::COUNTED => {
            let counted = get_counted(from)?;
            from.end()?;
            return Ok(with(Entry::Tapped(conn, Tapped::Counted(&counted))));
        }
        _ => Tapped::Over,
    };
    from.end()?;
    Ok(with(Entry::Tapped(conn, tapped)))
}

fn get_counted(from: &mut Reader<'_>) -> Result<Vec<Counted>, Malformed> {
    // No number here asks for memory: each one that it promises takes a byte at least.
    let mut all = Vec::new();
    for _ in 0..from.number()? {
        let (no, tokens, count) = (from.small()?, from.maybe()?, from.number()?);
        let mut told = Vec::new();
        for _ in 0..count {
            let tokens = from.number()?.checked_sub(1).map(u32::try_from);
            told.push(tokens.transpose().map_err(|_| Malformed)?);
        }
        all.push(Counted { no, tokens, told });
    }
    Ok(all)
}

fn get_record<'a>(tag: u8, from: &mut Reader<'a>) -> Result<Record<'a>, Malformed> {
    let (conn, pid, tid) = (ConnId(from.number()?), from.small()?, from.small()?);
    let at = get_stamp(from)?;
    let kind = match tag {
        tag::DATA => {
            let dir = if from.flag()? { Direction::Write } else { Direction::Read };
            let flags = get_flags(from.byte()?)?;
            let (offset, turn, len) = (from.number()?, from.small()?, from.number()?);
            RecordKind::Data { dir, offset, turn, payload: from.bytes()?, len, flags }
        }
        tag::PEER => RecordKind::Peer(get_peer(from)?.ok_or(Malformed)?),
        tag::SENT => RecordKind::Sent { until: MonoNs(from.number()?) },
        tag::LATE => RecordKind::Late { arrived: MonoNs(from.number()?) },
        tag::RETRANSMIT => RecordKind::Retransmit,
        _ => {
            let flags = get_flags(from.byte()?)?;
            RecordKind::Close { read_end: from.number()?, write_end: from.number()?, flags }
        }
    };
    from.end()?;
    Ok(Record { conn, pid, tid, at, kind })
}

type Fields<'a> = Vec<(&'a str, &'a [u8])>;

fn get_fields<'a>(from: &mut Reader<'a>, fields: &mut Fields<'a>) -> Result<(), Malformed> {
    let count: usize = from.small()?;
    if count > HEAD_FIELDS {
        return Err(Malformed);
    }
    for _ in 0..count {
        fields.push((from.text()?, from.bytes()?));
    }
    Ok(())
}

fn get_kind<'a: 'b, 'b>(
    tag: u8,
    from: &mut Reader<'a>,
    fields: &'b mut Fields<'a>,
) -> Result<HttpEventKind<'b>, Malformed> {
    let kind = match tag {
        tag::REQUEST => {
            let first = get_stamp(from)?;
            let (method, path) = (from.text()?, from.text()?);
            let (has_host, host) = (from.flag()?, from.text()?);
            get_fields(from, fields)?;
            let host = has_host.then_some(host);
            let head = Head::Request(RequestHead { method, path, host, headers: Headers(fields) });
            HttpEventKind::Head { first, head }
        }
        tag::RESPONSE => {
            let first = get_stamp(from)?;
            let status = from.maybe()?.map(u16::try_from).transpose().map_err(|_| Malformed)?;
            get_fields(from, fields)?;
            HttpEventKind::Head { first, head: Head::Response(ResponseHead { status, headers: Headers(fields) }) }
        }
        tag::UNSEEN => HttpEventKind::Head { first: get_stamp(from)?, head: Head::Unseen },
        tag::BODY if from.0.is_empty() => return Err(Malformed),
        tag::BODY => HttpEventKind::Body(std::mem::take(&mut from.0)),
        tag::MESSAGE => {
            let (kind, code) = (from.byte()?, from.maybe()?);
            let code = code.map(u16::try_from).transpose().map_err(|_| Malformed)?;
            let kind = match kind {
                0 => MessageKind::Text,
                1 => MessageKind::Binary,
                2 => MessageKind::Close(code),
                _ => return Err(Malformed),
            };
            let (first, len) = (get_stamp(from)?, from.number()?);
            HttpEventKind::Message(Message { kind, first, len, bytes: std::mem::take(&mut from.0) })
        }
        tag::GAP => {
            let len = from.maybe()?;
            let cause = match from.byte()? {
                0 => GapCause::Lost,
                1 => GapCause::Capped,
                2 => GapCause::Fault,
                3 => GapCause::Skipped,
                4 => GapCause::Undecoded,
                _ => return Err(Malformed),
            };
            HttpEventKind::Gap { len, cause }
        }
        tag::END => HttpEventKind::End,
        _ => {
            let (cause, code) = (from.byte()?, from.small()?);
            HttpEventKind::Abort(match cause {
                0 => AbortCause::Closed(CloseCause::Freed),
                1 => AbortCause::Closed(CloseCause::ProcessExit),
                2 => AbortCause::Closed(CloseCause::Evicted),
                3 | 4 => AbortCause::Reset { by_peer: cause == 4, code },
                5 => AbortCause::Desync,
                6 => AbortCause::GoAway,
                7 => AbortCause::Evicted,
                _ => return Err(Malformed),
            })
        }
    };
    from.end()?;
    Ok(kind)
}

fn get_stamp(from: &mut Reader<'_>) -> Result<Stamp, Malformed> {
    let entry = from.number()?;
    Ok(Stamp { entry: MonoNs(entry), ret: MonoNs(entry.wrapping_add(from.number()?)) })
}

fn get_said(from: &mut Reader<'_>) -> Result<Option<Arc<Said>>, Malformed> {
    if !from.flag()? {
        return Ok(None);
    }
    let (trace_id, span_id) = (u128::from_le_bytes(from.array()?), u64::from_le_bytes(from.array()?));
    let (has_endpoint, endpoint) = (from.flag()?, from.text()?);
    Ok(Some(Arc::new(Said { trace_id, span_id, endpoint: has_endpoint.then(|| endpoint.into()) })))
}

fn get_peer(from: &mut Reader<'_>) -> Result<Option<Peer>, Malformed> {
    if !from.flag()? {
        return Ok(None);
    }
    let mut address = || {
        let ip = match from.byte()? {
            0 => return Ok(Address::Unix),
            4 => IpAddr::V4(Ipv4Addr::from(from.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(from.array::<16>()?)),
            _ => return Err(Malformed),
        };
        Ok(Address::Inet(SocketAddr::new(ip, from.small()?)))
    };
    let (local, remote) = (address()?, address()?);
    let (connect_ns, tls_ns) = (from.maybe()?, from.maybe()?);
    let socket = match from.byte()? {
        0 => None,
        1 => Some(Found::Itself),
        2 => Some(Found::InsideWrite),
        3 => Some(Found::NextSend),
        _ => return Err(Malformed),
    };
    Ok(Some(Peer { local, remote, connect_ns, tls_ns, socket, retransmits: from.small()? }))
}

fn get_flags(bits: u8) -> Result<RecordFlags, Malformed> {
    let has = |n: u8| bits & 1 << n != 0;
    if bits >= 1 << 6 {
        return Err(Malformed);
    }
    Ok(RecordFlags {
        from_start: has(0),
        capped: has(1),
        fault: has(2),
        after_skip: has(3),
        after_unknown_loss: has(4),
        sent: has(5),
    })
}
