//! Finds functions without symbols by the constant strings that their code refers to: which strings are in a file, which code refers
//! to them, and in which function that code lies.
//!
//! What is found here is a guess until a finder has proven the function by its own shape: a function begins as one, is preceded by
//! what ends one, decodes to its end without a break, and the references lie on its instructions.

use std::collections::BTreeSet;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

use super::{
    elf::{Elf, Section},
    plan::Part,
};

/// Most bytes of constant data, and of code, that are looked through in one file.
const MAX_BYTES: u64 = 1 << 30;
/// Most references that are kept; over it the strings are too common to tell anything.
const MAX_REFERENCES: usize = 4_096;
/// Largest function, in bytes. Those that are looked for have some hundred.
const MAX_FUNCTION: u64 = 16 << 10;
/// Most call targets that are kept while a function's beginning is looked for.
const MAX_TARGETS: usize = 1 << 18;
/// Largest table for unwinding.
const MAX_FRAME_TABLE: u64 = 256 << 20;
/// Longest x86 instruction.
const LONGEST: usize = 15;

/// A string that is looked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Needle {
    /// A whole string, from its first byte to its zero byte.
    Whole(&'static str),
    /// A string that ends so, as paths of source files do.
    Suffix(&'static str),
}

/// Addresses of the strings that match each needle; `None` when the file cannot be searched.
pub(super) fn strings(elf: &Elf<'_>, needles: &[Needle]) -> Option<Vec<Vec<u64>>> {
    /// Longest path of a source file.
    const MAX_PATH: usize = 512;
    let constants = elf.constants();
    if constants.iter().map(|segment| segment.file_size).sum::<u64>() > MAX_BYTES {
        return None;
    }
    let patterns: Vec<Vec<u8>> = needles
        .iter()
        .map(|needle| {
            let (Needle::Whole(text) | Needle::Suffix(text)) = needle;
            [text.as_bytes(), b"\0"].concat()
        })
        .collect();
    let finders: Vec<_> = patterns.iter().map(memchr::memmem::Finder::new).collect();
    let mut found: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); needles.len()];
    for segment in constants {
        let read = elf.stream(segment, 2 * MAX_PATH, |address, piece| {
            for ((finder, needle), found) in finders.iter().zip(needles).zip(&mut found) {
                for at in finder.find_iter(piece) {
                    let before = piece.get(..at).unwrap_or_default();
                    let start = match needle {
                        // What precedes a whole string ends another one.
                        Needle::Whole(_) => before.last().is_none_or(|byte| *byte == 0).then_some(at),
                        Needle::Suffix(_) => memchr::memrchr(0, before)
                            .map_or_else(|| (address == segment.address).then_some(0), |zero| Some(zero + 1))
                            .filter(|start| at - start <= MAX_PATH),
                    };
                    found.extend(start.map(|start| address + start as u64));
                }
                if found.len() > MAX_REFERENCES {
                    return false;
                }
            }
            true
        });
        if !read {
            return None;
        }
    }
    Some(found.into_iter().map(|found| found.into_iter().collect()).collect())
}

/// Where a string lies in the file.
pub(super) fn string_part(elf: &Elf<'_>, address: u64) -> Option<Part> {
    /// Longer ones are told by their beginning.
    const MAX: u64 = 64;
    let bytes = elf.data(address, MAX)?;
    let len = memchr::memchr(0, bytes).map_or(MAX, |zero| zero as u64 + 1);
    Some(Part { offset: elf.data_offset_of(address)?, len, function: None })
}

/// Code that refers to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reference {
    /// Address of the four bytes in the instruction that hold the address or the distance to it.
    pub(super) operand: u64,
    /// What is referred to.
    pub(super) target: u64,
}

