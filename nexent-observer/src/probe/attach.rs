//! Attaches to processes: which scope, in which order, and how it ends. Nothing is ever half attached.

mod prepare;
mod presence;
mod proof;
mod report;
mod seccomp;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    time::Duration,
};

use nexent_observer_common::{cookie::Scope, state::Conn};

use super::{
    cache::Cache,
    kernel::{Attached, KernelError, KernelHalf, Place, Sockets},
    library::{Libraries, Library},
    opener,
    plain::{Listeners, PATIENCE, PlainHttp, PlainLinks},
    plan::{FamilyPlan, Hook},
    process::{FileId, MappedFile, Process},
    undertaker::Undertaker,
};
use crate::privileges;
use presence::Presence;
pub use presence::{Loss, Losses, Outcome};
use proof::Proofs;
pub use proof::Rewritten;
pub use report::{AttachReport, Hooked, is_expensive};
pub(crate) use seccomp::kills_under_seccomp;

/// Why a process cannot be observed. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such process.
    #[error(
        "there is no process with pid {pid} (in a container, share the host's pid namespace: hostPID or `--pid=host`)"
    )]
    NoProcess {
        /// Which.
        pid: u32,
    },
    /// Its maps cannot be read.
    #[error("the mappings of process {pid} cannot be read ({source}): CAP_SYS_PTRACE is needed")]
    Unreadable {
        /// Which.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// Nothing to hook.
    #[error(
        "process {pid} ({exe}) has no TLS library that can be hooked: none of its {files} mapped files has SSL_read and \
         SSL_write, GnuTLS, Go's crypto/tls or rustls with aws-lc{why}; if it loads one later, attach again then. With plain_http auto or \
         on it can be observed all the same"
    )]
    NoTls {
        /// Which.
        pid: u32,
        /// Its executable.
        exe: String,
        /// Files looked into.
        files: usize,
        /// What was found and is not hooked, as the end of a half-sentence.
        why: String,
    },
    /// It is being looked into.
    #[error("the files that process {pid} has mapped are still being searched for TLS; try again")]
    Searching {
        /// Which.
        pid: u32,
    },
    /// The kernel would kill the target.
    #[error(
        "process {pid} runs under seccomp, and kernel {kernel} kills such a process at a return probe (fixed in 6.14): not \
         attached; update the kernel or run the process without seccomp"
    )]
    Seccomp {
        /// Which.
        pid: u32,
        /// Release of the kernel.
        kernel: String,
    },
    /// It is this process.
    #[error("process {pid} is the observer itself")]
    Itself {
        /// Which.
        pid: u32,
    },
    /// The kernel refused.
    #[error("cannot attach to process {pid}: {source}")]
    Kernel {
        /// Which.
        pid: u32,
        /// Why.
        source: KernelError,
    },
}

impl AttachError {
    /// Whether a file is being written to, so that it will go better soon.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Kernel { source: KernelError::Rewritten { .. }, .. })
    }
}

/// How a process is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// With probes of its own, as long as there is room for them.
    Own,
    /// With probes that it shares with others: then its children are observed from their first instruction.
    Shared,
    /// Likewise, and nobody asked for this very process: without TLS it is left alone unless it listens.
    Found,
}

/// One observed process.
#[derive(Debug)]
struct Observed {
    process: Process,
    scope: Scope,
    /// Hooked libraries, and the probes that are this process's own (none in the filtered scope).
    libraries: HashMap<FileId, Vec<Attached>>,
    /// Number of files that were mapped executable when it was last looked at.
    files: usize,
    /// [`Process::mapped_code`] then; `None`: what it has mapped is read again.
    code: Option<u64>,
    /// Those of the files then that are hooked.
    hooked: Vec<MappedFile>,
    /// What its sockets are looked at for.
    sockets: Sockets,
    /// Probes of a library were taken away, and what it said since was not seen.
    missed: bool,
}

/// Probes of a scope that a process has left; kept until no call that began in it is in flight.
#[derive(Debug)]
struct Leaving {
    pid: u32,
    probes: Vec<Attached>,
}

