//! What could be observed here, and what could not: the host, each process, why not, and what to do. Nothing is attached to any
//! process; what cannot be looked at without rights is said.

pub mod host;
pub mod marks;
pub mod process;
mod running;
pub mod text;

use serde::Serialize;

use crate::{
    config::{Config, Environment},
    enrich::names::{Names, Sources},
    probe::process::Process,
};
use process::{Status, Subject, Surveyor};

/// Version of the JSON that `doctor --json` and `targets --json` print: it grows when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// What `doctor` says.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of this program.
    pub version: &'static str,
    /// Whether the observer can run here, by this user.
    pub can_run: bool,
    /// What that follows from.
    pub host: Vec<host::Check>,
    /// Those named, or all in which there is something to observe.
    pub processes: Vec<Subject>,
    /// The others.
    pub others: Others,
}

/// What `targets` says.
#[derive(Debug, Serialize)]
pub struct Inventory {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Processes that can be observed.
    pub targets: Vec<Subject>,
    /// The others.
    pub others: Others,
}

/// How many processes are not listed, and why.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Others {
    /// Nothing to observe in them.
    pub nothing_to_observe: usize,
    /// They could not be looked at: CAP_SYS_PTRACE is missing.
    pub unreadable: usize,
    /// A filter, or `opt_in`, leaves them out.
    pub unwanted: usize,
    /// Threads of the kernel.
    pub kernel_threads: usize,
}

/// Why there is no survey.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// A process that was named is not there.
    #[error(
        "there is no process with pid {0} (in a container, share the host's pid namespace: hostPID or `--pid=host`)"
    )]
    NoProcess(u32),
    /// A user that a filter names.
    #[error("only_user: the host has no user {0:?} (its /etc/passwd is sought under host_root)")]
    NoUser(String),
    /// No thread, no runtime.
    #[error("threads cannot be started: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Looks at the host, and at the processes named in the configuration, or at all.
///
/// # Errors
/// [`SurveyError`].
pub fn diagnose(config: &Config) -> Result<Diagnosis, SurveyError> {
    let host = host::look(config);
    let (processes, others) = with_surveyor(config, |surveyor| {
        if config.pids.is_empty() {
            return Ok(everything(surveyor, |subject| subject.status != Status::Nothing));
        }
        let mut named = Vec::new();
        for pid in &config.pids {
            let process = Process::find(*pid).map_err(|_| SurveyError::NoProcess(*pid))?;
            named.push(surveyor.look(process, true));
        }
        Ok((named, Others::default()))
    })?;
    let can_run = host::can_run(&host);
    Ok(Diagnosis { schema: SCHEMA, version: env!("CARGO_PKG_VERSION"), can_run, host, processes, others })
}

/// Lists the processes that can be observed.
///
/// # Errors
/// [`SurveyError`].
pub fn targets(config: &Config) -> Result<Inventory, SurveyError> {
    let (targets, others) = with_surveyor(config, |surveyor| Ok(everything(surveyor, Subject::is_observable)))?;
    Ok(Inventory { schema: SCHEMA, targets, others })
}

fn with_surveyor<T>(
    config: &Config,
    look: impl FnOnce(&mut Surveyor<'_>) -> Result<T, SurveyError>,
) -> Result<T, SurveyError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let entered = runtime.enter();
    let environment = Environment::of_this_process();
    let names = Names::start(Sources::of(config, |name| environment.get(name).ok().flatten().map(str::to_owned)));
    let mut surveyor = Surveyor::new(config, names).map_err(SurveyError::NoUser)?;
    let found = look(&mut surveyor);
    drop(entered);
    runtime.shutdown_background();
    found
}

fn everything(surveyor: &mut Surveyor<'_>, wanted: impl Fn(&Subject) -> bool) -> (Vec<Subject>, Others) {
    let (mut listed, mut others) = (Vec::new(), Others::default());
    let mut pids = Process::all();
    pids.sort_unstable();
    for pid in pids {
        if pid == std::process::id() {
            continue;
        }
        // It may have ended since.
        let Ok(process) = Process::find(pid) else { continue };
        if Process::is_kernel_thread(pid) {
            others.kernel_threads += 1;
            continue;
        }
        if !surveyor.wants(pid) {
            others.unwanted += 1;
            continue;
        }
        let subject = surveyor.look(process, false);
        match subject.status {
            Status::Unreadable => others.unreadable += 1,
            _ if wanted(&subject) => listed.push(subject),
            _ => others.nothing_to_observe += 1,
        }
    }
    (listed, others)
}
