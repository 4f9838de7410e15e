//! What `/proc` says of a process. Everything read here is the target's to choose: nothing is trusted, all is bounded.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

/// Most bytes read of one `/proc` file. A process can have 65,530 mappings (vm.max_map_count) and more.
const PROC_FILE_BYTES: u64 = 32 << 20;

/// Identity of a file: device and inode as the kernel shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// What tells a file's content apart from an earlier one under the same identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    size: u64,
    changed: (i64, i64),
}

impl FileStamp {
    /// That of no file.
    pub(super) const fn none() -> Self {
        Self { size: u64::MAX, changed: (i64::MIN, i64::MIN) }
    }

    /// Stamp of an open file.
    ///
    /// # Errors
    /// The error of `fstat`.
    pub fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self { size: meta.size(), changed: (meta.ctime(), meta.ctime_nsec()) })
    }

    /// The same, as far as it is known here: a server of a network file system is not asked, so nothing waits for one that is gone.
    ///
    /// # Errors
    /// The error of `statx`.
    pub fn as_known(file: &File) -> io::Result<Self> {
        use rustix::fs::{AtFlags, StatxFlags, statx};
        let of = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let meta = statx(file, "", of, StatxFlags::SIZE | StatxFlags::CTIME)?;
        let changed = meta.stx_ctime;
        Ok(Self { size: meta.stx_size, changed: (changed.tv_sec, i64::from(changed.tv_nsec)) })
    }
}

impl FileId {
    /// Identity of what a path leads to. For the links of `/proc/PID` no file system is asked.
    ///
    /// # Errors
    /// The error of `statx`.
    pub fn of(path: &Path) -> io::Result<Self> {
        use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
        Ok(Self::in_answer(&statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?))
    }

    /// Identity of an open file, or of one that was found. No file system is asked.
    ///
    /// # Errors
    /// The error of `statx`.
    pub fn of_file(file: &File) -> io::Result<Self> {
        use rustix::fs::{AtFlags, StatxFlags, statx};
        Ok(Self::in_answer(&statx(file, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?))
    }

    fn in_answer(meta: &rustix::fs::Statx) -> Self {
        Self { device: rustix::fs::makedev(meta.stx_dev_major, meta.stx_dev_minor), inode: meta.stx_ino }
    }
}

impl FileId {
    /// Identity under which a mapping of this file is shown: some file systems (overlayfs, btrfs) show another one than `stat` does.
    ///
    /// # Errors
    /// As the kernel gives them; `NotFound` when the mapping is not shown.
    pub fn as_mapped(file: &File) -> io::Result<Self> {
        // SAFETY: a new mapping, at an address that the kernel chooses. Nothing reads from it.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), 1, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let maps = read_bounded(Path::new("/proc/self/maps"));
        // SAFETY: it was mapped above, and nobody else knows of it.
        unsafe { libc::munmap(at, 1) };
        let begins = format!("{:08x}-", at as usize);
        let maps = maps?;
        let maps = String::from_utf8_lossy(&maps);
        let id = maps.lines().find(|line| line.starts_with(&begins)).and_then(|line| {
            let mut fields = line.split_ascii_whitespace().skip(3);
            Some(Self { device: device_number(fields.next()?)?, inode: fields.next()?.parse().ok()? })
        });
        id.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Eight bytes of a file as a new mapping of it in this process shows them: with the probes that the kernel puts into every mapping of this
/// very file, whichever a file system calls by the same name and number.
///
/// # Errors
/// As the kernel gives them; also where the file ends before.
pub fn mapped_bytes(file: &File, offset: u64) -> io::Result<[u8; 8]> {
    const PAGE: u64 = 0xffff; // of 64 KiB where pages are that large
    let (page, within) = (offset & !PAGE, offset & PAGE);
    let begin = libc::off_t::try_from(page).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut bytes = [0; 8];
    let length = within as usize + bytes.len();
    let memory = File::open("/proc/self/mem")?;
    // SAFETY: a new mapping, at an address that the kernel chooses. Nothing reads from it but the kernel, which refuses what is not there.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), begin)
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let read = memory.read_exact_at(&mut bytes, at as u64 + within);
    // SAFETY: it was mapped above, and nobody else knows of it.
    unsafe { libc::munmap(at, length) };
    read.map(|()| bytes)
}

/// A file that a process has mapped executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedFile {
    /// Identity.
    pub id: FileId,
    /// Path as the process sees it (in its mount namespace), for people.
    pub path: PathBuf,
    /// A path through which this very file can be opened here, whatever namespace or deletion.
    pub open: PathBuf,
    /// Where it is mapped executable.
    pub text: Vec<Segment>,
}

/// A part of a file that is mapped executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First address, and the one behind the last.
    pub start: u64,
    /// See `start`.
    pub end: u64,
    /// Offset in the file of what lies at `start`, bytes.
    pub offset: u64,
}

impl Segment {
    /// Address of an offset in the file.
    fn address(&self, offset: u64) -> Option<u64> {
        let address = self.start.checked_add(offset.checked_sub(self.offset)?)?;
        (address < self.end).then_some(address)
    }
}

impl MappedFile {
    /// Address of an offset in the file; `None`: it is not mapped executable.
    #[must_use]
    pub fn address(&self, offset: u64) -> Option<u64> {
        self.text.iter().find_map(|segment| segment.address(offset))
    }
}

/// A running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    /// tgid in the initial pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since boot: tells a reused pid apart.
    pub start_ticks: u64,
}

