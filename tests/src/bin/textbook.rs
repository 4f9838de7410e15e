//! The user half of the textbook configuration (`tests/textbook`): attaches it to a process, prints every event with its bytes, as `sslsniff`
//! and the script for bpftrace do. Run by `cargo xtask bench --only others`.
#![expect(unsafe_code, reason = "poll of libc, over file descriptors that this program holds")]

use std::{
    io::{self, BufWriter, Write},
    os::fd::AsRawFd,
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use aya::{
    maps::perf::{PerfEvent, PerfEventArray},
    programs::{UProbe, uprobe::UProbeScope},
    util::online_cpus,
};

/// Pages of the buffer of each CPU: 256 KiB, eight times bcc's default.
const PAGES: usize = 64;
/// Of an event: time, task, length, kind; then the bytes of the call, then padding.
const HEADER: usize = 24;
/// Program, function.
const PROBES: [(&str, &str); 4] = [
    ("read_return", "SSL_read"),
    ("write_return", "SSL_write"),
    ("read_enter", "SSL_read"),
    ("write_enter", "SSL_write"),
];

fn main() -> Result<()> {
    let usage = "usage: textbook OBJECT PID LIBRARY";
    let mut arguments = std::env::args_os().skip(1);
    let mut next = || arguments.next().context(usage);
    let (object, pid, library) = (PathBuf::from(next()?), next()?, PathBuf::from(next()?));
    let pid: u32 = pid.to_string_lossy().parse().context(usage)?;
    let mut ebpf = aya::EbpfLoader::new().load_file(&object).with_context(|| object.display().to_string())?;
    let events = ebpf.take_map("EVENTS").context("no map of events")?;
    let mut events = PerfEventArray::try_from(events)?;
    let cpus = online_cpus().map_err(|(_, error)| error).context("which CPUs are there")?;
    let mut buffers = cpus.iter().map(|cpu| events.open(*cpu, Some(PAGES))).collect::<Result<Vec<_>, _>>()?;
    for (program, function) in PROBES {
        let program: &mut UProbe = ebpf.program_mut(program).context("no program")?.try_into()?;
        program.load()?;
        program.attach(function, &library, UProbeScope::OneProcess(pid.try_into()?))?;
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let mut polled: Vec<libc::pollfd> = buffers
        .iter()
        .map(|buffer| libc::pollfd { fd: buffer.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    loop {
        // SAFETY: the array is there for the whole call, and has as many entries as it is told.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
        ensure!(ready > 0, "poll: {}", io::Error::last_os_error());
        for buffer in &mut buffers {
            buffer.for_each(|event| match event {
                PerfEvent::Sample { head, tail } => {
                    let event = [head, tail].concat();
                    // A reader that went away is seen at the flush.
                    drop(print(&mut out, &event));
                }
                PerfEvent::Lost { count } => drop(writeln!(io::stderr(), "lost {count}")),
            });
        }
        out.flush()?;
    }
}

/// One line with the bytes of the call behind it.
fn print(out: &mut impl Write, event: &[u8]) -> io::Result<()> {
    let word = |at: usize| event.get(at..at + 4).and_then(|it| it.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let (length, kind) = (word(16), if word(20) == 0 { "READ" } else { "WRITE" });
    let copied = event.get(HEADER..).unwrap_or_default();
    writeln!(out, "{kind} {} {length}", word(12))?;
    out.write_all(&copied[..copied.len().min(length as usize)])?;
    out.write_all(b"\n")
}
