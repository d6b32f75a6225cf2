//! clients/rust

use super::{conforms, first_block, reforks, run, scratch, serves, text_of};

const MANIFEST: &str = "clients/rust/Cargo.toml";

/// Its examples. Cargo lets one test at a time build them.
fn build() -> String {
    let target = scratch("clients-rust");
    let build = ["build", "--quiet", "--locked", "--examples", "--manifest-path", MANIFEST, "--target-dir", &target];
    run(&[&[env!("CARGO")], &build[..]].concat(), &[]);
    format!("{target}/debug/examples")
}

#[test]
fn it_conforms_to_the_protocol() {
    conforms(&[], &[&format!("{}/probe", build())]);
}

#[test]
fn its_workers_become_the_mold() {
    reforks(&[&format!("{}/probe", build())]);
}

#[test]
fn the_program_of_its_readme_serves() {
    assert_eq!(first_block("clients/rust/README.md"), text_of("clients/rust/examples/hello.rs"));
    serves(&format!("exec {}/hello", build()), |builder| builder);
}

#[test]
fn it_is_formatted_and_clean() {
    run(&[env!("CARGO"), "fmt", "--check", "--manifest-path", MANIFEST], &[]);
    let clippy = ["clippy", "--quiet", "--locked", "--all-targets", "--manifest-path", MANIFEST];
    let target = scratch("clients-rust-clippy");
    run(&[&[env!("CARGO")], &clippy[..], &["--target-dir", &target, "--", "-D", "warnings"]].concat(), &[]);
}
