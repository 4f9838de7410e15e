//! Files that are written over in place while probes are on them: those of the old content must not meet the code of the new one.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use xtask::{process::Guarded, sh};

use crate::{
    harness::{Observer, Place, SOON, lines, until},
    liveness::Overlay,
};

/// `tests/fixtures/native/shifting.c`, built with these flags.
fn build(place: &Place, name: &str, flags: &[&str]) -> PathBuf {
    let built = place.dir.join(name);
    sh::have("gcc", &["gcc", "libc6-dev"]).unwrap();
    let source = sh::fixture("native/shifting.c").unwrap();
    sh::run(Command::new("gcc").args(["-O2", "-Wall", "-o"]).arg(&built).arg(source).args(flags)).unwrap();
    built
}

/// Both versions of the library, the old one in its place, and a program that uses it.
fn linked(place: &Place) -> [PathBuf; 3] {
    let library = build(place, "libshifting.so", &["-DLIBRARY", "-shared", "-fPIC"]);
    let new = build(place, "new.so", &["-DLIBRARY", "-DSHIFTED", "-shared", "-fPIC"]);
    let directory = format!("-L{}", place.dir.display());
    // DT_RUNPATH: LD_LIBRARY_PATH comes before it.
    let flags = ["-DUSER", &directory, "-lshifting", "-Wl,--enable-new-dtags,-rpath,$ORIGIN"];
    [library, new, build(place, "program", &flags)]
}

struct Program(Guarded);

impl Program {
    fn start(command: &mut Command) -> Self {
        let process = Guarded::talking("shifting", command).unwrap();
        process.event("ready", SOON).unwrap();
        Self(process)
    }

    /// Runs the code that stands where the functions of the other build do, and makes a call.
    fn is_right(&mut self) -> bool {
        writeln!(self.0.stdin().unwrap(), "go").unwrap();
        self.0.event("made", SOON).is_ok_and(|made| made["right"] == true)
    }
}

/// Writes over a file, as `cp` does: the same inode.
fn write_over(path: &Path, with: &Path) {
    let bytes = fs::read(with).unwrap();
    fs::File::create(path).unwrap().write_all(&bytes).unwrap();
}

fn times_said(observer: &Observer, text: &str) -> usize {
    observer.said().matches(text).count()
}

#[test]
fn probes_leave_a_program_that_is_written_over_before_it_runs_and_its_new_version_is_observed() {
    let place = Place::new("written-over");
    let (old, new) = (build(&place, "old", &[]), build(&place, "new", &["-DSHIFTED"]));
    let program = place.dir.join("program");
    fs::copy(&old, &program).unwrap();
    let mut observer = place.observe("observer", &["--exe", program.to_str().unwrap()]);
    observer.says("It is hooked: ");
    assert!(Program::start(&mut Command::new(&program)).is_right());
    observer.exchanges(1);
    observer.until_metric("nexent_observer_attached_processes", &[], |n| n == 0.0);
    write_over(&program, &new);
    // Whenever it starts from now on.
    let (mut runs, began) = (0, Instant::now());
    observer.says("opened for writing");
    while began.elapsed() < Duration::from_secs(4) {
        assert!(Program::start(&mut Command::new(&program)).is_right(), "run {runs}: a breakpoint of the old version");
        runs += 1;
    }
    assert_eq!(times_said(&observer, "It is hooked: "), 2, "{}", observer.said());
    let metrics = observer.until_metric("nexent_observer_probe_losses_total", &["outcome=\"rewritten\""], |n| n == 1.0);
    assert_eq!(metrics.sum("nexent_observer_probe_losses_total", &[]), 1.0);
    // The new version is seen from its first instruction.
    let seen = observer.exchanges(1).len();
    assert!(Program::start(&mut Command::new(&program)).is_right());
    observer.exchanges(seen + 1);
    for exchange in observer.finish() {
        assert_eq!(
            (&exchange["outcome"], &exchange["output_text"]),
            (&"completed".into(), &"one".into()),
            "{exchange}"
        );
    }
}

