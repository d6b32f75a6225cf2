//! 35, 66, 74: what a worker starts with.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use super::{serving_app, start_app};
use crate::support::{Panzer, free_port};

fn variables(pid: i32) -> Vec<(String, String)> {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let entries = environment.split(|&byte| byte == 0).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let entry = String::from_utf8_lossy(entry).into_owned();
            let (name, value) = entry.split_once('=').unwrap();
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

fn variable(pid: i32, name: &str) -> Option<String> {
    variables(pid).into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

#[test]
fn the_environment_holds_what_is_documented_and_no_more() {
    let (port, other) = (free_port(), free_port());
    let panzer = serving_app(port, 2)
        .args([
            "--listen",
            &format!("admin=127.0.0.1:{other}"),
            "--env",
            "ID=w{worker}g{generation}p{3000+worker}f{fd:admin}",
        ])
        .env("NOTIFY_SOCKET", "@outer")
        .env("LISTEN_FDS", "7")
        .env("LISTEN_PID", "1")
        .env("WATCHDOG_USEC", "1000000")
        .env("PANZER_BAKE", "100ms")
        .env("PLAIN", "kept")
        .start();
    panzer.expect_line("warning: NOTIFY_SOCKET cannot be told anything: connection refused");
    panzer.wait_serving();
    let workers = panzer.workers();
    for (worker, &pid) in workers.iter().enumerate() {
        let expected = [
            ("LISTEN_PID", pid.to_string()),
            ("LISTEN_FDS", "2".to_owned()),
            ("LISTEN_FDNAMES", "unknown:admin".to_owned()),
            ("PANZER_WORKER_ID", worker.to_string()),
            ("PANZER_WORKER_COUNT", "2".to_owned()),
            ("PANZER_GENERATION", "1".to_owned()),
            ("PANZER_MAIN_PID", panzer.pid().to_string()),
            ("PLAIN", "kept".to_owned()),
            ("ID", format!("w{worker}g1p{}f4", 3000 + worker)),
        ];
        for (name, value) in expected {
            assert_eq!(variable(pid, name), Some(value), "{name}");
        }
        assert!(variable(pid, "NOTIFY_SOCKET").is_some_and(|name| name.starts_with('@') && name != "@outer"));
        assert_eq!(variable(pid, "WATCHDOG_USEC"), None);
        let panzers = variables(pid).into_iter().filter(|(name, _)| name.starts_with("PANZER_")).count();
        assert_eq!(panzers, 4);
    }
    panzer.stop();
}

#[test]
fn signals_are_as_a_program_expects_them() {
    // Whoever starts panzer may ignore and block what they like.
    let panzer = Panzer::builder()
        .executable("start", "#!/usr/bin/env python3\nimport os, signal, sys\nfor number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD, 40):\n    signal.signal(number, signal.SIG_IGN)\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nos.execvp(sys.argv[1], sys.argv[1:])\n")
        .through("start")
        .args(["-w", "1", "--bake", "100ms", "--", "sleep", "1000"])
        .start();
    panzer.wait_serving();
    let status = fs::read_to_string(format!("/proc/{}/status", panzer.workers()[0])).unwrap();
    for field in ["SigBlk", "SigIgn", "SigCgt"] {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        assert_eq!(line.split_ascii_whitespace().nth(1), Some("0000000000000000"), "{line}");
    }
    panzer.stop();
}

#[test]
fn there_is_no_descriptor_but_the_documented() {
    let (panzer, _) = start_app(1);
    let monitor = panzer.status().serving().monitor.unwrap();
    let descriptors = |pid: i32| -> Vec<String> {
        let mut all: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().collect();
        all.sort_by_key(|entry| entry.file_name().to_string_lossy().parse::<i32>().unwrap());
        all.iter().map(|entry| fs::read_link(entry.path()).unwrap().to_string_lossy().into_owned()).collect()
    };
    let worker = descriptors(panzer.workers()[0]);
    assert_eq!(worker.len(), 4, "{worker:?}");
    assert_eq!(worker[0], "/dev/null");
    assert!(worker[3].starts_with("socket:"), "{worker:?}");
    assert_eq!(descriptors(monitor)[3], worker[3], "the same listener under the same number");
    panzer.stop();
}

#[test]
fn arguments_pass_byte_for_byte() {
    let bytes = OsStr::from_bytes(b"\xff{x}\xfe");
    let panzer = Panzer::builder().executable("keep", "#!/bin/sh\nsleep 1000 & wait\n");
    let panzer = panzer.args(["-w", "1", "--bake", "100ms", "./keep", "--", "{worker}"]).arg(bytes).start();
    panzer.wait_serving();
    panzer.allow_line("left processes behind");
    let line = fs::read(format!("/proc/{}/cmdline", panzer.workers()[0])).unwrap();
    assert!(line.ends_with(b"/keep\x000\0\xff{x}\xfe\0"), "{}", String::from_utf8_lossy(&line));
    panzer.stop();
}
