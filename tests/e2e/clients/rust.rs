//! clients/rust

use super::{conforms, run, scratch};

const MANIFEST: &str = "clients/rust/Cargo.toml";

#[test]
fn it_conforms_to_the_protocol() {
    let target = scratch("clients-rust");
    let build = ["build", "--quiet", "--locked", "--examples", "--manifest-path", MANIFEST, "--target-dir", &target];
    run(&[&[env!("CARGO")], &build[..]].concat());
    conforms(&[&format!("{target}/debug/examples/probe")]);
}

#[test]
fn it_is_formatted_and_clean() {
    run(&[env!("CARGO"), "fmt", "--check", "--manifest-path", MANIFEST]);
    let clippy = ["clippy", "--quiet", "--locked", "--all-targets", "--manifest-path", MANIFEST];
    let target = scratch("clients-rust-clippy");
    run(&[&[env!("CARGO")], &clippy[..], &["--target-dir", &target, "--", "-D", "warnings"]].concat());
}
