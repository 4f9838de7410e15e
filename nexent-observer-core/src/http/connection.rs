//! One connection, whatever its HTTP version.

use super::{
    ExchangeNo, HttpEvent,
    content::Content,
    detect::{self, Guess},
    http1::{self, Http1},
    http2::{self, Http2},
};
use crate::{
    conn::StreamEvent,
    event::{Direction, Role, Stamp},
    limits,
    stats::{DropReason, Stats},
};

/// Whether the first byte of a connection was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartSeen {
    /// The first bytes that come are the first of the connection.
    Yes,
    /// The connection was joined mid-life: the first bytes may be anything.
    No,
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Not known yet; of a connection joined mid-life it may stay so.
    Undecided,
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Nothing that this stage can read: no HTTP from the first byte on, or a tunnel after CONNECT.
    Opaque,
}

/// Turns the byte streams of one connection into HTTP messages. The process may be client or server: the first head says
/// which.
#[derive(Debug)]
pub struct HttpConnection {
    wire: Wire,
    content: Content,
}

impl HttpConnection {
    /// A connection of which no byte was seen yet.
    #[must_use]
    pub fn new(start: StartSeen) -> Self {
        Self { wire: Wire::new(start), content: Content::new(start) }
    }

    /// What the connection speaks, as far as is known. A WebSocket counts as what it was made from.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.wire.protocol()
    }

    /// Whether nothing on this connection will ever be read by this stage, so that copying it is a waste. Never of HTTP/2,
    /// and never of a connection joined mid-life, which may be HTTP/2.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        self.protocol() == Protocol::Opaque
    }

    /// Takes one event of the connection.
    pub fn feed(&mut self, ev: &StreamEvent<'_>, stats: &mut Stats, sink: &mut impl FnMut(HttpEvent<'_>)) {
        let Self { wire, content } = self;
        wire.feed(ev, stats, &mut |event| content.event(&event, sink));
        content.settle(stats);
    }
}

/// The connection without the codings of its bodies.
#[derive(Debug)]
struct Wire {
    start: StartSeen,
    state: State,
    /// HTTP/1 was decided by what looked like the body of a stream, and no head was seen since.
    guessed: bool,
    /// The number of the next exchange, should it be followed anew.
    next: ExchangeNo,
}

#[derive(Debug)]
enum State {
    Undecided(Undecided),
    Http1(Box<Http1>),
    Http2(Box<Http2>),
    Opaque,
}

/// Beginnings too short to tell, and what was last counted.
#[derive(Debug, Default)]
struct Undecided {
    read: Beginning,
    write: Beginning,
    /// A record looked like the body of a stream without its head.
    saw_stream: bool,
    /// Last direction that moved, and whether this turn was counted as no HTTP.
    last_was_read: bool,
    counted: bool,
}

#[derive(Debug, Default)]
struct Beginning {
    first: Stamp,
    bytes: Vec<u8>,
}

/// What to do with bytes that began a direction.
enum Decision {
    Wait,
    Http1(Role),
    Http2,
    NotHttp,
}

impl Wire {
    fn new(start: StartSeen) -> Self {
        Self { start, state: State::Undecided(Undecided::default()), guessed: false, next: ExchangeNo(0) }
    }

    fn protocol(&self) -> Protocol {
        match &self.state {
            State::Undecided(_) => Protocol::Undecided,
            State::Http1(http1) if http1.is_tunnel() => Protocol::Opaque,
            State::Http1(_) => Protocol::Http1,
            State::Http2(_) => Protocol::Http2,
            State::Opaque => Protocol::Opaque,
        }
    }

