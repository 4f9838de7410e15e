//! The command line: parses arguments, resolves the configuration, runs the command, turns errors into exit codes.

mod flags;
mod logging;
mod printable;
mod version;

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use clap::{Args, CommandFactory, Parser, Subcommand, error::ErrorKind, value_parser};
use nexent_observer_core::timing::ExchangeId;

use crate::{
    config::{
        Config, Environment, Flags, Listen, Origin,
        keys::{LISTEN, PROMETHEUS_PORT},
        write_json, write_yaml,
    },
    error::RunError,
    survey::{
        self,
        host::{Check, State},
    },
    tape::{
        recorder,
        replay::{self, Speed},
        serve::parse_id,
    },
    top,
};
use flags::ConfigFlags;

pub(crate) use printable::printable;

/// Exit code of a usage error, EX_USAGE of sysexits.h.
const EX_USAGE: u8 = 64;

const AFTER_HELP: &str = "\
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
  78  configuration error";

const RUN_HELP: &str = "\
Needs --all, or at least one of --pid and --exe. -h is short, --help complete.

Examples:
  nexent-observer run --pid 4242 --jsonl -
  nexent-observer run --all --otlp http://localhost:4318
  nexent-observer run --all --opt-in
  nexent-observer run --all --only-namespace 'shop-*' --only-label app=agent
  nexent-observer run --all --only-container web --only-exe 'python*'";

const DOCTOR_HELP: &str = "\
Attaches to nothing, and says what it could not look at for lack of rights. Exits with 1 when the host cannot run the observer.

Examples:
  nexent-observer doctor
  nexent-observer doctor --pid 4242
  nexent-observer doctor --json | jq '.host[] | select(.state != \"ok\")'";

const TARGETS_HELP: &str = "\
The same filters as of run apply.

Examples:
  nexent-observer targets
  nexent-observer targets --only-exe 'python*'
  nexent-observer targets --json | jq '.targets[].pid'";

/// Observes LLM calls of running processes with eBPF, without changing them.
#[derive(Debug, Parser)]
#[command(name = "nexent-observer", bin_name = "nexent-observer", version, long_version = version::long(), max_term_width = 100)]
#[command(after_help = AFTER_HELP, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Observe processes until interrupted
    #[command(after_help = RUN_HELP)]
    Run {
        #[command(flatten)]
        recording: RecordingFlags,
        #[command(flatten)]
        flags: ConfigFlags,
    },
    /// Observe processes and record what is seen, without content unless asked for
    #[command(
        after_help = "Needs --all, or at least one of --pid and --exe. Ends when interrupted, or with --seconds or --max-bytes."
    )]
    Record {
        /// Recording to write; replaced if it is there
        file: PathBuf,
        /// Record every byte, prompts, answers and keys included
        #[arg(long)]
        with_content: bool,
        /// End after so many seconds
        #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
        seconds: Option<u32>,
        /// End when the recording has about so many bytes
        #[arg(long, value_name = "BYTES", default_value_t = MAX_BYTES)]
        max_bytes: u64,
        #[command(flatten)]
        flags: ConfigFlags,
    },
    /// Give the exchanges of a recording again; needs no privileges
    #[command(after_help = "Without an exporter it writes JSON lines to standard output.")]
    Replay {
        /// Recording to read
        file: PathBuf,
        /// How fast: a number of times, or max; as it was with --listen, else max
        #[arg(long, value_name = "N|max")]
        speed: Option<Speed>,
        /// Serve one recorded answer here, with its sizes and silences, over HTTP/1.1
        #[arg(long, value_name = "ADDR:PORT")]
        serve: Option<SocketAddr>,
        /// Exchange that is served, by its id in the JSON lines; unset: the one with the longest stall
        #[arg(long, value_name = "ID", requires = "serve", value_parser = parse_id)]
        exchange: Option<ExchangeId>,
        #[command(flatten)]
        flags: ConfigFlags,
    },
    /// Show the open streams of a running observer, live
    #[command(
        after_help = "Keys: h shows them. Needs no privileges. Without a terminal: a line for each call that ends."
    )]
    Top {
        /// Address of the observer
        #[arg(long, default_value = "http://127.0.0.1:9464")]
        url: String,
        /// Its web_token, where it has one [env: NEXENT_OBSERVER_WEB_TOKEN]; a flag shows in the list of processes
        #[arg(long)]
        token: Option<String>,
        /// Print the streams that are open now, and end
        #[arg(long)]
        once: bool,
    },
    /// Say whether this host can run the observer, and what of which process could be seen
    #[command(after_help = DOCTOR_HELP)]
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        flags: ConfigFlags,
    },
    /// List the processes that could be observed
    #[command(after_help = TARGETS_HELP)]
    Targets {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        flags: ConfigFlags,
    },
    /// Print the resolved configuration and where each value came from
    Config {
        /// Print JSON instead of YAML
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        flags: ConfigFlags,
    },
    /// Print a completion script for a shell
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page of the program, or of one of its commands, in roff
    #[command(hide = true)]
    Man {
        /// Command; unset: the program
        #[arg(value_parser = ["run", "record", "replay", "top", "doctor", "targets", "config", "completions"])]
        command: Option<String>,
    },
}

