//! Whether probes are still where they were put. A breakpoint goes from the code of a process without a word: the process throws its page
//! away and reads it anew from the file (`MADV_DONTNEED`), or an overlay file system has made another file of a library, and a
//! process that starts then runs without the probes of the old one. So the code itself is looked at, which costs the process
//! nothing, and what is gone is put back.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nexent_observer_common::cookie::Scope;

use super::{Attached, Attacher, KernelError, Library, Observed, privileges};
use crate::probe::{
    kernel::Place,
    lease::HookedFile,
    opener,
    process::{FileId, MappedFile, Process, mapped_bytes},
};

/// Most shared attachments to one library: each stands for another file below an overlay file system.
const SETS: usize = 8;

/// Probes of a process that were gone from its code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Which.
    pub pid: u32,
    /// Whose code.
    pub library: PathBuf,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// What was attached is in the code again.
    Restored,
    /// They were attached anew.
    Reattached,
    /// They cannot be put back, for this reason.
    Failed(&'static str),
}

/// Numbers of losses since the start, by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Losses {
    /// [`Outcome::Restored`].
    pub restored: u64,
    /// [`Outcome::Reattached`].
    pub reattached: u64,
    /// [`Outcome::Failed`].
    pub failed: u64,
    /// Files that were written over in place, so that their probes were taken away.
    pub rewritten: u64,
}

/// How far a loss is.
#[derive(Debug)]
enum Stage {
    /// Seen once: it may be that the process has just become another program.
    Suspected,
    /// Probes that do nothing were put in, and are being taken out; what is attached to the same file stays then. Nobody else holds
    /// the value once they are out.
    Roused(Arc<()>),
    /// Nothing helps.
    Failed(PathBuf, &'static str),
}

/// Losses that are known.
#[derive(Debug, Default)]
pub(super) struct Presence {
    stages: HashMap<(u32, FileId), Stage>,
    losses: Losses,
}

impl Presence {
    /// Nothing is known any more of a file.
    pub(super) fn forget(&mut self, file: FileId) {
        self.stages.retain(|(_, of), _| *of != file);
    }

    fn is_rousing(&self, file: FileId) -> bool {
        self.stages.iter().any(|((_, of), stage)| *of == file && matches!(stage, Stage::Roused(_)))
    }
}

impl Attacher {
    /// Looks over the observed processes. Gives those that have mapped or unmapped executable files since they were last looked at,
    /// for they may have loaded another TLS library, and what came of probes that were gone. A loss is believed at the second look.
    pub fn look_over(&mut self) -> (Vec<u32>, Vec<Loss>) {
        let (mut outgrown, mut losses, mut looked_at) = (Vec::new(), Vec::new(), HashSet::new());
        let pids: Vec<u32> = self.pids().collect();
        for &pid in &pids {
            let Some((hooked, grown)) = self.hooked_files(pid) else { continue };
            if grown {
                outgrown.push(pid);
            }
            // Not readable under some security modules: then nothing is known, and nothing is done.
            let Ok(memory) = File::open(format!("/proc/{pid}/mem")) else { continue };
            for file in hooked {
                looked_at.insert((pid, file.id));
                if let Some(outcome) = self.check(pid, &file, &memory) {
                    let counted = match outcome {
                        Outcome::Restored => &mut self.presence.losses.restored,
                        Outcome::Reattached => &mut self.presence.losses.reattached,
                        Outcome::Failed(_) => &mut self.presence.losses.failed,
                    };
                    *counted += 1;
                    losses.push(Loss { pid, library: file.path.clone(), outcome });
                }
            }
        }
        // What is not mapped any more, or by nobody who is observed, is not missed.
        self.presence.stages.retain(|key, _| looked_at.contains(key));
        (outgrown, losses)
    }

    /// Files of a process that are hooked, and whether the number of those that it has mapped executable is another one. The list of
    /// mappings is long, and hardly ever another one: it is read when the amount of code is (where code is compiled at run time that
    /// changes all the time), or a probe is missed.
    fn hooked_files(&mut self, pid: u32) -> Option<(Vec<MappedFile>, bool)> {
        let code = Process::mapped_code(pid); // before the files: what is mapped in between is looked at again
        let observed = self.observed.get_mut(&pid)?;
        let missed = self.presence.stages.keys().any(|(of, _)| *of == pid);
        if !missed && code.is_some() && code == observed.code {
            return Some((observed.hooked.clone(), false));
        }
        let files = Process::mapped_files(pid).ok()?;
        let grown = files.len() != observed.files;
        observed.hooked = files.into_iter().filter(|file| observed.libraries.contains_key(&file.id)).collect();
        observed.code = code.filter(|_| !grown);
        Some((observed.hooked.clone(), grown))
    }

