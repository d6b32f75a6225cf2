//! 12-14, 19, 32, 41, 42: releases that fail are refused with their cause, and the old one never notices.

use std::fs;

use super::{assert_answers, is_alive, server, serving_app, start_app, wait_gone, wait_started};
use crate::support::{Panzer, free_port};

/// Puts `content` in place of the program, as a new file.
fn replace(panzer: &Panzer, content: &[u8], mode: u32) {
    let new = panzer.path("app.new");
    fs::write(&new, content).unwrap();
    crate::support::set_mode(&new, mode);
    fs::rename(&new, panzer.path("app")).unwrap();
}

/// Reloads into a bad release, which must be refused for this reason, then into a good one.
#[track_caller]
fn refuses(panzer: Panzer, port: u16, cause: &str) {
    let workers = panzer.workers();
    panzer.expect_line("error: reload failed: generation 2: ");
    // The failed generation may start a worker once more while it is being stopped, and finds the next release then.
    panzer.allow_line("warning: * leads to another file by now; workers of generation 2 run a mix of releases");
    let line = panzer.reload_and_wait().unwrap_err();
    assert!(line.contains(cause), "{line}");
    assert!(line.ends_with("; generation 1 serves on"), "{line}");
    assert_eq!(panzer.workers(), workers, "the old generation must not notice");
    assert_answers(port, "good");
    replace(&panzer, server("better").as_bytes(), 0o755);
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.wait_drained(1);
    assert_answers(port, "better");
    wait_gone(&workers);
    assert_eq!(panzer.stop().code(), Some(0));
}

#[track_caller]
fn refuses_program(content: &[u8], mode: u32, cause: &str) {
    let (panzer, port) = start_app(2);
    replace(&panzer, content, mode);
    refuses(panzer, port, cause);
}

#[test]
fn a_missing_program() {
    let (panzer, port) = start_app(2);
    fs::remove_file(panzer.path("app")).unwrap();
    refuses(panzer, port, "/app was not found (no such file or directory)");
}

#[test]
fn a_program_that_is_not_executable() {
    refuses_program(server("bad").as_bytes(), 0o644, "/app cannot be executed: it is not executable (mode 0644)");
}

#[test]
fn a_missing_interpreter() {
    refuses_program(b"#!/nonexistent/sh\n", 0o755, "its interpreter /nonexistent/sh was not found");
}

#[test]
fn an_empty_program() {
    refuses_program(b"", 0o755, "/app cannot be executed: it is empty");
}

#[test]
fn a_program_for_another_machine() {
    let mut elf = fs::read("/bin/true").unwrap();
    // e_machine, after which no kernel here knows it.
    (elf[18], elf[19]) = if cfg!(target_endian = "little") { (22, 0) } else { (0, 62) };
    refuses_program(&elf, 0o755, "it is built for ");
}

#[test]
fn a_program_that_crashes() {
    refuses_program(b"#!/bin/sh\nulimit -c 0; kill -SEGV $$\n", 0o755, "was killed by SIGSEGV");
}

#[test]
fn a_program_that_exits_with_success() {
    refuses_program(b"#!/bin/sh\n", 0o755, "exited with code 0, but workers are expected to keep running");
}

#[test]
fn a_program_that_is_never_ready() {
    let port = free_port();
    let notifying = format!("#!/usr/bin/env python3\n{NOTIFY}\n{}", server("good"));
    let panzer =
        serving_app(port, 2).executable("app", &notifying).args(["--ready", "notify", "--ready-timeout", "2s"]).start();
    wait_started(&panzer, 2);
    // The next one accepts, and never says that it is ready.
    replace(&panzer, server("bad").as_bytes(), 0o755);
    let workers = panzer.workers();
    panzer.expect_line("error: reload failed: generation 2: ");
    let line = panzer.reload_and_wait().unwrap_err();
    assert!(line.contains("2 of 2 workers were not ready within 2s (worker 0, 1)"), "{line}");
    assert_eq!(panzer.workers(), workers);
    assert_answers(port, "good");
    replace(&panzer, notifying.as_bytes(), 0o755);
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_program_that_dies_after_it_was_ready() {
    let port = free_port();
    let panzer = serving_app(port, 2).args(["--bake", "3s"]).start();
    wait_started(&panzer, 2);
    replace(&panzer, b"#!/usr/bin/env python3\nimport sys, time\ntime.sleep(0.3)\nsys.exit(7)\n", 0o755);
    refuses(panzer, port, "exited with code 7");
}

#[test]
fn a_release_that_fails_is_gone_with_all_its_workers() {
    let (panzer, _) = start_app(1);
    let marker = panzer.path("pids");
    replace(&panzer, format!("#!/bin/sh\necho $$ >> {}\nexec sleep 0.1\n", marker.display()).as_bytes(), 0o755);
    panzer.expect_line("error: reload failed: generation 2: worker 0 exited with code 0");
    panzer.reload_and_wait().unwrap_err();
    let pids: Vec<i32> = fs::read_to_string(marker).unwrap().lines().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 1, "on trial nothing is respawned");
    assert!(!is_alive(pids[0]));
    crate::support::eventually(super::SOON, "generation 2 is gone", || panzer.status().generations.len() == 1);
    panzer.stop();
}

/// Tells panzer that it is ready.
pub(super) const NOTIFY: &str = "
import os, socket as notify_socket
notify = notify_socket.socket(notify_socket.AF_UNIX, notify_socket.SOCK_DGRAM)
notify.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:])
";