/// What `run` may record.
#[derive(Debug, Args)]
struct RecordingFlags {
    /// Record what is seen to a file, without content
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Record every byte, prompts, answers and keys included
    #[arg(long, requires = "record", hide_short_help = true)]
    with_content: bool,
    /// The recording ends when it has about so many bytes
    #[arg(long, value_name = "BYTES", requires = "record", default_value_t = MAX_BYTES, hide_short_help = true)]
    record_max_bytes: u64,
}

/// Longest recording unless more is asked for, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// Runs the command that `arguments` name (the first is the program) and returns the exit code.
pub fn main(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &Environment,
    out: &mut impl Write,
    err: &mut impl Write,
) -> u8 {
    let command = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments.command,
        Err(error) => return report_parse(&error, out, err),
    };
    match dispatch(command, environment, out, err) {
        Ok(()) => 0,
        Err(error) => {
            say(err, format_args!("error: {}", chain(&error)));
            error.exit_code()
        }
    }
}

fn dispatch(
    command: Command,
    environment: &Environment,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<(), RunError> {
    match command {
        Command::Run { recording, flags } => {
            let RecordingFlags { record, with_content, record_max_bytes: max_bytes } = recording;
            let options = |file| recorder::Options { file, with_content, time: None, max_bytes, ends_run: false };
            run(flags.into(), record.map(options).as_ref(), environment, err)
        }
        Command::Record { file, with_content, seconds, max_bytes, flags } => {
            let time = seconds.map(|seconds| Duration::from_secs(seconds.into()));
            let options = recorder::Options { file, with_content, time, max_bytes, ends_run: true };
            run(flags.into(), Some(&options), environment, err)
        }
        Command::Replay { file, speed, serve, exchange, flags } => {
            let config = Config::load(flags.into(), environment)?;
            logging::start(&config);
            replay::run(&replay::Options { file, speed, serve, exchange }, config)
        }
        Command::Top { url, token, once } => {
            let token = match token {
                Some(token) => Some(token),
                None => environment.get(&crate::config::keys::WEB_TOKEN.variable())?.map(str::to_owned),
            };
            let terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
            let unicode = shows_unicode(environment)?;
            top::run(&top::Options { url, token, once, terminal, unicode }, out)
        }
        Command::Doctor { json, flags } => {
            let config = Config::load(flags.into(), environment)?;
            let found = survey::diagnose(&config).map_err(|error| RunError::runtime(error.to_string()))?;
            let in_full = !config.pids.is_empty();
            print(
                out,
                |out| if json { print_json(out, &found) } else { survey::text::diagnosis(out, &found, in_full) },
            )?;
            if found.can_run { Ok(()) } else { Err(RunError::runtime(cannot_run(&found.host))) }
        }
        Command::Targets { json, flags } => {
            let config = Config::load(flags.into(), environment)?;
            let found = survey::targets(&config).map_err(|error| RunError::runtime(error.to_string()))?;
            print(out, |out| if json { print_json(out, &found) } else { survey::text::inventory(out, &found) })
        }
        Command::Config { json, flags } => {
            let config = Config::load(flags.into(), environment)?;
            print(
                out,
                |out| {
                    if json { write_json(out, &config, environment) } else { write_yaml(out, &config, environment) }
                },
            )
        }
        Command::Completions { shell } => {
            // The generator panics when its writer fails, so it gets one that cannot.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "nexent-observer", &mut script);
            print(out, |out| out.write_all(&script))
        }
        Command::Man { command } => {
            let mut program = Arguments::command();
            // Gives the commands their full names.
            program.build();
            let page = command.and_then(|name| program.find_subcommand(name).cloned()).unwrap_or(program);
            print(out, |mut out| clap_mangen::Man::new(page).render(&mut out))
        }
    }
}

fn run(
    flags: Flags,
    recording: Option<&recorder::Options>,
    environment: &Environment,
    err: &mut impl Write,
) -> Result<(), RunError> {
    let mut config = Config::load(flags, environment)?;
    let chosen = |key| config.origin(key) != Origin::Default;
    if recording.is_some_and(|recording| recording.ends_run) && !chosen(&LISTEN) && !chosen(&PROMETHEUS_PORT) {
        // A recording is made beside an observer that runs: its port is taken.
        config.listen = Listen::Off;
    }
    if !config.enable_telemetry {
        let origin = config.origin(&crate::config::keys::ENABLE_TELEMETRY);
        say(err, format_args!("telemetry is disabled by {origin}: nothing is observed"));
        return Ok(());
    }
    config.check_targets()?;
    logging::start(&config);
    for warning in &config.warnings {
        tracing::warn!("{warning}.");
    }
    crate::run::run(&config, recording)
}

/// Whether the locale's characters are UTF-8; POSIX.1-2017, 8.2: the first of these that is set decides.
fn shows_unicode(environment: &Environment) -> Result<bool, RunError> {
    for name in ["LC_ALL", "LC_CTYPE", "LANG"] {
        if let Some(locale) = environment.get(name)? {
            let locale = locale.to_ascii_lowercase();
            return Ok(locale.contains("utf-8") || locale.contains("utf8"));
        }
    }
    Ok(false)
}

fn print_json(out: &mut impl Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

fn cannot_run(checks: &[Check]) -> String {
    let failed = checks.iter().filter(|check| check.state == State::Failed).map(|check| check.name.as_str());
    format!("this host cannot run the observer: {}", failed.collect::<Vec<_>>().join(", "))
}

/// Writes to standard output. A reader that went away (`| head`) is no error; any other failure is.
fn print<W: Write>(out: &mut W, write: impl FnOnce(&mut W) -> io::Result<()>) -> Result<(), RunError> {
    match write(out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(RunError::caused("cannot write to standard output", error))
        }
        _ => Ok(()),
    }
}

/// One line to standard error. When even that fails there is nobody left to tell.
fn say(err: &mut impl Write, line: std::fmt::Arguments<'_>) {
    drop(writeln!(err, "nexent-observer: {line}").and_then(|()| err.flush()));
}

/// Help and version go to standard output, errors to standard error.
fn report_parse(error: &clap::Error, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match print(out, |out| out.write_all(text.as_bytes())) {
            Ok(()) => 0,
            Err(error) => {
                say(err, format_args!("error: {}", chain(&error)));
                error.exit_code()
            }
        },
        _ => {
            drop(err.write_all(text.as_bytes()).and_then(|()| err.flush()));
            EX_USAGE
        }
    }
}

