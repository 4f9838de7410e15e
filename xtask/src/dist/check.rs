//! Takes a release apart, as a user does who got nothing but its files, and tries every one of them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use object::{
    LittleEndian,
    elf::{DT_NEEDED, FileHeader64, PT_INTERP},
    read::elf::{Dyn, FileHeader, ProgramHeader},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use xtask::{python, sh, stack::image, stage::Stage};

use super::{SHELLS, archive_name, context_name};
use crate::{bench::sink::Sink, build};

/// Longest wait for what should come soon.
const SOON: Duration = Duration::from_secs(30);
/// Chunks of the answer that the executable is to see.
const CHUNKS: usize = 20;
/// Asks bash what it would complete `nexent-observer do` to.
const COMPLETE: &str = "source \"$1\" && of=$(complete -p nexent-observer) && of=${of##*-F } && of=${of%% *} \
                        && COMP_WORDS=(nexent-observer do) COMP_CWORD=1 && $of nexent-observer do nexent-observer \
                        && echo \"${COMPREPLY[*]}\"";
/// What a program does that uses the hooks.
const IMPORT: &str = "import importlib.metadata as m, nexent_observer as n, nexent_observer._probe\n\
                      n.get_monitoring_manager()\nprint(m.version('nexent-observer'))";

/// Checks the release in `out`; `made_of` is the commit that it must name, where that is known.
pub(super) fn release(root: &Path, out: &Path, made_of: Option<&str>) -> Result<()> {
    let scratch = sh::target_dir(root).join("dist-check");
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| format!("cannot empty {}", scratch.display()))?;
    }
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    sh::say(&checksums(out)?);
    let tree = unpacked(out, &archive_name(), &scratch)?;
    let context = unpacked(out, &context_name(), &scratch)?;
    let executable = tree.join("nexent-observer");
    sh::say(&is_static(&executable)?);
    ensure!(
        fs::read(&executable)? == fs::read(context.join("nexent-observer"))?,
        "the image's executable is another than the archive's"
    );
    sh::say(&runs_alone(root, &executable, &scratch, made_of)?);
    sh::say(&bill_of_materials(root, &tree.join("sbom.cdx.json"))?);
    sh::say(&manual(&tree)?);
    sh::say(&completions(&tree.join("completions"))?);
    sh::say(&wheel(out, &scratch)?);
    sh::say(&observes(&executable, &scratch.join("observed"))?);
    let containers = sh::target_dir(root).join("stack/containers");
    match image::unavailable(&containers)? {
        Some(why) => sh::say(&format!("THE IMAGE WAS NOT BUILT: no containers here: {why}")),
        None => {
            let seen = image::run_context(root, &context, &python::clients()?, &scratch.join("image"), &containers)?;
            sh::say(&seen.join("; "));
        }
    }
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))
}

/// Every file has the sum that is told, and there is no other file.
fn checksums(out: &Path) -> Result<String> {
    let told = fs::read_to_string(out.join("SHA256SUMS"))
        .with_context(|| format!("there is no release in {}", out.display()))?;
    let told: BTreeSet<String> = told.lines().filter_map(|line| Some(line.split_once("  ")?.1.to_owned())).collect();
    let there = fs::read_dir(out)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let there: BTreeSet<String> = there.filter(|name| name != "SHA256SUMS").collect();
    ensure!(told == there, "SHA256SUMS names {told:?}, there are {there:?}");
    run(Command::new("sha256sum").args(["--check", "--strict", "--quiet", "SHA256SUMS"]).current_dir(out))?;
    Ok(format!("sha256sum agrees with all {} files", told.len()))
}

fn unpacked(out: &Path, name: &str, scratch: &Path) -> Result<PathBuf> {
    let archive = out.join(format!("{name}.tar.gz"));
    run(Command::new("tar").arg("--extract").arg("--file").arg(archive).arg("--directory").arg(scratch))?;
    Ok(scratch.join(name))
}

/// It asks the kernel for no interpreter, and names no library.
fn is_static(executable: &Path) -> Result<String> {
    let bytes = fs::read(executable).with_context(|| format!("cannot read {}", executable.display()))?;
    let header = FileHeader64::<LittleEndian>::parse(bytes.as_slice()).context("the executable is no ELF file")?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, bytes.as_slice())? {
        ensure!(segment.p_type(endian) != PT_INTERP, "the executable is not static: it wants an interpreter");
        let needed = segment.dynamic(endian, bytes.as_slice())?.unwrap_or_default();
        let needed = needed.iter().filter(|entry| entry.tag32(endian) == Some(DT_NEEDED)).count();
        ensure!(needed == 0, "the executable is not static: it wants {needed} libraries");
    }
    Ok(format!("the executable is static: no interpreter and no library ({:.1} MB)", bytes.len() as f64 / 1e6))
}

