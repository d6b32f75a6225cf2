//! 25, 52-54, 76: the pid file.

use std::fs;
use std::os::unix::fs::symlink;

use super::kill_9;
use crate::support::{Builder, Panzer};

fn sleeper() -> Builder {
    Panzer::builder().args(["-w", "1", "--bake", "100ms", "--", "sleep", "1000"])
}

#[test]
fn it_holds_the_pid_and_goes_with_the_end() {
    let panzer = sleeper().start();
    panzer.wait_serving();
    let path = panzer.path("run/sleep.pid");
    assert_eq!(fs::read_to_string(&path).unwrap().trim(), panzer.pid().to_string());
    panzer.signal(nix::sys::signal::Signal::SIGTERM);
    crate::support::eventually(super::SOON, "it is removed", || !path.exists());
    panzer.wait_exit();
}

#[test]
fn a_name_that_is_taken_gets_a_number_or_an_error() {
    let first = sleeper().start();
    first.wait_serving();
    let second = sleeper().env("RUNTIME_DIRECTORY", first.path("run")).start();
    second.wait_serving();
    assert!(first.path("run/sleep-2.pid").exists());
    second.stop();
    let named = Panzer::builder().args(["--name", "sleep", "--", "sleep", "1000"]);
    let third = named.env("RUNTIME_DIRECTORY", first.path("run")).start();
    third.expect_line(&format!("error: *run/sleep.pid belongs to a panzer that runs (pid {}); stop it", first.pid()));
    assert_eq!(third.wait_exit().code(), Some(125));
    assert!(first.path("run/sleep.pid").exists());
    // Nor has it touched the socket that the same lock guards.
    assert!(std::os::unix::net::UnixStream::connect(first.path("run/sleep.sock")).is_ok());
    first.stop();
}

#[test]
fn a_stale_one_is_taken_over() {
    let first = sleeper().start();
    first.wait_serving();
    kill_9(first.pid());
    let second = sleeper().env("RUNTIME_DIRECTORY", first.path("run")).start();
    second.wait_serving();
    assert_eq!(fs::read_to_string(first.path("run/sleep.pid")).unwrap().trim(), second.pid().to_string());
    second.stop();
    first.wait_exit();
}

#[test]
fn a_symlink_is_not_followed() {
    let builder = Panzer::builder();
    let (target, link) = (builder.folder().join("target"), builder.folder().join("link.pid"));
    fs::write(&target, "precious").unwrap();
    symlink(&target, &link).unwrap();
    let panzer = builder.args(["-p", "link.pid", "--", "sleep", "1000"]).start();
    panzer.expect_line("error: cannot write *link.pid: it is a symlink, which is not followed; remove it");
    let kept = panzer.path("target");
    assert_eq!(fs::read_to_string(kept).unwrap(), "precious");
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

#[test]
fn one_that_cannot_be_written_is_an_error_before_anything_starts() {
    let panzer = Panzer::start(["-p", "/nonexistent/panzer.pid", "--", "sleep", "1000"]);
    panzer.expect_line("error: cannot write /nonexistent/panzer.pid: no such file or directory");
    assert_eq!(panzer.wait_exit().code(), Some(125));
}

#[test]
fn of_many_that_start_at_once_one_wins() {
    let holder = Panzer::builder();
    let pid_file = holder.folder().join("one.pid");
    let start = || Panzer::builder().arg("-p").arg(&pid_file).args(["-w", "1", "--", "sleep", "1000"]).start();
    let all: Vec<Panzer> = (0..20).map(|_| start()).collect();
    let winner = crate::support::eventually_some(super::SOON, "all but one have ended", || {
        let alive: Vec<i32> = all.iter().map(Panzer::pid).filter(|&pid| super::is_alive(pid)).collect();
        (alive.len() == 1).then(|| alive[0])
    });
    assert_eq!(fs::read_to_string(&pid_file).unwrap().trim(), winner.to_string());
    for panzer in all {
        if panzer.pid() == winner {
            panzer.wait_for_line("started as pid", super::SOON);
            panzer.stop();
        } else {
            panzer.expect_line("error: *one.pid belongs to a panzer that runs");
            assert_eq!(panzer.wait_exit().code(), Some(125));
        }
    }
    assert!(!pid_file.exists());
}
