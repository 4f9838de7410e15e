//! Files on a file system that does not answer any more: they hold up nothing but what is known of them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::mount::{UnmountFlags, unmount};
use serde_json::Value;
use xtask::{fake_tls::FakeTls, process::Guarded};

use crate::harness::{Observer, Place, SOON, binary, lines, until};

/// Longest that the endpoint may take: the loop does not wait for files, and the machine may be busy.
const PROMPT: Duration = Duration::from_secs(5);

/// `tests/src/bin/silent_fs.rs`. Unmounted when dropped: that frees whoever waits for it, and nothing else does.
struct SilentFs {
    process: Guarded,
    mountpoint: PathBuf,
}

impl SilentFs {
    fn of(directory: &Path, flags: &[&str]) -> Self {
        let name = directory.file_name().unwrap().display();
        let mountpoint = std::env::temp_dir().join(format!("nexent-observer-silent-{}-{name}", std::process::id()));
        fs::create_dir_all(&mountpoint).unwrap();
        // As the kernel and so the observer name it.
        let mountpoint = fs::canonicalize(mountpoint).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_silent_fs"));
        let process = Guarded::talking("silent_fs", command.arg(&mountpoint).arg(directory).args(flags)).unwrap();
        let this = Self { process, mountpoint };
        this.process.event("ready", SOON).unwrap();
        this
    }

    fn falls_silent(&mut self) {
        self.process.say("silent").unwrap();
        self.process.event("silent", SOON).unwrap();
    }

    /// What was asked of it during the silence.
    fn answers(&mut self) -> Vec<Value> {
        self.process.say("answer").unwrap();
        self.process.event("answering", SOON).unwrap()["held"].as_array().unwrap().clone()
    }
}

impl Drop for SilentFs {
    fn drop(&mut self) {
        // Killed it cannot do it any more. It fails where it has ended by itself, and then it has done it.
        unmount(&self.mountpoint, UnmountFlags::DETACH).unwrap_or(());
        drop(self.process.kill());
        drop(fs::remove_dir(&self.mountpoint));
    }
}

/// A program that makes traffic, and what it made so far.
struct Target {
    process: FakeTls,
    made: usize,
}

impl Target {
    fn start(executable: &Path) -> Self {
        Self { process: FakeTls::start(executable).unwrap(), made: 0 }
    }

    fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Makes a few streams.
    fn streams(&mut self) {
        self.process.tell("requests 3 2000").unwrap();
        let done = self.process.done_within(SOON).unwrap();
        assert_eq!(done["wrong"], 0, "{done}");
        self.made += done["exchanges"].as_u64().unwrap() as usize;
    }
}

/// One target on a file system that can fall silent, another one elsewhere, and the observer of both. The file system is dropped first, or
/// nothing of what waits for it could be ended.
struct Case {
    fs: SilentFs,
    observer: Option<Observer>,
    on_it: Target,
    elsewhere: Target,
    /// Executables of both.
    executables: [PathBuf; 2],
    place: Place,
}

impl Case {
    fn new(name: &str) -> Self {
        Self::with(name, &[])
    }

    /// With flags for the file system.
    fn with(name: &str, flags: &[&str]) -> Self {
        let place = Place::new(name);
        let [served, elsewhere] = [place.dir.join(name), place.dir.join("elsewhere")];
        fs::create_dir(&served).unwrap();
        for copy in [served.join("on_it"), elsewhere.clone()] {
            fs::copy(env!("CARGO_BIN_EXE_fake_tls"), copy).unwrap();
        }
        let fs = SilentFs::of(&served, flags);
        let on_it = fs.mountpoint.join("on_it");
        // Into the page cache, so that the process can run during the silence.
        assert!(fs::read(&on_it).unwrap().starts_with(b"\x7fELF"));
        let executables = [on_it, elsewhere];
        let [on_it, elsewhere] = executables.each_ref().map(|executable| Target::start(executable));
        Self { fs, observer: None, on_it, elsewhere, executables, place }
    }

