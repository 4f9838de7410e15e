//! Which call repeats which: an SDK that tries again makes a new request, and to the one who asked both are one operation.
//!
//! A call is the retry of another when the same process sent the same request body after that one failed in a way that is
//! worth another try (HTTP 408, 409, 429 or 5xx, an error in the stream, or no end of the answer) and within
//! [`RETRY_WINDOW_NS`] of its end. Bodies are compared by a digest that never leaves the core. Each failed call has one retry at most;
//! a failed retry has a retry of its own, so a chain is one logical operation: its first call and all that follow from it.

use std::collections::VecDeque;

use crate::{
    event::{MonoNs, Role},
    limits::{RETRIES, RETRY_WINDOW_NS},
};

use super::{Exchange, ExchangeId, Outcome};

/// Failed calls that may be tried again, in the order in which they ended.
#[derive(Debug, Default)]
pub struct Retries {
    failed: VecDeque<Failed>,
}

#[derive(Debug)]
struct Failed {
    pid: u32,
    digest: u64,
    id: ExchangeId,
    end: MonoNs,
    retry_count: u32,
}

impl Retries {
    /// Says of an exchange that is over which one it repeats. `digest` is that of its request body, where it was seen.
    pub fn link(&mut self, exchange: &mut Exchange, digest: Option<u64>) {
        // What a server is asked twice may come from two clients.
        let (Some(digest), Some(start), Role::Client) = (digest, exchange.request_start, exchange.role) else { return };
        while self.failed.front().is_some_and(|oldest| start.since(oldest.end) > RETRY_WINDOW_NS) {
            self.failed.pop_front();
        }
        let is_of = |failed: &Failed| {
            (failed.pid, failed.digest) == (exchange.pid, digest)
                && failed.end <= start
                && start.since(failed.end) <= RETRY_WINDOW_NS
        };
        // A client that counts says itself that it begins anew.
        let anew = exchange.call.retry_count == Some(0);
        let before = self.failed.iter().position(|failed| !anew && is_of(failed));
        if let Some(failed) = before.and_then(|at| self.failed.remove(at)) {
            exchange.retry_of = Some(failed.id);
            exchange.retry_count = exchange.call.retry_count.or_else(|| failed.retry_count.checked_add(1));
        }
        if let (true, Some(end)) = (worth_another_try(exchange), exchange.end) {
            if self.failed.len() >= RETRIES {
                self.failed.pop_front();
            }
            self.failed.push_back(Failed {
                pid: exchange.pid,
                digest,
                id: exchange.id,
                end,
                retry_count: exchange.retry_count.unwrap_or(0),
            });
        }
    }
}

