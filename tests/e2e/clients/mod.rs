//! The clients of the mold protocol in `clients/`, each with its own tests.

use std::process::Command;

use crate::support::with_real_interpreter;

mod c;
mod python;
mod rust;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs a command of a client's tests from the root of the tree, with `PANZER` leading to this build. It must succeed.
fn run(command: &[&str]) {
    // The limit is for a test that hangs: timeout(1) ends its whole group.
    let mut process = Command::new("timeout");
    process.args(["-k", "5", "200"]).args(command).current_dir(ROOT);
    process.env("PANZER", env!("CARGO_BIN_EXE_panzer")).env("PATH", with_real_interpreter());
    let output = process.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}: {}\n{}", command.join(" "), output.status, String::from_utf8_lossy(&text));
}

/// Where a client's tests put what they compile.
fn scratch(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_TARGET_TMPDIR"))
}

/// Holds a client against the protocol, by the program that is written for that.
fn conforms(probe: &[&str]) {
    run(&[&["python3", "clients/testing/conform.py", "--"], probe].concat());
}
