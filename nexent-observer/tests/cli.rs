//! The real binary: what it prints and the code it exits with.

use std::{
    fs, io,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

fn observer(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nexent-observer"));
    // Nothing of the machine's own environment may decide a test.
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn code_and_stderr(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn temporary(name: &str, text: &str) -> io::Result<PathBuf> {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text)?;
    Ok(path)
}

#[test]
fn help_shows_commands_examples_and_exit_codes() {
    let output = observer(&["--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "\
Observes LLM calls of running processes with eBPF, without changing them

Usage: nexent-observer <COMMAND>

Commands:
  run          Observe processes until interrupted
  record       Observe processes and record what is seen, without content unless asked for
  replay       Give the exchanges of a recording again; needs no privileges
  top          Show the open streams of a running observer, live
  doctor       Say whether this host can run the observer, and what of which process could be seen
  targets      List the processes that could be observed
  config       Print the resolved configuration and where each value came from
  completions  Print a completion script for a shell

Options:
  -h, --help     Print help
  -V, --version  Print version

Examples:
  nexent-observer run --pid 4242
  nexent-observer run --exe /usr/bin/python3.11 --jsonl - --otlp http://localhost:4318
  nexent-observer top
  nexent-observer run --all --only-user www-data
  nexent-observer doctor --pid 4242
  nexent-observer targets --json
  nexent-observer record seen.tape --pid 4242 --seconds 60
  nexent-observer replay seen.tape
  nexent-observer config --json

Exit codes:
   0  ok
   1  runtime error; doctor: this host cannot run the observer
  64  usage error
  78  configuration error
"
    );
}

#[test]
fn short_help_of_run_leaves_out_what_long_help_has() {
    let short = String::from_utf8(observer(&["run", "-h"]).output().unwrap().stdout).unwrap();
    let long = String::from_utf8(observer(&["run", "--help"]).output().unwrap().stdout).unwrap();
    assert!(short.contains("--pid <PID>") && !short.contains("--read-ring-bytes"), "{short}");
    assert!(long.contains("--read-ring-bytes <BYTES>"), "{long}");
    assert!(long.contains("NEXENT_OBSERVER_TELEMETRY_SAMPLE_RATE"), "{long}");
}

#[test]
fn version_is_that_of_the_crate() {
    let said = |flag| String::from_utf8(observer(&[flag]).output().unwrap().stdout).unwrap();
    assert_eq!(said("-V"), concat!("nexent-observer ", env!("CARGO_PKG_VERSION"), "\n"));
    let long = said("--version");
    assert!(long.starts_with(&said("-V")), "{long}");
    for part in ["commit: ", "kernel half: sha256 ", "target: ", "compiler: rustc "] {
        assert!(long.contains(part), "{part}: {long}");
    }
}

#[test]
fn usage_errors_exit_with_64() {
    for (arguments, want) in [
        (&[][..], "Usage: nexent-observer <COMMAND>"),
        (&["fly"], "unrecognized subcommand 'fly'"),
        (&["run", "--no-such-flag"], "unexpected argument '--no-such-flag'"),
        (&["run"], "nothing to observe: name at least one process with --pid PID or --exe PATH"),
        (&["run", "--pid", "abc"], "pid in flag --pid is \"abc\"; expected a process number from 1 to 4194304"),
        (&["run", "--pid", "0"], "pid in flag --pid is \"0\""),
        (&["run", "--pid", "-1"], "pid in flag --pid is \"-1\""),
        (&["run", "--pid", "1", "--pid", ""], "pid in flag --pid is \"\""),
        (&["run", "--exe", "bin/python3"], "exe in flag --exe is \"bin/python3\"; expected an absolute path"),
        (&["run", "--exe", "/no/such/file"], "exe in flag --exe: /no/such/file cannot be found: No such file"),
        (&["run", "--exe", "/"], "exe in flag --exe: / is not a file"),
        (&["run", "--all=maybe"], "all in flag --all is \"maybe\"; expected true or false"),
        (&["run", "--pid", "1", "--listen", "nowhere"], "listen in flag --listen is \"nowhere\"; expected IP:PORT"),
        (&["completions", "dos"], "invalid value 'dos'"),
    ] {
        let (code, stderr) = code_and_stderr(&observer(arguments).output().unwrap());
        assert_eq!(code, Some(64), "{arguments:?}: {stderr}");
        assert!(stderr.contains(want), "{arguments:?}: {stderr}");
    }
}

#[test]
fn configuration_errors_exit_with_78_in_one_line() {
    let unknown = temporary("unknown.yaml", "listen: off\nlistne: off\n").unwrap();
    let broken = temporary("broken.yaml", "listen: [\n").unwrap();
    let large = temporary("large.yaml", &"# nothing\n".repeat(200_000)).unwrap();
    for (path, want) in [
        (unknown.to_str().unwrap(), "unknown key listne in file"),
        (broken.to_str().unwrap(), "cannot read file"),
        (large.to_str().unwrap(), "it is longer than 1048576 bytes"),
        ("/no/such/file.yaml", "cannot read file /no/such/file.yaml: No such file or directory"),
        ("/", "cannot read file /: Is a directory"),
    ] {
        for command in ["run", "config"] {
            let (code, stderr) = code_and_stderr(&observer(&[command, "--config", path]).output().unwrap());
            assert_eq!(code, Some(78), "{stderr}");
            assert!(stderr.starts_with("nexent-observer: error: ") && stderr.contains(want), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }
    for (name, value) in [
        ("TELEMETRY_SAMPLE_RATE", "2"),
        ("LLM_SLOW_REQUEST_THRESHOLD_SECONDS", "five"),
        ("LLM_SLOW_TOKEN_RATE_THRESHOLD", "-1"),
        ("PROMETHEUS_PORT", "70000"),
        ("ENABLE_TELEMETRY", "maybe"),
        ("JAEGER_ENDPOINT", "jaeger"),
        ("NEXENT_OBSERVER_PIDS", "1"),
        ("NEXENT_OBSERVER_EXE", "/no/such/file"),
    ] {
        let (code, stderr) = code_and_stderr(&observer(&["run"]).env(name, value).output().unwrap());
        assert_eq!(code, Some(78), "{name}: {stderr}");
        assert!(stderr.contains(name), "{stderr}");
    }
}

#[test]
fn disabled_telemetry_says_so_and_exits_with_0() {
    let output = observer(&["run"]).env("ENABLE_TELEMETRY", "False").output().unwrap();
    let (code, stderr) = code_and_stderr(&output);
    assert_eq!(code, Some(0));
    assert_eq!(
        stderr,
        "nexent-observer: telemetry is disabled by environment variable ENABLE_TELEMETRY: nothing is observed\n"
    );
}

#[test]
fn config_prints_values_and_origins_of_all_sources() {
    let file = temporary("origins.yaml", "log_level: debug\nlisten: off\n").unwrap();
    let file = file.to_str().unwrap();
    let output = observer(&["config", "--listen", "0.0.0.0:9000"])
        .env("NEXENT_OBSERVER_CONFIG", file)
        .env("SERVICE_NAME", "backend")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=s3cret")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "listen: \"0.0.0.0:9000\"  # flag --listen",
        "service_name: \"backend\"  # environment variable SERVICE_NAME",
        &format!("log_level: \"debug\"  # file {file}, line 1"),
        "telemetry_sample_rate: 1.0  # default",
        "# OTEL_EXPORTER_OTLP_HEADERS=authorization=REDACTED",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
    assert!(!text.contains("s3cret"));
}

#[test]
fn a_switch_can_be_taken_back_by_a_stronger_source() {
    let output = observer(&["config", "--capture-content=false"])
        .env("NEXENT_OBSERVER_CAPTURE_CONTENT", "true")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("capture_content: false  # flag --capture-content\n"));
    let output = observer(&["config", "--capture-content"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("capture_content: true  # flag --capture-content\n"));
}

#[test]
fn closed_standard_streams_do_not_panic() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = observer(&["config"]).stdout(full).output().unwrap();
    let (code, stderr) = code_and_stderr(&output);
    assert_eq!(code, Some(1));
    assert_eq!(
        stderr,
        "nexent-observer: error: cannot write to standard output: No space left on device (os error 28)\n"
    );

    let mut child = observer(&["completions", "zsh"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let (code, stderr) = code_and_stderr(&child.wait_with_output().unwrap());
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_reader_that_is_gone_before_the_first_byte_is_no_failure() {
    for arguments in [&["--help"][..], &["--version"], &["config"], &["completions", "bash"], &["man", "run"]] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let output = observer(arguments).stdout(writer).output().unwrap();
        assert_eq!(code_and_stderr(&output), (Some(0), String::new()), "{arguments:?}");
    }
}

#[test]
fn a_standard_error_that_is_gone_changes_no_exit_code() {
    // No process has this number: the kernel gives out those below it.
    let no_such_process = ["run", "--pid", "4194304", "--listen", "off"];
    for (arguments, code) in
        [(&[][..], 64), (&["run"], 64), (&["config", "--config", "/no/such"], 78), (&no_such_process, 1)]
    {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let status = observer(arguments).stdout(Stdio::null()).stderr(writer).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}