    /// Starts the observer of both processes.
    fn observe_processes(&mut self) {
        let pids = [&self.on_it, &self.elsewhere].map(|target| target.pid().to_string());
        self.observer = Some(self.place.observe("observer", &["--pid", &pids[0], "--pid", &pids[1]]));
    }

    /// Starts the observer of all processes of both executables.
    fn observe_executables(&mut self) {
        let [on_it, elsewhere] = self.executables.each_ref().map(|path| path.to_str().unwrap());
        self.observer = Some(self.place.observe("observer", &["--exe", on_it, "--exe", elsewhere]));
    }

    fn observer(&mut self) -> &mut Observer {
        self.observer.as_mut().expect("it was started")
    }

    /// Waits until the observer is attached to one that is elsewhere.
    fn elsewhere_is_attached(&mut self) {
        let pid = self.elsewhere.pid();
        self.observer().attached(pid);
    }

    fn on_it_is_attached(&mut self) {
        let pid = self.on_it.pid();
        self.observer().attached(pid);
    }

    /// Whether the observer has said of the file that it cannot get at it.
    fn it_is_told(&mut self) -> bool {
        let path = self.fs.mountpoint.display().to_string();
        let said = self.observer().said();
        said.lines().any(|line| line.contains("does not answer") && line.contains(&path))
    }

    /// Both make streams; those of `elsewhere` are seen, and the endpoint answers meanwhile.
    fn round(&mut self) {
        self.on_it.streams();
        self.elsewhere.streams();
        let began = Instant::now();
        self.observer().metrics();
        assert!(began.elapsed() < PROMPT, "metrics after {:?}\n{}", began.elapsed(), self.observer().said());
        let (pid, made) = (self.elsewhere.pid(), self.elsewhere.made);
        until("all streams of the other process are seen", || (self.seen(pid).len() == made).then_some(()));
    }

    /// What the observer has reported of a process.
    fn seen(&mut self, pid: u32) -> Vec<Value> {
        lines(&self.observer().jsonl).into_iter().filter(|exchange| exchange["pid"] == pid).collect()
    }

    /// Both are observed: what they make is seen, and is right.
    fn both_are_observed(&mut self) {
        let before = self.on_it.made;
        let pid = self.on_it.pid();
        let already = self.seen(pid).len();
        self.round();
        let more = self.on_it.made - before;
        until("all streams of the process on it are seen", || (self.seen(pid).len() == already + more).then_some(()));
    }

    /// Tells the observer to stop. It is done when its first thread has ended; the kernel keeps a thread that waits for an answer of FUSE,
    /// and the rest of the process with it, until the answer comes, whoever kills it.
    fn stops_in_the_silence(&mut self) {
        let pid = self.observer().process.pid();
        self.observer().process.signal(rustix::process::Signal::TERM);
        until("its first thread has ended", || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            (status.is_empty() || status.contains("State:\tZ")).then_some(())
        });
    }

    /// Ends the observer as a service manager does; all that was seen must be right.
    fn stops_in_order(&mut self) {
        let began = Instant::now();
        let status = self.observer().end(libc::SIGTERM);
        assert!(status.success(), "{status}\n{}", self.observer().said());
        eprintln!("it ended after {:?}", began.elapsed());
        for exchange in lines(&self.observer().jsonl) {
            let found = (&exchange["outcome"], &exchange["output_text"], &exchange["bytes_lost"]);
            assert_eq!(found, (&"completed".into(), &"a".into(), &0.into()), "{exchange}");
        }
    }
}

