//! The services of the observed processes, each worked out once, and anew when more of its names is known.

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::Arc,
};

use super::{cgroup, cgroup::Container, identity, names::Names};
use crate::{export::Service, probe::process::Process};

/// Services of processes that ended last: what they had open is exported after they are gone.
const PARTING: usize = 256;

/// Pid to service.
#[derive(Debug)]
pub struct Services {
    known: HashMap<u32, Entry>,
    parting: VecDeque<(u32, Arc<Service>)>,
    default: Option<String>,
    names: Names,
}

#[derive(Debug, Clone)]
struct Entry {
    service: Arc<Service>,
    /// Kept while names are missing: the process may be gone when they come.
    waiting: Option<Waiting>,
}

#[derive(Debug, Clone)]
struct Waiting {
    pid: u32,
    environment: Vec<(String, String)>,
    executable: Option<PathBuf>,
    container: Container,
    generation: u64,
}

impl Services {
    /// None are known yet. `default` names those that do not name themselves.
    #[must_use]
    pub fn new(default: Option<String>, names: Names) -> Self {
        Self { known: HashMap::new(), parting: VecDeque::new(), default, names }
    }

    /// The service of a process.
    pub fn of(&mut self, pid: u32) -> Arc<Service> {
        let Self { known, parting, default, names } = self;
        if !known.contains_key(&pid)
            && let Some((_, service)) = parting.iter().rev().find(|(gone, _)| *gone == pid)
            && Process::find(pid).is_err()
        {
            return Arc::clone(service);
        }
        let entry = known.entry(pid).or_insert_with(|| {
            let (environment, executable) = (Process::environment(pid), Process::executable_path(pid));
            match cgroup::of_process(pid) {
                Some(container) => work_out(
                    Waiting { pid, environment, executable, container, generation: 0 },
                    default.as_deref(),
                    names,
                ),
                None => {
                    let identity = identity(&environment, executable.as_deref(), default.as_deref(), None);
                    Entry { service: Arc::new(Service::of_process(pid, identity)), waiting: None }
                }
            }
        });
        if entry.waiting.as_ref().is_some_and(|waiting| waiting.generation != names.generation())
            && let Some(waiting) = entry.waiting.take()
        {
            *entry = work_out(waiting, default.as_deref(), names);
        }
        Arc::clone(&entry.service)
    }

    /// A forked child is what its parent is.
    pub fn adopt(&mut self, child: u32, parent: u32) {
        let Some(Entry { service, waiting }) = self.known.get(&parent) else { return };
        let service = Arc::new(Service { pid: child, ..Service::clone(service) });
        let waiting = waiting.clone().map(|waiting| Waiting { pid: child, ..waiting });
        self.known.insert(child, Entry { service, waiting });
    }

    /// Its process is gone, or another program.
    pub fn forget(&mut self, pid: u32) {
        if let Some(Entry { service, .. }) = self.known.remove(&pid) {
            if self.parting.len() >= PARTING {
                self.parting.pop_front();
            }
            self.parting.push_back((pid, service));
        }
    }
}

fn work_out(waiting: Waiting, default: Option<&str>, names: &Names) -> Entry {
    // Taken first: an answer that comes meanwhile is looked at once more.
    let generation = names.generation();
    let Waiting { pid, environment, executable, container, .. } = &waiting;
    let known = names.look_up(container, *pid);
    let identity = identity(environment, executable.as_deref(), default, Some((container, known.naming())));
    let service = Arc::new(Service::of_process(*pid, identity));
    let waiting = (!known.is_final()).then_some(Waiting { generation, ..waiting });
    Entry { service, waiting }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_a_process_had_open_is_exported_under_its_name_after_its_end() {
        let mut services = Services::new(None, Names::off());
        let mut child = Command::new("sleep").arg("60").env("SERVICE_NAME", "parting").spawn().unwrap();
        let pid = child.id();
        // Its exec may not be over yet; the environment comes last.
        let named = |bytes: Vec<u8>| bytes.windows(20).any(|window| window == b"SERVICE_NAME=parting");
        while !std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(named) {
            std::thread::yield_now();
        }
        assert_eq!(services.of(pid).name, "parting");
        child.kill().and_then(|()| child.wait()).unwrap();
        services.forget(pid);
        assert_eq!(services.of(pid).name, "parting");
        for pid in 5_000_000..5_000_000 + 2 * PARTING as u32 {
            services.adopt(pid, pid - 1);
            services.of(pid);
            services.forget(pid);
        }
        assert_eq!(services.parting.len(), PARTING);
        assert_eq!(services.of(pid).name, "unknown_service", "nothing is kept for ever");
    }
}
