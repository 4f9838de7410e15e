//! Which of the processes that are found are wanted: by executable, user, container, namespace, pod and label.

use std::{fs, path::Path};

use super::{
    cgroup,
    names::{Lookup, Names},
};
use crate::{config::Only, probe::process::Process};

/// A pattern: `*` stands for any characters, `?` for one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern(Vec<char>);

impl Pattern {
    fn new(text: &str) -> Self {
        Self(text.chars().collect())
    }

    /// Whether it fits the whole text. Takes time in proportion to the product of their lengths at worst.
    fn fits(&self, text: &str) -> bool {
        let (pattern, text) = (&self.0, text.chars().collect::<Vec<_>>());
        let (mut p, mut t) = (0, 0);
        // Where the last star was, and how much it stands for: only that one is ever tried again.
        let mut star: Option<(usize, usize)> = None;
        while let Some(c) = text.get(t) {
            match pattern.get(p) {
                Some('*') => {
                    star = Some((p, t));
                    p += 1;
                }
                Some(wanted) if *wanted == '?' || wanted == c => {
                    p += 1;
                    t += 1;
                }
                _ => {
                    let Some((at, taken)) = star else { return false };
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
            }
        }
        pattern.get(p..).is_some_and(|rest| rest.iter().all(|c| *c == '*'))
    }

    /// Whether it fits a path, or, when it names no directory, its file name.
    fn fits_path(&self, path: &str) -> bool {
        let text = if self.0.contains(&'/') { path } else { path.rsplit('/').next().unwrap_or(path) };
        self.fits(text)
    }
}

/// What a filter says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is wanted.
    Wanted,
    /// It is not.
    Unwanted,
    /// Its names are not known yet.
    NotYet,
}

/// Of each kind that is named one has to fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    exes: Vec<Pattern>,
    users: Vec<u32>,
    containers: Vec<Pattern>,
    namespaces: Vec<Pattern>,
    pods: Vec<Pattern>,
    labels: Vec<(String, Pattern)>,
}

impl Filter {
    /// Makes one of the configuration; users are looked up on the host.
    ///
    /// # Errors
    /// The name of a user that does not exist.
    pub fn new(only: &Only, host_root: &Path) -> Result<Self, String> {
        let patterns = |texts: &[String]| texts.iter().map(|text| Pattern::new(text)).collect();
        let passwd = fs::read_to_string(host_root.join("etc/passwd")).unwrap_or_default();
        let users = only.users.iter().map(|user| uid_of(&passwd, user).ok_or_else(|| user.clone()));
        Ok(Self {
            exes: patterns(&only.exes),
            users: users.collect::<Result<_, _>>()?,
            containers: patterns(&only.containers),
            namespaces: patterns(&only.namespaces),
            pods: patterns(&only.pods),
            labels: only
                .labels
                .iter()
                .map(|label| {
                    let (key, value) = label.split_once('=').unwrap_or((label, "*"));
                    (key.to_owned(), Pattern::new(value))
                })
                .collect(),
        })
    }

    /// Judges a process.
    #[must_use]
    pub fn judge(&self, pid: u32, names: &Names) -> Verdict {
        if !self.exes.is_empty() {
            let path = Process::executable_path(pid).unwrap_or_default();
            let path = path.to_string_lossy();
            let path = path.trim_end_matches(" (deleted)");
            if !self.exes.iter().any(|pattern| pattern.fits_path(path)) {
                return Verdict::Unwanted;
            }
        }
        if !self.users.is_empty() && !Process::user(pid).is_some_and(|uid| self.users.contains(&uid)) {
            return Verdict::Unwanted;
        }
        if self.containers.is_empty() && !self.asks_for_pods() {
            return Verdict::Wanted;
        }
        let Some(container) = cgroup::of_process(pid) else { return Verdict::Unwanted };
        if self.asks_for_pods() && container.pod_uid.is_none() {
            return Verdict::Unwanted;
        }
        self.judge_names(&container.id, &names.look_up(&container, pid))
    }

    fn asks_for_pods(&self) -> bool {
        !(self.namespaces.is_empty() && self.pods.is_empty() && self.labels.is_empty())
    }

    fn judge_names(&self, id: &str, known: &Lookup) -> Verdict {
        let naming = known.naming();
        let pod = naming.and_then(|naming| naming.pod.as_deref());
        let any = |patterns: &[Pattern], value: Option<&str>| {
            patterns.is_empty() || value.is_some_and(|value| patterns.iter().any(|pattern| pattern.fits(value)))
        };
        // A container is named by its name, or by its id or the beginning of it, as `docker ps` shows it.
        let by_id = || {
            self.containers
                .iter()
                .any(|Pattern(text)| text.len() >= 12 && id.starts_with(&text.iter().collect::<String>()))
        };
        let label = |(key, pattern): &(String, Pattern)| {
            pod.is_some_and(|pod| pod.labels.iter().any(|(name, value)| name == key && pattern.fits(value)))
        };
        let fits = (by_id() || any(&self.containers, naming.and_then(|naming| naming.container.as_deref())))
            && any(&self.namespaces, pod.and_then(|pod| pod.namespace.as_deref()))
            && any(&self.pods, pod.and_then(|pod| pod.name.as_deref()))
            && (self.labels.is_empty() || self.labels.iter().any(label));
        match (fits, known.is_final()) {
            (true, _) => Verdict::Wanted,
            (false, true) => Verdict::Unwanted,
            (false, false) => Verdict::NotYet,
        }
    }
}