    fn feed(&mut self, ev: &StreamEvent<'_>, stats: &mut Stats, sink: &mut impl FnMut(HttpEvent<'_>)) {
        if let StreamEvent::Data { at, bytes, .. } = *ev {
            self.reconsider(at, bytes, sink);
        }
        match &mut self.state {
            State::Http1(http1) => {
                let rest = http1.feed(ev, stats, sink);
                if let Some(switch) = http1.take_switch() {
                    let mut http2 = Box::new(Http2::upgraded(switch));
                    if let StreamEvent::Data { dir, at, .. } = *ev {
                        http2.feed(&StreamEvent::Data { dir, at, bytes: rest }, stats, sink);
                    }
                    self.state = State::Http2(http2);
                }
            }
            State::Http2(http2) => http2.feed(ev, stats, sink),
            State::Undecided(undecided) => match *ev {
                StreamEvent::Data { dir, at, bytes } => match undecided.decide(self.start, dir, at, bytes, stats) {
                    Decision::Wait => {}
                    Decision::Http2 => {
                        let mut http2 = Box::new(Http2::new(self.start, self.next));
                        undecided.replay_to_http2(&mut http2, dir, at, bytes, stats, sink);
                        self.state = State::Http2(http2);
                    }
                    Decision::NotHttp => self.state = State::Opaque,
                    Decision::Http1(role) => {
                        self.guessed = undecided.saw_stream;
                        let mut http1 = Box::new(Http1::new(role, self.start, self.next));
                        let Beginning { first, bytes: before } = std::mem::take(undecided.beginning(dir));
                        if !before.is_empty() {
                            http1.feed(&StreamEvent::Data { dir, at: first, bytes: &before }, stats, sink);
                        }
                        http1.feed(ev, stats, sink);
                        self.state = State::Http1(http1);
                    }
                },
                // Whatever was the beginning of this direction, it is not what comes next.
                StreamEvent::Gap { dir, .. } => {
                    self.start = StartSeen::No;
                    *undecided.beginning(dir) = Beginning::default();
                }
                StreamEvent::Close { .. } => {}
            },
            State::Opaque => {}
        }
    }

    /// Bytes that come next may show that the connection speaks something else: HTTP/2 after an upgrade, or another
    /// version than was guessed from the middle of a message.
    fn reconsider(&mut self, at: Stamp, bytes: &[u8], sink: &mut impl FnMut(HttpEvent<'_>)) {
        let seems_http1 = || matches!(classify(bytes, StartSeen::No), Some(Guess::Request | Guess::Response));
        match &mut self.state {
            State::Http1(http1) => {
                let next = if std::mem::take(&mut self.guessed) && !seems_http1() {
                    self.guessed = !http2::looks_like_frames(bytes);
                    (!self.guessed).then(|| http1.give_up(at, sink))
                } else {
                    http1.upgraded().filter(|_| bytes.starts_with(detect::HTTP2_PREFACE))
                };
                if let Some(next) = next {
                    // Header blocks may have gone by: a server need not wait for the preface.
                    self.state = State::Http2(Box::new(Http2::new(StartSeen::No, next)));
                }
            }
            State::Http2(http2) if !http2.is_sure() => {
                if seems_http1() {
                    // Numbers are never given twice on a connection, whatever it was taken for.
                    self.next = http2.give_up(at, sink);
                    self.state = State::Undecided(Undecided::default());
                }
            }
            State::Http2(_) | State::Undecided(_) | State::Opaque => {}
        }
    }
}

impl Undecided {
    fn beginning(&mut self, dir: Direction) -> &mut Beginning {
        match dir {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        }
    }

