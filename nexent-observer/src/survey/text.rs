//! The survey for people.

use std::io::{self, Write};

use super::{
    Diagnosis, Inventory, Others,
    host::{Check, State},
    process::{FoundLibrary, Status, Subject},
};

/// `doctor`. Processes that were named are shown in full.
///
/// # Errors
/// Those of the writer.
pub fn diagnosis(out: &mut dyn Write, found: &Diagnosis, in_full: bool) -> io::Result<()> {
    writeln!(out, "Host")?;
    let width = found.host.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for Check { name, state, found, advice } in &found.host {
        let state = match state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Failed => "FAILED",
            State::Unknown => "unknown",
        };
        writeln!(out, "  {state:<8} {name:<width$}  {found}")?;
        if let Some(advice) = advice {
            writeln!(out, "  {:<8} {:<width$}  -> {advice}", "", "")?;
        }
    }
    let verdict = if found.can_run { "The observer can run here." } else { "The observer cannot run here." };
    writeln!(out, "  {verdict}\n")?;
    if in_full {
        for subject in &found.processes {
            process(out, subject)?;
        }
        return Ok(());
    }
    writeln!(out, "Processes")?;
    table(out, &found.processes)?;
    others(out, found.others)?;
    writeln!(out, "  nexent-observer doctor --pid PID shows one in full.")
}

/// `targets`.
///
/// # Errors
/// Those of the writer.
pub fn inventory(out: &mut dyn Write, found: &Inventory) -> io::Result<()> {
    table(out, &found.targets)?;
    others(out, found.others)
}

fn table(out: &mut dyn Write, subjects: &[Subject]) -> io::Result<()> {
    if subjects.is_empty() {
        return writeln!(out, "  None.");
    }
    let heads = ["PID", "USER", "SERVICE", "STATUS", "TLS", "COST", "EXECUTABLE"].map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(heads).chain(subjects.iter().map(row)).collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..7).map(|column| width(column).unwrap_or(0).min(40)).collect();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        writeln!(out, "  {}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn row(subject: &Subject) -> [String; 7] {
    let families: Vec<&str> = subject
        .libraries
        .iter()
        .flat_map(|library| library.implementations.iter().map(|found| found.family))
        .fold(Vec::new(), |mut all, family| {
            if !all.contains(&family) {
                all.push(family);
            }
            all
        });
    let costs = subject.libraries.iter().flat_map(|library| &library.implementations).flat_map(|found| &found.hooks);
    let dearest = costs
        .filter(|place| is_hot(&place.hook))
        .map(|place| place.cost_us)
        .fold(None, |max: Option<f64>, cost| Some(max.map_or(cost, |max| max.max(cost))));
    let unseen = || subject.unseen.first().map_or("-", |unseen| unseen.what.as_str());
    [
        subject.pid.to_string(),
        subject.user.map_or_else(|| "?".to_owned(), |user| user.to_string()),
        subject.service.clone(),
        status(subject).to_owned(),
        if families.is_empty() { format!("({})", unseen()) } else { families.join(", ") },
        dearest.map_or_else(|| "-".to_owned(), |cost| format!("{cost} us")),
        subject.executable.clone().unwrap_or_else(|| "?".to_owned()),
    ]
}

/// Whether a hook is hit by every call and not only at a connection's begin and end.
fn is_hot(hook: &str) -> bool {
    hook.contains("read") || hook.contains("write")
}

fn status(subject: &Subject) -> &'static str {
    match subject.status {
        Status::Tls | Status::PlainHttp if subject.silent == Some(true) => "SILENT",
        Status::Tls if subject.plain_http => "tls, plain http",
        Status::Tls => "tls",
        Status::PlainHttp => "plain http",
        Status::OptedOut => "opted out",
        Status::Seccomp => "seccomp",
        Status::Nothing => "nothing",
        Status::Unreadable => "unreadable",
    }
}

fn others(out: &mut dyn Write, others: Others) -> io::Result<()> {
    let Others { nothing_to_observe, unreadable, unwanted, kernel_threads } = others;
    writeln!(
        out,
        "  {nothing_to_observe} other processes have nothing to observe, {kernel_threads} are threads of the kernel."
    )?;
    if unwanted > 0 {
        writeln!(out, "  {unwanted} are left out by a filter or by opt_in.")?;
    }
    if unreadable > 0 {
        writeln!(out, "  {unreadable} could not be looked at: run as root, or with CAP_SYS_PTRACE and CAP_SYS_ADMIN.")?;
    }
    Ok(())
}

/// One process in full.
fn process(out: &mut dyn Write, subject: &Subject) -> io::Result<()> {
    let executable = subject.executable.as_deref().unwrap_or("an unknown executable");
    writeln!(out, "Process {} ({executable})", subject.pid)?;
    writeln!(out, "  status      {}", status(subject))?;
    writeln!(out, "  service     {}", subject.service)?;
    for (name, value) in &subject.attributes {
        writeln!(out, "  attribute   {name} = {value}")?;
    }
    if subject.unwanted {
        writeln!(out, "  filter      left out by a filter or by opt_in; --pid observes it all the same")?;
    }
    let plain = match (subject.plain_http, subject.listens) {
        (true, true) => "observed: it listens on a TCP port",
        (true, false) => "observed",
        (false, _) => "not observed; plain_http: on does it",
    };
    writeln!(out, "  plain http  {plain}")?;
    for found in &subject.libraries {
        library(out, found)?;
    }
    for unseen in &subject.unseen {
        writeln!(out, "  cannot see {}: {}", unseen.what, unseen.why)?;
        writeln!(out, "    -> {}", unseen.advice)?;
    }
    writeln!(out)
}

fn library(out: &mut dyn Write, library: &FoundLibrary) -> io::Result<()> {
    let FoundLibrary { path, build_id, version, implementations, left_alone } = library;
    let version = version.as_deref().unwrap_or("version unknown");
    writeln!(out, "  {path} ({version}, build id {})", build_id.as_deref().unwrap_or("unknown"))?;
    for found in implementations {
        writeln!(out, "    {}", found.family)?;
        let width = found.hooks.iter().map(|place| place.function.chars().count()).max().unwrap_or(0);
        for place in &found.hooks {
            writeln!(
                out,
                "      {:<15} {:<width$}  at {:#x}, about {} us a hit",
                place.hook, place.function, place.offset, place.cost_us
            )?;
        }
        for note in &found.notes {
            writeln!(out, "      note: {note}")?;
        }
    }
    for left in left_alone {
        writeln!(out, "    {} is left alone: {}", left.family, left.why)?;
    }
    Ok(())
}