    /// Losses since the start.
    #[must_use]
    pub fn losses(&self) -> Losses {
        Losses { rewritten: self.proofs.count, ..self.presence.losses }
    }

    /// Processes whose probes are gone and cannot be put back, with the library and the reason.
    pub fn without_probes(&self) -> impl Iterator<Item = (u32, &Path, &'static str)> {
        self.presence.stages.iter().filter_map(|((pid, _), stage)| match stage {
            Stage::Failed(library, why) => Some((*pid, library.as_path(), *why)),
            _ => None,
        })
    }

    /// Looks at one library of a process, and takes the next step where probes are gone.
    fn check(&mut self, pid: u32, file: &MappedFile, memory: &File) -> Option<Outcome> {
        let there = self.is_in_place(pid, file, memory)?;
        let key = (pid, file.id);
        let (next, outcome) = match (self.presence.stages.remove(&key), there) {
            (Some(Stage::Roused(out)), _) if Arc::strong_count(&out) > 1 => (Some(Stage::Roused(out)), None),
            (Some(Stage::Roused(_)), true) => (None, Some(Outcome::Restored)),
            (_, true) => (None, None),
            (None, false) => (Some(Stage::Suspected), None),
            // One at a time: what helps one process may help all others that share the attachment, and each costs its time.
            (Some(Stage::Suspected), false) if self.presence.is_rousing(file.id) => (Some(Stage::Suspected), None),
            (Some(Stage::Suspected), false) => match self.rouse(pid, file, memory) {
                Ok(Some(out)) => (Some(Stage::Roused(out)), None),
                Ok(None) => (Some(Stage::Suspected), None),
                Err(why) => (Some(Stage::Failed(file.path.clone(), why)), Some(Outcome::Failed(why))),
            },
            (Some(Stage::Roused(_)), false) => match self.attach_anew(pid, file, memory) {
                Ok(true) => (None, Some(Outcome::Reattached)),
                Ok(false) => (Some(Stage::Suspected), None),
                Err(why) => (Some(Stage::Failed(file.path.clone(), why)), Some(Outcome::Failed(why))),
            },
            (failed @ Some(Stage::Failed(..)), false) => (failed, None),
        };
        if let Some(stage) = next {
            self.presence.stages.insert(key, stage);
        }
        outcome
    }

    /// Whether all probes of an attachment to this file are in the code of the process. `None`: that cannot be read.
    fn is_in_place(&self, pid: u32, file: &MappedFile, memory: &File) -> Option<bool> {
        let observed = self.observed.get(&pid)?;
        let mut known = None;
        for set in self.sets(observed, file.id) {
            let mut whole = !set.is_empty();
            for probe in set {
                let Some(code) = code_at(memory, file, probe.offset()) else { continue };
                whole &= is_breakpoint(code);
                known = Some(false);
            }
            if whole && known.is_some() {
                return Some(true);
            }
        }
        known
    }

    /// The attachments to a library that are for this process.
    fn sets<'a>(&'a self, observed: &'a Observed, file: FileId) -> &'a [Vec<Attached>] {
        match observed.scope {
            Scope::PerProcess => observed.libraries.get(&file).map_or(&[], std::slice::from_ref),
            Scope::Filtered => self.filtered.get(&file).map_or(&[], Vec::as_slice),
        }
    }

