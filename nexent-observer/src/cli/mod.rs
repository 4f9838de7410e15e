//! The command line: parses arguments, resolves the configuration, runs the command, turns errors into exit codes.

mod flags;
mod logging;
mod printable;
mod version;

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};

use crate::{
    config::{Config, Environment, Flags, write_json, write_yaml},
    error::RunError,
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
  nexent-observer config --json

Exit codes:
   0  ok
   1  runtime error
  64  usage error
  78  configuration error";

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
    #[command(after_help = "Needs at least one of --pid and --exe. -h is short, --help complete.")]
    Run {
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
        #[arg(value_parser = ["run", "top", "config", "completions"])]
        command: Option<String>,
    },
}

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
        Command::Run { flags } => run(flags.into(), environment, err),
        Command::Top { url, token, once } => {
            let token = match token {
                Some(token) => Some(token),
                None => environment.get(&crate::config::keys::WEB_TOKEN.variable())?.map(str::to_owned),
            };
            let terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
            let unicode = shows_unicode(environment)?;
            top::run(&top::Options { url, token, once, terminal, unicode }, out)
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

fn run(flags: Flags, environment: &Environment, err: &mut impl Write) -> Result<(), RunError> {
    let config = Config::load(flags, environment)?;
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
    crate::run::run(&config)
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
        for command in ["run", "config"] {
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
