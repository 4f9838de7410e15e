//! `nexent-observer top` in a terminal of its own, beside the real observer and a real client. Needs root, eBPF and
//! `cargo xtask build`.
#![expect(clippy::unwrap_used, reason = "a test that cannot start fails")]

use std::{
    fs::File,
    io::{Read, Write},
    num::NonZeroU16,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use serde_json::json;
use xtask::{sh, stage::Stage};

const SOON: Duration = Duration::from_secs(30);
const ROWS: NonZeroU16 = NonZeroU16::new(30).unwrap();
const COLUMNS: NonZeroU16 = NonZeroU16::new(110).unwrap();
const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}evil\u{202e}\nmodel";

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn binary() -> PathBuf {
    let binary = sh::target_dir(&sh::root().unwrap()).join("release/nexent-observer");
    assert!(binary.exists(), "{} is missing: cargo xtask build", binary.display());
    binary
}

fn stage(name: &str, environment: &[(&str, &str)]) -> (Stage, MutexGuard<'static, ()>) {
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = sh::target_dir(&sh::root().unwrap()).join("top").join(name);
    (Stage::set(&binary(), &dir, &[], environment).unwrap(), alone)
}

fn until<T>(why: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(value) = what() {
            return value;
        }
        assert!(Instant::now() < end, "not within {SOON:?}: {why}");
        thread::sleep(Duration::from_millis(30));
    }
}

/// A program in a terminal of 110 columns and 30 lines.
struct Terminal {
    child: Child,
    master: File,
    slave: OwnedFd,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    fn run(command: &mut Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave: OwnedFd = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap().into();
        tcsetwinsize(&slave, Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 })
            .unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let child = command.env("TERM", "xterm-256color").stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0)));
        let master = File::from(master);
        let (mut from, of) = (master.try_clone().unwrap(), Arc::clone(&screen));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = from.read(&mut bytes) {
                of.lock().unwrap().process(&bytes[..n]);
            }
        });
        Self { child, master, slave, screen }
    }

    fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    fn until(&self, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + SOON;
        loop {
            let text = self.text();
            if wanted(&text) {
                return text;
            }
            assert!(Instant::now() < end, "not within {SOON:?}; the screen shows:\n{text}");
            thread::sleep(Duration::from_millis(30));
        }
    }

    /// Whether lines are edited and shown as they are typed, as a shell needs it.
    fn is_restored(&self) -> bool {
        let modes = tcgetattr(self.slave.as_fd()).unwrap().local_modes;
        let screen = self.screen.lock().unwrap();
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
            && !screen.screen().alternate_screen()
            && !screen.screen().hide_cursor()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn position(text: &str, name: &str) -> Option<usize> {
    text.lines().position(|line| line.contains(name) && !line.contains('Z'))
}

#[test]
fn streams_appear_are_sorted_and_filtered_and_the_terminal_is_as_it_was() {
    let (mut stage, _alone) = stage("screen", &[]);
    let mut command = Command::new(binary());
    let mut terminal = Terminal::run(command.args(["top", "--url", &stage.url()]).env("LC_ALL", "C.UTF-8"));
    terminal.until(|text| text.contains("No LLM call seen yet; 1 processes observed"));
    assert!(!terminal.is_restored(), "it draws on a screen of its own");

    let chat = |model: &str, scenario: &str, chunks: u32, pause: &str| json!({"do": "chat", "background": true, "model": model, "scenario": scenario, "chunks": chunks, "pause_ms": pause});
    stage.tell(&chat("slow-model", "plain", 1000, "300")).unwrap();
    stage.tell(&chat("fast-model", "plain", 100_000, "5")).unwrap();
    stage.tell(&chat(HOSTILE, "plain", 1000, "100")).unwrap();
    let text =
        terminal.until(|text| ["slow-model", "fast-model", "evil"].iter().all(|name| position(text, name).is_some()));
    assert!(text.contains("ready") && text.contains("SILENTv"), "{text}");
    // The escapes did nothing: the first line still stands.
    assert!(text.lines().next().unwrap().contains("nexent-observer"), "{text}");
    assert!(!text.contains('\u{202e}'), "{text}");
    // A spark line has bars.
    terminal.until(|text| text.chars().any(|c| ('▁'..='█').contains(&c)));

    // By chunks: one step to the right of SILENT.
    terminal.press(">");
    terminal.until(|text| text.contains("CHUNKSv") && position(text, "fast-model") < position(text, "slow-model"));
    terminal.press("r");
    terminal.until(|text| text.contains("CHUNKS^") && position(text, "fast-model") > position(text, "slow-model"));
    terminal.press("/slow");
    terminal.until(|text| text.contains("filter: slow_"));
    terminal.press("\r");
    terminal.until(|text| position(text, "slow-model").is_some() && position(text, "fast-model").is_none());
    terminal.press("p");
    terminal.until(|text| text.contains("HELD"));
    terminal.press("p");
    terminal.press("h");
    terminal.until(|text| text.contains("turn the order round"));
    terminal.press("hq");
    let status = until("it ends", || terminal.child.try_wait().unwrap());
    assert!(status.success(), "{status}\n{}", terminal.text());
    until("the terminal is restored", || terminal.is_restored().then_some(()));
}

#[test]
fn it_says_when_the_observer_goes_and_a_signal_restores_the_terminal_too() {
    let (stage, _alone) = stage("gone", &[]);
    let mut command = Command::new(binary());
    let mut terminal = Terminal::run(command.args(["top", "--url", &stage.url()]));
    terminal.until(|text| text.contains("1 processes"));
    drop(stage);
    terminal.until(|text| text.contains("no answer") && text.contains("no observer answers at"));
    let pid = rustix::process::Pid::from_child(&terminal.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    until("it ends", || terminal.child.try_wait().unwrap());
    until("the terminal is restored", || terminal.is_restored().then_some(()));
}

#[test]
fn without_a_terminal_it_is_plain_text_and_the_token_comes_from_the_environment() {
    const TOKEN: &str = "a-token-of-24-characters";
    let (mut stage, _alone) = stage("plain", &[("NEXENT_OBSERVER_WEB_TOKEN", TOKEN)]);
    let top = |url: &str, token: &str| {
        let mut command = Command::new(binary());
        command.args(["top", "--once", "--url", url]).env("NEXENT_OBSERVER_WEB_TOKEN", token).output().unwrap()
    };
    stage.tell(&json!({"do": "chat", "background": true, "model": HOSTILE, "chunks": 5000, "pause_ms": "20"})).unwrap();
    let text = until("a row of the table", || {
        let output = top(&stage.url(), TOKEN);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.contains("evil").then_some(text)
    });
    assert!(text.starts_with("state=ready processes=1 "), "{text}");
    assert!(text.contains("MODEL") && text.contains("shop-assistant"), "{text}");
    assert!(text.lines().all(|line| !line.contains(char::is_control) && !line.contains('\u{202e}')), "{text:?}");

    for (url, token, why) in [
        (stage.url(), "", "wants a token"),
        (stage.url(), "another-token-of-24-chars", "refuses the token"),
        ("http://127.0.0.1:1".to_owned(), "", "no observer answers at http://127.0.0.1:1"),
    ] {
        let output = top(&url, token);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(why) && said.lines().count() == 1, "{said}");
    }
}
