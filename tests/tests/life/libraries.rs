//! Libraries of unusual shape.

use std::{io::Write, process::Command};

use xtask::process::Guarded;

use crate::harness::{Place, SOON, until};

#[test]
fn a_library_whose_inner_functions_cannot_be_proven_is_hooked_at_its_public_entries() {
    let place = Place::new("odd-library");
    let mut target = Guarded::talking("odd_tls", &mut Command::new(env!("CARGO_BIN_EXE_odd_tls"))).unwrap();
    target.event("ready", SOON).unwrap();
    let mut observer = place.observe("observer", &["--pid", &target.pid().to_string()]);
    observer.attached(target.pid());
    for kind in ["plain", "extended", "plain", "extended"] {
        writeln!(target.stdin().unwrap(), "{kind}").unwrap();
        target.event("made", SOON).unwrap();
    }
    observer.exchanges(4);
    let said = observer.said();
    for function in ["SSL_read", "SSL_write"] {
        let line = said.lines().find(|line| line.contains(&format!("{function} is hooked at its public entry")));
        let line = line.unwrap_or_else(|| panic!("nothing of {function}:\n{said}"));
        assert!(line.contains("do not call the same inner function"), "{line}");
    }
    assert!(said.contains("cost about 9 us a call instead of 1"), "{said}");
    for exchange in observer.finish() {
        assert_eq!(exchange["outcome"], "completed", "{exchange}");
        assert_eq!(exchange["output_text"], "one two three", "{exchange}");
        assert_eq!(exchange["chunks"].as_array().map(Vec::len), Some(3));
    }
}

#[test]
fn a_library_whose_public_functions_begin_with_a_push_is_hooked_there_and_cheaply() {
    let place = Place::new("push-library");
    let mut command = Command::new(env!("CARGO_BIN_EXE_fake_tls"));
    let mut target = Guarded::talking("fake_tls", &mut command).unwrap();
    let exe = std::fs::canonicalize(env!("CARGO_BIN_EXE_fake_tls")).unwrap();
    until("it runs", || (std::fs::read_link(format!("/proc/{}/exe", target.pid())).ok()? == exe).then_some(()));
    let mut observer = place.observe("observer", &["--pid", &target.pid().to_string()]);
    observer.attached(target.pid());
    // Three requests of 20 kB, written at once, each answered by a stream of one chunk.
    writeln!(target.stdin().unwrap(), "requests 3 20000").unwrap();
    observer.exchanges(3);
    let said = observer.said();
    assert!(!said.contains("public entry") && !said.contains("9 us"), "nothing to say of cost:\n{said}");
    let exchanges = observer.finish();
    assert_eq!(exchanges.len(), 3);
    for exchange in &exchanges {
        assert_eq!(exchange["outcome"], "completed", "{exchange}");
        assert_eq!(exchange["output_text"], "a", "{exchange}");
        assert_eq!(exchange["usage"]["output"], 1, "{exchange}");
        assert!(exchange["ttft_s"].is_f64(), "{exchange}");
    }
}

#[test]
fn bytes_that_two_hooks_see_one_inside_the_other_count_once_and_are_told() {
    let place = Place::new("nested-library");
    let mut target = Guarded::talking("nested_tls", &mut Command::new(env!("CARGO_BIN_EXE_nested_tls"))).unwrap();
    target.event("ready", SOON).unwrap();
    let mut observer = place.observe("observer", &["--pid", &target.pid().to_string()]);
    observer.attached(target.pid());
    for tls in ["tls=OpenSSL ", "tls=GnuTLS "] {
        observer.says(tls);
    }
    for _ in 0..2 {
        writeln!(target.stdin().unwrap(), "again").unwrap();
        target.event("made", SOON).unwrap();
    }
    observer.exchanges(2);
    // A request and five reads each, of all of which the outer call is left out.
    observer.until_metric("nexent_observer_drops_total", &["reason=\"seen_twice\""], |n| n == 12.0);
    let metrics = observer.metrics();
    assert_eq!(metrics.sum("nexent_observer_drops_total", &[]), 12.0, "{}", metrics.0);
    let exchanges = observer.finish();
    assert_eq!(exchanges.len(), 2, "each once");
    for exchange in exchanges {
        assert_eq!(exchange["outcome"], "completed", "{exchange}");
        assert_eq!(exchange["output_text"], "one two three", "{exchange}");
        assert_eq!(exchange["chunks"].as_array().map(Vec::len), Some(3), "{exchange}");
    }
}
