//! clients/c

use super::{conforms, first_block, reforks, run, scratch, serves, text_of};
use crate::support::require;

const FLAGS: [&str; 6] = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2"];

fn compile(source: &str, name: &str) -> String {
    let program = scratch(name);
    run(&[&["gcc"], &FLAGS[..], &["-o", &program, source]].concat(), &[]);
    program
}

#[test]
fn it_conforms_to_the_protocol() {
    if require("gcc") {
        conforms(&[], &[&compile("clients/c/tests/probe.c", "probe-c")]);
    }
}

#[test]
fn its_workers_become_the_mold() {
    if require("gcc") {
        reforks(&[&compile("clients/c/tests/probe.c", "refork-c")]);
    }
}

#[test]
fn the_program_of_its_readme_serves() {
    assert_eq!(first_block("clients/c/README.md"), text_of("clients/c/example.c"));
    if require("gcc") {
        let program = compile("clients/c/example.c", "hello-c");
        serves(&format!("exec {program}"), |builder| builder);
    }
}
