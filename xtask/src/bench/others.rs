//! The observer beside what else reads the same calls: its own probes in a textbook configuration, bcc's `sslsniff`, and a textbook script for
//! `bpftrace`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use xtask::{process::Guarded, server::Certificate, sh, soak::breakpoints};

use super::{
    Bench, build,
    figure::Figure,
    sink::Sink,
    watched::{Watcher, cpu_ns},
};

/// Until something has started or ended.
const PATIENCE: Duration = Duration::from_secs(90);
/// The steady load: chunks, and how many a second.
const STEADY: (u64, u64) = (8000, 2000);
/// The fast one: chunks, as fast as they go.
const FAST: u64 = 30_000;
/// Rounds, of which the better CPU and the worse loss count: neighbours only ever add to CPU.
const ROUNDS: usize = 2;
/// Both programs want a tracefs, and bcc the headers of a kernel: in a mount namespace of their own, so that nothing of the machine changes.
/// Where the headers of the running kernel are missing, Debian's serve: nothing that differs is used.
const NAMESPACE: &str = "mount -t tracefs none /sys/kernel/tracing || exit 1
here=/lib/modules/$(uname -r)
if ! [ -e $here/build ]; then
  mount -t tmpfs none /lib/modules && mkdir $here || exit 1
  for headers in /usr/src/linux-headers-*-common; do ln -sfn $headers $here/source; done
  for headers in /usr/src/linux-headers-*-[!c]*[!n]; do ln -sfn $headers $here/build; done
fi
exec \"$@\"";
/// bcc 0.26 does not compile with the `min` of newer headers; this puts a plain one in its place.
const MIN: (&str, &str) =
    ("#include <linux/sched.h>", "#undef min\n#define min(x, y) ((x) < (y) ? (x) : (y))\n#include <linux/sched.h>");

/// What reads the target's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Nothing,
    Observer,
    Textbook,
    Sslsniff,
    Bpftrace,
}

/// A reader, and the names of its figures: CPU of the target, its own, events lost.
const READERS: &[(Reader, [&str; 3])] = &[
    (Reader::Nothing, ["target's CPU per read, nobody reads along", "", ""]),
    (
        Reader::Observer,
        ["target's CPU per read, nexent-observer", "nexent-observer, CPU per read", "nexent-observer, events lost"],
    ),
    (
        Reader::Textbook,
        ["target's CPU per read, textbook probes", "textbook probes, CPU per read", "textbook probes, events lost"],
    ),
    (
        Reader::Sslsniff,
        ["target's CPU per read, sslsniff (bcc)", "sslsniff (bcc), CPU per read", "sslsniff (bcc), events lost"],
    ),
    (Reader::Bpftrace, ["target's CPU per read, bpftrace", "bpftrace, CPU per read", "bpftrace, events lost"]),
];

/// What a round came to.
#[derive(Debug, Clone, Copy)]
struct Taken {
    /// CPU time of the target for each read of the steady load, us.
    target_us: f64,
    /// Likewise of the reader.
    reader_us: f64,
    /// Events that were made, and that did not come out of the reader.
    made: f64,
    lost: f64,
}

