//! The generated parts of files in docs: the machine that a run was made on, and its table.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

/// The machine, the date, the `command` that was run and the `table` that it gave, as Markdown.
pub(crate) fn section(root: &Path, command: &str, table: &str, load_before: &str) -> String {
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
        "Taken {date} at commit {commit} by one run of `{command}`; Linux {}, {model}, {cores} cores{guest}; load average before it {load_before}.\n\n{table}",
        kernel.trim(),
    )
}

/// One, five and fifteen minutes.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(", ")
}

/// Puts the section between the two marks `name` of the file.
pub(crate) fn write(path: &Path, name: &str, section: &str) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let Some(text) = replaced(&text, name, section) else {
        bail!("{} has not the marks `{}` and `{}`", path.display(), begin(name).trim(), end(name).trim());
    };
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn begin(name: &str) -> String {
    format!("<!-- begin {name} -->\n")
}

fn end(name: &str) -> String {
    format!("<!-- end {name} -->\n")
}

fn replaced(text: &str, name: &str, section: &str) -> Option<String> {
    let (begin, end) = (begin(name), end(name));
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{section}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let text = "a\n<!-- begin figures -->\nold\n<!-- end figures -->\nb\n";
        let new = "a\n<!-- begin figures -->\nnew\n<!-- end figures -->\nb\n";
        assert_eq!(replaced(text, "figures", "new\n").as_deref(), Some(new));
        assert_eq!(replaced(text, "matrix", "new\n"), None);
    }
}
