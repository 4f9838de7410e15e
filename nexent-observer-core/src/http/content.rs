//! What stands between the messages of the wire and the next stage, whatever the version: the codings of bodies, and
//! WebSockets.

use smallvec::SmallVec;

use super::{
    ExchangeNo, Head, Headers, HttpEvent, HttpEventKind, Side, StartSeen,
    coding::{self, Codings, Decoder, Defect},
    websocket::{self, Socket, Told},
};
use crate::{
    conn::{CloseCause, GapCause},
    event::Stamp,
    http::AbortCause,
    limits,
    stats::{DropReason, Stats},
};

/// Undoes the codings of the bodies of one connection, and reads its WebSockets.
#[derive(Debug)]
pub(super) struct Content {
    /// Heads may lack fields that could not be resolved: bodies are looked at.
    joined: bool,
    /// Made when there is something to do: most connections have neither.
    work: Option<Box<Work>>,
}

#[derive(Debug, Default)]
struct Work {
    /// Messages with a body that is not simply passed on.
    coded: SmallVec<[Coded; 1]>,
    /// How many of them are being decoded.
    decoders: usize,
    /// HTTP/2 exchanges that ask for a WebSocket.
    asking: SmallVec<[ExchangeNo; 1]>,
    sockets: SmallVec<[(ExchangeNo, Box<Socket>); 1]>,
    /// What was counted since the last [`Content::settle`].
    counts: Stats,
    counted: bool,
}

#[derive(Debug)]
struct Coded {
    exchange: ExchangeNo,
    side: Side,
    body: Body,
}

/// How far a body is.
#[derive(Debug)]
enum Body {
    /// Not begun; these are its codings.
    Awaited(Codings),
    /// Its head may not have named its coding: its first bytes, as far as they could be a magic number.
    Sniffed {
        first: Stamp,
        bytes: SmallVec<[u8; 4]>,
    },
    Decoding(Box<Decoder>),
    /// The rest of it cannot be known.
    Lost(Loss),
    /// Complete; what still comes is left out.
    Over,
}

/// What is to be told of the rest of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// This, when more of it comes.
    Untold(DropReason),
    /// Nothing any more.
    Told,
}

impl Content {
    pub(super) fn new(start: StartSeen) -> Self {
        Self { joined: start == StartSeen::No, work: None }
    }

    /// Takes an event of the wire and hands on what it means.
    pub(super) fn event(&mut self, ev: &HttpEvent<'_>, sink: &mut impl FnMut(HttpEvent<'_>)) {
        if let HttpEventKind::Head { head, .. } = &ev.kind {
            self.head(ev, head);
            return sink(*ev);
        }
        match &mut self.work {
            Some(work) if !work.is_idle() => work.event(ev, sink),
            _ => sink(*ev),
        }
    }

    /// Hands over what was counted.
    pub(super) fn settle(&mut self, stats: &mut Stats) {
        if let Some(work) = self.work.as_mut().filter(|work| work.counted) {
            stats.add(&work.counts);
            (work.counts, work.counted) = (Stats::default(), false);
        }
    }

    fn work(&mut self) -> &mut Work {
        self.work.get_or_insert_default()
    }

    fn head(&mut self, ev: &HttpEvent<'_>, head: &Head<'_>) {
        let none = Headers::default();
        let headers = match head {
            Head::Request(head) => {
                if websocket::asks(head) && self.work().asking.len() < limits::OPEN_EXCHANGES {
                    self.work().asking.push(ev.exchange);
                }
                &head.headers
            }
            Head::Response(head) => {
                let asked = self.work.as_mut().is_some_and(|work| work.take_asking(ev.exchange));
                let opened = asked && head.status.is_some_and(|s| (200..300).contains(&s));
                if opened || websocket::accepts(head) {
                    self.work().sockets.push((ev.exchange, Box::new(Socket::new(&head.headers))));
                    return;
                }
                &head.headers
            }
            Head::Unseen => &none,
        };
        let body = match coding::codings(headers) {
            Some(codings) if codings.is_empty() && !self.joined => return,
            Some(codings) if codings.is_empty() => Body::Sniffed { first: ev.at, bytes: SmallVec::new() },
            Some(codings) => Body::Awaited(codings),
            None => Body::Lost(Loss::Untold(DropReason::ContentCoding)),
        };
        self.work().coded.push(Coded { exchange: ev.exchange, side: ev.side, body });
    }
}