/// Measures one after the other, in turns.
pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    for (program, packages) in [
        ("bpftrace", &["bpftrace"] as &[&str]),
        ("sslsniff-bpfcc", &["bpfcc-tools", "python3-bpfcc", "linux-headers-amd64"]),
    ] {
        if !sh::succeeds(Command::new("sh").args(["-c", &format!("command -v {program}")])) {
            sh::say(&format!("installing the Debian packages {}: they are measured, too", packages.join(", ")));
            sh::apt_install(packages)?;
        }
    }
    let mut all: Vec<Vec<Result<Taken>>> = READERS.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for ((reader, _), taken) in READERS.iter().zip(&mut all) {
            taken.push(measure(bench, *reader));
        }
    }
    let mut figures = Vec::new();
    for ((reader, names), rounds) in READERS.iter().zip(all) {
        // One that cannot run here is a finding, and said; the observer has to.
        let rounds: Result<Vec<Taken>> = rounds.into_iter().collect();
        match rounds {
            Ok(rounds) => figures.extend(of(*reader, names, &rounds)),
            Err(error) if matches!(reader, Reader::Sslsniff | Reader::Bpftrace) => {
                let how =
                    format!("It does not run on this machine: {}", format!("{error:#}").replace(['\n', '|'], " "));
                figures.push(Figure::reported(names[0], f64::NAN, "us", how));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(figures)
}

/// The figures of a reader.
fn of(reader: Reader, names: &[&'static str; 3], rounds: &[Taken]) -> Vec<Figure> {
    let least = |value: fn(&Taken) -> f64| rounds.iter().map(value).fold(f64::INFINITY, f64::min);
    let how = match reader {
        Reader::Nothing => format!(
            "A client of the system's libssl that calls SSL_read for each of {} TLS records of 180 bytes, {} a second; its own clock of CPU time. The better of {ROUNDS} rounds.",
            STEADY.0, STEADY.1
        ),
        Reader::Observer => "The same, with `run --pid`, metrics, JSON lines and spans.".to_owned(),
        Reader::Textbook => {
            "The same, with tests/textbook: SSL_read and SSL_write at their first instruction, whole buffers, a wake-up for each event, its output to a file."
                .to_owned()
        }
        Reader::Sslsniff => "The same, with bcc's `sslsniff --pid`, its output to a file.".to_owned(),
        Reader::Bpftrace => "The same, with tests/fixtures/others/textbook.bt, its output to a file.".to_owned(),
    };
    let mut figures = vec![Figure::reported(names[0], least(|taken| taken.target_us), "us", how)];
    if reader != Reader::Nothing {
        let worst = rounds.iter().map(|taken| taken.lost).fold(0.0, f64::max);
        let made = rounds.first().map_or(0.0, |taken| taken.made);
        figures.push(Figure::reported(
            names[1],
            least(|taken| taken.reader_us),
            "us",
            "Time on a CPU of all its threads in that load.",
        ));
        let how = format!(
            "Of {made} reads: the steady load, and {FAST} records as fast as the server sends them. The worse of {ROUNDS} rounds."
        );
        figures.push(Figure::reported(names[2], worst, "", how));
    }
    figures
}

/// The client, its server, and the copy of libssl that it uses, so that probes on it cost nobody else.
struct Target {
    _server: Guarded,
    client: Guarded,
    libssl: PathBuf,
    reads: u64,
    chunks: u64,
}

impl Target {
    fn start(dir: &Path) -> Result<Self> {
        let script = sh::fixture("others/stream.py")?;
        let Certificate { cert, key } = Certificate::make(dir)?;
        let server = Guarded::talking(
            "the server of records",
            Command::new("python3").arg(&script).arg("serve").arg(cert).arg(key),
        )?;
        let port = server.event("listening", PATIENCE)?["port"].to_string();
        let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
        let system = places.iter().map(|place| Path::new(place).join("libssl.so.3")).find(|path| path.exists());
        let libssl = dir.join("libssl.so.3");
        fs::copy(system.context("there is no libssl.so.3")?, &libssl).context("cannot copy libssl")?;
        let client = Guarded::talking(
            "the client of records",
            Command::new("python3").arg(&script).args(["read", &port]).arg(&libssl),
        )?;
        client.event("ready", PATIENCE)?;
        Ok(Self { _server: server, client, libssl, reads: 0, chunks: 0 })
    }

    /// One answer of so many chunks; CPU time of the client for each read, us.
    fn stream(&mut self, chunks: u64, rate: u64) -> Result<f64> {
        self.client.say(&format!("{chunks} {rate}"))?;
        let done = self.client.event("done", PATIENCE)?;
        let reads = done["reads"].as_u64().context("the client counts its reads")?;
        (self.reads, self.chunks) = (self.reads + reads, self.chunks + chunks);
        Ok(done["cpu_s"].as_f64().context("the client knows its CPU time")? * 1e6 / reads as f64)
    }
}

fn measure(bench: &Bench, reader: Reader) -> Result<Taken> {
    let dir = bench.dir.join("others").join(format!("{reader:?}").to_lowercase());
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut target = Target::start(&dir)?;
    let pid = target.client.pid().to_string();
    match reader {
        Reader::Nothing => {
            target.stream(500, STEADY.1)?;
            let target_us = target.stream(STEADY.0, STEADY.1)?;
            Ok(Taken { target_us, reader_us: f64::NAN, made: f64::NAN, lost: f64::NAN })
        }
        Reader::Observer => {
            let sink = Sink::start()?;
            let watcher = Watcher::start(&bench.observer, &["--pid", &pid], &dir, &sink)?;
            let (target_us, reader_us) = load(&mut target, || watcher.cpu_ns())?;
            let lost = target.chunks as f64 - watcher.sum("nexent_observer_chunks_total")?;
            let told = watcher.stop()?;
            ensure!(told.len() == 3, "three answers were made, {} are told", told.len());
            Ok(Taken { target_us, reader_us, made: target.reads as f64, lost })
        }
        Reader::Textbook | Reader::Sslsniff | Reader::Bpftrace => other(bench, &mut target, reader, &dir),
    }
}

/// The steady load and the fast one: CPU per read of the former, of target and reader, us.
fn load(target: &mut Target, cpu_ns: impl Fn() -> Result<f64>) -> Result<(f64, f64)> {
    target.stream(500, STEADY.1)?;
    thread::sleep(Duration::from_secs(1));
    let (before, reads) = (cpu_ns()?, target.reads);
    let target_us = target.stream(STEADY.0, STEADY.1)?;
    // What it still has to do with that.
    thread::sleep(Duration::from_secs(1));
    let reader_us = (cpu_ns()? - before) / 1e3 / (target.reads - reads) as f64;
    target.stream(FAST, 0)?;
    thread::sleep(Duration::from_secs(2));
    Ok((target_us, reader_us))
}

/// Another program.
fn other(bench: &Bench, target: &mut Target, reader: Reader, dir: &Path) -> Result<Taken> {
    let (out, errors) = (dir.join("out"), dir.join("errors"));
    let (pid, libssl) = (target.client.pid(), target.libssl.to_string_lossy().into_owned());
    let mut command =
        Command::new(if reader == Reader::Textbook { bench.textbook.as_os_str() } else { "unshare".as_ref() });
    if reader != Reader::Textbook {
        command.args(["--mount", "sh", "-c", NAMESPACE, "sh"]);
    }
    if reader == Reader::Textbook {
        command.arg(build::textbook(&bench.root)?).arg(pid.to_string()).arg(&libssl);
    } else if reader == Reader::Sslsniff {
        let program = fs::read_to_string("/usr/sbin/sslsniff-bpfcc").context("cannot read sslsniff")?;
        let copy = dir.join("sslsniff.py");
        fs::write(&copy, program.replacen(MIN.0, MIN.1, 1)).context("cannot write a copy of sslsniff")?;
        command.arg("/usr/bin/python3").arg(copy).args(["--pid", &pid.to_string(), "-o", "-g", "-n", "--extra-lib"]);
        command.arg(format!("openssl:{libssl}"));
    } else {
        let script = fs::read_to_string(sh::fixture("others/textbook.bt")?).context("cannot read the script")?;
        let copy = dir.join("textbook.bt");
        fs::write(&copy, script.replace("PATH", &libssl)).context("cannot write the script")?;
        command.args(["bpftrace", "-p", &pid.to_string()]).arg(copy);
    }
    let file = |path: &Path| File::create(path).with_context(|| format!("cannot write {}", path.display()));
    let mut process = Guarded::spawn(&format!("{reader:?}"), command.stdout(file(&out)?).stderr(file(&errors)?))?;
    let said = || fs::read_to_string(&errors).unwrap_or_default();
    // Attached when the number of breakpoints does not change any more.
    let (end, mut last, mut since) = (Instant::now() + PATIENCE, 0, Instant::now());
    while last == 0 || since.elapsed() < Duration::from_secs(2) {
        if process.ended()?.is_some() || Instant::now() > end {
            bail!("{}", first_error(&said()));
        }
        let now = breakpoints(pid, &target.libssl)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        thread::sleep(Duration::from_millis(50));
    }
    let number = process.pid();
    let (target_us, reader_us) = load(target, || cpu_ns(number))?;
    process.interrupt()?;
    let text = fs::read(&out).context("cannot read what it wrote")?;
    let seen = text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"READ")).count();
    Ok(Taken { target_us, reader_us, made: target.reads as f64, lost: target.reads as f64 - seen as f64 })
}

/// The line of a program's errors that says most.
fn first_error(text: &str) -> &str {
    let lines = || text.lines().filter(|line| !line.trim().is_empty());
    lines()
        .find(|line| line.to_lowercase().contains("error"))
        .or_else(|| lines().next_back())
        .unwrap_or("it said nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_better_cpu_and_the_worse_loss_count() {
        let round = |target_us, lost| Taken { target_us, reader_us: 1.0, made: 10.0, lost };
        let figures = of(Reader::Bpftrace, &["a", "b", "c"], &[round(2.0, 0.0), round(1.0, 3.0)]);
        assert_eq!(figures.iter().map(|figure| figure.value).collect::<Vec<_>>(), [1.0, 1.0, 3.0]);
    }

    #[test]
    fn an_error_is_found_among_other_lines() {
        assert_eq!(first_error("sh: modprobe\nx: error: y\nTraceback\n"), "x: error: y");
        assert_eq!(first_error("a\nb\n\n"), "b");
        assert_eq!(first_error(""), "it said nothing");
    }
}
