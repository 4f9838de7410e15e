//! Finds OpenSSL 3 that was linked into a program without symbols (python-build-standalone and what uv installs): `ssl_read_internal`
//! and `ssl_write_internal` put their own names into the errors that they raise (`__func__` in `ERR_raise`).

use std::collections::{BTreeSet, HashSet};

use nexent_observer_common::cookie::Length;

use super::{
    elf::Elf,
    hookpoint::{self, Cost, Place},
    passes::Value,
    plan::{Family, FamilyPlan, Hook, Program, WhyNot},
    xref::{self, Function, Needle, Starts},
};

/// `ERR_LIB_SSL` and `SSL_R_UNINITIALIZED` (include/openssl/err.h.in, include/openssl/sslerr.h).
const LIBRARY: u32 = 20;
const UNINITIALIZED: u32 = 276;

/// Sizes that the functions may have, bytes. Seen: 385 to 600.
const SIZE: std::ops::RangeInclusive<u64> = 128..=4_096;

const NEEDLES: [Needle; 5] = [
    Needle::Whole("ssl_read_internal"),
    Needle::Whole("ssl_write_internal"),
    Needle::Whole("SSL_new"),
    Needle::Whole("SSL_clear"),
    Needle::Suffix("ssl/ssl_lib.c"),
];

/// The plan for a file; `None` when it is not OpenSSL, or when it has symbols and is found by these.
///
/// # Errors
/// [`WhyNot`] when OpenSSL seems to be in it and its functions are not proven.
pub fn plan(elf: &Elf<'_>) -> Result<Option<FamilyPlan>, WhyNot> {
    if cfg!(not(target_arch = "x86_64")) || !elf.functions(&["SSL_read", "SSL_write"]).is_empty() {
        return Ok(None);
    }
    let Some(strings) = xref::strings(elf, &NEEDLES) else { return Ok(None) };
    let [read, write, new, clear, path] = strings.as_slice() else { return Ok(None) };
    if read.is_empty() || write.is_empty() || path.is_empty() {
        return Ok(None);
    }
    let names = [read.as_slice(), write, new, clear].concat();
    let too_many = || WhyNot::Unsupported("its code refers to its own names too often".to_owned());
    let references = xref::references(elf, &names).ok_or_else(too_many)?;
    let starts = Starts::around(elf, references.iter().map(|reference| reference.operand)).ok_or_else(too_many)?;
    let raising = |what: &str, name: &[u64]| {
        let mut found: Option<Function> = None;
        let mut why = WhyNot::Missing(what.to_owned());
        for reference in references.iter().filter(|reference| name.contains(&reference.target)) {
            if found.as_ref().is_some_and(|found| found.spans(reference.operand)) {
                continue;
            }
            match starts.function(elf, reference.operand) {
                Ok(_) if found.is_some() => return Err(WhyNot::Ambiguous { what: what.to_owned(), candidates: 2 }),
                Ok(function) => found = Some(function),
                Err(reason) => why = unproven(what, reason),
            }
        }
        let function = found.ok_or(why)?;
        let files = function.references(path);
        if files.is_empty() {
            return Err(unproven(what, "it does not name its source file"));
        }
        Ok(function)
    };
    let (mut hooks, mut proof) = (Vec::new(), Vec::new());
    for (program, what, name) in
        [(Program::Read, "ssl_read_internal", read), (Program::Write, "ssl_write_internal", write)]
    {
        let function = raising(what, name)?;
        if !function.begins_like_one() {
            return Err(unproven(what, "it does not begin with a push"));
        }
        let length = prove_inner(elf, what, &function)?;
        hooks.push(hook(elf, program, what, &function, length)?);
        proof.push(function.part(elf));
    }
    proof.extend(names.iter().chain(path).map(|at| xref::string_part(elf, *at)));
    let mut notes = Vec::new();
    for (program, what, name) in [(Program::New, "SSL_new", new), (Program::Clear, "SSL_clear", clear)] {
        let found = raising(what, name).and_then(|function| {
            // Both take the object alone; OpenSSL's own handshake calls SSL_clear first.
            proof.push(function.part(elf));
            if function.arguments() != [true, false, false, false, false, false] {
                return Err(unproven(what, "it does not take one argument"));
            }
            // From OpenSSL 3.2 on they begin with a test and hand over to another function. Their beginning is known all the same.
            if !function.begins_like_one() && !starts.has_in_table(elf, function.start) {
                return Err(unproven(what, "it does not begin with a push"));
            }
            hook(elf, program, what, &function, Length::Returned)
        });
        match found {
            Ok(hook) => hooks.push(hook),
            Err(why) => notes.push(format!("{why}: connections are told apart by other signs")),
        }
    }
    notes.push("its functions have no names: they were found by the errors that they raise".to_owned());
    Ok(Some(FamilyPlan { family: Family::StaticOpenSsl, hooks, notes, proof: proof.into_iter().flatten().collect() }))
}