/// The error and its causes on one line.
fn chain(error: &RunError) -> String {
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A standard output that fails in one way.
    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn call(arguments: &[&str], out: &mut impl Write) -> (u8, String) {
        let mut err = Vec::new();
        let arguments = std::iter::once("nexent-observer").chain(arguments.iter().copied()).map(OsString::from);
        let code = main(arguments, &Environment::default(), out, &mut err);
        (code, String::from_utf8(err).unwrap())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_reader_that_went_away_is_no_error_and_a_full_disk_is() {
        for arguments in
            [&["--help"][..], &["--version"], &["config"], &["config", "--json"], &["completions", "bash"], &["man"]]
        {
            assert_eq!(call(arguments, &mut Failing(io::ErrorKind::BrokenPipe)), (0, String::new()), "{arguments:?}");
            let (code, err) = call(arguments, &mut Failing(io::ErrorKind::StorageFull));
            assert_eq!(code, 1, "{arguments:?}");
            assert_eq!(err.lines().count(), 1, "{err}");
            assert!(err.starts_with("nexent-observer: error: cannot write to standard output: "), "{err}");
        }
    }

    #[test]
    fn a_broken_standard_error_does_not_change_the_exit_code() {
        let mut broken = Failing(io::ErrorKind::BrokenPipe);
        let arguments = ["nexent-observer", "run"].map(OsString::from);
        assert_eq!(main(arguments, &Environment::default(), &mut Vec::new(), &mut broken), 64);
    }

    #[test]
    fn the_manual_and_each_completion_script_name_every_flag() {
        for shell in ["bash", "zsh", "fish"] {
            let mut out = Vec::new();
            assert_eq!(call(&["completions", shell], &mut out), (0, String::new()));
            let script = String::from_utf8(out).unwrap();
            for key in crate::config::keys::KEYS {
                assert!(script.contains(&key.flag()), "{shell}: {}", key.name);
            }
        }
        for command in ["run", "record", "replay", "doctor", "targets", "config"] {
            let mut out = Vec::new();
            assert_eq!(call(&["man", command], &mut out), (0, String::new()));
            let page = String::from_utf8(out).unwrap();
            assert!(page.contains(&format!(".TH nexent-observer-{command} 1")), "{page}");
            for key in crate::config::keys::KEYS {
                assert!(page.contains(&key.flag().replace('-', "\\-")), "{command}: {}", key.name);
            }
        }
        let mut out = Vec::new();
        assert_eq!(call(&["man"], &mut out), (0, String::new()));
        assert!(String::from_utf8(out).unwrap().contains(".TH nexent-observer 1"));
    }
}
