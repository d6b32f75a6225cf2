//! clients/python

use std::collections::BTreeSet;

use super::{ROOT, SOON, conforms, first_block, run, serves};
use crate::faults::{kill_9, wait_gone};
use crate::support::{Builder, Panzer, eventually, free_port, get, require};

#[test]
fn it_conforms_to_the_protocol() {
    conforms(&["--garbage"], &["python3", "clients/python/tests/probe.py"]);
}

#[test]
fn its_own_tests_pass() {
    run(&["python3", "clients/python/tests/test_panzer.py"], &[]);
}

#[test]
fn it_works_with_other_versions_of_python() {
    for version in ["python3.9", "python3.13"] {
        if require_command(version) {
            conforms(&["--garbage"], &[version, "clients/python/tests/probe.py"]);
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

/// A server of one connection at a time. What it takes from panzer it takes while it loads.
const SERVER: &str = r#"#!/usr/bin/env python3
import os
import panzer

listener = panzer.listeners()[0]

def serve(worker):
    # The socket that stands there now, which is another one than the mold's if each worker has its own.
    body = b"queue %d of worker %d, hello" % (os.fstat(listener.fileno()).st_ino, worker.index)
    worker.ready()
    while True:
        connection = listener.accept()[0]
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        connection.close()

panzer.run(serve)
"#;

fn server(port: u16, options: &str) -> Builder {
    let listen = format!("127.0.0.1:{port}{options}");
    let arguments = ["--preload", "-w", "2", "-l", &listen, "--ready", "notify", "--bake", "50ms", "./app"];
    Panzer::builder().executable("app", SERVER).env("PYTHONPATH", format!("{ROOT}/clients/python")).args(arguments)
}

#[test]
fn each_worker_has_its_own_queue_and_says_that_it_is_ready() {
    let port = free_port();
    let panzer = server(port, ",per-worker").start();
    panzer.wait_serving();
    let queues = || {
        let mut seen = BTreeSet::new();
        eventually(SOON, "both workers answer", || {
            seen.extend(get(port, "/").map(|answer| answer.text().to_owned()));
            seen.len() == 2
        });
        seen
    };
    let before = queues();
    let killed = panzer.workers()[0];
    panzer.expect_line("warning: worker 0 (pid *, generation 1) was killed by SIGKILL; respawning it");
    kill_9(killed);
    wait_gone(&[killed]);
    assert_eq!(queues(), before, "a replacement has the queue of its slot");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn an_exception_while_it_loads_is_in_the_verdict() {
    let port = free_port();
    let panzer = server(port, "").start();
    panzer.wait_serving();
    let broken = SERVER.replace("listener =", "raise LookupError('no table\\nusers')\nlistener =");
    crate::support::write_executable(panzer.path("app"), broken);
    for line in ["Traceback (most recent call last):", "  *", "LookupError: no table", "users"] {
        panzer.allow_line(line);
    }
    panzer.expect_line("error: reload failed: generation 2: ");
    let verdict = panzer.reload_and_wait().unwrap_err();
    assert!(verdict.contains("the mold cannot load: LookupError: no table users; generation 1 serves on"), "{verdict}");
    assert!(get(port, "/").unwrap().text().ends_with("hello"));
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_hook_that_fails_is_told_of() {
    let port = free_port();
    let failing = SERVER.replace(
        "panzer.run(serve)",
        "class Failing:
    def before_fork(self):
        raise OSError(28, 'No space left on device')
    def run(self):
        pass

panzer.run(Failing())",
    );
    let panzer = server(port, "").executable("app", &failing).start();
    panzer.expect_line("No space left on device");
    panzer.wait_for_line("No space left on device", SOON);
    panzer.allow_line("warning: ");
    panzer.allow_line("error: ");
    panzer.stop();
}