/// From a start in the silence on: whoever is elsewhere is observed, before it is told of the silence and after.
fn started_in_the_silence(name: &str) -> Case {
    let mut case = Case::new(name);
    case.fs.falls_silent();
    case.observe_processes();
    case.elsewhere_is_attached();
    until("it is told", || {
        case.round();
        case.it_is_told().then_some(())
    });
    let began = Instant::now();
    while began.elapsed() < PROMPT {
        case.round();
    }
    let pid = case.on_it.pid();
    assert!(case.seen(pid).is_empty(), "nobody could look into its file");
    case
}

/// From the end of the silence on.
fn both_are_observed_when_it_answers(case: &mut Case) {
    let held = case.fs.answers();
    assert!(!held.is_empty(), "the observer asked for nothing");
    let began = Instant::now();
    case.on_it_is_attached();
    eprintln!("attached {:?} after the end of the silence, in which it was asked for {held:?}", began.elapsed());
    for _ in 0..3 {
        case.both_are_observed();
    }
    case.stops_in_order();
}

#[test]
fn a_file_system_that_does_not_answer_holds_up_nobody_else() {
    let mut case = started_in_the_silence("does-not-answer");
    case.stops_in_the_silence();
    assert!(!case.fs.answers().is_empty(), "the observer asked for nothing");
    case.stops_in_order();
    let pid = case.elsewhere.pid();
    assert_eq!(case.seen(pid).len(), case.elsewhere.made, "each once");
}

#[test]
fn a_process_is_attached_to_when_the_file_system_of_its_executable_answers_again() {
    let mut case = started_in_the_silence("answers-again");
    both_are_observed_when_it_answers(&mut case);
}

/// Its path is the user's: already its name has to be asked for.
#[test]
fn an_executable_on_a_file_system_that_does_not_answer_is_refused_in_words() {
    let mut case = Case::new("executable");
    case.fs.falls_silent();
    // What it is called is known for a second.
    std::thread::sleep(Duration::from_millis(1500));
    let said = case.place.dir.join("refused.stderr");
    let mut command = Command::new(binary());
    command.args(["run", "--listen", "127.0.0.1:0", "--exe", case.executables[0].to_str().unwrap()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&said).unwrap());
    let mut refused = command.spawn().unwrap();
    until("it says why", || {
        fs::read_to_string(&said).unwrap().contains("its file system does not answer").then_some(())
    });
    case.fs.answers();
    assert_eq!(refused.wait().unwrap().code(), Some(64), "{}", fs::read_to_string(&said).unwrap());
}

/// Also one that loads a library: all files that it has mapped are looked at again then, also that which cannot be opened.
#[test]
fn processes_go_on_being_observed_when_the_file_system_of_their_executable_falls_silent() {
    let mut case = Case::new("falls-silent");
    case.observe_executables();
    case.on_it_is_attached();
    case.elsewhere_is_attached();
    case.both_are_observed();
    case.fs.falls_silent();
    let library = case.place.libssl.display().to_string();
    case.on_it.process.tell(&format!("map {library}")).unwrap();
    case.on_it.process.done().unwrap();
    let attached = format!(" pid={} ", case.on_it.pid());
    until("the library is attached to", || {
        case.both_are_observed();
        let said = case.observer().said();
        said.lines().any(|line| line.contains(&attached) && line.contains(&library)).then_some(())
    });
    // What the observer does every second or every few is done some times.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        case.both_are_observed();
    }
    let (on_it, made) = (case.on_it.pid(), case.on_it.made);
    assert_eq!(case.seen(on_it).len(), made, "each once");
    case.stops_in_order();
    eprintln!("in the silence it was asked for {:?}", case.fs.answers());
}

/// A process that ends closes what it has open, and waits for that; not even SIGKILL ends it then.
#[test]
fn the_observer_stops_though_a_file_system_is_asked_on_close_and_does_not_answer() {
    let mut case = Case::with("asked-on-close", &["asked-on-close"]);
    case.observe_processes();
    case.on_it_is_attached();
    case.elsewhere_is_attached();
    case.both_are_observed();
    case.fs.falls_silent();
    case.both_are_observed();
    case.stops_in_order();
}
