//! A file system (FUSE) that falls silent when it is told to, as one on a network does whose server is gone: `silent_fs MOUNTPOINT
//! DIRECTORY [asked-on-close]` shows the regular files of a directory, read-only, under their names; it does not list them. The kernel tells it
//! when a file is closed, and waits, if it wants that, as sshfs does; NFS does not for files that were only read.
//!
//! It says `{"event":"ready"}` when it is mounted. Commands on stdin, one a line, answered by one line of JSON on stdout:
//! `silent` - from now on requests are taken and not answered; answered by `{"event":"silent"}`;
//! `answer` - those that were taken are answered, and all that come; answered by `{"event":"answering","held":[...]}`, what was asked
//! meanwhile in the order in which it came.
//! At the end of stdin, or after [`LONGEST`] of silence, it unmounts itself and ends, and whoever waits for an answer gets an error. Nothing
//! else frees them: not even SIGKILL ends a process that waits for FUSE.
//!
//! What has been read stays in the page cache, also of a file that is opened again: who has read a file before can run it from here during the
//! silence. All else is asked for again after [`FRESH`].

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{BufRead, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fuser::{
    AccessFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use rustix::mount::{UnmountFlags, unmount};

/// Attributes and names are asked for again after this long.
const FRESH: Duration = Duration::from_secs(1);
/// Longest silence. A test that hangs in it can end nobody that it waits for.
const LONGEST: Duration = Duration::from_secs(180);

/// A request that will be answered: what it is called, and how.
type Held = (&'static str, Box<dyn FnOnce() + Send>);

/// What waits for an answer, and since when; `None`: requests are answered.
type Silence = Option<(Instant, Vec<Held>)>;

/// A file that is shown; its inode number is its place in [`Shown::files`] plus [`FIRST`].
#[derive(Debug)]
struct Served {
    name: OsString,
    file: Arc<File>,
    attributes: FileAttr,
}

/// Number of the first file; 1 is the root's.
const FIRST: u64 = 2;

/// The file system.
struct Shown {
    files: Vec<Served>,
    root: FileAttr,
    silence: Arc<Mutex<Silence>>,
    /// Whether closing a file waits for an answer.
    asked_on_close: bool,
}

fn lock(silence: &Mutex<Silence>) -> MutexGuard<'_, Silence> {
    silence.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shown {
    /// The regular files of a directory.
    fn of(directory: &Path, silence: Arc<Mutex<Silence>>, asked_on_close: bool) -> Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if !meta.is_file() {
                continue;
            }
            let file = File::open(entry.path()).with_context(|| format!("cannot open {}", entry.path().display()))?;
            let attributes = attributes(FIRST + files.len() as u64, FileType::RegularFile, &meta)?;
            files.push(Served { name: entry.file_name(), file: Arc::new(file), attributes });
        }
        let root = attributes(1, FileType::Directory, &fs::metadata(directory)?)?;
        Ok(Self { files, root, silence, asked_on_close })
    }

    /// Answers now, or when the silence is over.
    fn answer(&self, request: &'static str, answer: impl FnOnce() + Send + 'static) {
        match lock(&self.silence).as_mut() {
            Some((_, held)) => held.push((request, Box::new(answer))),
            None => answer(),
        }
    }

    fn file(&self, inode: INodeNo) -> Option<&Served> {
        self.files.get(usize::try_from(u64::from(inode).checked_sub(FIRST)?).ok()?)
    }
}

/// Those of a file, as they are shown.
fn attributes(inode: u64, kind: FileType, meta: &fs::Metadata) -> Result<FileAttr> {
    let modified = meta.modified()?;
    Ok(FileAttr {
        ino: INodeNo(inode),
        size: meta.len(),
        blocks: meta.blocks(),
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind,
        perm: (meta.permissions().mode() & 0o7777) as u16,
        nlink: 1,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

impl Filesystem for Shown {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let of_root = || self.files.iter().find(|file| file.name == name);
        let found = (parent == INodeNo::ROOT).then(of_root).flatten().map(|file| file.attributes);
        self.answer("lookup", move || match found {
            Some(attributes) => reply.entry(&FRESH, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        });
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.file(inode).map_or(self.root, |file| file.attributes);
        self.answer("getattr", move || reply.attr(&FRESH, &found));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.answer("open", move || reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE));
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = self.file(inode).map(|served| Arc::clone(&served.file));
        self.answer("read", move || match file.map(|file| read(&file, offset, size as usize)) {
            Some(Ok(bytes)) => reply.data(&bytes),
            Some(Err(error)) => reply.error(error.into()),
            None => reply.error(Errno::EISDIR),
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.answer("statfs", move || reply.statfs(0, 0, 0, 0, 0, 4096, 255, 4096));
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.answer("opendir", move || reply.opened(FileHandle(0), FopenFlags::empty()));
    }

    // What is answered with `ENOSYS` once is not asked for again.

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let goes_on = self.asked_on_close;
        self.answer("flush", move || if goes_on { reply.ok() } else { reply.error(Errno::ENOSYS) });
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        self.answer("access", move || reply.error(Errno::ENOSYS));
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        self.answer("getxattr", move || reply.error(Errno::ENOSYS));
    }
}

/// That many bytes, or those up to the end of the file.
fn read(file: &File, offset: u64, size: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    let mut read = 0;
    while let Some(rest) = bytes.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

/// Unmounts also what is in use, and ends: with the descriptor of `/dev/fuse` all is closed that anybody has open here.
fn end(mountpoint: &Path) -> ! {
    let unmounted = unmount(mountpoint, UnmountFlags::DETACH);
    std::process::exit(i32::from(unmounted.is_err()));
}

fn main() -> Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (mountpoint, directory, asked_on_close) = match arguments.as_slice() {
        [mountpoint, directory] => (mountpoint, directory, false),
        [mountpoint, directory, flag] if flag == "asked-on-close" => (mountpoint, directory, true),
        _ => bail!("usage: silent_fs MOUNTPOINT DIRECTORY [asked-on-close]"),
    };
    let mountpoint = fs::canonicalize(mountpoint).context("there is no such mount point")?;
    let silence = Arc::new(Mutex::new(None));
    let shown = Shown::of(Path::new(directory), Arc::clone(&silence), asked_on_close)?;
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName("silent_fs".to_owned())];
    let session = fuser::Session::new(shown, &mountpoint, &config).context("cannot mount")?;
    let _serving = session.spawn().context("cannot start a thread")?;
    let (watched, at) = (Arc::clone(&silence), mountpoint.clone());
    thread::spawn(move || {
        while lock(&watched).as_ref().is_none_or(|(since, _)| since.elapsed() < LONGEST) {
            thread::sleep(Duration::from_secs(1));
        }
        end(&at);
    });
    let mut out = std::io::stdout();
    writeln!(out, "{{\"event\":\"ready\"}}")?;
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "silent" => {
                lock(&silence).get_or_insert_with(|| (Instant::now(), Vec::new()));
                writeln!(out, "{{\"event\":\"silent\"}}")?;
            }
            "answer" => {
                let held = lock(&silence).take().map(|(_, held)| held).unwrap_or_default();
                let (names, answers): (Vec<_>, Vec<_>) = held.into_iter().unzip();
                answers.into_iter().for_each(|answer| answer());
                writeln!(out, "{{\"event\":\"answering\",\"held\":{}}}", serde_json::to_string(&names)?)?;
            }
            _ => writeln!(out, "{{\"error\":\"unknown command\"}}")?,
        }
        out.flush()?;
    }
    end(&mountpoint)
}