#[test]
fn a_library_that_is_written_over_in_place_is_hooked_where_its_functions_are_now() {
    let place = Place::new("library-written-over");
    let [library, new, program] = linked(&place);
    let mut observer = place.observe("observer", &["--exe", program.to_str().unwrap()]);
    let mut first = Program::start(&mut Command::new(&program));
    observer.attached(first.0.pid());
    assert!(first.is_right());
    observer.exchanges(1);
    drop(first);
    write_over(&library, &new);
    observer.says("opened for writing");
    let mut next = Program::start(&mut Command::new(&program));
    observer.attached(next.0.pid());
    for _ in 0..20 {
        assert!(next.is_right(), "a breakpoint of the old version");
    }
    observer.exchanges(1 + 20);
    assert_eq!(observer.finish().len(), 21, "each once");
}

/// Nobody has to change anything: `touch` opens a file for writing too.
#[test]
fn a_process_whose_library_is_only_opened_for_writing_is_observed_again_when_it_is_closed() {
    let place = Place::new("library-opened");
    let [library, _, program] = linked(&place);
    let mut one = Program::start(&mut Command::new(&program));
    let mut other = Program::start(&mut Command::new(&program));
    let mut observer = place.observe("observer", &["--exe", program.to_str().unwrap()]);
    observer.attached(one.0.pid());
    observer.attached(other.0.pid());
    assert!(one.is_right() && other.is_right());
    observer.exchanges(2);
    for times in 1..=2 {
        let before = times_said(&observer, " tls=OpenSSL ");
        let began = Instant::now();
        let opened = fs::OpenOptions::new().append(true).open(&library).unwrap();
        eprintln!("opened after {:?}", began.elapsed());
        // Not while it is open, though it is looked at every second and its processes go on.
        let open = Instant::now();
        while open.elapsed() < Duration::from_millis(2500) {
            assert!(one.is_right() && other.is_right());
            assert_eq!(times_said(&observer, " tls=OpenSSL "), before, "{}", observer.said());
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(times_said(&observer, "opened for writing"), times, "{}", observer.said());
        drop(opened);
        until("both are attached to again", || (times_said(&observer, " tls=OpenSSL ") == before + 2).then_some(()));
        // What was not seen in between is a gap in what is seen next; what comes after that is whole.
        let whole = || lines(&observer.jsonl).iter().filter(|exchange| exchange["outcome"] == "completed").count();
        let before = whole();
        for _ in 0..2 {
            assert!(one.is_right() && other.is_right());
        }
        until("both are seen again", || (whole() >= before + 2).then_some(()));
    }
    for exchange in observer.finish() {
        assert!(exchange["outcome"] != "completed" || exchange["output_text"] == "one", "{exchange}");
    }
}

/// Below an overlay file system the new content is another file, of the same name and number: nothing that was proven for the old one may be put into
/// processes that run it.
#[test]
fn probes_of_a_library_are_not_put_back_into_another_version_of_it() {
    let place = Place::new("version-copied-up");
    let [library, new, program] = linked(&place);
    let overlay = Overlay::over(&library);
    let run = |name: &str| {
        let mut command = Command::new(&program);
        let process = Program::start(command.env("LD_LIBRARY_PATH", overlay.merged()));
        eprintln!("{name}: {}", process.0.pid());
        process
    };
    let mut old = run("old");
    let mut observer = place.observe("observer", &["--exe", program.to_str().unwrap()]);
    observer.attached(old.0.pid());
    assert!(old.is_right());
    observer.exchanges(1);
    write_over(&overlay.merged().join("libshifting.so"), &new);
    let mut fresh = run("new");
    let began = Instant::now();
    // Until a loss would have been believed, roused and attached anew.
    while began.elapsed() < Duration::from_secs(8) {
        assert!(old.is_right() && fresh.is_right(), "a breakpoint of another version");
        thread::sleep(Duration::from_millis(20));
    }
    let seen = observer.exchanges(1).len();
    assert!(fresh.is_right());
    observer.exchanges(seen + 1);
    let pid = fresh.0.pid();
    let exchanges = observer.finish();
    assert!(
        exchanges.iter().any(|exchange| exchange["pid"] == pid && exchange["output_text"] == "one"),
        "it is observed"
    );
}