/// Code that refers to one of `targets`, by the distance (`lea`) or the address (`mov`); `None` when there is too much of it.
pub(super) fn references(elf: &Elf<'_>, targets: &[u64]) -> Option<Vec<Reference>> {
    let targets: BTreeSet<u64> = targets.iter().copied().collect();
    let (Some(lowest), Some(highest)) = (targets.first().copied(), targets.last().copied()) else {
        return Some(Vec::new());
    };
    let absolute: Vec<(u64, [u8; 4])> =
        targets.iter().filter_map(|target| Some((*target, u32::try_from(*target).ok()?.to_le_bytes()))).collect();
    let mut found = BTreeSet::new();
    let complete = stream_code(elf, |address, piece| {
        // lea reg, [rip + distance]: 48/4c 8d, mod 0, r/m 5
        for at in memchr::memchr_iter(0x8d, piece) {
            let Some([0x48 | 0x4c, _, modrm, operand @ ..]) =
                at.checked_sub(1).and_then(|from| piece.get(from..at + 6))
            else {
                continue;
            };
            let [a, b, c, d] = *operand else { continue };
            if modrm & 0xc7 != 0x05 {
                continue;
            }
            let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
            let operand = address + at as u64 + 2;
            let target = operand.wrapping_add(4).wrapping_add_signed(distance);
            if target >= lowest && target <= highest && targets.contains(&target) {
                found.insert(Reference { operand, target });
            }
        }
        // mov reg32, address: b8..bf
        for (target, bytes) in &absolute {
            for at in memchr::memmem::find_iter(piece, bytes) {
                let opcode = at.checked_sub(1).and_then(|before| piece.get(before));
                if opcode.is_some_and(|opcode| opcode & 0xf8 == 0xb8) {
                    found.insert(Reference { operand: address + at as u64, target: *target });
                }
            }
        }
        found.len() <= MAX_REFERENCES
    });
    complete.then(|| found.into_iter().collect())
}

/// Addresses of the direct calls of a function, as they look: any bytes that could be such a call.
pub(super) fn callers(elf: &Elf<'_>, callee: u64) -> Option<Vec<u64>> {
    let mut found = BTreeSet::new();
    let complete = stream_calls(elf, |call, target| {
        if target == callee {
            found.insert(call);
        }
        found.len() <= MAX_REFERENCES
    });
    complete.then(|| found.into_iter().collect())
}

fn stream_code(elf: &Elf<'_>, mut each: impl FnMut(u64, &[u8]) -> bool) -> bool {
    let segments = elf.code_segments();
    segments.iter().map(|segment| segment.file_size).sum::<u64>() <= MAX_BYTES
        && segments.iter().all(|segment| elf.stream(*segment, LONGEST, &mut each))
}

/// Hands out each `e8 rel32`: its address and its target.
fn stream_calls(elf: &Elf<'_>, mut each: impl FnMut(u64, u64) -> bool) -> bool {
    stream_code(elf, |address, piece| {
        memchr::memchr_iter(0xe8, piece).all(|at| {
            let Some(&[a, b, c, d]) = piece.get(at + 1..at + 5) else { return true };
            let call = address + at as u64;
            let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
            each(call, call.wrapping_add(5).wrapping_add_signed(distance))
        })
    })
}

/// The function that begins at an address, as the table for unwinding tells it.
pub(super) fn function_at(elf: &Elf<'_>, address: u64) -> Result<Function, &'static str> {
    let table = elf.frame_table(MAX_FRAME_TABLE).and_then(Frames::parse).ok_or("it has no table for unwinding")?;
    let (start, end) = table.range(elf, address).ok_or("the table for unwinding has no function there")?;
    if start == address { decode(elf, start, Some(end), None) } else { Err("it begins elsewhere") }
}

/// A function, decoded.
#[derive(Debug, Clone)]
pub(super) struct Function {
    /// Virtual address.
    pub(super) start: u64,
    /// Its instructions, one behind the other.
    pub(super) code: Vec<Instruction>,
}

/// Where the functions of a file begin.
pub(super) struct Starts<'a> {
    /// As the table for unwinding tells it. It may be there for some of the code only: C++ and Rust, and not C.
    table: Option<Frames<'a>>,
    /// Where direct calls lead to, around those addresses of which the table tells nothing.
    called: BTreeSet<u64>,
}