/// It runs in a root that has nothing else, and says what it is made of.
fn runs_alone(root: &Path, executable: &Path, scratch: &Path, made_of: Option<&str>) -> Result<String> {
    let empty = scratch.join("empty-root");
    fs::create_dir_all(&empty)?;
    fs::copy(executable, empty.join("nexent-observer"))?;
    let alone = |arguments: &[&str]| {
        run(Command::new("chroot").arg(&empty).arg("/nexent-observer").args(arguments))
            .context("in an empty root (needs root)")
    };
    let said = alone(&["--version"])?;
    let object = fs::read(build::object(root)?).context("cannot read the kernel half")?;
    let object: String = Sha256::digest(object).iter().map(|byte| format!("{byte:02x}")).collect();
    let line = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let version = format!("nexent-observer {}", env!("CARGO_PKG_VERSION"));
    ensure!(said.lines().next() == Some(version.as_str()), "--version says {said}");
    let commit = line("commit").context("--version names no commit")?;
    let named = commit.split(' ').next().is_some_and(|it| it.len() == 40 && it.bytes().all(|b| b.is_ascii_hexdigit()));
    ensure!(made_of.map_or(named, |wanted| wanted == commit), "--version names the commit {commit}");
    ensure!(line("kernel half").is_some_and(|half| half.contains(&object)), "--version names another kernel half");
    ensure!(line("target").is_some_and(|target| target.ends_with(", static)")), "--version says {said}");
    ensure!(line("compiler").is_some_and(|compiler| compiler.starts_with("rustc 1.")), "--version says {said}");
    let config: Value = serde_json::from_str(&alone(&["config", "--json"])?).context("config --json is no JSON")?;
    ensure!(config.is_object(), "config --json says {config}");
    Ok(format!("in an empty root it starts, and says what it is made of (commit {commit})"))
}

/// The SBOM names every crate, with its version, that cargo says is in the executable.
fn bill_of_materials(root: &Path, file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let sbom: Value = serde_json::from_slice(&bytes).context("the SBOM is no JSON")?;
    ensure!(sbom["bomFormat"] == "CycloneDX", "the SBOM is no CycloneDX document");
    ensure!(sbom["metadata"]["component"]["name"] == "nexent-observer", "the SBOM is of something else");
    let components = sbom["components"].as_array().context("the SBOM has no components")?;
    let text = |component: &Value, key: &str| component[key].as_str().unwrap_or_default().to_owned();
    let named: BTreeSet<(String, String)> =
        components.iter().map(|component| (text(component, "name"), text(component, "version"))).collect();
    let unlicensed = components.iter().filter(|it| it["licenses"].as_array().is_none_or(Vec::is_empty)).count();
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut tree = sh::cargo(root);
    tree.args(["tree", "--locked", "--package", "nexent-observer", "--target", &target, "--edges", "normal"]);
    let said = run(tree.args(["--prefix", "none", "--no-dedupe"]))?;
    // `name v1.2.3 (where it is)`; the first line is the program itself.
    let crates: BTreeSet<(String, String)> = said
        .lines()
        .skip(1)
        .filter_map(|line| {
            let (name, rest) = line.split_once(" v")?;
            Some((name.to_owned(), rest.split(' ').next()?.to_owned()))
        })
        .collect();
    ensure!(crates.len() > 100, "cargo tree names only {} crates", crates.len());
    let missing: Vec<_> = crates.difference(&named).collect();
    ensure!(missing.is_empty(), "the SBOM does not name {missing:?}");
    ensure!(unlicensed == 0, "{unlicensed} components of the SBOM have no licence");
    Ok(format!(
        "the SBOM names all {} crates of the executable with version and licence, {} components in all",
        crates.len(),
        components.len()
    ))
}

/// Each command has a page that man shows without a warning.
fn manual(tree: &Path) -> Result<String> {
    sh::have("man", &["man-db"])?;
    sh::have("groff", &["groff"])?;
    let mut pages: Vec<PathBuf> = fs::read_dir(tree.join("man"))?.flatten().map(|entry| entry.path()).collect();
    pages.sort();
    ensure!(pages.len() > 5, "there are only {} manual pages", pages.len());
    for page in &pages {
        let name = page.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut man = Command::new("man");
        man.args(["--warnings=w", "--encoding=UTF-8", "--local-file"]).arg(page);
        // In the C locale man would ask for no page in a language, and with MANWIDTH it asks no terminal.
        man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "100").env("MANROFFSEQ", "").env("PAGER", "cat");
        let output = man.output().context("running man")?;
        let complaints = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success() && complaints.is_empty(), "man warns of {}: {complaints}", page.display());
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        for wanted in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"] {
            ensure!(shown.lines().any(|line| line == wanted), "the page of {name} has no {wanted}:\n{shown}");
        }
        let words = name.replacen("nexent-observer-", "nexent-observer ", 1);
        ensure!(shown.contains(&words) || shown.contains(&name), "the page of {name} does not name it:\n{shown}");
    }
    Ok(format!("man shows {} pages without a warning", pages.len()))
}

/// Each shell takes its script, and bash completes by it.
fn completions(dir: &Path) -> Result<String> {
    for (shell, file) in SHELLS {
        sh::have(shell, &[shell])?;
        run(Command::new(shell).arg("-n").arg(dir.join(file)))
            .with_context(|| format!("the completions for {shell}"))?;
    }
    let said = run(Command::new("bash").args(["-c", COMPLETE, "bash"]).arg(dir.join("nexent-observer.bash")))?;
    ensure!(said.trim() == "doctor", "bash completes `do` to {said:?}");
    Ok("bash, zsh and fish read their completions, and bash completes".to_owned())
}