/// `/proc/PID/name`.
fn proc_path(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// A `/proc` file, up to a bound.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(PROC_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a process has threads besides its leader: a leader that called `pthread_exit` is a zombie in a living process.
fn has_other_threads(pid: u32) -> bool {
    fs::read_dir(proc_path(pid, "task")).is_ok_and(|tasks| tasks.flatten().nth(1).is_some())
}

impl Process {
    /// The process with this pid, if it lives. Zombies do not.
    ///
    /// # Errors
    /// `NotFound` when there is none (or it is a zombie); others as the kernel gives them.
    pub fn find(pid: u32) -> io::Result<Self> {
        let stat = read_bounded(&proc_path(pid, "stat"))?;
        // The name in parentheses may hold anything; the fields follow the last parenthesis (proc(5)).
        let after = stat.iter().rposition(|byte| *byte == b')').and_then(|at| stat.get(at + 2..)).unwrap_or_default();
        let text = String::from_utf8_lossy(after);
        let mut fields = text.split_ascii_whitespace();
        let state = fields.next().unwrap_or_default();
        if (state == "Z" || state == "X") && !has_other_threads(pid) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        let start_ticks = fields.nth(18).and_then(|field| field.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, start_ticks })
    }

    /// Whether it still lives.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Self::find(self.pid).is_ok_and(|now| now == self)
    }

    /// How long ago it began; 0 when that cannot be told.
    #[must_use]
    pub fn age(self) -> Duration {
        // SAFETY: no memory is involved.
        let ticks_per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100).max(1);
        let uptime = fs::read_to_string("/proc/uptime").ok();
        let uptime = uptime.and_then(|text| text.split_ascii_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0);
        let began = self.start_ticks as f64 / ticks_per_second as f64;
        Duration::try_from_secs_f64(uptime - began).unwrap_or_default()
    }

    /// Every process of this pid namespace.
    #[must_use]
    pub fn all() -> Vec<u32> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Identity of its executable.
    ///
    /// # Errors
    /// As the kernel gives them (kernel threads have none).
    pub fn executable(pid: u32) -> io::Result<FileId> {
        FileId::of(&proc_path(pid, "exe"))
    }

    /// Whether it is a thread of the kernel: it has no command line and no executable, as no program and every zombie has.
    #[must_use]
    pub fn is_kernel_thread(pid: u32) -> bool {
        // Readable by everyone, other than what `exe` leads to.
        let no_words = read_bounded(&proc_path(pid, "cmdline")).is_ok_and(|words| words.is_empty());
        no_words && Self::status(pid, "VmSize:").is_none()
    }

    /// Path of its executable as the process sees it, for people.
    #[must_use]
    pub fn executable_path(pid: u32) -> Option<PathBuf> {
        fs::read_link(proc_path(pid, "exe")).ok()
    }

    /// Its environment at exec, as pairs; entries without `=` are left out.
    #[must_use]
    pub fn environment(pid: u32) -> Vec<(String, String)> {
        let bytes = read_bounded(&proc_path(pid, "environ")).unwrap_or_default();
        bytes
            .split(|byte| *byte == 0)
            .filter_map(|entry| {
                let text = String::from_utf8_lossy(entry);
                let (name, value) = text.split_once('=')?;
                Some((name.to_owned(), value.to_owned()))
            })
            .collect()
    }

    /// Mode of seccomp: 0 none, 1 strict, 2 filter (proc(5), `Seccomp`).
    #[must_use]
    pub fn seccomp(pid: u32) -> u32 {
        Self::status(pid, "Seccomp:").and_then(|mode| mode.trim().parse().ok()).unwrap_or(0)
    }

    /// Kilobytes that it has mapped executable, without its program's own code (proc(5), `VmLib`): cheaper to ask for than what is mapped.
    #[must_use]
    pub fn mapped_code(pid: u32) -> Option<u64> {
        Self::status(pid, "VmLib:")?.split_ascii_whitespace().next()?.parse().ok()
    }

    /// Pid of its parent.
    #[must_use]
    pub fn parent(pid: u32) -> Option<u32> {
        Self::status(pid, "PPid:")?.trim().parse().ok()
    }

    /// Number of the user with whose rights it runs.
    #[must_use]
    pub fn user(pid: u32) -> Option<u32> {
        // Real, effective, saved, file system.
        Self::status(pid, "Uid:")?.split_ascii_whitespace().nth(1)?.parse().ok()
    }

    /// A line of its status (proc(5)) without its name.
    fn status(pid: u32, name: &str) -> Option<String> {
        let status = read_bounded(&proc_path(pid, "status")).ok()?;
        String::from_utf8_lossy(&status).lines().find_map(|line| line.strip_prefix(name).map(str::to_owned))
    }

    /// Tells one set of executable mappings from another.
    #[must_use]
    pub fn mapped_hash(pid: u32) -> Option<u64> {
        let mut ids: Vec<FileId> = Self::mapped_files(pid).ok()?.into_iter().map(|file| file.id).collect();
        ids.sort();
        let mut hasher = DefaultHasher::new();
        ids.hash(&mut hasher);
        Some(hasher.finish())
    }

    /// Files that it has mapped executable, each once.
    ///
    /// # Errors
    /// As the kernel gives them: `NotFound` when it is gone, `PermissionDenied` without CAP_SYS_PTRACE.
    pub fn mapped_files(pid: u32) -> io::Result<Vec<MappedFile>> {
        let maps = read_bounded(&proc_path(pid, "maps"))?;
        Ok(parse_maps(pid, &maps))
    }
}

