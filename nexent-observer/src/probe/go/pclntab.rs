//! Functions of a Go program by name, from the table that its runtime needs for stack traces and `strip` therefore leaves.
//!
//! Layout: src/runtime/symtab.go (`pcHeader`, `_func`) and src/internal/abi/symtab.go of Go 1.18 and later.

/// Magic numbers of the layouts that are understood: Go 1.18 and 1.19, and 1.20 and later. Go 1.17 and older are not: their tables
/// hold addresses of another form.
const MAGICS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];

/// Most functions that a table may claim; the largest programs seen have about 300,000.
const MAX_FUNCTIONS: u64 = 8 << 20;

/// A function, by offsets from the start of the program's Go text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    /// First byte.
    pub(super) start: u64,
    /// First byte of the next function.
    pub(super) end: u64,
}

/// A table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'a> {
    bytes: &'a [u8],
    functions: u64,
    /// Address of the Go text as the table tells it; 0 in Go 1.26 and later.
    pub(super) text_start: u64,
    names: usize,
    funcs: usize,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(word.try_into().ok()?))
}

impl<'a> Table<'a> {
    /// Reads the header of a `.gopclntab` section of a 64-bit little-endian program.
    #[must_use]
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let magic = u32_at(bytes, 0)?;
        // Two bytes of padding, the instruction size quantum, the pointer size.
        let [0, 0, 1 | 4, 8] = bytes.get(4..8)? else { return None };
        if !MAGICS.contains(&magic) {
            return None;
        }
        let functions = u64_at(bytes, 8)?;
        if functions > MAX_FUNCTIONS {
            return None;
        }
        let names = usize::try_from(u64_at(bytes, 32)?).ok()?;
        let funcs = usize::try_from(u64_at(bytes, 64)?).ok()?;
        (names < bytes.len() && funcs < bytes.len()).then_some(Self {
            bytes,
            functions,
            text_start: u64_at(bytes, 24)?,
            names,
            funcs,
        })
    }

    /// The only function of this name; `None` when there is none or more than one.
    #[must_use]
    pub(super) fn function(&self, name: &str) -> Option<Range> {
        let table = self.bytes.get(self.names..)?;
        let mut wanted = Vec::with_capacity(name.len() + 2);
        wanted.push(0);
        wanted.extend_from_slice(name.as_bytes());
        wanted.push(0);
        // The names stand one behind the other, each ended by a zero byte. The first begins the table.
        let mut places = memchr::memmem::find_iter(table, &wanted).map(|at| at + 1);
        let place = if table.starts_with(wanted.get(1..)?) { Some(0) } else { places.next() }?;
        let place = u32::try_from(place).ok()?;
        let mut found = (0..self.functions).filter_map(|index| {
            let (start, func) = self.entry(index)?;
            (u32_at(self.bytes, func.checked_add(4)?)? == place).then_some((index, start))
        });
        let (index, start) = found.next()?;
        if found.next().is_some() {
            return None;
        }
        let (end, _) = self.entry(index + 1)?;
        (start < end).then_some(Range { start: u64::from(start), end: u64::from(end) })
    }

    /// Start of a function and place of its record. One entry behind the last tells the end of the text.
    fn entry(&self, index: u64) -> Option<(u32, usize)> {
        let at = self.funcs.checked_add(usize::try_from(index).ok()?.checked_mul(8)?)?;
        let start = u32_at(self.bytes, at)?;
        let func = if index < self.functions { u32_at(self.bytes, at.checked_add(4)?)? as usize } else { 0 };
        Some((start, self.funcs.checked_add(func)?))
    }
}
