//! Finds functions without names in a stripped program: from the name of their source file, which their error reports carry, to the
//! references to it, to the functions that hold these.
//!
//! Where a function begins is told by the table for unwinding (`.eh_frame_hdr`); a program without one is searched for the beginning
//! that its compiler gives to functions with a frame pointer. What is found so is a candidate; [`shape`](super::shape) proves it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::{
    CONTEXT, FUNCTIONS,
    shape::{Function, Wanted},
};
use crate::probe::{
    elf::{Elf, Section},
    plan::WhyNot,
};

/// Largest code that is searched, bytes; the largest seen has 120 MB.
const MAX_CODE: u64 = 512 << 20;
/// Largest table for unwinding that is read, bytes.
const MAX_TABLE: u64 = 64 << 20;
/// Most references that are looked at; a copy of aws-lc has thirteen.
const MAX_REFERENCES: usize = 64;
/// Longest function that is decoded, bytes.
const MAX_FUNCTION: u64 = 4096;
/// Most copies of aws-lc that are looked for in a program.
const MAX_COPIES: usize = 8;
/// Bytes before a function that are kept with it: no instruction is longer than 15, so one that runs on into it begins there.
const PADDING: u64 = 16;
/// `push rbp; mov rbp, rsp`.
const PROLOGUE: &[u8] = &[0x55, 0x48, 0x89, 0xe5];

/// Addresses of the strings that end in `end` (its final 0 included). More than [`MAX_COPIES`] are not looked for.
pub(super) fn strings_ending_in(constants: Section<'_>, end: &[u8]) -> Vec<u64> {
    let begin = |at: usize| {
        let before = constants.bytes.get(..at)?;
        constants.address.checked_add(memchr::memrchr(0, before).map_or(0, |zero| zero as u64 + 1))
    };
    memchr::memmem::find_iter(constants.bytes, end).filter_map(begin).take(MAX_COPIES).collect()
}

/// A function that was found, and what proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// Its address.
    pub(super) start: u64,
    /// Code that proves it. Its own is in one of these, with what precedes it.
    pub(super) parts: Vec<Range<u64>>,
}

/// The functions in the order of [`FUNCTIONS`]. The last may be missing.
///
/// # Errors
/// [`WhyNot`] when one of the others is not found once and only once.
pub(super) fn functions(elf: &Elf<'_>, source: u64) -> Result<[Option<Found>; 3], WhyNot> {
    let missing = |what: &str| WhyNot::Missing(what.to_owned());
    let text = elf.section(".text", MAX_CODE).ok_or_else(|| missing("the code of aws-lc"))?;
    let references = references(text, source);
    if references.is_empty() || references.len() > MAX_REFERENCES {
        return Err(missing("a reference to aws-lc's aead.c"));
    }
    let candidates = match elf.section(".eh_frame_hdr", MAX_TABLE).and_then(starts) {
        Some(starts) => by_table(text, &references, &starts),
        None => by_prologue(text, &references),
    };
    let mut found = [const { None }; 3];
    for ((name, _, wanted), slot) in FUNCTIONS.iter().zip(&mut found) {
        let fitting: Vec<Found> = candidates
            .iter()
            .filter(|(_, candidate)| wanted.fits(&candidate.function, &candidate.errors))
            .map(|(start, candidate)| Found { start: *start, parts: candidate.parts.clone() })
            .collect();
        let what = || format!("{}{name} in a program without symbols", &CONTEXT[1..]);
        *slot = match fitting.as_slice() {
            [one] => Some(one.clone()),
            [] if *wanted == Wanted::SealScatter => None,
            [] => return Err(WhyNot::Missing(what())),
            several => return Err(WhyNot::Ambiguous { what: what(), candidates: several.len() }),
        };
    }
    Ok(found)
}

/// A function that reports errors of the source file.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) function: Function,
    pub(super) errors: BTreeSet<u64>,
    /// All code that was looked at for it.
    pub(super) parts: Vec<Range<u64>>,
}

impl Candidate {
    /// One with the code from `from` on, before which nothing was looked at.
    fn new(function: Function, from: u64) -> Self {
        let parts = std::iter::once(from..function.end().unwrap_or(from)).collect();
        Self { function, errors: BTreeSet::new(), parts }
    }
}

/// Addresses of the instructions `lea register, [rip + to]`.
pub(super) fn references(text: Section<'_>, to: u64) -> Vec<u64> {
    let mut found = Vec::new();
    for opcode in memchr::memchr_iter(0x8d, text.bytes) {
        let Some(begin) = opcode.checked_sub(1) else { continue };
        let Some([prefix, _, modrm, rest @ ..]) = text.bytes.get(begin..begin + 7) else { continue };
        if !matches!(prefix, 0x48 | 0x4c) || modrm & 0xc7 != 0x05 {
            continue;
        }
        let Ok(displacement) = <[u8; 4]>::try_from(rest) else { continue };
        let next = text.address.wrapping_add(begin as u64 + 7);
        if next.wrapping_add_signed(i64::from(i32::from_le_bytes(displacement))) == to {
            found.push(next - 7);
            if found.len() > MAX_REFERENCES {
                break;
            }
        }
    }
    found
}

/// Starts of all functions, sorted, from the binary search table (Linux Standard Base, `.eh_frame_hdr`): pairs of 32-bit distances from
/// the beginning of the section.
pub(super) fn starts(header: Section<'_>) -> Option<Vec<u64>> {
    /// Version 1; the pointer to the frames in 4 bytes; the number of entries in 4 bytes; the table as above.
    const KNOWN: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
    let rest = header.bytes.strip_prefix(&KNOWN)?;
    let count = u32::from_le_bytes(rest.get(4..8)?.try_into().ok()?) as usize;
    let table = rest.get(8..)?.get(..count.checked_mul(8)?)?;
    let start = |entry: &[u8]| {
        let distance = i32::from_le_bytes(entry.get(..4)?.try_into().ok()?);
        Some(header.address.wrapping_add_signed(i64::from(distance)))
    };
    let starts: Vec<u64> = table.chunks_exact(8).filter_map(start).collect();
    starts.is_sorted().then_some(starts)
}

