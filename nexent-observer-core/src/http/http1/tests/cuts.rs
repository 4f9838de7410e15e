//! Wherever bytes are cut, and whatever they are: properties over whole connections.

use super::*;

/// A conversation of whole messages, each direction as one text per turn, with everything the framing allows.
fn fixture(i: usize) -> Vec<(Direction, String)> {
    let sse: String = ["data: {\"a\":1}\n\n", ": ping\n\n", "data: [DONE]\n\n"].iter().map(|c| chunk(c)).collect();
    match i {
        0 => vec![
            (Write, POST.into()),
            (Read, format!("{SSE}{sse}0\r\n\r\n")),
            (
                Write,
                "POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n".into(),
            ),
            (Read, format!("HTTP/1.1 100 Continue\r\n\r\n{OK5}")),
        ],
        1 => vec![
            (Write, format!("{GET}\r\nHEAD /h HTTP/1.1\r\n\r\n{POST}")),
            (Read, format!("\r\n{OK5}HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 204 No\r\n\r\n")),
            (Write, GET.replace('\r', "")),
            (Read, "HTTP/1.1 200 OK\nX: lf\n\nuntil close\r\n0\r\n\r\n".into()),
        ],
        2 => vec![
            (Read, POST.into()),
            (Write, format!("{SSE}{sse}0\r\nX: t\r\n\r\n")),
            (Read, GET.into()),
            (Write, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: w\r\n\r\n\x01\x02HTTP/1.1".into()),
        ],
        _ => vec![
            (Write, GET.into()),
            (Read, "HTTP/1.1 500 no\r\nX: e\r\nContent-Length: 0\r\n\r\n".into()),
            (Write, "CONNECT h:1 HTTP/1.1\r\n\r\n".into()),
            (Read, "HTTP/1.1 200 OK\r\n\r\n\x16\x03".into()),
        ],
    }
}

/// Feeds a fixture in pieces of the sizes that `size` gives. Stamps of first bytes are left out of the log: a turn has
/// one stamp however it is cut.
fn run(fixture: &[(Direction, String)], mut size: impl FnMut() -> usize) -> (Vec<String>, Stats) {
    let mut b = Bench::fresh();
    for (i, (dir, text)) in fixture.iter().enumerate() {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(size().clamp(1, rest.len()));
            b.event(StreamEvent::Data { dir: *dir, at: stamp(i as u64 + 1), bytes: piece });
            rest = after;
        }
    }
    b.now = 100;
    b.close(CloseCause::Freed);
    (b.log, b.stats)
}

#[test]
fn wherever_records_are_cut_the_events_are_the_same() {
    for i in 0..4 {
        let fixture = fixture(i);
        let whole = run(&fixture, || usize::MAX);
        assert!(whole.0.len() > 6 && !whole.0.iter().any(|l| l.contains('!') || l.contains("gap")), "{whole:#?}");
        assert_eq!(run(&fixture, || 1), whole);
        for cut in 1..fixture.iter().map(|f| f.1.len()).max().unwrap() {
            assert_eq!(run(&fixture, || cut), whole, "fixture {i} in pieces of {cut}");
            let mut first = true;
            let once = run(&fixture, || if std::mem::take(&mut first) { cut } else { usize::MAX });
            assert_eq!(once, whole);
        }
    }
}

/// Splits every record of every turn at one offset, in all turns alike.
#[test]
fn every_turn_can_be_cut_in_two_at_every_offset() {
    for i in 0..4 {
        let fixture = fixture(i);
        let whole = run(&fixture, || usize::MAX);
        for turn in 0..fixture.len() {
            for cut in 1..fixture[turn].1.len() {
                let mut pieces: Vec<usize> = Vec::new();
                for (n, f) in fixture.iter().enumerate() {
                    if n == turn {
                        pieces.extend([cut, f.1.len() - cut]);
                    } else {
                        pieces.push(f.1.len());
                    }
                }
                let mut pieces = pieces.into_iter();
                assert_eq!(run(&fixture, || pieces.next().unwrap()), whole, "fixture {i}, turn {turn}, cut {cut}");
            }
        }
    }
}

#[test]
fn a_method_that_is_none_begins_no_exchange_wherever_the_head_is_cut() {
    for method in ["CONNECTsGET", "get", "AMETHODLONGERTHANTHELONGEST"] {
        let fixture = [(Write, format!("{GET}{method} / HTTP/1.1\r\nHost: h\r\n\r\n"))];
        for cut in 1..=fixture[0].1.len() {
            let (log, stats) = run(&fixture, || cut);
            assert!(!log.iter().any(|line| line.contains(method)), "{method} in pieces of {cut}: {log:?}");
            assert_eq!(stats.drops(DropReason::HeadInvalid), 1, "{method} in pieces of {cut}");
        }
    }
}