/// Parses `/proc/PID/maps` (proc(5)): `start-end perms offset dev inode path`.
fn parse_maps(pid: u32, maps: &[u8]) -> Vec<MappedFile> {
    let mut files: Vec<MappedFile> = Vec::new();
    for line in String::from_utf8_lossy(maps).lines() {
        let mut fields = line.splitn(6, ' ');
        let (Some(range), Some(perms), Some(offset), Some(device), Some(inode), Some(path)) =
            (fields.next(), fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let path = path.trim_start();
        let (Some(device), Ok(inode)) = (device_number(device), inode.parse::<u64>()) else { continue };
        if !perms.contains('x') || inode == 0 || !path.starts_with('/') {
            continue;
        }
        let number = |text| u64::from_str_radix(text, 16).ok();
        let Some((start, end)) = range.split_once('-') else { continue };
        let (Some(start), Some(end), Some(offset)) = (number(start), number(end), number(offset)) else { continue };
        let id = FileId { device, inode };
        let segment = Segment { start, end, offset };
        if let Some(file) = files.iter_mut().find(|file| file.id == id) {
            file.text.push(segment);
            continue;
        }
        // `maps` pads low addresses with zeros, the names in `map_files` have none (fs/proc/{task_mmu,base}.c).
        let open = PathBuf::from(format!("/proc/{pid}/map_files/{start:x}-{end:x}"));
        files.push(MappedFile { id, path: PathBuf::from(path), open, text: vec![segment] });
    }
    files
}

/// `major:minor` in hexadecimal as `st_dev` (glibc's makedev).
fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    let (major, minor) = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    Some(libc::makedev(major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_with_its_files() {
        let me = Process::find(std::process::id()).expect("this process lives");
        assert!(me.is_alive());
        assert!(!Process { start_ticks: me.start_ticks + 1, ..me }.is_alive(), "a reused pid is another process");
        let files = Process::mapped_files(me.pid).expect("own maps");
        let exe = FileId::of(Path::new("/proc/self/exe")).expect("own executable");
        assert!(files.iter().any(|file| file.id == exe), "{files:?}");
        assert!(Process::all().contains(&me.pid));
        assert!(!Process::is_kernel_thread(me.pid));
        assert_eq!(Process::parent(me.pid), Some(std::os::unix::process::parent_id()));
        assert!(Process::mapped_code(me.pid) > Some(0) && Process::mapped_code(u32::MAX).is_none());
        // SAFETY: no memory is involved.
        assert_eq!(Process::user(me.pid), Some(unsafe { libc::geteuid() }));
        assert_eq!((Process::parent(u32::MAX), Process::user(u32::MAX)), (None, None));
    }

    #[test]
    fn a_mapping_of_our_own_shows_what_is_in_the_file() {
        let file = File::open("/proc/self/exe").expect("own program");
        assert_eq!(mapped_bytes(&file, 0).expect("mapped")[..4], *b"\x7fELF");
        let size = file.metadata().expect("own program").len();
        let mut last = [0; 8];
        file.read_exact_at(&mut last, size - 8).expect("its end");
        assert_eq!(mapped_bytes(&file, size - 8).expect("mapped"), last);
        assert!(mapped_bytes(&file, size + (1 << 20)).is_err());
        assert!(mapped_bytes(&file, u64::MAX).is_err());
    }

    #[test]
    fn a_mapping_shows_the_file_that_it_is_of() {
        let exe = Process::mapped_files(std::process::id()).expect("own maps").into_iter().next().expect("the program");
        let file = File::open(&exe.open).expect("own program");
        assert_eq!(FileId::as_mapped(&file).expect("mapped"), exe.id);
        let empty = File::open("/proc/self/maps").expect("own maps");
        assert!(FileId::as_mapped(&empty).is_err(), "it cannot be mapped");
    }

    #[test]
    fn hostile_maps_are_read_as_far_as_they_make_sense() {
        let maps = b"00400000-00452000 r-xp 00001000 08:02 173521 /usr/bin/a b c\n\
            garbage\n\
            7f0-7f1 r--p 0 08:02 5 /not/executable\n\
            7f1-7f2 r-xp 0 00:00 0 [vdso]\n\
            7f2000-7f3000 r-xp 60000 08:02 173521                  /usr/bin/a b c\n\
            7f3-7f4 r-xp 0 fe:zz 9 /bad/device\n\
            7f3-xyz r-xp 0 08:02 10 /bad/range\n\
            7f4-7f5 r-xp 0 08:02 9 /gone (deleted)\n\xff\xfe";
        let files = parse_maps(7, maps);
        let paths: Vec<_> = files.iter().map(|file| file.path.to_str().unwrap_or_default()).collect();
        assert_eq!(paths, ["/usr/bin/a b c", "/gone (deleted)"]);
        assert_eq!(files[0].open, Path::new("/proc/7/map_files/400000-452000"));
        assert_eq!(files[0].id, FileId { device: libc::makedev(8, 2), inode: 173_521 });
        let addresses = [0x1000, 0x52fff, 0x53000, 0x60010, 0xfff, u64::MAX].map(|offset| files[0].address(offset));
        assert_eq!(addresses, [Some(0x40_0000), Some(0x45_1fff), None, Some(0x7f_2010), None, None]);
    }
}
