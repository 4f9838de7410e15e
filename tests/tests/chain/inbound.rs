//! Requests that come over TLS and over HTTP/2, to servers that terminate both in the observed process.

use std::collections::BTreeSet;

use serde_json::Value;
use xtask::sh;

use super::{Front, Run, Seen, below_its_request, by_route};

/// The wall clock of the fixtures against the observer's, which is set against the kernel's now and then.
const SLACK_NS: u64 = 20_000_000;

impl Front {
    /// Many at a time, joined by content; one at a time, joined without. What was seen of both.
    fn runs(self, name: &str, shape: &str) {
        let run = Run { name, shape, flags: &[], observer: &[], requests: 0, concurrency: 0, front: Some(self) };
        let many = Run { observer: &["--join-by-content"], requests: 90, concurrency: 30, ..run }.seen();
        assert_eq!(many.judge(by_route), (many.calls.len(), 0));
        many.inbound(self);
        let without = Run { name: &format!("{name}-without"), requests: 90, concurrency: 30, ..run }.seen();
        let (right, unknown) = without.judge(by_route);
        assert_eq!(right + unknown, without.calls.len());
        without.inbound(self);
        let one = Run { name: &format!("{name}-one"), requests: 28, concurrency: 1, ..run }.seen();
        let (right, _) = one.judge(by_route);
        assert!(right * 100 >= one.calls.len() * 95, "{right} of {}", one.calls.len());
        one.inbound(self);
    }
}

impl Seen {
    /// Each span of a request lies between what its client and its handler saw, for both ends and the first byte.
    fn inbound(&self, front: Front) {
        self.trees(below_its_request);
        assert_eq!(self.clients.len(), self.requests);
        let version = if front.http == 2 { "HTTP/2" } else { "HTTP/1.1" };
        let mut statuses = BTreeSet::new();
        for client in &self.clients {
            assert_eq!(client["version"], version);
            let name = client["name"].as_str().unwrap();
            let of_request = |span: &&Value| span["name"] == by_route(name);
            let found: Vec<&Value> = self.spans.iter().filter(of_request).collect();
            let [span] = found.as_slice() else { panic!("{} spans of {name}", found.len()) };
            let attributes = &span["attributes"];
            assert_eq!(attributes["http.response.status_code"], client["status"], "{span}");
            assert_eq!(attributes["http.route"], format!("/work/{name}"));
            assert_eq!(attributes["nexent.outcome"], "completed", "{span}");
            // The socket of a TLS connection is known once something was sent on it: not while an answer of one write is the first.
            let peer = &attributes["network.peer.address"];
            let unknown = front.tls && client["status"] != 200 && peer.is_null();
            assert!(unknown || peer == "127.0.0.1", "{span}");
            statuses.extend(client["status"].as_u64());
            let of = |event: &str| client[format!("{event}_ns")].as_u64().unwrap();
            let (start, end) = (span["start_unix_ns"].as_u64().unwrap(), span["end_unix_ns"].as_u64().unwrap());
            let first = start + (attributes["nexent.time_to_first_byte"].as_f64().unwrap() * 1e9) as u64;
            for (what, before, at, after) in [
                ("start", of("sent"), start, of("began")),
                ("first byte", of("began"), first, of("first")),
                ("end", if client["status"] == 200 { of("ended") } else { first }, end, of("done")),
            ] {
                assert!(before <= at + SLACK_NS && at <= after + SLACK_NS, "{what}: {before} {at} {after} {span}");
            }
        }
        assert_eq!(statuses, BTreeSet::from([200, 503]));
        sh::say(&format!(
            "{} inbound requests over {version}, each between its client's times and its handler's",
            self.requests
        ));
    }
}

#[test]
fn requests_over_tls_are_told_and_joined() {
    Front { http: 1, tls: true }.runs("tls", "uvicorn");
}

#[test]
fn requests_over_http2_and_tls_are_told_and_joined() {
    Front { http: 2, tls: true }.runs("h2", "hypercorn");
}

#[test]
fn requests_over_http2_without_tls_are_told_and_joined() {
    Front { http: 2, tls: false }.runs("h2c", "hypercorn");
}