    /// Puts probes that do nothing into a process, where its hooks belong, and takes them out again. What is attached to the very file that
    /// it runs is thereby in its code again, and no call is ever seen twice. `None`: not yet, the file is being searched.
    fn rouse(&mut self, pid: u32, file: &MappedFile, memory: &File) -> Result<Option<Arc<()>>, &'static str> {
        let _raised = privileges::raise();
        let Some(library) = self.library(file)? else { return Ok(None) };
        // What was proven for another file of this name is nothing to put here.
        let hooks = library.plan.implementations.iter().flat_map(|plan| &plan.hooks);
        let proven: HashSet<u64> = hooks.map(|hook| hook.offset).collect();
        let attached = self.observed.get(&pid).map(|observed| self.sets(observed, file.id)).unwrap_or_default();
        let of_this = attached.iter().filter(|set| set.iter().all(|probe| proven.contains(&probe.offset())));
        // Not where there was none: the kernel may have refused that one.
        let offsets: HashSet<u64> = of_this.flat_map(|set| set.iter().map(Attached::offset)).collect();
        if offsets.is_empty() {
            return Ok(Some(Arc::new(())));
        }
        let wanted: Vec<u64> = offsets.iter().copied().collect();
        let read = self.opened(file, move |opened| {
            let there = wanted.iter().map(|offset| Ok((*offset, eight_at(&opened, *offset)?)));
            let there = there.collect::<io::Result<Vec<_>>>()?;
            Ok((there, Arc::new(HookedFile::unleased(&opened)?)))
        });
        let (there, opened) = match read {
            Ok(read) => read,
            Err(error) if is_passing(&error) => return Ok(None),
            Err(_) => return Err("its file cannot be read: restart the process"),
        };
        if !runs_what_is_in_the_file(memory, file, &there) {
            return Err("it runs other code than the file that is there now: restart the process");
        }
        let place = Place { held: self.proofs.held_for(file.id, &opened), file: opened };
        self.kernel.mark_unseen(pid);
        let refused = |error: KernelError| {
            tracing::debug!(pid, %error, "Probes that were gone are refused.");
            "the kernel refuses to put them back: restart the process, or attach to it anew"
        };
        let probes = self.kernel.rouse(&offsets, &place, pid).map_err(refused)?;
        let there = offsets.iter().all(|offset| code_at(memory, file, *offset).is_none_or(is_breakpoint));
        let out = Arc::new(());
        for probe in probes {
            self.undertaker.bury(probe, Arc::clone(&out));
        }
        if there {
            Ok(Some(out))
        } else {
            Err("it runs a file that its path does not lead to any more (overlay file system): restart the process")
        }
    }

