//! Any cuts, any order of streams, any losses, any bytes.

use proptest::prelude::*;

use super::wire::*;
use crate::{
    conn::{CloseCause, GapCause, StreamEvent},
    event::Direction::{self, *},
    http::StartSeen,
    stats::Stats,
};

/// A conversation of `n` calls. `order` decides which stream goes on next; what a stream says does not depend on it.
fn conversation(n: u32, order: &[u8]) -> Vec<(Direction, Vec<u8>)> {
    let (mut c, mut s) = (Peer::new(), Peer::new());
    let mut turns = vec![
        (Write, [PREFACE, &settings(&[(1, 65_536)])].concat()),
        (Read, [settings(&[(5, 20_000)]), frame(4, 1, 0, b"")].concat()),
    ];
    let mut at = vec![0_u32; n as usize];
    let mut order = order.iter().copied().cycle();
    // Streams are opened in order.
    let mut next_open = 0;
    while let Some(open) = at.iter().position(|step| *step < 9) {
        let mut pick = usize::from(order.next().unwrap()) % at.len();
        if at[pick] == 9 || (at[pick] == 0 && pick != next_open) {
            pick = open;
        }
        let (id, x) = (2 * pick as u32 + 1, format!("value-{}", pick % 3));
        let piece = match at[pick] {
            0 => {
                next_open += 1;
                (Write, c.post(id, &format!("/path/{}", pick % 4)))
            }
            1 => (Write, padded(id, false, format!("ask {pick}").as_bytes(), pick as u8)),
            2 => (Write, [frame(8, 0, id, &[0, 0, 1, 0]), data(id, true, b".")].concat()),
            3 => (Read, s.answer(id, false, "103", &x)),
            4 => {
                let block = s.block(&[(":status", "200"), ("server", &x), ("date", "now")]);
                (Read, [frame(1, 0, id, &block[..1]), frame(9, 4, id, &block[1..])].concat())
            }
            5 | 6 => (Read, data(id, false, format!("data: {pick}\n\n").as_bytes())),
            7 => (Read, padded(id, false, b"", 3)),
            _ if pick.is_multiple_of(2) => (Read, s.headers(id, true, &[("trailer", &x)])),
            _ => (Read, data(id, true, b"!")),
        };
        at[pick] += 1;
        turns.push(piece);
    }
    turns
}

/// Feeds turns in pieces of the sizes that `size` gives; every turn has one stamp however it is cut.
fn run(turns: &[(Direction, Vec<u8>)], mut size: impl FnMut() -> usize) -> (Vec<String>, Stats) {
    let mut b = Bench::new(StartSeen::Yes);
    for (i, (dir, bytes)) in turns.iter().enumerate() {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(size().clamp(1, rest.len()));
            b.event(StreamEvent::Data { dir: *dir, at: stamp(i as u64 + 1), bytes: piece });
            rest = after;
        }
    }
    b.now = 1000;
    b.close(CloseCause::Freed);
    (b.log, b.stats)
}

/// What was said of one exchange, without stamps.
fn of_exchange(log: &[String], no: usize) -> Vec<String> {
    let mine = |l: &&String| l.split(['>', '<', '!']).next() == Some(&no.to_string());
    log.iter().filter(mine).map(|l| l.split(" @").next().unwrap().to_owned()).collect()
}

