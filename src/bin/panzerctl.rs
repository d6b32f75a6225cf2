//! The panzerctl binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(panzer::panzerctl::run(std::env::args_os()))
}
