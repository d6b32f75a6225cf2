//! clients/ruby

use super::{ROOT, conforms, first_block, reforks, run, serves};
use crate::support::require;

#[test]
fn it_conforms_to_the_protocol() {
    if require("ruby") {
        conforms(&["--garbage"], &["ruby", "-w", "clients/ruby/test/probe.rb"]);
    }
}

#[test]
fn its_workers_become_the_mold() {
    if require("ruby") {
        reforks(&["ruby", &format!("{ROOT}/clients/ruby/test/probe.rb")]);
    }
}

/// The examples of the seeds' documents are among them.
#[test]
fn its_own_tests_pass() {
    if require("ruby") {
        run(&["ruby", "clients/ruby/test/all.rb"], &[]);
    }
}

#[test]
fn the_program_of_its_readme_serves() {
    if !require("ruby") {
        return;
    }
    let program = first_block("clients/ruby/README.md");
    serves("exec ruby hello.rb", |builder| {
        builder.file("hello.rb", &program).env("RUBYLIB", format!("{ROOT}/clients/ruby/lib"))
    });
}