#[test]
fn wherever_records_are_cut_the_events_are_the_same() {
    let turns = conversation(3, &[0, 1, 2, 1]);
    let whole = run(&turns, || usize::MAX);
    assert_eq!(run(&turns, || 1), whole);
    for cut in 2..40 {
        assert_eq!(run(&turns, || cut), whole, "in pieces of {cut}");
    }
    for turn in 0..turns.len() {
        for cut in 1..turns[turn].1.len() {
            let pieces = turns
                .iter()
                .enumerate()
                .flat_map(|(n, t)| if n == turn { vec![cut, t.1.len() - cut] } else { vec![t.1.len()] });
            let mut pieces = pieces.collect::<Vec<_>>().into_iter();
            assert_eq!(run(&turns, || pieces.next().unwrap()), whole, "turn {turn}, cut {cut}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn each_stream_says_the_same_whatever_the_others_do_and_however_it_is_cut(
        n in 1_u32..9,
        order in prop::collection::vec(any::<u8>(), 1..60),
        sizes in prop::collection::vec(1_usize..40, 1..40),
    ) {
        let turns = conversation(n, &order);
        let mut sizes = sizes.into_iter().cycle();
        let (log, stats) = run(&turns, || sizes.next().unwrap());
        prop_assert_eq!(&log, &run(&turns, || usize::MAX).0);
        prop_assert_eq!(stats.http_exchanges, u64::from(n));
        for no in 0..n as usize {
            let mut expected = vec![
                format!("{no}> POST /path/{} h", no % 4),
                format!("{no}> body ask {no}."),
                format!("{no}> end"),
                format!("{no}< 200 value-{}", no % 3),
                format!("{no}< body data: {no}\n\ndata: {no}\n\n{}", if no % 2 == 0 { "" } else { "!" }),
                format!("{no}< end"),
            ];
            let mut got = of_exchange(&log, no);
            expected.sort();
            got.sort();
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn whatever_was_lost_or_came_before_no_value_is_wrong_and_later_streams_are_complete(
        n in 2_u32..8,
        order in prop::collection::vec(any::<u8>(), 1..40),
        fates in prop::collection::vec(0_u8..8, 1..60),
        joined in prop::option::of(1_usize..30),
        unknown in any::<bool>(),
    ) {
        let turns = conversation(n, &order);
        let mut b = Bench::new(if joined.is_some() { StartSeen::No } else { StartSeen::Yes });
        let mut fates = fates.into_iter().cycle();
        for (dir, bytes) in turns.iter().skip(joined.unwrap_or(0)) {
            match fates.next().unwrap() {
                0 => { b.gap(*dir, (!unknown).then_some(bytes.len() as u64), GapCause::Lost); }
                1 => {
                    let (piece, lost) = bytes.split_at(bytes.len() / 2);
                    b.data(*dir, piece).gap(*dir, (!unknown).then_some(lost.len() as u64), GapCause::Lost);
                }
                2 => {
                    let (lost, piece) = bytes.split_at(bytes.len() / 2);
                    b.gap(*dir, (!unknown).then_some(lost.len() as u64), GapCause::Lost).data(*dir, piece);
                }
                _ => { b.data(*dir, bytes); }
            }
        }
        for line in &b.log {
            let what: Vec<_> = line.split(' ').collect();
            match what[1] {
                "POST" | "" => prop_assert!(what[2].is_empty() || what[2].starts_with("/path/"), "{}", line),
                "200" | "?" => prop_assert!(what[2] == "-" || what[2].starts_with("value-"), "{}", line),
                _ => {}
            }
        }
        prop_assert_eq!(contract(&b.log), Ok(()));
        b.log.clear();
        // Fresh encoders stand for an encoder that says everything anew.
        let (mut c, mut s) = (Peer::new(), Peer::new());
        b.w(&[c.post(101, "/later"), data(101, true, b"ask")].concat());
        b.r(&[s.answer(101, false, "200", "z"), data(101, true, b"answer")].concat());
        let last = b.log.iter().rposition(|l| l.contains("> POST /later h")).unwrap();
        let no = b.log[last].split('>').next().unwrap().parse().unwrap();
        prop_assert_eq!(
            of_exchange(&b.log, no).iter().map(|l| l.split_once(['>', '<']).unwrap().1.to_owned()).collect::<Vec<_>>(),
            [" POST /later h", " body ask", " end", " 200 z", " body answer", " end"]
        );
    }

    #[test]
    fn no_bytes_whatsoever_do_harm(
        events in prop::collection::vec((0_u8..16, any::<bool>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..40)), 1..80),
        fresh in any::<bool>(),
    ) {
        let mut b = Bench::new(if fresh { StartSeen::Yes } else { StartSeen::No });
        if fresh {
            b.w(PREFACE);
        }
        let (mut c, mut s) = (Peer::new(), Peer::new());
        for (kind, write, n, bytes) in events {
            let dir = if write { Write } else { Read };
            let stream = (n % 8) as u32 * 2 + 1;
            match kind {
                0 => b.gap(dir, Some(n), GapCause::Lost),
                1 => b.gap(dir, (n & 1 == 0).then_some(n % 64 + 1), GapCause::Capped),
                2 if !bytes.is_empty() => b.data(dir, &bytes),
                3 if n % 16 == 0 => b.close(CloseCause::Freed),
                4 => b.data(dir, &c.post(stream, "/a")),
                5 => b.data(dir, &s.answer(stream, n & 16 == 0, "200", "a")),
                6 => b.data(dir, &reset(stream, n as u32)),
                7 => b.data(dir, &go_away(stream)),
                8 => b.data(dir, &padded(stream, n & 16 == 0, &bytes, n as u8)),
                // Any frame whatsoever.
                _ => b.data(dir, &frame((n >> 8) as u8 % 12, (n >> 16) as u8, (n >> 24) as u32 % 12, &bytes)),
            };
        }
        prop_assert_eq!(contract(&b.log), Ok(()));
    }
}
