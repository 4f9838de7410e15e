//! Takes probes away in threads of its own. Each waits for the kernel, up to 250 ms: not in the loop that drains the rings, and side by
//! side, or it would take half a minute to leave a dozen processes.

use std::{
    any::Any,
    io,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use crate::privileges;

/// Threads. They wait for the kernel nearly all the time, for the same grace periods.
const THREADS: usize = 8;

/// What is taken away by being dropped.
type Dead = Box<dyn Any + Send>;

/// The threads.
#[derive(Debug)]
pub(super) struct Undertaker {
    dead: Option<mpsc::Sender<Dead>>,
    threads: Vec<JoinHandle<()>>,
}

impl Undertaker {
    /// Starts them.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn start() -> io::Result<Self> {
        let (dead, coming) = mpsc::channel::<Dead>();
        let coming = Arc::new(Mutex::new(coming));
        let threads = (0..THREADS)
            .map(|_| {
                let coming = Arc::clone(&coming);
                thread::Builder::new().name("detach".to_owned()).spawn(move || {
                    privileges::shed();
                    loop {
                        // The lock is given back before the next one is dropped.
                        let next = coming.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        match next {
                            Ok(dead) => drop(dead),
                            Err(_) => return,
                        }
                    }
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { dead: Some(dead), threads })
    }

    /// Drops this in one of the threads.
    pub(super) fn bury(&self, dead: impl Send + 'static) {
        // When all of them have ended it is dropped here.
        if self.dead.as_ref().is_none_or(|threads| threads.send(Box::new(dead)).is_err()) {
            tracing::warn!("The threads that remove probes are gone; one was removed in place.");
        }
    }

    /// Waits until all is taken away.
    pub(super) fn finish(&mut self) {
        self.dead = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("A thread that removes probes has failed.");
            }
        }
    }
}
