//! Finds the functions of aws-lc with which rustls seals and opens the records of TLS: by their symbols, or in a stripped program by
//! the references of their error reports.
//!
//! rustls itself has no function that could be hooked: its own are Rust, without a stable way to pass arguments. aws-lc is C, and
//! all that rustls encrypts goes through `EVP_AEAD_CTX_seal` (TLS 1.3), `EVP_AEAD_CTX_seal_scatter` (TLS 1.2) and
//! `EVP_AEAD_CTX_open` (both). With ring in its place there is nothing of the kind.

mod refs;
mod shape;

use nexent_observer_common::cookie::Length;

use super::{
    elf::Elf,
    hookpoint::{self, Cost},
    plan::{Family, FamilyPlan, Hook, Part, Program, WhyNot},
    xref,
};
use refs::Found;
use shape::Wanted;

/// Names begin so since aws-lc-sys mangles them, with its version behind it.
const PREFIX: &str = "aws_lc_";
/// What stands between the version and the function.
const CONTEXT: &str = "_EVP_AEAD_CTX_";

/// End of the name of the source file in the error reports of these functions; what precedes it is not there in a program whose paths
/// were cut to their ends.
const SOURCE: &[u8] = b"aws-lc/crypto/fipsmodule/cipher/aead.c\0";

/// What programs with rustls carry: the paths of its sources, for panics.
const RUSTLS: &[u8] = b"/rustls-0.";

/// Largest section of constants that is searched, bytes; the largest seen has 90 MB.
const MAX_CONSTANTS: u64 = 512 << 20;

/// Bytes of a function looked at for the place of a probe.
const LOOK_BYTES: u64 = 64;

/// The functions, by the end of their names.
const FUNCTIONS: [(&str, Program, Wanted); 3] = [
    ("open", Program::AeadOpen, Wanted::Open),
    ("seal", Program::AeadSeal, Wanted::Seal),
    ("seal_scatter", Program::AeadSealScatter, Wanted::SealScatter),
];

/// One copy of aws-lc: addresses of its functions, in the order of [`FUNCTIONS`].
#[derive(Debug, Clone, PartialEq, Eq)]
struct Copy {
    /// How its names begin, or what stands in their place.
    name: String,
    functions: [Option<u64>; 3],
    /// Parts of the file that prove them; none where symbols do.
    proof: Vec<Part>,
}

/// The plan for a file, or `None` when it has no aws-lc and no rustls.
///
/// # Errors
/// [`WhyNot`] when it has rustls, but not what is needed.
pub fn plan(elf: &Elf<'_>) -> Result<Option<FamilyPlan>, WhyNot> {
    let mut copies = by_symbols(elf);
    if copies.is_empty() {
        let Some(constants) = elf.section(".rodata", MAX_CONSTANTS) else { return Ok(None) };
        let sources = refs::strings_ending_in(constants, SOURCE);
        if sources.is_empty() {
            return match memchr::memmem::find(constants.bytes, RUSTLS) {
                Some(_) => Err(WhyNot::Unsupported(
                    "it has rustls without aws-lc, so with ring most likely, which has no function that can be told from outside; \
                     a build with rustls's default provider, aws-lc, can be observed"
                        .to_owned(),
                )),
                None => Ok(None),
            };
        }
        if cfg!(not(target_arch = "x86_64")) {
            return Err(WhyNot::Unsupported(
                "aws-lc without symbols is found on x86_64 only by this version".to_owned(),
            ));
        }
        for source in sources {
            copies.push(Copy::without_symbols(elf, source, &refs::functions(elf, source)?));
        }
    }
    let mut plan = FamilyPlan { family: Family::Rustls, hooks: Vec::new(), notes: Vec::new(), proof: Vec::new() };
    for copy in copies {
        copy.hook(elf, &mut plan)?;
    }
    Ok(Some(plan))
}

/// Copies that have symbols. A program may hold several versions.
fn by_symbols(elf: &Elf<'_>) -> Vec<Copy> {
    let found = elf.functions_where(|name| {
        name.starts_with(PREFIX)
            && name.split_once(CONTEXT).is_some_and(|(_, end)| FUNCTIONS.iter().any(|(name, ..)| *name == end))
    });
    let mut copies: Vec<Copy> = Vec::new();
    for function in found {
        let Some((name, end)) = function.name.split_once(CONTEXT) else { continue };
        let at = match copies.iter().position(|copy| copy.name == name) {
            Some(at) => at,
            None => {
                copies.push(Copy { name: name.to_owned(), functions: [None; 3], proof: Vec::new() });
                copies.len() - 1
            }
        };
        let slots = FUNCTIONS.iter().position(|(name, ..)| *name == end).zip(copies.get_mut(at));
        if let Some(slot) = slots.and_then(|(place, copy)| copy.functions.get_mut(place)) {
            slot.get_or_insert(function.address);
        }
    }
    // A library may have nothing of it but what it uses.
    copies.retain(|copy| matches!(copy.functions, [Some(_), sealing, scattering] if sealing.or(scattering).is_some()));
    copies
}

impl Copy {
    fn without_symbols(elf: &Elf<'_>, source: u64, found: &[Option<Found>; 3]) -> Self {
        let code = found.iter().flatten().flat_map(|found| found.parts.iter().map(|part| (found.start, part)));
        let code = code.filter_map(|(start, part)| {
            let offset = elf.offset_of(part.start)?;
            let function = part.contains(&start).then(|| start - part.start);
            Some(Part { offset, len: part.end.saturating_sub(part.start), function })
        });
        let proof = code.chain(xref::string_part(elf, source)).collect();
        Self { name: String::new(), functions: found.each_ref().map(|found| found.as_ref().map(|it| it.start)), proof }
    }

    fn hook(&self, elf: &Elf<'_>, plan: &mut FamilyPlan) -> Result<(), WhyNot> {
        for ((end, program, _), address) in FUNCTIONS.iter().zip(self.functions) {
            let name = format!("{}{CONTEXT}{end}", self.name).trim_start_matches('_').to_owned();
            let Some(address) = address else {
                plan.notes.push(format!("{name} is not found: what TLS 1.2 sends is not seen"));
                continue;
            };
            let unproven = |why: &str| WhyNot::Unproven { what: name.clone(), why: why.to_owned() };
            let code = elf.code(address, LOOK_BYTES).ok_or_else(|| unproven("no code at its address"))?;
            let place = hookpoint::place(code, address).map_err(|error| unproven(&error.to_string()))?;
            if place.cost == Cost::SingleStepped {
                plan.notes.push(format!("{name} has no cheap beginning: about 9 us a record instead of 1"));
            }
            let offset = elf.offset_of(address + place.delta).ok_or_else(|| unproven("it lies outside the code"))?;
            let length = if *program == Program::AeadOpen { Length::ThirdArgument } else { Length::Returned };
            let function = if self.name.is_empty() { format!("{name} at {address:#x}") } else { name.clone() };
            plan.hooks.push(Hook { program: *program, function, offset, length, cost: place.cost });
        }
        plan.proof.extend_from_slice(&self.proof);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
