//! The clients of the mold protocol in `clients/`, each with its own tests, and under this build of panzer.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::support::{Builder, Panzer, eventually, free_port, get, with_real_interpreter};

mod c;
mod crystal;
mod python;
mod ruby;
mod rust;

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");
pub const PANZER: &str = env!("CARGO_BIN_EXE_panzer");

/// A compiler may take long on a busy machine.
const LONGEST: &str = "400";
const SOON: Duration = Duration::from_secs(20);

/// Runs a command of a client's tests from the root of the tree, with `PANZER` leading to this build. It must succeed.
fn run(command: &[&str], environment: &[(&str, &str)]) {
    // The limit is for a test that hangs: timeout(1) ends its whole group.
    let mut process = Command::new("timeout");
    process.args(["-k", "5", LONGEST]).args(command).current_dir(ROOT).envs(environment.iter().copied());
    process.env("PANZER", PANZER).env("PATH", with_real_interpreter());
    let output = process.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}: {}\n{}", command.join(" "), output.status, String::from_utf8_lossy(&text));
}

/// Where a client's tests put what they compile.
fn scratch(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_TARGET_TMPDIR"))
}

fn text_of(path: &str) -> String {
    fs::read_to_string(format!("{ROOT}/{path}")).unwrap()
}

/// Holds a client against the protocol, by the program that is written for that. `more` is its options for what not every
/// language has.
fn conforms(more: &[&str], probe: &[&str]) {
    run(&[&["python3", "clients/testing/conform.py", "--threads"], more, &["--"], probe].concat(), &[]);
}

/// Workers of the same program become the mold, one after the other.
fn reforks(probe: &[&str]) {
    let options = ["--preload", "-w", "2", "--refork", "150ms", "--healthy-after", "100ms", "--ready", "notify", "--"];
    let panzer = Panzer::builder().args(options).args(probe).env("PANZER_BAKE", "50ms").start();
    for line in [
        "and is to become the mold (--refork); replacing it",
        "has taken the place of pid",
        "is the mold of generation",
    ] {
        panzer.allow_line(line);
    }
    panzer.wait_serving();
    let mut molds = vec![panzer.status().serving().mold()];
    eventually(SOON, "three molds, one after the other", || {
        let mold = panzer.status().serving().mold.as_ref().and_then(|mold| mold.pid);
        molds.extend(mold.filter(|mold| !molds.contains(mold)));
        molds.len() >= 3
    });
    assert_eq!(panzer.stop().code(), Some(0));
}

/// A page's first block of code.
fn first_block(page: &str) -> String {
    let text = text_of(page);
    let block = text.split("```").nth(1).and_then(|block| block.split_once('\n')).unwrap().1;
    block.to_owned()
}

/// A program that finds panzer by itself: `line` is how the shell executes it. It listens on `port`, with two workers.
fn deployed(line: &str, port: u16) -> Builder {
    let program = Panzer::builder().executable("my_app", &format!("#!/bin/sh\n{line}\n")).through("my_app");
    program
        .env("PANZER", PANZER)
        .env("PANZER_WORKERS", "2")
        .env("PANZER_BAKE", "50ms")
        .env("PANZER_LISTEN", format!("127.0.0.1:{port}"))
}

/// The program of a client's page: it serves, with one mold for two workers, is replaced, and stops.
fn serves(line: &str, complete: impl FnOnce(Builder) -> Builder) {
    let port = free_port();
    let panzer = complete(deployed(line, port)).start();
    panzer.wait_serving();
    assert_eq!(panzer.workers().len(), 2);
    let answers = || get(port, "/").is_ok_and(|answer| answer.text().contains("hello from worker "));
    eventually(SOON, "it answers", answers);
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    eventually(SOON, "it answers after a reload", answers);
    assert_eq!(panzer.stop().code(), Some(0));
}
