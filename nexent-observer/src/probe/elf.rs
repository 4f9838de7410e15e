//! Symbols, code and addresses of one ELF file, read piece by piece: a runtime with a static TLS library has hundreds of MB.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{HashMap, HashSet},
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
};

use object::{
    Object, ObjectSection, ObjectSymbol, ReadCache, ReadRef, RelocationTarget, SectionKind, SymbolKind,
    read::elf::{ElfFile64, ProgramHeader},
};

/// Why a file cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Not a 64-bit little-endian ELF file, or damaged.
    #[error("not a readable 64-bit ELF file: {0}")]
    Format(#[from] object::read::Error),
    /// Built for another machine.
    #[error("built for another machine architecture")]
    Architecture,
}

/// A function in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Name of its symbol.
    pub name: String,
    /// Virtual address as the file tells it.
    pub address: u64,
}

/// A section of a file.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    /// Virtual address as the file tells it.
    pub address: u64,
    /// Content.
    pub bytes: &'a [u8],
}

/// Most places of one pointer that are looked at.
const MAX_PLACES: usize = 64;

/// How the names of functions begin that any finder asks for.
pub const PREFIXES: [&str; 3] = ["SSL_", "gnutls_", "nexent_observer_"];
/// Most of them that are kept of one file; GnuTLS has about 1,200.
const MAX_NAMES: usize = 16_384;
/// Longest of them.
const MAX_NAME: usize = 64;

/// Most bytes of one file that are held while it is looked into. Whoever can start a process chooses what its files say of themselves; the
/// largest real program seen takes 210 MB.
const HELD_BYTES: u64 = 512 << 20;
/// What one string counts for.
const STRING_BYTES: u64 = 256;

/// A file, read as it is asked for, up to [`HELD_BYTES`] of it.
#[derive(Debug)]
pub struct Reads {
    cache: ReadCache<File>,
    held: RefCell<HashSet<(u64, u64)>>,
    left: Cell<u64>,
}

impl Reads {
    /// Of an opened file.
    #[must_use]
    pub fn of(file: File) -> Self {
        Self { cache: ReadCache::new(file), held: RefCell::default(), left: Cell::new(HELD_BYTES) }
    }

    /// Makes room for a range that was not read before.
    fn hold(&self, at: u64, kept: u64, bytes: u64) -> Result<(), ()> {
        let mut held = self.held.borrow_mut();
        if held.contains(&(at, kept)) {
            return Ok(());
        }
        self.left.set(self.left.get().checked_sub(bytes).ok_or(())?);
        held.insert((at, kept));
        Ok(())
    }
}

impl<'a> ReadRef<'a> for &'a Reads {
    fn len(self) -> Result<u64, ()> {
        (&self.cache).len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        self.hold(offset, size, size)?;
        self.cache.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        self.hold(range.start, u64::MAX - u64::from(delimiter), STRING_BYTES)?;
        self.cache.read_bytes_at_until(range, delimiter)
    }
}

/// An ELF file.
pub struct Elf<'a> {
    file: ElfFile64<'a, object::Endianness, &'a Reads>,
    /// Executable segments.
    segments: Vec<Segment>,
    /// All segments that are loaded.
    loaded: Vec<Segment>,
    /// The table for unwinding, by its program header (PT_GNU_EH_FRAME).
    frames: Option<Segment>,
    /// The same file, read past the cache where all of it is looked through.
    raw: Option<File>,
    /// Functions by name.
    named: OnceCell<HashMap<String, u64>>,
}

/// A range of the file that is loaded at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Virtual address as the file tells it.
    pub address: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes.
    pub file_size: u64,
}

impl Segment {
    fn holds(&self, other: &Self) -> bool {
        let into = other.address.checked_sub(self.address);
        into.is_some_and(|into| {
            other.offset.checked_sub(self.offset) == Some(into)
                && into.checked_add(other.file_size).is_some_and(|end| end <= self.file_size)
        })
    }
}

impl<'a> Elf<'a> {
    /// Opens a file for this machine's architecture.
    ///
    /// # Errors
    /// [`ElfError`].
    pub fn parse(reads: &'a Reads) -> Result<Self, ElfError> {
        let file = ElfFile64::<object::Endianness, _>::parse(reads)?;
        let native =
            if cfg!(target_arch = "aarch64") { object::Architecture::Aarch64 } else { object::Architecture::X86_64 };
        if file.architecture() != native {
            return Err(ElfError::Architecture);
        }
        let endian = file.endian();
        let of = |kind: u32, flags: u32| {
            let wanted = move |header: &&object::elf::ProgramHeader64<_>| {
                header.p_type(endian) == kind && header.p_flags(endian) & flags == flags
            };
            let segment = move |header: &object::elf::ProgramHeader64<_>| Segment {
                address: header.p_vaddr(endian),
                offset: header.p_offset(endian),
                file_size: header.p_filesz(endian),
            };
            file.elf_program_headers().iter().filter(wanted).map(segment).collect::<Vec<_>>()
        };
        let segments = of(object::elf::PT_LOAD, object::elf::PF_X);
        let loaded = of(object::elf::PT_LOAD, 0);
        let frames = of(object::elf::PT_GNU_EH_FRAME, 0).first().copied();
        Ok(Self { file, segments, loaded, frames, raw: None, named: OnceCell::new() })
    }

