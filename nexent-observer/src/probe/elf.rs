//! Symbols, code and addresses of one ELF file, read piece by piece: a runtime with a static TLS library has hundreds of MB.

use std::{collections::HashMap, fs::File};

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

/// An ELF file.
pub struct Elf<'a> {
    file: ElfFile64<'a, object::Endianness, &'a ReadCache<File>>,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    address: u64,
    offset: u64,
    file_size: u64,
}

impl<'a> Elf<'a> {
    /// Opens a file for this machine's architecture.
    ///
    /// # Errors
    /// [`ElfError`].
    pub fn parse(cache: &'a ReadCache<File>) -> Result<Self, ElfError> {
        let file = ElfFile64::<object::Endianness, _>::parse(cache)?;
        let native =
            if cfg!(target_arch = "aarch64") { object::Architecture::Aarch64 } else { object::Architecture::X86_64 };
        if file.architecture() != native {
            return Err(ElfError::Architecture);
        }
        let endian = file.endian();
        let segments = file
            .elf_program_headers()
            .iter()
            .filter(|header| {
                header.p_type(endian) == object::elf::PT_LOAD && header.p_flags(endian) & object::elf::PF_X != 0
            })
            .map(|header| Segment {
                address: header.p_vaddr(endian),
                offset: header.p_offset(endian),
                file_size: header.p_filesz(endian),
            })
            .collect();
        Ok(Self { file, segments })
    }

    /// Functions by name among `wanted`, from the dynamic symbols and, where those lack one, from the full table.
    #[must_use]
    pub fn functions(&self, wanted: &[&str]) -> HashMap<String, Function> {
        let mut found: HashMap<String, Function> = HashMap::new();
        for symbol in self.file.dynamic_symbols().chain(self.file.symbols()) {
            if symbol.kind() != SymbolKind::Text || !symbol.is_definition() {
                continue;
            }
            let Ok(name) = symbol.name() else { continue };
            if wanted.contains(&name) && !found.contains_key(name) && self.offset_of(symbol.address()).is_some() {
                found.insert(name.to_owned(), Function { name: name.to_owned(), address: symbol.address() });
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
            places.extend(aligned.filter(|at| at % 8 == 0).take(MAX_PLACES));
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
