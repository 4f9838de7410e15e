//! The services of the observed processes, each worked out once, and anew when more of its names is known.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use super::{cgroup, cgroup::Container, identity, names::Names};
use crate::{export::Service, probe::process::Process};

/// Pid to service.
#[derive(Debug)]
pub struct Services {
    known: HashMap<u32, Entry>,
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
        Self { known: HashMap::new(), default, names }
    }

    /// The service of a process.
    pub fn of(&mut self, pid: u32) -> Arc<Service> {
        let Self { known, default, names } = self;
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
        self.known.remove(&pid);
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
