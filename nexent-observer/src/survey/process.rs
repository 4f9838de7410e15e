//! What could be observed of one process, where the hooks would sit, what they would cost, and what stays unseen.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    marks::{self, Marks, Unseen},
    running,
};
use crate::{
    config::Config,
    enrich::{
        cgroup,
        filter::{Filter, Verdict},
        names::Names,
        services::Services,
    },
    probe::{
        attach::kills_under_seccomp,
        hookpoint::Cost,
        library::plan_of,
        opener::{self, Opener},
        plain::{Listeners, PlainHttp},
        plan::{Family, FamilyPlan, Hook, Plan},
        process::{FileId, MappedFile, Process},
        silence::Silent,
        targets,
    },
};

/// What it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Its TLS can be hooked.
    Tls,
    /// Its TLS cannot be hooked, or it has none; its sockets are looked at for plain HTTP.
    PlainHttp,
    /// It does not want to be observed.
    OptedOut,
    /// This kernel would kill it (seccomp).
    Seccomp,
    /// There is nothing to observe.
    Nothing,
    /// It could not be looked at.
    Unreadable,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Subject {
    /// Which.
    pub pid: u32,
    /// What it comes to.
    pub status: Status,
    /// What it executes, as it sees it.
    pub executable: Option<String>,
    /// With whose rights, as a number.
    pub user: Option<u32>,
    /// `service.name` as spans and metrics would have it.
    pub service: String,
    /// `service.namespace`.
    pub namespace: Option<String>,
    /// The other attributes of its resource: container, pod.
    pub attributes: BTreeMap<String, String>,
    /// Whether a filter or `opt_in` leaves it out of `exe` and `all`.
    pub unwanted: bool,
    /// Whether its sockets would be looked at for plain HTTP.
    pub plain_http: bool,
    /// Whether it listens on a TCP port.
    pub listens: bool,
    /// Mapped files with something to hook, or with something that is left alone.
    pub libraries: Vec<FoundLibrary>,
    /// Whether an observer that runs here says that it should see this process now and does not; `None`: none was found that could be asked.
    pub silent: Option<bool>,
    /// What cannot be seen of it.
    pub unseen: Vec<Unseen>,
}

impl Subject {
    /// Whether the observer sees something of it.
    #[must_use]
    pub fn is_observable(&self) -> bool {
        matches!(self.status, Status::Tls | Status::PlainHttp)
    }
}

/// A mapped file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FoundLibrary {
    /// As the process sees it.
    pub path: String,
    /// GNU build id.
    pub build_id: Option<String>,
    /// What it calls itself, where it does.
    pub version: Option<String>,
    /// What can be hooked.
    pub implementations: Vec<Implementation>,
    /// What is left alone.
    pub left_alone: Vec<LeftAlone>,
}

/// An implementation of TLS, or the probe point of the in-process hooks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Implementation {
    /// Which.
    pub family: &'static str,
    /// Where the hooks sit.
    pub hooks: Vec<Place>,
    /// What is not as cheap or as complete as it could be.
    pub notes: Vec<String>,
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Place {
    /// What is hooked: `read`, `write`, `go_read_enter`, ...
    pub hook: String,
    /// The function.
    pub function: String,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// `emulated` or `single_stepped`.
    pub step: &'static str,
    /// What a hit costs the process, in microseconds, as it was measured on one machine (docs/overhead.md).
    pub cost_us: f64,
}

/// An implementation that is there and is not hooked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftAlone {
    /// Which.
    pub family: &'static str,
    /// Why.
    pub why: String,
}

/// What is unseen of a process that is silent.
const NOW: &str = "what it says now";
/// How long names of containers are waited for.
const NAMES: Duration = Duration::from_secs(3);

/// Looks at processes; each file once.
pub struct Surveyor<'a> {
    config: &'a Config,
    filter: Filter,
    names: Names,
    services: Services,
    listeners: Listeners,
    opener: Opener,
    kernel: String,
    plans: HashMap<FileId, Option<Plan>>,
    marks: HashMap<FileId, Marks>,
    /// What an observer that runs says.
    silent: Option<Vec<Silent>>,
}

impl<'a> Surveyor<'a> {
    /// Begins.
    ///
    /// # Errors
    /// The name of a user that a filter asks for and that does not exist; or that no thread can be started.
    pub fn new(config: &'a Config, names: Names) -> Result<Self, String> {
        Ok(Self {
            config,
            filter: Filter::new(&config.only, &config.host_root)?,
            services: Services::new(config.service_name.clone(), names.clone()),
            names,
            listeners: Listeners::default(),
            opener: Opener::start().map_err(|error| format!("no thread can be started: {error}"))?,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default(),
            plans: HashMap::new(),
            marks: HashMap::new(),
            silent: running::ask(config.listen),
        })
    }

    /// Whether filters and `opt_in` let it in.
    pub fn wants(&mut self, pid: u32) -> bool {
        let opted = !self.config.opt_in || targets::telemetry(pid) == Some(true);
        opted
            && self.wait(|this| this.filter.judge(pid, &this.names), |verdict| *verdict != Verdict::NotYet)
                == Verdict::Wanted
    }