/// The wheel installs, alone and from no index, into a new environment, and imports.
fn wheel(out: &Path, scratch: &Path) -> Result<String> {
    let wheels: Vec<PathBuf> = fs::read_dir(out)?.flatten().map(|entry| entry.path()).collect();
    let wheel =
        wheels.iter().find(|path| path.extension().is_some_and(|it| it == "whl")).context("there is no wheel")?;
    let environment = scratch.join("venv");
    let python = environment.join("bin/python");
    run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"])
        .arg(wheel))?;
    let version = run(Command::new(&python).args(["-I", "-c", IMPORT]).current_dir(scratch))?;
    ensure!(version.trim() == env!("CARGO_PKG_VERSION"), "the wheel is of version {version}");
    Ok("the wheel installs into a new environment and imports".to_owned())
}

/// It attaches to a client that runs and sees its answer, whole; the collector's name is looked up without shared libraries.
fn observes(executable: &Path, dir: &Path) -> Result<String> {
    let said = run(Command::new(executable).args(["doctor", "--json"]))?;
    let doctor: Value = serde_json::from_str(&said).context("doctor --json is no JSON")?;
    ensure!(doctor["host"].as_array().is_some_and(|checks| !checks.is_empty()), "doctor says {doctor}");
    let sink = Sink::start()?;
    let otlp = format!("http://localhost:{}", sink.address.port());
    let mut stage = Stage::set(executable, dir, &["--otlp", &otlp], &[])?;
    stage.tell(&json!({"do": "chat", "scenario": "plain", "chunks": CHUNKS.to_string()}))?;
    let answer = stage.client.event("chat", SOON)?;
    ensure!(answer["exchange"]["output_chunks"] == CHUNKS, "the client got {answer}");
    let until = Instant::now() + SOON;
    let line = loop {
        let text = fs::read_to_string(dir.join("observer.jsonl")).unwrap_or_default();
        if let Some(line) = text.lines().next() {
            break serde_json::from_str::<Value>(line).context("the observer wrote a line that is no JSON")?;
        }
        ensure!(Instant::now() < until, "the executable did not see the answer; see {}", dir.display());
        thread::sleep(Duration::from_millis(50));
    };
    let chunks = line["chunks"].as_array().map_or(0, Vec::len);
    ensure!(line["outcome"] == "completed" && line["bytes_lost"] == 0 && chunks == CHUNKS, "the executable saw {line}");
    ensure!(stage.observer.interrupt()?.success(), "the executable did not end in order; see {}", dir.display());
    ensure!(sink.span_bytes() > 0, "no span came to {otlp}");
    Ok(format!("it observed a running client: {chunks} of {CHUNKS} chunks, and sent the span to {otlp}"))
}

/// Runs a command; what it says.
fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("running {}", sh::shown(command)))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {}", sh::shown(command), errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("nexent-dist-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn an_executable_that_wants_an_interpreter_is_not_static() {
        // This test is one.
        let error = is_static(&std::env::current_exe().unwrap()).unwrap_err();
        assert!(error.to_string().contains("interpreter"), "{error}");
    }

    #[test]
    fn a_file_too_many_one_too_few_and_one_that_was_changed_are_found() {
        let dir = scratch("sums");
        let sum = format!("{:x}", Sha256::digest(b"text"));
        fs::write(dir.join("SHA256SUMS"), format!("{sum}  a\n")).unwrap();
        assert!(checksums(&dir).is_err(), "a is missing");
        fs::write(dir.join("a"), "text").unwrap();
        checksums(&dir).unwrap();
        fs::write(dir.join("b"), "text").unwrap();
        assert!(checksums(&dir).is_err(), "b is not named");
        fs::remove_file(dir.join("b")).unwrap();
        fs::write(dir.join("a"), "text.").unwrap();
        assert!(checksums(&dir).is_err(), "a was changed");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_sbom_without_a_crate_is_found() {
        let dir = scratch("sbom");
        let file = dir.join("sbom.json");
        let component = json!({"name": "aya", "version": "0.0.1", "licenses": [{"expression": "MIT"}]});
        let sbom = json!({"bomFormat": "CycloneDX", "metadata": {"component": {"name": "nexent-observer"}}, "components": [component]});
        fs::write(&file, sbom.to_string()).unwrap();
        let error = bill_of_materials(&sh::root().unwrap(), &file).unwrap_err().to_string();
        assert!(error.contains("\"tokio\"") && error.contains("\"aya\""), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_manual_page_with_a_mistake_is_found() {
        let dir = scratch("man");
        fs::create_dir_all(dir.join("man")).unwrap();
        for n in 0..6 {
            fs::write(dir.join(format!("man/page-{n}.1")), ".TH x 1\n.SH NAME\npage\n.nosuchmacro\n").unwrap();
        }
        let error = manual(&dir).unwrap_err().to_string();
        assert!(error.contains("nosuchmacro"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }
}
