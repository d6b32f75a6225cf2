//! Runs the real binary, optimised as it is released, and prints what was measured beside the goals.
//!
//! Every figure of time is a ratio between two things measured in turns in the same run, so that a slow or a busy
//! machine slows both. A missed goal is said, not failed; only what could not be measured at all is an error.
//!
//! `cargo bench` runs all parts, `cargo bench -- memory start` those two; `BENCH_PANZER=FILE` measures another build.

mod measure;

use std::process::ExitCode;

use measure::program::{Program, Role};
use measure::table::{self, Table};
use measure::{Measured, cost, logs, machine, many, memory, molds, rack, respawn, spread, start, under_load, wake_ups};

/// A part by its name, and what measures it.
type Part = (&'static str, fn(&Program, &mut Table) -> Measured<()>);

const PARTS: [Part; 11] = [
    ("load", under_load::measure),
    ("respawn", respawn::measure),
    ("start", start::measure),
    ("many", many::measure),
    ("memory", memory::measure),
    ("wakeups", wake_ups::measure),
    ("cost", cost::measure),
    ("spread", spread::measure),
    ("molds", molds::measure),
    ("rack", rack::measure),
    ("logs", logs::measure),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match Role::named_by(&arguments) {
        // This executable also plays the parts that are compared with panzer, and those that panzer runs.
        Some(role) => role.play(),
        None => run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("reload: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Measured<()> {
    // Cargo passes --bench.
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let known = |wanted: &&&String| PARTS.iter().any(|(name, _)| name == *wanted);
    if let Some(unknown) = wanted.iter().find(|wanted| !known(wanted)) {
        let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no part {unknown}; there are: {}", names.join(", ")).into());
    }
    let program = Program::build()?;
    println!("{}", machine::state()?);
    println!("workers of respawn, start, memory, wakeups: {}", program.what());
    println!("{}", table::heading());
    let mut failed = Vec::new();
    for (name, measure) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| *wanted == name) {
            let mut table = Table::default();
            if let Err(why) = measure(&program, &mut table) {
                failed.push(format!("{name} was not measured: {why}"));
            }
            print!("{table}");
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n        ").into()) }
}
