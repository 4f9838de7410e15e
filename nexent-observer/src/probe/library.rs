//! What is known of each file that a process may have mapped: once per inode and content, whatever processes use it.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use object::ReadCache;

use super::{
    elf::Elf,
    plan::Plan,
    process::{FileId, FileStamp, MappedFile},
};

/// A file with hook points.
#[derive(Debug, Clone)]
pub struct Library {
    /// Identity.
    pub id: FileId,
    /// Path as the first process that showed it sees it, for people.
    pub path: PathBuf,
    /// What it holds.
    pub plan: Arc<Plan>,
}

/// Files looked into so far.
#[derive(Debug, Default)]
pub struct Libraries {
    known: HashMap<FileId, (FileStamp, Option<Arc<Plan>>)>,
}

/// Most files remembered; over it all are forgotten and looked into again when met.
const KNOWN_FILES: usize = 65_536;

impl Libraries {
    /// Those of `files` that have hook points.
    pub fn hookable(&mut self, files: &[MappedFile]) -> Vec<Library> {
        files
            .iter()
            .filter_map(|file| {
                let plan = self.plan_of(file).filter(|plan| plan.is_hookable())?;
                Some(Library { id: file.id, path: file.path.clone(), plan })
            })
            .collect()
    }

    /// What was found in `files` and is not hooked, as the end of a half-sentence; empty: nothing.
    pub fn refused(&mut self, files: &[MappedFile]) -> String {
        let mut said = String::new();
        for file in files {
            let Some(plan) = self.plan_of(file) else { continue };
            for (family, why) in &plan.refused {
                said.push_str(&format!("; {} in {}: {why}", family, file.path.display()));
            }
        }
        said
    }

    fn plan_of(&mut self, file: &MappedFile) -> Option<Arc<Plan>> {
        let opened = File::open(&file.open).ok()?;
        let stamp = FileStamp::of(&opened).ok()?;
        if let Some((known, plan)) = self.known.get(&file.id)
            && *known == stamp
        {
            return plan.clone();
        }
        let plan = look_into(opened).map(Arc::new);
        if self.known.len() >= KNOWN_FILES {
            self.known.clear();
        }
        self.known.insert(file.id, (stamp, plan.clone()));
        plan
    }
}

/// What an opened file holds, if it is an ELF file.
fn look_into(file: File) -> Option<Plan> {
    let cache = ReadCache::new(file);
    Some(Plan::of(&Elf::parse(&cache).ok()?))
}

/// What a file by path holds; `None` if it is no ELF file of this machine.
///
/// # Errors
/// As opening the file gives them.
pub fn plan_of_path(path: &Path) -> std::io::Result<Option<Plan>> {
    Ok(look_into(File::open(path)?))
}