    /// Hands on what came of either direction before it was known to be HTTP/2, and the bytes that told.
    fn replay_to_http2(
        &mut self,
        http2: &mut Http2,
        dir: Direction,
        at: Stamp,
        bytes: &[u8],
        stats: &mut Stats,
        sink: &mut impl FnMut(HttpEvent<'_>),
    ) {
        let other = if dir == Direction::Read { Direction::Write } else { Direction::Read };
        let Beginning { first, bytes: before } = std::mem::take(self.beginning(other));
        if !before.is_empty() {
            http2.feed(&StreamEvent::Data { dir: other, at: first, bytes: &before }, stats, sink);
        }
        let Beginning { bytes: mut whole, .. } = std::mem::take(self.beginning(dir));
        if whole.is_empty() {
            http2.feed(&StreamEvent::Data { dir, at, bytes }, stats, sink);
        } else {
            // In one, for a frame header is looked for at the beginning of a record; no head is in what came before.
            whole.extend_from_slice(bytes);
            http2.feed(&StreamEvent::Data { dir, at, bytes: &whole }, stats, sink);
        }
    }

    fn decide(&mut self, start: StartSeen, dir: Direction, at: Stamp, bytes: &[u8], stats: &mut Stats) -> Decision {
        if dir == Direction::Write && self.last_was_read {
            self.counted = false;
        }
        self.last_was_read = dir == Direction::Read;
        let beginning = self.beginning(dir);
        let had = beginning.bytes.len();
        let fresh = if had == 0 { detect::skip_empty_lines(bytes) } else { bytes };
        if fresh.is_empty() {
            return Decision::Wait;
        }
        if had == 0 {
            match classify(fresh, start) {
                Some(Guess::More) | None => {}
                Some(guess) => return self.conclude(guess, start, dir, bytes, stats),
            }
            beginning.first = at;
        }
        // Only a line feed among the new bytes can complete the line: the growing beginning is not searched again.
        let line = memchr::memchr(b'\n', fresh).is_some();
        beginning.bytes.extend(fresh.iter().take(limits::HEAD_BYTES));
        let guess = match detect::guess(&beginning.bytes) {
            Guess::Request | Guess::Response if !line => None,
            _ => classify(&beginning.bytes, start),
        };
        let too_long = beginning.bytes.len() >= limits::HEAD_BYTES;
        match guess {
            None | Some(Guess::More) if !too_long => Decision::Wait,
            None => self.conclude(Guess::Neither, start, dir, bytes, stats),
            Some(guess) => {
                beginning.bytes.truncate(had);
                self.conclude(guess, start, dir, bytes, stats)
            }
        }
    }

    fn conclude(
        &mut self,
        guess: Guess,
        start: StartSeen,
        dir: Direction,
        bytes: &[u8],
        stats: &mut Stats,
    ) -> Decision {
        match (guess, dir) {
            (Guess::Request, Direction::Write) | (Guess::Response, Direction::Read) => Decision::Http1(Role::Client),
            (Guess::Request, Direction::Read) | (Guess::Response, Direction::Write) => Decision::Http1(Role::Server),
            (Guess::Http2, _) => Decision::Http2,
            (Guess::Neither | Guess::More, _) => {
                let Beginning { bytes: mut line, .. } = std::mem::take(self.beginning(dir));
                if start == StartSeen::No && http2::looks_like_frames(bytes) {
                    return Decision::Http2;
                }
                if start == StartSeen::No && http1::looks_like_stream(bytes) {
                    self.saw_stream = true;
                    return Decision::Http1(if dir == Direction::Read { Role::Client } else { Role::Server });
                }
                if !std::mem::replace(&mut self.counted, true) {
                    line.extend(bytes.iter().take(limits::HEAD_BYTES));
                    let other = detect::has_other_version(detect::skip_empty_lines(&line));
                    stats.count(if other { DropReason::HttpVersion } else { DropReason::NotHttp });
                }
                match start {
                    StartSeen::Yes => Decision::NotHttp,
                    StartSeen::No => Decision::Wait,
                }
            }
        }
    }
}

/// What bytes begin, a message only when its whole first line says so: the role of the process hangs on it. `None` when
/// that line is not complete.
fn classify(bytes: &[u8], start: StartSeen) -> Option<Guess> {
    let guess = detect::guess(bytes);
    let is = match guess {
        Guess::Request if start == StartSeen::No && !detect::is_known_method(bytes) => false,
        Guess::Request => detect::is_request_line(bytes)?,
        Guess::Response => detect::is_status_line(bytes)?,
        Guess::Http2 | Guess::Neither | Guess::More => true,
    };
    Some(if is { guess } else { Guess::Neither })
}
