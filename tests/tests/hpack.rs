//! Header blocks that another implementation of HPACK encoded, read by the observer's: every field of every head is the same.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

use std::process::Command;

use nexent_observer_core::{
    conn::StreamEvent,
    event::{Direction, MonoNs, Stamp},
    http::{Head, HttpConnection, HttpEvent, HttpEventKind, StartSeen},
    stats::{DropReason, Stats},
};
use serde_json::Value;
use xtask::{python, sh};

type Field = (Vec<u8>, Vec<u8>);

/// What the observer says of a head, as the list of its fields without `:scheme`, which it does not keep.
fn fields(event: &HttpEvent<'_>) -> Option<Vec<Field>> {
    let HttpEventKind::Head { head, .. } = event.kind else { return None };
    let pair = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
    let (mut all, headers) = match head {
        Head::Request(head) => {
            let host = head.host.unwrap_or_default().as_bytes();
            let pseudo = [(":method", head.method.as_bytes()), (":authority", host), (":path", head.path.as_bytes())];
            (pseudo.iter().map(|(name, value)| pair(name, value)).collect::<Vec<_>>(), head.headers)
        }
        Head::Response(head) => {
            (vec![pair(":status", head.status.unwrap_or_default().to_string().as_bytes())], head.headers)
        }
        Head::Unseen => (vec![pair("unseen", b"")], nexent_observer_core::http::Headers(&[])),
    };
    all.extend(headers.0.iter().map(|(name, value)| pair(name, value)));
    Some(all)
}

fn bytes(hex: &Value) -> Vec<u8> {
    let digits = hex.as_str().unwrap().as_bytes();
    let digit = |d: u8| (d as char).to_digit(16).unwrap() as u8;
    digits.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// Feeds a conversation in records of at most `record` bytes; the heads that were seen.
fn heads(turns: &[Value], record: usize) -> (Vec<Vec<Field>>, Stats) {
    let mut conn = HttpConnection::new(StartSeen::Yes);
    let mut stats = Stats::default();
    let (mut seen, mut now) = (Vec::new(), 0);
    for turn in turns {
        let dir = if turn[0] == "w" { Direction::Write } else { Direction::Read };
        for part in bytes(&turn[1]).chunks(record) {
            now += 1;
            let at = Stamp { entry: MonoNs(now), ret: MonoNs(now) };
            conn.feed(&StreamEvent::Data { dir, at, bytes: part }, &mut stats, &mut |event| {
                seen.extend(fields(&event));
            });
        }
    }
    (seen, stats)
}

#[test]
fn every_field_is_read_as_another_implementation_encoded_it() {
    let mut command = Command::new(python::dialects().unwrap());
    let blocks = command.arg(sh::fixture("dialects/hpack_blocks.py").unwrap()).output().unwrap();
    assert!(blocks.status.success(), "{}", String::from_utf8_lossy(&blocks.stderr));
    let (mut connections, mut count) = (0, 0);
    for (no, line) in String::from_utf8(blocks.stdout).unwrap().lines().enumerate() {
        let conversation: Value = serde_json::from_str(line).unwrap();
        let wanted: Vec<Vec<Field>> = conversation["heads"].as_array().unwrap().iter().map(known).collect();
        for record in [usize::MAX, 100, 7] {
            let (seen, stats) = heads(conversation["turns"].as_array().unwrap(), record);
            for (at, (seen, wanted)) in seen.iter().zip(&wanted).enumerate() {
                assert_eq!(seen, wanted, "connection {no}, head {at}, records of {record} bytes");
            }
            assert_eq!(seen.len(), wanted.len(), "connection {no}, records of {record} bytes");
            let drops: Vec<_> = DropReason::ALL.into_iter().filter(|reason| stats.drops(*reason) > 0).collect();
            assert_eq!(drops, [], "connection {no}, records of {record} bytes");
        }
        connections += 1;
        count += wanted.iter().map(Vec::len).sum::<usize>();
    }
    assert!(connections >= 25 && count > 10_000, "{connections} connections, {count} fields");
}

/// The fields of a head as they were encoded, without the one that is not kept.
fn known(head: &Value) -> Vec<Field> {
    let pairs = head.as_array().unwrap().iter().map(|pair| (bytes(&pair[0]), bytes(&pair[1])));
    pairs.filter(|(name, _)| name != b":scheme").collect()
}
