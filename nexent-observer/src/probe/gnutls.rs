//! Finds the hook points of GnuTLS in a file, whatever its name.

use nexent_observer_common::cookie::Length;

use super::{
    elf::Elf,
    hookpoint::{self, Place},
    plan::{Family, FamilyPlan, Hook, Program, WhyNot},
};

/// Bytes of a function looked at.
const LOOK_BYTES: u64 = 64;

/// A function that is hooked.
struct Wanted {
    name: &'static str,
    program: Program,
    /// Without it there is nothing to observe.
    needed: bool,
}

const fn wanted(name: &'static str, program: Program, needed: bool) -> Wanted {
    Wanted { name, program, needed }
}

/// `gnutls_record_send` jumps to `gnutls_record_send2`, and `gnutls_record_uncork` sends again what was kept back: the kernel half
/// counts the outermost call only.
const WANTED: [Wanted; 8] = [
    wanted("gnutls_record_recv", Program::Read, true),
    wanted("gnutls_record_recv_seq", Program::Read, false),
    wanted("gnutls_record_send", Program::GnuTlsWrite, true),
    wanted("gnutls_record_send2", Program::GnuTlsWrite, false),
    wanted("gnutls_record_send_range", Program::GnuTlsWrite, false),
    wanted("gnutls_record_uncork", Program::GnuTlsUncork, false),
    wanted("gnutls_init", Program::GnuTlsInit, false),
    wanted("gnutls_deinit", Program::Free, false),
];

/// The plan for a file, or `None` when it has no GnuTLS.
///
/// # Errors
/// [`WhyNot`] when it has some of it, but not what is needed.
pub fn plan(elf: &Elf<'_>) -> Result<Option<FamilyPlan>, WhyNot> {
    let found = elf.functions(&WANTED.map(|wanted| wanted.name));
    if !found.contains_key("gnutls_record_recv") && !found.contains_key("gnutls_record_send") {
        return Ok(None);
    }
    let mut plan = FamilyPlan { family: Family::GnuTls, hooks: Vec::new(), notes: Vec::new(), proof: Vec::new() };
    for Wanted { name, program, needed } in WANTED {
        let hook = found.get(name).and_then(|function| {
            let Place { delta, cost } =
                hookpoint::place(elf.code(function.address, LOOK_BYTES)?, function.address).ok()?;
            let offset = elf.offset_of(function.address + delta)?;
            Some(Hook { program, function: name.to_owned(), offset, length: Length::Returned, cost })
        });
        match hook {
            Some(hook) => plan.hooks.push(hook),
            None if needed => return Err(WhyNot::Missing(name.to_owned())),
            // Older versions have no gnutls_record_send2.
            None if matches!(program, Program::GnuTlsInit | Program::Free) => {
                plan.notes.push(format!("{name} is not found: connections are told apart by other signs"));
            }
            None => {}
        }
    }
    Ok(Some(plan))
}