/// Whether SDKs would try it again (those made with Stainless: "Retries" in their README).
fn worth_another_try(exchange: &Exchange) -> bool {
    match exchange.outcome {
        Outcome::Error => match exchange.response.status {
            Some(status) => matches!(status, 200..400 | 408 | 409 | 429 | 500..),
            None => true,
        },
        Outcome::ClientAbort | Outcome::ServerAbort => true,
        Outcome::Completed | Outcome::Incomplete => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        conn::CloseCause,
        event::{ConnId, Stamp},
        http::AbortCause,
        limits::Limits,
        llm::{Call, LlmEvent, LlmEventKind, ResponseFacts},
        stats::Stats,
        timing::{Options, Progress, Timing},
    };

    const S: u64 = 1_000_000_000;

    /// A call from `start` to `end` seconds; status 0 is one that was given up.
    fn call(no: u32, start: u64, end: u64, status: u16, said: Option<u32>) -> Exchange {
        let id = ExchangeId { conn: ConnId(1), no };
        let mut timing = Timing::new(id, 7, None, &Options::default(), &Limits::default());
        let at = |s: u64| Stamp { entry: MonoNs(s * S), ret: MonoNs(s * S) };
        let mut feed = |at, kind| assert_ne!(timing.feed(&LlmEvent { at, kind }), Progress::NotLlm);
        let call = Call { retry_count: said, ..Call::default() };
        feed(at(start), LlmEventKind::Start { first: at(start), call });
        let facts = ResponseFacts { status: Some(status), ..ResponseFacts::default() };
        if status == 0 {
            feed(at(end), LlmEventKind::Abort(AbortCause::Closed(CloseCause::Freed)));
        } else {
            feed(at(end), LlmEventKind::Response { first: at(end), facts });
            feed(at(end), LlmEventKind::End);
        }
        timing.finish(&mut Stats::default())
    }

    fn linked(retries: &mut Retries, mut exchange: Exchange, digest: Option<u64>) -> (Option<u32>, Option<u32>) {
        retries.link(&mut exchange, digest);
        (exchange.retry_of.map(|id| id.no), exchange.retry_count)
    }

    #[test]
    fn a_chain_of_tries_is_linked_one_by_one_and_counted() {
        let mut retries = Retries::default();
        let none = (None, None);
        assert_eq!(linked(&mut retries, call(0, 1, 2, 429, None), Some(5)), none);
        assert_eq!(linked(&mut retries, call(1, 3, 4, 503, None), Some(5)), (Some(0), Some(1)));
        assert_eq!(linked(&mut retries, call(2, 5, 9, 0, None), Some(5)), (Some(1), Some(2)));
        assert_eq!(linked(&mut retries, call(3, 9, 10, 200, None), Some(5)), (Some(2), Some(3)));
        assert_eq!(linked(&mut retries, call(4, 11, 12, 200, None), Some(5)), none, "after a success it is a new one");
    }

    #[test]
    fn what_the_client_says_of_itself_counts_more_than_what_is_seen() {
        let mut retries = Retries::default();
        linked(&mut retries, call(0, 1, 2, 429, Some(0)), Some(5));
        assert_eq!(linked(&mut retries, call(1, 3, 4, 429, Some(7)), Some(5)), (Some(0), Some(7)));
        assert_eq!(linked(&mut retries, call(2, 5, 6, 200, Some(0)), Some(5)), (None, Some(0)));
        assert_eq!(linked(&mut retries, call(3, 7, 8, 200, Some(2)), None), (None, Some(2)), "counted without a link");
    }

    #[test]
    fn another_body_another_process_a_refusal_for_good_and_an_overlap_are_no_retries() {
        let none = (None, None);
        let of = |first: Exchange, second: Exchange, digest| {
            let mut retries = Retries::default();
            linked(&mut retries, first, Some(5));
            linked(&mut retries, second, digest)
        };
        assert_eq!(of(call(0, 1, 2, 429, None), call(1, 3, 4, 200, None), Some(6)), none);
        assert_eq!(of(call(0, 1, 2, 429, None), call(1, 3, 4, 200, None), None), none);
        assert_eq!(of(call(0, 1, 2, 401, None), call(1, 3, 4, 200, None), Some(5)), none);
        assert_eq!(of(call(0, 1, 4, 429, None), call(1, 3, 5, 200, None), Some(5)), none);
        let other = Exchange { pid: 8, ..call(1, 3, 4, 200, None) };
        assert_eq!(of(call(0, 1, 2, 429, None), other, Some(5)), none);
        let served = Exchange { role: Role::Server, ..call(1, 3, 4, 200, None) };
        assert_eq!(of(call(0, 1, 2, 429, None), served, Some(5)), none);
    }

    #[test]
    fn a_failed_call_has_one_retry_at_most() {
        let mut retries = Retries::default();
        linked(&mut retries, call(0, 1, 2, 429, None), Some(5));
        linked(&mut retries, call(1, 1, 2, 429, None), Some(5));
        let next = [2, 3, 4].map(|no| linked(&mut retries, call(no, 3, 4, 200, None), Some(5)).0);
        assert_eq!(next, [Some(0), Some(1), None]);
    }

    #[test]
    fn failed_calls_are_remembered_for_the_window_only() {
        let window = RETRY_WINDOW_NS / S;
        for (start, want) in [(2 + window, Some(0)), (3 + window, None)] {
            let mut retries = Retries::default();
            linked(&mut retries, call(0, 1, 2, 500, None), Some(5));
            assert_eq!(linked(&mut retries, call(1, start, start + 1, 200, None), Some(5)).0, want);
        }
    }

    #[test]
    fn failed_calls_are_remembered_up_to_the_cap_and_the_oldest_go() {
        let mut retries = Retries::default();
        for no in 0..RETRIES as u32 + 1 {
            linked(&mut retries, call(no, 1, 2, 500, None), Some(u64::from(no)));
        }
        assert_eq!(retries.failed.len(), RETRIES);
        assert_eq!(linked(&mut retries, call(0, 3, 4, 200, None), Some(0)).0, None);
        assert_eq!(linked(&mut retries, call(0, 3, 4, 200, None), Some(1)).0, Some(1));
    }
}
