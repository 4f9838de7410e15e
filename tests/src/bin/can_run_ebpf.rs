//! Says whether this machine can run the kernel half: exit code 0, or 1 with the reason on stderr.

use std::{io::Write, process::ExitCode};

use nexent_observer::probe::kernel::{KernelHalf, KernelOptions};

fn main() -> ExitCode {
    let options = KernelOptions {
        read_ring_bytes: 1 << 16,
        write_ring_bytes: 1 << 16,
        write_head_bytes: 1 << 10,
        write_tail_bytes: 1 << 10,
        report_all_execs: false,
        phases: true,
    };
    match KernelHalf::load(options) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "{error}"));
            ExitCode::FAILURE
        }
    }
}
