//! Probes that vanish, and processes that should be seen and are not.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use crate::harness::{Place, SOON, assert_right, by_request};

/// Libraries on an overlay file system; unmounted when dropped.
struct Overlay {
    base: PathBuf,
    merged: PathBuf,
}

impl Overlay {
    fn over(library: &Path) -> Self {
        let base = std::env::temp_dir().join(format!("nexent-observer-overlay-{}", std::process::id()));
        fs::create_dir_all(&base).unwrap();
        mount(&["-t", "tmpfs", "tmpfs"], &base);
        let this = Self { merged: base.join("merged"), base };
        let parts = ["lower", "upper", "work", "merged"].map(|part| this.base.join(part));
        parts.iter().for_each(|part| fs::create_dir(part).unwrap());
        let [lower, upper, work, merged] = &parts;
        fs::copy(library, lower.join(library.file_name().unwrap())).unwrap();
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount(&["-t", "overlay", "overlay", "-o", &options], merged);
        this
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        for mounted in [&self.merged, &self.base] {
            drop(Command::new("umount").arg("--lazy").arg(mounted).status());
        }
        drop(fs::remove_dir(&self.base));
    }
}

fn mount(arguments: &[&str], at: &Path) {
    let status = Command::new("mount").args(arguments).arg(at).status().unwrap();
    assert!(status.success(), "mount {arguments:?} {}", at.display());
}

#[test]
fn probes_that_a_process_throws_away_with_its_code_are_put_back() {
    let place = Place::new("thrown-away");
    let server = place.server();
    let mut client = place.client(&server, "client");
    let mut observer = place.observe("observer", &["--pid", &client.pid()]);
    observer.attached(client.process.pid());
    let first = client.chat();
    observer.exchanges(1);
    client.tell(&json!({"do": "drop_code", "file": "libssl"}));
    let dropped = client.process.event("dropped", SOON).unwrap();
    assert!(dropped["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{dropped}");
    let said = observer.says("Probes were gone from the code of a process and are back");
    assert!(said.contains(&format!("pid={} ", client.pid())) && said.contains("anew=false"), "{said}");
    // On the connection of which bytes may have been missed one exchange tells that; the one after it is right.
    let next = client.chat();
    let last = client.chat();
    let metrics = observer.until_metric("llm_requests", &[], |n| n >= 3.0);
    assert_eq!(metrics.sum("nexent_observer_probe_losses_total", &["outcome=\"restored\""]), 1.0);
    assert_eq!(metrics.sum("nexent_observer_probe_losses_total", &[]), 1.0);
    let exchanges = observer.finish();
    let found = by_request(&exchanges);
    for made in [&first, &last] {
        assert_right(found[made["request_id"].as_str().unwrap()], made, &server);
    }
    let told = &found[next["request_id"].as_str().unwrap()]["output_text"];
    let text = told.as_str().unwrap().trim_start_matches(char::REPLACEMENT_CHARACTER);
    assert!(text == next["text"] && text != told, "{told}");
}

#[test]
fn a_library_that_an_overlay_file_system_has_copied_is_hooked_again_where_it_can_be() {
    let mut place = Place::new("copied-up");
    let server = place.server();
    let overlay = Overlay::over(&place.libssl);
    let library = overlay.merged.join(place.libssl.file_name().unwrap());
    let script =
        format!("#!/bin/sh\nLD_LIBRARY_PATH={} exec {} \"$@\"\n", overlay.merged.display(), place.exe.display());
    place.python = place.dir.join("overlaid.sh");
    fs::write(&place.python, script).unwrap();
    fs::set_permissions(&place.python, fs::Permissions::from_mode(0o755)).unwrap();
    let mut old = place.client(&server, "old");
    let mut observer = place.observe("observer", &["--exe", place.exe.to_str().unwrap()]);
    observer.attached(old.process.pid());
    let before = old.chat();
    // Opened for writing, it is copied: the same path, device and inode number are another file below from now on.
    drop(fs::OpenOptions::new().append(true).open(&library).unwrap());
    let mut new = place.client(&server, "new");
    observer.attached(new.process.pid());
    let said = observer.says("Probes were gone from the code of a process and are back");
    assert!(said.contains(&format!("pid={} ", new.pid())) && said.contains("anew=true"), "{said}");
    let (of_old, of_new) = (old.chat(), new.chat());
    let metrics = observer.until_metric("llm_requests", &[], |n| n >= 3.0);
    assert_eq!(metrics.sum("nexent_observer_probe_losses_total", &["outcome=\"reattached\""]), 1.0);
    assert_eq!(metrics.sum("nexent_observer_probe_losses_total", &[]), 1.0);
    assert_eq!(metrics.sum("nexent_observer_incomplete_exchanges_total", &[]), 0.0);
    let exchanges = observer.finish();
    assert_eq!(exchanges.len(), 3, "each once");
    let found = by_request(&exchanges);
    for made in [&before, &of_old, &of_new] {
        assert_right(found[made["request_id"].as_str().unwrap()], made, &server);
    }
    // The file that the old process runs has no path any more, so nothing can be attached to it.
    let mut late = place.observe("late", &["--pid", &old.pid()]);
    let said = late.says("Probes are gone from the code of a process");
    assert!(said.contains(&format!("pid={} ", old.pid())) && said.contains("restart the process"), "{said}");
    assert_eq!(old.chat()["outcome"], before["outcome"], "it works as ever");
    let metrics = late.metrics();
    assert_eq!(metrics.sum("nexent_observer_probe_losses_total", &["outcome=\"failed\""]), 1.0);
    assert!(late.finish().is_empty());
}
