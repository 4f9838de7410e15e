//! Takes probes away in threads of its own. Each waits for the kernel, up to 250 ms: not in the loop that drains the rings, and side by
//! side, or it would take half a minute to leave a dozen processes. Those come first on whose file somebody waits to write.

use std::{
    any::Any,
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread::{self, JoinHandle},
};

use super::{kernel::Attached, lease::HookedFile};
use crate::privileges;

/// Threads. They wait for the kernel nearly all the time, for the same grace periods.
const THREADS: usize = 8;

/// What is taken away by being dropped.
struct Dead {
    #[expect(dead_code, reason = "held for its Drop")]
    what: Box<dyn Any + Send>,
    /// The file of a probe.
    file: Option<Weak<HookedFile>>,
}

/// Those that wait.
#[derive(Default)]
struct Queue {
    dead: VecDeque<Dead>,
    /// No more come.
    closed: bool,
}

impl Queue {
    /// The next one.
    fn take(&mut self) -> Option<Dead> {
        let is_awaited = |dead: &Dead| {
            let file = dead.file.as_ref().and_then(Weak::upgrade);
            file.is_some_and(|file| file.is_awaited())
        };
        let first = if self.dead.len() > 1 { self.dead.iter().position(is_awaited) } else { None };
        self.dead.remove(first.unwrap_or(0))
    }
}

/// The threads.
pub(super) struct Undertaker {
    shared: Arc<(Mutex<Queue>, Condvar)>,
    threads: Vec<JoinHandle<()>>,
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Undertaker {
    /// Starts them.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::<(Mutex<Queue>, Condvar)>::default();
        let threads = (0..THREADS)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::Builder::new().name("detach".to_owned()).spawn(move || {
                    privileges::shed();
                    bury_all(&shared);
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { shared, threads })
    }

    /// Takes a probe away in one of the threads. `with` is dropped then as well.
    pub(super) fn bury(&self, probe: Attached, with: impl Send + 'static) {
        let file = Some(Arc::downgrade(probe.file()));
        self.push(Dead { what: Box::new((probe, with)), file });
    }

    /// Drops this in one of the threads.
    pub(super) fn bury_links(&self, links: impl Send + 'static) {
        self.push(Dead { what: Box::new(links), file: None });
    }

    fn push(&self, dead: Dead) {
        lock(&self.shared.0).dead.push_back(dead);
        self.shared.1.notify_one();
    }

    /// Waits until all is taken away.
    pub(super) fn finish(&mut self) {
        lock(&self.shared.0).closed = true;
        self.shared.1.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("A thread that removes probes has failed.");
            }
        }
    }
}

/// Until no more come.
fn bury_all((queue, more): &(Mutex<Queue>, Condvar)) {
    let mut waiting = lock(queue);
    loop {
        match waiting.take() {
            Some(dead) => {
                drop(waiting);
                drop(dead);
                waiting = lock(queue);
            }
            None if waiting.closed => return,
            None => waiting = more.wait(waiting).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File, OpenOptions},
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn who_waits_to_write_waits_for_no_other_file() {
        let dir = std::env::temp_dir();
        let path = |name: &str| dir.join(format!("nexent-observer-{name}-{}", std::process::id()));
        let hooked = |name: &str| {
            fs::write(path(name), name).unwrap();
            let (file, lease) = HookedFile::leased(File::open(path(name)).unwrap()).unwrap();
            assert_eq!(lease, crate::probe::lease::Lease::Taken);
            Arc::new(file)
        };
        // A lease that ends is told by a signal, which would end this process.
        drop(signal_hook::low_level::pipe::register(libc::SIGIO, std::os::unix::net::UnixStream::pair().unwrap().0));
        let (quiet, awaited) = (hooked("quiet"), hooked("awaited"));
        let mut queue = Queue::default();
        for file in [&quiet, &quiet, &awaited, &quiet] {
            queue.dead.push_back(Dead { what: Box::new(()), file: Some(Arc::downgrade(file)) });
        }
        queue.dead.push_front(Dead { what: Box::new("links"), file: None });
        let is_of = |dead: &Option<Dead>, file: &Arc<HookedFile>| {
            dead.as_ref().and_then(|dead| dead.file.as_ref()).is_some_and(|weak| weak.as_ptr() == Arc::as_ptr(file))
        };
        let opened = path("awaited");
        let writer = thread::spawn(move || OpenOptions::new().write(true).open(opened).unwrap());
        let until = Instant::now() + Duration::from_secs(20);
        while !awaited.is_awaited() {
            assert!(Instant::now() < until, "nobody waits");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(is_of(&queue.take(), &awaited), "first");
        assert!(queue.take().unwrap().file.is_none(), "then in turn");
        assert!(is_of(&queue.take(), &quiet) && queue.dead.len() == 2 && !quiet.is_awaited());
        drop(awaited);
        writer.join().unwrap();
        for name in ["quiet", "awaited"] {
            fs::remove_file(path(name)).unwrap();
        }
    }
}
