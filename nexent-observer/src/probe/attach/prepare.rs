//! Executables of which processes are expected: looked into and hooked before anybody runs them.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Attacher, kills_under_seccomp};
use crate::privileges;
use crate::probe::{
    kernel::{KernelError, Sockets},
    opener,
    plain::PlainHttp,
    process::{FileId, MappedFile},
};

impl Attacher {
    /// Finds a file by a path of the user's.
    ///
    /// # Errors
    /// `TimedOut` when its file system has not answered until then; else as the kernel gives them.
    pub fn found(&self, path: &Path, patience: Duration) -> io::Result<File> {
        self.libraries.opener().find(path, patience)
    }

    /// Looks into an executable, and hooks for all processes the TLS that it holds itself, so that the first process is observed from
    /// its first instruction: a program may be through with its calls before 100 MB are searched. Processes that load their TLS
    /// from other files are hooked when they have. What goes wrong here is left to the first process as well. `false`: it is being written to, or
    /// searched; try again.
    pub fn prepare(&mut self, executable: &Path, file: FileId, patience: Duration) -> bool {
        let _raised = privileges::raise();
        // Opened once and kept, so that all of it is about one file, whatever the path leads to meanwhile.
        let found = self.found(executable, patience);
        let look =
            |opened: File| Ok((FileId::as_mapped(&opened), opener::find(Path::new(&opener::own_path(&opened)))?));
        let opened = found.and_then(|found| self.libraries.opener().with(&found, patience, look));
        let (id, opened) = match opened {
            Ok(opened) => opened,
            Err(error) => return error.kind() != io::ErrorKind::TimedOut,
        };
        let open = PathBuf::from(opener::own_path(&opened));
        // Under another identity the first process would be hooked once more, and its bytes be seen twice.
        let same = id.is_ok_and(|id| id == file);
        self.prepared.insert(file, opened);
        let mapped = MappedFile { id: file, path: executable.to_owned(), open, text: Vec::new() };
        let files = std::slice::from_ref(&mapped);
        let (hookable, complete) = self.libraries.hookable(files);
        let path = executable.display();
        if !complete {
            tracing::warn!(%path, "It is still being searched for TLS: its first processes may be missed.");
        }
        // Which process runs it is not known yet, nor whether one may be hooked at all.
        if hookable.is_empty() || !same || kills_under_seccomp(&release()) {
            return complete;
        }
        let needs_sockets = hookable.iter().any(|library| library.plan.needs_sockets());
        match self.share(&hookable, files).and_then(|()| if needs_sockets { self.join_from_exec(file) } else { Ok(()) })
        {
            Ok(()) => tracing::info!(%path, "It is hooked: its processes are observed from their first instruction."),
            Err(KernelError::Rewritten { .. }) => return false,
            Err(error) => tracing::warn!(%path, %error, "It cannot be hooked before it runs."),
        }
        true
    }
}

impl Attacher {
    /// Looks at the sockets of processes of an executable from their exec on, whether one runs or not: what is sealed or opened before
    /// that belongs to no connection.
    fn join_from_exec(&mut self, file: FileId) -> Result<(), KernelError> {
        self.attach_sockets()?;
        self.kept_plain = true;
        self.kernel.arm_executable(file, Sockets { plain: self.plain_http == PlainHttp::On, join: true })
    }
}

/// Release of the kernel.
pub(super) fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
