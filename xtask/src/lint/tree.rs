//! The files of the checkout: what git tracks, and what it would track (not ignored).

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// Paths (relative, with `/`) and texts of the checkout's files. Files that are not UTF-8 are not in it.
#[derive(Debug, Default)]
pub(super) struct Tree {
    root: PathBuf,
    texts: BTreeMap<String, String>,
}

impl Tree {
    /// Reads the checkout.
    pub(super) fn of_checkout(root: &Path) -> Result<Self> {
        let mut command = Command::new("git");
        let listed = command
            .current_dir(root)
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()
            .context("running git")?;
        if !listed.status.success() {
            bail!(
                "git cannot list the files of {}: {}",
                root.display(),
                String::from_utf8_lossy(&listed.stderr).trim()
            );
        }
        let mut texts = BTreeMap::new();
        for path in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|path| !path.is_empty()) {
            // Deleted but not yet committed, a binary, a submodule: nothing to read.
            if let Ok(text) = fs::read_to_string(root.join(path)) {
                texts.insert(path.to_owned(), text);
            }
        }
        Ok(Self { root: root.to_owned(), texts })
    }

    /// Root of the checkout.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// All files: path and text.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// Files whose name ends in one of `extensions`.
    pub(super) fn with_extension(&self, extensions: &'static [&str]) -> impl Iterator<Item = (&str, &str)> {
        self.files().filter(|(path, _)| has_extension(path, extensions))
    }

    /// Whether this path, relative to the root, leads to a file or folder.
    pub(super) fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
}

/// Whether the name ends in one of `extensions`.
pub(super) fn has_extension(path: &str, extensions: &[&str]) -> bool {
    Path::new(path).extension().and_then(|end| end.to_str()).is_some_and(|end| extensions.contains(&end))
}