impl<'a> Starts<'a> {
    /// Finds out for the functions around these addresses.
    pub(super) fn around(elf: &Elf<'a>, addresses: impl IntoIterator<Item = u64>) -> Option<Self> {
        let table = elf.frame_table(MAX_FRAME_TABLE).and_then(Frames::parse);
        let in_table = |address: u64| {
            table.as_ref().is_some_and(|table| table.range(elf, address).is_some_and(|(start, _)| start == address))
        };
        let addresses: BTreeSet<u64> = addresses.into_iter().filter(|address| !in_table(*address)).collect();
        let mut targets = BTreeSet::new();
        let complete = addresses.is_empty()
            || stream_calls(elf, |_, target| {
                let next = addresses.range(target..).next();
                if next.is_some_and(|next| next - target <= MAX_FUNCTION) {
                    targets.insert(target);
                }
                targets.len() <= MAX_TARGETS
            });
        complete.then_some(Self { table, called: targets })
    }

    /// Whether the table for unwinding tells of a function that begins at an address.
    pub(super) fn has_in_table(&self, elf: &Elf<'_>, address: u64) -> bool {
        self.table.as_ref().is_some_and(|table| table.range(elf, address).is_some_and(|(start, _)| start == address))
    }

    /// The function that holds the instruction of this reference, or the reason why there is none that can be trusted.
    pub(super) fn function(&self, elf: &Elf<'_>, reference: u64) -> Result<Function, &'static str> {
        if let Some((start, end)) = self.table.as_ref().and_then(|table| table.range(elf, reference)) {
            return decode(elf, start, Some(end), Some(reference));
        }
        let lowest = reference.saturating_sub(MAX_FUNCTION);
        let mut why = "nothing that is called lies before it";
        for start in self.called.range(lowest..=reference).rev() {
            match decode(elf, *start, None, Some(reference)) {
                Ok(function) => return Ok(function),
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }
}

/// The binary search table of `.eh_frame_hdr` (Linux Standard Base, "Exception Frame Header").
pub(super) struct Frames<'a> {
    address: u64,
    entries: &'a [u8],
}

impl<'a> Frames<'a> {
    fn parse(section: Section<'a>) -> Option<Self> {
        // Version 1; pointer to .eh_frame relative, 4 bytes; count 4 bytes; table relative to the section, 4 bytes.
        let [1, 0x1b, 0x03, 0x3b, _, _, _, _, a, b, c, d, rest @ ..] = section.bytes else { return None };
        let count = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).ok()?;
        let entries = rest.get(..count.checked_mul(8)?)?;
        (count > 0).then_some(Self { address: section.address, entries })
    }

    fn entry(&self, index: usize) -> Option<(u64, u64)> {
        let at = index.checked_mul(8)?;
        let word = |at: usize| {
            let bytes = self.entries.get(at..at.checked_add(4)?)?;
            Some(self.address.wrapping_add_signed(i64::from(i32::from_le_bytes(bytes.try_into().ok()?))))
        };
        Some((word(at)?, word(at.checked_add(4)?)?))
    }

    /// First and behind the last address of the function at an address.
    fn range(&self, elf: &Elf<'_>, address: u64) -> Option<(u64, u64)> {
        let (mut low, mut high) = (0, self.entries.len() / 8);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)?.0 <= address { low = middle + 1 } else { high = middle }
        }
        let (start, description) = self.entry(low.checked_sub(1)?)?;
        // Length, distance to the common part, beginning (relative to itself), size.
        let fields = elf.data(description, 16)?;
        let word = |at: usize| Some(i32::from_le_bytes(fields.get(at..at + 4)?.try_into().ok()?));
        let begins = description.wrapping_add(8).wrapping_add_signed(i64::from(word(8)?));
        let end = start.checked_add(u64::from(word(12)?.cast_unsigned()))?;
        (begins == start && address < end).then_some((start, end))
    }
}

