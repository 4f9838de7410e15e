//! Finds BoringSSL without symbols (Bun, Claude Code, gRPC): by the errors that its functions raise, each of which leaves the path of
//! its source file, its line and its reason in the code (`OPENSSL_PUT_ERROR`).
//!
//! `SSL_write` is the only function of ssl/ssl_lib.cc that raises these four: "should not have been called", "uninitialized", "handshake
//! failure" and "bad length". `SSL_read` and `SSL_peek`, which is compiled into it, raise the first of them some 20 lines before, and
//! only `SSL_read` takes away what it has read.

use std::collections::BTreeSet;

use nexent_observer_common::cookie::Length;

use super::{
    elf::Elf,
    hookpoint::{self, Cost, Place},
    plan::{Family, FamilyPlan, Hook, Program, WhyNot},
    xref::{self, Function, Needle, Starts},
};

/// Reasons of errors (include/openssl/err.h, include/openssl/ssl.h).
const SHOULD_NOT_HAVE_BEEN_CALLED: u32 = 66;
const BAD_LENGTH: u32 = 111;
const NULL_SSL_CTX: u32 = 185;
const SSL_HANDSHAKE_FAILURE: u32 = 215;
const UNINITIALIZED: u32 = 226;

/// Lines of a source file that an error can name.
const LINES: std::ops::Range<u32> = 256..8_192;
/// Lines from the error of `SSL_peek` to that of `SSL_write`: 21 or 22 in all versions seen (2023 to 2026).
const LINES_BETWEEN: std::ops::RangeInclusive<u32> = 18..=26;
/// Sizes that the functions may have, bytes. Seen: 209 to 288 and 326 to 405.
const READ_SIZE: std::ops::RangeInclusive<u64> = 128..=1_024;
const WRITE_SIZE: std::ops::RangeInclusive<u64> = 192..=2_048;

/// The plan for a file; `None` when it is not BoringSSL, or when it has symbols and is found by these.
///
/// # Errors
/// [`WhyNot`] when BoringSSL seems to be in it and its functions are not proven.
pub fn plan(elf: &Elf<'_>) -> Result<Option<FamilyPlan>, WhyNot> {
    if cfg!(not(target_arch = "x86_64")) || !elf.functions(&["SSL_read", "SSL_write"]).is_empty() {
        return Ok(None);
    }
    let Some(paths) = xref::strings(elf, &[Needle::Suffix("ssl/ssl_lib.cc")]) else { return Ok(None) };
    let paths = paths.concat();
    if paths.is_empty() {
        return Ok(None);
    }
    let too_many = || WhyNot::Unsupported("its code refers to its source files too often".to_owned());
    let references = xref::references(elf, &paths).ok_or_else(too_many)?;
    let references = xref::near(elf, &references, &[SHOULD_NOT_HAVE_BEEN_CALLED, NULL_SSL_CTX]);
    if references.is_empty() {
        // The path alone, in a program that was linked without the functions that matter.
        return Ok(None);
    }
    let starts = Starts::around(elf, references.iter().map(|reference| reference.operand)).ok_or_else(too_many)?;
    let mut functions = Vec::<Raising>::new();
    for reference in &references {
        if functions.iter().any(|known| known.function.spans(reference.operand)) {
            continue;
        }
        // A reference whose function cannot be told is none that could be proven.
        let Ok(function) = starts.function(elf, reference.operand) else { continue };
        functions.push(Raising::new(function, &paths));
    }
    let write = only("SSL_write", functions.iter().filter(|function| function.is_write()))?;
    let line = write.line(SHOULD_NOT_HAVE_BEEN_CALLED).ok_or_else(|| unproven("SSL_write", "its line is not found"))?;
    let read = only("SSL_read", functions.iter().filter(|function| function.is_read(line)))?;
    let mut notes = Vec::new();
    let mut hooks = vec![
        hook(elf, Program::Read, "SSL_read", &read.function)?,
        hook(elf, Program::Write, "SSL_write", &write.function)?,
    ];
    let new = only("SSL_new", functions.iter().filter(|function| function.is_new()));
    match &new {
        Ok(new) => hooks.push(hook(elf, Program::New, "SSL_new", &new.function)?),
        Err(why) => notes.push(format!("{why}: connections are told apart by other signs")),
    }
    notes.push("its functions have no names: they were found by the errors that they raise".to_owned());
    let mut proof = vec![read.function.part(elf), write.function.part(elf)];
    proof.extend(new.ok().map(|new| new.function.part(elf)));
    proof.extend(read.strings.iter().chain(&write.strings).map(|at| xref::string_part(elf, *at)));
    Ok(Some(FamilyPlan { family: Family::BoringSsl, hooks, notes, proof: proof.into_iter().flatten().collect() }))
}

