//! clients/python

use super::{ROOT, conforms, first_block, run, serves};
use crate::support::require;

#[test]
fn it_conforms_to_the_protocol() {
    conforms(&["python3", "clients/python/tests/probe.py"]);
}

#[test]
fn its_own_tests_pass() {
    run(&["python3", "clients/python/tests/test_panzer.py"], &[]);
}

#[test]
fn it_works_with_other_versions_of_python() {
    for version in ["python3.9", "python3.13"] {
        if require_command(version) {
            conforms(&[version, "clients/python/tests/probe.py"]);
        }
    }
}

/// Whether it runs: the shim of a version manager may lead to nothing.
fn require_command(python: &str) -> bool {
    let runs = std::process::Command::new(python).arg("--version").output().is_ok_and(|output| output.status.success());
    if !runs {
        eprintln!("skipped: {python} is not installed");
    }
    runs
}

#[test]
fn the_program_of_its_readme_serves() {
    if !require("python3") {
        return;
    }
    let program = first_block("clients/python/README.md");
    serves("exec python3 hello.py", |builder| {
        builder.file("hello.py", &program).env("PYTHONPATH", format!("{ROOT}/clients/python"))
    });
}