/// The part of the code in which a function lies.
fn range_of(starts: &[u64], address: u64) -> Option<Range<u64>> {
    let next = starts.partition_point(|start| *start <= address);
    let start = *starts.get(next.checked_sub(1)?)?;
    let end = starts.get(next).copied().unwrap_or(u64::MAX).min(start.checked_add(MAX_FUNCTION)?);
    (address < end).then_some(start..end)
}

fn decode(text: Section<'_>, range: &Range<u64>) -> Option<Function> {
    let from = usize::try_from(range.start.checked_sub(text.address)?).ok()?;
    let to = usize::try_from(range.end.checked_sub(text.address)?).ok()?.min(text.bytes.len());
    Some(Function::decode(text.bytes.get(from..to)?, range.start))
}

/// Candidates by the table for unwinding. A part that the compiler has put elsewhere, because errors are rare, has an entry of its own:
/// it belongs to the one function that jumps there.
pub(super) fn by_table(text: Section<'_>, references: &[u64], starts: &[u64]) -> BTreeMap<u64, Candidate> {
    let mut found: BTreeMap<u64, Candidate> = BTreeMap::new();
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    for reference in references {
        let Some(range) = range_of(starts, *reference) else { continue };
        let Some(function) = decode(text, &range) else { continue };
        ends.insert(range.start, range.end);
        let error = function.error_at(*reference);
        let from = range.start.saturating_sub(PADDING);
        found.entry(range.start).or_insert_with(|| Candidate::new(function, from)).errors.extend(error);
    }
    let parts: Vec<Range<u64>> = ends.into_iter().map(|(start, end)| start..end).collect();
    for (part, owners) in jumpers(text, &parts, starts) {
        let mut owners = owners.into_iter();
        let (Some(owner), None) = (owners.next(), owners.next()) else { continue };
        let Some((errors, code)) = found.get(&part).map(|part| (part.errors.clone(), part.parts.clone())) else {
            continue;
        };
        if !found.contains_key(&owner) {
            let function = range_of(starts, owner).and_then(|range| decode(text, &range));
            found.extend(function.map(|function| (owner, Candidate::new(function, owner.saturating_sub(PADDING)))));
        }
        if let Some(known) = found.get_mut(&owner) {
            known.errors.extend(errors);
            known.parts.extend(code);
        }
    }
    found
}

/// For each part the functions outside of it that jump into it, by their starts.
fn jumpers(text: Section<'_>, parts: &[Range<u64>], starts: &[u64]) -> BTreeMap<u64, BTreeSet<u64>> {
    let mut found: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return found };
    // `jmp rel32`, and `jcc rel32` behind its 0f.
    for (at, bytes) in text.bytes.windows(5).enumerate() {
        let [0xe9 | 0x80..=0x8f, rest @ ..] = bytes else { continue };
        let Ok(distance) = <[u8; 4]>::try_from(rest) else { continue };
        let from = text.address.wrapping_add(at as u64);
        let to = (from + 5).wrapping_add_signed(i64::from(i32::from_le_bytes(distance)));
        if to < first.start || to >= last.end {
            continue;
        }
        let Some(part) = parts.iter().find(|part| part.contains(&to)) else { continue };
        if part.contains(&from) {
            continue;
        }
        // Any four bytes may look so: it counts if the function in which they lie has such a jump.
        let Some(range) = range_of(starts, from) else { continue };
        if decode(text, &range).is_some_and(|function| function.jumps_to(part)) {
            found.entry(part.start).or_default().insert(range.start);
        }
    }
    found
}

/// Candidates by the beginning of functions with a frame pointer: the nearest one before the reference, if instructions lead from there
/// to the reference, and those of the function before it end there. The end is the next such beginning.
pub(super) fn by_prologue(text: Section<'_>, references: &[u64]) -> BTreeMap<u64, Candidate> {
    let mut found: BTreeMap<u64, Candidate> = BTreeMap::new();
    for reference in references {
        let Some(range) = around(text, *reference) else { continue };
        let Some(function) = decode(text, &range) else { continue };
        if !function.has(*reference) {
            continue;
        }
        let Some(from) = start_of_the_one_before(text, range.start) else { continue };
        let error = function.error_at(*reference);
        found.entry(range.start).or_insert_with(|| Candidate::new(function, from)).errors.extend(error);
    }
    found
}

/// Where the function before this one begins, if instructions lead from there to here, and the last of them ends a function, pads, or
/// calls what may not return.
fn start_of_the_one_before(text: Section<'_>, start: u64) -> Option<u64> {
    let before = around(text, start.wrapping_sub(1))?.start;
    decode(text, &(before..start))?.ends_at(start).then_some(before)
}

fn around(text: Section<'_>, reference: u64) -> Option<Range<u64>> {
    let at = usize::try_from(reference.checked_sub(text.address)?).ok()?;
    let longest = MAX_FUNCTION as usize;
    let floor = at.saturating_sub(longest);
    let start = floor + memchr::memmem::rfind(text.bytes.get(floor..at)?, PROLOGUE)?;
    let behind = text.bytes.get(at..text.bytes.len().min(at + longest))?;
    let end = at + memchr::memmem::find(behind, PROLOGUE).unwrap_or(behind.len());
    Some(text.address.checked_add(start as u64)?..text.address.checked_add(end as u64)?)
}
