//! The generated part of docs/overhead.md: the machine, and the table.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::figure::{self, Figure};

const BEGIN: &str = "<!-- begin figures -->\n";
const END: &str = "<!-- end figures -->\n";

/// The machine, the date and the figures, as Markdown.
pub(super) fn section(root: &Path, figures: &[Figure], load_before: &str) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, name)| name);
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let guest = if info.contains(" hypervisor") { ", a virtual machine" } else { "" };
    let of = |command: &mut Command| {
        let output = command.output().ok().filter(|output| output.status.success());
        output.map_or_else(|| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let date = of(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]));
    let commit = of(Command::new("git").arg("-C").arg(root).args(["rev-parse", "--short", "HEAD"]));
    format!(
        "Taken {date} at commit {commit} by one run of `cargo xtask bench --write-docs`; Linux {}, {model}, {cores} cores{guest}; load average before it {load_before}.\n\n{}",
        kernel.trim(),
        figure::markdown(figures),
    )
}

/// One, five and fifteen minutes.
pub(super) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(", ")
}

/// Puts the section between the two marks of the file.
pub(super) fn write(path: &Path, section: &str) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let Some(text) = replaced(&text, section) else {
        bail!("{} has not the marks `{}` and `{}`", path.display(), BEGIN.trim(), END.trim());
    };
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn replaced(text: &str, section: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{section}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(replaced(&text, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}b\n"));
        assert_eq!(replaced("a\n", "new\n"), None);
    }
}