/// Decodes the function from `start` over `reference` to its end, which is found out where it is not given.
fn decode(elf: &Elf<'_>, start: u64, end: Option<u64>, reference: Option<u64>) -> Result<Function, &'static str> {
    let size = end.map_or(MAX_FUNCTION, |end| end.saturating_sub(start));
    if size > MAX_FUNCTION {
        return Err("it is too large");
    }
    if !follows_an_end(elf, start) {
        return Err("what precedes it does not end a function");
    }
    let bytes = elf.code(start, size).ok_or("it lies outside the code")?;
    let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
    let mut code = Vec::new();
    let (mut furthest, mut holds) = (start, false);
    while decoder.can_decode() {
        let insn = decoder.decode();
        if insn.is_invalid() {
            return Err("its bytes do not decode as instructions");
        }
        if end.is_none() && begins_another(&code, &insn) {
            return Err("another function begins in it");
        }
        code.push(insn);
        holds |= reference.is_none_or(|at| insn.ip() < at && at + 4 <= insn.next_ip());
        let next = insn.next_ip();
        if let FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch = insn.flow_control()
            && matches!(insn.op0_kind(), OpKind::NearBranch64)
            && insn.near_branch64() < start + MAX_FUNCTION
        {
            furthest = furthest.max(insn.near_branch64());
        }
        let ends = match insn.flow_control() {
            FlowControl::Return
            | FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Exception => true,
            // A call that does not return is followed by the end or by padding.
            FlowControl::Call | FlowControl::IndirectCall => elf.code(next, 1).is_some_and(|byte| byte == [0xcc]),
            FlowControl::Interrupt => insn.code() == Code::Int3,
            _ => false,
        };
        let padded = ends && elf.code(next, 1).is_some_and(|byte| byte == [0xcc]);
        if end.is_none() && padded && next <= furthest {
            return Err("it branches out of itself");
        }
        if end.is_none() && ends && (padded || next > furthest) {
            break;
        }
    }
    if !holds {
        return Err("the reference is not in one of its instructions");
    }
    Ok(Function { start, code })
}

/// Whether a stack frame is set up a second time: `push rbp; mov rbp, rsp`.
fn begins_another(code: &[Instruction], insn: &Instruction) -> bool {
    code.len() > 2
        && insn.mnemonic() == Mnemonic::Mov
        && (insn.op0_register(), insn.op1_register()) == (Register::RBP, Register::RSP)
        && code.last().is_some_and(|last| last.code() == Code::Push_r64 && last.op0_register() == Register::RBP)
}

/// Whether the bytes before an address end a function or pad the space to the next one.
fn follows_an_end(elf: &Elf<'_>, address: u64) -> bool {
    (1..=LONGEST as u64).any(|length| {
        let Some(bytes) = address.checked_sub(length).and_then(|from| elf.code(from, length)) else { return false };
        if bytes.len() as u64 != length {
            return false;
        }
        let mut decoder = Decoder::with_ip(64, bytes, address - length, DecoderOptions::NONE);
        let insn = decoder.decode();
        !insn.is_invalid()
            && insn.len() as u64 == length
            && (insn.code() == Code::Int3
                || insn.mnemonic() == Mnemonic::Nop
                || matches!(
                    insn.flow_control(),
                    FlowControl::Return
                        | FlowControl::UnconditionalBranch
                        | FlowControl::IndirectBranch
                        | FlowControl::Exception
                        | FlowControl::Call
                ))
    })
}

/// Registers in which the first six arguments come (System V ABI).
pub(super) const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

impl Function {
    /// Whether it begins with a `push` of a register that a function has to keep, behind an `endbr64` and a test of the first argument
    /// or not.
    pub(super) fn begins_like_one(&self) -> bool {
        let mut code = self.code.iter().skip_while(|insn| insn.code() == Code::Endbr64).peekable();
        let tests = |insn: &&Instruction| {
            insn.mnemonic() == Mnemonic::Test
                && (insn.op0_register(), insn.op1_register()) == (Register::RDI, Register::RDI)
        };
        if code.next_if(tests).is_some() && !code.next().is_some_and(Instruction::is_jcc_short_or_near) {
            return false;
        }
        code.next().is_some_and(|insn| {
            insn.code() == Code::Push_r64
                && matches!(
                    insn.op0_register(),
                    Register::RBP | Register::RBX | Register::R12 | Register::R13 | Register::R14 | Register::R15
                )
        })
    }

    /// Which of the six argument registers are read before they are overwritten, on some way through the function up to its calls.
    pub(super) fn arguments(&self) -> [bool; 6] {
        let mut used = [false; 6];
        let mut info = InstructionInfoFactory::new();
        let mut seen = BTreeSet::new();
        let mut ways = vec![(0usize, 0u8)];
        while let Some((mut at, mut gone)) = ways.pop() {
            while let Some(insn) = self.code.get(at) {
                if !seen.insert((at, gone)) {
                    break;
                }
                let saves = insn.mnemonic() == Mnemonic::Push;
                for register in info.info(insn).used_registers() {
                    let Some(index) = ARGUMENTS.iter().position(|a| *a == register.register().full_register()) else {
                        continue;
                    };
                    let reads = matches!(
                        register.access(),
                        OpAccess::Read | OpAccess::ReadWrite | OpAccess::CondRead | OpAccess::ReadCondWrite
                    );
                    if let Some(slot) = used.get_mut(index)
                        && reads
                        && gone & (1 << index) == 0
                        && !saves
                    {
                        *slot = true;
                    }
                }
                for register in info.info(insn).used_registers() {
                    let Some(index) = ARGUMENTS.iter().position(|a| *a == register.register().full_register()) else {
                        continue;
                    };
                    if matches!(register.access(), OpAccess::Write | OpAccess::ReadWrite) {
                        gone |= 1 << index;
                    }
                }
                match insn.flow_control() {
                    FlowControl::Next => {}
                    FlowControl::ConditionalBranch => {
                        ways.extend(self.index_of(insn.near_branch64()).map(|to| (to, gone)));
                    }
                    FlowControl::UnconditionalBranch => {
                        ways.extend(self.index_of(insn.near_branch64()).map(|to| (to, gone)));
                        break;
                    }
                    // A call takes all of them.
                    _ => break,
                }
                at += 1;
            }
        }
        used
    }

    pub(super) fn index_of(&self, address: u64) -> Option<usize> {
        self.code.binary_search_by_key(&address, Instruction::ip).ok()
    }

    /// Whether the instruction that holds this reference's four bytes is one that takes an address.
    fn takes(&self, insn: &Instruction, reference: Reference) -> bool {
        insn.ip() < reference.operand
            && reference.operand + 4 == insn.next_ip()
            && match insn.mnemonic() {
                Mnemonic::Lea => insn.is_ip_rel_memory_operand() && insn.ip_rel_memory_address() == reference.target,
                Mnemonic::Mov => {
                    insn.op0_kind() == OpKind::Register
                        && insn.op1_kind() == OpKind::Immediate32
                        && u64::from(insn.immediate32()) == reference.target
                }
                _ => false,
            }
    }

    /// Constants that are put into registers or pushed beside this reference: from the last branch before it to the next behind it.
    /// `None` when the reference is in no instruction that takes an address.
    pub(super) fn constants_at(&self, reference: Reference) -> Option<Vec<u32>> {
        let at = self.code.iter().position(|insn| self.takes(insn, reference))?;
        let breaks = |insn: &&Instruction| insn.flow_control() != FlowControl::Next;
        let before = self.code.get(..at)?.iter().rev().take_while(|insn| !breaks(insn));
        let behind = self.code.get(at + 1..)?.iter().take_while(|insn| !breaks(insn));
        Some(before.chain(behind).filter_map(constant).collect())
    }

    /// Its direct calls: where each is, and where it leads.
    pub(super) fn calls(&self) -> impl Iterator<Item = (u64, u64)> {
        let calls = self.code.iter().filter(|insn| insn.code() == Code::Call_rel32_64);
        calls.map(|insn| (insn.ip(), insn.near_branch64()))
    }

    /// Its references to any of these addresses.
    pub(super) fn references(&self, targets: &[u64]) -> Vec<Reference> {
        let mut found = Vec::new();
        for insn in &self.code {
            let target = match insn.mnemonic() {
                Mnemonic::Lea if insn.is_ip_rel_memory_operand() => insn.ip_rel_memory_address(),
                Mnemonic::Mov if insn.op1_kind() == OpKind::Immediate32 && insn.op0_kind() == OpKind::Register => {
                    u64::from(insn.immediate32())
                }
                _ => continue,
            };
            // In both forms the four bytes are the last of the instruction.
            if targets.contains(&target) {
                found.push(Reference { operand: insn.next_ip() - 4, target });
            }
        }
        found
    }

    /// Whether an address lies in it.
    pub(super) fn spans(&self, address: u64) -> bool {
        address.checked_sub(self.start).is_some_and(|into| into < self.size())
    }

    /// Constants that it puts into registers.
    pub(super) fn moved_constants(&self) -> Vec<u32> {
        self.code.iter().filter_map(constant).collect()
    }

    /// Whether it changes memory other than its own stack frame.
    pub(super) fn changes_memory(&self) -> bool {
        let mut info = InstructionInfoFactory::new();
        self.code.iter().any(|insn| {
            !matches!(insn.mnemonic(), Mnemonic::Push | Mnemonic::Call)
                && insn.op0_kind() == OpKind::Memory
                && !matches!(insn.memory_base(), Register::RSP | Register::RBP | Register::None)
                && matches!(info.info(insn).op0_access(), OpAccess::Write | OpAccess::ReadWrite)
        })
    }

    /// Where it lies in the file, with what precedes it.
    pub(super) fn part(&self, elf: &Elf<'_>) -> Option<Part> {
        const BEFORE: u64 = LONGEST as u64 + 1;
        let offset = elf.offset_of(self.start.checked_sub(BEFORE)?)?;
        Some(Part { offset, len: BEFORE + self.size(), function: Some(BEFORE) })
    }

    /// Bytes from its first instruction to the end of its last.
    pub(super) fn size(&self) -> u64 {
        self.code.last().map_or(0, |insn| insn.next_ip() - self.start)
    }
}

/// The constant that an instruction puts into a register or pushes.
fn constant(insn: &Instruction) -> Option<u32> {
    match (insn.mnemonic(), insn.op0_kind(), insn.op1_kind()) {
        (Mnemonic::Mov, OpKind::Register, OpKind::Immediate32) => Some(insn.immediate32()),
        (Mnemonic::Push, OpKind::Immediate8to64, _) => u32::try_from(insn.immediate8to64()).ok(),
        (Mnemonic::Push, OpKind::Immediate32to64, _) => u32::try_from(insn.immediate32to64()).ok(),
        _ => None,
    }
}

/// Which of these references have one of `constants` near enough that they could be put into registers beside them.
pub(super) fn near(elf: &Elf<'_>, references: &[Reference], constants: &[u32]) -> Vec<Reference> {
    const AROUND: u64 = 64;
    let holds = |reference: &&Reference| {
        let Some(code) = elf.code(reference.operand.saturating_sub(AROUND), 2 * AROUND) else { return false };
        constants.iter().any(|constant| {
            memchr::memmem::find(code, &constant.to_le_bytes()).is_some()
                || u8::try_from(*constant).is_ok_and(|byte| memchr::memmem::find(code, &[0x6a, byte]).is_some())
        })
    };
    references.iter().filter(holds).copied().collect()
}

#[cfg(test)]
impl Function {
    /// These bytes as a function.
    pub(super) fn of_bytes(code: &[u8], start: u64) -> Self {
        let code = Decoder::with_ip(64, code, start, DecoderOptions::NONE).into_iter().collect();
        Self { start, code }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_those_that_are_read_before_they_are_overwritten() {
        let used = |code: &[u8]| Function::of_bytes(code, 0).arguments();
        // mov rbx,rdi; mov esi,5; mov rax,rsi; ret
        let code = [0x48, 0x89, 0xfb, 0xbe, 5, 0, 0, 0, 0x48, 0x89, 0xf0, 0xc3];
        assert_eq!(used(&code), [true, false, false, false, false, false]);
        // test edi,edi; je +3; xor esi,esi; ret; mov rax,rsi; ret: on one way it is read
        let code = [0x85, 0xff, 0x74, 0x03, 0x31, 0xf6, 0xc3, 0x48, 0x89, 0xf0, 0xc3];
        assert_eq!(used(&code), [true, true, false, false, false, false]);
        // push rdx keeps the stack aligned and uses nothing
        assert_eq!(used(&[0x52, 0xc3]), [false; 6]);
    }

    #[test]
    fn constants_beside_a_reference_end_at_the_next_branch() {
        // mov edx,0x114; jmp +0; lea rcx,[rip+0xff]; mov edx,0x42; push 0x10; call; mov eax,7
        let code = [
            0xba, 0x14, 1, 0, 0, 0xeb, 0, 0x48, 0x8d, 0x0d, 0xff, 0, 0, 0, 0xba, 0x42, 0, 0, 0, 0x6a, 0x10, 0xe8, 0, 0,
            0, 0, 0xb8, 7, 0, 0, 0,
        ];
        let function = Function::of_bytes(&code, 0x1000);
        let references = function.references(&[0x110d]);
        assert_eq!(references, [Reference { operand: 0x100a, target: 0x110d }]);
        assert_eq!(function.constants_at(references[0]), Some(vec![0x42, 0x10]));
        assert_eq!(
            function.constants_at(Reference { operand: 0x1009, target: 0x110d }),
            None,
            "beside the instruction"
        );
    }

    #[test]
    fn a_function_begins_with_the_push_of_a_register_that_it_keeps() {
        let begins = |code: &[u8]| Function::of_bytes(code, 0).begins_like_one();
        assert!(begins(&[0x55, 0xc3]) && begins(&[0x41, 0x57, 0xc3]) && begins(&[0xf3, 0x0f, 0x1e, 0xfa, 0x53]));
        assert!(begins(&[0x48, 0x85, 0xff, 0x74, 0x10, 0x41, 0x56]), "test rdi,rdi; je; push r14");
        assert!(!begins(&[0x48, 0x85, 0xff, 0x41, 0x56]) && !begins(&[0x48, 0x85, 0xf6, 0x74, 0x10, 0x41, 0x56]));
        assert!(!begins(&[0x50, 0xc3]) && !begins(&[0x48, 0x83, 0xec, 0x08]) && !begins(&[]));
    }

    #[test]
    fn only_memory_outside_of_the_frame_counts_as_changed() {
        let changes = |code: &[u8]| Function::of_bytes(code, 0).changes_memory();
        assert!(changes(&[0x48, 0x01, 0x18]), "add [rax],rbx");
        assert!(!changes(&[0x48, 0x89, 0x04, 0x24]), "mov [rsp],rax");
        assert!(!changes(&[0x48, 0x83, 0x38, 0x00]), "cmp [rax],0");
    }
}
