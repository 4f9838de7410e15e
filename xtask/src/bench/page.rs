//! What the live page costs the observer: its CPU at load with the page closed, open once, and open five times.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Bench,
    figure::Figure,
    sink::Sink,
    watched::{FakeTls, Watcher},
};

/// How many have the page open; taken in turns within one load.
const OPEN: [usize; 3] = [0, 1, 5];
const ROUNDS: usize = 4;
/// Until streams, and after them the history, are as they are from then on: 500 calls are kept, 40 end each second.
const WARM_UP: Duration = Duration::from_secs(14);
/// From the opening to the window: the first event is the largest.
const SETTLE: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(5);
/// Names of the figures, in the order of [`OPEN`].
const NAMES: [&str; 3] = [
    "observer, CPU with the page closed",
    "observer, CPU with the page open",
    "observer, CPU with the page open 5 times",
];

/// A client of `/api/live` that does with it what the page's script does: it takes every event.
struct Page {
    stream: TcpStream,
    /// Events and bytes that came.
    thread: JoinHandle<(u64, u64)>,
}

impl Page {
    fn open(address: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(address).context("cannot open the page's stream")?;
        write!(stream, "GET /api/live HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\r\n")?;
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, thread: thread::spawn(move || events(reader)) })
    }

    fn close(self) -> Result<(u64, u64)> {
        // The other side may have closed it already.
        self.stream.shutdown(Shutdown::Both).unwrap_or(());
        self.thread.join().map_err(|_| anyhow::anyhow!("the page's reader failed"))
    }
}

fn events(mut reader: impl BufRead) -> (u64, u64) {
    let (mut line, mut events, mut bytes) = (Vec::new(), 0, 0);
    while let Ok(n @ 1..) = reader.read_until(b'\n', &mut line) {
        bytes += n as u64;
        events += u64::from(line.starts_with(b"event: "));
        line.clear();
    }
    (events, bytes)
}

/// CPU of the observer with as many pages open, at the load of the group `cpu`.
pub(super) fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let sink = Sink::start()?;
    let mut target = FakeTls::start(&bench.fake_tls)?;
    let watcher = Watcher::start(&bench.observer, &["--pid", &target.pid().to_string()], &bench.dir, &sink)?;
    let windows = u32::try_from(ROUNDS * OPEN.len())?;
    let whole = WARM_UP + windows * (SETTLE + WINDOW);
    let seconds = whole.as_secs() + 2;
    target.tell(&format!("load 200 100 {seconds}"))?;
    thread::sleep(WARM_UP);
    let mut cpu: [Vec<f64>; 3] = Default::default();
    let mut came = (0, 0);
    for _ in 0..ROUNDS {
        for (open, taken) in OPEN.into_iter().zip(&mut cpu) {
            let pages = (0..open).map(|_| Page::open(watcher.listen)).collect::<Result<Vec<_>>>()?;
            thread::sleep(SETTLE);
            let (from, before) = (Instant::now(), watcher.cpu_ns()?);
            thread::sleep(WINDOW);
            taken.push((watcher.cpu_ns()? - before) / from.elapsed().as_nanos() as f64 * 100.0);
            for page in pages {
                let (events, bytes) = page.close()?;
                ensure!(events >= WINDOW.as_secs(), "an open page got {events} events in {WINDOW:?}");
                came = (came.0 + events, came.1 + bytes);
            }
        }
    }
    let made = target.done_within(whole)?;
    let lost = watcher.sum("nexent_observer_lost_records_total")?;
    watcher.stop()?;
    let [closed, once, five] = cpu.map(median);
    let how = format!(
        "200 streams of 100 chunks a second ({} chunks in {:.1} s), 500 calls kept, as in the group cpu; in turns with the page open within one run, the median of {ROUNDS} windows of {} s.",
        made["chunks"],
        made["seconds"].as_f64().unwrap_or(f64::NAN),
        WINDOW.as_secs(),
    );
    let each = format!(
        "Clients of /api/live that take every event, as the page does: {} events of {:.1} KB on average.",
        came.0,
        came.1 as f64 / came.0 as f64 / 1e3,
    );
    Ok(vec![
        Figure::reported(NAMES[0], closed, "% of a core", how),
        Figure::reported(NAMES[1], once, "% of a core", each),
        Figure::reported(NAMES[2], five, "% of a core", "The same."),
        Figure::reported(
            "lost with the page open",
            lost,
            "",
            "Records lost as counted by the kernel half, in all of it.",
        ),
    ])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let pair = [values.get(middle.saturating_sub(1 - values.len() % 2)), values.get(middle)];
    pair.into_iter().flatten().sum::<f64>() / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_by_their_first_lines() {
        let text =
            "HTTP/1.1 200 OK\r\n\r\n1f\r\nevent: whole\ndata: {\"event: more\"}\n\n\r\n1\r\nevent: more\ndata: {}\n\n";
        assert_eq!(events(text.as_bytes()), (2, text.len() as u64));
    }

    #[test]
    fn a_median_of_an_even_number_lies_in_the_middle() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![5.0]), 5.0);
    }
}
