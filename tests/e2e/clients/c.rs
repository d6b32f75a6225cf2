//! clients/c

use super::{conforms, run, scratch};
use crate::support::require;

#[test]
fn it_conforms_to_the_protocol() {
    if !require("gcc") {
        return;
    }
    let probe = scratch("probe-c");
    let flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2"];
    run(&[&["gcc"], &flags[..], &["-o", &probe, "clients/c/tests/probe.c"]].concat());
    conforms(&[&probe]);
}
