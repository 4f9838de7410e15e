//! Finds the probe point of the in-process hooks (docs/hooks.md).

use nexent_observer_common::cookie::Length;

use super::{
    elf::Elf,
    hookpoint::{self, Place},
    plan::{Family, FamilyPlan, Hook, Program, WhyNot},
};

/// Name of the function, whatever library it is in.
pub const ANNOUNCE: &str = "nexent_observer_announce";

/// Bytes of the function looked at.
const LOOK_BYTES: u64 = 64;

/// The plan for a file, or `None` when it has no probe point.
///
/// # Errors
/// [`WhyNot`] when its code cannot be read.
pub fn plan(elf: &Elf<'_>) -> Result<Option<FamilyPlan>, WhyNot> {
    let Some(function) = elf.functions(&[ANNOUNCE]).remove(ANNOUNCE) else { return Ok(None) };
    let unproven = |why: &str| WhyNot::Unproven { what: ANNOUNCE.to_owned(), why: why.to_owned() };
    let code = elf.code(function.address, LOOK_BYTES).ok_or_else(|| unproven("it lies outside the code"))?;
    let Place { delta, cost } = hookpoint::place(code, function.address).map_err(|why| unproven(&why.to_string()))?;
    let offset = elf.offset_of(function.address + delta).ok_or_else(|| unproven("it lies outside the code"))?;
    let hook = Hook { program: Program::Announce, function: function.name, offset, length: Length::Returned, cost };
    Ok(Some(FamilyPlan { family: Family::Hooks, hooks: vec![hook], notes: Vec::new(), proof: Vec::new() }))
}