/// Attaches and detaches.
pub struct Attacher {
    kernel: KernelHalf,
    libraries: Libraries,
    observed: HashMap<u32, Observed>,
    /// Attachments for all processes, by library; several where it is several files below an overlay file system.
    filtered: HashMap<FileId, Vec<Vec<Attached>>>,
    /// Executables that were looked into before they run; see [`Self::prepare`].
    prepared: HashMap<FileId, File>,
    proofs: Proofs,
    presence: Presence,
    leaving: Vec<Leaving>,
    per_process_limit: usize,
    plain_http: PlainHttp,
    listeners: Listeners,
    /// Tracepoints of sockets, while a process needs them.
    plain: Option<PlainLinks>,
    /// They stay, because a process that comes may need them at once.
    kept_plain: bool,
    phases_wanted: bool,
    /// Tracepoints of phases, while a process is observed.
    phases: Option<PlainLinks>,
    /// Processes of an executable may be observed at any time.
    expecting: bool,
    undertaker: Undertaker,
}

impl Attacher {
    /// Takes over the kernel half. Up to `per_process_limit` processes of one library get attachments of their own: other
    /// processes pay nothing then, but each further one costs every hit of that library about 97 ns (measured).
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(kernel: KernelHalf, per_process_limit: usize) -> io::Result<Self> {
        Ok(Self {
            kernel,
            libraries: Libraries::start()?,
            observed: HashMap::new(),
            filtered: HashMap::new(),
            prepared: HashMap::new(),
            proofs: Proofs::new(),
            presence: Presence::default(),
            leaving: Vec::new(),
            per_process_limit,
            plain_http: PlainHttp::Off,
            listeners: Listeners::default(),
            plain: None,
            kept_plain: false,
            phases_wanted: false,
            phases: None,
            expecting: false,
            undertaker: Undertaker::start()?,
        })
    }

    /// Finds the sockets of connections, and what they tell of their phases; not, until this is called. The kernel half has to be
    /// loaded for it.
    #[must_use]
    pub fn with_phases(mut self, phases: bool) -> Self {
        self.phases_wanted = phases;
        self
    }

    /// Sets when the sockets of a process are looked at for plain HTTP; never, until this is called.
    #[must_use]
    pub fn with_plain_http(mut self, plain_http: PlainHttp) -> Self {
        self.plain_http = plain_http;
        self
    }

    /// Keeps in this directory what was found by searching through files.
    #[must_use]
    pub fn with_cache(mut self, cache: Cache) -> Self {
        self.libraries.keep_in(cache);
        self
    }

    /// The loop begins: from now on a file that takes long to search is waited for no longer than the rings can bear.
    pub fn hurry(&mut self) {
        self.libraries.hurry();
    }

    /// The kernel half.
    pub fn kernel(&mut self) -> &mut KernelHalf {
        &mut self.kernel
    }