impl Work {
    fn is_idle(&self) -> bool {
        self.coded.is_empty() && self.sockets.is_empty() && self.asking.is_empty()
    }

    /// Whether an exchange asks for a WebSocket; it is answered now.
    fn take_asking(&mut self, exchange: ExchangeNo) -> bool {
        let at = self.asking.iter().position(|no| *no == exchange);
        at.map(|at| self.asking.swap_remove(at)).is_some()
    }

    fn event(&mut self, ev: &HttpEvent<'_>, sink: &mut impl FnMut(HttpEvent<'_>)) {
        if self.sockets.iter().any(|(no, _)| *no == ev.exchange) {
            return self.socket_event(ev, sink);
        }
        let at = self.coded.iter().position(|coded| coded.exchange == ev.exchange && coded.side == ev.side);
        match (ev.kind, at) {
            (HttpEventKind::Body(bytes), Some(at)) => self.body(at, ev.at, bytes, sink),
            (HttpEventKind::Gap { .. }, Some(at)) => {
                self.lose(at);
                sink(*ev);
            }
            (HttpEventKind::End, Some(at)) => {
                self.end(at, sink);
                sink(*ev);
            }
            (HttpEventKind::Abort(_), _) => {
                self.coded.retain(|coded| coded.exchange != ev.exchange);
                self.decoders = self.coded.iter().filter(|coded| matches!(coded.body, Body::Decoding(_))).count();
                self.take_asking(ev.exchange);
                sink(*ev);
            }
            _ => sink(*ev),
        }
    }

    fn count(&mut self, reason: DropReason) {
        self.counts.count(reason);
        self.counted = true;
    }

    fn body(&mut self, at: usize, stamp: Stamp, bytes: &[u8], sink: &mut impl FnMut(HttpEvent<'_>)) {
        let full = self.decoders >= limits::DECODERS;
        let Some(Coded { exchange, side, body }) = self.coded.get_mut(at) else { return };
        let (exchange, side) = (*exchange, *side);
        let mut give = |at, kind: HttpEventKind<'_>| sink(HttpEvent { exchange, side, at, kind });
        if let Body::Sniffed { first, bytes: held } = body {
            let had = held.len();
            held.extend(bytes.iter().copied().take(held.inline_size().saturating_sub(had)));
            match coding::sniff(held) {
                None => {
                    *first = if had == 0 { stamp } else { *first };
                    return;
                }
                Some(Some(coding)) => {
                    held.truncate(had);
                    let held = std::mem::take(held);
                    *body = Body::Awaited(std::iter::once(coding).collect());
                    self.body(at, stamp, &held, sink);
                    return self.body(at, stamp, bytes, sink);
                }
                Some(None) => {
                    if let Some(held) = held.get(..had).filter(|held| !held.is_empty()) {
                        give(*first, HttpEventKind::Body(held));
                    }
                    give(stamp, HttpEventKind::Body(bytes));
                    self.coded.swap_remove(at);
                    return;
                }
            }
        }
        if let Body::Awaited(codings) = body {
            *body = if full {
                Body::Lost(Loss::Untold(DropReason::DecodersFull))
            } else {
                self.decoders += 1;
                Body::Decoding(Box::new(Decoder::new(codings)))
            };
        }
        match body {
            Body::Decoding(decoder) => {
                let Err(defect) = decoder.feed(bytes, &mut |b| give(stamp, HttpEventKind::Body(b))) else { return };
                self.decoders = self.decoders.saturating_sub(1);
                *body = match defect {
                    Defect::Trailing => Body::Over,
                    Defect::Invalid | Defect::TooLong => {
                        give(stamp, HttpEventKind::Gap { len: None, cause: GapCause::Undecoded });
                        Body::Lost(Loss::Told)
                    }
                };
                self.count(match defect {
                    Defect::Invalid | Defect::Trailing => DropReason::ContentCoding,
                    Defect::TooLong => DropReason::DecodedTooLong,
                });
            }
            Body::Lost(loss) => {
                if let Loss::Untold(reason) = std::mem::replace(loss, Loss::Told) {
                    give(stamp, HttpEventKind::Gap { len: None, cause: GapCause::Undecoded });
                    self.count(reason);
                }
            }
            Body::Over | Body::Awaited(_) | Body::Sniffed { .. } => {}
        }
    }

    /// Bytes of a body are missing.
    fn lose(&mut self, at: usize) {
        let Some(Coded { body, .. }) = self.coded.get_mut(at) else { return };
        match body {
            Body::Decoding(_) => self.decoders = self.decoders.saturating_sub(1),
            Body::Awaited(_) => {}
            // Without its beginning, it is passed on.
            Body::Sniffed { .. } => {
                self.coded.swap_remove(at);
                return;
            }
            Body::Lost(_) | Body::Over => return,
        }
        *body = Body::Lost(Loss::Untold(DropReason::CodingGap));
    }

    /// A message is complete.
    fn end(&mut self, at: usize, sink: &mut impl FnMut(HttpEvent<'_>)) {
        let Coded { exchange, side, body } = self.coded.swap_remove(at);
        match body {
            Body::Sniffed { first, bytes } if !bytes.is_empty() => {
                sink(HttpEvent { exchange, side, at: first, kind: HttpEventKind::Body(&bytes) });
            }
            Body::Decoding(decoder) => {
                self.decoders = self.decoders.saturating_sub(1);
                // All that came was decoded: the message ends early, and its own end is missing.
                if !decoder.is_complete() {
                    self.count(DropReason::ContentCoding);
                }
            }
            Body::Sniffed { .. } | Body::Awaited(_) | Body::Lost(_) | Body::Over => {}
        }
    }

    fn socket_event(&mut self, ev: &HttpEvent<'_>, sink: &mut impl FnMut(HttpEvent<'_>)) {
        let Self { sockets, counts, counted, .. } = self;
        let Some(at) = sockets.iter().position(|(no, _)| *no == ev.exchange) else { return };
        let Some((_, socket)) = sockets.get_mut(at) else { return };
        match ev.kind {
            HttpEventKind::Body(bytes) => {
                *counted = true;
                socket.feed(ev.side, ev.at, bytes, counts, &mut |told| {
                    let kind = match told {
                        Told::Message(message) => HttpEventKind::Message(message),
                        Told::Undecoded => HttpEventKind::Gap { len: None, cause: GapCause::Undecoded },
                    };
                    sink(HttpEvent { kind, ..*ev });
                });
            }
            HttpEventKind::Gap { len, .. } => {
                socket.gap(ev.side, len);
                sink(*ev);
            }
            HttpEventKind::Abort(AbortCause::Closed(CloseCause::Freed)) if socket.is_closing() => {
                sockets.remove(at);
                sink(HttpEvent { side: Side::Response, kind: HttpEventKind::End, ..*ev });
            }
            HttpEventKind::Abort(_) => {
                sockets.remove(at);
                sink(*ev);
            }
            HttpEventKind::End => {
                // Of HTTP/2 each side ends by itself; HTTP/1 has no end here.
                if socket.end(ev.side) {
                    sockets.remove(at);
                }
                sink(*ev);
            }
            HttpEventKind::Head { .. } | HttpEventKind::Message(_) => sink(*ev),
        }
    }
}

#[cfg(test)]
mod tests;
