//! Finds `crypto/tls` in a Go program, stripped or not.
//!
//! No return probe is ever set in a Go program: it would write a return address into a stack that Go moves. So entries are hooked at
//! the stack check, and returns at each `RET`, which the kernel single-steps.

mod code;
mod pclntab;

use std::time::Duration;

use nexent_observer_common::cookie::Length;

use super::{
    elf::Elf,
    hookpoint::Cost,
    plan::{Family, FamilyPlan, Hook, Program, WhyNot},
};
use code::Places;
use pclntab::{Range, Table};

/// Names of the section that holds the function table: of a program at a fixed address, and of one at any address.
const SECTIONS: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];

/// Largest table that is read, in bytes; the largest seen have about 100 MB.
const MAX_TABLE: u64 = 256 << 20;

/// Largest function that is decoded, in bytes.
const MAX_FUNCTION: u64 = 64 << 10;

/// Cost of a `RET` under a probe on the machine where it was measured (docs/overhead.md).
const RETURN_COST: Duration = Duration::from_micros(9);

/// A function that is hooked.
struct Wanted {
    name: &'static str,
    enter: Program,
    leave: Option<Program>,
    /// Without it there is nothing to observe.
    needed: bool,
}

const WANTED: [Wanted; 5] = [
    Wanted {
        name: "crypto/tls.(*Conn).Read",
        enter: Program::GoReadEnter,
        leave: Some(Program::GoReadReturn),
        needed: true,
    },
    Wanted { name: "crypto/tls.(*Conn).clientHandshake", enter: Program::GoBegin, leave: None, needed: false },
    Wanted { name: "crypto/tls.(*Conn).serverHandshake", enter: Program::GoBegin, leave: None, needed: false },
    Wanted { name: "crypto/tls.(*Conn).Close", enter: Program::GoClose, leave: None, needed: false },
    Wanted {
        name: "crypto/tls.(*Conn).Write",
        enter: Program::GoWriteEnter,
        leave: Some(Program::GoWriteReturn),
        needed: true,
    },
];

/// The plan for a file: `None` when it is no Go program or one without `crypto/tls`.
///
/// # Errors
/// [`WhyNot`] when it has `crypto/tls` and that cannot be hooked.
pub fn plan(elf: &Elf<'_>) -> Result<Option<FamilyPlan>, WhyNot> {
    let Some(section) = SECTIONS.iter().find_map(|name| elf.section(name, MAX_TABLE)) else { return Ok(None) };
    if cfg!(not(target_arch = "x86_64")) {
        return Err(WhyNot::Unsupported("Go is hooked on x86_64 only by this version".to_owned()));
    }
    let Some(table) = Table::parse(section.bytes) else {
        return Err(WhyNot::Unsupported(
            "its function table is of Go 1.17 or older, or of a form that is not known".to_owned(),
        ));
    };
    let ranges: Vec<Option<Range>> = WANTED.iter().map(|wanted| table.function(wanted.name)).collect();
    if ranges.iter().zip(&WANTED).all(|(range, wanted)| !wanted.needed || range.is_none()) {
        return Ok(None);
    }
    // Where the Go text begins stands in the table, or not (Go 1.26 and later, and programs at any address). A wrong start gives
    // ranges that are no functions, so each is tried, and only one with which every function is proven counts.
    let mut why = WhyNot::Missing("the start of the Go text".to_owned());
    for start in text_starts(elf, &table, section.address) {
        match prove(elf, start, &ranges) {
            Ok(plan) => return Ok(Some(plan)),
            Err(reason) => why = reason,
        }
    }
    Err(why)
}

/// Where the Go text may begin, the surest first.
fn text_starts(elf: &Elf<'_>, table: &Table<'_>, table_address: u64) -> Vec<u64> {
    /// Place of `text` in `runtime.moduledata`, whose first word is the address of the table (src/runtime/symtab.go; the same from
    /// Go 1.18 on).
    const TEXT_IN_MODULEDATA: u64 = 176;
    let mut starts = vec![table.text_start];
    for module in elf.places_of_pointer(table_address) {
        starts.extend(module.checked_add(TEXT_IN_MODULEDATA).and_then(|at| elf.pointer_at(at)));
    }
    starts.extend(elf.section(".text", u64::MAX).map(|text| text.address));
    starts.retain(|start| *start != 0);
    let mut seen = Vec::new();
    starts.retain(|start| {
        !seen.contains(start) && {
            seen.push(*start);
            true
        }
    });
    starts
}

fn prove(elf: &Elf<'_>, text_start: u64, ranges: &[Option<Range>]) -> Result<FamilyPlan, WhyNot> {
    let mut hooks = Vec::new();
    let mut notes = Vec::new();
    let mut returns = 0;
    for (wanted, range) in WANTED.iter().zip(ranges) {
        // A function that the linker left out, because nothing calls it, is not missed.
        if range.is_none() && !wanted.needed {
            continue;
        }
        let found = range
            .ok_or_else(|| WhyNot::Missing(wanted.name.to_owned()))
            .and_then(|range| places(elf, wanted.name, text_start, range));
        match found {
            Ok((address, places)) => {
                let hook = |program, delta, cost| {
                    let offset = elf.offset_of(address + delta)?;
                    Some(Hook { program, function: wanted.name.to_owned(), offset, length: Length::Returned, cost })
                };
                let outside = || WhyNot::Missing(format!("the code of {}", wanted.name));
                for at in wanted.leave.iter().flat_map(|leave| places.returns.iter().map(move |at| (*leave, *at))) {
                    returns += 1;
                    hooks.push(hook(at.0, at.1, Cost::SingleStepped).ok_or_else(outside)?);
                }
                hooks.push(hook(wanted.enter, places.check, Cost::Emulated).ok_or_else(outside)?);
            }
            Err(why) if wanted.needed => return Err(why),
            Err(why) => notes.push(format!("{why}: connections are told apart by other signs")),
        }
    }
    notes.push(format!(
        "its {returns} returns are single-stepped, about {} us each: Go has no cheaper safe place",
        RETURN_COST.as_micros()
    ));
    Ok(FamilyPlan { family: Family::Go, hooks, notes, proof: Vec::new() })
}

fn places(elf: &Elf<'_>, name: &str, text_start: u64, range: Range) -> Result<(u64, Places), WhyNot> {
    let unproven = |why: String| WhyNot::Unproven { what: name.to_owned(), why };
    let size = range.end - range.start;
    if size > MAX_FUNCTION {
        return Err(unproven(format!("its {size} bytes are too many")));
    }
    let address =
        text_start.checked_add(range.start).ok_or_else(|| unproven("its address is out of range".to_owned()))?;
    let bytes = elf
        .code(address, size)
        .filter(|bytes| bytes.len() as u64 == size)
        .ok_or_else(|| unproven("it lies outside the code".to_owned()))?;
    let places = code::places(bytes, address).map_err(|why| unproven(why.to_string()))?;
    Ok((address, places))
}

#[cfg(test)]
mod tests;
