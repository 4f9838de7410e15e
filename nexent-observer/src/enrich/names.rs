//! The names of containers and pods, looked up in the background: the loop asks, goes on, and finds the answer later.
//!
//! Three sources, the first that knows a thing wins: the node's API ([`super::kubernetes`]), the engines' state
//! ([`super::engine`]), the files that Kubernetes mounts into the container itself ([`super::mounted`]).

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, task::spawn_blocking, time::Instant};

use super::{
    cgroup::Container,
    engine,
    kubernetes::{NodeApi, Pod, Pods},
    mounted,
};
use crate::config::{Config, Kubelet};

/// What is known of a container besides its id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Naming {
    /// Its name.
    pub container: Option<String>,
    /// Its image.
    pub image: Option<String>,
    /// Its pod.
    pub pod: Option<Arc<Pod>>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// So far this is known; more may come.
    Partly(Arc<Naming>),
    /// All that will be known.
    Known(Arc<Naming>),
    /// Nothing will be known.
    Unknown,
}

impl Lookup {
    /// Whether no more will be known.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Partly(_))
    }

    /// What is known.
    #[must_use]
    pub fn naming(&self) -> Option<&Naming> {
        match self {
            Self::Partly(naming) | Self::Known(naming) => Some(naming),
            Self::Unknown => None,
        }
    }
}

/// Where names come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// Where the host's file system is seen.
    pub host_root: PathBuf,
    /// The node's API, where there is one.
    pub api: Option<NodeApi>,
}

impl Sources {
    /// As the configuration says. In a pod of Kubernetes the API server's address is in the environment.
    #[must_use]
    pub fn of(config: &Config, environment: impl Fn(&str) -> Option<String>) -> Self {
        let exists = |path: &PathBuf| path.exists().then(|| path.clone());
        let token = exists(&config.kubelet_token_file);
        let url = match &config.kubelet {
            Kubelet::Off => None,
            Kubelet::At(url) => NodeApi::list_of(url),
            Kubelet::Auto => NodeApi::in_cluster(&environment, config.node_name.as_deref()).filter(|_| token.is_some()),
        };
        let api = url.map(|url| NodeApi { url, token, ca: exists(&config.kubelet_ca_file) });
        Self { host_root: config.host_root.clone(), api }
    }
}

/// Containers that are remembered; over it all are forgotten and asked for anew.
const CONTAINERS: usize = 16_384;
/// Questions that may wait.
const QUESTIONS: usize = 1024;
/// How often the node's API is asked at most.
const API_EVERY: Duration = Duration::from_secs(1);
/// The kubelet hears of a container some seconds after it began: then it is asked again, later and later, up to this often.
const API_TRIES: u32 = 7;
/// How long files of a target's may take: they may lie on a file system that the target itself serves.
const FILE_PATIENCE: Duration = Duration::from_secs(2);
/// After so many that took longer no more are read: each holds a thread.
const STUCK: u32 = 2;

/// Asks and keeps answers. Clones share them.
#[derive(Debug, Clone)]
pub struct Names {
    shared: Arc<Shared>,
    questions: Option<mpsc::Sender<Question>>,
}

#[derive(Debug, Default)]
struct Shared {
    answers: Mutex<HashMap<String, Lookup>>,
    generation: AtomicU64,
}

impl Shared {
    fn set(&self, id: &str, answer: Lookup) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= CONTAINERS {
            answers.clear();
        }
        answers.insert(id.to_owned(), answer);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

#[derive(Debug)]
struct Question {
    container: Container,
    /// The root directory of a process in it.
    root: Option<File>,
}

impl Names {
    /// Knows nothing and asks nobody.
    #[must_use]
    pub fn off() -> Self {
        Self { shared: Arc::default(), questions: None }
    }

    /// Answers from now on, by a task of the runtime that is entered.
    #[must_use]
    pub fn start(sources: Sources) -> Self {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let shared = Arc::<Shared>::default();
        tokio::spawn(Clerk::new(sources, Arc::clone(&shared)).work(asked));
        Self { shared, questions: Some(questions) }
    }

    /// Grows with every new answer.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// What is known of a container, of which `pid` is a process. Never waits.
    #[must_use]
    pub fn look_up(&self, container: &Container, pid: u32) -> Lookup {
        let mut answers = self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = answers.get(&container.id) {
            return answer.clone();
        }
        let Some(questions) = &self.questions else { return Lookup::Unknown };
        // Only a path descriptor: nothing of the target's file system is touched by opening it.
        let root = container.pod_uid.as_ref().and_then(|_| {
            let path = format!("/proc/{pid}/root");
            OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path).ok()
        });
        let pending = Lookup::Partly(Arc::default());
        // With too many questions before it, it is asked the next time.
        if questions.try_send(Question { container: container.clone(), root }).is_ok() {
            answers.insert(container.id.clone(), pending.clone());
        }
        pending
    }
}

/// A container that is not known well enough yet.
struct Waiting {
    container: Container,
    local: Naming,
    tries: u32,
    next: Instant,
}

