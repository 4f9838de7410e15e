//! How an exchange ended: the rules, free of state.
//!
//! What can be told apart at the TLS layer, and what cannot: a peer that closes the TCP connection in the middle of a
//! body shows only as the process's own release of the TLS object a moment later. That is taken as `client_abort`, as
//! is the end of the process. `server_abort` is what the peer says in words: a reset or GOAWAY that was read, or a
//! stream whose message ended properly without the stream's own end (no end marker, no finish reason).

use crate::{conn::CloseCause, http::AbortCause};

use super::Outcome;

/// What ended the exchange, in the order in which it was seen: the first one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The stream's own end marker.
    Done,
    /// End of the HTTP message.
    End,
    /// Neither will come.
    Abort(AbortCause),
}

/// What else bears on the outcome.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// Bytes of the response are unknown, or its beginning is.
    pub(super) hole: bool,
    /// The provider reported an error, or the HTTP status is 400 or higher.
    pub(super) error: bool,
    pub(super) streamed: bool,
    /// A finish reason of any choice.
    pub(super) finish: bool,
    /// Every choice that generated something has its finish reason: nothing generated follows.
    pub(super) all_finished: bool,
}

/// The outcome, and the error type of an abort by the server.
pub(super) fn decide(ending: Ending, seen: Seen) -> (Outcome, Option<&'static str>) {
    if seen.hole || matches!(ending, Ending::Abort(AbortCause::Desync | AbortCause::Evicted)) {
        return (Outcome::Incomplete, None);
    }
    if seen.error {
        return (Outcome::Error, None);
    }
    match ending {
        Ending::Done => (Outcome::Completed, None),
        Ending::End if seen.streamed && !seen.finish => (Outcome::ServerAbort, Some("stream_truncated")),
        Ending::End => (Outcome::Completed, None),
        Ending::Abort(AbortCause::Closed(CloseCause::Evicted)) => (Outcome::Incomplete, None),
        // The answer was complete; who then skips the trailer (usage, end marker, last HTTP chunk) lost nothing of it.
        Ending::Abort(_) if seen.all_finished => (Outcome::Completed, None),
        Ending::Abort(cause) => match cause {
            AbortCause::Closed(CloseCause::Freed | CloseCause::ProcessExit)
            | AbortCause::Reset { by_peer: false, .. } => (Outcome::ClientAbort, None),
            AbortCause::Reset { by_peer: true, .. } => (Outcome::ServerAbort, Some("stream_reset")),
            AbortCause::GoAway => (Outcome::ServerAbort, Some("goaway")),
            AbortCause::Closed(CloseCause::Evicted) | AbortCause::Desync | AbortCause::Evicted => {
                (Outcome::Incomplete, None)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREED: Ending = Ending::Abort(AbortCause::Closed(CloseCause::Freed));
    const EXIT: Ending = Ending::Abort(AbortCause::Closed(CloseCause::ProcessExit));
    const IDLE: Ending = Ending::Abort(AbortCause::Closed(CloseCause::Evicted));
    const RST_READ: Ending = Ending::Abort(AbortCause::Reset { by_peer: true, code: 2 });
    const RST_WRITTEN: Ending = Ending::Abort(AbortCause::Reset { by_peer: false, code: 8 });
    const GOAWAY: Ending = Ending::Abort(AbortCause::GoAway);
    const DESYNC: Ending = Ending::Abort(AbortCause::Desync);
    const EVICTED: Ending = Ending::Abort(AbortCause::Evicted);

    #[test]
    fn every_ending_of_a_stream_has_its_outcome() {
        use Outcome::{ClientAbort, Completed, Incomplete, ServerAbort};
        let open = Seen { streamed: true, ..Seen::default() };
        let finished = Seen { finish: true, all_finished: true, ..open };
        // ending, outcome in the middle, outcome after the finish reason
        let table = [
            (Ending::Done, (Completed, None), Completed),
            (Ending::End, (ServerAbort, Some("stream_truncated")), Completed),
            (FREED, (ClientAbort, None), Completed),
            (EXIT, (ClientAbort, None), Completed),
            (RST_WRITTEN, (ClientAbort, None), Completed),
            (RST_READ, (ServerAbort, Some("stream_reset")), Completed),
            (GOAWAY, (ServerAbort, Some("goaway")), Completed),
            (IDLE, (Incomplete, None), Incomplete),
            (DESYNC, (Incomplete, None), Incomplete),
            (EVICTED, (Incomplete, None), Incomplete),
        ];
        for (ending, middle, after_finish) in table {
            assert_eq!(decide(ending, open), middle, "{ending:?}");
            assert_eq!(decide(ending, finished).0, after_finish, "{ending:?}");
            let lost = Seen { hole: true, error: true, ..finished };
            assert_eq!(decide(ending, lost).0, Incomplete, "{ending:?} with a loss");
        }
    }

    #[test]
    fn one_finished_choice_of_two_does_not_make_a_closed_stream_complete() {
        let half = Seen { streamed: true, finish: true, all_finished: false, ..Seen::default() };
        assert_eq!(decide(FREED, half).0, Outcome::ClientAbort);
    }

    #[test]
    fn an_error_stays_an_error_however_the_connection_ends() {
        let seen = Seen { error: true, streamed: true, ..Seen::default() };
        for ending in [Ending::Done, Ending::End, FREED, EXIT, RST_READ, RST_WRITTEN, GOAWAY] {
            assert_eq!(decide(ending, seen), (Outcome::Error, None), "{ending:?}");
        }
    }

    #[test]
    fn a_whole_body_needs_no_finish_reason() {
        assert_eq!(decide(Ending::End, Seen::default()), (Outcome::Completed, None));
    }
}