    /// What is attached is attached to another file than the process runs: attaches to that one. Shared attachments stay beside each other, for
    /// no process runs the code of both. `false`: not yet, the file cannot be read now or is being written to.
    fn attach_anew(&mut self, pid: u32, file: &MappedFile, memory: &File) -> Result<bool, &'static str> {
        const REFUSED: &str = "the kernel refuses to put them back: restart the process, or attach to it anew";
        let _raised = privileges::raise();
        let Some(library) = self.library(file)? else { return Ok(false) };
        let shared = self.observed.get(&pid).is_some_and(|observed| observed.scope == Scope::Filtered);
        if shared && self.filtered.get(&file.id).is_some_and(|sets| sets.len() >= SETS) {
            return Err("its library was changed too often in an overlay file system: restart the observer");
        }
        // The process may have thrown its page away once more since. A second attachment to the very same file would see all bytes twice,
        // of every process; a probe for all processes is in our own mappings as well.
        let hooked = if shared { self.is_hooked(file) } else { Ok(false) };
        if hooked.as_ref().is_err_and(is_passing) {
            return Ok(false);
        }
        if hooked.unwrap_or(true) {
            return Err("it throws pages of its code away again and again: restart the process, or attach to it anew");
        }
        let files = std::slice::from_ref(file);
        let probes = match self.hook(&library, files, (!shared).then_some(pid)) {
            Ok(probes) => probes,
            Err(KernelError::Rewritten { .. }) => return Ok(false),
            Err(error) => {
                tracing::debug!(pid, %error, "Probes that were gone are refused.");
                return Err(REFUSED);
            }
        };
        if shared {
            self.filtered.entry(file.id).or_default().push(probes);
        } else if let Some(observed) = self.observed.get_mut(&pid) {
            let before = observed.libraries.insert(file.id, probes);
            self.bury(before.unwrap_or_default());
        }
        match self.is_in_place(pid, file, memory) {
            Some(true) => Ok(true),
            _ => Err(REFUSED),
        }
    }

    /// Whether a shared attachment is on the file to which the process's mapping leads now.
    fn is_hooked(&self, file: &MappedFile) -> io::Result<bool> {
        let probes = self.filtered.get(&file.id).into_iter().flatten().flatten();
        let offsets: Vec<u64> = probes.map(Attached::offset).collect();
        self.opened(file, move |opened| {
            for offset in offsets {
                let (read, mapped) = (eight_at(&opened, offset)?, mapped_bytes(&opened, offset)?);
                if is_breakpoint(mapped) && mapped != read {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Opens what a process has mapped, and does something short with it.
    fn opened<T: Send + 'static>(
        &self,
        file: &MappedFile,
        work: impl FnOnce(File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.libraries.opener().with(&opener::find(&file.open)?, opener::IN_THE_LOOP, work)
    }

    /// What is in a file now, and can be hooked. `None`: it is being searched.
    fn library(&mut self, file: &MappedFile) -> Result<Option<Library>, &'static str> {
        match self.libraries.hookable(std::slice::from_ref(file)) {
            (_, false) => Ok(None),
            (mut found, true) => match found.pop() {
                Some(library) => Ok(Some(library)),
                None => Err("there is nothing to hook any more in the file that it runs: restart the process"),
            },
        }
    }
}

/// The code of a process at an offset of a file that it has mapped; `None`: it is not mapped there, or cannot be read.
fn code_at(memory: &File, file: &MappedFile, offset: u64) -> Option<[u8; 8]> {
    let mut code = [0; 8];
    memory.read_exact_at(&mut code, file.address(offset)?).ok()?;
    Some(code)
}

/// Whether the kernel has put a probe there: `int3`, or a call where it found a `nop` of five bytes (x86_64); `brk #5` (aarch64).
fn is_breakpoint(code: [u8; 8]) -> bool {
    if cfg!(target_arch = "x86_64") {
        matches!(code[0], 0xcc | 0xe8)
    } else {
        code.starts_with(&0xd420_00a0_u32.to_le_bytes())
    }
}

/// Whether a file that cannot be read now may be readable later.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// What stands at an offset of a file.
fn eight_at(file: &File, offset: u64) -> io::Result<[u8; 8]> {
    let mut there = [0; 8];
    file.read_exact_at(&mut there, offset)?;
    Ok(there)
}

/// Whether the process has at these offsets what the file has there now, but for probes. A probe anywhere else could crash it.
fn runs_what_is_in_the_file(memory: &File, file: &MappedFile, there: &[(u64, [u8; 8])]) -> bool {
    there.iter().all(|(offset, there)| {
        let Some(code) = code_at(memory, file, *offset) else { return false };
        let (code, there) = if is_breakpoint(code) { (&code[5..], &there[5..]) } else { (&code[..], &there[..]) };
        // Another site may follow at once.
        code.iter().zip(there).all(|(mine, theirs)| mine == theirs || *mine == 0xcc)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_process_is_told_from_other_code_and_from_probes() {
        let me = std::process::id();
        let files = Process::mapped_files(me).unwrap();
        let exe = FileId::of(Path::new("/proc/self/exe")).unwrap();
        let file = MappedFile {
            open: PathBuf::from("/proc/self/exe"),
            ..files.into_iter().find(|file| file.id == exe).unwrap()
        };
        let memory = File::open("/proc/self/mem").unwrap();
        let text = file.text[0];
        let opened = File::open(&file.open).unwrap();
        let there = [text.offset, text.offset + 64].map(|offset| (offset, eight_at(&opened, offset).unwrap()));
        assert!(runs_what_is_in_the_file(&memory, &file, &there));
        assert!(!runs_what_is_in_the_file(&memory, &file, &[(there[0].0, [0xaa; 8])]));
        // The same memory, said to be of another part of the file.
        let moved = crate::probe::process::Segment { offset: 0, ..text };
        let other = MappedFile { text: vec![moved], ..file.clone() };
        assert!(!runs_what_is_in_the_file(&memory, &other, &[(0, eight_at(&opened, 0).unwrap())]));
        assert!(!runs_what_is_in_the_file(&memory, &file, &[(u64::MAX, [0; 8])]));
        assert!(eight_at(&opened, u64::MAX >> 1).is_err());
        assert_eq!(code_at(&memory, &file, u64::MAX), None);
        if cfg!(target_arch = "x86_64") {
            assert!(is_breakpoint([0xcc, 0x55, 0, 0, 0, 0, 0, 0]) && is_breakpoint([0xe8; 8]));
            assert!(!is_breakpoint([0xf3, 0x0f, 0x1e, 0xfa, 0xcc, 0, 0, 0]));
        }
    }
}
