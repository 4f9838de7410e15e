//! The demo goes red when the numbers are wrong. Needs root, eBPF and `cargo xtask build`.

use std::process::{Command, Output};

use xtask::sh;

/// Runs the demo on a port of this test's own, one after the other: they share a directory of logs.
fn demo(port: u16, flags: &[&str]) -> Output {
    let root = sh::root().unwrap();
    let binary = sh::target_dir(&root).join("release/nexent-observer");
    assert!(binary.exists(), "{} is missing: cargo xtask build", binary.display());
    let mut command = Command::new(env!("CARGO"));
    command.args(["xtask", "demo", "--seconds", "8", "--listen", &format!("127.0.0.1:{port}"), "--observer"]);
    command.arg(binary).args(flags).current_dir(root).output().unwrap()
}

#[test]
fn the_demo_is_green_and_goes_red_for_shifted_stamps_and_for_a_dropped_record() {
    let right = demo(19464, &[]);
    let text = String::from_utf8_lossy(&right.stdout);
    assert!(right.status.success(), "{text}\n{}", String::from_utf8_lossy(&right.stderr));
    assert!(text.contains("all agree"), "{text}");

    let shifted = demo(19465, &["--fault", "shift=5ms"]);
    let text = String::from_utf8_lossy(&shifted.stdout);
    assert_eq!(shifted.status.code(), Some(1), "{text}");
    assert!(
        text.contains("violated: stamp: output chunks") && text.contains("violated: time to first token"),
        "{text}"
    );

    let dropped = demo(19466, &["--fault", "drop-one"]);
    let text = String::from_utf8_lossy(&dropped.stdout);
    assert_eq!(dropped.status.code(), Some(1), "{text}");
    assert!(text.contains("violated: nothing lost"), "{text}");
}