/// A function and the errors that it raises.
struct Raising {
    function: Function,
    /// Constants beside each reference to the source file.
    errors: Vec<Vec<u32>>,
    /// Addresses of the paths that it refers to.
    strings: BTreeSet<u64>,
}

impl Raising {
    fn new(function: Function, paths: &[u64]) -> Self {
        let references = function.references(paths);
        let errors = references.iter().filter_map(|at| function.constants_at(*at)).collect();
        let strings = references.iter().map(|at| at.target).collect();
        Self { function, errors, strings }
    }

    fn raises(&self, reason: u32) -> bool {
        self.errors.iter().any(|error| error.contains(&reason))
    }

    /// The line on which it raises this; `None` when it is not told, or more than one.
    fn line(&self, reason: u32) -> Option<u32> {
        let mut lines =
            self.errors.iter().filter(|error| error.contains(&reason)).flatten().filter(|n| LINES.contains(n));
        let line = *lines.next()?;
        lines.all(|other| *other == line).then_some(line)
    }

    /// `int f(ssl, buf, int num)`, as far as the code tells.
    fn takes_object_buffer_and_number(&self) -> bool {
        self.function.arguments() == [true, true, true, false, false, false]
    }

    fn is_write(&self) -> bool {
        let raises = [SHOULD_NOT_HAVE_BEEN_CALLED, UNINITIALIZED, SSL_HANDSHAKE_FAILURE, BAD_LENGTH];
        raises.iter().all(|reason| self.raises(*reason))
            && WRITE_SIZE.contains(&self.function.size())
            && self.takes_object_buffer_and_number()
    }

    fn is_read(&self, write_line: u32) -> bool {
        self.errors.len() == 1
            && self.line(SHOULD_NOT_HAVE_BEEN_CALLED).is_some_and(|line| {
                write_line.checked_sub(line).is_some_and(|between| LINES_BETWEEN.contains(&between))
            })
            && READ_SIZE.contains(&self.function.size())
            && self.takes_object_buffer_and_number()
            && self.function.changes_memory()
    }

    fn is_new(&self) -> bool {
        self.raises(NULL_SSL_CTX) && self.function.arguments() == [true, false, false, false, false, false]
    }
}

/// The only one of these.
fn only<'a>(what: &str, mut candidates: impl Iterator<Item = &'a Raising>) -> Result<&'a Raising, WhyNot> {
    let Some(found) = candidates.next() else { return Err(WhyNot::Missing(what.to_owned())) };
    match candidates.count() {
        0 => Ok(found),
        more => Err(WhyNot::Ambiguous { what: what.to_owned(), candidates: more + 1 }),
    }
}

fn unproven(what: &str, why: &str) -> WhyNot {
    WhyNot::Unproven { what: what.to_owned(), why: why.to_owned() }
}

/// The hook on a function that begins as one.
fn hook(elf: &Elf<'_>, program: Program, name: &str, function: &Function) -> Result<Hook, WhyNot> {
    if !function.begins_like_one() {
        return Err(unproven(name, "it does not begin with a push"));
    }
    let code = elf.code(function.start, function.size()).unwrap_or_default();
    let Place { delta, cost } =
        hookpoint::place(code, function.start).map_err(|why| unproven(name, &why.to_string()))?;
    if cost != Cost::Emulated {
        return Err(unproven(name, "it does not begin with a push"));
    }
    let offset = elf.offset_of(function.start + delta).ok_or_else(|| unproven(name, "it lies outside the code"))?;
    let function = format!("{name} at {:#x}", function.start);
    Ok(Hook { program, function, offset, length: Length::Returned, cost })
}
