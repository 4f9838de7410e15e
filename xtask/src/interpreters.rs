//! The Python interpreters of this machine: on the path, of pyenv, and where distributions put them.

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};

/// The oldest that the hooks are for (`requires-python` in sdk/python/pyproject.toml).
const OLDEST: Version = Version(3, 9);

/// Major and minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// One interpreter for each version from 3.9 on, the oldest first: CPython that can make environments. An error if there is none.
pub fn found() -> Result<BTreeMap<Version, PathBuf>> {
    let mut found = BTreeMap::new();
    for interpreter in candidates() {
        if let Some(version) = asked(&interpreter).filter(|version| *version >= OLDEST) {
            found.entry(version).or_insert(interpreter);
        }
    }
    ensure!(!found.is_empty(), "no Python from {OLDEST} on is here that has the modules venv and ensurepip");
    Ok(found)
}

/// Files that may be interpreters: those of pyenv first, which are no shims, then `python3` and `python3.N` of every directory.
fn candidates() -> Vec<PathBuf> {
    let root = env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv")));
    let pyenv = root.map(|root| root.join("versions")).map(|versions| entries(&versions)).unwrap_or_default();
    let pyenv = pyenv.into_iter().map(|version| version.join("bin/python3"));
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/bin", "/usr/bin"].map(PathBuf::from);
    let directories = env::split_paths(&path).chain(usual);
    let named = directories.flat_map(|directory| entries(&directory)).filter(|file| is_named_so(file));
    pyenv.chain(named).filter(|file| !file.components().any(|part| part.as_os_str() == "shims")).collect()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    entries.sort();
    entries
}

/// `python3` or `python3.N`, and not `python3-config` or `python3.13t`, which has another ABI.
fn is_named_so(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("python3"));
    name.is_some_and(|rest| {
        let minor = rest.strip_prefix('.').unwrap_or(rest);
        minor.chars().all(|c| c.is_ascii_digit()) && minor.is_empty() == rest.is_empty()
    })
}

/// The version that it says it is; `None` if it does not run, is not CPython with the usual ABI, or cannot make environments.
fn asked(interpreter: &Path) -> Option<Version> {
    const ASK: &str = "import ensurepip, sys, sysconfig, venv\n\
                       assert sys.implementation.name == 'cpython' and not sysconfig.get_config_var('Py_GIL_DISABLED')\n\
                       print(*sys.version_info[:2])";
    let output = Command::new(interpreter).args(["-I", "-c", ASK]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = output.ok().filter(|output| output.status.success())?;
    let said = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = said.trim().split_once(' ')?;
    Some(Version(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_known_by_their_names() {
        let named = |name: &str| is_named_so(Path::new(name));
        assert!(["/usr/bin/python3", "/usr/bin/python3.9", "python3.13"].into_iter().all(named));
        assert!(
            !["python3-config", "python3.11-config", "python3.13t", "python", "python2.7", "python3."]
                .into_iter()
                .any(named)
        );
    }

    #[test]
    fn versions_are_in_order_of_their_numbers() {
        assert!(Version(3, 10) > Version(3, 9) && Version(3, 9) >= OLDEST && Version(3, 8) < OLDEST);
    }
}
