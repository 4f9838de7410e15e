//! Finds the hook points of an OpenSSL-like library (OpenSSL, LibreSSL, BoringSSL with symbols) in a file, whatever its name.

use nexent_observer_common::cookie::Length;

use super::{
    elf::{Elf, Function},
    hookpoint::{self, Cost, Place},
    plan::{Family, FamilyPlan, Hook, Program, WhyNot},
    static_openssl,
};

/// Bytes of a public function looked at.
const LOOK_BYTES: u64 = 256;

/// The plan for a file, or `None` when it has no TLS functions of this kind.
///
/// # Errors
/// [`WhyNot`] when it has some, but not what is needed.
pub fn plan(elf: &Elf<'_>) -> Result<Option<FamilyPlan>, WhyNot> {
    const NAMES: [&str; 7] =
        ["SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex", "SSL_new", "SSL_free", "SSL_clear"];
    let found = elf.functions(&NAMES);
    let get = |name: &str| found.get(name);
    if get("SSL_read").is_none() && get("SSL_write").is_none() {
        return Ok(None);
    }
    let mut plan = FamilyPlan { family: Family::OpenSsl, hooks: Vec::new(), notes: Vec::new(), proof: Vec::new() };
    for (program, plain, extended) in
        [(Program::Read, "SSL_read", "SSL_read_ex"), (Program::Write, "SSL_write", "SSL_write_ex")]
    {
        let missing = || WhyNot::Missing(plain.to_owned());
        direction(elf, program, get(plain).ok_or_else(missing)?, get(extended), &mut plan)?;
    }
    for (program, name) in [(Program::New, "SSL_new"), (Program::Free, "SSL_free"), (Program::Clear, "SSL_clear")] {
        match get(name).and_then(|function| hook(elf, program, function, Length::Returned)) {
            Some(hook) => plan.hooks.push(hook),
            None => plan.notes.push(format!("{name} is not found: connections are told apart by other signs")),
        }
    }
    Ok(Some(plan))
}

/// Adds the hooks of one direction.
fn direction(
    elf: &Elf<'_>,
    program: Program,
    plain: &Function,
    extended: Option<&Function>,
    plan: &mut FamilyPlan,
) -> Result<(), WhyNot> {
    let place = |function: &Function| hookpoint::place(elf.code(function.address, LOOK_BYTES)?, function.address).ok();
    let cheap = |function: &Function| place(function).is_some_and(|place| place.cost == Cost::Emulated);
    // Where the public functions are cheap themselves there is no reason to look behind them.
    let all_cheap = cheap(plain) && extended.is_none_or(cheap);
    if let (Some(extended), false) = (extended, all_cheap) {
        match behind(elf, plain, extended) {
            Ok(hook) => {
                plan.hooks.push(Hook { program, ..hook });
                return Ok(());
            }
            Err(first) => match static_openssl::inner_of(elf, &plain.name, plain.address) {
                Ok((hook, address)) => {
                    let function = format!("{} -> inner function at {address:#x}", plain.name);
                    plan.hooks.push(Hook { program, function, ..hook });
                    return Ok(());
                }
                Err(why) => plan.notes.push(format!(
                    "{} is hooked at its public entry, which costs about 9 us a call instead of 1: {first}, and {why}",
                    plain.name
                )),
            },
        }
    }
    let mut public = |function: &Function, length| {
        let no_code = || WhyNot::Unproven { what: function.name.clone(), why: "no code at its address".to_owned() };
        plan.hooks.push(hook(elf, program, function, length).ok_or_else(no_code)?);
        Ok(())
    };
    public(plain, Length::Returned)?;
    extended.map_or(Ok(()), |extended| public(extended, Length::FourthArgument))
}

/// The hook on the inner function behind two public ones, if it is proven.
fn behind(elf: &Elf<'_>, plain: &Function, extended: &Function) -> Result<Hook, String> {
    let code = |function: &Function| elf.code(function.address, LOOK_BYTES).unwrap_or_default();
    let inner = hookpoint::inner((code(plain), plain.address), (code(extended), extended.address))
        .map_err(|error| error.to_string())?;
    if elf.in_plt(inner.address) {
        return Err("its inner function is in another library".to_owned());
    }
    let body = elf.code(inner.address, LOOK_BYTES).ok_or("its inner function lies outside the code")?;
    let Place { delta, cost } = hookpoint::inner_place(body, inner.address).map_err(|error| error.to_string())?;
    let offset = elf.offset_of(inner.address + delta).ok_or("its inner function lies outside the code")?;
    Ok(Hook {
        program: Program::Read,
        function: format!("{} -> inner function at {:#x}", plain.name, inner.address),
        offset,
        length: inner.length,
        cost,
    })
}

/// The hook on a public function.
fn hook(elf: &Elf<'_>, program: Program, function: &Function, length: Length) -> Option<Hook> {
    let Place { delta, cost } = hookpoint::place(elf.code(function.address, LOOK_BYTES)?, function.address).ok()?;
    let offset = elf.offset_of(function.address + delta)?;
    Some(Hook { program, function: function.name.clone(), offset, length, cost })
}