    /// Asks until the answer is final, for a while.
    fn wait<T>(&mut self, mut ask: impl FnMut(&mut Self) -> T, is_final: impl Fn(&T) -> bool) -> T {
        let end = Instant::now() + NAMES;
        loop {
            let answer = ask(self);
            if is_final(&answer) || Instant::now() >= end {
                return answer;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Looks at a process. `closely` also searches what has TLS that can be hooked for more that cannot.
    pub fn look(&mut self, process: Process, closely: bool) -> Subject {
        let pid = process.pid;
        if let Some(container) = cgroup::of_process(pid) {
            self.wait(|this| this.names.look_up(&container, pid).is_final(), |is_final| *is_final);
        }
        let service = self.services.of(pid);
        let mut subject = Subject {
            pid,
            status: Status::Nothing,
            executable: Process::executable_path(pid).map(|path| printable(&path)),
            user: Process::user(pid),
            service: service.name.clone(),
            namespace: service.namespace.clone(),
            attributes: service.attributes.iter().cloned().collect(),
            unwanted: !self.wants(pid),
            plain_http: false,
            listens: self.listeners.listens(pid),
            libraries: Vec::new(),
            silent: self.silent.as_ref().map(|silent| silent.iter().any(|process| process.pid == pid)),
            unseen: Vec::new(),
        };
        let silent = self.silent.iter().flatten().filter(|process| process.pid == pid);
        subject.unseen.extend(silent.map(|process| Unseen::new(NOW, clean(&process.why), &clean(&process.advice))));
        let files = match Process::mapped_files(pid) {
            Ok(files) => files,
            Err(error) => {
                subject.status = Status::Unreadable;
                subject.unseen.push(Unseen::new(
                    "the process",
                    format!("its mappings cannot be read: {error}"),
                    "run as root, or with CAP_SYS_PTRACE and CAP_SYS_ADMIN",
                ));
                return subject;
            }
        };
        for file in &files {
            self.look_into(file, &mut subject);
        }
        self.name_versions(&files, &mut subject);
        let has_tls = subject.libraries.iter().any(|library| library.implementations.iter().any(is_tls));
        self.look_for_unseen(&files, has_tls, closely, &mut subject);
        subject.plain_http = match self.config.plain_http {
            // Of all processes only those that listen; one that is named, also when it has no TLS.
            PlainHttp::Auto => subject.listens || (!has_tls && self.config.pids.contains(&pid)),
            mode => mode == PlainHttp::On,
        };
        subject.status = if targets::telemetry(pid) == Some(false) {
            Status::OptedOut
        } else if Process::seccomp(pid) != 0 && kills_under_seccomp(self.kernel.trim()) {
            Status::Seccomp
        } else if has_tls {
            Status::Tls
        } else if subject.plain_http {
            Status::PlainHttp
        } else {
            Status::Nothing
        };
        subject
    }

    fn look_into(&mut self, file: &MappedFile, subject: &mut Subject) {
        if !self.plans.contains_key(&file.id) {
            match open(&self.opener, subject.pid, file) {
                Ok(opened) => {
                    self.plans.insert(file.id, plan_of(opened));
                }
                Err(error) => return unopened(file, &error, subject),
            }
        }
        let plan = self.plans.get(&file.id).and_then(Option::as_ref);
        let Some(plan) = plan.filter(|plan| plan.is_hookable() || !plan.refused.is_empty()).cloned() else {
            return;
        };
        let marks = self.marks_of(subject.pid, file);
        subject.libraries.push(FoundLibrary {
            path: printable(&file.path),
            version: marks.version.clone().filter(|_| plan.has_tls() || !plan.refused.is_empty()),
            implementations: plan.implementations.iter().map(implementation).collect(),
            left_alone: plan
                .refused
                .iter()
                .map(|(family, why)| LeftAlone { family: family.name(), why: why.to_string() })
                .collect(),
            build_id: plan.build_id,
        });
    }

    /// OpenSSL's version stands in its libcrypto: where a process has only one, that is the one.
    fn name_versions(&mut self, files: &[MappedFile], subject: &mut Subject) {
        let named =
            |path: &Path, begin: &str| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin));
        let mut cryptos = files.iter().filter(|file| named(&file.path, "libcrypto"));
        let (Some(crypto), None) = (cryptos.next(), cryptos.next()) else { return };
        let unnamed = |library: &FoundLibrary| library.version.is_none() && named(Path::new(&library.path), "libssl");
        if !subject.libraries.iter().any(unnamed) {
            return;
        }
        let version = self.marks_of(subject.pid, crypto).version.clone();
        for library in subject.libraries.iter_mut().filter(|library| unnamed(library)) {
            library.version.clone_from(&version);
        }
    }

    fn marks_of(&mut self, pid: u32, file: &MappedFile) -> &Marks {
        let opener = &self.opener;
        self.marks.entry(file.id).or_insert_with(|| open(opener, pid, file).map(Marks::search).unwrap_or_default())
    }

    /// What is known by its marks only.
    fn look_for_unseen(&mut self, files: &[MappedFile], has_tls: bool, closely: bool, subject: &mut Subject) {
        let hooked = |path: &Path| {
            let path = printable(path);
            subject.libraries.iter().any(|library| library.path == path && !library.implementations.is_empty())
        };
        let by_name = files.iter().filter(|file| !hooked(&file.path)).filter_map(|file| marks::of_library(&file.path));
        let found: Vec<Unseen> = by_name.collect();
        subject.unseen.extend(found);
        if !has_tls || closely {
            let executable = Process::executable(subject.pid).ok();
            let program = files.iter().find(|file| Some(file.id) == executable).filter(|file| !hooked(&file.path));
            if let Some(program) = program {
                let found = self.marks_of(subject.pid, program).unseen();
                subject.unseen.extend(found);
            }
        }
        if !has_tls && subject.unseen.is_empty() && closely {
            subject.unseen.push(Unseen::new(
                "TLS",
                format!("none of its {} mapped files is known to have any", files.len()),
                "it may load a library later, and is looked at again then; what it speaks without TLS is seen with plain_http: on, \
                 or auto if it listens",
            ));
        }
    }
}

fn is_tls(implementation: &Implementation) -> bool {
    implementation.family != Family::Hooks.name()
}

fn implementation(plan: &FamilyPlan) -> Implementation {
    let hooks = plan.hooks.iter().map(place).collect();
    Implementation { family: plan.family.name(), hooks, notes: plan.notes.clone() }
}

fn place(hook: &Hook) -> Place {
    let returns = if hook.program.has_return_probe() { 0.35 } else { 0.0 };
    let (step, cost) = match hook.cost {
        Cost::Emulated => ("emulated", 0.5),
        Cost::SingleStepped => ("single_stepped", 9.0),
    };
    Place {
        hook: snake_case(&format!("{:?}", hook.program)),
        function: clean(&hook.function),
        offset: hook.offset,
        step,
        cost_us: cost + returns,
    }
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// What is in a file is not known: says so, once for the process.
fn unopened(file: &MappedFile, error: &io::Error, subject: &mut Subject) {
    let what = "a mapped file";
    if subject.unseen.iter().any(|unseen| unseen.what == what) {
        return;
    }
    let path = printable(&file.path);
    subject.unseen.push(if error.kind() == io::ErrorKind::TimedOut {
        let why = format!("{path} cannot be read: its file system does not answer");
        Unseen::new(
            what,
            why,
            "see to the network file system or FUSE server that it is on; the observer looks again by itself",
        )
    } else {
        let why = format!("{path} cannot be opened");
        Unseen::new(what, why, "run as root, or with CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH")
    });
}

/// Opens a mapped file: the link of the mapping wants CAP_SYS_ADMIN, so the process's own path is tried as well, if it still leads to the
/// very file.
fn open(opener: &Opener, pid: u32, file: &MappedFile) -> io::Result<File> {
    let first = opener::find(&file.open).and_then(|found| match opener::is_regular(&found) {
        true => opener.open(&found, opener::PATIENT),
        false => Err(io::ErrorKind::InvalidInput.into()),
    });
    let refused = match first {
        Err(error) if error.kind() != io::ErrorKind::TimedOut => error,
        other => return other,
    };
    let Ok(inside) = file.path.strip_prefix("/") else { return Err(refused) };
    let paths = [PathBuf::from(format!("/proc/{pid}/root")).join(inside), file.path.clone()];
    for found in paths.iter().filter_map(|path| opener.find(path, opener::PATIENT).ok()) {
        let same = FileId::of_file(&found).is_ok_and(|id| id == file.id);
        if same && opener::is_regular(&found) {
            return opener.open(&found, opener::PATIENT);
        }
    }
    Err(refused)
}

/// A path of a process's own choice, for a terminal.
fn printable(path: &Path) -> String {
    clean(&path.to_string_lossy())
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(4096).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags};

    #[test]
    fn this_process_is_looked_at_without_rights() {
        let config = Config::load(Flags::default(), &Environment::default()).unwrap();
        let mut surveyor = Surveyor::new(&config, Names::off()).unwrap();
        let me = Process::find(std::process::id()).unwrap();
        let subject = surveyor.look(me, true);
        assert_ne!(subject.status, Status::Unreadable);
        assert_eq!(subject.user, Process::user(me.pid));
        assert!(subject.executable.is_some_and(|path| path.starts_with('/')));
        // It is a Rust program with rustls and ring in it, and the tests' strings besides.
        assert!(!subject.unseen.is_empty() || !subject.libraries.is_empty());
    }

    #[test]
    fn names_of_programs_are_those_of_the_json() {
        assert_eq!(snake_case("GoReadEnter"), "go_read_enter");
        assert_eq!(snake_case("Read"), "read");
        assert_eq!(printable(Path::new("/a\u{1b}[31m\n")), "/a\u{fffd}[31m\u{fffd}");
    }
}