/// The inner function behind a public one that returns the length, from OpenSSL 3.2 on, where more is called on the way: the one
/// that is handed the object, the buffer and the address of a local, and is proven by itself.
///
/// # Errors
/// [`WhyNot`].
pub(super) fn inner_of(elf: &Elf<'_>, name: &str, public: u64) -> Result<(Hook, u64), WhyNot> {
    let what = format!("the inner function of {name}");
    let public = xref::function_at(elf, public).map_err(|why| unproven(name, why))?;
    let is_inner = |call: u64| {
        let ways = public.handed_over(call);
        ways.iter().any(|way| {
            matches!(
                way,
                [Value::Argument(0), Value::Argument(1), _, Value::Local, _, _]
                    | [Value::Argument(0), Value::Argument(1), _, _, Value::Local, _]
            )
        })
    };
    let targets: BTreeSet<u64> = public.calls().filter(|(call, _)| is_inner(*call)).map(|(_, target)| target).collect();
    let mut targets = targets.into_iter();
    let (Some(address), None) = (targets.next(), targets.next()) else {
        return Err(unproven(&what, "no call, or more than one, hands on what it must"));
    };
    let function = xref::function_at(elf, address).map_err(|why| unproven(&what, why))?;
    if !function.begins_like_one() {
        return Err(unproven(&what, "it does not begin with a push"));
    }
    let length = prove_inner(elf, &what, &function)?;
    Ok((hook(elf, Program::Read, name, &function, length)?, address))
}

/// Proves that this is the inner function of a direction, and tells where it stores the length: `SSL_x` and `SSL_x_ex` call it, the
/// one with the address of a local, the other with the pointer that was given to it.
fn prove_inner(elf: &Elf<'_>, what: &str, function: &Function) -> Result<Length, WhyNot> {
    let constants: Vec<u32> = function.moved_constants();
    if !constants.contains(&LIBRARY) || !constants.contains(&UNINITIALIZED) {
        return Err(unproven(what, "it does not raise the error of an object that is not set up"));
    }
    if !SIZE.contains(&function.size()) {
        return Err(unproven(what, "its size is not what it must be"));
    }
    if !matches!(function.arguments(), [true, true, true, ..]) {
        return Err(unproven(what, "it does not use the arguments that it must take"));
    }
    let calls = xref::callers(elf, function.start).unwrap_or_default();
    let starts = Starts::around(elf, calls.iter().map(|call| call + 1))
        .ok_or_else(|| unproven(what, "its callers cannot be told"))?;
    let mut ways = HashSet::new();
    for call in &calls {
        // A call that is none, or lies in a function that cannot be told, proves nothing.
        if let Ok(caller) = starts.function(elf, call + 1) {
            ways.extend(caller.handed_over(*call));
        }
    }
    // All hand on the object and the buffer. With the address of a local it is `SSL_x`, which tells where the length goes.
    ways.retain(|way| matches!(way, [Value::Argument(0), Value::Argument(1), ..]));
    let plain: HashSet<Length> = ways
        .iter()
        .filter_map(|[.., fourth, fifth, _]| match (*fourth == Value::Local, *fifth == Value::Local) {
            (true, false) => Some(Length::FourthArgument),
            (false, true) => Some(Length::FifthArgument),
            _ => None,
        })
        .collect();
    let mut plain = plain.into_iter();
    let (Some(length), None) = (plain.next(), plain.next()) else {
        return Err(unproven(what, "no function calls it as the public one does, or two that do not agree"));
    };
    // With a pointer that was given to it it is `SSL_x_ex` or `SSL_x_ex2`.
    let extended = ways.iter().any(|[.., fourth, fifth, _]| {
        let pointer = if length == Length::FourthArgument { fourth } else { fifth };
        matches!(pointer, Value::Argument(3 | 4))
    });
    if extended { Ok(length) } else { Err(unproven(what, "no function calls it as the extended public one does")) }
}

fn unproven(what: &str, why: &str) -> WhyNot {
    WhyNot::Unproven { what: what.to_owned(), why: why.to_owned() }
}

fn hook(elf: &Elf<'_>, program: Program, name: &str, function: &Function, length: Length) -> Result<Hook, WhyNot> {
    let code = elf.code(function.start, function.size()).unwrap_or_default();
    let Place { delta, cost } =
        hookpoint::place(code, function.start).map_err(|why| unproven(name, &why.to_string()))?;
    if cost != Cost::Emulated && matches!(program, Program::Read | Program::Write) {
        return Err(unproven(name, "it does not begin with a push"));
    }
    let offset = elf.offset_of(function.start + delta).ok_or_else(|| unproven(name, "it lies outside the code"))?;
    Ok(Hook { program, function: format!("{name} at {:#x}", function.start), offset, length, cost })
}