/// Answers questions.
struct Clerk {
    sources: Sources,
    shared: Arc<Shared>,
    pods: Pods,
    asked: Option<Instant>,
    failing: bool,
    stuck: u32,
    waiting: Vec<Waiting>,
}

impl Clerk {
    fn new(sources: Sources, shared: Arc<Shared>) -> Self {
        Self { sources, shared, pods: Pods::default(), asked: None, failing: false, stuck: 0, waiting: Vec::new() }
    }

    async fn work(mut self, mut questions: mpsc::Receiver<Question>) {
        loop {
            let next = self.waiting.iter().map(|waiting| waiting.next).min();
            tokio::select! {
                question = questions.recv() => match question {
                    Some(question) => self.take(question).await,
                    None => return,
                },
                () = until(next) => {}
            }
            while let Ok(question) = questions.try_recv() {
                self.take(question).await;
            }
            self.ask().await;
        }
    }

    /// Takes a question and answers what needs no API.
    async fn take(&mut self, Question { container, root }: Question) {
        let (host, asked) = (self.sources.host_root.clone(), container.clone());
        let engine = spawn_blocking(move || engine::look_up(&host, &asked)).await.ok().flatten().unwrap_or_default();
        let local = match root {
            Some(root) if self.stuck < STUCK => {
                let read = tokio::time::timeout(FILE_PATIENCE, spawn_blocking(move || mounted::read(&root))).await;
                self.stuck += u32::from(read.is_err());
                merge(engine, read.ok().and_then(Result::ok).unwrap_or_default())
            }
            _ => engine,
        };
        if self.sources.api.is_none() || container.pod_uid.is_none() {
            self.shared.set(&container.id, answer(local, true));
            return;
        }
        if local != Naming::default() {
            self.shared.set(&container.id, answer(local.clone(), false));
        }
        self.waiting.push(Waiting { container, local, tries: 0, next: Instant::now() });
    }

    /// Asks the API for what is due, once for all.
    async fn ask(&mut self) {
        let Some(api) = &self.sources.api else { return };
        let now = Instant::now();
        let known = |pods: &Pods, waiting: &Waiting| {
            let found = pods.find(&waiting.container.id, waiting.container.pod_uid.as_deref());
            found.filter(|found| found.name.is_some())
        };
        let is_due = |waiting: &Waiting| waiting.next <= now;
        let needed = self.waiting.iter().any(|waiting| is_due(waiting) && known(&self.pods, waiting).is_none());
        if needed {
            if let Some(wait) = self.asked.and_then(|asked| (asked + API_EVERY).checked_duration_since(now)) {
                tokio::time::sleep(wait).await;
            }
            self.asked = Some(Instant::now());
            match api.pods().await {
                Ok(pods) => {
                    self.pods = pods;
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("The node's API answers again.");
                    }
                }
                Err(error) if !self.failing => {
                    self.failing = true;
                    tracing::warn!(url = %api.url, %error, "The node's API does not tell its pods: they are named by what is on this host.");
                }
                Err(_) => {}
            }
        }
        for mut waiting in std::mem::take(&mut self.waiting) {
            if !is_due(&waiting) {
                self.waiting.push(waiting);
                continue;
            }
            let Container { id, pod_uid, .. } = &waiting.container;
            let found = self.pods.find(id, pod_uid.as_deref());
            let whole = found.as_ref().is_some_and(|found| found.name.is_some());
            let told = found.map_or_else(Naming::default, |found| Naming {
                container: found.name,
                image: found.image,
                pod: Some(found.pod),
            });
            waiting.tries += 1;
            let done = whole || waiting.tries >= API_TRIES;
            self.shared.set(id, answer(merge(told, waiting.local.clone()), done));
            if !done {
                waiting.next = Instant::now() + Duration::from_secs(1 << waiting.tries.min(6));
                self.waiting.push(waiting);
            }
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn answer(naming: Naming, done: bool) -> Lookup {
    match (naming == Naming::default(), done) {
        (true, true) => Lookup::Unknown,
        (_, true) => Lookup::Known(Arc::new(naming)),
        (_, false) => Lookup::Partly(Arc::new(naming)),
    }
}

/// What `first` says, and what only `second` knows.
fn merge(first: Naming, second: Naming) -> Naming {
    let pod = match (first.pod, second.pod) {
        (Some(first), Some(second)) => Some(Arc::new(Pod {
            name: first.name.clone().or_else(|| second.name.clone()),
            namespace: first.namespace.clone().or_else(|| second.namespace.clone()),
            uid: first.uid.clone().or_else(|| second.uid.clone()),
            node: first.node.clone().or_else(|| second.node.clone()),
            labels: if first.labels.is_empty() { second.labels.clone() } else { first.labels.clone() },
            owners: if first.owners.is_empty() { second.owners.clone() } else { first.owners.clone() },
        })),
        (first, second) => first.or(second),
    };
    Naming { container: first.container.or(second.container), image: first.image.or(second.image), pod }
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
