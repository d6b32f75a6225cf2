//! clients/crystal. Its compiler takes long, and is not needed in CI's image: without it the tests are skipped.

use std::fs;
use std::process::Command;

use super::{PANZER, ROOT, conforms, first_block, reforks, run, scratch, serves, text_of};
use crate::support::{Panzer, eventually, free_port, get, there_is};

/// Compiles a program that requires the shard by its name. Its cache is its own: compilers that share one overwrite the
/// helpers that they compile and execute for macros.
fn compile(source: &str, name: &str) -> String {
    let program = scratch(name);
    let standard = Command::new("crystal").args(["env", "CRYSTAL_PATH"]).output().unwrap();
    let path = format!("{ROOT}/clients/crystal/src:{}", String::from_utf8_lossy(&standard.stdout).trim());
    let cache = scratch(&format!("cache-of-{name}"));
    run(&["crystal", "build", "-o", &program, source], &[("CRYSTAL_PATH", &path), ("CRYSTAL_CACHE_DIR", &cache)]);
    program
}

#[test]
fn it_conforms_to_the_protocol() {
    if there_is("crystal") {
        conforms(&["--garbage"], &[&compile("clients/crystal/tests/probe.cr", "probe-crystal")]);
    }
}

#[test]
fn its_workers_become_the_mold() {
    if there_is("crystal") {
        reforks(&[&compile("clients/crystal/tests/probe.cr", "refork-crystal")]);
    }
}

#[test]
fn the_program_of_its_readme_serves() {
    assert_eq!(first_block("clients/crystal/README.md"), text_of("clients/crystal/tests/hello.cr"));
    if there_is("crystal") {
        let program = compile("clients/crystal/tests/hello.cr", "hello-crystal");
        serves(&format!("exec {program}"), |builder| builder);
    }
}

/// The example of the first seed's document, letter for letter but for its port.
#[test]
fn panzers_http_server() {
    if !there_is("crystal") {
        return;
    }
    let port = free_port();
    let text = text_of("clients/crystal/tests/http_server.cr").replace("8080", &port.to_string());
    let source = scratch("http_server.cr");
    fs::write(&source, text).unwrap();
    let program = compile(&source, "my_worker");
    // By itself, as the mold, and as a program that is executed for each worker: the document starts it by `panzer`.
    let alone = || {
        let script = format!("#!/bin/sh\nexec {program}\n");
        Panzer::builder().executable("my_app", &script).through("my_app").env("PANZER", PANZER)
    };
    let executed = || Panzer::builder().args(["-w", "8", &program]);
    for builder in [alone(), executed()] {
        let panzer = builder.env("PANZER_BAKE", "50ms").start();
        panzer.wait_serving();
        assert_eq!(panzer.workers().len(), 8);
        let hello = || get(port, "/x").is_ok_and(|answer| answer.text() == "Hello world, got /x!");
        eventually(super::SOON, "it answers", hello);
        assert_eq!(panzer.reload_and_wait(), Ok(2));
        panzer.wait_drained(1);
        eventually(super::SOON, "it answers after a reload", hello);
        assert_eq!(panzer.stop().code(), Some(0));
    }
}
