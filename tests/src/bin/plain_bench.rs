//! What observing plain HTTP costs everybody else: an unrelated system call, and a call on a socket, in a process that is not
//! observed, without and with the tracepoints; and what phases cost them. Run by `cargo xtask bench --only plain`.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nexent_observer::probe::{
    attach::{Attacher, Manner},
    kernel::{KernelHalf, KernelOptions},
    plain::PlainHttp,
};

const OPTIONS: KernelOptions = KernelOptions {
    read_ring_bytes: 64 << 10,
    write_ring_bytes: 64 << 10,
    write_head_bytes: 32 << 10,
    write_tail_bytes: 64 << 10,
    report_all_execs: false,
    phases: true,
};

/// Rounds; in each, everything is timed without and with the tracepoints, so that both see the same machine.
const ROUNDS: usize = 7;
/// Batches of a timing, of which the median counts, and calls in each.
const BATCHES: usize = 301;
const CALLS: u32 = 200;
/// The tracepoints are removed in the background.
const REMOVED_AFTER: Duration = Duration::from_millis(1000);

/// A process that does nothing: the one that is observed.
struct Idle(Child);

impl Drop for Idle {
    fn drop(&mut self) {
        // Nothing else can be done about a child that does not end.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Cost of one call, ns.
fn time(mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut batches = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let begin = Instant::now();
        for _ in 0..CALLS {
            call()?;
        }
        batches.push(begin.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    Ok(median(batches))
}

/// A system call that has nothing to do with sockets.
fn unrelated() -> Result<f64> {
    time(|| {
        // SAFETY: no arguments, no memory.
        ensure!(unsafe { libc::syscall(libc::SYS_getppid) } > 0, "no parent");
        Ok(())
    })
}

/// One write and one read of 200 bytes on a pair of sockets; the cost of one of the two.
fn socket<S: Read + Write>(pair: &mut (S, S)) -> Result<f64> {
    let (one, other) = pair;
    let mut bytes = [b'x'; 200];
    let both = time(|| {
        one.write_all(&bytes)?;
        other.read_exact(&mut bytes)?;
        Ok(())
    })?;
    Ok(both / 2.0)
}

/// Two ends of a TCP connection over loopback.
fn tcp_pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    one.set_nodelay(true)?;
    Ok((one, listener.accept()?.0))
}

fn main() -> Result<()> {
    let idle = Idle(Command::new("sleep").arg("600").spawn().context("sleep")?);
    let (kernel, _rings) = KernelHalf::load(OPTIONS)?;
    let mut attacher = Attacher::new(kernel, 8)?.with_plain_http(PlainHttp::On);
    let mut pair = UnixStream::pair()?;
    let mut figures: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let (call_off, socket_off) = (unrelated()?, socket(&mut pair)?);
        let report = attacher.attach(idle.0.id(), Manner::Own, None)?;
        ensure!(report.plain, "the tracepoints were not attached: nothing would be measured");
        let (call_on, socket_on) = (unrelated()?, socket(&mut pair)?);
        attacher.detach(idle.0.id());
        attacher.tidy();
        thread::sleep(REMOVED_AFTER);
        for (all, value) in figures.iter_mut().zip([call_off, call_on, socket_off, socket_on]) {
            all.push(value);
        }
    }
    let (mut phases, _rings) = KernelHalf::load(OPTIONS)?;
    let mut pair = tcp_pair()?;
    let (mut tcp_off, mut tcp_on) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        tcp_off.push(socket(&mut pair)?);
        let links = phases.attach_phases()?;
        ensure!(links.count() == 6, "not all tracepoints were attached");
        tcp_on.push(socket(&mut pair)?);
        drop(links);
        thread::sleep(REMOVED_AFTER);
    }
    let added = |on: &[f64], off: &[f64]| median(on.iter().zip(off).map(|(on, off)| on - off).collect());
    let ratio = |on: &[f64], off: &[f64]| median(on.iter().zip(off).map(|(on, off)| on / off).collect());
    let [call_off, call_on, socket_off, socket_on] = figures;
    let figures = serde_json::json!({
        "call_added_ns": added(&call_on, &call_off),
        "call_ratio": ratio(&call_on, &call_off),
        "socket_added_ns": added(&socket_on, &socket_off),
        "socket_ratio": ratio(&socket_on, &socket_off),
        "phases_added_ns": added(&tcp_on, &tcp_off),
        "phases_ratio": ratio(&tcp_on, &tcp_off),
        "tcp_ns": median(tcp_off),
        "call_ns": median(call_off),
        "socket_ns": median(socket_off),
    });
    writeln!(std::io::stdout(), "{figures}")?;
    Ok(())
}