    /// Observed pids.
    pub fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.observed.keys().copied()
    }

    /// Whether a pid is observed.
    #[must_use]
    pub fn observes(&self, pid: u32) -> bool {
        self.observed.contains_key(&pid)
    }

    /// Number of probes attached now.
    #[must_use]
    pub fn probes(&self) -> usize {
        let own = self.observed.values().flat_map(|observed| observed.libraries.values()).map(Vec::len).sum::<usize>();
        own + self.filtered.values().flatten().map(Vec::len).sum::<usize>()
            + [&self.plain, &self.phases].into_iter().flatten().map(PlainLinks::count).sum::<usize>()
    }

    /// Libraries of an observed process.
    #[must_use]
    pub fn libraries_of(&self, pid: u32) -> Vec<FileId> {
        self.observed.get(&pid).map(|observed| observed.libraries.keys().copied().collect()).unwrap_or_default()
    }

    /// Attaches to a process, or adds what it has loaded since. Reads are hooked before writes and the process is armed last,
    /// so that no request is seen without its response. Libraries of `sibling`, a process that runs the same program, are
    /// hooked before this one has mapped them: the kernel puts the probes in when it does.
    ///
    /// # Errors
    /// [`AttachError`]; the process is left as it was.
    pub fn attach(&mut self, pid: u32, manner: Manner, sibling: Option<u32>) -> Result<AttachReport, AttachError> {
        let share = manner != Manner::Own;
        if pid == std::process::id() {
            return Err(AttachError::Itself { pid });
        }
        let _raised = privileges::raise();
        let process = Process::find(pid).map_err(|_| AttachError::NoProcess { pid })?;
        if self.observed.get(&pid).is_some_and(|observed| observed.process != process) {
            self.detach(pid); // a reused pid
        }
        seccomp::check(pid)?;
        let mut files = Process::mapped_files(pid).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => AttachError::NoProcess { pid },
            _ => AttachError::Unreadable { pid, source },
        })?;
        let mapped = files.len();
        if let Some(sibling) = sibling {
            files.extend(self.expected(sibling, &files));
        }
        let (hookable, complete) = self.libraries.hookable(&files);
        let known = self.observed.get(&pid);
        let has_tls = hookable.iter().any(|library| library.plan.has_tls())
            || known.is_some_and(|observed| !observed.libraries.is_empty());
        let known_join = known.is_some_and(|observed| observed.sockets.join);
        // A process that is watched since its birth, and is not known yet, may load a TLS library within its first second.
        let patience = if share && known.is_none() { PATIENCE } else { Duration::ZERO };
        let spared = has_tls || !complete || manner == Manner::Found;
        let plain = self.plain_http.wanted(process, spared, patience, &mut self.listeners);
        if !has_tls && known.is_none() && !plain {
            if share && !self.filtered.is_empty() {
                // It has mapped none yet; those that are known already are covered from now on.
                let armed = self.kernel.arm(pid, Scope::Filtered, Sockets::default());
                armed.map_err(|source| AttachError::Kernel { pid, source })?;
            }
            if !complete {
                return Err(AttachError::Searching { pid });
            }
            let exe = Process::executable_path(pid).map_or_else(|| "?".to_owned(), |path| path.display().to_string());
            let why = self.libraries.refused(&files);
            return Err(AttachError::NoTls { pid, exe, files: mapped, why });
        }
        self.attach_phases();
        let filtered = share || self.wants_filtered(pid, &hookable);
        let kernel_error = |source| AttachError::Kernel { pid, source };
        let plain = plain && self.attach_plain(has_tls).map_err(kernel_error)?;
        let join = known_join || hookable.iter().any(|library| library.plan.needs_sockets());
        if join {
            self.attach_sockets().map_err(kernel_error)?;
        }
        let sockets = Sockets { plain, join };
        if filtered {
            self.share(&hookable, &files).map_err(kernel_error)?;
        }
        let scope = if filtered { Scope::Filtered } else { Scope::PerProcess };
        let mut fresh: HashMap<FileId, Vec<Attached>> = HashMap::new();
        let already: HashSet<FileId> = self.libraries_of(pid).into_iter().collect();
        for library in &hookable {
            if already.contains(&library.id) {
                continue;
            }
            let probes = if filtered { Ok(Vec::new()) } else { self.hook(library, &files, Some(pid)) };
            match probes {
                Ok(probes) => drop(fresh.insert(library.id, probes)),
                Err(source) => {
                    self.bury(fresh.into_values().flatten());
                    return Err(kernel_error(source));
                }
            }
        }
        self.kernel.arm(pid, scope, sockets).map_err(kernel_error)?;
        let news = !fresh.is_empty() || self.observed.get(&pid).is_none_or(|observed| observed.sockets != sockets);
        let observed = self.observed.entry(pid).or_insert_with(|| Observed {
            process,
            scope,
            libraries: HashMap::new(),
            files: 0,
            code: None,
            hooked: Vec::new(),
            sockets,
            missed: false,
        });
        // What is not searched yet is looked at again.
        (observed.files, observed.code) = (if complete { mapped } else { usize::MAX }, None);
        observed.sockets = sockets;
        let missed = !fresh.is_empty() && std::mem::take(&mut observed.missed);
        observed.libraries.extend(fresh);
        if missed {
            self.kernel.mark_unseen(pid);
        }
        if filtered {
            self.move_to_filtered(&hookable).map_err(kernel_error)?;
        }
        let hooked = hookable
            .iter()
            .flat_map(|library| library.plan.implementations.iter().map(move |plan| (library, plan)))
            .map(|(library, plan)| Hooked { path: library.path.clone(), plan: plan.clone() })
            .collect();
        Ok(AttachReport { pid, hooked, filtered, plain, news })
    }

    /// Observes processes of an executable from their first instruction, as far as that can be without a look at them.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn expect_executable(&mut self, file: FileId) -> Result<(), KernelError> {
        let plain = self.plain_http == PlainHttp::On && self.attach_plain(true)?;
        self.kept_plain |= plain;
        self.expecting = true;
        self.attach_phases();
        self.kernel.arm_executable(file, Sockets { plain, join: false })
    }

    /// Attaches the tracepoints of plain HTTP if they are not. `false`: they cannot be, and the process has TLS to observe.
    fn attach_plain(&mut self, has_tls: bool) -> Result<bool, KernelError> {
        match self.attach_sockets() {
            Ok(()) => {}
            Err(error) if has_tls => {
                tracing::warn!(%error, "Plain HTTP cannot be observed here.");
                self.plain_http = PlainHttp::Off; // it would fail again with every process
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Attaches the tracepoints of sockets if they are not.
    fn attach_sockets(&mut self) -> Result<(), KernelError> {
        if self.plain.is_none() {
            self.plain = Some(self.kernel.attach_plain()?);
            tracing::info!("The sockets of processes that need it are looked at from now on.");
        }
        Ok(())
    }

    /// Attaches the tracepoints of phases if they are wanted and are not. A process is observed without them all the same.
    fn attach_phases(&mut self) {
        if !self.phases_wanted || self.phases.is_some() {
            return;
        }
        match self.kernel.attach_phases() {
            Ok(links) => self.phases = Some(links),
            Err(error) => {
                tracing::warn!(%error, "Phases of connections cannot be seen here (Linux 6.3 or later is needed): connect, TLS \
                    handshake, request sent, causes of stalls and retransmits stay unknown.");
                self.phases_wanted = false; // it would fail again with every process
            }
        }
    }

    /// Takes over a child that the kernel half already follows (filtered scope). `false`: it has to be attached.
    pub fn adopt(&mut self, parent: u32, child: u32) -> bool {
        let Some(observed) = self.observed.get(&parent) else { return false };
        if observed.scope != Scope::Filtered {
            return false;
        }
        let Ok(process) = Process::find(child) else { return true };
        // The kernel half gave the child the scope that its parent had then, and that may have been the other one.
        if let Err(error) = self.kernel.arm(child, Scope::Filtered, observed.sockets) {
            tracing::debug!(child, %error, "A forked process could not be armed.");
            return false;
        }
        let libraries = observed.libraries.keys().map(|id| (*id, Vec::new())).collect();
        let child_of = Observed {
            process,
            scope: Scope::Filtered,
            libraries,
            files: observed.files,
            code: None,
            hooked: Vec::new(),
            sockets: observed.sockets,
            missed: observed.missed,
        };
        self.observed.insert(child, child_of);
        true
    }

    /// Lets go of a process. Its probes are removed in the background; they do nothing from now on. Gives the connections that
    /// had not ended, as the kernel half counted them.
    pub fn detach(&mut self, pid: u32) -> Vec<Conn> {
        let open = self.kernel.disarm(pid).unwrap_or_else(|error| {
            tracing::warn!(pid, %error, "A process could not be disarmed.");
            Vec::new()
        });
        if let Some(observed) = self.observed.remove(&pid) {
            self.bury(observed.libraries.into_values().flatten());
        }
        let (gone, left) = std::mem::take(&mut self.leaving).into_iter().partition(|leaving| leaving.pid == pid);
        self.leaving = left;
        for leaving in gone {
            self.bury(leaving.probes);
        }
        open
    }

    /// Observed processes that have ended.
    #[must_use]
    pub fn ended(&self) -> Vec<u32> {
        self.observed
            .values()
            .filter(|observed| !observed.process.is_alive())
            .map(|observed| observed.process.pid)
            .collect()
    }

    /// Observed processes whose sockets are to be looked at from now on: they have begun to listen.
    #[must_use]
    pub fn wanting_plain(&mut self) -> Vec<u32> {
        let Self { observed, plain_http, listeners, .. } = self;
        let spared = observed.iter().filter(|(_, observed)| !observed.sockets.plain);
        spared
            .filter(|(_, it)| plain_http.wanted(it.process, !it.libraries.is_empty(), Duration::ZERO, listeners))
            .map(|(pid, _)| *pid)
            .collect()
    }

    /// Libraries with shared probes that no observed process uses any more.
    #[must_use]
    pub fn unused_shared(&self) -> Vec<FileId> {
        let used = |id| self.observed.values().any(|observed| observed.libraries.contains_key(id));
        self.filtered.keys().filter(|id| !used(id)).copied().collect()
    }

    /// Removes the shared probes of a library.
    pub fn release_shared(&mut self, library: FileId) {
        let Some(sets) = self.filtered.remove(&library) else { return };
        let own = self.observed.values().any(|it| it.libraries.get(&library).is_some_and(|probes| !probes.is_empty()));
        if !own {
            drop(self.proofs.keep(|id| id != library));
        }
        self.bury(sets.into_iter().flatten());
    }

    /// Hooked libraries of another process that are not among `files`.
    fn expected(&self, sibling: u32, files: &[MappedFile]) -> Vec<MappedFile> {
        let known = self.libraries_of(sibling);
        let theirs = Process::mapped_files(sibling).unwrap_or_default();
        theirs
            .into_iter()
            .filter(|file| known.contains(&file.id) && files.iter().all(|mine| mine.id != file.id))
            .collect()
    }

    /// Housekeeping, about once a second: removes probes that nothing waits for any more, and targets of the kernel half that
    /// are not ours (children that ended before they were adopted).
    pub fn tidy(&mut self) {
        let kernel = &self.kernel;
        let (done, waiting) = std::mem::take(&mut self.leaving)
            .into_iter()
            .partition(|leaving| !kernel.has_calls_in_flight(leaving.pid, Scope::PerProcess));
        self.leaving = waiting;
        for leaving in done {
            self.bury(leaving.probes);
        }
        self.tidy_proofs();
        let needed = self.kept_plain || self.observed.values().any(|observed| observed.sockets.any());
        if self.plain.is_some() && !needed {
            if let Some(links) = self.plain.take() {
                self.undertaker.bury_links(links);
            }
            tracing::info!("No process needs its sockets looked at any more: the tracepoints are removed.");
        }
        if !self.expecting && self.observed.is_empty() {
            // At once, unlike probes: tracepoints are let go of quickly, and none may count any more when they are attached anew.
            self.phases = None;
        }
        for pid in self.kernel.armed() {
            if !self.observed.contains_key(&pid) && Process::find(pid).is_err() {
                self.detach(pid);
            }
        }
    }

    fn bury(&self, probes: impl IntoIterator<Item = Attached>) {
        for probe in probes {
            self.undertaker.bury(probe, ());
        }
    }

    /// Whether a process with these libraries belongs into the filtered scope.
    fn wants_filtered(&self, pid: u32, libraries: &[Library]) -> bool {
        if self.observed.get(&pid).is_some_and(|observed| observed.scope == Scope::Filtered) {
            return true;
        }
        libraries.iter().any(|library| {
            let others = self
                .observed
                .iter()
                .filter(|(other, observed)| **other != pid && observed.libraries.contains_key(&library.id))
                .count();
            self.filtered.contains_key(&library.id) || others + 1 > self.per_process_limit
        })
    }

    /// Attaches for all processes to each library that is not attached so yet.
    fn share(&mut self, libraries: &[Library], files: &[MappedFile]) -> Result<(), KernelError> {
        // Not below those that stand there yet, if somebody waits to write.
        self.check_proofs(&HashSet::new(), |id| libraries.iter().any(|library| library.id == id));
        for library in libraries {
            if !self.filtered.contains_key(&library.id) {
                let probes = self.hook(library, files, None)?;
                self.filtered.insert(library.id, vec![probes]);
            }
        }
        Ok(())
    }

    /// Moves every process that shares one of these libraries into the filtered scope. The probes of the old scope stay until
    /// the calls that began in it have returned, so that no read in flight is lost.
    fn move_to_filtered(&mut self, libraries: &[Library]) -> Result<(), KernelError> {
        let movers: Vec<u32> = self
            .observed
            .iter()
            .filter(|(_, observed)| {
                observed.scope == Scope::PerProcess
                    && libraries.iter().any(|library| observed.libraries.contains_key(&library.id))
            })
            .map(|(pid, _)| *pid)
            .collect();
        for pid in movers {
            let Ok(files) = Process::mapped_files(pid) else { continue };
            let (all, _) = self.libraries.hookable(&files);
            self.share(&all, &files)?;
            let Some(observed) = self.observed.get_mut(&pid) else { continue };
            // Of one that is being searched again it keeps its own probes.
            if !observed.libraries.keys().all(|id| self.filtered.contains_key(id)) {
                continue;
            }
            self.kernel.arm(pid, Scope::Filtered, observed.sockets)?;
            observed.scope = Scope::Filtered;
            let probes = observed.libraries.values_mut().flat_map(std::mem::take).collect();
            self.leaving.push(Leaving { pid, probes });
        }
        Ok(())
    }

    /// Attaches each implementation in a library by itself: one that the kernel refuses does not keep the others out.
    ///
    /// # Errors
    /// The first refusal, when nothing of it could be attached.
    fn hook(
        &mut self,
        library: &Library,
        files: &[MappedFile],
        pid: Option<u32>,
    ) -> Result<Vec<Attached>, KernelError> {
        let open = files.iter().find(|file| file.id == library.id).map_or(&library.path, |file| &file.open);
        let place = self.prove(library, open)?;
        let mut probes = Vec::new();
        let mut refused = None;
        for implementation in &library.plan.implementations {
            match self.hook_one(implementation, &place, pid) {
                Ok(attached) => probes.extend(attached),
                Err(error) => {
                    // Its process may have ended meanwhile, and with it the way to the file.
                    if opener::find(open).is_ok() {
                        let (family, path) = (implementation.family, library.path.display());
                        tracing::warn!(%family, library = %path, %error, "A TLS implementation could not be hooked.");
                    }
                    refused.get_or_insert(error);
                }
            }
        }
        match refused {
            Some(error) if probes.is_empty() => Err(error),
            _ => Ok(probes),
        }
    }

    /// Attaches all hooks of an implementation, reads first. On failure what was attached is removed again.
    fn hook_one(
        &mut self,
        implementation: &FamilyPlan,
        place: &Place,
        pid: Option<u32>,
    ) -> Result<Vec<Attached>, KernelError> {
        let mut hooks: Vec<&Hook> = implementation.hooks.iter().collect();
        hooks.sort_by_key(|hook| hook.program.turn());
        let mut probes = Vec::new();
        for hook in hooks {
            match self.kernel.attach(hook, place, pid) {
                Ok(attached) => probes.extend(attached),
                Err(error) => {
                    self.bury(probes);
                    return Err(error);
                }
            }
        }
        Ok(probes)
    }
}

impl Drop for Attacher {
    /// Takes all probes away, side by side.
    fn drop(&mut self) {
        let own = self.observed.drain().flat_map(|(_, observed)| observed.libraries.into_values());
        let leaving = self.leaving.drain(..).map(|leaving| leaving.probes);
        let shared = self.filtered.drain().flat_map(|(_, sets)| sets);
        let probes: Vec<Attached> = own.chain(shared).chain(leaving).flatten().collect();
        self.bury(probes);
        self.undertaker.finish();
    }
}
