//! 60, 63, 64: processes that workers start and do not end.

use std::fs;

use super::{SOON, is_alive, kill_9, wait_gone, wait_workers};
use crate::support::{Panzer, eventually_some};

fn noted_pid(panzer: &Panzer, name: &str) -> i32 {
    let path = panzer.path(name);
    eventually_some(SOON, "a pid is noted", || fs::read_to_string(&path).ok()?.trim().parse().ok())
}

#[test]
fn the_group_of_a_killed_worker_is_ended() {
    let panzer = Panzer::builder()
        .executable("app", "#!/bin/sh\nsleep 1000 &\necho $! > child\nwait\n")
        .args(["-w", "1", "--bake", "300ms", "./app"])
        .start();
    panzer.wait_serving();
    panzer.expect_line("was killed by SIGKILL; respawning it");
    panzer.expect_line("warning: worker 0 * ended and left processes behind; stopping them");
    let child = noted_pid(&panzer, "child");
    let before = panzer.workers();
    kill_9(before[0]);
    wait_gone(&[child]);
    wait_workers(&panzer, 1, &before);
    panzer.stop();
}

#[test]
fn a_child_that_keeps_the_listener_is_ended_by_a_stop() {
    let panzer = Panzer::builder()
        .executable("app", "#!/bin/sh\nsleep 1000 &\necho $! > child\nexec sleep 1000\n")
        .args(["-w", "1", "--bake", "300ms", "./app"])
        .start();
    panzer.wait_serving();
    panzer.expect_line("warning: worker 0 * ended and left processes behind; stopping them");
    let child = noted_pid(&panzer, "child");
    assert!(is_alive(child));
    assert_eq!(panzer.stop().code(), Some(0));
}

#[test]
fn a_program_that_goes_to_the_background_is_noticed_and_ended() {
    let panzer = Panzer::builder()
        .executable("app", "#!/bin/sh\nsetsid sleep 1000 &\necho $! > child\nsleep 0.2\n")
        .args(["-w", "1", "--delay", "1h", "--delay-max", "1h", "./app"])
        .start();
    panzer.expect_line("warning: worker 0 * exited with code 0, and a worker is meant to stay; respawning it in");
    panzer.expect_line("warning: worker 0 * ended and left processes behind; stopping them");
    let child = noted_pid(&panzer, "child");
    wait_gone(&[child]);
    panzer.stop();
}
