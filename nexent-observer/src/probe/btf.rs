//! Offsets of members in kernel structures, from the running kernel's own description (BTF). aya-ebpf has no CO-RE, so the
//! kernel half gets offsets as globals. Format: Documentation/bpf/btf.rst of the kernel.

/// Why an offset is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BtfError {
    /// The file is no BTF, or cut short.
    #[error("the kernel's type information is damaged")]
    Damaged,
    /// The structure or the member does not exist in this kernel.
    #[error("the kernel's type information lacks the member")]
    NoMember,
}

/// Where the kernel shows its BTF.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

#[derive(Debug)]
struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Position of each type, by id - 1.
    positions: Vec<usize>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..2)? != MAGIC.to_le_bytes() {
            return None;
        }
        let header = u32_at(bytes, 4)? as usize;
        let section = |off_at: usize| {
            let start = header.checked_add(u32_at(bytes, off_at)? as usize)?;
            let len = u32_at(bytes, off_at + 4)? as usize;
            bytes.get(start..start.checked_add(len)?)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let mut positions = Vec::new();
        let mut at = 0;
        while at < types.len() {
            positions.push(at);
            let info = u32_at(types, at + 4)?;
            let (vlen, kind) = ((info & 0xffff) as usize, (info >> 24) & 0x1f);
            let trailer = match kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * vlen,
                KIND_ENUM | KIND_FUNC_PROTO => 8 * vlen,
                _ => 0,
            };
            at = at.checked_add(12 + trailer)?;
        }
        Some(Self { types, strings, positions })
    }

    fn name(&self, offset: u32) -> &'a [u8] {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// Offset in bits of a member of the type at `position`, looked for in anonymous members too.
    fn member(&self, position: usize, wanted: &[u8], depth: u32) -> Option<u64> {
        let info = u32_at(self.types, position + 4)?;
        let kind = (info >> 24) & 0x1f;
        if depth > 8 || !(kind == KIND_STRUCT || kind == KIND_UNION) {
            return None;
        }
        let bitfields = info >> 31 != 0;
        for index in 0..(info & 0xffff) as usize {
            let at = position + 12 + 12 * index;
            let (name, of, raw) = (u32_at(self.types, at)?, u32_at(self.types, at + 4)?, u32_at(self.types, at + 8)?);
            let offset = u64::from(if bitfields { raw & 0x00ff_ffff } else { raw });
            let name = self.name(name);
            if name == wanted {
                return Some(offset);
            }
            if name.is_empty()
                && let Some(inner) = self.positions.get((of as usize).wrapping_sub(1))
                && let Some(more) = self.member(*inner, wanted, depth + 1)
            {
                return Some(offset + more);
            }
        }
        None
    }
}

/// Offset in bytes of `member` in `struct name`.
///
/// # Errors
/// [`BtfError`].
pub fn member_offset(btf: &[u8], name: &str, member: &str) -> Result<u64, BtfError> {
    Members::parse(btf)?.offset(name, member)
}

/// Several at once: the description is read only once.
#[derive(Debug)]
pub struct Members<'a>(Btf<'a>);

impl<'a> Members<'a> {
    /// Reads the description.
    ///
    /// # Errors
    /// [`BtfError::Damaged`].
    pub fn parse(btf: &'a [u8]) -> Result<Self, BtfError> {
        Btf::parse(btf).map(Self).ok_or(BtfError::Damaged)
    }

    /// Offset in bytes of `member` in `struct name`.
    ///
    /// # Errors
    /// [`BtfError::NoMember`].
    pub fn offset(&self, name: &str, member: &str) -> Result<u64, BtfError> {
        let Self(btf) = self;
        btf.positions
            .iter()
            .filter(|position| u32_at(btf.types, **position).is_some_and(|at| btf.name(at) == name.as_bytes()))
            .find_map(|position| btf.member(*position, member.as_bytes(), 0))
            .map(|bits| bits / 8)
            .ok_or(BtfError::NoMember)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BTF with `int`, and `struct s { int a; struct { int b; }; }`.
    fn small() -> Vec<u8> {
        let strings = b"\0int\0s\0a\0b\0";
        let (int, s, a, b) = (1u32, 5u32, 7u32, 9u32);
        let words: Vec<u32> = [
            vec![int, KIND_INT << 24, 4, 32],
            vec![0, (KIND_STRUCT << 24) | 1, 4, b, 1, 0],
            vec![s, (KIND_STRUCT << 24) | 2, 8, a, 1, 0, 0, 2, 32],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut out = Vec::new();
        out.extend(MAGIC.to_le_bytes());
        out.extend([1, 0]);
        for word in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            out.extend(u32::to_le_bytes(word));
        }
        out.extend(types);
        out.extend(strings);
        out
    }

    #[test]
    fn members_are_found_in_anonymous_structures_too() {
        assert_eq!(member_offset(&small(), "s", "a"), Ok(0));
        assert_eq!(member_offset(&small(), "s", "b"), Ok(4));
        assert_eq!(member_offset(&small(), "s", "c"), Err(BtfError::NoMember));
        assert_eq!(member_offset(&small(), "t", "a"), Err(BtfError::NoMember));
    }

    #[test]
    fn damaged_type_information_is_an_error() {
        let whole = small();
        for cut in 0..whole.len() {
            assert_eq!(member_offset(&whole[..cut], "s", "b"), Err(BtfError::Damaged), "cut at {cut}");
        }
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bad = whole.clone();
                bad[at] = value;
                member_offset(&bad, "s", "b").ok(); // must end, whatever it says
            }
        }
    }
}
