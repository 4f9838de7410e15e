//! Delivering one request: attempts, waits between them, and what is said about it.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    config::{OtlpConfig, Target},
    transport::{Accepted, Failure, Request, Transport},
};
use crate::telemetry::{Channel, DropCause};

/// A receiver and what is known of its state.
#[derive(Debug)]
pub(super) struct Delivery {
    transport: Transport,
    channel: Channel,
    /// For the log: what goes where.
    what: &'static str,
    endpoint: String,
    first: Duration,
    max: Duration,
    failing: bool,
    rejecting: bool,
}

impl Delivery {
    pub(super) fn new(
        what: &'static str,
        transport: Transport,
        channel: Channel,
        target: &Target,
        config: &OtlpConfig,
    ) -> Self {
        // Host and port only: a URL can carry credentials.
        let host = target.url.host_str().unwrap_or_default();
        let port = target.url.port_or_known_default().unwrap_or(0);
        Self {
            transport,
            channel,
            what,
            endpoint: format!("{host}:{port}"),
            first: config.backoff_first,
            max: config.backoff_max,
            failing: false,
            rejecting: false,
        }
    }

    /// Sends until it is delivered, refused, or `limit` has passed. Counts the `items`; says whether they were
    /// delivered.
    pub(super) async fn deliver(&mut self, request: &Request, items: u64, limit: Duration) -> bool {
        let give_up = Instant::now() + limit;
        let mut wait = self.first;
        loop {
            let attempt = timeout_at(give_up, self.transport.send(request)).await;
            let failure = match attempt {
                Ok(Ok(accepted)) => {
                    self.accepted(&accepted, items);
                    return true;
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure { retry: true, after: None, text: "no answer in time".into() },
            };
            self.failed(&failure);
            if !failure.retry {
                self.channel.dropped(DropCause::Rejected, items);
                return false;
            }
            // The receiver's wish is met exactly; an own wait is spread, so that many observers do not knock together.
            let pause = failure.after.unwrap_or_else(|| wait.mul_f64(0.5 + fastrand::f64()));
            wait = (wait * 2).min(self.max);
            if Instant::now() + pause >= give_up {
                self.channel.dropped(DropCause::Timeout, items);
                return false;
            }
            sleep(pause).await;
        }
    }

    fn accepted(&mut self, accepted: &Accepted, items: u64) {
        let Self { channel, what, endpoint, failing, rejecting, .. } = self;
        let Accepted { rejected, message } = accepted;
        channel.exported.inc_by(items.saturating_sub(*rejected));
        channel.dropped(DropCause::Rejected, (*rejected).min(items));
        if std::mem::take(failing) {
            tracing::info!(%endpoint, "OTLP: {what} are delivered again");
        }
        let was_rejecting = std::mem::replace(rejecting, *rejected > 0);
        if *rejecting && !was_rejecting {
            tracing::warn!(%endpoint, rejected, %message, "OTLP: the receiver refused a part of the {what}");
        }
    }

    fn failed(&mut self, failure: &Failure) {
        self.channel.failures.inc();
        let Self { what, endpoint, failing, .. } = self;
        if !std::mem::replace(failing, true) {
            let text = &failure.text;
            tracing::warn!(%endpoint, "OTLP: {what} cannot be delivered ({text}); said again only when that changes");
        }
    }
}
