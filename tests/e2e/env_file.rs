//! `--env-file`: read anew by each generation, and a broken one is a failed release.

use std::fs;

use crate::faults::{kill_9, wait_workers};
use crate::support::{Builder, Panzer};

/// A worker with the variables of `text` in `app.env`.
fn sleeper(text: impl AsRef<[u8]>) -> Builder {
    let builder = Panzer::builder().args(["-w", "1", "--bake", "50ms", "--env-file", "app.env", "--", "sleep", "1000"]);
    fs::write(builder.folder().join("app.env"), text).unwrap();
    builder
}

fn environment(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap();
    String::from_utf8_lossy(&bytes).split('\0').map(str::to_owned).collect()
}

#[track_caller]
fn has(panzer: &Panzer, entries: &[&str]) {
    let found = environment(panzer.workers()[0]);
    for entry in entries {
        let (name, _) = entry.split_once('=').unwrap();
        let of_name: Vec<&String> = found.iter().filter(|found| found.starts_with(&format!("{name}="))).collect();
        assert_eq!(of_name, [entry]);
    }
}

#[test]
fn each_generation_reads_it_anew() {
    let panzer = sleeper("# ours\nexport A=1\nHOME='/my home'\nB=\"{worker}\\n$A\"\nC=file\n")
        .env("PANZER_ENV", "C=option")
        .start();
    panzer.wait_serving();
    // Over what panzer was started with, under --env, and without placeholders.
    has(&panzer, &["A=1", "HOME=/my home", "B={worker}\n$A", "C=option"]);
    fs::write(panzer.path("app.env"), "A=new\n").unwrap();
    let before = panzer.workers();
    kill_9(before[0]);
    panzer.expect_line("warning: worker 0 * was killed by SIGKILL; respawning it");
    wait_workers(&panzer, 1, &before);
    // A respawn belongs to its generation, also by another monitor.
    has(&panzer, &["A=1"]);
    fs::write(panzer.path("app.env"), "broken\n").unwrap();
    let before = panzer.workers();
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL; starting another");
    kill_9(panzer.status().serving().monitor.unwrap());
    wait_workers(&panzer, 1, &before);
    has(&panzer, &["A=1", "HOME=/my home"]);
    fs::write(panzer.path("app.env"), "A=new\n").unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    has(&panzer, &["A=new"]);
    assert!(!environment(panzer.workers()[0]).iter().any(|entry| entry.starts_with("B=")));
    panzer.stop();
}

#[test]
fn a_variable_names_several_and_a_path_with_a_blank() {
    let builder = Panzer::builder().file("my app.env", "A=1\n").file("2.env", "B=2\n");
    let panzer = builder.env("PANZER_ENV_FILE", r"my\ app.env 2.env").args(["-w", "1", "--", "sleep", "1000"]).start();
    panzer.wait_serving();
    has(&panzer, &["A=1", "B=2"]);
    panzer.stop();
}

#[test]
fn of_several_the_last_counts_and_one_may_be_missing() {
    let builder = Panzer::builder().file("1.env", "A=1\nB=1\n").file("2.env", "B=2\n");
    let files = ["--env-file", "1.env", "--env-file", "-none.env", "--env-file=2.env"];
    let panzer = builder.args(["-w", "1", "--bake", "50ms"]).args(files).args(["--", "sleep", "1000"]).start();
    panzer.wait_serving();
    has(&panzer, &["A=1", "B=2"]);
    panzer.stop();
}

#[test]
fn a_broken_one_fails_the_reload_and_the_serving_generation_goes_on() {
    let panzer = sleeper("A=1\n").start();
    panzer.wait_serving();
    let before = panzer.workers();
    let path = panzer.path("app.env");
    let huge = vec![b'#'; (1 << 20) + 1];
    let broken: [(&[u8], &str); 5] = [
        (b"A=1\nB='secret\n", "app.env:2:3: this quote is never closed"),
        (b"A=x\0y\n", "app.env:1:4: a NUL byte, which no variable can hold"),
        (b"PANZER_WORKER_ID=7\n", "app.env:1:1: panzer sets PANZER_WORKER_ID itself; remove the line"),
        (b"no variable\n", "app.env:1:1: not NAME=VALUE, with a name of letters"),
        (&huge, "app.env: it is larger than 1024 KiB"),
    ];
    for (text, why) in broken {
        fs::write(&path, text).unwrap();
        panzer.expect_line(&format!("error: reload failed: generation *{why}*serves on"));
        let line = panzer.reload_and_wait().unwrap_err();
        assert!(!line.contains("secret"), "{line}");
        assert_eq!(panzer.workers(), before);
    }
    fs::remove_file(&path).unwrap();
    panzer.expect_line("error: reload failed: *app.env: there is no such file; create it, or correct --env-file");
    assert!(panzer.reload_and_wait().is_err());
    // A pipe that nobody writes to is not waited for.
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    panzer.expect_line("error: reload failed: *app.env: it is not a regular file");
    assert!(panzer.reload_and_wait().is_err());
    fs::remove_file(&path).unwrap();
    fs::write(&path, "A=2\n").unwrap();
    assert!(panzer.reload_and_wait().is_ok());
    has(&panzer, &["A=2"]);
    panzer.stop();
}

#[test]
fn a_first_start_and_a_check_end_with_its_place() {
    let panzer = sleeper("A=1\nB=it's\n").start();
    panzer.expect_line("error: *app.env:2:5: ' is read in different ways here; put the value in quotes");
    assert_eq!(panzer.wait_exit().code(), Some(125));
    let panzer = sleeper("A=1\nB=x # y\n");
    let script = "#!/bin/sh\npanzer=$1\nshift\nexec \"$panzer\" --check \"$@\"\n";
    let panzer = panzer.executable("check", script).through("check").start();
    panzer.expect_line("panzer: *app.env:2:5: # is read in different ways here");
    assert_eq!(panzer.wait_exit().code(), Some(2));
}