    /// Lets [`Self::stream`] read this file piece by piece; it must be the one that was parsed.
    #[must_use]
    pub fn with_raw(mut self, raw: File) -> Self {
        self.raw = Some(raw);
        self
    }

    /// Functions by name among `wanted`, from the dynamic symbols and, where those lack one, from the full table. Names must begin
    /// with one of [`PREFIXES`].
    #[must_use]
    pub fn functions(&self, wanted: &[&str]) -> HashMap<String, Function> {
        let table = self.named.get_or_init(|| self.read_names());
        let function = |name: &&str| {
            let address = *table.get(*name)?;
            Some(((*name).to_owned(), Function { name: (*name).to_owned(), address }))
        };
        wanted.iter().filter_map(function).collect()
    }

    /// Reads the symbol tables, once for all finders: a runtime has hundreds of thousands.
    fn read_names(&self) -> HashMap<String, u64> {
        let mut found = HashMap::new();
        for symbol in self.file.dynamic_symbols().chain(self.file.symbols()) {
            if symbol.kind() != SymbolKind::Text || !symbol.is_definition() {
                continue;
            }
            let Ok(name) = symbol.name() else { continue };
            let wanted = name.len() <= MAX_NAME && PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            if wanted
                && found.len() < MAX_NAMES
                && !found.contains_key(name)
                && self.offset_of(symbol.address()).is_some()
            {
                found.insert(name.to_owned(), symbol.address());
            }
        }
        found
    }

