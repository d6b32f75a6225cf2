//! 16-18: what a generation runs, whatever becomes of the paths that led there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::signal::Signal;

use super::{SOON, assert_answers, kill_9, server, wait_workers};
use crate::support::{Builder, Panzer, free_port};

/// Puts `releases/NAME/app` into the folder, which answers with NAME.
fn release(folder: &Path, name: &str) {
    let directory = folder.join("releases").join(name);
    fs::create_dir_all(&directory).unwrap();
    crate::support::write_executable(directory.join("app"), server(name));
}

fn point(folder: &Path, name: &str) {
    let new = folder.join("current.new");
    symlink(Path::new("releases").join(name), &new).unwrap();
    fs::rename(&new, folder.join("current")).unwrap();
}

fn builder(port: u16) -> Builder {
    let builder = Panzer::builder().args(["-w", "1", "--bake", "200ms", "-l", &format!("127.0.0.1:{port}")]);
    release(builder.folder(), "one");
    release(builder.folder(), "two");
    point(builder.folder(), "one");
    builder
}

#[track_caller]
fn respawn(panzer: &Panzer) {
    let before = panzer.workers();
    kill_9(before[0]);
    wait_workers(panzer, 1, &before);
}

#[test]
pub fn a_symlink_is_followed_anew_by_a_reload_and_not_by_a_respawn() {
    let port = free_port();
    let builder = builder(port);
    let program = builder.folder().join("current/app");
    let panzer = builder.arg("--").arg(program).start();
    panzer.expect_line("was killed by SIGKILL; respawning it");
    panzer.wait_serving();
    assert_answers(port, "one");
    point(panzer.folder(), "two");
    respawn(&panzer);
    assert_answers(port, "one");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert_answers(port, "two");
    panzer.stop();
}

#[test]
pub fn so_is_one_in_the_directory_it_was_started_in_and_a_new_monitor_stays_with_it() {
    let port = free_port();
    let builder = builder(port);
    let current = builder.folder().join("current");
    let panzer = builder.args(["--", "./app"]).env("PWD", &current).in_directory(&current).start();
    panzer.expect_line("error: the monitor of generation 1 was killed by SIGKILL");
    panzer.wait_serving();
    let worker = panzer.workers()[0];
    let directory = |pid: i32| fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert!(directory(worker).ends_with("releases/one"));
    point(panzer.folder(), "two");
    kill_9(panzer.status().serving().monitor.unwrap());
    let worker = wait_workers(&panzer, 1, &[worker])[0];
    assert!(directory(worker).ends_with("releases/one"));
    assert_answers(port, "one");
    assert_eq!(panzer.reload_and_wait(), Ok(2));
    panzer.wait_drained(1);
    assert!(directory(panzer.workers()[0]).ends_with("releases/two"));
    assert_answers(port, "two");
    panzer.stop();
}

#[test]
pub fn a_binary_that_is_gone_is_still_respawned() {
    let builder = Panzer::builder().args(["-w", "1", "--bake", "100ms", "./app", "--", "1000"]);
    crate::support::copy_executable("/bin/sleep", builder.folder().join("app"));
    let panzer = builder.start();
    panzer.wait_serving();
    panzer.expect_line("was killed by SIGKILL; respawning it");
    fs::remove_file(panzer.path("app")).unwrap();
    respawn(&panzer);
    crate::support::copy_executable("/bin/true", panzer.path("app"));
    respawn(&panzer);
    let arguments = fs::read(format!("/proc/{}/cmdline", panzer.workers()[0])).unwrap();
    assert_eq!(arguments, b"./app\x001000\0");
    panzer.stop();
}

#[test]
pub fn a_script_that_was_replaced_is_run_and_the_mix_is_told() {
    let port = free_port();
    let builder = builder(port);
    let program = builder.folder().join("releases/one/app");
    let panzer = builder.arg("--").arg(program).start();
    panzer.wait_serving();
    panzer.expect_line("was killed by SIGKILL; respawning it");
    panzer.expect_line("warning: * leads to another file by now; workers of generation 1 run a mix of releases");
    let one = panzer.path("releases/one/app");
    fs::rename(panzer.path("releases/two/app"), one).unwrap();
    respawn(&panzer);
    assert_answers(port, "two");
    panzer.stop();
}

#[test]
pub fn a_directory_that_is_gone_is_a_failed_reload_until_it_is_back() {
    let builder = Panzer::builder().args(["-w", "1", "--bake", "100ms", "--chdir", "work", "--", "sleep", "1000"]);
    fs::create_dir(builder.folder().join("work")).unwrap();
    let panzer = builder.start();
    panzer.wait_serving();
    panzer.expect_line("error: reload failed: generation 2: the working directory * cannot be entered");
    fs::remove_dir(panzer.path("work")).unwrap();
    panzer.reload_and_wait().unwrap_err();
    fs::create_dir(panzer.path("work")).unwrap();
    assert_eq!(panzer.reload_and_wait(), Ok(3));
    panzer.stop();
}

#[test]
pub fn reloads_that_are_asked_for_during_a_reload_become_one() {
    let panzer = Panzer::start(["-w", "1", "--bake", "2s", "--", "sleep", "1000"]);
    panzer.wait_serving();
    panzer.signal(Signal::SIGUSR1);
    panzer.wait_for_line("reload: starting generation 2", SOON);
    for _ in 0..50 {
        panzer.signal_quietly(Signal::SIGUSR1);
    }
    panzer.wait_for_line("generation 2 is still starting; the next reload follows it", SOON);
    panzer.wait_for_line("reload done: generation 3 serves", SOON);
    panzer.wait_drained(2);
    assert_eq!(panzer.status().serving().number, 3);
    assert!(!panzer.lines().iter().any(|line| line.contains("starting generation 4")));
    panzer.stop();
}
