//! Findings on disk, by build id: what was searched for in a large file is found at once the next time.
//!
//! An entry is a hint, never a proof by itself. It counts only for a file of the same build id and size in which all bytes that proved
//! the finding are the same: the functions, what precedes them, and the strings by which they were found.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    elf::Elf,
    plan::{FINDERS, Family, FamilyPlan, Plan},
};

/// Version of the form, and of the finders: raised with every change to what they prove.
const VERSION: u32 = 2;
/// First word of every entry.
const MAGIC: &str = "nexent-observer-finding";
/// Largest entry, bytes. Those of three functions have about 10 KB.
const MAX_ENTRY: u64 = 1 << 20;
/// Most entries. Over it nothing is added.
const MAX_ENTRIES: usize = 1_024;

/// A directory with findings.
#[derive(Debug, Clone)]
pub struct Cache {
    directory: PathBuf,
}

/// Why there is no cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory cannot be made or looked at.
    #[error("the directory {path} cannot be used ({source})")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can write to it, or it is somebody else's.
    #[error("the directory {path} must belong to the user of this process and be closed to all others (mode 0700)")]
    Open {
        /// Which.
        path: PathBuf,
    },
}

/// What an entry holds.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    version: u32,
    build_id: String,
    size: u64,
    found: FamilyPlan,
    /// Hexadecimal bytes of each part of the file that proved it.
    bytes: Vec<String>,
}

impl Cache {
    /// Uses this directory, which is made if it is not there.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open(directory: &Path) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Io { path: directory.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let meta = fs::symlink_metadata(directory).map_err(failed)?;
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
            return Err(CacheError::Open { path: directory.to_owned() });
        }
        Ok(Self { directory: directory.to_owned() })
    }

    /// As [`Plan::of`], with what is known already; what is found by searching is kept.
    #[must_use]
    pub fn plan(&self, elf: &Elf<'_>, size: u64) -> Plan {
        let Some(build_id) = elf.build_id() else { return Plan::of(elf) };
        let mut plan = Plan { build_id: Some(build_id.clone()), ..Plan::default() };
        for (family, find) in FINDERS {
            if !family.is_searched() {
                plan.add(*family, find(elf));
                continue;
            }
            let path = self.path(&build_id, *family);
            if let Some(found) = self.read(&path, elf, *family, &build_id, size) {
                plan.add(*family, Ok(Some(found)));
                continue;
            }
            let found = find(elf);
            // What has symbols is found at once, and nothing but they would prove it.
            if let Ok(Some(found)) = &found
                && !found.proof.is_empty()
            {
                self.write(&path, elf, found, &build_id, size);
            }
            plan.add(*family, found);
        }
        plan
    }

    fn path(&self, build_id: &str, family: Family) -> PathBuf {
        // A build id is the file's to choose: only its first bytes are part of a name.
        let id: String = build_id.chars().filter(char::is_ascii_hexdigit).take(64).collect();
        self.directory.join(format!("{id}-{family:?}"))
    }

    /// An entry, if it is whole and everything that it says is so in the file.
    fn read(&self, path: &Path, elf: &Elf<'_>, family: Family, build_id: &str, size: u64) -> Option<FamilyPlan> {
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "A finding on disk cannot be read: searching again.");
                return None;
            }
        };
        let mut text = Vec::new();
        let read = file.take(MAX_ENTRY).read_to_end(&mut text);
        match read.ok().and_then(|_| parse(&text)) {
            None => {
                tracing::warn!(path = %path.display(), "A finding on disk is damaged, or not one: searching again.");
                None
            }
            Some(entry) => {
                let fits = entry.version == VERSION
                    && entry.found.family == family
                    && entry.build_id == build_id
                    && entry.size == size
                    && entry.is_proven_by(elf);
                if !fits {
                    tracing::info!(path = %path.display(), "A finding on disk is of another version or file: searching again.");
                }
                fits.then_some(entry.found)
            }
        }
    }

    /// Keeps a finding; what goes wrong is a line in the log and nothing more.
    fn write(&self, path: &Path, elf: &Elf<'_>, found: &FamilyPlan, build_id: &str, size: u64) {
        let bytes: Option<Vec<String>> =
            found.proof.iter().map(|part| Some(hex(elf.bytes_at(part.offset, part.len)?))).collect();
        let Some(bytes) = bytes else { return };
        let entry = Entry { version: VERSION, build_id: build_id.to_owned(), size, found: found.clone(), bytes };
        if let Err(error) = self.store(path, &entry) {
            tracing::warn!(path = %path.display(), %error, "A finding cannot be kept on disk.");
        }
    }

    fn store(&self, path: &Path, entry: &Entry) -> io::Result<()> {
        if fs::read_dir(&self.directory)?.count() >= MAX_ENTRIES {
            return Err(io::Error::other(format!("there are {MAX_ENTRIES} already")));
        }
        let json = serde_json::to_string(entry)?;
        let text = format!("{MAGIC} {:016x}\n{json}\n", checksum(json.as_bytes()));
        // Under a name of its own first: nobody ever reads half of it.
        let fresh = self.directory.join(format!(".{}", std::process::id()));
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&fresh)
            .and_then(|mut file: File| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&fresh, path));
        if written.is_err() {
            drop(fs::remove_file(&fresh));
        }
        written
    }
}

impl Entry {
    /// Whether the file has the same bytes in every part that proved it, and every hook lies at the beginning of a function among them.
    fn is_proven_by(&self, elf: &Elf<'_>) -> bool {
        let proof = &self.found.proof;
        let same = proof.len() == self.bytes.len()
            && !proof.is_empty()
            && proof.iter().zip(&self.bytes).all(|(part, kept)| {
                part.len <= MAX_ENTRY && elf.bytes_at(part.offset, part.len).is_some_and(|bytes| hex(bytes) == *kept)
            });
        same && !self.found.hooks.is_empty()
            && self.found.hooks.iter().all(|hook| proof.iter().any(|part| part.is_hooked_at(hook.offset)))
    }
}

fn parse(text: &[u8]) -> Option<Entry> {
    let text = std::str::from_utf8(text).ok()?;
    let (head, json) = text.split_once('\n')?;
    let json = json.strip_suffix('\n')?;
    let sum = head.strip_prefix(MAGIC)?.strip_prefix(' ')?;
    (sum == format!("{:016x}", checksum(json.as_bytes()))).then_some(())?;
    serde_json::from_str(json).ok()
}

/// FNV-1a: it tells damage, not malice. Whoever can write here is root.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