    /// Defined functions whose names are wanted, from the full table of symbols and the dynamic one; one that stands in both comes twice.
    #[must_use]
    pub fn functions_where(&self, wanted: impl Fn(&str) -> bool) -> Vec<Function> {
        let symbols = self.file.symbols().chain(self.file.dynamic_symbols());
        let defined = symbols.filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition());
        let named =
            defined.filter_map(|symbol| Some((symbol.name().ok().filter(|name| wanted(name))?, symbol.address())));
        named
            .filter(|(_, address)| self.offset_of(*address).is_some())
            .map(|(name, address)| Function { name: name.to_owned(), address })
            .collect()
    }

    /// File offset of a virtual address in an executable segment: what a uprobe wants.
    #[must_use]
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let into = address.checked_sub(segment.address)?;
            (into < segment.file_size).then(|| segment.offset.checked_add(into))?
        })
    }

    /// Up to `n` bytes of code at a virtual address of an executable segment; fewer at its end.
    #[must_use]
    pub fn code(&self, address: u64, n: u64) -> Option<&'a [u8]> {
        let segment =
            self.segments.iter().find(|s| address.checked_sub(s.address).is_some_and(|into| into < s.file_size))?;
        let into = address - segment.address;
        let size = n.min(segment.file_size - into);
        self.file.data().read_bytes_at(segment.offset.checked_add(into)?, size).ok()
    }

    /// `n` bytes at a virtual address that is loaded from the file, whatever its segment.
    #[must_use]
    pub fn data(&self, address: u64, n: u64) -> Option<&'a [u8]> {
        let segment = self.loaded.iter().find(|segment| {
            address
                .checked_sub(segment.address)
                .is_some_and(|into| into.checked_add(n).is_some_and(|end| end <= segment.file_size))
        })?;
        self.file.data().read_bytes_at(segment.offset.checked_add(address - segment.address)?, n).ok()
    }

    /// File offset of a virtual address in any loaded segment.
    #[must_use]
    pub fn data_offset_of(&self, address: u64) -> Option<u64> {
        self.loaded.iter().find_map(|segment| {
            let into = address.checked_sub(segment.address)?;
            (into < segment.file_size).then(|| segment.offset.checked_add(into))?
        })
    }

    /// Bytes of the file itself.
    #[must_use]
    pub fn bytes_at(&self, offset: u64, n: u64) -> Option<&'a [u8]> {
        self.file.data().read_bytes_at(offset, n).ok()
    }

    /// Executable segments.
    #[must_use]
    pub fn code_segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Where constant data lies: the sections `.rodata*` that lie in loaded segments, or all of these where sections are not named.
    #[must_use]
    pub fn constants(&self) -> Vec<Segment> {
        let constant =
            self.file.sections().filter(|section| section.name().is_ok_and(|name| name.starts_with(".rodata")));
        let found: Vec<Segment> = constant
            .filter_map(|section| {
                let (offset, size) = section.file_range()?;
                let segment = Segment { address: section.address(), offset, file_size: size };
                self.loaded.iter().any(|load| load.holds(&segment)).then_some(segment)
            })
            .collect();
        if found.is_empty() { self.loaded.clone() } else { found }
    }

    /// The table for unwinding: address and bytes of `.eh_frame_hdr`, if it has at most `max` bytes.
    #[must_use]
    pub fn frame_table(&self, max: u64) -> Option<Section<'a>> {
        let frames = self.frames.filter(|frames| frames.file_size <= max)?;
        Some(Section { address: frames.address, bytes: self.data(frames.address, frames.file_size)? })
    }

    /// Hands a segment out piece by piece: the address of each piece and its bytes. Pieces overlap by `overlap` bytes, so that what
    /// is shorter is whole in one of them. Ends early, with `false`, when the file cannot be read or `each` says so.
    pub fn stream(&self, segment: Segment, overlap: usize, mut each: impl FnMut(u64, &[u8]) -> bool) -> bool {
        const PIECE: usize = 1 << 20;
        let mut buffer = vec![0; PIECE + overlap];
        let mut at = 0;
        while at < segment.file_size {
            let size = usize::try_from(segment.file_size - at).unwrap_or(usize::MAX).min(buffer.len());
            let (Some(offset), Some(address)) = (segment.offset.checked_add(at), segment.address.checked_add(at))
            else {
                return false;
            };
            let Some(piece) = buffer.get_mut(..size) else { return false };
            let read = match &self.raw {
                Some(raw) => raw.read_exact_at(piece, offset).is_ok(),
                None => match self.file.data().read_bytes_at(offset, size as u64) {
                    Ok(bytes) => {
                        piece.copy_from_slice(bytes);
                        true
                    }
                    Err(()) => false,
                },
            };
            if !read || !each(address, piece) {
                return false;
            }
            at += PIECE as u64;
        }
        true
    }

    /// Whether an address lies in a section of trampolines to other libraries (`.plt`, `.plt.sec`, `.plt.got`).
    #[must_use]
    pub fn in_plt(&self, address: u64) -> bool {
        self.file.sections().any(|section| {
            section.name().is_ok_and(|name| name.starts_with(".plt"))
                && address.checked_sub(section.address()).is_some_and(|into| into < section.size())
        })
    }

    /// A section by name, if it has at most `max` bytes.
    #[must_use]
    pub fn section(&self, name: &str, max: u64) -> Option<Section<'a>> {
        let section = self.file.section_by_name(name).filter(|section| section.size() <= max)?;
        Some(Section { address: section.address(), bytes: section.data().ok()? })
    }

    /// Addresses at which the loaded file will hold the pointer `value`: as written in its data, or by relocation.
    #[must_use]
    pub fn places_of_pointer(&self, value: u64) -> Vec<u64> {
        let by_relocation = self.relocated().filter(|(_, to)| *to == value).map(|(at, _)| at);
        let mut places: Vec<u64> = by_relocation.take(MAX_PLACES).collect();
        let needle = value.to_le_bytes();
        for section in self.file.sections().filter(|section| section.kind() == SectionKind::Data) {
            let Ok(bytes) = section.data() else { continue };
            let aligned = memchr::memmem::find_iter(bytes, &needle).map(|at| section.address() + at as u64);
            // Whatever the number of sections.
            let room = MAX_PLACES.saturating_sub(places.len());
            places.extend(aligned.filter(|at| at % 8 == 0).take(room));
        }
        places
    }

    /// The pointer that the loaded file will hold at an address.
    #[must_use]
    pub fn pointer_at(&self, address: u64) -> Option<u64> {
        if let Some((_, to)) = self.relocated().find(|(at, _)| *at == address) {
            return Some(to);
        }
        self.file.sections().filter(|section| section.kind() == SectionKind::Data).find_map(|section| {
            let bytes = section.data_range(address, 8).ok()??;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        })
    }

    /// Pointers that the loader puts in: address and value, both relative to where the file is loaded.
    fn relocated(&self) -> impl Iterator<Item = (u64, u64)> {
        self.file.dynamic_relocations().into_iter().flatten().filter_map(|(at, relocation)| {
            (relocation.target() == RelocationTarget::Absolute && !relocation.has_implicit_addend())
                .then_some((at, relocation.addend().cast_unsigned()))
        })
    }

    /// GNU build id, in hexadecimal.
    #[must_use]
    pub fn build_id(&self) -> Option<String> {
        let id = self.file.build_id().ok()??;
        Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Whether the file has any loadable executable segment.
    #[must_use]
    pub fn is_executable(&self) -> bool {
        self.file.segments().next().is_some() && !self.segments.is_empty()
    }
}
