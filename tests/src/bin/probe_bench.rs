//! What the probes cost their target, as ratios within one run: the budgets of docs/overhead.md. Run by `cargo xtask bench`.
//!
//! Every figure is taken in the target itself (tests/src/bin/fake_tls.rs): the median of batches of 200-byte reads. The
//! yardstick is an empty uprobe and uretprobe on the same function.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::programs::{
    UProbe,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope},
};
use nexent_observer::{
    probe::{
        attach::{Attacher, Manner},
        kernel::{KernelHalf, KernelOptions, OBJECT},
        library,
        plan::Program,
    },
    ring::Drain,
};
use nexent_observer_common::counters::Counter;

struct Target {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Target {
    fn start(path: &Path) -> Result<Self> {
        let mut child = Command::new(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let mut target = Self { child, stdin, stdout };
        target.answer()?;
        Ok(target)
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn answer(&mut self) -> Result<serde_json::Value> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Median cost of a read, ns.
    fn time(&mut self) -> Result<f64> {
        writeln!(self.stdin, "time 31 4000")?;
        self.answer()?["median_ns"].as_f64().context("no figure")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Nothing else can be done about a child that does not end.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

const OPTIONS: KernelOptions = KernelOptions {
    read_ring_bytes: 8 << 20,
    write_ring_bytes: 8 << 20,
    write_head_bytes: 32 << 10,
    write_tail_bytes: 64 << 10,
    report_all_execs: false,
    phases: true,
};

/// The whole stage 1 and 2, drained in the background as the observer does.
struct Probed {
    attacher: Attacher,
    stop: Arc<AtomicBool>,
    records: Arc<AtomicU64>,
    drain: Option<thread::JoinHandle<()>>,
}

impl Probed {
    fn start(limit: usize) -> Result<Self> {
        let (kernel, rings) = KernelHalf::load(OPTIONS)?;
        let (stop, records) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&records));
        let drain = thread::spawn(move || {
            let mut drain = Drain::new(rings);
            while !stopped.load(Ordering::Relaxed) {
                let n = drain.run(|event| {
                    std::hint::black_box(event);
                });
                counted.fetch_add(n as u64, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(10));
            }
        });
        Ok(Self { attacher: Attacher::new(kernel, limit)?, stop, records, drain: Some(drain) })
    }

    fn lost(&mut self) -> Result<u64> {
        let kernel = self.attacher.kernel();
        Ok(kernel.counter(Counter::ReadLost)? + kernel.counter(Counter::WriteLost)?)
    }
}

impl Drop for Probed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(drain) = self.drain.take() {
            drop(drain.join());
        }
    }
}

/// Attaches the empty pair to the read function of one process; detached when the result is dropped.
fn empty_pair(path: &Path, pid: u32) -> Result<aya::Ebpf> {
    let plan = library::plan_of_path(path, None)?.context("no hook points")?;
    let hooks = plan.implementations.iter().flat_map(|implementation| &implementation.hooks);
    let hook = hooks.clone().find(|hook| hook.program == Program::Read).context("no read")?;
    let mut ebpf = aya::EbpfLoader::new().load(OBJECT)?;
    for name in ["empty_return", "empty_enter"] {
        let program: &mut UProbe = ebpf.program_mut(name).context("no yardstick")?.try_into()?;
        program.load()?;
        let point = UProbeAttachPoint { location: UProbeAttachLocation::AbsoluteOffset(hook.offset), cookie: None };
        program.attach(point, path, UProbeScope::OneProcess(pid.try_into()?))?;
    }
    Ok(ebpf)
}

/// A copy of the target with an inode of its own, so that attachments to one target cost no other.
fn copy_of(path: &Path, name: &str) -> Result<PathBuf> {
    let copy = path.with_file_name(format!("fake_tls-{name}"));
    // Removed first: a running copy of an earlier run must not be written to.
    drop(std::fs::remove_file(&copy));
    std::fs::copy(path, &copy)?;
    Ok(copy)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Rounds; in each, every target is timed once, so that all see the same machine.
const ROUNDS: usize = 15;
const WORKERS: usize = 64;

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).map(PathBuf::from).context("usage: probe_bench PATH_OF_FAKE_TLS")?;
    let mut bare = Target::start(&copy_of(&path, "bare")?)?;
    let empty_path = copy_of(&path, "empty")?;
    let mut empty = Target::start(&empty_path)?;
    let one_path = copy_of(&path, "one")?;
    let (mut one, mut neighbour) = (Target::start(&one_path)?, Target::start(&one_path)?);
    let many_path = copy_of(&path, "many")?;
    let mut workers = (0..WORKERS).map(|_| Target::start(&many_path)).collect::<Result<Vec<_>>>()?;

    let _empty_probes = empty_pair(&empty_path, empty.pid())?;
    let mut probed = Probed::start(8)?;
    probed.attacher.attach(one.pid(), Manner::Own, None)?;
    for worker in &workers {
        probed.attacher.attach(worker.pid(), Manner::Own, None)?;
    }
    probed.attacher.tidy();
    thread::sleep(Duration::from_secs(12)); // the probes of the scope that was left are removed in the background

    let mut figures: [Vec<f64>; 5] = Default::default();
    for _ in 0..ROUNDS {
        let worker = workers.first_mut().context("workers")?;
        let values = [bare.time()?, empty.time()?, one.time()?, worker.time()?, neighbour.time()?];
        for (all, value) in figures.iter_mut().zip(values) {
            all.push(value);
        }
    }
    let lost = probed.lost()?;
    ensure!(probed.records.load(Ordering::Relaxed) > 0, "no records came: nothing was measured");

    let [bare, empty, one, many, neighbour] = figures;
    let over_empty = |of: &[f64]| {
        let ratios = of.iter().zip(&empty).zip(&bare).map(|((of, empty), bare)| (of - bare) / (empty - bare));
        median(ratios.collect())
    };
    let figures = serde_json::json!({
        "one_process_ratio": over_empty(&one),
        "workers_64_ratio": over_empty(&many),
        "not_attached_ratio": median(neighbour.iter().zip(&bare).map(|(n, b)| n / b).collect()),
        "bare_ns": median(bare),
        "empty_pair_ns": median(empty),
        "one_process_ns": median(one),
        "workers_64_ns": median(many),
        "lost": lost,
    });
    writeln!(std::io::stdout(), "{figures}")?;
    Ok(())
}