#[test]
fn a_head_that_is_none_is_given_up_with_its_second_piece_however_long() {
    let mut b = Bench::fresh();
    b.w(GET).r("HT").r(&format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(100)));
    assert_eq!(b.stats.drops(DropReason::HeadInvalid), 1, "the second piece is looked at too");
    b.r("\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(b.log.last().map(String::as_str), Some("1< end"));
}

proptest! {
    #[test]
    fn any_cuts_give_the_same_events(i in 0_usize..4, sizes in prop::collection::vec(1_usize..30, 1..50)) {
        let fixture = fixture(i);
        let mut sizes = sizes.into_iter().cycle();
        prop_assert_eq!(run(&fixture, || sizes.next().unwrap()), run(&fixture, || usize::MAX));
    }

    #[test]
    fn whatever_was_lost_before_it_a_later_exchange_is_right(
        i in 0_usize..2,
        pieces in prop::collection::vec((1_usize..60, 0_u8..4), 1..40),
        unknown in any::<bool>(),
    ) {
        let mut b = Bench::fresh();
        let mut pieces = pieces.into_iter().cycle();
        for (dir, text) in fixture(i).into_iter().take(2) {
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                let (size, fate) = pieces.next().unwrap();
                let (piece, after) = rest.split_at(size.min(rest.len()));
                if fate == 0 {
                    b.gap(dir, (!unknown).then_some(piece.len() as u64), GapCause::Lost);
                } else {
                    b.data(dir, piece);
                }
                rest = after;
            }
        }
        b.log.clear();
        // After a loss it may take one exchange to be in step again.
        b.w(GET).r(OK5).w(POST).r(OK5);
        let last = b.log.iter().rposition(|l| l.contains("> POST")).unwrap();
        let no = b.log[last].split('>').next().unwrap().to_owned();
        let own: Vec<_> = b.log[last..].iter().filter(|l| l.starts_with(&no)).map(|l| l[no.len()..].split(" @").next().unwrap().to_owned()).collect();
        prop_assert_eq!(own, ["> POST /v1/chat h", "> body body", "> end", "< 200 five", "< body hello", "< end"]);
    }

    #[test]
    fn no_bytes_whatsoever_do_harm(
        events in prop::collection::vec((0_u8..12, any::<bool>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..40)), 1..60),
        fresh in any::<bool>(),
    ) {
        let words = [GET, POST, OK5, SSE, "5\r\nhello\r\n", "ffffffffffffffff\r\n", "0\r\n\r\n", "data: x\n\n", "\r\n"];
        let mut b = Bench::new(if fresh { StartSeen::Yes } else { StartSeen::No });
        for (kind, write, n, bytes) in events {
            let dir = if write { Write } else { Read };
            match kind {
                0 => b.gap(dir, Some(n), GapCause::Lost),
                1 => b.gap(dir, (n & 1 == 0).then_some(n % 64 + 1), GapCause::Capped),
                2 if !bytes.is_empty() => b.data(dir, &bytes),
                3 if n % 16 == 0 => b.close(CloseCause::Freed),
                _ => {
                    let word = words[n as usize % words.len()].as_bytes();
                    let cut = (n >> 32) as usize % word.len();
                    b.data(dir, &word[if n & 1 == 0 { 0 } else { cut }..])
                }
            };
        }
        // The contract of the output: a head first, nothing after the end of a side, nothing after an abort.
        let mut sides = std::collections::HashMap::new();
        let mut aborted = std::collections::HashSet::new();
        for line in &b.log {
            let at = line.find(['>', '<', '!']).unwrap();
            let (no, rest) = line.split_at(at);
            prop_assert!(!aborted.contains(no), "{:?}", b.log);
            let (side, what) = rest.split_at(1);
            if side == "!" {
                aborted.insert(no.to_owned());
                continue;
            }
            let what = what.trim_start();
            let state = sides.entry((no.to_owned(), side.to_owned())).or_insert(0);
            let expected = if what == "end" || what.starts_with("body") || what.starts_with("gap") { 1 } else { 0 };
            prop_assert_eq!(*state, expected, "{} in {:?}", line, b.log);
            *state = if what == "end" { 2 } else { 1 };
        }
    }
}
