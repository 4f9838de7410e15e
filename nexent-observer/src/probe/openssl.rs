//! Finds the hook points of an OpenSSL-like library (OpenSSL, LibreSSL, BoringSSL with symbols) in a file, whatever its name.

use nexent_observer_common::cookie::Length;

use super::{
    elf::{Elf, Function},
    hookpoint::{self, Cost, Place},
};

/// Which program of the kernel half a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Program {
    /// Entry and return of a read.
    Read,
    /// Entry and return of a write.
    Write,
    /// Return of the function that makes a TLS object.
    New,
    /// Entry of the function that frees a TLS object.
    Free,
    /// Entry of the function that makes a TLS object begin anew.
    Clear,
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// What runs there.
    pub program: Program,
    /// The function, for people: a public name, or `public name -> inner`.
    pub function: String,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Where the hooked function says how many bytes it moved.
    pub length: Length,
    /// What a hit costs.
    pub cost: Cost,
}

/// What was found in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Hooks; reads and writes at least.
    pub hooks: Vec<Hook>,
    /// What is not as cheap or as complete as it could be, and why: one sentence each.
    pub notes: Vec<String>,
    /// GNU build id, in hexadecimal.
    pub build_id: Option<String>,
}

/// Bytes of a public function looked at.
const LOOK_BYTES: u64 = 256;

/// The plan for a file, or `None` when it has no TLS functions of this kind.
#[must_use]
pub fn plan(elf: &Elf<'_>) -> Option<Plan> {
    const NAMES: [&str; 7] =
        ["SSL_read", "SSL_read_ex", "SSL_write", "SSL_write_ex", "SSL_new", "SSL_free", "SSL_clear"];
    let found = elf.functions(&NAMES);
    let get = |name: &str| found.get(name);
    let mut plan = Plan { hooks: Vec::new(), notes: Vec::new(), build_id: elf.build_id() };
    for (program, plain, extended) in
        [(Program::Read, "SSL_read", "SSL_read_ex"), (Program::Write, "SSL_write", "SSL_write_ex")]
    {
        direction(elf, program, get(plain)?, get(extended), &mut plan)?;
    }
    for (program, name) in [(Program::New, "SSL_new"), (Program::Free, "SSL_free"), (Program::Clear, "SSL_clear")] {
        match get(name).and_then(|function| hook(elf, program, function, Length::Returned)) {
            Some(hook) => plan.hooks.push(hook),
            None => plan.notes.push(format!("{name} is not found: connections are told apart by other signs")),
        }
    }
    Some(plan)
}

/// Adds the hooks of one direction.
fn direction(
    elf: &Elf<'_>,
    program: Program,
    plain: &Function,
    extended: Option<&Function>,
    plan: &mut Plan,
) -> Option<()> {
    let place = |function: &Function| hookpoint::place(elf.code(function.address, LOOK_BYTES)?, function.address).ok();
    let cheap = |function: &Function| place(function).is_some_and(|place| place.cost == Cost::Emulated);
    // Where the public functions are cheap themselves there is no reason to look behind them.
    let all_cheap = cheap(plain) && extended.is_none_or(cheap);
    if let (Some(extended), false) = (extended, all_cheap) {
        match behind(elf, plain, extended) {
            Ok(hook) => {
                plan.hooks.push(Hook { program, ..hook });
                return Some(());
            }
            Err(why) => plan.notes.push(format!(
                "{} is hooked at its public entry, which costs about 9 us a call instead of 1: {why}",
                plain.name
            )),
        }
    }
    plan.hooks.push(hook(elf, program, plain, Length::Returned)?);
    if let Some(extended) = extended {
        plan.hooks.push(hook(elf, program, extended, Length::FourthArgument)?);
    }
    Some(())
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
