//! The process: hands arguments, environment and the standard streams to the command line.

use std::{
    io::{stderr, stdout},
    process::ExitCode,
};

use nexent_observer::{cli, config::Environment};

fn main() -> ExitCode {
    // Rust ignores SIGPIPE, so a reader that goes away shows as an error of the write and not as a signal.
    // Standard output is not locked: `run` may write to it from another thread.
    let code = cli::main(std::env::args_os(), &Environment::of_this_process(), &mut stdout(), &mut stderr());
    ExitCode::from(code)
}