/// The number of a user, given by number or by a name in `/etc/passwd` (passwd(5)).
fn uid_of(passwd: &str, user: &str) -> Option<u32> {
    user.parse().ok().or_else(|| {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(user)).then(|| fields.nth(1)?.parse().ok())?
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::enrich::{kubernetes::Pod, names::Naming};

    #[test]
    fn patterns_fit_the_whole_text() {
        for (pattern, text, fits) in [
            ("python*", "python3.11", true),
            ("python", "python3.11", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*b*", "abcb", true),
            ("*.py", "a.pyc", false),
            ("é*", "éa", true),
        ] {
            assert_eq!(Pattern::new(pattern).fits(text), fits, "{pattern} {text}");
        }
        for (pattern, path, fits) in [
            ("python*", "/usr/bin/python3.11", true),
            ("/usr/*/python*", "/usr/bin/python3.11", true),
            ("/opt/*", "/usr/bin/python3.11", false),
        ] {
            assert_eq!(Pattern::new(pattern).fits_path(path), fits, "{pattern} {path}");
        }
        let hostile = Pattern::new(&"*a".repeat(200));
        assert!(!hostile.fits(&"a".repeat(20_000).replace("aa", "ab")) || hostile.fits("a"));
    }

    fn only(set: impl FnOnce(&mut Only)) -> Filter {
        let mut only = Only::default();
        set(&mut only);
        Filter::new(&only, Path::new("/")).unwrap()
    }

    #[test]
    fn this_process_is_wanted_by_its_executable_and_its_user() {
        let me = std::process::id();
        let judge = |filter: Filter| filter.judge(me, &Names::off());
        let uid = Process::user(me).unwrap();
        let name = std::env::current_exe().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(judge(Filter::default()), Verdict::Wanted);
        assert_eq!(judge(only(|only| only.exes = vec!["no-such".into(), name.clone()])), Verdict::Wanted);
        assert_eq!(judge(only(|only| only.exes = vec!["no-such".into()])), Verdict::Unwanted);
        assert_eq!(judge(only(|only| only.users = vec![uid.to_string()])), Verdict::Wanted);
        assert_eq!(judge(only(|only| only.users = vec![(uid + 1).to_string()])), Verdict::Unwanted);
        let both = only(|only| {
            only.exes = vec![name];
            only.users = vec![(uid + 1).to_string()];
        });
        assert_eq!(judge(both), Verdict::Unwanted, "each kind has to fit");
        assert_eq!(uid_of("a:x:7:7::/:/bin/sh\nroot:x:0:0", "root"), Some(0));
        let unknown = Only { users: vec!["no such user".into()], ..Only::default() };
        assert_eq!(Filter::new(&unknown, Path::new("/")), Err("no such user".to_owned()));
    }

    #[test]
    fn names_that_are_not_known_yet_decide_later() {
        let id = "7be92808767a667f35c8505cbf40d14e931ef6db5b0210329cf193b15ba9d605";
        let pod = Pod {
            name: Some("agent-0".into()),
            namespace: Some("shop".into()),
            labels: vec![("app".into(), "agent".into())],
            ..Pod::default()
        };
        let naming = Naming { container: Some("main".into()), image: None, pod: Some(Arc::new(pod)) };
        let known = Lookup::Known(Arc::new(naming.clone()));
        let nothing = Lookup::Partly(Arc::default());
        for (filter, fits) in [
            (only(|only| only.containers = vec!["ma*".into()]), true),
            (only(|only| only.containers = vec!["other".into()]), false),
            (only(|only| only.namespaces = vec!["shop".into()]), true),
            (only(|only| only.pods = vec!["agent-?".into()]), true),
            (only(|only| only.labels = vec!["app=agent".into()]), true),
            (only(|only| only.labels = vec!["app".into()]), true),
            (only(|only| only.labels = vec!["app=other".into()]), false),
            (only(|only| only.labels = vec!["tier".into()]), false),
        ] {
            let want = if fits { Verdict::Wanted } else { Verdict::Unwanted };
            assert_eq!(filter.judge_names(id, &known), want, "{filter:?}");
            assert_eq!(filter.judge_names(id, &nothing), Verdict::NotYet, "{filter:?}");
            assert_eq!(filter.judge_names(id, &Lookup::Unknown), Verdict::Unwanted, "{filter:?}");
        }
        let by_id = only(|only| only.containers = vec![id[..12].into()]);
        assert_eq!(by_id.judge_names(id, &nothing), Verdict::Wanted);
        let short = only(|only| only.containers = vec![id[..4].into()]);
        assert_eq!(short.judge_names(id, &Lookup::Unknown), Verdict::Unwanted, "too short to mean an id");
    }
}
